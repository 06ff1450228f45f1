#if defined(__x86_64__)
#include "cpu/decode_kernel.h"
#include "cpu/vector_avx2.h"

namespace tiercel::cpu {

const DecodeKernel kDecodeAvx2 = {Vector::kLanes, Vector::kBf16Query, score_rows<Vector>,
                                  attend_block<Vector>};

}  // namespace tiercel::cpu
#endif
