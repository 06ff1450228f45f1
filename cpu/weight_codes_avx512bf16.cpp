// Coded weights to bf16 with AVX-512 BF16.
#include "cpu/weight_codes_avx512bf16.h"

namespace tiercel::cpu {

void decode_weights_avx512bf16(const DecodeWeights& p) { decode_rows<RoundAvx512Bf16>(p); }

}  // namespace tiercel::cpu
