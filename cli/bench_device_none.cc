// In a build without CUDA no backend runs on a device.
#include "bench_device.h"

namespace pagefill::cli {

std::string device_name() { return "no device"; }

Result<Measurement> measure_on_device(const BenchShape&, const BenchOperands&, const Context&,
                                      std::optional<int>) {
  return Status(StatusCode::kUnsupported, "bench: this build has no CUDA");
}

}  // namespace pagefill::cli
