#include "demo_engine.h"

#include <algorithm>
#include <new>
#include <random>

#include "device_call.h"
#include "operands.h"

namespace pagefill::cli {
namespace {

constexpr int64_t kQueryWidth = kNumQHeads * kHeadDim;
constexpr int64_t kKvWidth = kNumKvHeads * kHeadDim;

void append_rows(std::vector<float>& to, const std::vector<float>& from, int64_t begin,
                 int64_t count, int64_t width) {
  to.insert(to.end(), from.begin() + begin * width, from.begin() + (begin + count) * width);
}

}  // namespace

Tokens random_tokens(int64_t count, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  Tokens tokens{count, std::vector<float>(count * kQueryWidth),
                std::vector<float>(count * kKvWidth), std::vector<float>(count * kKvWidth)};
  for (std::vector<float>* part : {&tokens.query, &tokens.keys, &tokens.values}) {
    for (float& element : *part) element = normal(engine);
  }
  return tokens;
}

void append_tokens(Tokens& to, const Tokens& from, int64_t begin, int64_t count) {
  append_rows(to.query, from.query, begin, count, kQueryWidth);
  append_rows(to.keys, from.keys, begin, count, kKvWidth);
  append_rows(to.values, from.values, begin, count, kKvWidth);
  to.count += count;
}

// One step's arguments, and whose rows they are.
struct Engine::Batch {
  struct Part {
    Sequence* sequence;
    int64_t num_rows;
  };
  std::vector<Part> parts;
  Tokens tokens;
  std::vector<int32_t> query_starts{0};
  std::vector<int32_t> context_lens;
  std::vector<int32_t> page_table;
  int64_t max_pages = 0;
};

Engine::Engine(PageAllocator allocator, const Context& context)
    : allocator_(std::move(allocator)),
      context_(context),
      on_device_(runs_on_device(context)),
      key_cache_(new_cache()),
      value_cache_(new_cache()) {}

MutableTensorView Engine::new_cache() {
  const int64_t num_pages = allocator_.total_num_pages();
  const int64_t num_elements = num_pages * kPageSize * kKvWidth;
  MutableTensorView cache(static_cast<float*>(nullptr),
                          {kNumKvHeads, num_pages, kPageSize, kHeadDim});
  if (!on_device_) {
    cache.data = memory_.emplace_back(num_elements).data();
    return cache;
  }
  const DeviceMemory& memory = device_memory_.emplace_back(num_elements * sizeof(float));
  if (status_.ok()) status_ = fill_device(memory.data(), 0, memory.size());
  cache.data = memory.data();
  cache.device = kDevice;
  return cache;
}

Result<Engine> Engine::create(int64_t total_num_pages, const Context& context) try {
  Result<PageAllocator> allocator = PageAllocator::create(total_num_pages, kPageSize);
  if (!allocator.ok()) return allocator.status();
  Engine engine(std::move(allocator).value(), context);
  if (!engine.status_.ok()) return engine.status_;
  return engine;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kResourceExhausted, "cache: out of memory");
}

Result<Sequence> Engine::add(std::string name, const Tokens& prompt, int64_t num_decode,
                             uint64_t seed) {
  const Result<PageAllocator::SequenceId> id = allocator_.add_sequence();
  if (!id.ok()) return id.status();
  Sequence sequence{
      .name = std::move(name), .id = *id, .tokens = prompt, .prompt_len = prompt.count};
  append_tokens(sequence.tokens, random_tokens(num_decode, seed), 0, num_decode);
  return sequence;
}

Result<Sequence> Engine::fork(const Sequence& parent, std::string name, const Tokens& prompt,
                              int64_t num_decode, uint64_t seed) {
  const Result<PageAllocator::SequenceId> id = allocator_.fork(parent.id);
  if (!id.ok()) return id.status();
  Sequence sequence{.name = std::move(name),
                    .id = *id,
                    .prompt_len = parent.context_len + prompt.count,
                    .shared_len = parent.context_len,
                    .context_len = parent.context_len,
                    .attended = parent.attended};
  append_tokens(sequence.tokens, parent.tokens, 0, parent.context_len);
  append_tokens(sequence.tokens, prompt, 0, prompt.count);
  append_tokens(sequence.tokens, random_tokens(num_decode, seed), 0, num_decode);
  return sequence;
}

