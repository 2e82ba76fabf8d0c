// --backend, --cpu-target and --threads: the same words in every command that makes calls.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "pagefill/executor.h"

namespace pagefill::cli {

struct WhereOptions {
  std::string backend = "auto", cpu_target = "auto";
  int num_threads = 0;

  // Good as long as this is.
  Context context() const {
    return {.backend = backend, .cpu_target = cpu_target, .num_threads = num_threads};
  }

  void add_to(CLI::App& command) {
    command.add_option("--backend", backend)->option_text("auto|reference|cpu|cuda");
    command.add_option("--cpu-target", cpu_target, "instruction set, as `info` lists them")
        ->option_text("T");
    command.add_option("--threads", num_threads, "0: PAGEFILL_NUM_THREADS, or all")
        ->option_text("N");
  }
};

}  // namespace pagefill::cli
