// Promise 2: a row's bits do not depend on pages, chunks, threads and strides.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "device_call.h"
#include "proof.h"
#include "variants.h"

namespace pagefill::cli {
namespace {

template <typename Pointer>
BasicTensorView<Pointer> from_row(BasicTensorView<Pointer> view, int64_t begin, int64_t count) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const std::byte,
                                  std::byte>;
  view.data = static_cast<Byte*>(view.data) + begin * view.strides[0] * dtype_size(view.dtype);
  view.shape[0] = count;
  return view;
}

// Copies a tensor of rank 3 or 4 into other strides.
void copy_tensor(const TensorView& from, const MutableTensorView& to) {
  const int last = from.rank - 1;
  const int64_t depth = from.rank == 4 ? from.shape[2] : 1;
  for (int64_t i = 0; i < from.shape[0]; ++i) {
    for (int64_t j = 0; j < from.shape[1]; ++j) {
      for (int64_t k = 0; k < depth; ++k) {
        const auto offset = [&](const auto& view) {
          return i * view.strides[0] + j * view.strides[1] + (last == 3 ? k * view.strides[2] : 0);
        };
        copy_elements(from, offset(from), to, offset(to), from.shape[last]);
      }
    }
  }
}

// A piece of a sequence's chunk, as a chunk of its own.
struct Piece {
  int64_t sequence, query_start, num_rows;
  int32_t context_len;
};

std::vector<Piece> cut(const Batch& batch, int64_t chunk_size) {
  std::vector<Piece> pieces;
  for (int64_t s = 0; s < batch.num_seqs(); ++s) {
    for (int64_t row = 0; row < batch.num_rows(s); row += chunk_size) {
      const int64_t end = std::min(row + chunk_size, batch.num_rows(s));
      const int64_t context_len = std::max<int64_t>(batch.position(s, end - 1) + 1, 0);
      pieces.push_back(
          {s, batch.query_start(s) + row, end - row, static_cast<int32_t>(context_len)});
    }
  }
  return pieces;
}

// One call of the operator a piece, as an engine prefills.
Result<State> attend_one_by_one(const Batch& batch, const std::vector<Piece>& pieces,
                                const Context& context) {
  State state = state_for(batch);
  for (const Piece& piece : pieces) {
    TensorView page_indices = from_row(batch.page_table, piece.sequence, 1);
    page_indices.rank = 1;
    page_indices.shape = {batch.page_table.shape[1]};
    page_indices.strides = {batch.page_table.strides[1]};
    AttentionOptions options = batch.options;
    if (options.kv_start.given()) options.kv_start = from_row(options.kv_start, piece.sequence, 1);
    const Status status = prefill_from_host(
        from_row(batch.query, piece.query_start, piece.num_rows), batch.key_cache,
        batch.value_cache, std::span(&piece.context_len, 1), page_indices, options,
        {from_row(state.output.view(), piece.query_start, piece.num_rows),
         from_row(state.lse.view(), piece.query_start, piece.num_rows)},
        context);
    if (!status.ok()) return status;
  }
  return state;
}

// All pieces as sequences of one batch.
Result<State> attend_at_once(const Batch& batch, const std::vector<Piece>& pieces,
                             const Context& context) {
  const int64_t max_pages = batch.page_table.shape[1];
  std::vector<int32_t> query_starts{0}, context_lens, kv_start;
  Tensor page_table =
      Tensor::zeros(DType::kInt32, {static_cast<int64_t>(pieces.size()), max_pages});
  for (const Piece& piece : pieces) {
    TensorView entries = from_row(batch.page_table, piece.sequence, 1);
    copy_elements(entries, 0, page_table.view(), std::ssize(context_lens) * max_pages, max_pages);
    query_starts.push_back(static_cast<int32_t>(piece.query_start + piece.num_rows));
    context_lens.push_back(piece.context_len);
    kv_start.push_back(static_cast<int32_t>(batch.kv_start(piece.sequence)));
  }
  Batch changed = batch;
  changed.query_starts = query_starts;
  changed.context_lens = context_lens;
  changed.page_table = page_table.view();
  if (batch.options.kv_start.given()) changed.options.kv_start = kv_start;
  return attend(changed, context);
}

// Token-major caches [pages, page, num_kv_heads, head_dim], and scales [pages, page, num_kv_heads].
Result<State> attend_token_major(const Batch& batch, const Context& context) {
  Batch changed = batch;
  std::vector<Tensor> memory;
  for (TensorView* cache : {&changed.key_cache, &changed.value_cache}) {
    const auto [heads, pages, slots, head_dim] = cache->shape;
    memory.push_back(Tensor::zeros(cache->dtype, {pages, slots, heads, head_dim}));
    const MutableTensorView to(memory.back().bytes.data(), cache->dtype,
                               {heads, pages, slots, head_dim},
                               {head_dim, slots * heads * head_dim, heads * head_dim, 1});
    copy_tensor(*cache, to);
    *cache = to;
  }
  for (TensorView* scale : {&changed.options.key_scale, &changed.options.value_scale}) {
    if (scale->rank != 3) continue;
    const auto [heads, pages, slots, unused] = scale->shape;
    memory.push_back(Tensor::zeros(scale->dtype, {pages, slots, heads}));
    MutableTensorView to(memory.back().bytes.data(), scale->dtype, {heads, pages, slots, 1},
                         {1, slots * heads, heads, 1});
    TensorView from = *scale;  // a cache of one element a slot
    from.rank = 4;
    from.shape[3] = from.strides[3] = 1;
    copy_tensor(from, to);
    to.rank = 3;
    *scale = to;
  }
  return attend(changed, context);
}

// Each slot's key and value side by side: [pages, page, num_kv_heads, head_dim + v_head_dim].
Result<State> attend_interleaved(const Batch& batch, const Context& context) {
  const auto [heads, pages, slots, head_dim] = batch.key_cache.shape;
  const int64_t v_head_dim = batch.value_cache.shape[3], both = head_dim + v_head_dim;
  const DType dtype = batch.key_cache.dtype;
  Tensor memory = Tensor::zeros(dtype, {pages, slots, heads, both});
  const std::initializer_list<int64_t> strides{both, slots * heads * both, heads * both, 1};
  const MutableTensorView keys(memory.bytes.data(), dtype, {heads, pages, slots, head_dim},
                               strides);
  const MutableTensorView values(memory.bytes.data() + head_dim * dtype_size(dtype), dtype,
                                 {heads, pages, slots, v_head_dim}, strides);
  copy_tensor(batch.key_cache, keys);
  copy_tensor(batch.value_cache, values);
  Batch changed = batch;
  changed.key_cache = keys;
  changed.value_cache = values;
  return attend(changed, context);
}

// Query, output and lse with gaps between their rows; NaN in query's.
Result<State> attend_with_gaps(const Batch& batch, const Context& context) {
  constexpr int64_t kGap = 8;
  const auto [tokens, heads, head_dim, unused] = batch.query.shape;
  const int64_t v_head_dim = batch.value_cache.shape[3];
  Tensor query = filled_with_nan(batch.query.dtype, {tokens, heads, head_dim + kGap});
  Tensor output = Tensor::zeros(batch.query.dtype, {tokens, heads, v_head_dim + kGap});
  Tensor lse = Tensor::zeros(DType::kFloat32, {tokens, heads + kGap});
  MutableTensorView query_view = query.view(), output_view = output.view(), lse_view = lse.view();
  query_view.shape[2] = head_dim;
  output_view.shape[2] = v_head_dim;
  lse_view.shape[1] = heads;
  copy_tensor(batch.query, query_view);

  const Status status = ragged_from_host(query_view, batch.key_cache, batch.value_cache,
                                         batch.query_starts, batch.context_lens, batch.page_table,
                                         batch.options, {output_view, lse_view}, context);
  if (!status.ok()) return status;
  State state = state_for(batch);
  copy_tensor(output_view, state.output.view());
  for (int64_t t = 0; t < tokens; ++t) {
    copy_elements(lse_view, t * lse_view.strides[0], state.lse.view(), t * heads, heads);
  }
  return state;
}

}  // namespace

