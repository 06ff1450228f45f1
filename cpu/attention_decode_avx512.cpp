#if defined(__x86_64__)
#include "cpu/decode_kernel.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {

const DecodeKernel kDecodeAvx512 = kDecodeKernel<Avx512>;

}  // namespace tiercel::cpu
#endif
