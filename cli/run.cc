// pagefill run: one case in, output and lse out.
#include <string>

#include "case_file.h"
#include "commands.h"
#include "pagefill/executor.h"
#include "safetensors.h"
#include "terminal.h"

namespace pagefill::cli {
namespace {

struct RunOptions {
  std::string case_path, output_path;
  std::string backend = "auto", cpu_target = "auto";
  int num_threads = 0;
};

int run(const RunOptions& options) {
  const Result<Case> c = read_case(options.case_path);
  if (!c.ok()) return wrong_use(c.status().message());
  Context context;
  context.backend = options.backend;
  context.cpu_target = options.cpu_target;
  context.num_threads = options.num_threads;
  Result<State> state = attend(*c, context);
  if (!state.ok()) return wrong_use(state.status().message());

  Safetensors result;
  result.tensors.emplace("output", std::move(state->output));
  result.tensors.emplace("lse", std::move(state->lse));
  if (Status status = write_safetensors(result, options.output_path); !status.ok()) {
    return wrong_use(status.message());
  }
  return kExitDone;
}

}  // namespace

void add_run_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command =
      app.add_subcommand("run", "Run one case; write its output and lse as safetensors");
  command->add_option("CASE", options->case_path, "the case file")->required();
  command->add_option("-o,--output", options->output_path, "the file to write")
      ->required()
      ->option_text("OUT (required)");
  command->add_option("--backend", options->backend)->option_text("auto|reference|cpu|cuda");
  command->add_option("--cpu-target", options->cpu_target, "instruction set, as `info` lists them")
      ->option_text("T");
  command->add_option("--threads", options->num_threads, "0: PAGEFILL_NUM_THREADS, or all")
      ->option_text("N");
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace pagefill::cli
