// pagefill info: what was compiled in, what the machine offers, what is chosen and why.
#include <fmt/format.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#include "commands.h"
#include "pagefill/backend.h"
#include "terminal.h"

namespace pagefill::cli {
namespace {

// As Linux names the processor; not every architecture does.
std::string processor_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "a processor that /proc/cpuinfo does not name";
}

void print_line(const std::string& name, bool available, const std::string& description) {
  fmt::print("  {:<14} {:<13} {}\n", name, available ? "available" : "not available", description);
}

void print_backends() {
  fmt::print("\ncompiled in, best first\n");
  bool has_cuda = false;
  for (const BackendInfo& backend : list_backends()) {
    has_cuda = has_cuda || backend.memory == DeviceType::kCuda;
    const std::string why = backend.available ? "" : fmt::format(" ({})", backend.reason);
    print_line(backend.name, backend.available, backend.description + why);
    for (const TargetInfo& target : backend.targets) {
      print_line("  " + target.name, target.available, target.description);
    }
  }
  if (!has_cuda) {
    print_line("cuda", false, "not compiled in: no nvcc of CUDA 13 was found, or it was left out");
  }
}

void print_environment() {
  fmt::print("\nenvironment\n");
  for (const char* name : {"PAGEFILL_BACKEND", "PAGEFILL_CPU_TARGET", "PAGEFILL_NUM_THREADS"}) {
    const char* value = std::getenv(name);
    fmt::print("  {:<21} {}\n", name, value == nullptr ? "not set" : printable(value));
  }
}

int info() {
  fmt::print("pagefill {}\n", version());
  fmt::print("\nmachine\n  {}, {} hardware threads\n", processor_name(),
             std::thread::hardware_concurrency());
  print_backends();
  print_environment();

  const Result<BackendChoice> choice = choose_backend();
  if (!choice.ok()) return wrong_use(choice.status().message());
  fmt::print("\nchosen\n  {}{}{}, {} {}\n  {}\n", choice->backend,
             choice->target.empty() ? "" : " ", choice->target, choice->num_threads,
             choice->num_threads == 1 ? "thread" : "threads", choice->reason);
  return kExitDone;
}

}  // namespace

void add_info_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "info", "Say what was compiled in, what the machine offers, what is chosen and why");
  command->callback([&exit_code] { exit_code = info(); });
}

}  // namespace pagefill::cli
