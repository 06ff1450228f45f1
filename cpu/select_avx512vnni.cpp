#if defined(__x86_64__)
#include "cpu/select_kernel.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {

const SelectKernel kSelectAvx512Vnni = {
    Avx512Vnni::kLanes,        Avx512Vnni::kBf16Query,   clamp_scores<Avx512Vnni>,
    sum_scores<Avx512Vnni>,    fold_max<Avx512Vnni>,     combine_scores<Avx512Vnni>,
    collect_above<Avx512Vnni>, score_blocks<Avx512Vnni>, scan_blocks<Avx512Vnni>,
    Avx512Vnni::kByteQuery,    score_codes<Avx512Vnni>,  scale_scores<Avx512Vnni>};

}  // namespace tiercel::cpu
#endif
