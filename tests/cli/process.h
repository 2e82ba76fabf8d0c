// Another program, run to its end.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace pagefill::cli {

struct Finished {
  int exit_code = -1;  // -1: ended by a signal
  std::string out;
  std::string err;
};

struct Surroundings {
  std::vector<std::string> environment{};  // NAME=value; of PAGEFILL_* no other
  std::optional<long> file_size_limit{};   // as `ulimit -f`: beyond it, write() fails
};

// The pagefill program of this build.
Finished pagefill(std::vector<std::string> arguments, const Surroundings& surroundings = {});

}  // namespace pagefill::cli
