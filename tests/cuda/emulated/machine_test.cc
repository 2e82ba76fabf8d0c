// The emulated device itself: its products and boxes are those of the formula, and each misuse that it knows of ends
// the launch with a message.
#include <cuda.h>
#include <gmock/gmock-matchers.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "machine/block.h"
#include "machine/device.h"
#include "pagefill/float_types.h"

namespace emulated {
namespace {

using pagefill::bfloat16;
using ::testing::HasSubstr;

constexpr uint32_t kA = kSharedBase, kB = kSharedBase + 8192, kBarrier = kSharedBase + 16384;
constexpr size_t kShared = 16384 + 64;
constexpr Schedule kLate = {Order::kInTurn, Moment::kLate, Moment::kLate, 1, 3, 0xff};

std::string run_threads(int num_threads, const std::function<void()>& body,
                        const Schedule& schedule = kLate) {
  Block block(num_threads, kShared, schedule);
  return block.run(body);
}

int lane() { return static_cast<int>(thread_index.x % 32); }
int thread() { return static_cast<int>(thread_index.x); }
std::byte* shared(uint32_t address) { return present_block().memory.at(address); }

// Every thread: a and b are 64 rows of 64 elements, swizzled; element (row, column) is small and known.
float element(bool is_b, int row, int column) {
  return static_cast<float>((row * (is_b ? 5 : 3) + column * 7 + (is_b ? 1 : 2)) % 13 - 6) / 4;
}
void store_operands() {
  for (bool is_b : {false, true}) {
    for (int i = thread(); i < 64 * 64; i += 128) {
      const int row = i / 64, column = i % 64;
      const uint32_t at =
          (is_b ? kB : kA) +
          static_cast<uint32_t>(row * 128 + ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2);
      const uint16_t bits = bfloat16(element(is_b, row, column)).bits;
      std::memcpy(shared(at), &bits, 2);
    }
  }
}
uint64_t descriptor(uint32_t address) {
  return address >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
int row_of(int i) { return thread() / 32 * 16 + lane() / 4 + i % 4 / 2 * 8; }
int column_of(int i) { return i / 4 * 8 + lane() % 4 * 2 + i % 2; }

TEST(Machine, MultipliesAsTheFormula) {
  for (const Schedule& schedule : kSchedules) {
    for (bool is_along_sum : {true, false}) {
      int wrong = 0;
      const auto body = [&] {
        store_operands();
        fence_proxy();
        sync_threads();
        float d[32];
        uint32_t a[4][4];
        for (float& x : d) x = 1;
        for (int step = 0; step < 4; ++step) {
          for (int i = 0; i < 8; ++i) {
            const int k = step * 16 + i / 4 * 8 + lane() % 4 * 2 + i % 2;
            const uint32_t bits = bfloat16(element(false, row_of(i), k)).bits;
            uint32_t& pair = a[step][i / 2];
            pair = i % 2 == 0 ? bits : pair | bits << 16;
          }
        }
        fence_products();
        for (int step = 0; step < 4; ++step) {
          const auto offset = static_cast<uint32_t>(step);
          if (is_along_sum) {
            multiply_shared(Element::kBFloat16, 64, d, descriptor(kA + offset * 32),
                            descriptor(kB + offset * 32), true);
          } else {
            multiply_registers(Element::kBFloat16, 64, d, a[step], descriptor(kB + offset * 2048));
          }
        }
        commit_products();
        if (!std::isnan(d[0])) ++wrong;  // under way
        wait_for_products(0);
        for (int i = 0; i < 32; ++i) {
          float expected = 1;
          for (int k = 0; k < 64; ++k) {
            expected +=
                element(false, row_of(i), k) *
                (is_along_sum ? element(true, column_of(i), k) : element(true, k, column_of(i)));
          }
          if (d[i] != expected) ++wrong;
        }
      };
      EXPECT_EQ(run_threads(128, body, schedule), "");
      EXPECT_EQ(wrong, 0) << describe(schedule);
    }
  }
}

// A warp's 16 x 16 numbers of a, which it loads in order, times 16 x 8 of b: once [column][k], and once [k][column],
// transposed on the way.
TEST(Machine, LoadsAndMultipliesFragmentsAsTheFormula) {
  for (Element type : {Element::kBFloat16, Element::kFloat16}) {
    for (bool is_transposed : {false, true}) {
      int wrong = 0;
      const auto put = [&](uint32_t at, int row, int column, float x) {
        const uint16_t bits =
            type == Element::kBFloat16 ? bfloat16(x).bits : pagefill::float16(x).bits;
        std::memcpy(shared(at + static_cast<uint32_t>(row * 32 + column * 2)), &bits, 2);
      };
      const auto body = [&] {
        for (int row = 0; row < 16; ++row) {
          if (lane() >= 16) break;
          const int k = lane();
          put(kA, row, k, element(false, row, k));
          is_transposed ? put(kB, k, row, element(true, row, k))
                        : put(kB, row, k, element(true, row, k));
        }
        sync_warp();
        // Matrices 0 and 1: rows 0 to 7 and 8 to 15 of the first 8 columns; 2 and 3: of the next 8.
        const auto address = [](uint32_t at) {
          return at + static_cast<uint32_t>(lane() % 16 * 32 + lane() / 16 * 16);
        };
        uint32_t a[4], b[4];
        load_matrices(a, address(kA), false);
        load_matrices(b, address(kB), is_transposed);
        for (int first : {0, 8}) {
          float d[4] = {1, 2, 3, 4};
          const bool is_second = first != 0;
          is_transposed ? multiply_fragments(type, d, a, b[is_second ? 2 : 0], b[is_second ? 3 : 1])
                        : multiply_fragments(type, d, a, b[is_second], b[2 + is_second]);
          for (int i = 0; i < 4; ++i) {
            const int row = lane() / 4 + i / 2 * 8, column = first + lane() % 4 * 2 + i % 2;
            float expected = static_cast<float>(i + 1);
            for (int k = 0; k < 16; ++k)
              expected += element(false, row, k) * element(true, column, k);
            if (d[i] != expected) ++wrong;
          }
        }
      };
      EXPECT_EQ(run_threads(32, body), "");
      EXPECT_EQ(wrong, 0) << (is_transposed ? "transposed" : "in order");
    }
  }
}

TEST(Machine, CopiesAreThereBehindTheWaitForTheirGroup) {
  alignas(16) static const uint16_t ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  int early = 0, late = 0;
  const auto body = [&] {
    copy_async(kA + static_cast<uint32_t>(lane()) * 16, ones, 16, 16);
    commit_copies();
    copy_async(kB + static_cast<uint32_t>(lane()) * 16, ones, 16, 8);
    commit_copies();
    uint32_t r[4];
    load_matrices(r, kA + static_cast<uint32_t>(lane()) * 16, false);
    if (r[0] == 0x00010001) ++early;
    wait_for_copies(1);
    sync_warp();
    load_matrices(r, kA + static_cast<uint32_t>(lane()) * 16, false);
    if (r[0] == 0x00010001) ++late;
    wait_for_copies(0);
    sync_warp();
    load_matrices(r, kB + static_cast<uint32_t>(lane()) * 16, false);
    if (r[0] == (lane() % 4 < 2 ? 0x00010001u : 0u)) ++late;
  };
  EXPECT_EQ(run_threads(32, body), "");
  EXPECT_EQ(early, 0);
  EXPECT_EQ(late, 64);
}

TEST(Machine, BringsBoxesWithZerosOutsideOfTheTensor) {
  constexpr int kColumns = 40, kSlots = 6, kPages = 3;
  alignas(16) static uint16_t tensor[kPages][kSlots][kColumns];
  for (int i = 0; i < kPages * kSlots * kColumns; ++i)
    (&tensor[0][0][0])[i] = static_cast<uint16_t>(i + 1);
  alignas(64) CUtensorMap map;
  const cuuint64_t extents[4] = {kColumns, kSlots, kPages, 1};
  const cuuint64_t strides[3] = {kColumns * 2, kSlots * kColumns * 2, 16};
  const cuuint32_t box[4] = {64, 4, 1, 1}, steps[4] = {1, 1, 1, 1};
  const auto encode = [&](const cuuint64_t* of_strides) {
    return cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, tensor, extents,
                                  of_strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                  CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  const cuuint64_t odd_strides[3] = {kColumns * 2 + 2, kSlots * kColumns * 2, 16};
  EXPECT_EQ(encode(odd_strides), CUDA_ERROR_INVALID_VALUE);
  ASSERT_EQ(encode(strides), CUDA_SUCCESS);
  int wrong = 0;
  const auto body = [&] {
    if (thread() == 0) init_barrier(kBarrier, 1), fence_barrier_init();
    sync_threads();
    if (thread() == 0) {
      arrive_expecting(kBarrier, 4 * 128);
      copy_box(kA + 512, &map, kBarrier, 0, 4, 2, 0);
      if (*reinterpret_cast<uint16_t*>(shared(kA + 512)) != 0xffff) ++wrong;  // it is late
    }
    wait(kBarrier, 0);
    for (int row = 0; row < 4; ++row) {
      for (int column = 0; column < 64; ++column) {
        const uint16_t expected =
            row < 2 && column < kColumns ? tensor[2][4 + row][column] : uint16_t{0};
        uint16_t got;
        const uint32_t line = kA + 512 + static_cast<uint32_t>(row) * 128;
        std::memcpy(
            &got,
            shared(line + static_cast<uint32_t>(((column / 8) ^ (row + 4)) * 16 + column % 8 * 2)),
            2);
        if (got != expected) ++wrong;
      }
    }
  };
  EXPECT_EQ(run_threads(32, body), "");
  EXPECT_EQ(wrong, 0);
}

TEST(Machine, SharesItsRegisters) {
  const auto with = [](int taken) {
    return run_threads(384,
                       [taken] { set_registers(thread() < 128 ? 72 : taken, thread() >= 128); });
  };
  EXPECT_EQ(with(216), "");
  EXPECT_THAT(with(224), HasSubstr("wait for registers, 224 a thread"));
}

struct Misuse {
  const char* name;
  int num_threads;
  void (*body)();
  const char* message;
};

void begin_product(float* d) {
  multiply_shared(Element::kBFloat16, 64, d, descriptor(kA), descriptor(kB), true);
  commit_products();
}
void make_barrier(uint32_t arrivals) {
  if (thread() == 0) init_barrier(kBarrier, arrivals), fence_barrier_init();
  sync_threads();
}
alignas(16) const char kBytes[16] = {1, 2, 3};

const Misuse kMisuses[] = {
    {"a phase that never ends", 64,
     [] {
       make_barrier(2);
       if (thread() == 0) arrive(kBarrier);
       if (thread() < 32) wait(kBarrier, 0);
     },
     "threads 0 to 31 wait for parity 0 of the mbarrier at 0x4400 (phase 0: 1 of 2 arrivals and 0 "
     "bytes to come)\n"
     "  threads 32 to 63 have ended"},
    {"bytes that never come", 32,
     [] {
       make_barrier(1);
       if (thread() == 0) arrive_expecting(kBarrier, 64);
       wait(kBarrier, 0);
     },
     "0 of 1 arrivals and 64 bytes to come"},
    {"more arrivals than a phase has", 32,
     [] {
       make_barrier(1);
       if (thread() == 0) arrive_expecting(kBarrier, 64), arrive(kBarrier);
     },
     "more arrivals than it waits for"},
    {"a barrier that is none", 32, [] { arrive(kBarrier); },
     "no mbarrier was initialised at 0x4400"},
    {"a barrier that the engine does not know", 32,
     [] {
       if (thread() == 0) init_barrier(kBarrier, 1), arrive_expecting(kBarrier, 64);
     },
     "no fence lies between"},
    {"a named barrier that some leave out", 64,
     [] {
       if (thread() < 32) named_wait(3, 64);
     },
     "threads 0 to 31 wait for barrier 3 (32 of 64 threads have come)"},
    {"a named barrier of two sizes", 64, [] { named_wait(3, thread() < 32 ? 64 : 96); },
     "where others expect"},
    {"lanes that part", 32, [] { lane() == 5 ? sync_warp() : static_cast<void>(ballot(true)); },
     "lanes of a warp are at different collective operations"},
    {"a lane that is missing", 32,
     [] {
       if (lane() != 5) sync_warp();
     },
     "wait for the other lanes of its warp"},
    {"copies that nobody waits for", 32, [] { copy_async(kA, kBytes, 16, 16); },
     "without a wait for its copies"},
    {"a copy to an odd address", 32, [] { copy_async(kA + 4, kBytes, 16, 16); },
     "cp.async of 16 bytes to 0x404"},
    {"matrices at an odd address", 32,
     [] {
       uint32_t r[4];
       load_matrices(r, kA + static_cast<uint32_t>(lane()) * 16 + (lane() == 7 ? 8 : 0), false);
     },
     "ldmatrix of lane 7 at 0x478"},
    {"lanes that multiply other types", 32,
     [] {
       float d[4] = {};
       const uint32_t a[4] = {};
       multiply_fragments(lane() == 5 ? Element::kFloat16 : Element::kBFloat16, d, a, 0, 0);
     },
     "lanes of a warp are at different collective operations"},
    {"ordinary writes that tensor cores read without a fence", 128,
     [] {
       store_operands();
       sync_threads();
       float d[32] = {};
       fence_products(), begin_product(d), wait_for_products(0);
     },
     "which was written by threads and is behind no fence"},
    {"cp.async that tensor cores read without a fence", 128,
     [] {
       store_operands(), fence_proxy(), sync_threads();
       if (thread() == 0) copy_async(kA, kBytes, 16, 16);
       commit_copies(), wait_for_copies(0), sync_threads();
       float d[32] = {};
       fence_products(), begin_product(d), wait_for_products(0);
     },
     "which was written by threads and is behind no fence"},
    {"a product without a fence", 128,
     [] {
       float d[32] = {};
       begin_product(d), wait_for_products(0);
     },
     "wgmma without a wgmma.fence before it"},
    {"registers written behind the fence", 128,
     [] {
       store_operands(), fence_proxy(), sync_threads();
       float d[32] = {};
       fence_products(), begin_product(d), wait_for_products(0);
       d[3] = 2;
       begin_product(d), wait_for_products(0);
     },
     "written after the last wgmma.fence"},
    {"an accumulator written under way", 128,
     [] {
       store_operands(), fence_proxy(), sync_threads();
       float d[32] = {};
       fence_products(), begin_product(d);
       d[3] = 2;
       wait_for_products(0);
     },
     "an accumulator was written while its product was under way"},
    {"a product that nobody waits for", 128,
     [] {
       float d[32] = {};
       fence_products(), begin_product(d);
     },
     "without a wait for its products"},
    {"a product that a warp leaves out", 128,
     [] {
       float d[32] = {};
       if (thread() < 96) fence_products(), begin_product(d), wait_for_products(0);
     },
     "wait for the other threads of its warpgroup to issue product 0"},
    {"another swizzle", 128,
     [] {
       float d[32] = {};
       fence_products();
       multiply_shared(Element::kBFloat16, 64, d, descriptor(kA) ^ uint64_t{3} << 62,
                       descriptor(kB), true);
       commit_products(), wait_for_products(0);
     },
     "expected a swizzle of 128 bytes"},
    {"writes behind the shared memory", 32, [] { *shared(kSharedBase + kShared) = std::byte{1}; },
     "memory behind the block's shared memory was written"},
};

TEST(Machine, EndsALaunchThatMisusesIt) {
  for (const Misuse& misuse : kMisuses) {
    EXPECT_THAT(run_threads(misuse.num_threads, misuse.body), HasSubstr(misuse.message))
        << misuse.name;
  }
}

// A wait that is left out shows where the order of warps is another.
TEST(Machine, ShowsARaceInSomeSchedule) {
  int different = 0;
  for (const Schedule& schedule : kSchedules) {
    int seen = 0;
    const auto body = [&] {
      if (thread() == 0) *shared(kA) = std::byte{0};
      sync_threads();
      if (thread() == 40) *shared(kA) = std::byte{7};
      sync_warp();
      if (thread() == 0) seen = std::to_integer<int>(*shared(kA));
    };
    EXPECT_EQ(run_threads(64, body, schedule), "");
    if (seen != 7) ++different;
  }
  EXPECT_GT(different, 0);
  EXPECT_LT(different, static_cast<int>(std::size(kSchedules)));
}

}  // namespace
}  // namespace emulated
