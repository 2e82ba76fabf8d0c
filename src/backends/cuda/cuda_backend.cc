#include "backends/cuda/cuda_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "backends/cuda/config.h"
#include "backends/cuda/device_guard.h"
#include "backends/cuda/plan.h"
#include "backends/cuda/sm90/tensor_maps.h"
#include "checks.h"

namespace pagefill {
namespace {

using cuda::Arguments;
using cuda::CacheView;
using cuda::Integers;
using cuda::Plan;
using cuda::Rows;
using cuda::SoftCap;

constexpr float kLog2E = std::numbers::log2e_v<float>;
constexpr int kFloat16WeightShift = 15;

// The widest vector that every row of the tensor begins at a multiple of: 16, 8, 4, 2 or 1 bytes.
int vector_bytes(const TensorView& view) {
  uint64_t bits = reinterpret_cast<uintptr_t>(view.data) | 16;
  for (int i = 0; i + 1 < view.rank; ++i)
    bits |= static_cast<uint64_t>(view.strides[i] * dtype_size(view.dtype));
  return static_cast<int>(bits & -bits);
}

Integers integers(const TensorView& view) {
  return {static_cast<const int32_t*>(view.data), view.strides[0]};
}

Rows rows(const TensorView& view) {
  if (!view.given()) return {};
  return {const_cast<void*>(view.data), view.strides[0], view.strides[1], vector_bytes(view)};
}

CacheView cache_view(const TensorView& cache, const CacheScale& scale) {
  return {cache.data,         cache.strides[0],  cache.strides[1],
          cache.strides[2],   scale.data,        scale.head_stride,
          scale.page_stride,  scale.slot_stride, static_cast<int>(cache.shape[3]),
          vector_bytes(cache)};
}

// An int32 position is below 2^31, so that a larger page or table is as good as one of that size.
int32_t clamp_to_int32(int64_t x) {
  return static_cast<int32_t>(std::min<int64_t>(x, std::numeric_limits<int32_t>::max()));
}

// tanh(x) / x in powers of x^2, up to kSmallTanh: off by 1.5 * 2^-24, relative.
constexpr double kTanh[] = {1, -0.33332598, 0.13313116, -0.05221179, 0.015612612};

// `constant`: x over the number that the kernel has.
SoftCap soft_cap(double cap, double constant) {
  SoftCap c;
  const double factor = cap * std::numbers::log2e;
  c.cap = static_cast<float>(factor);
  double power = constant;
  for (int i = 0; i < 5; ++i, power *= constant * constant)
    c.odd[i] = static_cast<float>(factor * kTanh[i] * power);
  c.exponent = static_cast<float>(2 * std::numbers::log2e * constant);
  return c;
}

// Whether neither a coefficient nor its product with the numbers that it is for is near an end of float32's range.
bool is_in_range(const SoftCap& c) {
  const auto holds = [](float x) { return std::abs(x) > 0x1p-100f && std::abs(x) < 0x1p+60f; };
  return std::all_of(std::begin(c.odd), std::end(c.odd), holds) && holds(c.exponent);
}

Status check_counts(const Problem& p) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (p.num_q_heads > kMost || p.num_seqs > kMost) {
    return Status(StatusCode::kUnsupported,
                  fmt::format("query: expected fewer than 2^31 heads and sequences on the cuda "
                              "backend, got {} and {}",
                              p.num_q_heads, p.num_seqs));
  }
  return {};
}

Arguments arguments_of(const Problem& p, const Plan& plan, const RunSettings& settings) {
  Arguments a;
  a.query = rows(p.query);
  a.output = rows(p.output);
  a.lse = rows(p.lse);
  a.keys = cache_view(p.key_cache, p.key_scale);
  a.values = cache_view(p.value_cache, p.value_scale);
  a.query_starts = integers(p.query_starts);
  a.context_lens = integers(p.context_lens);
  a.kv_start = integers(p.kv_start);
  a.page_table = static_cast<const int32_t*>(p.page_table.data);
  a.table_seq_stride = p.page_table.strides[0];
  a.table_entry_stride = p.page_table.strides[1];
  a.sinks = static_cast<const float*>(p.sinks.data);
  a.sinks_stride = p.sinks.strides[0];
  a.status = static_cast<int32_t*>(settings.cuda.status.data);
  a.workspace = cuda::lay_out_workspace(p, plan, settings.workspace.data());

  a.num_seqs = p.num_seqs;
  a.total_tokens = p.query.shape[0];
  a.max_chunk_size = settings.cuda.max_chunk_size;
  a.max_context_len = settings.cuda.max_context_len;
  a.total_num_pages = p.key_cache.shape[1];
  a.max_pages = clamp_to_int32(p.page_table.shape[1]);
  a.page_size = clamp_to_int32(p.page_size);
  a.page_size_divisor = cuda::Divisor(a.page_size);
  a.num_q_heads = static_cast<int>(p.num_q_heads);
  a.num_kv_heads = static_cast<int>(p.num_kv_heads);
  a.group = static_cast<int>(p.group);
  a.num_value_parts = plan.num_value_parts;
  a.group_divisor = cuda::Divisor(a.group);
  a.kv_head_divisor = cuda::Divisor(a.num_kv_heads);
  a.value_part_divisor = cuda::Divisor(a.num_value_parts);
  a.tile_rows = plan.tile_rows;
  a.num_blocks = plan.num_blocks;
  a.schedules_itself = plan.schedules_itself;
  a.part_segments = plan.kernel->part_segments;
  a.query_dtype = p.query.dtype;
  a.cache_dtype = p.key_cache.dtype;
  a.cache_element_size = static_cast<int>(dtype_size(p.key_cache.dtype));

  const bool is_same = plan.kernel->cache == cuda::Cache::kSame;  // no scales beside the factor
  a.score_factor = p.softmax_scale * kLog2E;
  if (p.attn_logits_soft_cap) {
    const double cap = *p.attn_logits_soft_cap;
    a.score_factor = p.softmax_scale / *p.attn_logits_soft_cap;
    a.soft_cap = soft_cap(cap, 1);
    const SoftCap folded = soft_cap(cap, p.softmax_scale / cap);
    if (is_same && is_in_range(folded)) a.score_factor = 1, a.soft_cap = folded;
  }
  a.mask_value = p.mask.masked_keys_count ? p.mask_value * kLog2E : 0;
  const bool has_float16_weights =
      p.query.dtype == DType::kFloat16 && p.key_cache.dtype == DType::kFloat16;
  a.weight_shift = has_float16_weights ? kFloat16WeightShift : 0;
  const bool is_plain =
      is_same && !p.attn_logits_soft_cap && !p.mask.masked_keys_count && a.score_factor > 0;
  if (is_plain) std::swap(a.score_factor, a.weight_factor);
  a.mask = p.mask;
  a.row_mask = {clamp_to_int32(p.mask.sliding_window), p.mask.masked_keys_count};
  return a;
}

cuda::AppendRows append_rows(const Transfer& t) {
  cuda::AppendRows rows;
  rows.tokens = t.tokens.data;
  rows.token_stride = t.tokens.strides[0], rows.token_head_stride = t.tokens.strides[1];
  rows.cache = t.cache.data;
  rows.cache_head_stride = t.cache.strides[0], rows.cache_page_stride = t.cache.strides[1];
  rows.cache_slot_stride = t.cache.strides[2];
  rows.scale = t.scale.data;
  rows.scale_head_stride = t.scale.head_stride, rows.scale_page_stride = t.scale.page_stride;
  rows.scale_slot_stride = t.scale.slot_stride;
  rows.chosen_scale = static_cast<float*>(t.chosen_scale.data);
  rows.chosen_head_stride = t.chosen_scale.strides[0];
  rows.chosen_page_stride = t.chosen_scale.strides[1];
  rows.chosen_slot_stride = t.chosen_scale.strides[2];
  rows.dim = static_cast<int>(t.cache.shape[3]);
  return rows;
}

cuda::CopyRows copy_rows(const MutableTensorView& view) {
  if (!view.given()) return {};
  const auto size = static_cast<int64_t>(dtype_size(view.dtype));
  cuda::CopyRows rows{static_cast<char*>(view.data), view.strides[0] * size, view.strides[1] * size,
                      view.strides[2] * size, (view.rank == 4 ? view.shape[3] : 1) * size};
  uint64_t bits = reinterpret_cast<uintptr_t>(view.data) | 16;
  for (const int64_t bytes : {rows.head_stride, rows.page_stride, rows.slot_stride, rows.row_bytes})
    bits |= static_cast<uint64_t>(bytes);
  rows.vector_bytes = static_cast<int>(bits & -bits);
  return rows;
}

template <typename Arguments>
void fill_copy_rows(const CopyProblem& p, Arguments& a) {
  a.rows[0] = copy_rows(p.key_cache), a.rows[1] = copy_rows(p.value_cache);
  a.rows[2] = copy_rows(p.key_scale), a.rows[3] = copy_rows(p.value_scale);
  a.num_kv_heads = static_cast<int>(p.key_cache.shape[0]);
}

cuda::ListedCopyArguments listed_copy_arguments(const CopyProblem& p, const RunSettings& settings) {
  cuda::ListedCopyArguments a;
  fill_copy_rows(p, a);
  a.listed = static_cast<const int32_t*>(p.listed.data);
  a.copy_stride = p.listed.strides[0], a.number_stride = p.listed.strides[1];
  a.num_copies = p.listed.shape[0];
  a.total_num_pages = p.key_cache.shape[1], a.page_size = p.key_cache.shape[2];
  a.status = static_cast<int32_t*>(settings.cuda.status.data);
  return a;
}

// A copy that reads or writes what an earlier one of these writes, or writes what it reads, has to wait.
bool must_wait(const cuda::CopyArguments& a, const PageCopy& copy) {
  for (int i = 0; i < a.num_copies; ++i) {
    const auto& earlier = a.copies[i];
    if (earlier.destination == copy.source || earlier.destination == copy.destination ||
        earlier.source == copy.destination) {
      return true;
    }
  }
  return false;
}

std::string find_reason() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();  // it is no error of the caller's
    int driver = 0;      // stays 0 where there is none
    cudaDriverGetVersion(&driver);
    return driver == 0 ? "no NVIDIA driver" : cudaGetErrorString(error);
  }
  for (int i = 0; i < count; ++i) {
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i) == cudaSuccess &&
        major >= 8) {
      return {};
    }
  }
  return "no device of compute capability 8.0 or more";
}

