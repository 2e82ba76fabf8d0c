#include "machine/products.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "machine/block.h"

namespace emulated {

const std::vector<float> float16_numbers = [] {
  std::vector<float> all(65536);
  for (uint32_t i = 0; i < 65536; ++i)
    all[i] = static_cast<float>(pagefill::float16::from_bits(static_cast<uint16_t>(i)));
  return all;
}();

namespace {

// What a thread finds in an accumulator that is under way.
constexpr uint32_t kUnderWay = 0x7fc0dead;

// Matrix descriptor of wgmma, PTX ISA 9.7.15.5.1.
struct Matrix {
  uint32_t start, leading_bytes, stride_bytes;
};

Matrix decode(Block& block, uint64_t descriptor) {
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0)
    block.fail(fmt::format(
        "matrix descriptor {:#x}: expected a swizzle of 128 bytes from a multiple of 1024",
        descriptor));
  const auto field = [&](int at) { return static_cast<uint32_t>(descriptor >> at & 0x3fff) << 4; };
  return {field(0), field(16), field(32)};
}

// 8 neighbouring elements at an address before the swizzle, which exchanges bits 4 to 6 by bits 7 to 9.
void read_chunk(Block& block, Element element, uint32_t address, uint64_t fence, float* to) {
  address ^= (address >> 7 & 7) << 4;
  if (!block.memory.contains(address, kChunkBytes) || address % kChunkBytes != 0)
    block.fail(fmt::format("wgmma reads shared memory at {:#x}", address));
  const std::byte* const bytes = block.memory.read_as_engine(address, fence);
  if (bytes == nullptr) {
    block.fail(fmt::format(
        "wgmma reads shared memory at {:#x}, which was written by threads and is behind no fence",
        address));
  }
  for (int i = 0; i < 8; ++i) {
    uint16_t bits;
    std::memcpy(&bits, bytes + 2 * i, 2);
    to[i] = number(element, bits);
  }
}

// Rows [begin, end) of [rows][16] with the sum's index innermost.
void read_along_sum(Block& block, const Product& p, uint64_t descriptor, int begin, int end,
                    float* to) {
  const Matrix m = decode(block, descriptor);
  for (int row = begin; row < end; ++row) {
    const uint32_t at = m.start + static_cast<uint32_t>(row / 8) * m.stride_bytes +
                        static_cast<uint32_t>(row % 8) * 128;
    for (int half = 0; half < 2; ++half)
      read_chunk(block, p.element, at + static_cast<uint32_t>(half) * kChunkBytes, p.fence,
                 to + (row - begin) * kDepth + half * 8);
  }
}

// [16][columns] with the columns innermost.
void read_along_columns(Block& block, const Product& p, uint64_t descriptor, float* to) {
  const Matrix m = decode(block, descriptor);
  for (int k = 0; k < kDepth; ++k) {
    for (int column = 0; column < p.columns; column += 8) {
      const uint32_t at = m.start + static_cast<uint32_t>(k / 8) * m.stride_bytes +
                          static_cast<uint32_t>(k % 8) * 128 +
                          static_cast<uint32_t>(column / 64) * m.leading_bytes +
                          static_cast<uint32_t>(column % 64) * 2;
      read_chunk(block, p.element, at, p.fence, to + k * p.columns + column);
    }
  }
}

// sums += a * b: exact products of numbers of 16 bits, added one after another.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void add_product(const float* a, const float* b, int columns, float* sums) {
  constexpr int kAtOnce = 64;  // columns, of which the sums stay in registers
  for (int row = 0; row < kWarpRows; ++row) {
    for (int first = 0; first < columns; first += kAtOnce) {
      float* const to = sums + row * columns + first;
      float sum[kAtOnce];
      for (int i = 0; i < kAtOnce; ++i) sum[i] = to[i];
      for (int k = 0; k < kDepth; ++k) {
        const float x = a[row * kDepth + k];
        const float* const y = b + k * columns + first;
        for (int i = 0; i < kAtOnce; ++i) sum[i] += x * y[i];
      }
      for (int i = 0; i < kAtOnce; ++i) to[i] = sum[i];
    }
  }
}

