// Memory of a CUDA device, for those who hand tensors that lie there to the library. In a build without
// CUDA there is none, and no backend that works on it.
#pragma once

#include <cstddef>
#include <string>

#include "pagefill/executor.h"
#include "pagefill/status.h"

namespace pagefill::cli {

// Whether what runs a call with this context works on memory of a CUDA device.
bool runs_on_device(const Context& context);

// Bytes of device 0; std::bad_alloc where there are too few.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t size);
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  ~DeviceMemory();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

Status copy_to_device(void* to, const void* from, size_t size);
Status copy_to_host(void* to, const void* from, size_t size);
Status fill_device(void* to, int byte, size_t size);

// Until all that was enqueued is done, or why it failed.
Status wait_for_device();

}  // namespace pagefill::cli
