// What becomes of a selection's best k: by weight (top_p), then by what has no slot (max_misses).
//
// Both rules cut a list that is sorted by score, and nothing is sorted for it: a histogram finds
// the bin where the cut lies, digits of the scores in that bin find the score, and equal ones go by
// their place. Sums of weights are integers, of units of 2^-46: the same for any order of threads.
//
//   ids before   positions, ascending
//   ids after    chunks, ascending; dropped ids: those of max_misses, ascending
#pragma once

#include "kernels/chunk_map.cuh"
#include "kernels/gpu.cuh"
#include "kernels/joint_launch.cuh"
#include "kernels/score_any.cuh"
#include "kernels/top_k_pieces.cuh"

namespace tiercel::cuda {

inline constexpr float kWeightUnits = 0x1p46f;  // in a weight of 1

struct TrimParams {
  const float* scores;  // by position: of KV head j at j * score_stride
  int64_t score_stride;
  ChunkMap map;
  const int32_t* keep;
  Binning binning;
  uint64_t least_weight;         // in units; 0: no top_p
  int64_t max_misses;            // -1: no limit
  const int32_t* slot_of_chunk;  // of KV head j at j * slot_stride
  int64_t slot_stride;
  int32_t* ids;  // [n_kv_heads][id_stride]
  int32_t* counts;
  int64_t id_stride;
  int32_t* dropped_ids;  // likewise
  int32_t* dropped_counts;
};

inline constexpr int kTrimCached = 4096;  // scores of a list in shared memory

struct TrimShared {
  PieceShared pieces;
  uint32_t low[kBins], high[kBins];  // weights of bins
  uint64_t of_warps[kPieceWarps];
  uint64_t above;
  uint32_t bin;
  float scores[kTrimCached];
};

// The scores of a list, -inf for those that do not count: the first ones are in shared memory.
template <typename Load>
struct TrimRow {
  int32_t n;
  const float* cached;
  Load load;

  GPU float at(int32_t i) const { return i < kTrimCached ? cached[i] : load(i); }
  template <typename Visit>
  GPU void visit_scores(Visit visit_score) const {
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n; i += kPieceThreads) {
      visit_score(at(i));
    }
  }
};

template <typename Load>
GPU TrimRow<Load> trim_row(int32_t n, float* cached, Load load) {
  const int32_t n_cached = n < kTrimCached ? n : kTrimCached;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n_cached; i += kPieceThreads) {
    cached[i] = load(i);
  }
  gpu::sync_threads();
  return {n, cached, load};
}

// ---- the cut of top_p ---------------------------------------------------------------------------

GPU uint64_t units_of(float weight) { return static_cast<uint64_t>(weight * kWeightUnits); }

// Adds to a bin, in two halves: 64-bit additions in shared memory are loops.
GPU void add_weight(TrimShared& s, uint32_t bin, uint64_t units) {
  const uint32_t low = static_cast<uint32_t>(units);
  const uint32_t before = gpu::atomic_add(s.low + bin, low);
  const uint32_t high = static_cast<uint32_t>(units >> 32) + (before + low < before ? 1 : 0);
  if (high != 0) gpu::atomic_add(s.high + bin, high);
}

GPU void clear_weights(TrimShared& s) {
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kPieceThreads)
    s.low[i] = s.high[i] = 0;
  gpu::sync_threads();
}

// The first bin with which the bins up to it weigh `least`: to s, with the weight of those before.
// False if all are less.
GPU bool find_weight(TrimShared& s, uint64_t least) {
  gpu::sync_threads();  // all have added
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  uint64_t of_four[4], sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int bin = static_cast<int>(threadIdx.x) * 4 + i;
    of_four[i] = uint64_t{s.high[bin]} << 32 | s.low[bin];
    sum += of_four[i];
  }
  uint64_t until = sum;
  for (int delta = 1; delta < 32; delta *= 2) {
    const uint32_t low = gpu::shuffle_up(static_cast<uint32_t>(until), delta);
    const uint32_t high = gpu::shuffle_up(static_cast<uint32_t>(until >> 32), delta);
    if (lane >= delta) until += uint64_t{high} << 32 | low;
  }
  if (lane == 31) s.of_warps[warp] = until;
  gpu::sync_threads();
  uint64_t before = until - sum, total = 0;
  for (int i = 0; i < kPieceWarps; ++i) {
    if (i < warp) before += s.of_warps[i];
    total += s.of_warps[i];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (before < least && least <= before + of_four[i]) {
      s.bin = threadIdx.x * 4 + i;
      s.above = before;
    }
    before += of_four[i];
  }
  gpu::sync_threads();
  return total >= least;
}

inline constexpr Threshold kTakeAll{0, 0, 0};

// The best of a row that together weigh `least`, or all of them.
template <typename Row>
GPU Threshold find_weight_threshold(const Row& row, uint64_t least, Binning binning,
                                    TrimShared& s) {
  clear_weights(s);
  row.visit_scores([&](float score) {
    add_weight(s, static_cast<uint32_t>(bin_of(score, binning)), units_of(score));
  });
  if (!find_weight(s, least)) return kTakeAll;
  const int bin = static_cast<int>(s.bin);
  uint64_t left = least - s.above;
  uint32_t key = 0;
  for (int digit = 0; digit < 3; ++digit) {  // as rank_digits
    const int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
    const uint32_t last = digit == 2 ? 1023u : 2047u;
    const uint32_t known = digit == 0 ? 0u : ~0u << (digit == 1 ? 21 : 10);
    gpu::sync_threads();  // everyone has read bin and above
    clear_weights(s);
    row.visit_scores([&](float score) {
      if (bin_of(score, binning) != bin) return;
      const uint32_t other = ordered(score);
      if (((other ^ key) & known) != 0) return;
      add_weight(s, last - (other >> shift & last), units_of(score));
    });
    find_weight(s, left);  // it is there
    key |= (last - s.bin) << shift;
    left -= s.above;
  }
  // Weights are positive, so their keys are their bits with the sign turned.
  const uint64_t units = units_of(gpu::bits_to_float(key & 0x7fffffffu));
  return {key, static_cast<uint32_t>((left + units - 1) / units), 0};
}

