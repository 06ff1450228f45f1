// Scores of queries against landmarks: what decode and prefill selection share.
//
// score = (query . landmark) * scale in log2 units, clamped to +-2^126, NaN to -2^126. One block
// takes up to 16 * kTiles queries of one KV head (the rows of mma tiles) and a share of the
// landmarks. Landmarks go from global memory straight into fragments: a product does not change
// when the same permutation of the head dimension is applied to both sides, so a lane's 16 bytes
// (elements 8t .. 8t + 7 of 32) serve as two steps of 16, and queries are permuted alike when they
// are packed.
//
//   step s, register pair r of lane (g, t)    elements 32 (s / 2) + 8 t + 4 (s % 2) + 2 r, + 1
//
// Octets of 8 landmarks are dealt out in turn: every warp takes kOctets, and then the next ones
// that nobody has. Positions count chunks from a multiple of 8 on; -inf marks what is no candidate.
//
//   chunk      origin .. first | first .. end - 1 | ..
//   position   0 .. lead - 1   | lead .. n - 1    |
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/launch.cuh"

namespace tiercel::cuda {

inline constexpr int kScoreThreads = 128;
inline constexpr int kScoreWarps = kScoreThreads / 32;
inline constexpr int kMaxTiles = 4;
// Blocks that a processor holds: one tile of queries in 128 registers, more in 168.
constexpr int score_residency(int n_tiles) { return n_tiles == 1 ? 4 : 3; }
inline constexpr float kScoreLimit = 0x1p126f;

// What becomes of scores: kept, with their sums (decode); sums only, then the best of each group
// of heads (prefill, which scores twice rather than keep 4 bytes per head and chunk).
enum class ScoreMode : uint8_t { kKeep, kSum, kGroup };

// (maximum, sum of exp2(score - maximum)) of some scores. No score: (-inf, 0).
struct ScoreSum {
  float max, sum;
};

// Blocks of prefill queries; see PrefillSelectParams.
struct PrefillBlocks {
  int64_t first_position, block_tokens, local_tokens;
  int64_t sink_chunks, k;
  int32_t chunk_tokens;

