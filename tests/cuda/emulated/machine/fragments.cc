// Products of one warp (mma.sync), and the matrices that it loads for them (ldmatrix).
#include <fmt/format.h>

#include <array>
#include <cstring>

#include "machine/block.h"
#include "machine/products.h"

namespace emulated {
namespace {

constexpr int kRowsOfA = 16, kColumns = 8;

struct Operands {
  Element element;
  float* d;
  const uint32_t* a;
  std::array<uint32_t, 2> b;
};

struct Matrices {
  uint32_t* to;
  uint32_t address;
  bool is_transposed;
};

template <typename T>
const T& of_lane(const uint64_t* all, int lane) {
  return *reinterpret_cast<const T*>(all[lane]);
}

uint16_t half_of(uint32_t pair, int i) { return static_cast<uint16_t>(pair >> 16 * i); }

// d += a * b: products exact, and added one by one in float32.
void multiply(const uint64_t* all) {
  const Element element = of_lane<Operands>(all, 0).element;
  float a[kRowsOfA][kDepth], b[kColumns][kDepth];
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    const Operands& operands = of_lane<Operands>(all, lane);
    if (operands.element != element) present_block().fail("lanes of a warp multiply other types");
    const int row = lane / 4, first = lane % 4 * 2;
    for (int i = 0; i < 8; ++i) {
      const int k = first + i % 2 + i / 4 * 8;
      a[row + i / 2 % 2 * 8][k] = number(element, half_of(operands.a[i / 2], i % 2));
      if (i / 2 % 2 == 0) b[row][k] = number(element, half_of(operands.b[i / 4], i % 2));
    }
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    float* const d = of_lane<Operands>(all, lane).d;
    for (int i = 0; i < 4; ++i) {
      const float* const row = a[lane / 4 + i / 2 * 8];
      const float* const column = b[lane % 4 * 2 + i % 2];
      for (int k = 0; k < kDepth; ++k) d[i] += row[k] * column[k];
    }
  }
}

// Lane l's address is that of row l % 8 of matrix l / 8.
void load(const uint64_t* all) {
  Block& block = present_block();
  uint16_t rows[kWarpThreads][8];
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    const uint32_t address = of_lane<Matrices>(all, lane).address;
    if (address % kChunkBytes != 0 || !block.memory.contains(address, kChunkBytes))
      block.fail(fmt::format("ldmatrix of lane {} at {:#x}", lane, address));
    std::memcpy(rows[lane], block.memory.at(address), kChunkBytes);
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    const Matrices& matrices = of_lane<Matrices>(all, lane);
    for (int m = 0; m < 4; ++m) {
      const auto element = [&](int i) -> uint32_t {
        const int row = lane / 4, column = lane % 4 * 2 + i;
        return matrices.is_transposed ? rows[m * 8 + column][row] : rows[m * 8 + row][column];
      };
      matrices.to[m] = element(0) | element(1) << 16;
    }
  }
}

}  // namespace

void multiply_fragments(Element element, float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  const Operands operands{element, d, a, {b0, b1}};
  present_block().collect(Collective::kMultiply, reinterpret_cast<uint64_t>(&operands), multiply);
  ++counts().fragments;
}

void load_matrices(uint32_t* r, uint32_t address, bool is_transposed) {
  const Matrices matrices{r, address, is_transposed};
  present_block().collect(Collective::kLoadMatrices, reinterpret_cast<uint64_t>(&matrices), load);
}

}  // namespace emulated
