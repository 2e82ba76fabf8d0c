#include "terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "commands.h"

namespace pagefill::cli {

std::string printable(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      line += fmt::format("\\x{:02x}", byte);
    } else {
      line += c;
    }
  }
  return line;
}

int wrong_use(std::string_view message) {
  fmt::print(stderr, "pagefill: {}\n", printable(message));
  return kExitWrongUse;
}

void Progress::show(std::string_view text) {
  static const bool is_terminal = isatty(STDERR_FILENO) == 1;
  if (!is_terminal) return;
  fmt::print(stderr, "\r\x1b[K{}", printable(text));
  std::fflush(stderr);
}

void Progress::clear() { show(""); }

}  // namespace pagefill::cli
