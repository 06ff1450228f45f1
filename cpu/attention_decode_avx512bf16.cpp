#if defined(__x86_64__)
#include "cpu/decode_kernel.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {

const DecodeKernel kDecodeAvx512Bf16 = kDecodeKernel<Avx512Bf16>;

}  // namespace tiercel::cpu
#endif
