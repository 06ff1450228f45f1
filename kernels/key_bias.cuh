// The kernels behind key_bias.cu: a warp per (token, KV head), whose rows are some hundred elements; a
// thread per (chunk, KV head).
#pragma once

#include "engine/base/ops.h"
#include "kernels/clock.cuh"
#include "kernels/gpu.cuh"
#include "kernels/piece.cuh"

namespace tiercel::cuda {

inline constexpr int kBiasWarps = 8;
inline constexpr int kBiasThreads = 32 * kBiasWarps;

// log(1 + e^x); what log2_fast leaves out is below 1e-7.
GPU float softplus(float x) {
  constexpr float kLn2 = 0.69314718056f;
  const float tail = gpu::exp2_fast(-(x < 0 ? -x : x) * gpu::kLog2e);
  // Not fmaxf: a NaN stays one.
  return gpu::mul_rn(gpu::log2_fast(1.0f + tail), kLn2) + (x > 0 ? x : x < 0 ? 0.0f : x);
}

// Grid: tokens times KV heads over kBiasWarps.
KERNEL(kBiasThreads, 1) make_key_bias_kernel(const GRID_CONST KeyBiasParams p) {
  gpu::begin_dependent();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t row = int64_t{blockIdx.x} * kBiasWarps + threadIdx.x / 32;
  if (row >= p.n_tokens * p.n_kv_heads) return;
  const int64_t token = row / p.n_kv_heads, j = row % p.n_kv_heads;
  const int width = p.n_kv_heads * p.head_dim;
  const bf16* v = p.v + token * width;
  const bf16* delta = p.delta + j * width;
  float sum = 0.0f;
#pragma unroll 4
  for (int i = lane; i < width; i += 32) {
    sum = fmaf(gpu::to_float(v[i]), gpu::to_float(delta[i]), sum);
  }
  sum = warp_sum(sum);
  if (lane != 0) return;
  const float bias = gpu::mul_rn(gpu::to_float(p.a[j]), softplus(sum));
  p.bias[j * p.bias_head_stride + p.first_row + steps_later(p.later) + token] =
      gpu::mul_rn(bias, gpu::kLog2e);
}

GPU float mean_of(const float* x, int n) {
  float sum = 0.0f;
  for (int i = 0; i < n; ++i) sum += x[i];
  return sum / static_cast<float>(n);
}

// Grid: chunks over kBiasThreads, KV heads.
KERNEL(kBiasThreads, 1) pool_key_bias_kernel(const GRID_CONST PoolBiasParams p) {
  gpu::begin_dependent();
  const int64_t c = int64_t{blockIdx.x} * kBiasThreads + threadIdx.x, j = blockIdx.y;
  if (c >= p.n_chunks) return;
  const float* bias = p.bias + j * p.bias_head_stride + (p.first_chunk + c) * p.chunk_tokens;
  float score = mean_of(bias, p.chunk_tokens < kBiasWindow ? p.chunk_tokens : kBiasWindow);
  for (int at = kBiasWindow / 2; at + kBiasWindow <= p.chunk_tokens; at += kBiasWindow / 2) {
    score = fmaxf(score, mean_of(bias + at, kBiasWindow));
  }
  p.score[j * p.score_stride + c] = score;
}

}  // namespace tiercel::cuda
