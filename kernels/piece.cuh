// Rows of bf16 in pieces of 16 bytes, and the arithmetic that several kernels share: the scale of
// an RMS norm, silu, the sum over a warp.
#pragma once

#include "engine/base/dtype.h"
#include "kernels/gpu.cuh"

namespace tiercel::cuda {

inline constexpr int kPiece = 8;  // bf16 channels of one 16-byte access

// Whether pieces begin there; a null is no obstacle.
template <typename... Pointers>
bool aligned(const Pointers*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}

GPU uint4 load_piece(const bf16* p) { return *reinterpret_cast<const uint4*>(p); }
GPU void store_piece(bf16* p, uint4 v) { *reinterpret_cast<uint4*>(p) = v; }

GPU void unpack(uint4 v, float (&x)[kPiece]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = gpu::low_float(words[i]);
    x[2 * i + 1] = gpu::high_float(words[i]);
  }
}
GPU uint4 pack(const float (&x)[kPiece]) {
  return {gpu::pack_bf16(x[0], x[1]), gpu::pack_bf16(x[2], x[3]), gpu::pack_bf16(x[4], x[5]),
          gpu::pack_bf16(x[6], x[7])};
}

// g / (1 + e^-g). The exponent -g log2(e) is taken in two parts, as the rounding of the first alone
// would cost |g| / 2 ulp. Beyond 88 e^-g leaves fp32: it counts as infinite, or as nothing.
GPU float silu(float g) {
  using namespace gpu;
  constexpr float kLog2eRest = 1.925963033500e-8f;  // log2(e) - kLog2e
  const float x = fminf(fmaxf(-g, -88.0f), 88.0f);
  const float high = mul_rn(x, kLog2e);
  const float low = fmaf(x, kLog2eRest, fmaf(x, kLog2e, -high));
  const float e = exp2_fast(high);
  const float power = fmaf(e, mul_rn(low, 0.6931472f), e);
  return mul_rn(g, reciprocal_fast(1.0f + (-g > 88.0f ? kInf : power)));
}

GPU float warp_sum(float sum) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += gpu::shuffle_xor(sum, mask);
  return sum;
}

GPU float square_sum(const float (&x)[kPiece], float sum) {
#pragma unroll
  for (int i = 0; i < kPiece; ++i) sum = fmaf(x[i], x[i], sum);
  return sum;
}
GPU float norm_scale(float square_sum, int64_t width, float eps) {
  return 1.0f / sqrtf(square_sum / static_cast<float>(width) + eps);
}

}  // namespace tiercel::cuda
