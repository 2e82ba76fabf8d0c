#include "backends/cuda/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "backends/cuda/config.h"
#include "checks.h"

namespace pagefill::cuda {
namespace {

// More than the kernels have beside what is asked for at the launch.
constexpr int kStaticSharedBytes = 512;

// The kernel's dtypes; what it computes, and with it every bit, depends on these, head dims and the device alone.
struct Kind {
  DType dtype = DType::kFloat32;
  Cache cache = Cache::kAny;
};

Kind kind_of(const Problem& p) {
  const bool is_half = p.query.dtype != DType::kFloat32;
  if (is_half && p.key_cache.dtype == p.query.dtype) return {p.query.dtype, Cache::kSame};
  if (is_half && is_quantised(p.key_cache.dtype)) return {p.query.dtype, Cache::kQuantised};
  return {};
}

// PAGEFILL_CUDA_TARGET, for whoever compares them.
constexpr const char* kTargetVariable = "PAGEFILL_CUDA_TARGET";

std::string_view wished_target() {
  const char* value = std::getenv(kTargetVariable);
  return value == nullptr ? "auto" : value;
}

Status check_target(std::string_view wished, const ForwardKernel* found) {
  if (wished != "auto" && wished != "portable" && wished != "sm90") {
    return invalid_argument(
        fmt::format("{}: expected auto or portable or sm90, got \"{}\"", kTargetVariable, wished));
  }
  if (found != nullptr) return {};
  return Status(StatusCode::kUnsupported,
                fmt::format("{}: expected a target with kernels for this call and device, got {}",
                            kTargetVariable, wished));
}

// The first in the table that has all columns, or the widest.
const ForwardKernel* find_kernel(const Problem& p, int compute_capability, std::string_view target,
                                 Tile tile) {
  const Kind kind = kind_of(p);
  const ForwardKernel* widest = nullptr;
  for (const ForwardKernel& k : forward_kernels()) {
    if (k.query_dtype != kind.dtype || k.cache != kind.cache || k.tile != tile) continue;
    if (k.max_head_dim < p.head_dim || (target != "auto" && target != k.target)) continue;
    const bool is_portable = k.compute_capability == 0;
    if (!is_portable && k.compute_capability != compute_capability) continue;
    if (k.value_cols >= p.v_head_dim) return &k;
    if (is_portable) widest = &k;
  }
  return widest;
}

Status find_compute_capability(const Problem& p, int& compute_capability) {
  int major = 0, minor = 0;
  for (const auto& [attribute, to] : {std::pair(cudaDevAttrComputeCapabilityMajor, &major),
                                      std::pair(cudaDevAttrComputeCapabilityMinor, &minor)}) {
    PAGEFILL_RETURN_IF_ERROR(cuda_status("cudaDeviceGetAttribute",
                                         cudaDeviceGetAttribute(to, attribute, p.device.index)));
  }
  compute_capability = 10 * major + minor;
  return {};
}

// How many segments the keys of a chunk's rows can lie in.
int64_t max_segments(const Problem& p, const CudaSettings& settings) {
  int64_t keys = settings.max_context_len;
  bool begins_at_zero = !p.kv_start.given();
  if (!p.mask.masked_keys_count && p.mask.sliding_window < keys) {
    const int64_t seen = std::min(keys, p.mask.sliding_window + settings.max_chunk_size - 1);
    begins_at_zero = begins_at_zero && seen == keys;
    keys = seen;
  }
  return ceil_div(keys, kSegmentKv) + (begins_at_zero ? 0 : 1);
}

int64_t max_tiles(const Problem& p, const CudaSettings& settings, int tile_rows) {
  const int64_t per_sequence = ceil_div(settings.max_chunk_size * p.group, tile_rows);
  const int64_t all = ceil_div(p.query.shape[0] * p.group, tile_rows) + p.num_seqs;
  return per_sequence > all / std::max<int64_t>(p.num_seqs, 1) ? all : per_sequence * p.num_seqs;
}

// The rows of a tile and the shared memory of a block: as many rows as fit.
Status fit_shared_memory(const Problem& p, Plan& plan) {
  int most = 0;
  PAGEFILL_RETURN_IF_ERROR(cuda_status(
      "cudaDeviceGetAttribute",
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, p.device.index)));
  most -= kStaticSharedBytes;
  const auto element_size = static_cast<int>(dtype_size(p.key_cache.dtype));
  for (int rows = plan.tile_rows; rows >= kWarpRows; rows /= 2) {
    plan.tile_rows = rows;
    plan.shared_bytes = plan.kernel->shared_bytes(rows, static_cast<int>(p.head_dim), element_size);
    if (plan.shared_bytes <= static_cast<size_t>(most)) break;
  }
  if (plan.shared_bytes > static_cast<size_t>(most)) {
    return Status(StatusCode::kUnsupported,
                  fmt::format("query: expected a head_dim whose tiles fit the {} bytes of shared "
                              "memory of CUDA device {}, got {}, which needs {}",
                              most, p.device.index, p.head_dim, plan.shared_bytes));
  }
  return cuda_status("cudaFuncSetAttribute",
                     cudaFuncSetAttribute(plan.kernel->function,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, most));
}

Status fit_grid(const Problem& p, const CudaSettings& settings, Plan& plan) {
  int per_multiprocessor = 0, multiprocessors = 0;
  PAGEFILL_RETURN_IF_ERROR(cuda_status(
      "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, plan.kernel->function,
                                                    plan.kernel->threads, plan.shared_bytes)));
  PAGEFILL_RETURN_IF_ERROR(cuda_status(
      "cudaDeviceGetAttribute",
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, p.device.index)));
  const int64_t resident = int64_t{std::max(per_multiprocessor, 1)} * multiprocessors;
  const int64_t tiles = max_tiles(p, settings, plan.tile_rows);
  const int64_t tasks_a_tile = p.num_kv_heads * plan.num_value_parts * plan.max_segments;
  plan.num_blocks =
      static_cast<int>(tiles > resident / tasks_a_tile ? resident : tiles * tasks_a_tile);
  plan.num_blocks = std::max(plan.num_blocks, 1);
  return {};
}

