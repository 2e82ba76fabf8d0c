#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <new>
#include <unordered_map>

#include "checks.h"
#include "geometry.h"
#include "pagefill/kv_cache.h"

namespace pagefill {
namespace {

// Positions and page numbers are int32 in the metadata of a call.
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// Room for `count` elements more, growing by factors: reserve() alone grows by no more than asked for.
template <typename T>
void reserve_more(std::vector<T>& elements, size_t count) {
  const size_t needed = elements.size() + count;
  if (needed > elements.capacity()) elements.reserve(std::max(needed, 2 * elements.capacity()));
}

// Page numbers, and how many sequences hold each. The page that was freed last is handed out first, then
// those that never were, in ascending order. Takes memory for those that were handed out, not for all.
class PagePool {
 public:
  explicit PagePool(int64_t total_num_pages) : total_num_pages_(total_num_pages) {}

  int64_t total_num_pages() const { return total_num_pages_; }
  int64_t num_free() const {
    return total_num_pages_ - static_cast<int64_t>(holders_.size() - free_.size());
  }
  int64_t holders(int64_t page) const {
    return page >= 0 && page < static_cast<int64_t>(holders_.size()) ? holders_[page] : 0;
  }

  // So that neither the next `count` calls of take nor any later drop allocates.
  void prepare(int64_t count) {
    const auto taken = static_cast<size_t>(count);
    const size_t fresh = taken > free_.size() ? taken - free_.size() : 0;
    reserve_more(holders_, fresh);
    free_.reserve(holders_.capacity());
  }

  int32_t take() {
    if (free_.empty()) {
      holders_.push_back(1);
      return static_cast<int32_t>(holders_.size() - 1);
    }
    const int32_t page = free_.back();
    free_.pop_back();
    holders_[page] = 1;
    return page;
  }
  void share(int32_t page) { ++holders_[page]; }
  void drop(int32_t page) {
    if (--holders_[page] == 0) free_.push_back(page);
  }

 private:
  int64_t total_num_pages_;
  std::vector<int64_t> holders_;  // of the pages that were ever handed out
  std::vector<int32_t> free_;     // of those, the ones that nobody holds
};

struct Sequence {
  int64_t context_len = 0;
  int64_t kv_start = 0;        // a multiple of page_size
  std::vector<int32_t> table;  // the live pages come behind `num_dropped` others
  size_t num_dropped = 0;

  std::span<const int32_t> pages() const { return std::span(table).subspan(num_dropped); }
  int64_t pages_for(int64_t len, int64_t page_size) const {
    return ceil_div(len - kv_start, page_size);
  }
};

Status check_range(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return {};
  return invalid_argument(fmt::format("{}: expected {} to {}, got {}", name, min, max, value));
}

Status unknown_sequence(const char* name, int64_t sequence) {
  return invalid_argument(
      fmt::format("{}: expected a sequence of this allocator, got {}", name, sequence));
}

Status out_of_memory() {
  return Status(StatusCode::kResourceExhausted, "page allocator: out of memory");
}

}  // namespace

struct PageAllocator::State {
  State(int64_t total_num_pages, int64_t slots) : pool(total_num_pages), page_size(slots) {}

  PagePool pool;
  int64_t page_size;
  std::unordered_map<SequenceId, Sequence> sequences;
  SequenceId next_sequence = 0;

