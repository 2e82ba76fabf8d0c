// Barriers in shared memory (mbarrier), which count arrivals and bytes, and the named ones (bar).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace emulated {

class Block;

class Barriers {
 public:
  // mbarrier. A phase is over when all arrivals and all announced bytes have come.
  void init(Block& block, uint32_t address, uint32_t arrivals);
  void fence_init();
  void arrive(Block& block, uint32_t address, uint32_t bytes);  // bytes: expected besides
  void add_pending(Block& block, uint32_t address);             // an arrival more in this phase
  void complete_bytes(Block& block, uint32_t address, uint32_t bytes);
  bool has_completed(Block& block, uint32_t address, uint32_t parity);
  void wait(Block& block, uint32_t address, uint32_t parity);
  void expect_engine_may_use(Block& block, uint32_t address);
  std::string describe(uint32_t address, uint32_t parity) const;

  // bar: `waits` until `threads` have come; true where one of them came with a true predicate.
  bool come(Block& block, uint32_t name, uint32_t threads, bool waits, bool predicate);
  std::string describe_named(uint32_t name) const;

 private:
  struct MemoryBarrier {
    int expected = 0, pending = 0;
    int64_t bytes = 0;  // that are still to come; below 0 where they come before they are announced
    uint32_t phase = 0;
    bool is_fenced = false;  // the engine knows that it is there
    std::vector<int> waiters;
  };
  struct NamedBarrier {
    uint32_t threads = 0, come = 0, generation = 0;
    bool found = false;
    std::array<bool, 2> result{};
    std::vector<int> waiters;
  };
  MemoryBarrier& at(Block& block, uint32_t address);
  void end_phase_if_complete(Block& block, MemoryBarrier& barrier);

  std::unordered_map<uint32_t, MemoryBarrier> memory_;
  std::array<NamedBarrier, 16> named_;
};

}  // namespace emulated
