#include "support/device.h"

#include <algorithm>
#include <stdexcept>

namespace pagefill::testing {
namespace {

constexpr size_t kGap = 256;
constexpr size_t kSize = size_t{128} << 20;

void check(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}

// What no copies use at present.
std::vector<cli::DeviceMemory>& idle_memory() {
  static std::vector<cli::DeviceMemory> memory;
  return memory;
}

cli::DeviceMemory some_memory() {
  if (idle_memory().empty()) return cli::DeviceMemory(kSize);
  cli::DeviceMemory memory = std::move(idle_memory().back());
  idle_memory().pop_back();
  return memory;
}

}  // namespace

DeviceCopies::DeviceCopies() : memory_(some_memory()) {
  check(cli::fill_device(memory_.data(), 0xff, memory_.size()));
}
DeviceCopies::~DeviceCopies() { idle_memory().push_back(std::move(memory_)); }

std::byte* DeviceCopies::take(size_t size, size_t alignment) {
  const size_t at = (used_ + kGap + alignment - 1) / alignment * alignment;
  used_ = at + size;
  if (used_ > memory_.size()) throw std::runtime_error("the tests' device memory is too small");
  return memory_.data() + at;
}

std::byte* DeviceCopies::copy(const void* host, size_t size, size_t reserved) {
  const size_t misalignment = reinterpret_cast<uintptr_t>(host) % kGap;
  std::byte* const device = take(std::max(size, reserved) + misalignment) + misalignment;
  check(cli::copy_to_device(device, host, size));
  return device;
}

DeviceArguments::DeviceArguments(const Arguments& host) : host_(host) {
  views_.query = host.query, views_.key_cache = host.key_cache;
  views_.value_cache = host.value_cache, views_.query_starts = host.query_starts;
  views_.context_lens = host.context_lens, views_.page_table = host.page_table;
  views_.options = host.options, views_.output = host.output;

  const auto add = [&](const GuardedBuffer& buffer) {
    const auto size = static_cast<size_t>(buffer.size());
    std::byte* const device =
        copies_.copy(buffer.data(), size, static_cast<size_t>(buffer.reserved()));
    moved_.push_back({buffer.data(), buffer.size(), device, true});
  };
  for (const GuardedBuffer& buffer : host.memory) add(buffer);
  add(host.output_memory);
  add(host.lse_memory);
  move(views_.query), move(views_.key_cache), move(views_.value_cache);
  move(views_.query_starts), move(views_.context_lens), move(views_.page_table);
  move(views_.options.sinks), move(views_.options.kv_start);
  move(views_.options.key_scale), move(views_.options.value_scale);
  output_ = move(views_.output.output);
  lse_ = move(views_.output.lse);
}

template <typename View>
int DeviceArguments::move(View& view) {
  if (!view.given()) return -1;
  view.device = {DeviceType::kCuda, 0};
  const auto* const at = static_cast<const std::byte*>(view.data);
  int64_t size = dtype_size(view.dtype);
  for (int i = 0; i < view.rank; ++i) {
    size += (view.shape[i] - 1) * view.strides[i] * dtype_size(view.dtype);
  }
  for (size_t i = 0; i < moved_.size(); ++i) {
    const Moved& m = moved_[i];
    // One past the end: a tensor without elements.
    if (!m.is_buffer || at < m.host || at > m.host + m.size) continue;
    view.data = m.device + (at - m.host);
    return static_cast<int>(i);
  }
  moved_.push_back({at, size, copies_.copy(at, static_cast<size_t>(size)), false});
  view.data = moved_.back().device;
  return static_cast<int>(moved_.size()) - 1;
}

Status DeviceArguments::copy_back() const {
  if (Status status = cli::wait_for_device(); !status.ok()) return status;
  for (int i : {output_, lse_}) {
    if (i < 0) continue;
    const Moved& m = moved_[static_cast<size_t>(i)];
    auto* const to = const_cast<std::byte*>(m.host);
    const Status status = cli::copy_to_host(to, m.device, static_cast<size_t>(m.size));
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace pagefill::testing
