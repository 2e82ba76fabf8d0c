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

// d += a * b: products exact, and added one by one in float32. Lanes of the host are columns.
template <Element kElement>
void multiply(const uint64_t* all) {
  float a[kRowsOfA][kDepth], b[kDepth][kColumns], d[kRowsOfA][kColumns];
  const auto number_at = [](uint32_t pair, int i) {
    return number(kElement, static_cast<uint16_t>(pair >> 16 * i));
  };
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    const Operands& operands = of_lane<Operands>(all, lane);
    const int row = lane / 4, first = lane % 4 * 2;
    for (int i = 0; i < 2; ++i) {
      for (int half = 0; half < 2; ++half) {
        const int k = first + half * 8 + i;
        a[row][k] = number_at(operands.a[half * 2], i);
        a[row + 8][k] = number_at(operands.a[half * 2 + 1], i);
        b[k][row] = number_at(operands.b[static_cast<size_t>(half)], i);
      }
      d[row][first + i] = operands.d[i];
      d[row + 8][first + i] = operands.d[2 + i];
    }
  }
  for (int row = 0; row < kRowsOfA; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < kColumns; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    const Operands& operands = of_lane<Operands>(all, lane);
    for (int i = 0; i < 4; ++i) operands.d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
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
  const Operands operands{d, a, {b0, b1}};
  const bool is_bfloat16 = element == Element::kBFloat16;
  present_block().collect(
      is_bfloat16 ? Collective::kMultiplyBFloat16 : Collective::kMultiplyFloat16,
      reinterpret_cast<uint64_t>(&operands),
      is_bfloat16 ? multiply<Element::kBFloat16> : multiply<Element::kFloat16>);
}

void load_matrices(uint32_t* r, uint32_t address, bool is_transposed) {
  const Matrices matrices{r, address, is_transposed};
  present_block().collect(Collective::kLoadMatrices, reinterpret_cast<uint64_t>(&matrices), load);
}

}  // namespace emulated
