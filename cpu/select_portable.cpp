#include "cpu/select_kernel.h"
#include "cpu/vector_portable.h"

namespace tiercel::cpu {

const SelectKernel kSelectPortable = kSelectKernel<Vector>;

}  // namespace tiercel::cpu
