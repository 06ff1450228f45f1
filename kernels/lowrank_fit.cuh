// The fit: shift, Gram matrix, covariance, and the basis out of its eigenvectors.
//
//   shift       s = mean of the first tokens                      shift_kernel, fold_sums_kernel
//   panel       X = bf16(turn_back(keys) - s), 8192 tokens        shift_kernel
//   Gram        P = X^T X, fp32, per 1024..4096 tokens            gram_kernel
//               G += P, fp64, in the order of the tokens          fold_gram_kernel
//   covariance  C = G/n - m m^T,  m = mean of K - s               trace_kernel, covariance_kernel
//   basis       leading eigenvectors of C, with a sign            finish_basis_kernel
//
// X has rows of a multiple of eight channels. What lies beyond channel w is never set: it reaches
// rows and columns of P that nobody reads.
//
// Only tiles of 128 x 128 channels on or above the diagonal are made. They are numbered row by row,
// and both P and G are lists of tiles.
#pragma once

#include "kernels/eigen.h"
#include "kernels/lowrank.cuh"

namespace tiercel::cuda::lowrank {

inline constexpr int64_t kPanelTokens = 8192;
inline constexpr int64_t kShiftTokens = 4096;  // whose mean is the shift
inline constexpr int kStripTokens = 16;        // of one thread and one partial sum
inline constexpr int kStripThreads = 64;
inline constexpr int kGramTile = 128;
inline constexpr int kGramDepth = 32;  // tokens per stage
inline constexpr int kGramStages = 4;
inline constexpr int kGramTileSize = kGramTile * kGramTile;
inline constexpr int64_t kGramSharedBytes = int64_t{kGramStages} * 2 * kGramDepth * kGramTile * 2;

struct FitState {
  double trace;
  int32_t finite;
};

// ---- keys turned back and shifted, and their sums -----------------------------------------------

struct ShiftKernelParams {
  FitBasisParams op;
  int64_t first_token = 0, n_tokens = 0;  // of this panel; first_token is a multiple of 16
  const float* shift = nullptr;           // [w], or null: 0
  bf16* shifted = nullptr;                // [n_tokens][pitch], or null
  int64_t pitch = 0;
  float* strip_sums = nullptr;  // [strips][w], before rounding
  bool units = false;           // everything is made of whole, aligned units of eight
};

// Grid: (strips, units of eight channel pairs). A thread keeps its unit for all tokens of a strip,
// which never crosses a row of the coarse table.
KERNEL(kStripThreads, 8) shift_kernel(const GRID_CONST ShiftKernelParams p) {
  const int half = p.op.rope.half, d = p.op.head_dim, units_per_head = (half + 7) / 8;
  const int64_t unit = int64_t{blockIdx.y} * kStripThreads + threadIdx.x;
  if (unit >= int64_t{units_per_head} * p.op.n_kv_heads) return;
  const int head = static_cast<int>(unit / units_per_head);
  const int pair = static_cast<int>(unit % units_per_head) * 8;
  const int n = half - pair < 8 ? half - pair : 8;
  const int64_t channel = int64_t{head} * d + pair;
  const bf16* keys = p.op.keys + head * p.op.head_stride + pair;

  float shift_low[8] = {}, shift_high[8] = {}, sum_low[8] = {}, sum_high[8] = {};
  if (p.shift != nullptr) {
    load_floats(p.shift + channel, n, p.units, shift_low);
    load_floats(p.shift + channel + half, n, p.units, shift_high);
  }
  const int64_t begin = int64_t{blockIdx.x} * kStripTokens;
  const int64_t end = begin + kStripTokens < p.n_tokens ? begin + kStripTokens : p.n_tokens;
  const Angles<8> coarse = coarse_angles<8>(p.op.rope, p.first_token + begin, pair, n, p.units);
#pragma unroll 2
  for (int64_t t = begin; t < end; ++t) {
    const bf16* key = keys + (p.first_token + t) * d;
    const uint4 low_words = load_eight(key, n, p.units);
    const uint4 high_words = load_eight(key + half, n, p.units);
    const Angles<8> angles =
        add_angles(coarse, fine_angles<8>(p.op.rope, p.first_token + t, pair, n, p.units));
    float low[8], high[8];
    turn_back(low_words, high_words, angles, low, high);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      low[i] -= shift_low[i];
      high[i] -= shift_high[i];
      sum_low[i] += low[i];
      sum_high[i] += high[i];
    }
    if (p.shifted == nullptr) continue;
    bf16* out = p.shifted + t * p.pitch + channel;
    store_eight(out, round_eight(low), n, p.units);
    store_eight(out + half, round_eight(high), n, p.units);
  }
  float* sums = p.strip_sums + int64_t{blockIdx.x} * p.op.n_kv_heads * d + channel;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i >= n) continue;
    sums[i] = sum_low[i];
    sums[half + i] = sum_high[i];
  }
}

