#if defined(__x86_64__)
#include "cpu/select_kernel.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {

const SelectKernel kSelectAvx512 = {
    Avx512::kLanes,      Avx512::kBf16Query,     clamp_scores<Avx512>,  sum_scores<Avx512>,
    fold_max<Avx512>,    combine_scores<Avx512>, collect_above<Avx512>, score_blocks<Avx512>,
    scan_blocks<Avx512>, Avx512::kByteQuery,     score_codes<Avx512>,   scale_scores<Avx512>};

}  // namespace tiercel::cpu
#endif
