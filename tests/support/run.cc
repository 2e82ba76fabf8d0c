#include "support/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "support/device.h"
#include "support/elements.h"
#include "support/thread_executor.h"

namespace pagefill::testing {
namespace {

// One list of chunks a call.
std::vector<std::vector<Chunk>> cut_into_calls(const Problem& p, const Cut& cut) {
  const auto num_seqs = static_cast<int64_t>(p.sequences.size());
  std::vector<std::vector<Chunk>> calls;
  for (int64_t step = 0;; ++step) {
    std::vector<Chunk> chunks;
    for (int64_t s = 0; s < num_seqs; ++s) {
      const int64_t rows = p.sequences[s].num_rows;
      const int64_t size = cut.chunk_size == 0 ? std::max<int64_t>(rows, 1) : cut.chunk_size;
      const int64_t begin = step * size;
      if (begin < rows || step == 0) chunks.push_back({s, begin, std::min(begin + size, rows)});
    }
    if (chunks.empty()) return calls;
    if (cut.alone) {
      for (const Chunk& chunk : chunks) calls.push_back({chunk});
    } else {
      calls.push_back(chunks);
    }
  }
}

// Copies the call's rows to their places, and checks that the rest of the memory is as it was.
template <typename Row>
void take_rows(const GuardedBuffer& memory, const MutableTensorView& view, int64_t row_bytes,
               const std::vector<Row>& rows, std::byte* destination, const char* name) {
  const int64_t element = dtype_size(view.dtype);
  for (size_t token = 0; token < rows.size(); ++token) {
    const int64_t heads = view.rank == 3 ? view.shape[1] : 1;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t at = static_cast<int64_t>(token) * view.strides[0] + h * view.strides[1];
      std::byte* row = memory.data() + at * element;
      std::memcpy(destination + (rows[token] * heads + h) * row_bytes, row,
                  static_cast<size_t>(row_bytes));
      std::memset(row, std::to_integer<int>(kCanary), static_cast<size_t>(row_bytes));
    }
  }
  const std::byte* end = memory.data() + memory.size();
  const std::byte* touched = std::find_if(static_cast<const std::byte*>(memory.data()), end,
                                          [](std::byte b) { return b != kCanary; });
  if (touched != end) {
    throw std::runtime_error(
        fmt::format("{}: byte {} is no row's and was written", name, touched - memory.data()));
  }
}

}  // namespace

std::string describe(const Where& where) {
  return fmt::format("backend {}, target {}, {} threads", where.backend, where.target,
                     where.threads);
}

std::vector<Where> all_targets() {
  const char* const only = std::getenv("PAGEFILL_TEST_BACKEND");
  std::vector<Where> all;
  for (const BackendInfo& backend : list_backends()) {
    if (!backend.available || (only != nullptr && backend.name != only)) continue;
    if (backend.targets.empty()) all.push_back({backend.name, "auto", 1});
    for (const TargetInfo& target : backend.targets) {
      if (target.available) all.push_back({backend.name, target.name, 1});
    }
  }
  return all;
}

std::vector<Where> host_targets() {
  std::vector<Where> targets = all_targets();
  std::erase_if(targets, [](const Where& where) { return where.backend == "cuda"; });
  return targets;
}

std::vector<Where> fast_targets() {
  std::vector<Where> targets = all_targets();
  std::erase_if(targets, [](const Where& where) { return where.backend == "reference"; });
  return targets;
}

std::vector<Where> cpu_targets() {
  std::vector<Where> targets = all_targets();
  std::erase_if(targets, [](const Where& where) { return where.backend != "cpu"; });
  return targets;
}

double Results::at(int64_t row, int64_t head, int64_t d) const {
  return load(output.data(), dtype, (row * num_q_heads + head) * v_head_dim + d);
}

