#include "backends/cuda/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "backends/cuda/config.h"
#include "backends/cuda/device_guard.h"
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

// What the run time says of a device, and of a kernel on it. It is asked once a thread: each answer takes it a lock
// or more, and the answers never change. (cudaDeviceReset forgets that a kernel may have so much shared memory, as it
// forgets all memory; after it a launch fails.)
struct DeviceLimits {
  int device = 0;
  int compute_capability = 0, num_multiprocessors = 0, max_shared_bytes = 0;

  bool answers(int asked) const { return num_multiprocessors > 0 && device == asked; }
};

Result<DeviceLimits> ask_device(int device) {
  DeviceLimits limits{device};
  int major = 0, minor = 0;
  for (const auto& [attribute, to] :
       {std::pair(cudaDevAttrComputeCapabilityMajor, &major),
        std::pair(cudaDevAttrComputeCapabilityMinor, &minor),
        std::pair(cudaDevAttrMultiProcessorCount, &limits.num_multiprocessors),
        std::pair(cudaDevAttrMaxSharedMemoryPerBlockOptin, &limits.max_shared_bytes)}) {
    PAGEFILL_RETURN_IF_ERROR(
        cuda_status("cudaDeviceGetAttribute", cudaDeviceGetAttribute(to, attribute, device)));
  }
  limits.compute_capability = 10 * major + minor;
  limits.max_shared_bytes -= kStaticSharedBytes;
  return limits;
}

struct KernelFit {
  // What is asked.
  const ForwardKernel* kernel = nullptr;
  int device = 0, head_dim = 0, element_size = 0;
  // As many rows of a tile as fit, the shared memory of a block, and the blocks that run at once.
  int tile_rows = 0;
  size_t shared_bytes = 0;
  int64_t num_resident = 0;
  // Whether it is compiled to wait for the kernel before it (ptx/grid.h): PTX of 8.0 on a later device is not.
  bool overlaps = false;

  bool answers(const KernelFit& asked) const {
    return kernel == asked.kernel && device == asked.device && head_dim == asked.head_dim &&
           element_size == asked.element_size;
  }
};

Result<KernelFit> ask_fit(KernelFit fit, const DeviceLimits& limits) {
  const auto most = static_cast<size_t>(limits.max_shared_bytes);
  for (int rows = fit.kernel->tile_rows; rows >= kWarpRows; rows /= 2) {
    fit.tile_rows = rows;
    fit.shared_bytes = fit.kernel->shared_bytes(rows, fit.head_dim, fit.element_size);
    if (fit.shared_bytes <= most) break;
  }
  if (fit.shared_bytes > most) {
    return Status(StatusCode::kUnsupported,
                  fmt::format("query: expected a head_dim whose tiles fit the {} bytes of shared "
                              "memory of CUDA device {}, got {}, which needs {}",
                              most, fit.device, fit.head_dim, fit.shared_bytes));
  }
  const DeviceGuard guard(fit.device);
  PAGEFILL_RETURN_IF_ERROR(guard.status());
  PAGEFILL_RETURN_IF_ERROR(cuda_status(
      "cudaFuncSetAttribute",
      cudaFuncSetAttribute(fit.kernel->function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           limits.max_shared_bytes)));
  cudaFuncAttributes attributes{};
  PAGEFILL_RETURN_IF_ERROR(cuda_status("cudaFuncGetAttributes",
                                       cudaFuncGetAttributes(&attributes, fit.kernel->function)));
  fit.overlaps = attributes.ptxVersion >= 90;
  int per_multiprocessor = 0;
  PAGEFILL_RETURN_IF_ERROR(cuda_status(
      "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, fit.kernel->function,
                                                    fit.kernel->threads, fit.shared_bytes)));
  fit.num_resident = int64_t{std::max(per_multiprocessor, 1)} * limits.num_multiprocessors;
  return fit;
}

// A thread's last answers: of as many devices as a host has, and of more kernels than a model's layers take.
template <typename Answer, size_t kMost>
struct Answers {
  std::array<Answer, kMost> answers{};
  size_t next = 0;

  const Answer& keep(const Answer& answer) {
    Answer& kept = answers[next];
    next = (next + 1) % kMost;
    return kept = answer;
  }
};

Result<DeviceLimits> limits_of(int device) {
  thread_local Answers<DeviceLimits, 16> known;
  for (const DeviceLimits& limits : known.answers) {
    if (limits.answers(device)) return limits;
  }
  const Result<DeviceLimits> asked = ask_device(device);
  return asked.ok() ? known.keep(*asked) : asked;
}

Result<KernelFit> fit_of(const Problem& p, const ForwardKernel* kernel,
                         const DeviceLimits& limits) {
  thread_local Answers<KernelFit, 16> known;
  const KernelFit question{kernel, limits.device, static_cast<int>(p.head_dim),
                           static_cast<int>(dtype_size(p.key_cache.dtype))};
  for (const KernelFit& fit : known.answers) {
    if (fit.answers(question)) return fit;
  }
  const Result<KernelFit> asked = ask_fit(question, limits);
  return asked.ok() ? known.keep(*asked) : asked;
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

int num_blocks(const Problem& p, const CudaSettings& settings, const Plan& plan,
               int64_t num_resident) {
  const int64_t tiles = max_tiles(p, settings, plan.tile_rows);
  const int64_t tasks_a_tile = p.num_kv_heads * plan.num_value_parts * plan.max_segments;
  const int64_t blocks = tiles > num_resident / tasks_a_tile ? num_resident : tiles * tasks_a_tile;
  return std::max(static_cast<int>(blocks), 1);
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
  const Result<DeviceLimits> limits = limits_of(p.device.index);
  if (!limits.ok()) return limits.status();
  const int compute_capability = limits->compute_capability;
  const std::string_view target = wished_target();
  plan.kernel = find_kernel(p, compute_capability, target, Tile::kFewRows);
  PAGEFILL_RETURN_IF_ERROR(check_target(target, plan.kernel));
  if (settings.max_chunk_size > plan.kernel->tile_rows / p.group) {
    plan.kernel = find_kernel(p, compute_capability, target, Tile::kManyRows);
  }
  const Result<KernelFit> fit = fit_of(p, plan.kernel, *limits);
  if (!fit.ok()) return fit.status();
  plan.overlaps = fit->overlaps;
  plan.tile_rows = fit->tile_rows;
  plan.shared_bytes = fit->shared_bytes;
  plan.num_value_parts = static_cast<int>(ceil_div(p.v_head_dim, plan.kernel->value_cols));
  plan.max_segments = std::max<int64_t>(max_segments(p, settings), 1);
  plan.value_stride = static_cast<int>(p.v_head_dim);
  plan.num_blocks = num_blocks(p, settings, plan, fit->num_resident);
  plan.schedules_itself = plan.kernel->schedules_one && p.num_seqs == 1 &&
                          max_tiles(p, settings, plan.tile_rows) <=
                              plan.num_blocks / (p.num_kv_heads * plan.num_value_parts);
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
