// A consumer warpgroup: 64 rows of a row tile against its KV tiles.
#pragma once

#include "backends/cuda/sm90/finish.cuh"

namespace pagefill::cuda::sm90 {

// Names of barriers of some warps; 0 is __syncthreads'.
inline constexpr int kFirstTurn = 1;  // and the next for the second consumer
inline constexpr int kAllConsumers = 3;

// Consumers take turns at the tensor cores: while one multiplies, the other computes its softmax.
template <class C>
struct Turns {
  int group;
  __device__ __forceinline__ void begin() const {
    if (C::kConsumers == 2 && group == 1) give();
  }
  __device__ __forceinline__ void wait() const {
    if constexpr (C::kConsumers == 2) ptx::named_wait(kFirstTurn + group, C::kConsumerThreads);
  }
  __device__ __forceinline__ void give() const {
    if constexpr (C::kConsumers == 2) {
      ptx::named_arrive(kFirstTurn + 1 - group, C::kConsumerThreads);
    }
  }
};

// The keys of a thread's rows. Found anew for each tile that asks, which few do: registers are short.
struct BothRows {
  RowKeys keys[2];
  __device__ __forceinline__ BothRows(const Arguments& a, const Task& task, int first_row)
      : keys{keys_of_row(a, task, first_row), keys_of_row(a, task, first_row + 8)} {}
};

template <class C>
struct Consumer {
  const Arguments& a;
  int box_rows;
  SharedMemory<C>& shared;
  Turns<C> turns;
  int thread;     // of the consumers'
  int first_row;  // of the thread's two rows, in the row tile
  Totals<C> totals;
  Cursor<C::kStages> keys{}, values{};
  Cursor<C::kQueryBuffers> queries{};
  // Of the present task.
  bool has_boxes = false;
  Tiles all_visible{}, all_attended{};

  __device__ Consumer(const Arguments& arguments, int rows_of_box, SharedMemory<C>& memory)
      : a(arguments),
        box_rows(rows_of_box),
        shared(memory),
        turns{uniform(threadIdx.x / kGroupThreads) - 1},
        thread(static_cast<int>(threadIdx.x) - kGroupThreads),
        first_row(thread / 32 * 16 + thread % 32 / 4),
        totals(arguments, memory, thread) {}

  // What cp.async has written: wgmma reads by another way, and is to see it.
  __device__ __forceinline__ void wait_for_copies(uint64_t& barrier, uint32_t parity) const {
    wait(barrier, parity);
    if (!has_boxes) ptx::fence_proxy();
  }

  __device__ __forceinline__ void wait_for_keys() const {
    wait_for_copies(shared.barriers.keys_full[keys.at], keys.parity);
  }
  // Behind it the scores are on their way.
  __device__ __forceinline__ void begin_scores(Scores<C>& scores) {
    sm90::begin_scores<C>(shared.queries[queries.at] + turns.group * kGroupRows * 128,
                          shared.keys[keys.at], scores);
  }
  // Of the keys that are there.
  __device__ __forceinline__ bool has_bad_keys(const KeyNotes& notes) const {
    return uniform((notes.is_bad[0] | notes.is_bad[1] | notes.is_bad[2] | notes.is_bad[3]) != 0);
  }

  // The scores are there.
  __device__ __forceinline__ void end_scores(bool is_last) {
    arrive_as_warp(shared.barriers.keys_free[keys.at]);
    if (is_last) {
      arrive_as_warp(shared.barriers.queries_free[queries.at]);
      queries.advance();
    }
    keys.advance();
  }

  // Masks and what else few tiles ask for.
  __device__ __forceinline__ void finish_scores(const Task& task, int tile, bool has_bad,
                                                const KeyNotes& notes, Scores<C>& scores) const {
    if (a.weight_factor == 1) scale_scores<C>(a, scores);
    if (!has_bad && all_visible.contains(tile)) return;
    const BothRows rows(a, task, first_row);
    const uint32_t tile_begin = keys_of_tile<C>(tile).begin;
    if (has_bad || a.mask_value != 0) {
      mask_scores<C>(a, notes, tile_begin, rows.keys, scores);
    } else {
      hide_scores<C>(tile_begin, rows.keys, scores);
    }
  }

