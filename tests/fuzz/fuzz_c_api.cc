// Calls of the C interface with arbitrary shapes, strides, dtypes, options, lengths and table entries.
// What validation lets through is run; AddressSanitizer and UndefinedBehaviorSanitizer watch.
#include <fuzzer/FuzzedDataProvider.h>
#include <pagefill/pagefill.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "c_api_tensor.h"

namespace pagefill::fuzzing {
namespace {

// (query, key) products of one call that are worth waiting for: a millisecond or two, sanitizers included.
constexpr double kMaxWork = 1 << 16;
// Copies of a tensor whose rows may all lie in one place.
constexpr int64_t kMostListed = 64;

void require(bool condition) {
  if (!condition) std::abort();
}

// An error is one of the enum, has a message of one line, and has left what is written as it was.
void check_outcome(pagefill_status status, bool untouched) {
  require(status >= PAGEFILL_OK && status <= PAGEFILL_CANCELLED);
  if (status == PAGEFILL_OK) return;
  const std::string message = pagefill_last_error_message();
  require(!message.empty() && message.find('\n') == std::string::npos);
  require(untouched);
  require(status != PAGEFILL_INTERNAL);
}

void run_in_turn(void*, int64_t num_tasks, void (*task)(void*, int64_t), void* argument) {
  for (int64_t i = 0; i < num_tasks; ++i) task(argument, i);
}

// Where a call runs: never on threads of its own, so that a crash can be repeated.
struct Where {
  pagefill_executor executor = pagefill_executor_init();
  pagefill_call_report report = pagefill_call_report_init();
  int32_t status_numbers[4] = {};
  const int64_t status_shape[1] = {4};
  pagefill_tensor status = pagefill_tensor_init(status_numbers, PAGEFILL_INT32, 1, status_shape);
  pagefill_context context = pagefill_context_init();
  std::unique_ptr<std::byte, decltype(&std::free)> workspace{nullptr, std::free};

  explicit Where(FuzzedDataProvider& bytes) {
    executor.parallel_for = run_in_turn;
    executor.num_threads = bytes.ConsumeIntegralInRange(0, 4) + 1;
    if (Tensor::odd(bytes)) executor.num_threads = bytes.ConsumeIntegralInRange(-1, 64);
    if (Tensor::odd(bytes)) executor.struct_size = 0;
    context.executor = &executor;
    context.backend = bytes.PickValueInArray({"cpu", "reference", "cpu", "abacus"});
    if (Tensor::odd(bytes)) context.num_threads = bytes.ConsumeIntegral<int32_t>();
    context.report = &report;
    // Of a device's calls only, so that any of them is an error here, and never followed.
    if (Tensor::odd(bytes)) context.cuda_stream = &executor;
    if (Tensor::odd(bytes)) context.cuda_max_chunk_size = bytes.ConsumeIntegral<int64_t>();
    if (Tensor::odd(bytes)) context.cuda_max_context_len = bytes.ConsumeIntegral<int64_t>();
    if (Tensor::odd(bytes)) context.cuda_status = &status;
  }

  // To the byte, so that a write behind it is seen.
  void give_workspace(size_t size) {
    void* memory = nullptr;
    require(posix_memalign(&memory, PAGEFILL_WORKSPACE_ALIGNMENT, size) == 0);
    workspace.reset(static_cast<std::byte*>(memory));
    context.workspace = size == 0 ? nullptr : memory;
    context.workspace_size = size;
  }
};

struct Options {
  pagefill_attention_options options = pagefill_attention_options_init();
  Tensor sinks, kv_start;

