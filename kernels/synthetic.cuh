// Kernels of synthetic runs; the arithmetic of cpu/synthetic.cpp, to the bit.
#pragma once

#include "engine/base/ops.h"
#include "kernels/clock.cuh"
#include "kernels/gpu.cuh"
#include "kernels/joint_launch.cuh"

namespace tiercel::cuda {

inline constexpr int kSyntheticThreads = 256;
inline constexpr int kRandomPerThread = 8;

GPU uint64_t splitmix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

KERNEL(kSyntheticThreads, 1) fill_random_kernel(const GRID_CONST RandomParams p) {
  const float width = p.scale * 1.7320508f;
  const int64_t block = int64_t{blockIdx.x} * kSyntheticThreads * kRandomPerThread;
  for (int j = 0; j < kRandomPerThread; ++j) {
    const int64_t i = block + j * kSyntheticThreads + threadIdx.x;
    if (i >= p.n) return;
    const uint64_t bits = splitmix(p.seed + kSplitmixStep * (static_cast<uint64_t>(i) + 1));
    const float u = static_cast<float>(static_cast<int32_t>(bits >> 40) - (1 << 23)) * 0x1p-23f;
    p.out[i] = gpu::to_bf16(fmaf(u, width, p.offset));
  }
}

// One block per KV head.
GPU void impose_selection(const ImposeParams& p) {
  gpu::begin_dependent();
  const int64_t j = blockIdx.x, n = p.end_chunk - p.first_chunk;
  const int64_t step = p.step + steps_later(p.later);
  for (int64_t i = threadIdx.x; i < p.k; i += kSyntheticThreads) {
    const int64_t size = n / p.k, begin = i * size;
    const float phase = static_cast<float>(i) / static_cast<float>(p.k);
    const uint64_t epoch = static_cast<uint64_t>(
        floorf(fmaf(static_cast<float>(step), 1.0f - p.hit_rate, phase)));
    const uint64_t bits =
        splitmix(kSplitmixStep * (epoch + 1) + static_cast<uint64_t>(j * p.k + i));
    p.ids[j * p.k + i] = static_cast<int32_t>(
        p.first_chunk + begin + static_cast<int64_t>(bits % static_cast<uint64_t>(size)));
  }
  if (threadIdx.x == 0) p.counts[j] = static_cast<int32_t>(p.k);
}
struct ImposeSelection : JointKernel<ImposeParams, kSyntheticThreads, 1> {
  GPU static void run(const ImposeParams& p, const JointGrid&) { impose_selection(p); }
};

}  // namespace tiercel::cuda
