#include "cpu/landmark_kernel.h"

namespace tiercel::cpu {

const LandmarkKernel kLandmarkPortable = {mean_rows, min_cosine, bound_rows, encode_landmarks};

}  // namespace tiercel::cpu