  Options(FuzzedDataProvider& bytes, int64_t num_q_heads, int64_t num_seqs)
      : sinks(bytes, PAGEFILL_FLOAT32, {num_q_heads}),
        kv_start(bytes, {num_seqs}, 8, [](int64_t) { return 0; }) {
    options.flags = bytes.ConsumeIntegralInRange(0, 15);
    const auto number = [&](uint32_t flag, float usual) {
      if (Tensor::odd(bytes)) return bytes.ConsumeFloatingPoint<float>();
      return (options.flags & flag) != 0 ? usual : 0.0f;
    };
    options.softmax_scale = number(PAGEFILL_HAS_SOFTMAX_SCALE, 0.25f);
    options.attn_logits_soft_cap = number(PAGEFILL_HAS_ATTN_LOGITS_SOFT_CAP, 3.0f);
    options.mask_value = number(PAGEFILL_HAS_MASK_VALUE, bytes.ConsumeBool() ? -1.0f : -1e9f);
    if ((options.flags & PAGEFILL_HAS_SLIDING_WINDOW) != 0) {
      options.sliding_window = bytes.ConsumeIntegralInRange<int64_t>(1, 16);
      if (Tensor::odd(bytes)) options.sliding_window = bytes.ConsumeIntegral<int64_t>();
    }
    if (Tensor::odd(bytes)) options.flags = bytes.ConsumeIntegral<uint32_t>();
    if (Tensor::odd(bytes)) options.struct_size = bytes.ConsumeIntegral<size_t>();
    if (bytes.ConsumeBool()) options.sinks = sinks.get();
    if (bytes.ConsumeBool()) options.kv_start = kv_start.get();
  }
};

// The extents of a call that fits together.
struct Extents {
  int64_t num_seqs, chunk, num_kv_heads, group, head_dim, v_head_dim, pages, page_size, max_pages;
  int32_t dtype, cache_dtype;

  explicit Extents(FuzzedDataProvider& bytes)
      : num_seqs(1 + bytes.ConsumeIntegralInRange(0, 3)),
        chunk(1 + bytes.ConsumeIntegralInRange(0, 7)),
        num_kv_heads(1 + bytes.ConsumeIntegralInRange(0, 1)),
        group(1 + bytes.ConsumeIntegralInRange(0, 3)),
        head_dim(8 * (1 + bytes.ConsumeIntegralInRange(0, 3))),
        v_head_dim(8 * (1 + bytes.ConsumeIntegralInRange(0, 3))),
        pages(8 + bytes.ConsumeIntegralInRange(0, 8)),
        page_size(4 + bytes.ConsumeIntegralInRange(-3, 16)),
        max_pages(4 + bytes.ConsumeIntegralInRange(0, 4)),
        dtype(bytes.ConsumeIntegralInRange(0, 2)),
        cache_dtype(
            bytes.PickValueInArray({PAGEFILL_FLOAT32, PAGEFILL_BFLOAT16, PAGEFILL_FLOAT16,
                                    PAGEFILL_INT8, PAGEFILL_FLOAT8_E4M3, PAGEFILL_FLOAT8_E5M2})) {}

  bool quantised() const { return cache_dtype >= PAGEFILL_INT8; }

  int64_t tokens() const { return num_seqs * chunk; }
  int64_t num_q_heads() const { return num_kv_heads * group; }
};

// A scale of any of the shapes; drawn after all else, so that the corpus says what it said.
Tensor scale_of(FuzzedDataProvider& bytes, const Extents& e) {
  switch (bytes.ConsumeIntegralInRange(0, 2)) {
    case 0:
      return Tensor(bytes, PAGEFILL_FLOAT32, {1});
    case 1:
      return Tensor(bytes, PAGEFILL_FLOAT32, {e.num_kv_heads});
    default:
      return Tensor(bytes, PAGEFILL_FLOAT32, {e.num_kv_heads, e.pages, e.page_size});
  }
}

// Mostly with a quantised cache, where it is not refused.
bool scale_given(FuzzedDataProvider& bytes, const Extents& e) {
  return e.quantised() ? bytes.ConsumeBool() : Tensor::odd(bytes);
}

struct Batch {
  Tensor query_starts, context_lens, page_table;

  Batch(FuzzedDataProvider& bytes, const Extents& e)
      : query_starts(bytes, {e.num_seqs + 1}, e.tokens(), [&](int64_t i) { return i * e.chunk; }),
        context_lens(bytes, {e.num_seqs}, e.max_pages * e.page_size,
                     [&](int64_t) {
                       return bytes.ConsumeIntegralInRange<int64_t>(0, e.max_pages * e.page_size);
                     }),
        page_table(bytes, {e.num_seqs, e.max_pages}, e.pages,
                   [&](int64_t i) { return i % e.pages; }) {}

