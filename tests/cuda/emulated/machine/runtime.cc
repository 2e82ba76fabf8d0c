// The CUDA run time: one device of compute capability 9.0, whose memory is the host's.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <string>

#include "machine/block.h"
#include "machine/device.h"
#include "machine/launch.h"

namespace emulated {

Index thread_index, block_index, block_dim, grid_dim;

namespace {

std::map<const void*, Caller>& kernels() {
  static std::map<const void*, Caller> kernels;
  return kernels;
}

std::string& last_failure() {
  static std::string failure;
  return failure;
}

constexpr size_t kPieceBytes = size_t{2} << 20;

size_t whole_pieces(size_t size) { return (size + kPieceBytes - 1) / kPieceBytes * kPieceBytes; }

// A file in memory of which every byte is 0xff.
int filled_piece() {
  static const int file = [] {
    const int made = memfd_create("emulated", 0);
    const std::string bytes(kPieceBytes, '\xff');
    return write(made, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()) ? made
                                                                                         : -1;
  }();
  return file;
}

// Bytes of 0xff, which take no time until they are touched.
bool fill_pieces(std::byte* at, size_t size) {
  for (size_t done = 0; done < size; done += kPieceBytes) {
    if (mmap(at + done, kPieceBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
             filled_piece(), 0) == MAP_FAILED)
      return false;
  }
  return true;
}

std::map<void*, size_t>& allocations() {
  static auto* const allocations = new std::map<void*, size_t>;  // outlives who frees at the end
  return *allocations;
}

}  // namespace

void add_kernel(const void* function, Caller caller) { kernels()[function] = std::move(caller); }

}  // namespace emulated

using namespace emulated;

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  const auto found = kernels().find(function);
  if (found == kernels().end()) return cudaErrorInvalidDeviceFunction;
  if (block.x == 0 || block.x > 1024 || grid.x == 0 || shared_bytes > kMostSharedBytes)
    return cudaErrorInvalidValue;
  grid_dim = {grid.x, grid.y, 1};
  for (unsigned i = 0; i < grid.x * grid.y; ++i) {
    block_index = {i % grid.x, i / grid.x, 0};
    Schedule schedule = present_schedule();
    schedule.seed += i;
    Block threads(static_cast<int>(block.x), shared_bytes, schedule);
    last_failure() = threads.run([&] { found->second(arguments); });
    if (!last_failure().empty()) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  return cudaLaunchKernel(function, config->gridDim, config->blockDim, arguments,
                          config->dynamicSmemBytes, config->stream);
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorLaunchFailure:
      return last_failure().c_str();
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidDeviceFunction:
      return "a kernel that was not added";
    default:
      return "invalid value";
  }
}

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = present_schedule().multiprocessors, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = static_cast<int>(kMostSharedBytes), cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= static_cast<int>(kMostSharedBytes) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  return attributes->ptxVersion = 90, cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  return *blocks = 1, cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool is_known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = is_known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *result = is_known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, size_t size) {
  void* const p = mmap(nullptr, whole_pieces(size), PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || !fill_pieces(static_cast<std::byte*>(p), whole_pieces(size)))
    return cudaErrorMemoryAllocation;
  allocations()[p] = size;
  *data = p;
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  const auto found = allocations().find(data);
  if (found == allocations().end()) return data == nullptr ? cudaSuccess : cudaErrorInvalidValue;
  munmap(data, whole_pieces(found->second));
  allocations().erase(found);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  if (size > 0) std::memcpy(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int byte, size_t size) {
  const auto found = allocations().find(to);
  if (found != allocations().end() && found->second == size && (byte & 0xff) == 0xff)
    return fill_pieces(static_cast<std::byte*>(to), whole_pieces(size)) ? cudaSuccess
                                                                        : cudaErrorMemoryAllocation;
  std::memset(to, byte, size);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* all_bytes) {
  return *free_bytes = *all_bytes = size_t{1} << 30, cudaSuccess;
}
