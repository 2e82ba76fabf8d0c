# The CUDA backend: compiled where nvcc 13 is found, else left out. `pagefill info` says which.
set(PAGEFILL_CUDA AUTO CACHE STRING "The CUDA backend: AUTO (where nvcc is found), ON, OFF")
set_property(CACHE PAGEFILL_CUDA PROPERTY STRINGS AUTO ON OFF)
# Machine code for these, and PTX of the first, which the driver compiles for any other from there on.
set(PAGEFILL_CUDA_ARCHITECTURES 80 86-real 89-real 90-real 100-real 120-real CACHE STRING
  "What the CUDA backend is compiled for, as CMAKE_CUDA_ARCHITECTURES takes it")

set(PAGEFILL_WITH_CUDA 0)
# Hopper's own kernels are compiled where its machine code is asked for.
set(PAGEFILL_WITH_SM90 0)
if(PAGEFILL_CUDA_ARCHITECTURES MATCHES "(^|;)90")
  set(PAGEFILL_WITH_SM90 1)
endif()
if(NOT PAGEFILL_CUDA STREQUAL "OFF" AND NOT CMAKE_CROSSCOMPILING)
  if(NOT CMAKE_CUDA_COMPILER AND DEFINED ENV{CUDACXX})
    set(CMAKE_CUDA_COMPILER $ENV{CUDACXX} CACHE FILEPATH "")
  elseif(NOT CMAKE_CUDA_COMPILER)
    find_program(PAGEFILL_NVCC nvcc PATHS /usr/local/cuda/bin)
    if(PAGEFILL_NVCC)
      set(CMAKE_CUDA_COMPILER ${PAGEFILL_NVCC} CACHE FILEPATH "")
    endif()
  endif()
  # enable_language ends the configuration where nvcc is there and does not work, with a host compiler that it
  # does not take for one; AUTO leaves it out instead.
  if(CMAKE_CUDA_COMPILER AND PAGEFILL_CUDA STREQUAL "AUTO" AND NOT DEFINED PAGEFILL_NVCC_WORKS)
    separate_arguments(options NATIVE_COMMAND "${CMAKE_CUDA_FLAGS} $ENV{CUDAFLAGS}")
    if(CMAKE_CUDA_HOST_COMPILER)
      list(APPEND options -ccbin ${CMAKE_CUDA_HOST_COMPILER})
    elseif(DEFINED ENV{CUDAHOSTCXX})
      list(APPEND options -ccbin $ENV{CUDAHOSTCXX})
    endif()
    file(WRITE ${PROJECT_BINARY_DIR}/nvcc/probe.cu "__global__ void probe() {}\n")
    execute_process(
      COMMAND ${CMAKE_CUDA_COMPILER} ${options} -std=c++20 -c probe.cu -o probe.o
      WORKING_DIRECTORY ${PROJECT_BINARY_DIR}/nvcc
      RESULT_VARIABLE result OUTPUT_QUIET ERROR_QUIET)
    if(result EQUAL 0)
      set(PAGEFILL_NVCC_WORKS ON CACHE INTERNAL "nvcc has compiled a file")
    else()
      message(STATUS "CUDA is left out: ${CMAKE_CUDA_COMPILER} does not compile")
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER AND (PAGEFILL_CUDA STREQUAL "ON" OR PAGEFILL_NVCC_WORKS))
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
