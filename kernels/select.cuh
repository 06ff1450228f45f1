// Selection after scoring: one score per chunk over a group of heads, then the best k.
//
// Many blocks aggregate and leave the maximum of every 16 scores; the last of a KV head's blocks
// finds the best k of its row from these, and maps them to slots.
#pragma once

#include <limits>

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/joint_launch.cuh"
#include "kernels/score.cuh"
#include "kernels/score_parts.h"
#include "kernels/slots.cuh"
#include "kernels/top_k.cuh"
#include "kernels/top_k_pieces.cuh"

namespace tiercel::cuda {

inline constexpr int kGroupPositions = kPieceThreads * 4;  // of one block
inline constexpr int64_t kPartFloats = 4096;  // per query head, behind scores: sums, then arrivals
inline constexpr int32_t kMaxSplits = 512;
static_assert(2 * kMaxSplits + 1 <= kPartFloats);

// SelectParams::workspace and what all kernels of a selection know. The group's scores take the
// place of its first head's.
struct SelectWork {
  float* scores;       // [n_heads][stride]
  float* maxima;       // [n_kv_heads][stride], of pieces; then room for a list of pieces
  ScoreSum* sums;      // [n_heads], sum_stride apart: one per split
  uint32_t* arrivals;  // [n_kv_heads], arrival_stride apart: zeroed by scoring
  int64_t stride, sum_stride, arrival_stride;
  int64_t origin;  // chunk of position 0
  int32_t n, n_splits;
  int32_t group, k;
  int32_t* ids;  // [n_kv_heads][id_stride]
  int32_t* counts;
  int64_t id_stride;
  MapSlotsParams map;  // used by kernels that also map
};

inline void check_selection(const SelectParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.first_chunk >= 0 && p.k >= 0, "first chunk {}, k {}", p.first_chunk, p.k);
  CHECK(p.end_chunk <= std::numeric_limits<int32_t>::max() - kGroupPositions, "{} chunks",
        p.end_chunk);
}

// width: of what is read of a landmark, in bf16.
inline ScoreParts score_parts(const SelectParams& p, int64_t origin, int64_t n_positions,
                              int32_t width) {
  const int32_t group = p.n_heads / p.n_kv_heads;
  return cut_by_view(p.views, p.chunk_tokens, origin, n_positions, kMaxSplits,
                     [&](int64_t n, int32_t most) {
                       return score_splits(n, width, p.n_kv_heads, group, 1, most);
                     });
}

// Where things are in the workspace. A row of scores has room for a lead of up to 7 positions and
// for the rest of the last octet; rows are multiples of 8 floats. n_positions, and of them
// n_candidates compete. width: of what is read of a landmark, in bf16.
inline SelectWork lay_out(const SelectParams& p, int64_t origin, int64_t n_positions,
                          int64_t n_candidates, int32_t width) {
  const int64_t room = n_candidates + 64;
  CHECK(reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0);
  float* parts = p.workspace + (int64_t{p.n_heads} + p.n_kv_heads) * room / 4 * 4;
  SelectWork w{};
  w.stride = room / 8 * 8;
  w.scores = p.workspace;
  w.maxima = p.workspace + p.n_heads * w.stride;
  w.sums = reinterpret_cast<ScoreSum*>(parts);
  w.sum_stride = kPartFloats / 2;
  w.arrivals = reinterpret_cast<uint32_t*>(parts + 2 * kMaxSplits);
  w.origin = origin;
  w.n = static_cast<int32_t>(n_positions);
  w.group = p.n_heads / p.n_kv_heads;
  w.arrival_stride = w.group * kPartFloats;
  w.n_splits = score_parts(p, origin, n_positions, width).n_splits;
  w.k = static_cast<int32_t>(p.k < n_candidates ? p.k : n_candidates);
  w.ids = p.ids;
  w.counts = p.counts;
  w.id_stride = p.k;
  return w;
}

// What scoring needs for it.
inline ScoreParams score_params(const SelectParams& p, const SelectWork& w) {
  ScoreParams s{};
  s.queries = p.q;
  s.landmarks = p.landmarks;
  s.landmark_head_stride = p.landmark_head_stride;
  s.origin = w.origin;
  s.lead = static_cast<int32_t>(p.first_chunk - w.origin);
  s.n = w.n;
  s.n_rows = w.group;
  s.n_splits = s.n_sums = w.n_splits;
  s.head_dim = p.head_dim;
  s.scale = p.scale * gpu::kLog2e;
  s.sums = w.sums;
  s.sum_stride = w.sum_stride;
  s.scores = w.scores;
  s.score_stride = w.stride;
  s.excluded = reinterpret_cast<const uint8_t*>(p.excluded);
  s.excluded_stride = p.excluded_stride * 8;
  s.arrivals = w.arrivals;
  s.arrival_stride = w.arrival_stride;
  s.n_kv_heads = p.n_kv_heads;
  return s;
}

