#include "backends/cpu/schedule.h"

#include <unistd.h>

#include <algorithm>
#include <new>

#include "pagefill/executor.h"

namespace pagefill::cpu {
namespace {

// Below this much work (rows x keys) a task costs more to hand out than to do: one row of a segment is about
// 25 microseconds at head dim 128.
constexpr int64_t kMinTaskWork = kSegmentKv;

// Blocks are split into segments where there are fewer than this many blocks' worth of equal work a
// worker; then the largest task is at most a quarter of a worker's share.
constexpr int64_t kTasksPerWorker = 4;

int64_t segments_begin(KeyRange keys) { return keys.begin / kSegmentKv; }
int64_t num_segments(KeyRange keys) {
  return keys.empty() ? 0 : ceil_div(keys.end, kSegmentKv) - segments_begin(keys);
}
KeyRange segment_keys(KeyRange keys, int64_t index) {
  const int64_t begin = (segments_begin(keys) + index) * kSegmentKv;
  return intersect(keys, {begin, begin + kSegmentKv});
}

// Hands out consecutive aligned pieces of memory; without memory, only counts.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  template <class T>
  std::span<T> take(int64_t count) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kWorkspaceAlignment);
    return {reinterpret_cast<T*>(at), static_cast<size_t>(count)};
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

int64_t block_bytes() {
  static const int64_t bytes =
      std::clamp<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE) / 4, kMinBlockBytes, kMaxBlockBytes);
  return bytes;
}

// The largest block that a worker can meet: at most kMaxRowTiles row tiles, fewer for large head dims.
int64_t max_block_rows(const Problem& p, const Kernel& kernel) {
  const int64_t row_bytes =
      static_cast<int64_t>(sizeof(float)) * std::max(p.head_dim, p.v_head_dim);
  const int64_t tiles = block_bytes() / (row_bytes * kernel.max_tile_rows());
  return std::clamp<int64_t>(tiles, 1, kMaxRowTiles) * kernel.max_tile_rows();
}

// Calls visitor(block, keys) for every block of the call. Blocks of a chunk are nearly equal.
template <class Visitor>
void for_each_block(const Problem& p, const Kernel& kernel, const Visitor& visitor) {
  const int64_t max_rows = max_block_rows(p, kernel);
  for (int64_t s = 0; s < p.num_seqs; ++s) {
    const SequenceGeometry seq = p.sequence(s);
    const int64_t rows = seq.num_rows * p.group;
    if (rows == 0) continue;
    const int64_t block_rows = round_up(ceil_div(rows, ceil_div(rows, max_rows)), kernel.lanes);
    for (int64_t begin = 0; begin < rows; begin += block_rows) {
      const int64_t end = std::min(rows, begin + block_rows);
      const KeyRange keys = p.mask.attended(seq, begin / p.group, ceil_div(end, p.group));
      for (int64_t kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
        visitor(Block{s, kv_head, begin, end, seq}, keys);
      }
    }
  }
}

int64_t block_work(const Block& block, KeyRange keys) { return block.num_rows() * keys.size(); }

// What a call needs, counted before any memory is given out.
struct Counts {
  int64_t total_work = 0;
  int64_t max_task_work = 0;  // a block above it is split
  int64_t tasks = 0;
  int64_t states = 0;
  int64_t block_rows = 0;  // of the largest block
  int64_t state_rows = 0;  // of the largest split block
};

bool is_split(const Block& block, KeyRange keys, const Counts& counts, int num_threads) {
  return num_threads > 1 && num_segments(keys) > 1 &&
         block_work(block, keys) > counts.max_task_work;
}

Counts count(const Problem& p, const Kernel& kernel, int num_threads) {
  Counts c;
  for_each_block(p, kernel, [&](const Block& block, KeyRange keys) {
    c.total_work += block_work(block, keys);
    c.block_rows = std::max(c.block_rows, kernel.padded_rows(block.num_rows()));
  });
  c.max_task_work = std::max(kMinTaskWork, c.total_work / (num_threads * kTasksPerWorker));
  for_each_block(p, kernel, [&](const Block& block, KeyRange keys) {
    const bool split = is_split(block, keys, c, num_threads);
    c.tasks += split ? num_segments(keys) : 1;
    if (split) {
      c.states += num_segments(keys);
      c.state_rows = std::max(c.state_rows, kernel.padded_rows(block.num_rows()));
    }
  });
  return c;
}

State take_state(Arena& arena, const Problem& p, const Kernel& kernel, int64_t rows) {
  return {arena.take<float>(rows).data(), arena.take<float>(rows).data(),
          arena.take<float>(rows * kernel.value_stride(p)).data()};
}

Scratch take_scratch(Arena& arena, const Problem& p, const Kernel& kernel, int64_t rows) {
  const int64_t tile_rows = std::min(rows, std::max(kernel.max_tile_rows(), kFewRows));
  Scratch s;
  s.queries = arena.take<float>(rows * p.head_dim).data();
  s.attended_begin = arena.take<int32_t>(rows).data();
  s.attended_end = arena.take<int32_t>(rows).data();
  s.visible_begin = arena.take<int32_t>(rows).data();
  s.visible_end = arena.take<int32_t>(rows).data();
  s.scores = arena.take<float>(kernel.tile_kv * tile_rows).data();
  s.rescale = arena.take<float>(tile_rows).data();
  if (p.key_cache.dtype != DType::kFloat32) s.keys = arena.take<float>(kTileKv * p.head_dim).data();
  s.key_rows = arena.take<const void*>(kTileKv).data();
  s.values = arena.take<float>(kTileKv * kernel.value_stride(p)).data();
  s.total = take_state(arena, p, kernel, rows);
  s.part = take_state(arena, p, kernel, rows);
  return s;
}