  // Before the product with a tile's values, where some row does not take all of them.
  __device__ __forceinline__ void clean_values(const Task& task, int tile,
                                               const PackedWeights<C>& weights,
                                               Outputs<C>& output) {
    using T = typename C::Element;
    wait_for_tile_values();
    char* const tile_values = shared.values[values.at];
    const bool found = finds_not_finite<T, C::kTileBytes, C::kConsumerThreads>(tile_values, thread);
    if (!ptx::named_or(kAllConsumers, C::kConsumerThreads, found)) return;
    add_not_finite<C>(weights, tile_values, keys_of_tile<C>(tile).begin,
                      BothRows(a, task, first_row).keys, output);
    ptx::named_wait(kAllConsumers, C::kConsumerThreads);
    remove_not_finite<T, C::kTileBytes, C::kConsumerThreads>(tile_values, thread);
    ptx::fence_proxy();
    ptx::named_wait(kAllConsumers, C::kConsumerThreads);
  }

  __device__ __forceinline__ void wait_for_tile_values() const {
    wait_for_copies(shared.barriers.values_full[values.at], values.parity);
  }
  __device__ __forceinline__ void begin_values(const PackedWeights<C>& weights,
                                               Outputs<C>& output) {
    sm90::begin_values<C>(weights, shared.values[values.at], output);
  }

  static __device__ __forceinline__ void wait_for_values(Outputs<C>& output) {
    ptx::wait_for_products<0>();
    ptx::pin(output);
  }
  __device__ __forceinline__ void end_values() {
    arrive_as_warp(shared.barriers.values_free[values.at]);
    values.advance();
  }

  // Some KV tiles of a task, up to the last one or not. While the scores of one tile are computed, so are the
  // values of the one before it.
  __device__ __forceinline__ void run_tiles(const Task& task, Tiles tiles, bool has_last,
                                            Outputs<C>& output) {
    Scores<C> scores;
    PackedWeights<C> weights;
    Rows2 states;
    has_boxes = uniform(comes_as_boxes(box_rows, task));
    all_visible = tiles_within<C>(task.all_visible);
    all_attended = tiles_within<C>(task.all_attended);
    // Tiles of which that holds, but for bad entries. At head dim 256 a body of its own spills more than it saves.
    const Tiles plain = C::kTotalsAreShared && a.weight_factor != 1
                            ? Tiles{max(all_attended.begin, all_visible.begin - 1),
                                    min(all_attended.end, all_visible.end - 1)}
                            : Tiles{};
    wait(shared.barriers.queries_full[queries.at], queries.parity);
    ptx::fence_proxy();

    wait_for_keys();
    turns.wait();
    begin_scores(scores);
    turns.give();
    const KeyNotes first_notes = shared.notes[keys.at];
    ptx::wait_for_products<0>();
    ptx::pin(scores);
    end_scores(has_last && tiles.begin + 1 == tiles.end);
    finish_scores(task, tiles.begin, has_bad_keys(first_notes), first_notes, scores);
    float rescale[2];
    raise_max<C>(a, scores, states, rescale);  // from nothing
    softmax<C>(a, true, states, scores, weights);

    // Zeros at a segment's beginning: infinities and NaN among the values may be added before the product.
    clear_outputs(output);
    Rows2 ended;  // a segment's, until it is merged
    const auto merge_ended = [&](int tile) {
      keep_segment(ended, is_in_first_segment(tile, tiles), output);
      clear_outputs(output);
    };
    // A tile's values and the next one's scores. kPlain: every row takes all keys of both, no entry is bad, and scores
    // ask for nothing but the factor.
    const auto step = [&]<bool kPlain>(int tile, std::bool_constant<kPlain>) {
      bool has_ended = begins_segment(tile) && tile > tiles.begin;
      KeyNotes notes;
      if constexpr (!kPlain) {
        const bool is_edge = !all_attended.contains(tile);
        // Totals that are far away would keep the turn too long.
        if (has_ended && (is_edge || !C::kTotalsAreShared)) {
          merge_ended(tile - 1);
          has_ended = false;
        }
        if (is_edge) clean_values(task, tile, weights, output);
        notes = shared.notes[keys.at];
      }
      turns.wait();
      begin_scores(scores);
      if (has_ended) merge_ended(tile - 1);  // while the tensor cores have the scores to do
      begin_values(weights, output);
      turns.give();
      ptx::wait_for_products<1>();
      ptx::pin(scores);
      end_scores(has_last && tile + 2 == tiles.end);
      if constexpr (!kPlain) finish_scores(task, tile + 1, has_bad_keys(notes), notes, scores);
      if (begins_segment(tile + 1)) {
        ptx::keep_branch();
        ended = states;
        states = Rows2();
      }
      const bool keeps = keeps_max<C>(states, scores);
      if (!keeps && raise_max<C>(a, scores, states, rescale) && !begins_segment(tile + 1)) {
        wait_for_values(output);
        rescale_outputs<C>(rescale, output);
      }
      // Now and not behind the exponentials: the stage is free earlier, and so are the registers of its weights, in
      // which the next ones are packed beside them.
      wait_for_values(output);
      end_values();
      softmax<C>(a, !keeps, states, scores, weights);
    };
#pragma unroll 1
    for (int tile = tiles.begin; tile + 1 < tiles.end; ++tile) {
      // Both before the turn, which is short.
      wait(shared.barriers.keys_full[keys.at], keys.parity);
      wait_for_tile_values();
      if (plain.contains(tile) && !has_bad_keys(shared.notes[keys.at])) {
        step(tile, std::true_type());
      } else {
        step(tile, std::false_type());
      }
    }
    const int last = tiles.end - 1;
    if (begins_segment(last) && last > tiles.begin) merge_ended(last - 1);
    if (!all_attended.contains(last)) clean_values(task, last, weights, output);
    wait_for_tile_values();
    turns.wait();
    begin_values(weights, output);
    turns.give();
    wait_for_values(output);
    end_values();
    end_segment(states, is_in_first_segment(last, tiles), output);
  }

