// Nothing leaves the C interface but a status: no exception, and the message in a place of the thread.
#pragma once

#include <exception>
#include <new>

#include "pagefill/c/status.h"
#include "pagefill/status.h"

namespace pagefill {

// Keeps the message for pagefill_last_error_message.
pagefill_status fail(StatusCode code, const char* message) noexcept;

// Runs `call`, which returns a Status, and lets nothing out but a status.
template <typename Call>
pagefill_status guarded(const Call& call) noexcept {
  try {
    const Status status = call();
    return status.ok() ? PAGEFILL_OK : fail(status.code(), status.message().c_str());
  } catch (const std::bad_alloc&) {
    return fail(StatusCode::kResourceExhausted, "out of memory");
  } catch (const std::exception& error) {
    return fail(StatusCode::kInternal, error.what());
  } catch (...) {
    return fail(StatusCode::kInternal, "an exception that is no std::exception");
  }
}

// Stores the value of a result.
template <typename T, typename U>
Status store(const Result<T>& result, U* target) {
  if (result.ok()) *target = *result;
  return result.status();
}

}  // namespace pagefill
