#include "cpu/attention_prefill_fp32.h"
#include "cpu/vector_avx2.h"

namespace tiercel::cpu::prefill {
namespace {

struct Avx2 {
  using Vector = cpu::Vector;
  static constexpr int kRows = 6, kScoreVectors = 2, kValueVectors = 2;
};

}  // namespace

constinit const Kernel kAvx2Kernel = fp32_kernel<Avx2>();

}  // namespace tiercel::cpu::prefill
