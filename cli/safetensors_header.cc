#include "safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>

namespace pagefill::cli {
namespace {

using nlohmann::json;

struct DTypeName {
  DType dtype;
  std::string_view name;
};
constexpr std::array kDTypeNames{
    DTypeName{DType::kFloat64, "F64"},
    DTypeName{DType::kFloat32, "F32"},
    DTypeName{DType::kFloat16, "F16"},
    DTypeName{DType::kBFloat16, "BF16"},
    DTypeName{DType::kInt64, "I64"},
    DTypeName{DType::kInt32, "I32"},
    DTypeName{DType::kInt8, "I8"},
    DTypeName{DType::kFloat8E4M3, "F8_E4M3"},
    DTypeName{DType::kFloat8E5M2, "F8_E5M2"},
};
constexpr std::string_view kMetadataKey = "__metadata__";

Status malformed(std::string message) {
  return Status(StatusCode::kInvalidArgument, std::move(message));
}

// What the file says, short enough for a message.
std::string excerpt(const json& value) {
  constexpr size_t kLongest = 80;
  const std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

std::string tensor_called(const std::string& name) {
  return fmt::format("tensor {}", excerpt(json(name)));
}

// A header names each thing once; JSON itself lets the last one win.
class DuplicateKeys {
 public:
  bool operator()(int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) keys_.emplace_back();
    if (event == json::parse_event_t::object_end) keys_.pop_back();
    if (event == json::parse_event_t::key &&
        !keys_.back().insert(parsed.get<std::string>()).second) {
      if (!duplicate_) duplicate_ = parsed;
    }
    return true;
  }
  const std::optional<json>& duplicate() const { return duplicate_; }

 private:
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
  std::optional<json> duplicate_;
};

Result<json> parse_json(std::string_view text) {
  // The format wants the brace first, so that a file's kind shows in its ninth byte.
  if (!text.starts_with('{')) return malformed("header: expected a JSON object");
  DuplicateKeys duplicates;
  json value;
  try {
    value = json::parse(text, std::ref(duplicates));
  } catch (const json::parse_error& error) {
    return malformed(fmt::format("header: not JSON from byte {}", error.byte));
  } catch (const json::out_of_range&) {  // 1e999
    return malformed("header: a number is out of range");
  }
  if (duplicates.duplicate()) {
    return malformed(fmt::format("header: {} occurs twice", excerpt(*duplicates.duplicate())));
  }
  return value;
}

Result<std::map<std::string, std::string>> read_metadata(const json& value) {
  if (!value.is_object()) {
    return malformed(fmt::format("{}: expected an object, got {}", kMetadataKey, excerpt(value)));
  }
  std::map<std::string, std::string> metadata;
  for (const auto& [key, entry] : value.items()) {
    if (!entry.is_string()) {
      return malformed(fmt::format("{}: {}: expected a string, got {}", kMetadataKey,
                                   excerpt(json(key)), excerpt(entry)));
    }
    metadata.emplace(key, entry.get<std::string>());
  }
  return metadata;
}

std::optional<DType> read_dtype(const json& value) {
  for (const auto& [dtype, name] : kDTypeNames) {
    if (value == name) return dtype;
  }
  return std::nullopt;
}

// An array of integers from 0 to 2^63 - 1.
std::optional<std::vector<int64_t>> read_integers(const json& value) {
  if (!value.is_array()) return std::nullopt;
  std::vector<int64_t> integers;
  for (const json& element : value) {
    if (!element.is_number_unsigned()) return std::nullopt;
    const auto integer = element.get<uint64_t>();
    if (integer > std::numeric_limits<int64_t>::max()) return std::nullopt;
    integers.push_back(static_cast<int64_t>(integer));
  }
  return integers;
}

Status check_size(const SafetensorsEntry& entry) {
  const std::optional<int64_t> size = tensor_bytes(entry.dtype, entry.shape);
  if (!size) {
    return malformed(fmt::format("{}: shape: more than 2^63 bytes", tensor_called(entry.name)));
  }
  if (entry.end - entry.begin != *size) {
    return malformed(
        fmt::format("{}: data_offsets: expected {} bytes for its dtype and shape, got {}",
                    tensor_called(entry.name), *size, entry.end - entry.begin));
  }
  return {};
}

Result<SafetensorsEntry> read_entry(const std::string& name, const json& value) {
  const std::string called = tensor_called(name);
  if (!value.is_object()) {
    return malformed(fmt::format("{}: expected an object, got {}", called, excerpt(value)));
  }
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!value.contains(key)) return malformed(fmt::format("{}: {} is missing", called, key));
  }
  for (const auto& [key, member] : value.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return malformed(fmt::format("{}: expected dtype, shape and data_offsets, got {}", called,
                                   excerpt(json(key))));
    }
  }

  const std::optional<DType> dtype = read_dtype(value["dtype"]);
  if (!dtype) {
    return malformed(fmt::format(
        "{}: dtype: expected F64, F32, F16, BF16, I64, I32, I8, F8_E4M3 or F8_E5M2, got {}", called,
        excerpt(value["dtype"])));
  }
  const auto shape = read_integers(value["shape"]);
  if (!shape) {
    return malformed(fmt::format("{}: shape: expected integers from 0 to 2^63 - 1, got {}", called,
                                 excerpt(value["shape"])));
  }
  const auto offsets = read_integers(value["data_offsets"]);
  if (!offsets || offsets->size() != 2 || (*offsets)[0] > (*offsets)[1]) {
    return malformed(
        fmt::format("{}: data_offsets: expected [begin, end] with begin <= end, got {}", called,
                    excerpt(value["data_offsets"])));
  }
  SafetensorsEntry entry{name, *dtype, *shape, (*offsets)[0], (*offsets)[1]};
  if (Status status = check_size(entry); !status.ok()) return status;
  return entry;
}

