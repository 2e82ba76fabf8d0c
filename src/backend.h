// What a backend is. The list of them is in backends.cc.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "cancellation.h"
#include "pagefill/backend.h"
#include "pagefill/executor.h"
#include "pagefill/status.h"
#include "problem.h"

namespace pagefill {

// How the call runs, settled: no "auto" left.
struct RunSettings {
  std::string_view target;
  int num_threads = 1;
  Executor* executor = nullptr;      // null: pagefill's own threads
  std::span<std::byte> workspace{};  // exactly what workspace_size asked for
  Cancellation cancellation;
  CudaSettings cuda{};  // no 0 left in its plan
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;
  virtual const char* description() const = 0;

  // Empty where the backend can run here, else why not.
  virtual std::string unavailable_reason() const { return {}; }

  // Whose memory it works on.
  virtual DeviceType memory() const { return DeviceType::kCpu; }

  // BackendInfo::half_weights.
  virtual bool half_weights() const { return false; }

  // Its instruction sets, best first; empty where there is nothing to choose.
  virtual std::span<const TargetInfo> targets() const { return {}; }

  virtual Result<size_t> workspace_size(const Problem& problem,
                                        const RunSettings& settings) const = 0;

  // append_kv, copy_pages and merge_attention_states, where the memory is not the CPU's: there they are one code for all
  // backends (kv_cache/append.cc, copy_pages.cc, merge_states.cc).
  virtual Status append_kv(const AppendProblem& problem, const RunSettings& settings) const;
  virtual Status copy_pages(const CopyProblem& problem, const RunSettings& settings) const;
  virtual Status merge_states(const MergeProblem& problem, const RunSettings& settings) const;

  // Fills `report->target` with the name that the code that ran gives itself.
  virtual Status run(const Problem& problem, const RunSettings& settings,
                     CallReport* report) const = 0;
};

// Backend, target and threads of a call on that memory; what is asked for and not there is an error.
struct Selection {
  const Backend* backend = nullptr;
  RunSettings settings;
};
Result<Selection> select_backend(const Context& context, DeviceType memory);

}  // namespace pagefill
