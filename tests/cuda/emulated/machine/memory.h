// A block's shared memory as threads and as the engine see it, and the copies into it that nobody waits for.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace emulated {

class Block;

inline constexpr size_t kMostSharedBytes =
    227 * 1024;  // a block may ask for, of compute capability 9.0
inline constexpr uint32_t kChunkBytes = 16;
inline constexpr uint32_t kSharedBase = 1024;  // the first address: one that was forgotten is none

// Copies and tensor cores (the asynchronous proxy) see what ordinary writes and cp.async (the generic proxy) have
// written only behind a fence. So there is for each 16 bytes what the tensor cores see, and when it was written.
class SharedMemory {
 public:
  SharedMemory(size_t bytes, int poison);

  std::byte* at(uint32_t address) const;
  bool contains(uint32_t address, uint32_t bytes) const;
  // What follows the block's memory is as it was, or a message.
  std::string overrun() const;

  void write_as_thread(uint64_t now, uint32_t to, const void* from, uint32_t bytes);
  void write_as_engine(uint64_t now, uint32_t to, const void* from, uint32_t bytes);
  // 16 bytes for the tensor cores, after fences at `fence` or later; null where a fence is missing.
  const std::byte* read_as_engine(uint32_t address, uint64_t fence);

 private:
  struct Chunk {
    uint64_t time = 0;  // of its last known write
    bool by_thread = false;
  };
  size_t bytes_;
  int poison_;
  std::vector<Chunk> chunks_;
  std::vector<std::byte> seen_;  // by the tensor cores
};

// One cp.async.
struct Copy {
  uint32_t to;
  const void* from;
  int bytes, read;
};

// A thread's copies: those that no barrier and no group has yet, and its groups.
struct ThreadCopies {
  std::vector<Copy> open;
  int groups = 0, groups_done = 0;
  std::vector<int> waiters;
  bool are_awaited() const { return open.empty() && groups == groups_done; }
};

struct Box {
  uint32_t to;
  std::array<std::byte, 128>
      map;  // as the box was asked for: a kernel's parameters end with its last thread
  uint32_t barrier;
  std::array<int, 4> at;
};

// What is under way beside the threads.
class Engine {
 public:
  bool is_idle() const { return work_.empty(); }
  void do_one(Block& block, uint32_t choice);

  void add_group(Block& block);                      // of the running thread's open copies
  void add_arrival(Block& block, uint32_t barrier);  // behind them
  void add_box(Block& block, const Box& box);

 private:
  struct Work {
    enum Kind { kGroup, kArrival, kBox } kind;
    int thread = 0;
    std::vector<Copy> copies;
    uint32_t barrier = 0;
    Box box{};
  };
  void add(Block& block, Work work);
  void do_it(Block& block, const Work& work);
  std::deque<Work> work_;
};

}  // namespace emulated