  // Chunks before the local window of a block.
  GPU_AND_HOST int64_t chunks_before(int64_t block) const {
    const int64_t position = first_position + block * block_tokens - local_tokens;
    return position > 0 ? position / chunk_tokens : 0;
  }
  GPU_AND_HOST bool takes_all(int64_t block) const {
    return k == 0 || chunks_before(block) <= sink_chunks + k;
  }
};

struct ScoreParams {
  const bf16* queries;    // [n_kv_heads][n_rows][head_dim]
  const bf16* landmarks;  // [n_kv_heads][capacity][head_dim]
  int64_t landmark_head_stride;
  int64_t origin;    // chunk of position 0, a multiple of 8
  int32_t lead, n;   // candidates: positions lead .. n - 1
  int32_t n_rows;    // per KV head
  int32_t n_groups;  // of 16 * kTiles rows
  int32_t n_splits;  // blocks per group of rows
  int32_t head_dim;
  float scale;     // log2 units
  bool is_wide;    // landmark rows are multiples of 16 bytes
  ScoreSum* sums;  // [n_kv_heads][n_rows] records of n_splits, sum_stride apart
  int64_t sum_stride;
  float* scores;         // kKeep: [n_kv_heads][n_rows], score_stride apart;
  int64_t score_stride;  // kGroup: [n_blocks][n_kv_heads]
  // kKeep
  const uint8_t* excluded;  // bit maps over chunks, or null
  int64_t excluded_stride;  // in bytes
  uint32_t* bins;           // [n_kv_heads], cleared for a later kernel, or null
  int64_t bin_stride;
  int32_t n_bins;
  // kSum, kGroup: row r is head r % padded_group of block first_block + r / padded_group
  PrefillBlocks blocks;
  int64_t first_block;
  int32_t n_kv_heads;
  int32_t padded_group;  // 1, 2, 4, 8 or 16
  int32_t group;         // heads that count, at most padded_group
  bool is_first;         // else scores already holds the best of other heads
};

GPU void merge_sum(ScoreSum& a, ScoreSum b) {
  const float max = fmaxf(a.max, b.max), base = max == -gpu::kInf ? 0.0f : max;
  a.sum = a.sum * gpu::exp2_fast(a.max - base) + b.sum * gpu::exp2_fast(b.max - base);
  a.max = max;
}

// log2 of the sum over all records of a row, by one warp; the same bits in all lanes. Nothing: 0.
GPU float log_sum(const ScoreSum* sums, int32_t n) {
  ScoreSum all{-gpu::kInf, 0.0f};
  for (int32_t i = static_cast<int32_t>(threadIdx.x) % 32; i < n; i += 32) merge_sum(all, sums[i]);
  for (int mask = 1; mask < 32; mask *= 2) {
    // Merged alike on both sides: a + b of fp32 is b + a.
    const ScoreSum other{gpu::shuffle_xor(all.max, mask), gpu::shuffle_xor(all.sum, mask)};
    const float max = fmaxf(all.max, other.max), base = max == -gpu::kInf ? 0.0f : max;
    const float mine = all.sum * gpu::exp2_fast(all.max - base);
    const float theirs = other.sum * gpu::exp2_fast(other.max - base);
    all = {max, mine + theirs};
  }
  return all.max == -gpu::kInf ? 0.0f : all.max + gpu::log2_fast(all.sum);
}

// One lane's fragments of kOctets octets: 64 registers, fewer where addresses need them.
template <int kLoads, bool kWhole>
struct LandmarkTile {
  static constexpr int kSteps = 2 * kLoads;
  static constexpr int kOctets = kLoads == 1 ? 4 : (kLoads <= 4 ? 4 : 2) / (kWhole ? 1 : 2);
  uint4 words[kOctets][kLoads];
  uint32_t dead;  // bit 2u + e: position 2t + e of octet u is no candidate
};

// 8 elements at a column, zeros behind the row.
template <bool kWhole>
GPU uint4 load_columns(const bf16* row, int column, int32_t head_dim, bool is_wide) {
  if (kWhole || (is_wide && column < head_dim)) return gpu::load_stream(row + column);
  uint4 v{0, 0, 0, 0};
  if (is_wide) return v;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(row + column);
  if (column < head_dim) v.x = words[0];
  if (column + 2 < head_dim) v.y = words[1];
  if (column + 4 < head_dim) v.z = words[2];
  if (column + 6 < head_dim) v.w = words[3];
  return v;
}

template <int kLoads, bool kWhole>
GPU void load_octets(const ScoreParams& p, int32_t octet, LandmarkTile<kLoads, kWhole>& tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t kv_head = blockIdx.y;
  const bf16* base = p.landmarks + kv_head * p.landmark_head_stride;
  tile.dead = 0;
#pragma unroll
  for (int u = 0; u < LandmarkTile<kLoads, kWhole>::kOctets; ++u) {
    const int32_t position = (octet + u) * 8;
    const bf16* row = base + (p.origin + position + g) * p.head_dim;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      tile.words[u][i] = position + g < p.n
                             ? load_columns<kWhole>(row, 32 * i + 8 * t, p.head_dim, p.is_wide)
                             : uint4{0, 0, 0, 0};
    }
    uint32_t dead = 0;
    if (p.excluded != nullptr && position < p.n) {
      dead = p.excluded[kv_head * p.excluded_stride + (p.origin + position) / 8] >> (2 * t) & 3;
    }
    const int32_t mine = position + 2 * t;
    if (mine < p.lead || mine >= p.n) dead |= 1;
    if (mine + 1 < p.lead || mine + 1 >= p.n) dead |= 2;
    tile.dead |= dead << 2 * u;
  }
}

// Queries of a group of rows in the order of fragments: [tile][step][lane] of 16 bytes.
GPU void pack_queries(const ScoreParams& p, int32_t first_row, int n_tiles, int n_steps,
                      uint4* fragments) {
  const bf16* queries = p.queries + int64_t{blockIdx.y} * p.n_rows * p.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < n_tiles * n_steps * 32; i += kScoreThreads) {
    const int lane = i % 32, g = lane / 4, t = lane % 4;
    const int step = i / 32 % n_steps, tile = i / 32 / n_steps;
    uint32_t words[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int32_t row = first_row + tile * 16 + g + 8 * (r & 1);
      const int column = step / 2 * 32 + t * 8 + step % 2 * 4 + (r >> 1) * 2;
      words[r] =
          row < p.n_rows && column < p.head_dim
              ? *reinterpret_cast<const uint32_t*>(queries + int64_t{row} * p.head_dim + column)
              : 0u;
    }
    fragments[i] = uint4{words[0], words[1], words[2], words[3]};
  }
}

