// Calls on the emulated device, in all of its schedules.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>

#include "machine/schedule.h"
#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {

inline const Where kDevice{"cuda", "auto", 1};
inline constexpr DType kHalves[] = {DType::kBFloat16, DType::kFloat16};

// Which kernels run: PAGEFILL_CUDA_TARGET chooses, as on a device.
inline std::string expected_target(const Problem& p) {
  const char* const wished = std::getenv("PAGEFILL_CUDA_TARGET");
  if (wished != nullptr) return wished;
  const bool is_hoppers = p.query_dtype != DType::kFloat32 && p.query_dtype == p.cache_dtype &&
                          std::max(p.head_dim, p.v_head_dim) <= 256;
  return is_hoppers ? "sm90" : "portable";
}

// The schedule of the launches in its scope.
class WithSchedule {
 public:
  explicit WithSchedule(const emulated::Schedule& schedule)
      : before_(emulated::present_schedule()),
        trace_(__FILE__, __LINE__, emulated::describe(schedule)) {
    emulated::present_schedule() = schedule;
  }
  WithSchedule(const WithSchedule&) = delete;
  WithSchedule& operator=(const WithSchedule&) = delete;
  ~WithSchedule() { emulated::present_schedule() = before_; }

 private:
  emulated::Schedule before_;
  ::testing::ScopedTrace trace_;
};

// A call in a thread of its own, which asks the device anew: a thread's later calls remember what the first ones were
// told (plan.cc), as the number of multiprocessors.
inline Results run_anew(const Problem& problem, const Layout& layout = {}, const Cut& cut = {}) {
  Results results;
  std::thread([&] { results = run(problem, layout, kDevice, cut); }).join();
  return results;
}

// One after another, for tests of many cases.
inline const emulated::Schedule& next_schedule() {
  static size_t next = 0;
  return emulated::kSchedules[next++ % std::size(emulated::kSchedules)];
}

struct Way {
  Layout layout;
  Cut cut;
  int multiprocessors = 3;
};

// Every way in a schedule of its own.
inline void expect_same_bits(const Problem& p, const std::vector<Way>& ways) {
  emulated::present_schedule() = {};
  const Results expected = run_anew(p);
  for (const Way& way : ways) {
    emulated::Schedule schedule = next_schedule();
    schedule.multiprocessors = way.multiprocessors;
    const WithSchedule with(schedule);
    EXPECT_EQ(difference(expected, run_anew(p, way.layout, way.cut)), std::nullopt)
        << describe(p) << "\n  " << describe(way.layout) << ", chunks of " << way.cut.chunk_size
        << (way.cut.alone ? ", alone" : ", in a batch") << ", " << way.multiprocessors
        << " multiprocessors";
  }
}

inline Geometry geometry(DType dtype, int64_t head_dim, std::vector<Lengths> sequences) {
  return {.sequences = std::move(sequences),
          .head_dim = head_dim,
          .query_dtype = dtype,
          .cache_dtype = dtype};
}

// Scales are per slot.
inline Geometry quantised_geometry(DType query, DType cache, int64_t head_dim,
                                   std::vector<Lengths> sequences) {
  Geometry g = geometry(query, head_dim, std::move(sequences));
  g.cache_dtype = cache;
  return g;
}

// Against the oracle, within the bounds of conformance.
inline void expect(const Expected& expected, const Problem& problem, const Layout& layout,
                   const Cut& cut = {}) {
  const WithSchedule schedule(next_schedule());
  SCOPED_TRACE(describe(layout) + ", chunks of " + std::to_string(cut.chunk_size));
  const Results results = run(problem, layout, kDevice, cut);
  EXPECT_EQ(results.reports.at(0).target, expected_target(problem));
  expect_close(results, expected, problem);
}
inline void expect_right(const Problem& problem, const Layout& layout = {}, const Cut& cut = {}) {
  expect(oracle(problem), problem, layout, cut);
}

inline void expect_right_in_all_schedules(const Problem& problem, const Layout& layout = {}) {
  const Expected expected = oracle(problem);
  SCOPED_TRACE(describe(layout));
  for (const emulated::Schedule& schedule : emulated::kSchedules) {
    const WithSchedule with(schedule);
    expect_close(run(problem, layout, kDevice), expected, problem);
  }
}

}  // namespace pagefill::testing
