#include "small_case.h"

#include <random>
#include <vector>

namespace pagefill::cli {
namespace {

Tensor random_tensor(std::vector<int64_t> shape, uint32_t seed) {
  Tensor tensor = Tensor::zeros(DType::kFloat32, std::move(shape));
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (float& element : tensor.elements<float>()) element = normal(generator);
  return tensor;
}

Tensor integers(std::vector<int64_t> shape, const std::vector<int32_t>& elements) {
  return Tensor::of<int32_t>(std::move(shape), elements);
}

}  // namespace

Safetensors small_sequence() {
  Safetensors file;
  file.metadata = {{"description", "small"}};
  file.tensors = {{"query", random_tensor({5, 4, 8}, 1)},
                  {"key_cache", random_tensor({2, 6, 4, 8}, 2)},
                  {"value_cache", random_tensor({2, 6, 4, 16}, 3)},
                  {"context_len", integers({1}, {11})},
                  {"page_indices", integers({4}, {5, 0, 2, 3})}};
  return file;
}

Safetensors small_quantised() {
  Safetensors file = small_sequence();
  for (const char* name : {"key_cache", "value_cache"}) {
    const Tensor floats = file.tensors.at(name);
    Tensor& stored = file.tensors.at(name);
    stored = Tensor::zeros(DType::kInt8, floats.shape);
    for (int64_t i = 0; i < floats.view().num_elements(); ++i) {
      store(stored.view(), i, 40 * floats.elements<float>()[static_cast<size_t>(i)]);
    }
  }
  Tensor key_scale = Tensor::zeros(DType::kFloat32, {2, 6, 4});
  for (size_t i = 0; i < 48; ++i) {
    key_scale.elements<float>()[i] = 0.02f + 0.001f * static_cast<float>(i * 7 % 13);
  }
  const float value_scale[] = {0.02f, 0.03f};
  file.tensors["key_scale"] = std::move(key_scale);
  file.tensors["value_scale"] = Tensor::of<float>({2}, value_scale);
  return file;
}

Safetensors small_batch() {
  Safetensors file;
  file.metadata = {{"sliding_window", "2"}, {"softmax_scale", "0.5"}};
  file.tensors = {{"query", random_tensor({7, 4, 8}, 1)},
                  {"key_cache", random_tensor({2, 6, 4, 8}, 2)},
                  {"value_cache", random_tensor({2, 6, 4, 16}, 3)},
                  {"query_starts", integers({4}, {0, 5, 6, 6})},
                  {"context_lens", integers({3}, {11, 6, 0})},
                  {"page_table", integers({3, 3}, {5, 0, 2, 1, 4, 4, 0, 0, 0})},
                  {"sinks", random_tensor({4}, 4)},
                  {"kv_start", integers({3}, {0, 3, 0})}};
  return file;
}

}  // namespace pagefill::cli
