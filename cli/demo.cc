// pagefill demo: several sequences in one paged cache, their bits against one whole prefill each, and the
// memory that pages saved.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "demo_engine.h"
#include "pagefill/backend.h"
#include "terminal.h"
#include "where_options.h"

namespace pagefill::cli {
namespace {

constexpr int64_t kTotalNumPages = 64;
constexpr int64_t kMaxContext = 1024;  // what a contiguous cache would keep for each sequence
// Not a multiple of the page size: the last shared page is half full, and copied when a fork goes on.
constexpr int64_t kSystemPromptLen = 184;
constexpr int64_t kNumDecode = 24;

struct DemoRun {
  std::vector<Sequence> sequences;
  int64_t num_steps = 0;
};

Status finish_all(Engine& engine, DemoRun& run) {
  const auto finished = [](const Sequence& sequence) { return sequence.finished(); };
  while (!std::ranges::all_of(run.sequences, finished)) {
    if (Status status = engine.step(run.sequences); !status.ok()) return status;
    ++run.num_steps;
  }
  return {};
}

// A system prompt, then conversations that go on from it, and one that does not.
Result<DemoRun> serve(Engine& engine) {
  DemoRun run;
  uint64_t seed = 1;
  Result<Sequence> system =
      engine.add("system prompt", random_tokens(kSystemPromptLen, seed), 0, 0);
  if (!system.ok()) return system.status();
  run.sequences.push_back(std::move(system).value());
  if (Status status = finish_all(engine, run); !status.ok()) return status;

  for (const int64_t prompt_len : {37, 120, 5, 72}) {
    const Sequence& parent = run.sequences.front();
    const Tokens prompt = random_tokens(prompt_len, ++seed);
    Result<Sequence> user =
        engine.fork(parent, fmt::format("user {}", seed - 1), prompt, kNumDecode, seed + 100);
    if (!user.ok()) return user.status();
    run.sequences.push_back(std::move(user).value());
  }
  const Tokens prompt = random_tokens(90, ++seed);
  Result<Sequence> other = engine.add("no system prompt", prompt, kNumDecode, seed + 100);
  if (!other.ok()) return other.status();
  run.sequences.push_back(std::move(other).value());
  if (Status status = finish_all(engine, run); !status.ok()) return status;
  return run;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A row a sequence; how many of them have not the bits of one whole prefill.
Result<int> print_sequences(const Engine& engine, const DemoRun& run, const Context& context) {
  fmt::print("{:<18}{:>7}{:>8}{:>8}{:>9}{:>9}{:>7}{:>12}\n", "sequence", "shared", "prompt",
             "chunks", "decoded", "context", "pages", "own pages");
  int num_different = 0;
  for (const Sequence& sequence : run.sequences) {
    const Result<Attended> whole = whole_prefill(sequence.tokens, context);
    if (!whole.ok()) return whole.status();
    const bool equal = same_bits(whole->output, sequence.attended.output) &&
                       same_bits(whole->lse, sequence.attended.lse);
    num_different += equal ? 0 : 1;
    const auto pages = engine.allocator().page_indices(sequence.id);
    if (!pages.ok()) return pages.status();
    const auto own = std::ranges::count_if(
        *pages, [&](int32_t page) { return engine.allocator().reference_count(page) == 1; });
    fmt::print("{:<18}{:>7}{:>8}{:>8}{:>9}{:>9}{:>7}{:>12}    bits {}\n", sequence.name,
               sequence.shared_len, sequence.prompt_len - sequence.shared_len, sequence.num_chunks,
               sequence.num_decoded, sequence.context_len, pages->size(), own,
               equal ? "equal" : "DIFFER");
  }
  return num_different;
}

// Two results in float32, of one formula: how far apart they are, and may be.
struct Difference {
  double largest = 0;
  double share = 0;  // of what is allowed there
};

// Twice what `verify` lets a result be off by, of the largest value, with scores up to 8 (accuracy.h).
Difference output_difference(const Sequence& sequence, const Attended& other) {
  double largest_value = 0;
  for (const float x : sequence.tokens.values) {
    largest_value = std::max(largest_value, std::abs(double{x}));
  }
  const double allowed = 2 * 0x1p-24 * largest_value *
                         (3 * std::sqrt(static_cast<double>(sequence.context_len)) +
                          8 * (4 + std::sqrt(static_cast<double>(kHeadDim)) / 2));
  Difference difference;
  for (size_t i = 0; i < other.output.size(); ++i) {
    const double error = std::abs(double{other.output[i]} - sequence.attended.output[i]);
    difference.largest = std::max(difference.largest, error);
    if (!(error <= allowed)) difference.share = 2;  // of a NaN, too
    difference.share = std::max(difference.share, error / allowed);
  }
  return difference;
}

// The same sequences on the CPU, whose bits are others: 0 where all agree within rounding.
Result<int> compare_with_cpu(const DemoRun& run) {
  Context cpu;
  cpu.backend = "cpu";
  Difference worst;
  int num_different = 0;
  for (const Sequence& sequence : run.sequences) {
    const Result<Attended> whole = whole_prefill(sequence.tokens, cpu);
    if (!whole.ok()) return whole.status();
    const Difference difference = output_difference(sequence, *whole);
    num_different += difference.share > 1 ? 1 : 0;
    worst.largest = std::max(worst.largest, difference.largest);
    worst.share = std::max(worst.share, difference.share);
  }
  fmt::print(
      "Outputs differ from those of the CPU by up to {:.1e}, {:.0f} % of what is allowed.\n\n",
      worst.largest, 100 * worst.share);
  return num_different;
}

void print_memory(const Engine& engine, const DemoRun& run) {
  const int64_t bytes_per_slot = 2 * kNumKvHeads * kHeadDim * int64_t{sizeof(float)};
  const auto num_sequences = static_cast<int64_t>(run.sequences.size());
  int64_t unshared_pages = 0;
  for (const Sequence& sequence : run.sequences) {
    unshared_pages += (sequence.context_len + kPageSize - 1) / kPageSize;
  }
  const int64_t used_pages =
      engine.allocator().total_num_pages() - engine.allocator().num_free_pages();
  const int64_t contiguous_slots = num_sequences * kMaxContext;
  const auto row = [&](const std::string& label, int64_t slots) {
    fmt::print("{:<45}{:>8} slots{:>8} KiB{:>7.1f} %\n", label, slots,
               slots * bytes_per_slot / 1024,
               100.0 * static_cast<double>(slots) / static_cast<double>(contiguous_slots));
  };
  fmt::print("memory of keys and values\n");
  row(fmt::format("  contiguous, {} slots for each sequence", kMaxContext), contiguous_slots);
  row("  paged", unshared_pages * kPageSize);
  row("  paged, system prompt shared (this run)", used_pages * kPageSize);
}

int demo(const WhereOptions& arguments) {
  const Context context = arguments.context();
  const Result<BackendChoice> choice = choose_backend(context);
  if (!choice.ok()) return wrong_use(choice.status().message());
  Result<Engine> engine = Engine::create(kTotalNumPages, context);
  if (!engine.ok()) return wrong_use(engine.status().message());
  const Result<DemoRun> run = serve(*engine);
  if (!run.ok()) return wrong_use(run.status().message());

  const bool on_device = runs_on_device(context);
  const std::string threads =
      fmt::format(", {} thread{}", choice->num_threads, choice->num_threads == 1 ? "" : "s");
  fmt::print("pagefill {}: backend {}{}{}{}\n", version(), choice->backend,
             choice->target.empty() ? "" : " ", choice->target, on_device ? "" : threads);
  fmt::print(
      "{} sequences in one cache of {} pages of {} slots; {} query heads over {} KV heads, "
      "head_dim {}\n\n",
      run->sequences.size(), kTotalNumPages, kPageSize, kNumQHeads, kNumKvHeads, kHeadDim);
  const Result<int> num_different = print_sequences(*engine, *run, context);
  if (!num_different.ok()) return wrong_use(num_different.status().message());
  fmt::print(
      "\n{} steps, each one ragged batch of prompt chunks (up to {} tokens) and decode tokens.\n",
      run->num_steps, kMaxChunk);
  fmt::print(
      "The users share the system prompt's full pages; its half-full last one was copied {} "
      "times.\n\n",
      engine->num_copied_pages());
  if (on_device) {
    const Result<int> num_apart = compare_with_cpu(*run);
    if (!num_apart.ok()) return wrong_use(num_apart.status().message());
    if (*num_apart > 0) {
      fmt::print("{} of {} sequences differ from the CPU's by more.\n", *num_apart,
                 run->sequences.size());
      return kExitCheckFailed;
    }
  }
  print_memory(*engine, *run);
  if (*num_different > 0) {
    fmt::print("\n{} of {} sequences differ from one whole prefill.\n", *num_different,
               run->sequences.size());
    return kExitCheckFailed;
  }
  fmt::print(
      "\nEvery output and lse has the bits of one whole prefill of its sequence over one page.\n");
  return kExitDone;
}

}  // namespace

void add_demo_command(CLI::App& app, int& exit_code) {
  auto arguments = std::make_shared<WhereOptions>();
  CLI::App* command = app.add_subcommand(
      "demo", "Serve several sequences from one paged cache; compare bits and memory");
  arguments->add_to(*command);
  command->callback([arguments, &exit_code] { exit_code = demo(*arguments); });
}

}  // namespace pagefill::cli
