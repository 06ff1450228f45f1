// Rebuilding keys from a basis, and what it shares with the projection and the fit.
//
//   project   U[t] = (turn_back(key[t]) - mean) basis          basis [w][rank]
//   rebuild   key[t] = turn(mean + U[t] basis^T)
//
// Both are products of tiles of 64 tokens by mma.sync, 8 warps. Rows in shared memory have a pitch
// of an odd number of 16-byte units: ldmatrix then meets no bank conflict, without a swizzle.
// Channels i and i + half of a head, which RoPE turns together, are always in the hands of one
// thread.
#pragma once

#include "engine/base/ops.h"
#include "kernels/coded_row.cuh"
#include "kernels/gpu.cuh"
#include "kernels/joint_launch.cuh"

namespace tiercel::cuda::lowrank {

inline constexpr int kTileTokens = 64;
inline constexpr int kThreads = 256;

// ---- eight channels at a time -------------------------------------------------------------------

// The first n of eight elements; the rest are zeros. whole: n is 8 and p a multiple of 16 bytes.
GPU uint4 load_eight(const bf16* p, int n, bool whole) {
  if (whole) return *reinterpret_cast<const uint4*>(p);
  uint32_t word[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < n) word[i / 2] |= uint32_t{p[i].bits} << (i % 2 * 16);
  }
  return {word[0], word[1], word[2], word[3]};
}
GPU void store_eight(bf16* p, uint4 v, int n, bool whole) {
  if (whole) {
    *reinterpret_cast<uint4*>(p) = v;
    return;
  }
  const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < n) p[i].bits = static_cast<uint16_t>(word[i / 2] >> (i % 2 * 16));
  }
}
GPU void widen_eight(uint4 v, float (&out)[8]) {
  const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = gpu::low_float(word[i]);
    out[2 * i + 1] = gpu::high_float(word[i]);
  }
}
GPU uint4 round_eight(const float (&x)[8]) {
  using gpu::pack_bf16;
  return {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
          pack_bf16(x[6], x[7])};
}
template <int kN>
GPU void load_floats(const float* p, int n, bool whole, float (&out)[kN]) {
  if (whole && kN % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kN; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(p + i);
      out[i] = v.x, out[i + 1] = v.y, out[i + 2] = v.z, out[i + 3] = v.w;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kN; ++i) out[i] = i < n ? p[i] : 0.0f;
}

// Eight elements from `column` on of a row of rank elements, to shared memory; what lies beyond the
// row, or belongs to a row that does not exist, is zero. units: whole, aligned units of eight,
// which arrive asynchronously.
GPU void load_unit(uint8_t* target, const bf16* row, int64_t rank, int64_t column, bool exists,
                   bool units) {
  if (units) {
    exists = exists && column < rank;
    gpu::copy_async16(target, row + (exists ? column : 0), exists);
    return;
  }
  const int64_t left = exists ? rank - column : 0;
  *reinterpret_cast<uint4*>(target) =
      load_eight(row + column, left < 8 ? static_cast<int>(left) : 8, false);
}

// ---- RoPE ---------------------------------------------------------------------------------------

// cos and sin of kN pairs of channels, of which n exist. The operations are those of
// cpu/elementwise_avx*.cpp.
template <int kN>
struct Angles {
  float cos[kN], sin[kN];
};
template <int kN>
GPU Angles<kN> add_angles(const Angles<kN>& a, const Angles<kN>& b) {
  Angles<kN> sum;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    sum.cos[i] = fmaf(-a.sin[i], b.sin[i], gpu::mul_rn(a.cos[i], b.cos[i]));
    sum.sin[i] = fmaf(a.sin[i], b.cos[i], gpu::mul_rn(a.cos[i], b.sin[i]));
  }
  return sum;
}
template <int kN>
GPU Angles<kN> coarse_angles(const RopeView& rope, int64_t position, int i, int n, bool whole) {
  const int64_t at = position / kRopeFine * rope.half + i;
  Angles<kN> angles;
  load_floats(rope.coarse_cos + at, n, whole, angles.cos);
  load_floats(rope.coarse_sin + at, n, whole, angles.sin);
  return angles;
}
template <int kN>
GPU Angles<kN> fine_angles(const RopeView& rope, int64_t position, int i, int n, bool whole) {
  const int64_t at = position % kRopeFine * rope.half + i;
  Angles<kN> angles;
  load_floats(rope.fine_cos + at, n, whole, angles.cos);
  load_floats(rope.fine_sin + at, n, whole, angles.sin);
  return angles;
}
template <int kN>
GPU Angles<kN> angles_at(const RopeView& rope, int64_t position, int i, int n, bool whole) {
  return add_angles(coarse_angles<kN>(rope, position, i, n, whole),
                    fine_angles<kN>(rope, position, i, n, whole));
}

