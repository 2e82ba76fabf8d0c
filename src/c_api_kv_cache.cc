// The C interface of the KV cache.
#include <utility>
#include <vector>

#include "c_api_convert.h"
#include "c_api_guard.h"
#include "pagefill/kv_cache.h"
#include "pagefill/pagefill.h"

struct pagefill_page_allocator {
  pagefill::PageAllocator allocator;
};

using namespace pagefill;

pagefill_status pagefill_append_kv(
    const pagefill_tensor* keys, const pagefill_tensor* values, const pagefill_tensor* key_cache,
    const pagefill_tensor* value_cache, const pagefill_tensor* query_starts,
    const pagefill_tensor* context_lens, const pagefill_tensor* page_table,
    const pagefill_append_options* options, const pagefill_context* context) {
  return guarded([&]() -> Status {
    Arguments arguments;
    const TensorView keys_view = arguments.tensor("keys", keys);
    const TensorView values_view = arguments.tensor("values", values);
    const MutableTensorView key_cache_view = arguments.mutable_tensor("key_cache", key_cache);
    const MutableTensorView value_cache_view = arguments.mutable_tensor("value_cache", value_cache);
    const TensorView query_starts_view = arguments.tensor("query_starts", query_starts);
    const TensorView context_lens_view = arguments.tensor("context_lens", context_lens);
    const TensorView page_table_view = arguments.tensor("page_table", page_table);
    const AppendOptions converted_options = arguments.append_options(options);
    ConvertedContext where;
    arguments.context(context, where);
    if (!arguments.ok()) return arguments.status();
    return append_kv(keys_view, values_view, key_cache_view, value_cache_view, query_starts_view,
                     context_lens_view, page_table_view, converted_options, where.context);
  });
}

pagefill_status pagefill_copy_pages(const pagefill_page_copy* copies, size_t num_copies,
                                    const pagefill_tensor* key_cache,
                                    const pagefill_tensor* value_cache,
                                    const pagefill_copy_options* options,
                                    const pagefill_context* context) {
  return guarded([&]() -> Status {
    Arguments arguments;
    if (num_copies > 0) arguments.pointer("copies", copies);
    const MutableTensorView key_cache_view = arguments.mutable_tensor("key_cache", key_cache);
    const MutableTensorView value_cache_view = arguments.mutable_tensor("value_cache", value_cache);
    const CopyOptions converted_options = arguments.copy_options(options);
    ConvertedContext where;
    arguments.context(context, where);
    if (!arguments.ok()) return arguments.status();

    std::vector<PageCopy> page_copies;
    for (size_t i = 0; i < num_copies; ++i) {
      page_copies.push_back({copies[i].source, copies[i].destination, copies[i].num_slots});
    }
    return copy_pages(page_copies, key_cache_view, value_cache_view, converted_options,
                      where.context);
  });
}

pagefill_status pagefill_page_allocator_create(int64_t total_num_pages, int64_t page_size,
                                               pagefill_page_allocator** allocator) {
  return guarded([&]() -> Status {
    Arguments arguments;
    if (!arguments.pointer("allocator", allocator)) return arguments.status();
    Result<PageAllocator> created = PageAllocator::create(total_num_pages, page_size);
    if (!created.ok()) return created.status();
    *allocator = new pagefill_page_allocator{std::move(created).value()};
    return {};
  });
}

void pagefill_page_allocator_destroy(pagefill_page_allocator* allocator) { delete allocator; }

pagefill_status pagefill_page_allocator_add_sequence(pagefill_page_allocator* allocator,
                                                     int64_t* sequence) {
  return guarded([&]() -> Status {
    Arguments arguments;
    arguments.pointer("allocator", allocator);
    arguments.pointer("sequence", sequence);
    if (!arguments.ok()) return arguments.status();
    return store(allocator->allocator.add_sequence(), sequence);
  });
}

