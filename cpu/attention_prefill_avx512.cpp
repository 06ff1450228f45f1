#include "cpu/attention_prefill_fp32.h"
#include "cpu/intrinsics.h"

namespace tiercel::cpu::prefill {
namespace {

struct Avx512 {
  static constexpr int kWidth = 16, kRows = 6, kScoreVectors = 4, kValueVectors = 4;
  typedef float Vec __attribute__((vector_size(64)));
  typedef int32_t IntVec __attribute__((vector_size(64)));
  static Vec madd(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace

constinit const Kernel kAvx512Kernel = fp32_kernel<Avx512>();

}  // namespace tiercel::cpu::prefill
