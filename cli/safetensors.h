// Safetensors files: 8 bytes of header length, a JSON header, the tensors' bytes.
//
// The reader trusts nothing: lengths are held against the file, each tensor's offsets against its dtype
// and shape, and the tensors have to cover the data without overlap or hole, as the format demands. It
// knows the dtypes F64, F32, F16, BF16, I64 and I32 and refuses others by name.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "pagefill/status.h"
#include "tensor.h"

namespace pagefill::cli {

struct Safetensors {
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;
};

// A file in memory. Tensors are copied out: the format does not align them to their elements.
Result<Safetensors> parse_safetensors(std::span<const std::byte> file);

// Errors begin with the path.
Result<Safetensors> read_safetensors(const std::string& path);

// The bytes of a file with these contents, every tensor aligned to its elements.
std::vector<std::byte> format_safetensors(const Safetensors& contents);

// The file appears whole or not at all (write_whole_file).
Status write_safetensors(const Safetensors& contents, const std::string& path);

}  // namespace pagefill::cli
