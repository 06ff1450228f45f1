// Prefix sums over a warp and over a block.
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

// Sum of the values of the warps before this one; total: of all. sums: a word per warp in shared
// memory, which the next call may use only after another barrier. One block barrier: what threads
// wrote before the call is visible after it.
template <int kWarps>
GPU uint32_t warps_before(uint32_t of_warp, uint32_t* sums, uint32_t& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (lane == 0) sums[warp] = of_warp;
  gpu::sync_threads();
  const uint32_t warps = warp_scan(lane < kWarps ? sums[lane] : 0u);
  total = gpu::shuffle(warps, 31);
  const uint32_t before = gpu::shuffle(warps, warp == 0 ? 0 : warp - 1);
  return warp == 0 ? 0 : before;
}

// The same of threads.
template <int kThreads>
GPU uint32_t threads_before(uint32_t value, uint32_t* sums, uint32_t& total) {
  const uint32_t inclusive = warp_scan(value);
  return warps_before<kThreads / 32>(gpu::shuffle(inclusive, 31), sums, total) + inclusive - value;
}

// The same for a block of kScanThreads, with a barrier at the end: sums is free again.
GPU uint32_t block_scan(uint32_t value, uint32_t* sums, uint32_t& total) {
  const uint32_t before = threads_before<kScanThreads>(value, sums, total);
  gpu::sync_threads();
  return before;
}

}  // namespace tiercel::cuda