struct Pieces {
  Schedule schedule;
  Counts counts;
};

// Lays the schedule out in the arena's memory; the spans are not filled in yet.
Pieces lay_out(Arena& arena, const Problem& p, const Kernel& kernel, int num_threads) {
  Pieces pieces;
  pieces.counts = count(p, kernel, num_threads);
  const Counts& c = pieces.counts;
  Schedule& s = pieces.schedule;
  s.num_workers = static_cast<int>(std::min<int64_t>(num_threads, c.tasks));
  s.tasks = arena.take<Task>(c.tasks);
  s.scratch = arena.take<Scratch>(s.num_workers);
  s.states = arena.take<State>(c.states);
  s.segments_left = arena.take<std::atomic<int32_t>>(c.states);
  return pieces;
}

}  // namespace

size_t schedule_size(const Problem& p, const Kernel& kernel, int num_threads) {
  Arena arena(nullptr);
  const Pieces pieces = lay_out(arena, p, kernel, num_threads);
  const Counts& c = pieces.counts;
  Arena worker(nullptr), state(nullptr);
  take_scratch(worker, p, kernel, c.block_rows);
  take_state(state, p, kernel, c.state_rows);
  return arena.used() + worker.used() * pieces.schedule.num_workers + state.used() * c.states;
}

Schedule make_schedule(const Problem& p, const Kernel& kernel, int num_threads,
                       std::span<std::byte> workspace) {
  Arena arena(workspace.data());
  Pieces pieces = lay_out(arena, p, kernel, num_threads);
  const Counts& c = pieces.counts;
  Schedule& s = pieces.schedule;
  for (Scratch& scratch : s.scratch) {
    new (&scratch) Scratch(take_scratch(arena, p, kernel, c.block_rows));
  }
  for (State& state : s.states) new (&state) State(take_state(arena, p, kernel, c.state_rows));
  for (auto& left : s.segments_left) new (&left) std::atomic<int32_t>(0);

  Task* task = s.tasks.data();
  int64_t state = 0;
  for_each_block(p, kernel, [&](const Block& block, KeyRange keys) {
    if (!is_split(block, keys, c, num_threads)) {
      new (task++) Task{block, keys, -1, 1, 0, block_work(block, keys)};
      return;
    }
    const auto segments = static_cast<int32_t>(num_segments(keys));
    s.segments_left[state].store(segments, std::memory_order_relaxed);
    for (int32_t i = 0; i < segments; ++i) {
      const KeyRange part = segment_keys(keys, i);
      new (task++) Task{block, part, i, segments, state, block_work(block, part)};
    }
    state += segments;
  });
  std::sort(s.tasks.begin(), s.tasks.end(),
            [](const Task& a, const Task& b) { return a.work > b.work; });
  return s;
}

namespace {

// Segments one after another, merged in order: what split blocks do in parallel.
void run_block(const Problem& p, const Kernel& kernel, const Task& task, const Scratch& scratch,
               const Cancellation& cancellation) {
  kernel.load_queries(p, task.block, scratch);
  kernel.attend_segment(p, task.block, segment_keys(task.keys, 0), task.keys, scratch,
                        scratch.total);
  for (int64_t i = 1; i < num_segments(task.keys); ++i) {
    if (cancellation.requested()) return;
    kernel.attend_segment(p, task.block, segment_keys(task.keys, i), task.keys, scratch,
                          scratch.part);
    kernel.merge(p, task.block, scratch.total, scratch.part);
  }
  kernel.write_output(p, task.block, scratch.total);
}

// Whoever finishes a block's last segment merges them all, in order.
void run_segment(const Problem& p, const Kernel& kernel, const Task& task, const Scratch& scratch,
                 const Schedule& schedule) {
  const auto states = schedule.states.subspan(task.first_state, task.num_segments);
  kernel.load_queries(p, task.block, scratch);
  kernel.attend_segment(p, task.block, task.keys, task.keys, scratch, states[task.segment]);
  if (schedule.segments_left[task.first_state].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  for (int32_t i = 1; i < task.num_segments; ++i) kernel.merge(p, task.block, states[0], states[i]);
  kernel.write_output(p, task.block, states[0]);
}

}  // namespace

void work(const Problem& p, const Kernel& kernel, const Schedule& schedule, int worker,
          std::atomic<int64_t>& next_task, const Cancellation& cancellation) {
  const Scratch& scratch = schedule.scratch[worker];
  const auto num_tasks = static_cast<int64_t>(schedule.tasks.size());
  for (int64_t i; (i = next_task.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
    if (cancellation.requested()) return;
    const Task& task = schedule.tasks[i];
    if (task.segment < 0) {
      run_block(p, kernel, task, scratch, cancellation);
    } else {
      run_segment(p, kernel, task, scratch, schedule);
    }
  }
}

}  // namespace pagefill::cpu
