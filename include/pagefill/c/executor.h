/* Where a call runs: backend, threads, workspace. */
#ifndef PAGEFILL_C_EXECUTOR_H_
#define PAGEFILL_C_EXECUTOR_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

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
  executor.struct_size = sizeof executor;
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
  report.struct_size = sizeof report;
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
  void* workspace;       /* scratch memory, aligned to PAGEFILL_WORKSPACE_ALIGNMENT; or null, */
  size_t workspace_size; /* with size 0: the call allocates and frees it */
  pagefill_call_report* report; /* null, or filled in by an attention call that succeeds */
  /* Null, or a flag that any thread may set, atomically, to another number than 0 to end an attention
   * call early, with PAGEFILL_CANCELLED. output and lse then hold anything. Other calls, which would
   * leave a cache half written, do not look at it. A struct_size that ends before this member is
   * good too. */
  const int32_t* cancel;
} pagefill_context;

static inline pagefill_context pagefill_context_init(void) {
  pagefill_context context;
  memset(&context, 0, sizeof context);
  context.struct_size = sizeof context;
  return context;
}

#ifdef __cplusplus
}
#endif

#endif /* PAGEFILL_C_EXECUTOR_H_ */
