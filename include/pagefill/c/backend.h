/* What can run here, and what will. */
#ifndef PAGEFILL_C_BACKEND_H_
#define PAGEFILL_C_BACKEND_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pagefill/c/executor.h"
#include "pagefill/c/status.h"
#include "pagefill/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An instruction set of a backend. The strings of this and the next struct are good as long as the
 * library is loaded. */
typedef struct pagefill_target_info {
  size_t struct_size;
  int32_t available;       /* 1 where this machine has it, else 0 */
  const char* name;        /* as PAGEFILL_CPU_TARGET takes it */
  const char* description; /* one line */
} pagefill_target_info;

static inline pagefill_target_info pagefill_target_info_init(void) {
  pagefill_target_info info;
  memset(&info, 0, sizeof info);
  pagefill_set_struct_size(&info.struct_size, sizeof info);
  return info;
}

typedef struct pagefill_backend_info {
  size_t struct_size;
  const char* name;        /* as PAGEFILL_BACKEND takes it */
  const char* description; /* one line */
  const char* reason;      /* where not available: why; else "" */
  int32_t available;       /* 1 where it can run here, else 0 */
  int32_t num_targets;     /* those that were compiled in */
  /* A struct that ends above is taken as well. */
  int32_t memory;       /* PAGEFILL_CPU or PAGEFILL_CUDA: whose memory it works on */
  int32_t half_weights; /* 1 where weights are rounded to 16 bits beside 16-bit queries, else 0 */
} pagefill_backend_info;

static inline pagefill_backend_info pagefill_backend_info_init(void) {
  pagefill_backend_info info;
  memset(&info, 0, sizeof info);
  pagefill_set_struct_size(&info.struct_size, sizeof info);
  return info;
}

/* How many backends were compiled in. */
PAGEFILL_EXPORT pagefill_status pagefill_get_num_backends(int32_t* num_backends);

/* Backend `index` of them; of those that work on the same memory, best first. */
PAGEFILL_EXPORT pagefill_status pagefill_get_backend_info(int32_t index,
                                                          pagefill_backend_info* info);

/* Target `index` of a backend's, best first. */
PAGEFILL_EXPORT pagefill_status pagefill_get_target_info(int32_t backend_index, int32_t index,
                                                         pagefill_target_info* info);

/* The strings are good until the next call of pagefill_choose_backend in the same thread. */
typedef struct pagefill_backend_choice {
  size_t struct_size;
  int32_t num_threads;
  const char* backend;
  const char* target;
  const char* reason; /* one line: who asked for it, or why it is the best */
} pagefill_backend_choice;

static inline pagefill_backend_choice pagefill_backend_choice_init(void) {
  pagefill_backend_choice choice;
  memset(&choice, 0, sizeof choice);
  pagefill_set_struct_size(&choice.struct_size, sizeof choice);
  return choice;
}

/* What a call with this context (null: the default) would run on; an error where what was asked for is
 * unknown or not available here. */
PAGEFILL_EXPORT pagefill_status pagefill_choose_backend(const pagefill_context* context,
                                                        pagefill_backend_choice* choice);

/* "0.1.0". */
PAGEFILL_EXPORT const char* pagefill_version(void);

#ifdef __cplusplus
}
#endif

#endif /* PAGEFILL_C_BACKEND_H_ */
