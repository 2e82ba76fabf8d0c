// pagefill bench: how fast the operator is, as a share of what the machine can do.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <charconv>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench_device.h"
#include "bench_measure.h"
#include "bench_shape.h"
#include "commands.h"
#include "device_memory.h"
#include "pagefill/backend.h"
#include "peak.h"
#include "terminal.h"
#include "where_options.h"

namespace pagefill::cli {
namespace {

// Lengths and counts go into int32 metadata.
const CLI::Validator kCount = CLI::Range(int64_t{1}, int64_t{INT32_MAX}).description("");

struct BenchArguments {
  BenchShape shape;
  std::string heads = "32/8";
  std::string dtype = "float32";
  std::string cache_dtype;  // empty: dtype
  WhereOptions where;
  std::optional<int> repeats;
  bool json = false;
};

constexpr std::array kDTypes{DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr std::array kCacheDTypes{DType::kFloat32, DType::kBFloat16,   DType::kFloat16,
                                  DType::kInt8,    DType::kFloat8E4M3, DType::kFloat8E5M2};

std::string joined(std::span<const DType> dtypes, const char* separator) {
  std::vector<const char*> names;
  for (const DType dtype : dtypes) names.push_back(dtype_name(dtype));
  return fmt::format("{}", fmt::join(names, separator));
}

Result<DType> parse_dtype(const char* option, const std::string& text,
                          std::span<const DType> dtypes) {
  for (const DType dtype : dtypes) {
    if (text == dtype_name(dtype)) return dtype;
  }
  return Status(StatusCode::kInvalidArgument,
                fmt::format("{}: expected {}, got \"{}\"", option, joined(dtypes, " or "), text));
}

// "32/8": query heads over KV heads.
Status parse_heads(const std::string& text, BenchShape& shape) {
  const char* const end = text.data() + text.size();
  const auto query = std::from_chars(text.data(), end, shape.num_q_heads);
  if (query.ec == std::errc() && query.ptr != end && *query.ptr == '/') {
    const auto kv = std::from_chars(query.ptr + 1, end, shape.num_kv_heads);
    const bool counts = shape.num_q_heads >= 1 && shape.num_q_heads <= INT32_MAX &&
                        shape.num_kv_heads >= 1 && shape.num_kv_heads <= INT32_MAX;
    if (kv.ec == std::errc() && kv.ptr == end && counts) return {};
  }
  return Status(
      StatusCode::kInvalidArgument,
      fmt::format("--heads: expected num_q_heads/num_kv_heads, as 32/8, got \"{}\"", text));
}

// What --heads and the dtypes say, put into the shape.
Status finish_shape(BenchArguments& arguments) {
  if (Status status = parse_heads(arguments.heads, arguments.shape); !status.ok()) return status;
  const Result<DType> dtype = parse_dtype("--dtype", arguments.dtype, kDTypes);
  if (!dtype.ok()) return dtype.status();
  arguments.shape.dtype = *dtype;
  if (arguments.cache_dtype.empty()) return {};
  const Result<DType> cache_dtype =
      parse_dtype("--cache-dtype", arguments.cache_dtype, kCacheDTypes);
  if (!cache_dtype.ok()) return cache_dtype.status();
  arguments.shape.cache_dtype = *cache_dtype;
  return {};
}

std::string json_line(const BenchShape& shape, int num_threads, const Measurement& result) {
  nlohmann::ordered_json line{
      {"backend", result.backend},
      {"target", result.target},
      {"dtype", dtype_name(shape.dtype)},
      {"cache_dtype", dtype_name(shape.kv_dtype())},
      {"chunk", shape.chunk},
      {"context", shape.context},
      {"num_q_heads", shape.num_q_heads},
      {"num_kv_heads", shape.num_kv_heads},
      {"head_dim", shape.head_dim},
      {"page_size", shape.page_size},
      {"threads", num_threads},
      {"median_seconds", result.median_seconds},
      {"useful_flops", result.useful_flops},
      {"peak_flops", result.peak_flops},
      {"share_of_peak", result.share_of_peak()},
      {"cache_bytes", result.cache_bytes},
      {"peak_bandwidth", result.peak_bandwidth},
      {"share_of_bandwidth", result.share_of_bandwidth()},
  };
  if (shape.batch > 1) line["batch"] = shape.batch;
  return line.dump();
}

std::string title(const BackendChoice& choice, const PeakKernels* kernels) {
  if (kernels == nullptr) {
    return fmt::format(
        "pagefill {}: backend {}, {}; times of a graph by events, inputs rotated beyond the L2; "
        "peaks are mma.sync (float32: multiply-adds) and a copy's bytes read and written",
        version(), choice.backend, device_name());
  }
  const std::string target = choice.target.empty() ? "" : fmt::format(", {}", choice.target);
  return fmt::format(
      "pagefill {}: backend {}{}, {} thread{}; peaks are those of {}, measured between the runs",
      version(), choice.backend, target, choice.num_threads, choice.num_threads == 1 ? "" : "s",
      kernels->target);
}

// Under these, the columns of table_row.
constexpr const char* kRateHeadings[] = {
    "          milliseconds             GFLOP/s            GB/s of cache",
    "     median       best    done    peak     %    read    peak     %"};

std::string headings() {
  const size_t width = std::string_view(kShapeHeadings).size();
  return fmt::format("{:{}}{}\n{}{}\n", "", width, kRateHeadings[0], kShapeHeadings,
                     kRateHeadings[1]);
}

// Reading the cache is what bounds decode; elsewhere its rate says nothing.
std::string table_row(const BenchShape& shape, const Measurement& result) {
  std::string row =
      fmt::format("{} {:>10.2f} {:>10.2f} {:>7.1f} {:>7.1f} {:>5.1f}", describe(shape),
                  result.median_seconds * 1e3, result.best_seconds * 1e3,
                  result.useful_flops / result.median_seconds * 1e-9, result.peak_flops * 1e-9,
                  result.share_of_peak() * 100);
  if (shape.chunk == 1) {
    row += fmt::format(" {:>7.1f} {:>7.1f} {:>5.1f}",
                       result.cache_bytes / result.median_seconds * 1e-9,
                       result.peak_bandwidth * 1e-9, result.share_of_bandwidth() * 100);
  }
  const std::string options = describe_options(shape);
  if (options.empty()) return row;
  const size_t width =
      std::string_view(kShapeHeadings).size() + std::string_view(kRateHeadings[1]).size();
  return fmt::format("{:<{}}{}", row, width, options);
}

int bench(const std::vector<BenchShape>& shapes, const BenchArguments& arguments) {
  const Context context = arguments.where.context();
  const Result<BackendChoice> choice = choose_backend(context);
  if (!choice.ok()) return wrong_use(choice.status().message());
  const bool on_device = runs_on_device(context);
  const PeakKernels* kernels = on_device ? nullptr : find_peak_kernels(choice->target);
  if (kernels == nullptr && !on_device) {
    return wrong_use(fmt::format("no loops that measure the peak of {} here", choice->target));
  }

  std::optional<PeakMeter> meter;
  if (!on_device) meter.emplace(*kernels, choice->num_threads);
  Progress progress;
  bool first = true;
  for (const BenchShape& shape : shapes) {
    const Result<Measurement> result =
        measure(shape, context, meter ? &*meter : nullptr, arguments.repeats, progress);
    progress.clear();
    if (!result.ok()) return wrong_use(result.status().message());
    if (first && !arguments.json) fmt::print("{}\n\n{}", title(*choice, kernels), headings());
    first = false;
    fmt::print("{}\n", arguments.json ? json_line(shape, choice->num_threads, *result)
                                      : table_row(shape, *result));
    std::fflush(stdout);
  }
  return kExitDone;
}

}  // namespace

void add_bench_command(CLI::App& app, int& exit_code) {
  auto arguments = std::make_shared<BenchArguments>();
  CLI::App* command = app.add_subcommand(
      "bench",
      "Time the operator: a standard set of shapes, or the one that the shape's options give");

  CLI::Option_group* shape = command->add_option_group("Shape", "any of these: that shape alone");
  BenchShape& s = arguments->shape;
  const auto count = [shape](const char* name, auto& value, const char* description) {
    shape->add_option(name, value, description)->check(kCount)->option_text("N");
  };
  count("--batch", s.batch, "sequences in one call (1)");
  count("--chunk", s.chunk, "queries (512)");
  count("--context", s.context, "tokens in the context (4096)");
  shape->add_option("--heads", arguments->heads, "num_q_heads/num_kv_heads (32/8)")
      ->option_text("Q/KV");
  count("--head-dim", s.head_dim, "of queries and keys (128)");
  count("--v-head-dim", s.v_head_dim, "of values (head_dim)");
  count("--page-size", s.page_size, "slots of a page (16)");
  shape->add_option("--dtype", arguments->dtype, "of queries and output (float32)")
      ->option_text(joined(kDTypes, "|"));
  shape
      ->add_option("--cache-dtype", arguments->cache_dtype,
                   "of keys and values (dtype); the last three with scales per slot")
      ->option_text(joined(kCacheDTypes, "|"));
  shape->add_option("--soft-cap", s.soft_cap, "attn_logits_soft_cap (none)")->option_text("X");
  shape->add_option("--window", s.window, "sliding_window (none)")->option_text("W");
  shape->add_flag("--sinks", s.sinks, "a sink for each query head");

  arguments->where.add_to(*command);
  command->add_option("--repeats", arguments->repeats, "timed runs (3 seconds' worth, 5 to 50)")
      ->check(CLI::Range(1, 1'000'000).description(""))
      ->option_text("N");
  command->add_flag("--json", arguments->json, "one JSON object a line");

  command->callback([arguments, shape, &exit_code] {
    if (const Status status = finish_shape(*arguments); !status.ok()) {
      exit_code = wrong_use(status.message());
      return;
    }
    const bool one = shape->count_all() > 0;
    exit_code = bench(one ? std::vector{arguments->shape} : standard_shapes(), *arguments);
  });
}

}  // namespace pagefill::cli
