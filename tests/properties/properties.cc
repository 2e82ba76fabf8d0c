// RapidCheck draws geometries, options, layouts and cuts; a property that fails is shrunk to the
// smallest numbers that still fail. RC_PARAMS="max_success=1000 seed=..." asks for more, or for the
// same again.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "support/option_table.h"
#include "support/oracle.h"
#include "support/run.h"
#include "support/shards.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

int64_t draw(int64_t first, int64_t last, const char* name) {
  return *rc::gen::inRange<int64_t>(first, last + 1).as(name);
}

template <typename T, size_t kSize>
T draw_of(const T (&values)[kSize], const char* name) {
  return values[*rc::gen::inRange<size_t>(0, kSize).as(name)];
}

bool draw_bool(const char* name) { return *rc::gen::arbitrary<bool>().as(name); }

Geometry draw_geometry() {
  Geometry g;
  g.num_kv_heads = draw(1, 3, "num_kv_heads");
  g.num_q_heads = g.num_kv_heads * draw(1, 9, "ratio");
  g.head_dim = 8 * draw(1, 20, "head_dim / 8");
  g.v_head_dim = 8 * draw(1, 20, "v_head_dim / 8");
  g.query_dtype = draw_of(kFloatDTypes, "query dtype");
  g.cache_dtype = draw_of(kCacheDTypes, "cache dtype");
  g.seed = static_cast<uint32_t>(draw(1, 1'000'000, "seed"));
  g.sequences.clear();
  const int64_t num_seqs = draw(1, 4, "num_seqs");
  for (int64_t s = 0; s < num_seqs; ++s) {
    const int64_t context =
        draw(0, 1, "long") == 0 ? draw(0, 150, "context_len") : draw(150, 1200, "context_len");
    g.sequences.push_back({draw(0, 30, "chunk_size"), context});
  }
  return g;
}

// Options of any value, not only those of the table.
void draw_options(Problem& p) {
  if (draw_bool("softmax_scale given")) {
    p.options.softmax_scale = static_cast<float>(draw(-40, 40, "100 softmax_scale")) / 100;
  }
  if (draw_bool("cap given")) {
    p.options.attn_logits_soft_cap = static_cast<float>(draw(1, 500, "10 cap")) / 10;
  }
  if (draw_bool("window given")) p.options.sliding_window = draw(1, 300, "sliding_window");
  if (draw(0, 3, "mask_value given") == 0) {
    p.options.mask_value = static_cast<float>(draw(-80, 10, "10 mask_value")) / 10;
  }
  if (draw_bool("sinks given")) add_sinks(p);
  if (draw_bool("kv_start given")) drop_keys_before(p, draw(0, 200, "kv_start"));
}

Layout draw_layout() {
  return {.page_size = draw(1, 130, "page_size"),
          .cache_order = draw_of(kCacheOrders, "cache order"),
          .placement = static_cast<uint32_t>(draw(0, 1000, "placement")),
          .extra_pages = draw(0, 3, "extra pages"),
          .extra_table_entries = draw(0, 3, "extra entries"),
          .padding_rows = draw(0, 2, "padding rows"),
          .gap = draw(0, 9, "gap"),
          .heads_outermost = draw_bool("heads outermost"),
          .unused = static_cast<Unused>(draw(0, 3, "unused")),
          .guard = draw_bool("guard before") ? Guard::kBefore : Guard::kBehind};
}

Where draw_target(const std::vector<Where>& targets) {
  Where where =
      targets[static_cast<size_t>(draw(0, static_cast<int64_t>(targets.size()) - 1, "target"))];
  where.threads = static_cast<int>(draw(1, 4, "threads"));
  return where;
}

Problem draw_problem() {
  Problem problem = random_problem(draw_geometry());
  draw_options(problem);
  return problem;
}

// Fails the property, and says why.
void require_nothing(const std::optional<std::string>& complaint) {
  if (complaint) RC_FAIL(*complaint);
}

RC_GTEST_PROP(Properties, AgreesWithTheOracle, ()) {
  const Problem problem = draw_problem();
  const Results results = run(problem, draw_layout(), draw_target(all_targets()));
  require_nothing(discrepancy(results, oracle(problem), problem));
}

RC_GTEST_PROP(Properties, BitsDoNotDependOnLayoutThreadsOrCut, ()) {
  const Problem problem = draw_problem();
  const Where first = draw_target(fast_targets());
  Where second = first;
  second.threads = static_cast<int>(draw(1, 4, "threads"));
  const bool may_cut = problem.options.mask_value <= kMaskExcludes;
  const Cut cut{may_cut ? draw(0, 40, "chunk_size") : 0, draw_bool("alone")};
  require_nothing(
      difference(run(problem, draw_layout(), first), run(problem, draw_layout(), second, cut)));
}

RC_GTEST_PROP(Properties, UnusedMemoryChangesNoBit, ()) {
  const Problem problem = draw_problem();
  const Where where = draw_target(all_targets());
  Layout layout = draw_layout();
  layout.unused = Unused::kOldTokens;
  const Results clean = run(problem, layout, where);
  layout.unused = static_cast<Unused>(draw(1, 3, "unused"));
  require_nothing(difference(clean, run(problem, layout, where)));
}

RC_GTEST_PROP(Properties, MergedShardsAreTheWholeContext, ()) {
  Geometry geometry = draw_geometry();
  int64_t shortest = 1200;
  for (Lengths& lengths : geometry.sequences) {
    lengths.num_rows = 1;
    lengths.context_len = std::max<int64_t>(lengths.context_len, 2);
    shortest = std::min(shortest, lengths.context_len);
  }
  Problem problem = random_problem(geometry);
  if (draw_bool("sinks given")) add_sinks(problem);
  if (draw_bool("cap given")) problem.options.attn_logits_soft_cap = 3.0f;
  const Shards shards = split_context(problem, draw(1, shortest - 1, "split"));
  const Where where = draw_target(all_targets());
  Results merged = run(shards.early, draw_layout(), where);
  const Status status = merge(merged, run(shards.late, draw_layout(), where), merged);
  RC_ASSERT(status.ok());
  require_nothing(discrepancy(merged, oracle(problem), problem, 2));
}

}  // namespace
}  // namespace pagefill::testing