class CudaBackend final : public Backend {
 public:
  const char* name() const override { return "cuda"; }
  const char* description() const override {
    return "NVIDIA GPUs of compute capability 8.0 and more, on memory of the device; on 9.0 "
           "kernels of its own "
           "(sm90) where query and cache are both bfloat16 or float16 and head dims at most 256";
  }
  std::string unavailable_reason() const override {
    static const std::string reason = find_reason();
    return reason;
  }
  DeviceType memory() const override { return DeviceType::kCuda; }
  bool half_weights() const override { return true; }

  Result<size_t> workspace_size(const Problem& p, const RunSettings& settings) const override {
    if (is_empty(p)) return size_t{0};
    PAGEFILL_RETURN_IF_ERROR(check_counts(p));
    const Result<Plan> plan = cuda::make_plan(p, settings.cuda);
    if (!plan.ok()) return plan.status();
    return plan->workspace_bytes;
  }

  Status run(const Problem& p, const RunSettings& settings, CallReport* report) const override {
    report->num_threads = 1;
    if (is_empty(p)) return {};
    const cuda::DeviceGuard guard(p.device.index);
    PAGEFILL_RETURN_IF_ERROR(guard.status());
    const Result<Plan> plan = cuda::make_plan(p, settings.cuda);
    if (!plan.ok()) return plan.status();
    report->target = plan->kernel->target;
    return launch(arguments_of(p, *plan, settings), *plan,
                  {static_cast<cudaStream_t>(settings.cuda.stream), plan->overlaps});
  }

