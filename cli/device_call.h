// The operator's two calls for operands that lie on the host, whatever memory the backend works on: where it
// is a device's, operands are copied there and results back. What the device reports as bad is an error that
// names it.
#pragma once

#include "pagefill/attention.h"

namespace pagefill::cli {

Status prefill_from_host(const TensorView& query, const TensorView& key_cache,
                         const TensorView& value_cache, const TensorView& context_len,
                         const TensorView& page_indices, const AttentionOptions& options,
                         const AttentionOutput& output, const Context& context);

Status ragged_from_host(const TensorView& query, const TensorView& key_cache,
                        const TensorView& value_cache, const TensorView& query_starts,
                        const TensorView& context_lens, const TensorView& page_table,
                        const AttentionOptions& options, const AttentionOutput& output,
                        const Context& context);

}  // namespace pagefill::cli
