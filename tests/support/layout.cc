#include "support/layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "support/elements.h"

namespace pagefill::testing {
namespace {

// Element strides of a cache, and where in its buffer it begins.
struct CacheStrides {
  int64_t base = 0, head = 0, page = 0, slot = 0;
  int64_t offset(int64_t h, int64_t physical_page, int64_t s) const {
    return base + h * head + physical_page * page + s * slot;
  }
};

struct CachePlan {
  CacheStrides key, value;
  bool one_buffer = false;
};

CachePlan plan_cache(const Problem& p, const Layout& layout, int64_t num_pages) {
  const int64_t heads = p.num_kv_heads, size = layout.page_size;
  const int64_t key = p.head_dim + layout.gap, value = p.v_head_dim + layout.gap;
  const int64_t both = key + value;
  switch (layout.cache_order) {
    case CacheOrder::kHeadMajor:
      return {{0, num_pages * size * key, size * key, key},
              {0, num_pages * size * value, size * value, value},
              false};
    case CacheOrder::kTokenMajor:
      return {{0, key, size * heads * key, heads * key},
              {0, value, size * heads * value, heads * value},
              false};
    case CacheOrder::kInterleavedSlots:
      return {{0, both, size * heads * both, heads * both},
              {key, both, size * heads * both, heads * both},
              true};
    case CacheOrder::kInterleavedPages:
      return {{0, key, size * heads * both, heads * key},
              {size * heads * key, value, size * heads * both, heads * value},
              true};
  }
  return {};
}

// Scales per slot, in the order of the cache.
CacheStrides plan_scales(const Problem& p, const Layout& layout, int64_t num_pages) {
  const int64_t heads = p.num_kv_heads, size = layout.page_size, step = 1 + layout.gap;
  if (layout.cache_order == CacheOrder::kHeadMajor) {
    return {0, num_pages * size * step, size * step, step};
  }
  return {0, step, size * heads * step, heads * step};
}

// Absolute positions of the keys that some row of the chunk takes.
struct KeyRange {
  int64_t begin = 0, end = 0;
  bool contains(int64_t key) const { return key >= begin && key < end; }
};

int64_t chunk_context(const Sequence& seq, const Chunk& chunk) {
  return std::max<int64_t>(0, seq.position(chunk.row_end - 1) + 1);
}

KeyRange needed_keys(const Problem& p, const Chunk& chunk) {
  const Sequence& seq = p.sequences[chunk.sequence];
  const int64_t end = chunk_context(seq, chunk);
  if (chunk.row_begin == chunk.row_end) return {};
  const int64_t first = std::max<int64_t>(0, seq.position(chunk.row_begin));
  const bool windowed = p.options.sliding_window && p.options.mask_value <= -1e4f;
  const int64_t window = windowed ? *p.options.sliding_window : end + 1;
  const int64_t begin = std::max(seq.kv_start, window > first ? 0 : first - window + 1);
  return begin < end ? KeyRange{begin, end} : KeyRange{};
}

float fill_value(Unused unused) {
  switch (unused) {
    case Unused::kOldTokens:
      return 0;
    case Unused::kNaN:
      return std::numeric_limits<float>::quiet_NaN();
    case Unused::kInfinity:
      return std::numeric_limits<float>::infinity();
    case Unused::kNegativeInfinity:
      return -std::numeric_limits<float>::infinity();
  }
  return 0;
}

GuardedBuffer filled(int64_t num_elements, DType dtype, float value, Guard guard,
                     int64_t reserved_elements = 0) {
  GuardedBuffer buffer(num_elements * dtype_size(dtype), guard,
                       reserved_elements * dtype_size(dtype));
  if (value != 0) {  // fresh memory is zeros
    for (int64_t i = 0; i < num_elements; ++i) store(buffer.data(), dtype, i, value);
  }
  return buffer;
}

class Builder {
 public:
  Builder(const Problem& p, std::span<const Chunk> chunks, const Layout& layout)
      : p_(p), chunks_(chunks), layout_(layout), fill_(fill_value(layout.unused)) {}

  Arguments build() {
    lay_out_metadata();
    lay_out_caches();
    arguments_.options.key_scale = lay_out_scales(p_.key_scale, &Sequence::key_scales);
    arguments_.options.value_scale = lay_out_scales(p_.value_scale, &Sequence::value_scales);
    lay_out_rows();
    for (GuardedBuffer& buffer : arguments_.memory) buffer.make_read_only();
    return std::move(arguments_);
  }