  Status append_kv(const AppendProblem& p, const RunSettings& settings) const override {
    const Problem& batch = p.batch;
    cuda::AppendArguments a;
    a.keys = append_rows(p.keys), a.values = append_rows(p.values);
    a.query_starts = integers(batch.query_starts), a.context_lens = integers(batch.context_lens);
    a.kv_start = integers(batch.kv_start);
    a.page_table = static_cast<const int32_t*>(batch.page_table.data);
    a.table_seq_stride = batch.page_table.strides[0];
    a.table_entry_stride = batch.page_table.strides[1];
    a.status = static_cast<int32_t*>(settings.cuda.status.data);
    a.num_seqs = batch.num_seqs, a.total_tokens = p.keys.tokens.shape[0];
    a.total_num_pages = batch.key_cache.shape[1], a.max_pages = batch.page_table.shape[1];
    a.page_size = batch.page_size;
    a.num_kv_heads = static_cast<int>(batch.key_cache.shape[0]);
    a.tokens_dtype = p.keys.tokens.dtype, a.cache_dtype = batch.key_cache.dtype;
    a.tokens_element_size = static_cast<int>(dtype_size(a.tokens_dtype));
    a.cache_element_size = static_cast<int>(dtype_size(a.cache_dtype));
    if (a.num_seqs == 0 || a.total_tokens == 0) return {};
    const cuda::DeviceGuard guard(batch.device.index);
    PAGEFILL_RETURN_IF_ERROR(guard.status());
    return cuda::cuda_status(
        "append_kv", cuda::launch_append(a, static_cast<cudaStream_t>(settings.cuda.stream)));
  }

