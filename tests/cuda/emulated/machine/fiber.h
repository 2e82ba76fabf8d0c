// A stack of its own for each emulated thread, and the switch from one to another.
#pragma once

#include <cstddef>

namespace emulated {

// Where something that does not run goes on.
struct Context {
  void* stack_pointer = nullptr;
};

// Memory for many stacks, each with an unmapped page before it.
class Stacks {
 public:
  explicit Stacks(int count);
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks();

  // A context that calls `entry`, which must not return, on stack i.
  Context start(int i, void (*entry)()) const;

 private:
  std::byte* memory_ = nullptr;
  size_t size_ = 0;
};

// Goes on in `to`; returns when something switches to `from`.
void switch_context(Context& from, const Context& to);

}  // namespace emulated