// The rows of warps [begin, end) that are not done.
void compute(Block& block, Product& p, int begin, int end) {
  static float a[kWarpRows * kDepth], b[256 * kDepth], transposed[256 * kDepth];
  if (p.has_shared_a) {
    read_along_sum(block, p, p.b, 0, p.columns, transposed);
    for (int column = 0; column < p.columns; ++column) {
      for (int k = 0; k < kDepth; ++k) b[k * p.columns + column] = transposed[column * kDepth + k];
    }
  } else {
    read_along_columns(block, p, p.b, b);
  }
  for (int warp = begin; warp < end; ++warp) {
    if (p.is_done[static_cast<size_t>(warp)]) continue;
    const float* factors = p.a_values.data() + warp * kWarpRows * kDepth;
    if (p.has_shared_a) {
      read_along_sum(block, p, p.a, warp * kWarpRows, (warp + 1) * kWarpRows, a);
      factors = a;
    }
    float* const sums = p.accumulator->values.data() + warp * kWarpRows * p.columns;
    if (!p.keeps) std::fill_n(sums, kWarpRows * p.columns, 0.0f);
    add_product(factors, b, p.columns, sums);
    p.is_done[static_cast<size_t>(warp)] = true;
  }
}

// Calls with each of a thread's numbers and its place among [kRows][columns].
template <typename Visit>
void for_each_number(int thread, int columns, const Visit& visit) {
  const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
  for (int i = 0; i < columns / 8; ++i) {
    for (int e = 0; e < 4; ++e)
      visit(4 * i + e, (row + e / 2 * 8) * columns + 8 * i + column + e % 2);
  }
}

void check_unchanged(Block& block, const ThreadProducts& thread, const void* at) {
  for (const Registers& r : thread.known) {
    if (r.at == at && std::memcmp(r.before.data(), at, r.words * 4) != 0)
      block.fail("wgmma takes registers that were written after the last wgmma.fence");
  }
}

void know(ThreadProducts& thread, const void* at, int words) {
  for (const Registers& r : thread.known) {
    if (r.at == at) return;
  }
  thread.known.push_back({at, static_cast<uint32_t>(words), {}});
  std::memcpy(thread.known.back().before.data(), at, static_cast<size_t>(words) * 4);
}

// The running thread's share of its next product.
void issue(const Instruction& wished, float* d, const uint32_t* a_registers) {
  Block& block = present_block();
  const int in_group = block.index() % kGroupThreads;
  Warpgroup& group = block.warpgroups[static_cast<size_t>(block.index() / kGroupThreads)];
  ThreadProducts& thread = block.thread().products;
  if (!thread.has_fenced) block.fail("wgmma without a wgmma.fence before it");
  ++counts().products;
  const uint32_t index = thread.issued++;
  if (index - group.first == group.products.size()) {
    static_cast<Instruction&>(group.products.emplace_back()) = wished;
    group.products.back().is_late = block.moment_of(block.schedule().products) == Moment::kLate;
  }
  Product& p = group.products[index - group.first];
  if (wished != static_cast<const Instruction&>(p))
    block.fail("threads of a warpgroup issue different products");
  p.fence = std::min(p.fence, block.thread().proxy_fence);

  auto open =
      std::find_if(thread.open.begin(), thread.open.end(), [&](const auto& o) { return o.d == d; });
  if (open == thread.open.end()) {
    if (p.keeps) check_unchanged(block, thread, d);
    know(thread, d, wished.columns * 4 / 8);
    if (p.accumulator == nullptr) {
      p.accumulator = std::make_shared<Accumulator>();
      p.accumulator->columns = wished.columns;
      p.accumulator->values.resize(static_cast<size_t>(kRows * wished.columns));
    }
    thread.open.push_back({d, wished.columns, index, p.accumulator});
    open = thread.open.end() - 1;
    for_each_number(in_group, wished.columns, [&](int i, int place) {
      p.accumulator->values[static_cast<size_t>(place)] = d[i];
      std::memcpy(&d[i], &kUnderWay, 4);
    });
  } else if (p.accumulator == nullptr) {
    p.accumulator = open->accumulator;
  }
  if (p.accumulator != open->accumulator)
    block.fail("threads of a warpgroup have other accumulators");
  open->last = index;
  if (a_registers != nullptr) {
    check_unchanged(block, thread, a_registers);
    know(thread, a_registers, 4);
    ThreadProducts::Operand operand{a_registers, {}, index};
    std::memcpy(operand.words.data(), a_registers, 16);
    for_each_number(in_group, kDepth, [&](int i, int place) {
      // Numbers 0 and 1 of row g, then of row g + 8; then the same of columns 8 and up: as a has them.
      p.a_values[static_cast<size_t>(place)] =
          number(p.element, static_cast<uint16_t>(a_registers[i / 2] >> (i % 2 * 16)));
    });
    thread.operands.push_back(operand);
  }
  if (++p.num_threads == kGroupThreads) {
    // Those before it come first, also where they are late.
    if (!p.is_late) {
      for (Product& q : group.products) {
        if (q.is_done != std::array{true, true, true, true}) compute(block, q, 0, 4);
        if (&q == &p) break;
      }
    }
    block.wake(group.waiters);
  }
}

}  // namespace

