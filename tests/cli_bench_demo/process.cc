#include "process.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <stdexcept>

namespace pagefill::test {
namespace {

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

// A file without a name: unlike a pipe it takes any amount while nobody reads.
File temporary_file() {
  File file(std::tmpfile(), std::fclose);
  if (file == nullptr) throw std::runtime_error("no temporary file");
  return file;
}

std::string content_of(const File& file) {
  std::rewind(file.get());
  std::string content;
  char block[4096];
  for (size_t got; (got = std::fread(block, 1, sizeof(block), file.get())) > 0;) {
    content.append(block, got);
  }
  return content;
}

}  // namespace

ProcessResult run_pagefill(const std::vector<std::string>& arguments) {
  std::vector<char*> argv{const_cast<char*>(PAGEFILL_PROGRAM)};
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  const File out = temporary_file();
  const File err = temporary_file();

  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    dup2(fileno(out.get()), STDOUT_FILENO);
    dup2(fileno(err.get()), STDERR_FILENO);
    for (const char* name : {"PAGEFILL_BACKEND", "PAGEFILL_CPU_TARGET", "PAGEFILL_NUM_THREADS"}) {
      unsetenv(name);
    }
    execv(PAGEFILL_PROGRAM, argv.data());
    _exit(127);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child) throw std::runtime_error("waitpid failed");
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, content_of(out), content_of(err)};
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

}  // namespace pagefill::test
