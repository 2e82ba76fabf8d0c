// Runs a problem through the public API and brings its rows back in logical order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pagefill/backend.h"
#include "support/layout.h"
#include "support/problem.h"

namespace pagefill::testing {

// What runs a call.
struct Where {
  std::string backend = "auto";
  std::string target = "auto";  // of the cpu backend
  int threads = 1;
};

std::string describe(const Where& where);

// Every (backend, target) that was compiled in and that this machine has; PAGEFILL_TEST_BACKEND leaves one
// backend of them.
std::vector<Where> all_targets();
// Those that work on memory of the CPU.
std::vector<Where> host_targets();
// Those of the cpu backend.
std::vector<Where> cpu_targets();
// Those whose bits do not depend on the layout: all but the reference, which is slow.
std::vector<Where> fast_targets();

// How the rows are cut into calls.
struct Cut {
  int64_t chunk_size = 0;  // 0: each sequence's rows in one chunk
  bool alone = false;      // a call of prefill_page_attention per chunk, not one ragged batch
};

// Rows of all sequences, one after another, without gaps.
struct Results {
  DType dtype = DType::kFloat32;
  int64_t num_q_heads = 0;
  int64_t v_head_dim = 0;
  std::vector<std::byte> output;  // [total_rows, num_q_heads, v_head_dim]
  std::vector<float> lse;         // [total_rows, num_q_heads]
  std::vector<CallReport> reports;

  int64_t num_rows() const { return static_cast<int64_t>(lse.size()) / num_q_heads; }
  double at(int64_t row, int64_t head, int64_t d) const;
};

// One call; the arguments stay as they are. Where the backend works on a device, the arguments are copied
// there, and the results back.
Status call(const Arguments& arguments, const Where& where, CallReport* report = nullptr,
            bool alone = false);

// Runs all rows. Throws std::runtime_error, which fails a test, when a call fails or writes outside
// its rows.
Results run(const Problem& problem, const Layout& layout = {}, const Where& where = {},
            const Cut& cut = {});

// The first row and head where the bits differ, or nothing.
std::optional<std::string> difference(const Results& a, const Results& b);

}  // namespace pagefill::testing
