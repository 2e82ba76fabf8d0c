// A request to end a call early, which any thread may make.
#pragma once

#include <atomic>
#include <cstdint>

namespace pagefill {

class Cancellation {
 public:
  Cancellation() = default;
  explicit Cancellation(const std::atomic<int32_t>* flag) : flag_(flag) {}

  // No order is needed: what the call has written is not to be read.
  bool requested() const { return flag_ != nullptr && flag_->load(std::memory_order_relaxed) != 0; }

 private:
  const std::atomic<int32_t>* flag_ = nullptr;  // null: never
};

}  // namespace pagefill
