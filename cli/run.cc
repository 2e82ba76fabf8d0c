// pagefill run: one case in, output and lse out.
#include <string>

#include "case_file.h"
#include "commands.h"
#include "safetensors.h"
#include "terminal.h"
#include "where_options.h"

namespace pagefill::cli {
namespace {

struct RunOptions {
  std::string case_path, output_path;
  WhereOptions where;
};

int run(const RunOptions& options) {
  const Result<Case> c = read_case(options.case_path);
  if (!c.ok()) return wrong_use(c.status().message());
  Result<State> state = attend(*c, options.where.context());
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
  options->where.add_to(*command);
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace pagefill::cli
