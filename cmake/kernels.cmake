# The forward kernels of the CUDA backend: one list, from which the instances that are compiled and the table
# that make_plan reads are generated. pagefill_cuda_kernels(VARIABLE FOLDER) sets VARIABLE to the sources.
#
# element, staged: what products take, and whether the cache is converted to it (portable/config.h);
# dtype, cache: of which calls (kernels.h)
# value_cols: columns of values that a task holds at once; wider values take several tasks, which compute
# their scores again. One width is enough where memory or the multiply-adds bound.
set(pagefill_kernel_kinds
  # name            element        staged dtype      cache       value_cols
  bfloat16_64        __nv_bfloat16  false  kBFloat16  kSame       64
  bfloat16_128       __nv_bfloat16  false  kBFloat16  kSame       128
  bfloat16_256       __nv_bfloat16  false  kBFloat16  kSame       256
  float16_64         __half         false  kFloat16   kSame       64
  float16_128        __half         false  kFloat16   kSame       128
  float16_256        __half         false  kFloat16   kSame       256
  bfloat16_quantised __nv_bfloat16  true   kBFloat16  kQuantised  128
  float16_quantised  __half         true   kFloat16   kQuantised  128
  float32            float          true   kFloat32   kAny        128)

# Hopper's, for keys and values of up to head_dim elements, in rows of ascending width.
set(pagefill_sm90_kinds
  # name             element        dtype      head_dim
  sm90_bfloat16_64   __nv_bfloat16  kBFloat16  64
  sm90_bfloat16_128  __nv_bfloat16  kBFloat16  128
  sm90_bfloat16_256  __nv_bfloat16  kBFloat16  256
  sm90_float16_64    __half         kFloat16   64
  sm90_float16_128   __half         kFloat16   128
  sm90_float16_256   __half         kFloat16   256)

# Writes the instances of the rows of KINDS, whose fields are called FIELDS, and adds them to the sources and to
# what the table is made of.
macro(pagefill_instances template kinds fields sources)
  set(rest ${kinds})
  while(rest)
    list(POP_FRONT rest ${fields})
    configure_file(${PROJECT_SOURCE_DIR}/src/backends/cuda/${template} ${folder}/${kernel}.cu @ONLY)
    list(APPEND ${sources} ${folder}/${kernel}.cu)
    string(APPEND declarations "void add_${kernel}(std::vector<ForwardKernel>& kernels);\n")
    string(APPEND calls "    add_${kernel}(list);\n")
  endwhile()
endmacro()

function(pagefill_cuda_kernels variable sm90_variable folder)
  set(sources "")
  set(sm90_sources "")
  set(declarations "")
  set(calls "")
  if(PAGEFILL_WITH_SM90)  # first: the table's first row that fits is taken
    pagefill_instances(sm90/instance.cu.in "${pagefill_sm90_kinds}"
      "kernel;element;dtype;head_dim" sm90_sources)
  endif()
  pagefill_instances(portable/instance.cu.in "${pagefill_kernel_kinds}"
    "kernel;element;is_staged;dtype;cache;value_cols" sources)
  configure_file(${PROJECT_SOURCE_DIR}/src/backends/cuda/portable/table.cc.in
    ${folder}/table.cc @ONLY)
  set(${variable} ${sources} ${folder}/table.cc PARENT_SCOPE)
  set(${sm90_variable} ${sm90_sources} PARENT_SCOPE)
endfunction()
