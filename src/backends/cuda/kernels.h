// The kernels as the host sees them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>

#include "backends/cuda/arguments.h"

namespace pagefill::cuda {

// What a forward kernel is compiled for; one row of the table of them (cmake/kernels.cmake).
enum class Cache { kSame, kQuantised, kAny };  // query's dtype, 8 bits, or anything as float32
enum class Tile { kManyRows, kFewRows };

struct ForwardKernel {
  const char* target;      // its name in reports
  int compute_capability;  // 10 * major + minor that it is for, or 0: any
  DType query_dtype;       // kFloat32: any, computed in float32
  Cache cache;
  int max_head_dim;  // of queries and keys
  int value_cols;    // of a task; wider values take several
  Tile tile;
  int tile_rows;  // at most
  int threads;
  int total_floats;   // of a block, between segments
  int part_segments;  // of a split tile that a task may have, at most
  int box_keys;  // of a tile that the copy engine may bring at once, at most; 0: it brings none
  bool
      schedules_one;  // makes the schedule of a batch of one sequence itself (Plan::schedules_itself)
  const void* function;
  size_t (*shared_bytes)(int tile_rows, int head_dim, int cache_element_size);
};

std::span<const ForwardKernel> forward_kernels();

// Where the kernels of a call go, and whether each may begin before the one before it has ended: all of them wait
// for that before they read or write (ptx/grid.h).
struct Stream {
  cudaStream_t stream;
  bool overlaps;
};

inline cudaError_t launch(const void* kernel, int blocks, int threads, size_t shared_bytes,
                          void** arguments, const Stream& stream) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.stream;
  config.attrs = &overlap;
  config.numAttrs = stream.overlaps ? 1 : 0;
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

cudaError_t launch_schedule(const Arguments& a, const Stream& stream);
cudaError_t launch_combine(const Arguments& a, const Stream& stream);

cudaError_t launch_append(const AppendArguments& a, cudaStream_t stream);
cudaError_t launch_copy(const CopyArguments& a, cudaStream_t stream);
cudaError_t launch_listed_copy(const ListedCopyArguments& a, cudaStream_t stream);
cudaError_t launch_merge(const MergeArguments& a, cudaStream_t stream);

}  // namespace pagefill::cuda
