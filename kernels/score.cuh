// Scores of queries against landmarks: what decode and prefill selection share.
//
// score = (query . landmark) * scale in log2 units, clamped to +-2^126, NaN to -2^126; -inf marks
// what is no candidate. One block takes up to 16 * kTiles queries of one KV head (the rows of mma
// tiles) and a share of the landmarks, as score_tile.cuh brings them.
#pragma once

#include <type_traits>

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/joint_launch.cuh"
#include "kernels/score_any.cuh"
#include "kernels/score_tile.cuh"

namespace tiercel::cuda {

// The maximum first, so that no sum waits for the one before.
template <int kMany>
GPU ScoreSum merge_sums(const ScoreSum (&some)[kMany]) {
  float max = some[0].max;
#pragma unroll
  for (int i = 1; i < kMany; ++i) max = fmaxf(max, some[i].max);
  const float base = max == -gpu::kInf ? 0.0f : max;
  float sum = some[0].sum * gpu::exp2_fast(some[0].max - base);
#pragma unroll
  for (int i = 1; i < kMany; ++i) sum += some[i].sum * gpu::exp2_fast(some[i].max - base);
  return {max, sum};
}

// The same of kLanes neighbouring lanes: the same bits in all of them, as a + b of fp32 is b + a.
template <int kLanes>
GPU ScoreSum merge_lanes(const ScoreSum& of_lane) {
  float max = of_lane.max;
#pragma unroll
  for (int mask = 1; mask < kLanes; mask *= 2) max = fmaxf(max, gpu::shuffle_xor(max, mask));
  const float base = max == -gpu::kInf ? 0.0f : max;
  float sum = of_lane.sum * gpu::exp2_fast(of_lane.max - base);
#pragma unroll
  for (int mask = 1; mask < kLanes; mask *= 2) sum += gpu::shuffle_xor(sum, mask);
  return {max, sum};
}

// log2 of the sum over all records of a row, by one warp; the same bits in all lanes. Nothing: 0.
GPU float log_sum(const ScoreSum* sums, int32_t n) {
  ScoreSum all{-gpu::kInf, 0.0f};
  for (int32_t first = static_cast<int32_t>(threadIdx.x) % 32; first < n; first += 4 * 32) {
    ScoreSum some[5];  // in flight together; an empty one changes nothing
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      some[i] = first + 32 * i < n ? sums[first + 32 * i] : ScoreSum{-gpu::kInf, 0.0f};
    }
    some[4] = all;
    all = merge_sums(some);
  }
  all = merge_lanes<32>(all);
  return all.max == -gpu::kInf ? 0.0f : all.max + gpu::log2_fast(all.sum);
}

// Queries of consecutive rows of one KV head.
struct QueryRows {
  const bf16* first;
  int32_t n, query_dim;

  GPU QueryRows(const ScoreParams& p, int32_t first_row)
      : first(p.queries + (int64_t{blockIdx.y} * p.n_rows + first_row) * p.query_dim),
        n(p.n_rows - first_row),
        query_dim(p.query_dim) {}
  // Null: there is none.
  GPU const bf16* at(int32_t row) const { return row < n ? first + int64_t{row} * query_dim : nullptr; }
};

// Queries of rows.at(0), rows.at(1), .. in the order of fragments: [tile][step][lane] of 16 bytes.
template <typename Rows>
GPU void pack_queries(const ScoreParams& p, const Rows& rows, int n_tiles, int n_steps,
                      uint4* fragments) {
  for (int i = static_cast<int>(threadIdx.x); i < n_tiles * n_steps * 32; i += kScoreThreads) {
    const int lane = i % 32, g = lane / 4, t = lane % 4;
    const int step = i / 32 % n_steps, tile = i / 32 / n_steps;
    uint32_t words[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const bf16* row = rows.at(tile * 16 + g + 8 * (r & 1));
      const int column = step / 2 * 32 + t * 8 + step % 2 * 4 + (r >> 1) * 2;
      words[r] = row != nullptr && column < p.head_dim
                     ? *reinterpret_cast<const uint32_t*>(row + column)
                     : 0u;
    }
    fragments[i] = uint4{words[0], words[1], words[2], words[3]};
  }
}

