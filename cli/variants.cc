#include "variants.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

namespace pagefill::cli {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a cache, or of its scales per slot.
void poison_slots(Tensor& cache, const std::vector<bool>& is_used, const Poison& poison) {
  const MutableTensorView view = cache.view();
  const int64_t num_slots = view.shape[1] * view.shape[2];
  const int64_t head_dim = view.rank == 4 ? view.shape[3] : 1;
  for (int64_t kv_head = 0; kv_head < view.shape[0]; ++kv_head) {
    for (int64_t slot = 0; slot < num_slots; ++slot) {
      if (is_used[static_cast<size_t>(slot)]) continue;
      const float value = slot % 2 == 0 ? poison.even_slots : poison.odd_slots;
      for (int64_t d = 0; d < head_dim; ++d) {
        store(view, (kv_head * num_slots + slot) * head_dim + d, value);
      }
    }
  }
}

void poison_entries(Tensor& page_table, const Batch& batch, int32_t entry) {
  const int64_t max_pages = batch.page_table.shape[1];
  const std::span<int32_t> entries = page_table.elements<int32_t>();
  for (int64_t s = 0; s < batch.num_seqs(); ++s) {
    const KeyRange keys = batch.attended_keys(s);
    KeyRange pages;
    if (!keys.empty()) {
      pages = {batch.logical_page(s, keys.begin), batch.logical_page(s, keys.end - 1) + 1};
    }
    for (int64_t page = 0; page < max_pages; ++page) {
      if (!pages.contains(page)) entries[static_cast<size_t>(s * max_pages + page)] = entry;
    }
  }
}

bool is_per_slot(const std::optional<Tensor>& scale) { return scale && scale->shape.size() == 3; }

// A page table [num_seqs, max_pages] with a page for each that holds a key that is attended to, else -1.
struct Placement {
  Tensor page_table;
  int64_t total_num_pages = 0;
};

Placement place_pages(const Batch& batch, int64_t page_size) {
  int64_t max_pages = 0;
  for (int64_t s = 0; s < batch.num_seqs(); ++s) {
    max_pages = std::max(max_pages, ceil_div(batch.context_len(s) - batch.kv_start(s), page_size));
  }
  std::vector<int32_t> table(static_cast<size_t>(batch.num_seqs() * max_pages), -1);
  std::vector<int32_t*> needed;
  for (int64_t s = 0; s < batch.num_seqs(); ++s) {
    const KeyRange keys = batch.attended_keys(s);
    if (keys.empty()) continue;
    const int64_t first = (keys.begin - batch.kv_start(s)) / page_size;
    const int64_t last = (keys.end - 1 - batch.kv_start(s)) / page_size;
    for (int64_t page = first; page <= last; ++page) {
      needed.push_back(&table[static_cast<size_t>(s * max_pages + page)]);
    }
  }
  constexpr int64_t kSparePages = 3;
  const auto total_num_pages = static_cast<int64_t>(needed.size()) + kSparePages;
  std::vector<int32_t> placement(static_cast<size_t>(total_num_pages));
  std::iota(placement.begin(), placement.end(), 0);
  std::shuffle(placement.begin(), placement.end(),
               std::mt19937(static_cast<std::mt19937::result_type>(page_size)));
  for (size_t i = 0; i < needed.size(); ++i) *needed[i] = placement[i];
  return {Tensor::of<int32_t>({batch.num_seqs(), max_pages}, table), total_num_pages};
}

}  // namespace

Case poisoned(const Case& c, const Poison& poison) {
  const Batch batch = c.batch();
  const int64_t page_size = batch.page_size();
  std::vector<bool> is_used(static_cast<size_t>(batch.key_cache.shape[1] * page_size));
  for (int64_t s = 0; s < batch.num_seqs(); ++s) {
    const KeyRange keys = batch.attended_keys(s);
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      is_used[static_cast<size_t>(batch.physical_page(s, j) * page_size + batch.slot(s, j))] = true;
    }
  }
  Case changed = c;
  poison_slots(changed.key_cache, is_used, poison);
  poison_slots(changed.value_cache, is_used, poison);
  for (std::optional<Tensor>* scale : {&changed.key_scale, &changed.value_scale}) {
    if (is_per_slot(*scale)) poison_slots(**scale, is_used, poison);
  }
  poison_entries(changed.page_table, batch, poison.entry);
  const MutableTensorView query = changed.query.view();
  for (int64_t i = batch.query_start(batch.num_seqs()) * query.strides[0]; i < query.num_elements();
       ++i) {
    store(query, i, std::numeric_limits<float>::quiet_NaN());
  }
  return changed;
}

Case repaged(const Case& c, int64_t page_size) {
  const Batch from = c.batch();
  Placement placement = place_pages(from, page_size);
  Case changed = c;
  changed.is_ragged = true;
  changed.page_table = std::move(placement.page_table);
  for (Tensor* cache : {&changed.key_cache, &changed.value_cache}) {
    *cache = filled_with_nan(
        cache->dtype, {cache->shape[0], placement.total_num_pages, page_size, cache->shape[3]});
  }
  for (std::optional<Tensor>* scale : {&changed.key_scale, &changed.value_scale}) {
    if (!is_per_slot(*scale)) continue;
    *scale = filled_with_nan(DType::kFloat32,
                             {(*scale)->shape[0], placement.total_num_pages, page_size});
  }
  const Batch to = changed.batch();
  for (int64_t s = 0; s < from.num_seqs(); ++s) {
    const KeyRange keys = from.attended_keys(s);
    for (int64_t h = 0; h < from.num_kv_heads(); ++h) {
      for (int64_t j = keys.begin; j < keys.end; ++j) {
        const auto move = [&](const TensorView& source, Tensor& moved, int64_t count) {
          copy_elements(source, from.offset(source, s, h, j), moved.view(),
                        to.offset(moved.view(), s, h, j), count);
        };
        move(from.key_cache, changed.key_cache, from.key_cache.shape[3]);
        move(from.value_cache, changed.value_cache, from.value_cache.shape[3]);
        if (is_per_slot(c.key_scale)) move(from.options.key_scale, *changed.key_scale, 1);
        if (is_per_slot(c.value_scale)) move(from.options.value_scale, *changed.value_scale, 1);
      }
    }
  }
  return changed;
}

Tensor filled_with_nan(DType dtype, std::vector<int64_t> shape) {
  Tensor tensor = Tensor::zeros(dtype, std::move(shape));
  const MutableTensorView view = tensor.view();
  for (int64_t i = 0; i < view.num_elements(); ++i) {
    store(view, i, std::numeric_limits<float>::quiet_NaN());
  }
  return tensor;
}

void copy_elements(const TensorView& from, int64_t from_offset, const MutableTensorView& to,
                   int64_t to_offset, int64_t count) {
  const int64_t size = dtype_size(from.dtype);
  std::memcpy(static_cast<std::byte*>(to.data) + to_offset * size,
              static_cast<const std::byte*>(from.data) + from_offset * size,
              static_cast<size_t>(count * size));
}

}  // namespace pagefill::cli