  bool exists() const {
    return query_starts.exists() && context_lens.exists() && page_table.exists();
  }
  // Pages that validation may walk, and keys that a row may see.
  bool worth_running(const Extents& e, double rows) const {
    const double seqs = static_cast<double>(std::max(context_lens.extent(0), e.num_seqs));
    const double pages = static_cast<double>(std::max(page_table.extent(1), e.max_pages));
    const double keys = static_cast<double>(context_lens.largest<int32_t>());
    return seqs * pages < kMaxWork && rows * keys < kMaxWork;
  }
};

// The two forms of the operator, with a workspace of their own or one of the exact size.
void fuzz_attention(FuzzedDataProvider& bytes, bool ragged) {
  Extents e(bytes);
  if (!ragged) e.num_seqs = 1;
  Where where(bytes);
  const Tensor query(bytes, e.dtype, {e.tokens(), e.num_q_heads(), e.head_dim});
  const Tensor key_cache(bytes, e.cache_dtype, {e.num_kv_heads, e.pages, e.page_size, e.head_dim});
  const Tensor value_cache(bytes, e.cache_dtype,
                           {e.num_kv_heads, e.pages, e.page_size, e.v_head_dim});
  const Batch batch(bytes, e);
  const Tensor page_indices(bytes, {e.max_pages}, e.pages, [](int64_t i) { return i; });
  Options options(bytes, e.num_q_heads(), e.num_seqs);
  const Tensor output(bytes, e.dtype, {e.tokens(), e.num_q_heads(), e.v_head_dim});
  const Tensor lse(bytes, PAGEFILL_FLOAT32, {e.tokens(), e.num_q_heads()});
  const bool aliased = Tensor::odd(bytes), exact = bytes.ConsumeBool();
  const pagefill_tensor* written = aliased ? query.get() : output.get();
  const pagefill_tensor* written_lse = bytes.ConsumeBool() ? lse.get() : nullptr;
  const pagefill_attention_options* given = bytes.ConsumeBool() ? &options.options : nullptr;
  const Tensor key_scale = scale_of(bytes, e), value_scale = scale_of(bytes, e);
  if (scale_given(bytes, e)) options.options.key_scale = key_scale.get();
  if (scale_given(bytes, e)) options.options.value_scale = value_scale.get();
  const double rows = static_cast<double>(std::max(e.tokens(), query.extent(0))) *
                      static_cast<double>(std::max(e.num_q_heads(), query.extent(1)));
  if (!query.exists() || !key_cache.exists() || !value_cache.exists() || !batch.exists() ||
      !page_indices.exists() || !options.sinks.exists() || !options.kv_start.exists() ||
      !output.exists() || !lse.exists() || !key_scale.exists() || !value_scale.exists() ||
      !batch.worth_running(e, rows)) {
    return;
  }
  const auto before = output.snapshot(), lse_before = lse.snapshot(),
             query_before = query.snapshot();
  const auto untouched = [&] {
    return output.snapshot() == before && lse.snapshot() == lse_before &&
           query.snapshot() == query_before;
  };

  if (!ragged) {
    const pagefill_status status = pagefill_prefill_page_attention(
        query.get(), key_cache.get(), value_cache.get(), batch.context_lens.get(),
        page_indices.get(), given, written, written_lse, &where.context);
    check_outcome(status, untouched());
    return;
  }
  size_t size = 0;
  const pagefill_status sized = pagefill_attention_workspace_size(
      query.get(), key_cache.get(), value_cache.get(), batch.query_starts.get(),
      batch.context_lens.get(), batch.page_table.get(), given, written, written_lse, &where.context,
      &size);
  check_outcome(sized, untouched());
  require(untouched());
  if (exact && sized == PAGEFILL_OK && size <= size_t{64} * kMaxBytes) where.give_workspace(size);
  const pagefill_status status = pagefill_ragged_page_attention(
      query.get(), key_cache.get(), value_cache.get(), batch.query_starts.get(),
      batch.context_lens.get(), batch.page_table.get(), given, written, written_lse,
      &where.context);
  check_outcome(status, untouched());
  require(status == sized);
  if (status == PAGEFILL_OK) require(where.report.workspace_bytes == size);
}

void fuzz_merge(FuzzedDataProvider& bytes) {
  const Extents e(bytes);
  const Where where(bytes);
  const auto state = [&] {
    return Tensor(bytes, e.dtype, {e.tokens(), e.num_q_heads(), e.v_head_dim});
  };
  const auto logs = [&] { return Tensor(bytes, PAGEFILL_FLOAT32, {e.tokens(), e.num_q_heads()}); };
  const Tensor output_a = state(), lse_a = logs(), output_b = state(), lse_b = logs();
  const Tensor merged_output = state(), merged_lse = logs();
  for (const Tensor* t : {&output_a, &lse_a, &output_b, &lse_b, &merged_output, &merged_lse}) {
    if (!t->exists()) return;
  }
  const bool in_place = bytes.ConsumeBool();
  const auto before = merged_output.snapshot(), lse_before = merged_lse.snapshot();
  const auto a_before = output_a.snapshot();
  const pagefill_status status =
      pagefill_merge_attention_states(output_a.get(), lse_a.get(), output_b.get(), lse_b.get(),
                                      in_place ? output_a.get() : merged_output.get(),
                                      in_place ? lse_a.get() : merged_lse.get(), &where.context);
  check_outcome(status, merged_output.snapshot() == before && merged_lse.snapshot() == lse_before &&
                            output_a.snapshot() == a_before);
}

void fuzz_cache(FuzzedDataProvider& bytes) {
  const Extents e(bytes);
  const Where where(bytes);
  const Tensor keys(bytes, e.dtype, {e.tokens(), e.num_kv_heads, e.head_dim});
  const Tensor values(bytes, e.dtype, {e.tokens(), e.num_kv_heads, e.v_head_dim});
  const Tensor key_cache(bytes, e.cache_dtype, {e.num_kv_heads, e.pages, e.page_size, e.head_dim});
  const Tensor value_cache(bytes, e.cache_dtype,
                           {e.num_kv_heads, e.pages, e.page_size, e.v_head_dim});
  const Batch batch(bytes, e);
  const Tensor kv_start(bytes, {e.num_seqs}, 8, [](int64_t) { return 0; });
  std::vector<pagefill_page_copy> copies(bytes.ConsumeIntegralInRange<size_t>(0, 4));
  for (pagefill_page_copy& copy : copies) {
    copy.source = bytes.ConsumeIntegralInRange<int32_t>(-1, 20);
    copy.destination = bytes.ConsumeIntegralInRange<int32_t>(-1, 20);
    copy.num_slots = bytes.ConsumeIntegralInRange<int32_t>(-1, 20);
    if (Tensor::odd(bytes)) copy.num_slots = bytes.ConsumeIntegral<int32_t>();
  }
  const auto rows =
      static_cast<double>(std::max(e.tokens(), batch.query_starts.largest<int32_t>()));
  for (const Tensor* t : {&keys, &values, &key_cache, &value_cache, &kv_start}) {
    if (!t->exists()) return;
  }
  if (!batch.exists() || !batch.worth_running(e, rows)) return;
  const bool copying = bytes.ConsumeBool();
  pagefill_append_options append = pagefill_append_options_init();
  if (!copying && bytes.ConsumeBool()) append.kv_start = kv_start.get();
  const Tensor key_scale = scale_of(bytes, e), value_scale = scale_of(bytes, e);
  if (!key_scale.exists() || !value_scale.exists()) return;
  if (scale_given(bytes, e)) append.key_scale = key_scale.get();
  if (scale_given(bytes, e)) append.chosen_value_scale = value_scale.get();
  if (Tensor::odd(bytes)) append.chosen_key_scale = value_scale.get();
  if (Tensor::odd(bytes)) append.struct_size = bytes.ConsumeIntegral<size_t>();
  pagefill_copy_options copy_options = pagefill_copy_options_init();
  copy_options.key_scale = append.key_scale;
  copy_options.value_scale = append.chosen_value_scale;
  if (Tensor::odd(bytes)) copy_options.struct_size = bytes.ConsumeIntegral<size_t>();
  const Tensor listed(bytes, {e.num_seqs, 3}, e.pages, [](int64_t i) { return i % 3; });
  if (!listed.exists() || listed.extent(0) > kMostListed) return;
  if (bytes.ConsumeBool()) {
    copy_options.copies = listed.get();
    if (!Tensor::odd(bytes)) copies.clear();
  }

  const auto keys_before = key_cache.snapshot(), values_before = value_cache.snapshot();
  const auto key_scales_before = key_scale.snapshot(), scales_before = value_scale.snapshot();
  const auto untouched = [&] {
    return key_cache.snapshot() == keys_before && value_cache.snapshot() == values_before &&
           key_scale.snapshot() == key_scales_before && value_scale.snapshot() == scales_before;
  };
  const pagefill_status status =
      copying ? pagefill_copy_pages(copies.data(), copies.size(), key_cache.get(),
                                    value_cache.get(), &copy_options, &where.context)
              : pagefill_append_kv(keys.get(), values.get(), key_cache.get(), value_cache.get(),
                                   batch.query_starts.get(), batch.context_lens.get(),
                                   batch.page_table.get(), &append, &where.context);
  check_outcome(status, untouched());
}

// Every page is free or held as often as the sequences name it.
void check_pages(const pagefill_page_allocator* allocator, const std::vector<int64_t>& sequences) {
  pagefill_page_allocator_info info = pagefill_page_allocator_info_init();
  require(pagefill_page_allocator_get_info(allocator, &info) == PAGEFILL_OK);
  std::vector<int64_t> holders(static_cast<size_t>(info.total_num_pages));
  int64_t living = 0;
  for (int64_t id : sequences) {
    pagefill_sequence_info sequence = pagefill_sequence_info_init();
    if (pagefill_page_allocator_get_sequence(allocator, id, &sequence) != PAGEFILL_OK) continue;
    ++living;
    require(sequence.context_len - sequence.kv_start <= sequence.num_pages * info.page_size);
    for (int64_t i = 0; i < sequence.num_pages; ++i) {
      ++holders.at(static_cast<size_t>(sequence.page_indices[i]));
    }
  }
  for (size_t page = 0; page < holders.size(); ++page) {
    int64_t count = -1;
    require(pagefill_page_allocator_reference_count(allocator, static_cast<int64_t>(page),
                                                    &count) == PAGEFILL_OK);
    require(count == holders[page]);
  }
  require(living == info.num_sequences);
  require(info.num_free_pages == std::count(holders.begin(), holders.end(), 0));
}

void fuzz_page_allocator(FuzzedDataProvider& bytes) {
  pagefill_page_allocator* allocator = nullptr;
  const int64_t pages = bytes.ConsumeIntegralInRange<int64_t>(-1, 20);
  const int64_t page_size = bytes.ConsumeIntegralInRange<int64_t>(0, 5);
  const pagefill_status created = pagefill_page_allocator_create(pages, page_size, &allocator);
  check_outcome(created, allocator == nullptr);
  if (created != PAGEFILL_OK) return;
  std::vector<int64_t> sequences = {-1};  // every id that there ever was, and one that never was
  while (bytes.remaining_bytes() > 0) {
    const int64_t id = sequences[bytes.ConsumeIntegralInRange<size_t>(0, sequences.size() - 1)];
    const int64_t amount = Tensor::odd(bytes) ? bytes.ConsumeIntegral<int64_t>()
                                              : bytes.ConsumeIntegralInRange<int64_t>(-1, 12);
    int64_t added = -1;
    pagefill_page_copy copy{};
    size_t num_copies = 0;
    pagefill_status status = PAGEFILL_OK;
    switch (bytes.ConsumeIntegralInRange(0, 5)) {
      case 0:
        status = pagefill_page_allocator_add_sequence(allocator, &added);
        break;
      case 1:
        status = pagefill_page_allocator_fork(allocator, id, &added);
        break;
      case 2:
        status = pagefill_page_allocator_append(allocator, id, amount, &copy, &num_copies);
        require(num_copies <= 1);
        break;
      case 3:
        status = pagefill_page_allocator_truncate(allocator, id, amount);
        break;
      case 4:
        status = pagefill_page_allocator_drop_before(allocator, id, amount);
        break;
      case 5:
        status = pagefill_page_allocator_release(allocator, id);
        break;
    }
    check_outcome(status, true);
    if (added >= 0) sequences.push_back(added);
    check_pages(allocator, sequences);
  }
  pagefill_page_allocator_destroy(allocator);
}

}  // namespace
}  // namespace pagefill::fuzzing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pagefill::fuzzing;
  FuzzedDataProvider bytes(data, size);
  switch (bytes.ConsumeIntegralInRange(0, 5)) {
    case 0:
      fuzz_attention(bytes, true);
      break;
    case 1:
      fuzz_attention(bytes, false);
      break;
    case 2:
      fuzz_merge(bytes);
      break;
    case 3:
      fuzz_cache(bytes);
      break;
    case 4:
      fuzz_page_allocator(bytes);
      break;
    case 5:
      fuzz_attention(bytes, true);
      break;
  }
  return 0;
}
