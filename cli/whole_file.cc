#include "whole_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

namespace pagefill::cli {
namespace {

namespace fs = std::filesystem;

bool write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
  return true;
}

// errno of the step that failed, or 0.
int write_and_rename(const std::string& temporary, const std::string& path,
                     std::span<const std::byte> bytes) {
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return errno;
  int error = write_all(fd, bytes) && fsync(fd) == 0 ? 0 : errno;
  if (close(fd) != 0 && error == 0) error = errno;
  if (error == 0 && std::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) unlink(temporary.c_str());
  return error;
}

}  // namespace

Status write_whole_file(const std::string& path, std::span<const std::byte> bytes) {
  const auto failed = [&](std::string_view why) {
    return Status(StatusCode::kInvalidArgument, fmt::format("{}: {}", path, why));
  };
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  std::string target = path;
  if (fs::exists(status)) {
    // Renaming over a device would replace it; over a link, the link.
    if (!fs::is_regular_file(status)) return failed("expected a regular file or a new name");
    target = fs::canonical(path, error).string();
    if (error) return failed(fmt::format("cannot be written: {}", error.message()));
  }
  const std::string temporary = fmt::format("{}.{}.tmp", target, getpid());
  if (const int code = write_and_rename(temporary, target, bytes); code != 0) {
    return failed(fmt::format("cannot be written: {}", std::strerror(code)));
  }
  return {};
}

}  // namespace pagefill::cli