 private:
  const Sequence& sequence(const Chunk& chunk) const { return p_.sequences[chunk.sequence]; }
  bool hostile() const { return layout_.unused != Unused::kOldTokens; }

  // The keys whose slots hold what they should; all others are filled.
  KeyRange stored_keys(const Chunk& chunk) const {
    if (hostile()) return needed_keys(p_, chunk);
    return {sequence(chunk).kv_start, chunk_context(sequence(chunk), chunk)};
  }

  TensorView keep(const std::vector<int32_t>& numbers, std::initializer_list<int64_t> shape,
                  std::initializer_list<int64_t> strides) {
    const auto bytes = static_cast<int64_t>(numbers.size() * sizeof(int32_t));
    GuardedBuffer buffer(bytes, layout_.guard);
    // An empty vector has no data, and memcpy takes no null pointer even for no bytes.
    if (bytes > 0) std::memcpy(buffer.data(), numbers.data(), static_cast<size_t>(bytes));
    const TensorView view(buffer.data(), DType::kInt32, shape, strides);
    arguments_.memory.push_back(std::move(buffer));
    return view;
  }

  void lay_out_metadata() {
    const auto num_seqs = static_cast<int64_t>(chunks_.size());
    std::vector<int32_t> starts{0}, lens, kv_starts;
    int64_t max_pages = 0;
    for (const Chunk& chunk : chunks_) {
      const int64_t context = chunk_context(sequence(chunk), chunk);
      const int64_t kv_start = sequence(chunk).kv_start;
      starts.push_back(starts.back() + static_cast<int32_t>(chunk.row_end - chunk.row_begin));
      lens.push_back(static_cast<int32_t>(context));
      kv_starts.push_back(static_cast<int32_t>(kv_start));
      const int64_t tokens = std::max<int64_t>(0, context - kv_start);
      max_pages = std::max(max_pages, (tokens + layout_.page_size - 1) / layout_.page_size);
    }
    max_pages += layout_.extra_table_entries;
    arguments_.query_starts = keep(starts, {num_seqs + 1}, {1});
    arguments_.context_lens = keep(lens, {num_seqs}, {1});
    arguments_.options = p_.options;
    if (p_.kv_start_given) arguments_.options.kv_start = keep(kv_starts, {num_seqs}, {1});
    lay_out_page_table(max_pages);
  }

  void lay_out_page_table(int64_t max_pages) {
    // In the order in which the sequences would ask for them.
    for (size_t s = 0; s < chunks_.size(); ++s) {
      const KeyRange keys = stored_keys(chunks_[s]);
      const int64_t kv_start = sequence(chunks_[s]).kv_start;
      for (int64_t key = keys.begin; key < keys.end; ++key) {
        physical_.try_emplace({s, (key - kv_start) / layout_.page_size}, -1);
      }
    }
    num_pages_ = static_cast<int64_t>(physical_.size()) + layout_.extra_pages;
    std::vector<int32_t> order(static_cast<size_t>(num_pages_));
    std::iota(order.begin(), order.end(), 0);
    if (layout_.placement != 0) {
      std::shuffle(order.begin(), order.end(), std::mt19937(layout_.placement));
    }
    size_t next = 0;
    for (auto& [logical, physical] : physical_) physical = order[next++];

    constexpr int32_t kBad[] = {-1, std::numeric_limits<int32_t>::max(),
                                std::numeric_limits<int32_t>::min()};
    const int64_t stride = max_pages + layout_.gap;
    const auto num_seqs = static_cast<int64_t>(chunks_.size());
    std::vector<int32_t> table(static_cast<size_t>(num_seqs * stride));
    for (size_t i = 0; i < table.size(); ++i) table[i] = kBad[i % 3];
    for (const auto& [logical, physical] : physical_) {
      table[static_cast<size_t>(static_cast<int64_t>(logical.first) * stride + logical.second)] =
          physical;
    }
    arguments_.page_table = keep(table, {num_seqs, max_pages}, {stride, 1});
  }