// Makes room for each sequence's next tokens and puts them in a row.
Result<Engine::Batch> Engine::gather(std::vector<Sequence>& sequences) {
  Batch batch;
  std::vector<PageCopy> copies;
  for (Sequence& sequence : sequences) {
    if (sequence.finished()) continue;
    const int64_t prompt_left = sequence.prompt_len - sequence.context_len;
    const int64_t num_rows = prompt_left > 0 ? std::min(prompt_left, kMaxChunk) : 1;
    const auto page_copies = allocator_.append(sequence.id, num_rows);
    if (!page_copies.ok()) return page_copies.status();
    copies.insert(copies.end(), page_copies->begin(), page_copies->end());
    batch.parts.push_back({&sequence, num_rows});
    append_tokens(batch.tokens, sequence.tokens, sequence.context_len, num_rows);
    batch.query_starts.push_back(static_cast<int32_t>(batch.tokens.count));
    batch.context_lens.push_back(static_cast<int32_t>(sequence.context_len + num_rows));
    batch.max_pages =
        std::max(batch.max_pages, (batch.context_lens.back() + kPageSize - 1) / kPageSize);
  }
  for (const Batch::Part& part : batch.parts) {
    const auto pages = allocator_.page_indices(part.sequence->id);
    if (!pages.ok()) return pages.status();
    batch.page_table.insert(batch.page_table.end(), pages->begin(), pages->end());
    const auto padding = batch.max_pages - static_cast<int64_t>(pages->size());
    batch.page_table.insert(batch.page_table.end(), padding, -1);  // never read
  }
  num_copied_pages_ += static_cast<int64_t>(copies.size());
  if (const Status status = copy_pages(copies, key_cache_, value_cache_, {}, context_);
      !status.ok()) {
    return status;
  }
  return batch;
}

Status Engine::step(std::vector<Sequence>& sequences) try {
  const Result<Batch> gathered = gather(sequences);
  if (!gathered.ok()) return gathered.status();
  const Batch& batch = *gathered;
  const int64_t count = batch.tokens.count;
  const auto num_seqs = static_cast<int64_t>(batch.parts.size());
  Attended attended{std::vector<float>(count * kQueryWidth),
                    std::vector<float>(count * kNumQHeads)};
  const AttentionOutput host{
      MutableTensorView(attended.output.data(), {count, kNumQHeads, kHeadDim}),
      MutableTensorView(attended.lse.data(), {count, kNumQHeads})};

  Operands operands(context_, on_device_);
  const auto tokens = [&](const std::vector<float>& rows, int64_t num_heads) {
    return operands.copy(TensorView(rows.data(), {count, num_heads, kHeadDim}));
  };
  const TensorView query = tokens(batch.tokens.query, kNumQHeads),
                   keys = tokens(batch.tokens.keys, kNumKvHeads),
                   values = tokens(batch.tokens.values, kNumKvHeads),
                   query_starts = operands.copy(TensorView(batch.query_starts)),
                   context_lens = operands.copy(TensorView(batch.context_lens)),
                   page_table = operands.copy(
                       TensorView(batch.page_table.data(), {num_seqs, batch.max_pages}));
  const AttentionOutput output{operands.copy(host.output), operands.copy(host.lse)};
  if (!operands.status().ok()) return operands.status();

  Status status = append_kv(keys, values, key_cache_, value_cache_, query_starts, context_lens,
                            page_table, {}, operands.context());
  if (!status.ok()) return status;
  const Result<size_t> size =
      attention_workspace_size(query, key_cache_, value_cache_, query_starts, context_lens,
                               page_table, {}, output, operands.context());
  if (!size.ok()) return size.status();
  operands.give_workspace(*size);
  status = ragged_page_attention(query, key_cache_, value_cache_, query_starts, context_lens,
                                 page_table, {}, output, operands.context());
  if (status.ok()) status = operands.finish();
  if (status.ok()) status = operands.copy_back(output.output, host.output);
  if (status.ok()) status = operands.copy_back(output.lse, host.lse);
  if (!status.ok()) return status;

  int64_t row = 0;
  for (const auto& [sequence, num_rows] : batch.parts) {
    append_rows(sequence->attended.output, attended.output, row, num_rows, kQueryWidth);
    append_rows(sequence->attended.lse, attended.lse, row, num_rows, kNumQHeads);
    const bool is_prompt = sequence->context_len < sequence->prompt_len;
    ++(is_prompt ? sequence->num_chunks : sequence->num_decoded);
    sequence->context_len += num_rows;
    row += num_rows;
  }
  return {};
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kResourceExhausted, "tokens: out of memory");
}

Result<Attended> whole_prefill(const Tokens& tokens, const Context& context) {
  const int64_t count = tokens.count;
  const std::vector<int32_t> context_len{static_cast<int32_t>(count)};
  const std::vector<int32_t> page_indices{0};
  // The projections' [tokens, heads, head_dim] is read in place as a cache of one page.
  const auto one_page = [count](const std::vector<float>& rows) {
    return TensorView(rows.data(), {kNumKvHeads, 1, count, kHeadDim},
                      {kHeadDim, count * kKvWidth, kKvWidth, 1});
  };
  Attended attended{std::vector<float>(count * kQueryWidth),
                    std::vector<float>(count * kNumQHeads)};
  const Status status = prefill_from_host(
      TensorView(tokens.query.data(), {count, kNumQHeads, kHeadDim}), one_page(tokens.keys),
      one_page(tokens.values), context_len, page_indices, {},
      {MutableTensorView(attended.output.data(), {count, kNumQHeads, kHeadDim}),
       MutableTensorView(attended.lse.data(), {count, kNumQHeads})},
      context);
  if (!status.ok()) return status;
  return attended;
}

}  // namespace pagefill::cli
