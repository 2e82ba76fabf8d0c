// Runs the pagefill program.
#pragma once

#include <string>
#include <vector>

namespace pagefill::test {

struct ProcessResult {
  int exit_code = -1;  // -1: killed by a signal
  std::string out;
  std::string err;
};

// Neither stream is a terminal. The environment's PAGEFILL_* variables are not passed on.
ProcessResult run_pagefill(const std::vector<std::string>& arguments);

std::vector<std::string> lines_of(const std::string& text);

}  // namespace pagefill::test
