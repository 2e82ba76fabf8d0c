#include "device_memory.h"

#if PAGEFILL_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include <new>
#include <utility>

#include "pagefill/backend.h"

namespace pagefill::cli {

bool runs_on_device(const Context& context) {
  const Result<BackendChoice> choice = choose_backend(context);
  if (!choice.ok()) return false;
  for (const BackendInfo& backend : list_backends()) {
    if (backend.name == choice->backend) return backend.memory == DeviceType::kCuda;
  }
  return false;
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

#if PAGEFILL_WITH_CUDA
namespace {

Status status_of(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return {};
  return Status(StatusCode::kInternal, std::string(what) + ": " + cudaGetErrorString(error));
}

}  // namespace

DeviceMemory::DeviceMemory(size_t size) : size_(size) {
  void* data = nullptr;
  if (size > 0 && cudaMalloc(&data, size) != cudaSuccess) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(data);
}
DeviceMemory::~DeviceMemory() { cudaFree(data_); }

Status copy_to_device(void* to, const void* from, size_t size) {
  return status_of("copy to the device", cudaMemcpy(to, from, size, cudaMemcpyHostToDevice));
}
Status copy_to_host(void* to, const void* from, size_t size) {
  return status_of("copy from the device", cudaMemcpy(to, from, size, cudaMemcpyDeviceToHost));
}
Status fill_device(void* to, int byte, size_t size) {
  return status_of("fill device memory", cudaMemset(to, byte, size));
}
Status wait_for_device() { return status_of("the device", cudaDeviceSynchronize()); }

#else
namespace {

Status no_cuda() {
  return Status(StatusCode::kUnsupported, "device memory: this build has no CUDA");
}

}  // namespace

DeviceMemory::DeviceMemory(size_t) { throw std::bad_alloc(); }
DeviceMemory::~DeviceMemory() = default;
Status copy_to_device(void*, const void*, size_t) { return no_cuda(); }
Status copy_to_host(void*, const void*, size_t) { return no_cuda(); }
Status fill_device(void*, int, size_t) { return no_cuda(); }
Status wait_for_device() { return no_cuda(); }
#endif

}  // namespace pagefill::cli
