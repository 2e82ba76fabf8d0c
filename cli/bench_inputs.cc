#include "bench_inputs.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <type_traits>

namespace pagefill::cli {
namespace {

// SplitMix64: two multiplications a number, because a cache holds hundreds of millions of them.
class Noise {
 public:
  explicit Noise(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // Four uniform numbers of 16 bits, added and scaled to variance 1.
  float normal() {
    const uint64_t u = bits();
    const auto sum =
        static_cast<float>((u & 0xffff) + ((u >> 16) & 0xffff) + ((u >> 32) & 0xffff) + (u >> 48));
    return (sum / 65536.0f - 2.0f) * 1.7320508f;  // the variance of the sum is 4 / 12
  }

 private:
  uint64_t state_;
};

template <typename T>
void fill(const AlignedMemory& memory, Noise& noise) {
  auto* elements = reinterpret_cast<T*>(memory.data());
  for (size_t i = 0; i < memory.size() / sizeof(T); ++i) elements[i] = T(noise.normal());
}

AlignedMemory noisy_memory(DType dtype, int64_t num_elements, Noise& noise) {
  AlignedMemory memory(static_cast<size_t>(num_elements * dtype_size(dtype)));
  if (dtype == DType::kFloat32) fill<float>(memory, noise);
  if (dtype == DType::kBFloat16) fill<bfloat16>(memory, noise);
  if (dtype == DType::kFloat16) fill<float16>(memory, noise);
  return memory;
}

}  // namespace

BenchInputs::BenchInputs(const BenchShape& shape)
    : page_indices_(shape.num_pages()),
      query_starts_{0, static_cast<int32_t>(shape.chunk)},
      context_len_{static_cast<int32_t>(shape.context)} {
  Noise noise(1);
  const int64_t query_elements = shape.chunk * shape.num_q_heads * shape.head_dim;
  const int64_t slots = shape.num_kv_heads * shape.num_pages() * shape.page_size;
  query_memory_ = noisy_memory(shape.dtype, query_elements, noise);
  key_memory_ = noisy_memory(shape.kv_dtype(), slots * shape.head_dim, noise);
  value_memory_ = noisy_memory(shape.kv_dtype(), slots * shape.value_dim(), noise);
  output_memory_ =
      noisy_memory(shape.dtype, shape.chunk * shape.num_q_heads * shape.value_dim(), noise);

  std::iota(page_indices_.begin(), page_indices_.end(), 0);
  std::shuffle(page_indices_.begin(), page_indices_.end(), std::mt19937_64(1));

  query_ = {query_memory_.data(), shape.dtype, {shape.chunk, shape.num_q_heads, shape.head_dim}};
  key_cache_ = {key_memory_.data(),
                shape.kv_dtype(),
                {shape.num_kv_heads, shape.num_pages(), shape.page_size, shape.head_dim}};
  value_cache_ = {value_memory_.data(),
                  shape.kv_dtype(),
                  {shape.num_kv_heads, shape.num_pages(), shape.page_size, shape.value_dim()}};
  output_ = {
      output_memory_.data(), shape.dtype, {shape.chunk, shape.num_q_heads, shape.value_dim()}};
  options_.attn_logits_soft_cap = shape.soft_cap;
  options_.sliding_window = shape.window;
  if (shape.sinks) {
    sink_logits_.resize(shape.num_q_heads);
    for (float& logit : sink_logits_) logit = noise.normal();
    options_.sinks = sink_logits_;
  }
}

Status BenchInputs::run(const Context& context) const {
  return prefill_page_attention(query_, key_cache_, value_cache_, context_len_, page_indices_,
                                options_, output_, context);
}

Result<size_t> BenchInputs::workspace_size(const Context& context) const {
  const auto num_pages = static_cast<int64_t>(page_indices_.size());
  return attention_workspace_size(query_, key_cache_, value_cache_, query_starts_, context_len_,
                                  TensorView(page_indices_.data(), {1, num_pages}), options_,
                                  output_, context);
}

double input_bytes(const BenchShape& shape) {
  const auto slots = static_cast<double>(shape.num_pages()) * static_cast<double>(shape.page_size);
  const auto dims = static_cast<double>(shape.head_dim) + static_cast<double>(shape.value_dim());
  return dims * (slots * static_cast<double>(shape.num_kv_heads) *
                     static_cast<double>(dtype_size(shape.kv_dtype())) +
                 static_cast<double>(shape.chunk) * static_cast<double>(shape.num_q_heads) *
                     static_cast<double>(dtype_size(shape.dtype)));
}

}  // namespace pagefill::cli