// z[u]: scores of rows (g, g + 8) and positions (2t, 2t + 1) of octet u: mma's own layout.
template <int kLoads, bool kWhole, int kOctets>
GPU void score_tile(const ScoreParams& p, const LandmarkTile<kLoads, kWhole>& landmarks,
                    const uint4* fragments, float (&z)[kOctets][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int u = 0; u < kOctets; ++u) {
#pragma unroll
    for (int e = 0; e < 4; ++e) z[u][e] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < 2 * kLoads; ++step) {
    const uint4 q = fragments[step * 32 + lane];
    const uint32_t a[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int u = 0; u < kOctets; ++u) {
      const uint4& x = landmarks.words[u][step / 2];
      gpu::mma_16x8x16(z[u], a, step % 2 == 0 ? x.x : x.z, step % 2 == 0 ? x.y : x.w);
    }
  }
#pragma unroll
  for (int u = 0; u < kOctets; ++u) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float score = fminf(fmaxf(z[u][e] * p.scale, -kScoreLimit), kScoreLimit);
      z[u][e] = (landmarks.dead >> (2 * u + (e & 1)) & 1) != 0 ? -gpu::kInf : score;
    }
  }
}

// Adds the scores of row g + 8 * half to its sum.
template <int kOctets>
GPU void add_scores(const float (&z)[kOctets][4], int half, ScoreSum& s) {
  float max = s.max;
#pragma unroll
  for (int u = 0; u < kOctets; ++u) max = fmaxf(max, fmaxf(z[u][2 * half], z[u][2 * half + 1]));
  const float base = max == -gpu::kInf ? 0.0f : max;
  float sum = s.sum * gpu::exp2_fast(s.max - base);
#pragma unroll
  for (int u = 0; u < kOctets; ++u) {
    sum += gpu::exp2_fast(z[u][2 * half] - base) + gpu::exp2_fast(z[u][2 * half + 1] - base);
  }
  s = {max, sum};
}

template <int kOctets>
GPU void keep_scores(const ScoreParams& p, int32_t row, int32_t octet,
                     const float (&z)[kOctets][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row + g + 8 * half >= p.n_rows) continue;
    float* scores =
        p.scores + (int64_t{blockIdx.y} * p.n_rows + row + g + 8 * half) * p.score_stride + 2 * t;
#pragma unroll
    for (int u = 0; u < kOctets; ++u) {
      if ((octet + u) * 8 >= p.n) continue;
      *reinterpret_cast<float2*>(scores + (octet + u) * 8) =
          float2{z[u][2 * half], z[u][2 * half + 1]};
    }
  }
}

// The best of each block's heads, of scores from which their rows' log sums have been taken.
template <int kOctets>
GPU void keep_best(const ScoreParams& p, int32_t row, int32_t octet, float (&z)[kOctets][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int lanes = p.padded_group < 8 ? p.padded_group : 8;
#pragma unroll
  for (int u = 0; u < kOctets; ++u) {
    for (int apart = 1; apart < lanes; apart *= 2) {  // lanes of g differ in bits 2..4
#pragma unroll
      for (int e = 0; e < 4; ++e) z[u][e] = fmaxf(z[u][e], gpu::shuffle_xor(z[u][e], apart * 4));
    }
    if (p.padded_group == 16) {
      z[u][0] = fmaxf(z[u][0], z[u][2]);
      z[u][1] = fmaxf(z[u][1], z[u][3]);
    }
    if (g % lanes != u % lanes || (octet + u) * 8 >= p.n) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t mine = row + g + 8 * half;
      if (mine >= p.n_rows || (half == 1 && p.padded_group == 16)) continue;
      const int64_t out = int64_t{mine / p.padded_group} * p.n_kv_heads + blockIdx.y;
      float2* scores =
          reinterpret_cast<float2*>(p.scores + out * p.score_stride + (octet + u) * 8 + 2 * t);
      float2 best{z[u][2 * half], z[u][2 * half + 1]};
      if (!p.is_first) {
        const float2 before = *scores;
        best = float2{fmaxf(best.x, before.x), fmaxf(best.y, before.y)};
      }
      *scores = best;
    }
  }
}

// What a row needs beside its query. kSum: the position where its candidates end, 0 if its block
// takes all; kGroup: its log sum, +inf for rows that pad a group.
struct RowFacts {
  int32_t end[16 * kMaxTiles];
  float log_sum[16 * kMaxTiles];
};

