// Linear layers of any shape, at any address, slowly.
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/piece.cuh"

namespace tiercel::cuda {

inline constexpr int kAnyRows = 8;

// A warp per column and kAnyRows rows of x; lanes split k.
KERNEL(256, 4) linear_any_kernel(const GRID_CONST LinearParams p) {
  using namespace gpu;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t column = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (column >= p.n) return;  // whole warps
  const bf16* weight = p.weight.values + column * p.k;
  for (int64_t first = int64_t{blockIdx.y} * kAnyRows; first < p.m;
       first += int64_t{gridDim.y} * kAnyRows) {
    float acc[kAnyRows] = {};
    for (int64_t i = lane; i < p.k; i += 32) {
      const float w = to_float(weight[i]);
#pragma unroll
      for (int r = 0; r < kAnyRows; ++r) {
        if (first + r < p.m) acc[r] = fmaf(to_float(p.x[(first + r) * p.k + i]), w, acc[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kAnyRows; ++r) {
      float sum = warp_sum(acc[r]);
      if (lane != 0 || first + r >= p.m) continue;
      const int64_t at = (first + r) * p.n + column;
      const bool f32 = p.out_type == DType::kF32;
      if (p.bias != nullptr) sum += to_float(p.bias[column]);
      if (p.accumulate) {
        sum += f32 ? static_cast<const float*>(p.out)[at]
                   : to_float(static_cast<const bf16*>(p.out)[at]);
      }
      if (f32) {
        static_cast<float*>(p.out)[at] = sum;
      } else {
        static_cast<bf16*>(p.out)[at] = to_bf16(sum);
      }
    }
  }
}

}  // namespace tiercel::cuda
