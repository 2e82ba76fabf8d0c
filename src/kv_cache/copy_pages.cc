#include <fmt/format.h>

#include <cstring>
#include <limits>

#include "backend.h"
#include "checks.h"
#include "kv_cache/cache_memory.h"
#include "pagefill/kv_cache.h"
#include "validate.h"

namespace pagefill {
namespace {

Status check_copy(const PageCopy& copy, int64_t i, int64_t total_num_pages, int64_t page_size) {
  const auto outside = [&](const char* what, int64_t expected_max, int64_t got) {
    return invalid_argument(fmt::format("copies: expected {} from 0 to {}, got {} in copy {}", what,
                                        expected_max, got, i));
  };
  if (copy.source < 0 || copy.source >= total_num_pages) {
    return outside("a source", total_num_pages - 1, copy.source);
  }
  if (copy.destination < 0 || copy.destination >= total_num_pages) {
    return outside("a destination", total_num_pages - 1, copy.destination);
  }
  if (copy.num_slots < 0 || copy.num_slots > page_size) {
    return outside("num_slots", page_size, copy.num_slots);
  }
  if (copy.source == copy.destination) {
    return invalid_argument(
        fmt::format("copies: expected a destination other than the source, got page {} in copy {}",
                    copy.source, i));
  }
  return {};
}

Status check_listed(std::span<const PageCopy> copies, const CopyOptions& options) {
  if (!copies.empty()) {
    return invalid_argument(fmt::format(
        "copies: expected a list or options.copies, got both, the list of {}", copies.size()));
  }
  PAGEFILL_RETURN_IF_ERROR(check_tensor_of_shapes(
      "copies", options.copies, {{{"num_copies"}, {"3", 3}}}, Innermost::kAnyStride));
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (options.copies.shape[0] > kMost) {
    return invalid_argument(fmt::format("copies: expected num_copies up to {}, got {}", kMost,
                                        options.copies.shape[0]));
  }
  return check_dtype("copies", options.copies, {DType::kInt32});
}

// The copies of a list, or of a tensor in the memory of the CPU.
struct Copies {
  std::span<const PageCopy> list;
  TensorView listed{};  // or not given

  int64_t size() const { return listed.given() ? listed.shape[0] : std::ssize(list); }
  PageCopy operator[](int64_t i) const {
    if (!listed.given()) return list[static_cast<size_t>(i)];
    const auto* numbers = static_cast<const int32_t*>(listed.data) + i * listed.strides[0];
    return {numbers[0], numbers[listed.strides[1]], numbers[2 * listed.strides[1]]};
  }
};

// The first slots of a page of a cache, or of a cache's scales: one element a slot.
void copy_page(const PageCopy& copy, const MutableTensorView& cache, int64_t head_begin,
               int64_t head_end) {
  const int64_t size = dtype_size(cache.dtype);
  const auto row_bytes = static_cast<size_t>((cache.rank == 4 ? cache.shape[3] : 1) * size);
  auto* const data = static_cast<std::byte*>(cache.data);
  const auto row = [&](int64_t head, int64_t page, int64_t slot) {
    return data +
           (head * cache.strides[0] + page * cache.strides[1] + slot * cache.strides[2]) * size;
  };
  for (int64_t head = head_begin; head < head_end; ++head) {
    for (int64_t slot = 0; slot < copy.num_slots; ++slot) {
      std::memcpy(row(head, copy.destination, slot), row(head, copy.source, slot), row_bytes);
    }
  }
}

}  // namespace

Status copy_pages(std::span<const PageCopy> copies, const MutableTensorView& key_cache,
                  const MutableTensorView& value_cache, const CopyOptions& options,
                  const Context& context) {
  const TensorView& listed = options.copies;
  PAGEFILL_RETURN_IF_ERROR(check_same_device({{"key_cache", key_cache},
                                              {"value_cache", value_cache},
                                              {"key_scale", options.key_scale},
                                              {"value_scale", options.value_scale},
                                              {"copies", listed}}));
  if (listed.given()) PAGEFILL_RETURN_IF_ERROR(check_listed(copies, options));
  PAGEFILL_RETURN_IF_ERROR(check_caches(key_cache, value_cache));
  PAGEFILL_RETURN_IF_ERROR(
      check_slot_scale("key_scale", options.key_scale, "key_cache", key_cache));
  PAGEFILL_RETURN_IF_ERROR(
      check_slot_scale("value_scale", options.value_scale, "value_cache", value_cache));
  PAGEFILL_RETURN_IF_ERROR(check_written({{"key_cache", key_cache},
                                          {"value_cache", value_cache},
                                          {"key_scale", options.key_scale},
                                          {"value_scale", options.value_scale}},
                                         {{"copies", listed}}));
  const bool on_cpu = key_cache.device.type == DeviceType::kCpu;
  const Copies all{copies, on_cpu ? without_idle_strides(listed) : TensorView()};
  int64_t num_slots = 0;
  for (int64_t i = 0; i < all.size(); ++i) {
    PAGEFILL_RETURN_IF_ERROR(check_copy(all[i], i, key_cache.shape[1], key_cache.shape[2]));
    num_slots += all[i].num_slots;
  }
  const Result<Selection> where = select_backend(context, key_cache.device.type);
  if (!where.ok()) return where.status();
  PAGEFILL_RETURN_IF_ERROR(check_cuda_settings(context.cuda, key_cache));
  if (!on_cpu) {
    return where->backend->copy_pages(
        {copies, without_idle_strides(key_cache), without_idle_strides(value_cache),
         without_idle_strides(options.key_scale), without_idle_strides(options.value_scale),
         without_idle_strides(listed)},
        where->settings);
  }

  const int64_t num_kv_heads = key_cache.shape[0];
  const int64_t bytes = num_slots * num_kv_heads * (key_cache.shape[3] + value_cache.shape[3]) *
                        dtype_size(key_cache.dtype);
  return write_heads(context, threads_for_bytes(bytes, where->settings.num_threads), num_kv_heads,
                     [&](Cache cache, int64_t head_begin, int64_t head_end) {
                       const bool is_key = cache == Cache::kKey;
                       const auto& elements = is_key ? key_cache : value_cache;
                       const auto& scale = is_key ? options.key_scale : options.value_scale;
                       for (int64_t i = 0; i < all.size(); ++i) {
                         copy_page(all[i], elements, head_begin, head_end);
                         if (scale.given()) copy_page(all[i], scale, head_begin, head_end);
                       }
                     });
}

}  // namespace pagefill
