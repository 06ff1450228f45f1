#if defined(__x86_64__)
#include "cpu/decode_kernel.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {

const DecodeKernel kDecodeAvx512Bf16 = {Avx512Bf16::kLanes, Avx512Bf16::kBf16Query,
                                        score_rows<Avx512Bf16>, attend_block<Avx512Bf16>};

}  // namespace tiercel::cpu
#endif
