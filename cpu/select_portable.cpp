#include "cpu/select_kernel.h"
#include "cpu/vector_portable.h"

namespace tiercel::cpu {

const SelectKernel kSelectPortable = {
    Vector::kLanes,      Vector::kBf16Query,     clamp_scores<Vector>,  sum_scores<Vector>,
    fold_max<Vector>,    combine_scores<Vector>, collect_above<Vector>, score_blocks<Vector>,
    scan_blocks<Vector>, Vector::kByteQuery,     score_codes<Vector>,   scale_scores<Vector>};

}  // namespace tiercel::cpu
