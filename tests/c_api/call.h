// A good call of the C interface, to be spoilt one argument at a time.
#pragma once

#include <pagefill/pagefill.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace pagefill::testing {

// Two sequences, a chunk of three tokens at context 5 and a decode token at context 2, with every
// optional argument there to be given.
struct Call {
  static constexpr int64_t kTokens = 4, kSeqs = 2, kQHeads = 4, kKvHeads = 2, kHeadDim = 8;
  static constexpr int64_t kPages = 5, kPageSize = 2, kMaxPages = 3;

  std::vector<float> query_data = std::vector<float>(kTokens * kQHeads * kHeadDim, 0.25f);
  std::vector<float> key_data = std::vector<float>(kKvHeads * kPages * kPageSize * kHeadDim, 0.5f);
  std::vector<float> value_data = key_data;
  std::vector<int32_t> query_starts_data{0, 3, 4}, context_lens_data{5, 2};
  std::vector<int32_t> page_table_data{2, 0, 3, 1, -1, -1}, kv_start_data{0, 0};
  std::vector<float> sinks_data = std::vector<float>(kQHeads, 0.5f);
  std::vector<float> key_scale_data = std::vector<float>(kKvHeads * kPages * kPageSize, 0.5f);
  std::vector<float> value_scale_data = key_scale_data;
  std::vector<float> output_data = std::vector<float>(kTokens * kQHeads * kHeadDim, kUntouched);
  std::vector<float> lse_data = std::vector<float>(kTokens * kQHeads, kUntouched);

  pagefill_tensor query_tensor = tensor(query_data, {kTokens, kQHeads, kHeadDim});
  pagefill_tensor key_cache_tensor = tensor(key_data, {kKvHeads, kPages, kPageSize, kHeadDim});
  pagefill_tensor value_cache_tensor = tensor(value_data, {kKvHeads, kPages, kPageSize, kHeadDim});
  pagefill_tensor query_starts_tensor = tensor(query_starts_data, {kSeqs + 1});
  pagefill_tensor context_lens_tensor = tensor(context_lens_data, {kSeqs});
  pagefill_tensor page_table_tensor = tensor(page_table_data, {kSeqs, kMaxPages});
  pagefill_tensor kv_start_tensor = tensor(kv_start_data, {kSeqs});
  pagefill_tensor sinks_tensor = tensor(sinks_data, {kQHeads});
  pagefill_tensor key_scale_tensor = tensor(key_scale_data, {kKvHeads, kPages, kPageSize});
  pagefill_tensor value_scale_tensor = tensor(value_scale_data, {kKvHeads, kPages, kPageSize});
  pagefill_tensor output_tensor = tensor(output_data, {kTokens, kQHeads, kHeadDim});
  pagefill_tensor lse_tensor = tensor(lse_data, {kTokens, kQHeads});

  pagefill_attention_options options = pagefill_attention_options_init();
  pagefill_executor executor = pagefill_executor_init();
  pagefill_call_report report = pagefill_call_report_init();
  pagefill_context context = pagefill_context_init();

  // What is passed.
  const pagefill_tensor* query = &query_tensor;
  const pagefill_tensor* key_cache = &key_cache_tensor;
  const pagefill_tensor* value_cache = &value_cache_tensor;
  const pagefill_tensor* query_starts = &query_starts_tensor;
  const pagefill_tensor* context_lens = &context_lens_tensor;
  const pagefill_tensor* page_table = &page_table_tensor;
  const pagefill_tensor* output = &output_tensor;
  const pagefill_tensor* lse = &lse_tensor;

  Call() {
    options.sinks = &sinks_tensor;
    options.kv_start = &kv_start_tensor;
    context.report = &report;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // The caches' memory as int8, with scales per slot.
  void quantise() {
    key_cache_tensor.dtype = value_cache_tensor.dtype = PAGEFILL_INT8;
    options.key_scale = &key_scale_tensor;
    options.value_scale = &value_scale_tensor;
  }

  pagefill_status ragged() {
    return pagefill_ragged_page_attention(query, key_cache, value_cache, query_starts, context_lens,
                                          page_table, &options, output, lse, &context);
  }

  pagefill_status workspace_size(size_t* size) {
    return pagefill_attention_workspace_size(query, key_cache, value_cache, query_starts,
                                             context_lens, page_table, &options, output, lse,
                                             &context, size);
  }

  // Not one byte of what a call writes has been written.
  bool untouched() const {
    const auto all = [](const std::vector<float>& data) {
      return data == std::vector<float>(data.size(), kUntouched);
    };
    return all(output_data) && all(lse_data) && std::string(report.backend).empty();
  }

 private:
  static constexpr float kUntouched = -77.5f;

  static pagefill_tensor tensor(std::vector<float>& data, const std::vector<int64_t>& shape) {
    return pagefill_tensor_init(data.data(), PAGEFILL_FLOAT32, static_cast<int32_t>(shape.size()),
                                shape.data());
  }
  static pagefill_tensor tensor(std::vector<int32_t>& data, const std::vector<int64_t>& shape) {
    return pagefill_tensor_init(data.data(), PAGEFILL_INT32, static_cast<int32_t>(shape.size()),
                                shape.data());
  }
};

}  // namespace pagefill::testing
