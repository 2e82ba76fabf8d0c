#include "machine/block.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <map>

#include "machine/device.h"

namespace emulated {
namespace {

// A launch that takes longer than any of the tests' does not end.
constexpr uint64_t kMostSwitches = uint64_t{1} << 28;

// Registers of a multiprocessor, and how many of them a thread is given at least where threads are few.
constexpr int kRegisters = 65536, kMostRegisters = 255;

Block* present = nullptr;

const Stacks& stacks() {
  static const Stacks stacks(1024);
  return stacks;
}

int registers_at_launch(int num_threads) {
  return std::min(kRegisters / num_threads / 8 * 8, kMostRegisters);
}

}  // namespace

Block& present_block() { return *present; }
bool is_running() { return present != nullptr; }

void thread_entry() {
  Block& block = *present;
  (*block.body_)();
  Thread& thread = block.thread();
  if (!thread.copies.are_awaited()) block.fail("a thread ends without a wait for its copies");
  if (!thread.products.are_done()) block.fail("a thread ends without a wait for its products");
  thread.has_ended = true;
  if (++block.num_ended_ == block.num_threads() && !block.engine.is_idle())
    block.fail("the block ends while copies are under way");
  block.suspend({Wait::kNothing});
}

Block::Block(int num_threads, size_t shared_bytes, const Schedule& schedule)
    : memory(shared_bytes, schedule.poison),
      warpgroups(static_cast<size_t>((num_threads + 127) / 128)),
      schedule_(schedule),
      random_(schedule.seed),
      threads_(static_cast<size_t>(num_threads)),
      warps_(static_cast<size_t>((num_threads + kWarpThreads - 1) / kWarpThreads)) {
  for (Thread& thread : threads_) thread.registers = registers_at_launch(num_threads);
}

std::string Block::run(const std::function<void()>& body) {
  body_ = &body;
  present = this;
  for (int i = 0; i < num_threads(); ++i) {
    thread_at(i).context = stacks().start(i, &thread_entry);
    make_ready(i);
  }
  block_dim = {static_cast<unsigned>(num_threads()), 1, 1};
  const int first = pick();
  running_ = first;
  thread_index = {static_cast<unsigned>(first), 0, 0};
  switch_context(outside_, thread_at(first).context);
  present = nullptr;
  if (failure_.empty() && num_ended_ < num_threads()) failure_ = stuck();
  if (failure_.empty()) failure_ = memory.overrun();
  return failure_;
}

void Block::fail(const std::string& why) {
  failure_ =
      fmt::format("thread {} (warp {}) of block {}: {} ({})", running_, running_ / kWarpThreads,
                  block_index.x, why, emulated::describe(schedule_));
  Context nowhere;
  switch_context(nowhere, outside_);
  std::abort();  // nobody goes on here
}

void Block::suspend(Wait wait) {
  const int self = running_;
  Thread& thread = threads_[static_cast<size_t>(self)];
  thread.wait = wait;
  Warp& warp = warps_[self / kWarpThreads];
  warp.ready &= ~(1u << self % kWarpThreads);
  if (warp.ready == 0) ready_warps_ &= ~(1u << self / kWarpThreads);
  resume(pick());
  thread.wait = {Wait::kNothing};
}

void Block::yield() {
  if (schedule_.order == Order::kInTurn) return;
  if (schedule_.order == Order::kRandom && random_() % 4 != 0) return;
  resume(pick());
}

// Goes on in `next`, or outside where there is none.
void Block::resume(int next) {
  const int self = running_;
  if (next == self) return;
  if (++num_switches_ > kMostSwitches) fail("no end in sight");
  Thread& thread = threads_[static_cast<size_t>(self)];
  if (next < 0) {
    switch_context(thread.context, outside_);
  } else {
    running_ = next;
    thread_index.x = static_cast<unsigned>(next);
    switch_context(thread.context, threads_[static_cast<size_t>(next)].context);
  }
  // Whoever switched here has set running_.
}

// A thread that can go on, or -1. What is under way in the background goes on too.
int Block::pick() {
  if (schedule_.copies == Moment::kRandom && !engine.is_idle() && random_() % 8 == 0) {
    engine.do_one(*this, random_());
  }
  for (;;) {
    uint32_t ready = ready_warps_;
    if (ready == 0) {
      if (engine.is_idle()) return -1;
      engine.do_one(*this, random_());
      continue;
    }
    int warp = 0;
    switch (schedule_.order) {
      case Order::kInTurn: {
        const uint32_t from_last = ready & ~0u << last_warp_;
        warp = std::countr_zero(from_last != 0 ? from_last : ready);
        break;
      }
      case Order::kLowestFirst:
        warp = std::countr_zero(ready);
        break;
      case Order::kHighestFirst:
        warp = 31 - std::countl_zero(ready);
        break;
      case Order::kRandom: {
        // Mostly the same warp as long as it can: its lanes go together.
        if ((ready >> last_warp_ & 1) != 0 && random_() % 16 != 0) {
          warp = last_warp_;
          break;
        }
        for (uint32_t skip = random_() % static_cast<uint32_t>(std::popcount(ready)); skip > 0;
             --skip)
          ready &= ready - 1;
        warp = std::countr_zero(ready);
        break;
      }
    }
    last_warp_ = warp;
    const uint32_t lanes = warps_[static_cast<size_t>(warp)].ready;
    const int lane = schedule_.order == Order::kHighestFirst ? 31 - std::countl_zero(lanes)
                                                             : std::countr_zero(lanes);
    return warp * kWarpThreads + lane;
  }
}

void Block::wake(std::vector<int>& waiters) {
  for (int thread : waiters) make_ready(thread);
  waiters.clear();
}

const uint64_t* Block::collect(Collective collective, uint64_t value,
                               void (*complete)(const uint64_t* values)) {
  Warp& warp = warps_[running_ / kWarpThreads];
  const uint32_t lane = 1u << running_ % kWarpThreads;
  if (warp.arrived == 0) warp.collective = collective;
  if (warp.collective != collective) fail("lanes of a warp are at different collective operations");
  warp.in[running_ % kWarpThreads] = value;
  warp.arrived |= lane;
  const uint32_t generation = warp.generation;
  if (warp.arrived == ~0u) {
    if (complete != nullptr) complete(warp.in);
    std::memcpy(warp.out[generation & 1], warp.in, sizeof(warp.in));
    warp.ready |= warp.waiting;  // and the one that runs is
    warp.arrived = warp.waiting = 0;
    ++warp.generation;
  } else {
    while (warp.generation == generation) {
      warp.waiting |= lane;
      suspend({Wait::kWarp});
    }
  }
  return warp.out[generation & 1];
}

Moment Block::moment_of(Moment wished) {
  if (wished != Moment::kRandom) return wished;
  return random_() % 2 == 0 ? Moment::kEarly : Moment::kLate;
}

std::string Block::describe(const Wait& wait) {
  switch (wait.what) {
    case Wait::kWarp:
      return "the other lanes of its warp";
    case Wait::kNamedBarrier:
      return barriers.describe_named(wait.where);
    case Wait::kMemoryBarrier:
      return barriers.describe(wait.where, wait.parity);
    case Wait::kProducts:
      return fmt::format("the other threads of its warpgroup to issue product {}", wait.where);
    case Wait::kCopies:
      return "its copies";
    case Wait::kRegisters:
      return fmt::format("registers, {} a thread, of which {} are free", wait.where,
                         free_registers);
    default:
      return "nothing";
  }
}

std::string Block::stuck() {
  std::string text =
      fmt::format("deadlock in block {} ({}):", block_index.x, emulated::describe(schedule_));
  for (int begin = 0, end = 0; begin < num_threads(); begin = end) {
    const auto doing = [&](int i) {
      return thread_at(i).has_ended ? "have ended" : "wait for " + describe(thread_at(i).wait);
    };
    while (end < num_threads() && doing(end) == doing(begin)) ++end;
    text += fmt::format("\n  threads {} to {} {}", begin, end - 1, doing(begin));
  }
  return text;
}

std::string describe(const Schedule& s) {
  constexpr const char* kOrders[] = {"in turn", "lowest warp first", "highest warp first",
                                     "warps at random"};
  constexpr const char* kMoments[] = {"early", "late", "at random"};
  return fmt::format("{}, copies {}, products {}, seed {}", kOrders[static_cast<int>(s.order)],
                     kMoments[static_cast<int>(s.copies)], kMoments[static_cast<int>(s.products)],
                     s.seed);
}

Counts& counts() {
  static Counts counts;
  return counts;
}

Schedule& present_schedule() {
  static Schedule schedule;
  return schedule;
}

}  // namespace emulated
