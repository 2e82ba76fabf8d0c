// Which kernel a call runs, with what grid and what workspace: from shapes and the plan's maxima alone.
#pragma once

#include "backend.h"
#include "backends/cuda/kernels.h"

namespace pagefill::cuda {

struct Plan {
  const ForwardKernel* kernel = nullptr;
  bool overlaps = false;  // kernels of a stream do where they are compiled for it
  int tile_rows = 0;
  int num_value_parts = 1;
  int num_blocks = 0;  // of the forward kernel
  // Each block makes the schedule of a single sequence itself. Only where whole tasks have a block each: what a block
  // does next is then a fixed stride away, instead of being counted.
  bool schedules_itself = false;
  size_t shared_bytes = 0;
  int64_t max_segments = 0;  // of a sequence; with one there is nothing to combine
  int64_t num_states = 0;    // of split rows
  int value_stride = 0;
  size_t workspace_bytes = 0;
};

Result<Plan> make_plan(const Problem& problem, const CudaSettings& settings);

// The pieces of a workspace of Plan::workspace_bytes.
Workspace lay_out_workspace(const Problem& problem, const Plan& plan, std::byte* base);

// The error of a call of the CUDA runtime, or nothing.
Status cuda_status(const char* what, cudaError_t error);

}  // namespace pagefill::cuda
