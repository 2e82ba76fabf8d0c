// The pagefill program: one command a file (commands.h).
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <new>
#include <system_error>

#include "commands.h"
#include "pagefill/backend.h"
#include "terminal.h"

namespace {

int run(int argc, char** argv) {
  using namespace pagefill::cli;
  int exit_code = kExitDone;
  CLI::App app("Attention over a paged KV cache.", "pagefill");
  app.set_version_flag("--version", fmt::format("pagefill {}", pagefill::version()));
  app.require_subcommand(0, 1);  // none: said below, after an unknown name was refused
  add_demo_command(app, exit_code);
  add_run_command(app, exit_code);
  add_verify_command(app, exit_code);
  add_bench_command(app, exit_code);
  add_info_command(app, exit_code);
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) {
      return wrong_use("expected a command: demo, run, verify, bench or info");
    }
  } catch (const CLI::Success& help_or_version) {
    app.exit(help_or_version);
  } catch (const CLI::ParseError& error) {
    return wrong_use(error.what());
  } catch (const std::bad_alloc&) {
    return wrong_use("out of memory");
  } catch (const std::system_error& error) {  // fmt::print's, of a full disk
    return wrong_use(fmt::format("standard output: {}", error.what()));
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    return wrong_use("standard output cannot be written");
  }
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  // Beyond `ulimit -f`, write() then fails, and what was half written is removed.
  std::signal(SIGXFSZ, SIG_IGN);
  return run(argc, argv);
}
