#include "proof.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "variants.h"

namespace pagefill::cli {
namespace {

// The first element whose bits differ, as "output[4, 2, 17]: 0.25 became 0.26"; empty: none does.
std::string first_difference(const char* name, const Tensor& original, const Tensor& variant) {
  const auto [a, b] = std::ranges::mismatch(original.bytes, variant.bytes);
  if (a == original.bytes.end()) return {};
  const int64_t element = (a - original.bytes.begin()) / dtype_size(original.dtype);
  std::vector<int64_t> index(original.shape.size());
  int64_t rest = element;
  for (size_t i = index.size(); i-- > 0; rest /= original.shape[i]) {
    index[i] = rest % original.shape[i];
  }
  return fmt::format("{}[{}]: {} became {}", name, fmt::join(index, ", "),
                     load(original.view(), element), load(variant.view(), element));
}

}  // namespace

Status run_variant(const Claim& claim, Proof& proof, std::string_view variant,
                   const std::function<Result<State>()>& run) {
  claim.on_variant(variant);
  const Result<State> state = run();
  if (!state.ok()) {
    return Status(state.status().code(), fmt::format("{}: {}", variant, state.status().message()));
  }
  ++proof.num_variants;
  std::string difference = first_difference("output", claim.original.output, state->output);
  if (difference.empty()) difference = first_difference("lse", claim.original.lse, state->lse);
  if (proof.holds() && !difference.empty()) {
    proof.failure = fmt::format("{}: {}", variant, difference);
  }
  return {};
}

Result<Proof> prove_unused_memory_is_unread(const Claim& claim) {
  Proof proof;
  for (const Poison& poison : kPoisons) {
    const Case changed = poisoned(claim.c, poison);
    const Status status =
        run_variant(claim, proof, poison.name, [&] { return attend(changed, claim.context); });
    if (!status.ok()) return status;
  }
  return proof;
}

}  // namespace pagefill::cli
