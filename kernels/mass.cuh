// Softmax over chunks of up to 64 queries, summed over the queries of a KV head.
//
//   sums      (max, sum of exp2) of each query row over a share of the chunks     mass_sums_kernel
//   merged    (max, 1 / sum) over all chunks                                      mass_merge_kernel
//   masses    sum over query rows of exp2(score - max) / sum                      mass_kernel
//
// A row is a query head of one token: row r of a KV head is token r / group, head r % group of the
// group. Scores are made twice, as products of tiles of 64 chunks by 64 rows with mma.sync: four
// warps of 16 chunks.
#pragma once

#include "kernels/lowrank.cuh"

namespace tiercel::cuda::mass {

inline constexpr int kTile = 64;  // chunks, and query rows
inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kMaxShares = 31;  // of the chunks: the workspace holds no more
inline constexpr float kScoreLimit = 0x1p126f;

struct Params {
  MassParams op;
  int32_t n_rows = 0;  // of a KV head
  int32_t n_shares = 0;
  int32_t depth = 0;                                 // head_dim, up to a multiple of 16
  bool query_units = false, landmark_units = false;  // made of aligned units of 16 bytes
  float scale = 0;                                   // log2 units
  float2* sums = nullptr;                            // [n_kv_heads][n_rows][n_shares]: max, sum
  float2* merged = nullptr;                          // [n_kv_heads][n_rows]: max, 1 / sum
};
GPU_AND_HOST int tile_bytes(int depth) { return kTile * (2 * depth + 16); }

GPU void load_queries(const Params& p, int first_row, uint8_t* shared) {
  const int n_units = p.depth / 8, pitch = 2 * p.depth + 16, d = p.op.head_dim;
  const int group = p.op.n_heads / p.op.n_kv_heads, head = static_cast<int>(blockIdx.y) * group;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * n_units; i += kThreads) {
    const int at = i / n_units, unit = i - at * n_units, row = first_row + at;
    const bool exists = row < p.n_rows;
    const int64_t place = int64_t{row / group} * p.op.n_heads + head + row % group;
    lowrank::load_unit(shared + at * pitch + unit * 16, p.op.q + (exists ? place * d : 0), d,
                       unit * 8, exists, p.query_units);
  }
}

GPU void load_landmarks(const Params& p, int64_t first_chunk, uint8_t* shared) {
  const int n_units = p.depth / 8, pitch = 2 * p.depth + 16, d = p.op.head_dim;
  const bf16* base = p.op.landmarks + blockIdx.y * p.op.landmark_head_stride;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * n_units; i += kThreads) {
    const int at = i / n_units, unit = i - at * n_units;
    const bool exists = first_chunk + at < p.op.end_chunk;
    lowrank::load_unit(shared + at * pitch + unit * 16,
                       base + (exists ? (first_chunk + at) * d : 0), d, unit * 8, exists,
                       p.landmark_units);
  }
}

