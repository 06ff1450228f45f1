#include "cpu/attention_prefill_fp32.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu::prefill {
namespace {

struct Avx512Level {
  using Vector = cpu::Avx512;
  static constexpr int kRows = 6, kScoreVectors = 4, kValueVectors = 4;
};

}  // namespace

constinit const Kernel kAvx512Kernel = fp32_kernel<Avx512Level>();

}  // namespace tiercel::cpu::prefill