template <ScoreMode kMode>
GPU void prepare_rows(const ScoreParams& p, int32_t first_row, int n_rows, RowFacts& facts) {
  if constexpr (kMode == ScoreMode::kSum) {
    for (int i = static_cast<int>(threadIdx.x); i < n_rows; i += kScoreThreads) {
      const int64_t block = p.first_block + (first_row + i) / p.padded_group;
      const bool is_scored = first_row + i < p.n_rows && !p.blocks.takes_all(block);
      facts.end[i] = is_scored ? static_cast<int32_t>(p.blocks.chunks_before(block) - p.origin) : 0;
    }
  } else if constexpr (kMode == ScoreMode::kGroup) {
    for (int i = static_cast<int>(threadIdx.x) / 32; i < n_rows; i += kScoreWarps) {
      const int32_t row = first_row + i;
      float sum = gpu::kInf;
      if (row < p.n_rows && row % p.padded_group < p.group) {
        sum = log_sum(p.sums + (int64_t{blockIdx.y} * p.n_rows + row) * p.sum_stride, p.n_splits);
      }
      if (threadIdx.x % 32 == 0) facts.log_sum[i] = sum;
    }
  }
}

// Sums of lanes that share a row, then of warps in their order.
template <int kTiles>
GPU void store_sums(const ScoreParams& p, int32_t first_row, int32_t split,
                    ScoreSum (&sums)[kTiles][2], ScoreSum* of_warps) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ScoreSum& s = sums[tile][half];
#pragma unroll
      for (int mask = 1; mask < 4; mask *= 2) {
        merge_sum(s, {gpu::shuffle_xor(s.max, mask), gpu::shuffle_xor(s.sum, mask)});
      }
      if (lane % 4 == 0) of_warps[(warp * kTiles + tile) * 16 + lane / 4 + 8 * half] = s;
    }
  }
  gpu::sync_threads();
  const int row = static_cast<int>(threadIdx.x);
  if (row >= 16 * kTiles || first_row + row >= p.n_rows) return;
  ScoreSum all = of_warps[row];
#pragma unroll
  for (int w = 1; w < kScoreWarps; ++w) merge_sum(all, of_warps[w * kTiles * 16 + row]);
  p.sums[(int64_t{blockIdx.y} * p.n_rows + first_row + row) * p.sum_stride + split] = all;
}

// Shared memory: facts and sums of rows, then packed queries.
template <int kTiles>
struct ScoreShared {
  RowFacts facts;
  ScoreSum of_warps[kScoreWarps * kTiles * 16];
};

// Grid: (n_groups * n_splits, n_kv_heads); groups of rows that read the same landmarks are
// neighbours. kWhole: head_dim is 32 * kLoads and landmark rows are multiples of 16 bytes.
template <ScoreMode kMode, int kTiles, int kLoads, bool kWhole>
KERNEL(kScoreThreads, score_residency(kTiles))
score_landmarks(const GRID_CONST ScoreParams p) {
  using namespace gpu;
  using Tile = LandmarkTile<kLoads, kWhole>;
  SHARED(smem);
  auto& shared = *reinterpret_cast<ScoreShared<kTiles>*>(smem);
  auto* fragments = reinterpret_cast<uint4*>(smem + sizeof(ScoreShared<kTiles>));
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int32_t first_row = static_cast<int32_t>(blockIdx.x) % p.n_groups * 16 * kTiles;
  const int32_t split = static_cast<int32_t>(blockIdx.x) / p.n_groups;
  const int32_t rows_left = p.n_rows - first_row;
  const int n_tiles = rows_left < 16 * kTiles ? (rows_left + 15) / 16 : kTiles;

  // ---- queries
  // -----------------------------------------------------------------------------------
  pack_queries(p, first_row, n_tiles, Tile::kSteps, fragments);
  prepare_rows<kMode>(p, first_row, n_tiles * 16, shared.facts);
  if constexpr (kMode == ScoreMode::kKeep) {
    if (p.bins != nullptr && blockIdx.x == 0) {
      for (int i = static_cast<int>(threadIdx.x); i < p.n_bins; i += kScoreThreads) {
        p.bins[int64_t{blockIdx.y} * p.bin_stride + i] = 0;
      }
    }
  }
  sync_threads();

  // ---- landmarks
  // ---------------------------------------------------------------------------------
  ScoreSum sums[kTiles][2];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) sums[tile][0] = sums[tile][1] = {-kInf, 0.0f};
  const int32_t n_octets = (p.n + 7) / 8, stride = p.n_splits * kScoreWarps * Tile::kOctets;
  for (int32_t octet = (split * kScoreWarps + warp) * Tile::kOctets; octet < n_octets;
       octet += stride) {
    Tile landmarks;
    load_octets(p, octet, landmarks);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile >= n_tiles) break;
      float z[Tile::kOctets][4];
      score_tile(p, landmarks, fragments + tile * Tile::kSteps * 32, z);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile * 16 + lane / 4 + 8 * half;
        if constexpr (kMode == ScoreMode::kSum) {
          const int32_t end = shared.facts.end[row];
#pragma unroll
          for (int u = 0; u < Tile::kOctets; ++u) {
            const int32_t position = (octet + u) * 8 + lane % 4 * 2;
            if (position >= end) z[u][2 * half] = -kInf;
            if (position + 1 >= end) z[u][2 * half + 1] = -kInf;
          }
        }
        if constexpr (kMode == ScoreMode::kGroup) {
          const float base = shared.facts.log_sum[row];
#pragma unroll
          for (int u = 0; u < Tile::kOctets; ++u) {
            z[u][2 * half] -= base;
            z[u][2 * half + 1] -= base;
          }
        } else {
          add_scores(z, half, sums[tile][half]);
        }
      }
      if constexpr (kMode == ScoreMode::kKeep) keep_scores(p, first_row + tile * 16, octet, z);
      if constexpr (kMode == ScoreMode::kGroup) keep_best(p, first_row + tile * 16, octet, z);
    }
  }

  // ---- sums
  // --------------------------------------------------------------------------------------
  if constexpr (kMode != ScoreMode::kGroup) {
    store_sums<kTiles>(p, first_row, split, sums, shared.of_warps);
  }
}