Result<Proof> prove_invariance(const Claim& claim) {
  Proof proof;
  const Batch batch = claim.c.batch();
  Status status;
  const auto run = [&](std::string_view variant, const std::function<Result<State>()>& variant_of) {
    if (status.ok()) status = run_variant(claim, proof, variant, variant_of);
  };

  for (const int64_t page_size : {1, 3, 16, 64, 100, 528, 1056}) {
    run(fmt::format("pages of {}", page_size),
        [&] { return attend(repaged(claim.c, page_size), claim.context); });
  }
  if (!batch.masked_keys_count()) {
    for (const int64_t chunk_size : {1, 5, 8, 24, 64}) {
      const std::vector<Piece> pieces = cut(batch, chunk_size);
      run(fmt::format("chunks of {}", chunk_size),
          [&] { return attend_one_by_one(batch, pieces, claim.context); });
      run(fmt::format("chunks of {} in one batch", chunk_size),
          [&] { return attend_at_once(batch, pieces, claim.context); });
    }
  }
  for (const int num_threads : {1, 2, 3}) {
    Context context = claim.context;
    context.num_threads = num_threads;
    run(fmt::format("num_threads {}", num_threads), [&] { return attend(batch, context); });
  }
  run("token-major caches", [&] { return attend_token_major(batch, claim.context); });
  run("keys and values interleaved", [&] { return attend_interleaved(batch, claim.context); });
  run("gaps between rows", [&] { return attend_with_gaps(batch, claim.context); });
  if (!status.ok()) return status;
  return proof;
}

}  // namespace pagefill::cli
