#include "machine/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "machine/block.h"
#include "machine/device.h"
#include "machine/tensor_map.h"

// Where kernels find their shared memory: `extern __shared__ char memory[]`.
namespace pagefill::cuda::sm90 {
alignas(1024) thread_local char memory[emulated::kMostSharedBytes + 1024];
}
namespace pagefill::cuda {  // the portable kernel's: the same bytes
extern thread_local char memory[] __attribute__((alias("_ZN8pagefill4cuda4sm906memoryE")));
}

namespace emulated {
namespace {

std::byte* shared() { return reinterpret_cast<std::byte*>(pagefill::cuda::sm90::memory); }

}  // namespace

SharedMemory::SharedMemory(size_t bytes, int poison)
    : bytes_(bytes),
      poison_(poison),
      chunks_(bytes / kChunkBytes + 1),
      seen_(bytes + kChunkBytes, static_cast<std::byte>(poison)) {
  std::memset(shared(), poison, kMostSharedBytes + 1024);
}

bool SharedMemory::contains(uint32_t address, uint32_t bytes) const {
  return address >= kSharedBase && address - kSharedBase + uint64_t{bytes} <= bytes_;
}

std::byte* SharedMemory::at(uint32_t address) const { return shared() + (address - kSharedBase); }

std::string SharedMemory::overrun() const {
  const std::byte* const end = shared() + kMostSharedBytes + 1024;
  const bool is_whole = std::all_of<const std::byte*>(
      shared() + bytes_, end, [&](std::byte b) { return b == static_cast<std::byte>(poison_); });
  return is_whole ? "" : "memory behind the block's shared memory was written";
}

void SharedMemory::write_as_thread(uint64_t now, uint32_t to, const void* from, uint32_t bytes) {
  std::memcpy(at(to), from, bytes);
  std::memcpy(&seen_[to - kSharedBase], from, bytes);
  for (uint32_t i = (to - kSharedBase) / kChunkBytes; i * kChunkBytes < to - kSharedBase + bytes;
       ++i)
    chunks_[i] = {now, true};
}

void SharedMemory::write_as_engine(uint64_t now, uint32_t to, const void* from, uint32_t bytes) {
  std::memcpy(at(to), from, bytes);
  std::memcpy(&seen_[to - kSharedBase], from, bytes);
  for (uint32_t i = (to - kSharedBase) / kChunkBytes; i * kChunkBytes < to - kSharedBase + bytes;
       ++i)
    chunks_[i] = {now, false};
}

const std::byte* SharedMemory::read_as_engine(uint32_t address, uint64_t fence) {
  const uint32_t offset = address - kSharedBase;
  const Chunk& chunk = chunks_[offset / kChunkBytes];
  std::byte* const seen = &seen_[offset];
  // Ordinary writes are found by what they change; their time is not known, but is after the chunk's.
  const bool is_changed = std::memcmp(seen, at(address), kChunkBytes) != 0;
  if ((chunk.by_thread || is_changed) && chunk.time >= fence) return nullptr;
  if (is_changed) std::memcpy(seen, at(address), kChunkBytes);
  return seen;
}

void Engine::add_group(Block& block) {
  Thread& thread = block.thread();
  ++thread.copies.groups;
  Work work{Work::kGroup, block.index(), std::move(thread.copies.open)};
  thread.copies.open.clear();
  add(block, std::move(work));
}

void Engine::add_arrival(Block& block, uint32_t barrier) {
  Thread& thread = block.thread();
  block.barriers.add_pending(block, barrier);
  Work work{Work::kArrival, block.index(), std::move(thread.copies.open), barrier};
  thread.copies.open.clear();
  add(block, std::move(work));
}

void Engine::add_box(Block& block, const Box& box) {
  add(block, {Work::kBox, block.index(), {}, box.barrier, box});
}

void Engine::add(Block& block, Work work) {
  if (block.schedule().copies == Moment::kEarly) {
    do_it(block, work);
  } else {
    work_.push_back(std::move(work));
  }
}

// A thread's groups are done in their order; all else in any.
void Engine::do_one(Block& block, uint32_t choice) {
  size_t i = choice % work_.size();
  for (size_t before = 0; before < i; ++before) {
    if (work_[before].kind != Work::kBox && work_[before].thread == work_[i].thread) i = before;
  }
  const Work work = std::move(work_[i]);
  work_.erase(work_.begin() + static_cast<std::ptrdiff_t>(i));
  do_it(block, work);
}

void Engine::do_it(Block& block, const Work& work) {
  if (work.kind == Work::kBox) {
    const uint32_t bytes = bring_box(block, work.box);
    block.barriers.complete_bytes(block, work.barrier, bytes);
    return;
  }
  for (const Copy& copy : work.copies) {
    std::array<std::byte, 16> bytes{};
    std::memcpy(bytes.data(), copy.from, static_cast<size_t>(copy.read));
    block.memory.write_as_thread(block.now(), copy.to, bytes.data(),
                                 static_cast<uint32_t>(copy.bytes));
  }
  if (work.kind == Work::kGroup) {
    ThreadCopies& copies = block.thread_at(work.thread).copies;
    ++copies.groups_done;
    block.wake(copies.waiters);
  } else {
    block.barriers.arrive(block, work.barrier, 0);
  }
}

uint32_t shared_address(const void* p) {
  const auto* const byte = static_cast<const std::byte*>(p);
  if (byte < shared() || byte > shared() + kMostSharedBytes)
    present_block().fail("an address of shared memory is none");
  return kSharedBase + static_cast<uint32_t>(byte - shared());
}

void fence_proxy() { present_block().thread().proxy_fence = present_block().now(); }

void copy_async(uint32_t to, const void* from, int bytes, int read) {
  Block& block = present_block();
  if (!block.memory.contains(to, static_cast<uint32_t>(bytes)) ||
      to % static_cast<uint32_t>(bytes) != 0)
    block.fail(fmt::format("cp.async of {} bytes to {:#x}", bytes, to));
  if (reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(bytes) != 0)
    block.fail(fmt::format("cp.async of {} bytes from {}", bytes, from));
  if (read < 0 || read > bytes)
    block.fail(fmt::format("cp.async of {} bytes reads {}", bytes, read));
  ++counts().copies;
  block.thread().copies.open.push_back({to, from, bytes, read});
}

void commit_copies() { present_block().engine.add_group(present_block()); }

void wait_for_copies(int pending) {
  Block& block = present_block();
  ThreadCopies& copies = block.thread().copies;
  block.wait_until([&] { return copies.groups - copies.groups_done <= pending; }, {Wait::kCopies},
                   copies.waiters);
}

void arrive_behind_copies(uint32_t barrier) {
  present_block().engine.add_arrival(present_block(), barrier);
}

void copy_box(uint32_t to, const void* map, uint32_t barrier, int x, int y, int z, int w) {
  Block& block = present_block();
  block.barriers.expect_engine_may_use(block, barrier);
  ++counts().boxes;
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0)
    block.fail("a tensor map lies at no multiple of 64");
  Box box{to, {}, barrier, {x, y, z, w}};
  std::memcpy(box.map.data(), map, sizeof(box.map));
  block.engine.add_box(block, box);
  block.yield();
}

}  // namespace emulated
