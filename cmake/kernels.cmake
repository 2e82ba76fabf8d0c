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

function(pagefill_cuda_kernels variable folder)
  set(sources "")
  set(declarations "")
  set(calls "")
  set(fields ${pagefill_kernel_kinds})
  while(fields)
    list(POP_FRONT fields kernel element is_staged dtype cache value_cols)
    configure_file(${PROJECT_SOURCE_DIR}/src/backends/cuda/portable/instance.cu.in
      ${folder}/${kernel}.cu @ONLY)
    list(APPEND sources ${folder}/${kernel}.cu)
    string(APPEND declarations "void add_${kernel}(std::vector<ForwardKernel>& kernels);\n")
    string(APPEND calls "    add_${kernel}(list);\n")
  endwhile()
  configure_file(${PROJECT_SOURCE_DIR}/src/backends/cuda/portable/table.cc.in
    ${folder}/table.cc @ONLY)
  set(${variable} ${sources} ${folder}/table.cc PARENT_SCOPE)
endfunction()