// z[u]: scores of rows (g, g + 8) and positions (2t, 2t + 1) of octet u: mma's own layout.
template <typename Tile>
GPU void score_tile(const ScoreParams& p, const Tile& landmarks, const uint4* fragments,
                    float (&z)[Tile::kOctets][4]) {
  constexpr int kOctets = Tile::kOctets;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int u = 0; u < kOctets; ++u) {
#pragma unroll
    for (int e = 0; e < 4; ++e) z[u][e] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < Tile::kSteps; ++step) {
    const uint4 q = fragments[step * 32 + lane];
    const uint32_t a[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int u = 0; u < kOctets; ++u) {
      if constexpr (Tile::kForm == LandmarkForm::kCodes) {
        const uint4& x = landmarks.words[u][step / 4];
        uint32_t first, second;
        gpu::int8_to_bf16(step % 4 == 0   ? x.x
                          : step % 4 == 1 ? x.y
                          : step % 4 == 2 ? x.z
                                          : x.w,
                          first, second);
        gpu::mma_16x8x16(z[u], a, first, second);
      } else {
        const uint4& x = landmarks.words[u][step / 2];
        gpu::mma_16x8x16(z[u], a, step % 2 == 0 ? x.x : x.z, step % 2 == 0 ? x.y : x.w);
      }
    }
  }
#pragma unroll
  for (int u = 0; u < kOctets; ++u) {
    if constexpr (Tile::kForm == LandmarkForm::kCodes) {
      const uint32_t of_row = gpu::float_to_bits(landmarks.scales.of_row[u]);
      const float scale = gpu::bits_to_float(gpu::shuffle(of_row, lane % 4 * 8));
      const float scale_after = gpu::bits_to_float(gpu::shuffle(of_row, lane % 4 * 8 + 4));
      z[u][0] *= scale;
      z[u][1] *= scale_after;
      z[u][2] *= scale;
      z[u][3] *= scale_after;
    }
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

// Of the row g + 8 * half of a tile, whose scores begin at `scores`.
template <int kOctets>
GPU void keep_row(const ScoreParams& p, float* scores, int32_t octet, int half,
                  const float (&z)[kOctets][4]) {
  scores += static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int u = 0; u < kOctets; ++u) {
    if ((octet + u) * 8 >= p.n) continue;
    *reinterpret_cast<float2*>(scores + (octet + u) * 8) =
        float2{z[u][2 * half], z[u][2 * half + 1]};
  }
}

template <int kOctets>
GPU void keep_scores(const ScoreParams& p, int32_t row, int32_t octet,
                     const float (&z)[kOctets][4]) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t mine = row + g + 8 * half;
    if (mine >= p.n_rows) continue;
    keep_row(p, p.scores + (int64_t{blockIdx.y} * p.n_rows + mine) * p.score_stride, octet, half, z);
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
        sum = log_sum(p.sums + (int64_t{blockIdx.y} * p.n_rows + row) * p.sum_stride, p.n_sums);
      }
      if (threadIdx.x % 32 == 0) facts.log_sum[i] = sum;
    }
  }
}

// Sums of lanes that share a row, then of warps in their order: for one thread of each of n_rows rows,
// which gets store(row, sum).
template <int kTiles, typename Store>
GPU void merge_row_sums(int32_t n_rows, const ScoreSum (&sums)[kTiles][2], ScoreSum* of_warps,
                        Store&& store) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (tile * 16 + 8 * half >= n_rows) continue;
      const ScoreSum s = merge_lanes<4>(sums[tile][half]);
      if (lane % 4 == 0) of_warps[(warp * kTiles + tile) * 16 + lane / 4 + 8 * half] = s;
    }
  }
  gpu::sync_threads();
  const int row = static_cast<int>(threadIdx.x);
  if (row >= 16 * kTiles || row >= n_rows) return;
  ScoreSum of_row[kScoreWarps];
#pragma unroll
  for (int w = 0; w < kScoreWarps; ++w) of_row[w] = of_warps[w * kTiles * 16 + row];
  store(row, merge_sums(of_row));
}

// Shared memory: facts and sums of rows, then packed queries.
template <int kTiles>
struct ScoreShared {
  RowFacts facts;
  ScoreSum of_warps[kScoreWarps * kTiles * 16];
};

