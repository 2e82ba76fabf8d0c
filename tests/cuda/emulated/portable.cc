// What the portable kernels alone compute: float32 queries over every cache, and head dims above 256.
#include "cuda/emulated/emulated_run.h"
#include "support/option_table.h"

namespace pagefill::testing {
namespace {

constexpr DType kCaches[] = {DType::kFloat32, DType::kBFloat16,   DType::kFloat16,
                             DType::kInt8,    DType::kFloat8E4M3, DType::kFloat8E5M2};

Geometry float32_geometry(DType cache, int64_t head_dim, std::vector<Lengths> sequences) {
  return quantised_geometry(DType::kFloat32, cache, head_dim, std::move(sequences));
}

TEST(Float32, EveryCacheInAllSchedules) {
  for (DType cache : kCaches) {
    expect_right_in_all_schedules(random_problem(float32_geometry(
        cache, cache == DType::kFloat32 ? 128 : 64, {{20, 150}, {1, 1100}, {70, 90}, {9, 4}})));
  }
}

TEST(Float32, FewRowsInAllSchedules) {
  for (int64_t head_dim : {40, 200}) {
    expect_right_in_all_schedules(random_problem(
        float32_geometry(DType::kFloat32, head_dim, {{1, 2100}, {3, 1030}, {1, 1}})));
  }
}

TEST(Float32, EveryOption) {
  for (const OptionCase& c : kOptionTable) {
    SCOPED_TRACE(c.name);
    const DType cache =
        c.option == kKeyScale || c.option == kValueScale ? DType::kInt8 : DType::kFloat32;
    Problem p = random_problem(float32_geometry(cache, 64, {{40, 230}, {1, 1100}, {9, 9}}));
    c.apply(p);
    expect_right(p, {.page_size = 6, .unused = Unused::kNaN});
  }
}

TEST(Float32, BitsDoNotDependOnHowACallIsCutPlacedAndSplit) {
  for (DType cache : {DType::kFloat32, DType::kBFloat16, DType::kInt8}) {
    const Problem p =
        random_problem(float32_geometry(cache, 64, {{40, 130}, {3, 2200}, {1, 1025}}));
    std::vector<Way> ways;
    for (int64_t page_size : {1, 24, 1056}) {
      for (int64_t chunk : {1, 17}) {
        ways.push_back({{.page_size = page_size, .placement = 2, .unused = Unused::kNaN},
                        {chunk, chunk == 1},
                        static_cast<int>(page_size)});
      }
    }
    expect_same_bits(p, ways);
  }
}

// Several tasks a row tile, each with some columns of the values.
TEST(Portable, HeadDimsAbove256) {
  for (DType dtype : kHalves) {
    for (int64_t head_dim : {264, 512}) {
      Geometry g = geometry(dtype, head_dim, {{40, 150}, {1, 1100}});
      expect_right(random_problem(g));
      g.v_head_dim = 40;
      expect_right(random_problem(g), {.page_size = 5, .unused = Unused::kNaN});
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
