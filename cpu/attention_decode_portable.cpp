#include "cpu/decode_kernel.h"
#include "cpu/vector_portable.h"

namespace tiercel::cpu {

const DecodeKernel kDecodePortable = {Vector::kLanes, Vector::kBf16Query, score_rows<Vector>,
                                      attend_block<Vector>};

}  // namespace tiercel::cpu
