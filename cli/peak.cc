#include "peak.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

namespace pagefill::cli {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// Long against the scheduler's wake-ups, short against its time slices and the machine's other work.
constexpr Seconds kWindow{2e-3};
// About 100 us of multiply-adds, so that reading the clock between them does not count.
constexpr int64_t kStepsPerBatch = 1 << 15;

// Work a second of all threads together. `work` does some and returns how much; it runs on num_threads
// threads that start at once, and time counts from there, so that a thread which starts late counts as
// slow.
double rate_of(int num_threads, const std::function<double(int thread, Clock::time_point)>& work) {
  std::atomic<int> waiting = num_threads;
  Clock::time_point start;
  std::atomic<bool> open = false;
  std::vector<double> rates(num_threads);
  const auto body = [&](int thread) {
    if (waiting.fetch_sub(1) == 1) {
      start = Clock::now();
      open = true;
    }
    while (!open) std::this_thread::yield();
    const double done = work(thread, start);
    rates[thread] = done / Seconds(Clock::now() - start).count();
  };
  std::vector<std::jthread> others;
  for (int thread = 1; thread < num_threads; ++thread) others.emplace_back(body, thread);
  body(0);
  others.clear();  // joins
  double sum = 0;
  for (double rate : rates) sum += rate;
  return sum;
}

// Four times the last-level cache, and no less than 256 MiB where the system does not know it.
size_t buffer_floats() {
  const int64_t last_level_cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return std::max<int64_t>(int64_t{256} << 20, 4 * last_level_cache) / sizeof(float);
}

}  // namespace

PeakMeter::PeakMeter(const PeakKernels& kernels, int num_threads)
    : kernels_(kernels),
      num_threads_(num_threads),
      floats_per_thread_(buffer_floats() / num_threads / kReadBlock * kReadBlock + kReadBlock) {}

void PeakMeter::allocate_buffer() {
  buffer_.reset(new float[floats_per_thread_ * num_threads_]);  // not touched, unlike make_unique's
  // Each thread's part is first touched on its own, which on machines with several memories is what
  // decides where it lies.
  rate_of(num_threads_, [this](int thread, Clock::time_point) {
    std::fill_n(&buffer_[thread * floats_per_thread_], floats_per_thread_, 1.0f);
    return 0.0;
  });
}

double PeakMeter::measure_flops() const {
  double best = 0;
  for (const MultiplyAddLoop loop : kernels_.multiply_add_loops) {
    const double rate = rate_of(num_threads_, [loop](int, Clock::time_point start) {
      double done = 0;
      do {
        done += loop(kStepsPerBatch);
      } while (Clock::now() - start < kWindow);
      return done;
    });
    best = std::max(best, rate);
  }
  return best;
}

double PeakMeter::measure_bandwidth() {
  if (buffer_ == nullptr) allocate_buffer();
  double best = 0;
  for (const ReadLoop loop : kernels_.read_loops) {
    const double rate = rate_of(num_threads_, [this, loop](int thread, Clock::time_point) {
      loop(&buffer_[thread * floats_per_thread_], floats_per_thread_);
      return static_cast<double>(floats_per_thread_ * sizeof(float));
    });
    best = std::max(best, rate);
  }
  return best;
}

}  // namespace pagefill::cli
