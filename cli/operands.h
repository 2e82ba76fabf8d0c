// What a call reads and writes on the host, where the call's backend works: the same memory, or copies on a CUDA
// device. What the device reports as bad is an error that names it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "device_memory.h"
#include "pagefill/tensor.h"

namespace pagefill::cli {

inline constexpr Device kDevice{DeviceType::kCuda, 0};

// From the first element to the end of the last.
size_t span_bytes(const TensorView& view);

class Operands {
 public:
  // `on_device`: runs_on_device(context), of which a thousand calls have to ask only once.
  Operands(const Context& context, bool on_device);

  // The view where calls work. Keeps the first error; std::bad_alloc where device memory runs out.
  template <typename View>
  View copy(View view) {
    if (!on_device_ || !view.given()) return view;
    view.data = copy_bytes(view.data, span_bytes(view));
    view.device = kDevice;
    return view;
  }
  const Status& status() const { return status_; }

  // The caller's, with a place for what a device reports.
  const Context& context() const { return context_; }
  // The workspace of a call that asks for that many bytes; on the CPU the call has its own.
  void give_workspace(size_t size);

  // Until what was enqueued is done; what the device found bad.
  Status finish();
  Status copy_back(const MutableTensorView& there, const MutableTensorView& host) const;

 private:
  std::byte* copy_bytes(const void* data, size_t size);

  bool on_device_;
  Context context_;
  std::array<int32_t, 4> reported_{};
  std::vector<DeviceMemory> memory_;
  Status status_;
};

}  // namespace pagefill::cli
