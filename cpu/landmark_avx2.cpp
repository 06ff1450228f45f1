#if defined(__x86_64__)
#include "cpu/landmark_kernel.h"

namespace tiercel::cpu {

const LandmarkKernel kLandmarkAvx2 = {mean_rows, min_cosine, bound_rows, encode_landmarks};

}  // namespace tiercel::cpu
#endif
