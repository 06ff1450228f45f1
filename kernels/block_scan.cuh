// Prefix sums over a warp and over a block of 1024 threads.
#pragma once

#include "kernels/gpu.cuh"

namespace tiercel::cuda {

inline constexpr int kScanThreads = 1024;

// Sum of the values of this lane and of those before it.
GPU uint32_t warp_scan(uint32_t value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const uint32_t other = gpu::shuffle_up(value, delta);
    if (lane >= delta) value += other;
  }
  return value;
}

// Sum of the values of the threads before this one; total: of all. sums: [32] in shared memory. A
// block barrier before and after the exchange: what threads wrote before the call is visible after.
GPU uint32_t block_scan(uint32_t value, uint32_t* sums, uint32_t& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const uint32_t inclusive = warp_scan(value);
  if (lane == 31) sums[warp] = inclusive;
  gpu::sync_threads();
  const uint32_t warps = warp_scan(sums[lane]);
  total = gpu::shuffle(warps, 31);
  const uint32_t before = gpu::shuffle(warps, warp == 0 ? 0 : warp - 1);
  gpu::sync_threads();
  return (warp == 0 ? 0 : before) + inclusive - value;
}

}  // namespace tiercel::cuda
