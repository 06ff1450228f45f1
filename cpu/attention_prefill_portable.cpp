#include "cpu/attention_prefill_fp32.h"

namespace tiercel::cpu::prefill {
namespace {

// Vectors of the compiler: SSE on x86, NEON on Arm.
struct Portable {
  static constexpr int kWidth = 4, kRows = 4, kScoreVectors = 2, kValueVectors = 2;
  typedef float Vec __attribute__((vector_size(16)));
  typedef int32_t IntVec __attribute__((vector_size(16)));
  static Vec madd(Vec a, Vec b, Vec c) { return a * b + c; }
};

}  // namespace

constinit const Kernel kPortableKernel = fp32_kernel<Portable>();

}  // namespace tiercel::cpu::prefill