  Sequence* find(SequenceId sequence) {
    const auto found = sequences.find(sequence);
    return found == sequences.end() ? nullptr : &found->second;
  }
  // Last page first, so that they are handed out in their old order.
  void keep_pages(Sequence& seq, int64_t num_pages) {
    while (static_cast<int64_t>(seq.pages().size()) > num_pages) {
      pool.drop(seq.table.back());
      seq.table.pop_back();
    }
  }
};

PageAllocator::PageAllocator(std::unique_ptr<State> state) : state_(std::move(state)) {}
PageAllocator::PageAllocator(PageAllocator&&) noexcept = default;
PageAllocator& PageAllocator::operator=(PageAllocator&&) noexcept = default;
PageAllocator::~PageAllocator() = default;

Result<PageAllocator> PageAllocator::create(int64_t total_num_pages, int64_t page_size) try {
  PAGEFILL_RETURN_IF_ERROR(check_range("total_num_pages", total_num_pages, 0, kMaxInt32));
  PAGEFILL_RETURN_IF_ERROR(check_range("page_size", page_size, 1, kMaxInt32));
  return PageAllocator(std::make_unique<State>(total_num_pages, page_size));
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

int64_t PageAllocator::total_num_pages() const { return state_->pool.total_num_pages(); }
int64_t PageAllocator::page_size() const { return state_->page_size; }
int64_t PageAllocator::num_free_pages() const { return state_->pool.num_free(); }
int64_t PageAllocator::num_sequences() const {
  return static_cast<int64_t>(state_->sequences.size());
}
int64_t PageAllocator::reference_count(int64_t page) const { return state_->pool.holders(page); }

Result<PageAllocator::SequenceId> PageAllocator::add_sequence() try {
  state_->sequences.try_emplace(state_->next_sequence);
  return state_->next_sequence++;
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

Result<PageAllocator::SequenceId> PageAllocator::fork(SequenceId parent) try {
  const Sequence* from = state_->find(parent);
  if (from == nullptr) return unknown_sequence("parent", parent);
  const auto pages = from->pages();
  Sequence child{from->context_len, from->kv_start, {pages.begin(), pages.end()}};
  const auto [added, is_new] =
      state_->sequences.try_emplace(state_->next_sequence, std::move(child));
  for (const int32_t page : added->second.pages()) state_->pool.share(page);
  return state_->next_sequence++;
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

Result<std::vector<PageCopy>> PageAllocator::append(SequenceId sequence, int64_t num_tokens) try {
  Sequence* seq = state_->find(sequence);
  if (seq == nullptr) return unknown_sequence("sequence", sequence);
  PAGEFILL_RETURN_IF_ERROR(check_range("num_tokens", num_tokens, 0, kMaxInt32 - seq->context_len));
  if (num_tokens == 0) return std::vector<PageCopy>{};

  PagePool& pool = state_->pool;
  const int64_t page_size = state_->page_size;
  const int64_t slots_in_use = (seq->context_len - seq->kv_start) % page_size;  // of the last page
  const bool copies = slots_in_use > 0 && pool.holders(seq->table.back()) > 1;
  const int64_t new_pages = seq->pages_for(seq->context_len + num_tokens, page_size) -
                            static_cast<int64_t>(seq->pages().size());
  const int64_t needed = new_pages + (copies ? 1 : 0);
  if (needed > pool.num_free()) {
    return Status(
        StatusCode::kResourceExhausted,
        fmt::format("num_tokens: expected no more than fit in {} free pages, got {}, which "
                    "need {}",
                    pool.num_free(), num_tokens, needed));
  }
  pool.prepare(needed);
  reserve_more(seq->table, static_cast<size_t>(new_pages));
  std::vector<PageCopy> result;
  if (copies) result.resize(1);
  // From here on nothing fails.
  if (copies) {
    const int32_t shared = seq->table.back();
    seq->table.back() = pool.take();
    pool.drop(shared);
    result[0] = {shared, seq->table.back(), static_cast<int32_t>(slots_in_use)};
  }
  for (int64_t i = 0; i < new_pages; ++i) seq->table.push_back(pool.take());
  seq->context_len += num_tokens;
  return result;
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

Status PageAllocator::truncate(SequenceId sequence, int64_t context_len) {
  Sequence* seq = state_->find(sequence);
  if (seq == nullptr) return unknown_sequence("sequence", sequence);
  PAGEFILL_RETURN_IF_ERROR(
      check_range("context_len", context_len, seq->kv_start, seq->context_len));
  state_->keep_pages(*seq, seq->pages_for(context_len, state_->page_size));
  seq->context_len = context_len;
  return {};
}

Status PageAllocator::drop_before(SequenceId sequence, int64_t position) {
  Sequence* seq = state_->find(sequence);
  if (seq == nullptr) return unknown_sequence("sequence", sequence);
  if (position < 0) {
    return invalid_argument(fmt::format("position: expected at least 0, got {}", position));
  }
  // A page that the next token goes to stays, however far the window has moved.
  const int64_t end = std::min(position, seq->context_len);
  for (; seq->kv_start + state_->page_size <= end; seq->kv_start += state_->page_size) {
    state_->pool.drop(seq->table[seq->num_dropped++]);
  }
  // Each page is moved up once at most, on average.
  if (2 * seq->num_dropped > seq->table.size()) {
    seq->table.erase(seq->table.begin(),
                     seq->table.begin() + static_cast<std::ptrdiff_t>(seq->num_dropped));
    seq->num_dropped = 0;
  }
  return {};
}

Status PageAllocator::release(SequenceId sequence) {
  Sequence* seq = state_->find(sequence);
  if (seq == nullptr) return unknown_sequence("sequence", sequence);
  state_->keep_pages(*seq, 0);
  state_->sequences.erase(sequence);
  return {};
}

Result<int64_t> PageAllocator::context_len(SequenceId sequence) const {
  const Sequence* seq = state_->find(sequence);
  if (seq == nullptr) return unknown_sequence("sequence", sequence);
  return seq->context_len;
}

Result<int64_t> PageAllocator::kv_start(SequenceId sequence) const {
  const Sequence* seq = state_->find(sequence);
  if (seq == nullptr) return unknown_sequence("sequence", sequence);
  return seq->kv_start;
}

Result<std::span<const int32_t>> PageAllocator::page_indices(SequenceId sequence) const {
  const Sequence* seq = state_->find(sequence);
  if (seq == nullptr) return unknown_sequence("sequence", sequence);
  return seq->pages();
}

}  // namespace pagefill
