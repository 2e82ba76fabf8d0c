// copy_pages on a device does what it does on the CPU, copy after copy.
#include <cstring>
#include <random>

#include "cuda/device_run.h"
#include "pagefill/kv_cache.h"

namespace pagefill::testing {
namespace {

constexpr int64_t kHeads = 3, kPages = 40, kSlots = 5;

// Rows lie `padding` elements apart, and begin `first` elements behind an aligned address.
struct Rows {
  DType dtype = DType::kFloat32;
  int64_t head_dim = 8, padding = 0, first = 0;
};

// Tensors in memory of noise, on the host and on the device.
class Caches {
 public:
  explicit Caches(const Rows& rows) {
    Rows keys = rows;
    keys.padding = 0;
    add_cache(keys), add_cache(rows);
    if (!is_quantised(rows.dtype)) return;
    add_scale({kPages * kSlots, kSlots, 1}), add_scale({1, kSlots * kHeads, kHeads});
  }

  Status copy_on_host(const std::vector<PageCopy>& pages) const { return copy(pages, host_, {}); }
  Status copy_on_device(const std::vector<PageCopy>& pages) {
    std::vector<MutableTensorView> views = host_;
    for (size_t i = 0; i < views.size(); ++i) {
      device_.push_back(copies_.copy(memory_[i].data(), memory_[i].size()));
      views[i].data = device_.back() + (static_cast<std::byte*>(views[i].data) - memory_[i].data());
      views[i].device = {DeviceType::kCuda, 0};
    }
    Context context;
    context.backend = "cuda";
    const Status status = copy(pages, views, context);
    return status.ok() ? cli::wait_for_device() : status;
  }
  void expect_the_same() const {
    for (size_t i = 0; i < memory_.size(); ++i) {
      std::vector<std::byte> got(memory_[i].size());
      ASSERT_TRUE(cli::copy_to_host(got.data(), device_[i], got.size()).ok());
      EXPECT_EQ(got, memory_[i]) << "tensor " << i;
    }
  }

 private:
  MutableTensorView noise(DType dtype, int64_t first, std::initializer_list<int64_t> shape,
                          std::initializer_list<int64_t> strides) {
    int64_t size = first + 1;
    auto stride = strides.begin();
    for (int64_t extent : shape) size += (extent - 1) * *stride++;
    std::vector<std::byte>& memory =
        memory_.emplace_back(static_cast<size_t>(size * dtype_size(dtype)));
    for (std::byte& b : memory) b = static_cast<std::byte>(random_());
    return {memory.data() + first * dtype_size(dtype), dtype, shape, strides};
  }
  void add_cache(const Rows& rows) {
    const int64_t row = rows.head_dim + rows.padding;
    host_.push_back(noise(rows.dtype, rows.first, {kHeads, kPages, kSlots, rows.head_dim},
                          {kPages * kSlots * row, kSlots * row, row, 1}));
  }
  void add_scale(std::initializer_list<int64_t> strides) {
    host_.push_back(noise(DType::kFloat32, 0, {kHeads, kPages, kSlots}, strides));
  }
  static Status copy(const std::vector<PageCopy>& pages,
                     const std::vector<MutableTensorView>& tensors, const Context& context) {
    CopyOptions options;
    if (tensors.size() == 4) options = {tensors[2], tensors[3]};
    return copy_pages(pages, tensors[0], tensors[1], options, context);
  }