GPU void turn(float& low, float& high, float cos, float sin) {
  const float before = low;
  low = fmaf(-high, sin, gpu::mul_rn(before, cos));
  high = fmaf(before, sin, gpu::mul_rn(high, cos));
}
// Keys as they lie in the plane, turned back.
GPU void turn_back(uint4 low, uint4 high, const Angles<8>& a, float (&out_low)[8],
                   float (&out_high)[8]) {
  widen_eight(low, out_low);
  widen_eight(high, out_high);
#pragma unroll
  for (int i = 0; i < 8; ++i) turn(out_low[i], out_high[i], a.cos[i], -a.sin[i]);
}

// ---- rebuild ------------------------------------------------------------------------------------

// 64 tokens by kPairs * 4 tiles of channel pairs (8 low channels and the 8 high ones that turn with
// them). Warps: 2 of 32 tokens by 4 of kPairs tiles.
struct RebuildKernelParams {
  RebuildParams op;
  int32_t panel = 0;     // columns of the basis in shared memory at once, a multiple of 16
  int32_t n_panels = 0;  // 1: a block loads the basis of its head once
  bool units = false;    // rows of basis and coefficients are made of aligned units of 16 bytes
  RowFormat format;      // of coded coefficients
};
constexpr int64_t rebuild_shared_bytes(int64_t pairs, int64_t panel) {
  return (64 * pairs + kTileTokens) * (2 * panel + 16) + kTileTokens * 16;
}

// A row of a tile: its token, and where its key goes.
struct RebuildRow {
  int64_t token = -1;  // -1: beyond the list
  bf16* target = nullptr;
};

// Row 16*q + r of the tile: channel 8*q + r for r < 8, the one half a head above it otherwise.
GPU void load_head_basis(const RebuildKernelParams& p, uint8_t* shared, int head, int first_pair,
                         int n_rows, int column) {
  const int64_t rank = p.op.lowrank.rank;
  const int n_units = p.panel / 8, pitch = 2 * p.panel + 16, half = p.op.rope.half;
  for (int i = threadIdx.x; i < n_rows * n_units; i += kThreads) {
    const int row = i / n_units, unit = i - row * n_units;
    const int pair = first_pair + row / 16 * 8 + row % 8;
    const bool exists = pair < half;
    const int64_t channel = int64_t{head} * p.op.head_dim + pair + (row & 8 ? half : 0);
    load_unit(shared + row * pitch + unit * 16, p.op.lowrank.basis + (exists ? channel * rank : 0),
              rank, column + unit * 8, exists, p.units);
  }
}

GPU void load_coefficients(const RebuildKernelParams& p, uint8_t* shared, const RebuildRow* rows,
                           int column) {
  const int64_t rank = p.op.lowrank.rank;
  const int n_units = p.panel / 8, pitch = 2 * p.panel + 16;
  for (int i = threadIdx.x; i < kTileTokens * n_units; i += kThreads) {
    const int row = i / n_units, unit = i - row * n_units;
    const int64_t token = rows[row].token;
    load_unit(shared + row * pitch + unit * 16, p.op.coefficients + (token >= 0 ? token * rank : 0),
              rank, column + unit * 8, token >= 0, p.units);
  }
}

// The same of coded rows. Units are asked for in batches, as their first use waits for them.
GPU void load_coded_coefficients(const RebuildKernelParams& p, uint8_t* shared,
                                 const RebuildRow* rows, int column) {
  constexpr int kBatch = 4;
  const int n_units = p.panel / 8, pitch = 2 * p.panel + 16, n = kTileTokens * n_units;
  const auto* coded = reinterpret_cast<const uint8_t*>(p.op.coded);
  for (int first = static_cast<int>(threadIdx.x); first < n; first += kBatch * kThreads) {
    CodedEight codes[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int i = first + b * kThreads, row = i / n_units, at = column + (i - row * n_units) * 8;
      codes[b] = {{0, 0}, 0};  // decodes to zeros
      if (i >= n || at >= p.format.width || rows[row].token < 0) continue;
      codes[b] = load_coded(p.format, coded + rows[row].token * p.format.bytes, at);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int i = first + b * kThreads, row = i / n_units;
      if (i >= n) break;
      float x[8];
      decode_eight(p.format, codes[b], x);
      *reinterpret_cast<uint4*>(shared + row * pitch + (i - row * n_units) * 16) = round_eight(x);
    }
  }
}

GPU RebuildRow rebuild_row(const RebuildKernelParams& p, int head, int64_t row, int64_t n_rows) {
  if (row >= n_rows) return {};
  const int64_t tokens = p.op.chunk_tokens, at = head * p.op.stride + row / tokens;
  const int64_t chunk = p.op.miss_chunks[at], slot = p.op.miss_slots[at], in_chunk = row % tokens;
  return {chunk * tokens + in_chunk, p.op.slots + head * p.op.slot_head_stride +
                                         (2 * slot * tokens + in_chunk) * p.op.head_dim};
}

