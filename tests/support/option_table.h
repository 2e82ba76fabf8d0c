// Every option of the operator, with the cases that the tests put it through. An option that is
// added to AttentionOptions without a row here does not compile.
#pragma once

#include <array>

#include "support/problem.h"

namespace pagefill::testing {

// In the order of AttentionOptions.
enum Option {
  kSoftmaxScale,
  kSoftCap,
  kSlidingWindow,
  kMaskValue,
  kSinks,
  kKvStart,
  kKeyScale,
  kValueScale,
  kNumOptions
};

struct OptionCase {
  Option option;
  const char* name;
  void (*apply)(Problem& problem);
};

inline constexpr OptionCase kOptionTable[] = {
    {kSoftmaxScale, "softmax_scale 0.2", [](Problem& p) { p.options.softmax_scale = 0.2f; }},
    {kSoftmaxScale, "softmax_scale -0.3", [](Problem& p) { p.options.softmax_scale = -0.3f; }},
    {kSoftmaxScale, "softmax_scale 0", [](Problem& p) { p.options.softmax_scale = 0.0f; }},
    {kSoftCap, "attn_logits_soft_cap 1.5",
     [](Problem& p) { p.options.attn_logits_soft_cap = 1.5f; }},
    {kSoftCap, "attn_logits_soft_cap 30",
     [](Problem& p) { p.options.attn_logits_soft_cap = 30.0f; }},
    {kSlidingWindow, "sliding_window 1", [](Problem& p) { p.options.sliding_window = 1; }},
    {kSlidingWindow, "sliding_window 33", [](Problem& p) { p.options.sliding_window = 33; }},
    {kSlidingWindow, "sliding_window 100", [](Problem& p) { p.options.sliding_window = 100; }},
    {kMaskValue, "mask_value -2 (masked keys count)",
     [](Problem& p) { p.options.mask_value = -2.0f; }},
    {kMaskValue, "mask_value -2 and sliding_window 17",
     [](Problem& p) { p.options.mask_value = -2.0f, p.options.sliding_window = 17; }},
    {kMaskValue, "mask_value -1, cap and window",
     [](Problem& p) {
       p.options.mask_value = -1.0f;
       p.options.attn_logits_soft_cap = 2.0f;
       p.options.sliding_window = 40;
     }},
    {kSinks, "sinks", add_sinks},
    {kSinks, "sinks, cap, scale and window",
     [](Problem& p) {
       add_sinks(p);
       p.options.attn_logits_soft_cap = 5.0f;
       p.options.softmax_scale = 0.25f;
       p.options.sliding_window = 65;
     }},
    {kKvStart, "kv_start 37", [](Problem& p) { drop_keys_before(p, 37); }},
    {kKvStart, "kv_start 70, window 60 and sinks",
     [](Problem& p) {
       drop_keys_before(p, 70);
       add_sinks(p);
       p.options.sliding_window = 60;
     }},
    {kKvStart, "kv_start 21 and mask_value -3",
     [](Problem& p) {
       drop_keys_before(p, 21);
       p.options.mask_value = -3.0f;
     }},
    // In an int8 cache where the problem's is not quantised.
    {kKeyScale, "key_scale per tensor", [](Problem& p) { add_key_scale(p, ScalePer::kTensor); }},
    {kKeyScale, "key_scale per head", [](Problem& p) { add_key_scale(p, ScalePer::kHead); }},
    {kKeyScale, "key_scale per slot, cap and window",
     [](Problem& p) {
       add_key_scale(p, ScalePer::kSlot);
       p.options.attn_logits_soft_cap = 4.0f;
       p.options.sliding_window = 50;
     }},
    {kValueScale, "value_scale per tensor",
     [](Problem& p) { add_value_scale(p, ScalePer::kTensor); }},
    {kValueScale, "value_scale per head", [](Problem& p) { add_value_scale(p, ScalePer::kHead); }},
    {kValueScale, "both scales per slot, sinks and kv_start",
     [](Problem& p) {
       add_key_scale(p, ScalePer::kSlot);
       add_value_scale(p, ScalePer::kSlot);
       add_sinks(p);
       drop_keys_before(p, 29);
     }},
};

// Does not compile when AttentionOptions has other members than the list of options above.
inline void list_members(const AttentionOptions& options) {
  [[maybe_unused]] const auto& [softmax_scale, attn_logits_soft_cap, sliding_window, mask_value,
                                sinks, kv_start, key_scale, value_scale] = options;
  static_assert(kNumOptions == 8, "as many options as names in the binding");
}

consteval bool every_option_has_a_case() {
  std::array<bool, kNumOptions> covered{};
  for (const OptionCase& c : kOptionTable) covered[c.option] = true;
  for (bool has_case : covered) {
    if (!has_case) return false;
  }
  return true;
}

static_assert(every_option_has_a_case(), "an option has no case in kOptionTable");

}  // namespace pagefill::testing