  std::mt19937 random_{5};
  std::vector<std::vector<std::byte>> memory_;  // of keys, values, and their scales
  std::vector<MutableTensorView> host_;
  DeviceCopies copies_;
  std::vector<std::byte*> device_;
};

void expect_same(const Rows& rows, const std::vector<PageCopy>& pages) {
  SCOPED_TRACE(std::string(dtype_name(rows.dtype)) + ", head_dim " + std::to_string(rows.head_dim) +
               ", padding " + std::to_string(rows.padding) + ", first " +
               std::to_string(rows.first));
  Caches caches(rows);
  Status status = caches.copy_on_device(pages);
  ASSERT_TRUE(status.ok()) << status.message();
  status = caches.copy_on_host(pages);
  ASSERT_TRUE(status.ok()) << status.message();
  caches.expect_the_same();
}

// Copies of 16, 8, 4, 2 and 1 bytes at once, as rows and their distances allow; of quantised caches the
// scales too.
TEST(CudaCopyPages, CopiesWhatTheCpuCopies) {
  PAGEFILL_NEEDS_GPU();
  const std::vector<PageCopy> pages = {{0, 5, 3}, {2, 1, 5}, {4, 3, 0}};
  for (const DType dtype : kCacheDTypes) {
    for (const int64_t head_dim : {8, 24, 128}) {
      for (const int64_t padding : {0, 1, 2, 4, 8}) expect_same({dtype, head_dim, padding}, pages);
      for (const int64_t first : {1, 2, 4}) expect_same({dtype, head_dim, 0, first}, pages);
    }
  }
}

TEST(CudaCopyPages, ACopyOfACopyComesAfterIt) {
  PAGEFILL_NEEDS_GPU();
  std::mt19937 random(7);
  std::vector<PageCopy> many;
  for (int i = 0; i < 500; ++i) {
    const auto source = static_cast<int32_t>(random() % kPages);
    const auto step = static_cast<int32_t>(1 + random() % (kPages - 1));
    many.push_back({source, static_cast<int32_t>((source + step) % kPages),
                    static_cast<int32_t>(random() % (kSlots + 1))});
  }
  for (const DType dtype : {DType::kFloat32, DType::kInt8}) {
    expect_same({dtype, 16}, {{0, 1, 5}, {1, 2, 4}, {3, 1, 2}, {2, 0, 5}});
    expect_same({dtype, 8}, many);
  }
}

// Promise 5: the last pages of a cache of more than 2^32 elements, of which the second head's lie beyond 2^32.
TEST(CudaCopyPages, InACacheOfMoreThanTwoToThe32Elements) {
  PAGEFILL_NEEDS_GPU();
  constexpr int64_t kTwo = 2, kPageSize = 16, kDim = 128, kPageBytes = kPageSize * kDim;
  constexpr int64_t kNumPages = (int64_t{1} << 31) / kPageBytes + 8;
  constexpr size_t kBytes = kTwo * kNumPages * kPageBytes;
  constexpr size_t kScaleBytes = kTwo * kNumPages * kPageSize * sizeof(float);
  size_t free_bytes = 0, all_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &all_bytes), cudaSuccess);
  if (free_bytes < 2 * (kBytes + kScaleBytes) + (size_t{1} << 30))
    GTEST_SKIP() << "too little device memory";

  const cli::DeviceMemory memory[] = {cli::DeviceMemory(kBytes), cli::DeviceMemory(kBytes),
                                      cli::DeviceMemory(kScaleBytes),
                                      cli::DeviceMemory(kScaleBytes)};
  MutableTensorView views[] = {{memory[0].data(), DType::kInt8, {kTwo, kNumPages, kPageSize, kDim}},
                               {memory[1].data(), DType::kInt8, {kTwo, kNumPages, kPageSize, kDim}},
                               {memory[2].data(), DType::kFloat32, {kTwo, kNumPages, kPageSize}},
                               {memory[3].data(), DType::kFloat32, {kTwo, kNumPages, kPageSize}}};
  const auto page_at = [&](int tensor, int64_t head, int64_t page) {
    const MutableTensorView& v = views[tensor];
    return static_cast<std::byte*>(v.data) +
           (head * v.strides[0] + page * v.strides[1]) * dtype_size(v.dtype);
  };
  std::mt19937 random(3);
  std::vector<std::vector<std::byte>> noise;  // of each tensor's heads
  for (int t = 0; t < 4; ++t) {
    views[t].device = {DeviceType::kCuda, 0};
    ASSERT_TRUE(cli::fill_device(memory[t].data(), 0, memory[t].size()).ok());
    for (int64_t head = 0; head < kTwo; ++head) {
      std::vector<std::byte>& bytes = noise.emplace_back(
          static_cast<size_t>(t < 2 ? kPageBytes : kPageSize * int64_t{sizeof(float)}));
      for (std::byte& b : bytes) b = static_cast<std::byte>(random());
      ASSERT_TRUE(
          cli::copy_to_device(page_at(t, head, kNumPages - 1), bytes.data(), bytes.size()).ok());
    }
  }
  constexpr auto kLast = static_cast<int32_t>(kNumPages - 1);
  const std::vector<PageCopy> pages = {{kLast, kLast - 1, kPageSize}, {kLast - 1, 3, kPageSize}};
  Context context;
  context.backend = "cuda";
  const Status status = copy_pages(pages, views[0], views[1], {views[2], views[3]}, context);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_TRUE(cli::wait_for_device().ok());
  for (int t = 0; t < 4; ++t) {
    for (int64_t head = 0; head < kTwo; ++head) {
      const std::vector<std::byte>& expected = noise[static_cast<size_t>(t * kTwo + head)];
      for (int64_t page : {kNumPages - 2, int64_t{3}}) {
        std::vector<std::byte> got(expected.size());
        ASSERT_TRUE(cli::copy_to_host(got.data(), page_at(t, head, page), got.size()).ok());
        EXPECT_EQ(got, expected) << "tensor " << t << ", head " << head << ", page " << page;
      }
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
