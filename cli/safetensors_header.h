// The header of a safetensors file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "pagefill/status.h"
#include "tensor.h"

namespace pagefill::cli {

// Where a tensor's bytes lie: [begin, end) of the data, which follows the header.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  int64_t begin = 0;
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::vector<SafetensorsEntry> entries;  // as they lie in the data
};

// The header of a file whose data has data_size bytes.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view text, int64_t data_size);

// Padded with spaces to a multiple of 8 bytes, so that the data begins aligned.
std::string format_safetensors_header(const SafetensorsHeader& header);

}  // namespace pagefill::cli
