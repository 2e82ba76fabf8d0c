// The kernels that can be launched.
#pragma once

#include <functional>
#include <tuple>
#include <utility>

namespace emulated {

// Calls a kernel with the arguments at `arguments`, in every thread.
using Caller = std::function<void(void** arguments)>;
void add_kernel(const void* function, Caller caller);

// A caller of kernels of this type.
template <typename... A>
Caller caller_of(void (*)(A...), const void* function) {
  return [function](void** arguments) {
    const auto kernel = reinterpret_cast<void (*)(A...)>(reinterpret_cast<uintptr_t>(function));
    [&]<size_t... i>(std::index_sequence<i...>) { kernel(*static_cast<const A*>(arguments[i])...); }
    (std::index_sequence_for<A...>());
  };
}

// Adds a kernel when the program starts.
struct Kernel {
  template <typename... A>
  explicit Kernel(void (*kernel)(A...)) {
    const void* const function = reinterpret_cast<const void*>(kernel);
    add_kernel(function, caller_of(kernel, function));
  }
};

}  // namespace emulated