  void lay_out_caches() {
    const CachePlan plan = plan_cache(p_, layout_, num_pages_);
    const int64_t key_end = needed_end(plan.key, p_.head_dim);
    const int64_t value_end = needed_end(plan.value, p_.v_head_dim);
    const DType dtype = p_.cache_dtype;
    const int64_t key_span = whole_end(plan.key, p_.head_dim);
    const int64_t value_span = whole_end(plan.value, p_.v_head_dim);
    GuardedBuffer keys, values;
    if (plan.one_buffer) {
      keys = filled(std::max(key_end, value_end), dtype, fill_, layout_.guard,
                    std::max(key_span, value_span));
    } else {
      keys = filled(key_end, dtype, fill_, layout_.guard, key_span);
      values = filled(value_end, dtype, fill_, layout_.guard, value_span);
    }
    std::byte* key_data = keys.data();
    std::byte* value_data = plan.one_buffer ? keys.data() : values.data();
    for_each_stored_slot([&](const Sequence& seq, int64_t key, int64_t page, int64_t slot) {
      for (int64_t h = 0; h < p_.num_kv_heads; ++h) {
        const float* k = &seq.keys[(key * p_.num_kv_heads + h) * p_.head_dim];
        const float* v = &seq.values[(key * p_.num_kv_heads + h) * p_.v_head_dim];
        const int64_t k_at = plan.key.offset(h, page, slot),
                      v_at = plan.value.offset(h, page, slot);
        for (int64_t d = 0; d < p_.head_dim; ++d) store(key_data, dtype, k_at + d, k[d]);
        for (int64_t d = 0; d < p_.v_head_dim; ++d) store(value_data, dtype, v_at + d, v[d]);
      }
    });
    const auto view = [&](std::byte* data, const CacheStrides& s, int64_t dim) {
      return TensorView(data + s.base * dtype_size(dtype), dtype,
                        {p_.num_kv_heads, num_pages_, layout_.page_size, dim},
                        {s.head, s.page, s.slot, 1});
    };
    arguments_.key_cache = view(key_data, plan.key, p_.head_dim);
    arguments_.value_cache = view(value_data, plan.value, p_.v_head_dim);
    arguments_.memory.push_back(std::move(keys));
    arguments_.memory.push_back(std::move(values));
  }

  TensorView lay_out_scales(const Scales& scales, std::vector<float> Sequence::*slots) {
    if (scales.per == ScalePer::kNone) return {};
    if (scales.per == ScalePer::kSlot) return lay_out_slot_scales(slots);
    const int64_t count = std::ssize(scales.numbers), step = 1 + layout_.gap;
    GuardedBuffer memory = filled((count - 1) * step + 1, DType::kFloat32, fill_, layout_.guard);
    for (int64_t i = 0; i < count; ++i) {
      store(memory.data(), DType::kFloat32, i * step, scales.numbers[static_cast<size_t>(i)]);
    }
    const TensorView view(memory.data(), DType::kFloat32, {count}, {step});
    arguments_.memory.push_back(std::move(memory));
    return view;
  }

  TensorView lay_out_slot_scales(std::vector<float> Sequence::*slots) {
    const CacheStrides plan = plan_scales(p_, layout_, num_pages_);
    GuardedBuffer memory =
        filled(needed_end(plan, 1), DType::kFloat32, fill_, layout_.guard, whole_end(plan, 1));
    for_each_stored_slot([&](const Sequence& seq, int64_t key, int64_t page, int64_t slot) {
      for (int64_t h = 0; h < p_.num_kv_heads; ++h) {
        store(memory.data(), DType::kFloat32, plan.offset(h, page, slot),
              (seq.*slots)[static_cast<size_t>(key * p_.num_kv_heads + h)]);
      }
    });
    const TensorView view(memory.data(), DType::kFloat32,
                          {p_.num_kv_heads, num_pages_, layout_.page_size},
                          {plan.head, plan.page, plan.slot});
    arguments_.memory.push_back(std::move(memory));
    return view;
  }

  // Elements up to the last one of the cache.
  int64_t whole_end(const CacheStrides& strides, int64_t dim) const {
    if (num_pages_ == 0) return 0;
    return strides.offset(p_.num_kv_heads - 1, num_pages_ - 1, layout_.page_size - 1) + dim;
  }

  // Elements up to the last one that is stored.
  int64_t needed_end(const CacheStrides& strides, int64_t dim) const {
    int64_t end = strides.base;
    for_each_stored_slot([&](const Sequence&, int64_t, int64_t page, int64_t slot) {
      end = std::max(end, strides.offset(p_.num_kv_heads - 1, page, slot) + dim);
    });
    return end;
  }

  template <typename Visit>
  void for_each_stored_slot(Visit visit) const {
    for (size_t s = 0; s < chunks_.size(); ++s) {
      const Sequence& seq = sequence(chunks_[s]);
      const KeyRange keys = stored_keys(chunks_[s]);
      for (int64_t key = keys.begin; key < keys.end; ++key) {
        const int64_t token = key - seq.kv_start;
        visit(seq, key, physical_.at({s, token / layout_.page_size}), token % layout_.page_size);
      }
    }
  }

