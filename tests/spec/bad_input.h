// Calls that are spoilt in one place, and must be refused for it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "support/run.h"

namespace pagefill::testing {

inline constexpr int64_t kHuge = int64_t{1} << 61;

// A call that could be made, until something is done to it.
struct Call {
  Arguments arguments;
  Context context;
};

struct BadInput {
  const char* argument;  // the message begins with it
  const char* got;       // and says this of what came
  void (*spoil)(Call& call);
  StatusCode code = StatusCode::kInvalidArgument;
};

// Two sequences, 20 @ 150 and 3 @ 40, in pages of 16 (10 and 3 of them), heads 4/2, head_dim 32,
// float32.
inline Problem two_sequences() { return random_problem({.sequences = {{20, 150}, {3, 40}}}); }
inline constexpr Chunk kTwoChunks[] = {{0, 0, 20}, {1, 0, 3}};

// Metadata that live as long as the program.
template <int32_t... kNumbers>
TensorView numbers() {
  static const int32_t data[] = {kNumbers...};
  return data;
}

// A copy of what the call would write, to hold against it afterwards.
std::vector<std::byte> written_memory(const Arguments& a);

void expect_named(const Status& status, const BadInput& bad);

Status ragged(const Call& c);

// Each call of the table, which is good but for its fault, is refused on every backend, by name, before
// anything is written. The problem has kTwoChunks.
void expect_refused(std::span<const BadInput> table, const Problem& problem = two_sequences());

}  // namespace pagefill::testing
