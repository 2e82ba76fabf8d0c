#include "safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <functional>
#include <new>

#include "safetensors_header.h"
#include "whole_file.h"

namespace pagefill::cli {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr int64_t kLengthBytes = 8;
constexpr uint64_t kLongestHeader = 100'000'000;  // the format's own limit

Status malformed(std::string message) {
  return Status(StatusCode::kInvalidArgument, std::move(message));
}

// Copies bytes of the file from `offset` on into `destination`. The range lies in the file.
using ReadAt = std::function<Status(int64_t offset, std::span<std::byte> destination)>;

Result<std::string> read_header_text(const ReadAt& read_at, int64_t file_size) {
  if (file_size < kLengthBytes) {
    return malformed(fmt::format("expected a safetensors file, got {} bytes", file_size));
  }
  uint64_t length = 0;
  if (Status s = read_at(0, std::as_writable_bytes(std::span(&length, 1))); !s.ok()) return s;
  const auto longest = std::min(kLongestHeader, static_cast<uint64_t>(file_size - kLengthBytes));
  if (length > longest) {
    return malformed(
        fmt::format("header length: expected at most {} bytes, got {}", longest, length));
  }
  std::string text(length, '\0');
  if (Status s = read_at(kLengthBytes, std::as_writable_bytes(std::span(text))); !s.ok()) return s;
  return text;
}

Result<Safetensors> load_all(const ReadAt& read_at, int64_t file_size) try {
  const Result<std::string> text = read_header_text(read_at, file_size);
  if (!text.ok()) return text.status();
  const int64_t data = kLengthBytes + static_cast<int64_t>(text->size());
  auto header = parse_safetensors_header(*text, file_size - data);
  if (!header.ok()) return header.status();

  Safetensors contents{std::move(header->metadata), {}};
  for (SafetensorsEntry& entry : header->entries) {
    Tensor tensor = Tensor::zeros(entry.dtype, std::move(entry.shape));
    if (Status s = read_at(data + entry.begin, tensor.bytes); !s.ok()) return s;
    contents.tensors.emplace(std::move(entry.name), std::move(tensor));
  }
  return contents;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kResourceExhausted, "out of memory");
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

Status read_range(int fd, int64_t offset, std::span<std::byte> destination) {
  while (!destination.empty()) {
    const ssize_t count = pread(fd, destination.data(), destination.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return malformed(fmt::format("cannot be read: {}", std::strerror(errno)));
    if (count == 0) return malformed("became shorter while it was read");
    destination = destination.subspan(static_cast<size_t>(count));
    offset += count;
  }
  return {};
}

Result<Safetensors> read_file(const std::string& path) {
  // A pipe without a writer would keep open() waiting.
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info {};
  if (file.get() < 0 || fstat(file.get(), &info) != 0) {
    return malformed(fmt::format("cannot be opened: {}", std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) return malformed("expected a regular file");
  return load_all(
      [&](int64_t offset, std::span<std::byte> destination) {
        return read_range(file.get(), offset, destination);
      },
      info.st_size);
}

}  // namespace

Result<Safetensors> parse_safetensors(std::span<const std::byte> file) {
  return load_all(
      [&](int64_t offset, std::span<std::byte> destination) {
        std::ranges::copy(file.subspan(static_cast<size_t>(offset), destination.size()),
                          destination.begin());
        return Status();
      },
      static_cast<int64_t>(file.size()));
}

Result<Safetensors> read_safetensors(const std::string& path) {
  Result<Safetensors> contents = read_file(path);
  if (contents.ok()) return contents;
  return Status(contents.status().code(), fmt::format("{}: {}", path, contents.status().message()));
}

std::vector<std::byte> format_safetensors(const Safetensors& contents) {
  std::vector<std::pair<const std::string*, const Tensor*>> order;
  for (const auto& [name, tensor] : contents.tensors) order.emplace_back(&name, &tensor);
  // Widest elements first: then each tensor begins aligned, without padding between them.
  std::ranges::stable_sort(order, std::ranges::greater(),
                           [](const auto& item) { return dtype_size(item.second->dtype); });

  SafetensorsHeader header{contents.metadata, {}};
  int64_t size = 0;
  for (const auto& [name, tensor] : order) {
    const int64_t begin = size;
    size += static_cast<int64_t>(tensor->bytes.size());
    header.entries.push_back({*name, tensor->dtype, tensor->shape, begin, size});
  }
  const std::string text = format_safetensors_header(header);
  const uint64_t length = text.size();

  std::vector<std::byte> file(kLengthBytes + text.size() + static_cast<size_t>(size));
  auto place = std::ranges::copy(std::as_bytes(std::span(&length, 1)), file.begin()).out;
  place = std::ranges::copy(std::as_bytes(std::span(text)), place).out;
  for (const auto& [name, tensor] : order) place = std::ranges::copy(tensor->bytes, place).out;
  return file;
}

Status write_safetensors(const Safetensors& contents, const std::string& path) {
  return write_whole_file(path, format_safetensors(contents));
}

}  // namespace pagefill::cli