namespace {

Status call_with(const Arguments& a, const Context& context, bool alone) {
  if (!alone) {
    return ragged_page_attention(a.query, a.key_cache, a.value_cache, a.query_starts,
                                 a.context_lens, a.page_table, a.options, a.output, context);
  }
  TensorView page_indices = a.page_table;
  page_indices.rank = 1;
  page_indices.shape = {a.page_table.shape[1]};
  page_indices.strides = {a.page_table.strides[1]};
  return prefill_page_attention(a.query, a.key_cache, a.value_cache, a.context_lens, page_indices,
                                a.options, a.output, context);
}

// What the device reported is an error here: the arguments of a test are good.
Status call_on_device(const Arguments& host, Context context, bool alone) {
  DeviceArguments arguments(host);
  const Arguments& a = arguments.views();
  const int32_t no_report[4] = {};
  int32_t reported[4];
  std::byte* const status_memory = arguments.memory().copy(no_report, sizeof(no_report));
  context.cuda.status = MutableTensorView(status_memory, DType::kInt32, {4});
  context.cuda.status.device = {DeviceType::kCuda, 0};
  const Result<size_t> size =
      attention_workspace_size(a.query, a.key_cache, a.value_cache, a.query_starts, a.context_lens,
                               a.page_table, a.options, a.output, context);
  if (!size.ok()) return size.status();
  context.workspace = {arguments.memory().take(*size), *size};
  if (Status status = call_with(a, context, alone); !status.ok()) return status;
  if (Status status = arguments.copy_back(); !status.ok()) return status;
  const Status status = cli::copy_to_host(reported, status_memory, sizeof(reported));
  if (!status.ok() || reported[0] == 0) return status;
  return Status(StatusCode::kInternal,
                fmt::format("the device reported code {}, sequence {}, entry {}, value {}",
                            reported[0], reported[1], reported[2], reported[3]));
}

}  // namespace

Status call(const Arguments& a, const Where& where, CallReport* report, bool alone) {
  ThreadExecutor executor(where.threads);
  Context context;
  context.backend = where.backend;
  context.cpu_target = where.target;
  context.report = report;
  if (use_thread_executor()) {
    context.executor = &executor;
  } else {
    context.num_threads = where.threads;
  }
  return where.backend == "cuda" ? call_on_device(a, context, alone) : call_with(a, context, alone);
}

Results run(const Problem& p, const Layout& layout, const Where& where, const Cut& cut) {
  Results results{p.query_dtype, p.num_q_heads, p.v_head_dim, {}, {}, {}};
  const int64_t head_bytes = p.v_head_dim * dtype_size(p.query_dtype);
  results.output.resize(static_cast<size_t>(p.total_rows() * p.num_q_heads * head_bytes));
  results.lse.resize(static_cast<size_t>(p.total_rows() * p.num_q_heads));
  std::vector<int64_t> first_row{0};
  for (const Sequence& seq : p.sequences) first_row.push_back(first_row.back() + seq.num_rows);

  for (const std::vector<Chunk>& chunks : cut_into_calls(p, cut)) {
    Layout call_layout = layout;
    if (cut.alone) call_layout.padding_rows = 0;  // the single call has none
    const Arguments arguments = lay_out(p, chunks, call_layout);
    CallReport report;
    const Status status = call(arguments, where, &report, cut.alone);
    if (!status.ok()) {
      throw std::runtime_error(fmt::format("{}\n  {}\n  {}\n  {}", status.message(), describe(p),
                                           describe(layout), describe(where)));
    }
    results.reports.push_back(report);
    std::vector<int64_t> rows;
    for (const Chunk& chunk : chunks) {
      for (int64_t i = chunk.row_begin; i < chunk.row_end; ++i) {
        rows.push_back(first_row[chunk.sequence] + i);
      }
    }
    take_rows(arguments.output_memory, arguments.output.output, head_bytes, rows,
              results.output.data(), "output");
    take_rows(arguments.lse_memory, arguments.output.lse, p.num_q_heads * 4, rows,
              reinterpret_cast<std::byte*>(results.lse.data()), "lse");
  }
  return results;
}

std::optional<std::string> difference(const Results& a, const Results& b) {
  if (a.output.size() != b.output.size() || a.lse.size() != b.lse.size()) return "other shapes";
  const size_t head_bytes = static_cast<size_t>(a.v_head_dim * dtype_size(a.dtype));
  for (size_t i = 0; i < a.lse.size(); ++i) {
    const size_t row = i / static_cast<size_t>(a.num_q_heads);
    const size_t head = i % static_cast<size_t>(a.num_q_heads);
    if (std::memcmp(&a.lse[i], &b.lse[i], sizeof(float)) != 0) {
      return fmt::format("lse of row {}, head {}: {} and {}", row, head, a.lse[i], b.lse[i]);
    }
    if (std::memcmp(&a.output[i * head_bytes], &b.output[i * head_bytes], head_bytes) == 0)
      continue;
    for (int64_t d = 0; d < a.v_head_dim; ++d) {
      const double x = a.at(static_cast<int64_t>(row), static_cast<int64_t>(head), d);
      const double y = b.at(static_cast<int64_t>(row), static_cast<int64_t>(head), d);
      if (std::memcmp(&x, &y, sizeof(x)) != 0) {
        return fmt::format("output of row {}, head {}, element {}: {} and {}", row, head, d, x, y);
      }
    }
  }
  return std::nullopt;
}

}  // namespace pagefill::testing