// ---- the cut of max_misses ----------------------------------------------------------------------

// The best max_misses of a row in which hits do not count, or all of them.
template <typename Row>
GPU Threshold find_miss_threshold(const Row& row, int64_t max_misses, Binning binning,
                                  PieceShared& s) {
  if (max_misses >= row.n) return kTakeAll;
  if (max_misses == 0) return {~0u, 0, 0};
  PieceRow wanted{};
  wanted.k = static_cast<int32_t>(max_misses);
  wanted.binning = binning;
  return find_threshold(wanted, row, kBins - 1, s);
}

// ---- the list -----------------------------------------------------------------------------------

// Entries 0 .. n - 1 in their order: emit(i, at) for those that stay, drop(i, at) for the others.
// Entry i stays if its score beats the threshold, or equals it and is among the first n_equal of
// those, or does not count. Returns how many stay. emit may write what was entry `at`, as entries
// up to i have been read: with fetch(i), whose result it gets.
template <typename Row, typename Fetch, typename Emit, typename Drop>
GPU int32_t split_list(const Row& row, const Threshold& t, TrimShared& s, Fetch fetch, Emit emit,
                       Drop drop) {
  uint32_t n_above = 0, n_equal = 0;
  for (int32_t strip = 0; strip < row.n; strip += kPieceThreads) {
    const int32_t i = strip + static_cast<int32_t>(threadIdx.x);
    const bool is_inside = i < row.n;
    const float score = is_inside ? row.at(i) : -gpu::kInf;
    const int32_t entry = is_inside ? fetch(i) : 0;
    const bool is_above = is_inside && (score == -gpu::kInf || ordered(score) > t.key);
    const bool is_equal = is_inside && !is_above && ordered(score) == t.key;
    uint32_t total;  // half words
    const uint32_t before = threads_before<kPieceThreads>(
        uint32_t{is_above} | uint32_t{is_equal} << 16, s.pieces.sums[0], total);
    const uint32_t above = n_above + (before & 0xffff), equal = n_equal + (before >> 16);
    const uint32_t at = above + (equal < t.n_equal ? equal : t.n_equal);
    if (is_above || (is_equal && equal < t.n_equal)) {
      emit(entry, at);
    } else if (is_inside) {
      drop(entry, static_cast<uint32_t>(i) - at);
    }
    n_above += total & 0xffff;
    n_equal += total >> 16;
    gpu::sync_threads();  // sums are free again
  }
  return static_cast<int32_t>(n_above + (n_equal < t.n_equal ? n_equal : t.n_equal));
}

// One block per KV head.
GPU void trim_selection(const TrimParams& p) {
  SHARED(smem);
  TrimShared& s = *reinterpret_cast<TrimShared*>(smem);
  gpu::begin_dependent();
  if (is_kept(p.keep)) return;
  const int64_t j = blockIdx.x;
  const float* scores = p.scores + j * p.score_stride;
  int32_t* ids = p.ids + j * p.id_stride;
  int32_t n = p.counts[j];
  const auto id_at = [&](int32_t i) { return ids[i]; };
  const auto chunk_of = [&](int32_t position) { return p.map.chunk_at(j, position); };
  reinterpret_cast<uint4*>(s.pieces.bins)[threadIdx.x] = uint4{0, 0, 0, 0};
  if (p.counts[j] == 0 && p.max_misses < 0) return;

  // ---- as much weight as is wanted
  if (p.least_weight != 0) {
    const auto row = trim_row(n, s.scores, [&](int32_t i) { return scores[ids[i]]; });
    const Threshold t = find_weight_threshold(row, p.least_weight, p.binning, s);
    const bool is_last = p.max_misses < 0;
    n = split_list(
        row, t, s, id_at,
        [&](int32_t position, uint32_t at) { ids[at] = is_last ? chunk_of(position) : position; },
        [](int32_t, uint32_t) {});
    if (threadIdx.x == 0) p.counts[j] = n;
    if (is_last) return;
  }

  // ---- no more misses than may be
  const int32_t* slots = p.slot_of_chunk + j * p.slot_stride;
  const auto row = trim_row(n, s.scores, [&](int32_t i) {
    const int32_t position = ids[i];
    return slots[chunk_of(position)] < 0 ? scores[position] : -gpu::kInf;
  });
  const Threshold t = find_miss_threshold(row, p.max_misses, p.binning, s.pieces);
  int32_t* dropped = p.dropped_ids + j * p.id_stride;
  const int32_t n_kept = split_list(
      row, t, s, id_at, [&](int32_t position, uint32_t at) { ids[at] = chunk_of(position); },
      [&](int32_t position, uint32_t at) { dropped[at] = chunk_of(position); });
  if (threadIdx.x == 0) {
    p.counts[j] = n_kept;
    p.dropped_counts[j] = n - n_kept;
  }
}
struct TrimSelection : JointKernel<TrimParams, kPieceThreads, 1> {
  GPU static void run(const TrimParams& p, const JointGrid&) { trim_selection(p); }
};

}  // namespace tiercel::cuda
