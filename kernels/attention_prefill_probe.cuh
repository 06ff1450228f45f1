// The smallest kernel that leans on everything the Hopper kernel assumes of the hardware: boxes
// under a swizzle, both majors of shared operands, operands in registers, the accumulator's layout.
// Tests run it on small integers, whose products are exact, so that a misread descriptor shows by
// itself.
//
//   scores = Q K^T,  out = bf16(scores) V;  Q, K, V: [64][2 spans of the swizzle]
#pragma once

#include "kernels/attention_prefill_sm90.cuh"

namespace tiercel::cuda::prefill {

inline constexpr int kProbeRows = 64;

struct ProbeJob {
  gpu::TensorMap queries, keys, values;  // boxes of 64, 8 and 64 rows
  float* scores;                         // [64][64]
  float* out;                            // [64][2 spans]
};

template <int kSpan>
KERNEL(128, 1)
probe_hopper(const GRID_CONST ProbeJob p) {
#if TIERCEL_HOPPER_BODY
  using namespace gpu;
  constexpr int kColumns = kSpan / 2, kDim = 2 * kColumns, kBlock = kProbeRows * kSpan;
  SHARED(smem);
  auto* full = reinterpret_cast<uint64_t*>(smem + 6 * kBlock);
  if (threadIdx.x == 0) {
    mbar_init(full, 1);
    mbar_fence_init();
  }
  sync_threads();
  if (threadIdx.x == 0) {
    mbar_expect_bytes(full, 6 * kBlock);
    for (int c = 0; c < 2; ++c) {
      copy_box_3d(smem + c * kBlock, &p.queries, c * kColumns, 0, 0, full);
      for (int row = 0; row < kProbeRows; row += 8) {
        copy_box_3d(smem + (2 + c) * kBlock + row * kSpan, &p.keys, c * kColumns, row, 0, full);
      }
      copy_box_3d(smem + (4 + c) * kBlock, &p.values, c * kColumns, 0, 0, full);
    }
  }
  mbar_wait(full, 0);

  const uint32_t base = shared_address(smem);
  const uint64_t queries = wgmma_descriptor<kSpan>(base, 16, 8 * kSpan);
  const uint64_t keys = wgmma_descriptor<kSpan>(base + 2 * kBlock, 16, 8 * kSpan);
  const uint64_t values = wgmma_descriptor<kSpan>(base + 4 * kBlock, kBlock, 8 * kSpan);
  float scores[kProbeRows / 2], out[kDim / 2];
  uint32_t weights[kProbeRows / 16][4];
  pin(scores);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    const int at = k * 16 / kColumns * kBlock + k * 16 % kColumns * 2;
    Wgmma<kProbeRows>::template ss<0>(scores, queries + at / 16, keys + at / 16, k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  pin(scores);
#pragma unroll
  for (int k = 0; k < kProbeRows / 16; ++k) pack_weights(weights[k], scores, k);
  pin(out);
#pragma unroll
  for (int k = 0; k < kProbeRows / 16; ++k) pin(weights[k]);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kProbeRows / 16; ++k) {
    Wgmma<kDim>::template rs<1>(out, weights[k], values + k * 16 * kSpan / 16, k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  pin(out);

  const int row = static_cast<int>(threadIdx.x / 32 * 16) + lane_row();
#pragma unroll
  for (int i = 0; i < kProbeRows / 2; ++i) {
    const int column = i / 4 * 8 + lane_column() + (i & 1);
    p.scores[(row + (i & 2) * 4) * kProbeRows + column] = scores[i];
  }
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) {
    const int column = i / 4 * 8 + lane_column() + (i & 1);
    p.out[(row + (i & 2) * 4) * kDim + column] = out[i];
  }
#endif
}

}  // namespace tiercel::cuda::prefill
