// The kernel for Hopper, with the plan, schedule and combine that it has on a device, against the float64 oracle.
#include "cuda/emulated/emulated_run.h"

namespace pagefill::testing {
namespace {

// Decode and prefill, several segments, a whole prompt, and a chunk that is longer than its context.
std::vector<Lengths> mixed() {
  return {{20, 150}, {1, 1100}, {0, 90}, {130, 300}, {5, 5}, {1, 1}, {9, 4}, {3, 2060}};
}

void expect_mixed_right(DType dtype, int64_t head_dim) {
  expect_right_in_all_schedules(random_problem(geometry(dtype, head_dim, mixed())));
}

TEST(Results, BFloat16OfHeadDim64InAllSchedules) { expect_mixed_right(DType::kBFloat16, 64); }
TEST(Results, BFloat16OfHeadDim128InAllSchedules) { expect_mixed_right(DType::kBFloat16, 128); }
TEST(Results, BFloat16OfHeadDim256InAllSchedules) { expect_mixed_right(DType::kBFloat16, 256); }
TEST(Results, Float16OfHeadDim64InAllSchedules) { expect_mixed_right(DType::kFloat16, 64); }
TEST(Results, Float16OfHeadDim128InAllSchedules) { expect_mixed_right(DType::kFloat16, 128); }
TEST(Results, Float16OfHeadDim256InAllSchedules) { expect_mixed_right(DType::kFloat16, 256); }

TEST(Results, FewRowsInAllSchedules) {
  for (int64_t head_dim : {64, 128, 256}) {
    const DType dtype = head_dim == 128 ? DType::kFloat16 : DType::kBFloat16;
    expect_right_in_all_schedules(random_problem(
        geometry(dtype, head_dim, {{1, 2100}, {8, 1030}, {1, 1}, {3, 64}, {2, 129}})));
  }
}

TEST(Results, HeadDimsBetweenTheWidths) {
  for (DType dtype : kHalves) {
    for (int64_t head_dim : {8, 40, 56, 72, 96, 120, 136, 192, 248}) {
      Geometry g = geometry(dtype, head_dim, {{33, 150}, {1, 70}});
      g.v_head_dim = head_dim == 192 ? 128 : head_dim;
      expect_right(random_problem(g));
      expect_right(random_problem(g), {.page_size = 3});
    }
  }
}

TEST(Results, ValuesOfAnotherHeadDim) {
  struct Dims {
    int64_t keys, values;
  };
  for (Dims dims : {Dims{64, 128}, {128, 64}, {40, 24}, {72, 256}, {256, 8}, {24, 200}}) {
    Geometry g = geometry(DType::kBFloat16, dims.keys, {{40, 1100}, {1, 70}});
    g.v_head_dim = dims.values;
    expect_right(random_problem(g));
    g.sequences = {{2, 1100}, {1, 70}};
    expect_right(random_problem(g), {.page_size = 5});
  }
}

TEST(Results, PageSizes) {
  for (int64_t head_dim : {64, 128, 256}) {
    const DType dtype = head_dim == 128 ? DType::kFloat16 : DType::kBFloat16;
    const Problem many = random_problem(geometry(dtype, head_dim, {{70, 300}, {1, 170}}));
    const Problem few = random_problem(geometry(dtype, head_dim, {{2, 300}, {1, 170}}));
    const Expected of_many = oracle(many), of_few = oracle(few);
    for (int64_t page_size : {1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 100, 1056}) {
      const Layout layout = {.page_size = page_size, .placement = 3, .extra_pages = 2};
      expect(of_many, many, layout);
      expect(of_few, few, layout);
    }
  }
}

TEST(Results, ChunksOf1) {
  expect_right(random_problem(geometry(DType::kBFloat16, 64, {{9, 140}})), {}, {1});
}
TEST(Results, ChunksOf16And17) {
  for (int64_t size : {16, 17}) {
    for (DType dtype : kHalves)
      expect_right(random_problem(geometry(dtype, 64, {{51, 1100}, {20, 20}})), {.page_size = 8},
                   {size});
  }
}
TEST(Results, ChunksOf128) {
  for (DType dtype : kHalves)
    expect_right(random_problem(geometry(dtype, 64, {{256, 300}})), {.page_size = 64}, {128});
}
TEST(Results, AChunkOf640) {
  Geometry g = geometry(DType::kBFloat16, 64, {{640, 900}});
  g.num_q_heads = g.num_kv_heads = 1;
  expect_right(random_problem(g));
}

TEST(Results, HeadRatios) {
  struct Heads {
    int64_t q, kv;
  };
  for (Heads heads : {Heads{1, 1}, {3, 1}, {10, 2}, {16, 2}, {33, 1}, {70, 1}, {140, 1}}) {
    for (int64_t rows : {1, 13}) {
      Geometry g = geometry(DType::kBFloat16, 64, {{rows, 140}, {1, 1090}});
      g.num_q_heads = heads.q, g.num_kv_heads = heads.kv;
      expect_right(random_problem(g), {.page_size = 4});
    }
  }
}

TEST(Results, ManySequences) {
  for (int64_t num_seqs : {40, 1030}) {
    std::vector<Lengths> sequences;
    for (int64_t s = 0; s < num_seqs; ++s) sequences.push_back({s % 7 == 0 ? 0 : 1, s % 60 + 1});
    Geometry g = geometry(DType::kBFloat16, 8, std::move(sequences));
    g.num_q_heads = g.num_kv_heads = 1;
    expect_right(random_problem(g));
  }
}

// schedule looks at 1024 sequences at once: split ones before and behind have states of their own.
TEST(Results, SplitSequencesAmongMany) {
  std::vector<Lengths> sequences(1030, {1, 3});
  sequences.front() = sequences[1027] = {1, 12000};
  Geometry g = geometry(DType::kBFloat16, 8, std::move(sequences));
  g.num_q_heads = g.num_kv_heads = 1;
  const Problem p = random_problem(g);
  emulated::Schedule schedule;
  schedule.multiprocessors = 132;
  const WithSchedule with(schedule);
  expect_close(run_anew(p), oracle(p), p);
}

// Strides and addresses: of 16 bytes boxes come, of less rows by narrower copies.
TEST(Results, Strides) {
  for (int64_t head_dim : {64, 128}) {
    const Problem p = random_problem(geometry(DType::kBFloat16, head_dim, {{40, 200}, {1, 90}}));
    const Expected expected = oracle(p);
    for (CacheOrder order : kCacheOrders) {
      for (int64_t gap : {0, 1, 2, 4, 8}) {
        expect_right(
            p,
            {.page_size = 16, .cache_order = order, .gap = gap, .heads_outermost = gap % 2 == 1});
      }
    }
  }
}

// How many boxes a call brings.
uint64_t boxes_of(const Layout& layout, int64_t kv_start = 0) {
  Problem p = random_problem(geometry(DType::kBFloat16, 64, {{40, 200}}));
  if (kv_start > 0) drop_keys_before(p, kv_start);
  const uint64_t before = emulated::counts().boxes;
  expect_right(p, layout);
  return emulated::counts().boxes - before;
}

TEST(Results, PagesComeAsBoxesWhereTheyCan) {
  for (int64_t page_size : {4, 8, 16, 48, 64}) EXPECT_GT(boxes_of({.page_size = page_size}), 0u);
  EXPECT_GT(boxes_of({.page_size = 12}, 12), 0u);
  EXPECT_EQ(boxes_of({.page_size = 1}), 0u);
  EXPECT_EQ(boxes_of({.page_size = 3}), 0u);
  EXPECT_EQ(boxes_of({.page_size = 16, .gap = 4}), 0u);
}

}  // namespace
}  // namespace pagefill::testing