  // At once, or where it is split segment by segment.
  __device__ __forceinline__ void run_task(const Task& task) {
    const Tiles tiles = tiles_of<C>(task);
    const bool is_split = uniform(task.segment) >= 0;
    Outputs<C> output;
    if (tiles.begin >= tiles.end) {
      totals.rows[0] = totals.rows[1] = RowState();
      clear_outputs(output);
    }
#pragma unroll 1
    for (Tiles some = tiles; some.begin < tiles.end; some.begin = some.end) {
      const int segment = some.begin / C::kSegmentTiles;
      some.end = is_split ? min((segment + 1) * C::kSegmentTiles, tiles.end) : tiles.end;
      run_tiles(task, some, some.end == tiles.end, output);
      if (is_split) write_partial<C>(a, task, segment, first_row, totals.rows, output);
    }
    if (!is_split) write_output<C>(a, task, first_row, totals, output);
  }

 private:
  static __device__ __forceinline__ bool begins_segment(int tile) {
    return tile % C::kSegmentTiles == 0;
  }
  static __device__ __forceinline__ bool is_in_first_segment(int tile, Tiles tiles) {
    return tile / C::kSegmentTiles == tiles.begin / C::kSegmentTiles;
  }
  // A segment's state into the totals.
  __device__ __forceinline__ void keep_segment(const Rows2& ended, bool is_first,
                                               const Outputs<C>& output) {
    RowState part[2];
    states_of(ended, part);
    const auto keep = [&](int col, const float(&x)[4]) {
      totals.memory[col * C::kConsumerThreads] = {x[0], x[1], x[2], x[3]};
    };
    if (!is_first) {
      merge_segment<C>(part, totals, output, keep);
      return;
    }
    totals.rows[0] = part[0], totals.rows[1] = part[1];
#pragma unroll
    for (int col = 0; col < C::kOutputCols; ++col) keep(col, output[col]);
  }
  // The last one's, and what all have come to into `output`.
  __device__ __forceinline__ void end_segment(const Rows2& ended, bool is_first,
                                              Outputs<C>& output) {
    RowState part[2];
    states_of(ended, part);
    if (is_first) {
      totals.rows[0] = part[0], totals.rows[1] = part[1];
      return;
    }
    merge_segment<C>(part, totals, output, [&](int col, const float(&x)[4]) {
#pragma unroll
      for (int e = 0; e < 4; ++e) output[col][e] = x[e];
    });
  }
  static __device__ __forceinline__ void clear_outputs(Outputs<C>& output) {
#pragma unroll
    for (int i = 0; i < 4 * C::kOutputCols; ++i) output[i / 4][i % 4] = 0;
  }
};

template <class C>
__device__ __forceinline__ void consume(const Arguments& a, int box_rows, SharedMemory<C>& shared) {
  Consumer<C> consumer(a, box_rows, shared);
  consumer.turns.begin();
#pragma unroll 1
  for (Cursor<kTaskSlots> slot;; slot.advance()) {
    wait(shared.barriers.task_full[slot.at], slot.parity);
    const Task& task = shared.tasks[slot.at];
    if (uniform(task.plan == nullptr)) {
      if (task.all_are_bad) {
        write_nan(a, 0, a.total_tokens, 0, a.num_q_heads,
                  int64_t{blockIdx.x} * C::kConsumerThreads + consumer.thread,
                  int64_t{gridDim.x} * C::kConsumerThreads);
      }
      return;
    }
    if (!uniform(task.plan->is_bad)) {
      consumer.run_task(task);
    } else {
      write_nan(a, task, consumer.thread, C::kConsumerThreads);
    }
    arrive_as_warp(shared.barriers.task_free[slot.at]);
  }
}

}  // namespace pagefill::cuda::sm90
