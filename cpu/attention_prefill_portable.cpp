#include "cpu/attention_prefill_fp32.h"
#include "cpu/vector_portable.h"

namespace tiercel::cpu::prefill {
namespace {

// Vectors of the compiler: SSE on x86, NEON on Arm.
struct Portable {
  using Vector = cpu::Vector;
  static constexpr int kRows = 4, kScoreVectors = 2, kValueVectors = 2;
};

}  // namespace

constinit const Kernel kPortableKernel = fp32_kernel<Portable>();

}  // namespace tiercel::cpu::prefill
