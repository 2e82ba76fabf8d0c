// Where a call runs: backend, threads, workspace; on a CUDA device also stream and plan.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "pagefill/export.h"
#include "pagefill/tensor.h"

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

// What a call on memory of a CUDA device takes besides; refused where the memory is the CPU's. Such a call
// enqueues its work on the stream and returns. It neither allocates nor waits nor reads device memory on the
// host, so that it can be captured into a graph. docs/cuda.md has the reasons.
struct CudaSettings {
  // A cudaStream_t of the tensors' device; null: the default stream.
  void* stream = nullptr;
  // The plan: no sequence has more rows than this, nor more keys in its pages (context_len less kv_start).
  // The lengths themselves stay on the device and may change between replays of a graph; a sequence that is
  // longer than the plan is reported as bad. 0: total_tokens, and max_pages * page_size.
  int64_t max_chunk_size = 0;
  int64_t max_context_len = 0;
  // int32 [4] on the device, zeroed by the caller, or not given: {code, sequence, entry, value} of the
  // first thing that was found bad (CudaStatusCode). Any number of calls may share it.
  MutableTensorView status{};
};

// What a call found on the device that cannot be an error of the call. Rows that need it are NaN.
enum class CudaStatusCode : int32_t {
  kOk = 0,
  kQueryStarts = 1,  // entry `entry` of query_starts; all rows of the call are NaN
  kContextLens = 2,  // below 0, beyond the table's row, or beyond max_context_len
  kKvStart = 3,      // below 0
  kPageTable = 4,    // entry `entry` of the sequence's row of the table is no page of the cache
  kChunkSize = 5,    // more rows than max_chunk_size
  // Number `entry` of copy `sequence` of CopyOptions::copies is no page of the cache, no number of slots, or a
  // destination that is the source; that copy is not done.
  kCopies = 6,
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
  // Scratch memory of at least attention_workspace_size() bytes, aligned to kWorkspaceAlignment, where the
  // tensors are. Empty: the call allocates and frees it, but on a CUDA device, where that is an error. Only
  // attention calls need any.
  std::span<std::byte> workspace{};
  // Filled in by an attention call that succeeds, where given.
  CallReport* report = nullptr;
  // Any thread may set it to another number than 0 to end an attention call early, with kCancelled.
  // `output` and `lse` then hold anything. Looked at between pieces of the work, of at most 1024 keys a
  // row; not by calls other than attention, which would leave a cache half written.
  const std::atomic<int32_t>* cancel = nullptr;
  CudaSettings cuda{};
};

}  // namespace pagefill
