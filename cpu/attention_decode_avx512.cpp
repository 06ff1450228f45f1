#if defined(__x86_64__)
#include "cpu/decode_kernel.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {

const DecodeKernel kDecodeAvx512 = {Avx512::kLanes, Avx512::kBf16Query, score_rows<Avx512>,
                                    attend_block<Avx512>};

}  // namespace tiercel::cpu
#endif
