#include "machine/barriers.h"

#include <fmt/format.h>

#include "machine/block.h"
#include "machine/device.h"

namespace emulated {
namespace {

constexpr int64_t kMostBytes = (1 << 20) - 1;  // that a phase can count

}  // namespace

void Barriers::init(Block& block, uint32_t address, uint32_t arrivals) {
  if (address % 8 != 0 || !block.memory.contains(address, 8))
    block.fail(fmt::format("mbarrier.init at {:#x}", address));
  if (arrivals == 0) block.fail(fmt::format("mbarrier at {:#x} of no arrivals", address));
  MemoryBarrier barrier;
  barrier.expected = barrier.pending = static_cast<int>(arrivals);
  memory_[address] = barrier;
}

void Barriers::fence_init() {
  for (auto& [address, barrier] : memory_) barrier.is_fenced = true;
}

Barriers::MemoryBarrier& Barriers::at(Block& block, uint32_t address) {
  const auto found = memory_.find(address);
  if (found == memory_.end())
    block.fail(fmt::format("no mbarrier was initialised at {:#x}", address));
  return found->second;
}

void Barriers::expect_engine_may_use(Block& block, uint32_t address) {
  if (!at(block, address).is_fenced)
    block.fail(fmt::format("no fence lies between the mbarrier.init at {:#x} and a copy", address));
}

void Barriers::end_phase_if_complete(Block& block, MemoryBarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.expected;
  block.wake(barrier.waiters);
}

void Barriers::arrive(Block& block, uint32_t address, uint32_t bytes) {
  MemoryBarrier& barrier = at(block, address);
  if (barrier.pending == 0)
    block.fail(fmt::format("mbarrier at {:#x}: more arrivals than it waits for", address));
  --barrier.pending;
  barrier.bytes += bytes;
  if (barrier.bytes > kMostBytes)
    block.fail(fmt::format("mbarrier at {:#x}: too many bytes", address));
  end_phase_if_complete(block, barrier);
}

void Barriers::add_pending(Block& block, uint32_t address) { ++at(block, address).pending; }

void Barriers::complete_bytes(Block& block, uint32_t address, uint32_t bytes) {
  MemoryBarrier& barrier = at(block, address);
  barrier.bytes -= bytes;
  end_phase_if_complete(block, barrier);
}

bool Barriers::has_completed(Block& block, uint32_t address, uint32_t parity) {
  return (at(block, address).phase & 1) != parity;
}

void Barriers::wait(Block& block, uint32_t address, uint32_t parity) {
  MemoryBarrier& barrier = at(block, address);
  block.wait_until([&] { return (barrier.phase & 1) != parity; },
                   {Wait::kMemoryBarrier, address, parity}, barrier.waiters);
}

std::string Barriers::describe(uint32_t address, uint32_t parity) const {
  const MemoryBarrier& b = memory_.at(address);
  return fmt::format(
      "parity {} of the mbarrier at {:#x} (phase {}: {} of {} arrivals and {} bytes to come)",
      parity, address, b.phase, b.pending, b.expected, b.bytes);
}

bool Barriers::come(Block& block, uint32_t name, uint32_t threads, bool waits, bool predicate) {
  if (name >= named_.size() || threads % kWarpThreads != 0)
    block.fail(fmt::format("barrier {} of {} threads", name, threads));
  NamedBarrier& b = named_[name];
  if (b.come == 0) b.threads = threads, b.found = false;
  if (b.threads != threads)
    block.fail(
        fmt::format("barrier {}: {} threads, where others expect {}", name, threads, b.threads));
  b.found |= predicate;
  const uint32_t generation = b.generation;
  if (++b.come == threads) {
    b.result[generation & 1] = b.found;
    b.come = 0;
    ++b.generation;
    block.wake(b.waiters);
  } else if (waits) {
    block.wait_until([&] { return b.generation != generation; }, {Wait::kNamedBarrier, name},
                     b.waiters);
  }
  return b.result[generation & 1];
}

std::string Barriers::describe_named(uint32_t name) const {
  const NamedBarrier& b = named_[name];
  return fmt::format("barrier {} ({} of {} threads have come)", name, b.come, b.threads);
}

void init_barrier(uint32_t barrier, uint32_t arrivals) {
  present_block().barriers.init(present_block(), barrier, arrivals);
}
void fence_barrier_init() { present_block().barriers.fence_init(); }
void arrive(uint32_t barrier) {
  present_block().barriers.arrive(present_block(), barrier, 0);
  present_block().yield();
}
void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  present_block().barriers.expect_engine_may_use(present_block(), barrier);
  present_block().barriers.arrive(present_block(), barrier, bytes);
  present_block().yield();
}
bool has_completed(uint32_t barrier, uint32_t parity) {
  return present_block().barriers.has_completed(present_block(), barrier, parity);
}
void wait(uint32_t barrier, uint32_t parity) {
  present_block().barriers.wait(present_block(), barrier, parity);
}

void sync_threads() { sync_threads_or(false); }
bool sync_threads_or(bool predicate) {
  return named_or(0, static_cast<uint32_t>(present_block().num_threads()), predicate);
}
void named_wait(uint32_t name, uint32_t threads) { named_or(name, threads, false); }
void named_arrive(uint32_t name, uint32_t threads) {
  present_block().barriers.come(present_block(), name, threads, false, false);
  present_block().yield();
}
bool named_or(uint32_t name, uint32_t threads, bool predicate) {
  return present_block().barriers.come(present_block(), name, threads, true, predicate);
}

// A block has as many registers as it was launched with: what some give others can take.
void set_registers(int registers, bool takes) {
  Block& block = present_block();
  Thread& thread = block.thread();
  if (registers % 8 != 0 || registers < 24 || registers > 256)
    block.fail(fmt::format("setmaxnreg {}", registers));
  const int more = registers - thread.registers;
  if (takes ? more < 0 : more > 0)
    block.fail(fmt::format("setmaxnreg from {} to {}, the wrong way", thread.registers, registers));
  block.wait_until([&] { return block.free_registers >= more; },
                   {Wait::kRegisters, static_cast<uint32_t>(registers)},
                   block.waiting_for_registers);
  block.free_registers -= more;
  thread.registers = registers;
  block.wake(block.waiting_for_registers);
}

void sync_warp() { present_block().collect(Collective::kSync, 0); }
uint64_t shuffle(uint64_t value, int from_lane) {
  return present_block().collect(Collective::kShuffle, value)[from_lane];
}
uint32_t ballot(bool predicate) {
  const uint64_t* const all = present_block().collect(Collective::kVote, predicate ? 1 : 0);
  uint32_t mask = 0;
  for (int lane = 0; lane < kWarpThreads; ++lane) mask |= static_cast<uint32_t>(all[lane]) << lane;
  return mask;
}
bool elect() {
  present_block().collect(Collective::kElect, 0);
  return present_block().index() % kWarpThreads ==
         static_cast<int>(present_block().schedule().seed % kWarpThreads);
}

}  // namespace emulated
