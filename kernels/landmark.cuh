// Means of chunks, minimum cosines, and the chunks of the lowest.
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/top_k.cuh"

namespace tiercel::cuda {

inline constexpr int kMeanThreads = 256;
inline constexpr int kCosineThreads = 128;

// A thread sums kWords 32-bit words of columns over the chunk's tokens, in their order.
template <int kWords>
KERNEL(kMeanThreads, 4)
mean_chunks(const GRID_CONST LandmarkParams p) {
  using namespace gpu;
  begin_dependent();
  const int32_t per_row = p.head_dim / (2 * kWords);
  const int64_t item = int64_t{blockIdx.x} * kMeanThreads + threadIdx.x;
  if (item >= p.n_chunks * per_row) return;
  const int64_t head = blockIdx.y, chunk = p.first_chunk + item / per_row;
  const int32_t column = static_cast<int32_t>(item % per_row) * 2 * kWords;
  const bf16* keys = p.keys + head * p.key_head_stride +
                     (chunk * p.chunk_tokens - p.first_row) * p.head_dim + column;
  float sum[2 * kWords] = {};
#pragma unroll 8
  for (int32_t t = 0; t < p.chunk_tokens; ++t) {
    uint32_t words[kWords];
    const bf16* row = keys + int64_t{t} * p.head_dim;
    if constexpr (kWords == 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(row);
      words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    } else {
      words[0] = *reinterpret_cast<const uint32_t*>(row);
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      sum[2 * w] += low_float(words[w]);
      sum[2 * w + 1] += high_float(words[w]);
    }
  }
  const float n = static_cast<float>(p.chunk_tokens);
  uint32_t* mean = reinterpret_cast<uint32_t*>(p.landmarks + head * p.landmark_head_stride +
                                               chunk * p.head_dim + column);
#pragma unroll
  for (int w = 0; w < kWords; ++w) mean[w] = pack_bf16(sum[2 * w] / n, sum[2 * w + 1] / n);
}

struct Products {
  float dot, square;  // a . b, b . b
};

// By eight lanes; lane i takes elements 2i and 2i + 1 of every 16, as lane i of
// cpu/landmark_kernel.h.
GPU Products products(const bf16* a, const bf16* b, int32_t n, bool is_valid) {
  using namespace gpu;
  float dot = 0, square = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x) % 8 * 2; i < n; i += 16) {
    if (!is_valid) break;
    const uint32_t x = *reinterpret_cast<const uint32_t*>(a + i);
    const uint32_t y = *reinterpret_cast<const uint32_t*>(b + i);
    dot = fmaf(high_float(x), high_float(y), fmaf(low_float(x), low_float(y), dot));
    square = fmaf(high_float(y), high_float(y), fmaf(low_float(y), low_float(y), square));
  }
  for (int mask = 4; mask > 0; mask /= 2) {
    dot += shuffle_xor(dot, mask);
    square += shuffle_xor(square, mask);
  }
  return {dot, square};
}

// One warp per chunk, four tokens at a time. workspace[kv_head][chunk - first_chunk] = -cosine.
KERNEL(kCosineThreads, 8) min_cosines(const GRID_CONST OutlierParams p) {
  using namespace gpu;
  constexpr float kMost = 3.402823466e+38f;  // -inf is no candidate
  const int lane = static_cast<int>(threadIdx.x) % 32, team = lane / 8;
  const int64_t n = p.end_chunk - p.first_chunk;
  const int64_t i = (int64_t{blockIdx.x} * kCosineThreads + threadIdx.x) / 32;
  if (i >= n) return;
  const int64_t head = blockIdx.y, chunk = p.first_chunk + i;
  const bf16* mean = p.landmarks + head * p.landmark_head_stride + chunk * p.head_dim;
  const bf16* keys =
      p.keys + head * p.key_head_stride + chunk * p.chunk_tokens * int64_t{p.head_dim};
  const float mean_square = products(mean, mean, p.head_dim, true).square;
  float lowest = kInf;
  for (int32_t t = 0; t < p.chunk_tokens; t += 4) {
    const bool is_valid = t + team < p.chunk_tokens;
    const Products v = products(mean, keys + int64_t{t + team} * p.head_dim, p.head_dim, is_valid);
    // Two roots, because the product of the squares may overflow.
    const float norm = sqrtf(mean_square) * sqrtf(v.square);
    const float cosine = norm == 0.0f ? 0.0f : v.dot / norm;
    if (is_valid) lowest = fminf(lowest, cosine == cosine ? cosine : -kInf);
  }
  for (int mask = 8; mask < 32; mask *= 2) lowest = fminf(lowest, shuffle_xor(lowest, mask));
  if (lane == 0) p.workspace[head * n + i] = fmaxf(-lowest, -kMost);
}

// One block per KV head.
KERNEL(kRankThreads, 1) rank_outliers(const GRID_CONST OutlierParams p) {
  SHARED(smem);
  RankShared& s = *reinterpret_cast<RankShared*>(smem);
  const int64_t head = blockIdx.x, n = p.end_chunk - p.first_chunk;
  const RankRow row{p.workspace + head * n, static_cast<int32_t>(n),
                    static_cast<int32_t>(p.n_outliers), Binning::kCosine};
  clear_bins(s);
  fill_bins(row, s);
  const Threshold threshold = find_threshold(row, s);
  int32_t* ids = p.ids + head * p.n_outliers;
  // Little-endian: bit c of the map is bit c % 32 of its 32-bit word c / 32.
  uint32_t* excluded = reinterpret_cast<uint32_t*>(p.excluded + head * p.excluded_stride);
  emit_chosen(row, s, threshold, [&](uint32_t i, int32_t index) {
    const int32_t chunk = static_cast<int32_t>(p.first_chunk) + index;
    ids[i] = chunk;
    gpu::atomic_or(excluded + chunk / 32, 1u << chunk % 32);
  });
}

}  // namespace tiercel::cuda
