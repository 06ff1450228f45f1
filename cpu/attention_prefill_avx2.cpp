#include "cpu/attention_prefill_fp32.h"
#include "cpu/intrinsics.h"

namespace tiercel::cpu::prefill {
namespace {

struct Avx2 {
  static constexpr int kWidth = 8, kRows = 6, kScoreVectors = 2, kValueVectors = 2;
  typedef float Vec __attribute__((vector_size(32)));
  typedef int32_t IntVec __attribute__((vector_size(32)));
  static Vec madd(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace

constinit const Kernel kAvx2Kernel = fp32_kernel<Avx2>();

}  // namespace tiercel::cpu::prefill