pagefill_status pagefill_page_allocator_fork(pagefill_page_allocator* allocator, int64_t parent,
                                             int64_t* sequence) {
  return guarded([&]() -> Status {
    Arguments arguments;
    arguments.pointer("allocator", allocator);
    arguments.pointer("sequence", sequence);
    if (!arguments.ok()) return arguments.status();
    return store(allocator->allocator.fork(parent), sequence);
  });
}

pagefill_status pagefill_page_allocator_append(pagefill_page_allocator* allocator, int64_t sequence,
                                               int64_t num_tokens, pagefill_page_copy* copy,
                                               size_t* num_copies) {
  return guarded([&]() -> Status {
    Arguments arguments;
    arguments.pointer("allocator", allocator);
    arguments.pointer("copy", copy);
    arguments.pointer("num_copies", num_copies);
    if (!arguments.ok()) return arguments.status();
    const Result<std::vector<PageCopy>> copies = allocator->allocator.append(sequence, num_tokens);
    if (!copies.ok()) return copies.status();
    *num_copies = copies->size();
    for (const PageCopy& c : *copies) *copy = {c.source, c.destination, c.num_slots};
    return {};
  });
}

pagefill_status pagefill_page_allocator_truncate(pagefill_page_allocator* allocator,
                                                 int64_t sequence, int64_t context_len) {
  return guarded([&]() -> Status {
    Arguments arguments;
    if (!arguments.pointer("allocator", allocator)) return arguments.status();
    return allocator->allocator.truncate(sequence, context_len);
  });
}

pagefill_status pagefill_page_allocator_drop_before(pagefill_page_allocator* allocator,
                                                    int64_t sequence, int64_t position) {
  return guarded([&]() -> Status {
    Arguments arguments;
    if (!arguments.pointer("allocator", allocator)) return arguments.status();
    return allocator->allocator.drop_before(sequence, position);
  });
}

pagefill_status pagefill_page_allocator_release(pagefill_page_allocator* allocator,
                                                int64_t sequence) {
  return guarded([&]() -> Status {
    Arguments arguments;
    if (!arguments.pointer("allocator", allocator)) return arguments.status();
    return allocator->allocator.release(sequence);
  });
}

pagefill_status pagefill_page_allocator_get_info(const pagefill_page_allocator* allocator,
                                                 pagefill_page_allocator_info* info) {
  return guarded([&]() -> Status {
    Arguments arguments;
    arguments.pointer("allocator", allocator);
    arguments.sized("info", info);
    if (!arguments.ok()) return arguments.status();
    info->total_num_pages = allocator->allocator.total_num_pages();
    info->page_size = allocator->allocator.page_size();
    info->num_free_pages = allocator->allocator.num_free_pages();
    info->num_sequences = allocator->allocator.num_sequences();
    return {};
  });
}

pagefill_status pagefill_page_allocator_reference_count(const pagefill_page_allocator* allocator,
                                                        int64_t page, int64_t* reference_count) {
  return guarded([&]() -> Status {
    Arguments arguments;
    arguments.pointer("allocator", allocator);
    arguments.pointer("reference_count", reference_count);
    if (!arguments.ok()) return arguments.status();
    *reference_count = allocator->allocator.reference_count(page);
    return {};
  });
}

pagefill_status pagefill_page_allocator_get_sequence(const pagefill_page_allocator* allocator,
                                                     int64_t sequence,
                                                     pagefill_sequence_info* info) {
  return guarded([&]() -> Status {
    Arguments arguments;
    arguments.pointer("allocator", allocator);
    arguments.sized("info", info);
    if (!arguments.ok()) return arguments.status();
    const Result<int64_t> context_len = allocator->allocator.context_len(sequence);
    if (!context_len.ok()) return context_len.status();
    const Result<int64_t> kv_start = allocator->allocator.kv_start(sequence);
    if (!kv_start.ok()) return kv_start.status();
    const Result<std::span<const int32_t>> pages = allocator->allocator.page_indices(sequence);
    if (!pages.ok()) return pages.status();
    info->context_len = *context_len;
    info->kv_start = *kv_start;
    info->page_indices = pages->empty() ? nullptr : pages->data();
    info->num_pages = static_cast<int64_t>(pages->size());
    return {};
  });
}
