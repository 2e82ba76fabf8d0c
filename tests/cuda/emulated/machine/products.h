// wgmma: products of a warpgroup, which write their accumulators at some time before they are waited for.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "machine/device.h"
#include "pagefill/float_types.h"

namespace emulated {

class Block;

// Of 16 bits; of float16 by a table.
extern const std::vector<float> float16_numbers;
inline float number(Element element, uint16_t bits) {
  return element == Element::kBFloat16 ? static_cast<float>(pagefill::bfloat16::from_bits(bits))
                                       : float16_numbers[bits];
}

inline constexpr int kGroupThreads = 128;
inline constexpr int kRows = 64, kDepth = 16;  // of a product
inline constexpr int kWarpRows = kRows / 4;

// The numbers of one accumulator, while products with it are under way.
struct Accumulator {
  int columns = 0;
  std::vector<float> values;  // [kRows][columns]
  int num_threads = 0;        // that have given theirs and not taken the sums back
};

// What an instruction says.
struct Instruction {
  Element element{};
  int columns = 0;
  uint64_t a = 0, b = 0;  // descriptors
  bool has_shared_a = false, keeps = true;
  friend bool operator==(const Instruction&, const Instruction&) = default;
};

struct Product : Instruction {
  std::array<float, kRows * kDepth> a_values{};  // where they come from registers
  std::shared_ptr<Accumulator> accumulator;
  uint64_t fence = ~uint64_t{0};  // the earliest of its threads' last fences of the proxy
  int num_threads = 0;            // that have issued it
  bool is_late = false;
  std::array<bool, 4> is_done{};  // of each warp's rows
};

// Registers of a thread that products take: as they were when it last fenced them.
struct Registers {
  const void* at;
  uint32_t words;
  std::array<uint32_t, 128> before;
};

struct ThreadProducts {
  struct Open {  // an accumulator that is under way
    float* d;
    int columns;
    uint32_t last;  // product
    std::shared_ptr<Accumulator> accumulator;
  };
  struct Operand {  // a in registers
    const uint32_t* a;
    std::array<uint32_t, 4> words;
    uint32_t product;
  };
  uint32_t issued = 0, waited = 0;  // products
  std::vector<uint32_t> commits;    // of products that were issued before each
  std::vector<Open> open;
  std::vector<Operand> operands;
  std::vector<Registers> known;
  bool has_fenced = false;
  bool are_done() const { return open.empty() && operands.empty(); }
};

struct Warpgroup {
  uint32_t first = 0;  // product of `products`
  std::deque<Product> products;
  std::vector<int> waiters;
};

}  // namespace emulated
