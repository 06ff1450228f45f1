#include "cpu/decode_kernel.h"
#include "cpu/vector_portable.h"

namespace tiercel::cpu {

const DecodeKernel kDecodePortable = kDecodeKernel<Vector>;

}  // namespace tiercel::cpu