// log_sums[h] of the heads of a group, by the block's warps.
GPU void group_log_sums(const SelectWork& w, int64_t kv_head, float* log_sums) {
  for (int h = static_cast<int>(threadIdx.x) / 32; h < w.group; h += kPieceWarps) {
    const float sum = log_sum(w.sums + (kv_head * w.group + h) * w.sum_stride, w.n_splits);
    if (threadIdx.x % 32 == 0) log_sums[h] = sum;
  }
  gpu::sync_threads();
}

inline constexpr int kHeadsAtOnce = 4;

GPU void load_heads(const SelectWork& w, const float* scores, int first_head,
                    float4 (&v)[kHeadsAtOnce]) {
#pragma unroll
  for (int i = 0; i < kHeadsAtOnce; ++i) {
    if (first_head + i >= w.group) break;
    v[i] = *reinterpret_cast<const float4*>(scores + (first_head + i) * w.stride);
  }
}

// The group's scores at four positions; max: log2 of the largest weight, mean: the mean weight. v:
// the first heads' scores, loaded before.
template <GroupScore kScore>
GPU float4 group_scores(const SelectWork& w, const float* scores, const float* log_sums,
                        float4 (&v)[kHeadsAtOnce]) {
  using namespace gpu;
  constexpr bool kMean = kScore == GroupScore::kMean;
  const float empty = kMean ? 0.0f : -kInf;
  float all[4] = {empty, empty, empty, empty};
  bool is_live[4] = {};
  for (int first = 0; first < w.group; first += kHeadsAtOnce) {
    if (first > 0) load_heads(w, scores, first, v);
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce; ++i) {
      if (first + i >= w.group) break;
      const float of_head[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = of_head[e] - log_sums[first + i];
        is_live[e] = of_head[e] > -kInf;
        all[e] = kMean ? all[e] + exp2_fast(x) : fmaxf(all[e], x);
      }
    }
  }
  if constexpr (kMean) {
    const float share = 1.0f / static_cast<float>(w.group);
#pragma unroll
    for (int e = 0; e < 4; ++e) all[e] = is_live[e] ? all[e] * share : -kInf;
  }
  return float4{all[0], all[1], all[2], all[3]};
}

// The group's scores and their maxima, all that is this block's: four positions of each thread at a
// time, while the next are on their way.
template <GroupScore kScore>
GPU void aggregate(const SelectWork& w, int64_t kv_head, unsigned n_blocks, float* log_sums) {
  using namespace gpu;
  const int64_t step = int64_t{n_blocks} * kGroupPositions;
  const int32_t n_maxima = (w.n + 4 * kPiece - 1) / (4 * kPiece) * 4;
  float* scores = w.scores + kv_head * w.group * w.stride;
  float* maxima = w.maxima + kv_head * w.stride;
  int64_t begin = int64_t{blockIdx.x} * kGroupPositions;
  float4 v[kHeadsAtOnce], next[kHeadsAtOnce] = {};
  // Scoring wrote whole octets: four positions are in or out.
  if (begin + threadIdx.x * 4 < w.n) load_heads(w, scores + begin + threadIdx.x * 4, 0, v);
  group_log_sums(w, kv_head, log_sums);
  for (; begin < w.n; begin += step) {
    const int64_t position = begin + threadIdx.x * 4;
    if (position + step < w.n) load_heads(w, scores + position + step, 0, next);
    float4 score{-kInf, -kInf, -kInf, -kInf};
    if (position < w.n) score = group_scores<kScore>(w, scores + position, log_sums, v);
    if (position < w.n) *reinterpret_cast<float4*>(scores + position) = score;
    const float top = piece_maximum(score);
    if (threadIdx.x % 4 == 0 && position / kPiece < n_maxima) maxima[position / kPiece] = top;
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce; ++i) v[i] = next[i];
  }
}

struct GroupShared {
  PieceShared pieces;
  MapShared map;
  int32_t ids[kListed];
  uint32_t is_last;
};

// What the slot map will read, on its way to L2.
GPU void prefetch_slots(const MapSlotsParams& map, int64_t kv_head) {
  constexpr int64_t kLine = 32;  // slots
  const int64_t slot = static_cast<int64_t>(threadIdx.x) * kLine;
  if (slot >= map.state.n_slots) return;
  gpu::prefetch_line(map.state.order + kv_head * map.state.n_slots + slot);
  gpu::prefetch_line(map.state.chunk_of_slot + kv_head * map.state.n_slots + slot);
}

