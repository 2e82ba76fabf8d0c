/* What a call answers. */
#ifndef PAGEFILL_C_STATUS_H_
#define PAGEFILL_C_STATUS_H_

#include "pagefill/export.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum pagefill_status {
  PAGEFILL_OK = 0,
  PAGEFILL_INVALID_ARGUMENT = 1,   /* an argument breaks a rule of the function */
  PAGEFILL_UNSUPPORTED = 2,        /* understood, but this build or backend does not do it */
  PAGEFILL_RESOURCE_EXHAUSTED = 3, /* memory, workspace or pages ran out; nothing changed */
  PAGEFILL_UNAVAILABLE = 4,        /* a backend or target asked for is not on this machine */
  PAGEFILL_INTERNAL = 5,           /* a defect of pagefill or of the executor it was given */
  PAGEFILL_CANCELLED = 6           /* the context's cancel was set before the call was done */
} pagefill_status;

/* One line about the last call of this thread that failed; "" where none did. Good until the next
 * call of this thread that fails. */
PAGEFILL_EXPORT const char* pagefill_last_error_message(void);

#ifdef __cplusplus
}
#endif

#endif /* PAGEFILL_C_STATUS_H_ */
