/* Views of tensors. */
#ifndef PAGEFILL_C_TENSOR_H_
#define PAGEFILL_C_TENSOR_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pagefill/export.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  PAGEFILL_FLOAT32 = 0,
  PAGEFILL_BFLOAT16 = 1,
  PAGEFILL_FLOAT16 = 2,
  PAGEFILL_INT32 = 3,
  PAGEFILL_FLOAT64 = 4, /* known so that it can be refused by name */
  PAGEFILL_INT64 = 5,   /* likewise */
  PAGEFILL_INT8 = 6,
  PAGEFILL_FLOAT8_E4M3 = 7, /* OCP E4M3 without infinities: "float8_e4m3fn" */
  PAGEFILL_FLOAT8_E5M2 = 8  /* OCP E5M2: "float8_e5m2" */
};

enum { PAGEFILL_CPU = 0, PAGEFILL_CUDA = 1 };

enum { PAGEFILL_MAX_RANK = 4 };

/* Where the elements are, what they are, and how to step. Owns nothing. A view that is passed for
 * reading is never written through. */
typedef struct pagefill_tensor {
  size_t struct_size;
  void* data;
  int32_t dtype;       /* PAGEFILL_FLOAT32, ... */
  int32_t device_type; /* PAGEFILL_CPU or PAGEFILL_CUDA */
  int32_t device_index;
  int32_t rank;
  int64_t shape[PAGEFILL_MAX_RANK];
  int64_t strides[PAGEFILL_MAX_RANK]; /* in elements */
} pagefill_tensor;

/* What the pagefill_*_init functions set struct_size with. By memcpy, which may not be reordered: GCC 12 for
 * aarch64 moved a plain store behind the copy of a struct that had the same place on the stack before. */
static inline void pagefill_set_struct_size(size_t* struct_size, size_t size) {
  memcpy(struct_size, &size, sizeof size);
}

/* A tensor on the CPU, row-major without gaps. A rank that is not from 0 to PAGEFILL_MAX_RANK, or a
 * null shape, makes a tensor that every call refuses. */
static inline pagefill_tensor pagefill_tensor_init(void* data, int32_t dtype, int32_t rank,
                                                   const int64_t* shape) {
  pagefill_tensor tensor;
  uint64_t stride = 1; /* unsigned: a shape that overflows is left to the call to refuse */
  int32_t i;
  pagefill_set_struct_size(&tensor.struct_size, sizeof tensor);
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.device_type = PAGEFILL_CPU;
  tensor.device_index = 0;
  tensor.rank = rank >= 0 && rank <= PAGEFILL_MAX_RANK && shape != NULL ? rank : -1;
  for (i = PAGEFILL_MAX_RANK - 1; i >= 0; --i) {
    tensor.shape[i] = i < tensor.rank ? shape[i] : 0;
    tensor.strides[i] = i < tensor.rank ? (int64_t)stride : 0;
    if (i < tensor.rank) stride *= (uint64_t)shape[i];
  }
  return tensor;
}

/* "float32", ...; "an unknown dtype". */
PAGEFILL_EXPORT const char* pagefill_dtype_name(int32_t dtype);

/* Bytes of one element; 0 for an unknown dtype. */
PAGEFILL_EXPORT int64_t pagefill_dtype_size(int32_t dtype);

#ifdef __cplusplus
}
#endif

#endif /* PAGEFILL_C_TENSOR_H_ */
