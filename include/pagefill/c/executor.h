/* Where a call runs: backend, threads, workspace. */
#ifndef PAGEFILL_C_EXECUTOR_H_
#define PAGEFILL_C_EXECUTOR_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pagefill/c/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The caller's own threads. */
typedef struct pagefill_executor {
  size_t struct_size;
  int32_t num_threads; /* how many tasks can run at once; at least 1 */
  void* self;          /* handed back to parallel_for */
  /* Runs task(argument, i) exactly once for each i in [0, num_tasks), on any threads, at once or one
   * after another, and returns when all are done. */
  void (*parallel_for)(void* self, int64_t num_tasks, void (*task)(void* argument, int64_t index),
                       void* argument);
} pagefill_executor;

static inline pagefill_executor pagefill_executor_init(void) {
  pagefill_executor executor;
  memset(&executor, 0, sizeof executor);
  pagefill_set_struct_size(&executor.struct_size, sizeof executor);
  executor.num_threads = 1;
  return executor;
}

/* What a call did. The strings are good as long as the library is loaded. */
typedef struct pagefill_call_report {
  size_t struct_size;
  int32_t num_threads; /* threads that were asked for */
  const char* backend; /* the backend that ran */
  const char* target;  /* its instruction set, as named by the code that ran */
  size_t workspace_bytes;
} pagefill_call_report;

static inline pagefill_call_report pagefill_call_report_init(void) {
  pagefill_call_report report;
  memset(&report, 0, sizeof report);
  pagefill_set_struct_size(&report.struct_size, sizeof report);
  report.backend = "";
  report.target = "";
  return report;
}

/* Alignment that a workspace's first byte must have. */
enum { PAGEFILL_WORKSPACE_ALIGNMENT = 64 };

/* How to run a call. A null pagefill_context is the default: the best backend of the machine, all its
 * threads, and a workspace that the call allocates. */
typedef struct pagefill_context {
  size_t struct_size;
  int32_t num_threads; /* 0: PAGEFILL_NUM_THREADS, else all. Not together with executor */
  const char* backend; /* a backend's name; null or "auto": PAGEFILL_BACKEND, else the best */
  const char*
      cpu_target; /* an instruction set; null or "auto": PAGEFILL_CPU_TARGET, else the best */
  const pagefill_executor* executor; /* null: pagefill's own threads */
  void* workspace; /* scratch memory, aligned to PAGEFILL_WORKSPACE_ALIGNMENT, where the tensors */
  size_t
      workspace_size; /* are; or null with size 0: the call allocates and frees it, but on a CUDA device */
  pagefill_call_report* report; /* null, or filled in by an attention call that succeeds */
  /* Null, or a flag that any thread may set, atomically, to another number than 0 to end an attention
   * call early, with PAGEFILL_CANCELLED. output and lse then hold anything. Other calls, which would
   * leave a cache half written, do not look at it. A struct that ends above is taken as well. */
  const int32_t* cancel;
  /* For tensors on a CUDA device only (a struct that ends above is taken as well). The call
   * enqueues its work and returns: it neither allocates nor waits nor reads device memory on the host. */
  void* cuda_stream;           /* a cudaStream_t of the tensors' device; null: the default stream */
  int64_t cuda_max_chunk_size; /* no sequence has more rows; 0: total_tokens */
  /* No sequence has more keys in its pages (context_len less kv_start); 0: max_pages * page_size. */
  int64_t cuda_max_context_len;
  /* Null, or int32 [4] on the device, zeroed by the caller: {code, sequence, entry, value} of the first
   * thing that was found bad, PAGEFILL_CUDA_QUERY_STARTS, ... Rows that need it are NaN. */
  const pagefill_tensor* cuda_status;
} pagefill_context;

/* The first number of cuda_status. */
enum {
  PAGEFILL_CUDA_OK = 0,
  PAGEFILL_CUDA_QUERY_STARTS = 1, /* entry of query_starts; all rows of the call are NaN */
  PAGEFILL_CUDA_CONTEXT_LENS = 2, /* below 0, beyond the table's row or cuda_max_context_len */
  PAGEFILL_CUDA_KV_START = 3,     /* below 0 */
  PAGEFILL_CUDA_PAGE_TABLE = 4, /* entry of the sequence's row of the table: no page of the cache */
  PAGEFILL_CUDA_CHUNK_SIZE = 5, /* more rows than cuda_max_chunk_size */
  PAGEFILL_CUDA_COPIES = 6      /* number `entry` of copy `sequence`: that copy is not done */
};

static inline pagefill_context pagefill_context_init(void) {
  pagefill_context context;
  memset(&context, 0, sizeof context);
  pagefill_set_struct_size(&context.struct_size, sizeof context);
  return context;
}

#ifdef __cplusplus
}
#endif

#endif /* PAGEFILL_C_EXECUTOR_H_ */
