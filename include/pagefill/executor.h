// Where a call runs: backend, threads, workspace.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "pagefill/export.h"

namespace pagefill {

// A caller's own threads. pagefill calls parallel_for from the thread that made the call, and not at all
// where one task holds all the work: that runs on the calling thread.
class PAGEFILL_EXPORT Executor {
 public:
  virtual ~Executor();

  // How many tasks can run at once; at least 1. More than that is never asked of parallel_for.
  virtual int num_threads() const = 0;

  // Runs task(argument, i) exactly once for each i in [0, num_tasks), on any threads, at once or one
  // after another, and returns when all are done. A task does not throw and does not wait for another.
  virtual void parallel_for(int64_t num_tasks, void (*task)(void* argument, int64_t index),
                            void* argument) = 0;
};

// What a call did, for those who want to know.
struct CallReport {
  const char* backend = "";  // the backend that ran
  const char* target = "";   // its instruction set, as named by the code that ran
  int num_threads = 0;       // how many could take part: no more than there was work for
  size_t workspace_bytes = 0;
};

// Alignment that a workspace's first byte must have.
inline constexpr size_t kWorkspaceAlignment = 64;

// How to run a call. The default is the best backend of the machine, all its threads, and a workspace
// that the call allocates.
struct Context {
  // "auto", or the name of a backend. "auto" follows PAGEFILL_BACKEND where that is set.
  std::string_view backend = "auto";
  // "auto", or the name of an instruction set of the cpu backend. "auto" follows PAGEFILL_CPU_TARGET
  // where that is set.
  std::string_view cpu_target = "auto";
  // The caller's threads. Null: pagefill's own (oneTBB).
  Executor* executor = nullptr;
  // How many of pagefill's own threads; 0: PAGEFILL_NUM_THREADS where set, else all of the machine's.
  // Not together with `executor`.
  int num_threads = 0;
  // Scratch memory of at least attention_workspace_size() bytes, aligned to kWorkspaceAlignment.
  // Empty: the call allocates and frees it. Only attention calls need any.
  std::span<std::byte> workspace{};
  // Filled in by an attention call that succeeds, where given.
  CallReport* report = nullptr;
  // Any thread may set it to another number than 0 to end an attention call early, with kCancelled.
  // `output` and `lse` then hold anything. Looked at between pieces of the work, of at most 1024 keys a
  // row; not by calls other than attention, which would leave a cache half written.
  const std::atomic<int32_t>* cancel = nullptr;
};

}  // namespace pagefill
