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
    moved_.push_back({buffer.data(), buffer.size(),
                      copies_.copy(buffer.data(), size, static_cast<size_t>(buffer.reserved()))});
  };
  for (const GuardedBuffer& buffer : host.memory) add(buffer);
  add(host.output_memory);
  add(host.lse_memory);
  move(views_.query), move(views_.key_cache), move(views_.value_cache);
  move(views_.query_starts), move(views_.context_lens), move(views_.page_table);
  move(views_.options.sinks), move(views_.options.kv_start);
  move(views_.options.key_scale), move(views_.options.value_scale);
  move(views_.output.output), move(views_.output.lse);
}

template <typename View>
void DeviceArguments::move(View& view) const {
  if (!view.given()) return;
  view.device = {DeviceType::kCuda, 0};
  const auto* const at = static_cast<const std::byte*>(view.data);
  for (const Moved& m : moved_) {
    // One past the end: a tensor without elements.
    if (at >= m.host && at <= m.host + m.size) {
      view.data = m.device + (at - m.host);
      return;
    }
  }
  throw std::runtime_error("a view names memory that the arguments do not own");
}

Status DeviceArguments::copy_back() const {
  if (Status status = cli::wait_for_device(); !status.ok()) return status;
  for (const GuardedBuffer* buffer : {&host_.output_memory, &host_.lse_memory}) {
    for (const Moved& m : moved_) {
      if (m.host != buffer->data()) continue;
      const Status status =
          cli::copy_to_host(buffer->data(), m.device, static_cast<size_t>(m.size));
      if (!status.ok()) return status;
    }
  }
  return {};
}

}  // namespace pagefill::testing
