// One call's arguments, filled with noise: what `pagefill bench` times.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "bench_shape.h"
#include "pagefill/attention.h"

namespace pagefill::cli {

// At the start of a cache line, where serving engines and tensor libraries put their tensors too.
class AlignedMemory {
 public:
  AlignedMemory() = default;
  // Throws std::bad_alloc when there is no such memory.
  explicit AlignedMemory(size_t num_bytes)
      : bytes_(static_cast<std::byte*>(::operator new(num_bytes, kAlignment))), size_(num_bytes) {}

  std::byte* data() const { return bytes_.get(); }
  size_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kAlignment{kWorkspaceAlignment};
  struct Free {
    void operator()(std::byte* bytes) const { ::operator delete(bytes, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> bytes_;
  size_t size_ = 0;
};

// What a call takes.
struct BenchOperands {
  TensorView query, key_cache, value_cache, query_starts, context_lens, page_table;
  AttentionOptions options;
  MutableTensorView output;

  Status run(const Context& context) const {
    return ragged_page_attention(query, key_cache, value_cache, query_starts, context_lens,
                                 page_table, options, output, context);
  }
  Result<size_t> workspace_size(const Context& context) const {
    return attention_workspace_size(query, key_cache, value_cache, query_starts, context_lens,
                                    page_table, options, output, context);
  }
};

// Queries, keys and values are normally distributed, or nearly, with variance 1; the pages lie in random
// order. A quantised cache has scales per slot. Throws std::bad_alloc when there is no such memory.
class BenchInputs {
 public:
  explicit BenchInputs(const BenchShape& shape);

  const BenchOperands& operands() const { return operands_; }

 private:
  AlignedMemory query_memory_, key_memory_, value_memory_, output_memory_;
  std::vector<float> sink_logits_, key_scale_, value_scale_;
  std::vector<int32_t> page_table_, query_starts_, context_lens_;
  BenchOperands operands_;
};

// Bytes that the inputs of a shape take; more than any machine has where an int64 cannot say.
double input_bytes(const BenchShape& shape);

}  // namespace pagefill::cli