struct FoldSumsParams {
  const float* strip_sums = nullptr;  // [n_strips][w]
  int64_t n_strips = 0, w = 0, n_tokens = 0;
  double* totals = nullptr;  // [w], added to
  float* mean = nullptr;     // [w]: if not null, the mean is written instead
};

// 32 channels per block; its eight warps each add an eighth of the strips.
KERNEL(256, 1) fold_sums_kernel(const GRID_CONST FoldSumsParams p) {
  SHARED(smem);
  auto* parts = reinterpret_cast<double*>(smem);  // [8][32]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t channel = int64_t{blockIdx.x} * 32 + lane, each = (p.n_strips + 7) / 8;
  const int64_t begin = warp * each;
  const int64_t end = begin + each < p.n_strips ? begin + each : p.n_strips;
  double sum = 0;
  if (channel < p.w) {
#pragma unroll 8
    for (int64_t s = begin; s < end; ++s)
      sum += static_cast<double>(p.strip_sums[s * p.w + channel]);
  }
  parts[threadIdx.x] = sum;
  gpu::sync_threads();
  if (warp != 0 || channel >= p.w) return;
  sum = 0;
  for (int i = 0; i < 8; ++i) sum += parts[i * 32 + lane];
  if (p.mean != nullptr) {
    p.mean[channel] = static_cast<float>(sum / static_cast<double>(p.n_tokens));
  } else {
    p.totals[channel] += sum;
  }
}

// ---- Gram matrix --------------------------------------------------------------------------------

struct GramTileIndex {
  int row, column;
};
GPU GramTileIndex gram_tile(int index, int n_side) {
  int row = 0;
  while (index >= n_side - row) {
    index -= n_side - row;
    ++row;
  }
  return {row, row + index};
}
GPU int64_t gram_tile_number(int64_t row, int64_t column, int64_t n_side) {
  return row * n_side - row * (row - 1) / 2 + column - row;
}

struct GramKernelParams {
  const bf16* shifted = nullptr;  // [n_tokens][pitch]
  int64_t pitch = 0;              // a multiple of 8
  int64_t n_tokens = 0, split_tokens = 0;
  int32_t n_side = 0;         // tiles per side
  float* partials = nullptr;  // [splits][tiles][128][128]
};

// One stage: 32 tokens of the 128 channels of the tile's rows, then of its columns. 16-byte units
// of a row are permuted by its low bits, against bank conflicts.
GPU void load_gram_stage(const GramKernelParams& p, uint8_t* stage, const GramTileIndex& tile,
                         int64_t token, int64_t end) {
  constexpr int kUnits = kGramTile / 8;
#pragma unroll
  for (int i = threadIdx.x; i < 2 * kGramDepth * kUnits; i += kThreads) {
    const int row = i / kUnits % kGramDepth, unit = i % kUnits;
    const bool columns = i >= kGramDepth * kUnits;
    const int64_t channel = (columns ? tile.column : tile.row) * int64_t{kGramTile} + unit * 8;
    const bool exists = token + row < end && channel < p.pitch;
    gpu::copy_async16(stage + (columns ? kGramDepth * kGramTile * 2 : 0) + row * kGramTile * 2 +
                          (unit ^ (row & 7)) * 16,
                      p.shifted + (exists ? (token + row) * p.pitch + channel : 0), exists);
  }
}

