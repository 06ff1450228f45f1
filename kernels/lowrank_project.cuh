// The projection of keys onto a basis: turned back, centred and rounded on their way into shared
// memory, then multiplied.
#pragma once

#include "kernels/lowrank.cuh"

namespace tiercel::cuda::lowrank {

// 64 tokens by 32 * kTiles columns. The summed dimension goes by steps: the pairs of one range of
// one head, at most 64, that is 128 channels. Range by range and not head by head, because the
// angles of a range are the same for every head: a thread keeps those of its two units in
// shared memory.
// Warps: 2 of 32 tokens by 4 of kTiles tiles of 8 columns.
struct ProjectKernelParams {
  ProjectParams op;
  int32_t range_pairs = 0;  // a multiple of 8, at most 64
  int32_t n_ranges = 0;
  bool key_units = false;    // keys and tables: whole, aligned units of eight
  bool basis_units = false;  // rows of the basis too
};
// The tile of keys, the rows of the basis, the angles.
constexpr int64_t project_shared_bytes(int64_t tiles, int64_t range_pairs) {
  return kTileTokens * (4 * range_pairs + 16) + 2 * range_pairs * (64 * tiles + 16) +
         int64_t{2} * kThreads * 64;
}

// The unit of eight pairs that a thread turns back: row of the tile, pairs of the range.
struct KeyUnit {
  int row = 0, pair = 0;  // pair: within the range
  bool exists = false;
};
GPU KeyUnit key_unit(const ProjectKernelParams& p, int64_t tile, int index) {
  const int n_units = p.range_pairs / 8;
  KeyUnit unit;
  unit.row = index / n_units;
  unit.pair = (index - unit.row * n_units) * 8;
  unit.exists = unit.row < kTileTokens && tile + unit.row < p.op.n_tokens;
  return unit;
}
GPU int pairs_left(const ProjectKernelParams& p, int pair) {
  const int left = p.op.rope.half - pair;
  return left < 0 ? 0 : left < 8 ? left : 8;
}

struct KeyWords {
  uint4 low, high;
};
GPU KeyWords load_key_unit(const ProjectKernelParams& p, int64_t tile, const KeyUnit& unit,
                           int head, int first_pair) {
  const int pair = first_pair + unit.pair, n = unit.exists ? pairs_left(p, pair) : 0;
  if (n == 0) return {{0, 0, 0, 0}, {0, 0, 0, 0}};
  const bf16* key = p.op.keys + head * p.op.head_stride +
                    (p.op.first_token + tile + unit.row - p.op.first_row) * p.op.head_dim + pair;
  return {load_eight(key, n, p.key_units), load_eight(key + p.op.rope.half, n, p.key_units)};
}

// A thread's own corner of shared memory: four words of 16 bytes, those of all units side by side.
GPU void keep_angles(float4* corner, const Angles<8>& a) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float *c = a.cos + 4 * i, *s = a.sin + 4 * i;
    corner[i * 2 * kThreads] = {c[0], c[1], c[2], c[3]};
    corner[(2 + i) * 2 * kThreads] = {s[0], s[1], s[2], s[3]};
  }
}
GPU Angles<8> kept_angles(const float4* corner) {
  Angles<8> a;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 c = corner[i * 2 * kThreads], s = corner[(2 + i) * 2 * kThreads];
    a.cos[4 * i] = c.x, a.cos[4 * i + 1] = c.y, a.cos[4 * i + 2] = c.z, a.cos[4 * i + 3] = c.w;
    a.sin[4 * i] = s.x, a.sin[4 * i + 1] = s.y, a.sin[4 * i + 2] = s.z, a.sin[4 * i + 3] = s.w;
  }
  return a;
}

// Turned back, centred, rounded, into the tile [64 tokens][low pairs | high pairs].
GPU void store_key_unit(const ProjectKernelParams& p, const KeyUnit& unit, int head, int first_pair,
                        const KeyWords& words, const Angles<8>& angles, uint8_t* keys) {
  if (unit.row >= kTileTokens) return;
  float low[8], high[8], mean[8];
  turn_back(words.low, words.high, angles, low, high);
  const int pair = first_pair + unit.pair, n = unit.exists ? pairs_left(p, pair) : 0;
  const float* means = p.op.lowrank.mean + int64_t{head} * p.op.head_dim + (n > 0 ? pair : 0);
  load_floats(means, n, p.key_units && n > 0, mean);
#pragma unroll
  for (int i = 0; i < 8; ++i) low[i] -= mean[i];
  load_floats(means + p.op.rope.half, n, p.key_units && n > 0, mean);
#pragma unroll
  for (int i = 0; i < 8; ++i) high[i] -= mean[i];
  uint8_t* target = keys + unit.row * (4 * p.range_pairs + 16) + unit.pair * 2;
  *reinterpret_cast<uint4*>(target) = round_eight(low);
  *reinterpret_cast<uint4*>(target + 2 * p.range_pairs) = round_eight(high);
}