// Hands out consecutive pieces of memory, aligned to what a float4 and the L2's lines like.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  template <typename T>
  T* take(int64_t count) {
    std::byte* const at = base_ == nullptr ? nullptr : base_ + used_;
    used_ +=
        static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), kWorkspaceAlignment));
    return reinterpret_cast<T*>(at);
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

Workspace lay_out(const Problem& p, const Plan& plan, Arena& arena) {
  Workspace w;
  w.num_states = plan.num_states;
  w.value_stride = plan.value_stride;
  w.header = arena.take<ScheduleHeader>(1);
  w.sequences = arena.take<SequencePlan>(p.num_seqs);
  if (plan.max_segments > 1) {
    w.totals = arena.take<float>(int64_t{plan.num_blocks} * plan.kernel->total_floats);
  }
  w.partial_states = arena.take<float2>(plan.num_states);
  w.partial_values = arena.take<float>(plan.num_states * plan.value_stride);
  return w;
}

}  // namespace

Status cuda_status(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return {};
  const StatusCode code =
      error == cudaErrorMemoryAllocation ? StatusCode::kResourceExhausted : StatusCode::kInternal;
  return Status(code, fmt::format("cuda: {} failed: {}", what, cudaGetErrorString(error)));
}

Result<Plan> make_plan(const Problem& p, const CudaSettings& settings) {
  Plan plan;
  int compute_capability = 0;
  PAGEFILL_RETURN_IF_ERROR(find_compute_capability(p, compute_capability));
  plan.overlaps = compute_capability >= 90;
  const std::string_view target = wished_target();
  plan.kernel = find_kernel(p, compute_capability, target, Tile::kFewRows);
  PAGEFILL_RETURN_IF_ERROR(check_target(target, plan.kernel));
  if (settings.max_chunk_size > plan.kernel->tile_rows / p.group) {
    plan.kernel = find_kernel(p, compute_capability, target, Tile::kManyRows);
  }
  plan.tile_rows = plan.kernel->tile_rows;
  plan.num_value_parts = static_cast<int>(ceil_div(p.v_head_dim, plan.kernel->value_cols));
  plan.max_segments = std::max<int64_t>(max_segments(p, settings), 1);
  plan.value_stride = static_cast<int>(p.v_head_dim);
  PAGEFILL_RETURN_IF_ERROR(fit_shared_memory(p, plan));
  PAGEFILL_RETURN_IF_ERROR(fit_grid(p, settings, plan));
  if (plan.max_segments > 1) {
    const int64_t tokens =
        std::min(p.query.shape[0], settings.max_chunk_size > p.query.shape[0] / p.num_seqs
                                       ? p.query.shape[0]
                                       : settings.max_chunk_size * p.num_seqs);
    const int64_t state_bytes =
        static_cast<int64_t>(sizeof(float2)) + plan.value_stride * int64_t{sizeof(float)};
    const int64_t most = kMaxPartialBytes / state_bytes, rows = tokens * p.num_q_heads;
    plan.num_states = rows > most / plan.max_segments ? most : rows * plan.max_segments;
  }
  Arena arena(nullptr);
  lay_out(p, plan, arena);
  plan.workspace_bytes = arena.used();
  return plan;
}

Workspace lay_out_workspace(const Problem& p, const Plan& plan, std::byte* base) {
  Arena arena(base);
  return lay_out(p, plan, arena);
}

}  // namespace pagefill::cuda
