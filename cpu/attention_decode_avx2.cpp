#if defined(__x86_64__)
#include "cpu/decode_kernel.h"
#include "cpu/vector_avx2.h"

namespace tiercel::cpu {

const DecodeKernel kDecodeAvx2 = kDecodeKernel<Vector>;

}  // namespace tiercel::cpu
#endif
