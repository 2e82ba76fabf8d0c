// New keys and values into their slots: a warp a row of a cache.
#include "backends/cuda/device/elements.cuh"
#include "backends/cuda/device/find.cuh"
#include "backends/cuda/kernels.h"

namespace pagefill::cuda {
namespace {

constexpr int kAppendThreads = 256;

// The sequence of a token: the last one that begins at it or before. 32 of them a step.
__device__ int64_t sequence_of(const AppendArguments& a, int64_t token) {
  if (a.query_starts.data == nullptr) return 0;
  const int lane = threadIdx.x % 32;
  int64_t begin = 0, count = a.num_seqs;
  while (count > 1) {
    const int64_t step = (count + 31) / 32, at = begin + lane * step;
    const bool is_before = at < begin + count && a.query_starts[at] <= token;
    const int64_t steps = max(__popc(__ballot_sync(~0u, is_before)) - 1, 0);
    count = min(step, count - steps * step);
    begin += steps * step;
  }
  return begin;
}

// Where a token goes; page -1: nowhere, which is reported.
struct Slot {
  int64_t page, slot;
};

__device__ Slot slot_of(const AppendArguments& a, int64_t s, int64_t token) {
  constexpr Slot kNowhere{-1, 0};
  const int32_t start = a.query_starts.data == nullptr ? 0 : a.query_starts[s];
  const int32_t end =
      a.query_starts.data == nullptr ? static_cast<int32_t>(a.total_tokens) : a.query_starts[s + 1];
  if (token >= end) return kNowhere;  // padding
  const int64_t context_len = a.context_lens[s];
  const int64_t kv_start = a.kv_start.data == nullptr ? 0 : a.kv_start[s];
  const int64_t position = context_len - (end - start) + (token - start);
  const int64_t in_table = position - kv_start, entry_index = in_table / a.page_size;
  if (position < 0 || entry_index >= a.max_pages) {
    report(a.status, CudaStatusCode::kContextLens, s, 0, a.context_lens[s]);
    return kNowhere;
  }
  if (kv_start < 0 || in_table < 0) {
    report(a.status, CudaStatusCode::kKvStart, s, 0, static_cast<int32_t>(kv_start));
    return kNowhere;
  }
  const int32_t page = a.page_table[s * a.table_seq_stride + entry_index * a.table_entry_stride];
  if (page < 0 || page >= a.total_num_pages) {
    report(a.status, CudaStatusCode::kPageTable, s, entry_index, page);
    return kNowhere;
  }
  return {page, in_table % a.page_size};
}

// The scale of a slot: chosen and kept, or given.
__device__ float scale_of(const AppendRows& t, DType tokens, DType cache, const void* row, int head,
                          Slot slot) {
  if (t.chosen_scale == nullptr) {
    if (t.scale == nullptr) return 1;
    return t.scale[head * t.scale_head_stride + slot.page * t.scale_page_stride +
                   slot.slot * t.scale_slot_stride];
  }
  int32_t bits = 0;
  for (int d = threadIdx.x % 32; d < t.dim; d += 32) {
    bits = max(bits, magnitude_bits(load_element(row, tokens, d)));
  }
  const float scale = chosen_scale(cache, __reduce_max_sync(~0u, bits));
  t.chosen_scale[head * t.chosen_head_stride + slot.page * t.chosen_page_stride +
                 slot.slot * t.chosen_slot_stride] = scale;
  return scale;
}

__global__ void __launch_bounds__(kAppendThreads)
    append(const __grid_constant__ AppendArguments a) {
  const int64_t index = (int64_t{blockIdx.x} * kAppendThreads + threadIdx.x) / 32;
  const int64_t rows_a_token = int64_t{a.num_kv_heads} * 2;
  const int64_t token = index / rows_a_token;
  if (token >= a.total_tokens) return;
  const int head = static_cast<int>(index % rows_a_token / 2);
  const AppendRows& t = index % 2 == 0 ? a.keys : a.values;
  const Slot slot = slot_of(a, sequence_of(a, token), token);
  if (slot.page < 0) return;
  const char* const from =
      static_cast<const char*>(t.tokens) +
      (token * t.token_stride + head * t.token_head_stride) * a.tokens_element_size;
  char* const to =
      static_cast<char*>(t.cache) + (head * t.cache_head_stride + slot.page * t.cache_page_stride +
                                     slot.slot * t.cache_slot_stride) *
                                        a.cache_element_size;
  const float scale = is_quantised(a.cache_dtype)
                          ? scale_of(t, a.tokens_dtype, a.cache_dtype, from, head, slot)
                          : 1.0f;
  for (int d = threadIdx.x % 32; d < t.dim; d += 32) {
    copy_element(from, a.tokens_dtype, to, a.cache_dtype, d, scale);
  }
}

}  // namespace

cudaError_t launch_append(const AppendArguments& a, cudaStream_t stream) {
  const int64_t threads = a.total_tokens * a.num_kv_heads * 2 * 32;
  void* arguments[] = {const_cast<AppendArguments*>(&a)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(&append),
                          dim3(static_cast<unsigned>(ceil_div(threads, kAppendThreads))),
                          dim3(kAppendThreads), arguments, 0, stream);
}

}  // namespace pagefill::cuda
