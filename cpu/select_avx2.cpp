#if defined(__x86_64__)
#include "cpu/select_kernel.h"
#include "cpu/vector_avx2.h"

namespace tiercel::cpu {

const SelectKernel kSelectAvx2 = {
    Vector::kLanes,      Vector::kBf16Query,     clamp_scores<Vector>,  sum_scores<Vector>,
    fold_max<Vector>,    combine_scores<Vector>, collect_above<Vector>, score_blocks<Vector>,
    scan_blocks<Vector>, Vector::kByteQuery,     score_codes<Vector>,   scale_scores<Vector>};

}  // namespace tiercel::cpu
#endif
