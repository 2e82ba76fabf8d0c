// What can run here, and what will.
#pragma once

#include <string>
#include <vector>

#include "pagefill/executor.h"
#include "pagefill/export.h"
#include "pagefill/status.h"

namespace pagefill {

// An instruction set of a backend.
struct TargetInfo {
  std::string name;         // as PAGEFILL_CPU_TARGET takes it
  std::string description;  // one line
  bool available = false;   // this machine has it
  // Where query and cache are bfloat16: products of bfloat16 pairs, for which each weight of the softmax is
  // rounded to bfloat16 as well. That moves an output by at most 2^-8 of its head's largest value. The
  // processor's instructions for them take denormals as 0.
  bool bfloat16_weights = false;
};

struct BackendInfo {
  std::string name;         // as PAGEFILL_BACKEND takes it
  std::string description;  // one line
  bool available = false;
  std::string reason;                    // where not available: why
  DeviceType memory = DeviceType::kCpu;  // whose memory it works on
  // Where query is bfloat16 or float16, and the cache of the same dtype or quantised: each weight of the
  // softmax is rounded to query's dtype (beside a quantised cache to bfloat16) before it multiplies the
  // values. That moves an output by at most 2^-8 (float16: 2^-11) of its head's largest value.
  bool half_weights = false;
  std::vector<TargetInfo> targets;  // best first; all that were compiled in
};

struct BackendChoice {
  std::string backend;
  std::string target;
  int num_threads = 0;
  std::string reason;  // one line: who asked for it, or why it is the best
};

// All backends that were compiled in; of those that work on the same memory, best first.
PAGEFILL_EXPORT std::vector<BackendInfo> list_backends();

// What a call with this context would run on, with memory of the CPU where no backend is named; an error
// where what was asked for is unknown or not available here.
PAGEFILL_EXPORT Result<BackendChoice> choose_backend(const Context& context = {});

// "0.1.0".
PAGEFILL_EXPORT const char* version();

}  // namespace pagefill
