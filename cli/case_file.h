// Case files: a call of the operator in a safetensors file, its tensors under the arguments' names and its
// options as string metadata.
//
//   one sequence   query, key_cache, value_cache, context_len, page_indices
//   ragged batch   query, key_cache, value_cache, query_starts, context_lens, page_table
//   either         sinks, kv_start, key_scale, value_scale; expected...; metadata softmax_scale, attn_logits_soft_cap,
//                  sliding_window, mask_value, description
//
// Whatever else a file holds is refused by name. Shapes, dtypes and values are left to the library, which
// checks them once.
#pragma once

#include <optional>
#include <string>

#include "batch.h"
#include "pagefill/attention.h"
#include "pagefill/status.h"
#include "safetensors.h"
#include "tensor.h"

namespace pagefill::cli {

struct Case {
  std::string description;
  bool is_ragged = false;  // which of the two sets of names the file uses
  Tensor query, key_cache, value_cache;
  Tensor query_starts;  // one sequence: 0 and chunk_size
  Tensor context_lens;  // one sequence: context_len
  Tensor page_table;    // one sequence: page_indices
  std::optional<Tensor> sinks, kv_start, key_scale, value_scale;
  std::optional<Tensor> expected_f64, expected_lse_f64;
  AttentionOptions options;  // without its tensors; batch() adds them

  // The general call's arguments, one sequence being the batch of one. The views are good as long as the
  // case stays where it is.
  Batch batch() const;
};

Result<Case> case_from(Safetensors file);

// Errors begin with the path.
Result<Case> read_case(const std::string& path);

// Runs the call that the file names: prefill_page_attention or ragged_page_attention.
Result<State> attend(const Case& c, const Context& context);

}  // namespace pagefill::cli
