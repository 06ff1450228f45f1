// Selection after scoring: one score per chunk over a group of heads, then the best k.
//
// Up to kSmallSelect positions one block per KV head does both, scores in shared memory. Beyond,
// many blocks aggregate and leave a histogram, and the maximum of every 256 scores, so that one
// block per KV head finds the threshold and looks at those segments only that reach it.
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/score.cuh"
#include "kernels/slots.cuh"
#include "kernels/top_k.cuh"

namespace tiercel::cuda {

inline constexpr int32_t kSmallSelect = 16384 + 8;
inline constexpr int kGroupThreads = 256;
inline constexpr int kGroupPositions = 8192;  // of one block: whole segments
static_assert(kGroupPositions % (kSegment * kGroupThreads / 32) == 0);

// SelectParams::workspace and what all kernels of a selection know. The group's scores take the
// place of its first head's.
struct SelectWork {
  float* scores;   // [n_heads][stride]
  float* maxima;   // [n_kv_heads][stride], ceil(n / kSegment) are used
  ScoreSum* sums;  // [n_heads], sum_stride apart: one per split
  uint32_t* bins;  // [n_kv_heads], group * bin_stride apart
  int64_t stride, sum_stride, bin_stride;
  int64_t origin;  // chunk of position 0
  int32_t n, n_splits;
  int32_t group, k;
  bool is_mean;
  int32_t* ids;  // [n_kv_heads][id_stride]
  int32_t* counts;
  int64_t id_stride;
  MapSlotsParams map;  // used by kernels that also map
};

GPU Binning binning_of(const SelectWork& w) {
  return w.is_mean ? Binning::kWeight : Binning::kLog2;
}

// log_sums[h] of the heads of a group, by the block's warps.
GPU void group_log_sums(const SelectWork& w, int64_t kv_head, int n_warps, float* log_sums) {
  for (int h = static_cast<int>(threadIdx.x) / 32; h < w.group; h += n_warps) {
    const float sum = log_sum(w.sums + (kv_head * w.group + h) * w.sum_stride, w.n_splits);
    if (threadIdx.x % 32 == 0) log_sums[h] = sum;
  }
  gpu::sync_threads();
}

// The group's scores at four positions; max: log2 of the largest weight, mean: the mean weight.
GPU float4 group_scores(const SelectWork& w, int64_t kv_head, int32_t position,
                        const float* log_sums) {
  using namespace gpu;
  const float* scores = w.scores + kv_head * w.group * w.stride + position;
  const float empty = w.is_mean ? 0.0f : -kInf;
  float all[4] = {empty, empty, empty, empty};
  bool is_live[4] = {};
#pragma unroll 4
  for (int h = 0; h < w.group; ++h) {
    const float4 v = *reinterpret_cast<const float4*>(scores + h * w.stride);
    const float of_head[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float x = of_head[e] - log_sums[h];
      is_live[e] = of_head[e] > -kInf;
      all[e] = w.is_mean ? all[e] + exp2_fast(x) : fmaxf(all[e], x);
    }
  }
  if (w.is_mean) {
    const float share = 1.0f / static_cast<float>(w.group);
#pragma unroll
    for (int e = 0; e < 4; ++e) all[e] = is_live[e] ? all[e] * share : -kInf;
  }
  return float4{all[0], all[1], all[2], all[3]};
}

// Finds, emits and counts the best k of a row whose bins are filled.
GPU void emit_selection(const SelectWork& w, int64_t kv_head, const RankRow& row, RankShared& s) {
  const Threshold threshold = find_threshold(row, s);
  int32_t* ids = w.ids + kv_head * w.id_stride;
  const int32_t origin = static_cast<int32_t>(w.origin);
  emit_chosen(row, s, threshold, [&](uint32_t i, int32_t index) { ids[i] = origin + index; });
  if (threadIdx.x == 0) w.counts[kv_head] = static_cast<int32_t>(threshold.n);
}

// The slot map by the block that has just written its KV head's ids.
GPU void map_selection(const SelectWork& w, int64_t kv_head, uint8_t* smem) {
  gpu::sync_threads();
  map_head(w.map, kv_head, *reinterpret_cast<MapShared*>(smem));
}
static_assert(sizeof(MapShared) <= sizeof(RankShared));

// Shared memory: RankShared, log sums [group], scores [n up to a multiple of 4].
template <bool kMap>
KERNEL(kRankThreads, 1)
select_small(const GRID_CONST SelectWork w) {
  SHARED(smem);
  RankShared& s = *reinterpret_cast<RankShared*>(smem);
  float* scores = reinterpret_cast<float*>(smem + sizeof(RankShared));
  float* log_sums = scores + (w.n + 3) / 4 * 4;
  const int64_t kv_head = blockIdx.x;
  clear_bins(s);
  group_log_sums(w, kv_head, kRankWarps, log_sums);
  for (int32_t i = static_cast<int32_t>(threadIdx.x) * 4; i < w.n; i += kRankThreads * 4) {
    const float4 v = group_scores(w, kv_head, i, log_sums);
    *reinterpret_cast<float4*>(scores + i) = v;
    const float of_four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (of_four[e] > -gpu::kInf) gpu::atomic_add(s.bins + bin_of(of_four[e], binning_of(w)), 1u);
    }
  }
  gpu::sync_threads();
  emit_selection(w, kv_head, RankRow{scores, nullptr, w.n, w.k, binning_of(w)}, s);
  if constexpr (kMap) map_selection(w, kv_head, smem);
}

