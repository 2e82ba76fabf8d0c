// Promise 7 on a device: metadata that makes no sense never faults and is reported; rows that need it are
// NaN, and all others are right.
#include <cmath>

#include "cuda/device_run.h"

namespace pagefill::testing {
namespace {

constexpr int64_t kRows[] = {20, 3, 1};
constexpr int64_t kContexts[] = {150, 40, 1300};

Problem three_sequences(DType dtype) {
  return random_problem(
      {.sequences = {{kRows[0], kContexts[0]}, {kRows[1], kContexts[1]}, {kRows[2], kContexts[2]}},
       .head_dim = 64,
       .query_dtype = dtype,
       .cache_dtype = dtype});
}
const std::vector<Chunk> kChunks = {{0, 0, 20}, {1, 0, 3}, {2, 0, 1}};

bool is_nan_row(const DeviceRun& run, int64_t token, int64_t head, DType dtype) {
  const std::vector<std::byte> row = run.row(token, head);
  for (size_t i = 0; i < row.size(); i += dtype_size(dtype)) {
    if (dtype == DType::kFloat32) {
      float x;
      std::memcpy(&x, &row[i], 4);
      if (!std::isnan(x)) return false;
    } else {
      bfloat16 x;
      std::memcpy(&x, &row[i], 2);
      if (!std::isnan(static_cast<float>(x))) return false;
    }
  }
  return std::isnan(run.lse(token, head));
}

// Rows for which `is_ill` are NaN; the others have the bits of a healthy call.
template <typename IsIll>
void expect_ill(const Problem& p, const DeviceRun& healthy, const DeviceRun& ill, IsIll is_ill) {
  for (int64_t token = 0; token < 24; ++token) {
    for (int64_t h = 0; h < p.num_q_heads; ++h) {
      if (is_ill(token)) {
        EXPECT_TRUE(is_nan_row(ill, token, h, p.query_dtype)) << "token " << token;
      } else {
        EXPECT_EQ(ill.row(token, h), healthy.row(token, h)) << "token " << token << ", head " << h;
        EXPECT_EQ(ill.lse(token, h), healthy.lse(token, h)) << "token " << token << ", head " << h;
      }
    }
  }
}

struct Ill {
  const char* name;
  void (*spoil)(const DeviceRun& run);
  std::array<int32_t, 4> report;
  bool (*is_ill)(int64_t token);
};

constexpr int32_t kHuge = 0x7fffffff;

// Pages of 16: entry 8 of sequence 0 holds keys 128 to 143, which the rows from token 0 (position 130) on
// see in part.
const Ill kIlls[] = {
    {"a page before the cache",
     [](const DeviceRun& r) { r.overwrite(r.views().page_table, 8, {-1}); },
     {4, 0, 8, -1},
     [](int64_t token) { return token < 20; }},
    {"a page behind the cache, seen by some rows",
     [](const DeviceRun& r) { r.overwrite(r.views().page_table, 9, {kHuge}); },
     {4, 0, 9, kHuge},
     // Keys 144 to 149: positions from 144 on, tokens from 14 on.
     [](int64_t token) { return token >= 14 && token < 20; }},
    {"a page of the decode token's",
     [](const DeviceRun& r) {
       r.overwrite(r.views().page_table, 2 * r.views().page_table.strides[0] + 70, {kHuge});
     },
     {4, 2, 70, kHuge},
     [](int64_t token) { return token == 23; }},
    {"a negative length",
     [](const DeviceRun& r) { r.overwrite(r.views().context_lens, 1, {-7}); },
     {2, 1, 0, -7},
     [](int64_t token) { return token >= 20 && token < 23; }},
    {"a length beyond the table",
     [](const DeviceRun& r) { r.overwrite(r.views().context_lens, 0, {kHuge}); },
     {2, 0, 0, kHuge},
     [](int64_t token) { return token < 20; }},
    {"starts that decrease",
     [](const DeviceRun& r) { r.overwrite(r.views().query_starts, 2, {19}); },
     {1, 1, 2, 19},
     [](int64_t) { return true; }},
    {"starts beyond the rows",
     [](const DeviceRun& r) { r.overwrite(r.views().query_starts, 3, {25}); },
     {1, 2, 3, 25},
     [](int64_t) { return true; }},
};

TEST(CudaBadMetadata, IsReportedAndMakesItsRowsNaN) {
  PAGEFILL_NEEDS_GPU();
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Problem p = three_sequences(dtype);
    DeviceRun healthy(p, kChunks);
    healthy.run();
    EXPECT_EQ(healthy.reported()[0], 0);
    for (const Ill& ill : kIlls) {
      SCOPED_TRACE(std::string(ill.name) + ", " + dtype_name(dtype));
      DeviceRun run(p, kChunks);
      ill.spoil(run);
      run.run();
      EXPECT_EQ(run.reported(), ill.report);
      expect_ill(p, healthy, run, ill.is_ill);
    }
  }
}

TEST(CudaBadMetadata, MoreThanThePlanIsReported) {
  PAGEFILL_NEEDS_GPU();
  const Problem p = three_sequences(DType::kBFloat16);
  DeviceRun healthy(p, kChunks);
  healthy.run();
  DeviceRun rows(p, kChunks);
  rows.context.cuda.max_chunk_size = 19;
  rows.run();
  EXPECT_EQ(rows.reported(), (std::array<int32_t, 4>{5, 0, 0, 20}));
  expect_ill(p, healthy, rows, [](int64_t token) { return token < 20; });
  DeviceRun keys(p, kChunks);
  keys.context.cuda.max_context_len = 1299;
  keys.run();
  EXPECT_EQ(keys.reported(), (std::array<int32_t, 4>{2, 2, 0, 1300}));
  expect_ill(p, healthy, keys, [](int64_t token) { return token == 23; });
}

// Its schedule may be the blocks' own.
TEST(CudaBadMetadata, OfASequenceAloneIsReported) {
  PAGEFILL_NEEDS_GPU();
  const Problem p = three_sequences(DType::kBFloat16);
  struct {
    int64_t at;
    bool is_start;
    int32_t value;
    std::array<int32_t, 4> report;
  } const ills[] = {{0, false, -7, {2, 0, 0, -7}},
                    {0, false, kHuge, {2, 0, 0, kHuge}},
                    {0, true, 1, {1, 0, 0, 1}},
                    {1, true, 21, {1, 0, 1, 21}}};
  for (const auto& ill : ills) {
    SCOPED_TRACE(ill.report[3]);
    DeviceRun run(p, {{0, 0, 20}});
    run.overwrite(ill.is_start ? run.views().query_starts : run.views().context_lens, ill.at,
                  {ill.value});
    run.run();
    EXPECT_EQ(run.reported(), ill.report);
    for (int64_t token = 0; token < 20; ++token) {
      for (int64_t h = 0; h < p.num_q_heads; ++h) {
        EXPECT_TRUE(is_nan_row(run, token, h, p.query_dtype)) << "token " << token;
      }
    }
  }
}

TEST(CudaBadMetadata, TheFirstReportStays) {
  PAGEFILL_NEEDS_GPU();
  const Problem p = three_sequences(DType::kBFloat16);
  DeviceRun run(p, kChunks);
  run.overwrite(run.views().context_lens, 1, {-7});
  run.run();
  run.overwrite(run.views().context_lens, 1, {40});
  run.overwrite(run.views().page_table, 0, {-1});
  const Status status = run.enqueue();
  ASSERT_TRUE(status.ok()) << status.message();
  run.finish();
  EXPECT_EQ(run.reported(), (std::array<int32_t, 4>{2, 1, 0, -7}));
}

}  // namespace
}  // namespace pagefill::testing