// z[n][e]: query row n*8 + 2 (lane % 4) + (e & 1), chunk lane / 4 + 8 (e >> 1) of the warp's 16.
GPU void score_tile(const Params& p, const uint8_t* queries, const uint8_t* landmarks,
                    float (&z)[kTile / 8][4]) {
  using namespace gpu;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int pitch = 2 * p.depth + 16;
  const uint8_t* a_row = landmarks + (warp * 16 + lane % 16) * pitch + lane / 16 * 16;
  const uint8_t* b_row = queries + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 16;
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) z[n][0] = z[n][1] = z[n][2] = z[n][3] = 0.0f;
  for (int k = 0; k < p.depth / 16; ++k) {
    uint32_t a[4];
    load_matrix(a, a_row + k * 32);
#pragma unroll
    for (int n = 0; n < kTile / 8; n += 2) {
      uint32_t b[4];
      load_matrix(b, b_row + n * 8 * pitch + k * 32);
      mma_16x8x16(z[n], a, b[0], b[1]);
      mma_16x8x16(z[n + 1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      z[n][e] = fminf(fmaxf(mul_rn(z[n][e], p.scale), -kScoreLimit), kScoreLimit);
    }
  }
}

// ---- sums ---------------------------------------------------------------------------------------

GPU float2 merge(float2 a, float2 b) {
  const float max = fmaxf(a.x, b.x), base = max == -gpu::kInf ? 0.0f : max;
  const float of_a = gpu::mul_rn(a.y, gpu::exp2_fast(a.x - base));
  const float of_b = gpu::mul_rn(b.y, gpu::exp2_fast(b.x - base));
  return float2{max, of_a + of_b};  // the same bits when a and b are exchanged
}

// Grid: (shares of the chunks, KV heads, tiles of rows).
KERNEL(kThreads, 2) mass_sums_kernel(const GRID_CONST Params p) {
  using namespace gpu;
  SHARED(smem);
  begin_dependent();
  uint8_t *queries = smem, *landmarks = smem + tile_bytes(p.depth);
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int first_row = static_cast<int>(blockIdx.z) * kTile;
  load_queries(p, first_row, queries);

  // Of the rows of this lane, over its chunks.
  float max[kTile / 8][2], sum[kTile / 8][2];
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
    max[n][0] = max[n][1] = -kInf;
    sum[n][0] = sum[n][1] = 0.0f;
  }
  const int64_t step = int64_t{p.n_shares} * kTile;
  for (int64_t first = p.op.first_chunk + int64_t{blockIdx.x} * kTile; first < p.op.end_chunk;
       first += step) {
    sync_threads();  // the tile before has been read
    load_landmarks(p, first, landmarks);
    copy_commit();
    copy_wait<0>();
    sync_threads();
    float z[kTile / 8][4];
    score_tile(p, queries, landmarks, z);
    const int64_t chunk = first + warp * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float low = chunk < p.op.end_chunk ? z[n][c] : -kInf;
        const float high = chunk + 8 < p.op.end_chunk ? z[n][c + 2] : -kInf;
        const float top = fmaxf(max[n][c], fmaxf(low, high)), base = top == -kInf ? 0.0f : top;
        sum[n][c] = fmaf(sum[n][c], exp2_fast(max[n][c] - base),
                         exp2_fast(low - base) + exp2_fast(high - base));
        max[n][c] = top;
      }
    }
  }

  // Lanes that share rows, then warps, in their order.
  sync_threads();
  auto* of_warps = reinterpret_cast<float2*>(landmarks);  // [warps][kTile]
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float2 all{max[n][c], sum[n][c]};
      for (int mask = 4; mask < 32; mask *= 2) {
        all = merge(all, float2{shuffle_xor(all.x, mask), shuffle_xor(all.y, mask)});
      }
      if (lane < 4) of_warps[warp * kTile + n * 8 + 2 * lane + c] = all;
    }
  }
  sync_threads();
  const int row = first_row + tid;
  if (tid >= kTile || row >= p.n_rows) return;
  float2 all = of_warps[tid];
  for (int w = 1; w < kWarps; ++w) all = merge(all, of_warps[w * kTile + tid]);
  p.sums[(int64_t{blockIdx.y} * p.n_rows + row) * p.n_shares + blockIdx.x] = all;
}

// A warp per row.
KERNEL(kThreads, 4) mass_merge_kernel(const GRID_CONST Params p) {
  using namespace gpu;
  begin_dependent();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= int64_t{p.n_rows} * p.op.n_kv_heads) return;
  float2 all = lane < p.n_shares ? p.sums[row * p.n_shares + lane] : float2{-kInf, 0.0f};
  for (int mask = 1; mask < 32; mask *= 2) {
    all = merge(all, float2{shuffle_xor(all.x, mask), shuffle_xor(all.y, mask)});
  }
  if (lane == 0) p.merged[row] = float2{all.x, 1.0f / all.y};
}

// ---- masses -------------------------------------------------------------------------------------

// Grid: (tiles of chunks, KV heads).
KERNEL(kThreads, 2) mass_kernel(const GRID_CONST Params p) {
  using namespace gpu;
  SHARED(smem);
  begin_dependent();
  uint8_t *queries = smem, *landmarks = smem + tile_bytes(p.depth);
  auto* merged = reinterpret_cast<float2*>(landmarks + tile_bytes(p.depth));  // [kTile]
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int64_t first = p.op.first_chunk + int64_t{blockIdx.x} * kTile;
  load_landmarks(p, first, landmarks);
  copy_commit();
  if (p.n_rows == 0) copy_wait<0>();  // nothing may be under way when a block ends
  float mass[2] = {};
  for (int first_row = 0; first_row < p.n_rows; first_row += kTile) {
    if (first_row > 0) sync_threads();  // the rows before have been read
    load_queries(p, first_row, queries);
    if (tid < kTile) {
      const int64_t row = int64_t{blockIdx.y} * p.n_rows + first_row + tid;
      merged[tid] = first_row + tid < p.n_rows ? p.merged[row] : float2{0.0f, 0.0f};
    }
    copy_commit();
    copy_wait<0>();
    sync_threads();
    float z[kTile / 8][4];
    score_tile(p, queries, landmarks, z);
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float2 row = merged[n * 8 + 2 * (lane % 4) + c];
        mass[0] = fmaf(exp2_fast(z[n][c] - row.x), row.y, mass[0]);
        mass[1] = fmaf(exp2_fast(z[n][c + 2] - row.x), row.y, mass[1]);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    mass[h] += shuffle_xor(mass[h], 1);
    mass[h] += shuffle_xor(mass[h], 2);
    const int64_t chunk = first + warp * 16 + lane / 4 + 8 * h;
    if (lane % 4 != 0 || chunk >= p.op.end_chunk) continue;
    p.op.mass[blockIdx.y * p.op.mass_stride + chunk - p.op.first_chunk] = mass[h];
  }
}

}  // namespace tiercel::cuda::mass
