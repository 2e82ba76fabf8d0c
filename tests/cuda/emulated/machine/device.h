// What a kernel sees of where it runs, and the operations of the machine that it names.
#pragma once

#include <cstdint>

namespace emulated {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
extern Index thread_index, block_index, block_dim, grid_dim;

// Of a whole warp.
void sync_warp();
uint64_t shuffle(uint64_t value, int from_lane);
uint32_t ballot(bool predicate);
bool elect();

// Of the block.
void sync_threads();
bool sync_threads_or(bool predicate);
void named_wait(uint32_t name, uint32_t threads);
void named_arrive(uint32_t name, uint32_t threads);
bool named_or(uint32_t name, uint32_t threads, bool predicate);
void set_registers(int registers, bool takes);

// Shared memory: an address is a number of 32 bits.
uint32_t shared_address(const void* p);

void init_barrier(uint32_t barrier, uint32_t arrivals);
void fence_barrier_init();
void arrive(uint32_t barrier);
void arrive_expecting(uint32_t barrier, uint32_t bytes);
bool has_completed(uint32_t barrier, uint32_t parity);
void wait(uint32_t barrier, uint32_t parity);
void fence_proxy();

// cp.async: `read` bytes from `from`, zeros behind them.
void copy_async(uint32_t to, const void* from, int bytes, int read);
void commit_copies();
void wait_for_copies(int pending);
void arrive_behind_copies(uint32_t barrier);
void copy_box(uint32_t to, const void* map, uint32_t barrier, int x, int y, int z, int w);

enum class Element { kBFloat16, kFloat16 };

// mma.m16n8k16 and ldmatrix.x4, of a whole warp: src/backends/cuda/ptx/mma.h says which lane has what.
void multiply_fragments(Element element, float* d, const uint32_t* a, uint32_t b0, uint32_t b1);
void load_matrices(uint32_t* r, uint32_t address, bool is_transposed);

// wgmma, with accumulators of 64 rows and `columns`, 16 along the sum.
void fence_products();
void commit_products();
void wait_for_products(int pending);
// a and b from shared memory, both with the sum's index innermost.
void multiply_shared(Element element, int columns, float* d, uint64_t a, uint64_t b, bool keeps);
// a in registers, b with its columns innermost.
void multiply_registers(Element element, int columns, float* d, const uint32_t* a, uint64_t b);

}  // namespace emulated
