// Errors as values: every fallible call of pagefill returns a Status or a Result<T>.
#pragma once

#include <optional>
#include <string>
#include <utility>

namespace pagefill {

enum class StatusCode : int {
  kOk = 0,
  kInvalidArgument = 1,    // an argument breaks a rule of the operator
  kUnsupported = 2,        // understood, but this build or backend does not do it
  kResourceExhausted = 3,  // memory, workspace or pages ran out; nothing changed
  kUnavailable = 4,        // a backend or target that was asked for is not on this machine
  kInternal = 5,           // a defect of pagefill or of the executor it was given
  kCancelled = 6,          // Context::cancel was set before the call was done
};

// The outcome of a call. The message of an error names the argument, what was expected and what
// came, on one line.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// A value, or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT: implicit, like `return value;`
  Result(Status status) : status_(std::move(status)) {}  // NOLINT: implicit, like `return status;`

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  // Only when ok().
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return *std::move(value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace pagefill