// Grid: (n_groups * n_splits, n_kv_heads); groups of rows that read the same landmarks are
// neighbours. kWhole: head_dim is columns_of(kForm) * kLoads and landmark rows are multiples of 16
// bytes.
template <ScoreMode kMode, int kTiles, int kLoads, bool kWhole,
          LandmarkForm kForm = LandmarkForm::kMeans>
GPU void score_landmarks(const ScoreParams& p) {
  using namespace gpu;
  constexpr bool kRing = kMode == ScoreMode::kKeep && kWhole;
  constexpr bool kIsPlain = kForm == LandmarkForm::kMeans;
  using Tile = LandmarkTile<kLoads, kWhole, kRing, kForm>;
  SHARED(smem);
  auto& shared = *reinterpret_cast<ScoreShared<kTiles>*>(smem);
  auto* fragments = reinterpret_cast<uint4*>(smem + sizeof(ScoreShared<kTiles>));
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int32_t first_row = static_cast<int32_t>(blockIdx.x) % p.n_groups * 16 * kTiles;
  const int32_t split = static_cast<int32_t>(blockIdx.x) / p.n_groups;
  const int32_t rows_left = p.n_rows - first_row;
  const int n_tiles = rows_left < 16 * kTiles ? (rows_left + 15) / 16 : kTiles;

  const int32_t first = (split * kScoreWarps + warp) * Tile::kOctets;
  const int32_t stride = p.n_splits * kScoreWarps * Tile::kOctets;

  // ---- before the queries are known
  if constexpr (kRing) {
    if constexpr (kIsPlain) prefetch_landmarks<kLoads>(p, split);
    if constexpr (!kIsPlain) prefetch_any_landmarks<kLoads, kForm>(p, split);
  }
  begin_dependent();
  if constexpr (!kIsPlain) {
    if (is_kept(p.keep)) return;
  }

  // ---- queries, while the first landmarks are on their way
  constexpr int kRingLoads = kRing ? kLoads : 1;
  auto* ring = reinterpret_cast<LandmarkRing<kRingLoads>*>(fragments + kTiles * Tile::kSteps * 32);
  using Reader =
      std::conditional_t<kIsPlain, RingReader<kRingLoads>, AnyRingReader<kRingLoads, kForm>>;
  Reader reader{p, *ring, first, stride, {}};
  if constexpr (kRing) reader.start();
  const QueryRows rows(p, first_row);
  if constexpr (kIsPlain) pack_queries(p, rows, n_tiles, Tile::kSteps, fragments);
  if constexpr (!kIsPlain) pack_any_queries<kForm>(p, rows, n_tiles, Tile::kSteps, fragments);
  prepare_rows<kMode>(p, first_row, n_tiles * 16, shared.facts);
  if constexpr (kMode == ScoreMode::kKeep) {
    if (blockIdx.x == 0 && threadIdx.x == 0) p.arrivals[blockIdx.y * p.arrival_stride] = 0;
  }
  sync_threads();

  // ---- landmarks
  ScoreSum sums[kTiles][2];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) sums[tile][0] = sums[tile][1] = {-kInf, 0.0f};
  const int32_t n_octets = (p.n + 7) / 8;
  int32_t turn = 0;
  for (int32_t octet = first; octet < n_octets; octet += stride, ++turn) {
    Tile landmarks;
    if constexpr (kRing) {
      reader.read(turn, landmarks);
    } else if constexpr (!kIsPlain) {
      load_any_octets(p, octet, landmarks);
    } else {
      load_octets(p, octet, landmarks);
    }
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
        } else if (first_row + tile * 16 + 8 * half < p.n_rows) {
          add_scores(z, half, sums[tile][half]);
        }
      }
      if constexpr (kMode == ScoreMode::kKeep) keep_scores(p, first_row + tile * 16, octet, z);
      if constexpr (kMode == ScoreMode::kGroup) keep_best(p, first_row + tile * 16, octet, z);
    }
  }

  // ---- sums
  if constexpr (kMode != ScoreMode::kGroup) {
    merge_row_sums<kTiles>(rows_left, sums, shared.of_warps, [&](int row, const ScoreSum& sum) {
      p.sums[(int64_t{blockIdx.y} * p.n_rows + first_row + row) * p.sum_stride + split] = sum;
    });
  }
}

}  // namespace tiercel::cuda