// Each tensor begins where the one before ends, and the last one ends with the data.
Status check_layout(const std::vector<SafetensorsEntry>& entries, int64_t data_size) {
  int64_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != covered || entry.end > data_size) {
      return malformed(
          fmt::format("{}: data_offsets: expected to begin at {}, where the tensor before ends, "
                      "and to end at most "
                      "at {}, where the data ends, got [{}, {}]",
                      tensor_called(entry.name), covered, data_size, entry.begin, entry.end));
    }
    covered = entry.end;
  }
  if (covered != data_size) {
    return malformed(
        fmt::format("data: expected {} bytes, as the header says, got {}", covered, data_size));
  }
  return {};
}

std::string_view dtype_tag(DType dtype) {
  return std::ranges::find(kDTypeNames, dtype, &DTypeName::dtype)->name;
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::string_view text, int64_t data_size) {
  const Result<json> value = parse_json(text);
  if (!value.ok()) return value.status();
  SafetensorsHeader header;
  for (const auto& [key, member] : value->items()) {
    if (key == kMetadataKey) {
      auto metadata = read_metadata(member);
      if (!metadata.ok()) return metadata.status();
      header.metadata = std::move(*metadata);
    } else {
      auto entry = read_entry(key, member);
      if (!entry.ok()) return entry.status();
      header.entries.push_back(std::move(*entry));
    }
  }
  std::ranges::sort(header.entries, {}, [](const SafetensorsEntry& entry) {
    return std::tuple(entry.begin, entry.end);  // tensors without elements come first
  });
  if (Status status = check_layout(header.entries, data_size); !status.ok()) return status;
  return header;
}

std::string format_safetensors_header(const SafetensorsHeader& header) {
  json value = json::object();
  if (!header.metadata.empty()) value[kMetadataKey] = header.metadata;
  for (const SafetensorsEntry& entry : header.entries) {
    value[entry.name] = {{"dtype", dtype_tag(entry.dtype)},
                         {"shape", entry.shape},
                         {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = value.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace pagefill::cli
