// append_kv and merge_attention_states on a device do what they do on the CPU.
#include <cmath>
#include <random>

#include "cuda/device_run.h"
#include "kv_cache/append_case.h"

namespace pagefill::testing {
namespace {

// A buffer's copy on the device, and views of it.
class Copy {
 public:
  Copy(DeviceCopies& copies, const GuardedBuffer& buffer)
      : buffer_(buffer), device_(copies.copy(buffer.data(), static_cast<size_t>(buffer.size()))) {}

  template <typename View>
  View of(View view) const {
    if (!view.given()) return view;
    view.data = device_ + (static_cast<const std::byte*>(view.data) - buffer_.data());
    view.device = {DeviceType::kCuda, 0};
    return view;
  }
  void copy_back() const {
    ASSERT_TRUE(
        cli::copy_to_host(buffer_.data(), device_, static_cast<size_t>(buffer_.size())).ok());
  }

 private:
  const GuardedBuffer& buffer_;
  std::byte* device_;
};

// int32 or float32 numbers on the device.
template <typename T>
TensorView on_device(DeviceCopies& copies, const std::vector<T>& numbers, TensorView view) {
  view.data = copies.copy(numbers.data(), numbers.size() * sizeof(T));
  view.device = {DeviceType::kCuda, 0};
  return view;
}

Status append_on_device(AppendCase& c, std::array<int32_t, 4>* reported) {
  DeviceCopies copies;
  const Copy keys(copies, c.keys_memory), values(copies, c.values_memory);
  const Copy key_cache(copies, c.key_memory), value_cache(copies, c.value_memory);
  const Copy chosen_keys(copies, c.chosen_key_memory), chosen_values(copies, c.chosen_value_memory);
  const bool is_fused = c.value_memory.size() == 0;
  AppendOptions options;
  options.kv_start = on_device(copies, c.kv_start, c.kv_start);
  if (c.options.key_scale.given()) {
    options.key_scale = on_device(copies, c.scales[0], c.options.key_scale);
    options.value_scale = on_device(copies, c.scales[1], c.options.value_scale);
  }
  options.chosen_key_scale = chosen_keys.of(c.options.chosen_key_scale);
  options.chosen_value_scale = chosen_values.of(c.options.chosen_value_scale);
  *reported = {};
  std::byte* const status_memory = copies.copy(reported->data(), sizeof(*reported));
  Context context;
  context.cuda.status = MutableTensorView(status_memory, DType::kInt32, {4});
  context.cuda.status.device = {DeviceType::kCuda, 0};
  const Status status = append_kv(keys.of(c.keys), values.of(c.values), key_cache.of(c.key_cache),
                                  (is_fused ? key_cache : value_cache).of(c.value_cache),
                                  on_device(copies, c.query_starts, c.query_starts),
                                  on_device(copies, c.context_lens, c.context_lens),
                                  on_device(copies, c.pages, c.page_table), options, context);
  if (!status.ok()) return status;
  for (const Copy* copy : {&key_cache, &value_cache, &chosen_keys, &chosen_values}) {
    copy->copy_back();
  }
  return cli::copy_to_host(reported->data(), status_memory, sizeof(*reported));
}

void expect_appends_on_device(const AppendGeometry& geometry) {
  SCOPED_TRACE(describe(geometry));
  AppendCase append(geometry);
  std::array<int32_t, 4> reported;
  const Status status = append_on_device(append, &reported);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(reported[0], 0);
  append.expect_written();
}

TEST(CudaAppendKv, WritesWhatTheCpuWrites) {
  PAGEFILL_NEEDS_GPU();
  for (CacheOrder order : kCacheOrders) {
    for (DType tokens : kFloatDTypes) {
      for (DType cache : kCacheDTypes) {
        expect_appends_on_device(
            {.tokens_dtype = tokens, .cache_dtype = cache, .cache_order = order, .token_gap = 3});
        if (!is_quantised(cache)) continue;
        for (ScalePer per : kScalesPer) {
          expect_appends_on_device({.tokens_dtype = tokens, .cache_dtype = cache, .scale = per});
        }
        expect_appends_on_device(
            {.tokens_dtype = tokens, .cache_dtype = cache, .choose_scales = true});
      }
    }
  }
}

TEST(CudaAppendKv, ReportsATokenWithoutASlotAndWritesTheOthers) {
  PAGEFILL_NEEDS_GPU();
  AppendCase append({});
  append.pages[1] = -1;  // of sequence 0, whose 5 tokens lie in pages of 3
  std::array<int32_t, 4> reported;
  const Status status = append_on_device(append, &reported);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(reported, (std::array<int32_t, 4>{4, 0, 1, -1}));
}

struct State {
  std::vector<float> output, lse;
};

State random_state(int64_t rows, int64_t dim, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  State s{std::vector<float>(rows * dim), std::vector<float>(rows)};
  for (float& x : s.output) x = normal(generator);
  for (float& x : s.lse) x = 20 * normal(generator);
  return s;
}

TEST(CudaMerge, IsTheCpusToTheLastBitButOne) {
  PAGEFILL_NEEDS_GPU();
  constexpr int64_t kTokens = 7, kHeads = 3, kDim = 40, kRows = kTokens * kHeads;
  constexpr float kInf = std::numeric_limits<float>::infinity();
  State a = random_state(kRows, kDim, 1), b = random_state(kRows, kDim, 2);
  a.lse[1] = b.lse[2] = a.lse[3] = b.lse[3] = -kInf;
  State host = a, device = a;
  const auto rows = [](auto& x) { return MutableTensorView(x.data(), {kTokens, kHeads, kDim}); };
  const auto lses = [](auto& x) { return MutableTensorView(x.data(), {kTokens, kHeads}); };
  ASSERT_TRUE(merge_attention_states(rows(a.output), lses(a.lse), rows(b.output), lses(b.lse),
                                     {rows(host.output), lses(host.lse)})
                  .ok());
  DeviceCopies copies;
  const TensorView a_out = on_device(copies, a.output, rows(a.output));
  const TensorView a_lse = on_device(copies, a.lse, lses(a.lse));
  const TensorView b_out = on_device(copies, b.output, rows(b.output));
  const TensorView b_lse = on_device(copies, b.lse, lses(b.lse));
  MutableTensorView out = rows(a.output), lse = lses(a.lse);  // the result takes a's place
  out.data = const_cast<void*>(a_out.data), lse.data = const_cast<void*>(a_lse.data);
  out.device = lse.device = a_out.device;
  const Status status = merge_attention_states(a_out, a_lse, b_out, b_lse, {out, lse});
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_TRUE(cli::wait_for_device().ok());
  ASSERT_TRUE(cli::copy_to_host(device.output.data(), out.data, kRows * kDim * 4).ok());
  ASSERT_TRUE(cli::copy_to_host(device.lse.data(), lse.data, kRows * 4).ok());
  for (size_t i = 0; i < host.output.size(); ++i) {
    const float want = host.output[i];
    EXPECT_NEAR(device.output[i], want, std::abs(want) * 0x1p-23) << i;
  }
  for (size_t i = 0; i < host.lse.size(); ++i) {
    EXPECT_TRUE(host.lse[i] == device.lse[i] ||
                std::abs(device.lse[i] - host.lse[i]) <= std::abs(host.lse[i]) * 0x1p-23)
        << i << ": " << host.lse[i] << " and " << device.lse[i];
  }
}

}  // namespace
}  // namespace pagefill::testing
