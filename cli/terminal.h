// What the commands say besides their results.
#pragma once

#include <string>
#include <string_view>

namespace pagefill::cli {

// One line on stderr that names what is wrong: "pagefill: ...". Returns the exit code for it.
int wrong_use(std::string_view message);

// The text with control characters written as \xNN, so that names from files and arguments stay on
// their line.
std::string printable(std::string_view text);

// A line on stderr that the next one replaces, where stderr is a terminal.
class Progress {
 public:
  Progress() = default;
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  void show(std::string_view text);
  void clear();
};

}  // namespace pagefill::cli
