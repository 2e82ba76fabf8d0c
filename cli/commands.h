// The commands of the program, one file each. add_<name>_command declares the command's options; when the
// command line names it, it runs while the line is parsed and sets exit_code.
#pragma once

#include <CLI/CLI.hpp>

namespace pagefill::cli {

inline constexpr int kExitDone = 0;
inline constexpr int kExitCheckFailed = 1;
inline constexpr int kExitWrongUse = 2;  // or bad input: one line on stderr names it (wrong_use)

void add_run_command(CLI::App& app, int& exit_code);
void add_verify_command(CLI::App& app, int& exit_code);
void add_demo_command(CLI::App& app, int& exit_code);
void add_bench_command(CLI::App& app, int& exit_code);
void add_info_command(CLI::App& app, int& exit_code);

}  // namespace pagefill::cli