  Status copy_pages(const CopyProblem& p, const RunSettings& settings) const override {
    const cuda::DeviceGuard guard(p.key_cache.device.index);
    PAGEFILL_RETURN_IF_ERROR(guard.status());
    const auto stream = static_cast<cudaStream_t>(settings.cuda.stream);
    if (p.listed.given()) {
      return cuda::cuda_status(
          "copy_pages", cuda::launch_listed_copy(listed_copy_arguments(p, settings), stream));
    }
    cuda::CopyArguments a;
    fill_copy_rows(p, a);
    for (const PageCopy& copy : p.copies) {
      if (a.num_copies == cuda::CopyArguments::kMaxCopies || must_wait(a, copy)) {
        PAGEFILL_RETURN_IF_ERROR(cuda::cuda_status("copy_pages", cuda::launch_copy(a, stream)));
        a.num_copies = 0;
      }
      a.copies[a.num_copies++] = {copy.source, copy.destination, copy.num_slots};
    }
    return cuda::cuda_status("copy_pages", cuda::launch_copy(a, stream));
  }

  Status merge_states(const MergeProblem& p, const RunSettings& settings) const override {
    cuda::MergeArguments a;
    a.output_a = rows(p.output_a), a.lse_a = rows(p.lse_a);
    a.output_b = rows(p.output_b), a.lse_b = rows(p.lse_b);
    a.output = rows(p.output), a.lse = rows(p.lse);
    a.num_q_heads = p.output_a.shape[1], a.v_head_dim = p.output_a.shape[2];
    a.num_rows = p.output_a.shape[0] * a.num_q_heads;
    a.dtype = p.output_a.dtype;
    a.element_size = static_cast<int>(dtype_size(a.dtype));
    if (a.num_rows == 0) return {};
    const cuda::DeviceGuard guard(p.output_a.device.index);
    PAGEFILL_RETURN_IF_ERROR(guard.status());
    return cuda::cuda_status(
        "merge_attention_states",
        cuda::launch_merge(a, static_cast<cudaStream_t>(settings.cuda.stream)));
  }

 private:
  static bool is_empty(const Problem& p) { return p.num_seqs == 0 || p.query.shape[0] == 0; }

  static Status launch(Arguments a, const Plan& plan, const cuda::Stream& stream) {
    if (!plan.schedules_itself) {
      PAGEFILL_RETURN_IF_ERROR(cuda::cuda_status("schedule", cuda::launch_schedule(a, stream)));
    }
    cuda::sm90::TensorMaps maps{};
    if (plan.kernel->box_keys > 0) maps = cuda::sm90::make_tensor_maps(a, plan.kernel->box_keys);
    void* arguments[] = {&a, &maps};  // the portable kernels take the first
    PAGEFILL_RETURN_IF_ERROR(cuda::cuda_status(
        "forward", cuda::launch(plan.kernel->function, plan.num_blocks, plan.kernel->threads,
                                plan.shared_bytes, arguments, stream)));
    if (plan.num_states == 0) return {};
    return cuda::cuda_status("combine", cuda::launch_combine(a, stream));
  }
};

}  // namespace

const Backend* cuda_backend() {
  static const CudaBackend backend;
  return &backend;
}

}  // namespace pagefill
