#include "process.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "temporary_folder.h"

namespace pagefill::cli {
namespace {

[[noreturn]] void become_pagefill(std::vector<std::string> arguments,
                                  const Surroundings& surroundings, const std::string& out,
                                  const std::string& err) {
  dup2(open(out.c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
  dup2(open(err.c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
  for (const char* name : {"PAGEFILL_BACKEND", "PAGEFILL_CPU_TARGET", "PAGEFILL_NUM_THREADS"}) {
    unsetenv(name);
  }
  for (const std::string& variable : surroundings.environment) {
    const size_t equals = variable.find('=');
    setenv(variable.substr(0, equals).c_str(), variable.substr(equals + 1).c_str(), 1);
  }
  if (surroundings.file_size_limit) {
    const auto bytes = static_cast<rlim_t>(*surroundings.file_size_limit);
    const rlimit limit{bytes, bytes};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  execv(PAGEFILL_PROGRAM, argv.data());
  _exit(127);
}

}  // namespace

Finished pagefill(std::vector<std::string> arguments, const Surroundings& surroundings) {
  arguments.insert(arguments.begin(), "pagefill");
  const TemporaryFolder folder;
  const pid_t child = fork();
  if (child == 0) become_pagefill(arguments, surroundings, folder / "out", folder / "err");
  int status = 0;
  waitpid(child, &status, 0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, contents(folder / "out"),
          contents(folder / "err")};
}

}  // namespace pagefill::cli
