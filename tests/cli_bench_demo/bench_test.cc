// `pagefill bench` as a process. Its numbers are times, so only what holds on any machine is asked of them.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "pagefill/backend.h"
#include "process.h"

namespace pagefill::cli {
namespace {

using nlohmann::json;

// A shape of milliseconds, its options, and two runs.
std::vector<std::string> tiny_bench(std::vector<std::string> options) {
  std::vector<std::string> arguments{"bench", "--chunk",    "8",  "--context",   "100", "--heads",
                                     "4/2",   "--head-dim", "32", "--page-size", "7",   "--repeats",
                                     "2"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return arguments;
}

json json_of(const Finished& result) {
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  return json::parse(result.out);
}

void expect_refused(const std::vector<std::string>& arguments, const std::string& name) {
  const Finished result = pagefill(arguments);
  EXPECT_EQ(result.exit_code, 2) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err.find('\n'), result.err.size() - 1) << "one line: " << result.err;
  EXPECT_NE(result.err.find(name), std::string::npos) << result.err;
}

TEST(Bench, JsonHasExactlyTheKeysOfTheContract) {
  const json line = json_of(pagefill(tiny_bench({"--threads", "1", "--json"})));
  std::set<std::string> keys;
  for (const auto& [key, value] : line.items()) keys.insert(key);
  EXPECT_EQ(keys, (std::set<std::string>{"backend", "target", "dtype", "cache_dtype", "chunk",
                                         "context", "num_q_heads", "num_kv_heads", "head_dim",
                                         "page_size", "threads", "median_seconds", "useful_flops",
                                         "peak_flops", "share_of_peak", "cache_bytes",
                                         "peak_bandwidth", "share_of_bandwidth"}));
  EXPECT_EQ(line["dtype"], "float32");
  EXPECT_EQ(line["cache_dtype"], "float32");
  EXPECT_EQ(line["chunk"], 8);
  EXPECT_EQ(line["context"], 100);
  EXPECT_EQ(line["num_q_heads"], 4);
  EXPECT_EQ(line["num_kv_heads"], 2);
  EXPECT_EQ(line["head_dim"], 32);
  EXPECT_EQ(line["page_size"], 7);
  EXPECT_EQ(line["threads"], 1);
}

TEST(Bench, CountsVisiblePairsAndVisibleBytes) {
  // Rows at positions 92 to 99 see 93 to 100 keys: 772 pairs, 4 heads, 4 * 32 operations each.
  const json plain = json_of(pagefill(tiny_bench({"--json"})));
  EXPECT_EQ(plain["useful_flops"], 772.0 * 4 * 4 * 32);
  EXPECT_EQ(plain["cache_bytes"], 100.0 * 2 * (32 + 32) * 4);

  // A window of 10: 10 keys a row; keys 83 to 99. Values of 16: 2 * (32 + 16) operations a pair.
  const json window = json_of(pagefill(
      tiny_bench({"--json", "--window", "10", "--v-head-dim", "16", "--cache-dtype", "bfloat16"})));
  EXPECT_EQ(window["useful_flops"], 8.0 * 10 * 4 * 2 * (32 + 16));
  EXPECT_EQ(window["cache_bytes"], 17.0 * 2 * (32 + 16) * 2);
  EXPECT_EQ(window["cache_dtype"], "bfloat16");
}

TEST(Bench, SharesAreThoseOfItsOwnNumbers) {
  const json line = json_of(pagefill(tiny_bench({"--json"})));
  const double seconds = line["median_seconds"];
  ASSERT_GT(seconds, 0);
  // A scalar machine of 100 MHz and a rack of servers lie between these.
  EXPECT_GT(line["peak_flops"], 1e8);
  EXPECT_LT(line["peak_flops"], 1e15);
  EXPECT_GT(line["peak_bandwidth"], 1e7);
  EXPECT_LT(line["peak_bandwidth"], 1e14);
  const double flops = line["useful_flops"], bytes = line["cache_bytes"];
  EXPECT_DOUBLE_EQ(line["share_of_peak"], flops / seconds / line["peak_flops"].get<double>());
  EXPECT_DOUBLE_EQ(line["share_of_bandwidth"],
                   bytes / seconds / line["peak_bandwidth"].get<double>());
  // No operator is faster than what it does nothing but a part of.
  EXPECT_LT(line["share_of_peak"], 1.05);
}

TEST(Bench, RunsOnTheBackendAndTargetThatAreAskedFor) {
  for (const BackendInfo& backend : list_backends()) {
    if (!backend.available) continue;
    const json line = json_of(pagefill(tiny_bench({"--json", "--backend", backend.name})));
    EXPECT_EQ(line["backend"], backend.name);
    for (const TargetInfo& target : backend.targets) {
      if (!target.available) continue;
      const json on_target = json_of(
          pagefill(tiny_bench({"--json", "--backend", backend.name, "--cpu-target", target.name})));
      EXPECT_EQ(on_target["target"], target.name);
    }
  }
}

TEST(Bench, TakesEveryOptionOfTheShape) {
  for (const std::string dtype : {"float32", "bfloat16", "float16"}) {
    const json line = json_of(pagefill(
        tiny_bench({"--json", "--dtype", dtype, "--soft-cap", "20", "--sinks", "--threads", "2"})));
    EXPECT_EQ(line["dtype"], dtype);
    EXPECT_EQ(line["cache_dtype"], dtype);
    EXPECT_EQ(line["threads"], 2);
  }
}

TEST(Bench, TakesEveryDtypeOfTheCache) {
  for (const std::string dtype :
       {"float32", "bfloat16", "float16", "int8", "float8_e4m3fn", "float8_e5m2"}) {
    const json line = json_of(pagefill(tiny_bench({"--json", "--cache-dtype", dtype})));
    EXPECT_EQ(line["dtype"], "float32");
    EXPECT_EQ(line["cache_dtype"], dtype);
    const double bytes = dtype == "float32" ? 4 : dtype.ends_with("16") ? 2 : 1;
    EXPECT_EQ(line["cache_bytes"], 100.0 * 2 * (32 + 32) * bytes);
  }
}

TEST(Bench, PrintsATableWithTheShape) {
  const Finished result = pagefill(tiny_bench({"--soft-cap", "20", "--window", "9"}));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "") << "progress is for terminals";
  for (const std::string part : {"8 @ 100", "4/2 x 32", "float32", "cap 20", "window 9"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  }
}

TEST(Bench, RefusesBadShapesByName) {
  expect_refused({"bench", "--heads", "5/2", "--context", "64"}, "num_q_heads");
  expect_refused({"bench", "--heads", "32x8"}, "--heads");
  expect_refused({"bench", "--heads", "4/0"}, "--heads");
  expect_refused({"bench", "--head-dim", "12", "--context", "64"}, "head_dim");
  expect_refused({"bench", "--dtype", "float8"}, "float8");
  expect_refused({"bench", "--dtype", "int8"}, "int8");
  expect_refused({"bench", "--cache-dtype", "int4"}, "int4");
  expect_refused({"bench", "--chunk", "0"}, "--chunk");
  expect_refused({"bench", "--page-size", "many"}, "--page-size");
  expect_refused({"bench", "--repeats", "0"}, "--repeats");
  expect_refused({"bench", "--soft-cap", "-1", "--context", "64"}, "soft_cap");
  expect_refused({"bench", "--window", "0", "--context", "64"}, "sliding_window");
  expect_refused({"bench", "--backend", "abacus"}, "abacus");
  expect_refused({"bench", "--cpu-target", "mmx"}, "mmx");
  expect_refused({"bench", "--threads", "-3"}, "threads");
  expect_refused({"bench", "--speed", "11"}, "--speed");
}

TEST(Bench, RefusesACacheThatNoMachineHolds) {
  expect_refused({"bench", "--context", "2147483647", "--heads", "2147483647/2147483647"},
                 "--context");
}

}  // namespace
}  // namespace pagefill::cli
