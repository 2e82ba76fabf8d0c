// A call's arguments on the device of a backend that works there, and its results back.
#pragma once

#include <vector>

#include "device_memory.h"
#include "support/layout.h"

namespace pagefill::testing {

// The device's copies of host memory, in one piece of memory that goes from one to the next: a test makes
// thousands of calls. What lies between the copies are NaN and table entries of -1.
class DeviceCopies {
 public:
  DeviceCopies();
  DeviceCopies(const DeviceCopies&) = delete;
  DeviceCopies& operator=(const DeviceCopies&) = delete;
  ~DeviceCopies();

  // The copy keeps the address modulo 256 bytes. `reserved` bytes are its own.
  std::byte* copy(const void* host, size_t size, size_t reserved = 0);
  std::byte* take(size_t size, size_t alignment = 256);

 private:
  cli::DeviceMemory memory_;
  size_t used_ = 0;
};

// The same arguments, of which every view names device memory.
class DeviceArguments {
 public:
  explicit DeviceArguments(const Arguments& host);

  const Arguments& views() const { return views_; }
  Arguments& views() { return views_; }
  DeviceCopies& memory() { return copies_; }

  // Copies output and lse, with all that lies around their rows, to the host arguments' memory.
  Status copy_back() const;

 private:
  struct Moved {
    const std::byte* host;
    int64_t size;
    std::byte* device;
    bool is_buffer;  // a view of it may claim more than it holds
  };

  // Where the view's memory is, copied there unless it lies in a buffer; -1 where it is not given.
  template <typename View>
  int move(View& view);

  const Arguments& host_;
  Arguments views_;
  DeviceCopies copies_;
  std::vector<Moved> moved_;
  int output_ = -1, lse_ = -1;  // in moved_
};

}  // namespace pagefill::testing
