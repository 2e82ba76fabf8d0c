// The mode of floating point that the promises are made for.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace pagefill {

// Rounding to nearest, denormals as they are, no traps, in this thread for as long as it lives, whatever the
// caller has set: XLA's and some of torch's threads flush denormals, and oneTBB's take over the mode of the
// thread that calls. Nothing is written where the mode is the default already.
class DefaultFloatMode {
 public:
#if defined(__SSE__)
  DefaultFloatMode() : before_(_mm_getcsr()) {
    if ((before_ & kControl) != kDefault) _mm_setcsr(kDefault);
  }
  ~DefaultFloatMode() {
    if ((before_ & kControl) != kDefault) _mm_setcsr(before_);
  }
#else
  DefaultFloatMode() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatMode() { std::fesetenv(&before_); }
#endif
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
#if defined(__SSE__)
  static constexpr unsigned kControl = 0xffc0;  // of MXCSR; below are the flags of what happened
  static constexpr unsigned kDefault = 0x1f80;
  unsigned before_;
#else
  std::fenv_t before_;
#endif
};

}  // namespace pagefill
