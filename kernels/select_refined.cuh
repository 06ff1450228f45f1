// The kernels of select_refined: as select.cuh's, over positions that a ChunkMap names, for KV
// heads or for a whole layer.
//
//   scope kKvHead   a list per KV head:  score = log2 of the largest weight, or the mean weight
//   scope kLayer    one list:            score = sum over KV heads of the largest, or mean, weight
#pragma once

#include "engine/base/ops.h"
#include "kernels/chunk_map.cuh"
#include "kernels/gpu.cuh"
#include "kernels/joint_launch.cuh"
#include "kernels/select.cuh"

namespace tiercel::cuda {

struct RefinedWork {
  SelectWork select;  // its map is not used
  ChunkMap map;
  const int32_t* keep;
  int32_t n_kv_heads;
  bool keeps_positions;  // ids are positions as yet: they will be trimmed
};

// log_sums[h] of all heads.
GPU void layer_log_sums(const RefinedWork& r, float* log_sums) {
  const SelectWork& w = r.select;
  for (int h = static_cast<int>(threadIdx.x) / 32; h < r.n_kv_heads * w.group; h += kPieceWarps) {
    const float sum = log_sum(w.sums + h * w.sum_stride, w.n_splits);
    if (threadIdx.x % 32 == 0) log_sums[h] = sum;
  }
  gpu::sync_threads();
}

// The layer's scores at four positions: the sum of what groups say, KV head after KV head.
template <GroupScore kScore>
GPU float4 layer_scores(const RefinedWork& r, const float* scores, const float* log_sums) {
  using namespace gpu;
  const SelectWork& w = r.select;
  float all[4] = {};
  bool is_live[4] = {};
  for (int32_t j = 0; j < r.n_kv_heads; ++j) {
    float4 v[kHeadsAtOnce];
    load_heads(w, scores + int64_t{j} * w.group * w.stride, 0, v);
    const float4 of_group = group_scores<kScore>(w, scores + int64_t{j} * w.group * w.stride,
                                                 log_sums + j * w.group, v);
    const float four[4] = {of_group.x, of_group.y, of_group.z, of_group.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (!(four[e] > -kInf)) continue;
      is_live[e] = true;
      all[e] += kScore == GroupScore::kMax ? exp2_fast(four[e]) : four[e];
    }
  }
  return float4{is_live[0] ? all[0] : -kInf, is_live[1] ? all[1] : -kInf,
                is_live[2] ? all[2] : -kInf, is_live[3] ? all[3] : -kInf};
}

// As aggregate, for the layer: in place of the first head's scores.
template <GroupScore kScore>
GPU void aggregate_layer(const RefinedWork& r, unsigned n_blocks, float* log_sums) {
  using namespace gpu;
  const SelectWork& w = r.select;
  layer_log_sums(r, log_sums);
  const int64_t step = int64_t{n_blocks} * kGroupPositions;
  const int32_t n_maxima = (w.n + 4 * kPiece - 1) / (4 * kPiece) * 4;
  for (int64_t begin = int64_t{blockIdx.x} * kGroupPositions; begin < w.n; begin += step) {
    const int64_t position = begin + threadIdx.x * 4;
    float4 score{-kInf, -kInf, -kInf, -kInf};
    if (position < w.n) {
      score = layer_scores<kScore>(r, w.scores + position, log_sums);
      *reinterpret_cast<float4*>(w.scores + position) = score;
    }
    const float top = piece_maximum(score);
    if (threadIdx.x % 4 == 0 && position / kPiece < n_maxima) w.maxima[position / kPiece] = top;
  }
}

struct RefinedShared {
  PieceShared pieces;
  uint32_t is_last;
};

// Grid: (up to ceil(n / kGroupPositions), lists). Shared memory: RefinedShared, log sums of a
// list's heads.
template <GroupScore kScore, SelectScope kScope>
GPU void select_refined_group(const RefinedWork& r, const JointGrid& grid) {
  using namespace gpu;
  constexpr bool kLayer = kScope == SelectScope::kLayer;
  SHARED(smem);
  RefinedShared& s = *reinterpret_cast<RefinedShared*>(smem);
  float* log_sums = reinterpret_cast<float*>(smem + sizeof(RefinedShared));
  const SelectWork& w = r.select;
  const int64_t list = blockIdx.y;
  begin_dependent();
  if (is_kept(r.keep)) return;
  reinterpret_cast<uint4*>(s.pieces.bins)[threadIdx.x] = uint4{0, 0, 0, 0};

  // ---- one score per position
  if constexpr (kLayer) {
    aggregate_layer<kScore>(r, grid.n_x, log_sums);
  } else {
    aggregate<kScore>(w, list, grid.n_x, log_sums);
  }
  sync_threads();  // all have written: thread 0 passes that on
  if (threadIdx.x == 0) {
    s.is_last = atomic_add_ordered(w.arrivals + list * w.arrival_stride, 1u) == grid.n_x - 1;
  }
  sync_threads();
  if (s.is_last == 0) return;

  // ---- the best k, by the last block
  float* maxima = w.maxima + list * w.stride;
  PieceRow row{};
  row.scores = w.scores + list * w.group * w.stride;
  row.maxima = maxima;
  row.n = w.n;
  row.k = w.k;
  row.listed = reinterpret_cast<int32_t*>(maxima + (row.n_pieces() + 3) / 4 * 4);
  row.binning = kLayer || kScore == GroupScore::kMean ? Binning::kWeight : Binning::kLog2;
  const int64_t n_lists = kLayer ? r.n_kv_heads : 1;
  const auto emit = [&](uint32_t i, int32_t index) {
    const int32_t id = r.keeps_positions ? index : r.map.chunk_at(list, index);
    for (int64_t j = 0; j < n_lists; ++j) w.ids[(list + j) * w.id_stride + i] = id;
  };
  const int32_t n = choose_best(
      row, s.pieces, [](int32_t) {}, emit);
  if (threadIdx.x < n_lists) w.counts[list + threadIdx.x] = n;
}
template <GroupScore kScore, SelectScope kScope>
struct SelectRefinedGroup : JointKernel<RefinedWork, kPieceThreads, 1> {
  GPU static void run(const RefinedWork& r, const JointGrid& grid) {
    select_refined_group<kScore, kScope>(r, grid);
  }
};

// ---- nothing to choose --------------------------------------------------------------------------

struct EmptyListsParams {
  int32_t* counts;          // [n_kv_heads]
  int32_t* dropped_counts;  // likewise, or null
  const int32_t* keep;
  int32_t n_kv_heads;
};

inline constexpr int kEmptyThreads = 64;

// One block.
GPU void empty_lists(const EmptyListsParams& p) {
  gpu::begin_dependent();
  if (is_kept(p.keep)) return;
  for (int32_t j = static_cast<int32_t>(threadIdx.x); j < p.n_kv_heads; j += kEmptyThreads) {
    p.counts[j] = 0;
    if (p.dropped_counts != nullptr) p.dropped_counts[j] = 0;
  }
}
struct EmptyLists : JointKernel<EmptyListsParams, kEmptyThreads, 1> {
  GPU static void run(const EmptyListsParams& p, const JointGrid&) { empty_lists(p); }
};

}  // namespace tiercel::cuda