// Grid: (ceil(n / kGroupPositions), n_kv_heads). Shared memory: bins, log sums [group].
KERNEL(kGroupThreads, 4) aggregate_group(const GRID_CONST SelectWork w) {
  using namespace gpu;
  SHARED(smem);
  uint32_t* bins = reinterpret_cast<uint32_t*>(smem);
  float* log_sums = reinterpret_cast<float*>(bins + kBins);
  const int64_t kv_head = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kGroupThreads) bins[i] = 0;
  group_log_sums(w, kv_head, kGroupThreads / 32, log_sums);

  const int32_t begin = static_cast<int32_t>(blockIdx.x) * kGroupPositions;
  for (int32_t segment = begin + warp * kSegment;
       segment < begin + kGroupPositions && segment < w.n;
       segment += kGroupThreads / 32 * kSegment) {
    float top = -kInf;
#pragma unroll
    for (int i = 0; i < kSegment / 128; ++i) {
      const int32_t position = segment + i * 128 + lane * 4;
      if (position >= w.n) continue;  // scoring wrote whole octets: four are in or out
      const float4 v = group_scores(w, kv_head, position, log_sums);
      *reinterpret_cast<float4*>(w.scores + kv_head * w.group * w.stride + position) = v;
      const float of_four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (of_four[e] == -kInf) continue;
        atomic_add(bins + bin_of(of_four[e], binning_of(w)), 1u);
        top = fmaxf(top, of_four[e]);
      }
    }
    for (int mask = 1; mask < 32; mask *= 2) top = fmaxf(top, shuffle_xor(top, mask));
    if (lane == 0) w.maxima[kv_head * w.stride + segment / kSegment] = top;
  }
  sync_threads();
  uint32_t* all = w.bins + kv_head * w.group * w.bin_stride;
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kGroupThreads) {
    if (bins[i] != 0) atomic_add(all + i, bins[i]);
  }
}

// One block per KV head, after aggregate_group.
template <bool kMap>
KERNEL(kRankThreads, 1)
select_large(const GRID_CONST SelectWork w) {
  SHARED(smem);
  RankShared& s = *reinterpret_cast<RankShared*>(smem);
  const int64_t kv_head = blockIdx.x;
  const uint32_t* bins = w.bins + kv_head * w.group * w.bin_stride;
  s.bins[threadIdx.x] = bins[threadIdx.x];
  s.bins[threadIdx.x + kRankThreads] = bins[threadIdx.x + kRankThreads];
  gpu::sync_threads();
  const RankRow row{w.scores + kv_head * w.group * w.stride, w.maxima + kv_head * w.stride, w.n,
                    w.k, binning_of(w)};
  emit_selection(w, kv_head, row, s);
  if constexpr (kMap) map_selection(w, kv_head, smem);
}

// ---- everything ---------------------------------------------------------------------------------

struct SelectAllParams {
  const uint64_t* excluded;  // [n_kv_heads][excluded_stride] or null
  int64_t excluded_stride;
  int32_t first, end;
  int32_t* ids;  // [n_kv_heads][id_stride]
  int32_t* counts;
  int64_t id_stride;
  MapSlotsParams map;
};

// Chunks 32 * word .. of a KV head that are candidates, a bit each.
GPU uint32_t candidates_of_word(const SelectAllParams& p, int64_t kv_head, int32_t word) {
  const int32_t chunk = word * 32;
  uint32_t bits = ~0u;
  if (chunk < p.first) bits &= ~0u << (p.first - chunk);
  if (p.end - chunk < 32) bits &= (1u << (p.end - chunk)) - 1;
  if (p.excluded != nullptr) {
    bits &= ~reinterpret_cast<const uint32_t*>(p.excluded + kv_head * p.excluded_stride)[word];
  }
  return bits;
}

// A budget of all candidates needs no scores: they are listed. One block per KV head.
template <bool kMap>
KERNEL(kRankThreads, 1)
select_all(const GRID_CONST SelectAllParams p) {
  using namespace gpu;
  SHARED(smem);
  uint32_t* sums = reinterpret_cast<uint32_t*>(smem);
  const int64_t kv_head = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int32_t first_word = p.first / 32, end_word = (p.end - 1) / 32 + 1;
  const int32_t per_warp = (end_word - first_word + kRankWarps - 1) / kRankWarps;
  const int32_t begin = first_word + warp * per_warp;
  const int32_t end = begin + per_warp < end_word ? begin + per_warp : end_word;

  uint32_t n = 0;
  for (int32_t word = begin + lane; word < end; word += 32) {
    n += popcount(candidates_of_word(p, kv_head, word));
  }
  uint32_t total;
  uint32_t at = shuffle(block_scan(n, sums, total), 0);  // of this warp's first lane
  int32_t* ids = p.ids + kv_head * p.id_stride;
  for (int32_t words = begin; words < end; words += 32) {
    const uint32_t mine = words + lane < end ? candidates_of_word(p, kv_head, words + lane) : 0;
    for (int i = 0; i < 32 && words + i < end; ++i) {
      const uint32_t bits = shuffle(mine, i);
      if ((bits >> lane & 1) != 0) {
        ids[at + popcount(bits & ((1u << lane) - 1))] = (words + i) * 32 + lane;
      }
      at += popcount(bits);
    }
  }
  if (threadIdx.x == 0) p.counts[kv_head] = static_cast<int32_t>(total);
  if constexpr (kMap) {
    sync_threads();
    map_head(p.map, kv_head, *reinterpret_cast<MapShared*>(smem));
  }
}

}  // namespace tiercel::cuda