  // Strides of a [tokens, num_q_heads, dim] tensor.
  struct RowStrides {
    int64_t token, head;
  };
  RowStrides row_strides(int64_t tokens, int64_t dim) const {
    const int64_t step = dim + layout_.gap;
    return layout_.heads_outermost ? RowStrides{step, tokens * step + layout_.gap}
                                   : RowStrides{p_.num_q_heads * step + layout_.gap, step};
  }

  int64_t row_elements(int64_t tokens, int64_t dim) const {
    if (tokens == 0) return 0;
    const RowStrides s = row_strides(tokens, dim);
    return (tokens - 1) * s.token + (p_.num_q_heads - 1) * s.head + dim;
  }

  void lay_out_rows() {
    int64_t tokens = layout_.padding_rows;
    for (const Chunk& chunk : chunks_) tokens += chunk.row_end - chunk.row_begin;

    const RowStrides q = row_strides(tokens, p_.head_dim);
    GuardedBuffer query =
        filled(row_elements(tokens, p_.head_dim), p_.query_dtype, fill_, layout_.guard);
    int64_t token = 0;
    for (const Chunk& chunk : chunks_) {
      for (int64_t row = chunk.row_begin; row < chunk.row_end; ++row, ++token) {
        for (int64_t h = 0; h < p_.num_q_heads; ++h) {
          const float* x = &sequence(chunk).query[(row * p_.num_q_heads + h) * p_.head_dim];
          for (int64_t d = 0; d < p_.head_dim; ++d) {
            store(query.data(), p_.query_dtype, token * q.token + h * q.head + d, x[d]);
          }
        }
      }
    }
    arguments_.query = TensorView(query.data(), p_.query_dtype,
                                  {tokens, p_.num_q_heads, p_.head_dim}, {q.token, q.head, 1});
    arguments_.memory.push_back(std::move(query));
    lay_out_sinks();
    lay_out_outputs(tokens);
  }

  void lay_out_sinks() {
    if (p_.sinks.empty()) return;
    GuardedBuffer sinks(p_.num_q_heads * 4, layout_.guard);
    std::memcpy(sinks.data(), p_.sinks.data(), static_cast<size_t>(sinks.size()));
    arguments_.options.sinks = TensorView(sinks.data(), DType::kFloat32, {p_.num_q_heads});
    arguments_.memory.push_back(std::move(sinks));
  }

  void lay_out_outputs(int64_t tokens) {
    const auto canaries = [&](int64_t num_elements, DType dtype) {
      GuardedBuffer buffer(num_elements * dtype_size(dtype), layout_.guard);
      std::memset(buffer.data(), std::to_integer<int>(kCanary), static_cast<size_t>(buffer.size()));
      return buffer;
    };
    const RowStrides o = row_strides(tokens, p_.v_head_dim);
    arguments_.output_memory = canaries(row_elements(tokens, p_.v_head_dim), p_.query_dtype);
    // The innermost stride is 1, so only lse's tokens can be apart.
    const int64_t lse_stride = p_.num_q_heads + layout_.gap;
    arguments_.lse_memory =
        canaries(tokens == 0 ? 0 : (tokens - 1) * lse_stride + p_.num_q_heads, DType::kFloat32);
    arguments_.output = AttentionOutput(
        MutableTensorView(arguments_.output_memory.data(), p_.query_dtype,
                          {tokens, p_.num_q_heads, p_.v_head_dim}, {o.token, o.head, 1}),
        MutableTensorView(arguments_.lse_memory.data(), DType::kFloat32, {tokens, p_.num_q_heads},
                          {lse_stride, 1}));
  }

  const Problem& p_;
  const std::span<const Chunk> chunks_;
  const Layout& layout_;
  const float fill_;
  std::map<std::pair<size_t, int64_t>, int32_t> physical_;  // (chunk, logical page)
  int64_t num_pages_ = 0;
  Arguments arguments_;
};

}  // namespace

std::string describe(const Layout& layout) {
  return fmt::format(
      "page_size {}, cache order {}, placement {}, gap {}, heads outermost {}, unused {}, {} extra "
      "pages, "
      "{} extra entries, {} padding rows",
      layout.page_size, static_cast<int>(layout.cache_order), layout.placement, layout.gap,
      layout.heads_outermost, static_cast<int>(layout.unused), layout.extra_pages,
      layout.extra_table_entries, layout.padding_rows);
}

Arguments lay_out(const Problem& problem, std::span<const Chunk> chunks, const Layout& layout) {
  return Builder(problem, chunks, layout).build();
}

}  // namespace pagefill::testing
