#if defined(__x86_64__)
#include "cpu/select_kernel.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {

const SelectKernel kSelectAvx512Bf16 = {
    Avx512Bf16::kLanes,        Avx512Bf16::kBf16Query,   clamp_scores<Avx512Bf16>,
    sum_scores<Avx512Bf16>,    fold_max<Avx512Bf16>,     combine_scores<Avx512Bf16>,
    collect_above<Avx512Bf16>, score_blocks<Avx512Bf16>, scan_blocks<Avx512Bf16>,
    Avx512Bf16::kByteQuery,    score_codes<Avx512Bf16>,  scale_scores<Avx512Bf16>};

}  // namespace tiercel::cpu
#endif