// Warps: 2 of 64 rows by 4 of 32 columns. Both operands lie token by token, so both are transposed
// on their way into registers.
GPU void multiply_gram_stage(const uint8_t* stage, float (&sums)[4][4][4]) {
  using namespace gpu;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto at = [&](const uint8_t* base, int row, int unit) {
    return base + row * kGramTile * 2 + (unit ^ (row & 7)) * 16;
  };
  const uint8_t* columns = stage + kGramDepth * kGramTile * 2;
#pragma unroll
  for (int k = 0; k < kGramDepth; k += 16) {
    uint32_t b[2][4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      load_matrix_transposed(b[n], at(columns, k + lane % 16, warp % 4 * 4 + n * 2 + lane / 16));
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t a[4];
      const int row = k + lane % 8 + lane / 16 * 8;
      load_matrix_transposed(a, at(stage, row, warp / 4 * 8 + m * 2 + lane / 8 % 2));
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        mma_16x8x16(sums[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
      }
    }
  }
}

// Grid: (tiles, splits of the panel's tokens).
KERNEL(kThreads, 2) gram_kernel(const GRID_CONST GramKernelParams p) {
  using namespace gpu;
  SHARED(smem);
  constexpr int kStageBytes = 2 * kGramDepth * kGramTile * 2;
  const GramTileIndex tile = gram_tile(blockIdx.x, p.n_side);
  const int64_t begin = blockIdx.y * p.split_tokens;
  const int64_t end = begin + p.split_tokens < p.n_tokens ? begin + p.split_tokens : p.n_tokens;
  const int n_steps = static_cast<int>((end - begin + kGramDepth - 1) / kGramDepth);
  const auto load = [&](int step) {
    if (step < n_steps) {
      load_gram_stage(p, smem + step % kGramStages * kStageBytes, tile,
                      begin + int64_t{step} * kGramDepth, end);
    }
    copy_commit();
  };
#pragma unroll
  for (int step = 0; step < kGramStages - 1; ++step) load(step);

  float sums[4][4][4] = {};
  for (int step = 0; step < n_steps; ++step) {
    copy_wait<kGramStages - 2>();
    sync_threads();  // this stage is there for all, and the one before it is read no more
    load(step + kGramStages - 1);
    multiply_gram_stage(smem + step % kGramStages * kStageBytes, sums);
  }
  copy_wait<0>();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* out = p.partials + (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * kGramTileSize;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int row = warp / 4 * 64 + m * 16 + lane / 4;
      const int column = warp % 4 * 32 + n * 8 + lane % 4 * 2;
      const float(&s)[4] = sums[m][n];
      *reinterpret_cast<float2*>(out + row * kGramTile + column) = {s[0], s[1]};
      *reinterpret_cast<float2*>(out + (row + 8) * kGramTile + column) = {s[2], s[3]};
    }
  }
}

struct FoldGramParams {
  const float* partials = nullptr;  // [n_splits][size]
  double* gram = nullptr;           // [size], added to
  int64_t size = 0;                 // a multiple of 1024
  int32_t n_splits = 0;
};
KERNEL(256, 4) fold_gram_kernel(const GRID_CONST FoldGramParams p) {
  const int64_t at = (int64_t{blockIdx.x} * 256 + threadIdx.x) * 4;
  double sum[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] = p.gram[at + i];
  for (int s = 0; s < p.n_splits; ++s) {
    const float4 v = *reinterpret_cast<const float4*>(p.partials + s * p.size + at);
    sum[0] += static_cast<double>(v.x);
    sum[1] += static_cast<double>(v.y);
    sum[2] += static_cast<double>(v.z);
    sum[3] += static_cast<double>(v.w);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) p.gram[at + i] = sum[i];
}

// ---- covariance and basis -----------------------------------------------------------------------

struct CovarianceParams {
  const double* gram = nullptr;  // tiles
  const double* sums = nullptr;  // [w]
  const float* shift = nullptr;  // [w]
  int64_t w = 0, n_tokens = 0;
  int32_t n_side = 0;
  float* mean = nullptr;     // [w]
  double* matrix = nullptr;  // [w][w]
  FitState* state = nullptr;
};
GPU double covariance_at(const CovarianceParams& p, int64_t i, int64_t j) {
  if (i > j) {
    const int64_t swap = i;
    i = j;
    j = swap;
  }
  const int64_t tile = gram_tile_number(i / kGramTile, j / kGramTile, p.n_side);
  const double gram = p.gram[tile * kGramTileSize + i % kGramTile * kGramTile + j % kGramTile];
  const double n = static_cast<double>(p.n_tokens);
  return gram / n - p.sums[i] / n * (p.sums[j] / n);
}

