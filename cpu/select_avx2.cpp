#if defined(__x86_64__)
#include "cpu/select_kernel.h"
#include "cpu/vector_avx2.h"

namespace tiercel::cpu {

const SelectKernel kSelectAvx2 = kSelectKernel<Vector>;

}  // namespace tiercel::cpu
#endif
