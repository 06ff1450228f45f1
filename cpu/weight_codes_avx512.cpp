// Coded weights to bf16 with AVX-512 without BF16.
#include "cpu/weight_codes_avx512.h"

namespace tiercel::cpu {

void decode_weights_avx512(const DecodeWeights& p) { decode_rows<RoundAvx512>(p); }

}  // namespace tiercel::cpu
