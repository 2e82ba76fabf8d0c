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
  static constexpr float kLargest = 2 * 1.7320508f;

 private:
  uint64_t state_;
};

// The scale that makes the largest noise the largest number of the dtype, as append_kv chooses scales.
float noise_scale(DType dtype) {
  switch (dtype) {
    case DType::kInt8:
      return Noise::kLargest / 127;
    case DType::kFloat8E4M3:
      return Noise::kLargest / float8_e4m3::kLargest;
    case DType::kFloat8E5M2:
      return Noise::kLargest / float8_e5m2::kLargest;
    default:
      return 1;
  }
}

template <typename T>
void fill(const AlignedMemory& memory, Noise& noise) {
  auto* elements = reinterpret_cast<T*>(memory.data());
  const float scale = noise_scale(DTypeOf<T>::value);
  for (size_t i = 0; i < memory.size() / sizeof(T); ++i) {
    const float element = noise.normal() / scale;
    if constexpr (std::is_same_v<T, int8_t>) {
      elements[i] = static_cast<int8_t>(element);  // rounded to zero: as good as any, and faster
    } else {
      elements[i] = T(element);
    }
  }
}

AlignedMemory noisy_memory(DType dtype, int64_t num_elements, Noise& noise) {
  AlignedMemory memory(static_cast<size_t>(num_elements * dtype_size(dtype)));
  if (dtype == DType::kFloat32) fill<float>(memory, noise);
  if (dtype == DType::kBFloat16) fill<bfloat16>(memory, noise);
  if (dtype == DType::kFloat16) fill<float16>(memory, noise);
  if (dtype == DType::kInt8) fill<int8_t>(memory, noise);
  if (dtype == DType::kFloat8E4M3) fill<float8_e4m3>(memory, noise);
  if (dtype == DType::kFloat8E5M2) fill<float8_e5m2>(memory, noise);
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
  if (is_quantised(shape.kv_dtype())) {
    key_scale_.assign(static_cast<size_t>(slots), noise_scale(shape.kv_dtype()));
    value_scale_ = key_scale_;
    options_.key_scale = {key_scale_.data(),
                          {shape.num_kv_heads, shape.num_pages(), shape.page_size}};
    options_.value_scale = options_.key_scale;
    options_.value_scale.data = value_scale_.data();
  }
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
  const double rows = slots * static_cast<double>(shape.num_kv_heads);
  const double scales = is_quantised(shape.kv_dtype()) ? 2 * rows * sizeof(float) : 0;
  return scales +
         dims * (rows * static_cast<double>(dtype_size(shape.kv_dtype())) +
                 static_cast<double>(shape.chunk) * static_cast<double>(shape.num_q_heads) *
                     static_cast<double>(dtype_size(shape.dtype)));
}

}  // namespace pagefill::cli
