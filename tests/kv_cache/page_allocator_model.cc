// The page allocator against a model without pages: every sequence has a copy of all its tokens.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <set>
#include <vector>

#include "pagefill/kv_cache.h"

namespace pagefill::testing {
namespace {

using SequenceId = PageAllocator::SequenceId;

enum class Kind { kAdd, kFork, kAppend, kTruncate, kDropBefore, kRelease };

// `which` picks the sequence, `amount` the rest, so that an operation stays good while others shrink away.
struct Operation {
  Kind kind;
  size_t which;
  int64_t amount;
};

std::ostream& operator<<(std::ostream& out, const Operation& op) {
  constexpr const char* kNames[] = {"add", "fork", "append", "truncate", "drop_before", "release"};
  return out << kNames[static_cast<int>(op.kind)] << "(" << op.which << ", " << op.amount << ")";
}

rc::Gen<Operation> any_operation() {
  const auto kind = rc::gen::weightedElement<Kind>({{2, Kind::kAdd},
                                                    {3, Kind::kFork},
                                                    {8, Kind::kAppend},
                                                    {3, Kind::kTruncate},
                                                    {2, Kind::kDropBefore},
                                                    {1, Kind::kRelease}});
  return rc::gen::construct<Operation>(kind, rc::gen::inRange<size_t>(0, 6),
                                       rc::gen::inRange<int64_t>(0, 12));
}

struct ModelSequence {
  std::vector<int> tokens;
  int64_t kv_start = 0;
};

// What the allocator says of one sequence.
struct Seen {
  int64_t context_len, kv_start;
  std::vector<int32_t> pages;
  friend bool operator==(const Seen&, const Seen&) = default;
};

class Engine {
 public:
  Engine(int64_t total_num_pages, int64_t page_size)
      : allocator_(std::move(PageAllocator::create(total_num_pages, page_size)).value()),
        memory_(static_cast<size_t>(total_num_pages),
                std::vector<int>(static_cast<size_t>(page_size), -1)) {}

  void run(const Operation& op) {
    if (op.kind == Kind::kAdd) {
      model_[allocator_.add_sequence().value()];
      return;
    }
    if (model_.empty()) return;
    const auto chosen = std::next(model_.begin(), static_cast<long>(op.which % model_.size()));
    const SequenceId id = chosen->first;
    ModelSequence& seq = chosen->second;
    const auto context_len = static_cast<int64_t>(seq.tokens.size());
    switch (op.kind) {
      case Kind::kFork:
        model_.emplace(allocator_.fork(id).value(), seq);
        break;
      case Kind::kAppend:
        append(id, seq, op.amount);
        break;
      case Kind::kTruncate: {
        const int64_t kept = std::max(seq.kv_start, context_len - op.amount);
        RC_ASSERT(allocator_.truncate(id, kept).ok());
        seq.tokens.resize(static_cast<size_t>(kept));
        break;
      }
      case Kind::kDropBefore: {
        RC_ASSERT(allocator_.drop_before(id, op.amount).ok());
        const int64_t whole_pages = std::min(op.amount, context_len) / allocator_.page_size();
        seq.kv_start = std::max(seq.kv_start, whole_pages * allocator_.page_size());
        break;
      }
      default:
        RC_ASSERT(allocator_.release(id).ok());
        model_.erase(id);
    }
  }

  // All that has to hold after every operation.
  void check() const {
    std::map<int32_t, int64_t> holders;
    for (const auto& [id, seq] : model_) {
      const Seen seen = see(id);
      RC_ASSERT(seen.context_len == static_cast<int64_t>(seq.tokens.size()));
      RC_ASSERT(seen.kv_start == seq.kv_start);
      RC_ASSERT(static_cast<int64_t>(seen.pages.size()) == pages_for(seq, seen.context_len));
      for (int64_t p = seq.kv_start; p < seen.context_len; ++p) {
        RC_ASSERT(slot(seen, p) == seq.tokens[static_cast<size_t>(p)]);
      }
      for (int32_t page : seen.pages) ++holders[page];
      RC_ASSERT(std::set<int32_t>(seen.pages.begin(), seen.pages.end()).size() ==
                seen.pages.size());
    }
    for (int64_t page = 0; page < allocator_.total_num_pages(); ++page) {
      const auto found = holders.find(static_cast<int32_t>(page));
      RC_ASSERT(allocator_.reference_count(page) == (found == holders.end() ? 0 : found->second));
    }
    RC_ASSERT(allocator_.num_free_pages() ==
              allocator_.total_num_pages() - static_cast<int64_t>(holders.size()));
    RC_ASSERT(allocator_.num_sequences() == static_cast<int64_t>(model_.size()));
  }

