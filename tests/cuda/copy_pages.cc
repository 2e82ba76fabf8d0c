// copy_pages on a device does what it does on the CPU, copy after copy.
#include <array>
#include <cstring>
#include <random>
#include <utility>

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
  // `listed`: of copies that stand on the device, whose numbers lie `number_stride` apart.
  Status copy_on_device(const std::vector<PageCopy>& pages, int64_t number_stride = 0) {
    std::vector<MutableTensorView> views = host_;
    for (size_t i = 0; i < views.size(); ++i) {
      device_.push_back(copies_.copy(memory_[i].data(), memory_[i].size()));
      views[i].data = device_.back() + (static_cast<std::byte*>(views[i].data) - memory_[i].data());
      views[i].device = {DeviceType::kCuda, 0};
    }
    Context context;
    context.backend = "cuda";
    TensorView listed;
    if (number_stride > 0) {
      const auto num_copies = static_cast<int64_t>(pages.size());
      const int64_t copy_stride = number_stride == 1 ? 3 : 1;
      std::vector<int32_t> numbers(static_cast<size_t>(3 * std::max(num_copies, number_stride)));
      for (int64_t i = 0; i < num_copies; ++i) {
        const PageCopy& page = pages[static_cast<size_t>(i)];
        int64_t at = i * copy_stride;
        for (const int32_t number : {page.source, page.destination, page.num_slots}) {
          numbers[static_cast<size_t>(at)] = number, at += number_stride;
        }
      }
      listed = TensorView(numbers.data(), {num_copies, 3}, {copy_stride, number_stride});
      listed.data = copies_.copy(numbers.data(), numbers.size() * sizeof(int32_t));
      listed.device = {DeviceType::kCuda, 0};
      status_ = copies_.take(4 * sizeof(int32_t));
      if (Status status = cli::fill_device(status_, 0, 4 * sizeof(int32_t)); !status.ok()) {
        return status;
      }
      context.cuda.status = MutableTensorView(reinterpret_cast<int32_t*>(status_), {4});
      context.cuda.status.device = {DeviceType::kCuda, 0};
    }
    const Status status =
        copy(listed.given() ? std::vector<PageCopy>{} : pages, views, context, listed);
    return status.ok() ? cli::wait_for_device() : status;
  }
  std::array<int32_t, 4> reported() const {
    std::array<int32_t, 4> numbers{};
    EXPECT_TRUE(cli::copy_to_host(numbers.data(), status_, sizeof numbers).ok());
    return numbers;
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
                     const std::vector<MutableTensorView>& tensors, const Context& context,
                     const TensorView& listed = {}) {
    CopyOptions options;
    if (tensors.size() == 4) options = {tensors[2], tensors[3], {}};
    options.copies = listed;
    return copy_pages(pages, tensors[0], tensors[1], options, context);
  }

  std::mt19937 random_{5};
  std::vector<std::vector<std::byte>> memory_;  // of keys, values, and their scales
  std::vector<MutableTensorView> host_;
  DeviceCopies copies_;
  std::vector<std::byte*> device_;
  std::byte* status_ = nullptr;
};

void expect_same(const Rows& rows, const std::vector<PageCopy>& pages, int64_t number_stride = 0) {
  SCOPED_TRACE(std::string(dtype_name(rows.dtype)) + ", head_dim " + std::to_string(rows.head_dim) +
               ", padding " + std::to_string(rows.padding) + ", first " +
               std::to_string(rows.first));
  Caches caches(rows);
  Status status = caches.copy_on_device(pages, number_stride);
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

std::vector<PageCopy> random_copies() {
  std::mt19937 random(7);
  std::vector<PageCopy> many;
  for (int i = 0; i < 500; ++i) {
    const auto source = static_cast<int32_t>(random() % kPages);
    const auto step = static_cast<int32_t>(1 + random() % (kPages - 1));
    many.push_back({source, static_cast<int32_t>((source + step) % kPages),
                    static_cast<int32_t>(random() % (kSlots + 1))});
  }
  return many;
}

TEST(CudaCopyPages, ACopyOfACopyComesAfterIt) {
  PAGEFILL_NEEDS_GPU();
  for (const DType dtype : {DType::kFloat32, DType::kInt8}) {
    expect_same({dtype, 16}, {{0, 1, 5}, {1, 2, 4}, {3, 1, 2}, {2, 0, 5}});
    expect_same({dtype, 8}, random_copies());
  }
}

TEST(CudaCopyPages, OfCopiesThatStandOnTheDeviceToo) {
  PAGEFILL_NEEDS_GPU();
  const std::vector<PageCopy> many = random_copies();
  for (const DType dtype : kCacheDTypes) {
    for (const int64_t number_stride : {1, 500}) {
      expect_same({dtype, 8}, many, number_stride);
      expect_same({dtype, 136, 1}, many, number_stride);
      expect_same({dtype, 128}, {}, number_stride);
    }
  }
}

TEST(CudaCopyPages, ABadCopyOnTheDeviceIsReportedAndNotDone) {
  PAGEFILL_NEEDS_GPU();
  const std::pair<PageCopy, std::array<int32_t, 4>> table[] = {
      {{-1, 1, 1}, {6, 1, 0, -1}}, {{kPages, 1, 1}, {6, 1, 0, kPages}},
      {{0, -7, 1}, {6, 1, 1, -7}}, {{0, kPages, 1}, {6, 1, 1, kPages}},
      {{0, 1, -1}, {6, 1, 2, -1}}, {{0, 1, kSlots + 1}, {6, 1, 2, kSlots + 1}},
      {{3, 3, 1}, {6, 1, 1, 3}},
  };
  for (const auto& [bad, reported] : table) {
    Caches caches({DType::kInt8, 16});
    const PageCopy good{0, 1, kSlots}, last{1, 2, 3};
    Status status = caches.copy_on_device({good, bad, last, bad}, 1);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(caches.reported(), reported);
    ASSERT_TRUE(caches.copy_on_host({good, last}).ok());
    caches.expect_the_same();
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