// sums += coefficients basis^T over one panel. sums[m][q][0]: 16 tokens by 8 low channels, [1]:
// high.
template <int kPairs>
GPU void multiply_panel(const uint8_t* coefficients, const uint8_t* basis, int panel,
                        float (&sums)[2][kPairs][2][4]) {
  using namespace gpu;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, pitch = 2 * panel + 16;
  const uint8_t* a_row = coefficients + (warp / 4 * 32 + lane % 16) * pitch + lane / 16 * 16;
  const uint8_t* b_row =
      basis + (warp % 4 * kPairs * 16 + lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 16;
#pragma unroll 2
  for (int k = 0; k < panel / 16; ++k) {
    uint32_t a[2][4];
    load_matrix(a[0], a_row + k * 32);
    load_matrix(a[1], a_row + 16 * pitch + k * 32);
#pragma unroll
    for (int q = 0; q < kPairs; ++q) {
      uint32_t b[4];
      load_matrix(b, b_row + q * 16 * pitch + k * 32);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        mma_16x8x16(sums[m][q][0], a[m], b[0], b[1]);
        mma_16x8x16(sums[m][q][1], a[m], b[2], b[3]);
      }
    }
  }
}

// Adds the mean, turns by the token's position, rounds and stores: the channels i, i + 1 of a pair
// tile and those half a head above them, of one token.
GPU void store_turned(const RebuildKernelParams& p, const RebuildRow& row, int head, int i,
                      float (&low)[2], float (&high)[2]) {
  using namespace gpu;
  const int half = p.op.rope.half;
  const float* mean = p.op.lowrank.mean + int64_t{head} * p.op.head_dim;
  const int n = half - i < 2 ? half - i : 2;
  const Angles<2> a = angles_at<2>(p.op.rope, row.token, i, n, false);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (e >= n) continue;
    low[e] += mean[i + e];
    high[e] += mean[half + i + e];
    turn(low[e], high[e], a.cos[e], a.sin[e]);
  }
  if (half % 2 == 0) {
    *reinterpret_cast<uint32_t*>(row.target + i) = pack_bf16(low[0], low[1]);
    *reinterpret_cast<uint32_t*>(row.target + half + i) = pack_bf16(high[0], high[1]);
    return;
  }
  for (int e = 0; e < n; ++e) {
    row.target[i + e] = to_bf16(low[e]);
    row.target[half + i + e] = to_bf16(high[e]);
  }
}

// Grid: (tiles in parallel, KV heads, ranges of 32 * kPairs channel pairs).
template <int kPairs, bool kCoded>
GPU void rebuild(const RebuildKernelParams& p, const JointGrid& grid) {
  using namespace gpu;
  SHARED(smem);
  constexpr int kBasisRows = 64 * kPairs;
  const int pitch = 2 * p.panel + 16;
  uint8_t* basis = smem;
  uint8_t* coefficients = basis + kBasisRows * pitch;
  auto* rows = reinterpret_cast<RebuildRow*>(coefficients + kTileTokens * pitch);
  begin_dependent();
  const int head = blockIdx.y, first_pair = static_cast<int>(grid.z) * (32 * kPairs);
  const int64_t n_rows = int64_t{p.op.miss_counts[head]} * p.op.chunk_tokens;
  int64_t tile = int64_t{blockIdx.x} * kTileTokens;
  if (tile >= n_rows) return;
  if (p.n_panels == 1) load_head_basis(p, basis, head, first_pair, kBasisRows, 0);

  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  for (; tile < n_rows; tile += int64_t{grid.n_x} * kTileTokens) {
    // Which tokens: the last tile's rows are read no more.
    sync_threads();
    if (tid < kTileTokens) rows[tid] = rebuild_row(p, head, tile + tid, n_rows);
    sync_threads();

    // Multiply, panel by panel.
    float sums[2][kPairs][2][4] = {};
    for (int panel = 0; panel < p.n_panels; ++panel) {
      if (panel > 0) sync_threads();
      const int column = panel * p.panel;
      if (p.n_panels > 1) load_head_basis(p, basis, head, first_pair, kBasisRows, column);
      if constexpr (kCoded) {
        load_coded_coefficients(p, coefficients, rows, column);
      } else {
        load_coefficients(p, coefficients, rows, column);
      }
      copy_commit();
      copy_wait<0>();
      sync_threads();
      multiply_panel(coefficients, basis, p.panel, sums);
    }

    // Turn and store. Lane: rows lane/4 and lane/4 + 8 of 16, columns 2 (lane%4) and the next of 8.
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const RebuildRow row = rows[warp / 4 * 32 + m * 16 + h * 8 + lane / 4];
        if (row.token < 0) continue;
#pragma unroll
        for (int q = 0; q < kPairs; ++q) {
          const int i = first_pair + (warp % 4 * kPairs + q) * 8 + lane % 4 * 2;
          if (i >= p.op.rope.half) continue;
          float low[2] = {sums[m][q][0][2 * h], sums[m][q][0][2 * h + 1]};
          float high[2] = {sums[m][q][1][2 * h], sums[m][q][1][2 * h + 1]};
          store_turned(p, row, head, i, low, high);
        }
      }
    }
  }
}
template <int kPairs, bool kCoded>
struct Rebuild : JointKernel<RebuildKernelParams, kThreads, 2> {
  GPU static void run(const RebuildKernelParams& p, const JointGrid& grid) {
    rebuild<kPairs, kCoded>(p, grid);
  }
};

}  // namespace tiercel::cuda::lowrank
