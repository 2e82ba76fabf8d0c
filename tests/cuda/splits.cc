// A sequence whose segments different blocks reduce has the bits that it has whole.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/device_run.h"
#include "support/elements.h"

namespace pagefill::testing {
namespace {

constexpr int64_t kRows = 3, kContext = 2060, kHeads = 32;
constexpr float kInf = std::numeric_limits<float>::infinity();

// Beside so many rows, a row tile of the first sequence is less than a quarter of a block's share: it is
// not split, as it is alone.
Problem beside_a_long_chunk(DType dtype) {
  return random_problem({.sequences = {{kRows, kContext}, {4096, 4096}},
                         .num_q_heads = kHeads,
                         .num_kv_heads = 2,
                         .head_dim = 16,
                         .query_dtype = dtype,
                         .cache_dtype = dtype});
}

void expect_the_same(const Problem& p) {
  DeviceRun split(p, {{0, 0, kRows}});
  split.run();
  DeviceRun whole(p, {{0, 0, kRows}, {1, 0, 4096}});
  whole.run();
  for (int64_t t = 0; t < kRows; ++t) {
    for (int64_t h = 0; h < kHeads; ++h) {
      ASSERT_EQ(split.row(t, h), whole.row(t, h)) << "token " << t << ", head " << h;
      ASSERT_EQ(split.lse(t, h), whole.lse(t, h)) << "token " << t << ", head " << h;
    }
  }
}

// Keys [begin, end) are -inf, of which queries that are positive make scores of -inf.
void weigh_nothing(Problem& p, int64_t begin, int64_t end) {
  Sequence& seq = p.sequences[0];
  const int64_t size = p.num_kv_heads * p.head_dim;
  for (float& x : seq.query) x = round_to(p.query_dtype, std::abs(x) + 0.125f);
  std::fill(seq.keys.begin() + begin * size, seq.keys.begin() + end * size, -kInf);
}

TEST(CudaSplits, GiveTheBitsOfTheWhole) {
  PAGEFILL_NEEDS_GPU();
  for (DType dtype : kFloatDTypes) {
    SCOPED_TRACE(dtype_name(dtype));
    Problem p = beside_a_long_chunk(dtype);
    expect_the_same(p);
    p.options.sliding_window = 1035;  // of the first segment, one row sees one key
    expect_the_same(p);
  }
}

TEST(CudaSplits, LeaveANaNOfASegmentThatWeighsNothing) {
  PAGEFILL_NEEDS_GPU();
  for (DType dtype : kFloatDTypes) {
    for (int64_t segment : {0, 1}) {
      SCOPED_TRACE(std::string(dtype_name(dtype)) + ", segment " + std::to_string(segment));
      Problem p = beside_a_long_chunk(dtype);
      weigh_nothing(p, segment * 1024, segment * 1024 + 1024);
      p.sequences[0].values[static_cast<size_t>((segment * 1024 + 5) * 2 * p.v_head_dim)] = kInf;
      expect_the_same(p);
      DeviceRun split(p, {{0, 0, kRows}});
      split.run();
      // Of the first KV head, the column of the infinity alone.
      for (int64_t h = 0; h < kHeads; ++h) {
        const std::vector<std::byte> row = split.row(0, h);
        for (int64_t d = 0; d < p.v_head_dim; ++d) {
          const double x = load(row.data(), dtype, d);
          EXPECT_EQ(std::isnan(x), d == 0 && h < kHeads / 2) << "head " << h << ", column " << d;
        }
      }
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
