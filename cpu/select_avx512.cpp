#if defined(__x86_64__)
#include "cpu/select_kernel.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {

const SelectKernel kSelectAvx512 = kSelectKernel<Avx512>;

}  // namespace tiercel::cpu
#endif