// One block: mean and trace. A NaN or an infinity in any key shows on the diagonal, because squares
// of it do; nothing smaller than the square overflows before it.
KERNEL(256, 1) trace_kernel(const GRID_CONST CovarianceParams p) {
  SHARED(smem);
  auto* parts = reinterpret_cast<double*>(smem);  // [256]
  double sum = 0;
  for (int64_t i = threadIdx.x; i < p.w; i += 256) {
    sum += covariance_at(p, i, i);
    p.mean[i] = static_cast<float>(static_cast<double>(p.shift[i]) +
                                   p.sums[i] / static_cast<double>(p.n_tokens));
  }
  parts[threadIdx.x] = sum;
  gpu::sync_threads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (int i = 0; i < 256; ++i) sum += parts[i];
  p.state->trace = sum;
  p.state->finite = sum - sum == 0 ? 1 : 0;
}

KERNEL(256, 4) covariance_kernel(const GRID_CONST CovarianceParams p) {
  const int64_t at = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (at >= p.w * p.w) return;
  // A solver must not meet a NaN; the basis of zeros is as good as any here.
  p.matrix[at] = p.state->finite != 0 ? covariance_at(p, at / p.w, at % p.w) : 0.0;
}

struct FinishBasisParams {
  const double* vectors = nullptr;  // [rank][w], the largest eigenvalue last
  const double* values = nullptr;   // [rank]
  const int32_t* status = nullptr;  // [kEigenStatus]
  const FitState* state = nullptr;
  int64_t w = 0, rank = 0;
  bf16* basis = nullptr;              // [w][rank]
  double* residual_energy = nullptr;  // or null
};

GPU void write_residual(const FinishBasisParams& p) {
  bool good = p.state->finite != 0;
  for (int i = 0; i < kEigenStatus; ++i) good = good && p.status[i] == 0;
  double kept = 0;
  for (int64_t r = p.rank - 1; r >= 0; --r) kept += p.values[r];
  const double trace = p.state->trace;
  double residual = trace > 0 ? 1.0 - kept / trace : 0.0;
  residual = residual < 0 ? 0.0 : residual > 1 ? 1.0 : residual;
  *p.residual_energy = good ? residual : static_cast<double>(gpu::bits_to_float(0x7fc00000u));
}

// Grid: (rank). The component of largest magnitude (the first of them) becomes positive.
KERNEL(256, 1) finish_basis_kernel(const GRID_CONST FinishBasisParams p) {
  SHARED(smem);
  auto* best = reinterpret_cast<double*>(smem);          // [256], the component itself
  auto* place = reinterpret_cast<int64_t*>(best + 256);  // [256], where it is
  const int tid = threadIdx.x;
  const double* vector = p.vectors + (p.rank - 1 - int64_t{blockIdx.x}) * p.w;
  best[tid] = 0;
  place[tid] = p.w;
  for (int64_t i = tid; i < p.w; i += 256) {
    if (fabs(vector[i]) > fabs(best[tid])) {
      best[tid] = vector[i];
      place[tid] = i;
    }
  }
  for (int width = 128; width > 0; width /= 2) {
    gpu::sync_threads();
    if (tid >= width) continue;
    const double mine = fabs(best[tid]), other = fabs(best[tid + width]);
    if (other > mine || (other == mine && place[tid + width] < place[tid])) {
      best[tid] = best[tid + width];
      place[tid] = place[tid + width];
    }
  }
  gpu::sync_threads();
  const double sign = best[0] < 0 ? -1.0 : 1.0;
  for (int64_t i = tid; i < p.w; i += 256) {
    p.basis[i * p.rank + blockIdx.x] = gpu::to_bf16(static_cast<float>(sign * vector[i]));
  }
  if (blockIdx.x == 0 && tid == 0 && p.residual_energy != nullptr) write_residual(p);
}

}  // namespace tiercel::cuda::lowrank