  std::map<SequenceId, Seen> see_all() const {
    std::map<SequenceId, Seen> all;
    for (const auto& [id, seq] : model_) all.emplace(id, see(id));
    return all;
  }

 private:
  Seen see(SequenceId id) const {
    const auto pages = allocator_.page_indices(id).value();
    return {allocator_.context_len(id).value(),
            allocator_.kv_start(id).value(),
            {pages.begin(), pages.end()}};
  }

  int64_t pages_for(const ModelSequence& seq, int64_t context_len) const {
    int64_t count = 0;
    for (int64_t p = seq.kv_start; p < context_len; p += allocator_.page_size()) ++count;
    return count;
  }

  int slot(const Seen& seen, int64_t position) const {
    const int64_t distance = position - seen.kv_start, size = allocator_.page_size();
    return memory_[static_cast<size_t>(seen.pages[static_cast<size_t>(distance / size)])]
                  [static_cast<size_t>(distance % size)];
  }

  // New tokens have numbers of their own, so that whoever reads another's token is found out.
  void append(SequenceId id, ModelSequence& seq, int64_t num_tokens) {
    const auto before = see_all();
    const Seen old = before.at(id);
    const bool partial = (old.context_len - old.kv_start) % allocator_.page_size() != 0;
    const bool must_copy =
        num_tokens > 0 && partial && allocator_.reference_count(old.pages.back()) > 1;
    const int64_t needed = pages_for(seq, old.context_len + num_tokens) -
                           static_cast<int64_t>(old.pages.size()) + (must_copy ? 1 : 0);
    const int64_t num_free = allocator_.num_free_pages();
    const auto copies = allocator_.append(id, num_tokens);
    RC_ASSERT(copies.ok() == (needed <= num_free));
    if (!copies.ok()) {
      RC_ASSERT(copies.status().code() == StatusCode::kResourceExhausted);
      RC_ASSERT(see_all() == before);
      return;
    }
    RC_ASSERT(copies.value().size() == (must_copy ? 1u : 0u));
    for (const PageCopy& copy : copies.value()) {
      for (int32_t i = 0; i < copy.num_slots; ++i) {
        memory_[static_cast<size_t>(copy.destination)][static_cast<size_t>(i)] =
            memory_[static_cast<size_t>(copy.source)][static_cast<size_t>(i)];
      }
    }
    const Seen now = see(id);
    for (int64_t i = 0; i < num_tokens; ++i) {
      const int64_t distance = old.context_len + i - now.kv_start, size = allocator_.page_size();
      memory_[static_cast<size_t>(now.pages[static_cast<size_t>(distance / size)])]
             [static_cast<size_t>(distance % size)] = next_token_;
      seq.tokens.push_back(next_token_++);
    }
  }

  PageAllocator allocator_;
  std::vector<std::vector<int>> memory_;
  std::map<SequenceId, ModelSequence> model_;
  int next_token_ = 0;
};

RC_GTEST_PROP(PageAllocatorModel, EverySequenceAlwaysReadsItsOwnTokens, ()) {
  const auto total_num_pages = *rc::gen::inRange<int64_t>(0, 12);
  const auto page_size = *rc::gen::inRange<int64_t>(1, 6);
  const auto operations = *rc::gen::container<std::vector<Operation>>(any_operation());
  Engine engine(total_num_pages, page_size), twin(total_num_pages, page_size);
  for (const Operation& op : operations) {
    engine.run(op);
    engine.check();
    twin.run(op);
    RC_ASSERT(engine.see_all() == twin.see_all());  // the same pages for the same calls
  }
}

}  // namespace
}  // namespace pagefill::testing
