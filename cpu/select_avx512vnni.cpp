#if defined(__x86_64__)
#include "cpu/select_kernel.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {

const SelectKernel kSelectAvx512Vnni = kSelectKernel<Avx512Vnni>;

}  // namespace tiercel::cpu
#endif
