#include "bench_device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <vector>

#include "device_memory.h"
#include "peak_device.h"

namespace pagefill::cli {
namespace {

constexpr double kRotatedBytes = 256e6;  // several times the L2 of any device so far
constexpr int kMaxSets = 32;
constexpr int kWarmUps = 3;
constexpr int kRepeats = 30;

// One copy of the operands, and a graph of the call with them.
class Set {
 public:
  Set(const BenchOperands& host, Context context) : operands_(host) {
    move(operands_.query), move(operands_.key_cache), move(operands_.value_cache);
    move(operands_.query_starts), move(operands_.context_lens), move(operands_.page_table);
    move(operands_.options.sinks), move(operands_.options.key_scale);
    move(operands_.options.value_scale), move(operands_.output);
    const std::array<int32_t, 4> none{};
    MutableTensorView reported(const_cast<int32_t*>(none.data()), DType::kInt32, {4});
    move(reported);
    context.cuda.status = reported;
    if (status_.ok()) capture(context);
  }
  Set(const Set&) = delete;
  Set& operator=(const Set&) = delete;
  ~Set() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  }

  const Status& status() const { return status_; }
  cudaGraphExec_t executable() const { return executable_; }

 private:
  template <typename View>
  void move(View& view) {
    if (!view.given() || !status_.ok()) return;
    const auto size = static_cast<size_t>(view.num_elements() * dtype_size(view.dtype));
    memory_.emplace_back(size);
    status_ = copy_to_device(memory_.back().data(), view.data, size);
    view.data = memory_.back().data();
    view.device = {DeviceType::kCuda, 0};
  }

  void capture(Context context) {
    const Result<size_t> size = operands_.workspace_size(context);
    if (!size.ok()) {
      status_ = size.status();
      return;
    }
    memory_.emplace_back(*size);
    context.workspace = {memory_.back().data(), *size};
    cudaGraph_t graph = nullptr;
    cudaStreamBeginCapture(static_cast<cudaStream_t>(context.cuda.stream),
                           cudaStreamCaptureModeGlobal);
    status_ = operands_.run(context);
    cudaStreamEndCapture(static_cast<cudaStream_t>(context.cuda.stream), &graph);
    if (status_.ok() && cudaGraphInstantiate(&executable_, graph, 0) != cudaSuccess) {
      status_ = Status(StatusCode::kInternal, "bench: the call could not be captured");
    }
    cudaGraphDestroy(graph);
  }

  BenchOperands operands_;
  std::vector<DeviceMemory> memory_;
  Status status_;
  cudaGraphExec_t executable_ = nullptr;
};

double timed_launch(cudaGraphExec_t executable, cudaStream_t stream, cudaEvent_t begin,
                    cudaEvent_t end) {
  cudaEventRecord(begin, stream);
  cudaGraphLaunch(executable, stream);
  cudaEventRecord(end, stream);
  cudaEventSynchronize(end);
  float milliseconds = 0;
  cudaEventElapsedTime(&milliseconds, begin, end);
  return milliseconds * 1e-3;
}

}  // namespace

std::string device_name() {
  cudaDeviceProp properties{};
  cudaGetDeviceProperties(&properties, 0);
  return properties.name;
}

Result<Measurement> measure_on_device(const BenchShape& shape, const BenchOperands& operands,
                                      const Context& context, std::optional<int> repeats) try {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaStreamCreate(&stream);
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  CallReport report;
  Context call = context;
  call.report = &report;
  call.cuda.stream = stream;
  call.cuda.max_chunk_size = shape.chunk;
  const int num_sets =
      std::clamp(static_cast<int>(kRotatedBytes / visible_cache_bytes(shape)) + 1, 1, kMaxSets);
  Status status;
  std::vector<double> seconds;
  {
    std::vector<std::unique_ptr<Set>> sets;
    for (int i = 0; i < num_sets && status.ok(); ++i) {
      sets.push_back(std::make_unique<Set>(operands, call));
      status = sets.back()->status();
    }
    const int count = repeats.value_or(kRepeats);
    for (int i = -kWarmUps; i < count && status.ok(); ++i) {
      const size_t set = static_cast<size_t>(i + kWarmUps) % sets.size();
      const double time = timed_launch(sets[set]->executable(), stream, begin, end);
      if (i >= 0) seconds.push_back(time);
    }
    if (status.ok()) status = wait_for_device();
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  if (!status.ok()) return status;

  Measurement result;
  result.backend = report.backend;
  result.target = report.target;
  result.median_seconds = median(seconds);
  result.best_seconds = *std::min_element(seconds.begin(), seconds.end());
  result.useful_flops = useful_flops(shape);
  result.peak_flops = device_peak_flops(shape.dtype);
  result.cache_bytes = visible_cache_bytes(shape);
  result.peak_bandwidth = device_peak_bandwidth();
  return result;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kResourceExhausted, "bench: out of device memory");
}

}  // namespace pagefill::cli
