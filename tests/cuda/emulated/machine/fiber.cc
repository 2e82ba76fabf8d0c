#include "machine/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>

#include <deque>
#endif

namespace emulated {
namespace {

constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 64 << 10;

// Stacks begin at different lines of the caches' sets, which all would share otherwise.
constexpr size_t color(int i) { return static_cast<size_t>(i) % 31 * (4096 + 64); }

}  // namespace

Stacks::Stacks(int count) : size_(static_cast<size_t>(count) * (kStackBytes + kGuardBytes)) {
  void* const p = mmap(nullptr, size_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<std::byte*>(p);
  for (size_t at = 0; at < size_; at += kStackBytes + kGuardBytes) {
    if (mprotect(memory_ + at, kGuardBytes, PROT_NONE) != 0) throw std::bad_alloc();
  }
}

Stacks::~Stacks() { munmap(memory_, size_); }

#if defined(__x86_64__)

// What a function must leave as it was, on the stack: rbp, rbx, r12 to r15, and where it returns to.
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, .-emulated_switch
)");

Context Stacks::start(int i, void (*entry)()) const {
  std::byte* const top =
      memory_ + static_cast<size_t>(i + 1) * (kStackBytes + kGuardBytes) - color(i);
  // Six registers, the address that the switch returns to, and a place where the caller's would be.
  void* frame[8] = {};
  frame[6] = reinterpret_cast<void*>(entry);
  std::memcpy(top - sizeof(frame), frame, sizeof(frame));
  return {top - sizeof(frame)};
}

void switch_context(Context& from, const Context& to) {
  emulated_switch(&from.stack_pointer, to.stack_pointer);
}

#else  // slower, by two system calls a switch

namespace {

ucontext_t* new_context() {
  static std::deque<ucontext_t> contexts;
  return &contexts.emplace_back();
}

}  // namespace

Context Stacks::start(int i, void (*entry)()) const {
  static std::deque<ucontext_t*> of_stack;
  while (of_stack.size() <= static_cast<size_t>(i)) of_stack.push_back(new_context());
  ucontext_t* const context = of_stack[static_cast<size_t>(i)];
  getcontext(context);
  context->uc_stack.ss_sp =
      memory_ + static_cast<size_t>(i) * (kStackBytes + kGuardBytes) + kGuardBytes;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return {context};
}

void switch_context(Context& from, const Context& to) {
  if (from.stack_pointer == nullptr) from.stack_pointer = new_context();
  swapcontext(static_cast<ucontext_t*>(from.stack_pointer),
              static_cast<ucontext_t*>(to.stack_pointer));
}

#endif

}  // namespace emulated