// The rows of the basis that belong to a step, columns first_column and on.
template <int kTiles>
GPU void load_basis_rows(const ProjectKernelParams& p, uint8_t* basis, int head, int first_pair,
                         int64_t first_column) {
  constexpr int kUnits = 4 * kTiles, kPitch = 64 * kTiles + 16;
  const int64_t rank = p.op.lowrank.rank;
  for (int i = threadIdx.x; i < 2 * p.range_pairs * kUnits; i += kThreads) {
    const int row = i / kUnits, unit = i - row * kUnits;
    const bool high = row >= p.range_pairs;
    const int pair = first_pair + (high ? row - p.range_pairs : row);
    const bool exists = pair < p.op.rope.half;
    const int64_t channel = int64_t{head} * p.op.head_dim + pair + (high ? p.op.rope.half : 0);
    const int64_t column = first_column + unit * 8;
    load_unit(basis + row * kPitch + unit * 16, p.op.lowrank.basis + (exists ? channel * rank : 0),
              rank, column, exists && column < rank, p.basis_units);
  }
}

template <int kTiles>
GPU void multiply_step(const uint8_t* keys, const uint8_t* basis, int range_pairs,
                       float (&sums)[2][kTiles][4]) {
  using namespace gpu;
  constexpr int kPitch = 64 * kTiles + 16;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, key_pitch = 4 * range_pairs + 16;
  const uint8_t* a_row = keys + (warp / 4 * 32 + lane % 16) * key_pitch + lane / 16 * 16;
  const uint8_t* b_row = basis + lane % 16 * kPitch + warp % 4 * kTiles * 16;
#pragma unroll 2
  for (int k = 0; k < range_pairs / 8; ++k) {
    uint32_t a[2][4];
    load_matrix(a[0], a_row + k * 32);
    load_matrix(a[1], a_row + 16 * key_pitch + k * 32);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t b[4];
      // With an odd number of tiles the last load has one to bring: all lanes ask for it.
      const int unit = n + 1 < kTiles ? n + lane / 16 : n;
      load_matrix_transposed(b, b_row + k * 16 * kPitch + unit * 16);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        mma_16x8x16(sums[m][n], a[m], b[0], b[1]);
        if (n + 1 < kTiles) mma_16x8x16(sums[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

template <int kTiles>
GPU void store_coefficients(const ProjectKernelParams& p, int64_t tile, int64_t first_column,
                            const float (&sums)[2][kTiles][4]) {
  using namespace gpu;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t rank = p.op.lowrank.rank;
  const bool pairs = rank % 2 == 0 && reinterpret_cast<uintptr_t>(p.op.coefficients) % 4 == 0;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = tile + warp / 4 * 32 + m * 16 + h * 8 + lane / 4;
      if (row >= p.op.n_tokens) continue;
      bf16* out = p.op.coefficients + (p.op.first_token + row) * rank;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int64_t column = first_column + (warp % 4 * kTiles + n) * 8 + lane % 4 * 2;
        const float x = sums[m][n][2 * h], y = sums[m][n][2 * h + 1];
        if (pairs && column < rank) {
          *reinterpret_cast<uint32_t*>(out + column) = pack_bf16(x, y);
        } else {
          if (column < rank) out[column] = to_bf16(x);
          if (column + 1 < rank) out[column + 1] = to_bf16(y);
        }
      }
    }
  }
}

// Grid: (tiles of tokens, tiles of columns). Keys of the next step are on their way while this one
// is multiplied.
template <int kTiles>
KERNEL(kThreads, 2)
project_kernel(const GRID_CONST ProjectKernelParams p) {
  using namespace gpu;
  SHARED(smem);
  begin_dependent();
  uint8_t* keys = smem;
  uint8_t* basis = smem + kTileTokens * (4 * p.range_pairs + 16);
  auto* angles =
      reinterpret_cast<float4*>(basis + 2 * p.range_pairs * (64 * kTiles + 16)) + threadIdx.x;
  const int64_t tile = int64_t{blockIdx.x} * kTileTokens;
  const int64_t first_column = int64_t{blockIdx.y} * (32 * kTiles);
  const KeyUnit unit[2] = {key_unit(p, tile, threadIdx.x),
                           key_unit(p, tile, threadIdx.x + kThreads)};
  const int n_heads = p.op.n_kv_heads, n_steps = p.n_ranges * n_heads;
  KeyWords words[2];
#pragma unroll
  for (int u = 0; u < 2; ++u) words[u] = load_key_unit(p, tile, unit[u], 0, 0);

  float sums[2][kTiles][4] = {};
  for (int step = 0, head = 0, first_pair = 0; step < n_steps; ++step) {
    if (head == 0) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int pair = first_pair + unit[u].pair, n = unit[u].exists ? pairs_left(p, pair) : 0;
        keep_angles(angles + u * kThreads,
                    n > 0 ? angles_at<8>(p.op.rope, p.op.first_token + tile + unit[u].row, pair, n,
                                         p.key_units)
                          : Angles<8>{});
      }
    }
    sync_threads();  // the last step's tiles are read no more
    load_basis_rows<kTiles>(p, basis, head, first_pair, first_column);
    copy_commit();
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      store_key_unit(p, unit[u], head, first_pair, words[u], kept_angles(angles + u * kThreads),
                     keys);
    }
    if (++head == n_heads) {
      head = 0;
      first_pair += p.range_pairs;
    }
    if (step + 1 < n_steps) {
#pragma unroll
      for (int u = 0; u < 2; ++u) words[u] = load_key_unit(p, tile, unit[u], head, first_pair);
    }
    copy_wait<0>();
    sync_threads();
    multiply_step<kTiles>(keys, basis, p.range_pairs, sums);
  }
  store_coefficients<kTiles>(p, tile, first_column, sums);
}

}  // namespace tiercel::cuda::lowrank
