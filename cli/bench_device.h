// Times a call on a device.
#pragma once

#include <optional>
#include <string>

#include "bench_inputs.h"
#include "bench_measure.h"

namespace pagefill::cli {

// Of device 0.
std::string device_name();

// The operands lie on the host; copies of them on the device take turns, so that none is in the L2 when its
// turn comes. A call is captured into a graph, and the time between two events around the graph is its time.
Result<Measurement> measure_on_device(const BenchShape& shape, const BenchOperands& operands,
                                      const Context& context, std::optional<int> repeats);

}  // namespace pagefill::cli
