// The device of a call, current while it is enqueued.
#pragma once

#include <cuda_runtime_api.h>

#include "backends/cuda/plan.h"

namespace pagefill::cuda {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cuda_status("cudaGetDevice", cudaGetDevice(&before_));
    if (!status_.ok() || before_ == device) return;
    status_ = cuda_status("cudaSetDevice", cudaSetDevice(device));
    changed_ = status_.ok();
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  const Status& status() const { return status_; }

 private:
  Status status_;
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace pagefill::cuda
