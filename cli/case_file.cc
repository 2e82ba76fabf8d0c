#include "case_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <new>
#include <string_view>
#include <vector>

#include "device_call.h"

namespace pagefill::cli {
namespace {

constexpr std::array kCommonNames{"query", "key_cache", "value_cache"};
constexpr std::array kSequenceNames{"context_len", "page_indices"};
constexpr std::array kRaggedNames{"query_starts", "context_lens", "page_table"};
constexpr std::array kOptionalNames{"sinks", "kv_start", "key_scale", "value_scale"};
constexpr std::string_view kExpected = "expected";

Status refused(std::string message) {
  return Status(StatusCode::kInvalidArgument, std::move(message));
}

bool is_one_of(std::string_view name, std::span<const char* const> names) {
  return std::ranges::find(names, name) != names.end();
}

Status check_names(const Safetensors& file) {
  std::vector<std::string> sequence, ragged;
  for (const auto& [name, tensor] : file.tensors) {
    if (is_one_of(name, kSequenceNames)) {
      sequence.push_back(name);
    } else if (is_one_of(name, kRaggedNames)) {
      ragged.push_back(name);
    } else if (!is_one_of(name, kCommonNames) && !is_one_of(name, kOptionalNames) &&
               !name.starts_with(kExpected)) {
      return refused(
          fmt::format("tensor {}: not an argument of the operator, nor expected...", name));
    }
  }
  if (!sequence.empty() && !ragged.empty()) {
    return refused(fmt::format(
        "tensors {} and {} are of different calls: one sequence has {}, a ragged batch has {}",
        sequence.front(), ragged.front(), fmt::join(kSequenceNames, " and "),
        fmt::join(kRaggedNames, ", ")));
  }
  return {};
}

// The whole text is a number of this type, or nothing.
template <typename T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stopped != end) return std::nullopt;
  return value;
}

template <typename T, typename Option>
Status read_number(const std::string& key, const std::string& text, const char* expected,
                   Option& option) {
  const std::optional<T> value = parse_number<T>(text);
  if (!value)
    return refused(fmt::format("metadata {}: expected {}, got \"{}\"", key, expected, text));
  option = *value;
  return {};
}

Status read_metadata(const std::string& key, const std::string& text, Case& c) {
  constexpr const char* kNumber = "a float32 number";
  AttentionOptions& options = c.options;
  if (key == "softmax_scale") return read_number<float>(key, text, kNumber, options.softmax_scale);
  if (key == "attn_logits_soft_cap") {
    return read_number<float>(key, text, kNumber, options.attn_logits_soft_cap);
  }
  if (key == "sliding_window") {
    return read_number<int64_t>(key, text, "an integer", options.sliding_window);
  }
  if (key == "mask_value") return read_number<float>(key, text, kNumber, options.mask_value);
  if (key == "description") {
    c.description = text;
    return {};
  }
  return refused(fmt::format(
      "metadata {}: expected softmax_scale, attn_logits_soft_cap, sliding_window, mask_value or "
      "description",
      key));
}

std::optional<Tensor> take(Safetensors& file, const char* name) {
  auto node = file.tensors.extract(name);
  if (node.empty()) return std::nullopt;
  return std::move(node.mapped());
}

Status take_tensors(Safetensors& file, Case& c) {
  std::vector<std::pair<const char*, Tensor*>> required{
      {"query", &c.query}, {"key_cache", &c.key_cache}, {"value_cache", &c.value_cache}};
  if (c.is_ragged) {
    required.insert(required.end(), {{"query_starts", &c.query_starts},
                                     {"context_lens", &c.context_lens},
                                     {"page_table", &c.page_table}});
  } else {
    required.insert(required.end(),
                    {{"context_len", &c.context_lens}, {"page_indices", &c.page_table}});
  }
  for (const auto& [name, tensor] : required) {
    std::optional<Tensor> taken = take(file, name);
    if (!taken) return refused(fmt::format("tensor {}: missing", name));
    *tensor = std::move(*taken);
  }
  c.sinks = take(file, "sinks");
  c.kv_start = take(file, "kv_start");
  c.key_scale = take(file, "key_scale");
  c.value_scale = take(file, "value_scale");
  c.expected_f64 = take(file, "expected_f64");
  c.expected_lse_f64 = take(file, "expected_lse_f64");
  return {};
}

AttentionOptions all_options(const Case& c) {
  AttentionOptions options = c.options;
  if (c.sinks) options.sinks = c.sinks->view();
  if (c.kv_start) options.kv_start = c.kv_start->view();
  if (c.key_scale) options.key_scale = c.key_scale->view();
  if (c.value_scale) options.value_scale = c.value_scale->view();
  return options;
}

}  // namespace

Batch Case::batch() const {
  Batch batch{query.view(),        key_cache.view(),  value_cache.view(), query_starts.view(),
              context_lens.view(), page_table.view(), all_options(*this)};
  if (!is_ragged) {  // page_indices is the table's one row
    batch.page_table.rank = 2;
    batch.page_table.shape = {1, page_table.view().shape[0]};
    batch.page_table.strides = {0, page_table.view().strides[0]};
  }
  return batch;
}

Result<Case> case_from(Safetensors file) {
  if (Status status = check_names(file); !status.ok()) return status;
  Case c;
  for (const auto& [key, text] : file.metadata) {
    if (Status status = read_metadata(key, text, c); !status.ok()) return status;
  }
  c.is_ragged = std::ranges::any_of(kRaggedNames,
                                    [&](const char* name) { return file.tensors.contains(name); });
  if (Status status = take_tensors(file, c); !status.ok()) return status;
  if (!c.is_ragged) {
    const int64_t chunk_size = c.query.shape.empty() ? 0 : c.query.shape[0];
    const int32_t starts[] = {0, static_cast<int32_t>(chunk_size)};  // 2^31 is refused by the call
    c.query_starts = Tensor::of<int32_t>({2}, starts);
  }
  return c;
}

Result<Case> read_case(const std::string& path) {
  Result<Safetensors> file = read_safetensors(path);
  if (!file.ok()) return file.status();
  Result<Case> c = case_from(std::move(*file));
  if (c.ok()) return c;
  return Status(c.status().code(), fmt::format("{}: {}", path, c.status().message()));
}

Result<State> attend(const Case& c, const Context& context) try {
  if (c.is_ragged) return attend(c.batch(), context);
  State state = state_for(c.batch());
  const Status status = prefill_from_host(
      c.query.view(), c.key_cache.view(), c.value_cache.view(), c.context_lens.view(),
      c.page_table.view(), all_options(c), {state.output.view(), state.lse.view()}, context);
  if (!status.ok()) return status;
  return state;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kResourceExhausted, "output: out of memory");
}

}  // namespace pagefill::cli