void fence_products() {
  ThreadProducts& thread = present_block().thread().products;
  thread.has_fenced = true;
  for (Registers& r : thread.known) std::memcpy(r.before.data(), r.at, r.words * 4);
}

void commit_products() {
  ThreadProducts& thread = present_block().thread().products;
  thread.commits.push_back(thread.issued);
}

void wait_for_products(int pending) {
  Block& block = present_block();
  Warpgroup& group = block.warpgroups[static_cast<size_t>(block.index() / kGroupThreads)];
  ThreadProducts& thread = block.thread().products;
  const auto groups = static_cast<int>(thread.commits.size());
  if (groups <= pending) return;
  const uint32_t needed = thread.commits[static_cast<size_t>(groups - pending - 1)];
  const auto product = [&](uint32_t i) -> Product& { return group.products[i - group.first]; };
  const auto are_issued = [&] {
    for (uint32_t i = group.first; i < needed; ++i) {
      if (product(i).num_threads < kGroupThreads) return false;
    }
    return true;
  };
  block.wait_until(are_issued, {Wait::kProducts, needed - 1}, group.waiters);
  const int warp = block.index() % kGroupThreads / kWarpThreads;
  for (uint32_t i = group.first; i < needed; ++i) {
    if (!product(i).is_done[static_cast<size_t>(warp)]) compute(block, product(i), warp, warp + 1);
  }
  thread.commits.erase(thread.commits.begin(), thread.commits.end() - pending);
  for (const ThreadProducts::Operand& o : thread.operands) {
    if (o.product < needed && std::memcmp(o.a, o.words.data(), 16) != 0)
      block.fail("registers of a product's a were written while it was under way");
  }
  std::erase_if(thread.operands, [&](const auto& o) { return o.product < needed; });
  for (const ThreadProducts::Open& o : thread.open) {
    if (o.last >= needed) continue;
    for_each_number(block.index() % kGroupThreads, o.columns, [&](int i, int place) {
      if (std::memcmp(&o.d[i], &kUnderWay, 4) != 0)
        block.fail("an accumulator was written while its product was under way");
      o.d[i] = o.accumulator->values[static_cast<size_t>(place)];
    });
  }
  std::erase_if(thread.open, [&](const auto& o) { return o.last < needed; });
  thread.waited = needed;
  uint32_t least = needed;  // products that all have waited for
  const int first_thread = block.index() / kGroupThreads * kGroupThreads;
  for (int i = 0; i < kGroupThreads; ++i)
    least = std::min(least, block.thread_at(first_thread + i).products.waited);
  while (group.first < least) group.products.pop_front(), ++group.first;
}

void multiply_shared(Element element, int columns, float* d, uint64_t a, uint64_t b, bool keeps) {
  issue({element, columns, a, b, true, keeps}, d, nullptr);
}

void multiply_registers(Element element, int columns, float* d, const uint32_t* a, uint64_t b) {
  issue({element, columns, 0, b, false, true}, d, a);
}

}  // namespace emulated
