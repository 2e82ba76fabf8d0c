// Files that appear whole or not at all.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "pagefill/status.h"

namespace pagefill::cli {

// Writes a new file beside `path` and renames it once its bytes are on the disk. On failure nothing is
// left behind, and a file that was there stays as it was. Errors begin with the path.
Status write_whole_file(const std::string& path, std::span<const std::byte> bytes);

}  // namespace pagefill::cli