// The best k of a KV head whose scores are complete: to ids and, the first kListed of them, to
// shared memory. Returns how many.
template <bool kMap, GroupScore kScore>
GPU int32_t choose_chunks(const SelectWork& w, int64_t kv_head, GroupShared& s) {
  float* maxima = w.maxima + kv_head * w.stride;
  PieceRow row{};
  row.scores = w.scores + kv_head * w.group * w.stride;
  row.maxima = maxima;
  row.n = w.n;
  row.k = w.k;
  row.listed = reinterpret_cast<int32_t*>(maxima + (row.n_pieces() + 3) / 4 * 4);
  row.binning = kScore == GroupScore::kMean ? Binning::kWeight : Binning::kLog2;
  const int32_t origin = static_cast<int32_t>(w.origin);
  const int32_t* slots = w.map.state.slot_of_chunk + kv_head * w.map.state.chunk_capacity + origin;
  int32_t* ids = w.ids + kv_head * w.id_stride;
  const auto touch = [&](int32_t index) {
    if (kMap && index < w.n) gpu::prefetch_line(slots + index);  // will be looked up if chosen
  };
  const auto emit = [&](uint32_t i, int32_t index) {
    ids[i] = origin + index;
    if (kMap && i < kListed) s.ids[i] = origin + index;
  };
  return choose_best(row, s.pieces, touch, emit);
}

// Grid: (up to ceil(n / kGroupPositions), n_kv_heads). Shared memory: GroupShared, log sums
// [group].
template <bool kMap, GroupScore kScore>
GPU void select_group(const SelectWork& w, const JointGrid& grid) {
  using namespace gpu;
  SHARED(smem);
  GroupShared& s = *reinterpret_cast<GroupShared*>(smem);
  float* log_sums = reinterpret_cast<float*>(smem + sizeof(GroupShared));
  const int64_t kv_head = blockIdx.y;
  reinterpret_cast<uint4*>(s.pieces.bins)[threadIdx.x] = uint4{0, 0, 0, 0};
  if (kMap && blockIdx.x == 0) prefetch_slots(w.map, kv_head);
  begin_dependent();

  // ---- scores of the group
  aggregate<kScore>(w, kv_head, grid.n_x, log_sums);
  sync_threads();  // all have written: thread 0 passes that on
  if (threadIdx.x == 0) {
    s.is_last = atomic_add_ordered(w.arrivals + kv_head * w.arrival_stride, 1u) == grid.n_x - 1;
  }
  sync_threads();
  if (s.is_last == 0) return;

  // ---- the best k, and their slots
  OrderItems items;
  if constexpr (kMap) items = begin_map<kPieceThreads>(w.map, kv_head, s.map);
  const int32_t n = choose_chunks<kMap, kScore>(w, kv_head, s);
  if (threadIdx.x == 0) w.counts[kv_head] = n;
  if constexpr (kMap) {
    sync_threads();
    finish_map<kPieceThreads>(w.map, kv_head, n <= kListed ? s.ids : w.ids + kv_head * w.id_stride,
                              n, items, s.map);
  }
}

template <bool kMap, GroupScore kScore>
struct SelectGroup : JointKernel<SelectWork, kPieceThreads, 1> {
  GPU static void run(const SelectWork& w, const JointGrid& grid) {
    select_group<kMap, kScore>(w, grid);
  }
};

// ---- everything ---------------------------------------------------------------------------------

struct SelectAllParams {
  const uint64_t* excluded;  // [n_kv_heads][excluded_stride] or null
  int64_t excluded_stride;
  int32_t first, end;
  int32_t* ids;  // [n_kv_heads][id_stride]
  int32_t* counts;
  int64_t id_stride;
  MapSlotsParams map;
  const int32_t* keep;  // [1] or null, where nothing is mapped: as SelectParams has it
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
GPU void select_all(const SelectAllParams& p) {
  using namespace gpu;
  SHARED(smem);
  uint32_t* sums = reinterpret_cast<uint32_t*>(smem);
  begin_dependent();
  if constexpr (!kMap) {
    if (is_kept(p.keep)) return;
  }
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
    map_head<kRankThreads>(p.map, kv_head, ids, static_cast<int32_t>(total),
                           *reinterpret_cast<MapShared*>(smem));
  }
}
template <bool kMap>
struct SelectAll : JointKernel<SelectAllParams, kRankThreads, 1> {
  GPU static void run(const SelectAllParams& p, const JointGrid&) { select_all<kMap>(p); }
};

}  // namespace tiercel::cuda