// How many blocks share the landmarks of a KV head: a function of shapes only, as sums are merged
// in their order. All blocks of 132 processors at once.
inline int32_t score_splits(int64_t n_positions, int32_t head_dim, int64_t n_kv_heads,
                            int64_t n_rows, int n_tiles, int32_t most) {
  const int64_t octets_per_block = kScoreWarps * (head_dim <= 128 ? 4 : 2);
  const int64_t useful = ((n_positions + 7) / 8 + octets_per_block - 1) / octets_per_block;
  const int64_t n_groups = (n_rows + 16 * n_tiles - 1) / (16 * n_tiles);
  int64_t n = 132 * score_residency(n_tiles) / (n_kv_heads * n_groups);
  if (n > useful) n = useful;
  if (n > most) n = most;
  return n < 1 ? 1 : static_cast<int32_t>(n);
}

template <ScoreMode kMode, int kTiles, int kLoads, bool kWhole>
void launch_score_instance(Stream& stream, const ScoreParams& p) {
  const size_t bytes =
      sizeof(ScoreShared<kTiles>) + size_t{kTiles} * 2 * kLoads * 32 * sizeof(uint4);
  launch<score_landmarks<kMode, kTiles, kLoads, kWhole>>(
      stream,
      dim3(static_cast<unsigned>(p.n_groups * p.n_splits), static_cast<unsigned>(p.n_kv_heads)),
      kScoreThreads, bytes, p);
}

// Fills in what follows from the landmarks' layout, and chooses the instance.
template <ScoreMode kMode, int kTiles>
void launch_scores(Stream& stream, ScoreParams p) {
  CHECK(
      p.head_dim > 0 && p.head_dim <= 256 && p.head_dim % 2 == 0 && p.landmark_head_stride % 2 == 0,
      "head_dim {}, stride {}", p.head_dim, p.landmark_head_stride);
  p.n_groups = (p.n_rows + 16 * kTiles - 1) / (16 * kTiles);
  p.is_wide = p.head_dim % 8 == 0 && p.landmark_head_stride % 8 == 0 &&
              reinterpret_cast<uintptr_t>(p.landmarks) % 16 == 0;
  if (p.is_wide && p.head_dim == 64)
    return launch_score_instance<kMode, kTiles, 2, true>(stream, p);
  if (p.is_wide && p.head_dim == 96)
    return launch_score_instance<kMode, kTiles, 3, true>(stream, p);
  if (p.is_wide && p.head_dim == 128) {
    return launch_score_instance<kMode, kTiles, 4, true>(stream, p);
  }
  if (p.is_wide && p.head_dim == 256) {
    return launch_score_instance<kMode, kTiles, 8, true>(stream, p);
  }
  if (p.head_dim <= 32) return launch_score_instance<kMode, kTiles, 1, false>(stream, p);
  if (p.head_dim <= 128) return launch_score_instance<kMode, kTiles, 4, false>(stream, p);
  return launch_score_instance<kMode, kTiles, 8, false>(stream, p);
}

}  // namespace tiercel::cuda
