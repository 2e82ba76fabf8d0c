#include "peak_kernels.h"

// What the cpu backend is not compiled for either.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "peak_kernels.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <utility>

HWY_BEFORE_NAMESPACE();
namespace pagefill::cli::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using V = hn::Vec<Floats>;

// Neither form overflows or gets to denormals: the sums stop growing where 1/2 is below their last bit, and
// x / 2 + 1 converges to 2.
HWY_INLINE V multiply_add(V chain, V half, V one) {
#if HWY_NATIVE_FMA
  return hn::MulAdd(half, one, chain);  // NEON adds into the third operand: other forms cost a move
#else
  return hn::MulAdd(chain, half, one);  // the product must change, or it is taken out of the loop
#endif
}

// The chains are parameters, not an array, because vectors of SVE have no size that an array could have.
template <class... Chains>
HWY_INLINE double step_chains(int64_t steps, V half, V one, Chains... chains) {
  for (int64_t i = 0; i < steps; ++i) {
    ((chains = multiply_add(chains, half, one)), ...);
  }
  V sum = one;
  ((sum = hn::Add(sum, chains)), ...);
  volatile float sink = hn::GetLane(sum);  // the loop has a result, so it stays
  static_cast<void>(sink);
  return 2.0 * static_cast<double>(steps) * sizeof...(chains) *
         static_cast<double>(hn::Lanes(Floats()));
}

template <size_t... kChain>
HWY_INLINE double run_chains(int64_t steps, std::index_sequence<kChain...>) {
  // Each chain starts elsewhere, and the compiler does not know where, so it cannot fold two into one.
  const Floats d;
  volatile float unknown = 1.0f;
  const float one = unknown;
  return step_chains(steps, hn::Set(d, 0.5f * one), hn::Set(d, one),
                     hn::Set(d, one + static_cast<float>(kChain))...);
}

template <size_t kChains>
double multiply_add_loop(int64_t steps) {
  return run_chains(steps, std::make_index_sequence<kChains>());
}

// Which number of chains fills the pipes differs (latency times multiply-adds a cycle: 8 on Zen and Skylake,
// 16 on Apple and Neoverse V cores), and so does the length at which a loop fits its fetch lines. The
// operands take two registers; a chain too many spills, and the loop then reads half.
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr MultiplyAddLoop kMultiplyAddLoops[] = {
    multiply_add_loop<8>,  multiply_add_loop<10>, multiply_add_loop<12>, multiply_add_loop<14>,
    multiply_add_loop<16>, multiply_add_loop<20>, multiply_add_loop<24>};
#else  // 16 registers
constexpr MultiplyAddLoop kMultiplyAddLoops[] = {multiply_add_loop<8>, multiply_add_loop<10>,
                                                 multiply_add_loop<12>, multiply_add_loop<14>};
#endif

template <size_t kStreams>
void read_streams(const float* data, size_t count) {
  const Floats d;
  const size_t lanes = hn::Lanes(d);
  const size_t stream = count / kStreams;
  V sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  for (size_t i = 0; i < stream; i += 4 * lanes) {
    for (size_t s = 0; s < kStreams; ++s) {
      const float* at = data + s * stream + i;
      sum0 = hn::Add(sum0, hn::LoadU(d, at));
      sum1 = hn::Add(sum1, hn::LoadU(d, at + lanes));
      sum2 = hn::Add(sum2, hn::LoadU(d, at + 2 * lanes));
      sum3 = hn::Add(sum3, hn::LoadU(d, at + 3 * lanes));
    }
  }
  volatile float sink = hn::GetLane(hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)));
  static_cast<void>(sink);
}

constexpr ReadLoop kReadLoops[] = {read_streams<1>, read_streams<2>, read_streams<4>};

constexpr PeakKernels peak_kernels(std::string_view target) {
  return {target, HWY_TARGET, kMultiplyAddLoops, kReadLoops};
}

}  // namespace pagefill::cli::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pagefill::cli {
namespace {

// Best first.
constexpr PeakKernels kPeakKernels[] = {
#if HWY_TARGETS & HWY_AVX3
    N_AVX3::peak_kernels("amx_bf16"),
    N_AVX3::peak_kernels("avx512_bf16"),  // in float32, whatever the target can do with others
    N_AVX3::peak_kernels("avx512"),
#endif
#if HWY_TARGETS & HWY_AVX2
    N_AVX2::peak_kernels("avx2"),
#endif
#if HWY_TARGETS & HWY_SSE4
    N_SSE4::peak_kernels("sse4"),
#endif
#if HWY_TARGETS & HWY_SVE2_128
    N_SVE2_128::peak_kernels("sve2_128"),
#endif
#if HWY_TARGETS & HWY_SVE_256
    N_SVE_256::peak_kernels("sve_256"),
#endif
#if HWY_TARGETS & HWY_SVE2
    N_SVE2::peak_kernels("sve2"),
#endif
#if HWY_TARGETS & HWY_SVE
    N_SVE::peak_kernels("sve"),
#endif
#if HWY_TARGETS & HWY_NEON
    N_NEON::peak_kernels("neon"),
#endif
#if HWY_TARGETS & HWY_EMU128
    N_EMU128::peak_kernels("portable"),
#endif
#if HWY_TARGETS & HWY_SCALAR
    N_SCALAR::peak_kernels("portable"),
#endif
};

}  // namespace

const PeakKernels* find_peak_kernels(std::string_view target) {
  for (const PeakKernels& kernels : kPeakKernels) {
    const int64_t available = hwy::SupportedTargets() | HWY_EMU128 | HWY_SCALAR;
    if ((kernels.highway_target & available) == 0) continue;
    if (target.empty() || target == kernels.target) return &kernels;
  }
  return nullptr;
}

}  // namespace pagefill::cli
#endif  // HWY_ONCE
