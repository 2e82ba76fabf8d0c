// A block of threads, each a fiber, one of which runs at a time. They take turns where one waits.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "machine/barriers.h"
#include "machine/fiber.h"
#include "machine/memory.h"
#include "machine/products.h"
#include "machine/schedule.h"

namespace emulated {

inline constexpr int kWarpThreads = 32;

// What all lanes of a warp do together.
enum class Collective {
  kSync,
  kShuffle,
  kVote,
  kElect,
  kMultiplyBFloat16,
  kMultiplyFloat16,
  kLoadMatrices
};

// What a thread waits for; to be told where no thread can go on.
struct Wait {
  enum What { kNothing, kWarp, kNamedBarrier, kMemoryBarrier, kProducts, kCopies, kRegisters } what;
  uint32_t where = 0;   // a barrier's name or address; registers; products
  uint32_t parity = 0;  // of a phase
};

struct Thread {
  Context context;
  Wait wait{Wait::kNothing};
  bool has_ended = false;
  ThreadCopies copies;
  ThreadProducts products;
  uint64_t proxy_fence =
      0;  // when it has last made writes visible to the engine and the tensor cores
  int registers = 0;
};

struct Warp {
  uint32_t ready = 0;  // lanes that can go on
  uint32_t arrived = 0, waiting = 0;
  uint32_t generation = 0;
  Collective collective{};
  uint64_t in[kWarpThreads], out[2][kWarpThreads];
};

class Block {
 public:
  Block(int num_threads, size_t shared_bytes, const Schedule& schedule);

  // Runs `body` in every thread. Empty, or why it failed.
  std::string run(const std::function<void()>& body);

  // Of the running thread.
  Thread& thread() { return threads_[static_cast<size_t>(running_)]; }
  int index() const { return running_; }
  int num_threads() const { return static_cast<int>(threads_.size()); }
  Thread& thread_at(int i) { return threads_[static_cast<size_t>(i)]; }

  // Waits until done() holds, which somebody changes who then calls wake.
  template <typename Done>
  void wait_until(const Done& done, Wait wait, std::vector<int>& waiters) {
    while (!done()) {
      waiters.push_back(running_);
      suspend(wait);
    }
  }
  void wake(std::vector<int>& waiters);
  // Others may go on before the running thread does: where their order is to be shaken.
  void yield();
  // What all lanes of a warp have come with. The last one does `complete` with it, while the others wait.
  const uint64_t* collect(Collective collective, uint64_t value,
                          void (*complete)(const uint64_t* values) = nullptr);
  [[noreturn]] void fail(const std::string& why);

  Moment moment_of(Moment wished);  // kEarly or kLate
  const Schedule& schedule() const { return schedule_; }
  uint64_t now() { return ++time_; }

  SharedMemory memory;
  Barriers barriers;
  Engine engine;  // that copies
  std::vector<Warpgroup> warpgroups;
  std::vector<int> waiting_for_registers;
  int free_registers = 0;

 private:
  friend void thread_entry();
  void suspend(Wait wait);
  void make_ready(int thread) {
    warps_[thread / kWarpThreads].ready |= 1u << thread % kWarpThreads;
    ready_warps_ |= 1u << thread / kWarpThreads;
  }
  int pick();
  void resume(int thread);
  std::string stuck();
  std::string describe(const Wait& wait);

  Schedule schedule_;
  std::mt19937 random_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  uint32_t ready_warps_ = 0;  // of which some lane can go on
  const std::function<void()>* body_ = nullptr;
  Context outside_;
  std::string failure_;
  int running_ = 0, num_ended_ = 0, last_warp_ = 0;
  uint64_t time_ = 0, num_switches_ = 0;
};

// The block that runs.
Block& present_block();
bool is_running();

}  // namespace emulated
