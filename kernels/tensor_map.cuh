// Tensor maps: what the copy engine must know to move boxes of a three-dimensional bf16 tensor.
//
// The driver's encoder is fetched at run time, so nothing links libcuda. In the SIMT emulator a map
// is the plain struct that its copy_box_3d reads.
#pragma once

#include <cstdint>

#include "engine/base/check.h"
#include "kernels/gpu.cuh"
#include "kernels/launch.cuh"

#ifdef __CUDACC__
#include <cudaTypedefs.h>
#endif

namespace tiercel::cuda {

// Innermost dimension first; stride[i] is between elements of dimension i + 1. What lies outside of
// extent reads as zeros. swizzle: bytes of a box's row in shared memory, 128, 64 or 32.
struct BoxedTensor {
  const bf16* base = nullptr;  // a multiple of 16 bytes, as the strides are
  int64_t extent[3] = {};
  int64_t stride[2] = {};  // in elements
  int32_t box[3] = {};
  int32_t swizzle = 128;
};

#ifdef __CUDACC__

inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const PFN_cuTensorMapEncodeTiled_v12000 encoder = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                cudaEnableDefault, &result));
    CHECK(found != nullptr && result == cudaDriverEntryPointSuccess,
          "the driver has no cuTensorMapEncodeTiled ({})", static_cast<int>(result));
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  return encoder;
}

inline gpu::TensorMap encode_tensor_map(const BoxedTensor& t) {
  cuuint64_t extent[3], stride_bytes[2];
  cuuint32_t box[3], step[3] = {1, 1, 1};
  for (int i = 0; i < 3; ++i) {
    extent[i] = static_cast<cuuint64_t>(t.extent[i]);
    box[i] = static_cast<cuuint32_t>(t.box[i]);
    if (i < 2) stride_bytes[i] = static_cast<cuuint64_t>(t.stride[i]) * sizeof(bf16);
  }
  gpu::TensorMap map{};
  const CUresult result =
      tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<bf16*>(t.base),
                           extent, stride_bytes, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                           t.swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                           : t.swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                             : CU_TENSOR_MAP_SWIZZLE_32B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: {}; extent {} {} {}, box {} {} {}",
        static_cast<int>(result), t.extent[0], t.extent[1], t.extent[2], t.box[0], t.box[1],
        t.box[2]);
  return map;
}

#else

inline gpu::TensorMap encode_tensor_map(const BoxedTensor& t) {
  CHECK(reinterpret_cast<uintptr_t>(t.base) % 16 == 0 && t.stride[0] % 8 == 0 &&
            t.stride[1] % 8 == 0 && t.box[0] * 2 <= t.swizzle,
        "strides {} {}, box of {}", t.stride[0], t.stride[1], t.box[0]);
  gpu::TensorMap map{};
  map.base = t.base;
  map.rank = 3;
  for (int i = 0; i < 3; ++i) {
    CHECK(t.box[i] >= 1 && t.box[i] <= 256, "box {} of dimension {}", t.box[i], i);
    map.dim[i] = static_cast<uint64_t>(t.extent[i]);
    map.box[i] = static_cast<uint32_t>(t.box[i]);
    if (i > 0) map.stride_bytes[i] = static_cast<uint64_t>(t.stride[i - 1]) * sizeof(bf16);
  }
  map.swizzle = t.swizzle;
  return map;
}

#endif

}  // namespace tiercel::cuda
