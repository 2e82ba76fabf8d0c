# The CUDA backend: compiled where nvcc 13 is found, else left out. `pagefill info` says which.
set(PAGEFILL_CUDA AUTO CACHE STRING "The CUDA backend: AUTO (where nvcc is found), ON, OFF")
set_property(CACHE PAGEFILL_CUDA PROPERTY STRINGS AUTO ON OFF)
# Real architectures, and PTX of the last for what comes after it.
set(PAGEFILL_CUDA_ARCHITECTURES 80-real 86-real 89-real 90-real 100-real 120 CACHE STRING
  "What the CUDA backend is compiled for, as CMAKE_CUDA_ARCHITECTURES takes it")

set(PAGEFILL_WITH_CUDA 0)
if(NOT PAGEFILL_CUDA STREQUAL "OFF" AND NOT CMAKE_CROSSCOMPILING)
  find_program(PAGEFILL_NVCC nvcc HINTS ENV CUDACXX PATHS /usr/local/cuda/bin)
  if(PAGEFILL_NVCC)
    set(CMAKE_CUDA_COMPILER ${PAGEFILL_NVCC} CACHE FILEPATH "")
    set(CMAKE_CUDA_ARCHITECTURES ${PAGEFILL_CUDA_ARCHITECTURES})
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    # CMake 3.25 does not know yet how nvcc is told of C++20.
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    find_package(CUDAToolkit 13 QUIET)
    set(PAGEFILL_WITH_CUDA ${CUDAToolkit_FOUND})
  endif()
  if(NOT PAGEFILL_WITH_CUDA AND PAGEFILL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PAGEFILL_CUDA=ON needs nvcc of CUDA 13 or later, which was not found")
  endif()
endif()
