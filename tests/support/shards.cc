#include "support/shards.h"

namespace pagefill::testing {

Shards split_context(const Problem& decode, int64_t split) {
  Shards shards{decode, decode};
  shards.early.sinks.clear();
  shards.late.kv_start_given = true;
  for (Sequence& seq : shards.early.sequences) seq.context_len = split;
  for (Sequence& seq : shards.late.sequences) seq.kv_start = split;
  return shards;
}

TensorView output_view(const Results& r) {
  return {r.output.data(), r.dtype, {r.num_rows(), r.num_q_heads, r.v_head_dim}};
}
MutableTensorView output_view(Results& r) {
  return {r.output.data(), r.dtype, {r.num_rows(), r.num_q_heads, r.v_head_dim}};
}
TensorView lse_view(const Results& r) {
  return {r.lse.data(), DType::kFloat32, {r.num_rows(), r.num_q_heads}};
}
MutableTensorView lse_view(Results& r) {
  return {r.lse.data(), DType::kFloat32, {r.num_rows(), r.num_q_heads}};
}

Status merge(const Results& a, const Results& b, Results& merged) {
  return merge_attention_states(output_view(a), lse_view(a), output_view(b), lse_view(b),
                                {output_view(merged), lse_view(merged)});
}

}  // namespace pagefill::testing
