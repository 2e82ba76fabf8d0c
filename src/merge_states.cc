#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend.h"
#include "checks.h"
#include "executor_internal.h"
#include "geometry.h"
#include "pagefill/attention.h"

namespace pagefill {
namespace {

constexpr float kNoKeys = -std::numeric_limits<float>::infinity();  // lse of the empty state

struct State {
  TensorView output;
  TensorView lse;
};

struct Weights {
  double a, b, lse;
};

// exp(lse) of the larger state as the unit, so that nothing overflows.
Weights weigh(double lse_a, double lse_b) {
  const double max = std::max(lse_a, lse_b);
  const double a = std::exp(lse_a - max), b = std::exp(lse_b - max);
  return {a / (a + b), b / (a + b), max + std::log(a + b)};
}

// Element offset of a row in an output or an lse.
int64_t row_offset(const TensorView& view, int64_t token, int64_t head) {
  return token * view.strides[0] + head * view.strides[1];
}

float lse_at(const TensorView& lse, int64_t token, int64_t head) {
  return static_cast<const float*>(lse.data)[row_offset(lse, token, head)];
}

// Reads all of a row's numbers before it writes in their place, so `merged` may be a or b. Sums are
// double: what is left is the rounding to float32, and from there to T.
template <typename T>
void merge_row(const State& a, const State& b, const AttentionOutput& merged, int64_t token,
               int64_t head) {
  const T* in_a = static_cast<const T*>(a.output.data) + row_offset(a.output, token, head);
  const T* in_b = static_cast<const T*>(b.output.data) + row_offset(b.output, token, head);
  T* out = static_cast<T*>(merged.output.data) + row_offset(merged.output, token, head);
  const int64_t v_head_dim = merged.output.shape[2];
  const auto size = static_cast<size_t>(v_head_dim) * sizeof(T);
  const float lse_a = lse_at(a.lse, token, head), lse_b = lse_at(b.lse, token, head);
  float lse = kNoKeys;
  if (lse_a == kNoKeys && lse_b == kNoKeys) {
    std::fill_n(out, v_head_dim, T());
  } else if (lse_b == kNoKeys) {
    std::memmove(out, in_a, size);
    lse = lse_a;
  } else if (lse_a == kNoKeys) {
    std::memmove(out, in_b, size);
    lse = lse_b;
  } else {
    const Weights w = weigh(lse_a, lse_b);
    for (int64_t d = 0; d < v_head_dim; ++d) {
      const double x = static_cast<float>(in_a[d]), y = static_cast<float>(in_b[d]);
      out[d] = T(static_cast<float>(w.a * x + w.b * y));
    }
    lse = static_cast<float>(w.lse);
  }
  if (merged.lse.given()) {
    static_cast<float*>(merged.lse.data)[row_offset(merged.lse, token, head)] = lse;
  }
}

using MergeRow = void (*)(const State&, const State&, const AttentionOutput&, int64_t, int64_t);

MergeRow merge_row_of(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return merge_row<bfloat16>;
    case DType::kFloat16:
      return merge_row<float16>;
    default:
      return merge_row<float>;
  }
}

struct Named {
  const char* name;
  TensorView view;
};

Status check_output(const Named& output, const TensorView& like) {
  PAGEFILL_RETURN_IF_ERROR(check_tensor(output.name, output.view,
                                        {{"total_tokens", like.shape[0]},
                                         {"num_q_heads", like.shape[1]},
                                         {"v_head_dim", like.shape[2]}}));
  return check_dtype(output.name, output.view, {like.dtype});
}

Status check_lse(const Named& lse, const TensorView& output) {
  PAGEFILL_RETURN_IF_ERROR(check_tensor(
      lse.name, lse.view, {{"total_tokens", output.shape[0]}, {"num_q_heads", output.shape[1]}}));
  return check_dtype(lse.name, lse.view, {DType::kFloat32});
}

// Element for element the same memory.
bool same_memory(const TensorView& a, const TensorView& b) {
  if (a.data != b.data || a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] > 1 && a.strides[i] != b.strides[i]) return false;
  }
  return true;
}

// Shares nothing with what is read, or is the operand of its own kind in a or b.
Status check_memory(const Named& written, const Named (&own_kind)[2], const Named (&others)[2]) {
  PAGEFILL_RETURN_IF_ERROR(check_distinct_elements(written.name, written.view));
  for (const Named& read : own_kind) {
    if (same_memory(written.view, read.view)) continue;
    PAGEFILL_RETURN_IF_ERROR(check_disjoint(written.name, written.view, read.name, read.view));
  }
  for (const Named& read : others) {
    PAGEFILL_RETURN_IF_ERROR(check_disjoint(written.name, written.view, read.name, read.view));
  }
  return {};
}

Status check_states(const State& a, const State& b, const AttentionOutput& merged) {
  PAGEFILL_RETURN_IF_ERROR(
      check_tensor("output_a", a.output, {{"total_tokens"}, {"num_q_heads"}, {"v_head_dim"}}));
  PAGEFILL_RETURN_IF_ERROR(
      check_dtype("output_a", a.output, {DType::kFloat32, DType::kBFloat16, DType::kFloat16}));
  const Named outputs[] = {{"output_a", a.output}, {"output_b", b.output}};
  const Named lses[] = {{"lse_a", a.lse}, {"lse_b", b.lse}};
  const Named output = {"merged_output", merged.output}, lse = {"merged_lse", merged.lse};
  PAGEFILL_RETURN_IF_ERROR(check_lse(lses[0], a.output));
  PAGEFILL_RETURN_IF_ERROR(check_output(outputs[1], a.output));
  PAGEFILL_RETURN_IF_ERROR(check_lse(lses[1], a.output));
  PAGEFILL_RETURN_IF_ERROR(check_output(output, a.output));
  PAGEFILL_RETURN_IF_ERROR(check_memory(output, outputs, lses));
  if (!merged.lse.given()) return {};
  PAGEFILL_RETURN_IF_ERROR(check_lse(lse, a.output));
  PAGEFILL_RETURN_IF_ERROR(check_memory(lse, lses, outputs));
  return check_disjoint(lse.name, lse.view, output.name, output.view);
}

}  // namespace

Status merge_attention_states(const TensorView& output_a, const TensorView& lse_a,
                              const TensorView& output_b, const TensorView& lse_b,
                              const AttentionOutput& merged, const Context& context) {
  const State a{output_a, lse_a}, b{output_b, lse_b};
  PAGEFILL_RETURN_IF_ERROR(check_same_device({{"output_a", output_a},
                                              {"lse_a", lse_a},
                                              {"output_b", output_b},
                                              {"lse_b", lse_b},
                                              {"merged_output", merged.output},
                                              {"merged_lse", merged.lse}}));
  PAGEFILL_RETURN_IF_ERROR(check_states(a, b, merged));
  const Result<Selection> where = select_backend(context, output_a.device.type);
  if (!where.ok()) return where.status();
  PAGEFILL_RETURN_IF_ERROR(check_cuda_settings(context.cuda, output_a));
  if (output_a.device.type != DeviceType::kCpu) {
    return where->backend->merge_states(
        {output_a, lse_a, output_b, lse_b, merged.output, merged.lse}, where->settings);
  }

  const MergeRow merge = merge_row_of(output_a.dtype);
  const int64_t num_q_heads = output_a.shape[1];
  const int64_t num_rows = output_a.shape[0] * num_q_heads;
  const int64_t bytes = 3 * output_a.num_elements() * dtype_size(output_a.dtype);
  const int num_threads = threads_for_bytes(bytes, where->settings.num_threads);
  const int64_t rows_per_task = ceil_div(num_rows, num_threads);
  return run_parallel(context, num_threads, num_threads, [&](int64_t task) {
    const int64_t begin = task * rows_per_task, end = std::min(begin + rows_per_task, num_rows);
    for (int64_t row = begin; row < end; ++row) {
      merge(a, b, merged, row / num_q_heads, row % num_q_heads);
    }
  });
}

}  // namespace pagefill
