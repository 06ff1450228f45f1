// The inner loops of selection, written once as templates on a Vector (vector_*.h); each
// select_<level>.cpp instantiates them. (Scores of one decode step: score_rows in decode_kernel.h.)
//
// Scores are kept finite: clamped to +-kScoreLimit, NaN to -kScoreLimit. -inf is left to mean "no
// candidate", and differences of two scores cannot overflow.
#pragma once

#include <cstdint>

#include "cpu/select_codes.h"

namespace tiercel::cpu {

inline constexpr float kScoreLimit = 0x1p126f;
// Landmarks of one call of score_blocks and scan_blocks: a multiple of every tile's height.
inline constexpr int32_t kPrefillRows = 48;

// n scores of one head, as landmarks gave them, to what is kept of them. All is read and written in
// whole groups of 16; out is -inf behind the n-th.
struct FinishScores {
  const float* scores;
  int64_t n;
  const float* scales;  // [n], of the landmarks, or null
  bool clamped;         // scores are in range, or -inf: kept as they are, scales are null
  float* out;
  float* columns;  // [16], raised to the greatest of out[i], out[i + 16], ..; or null
};

// Scores of some heads over n candidates, to one score per candidate: the greatest log2 weight of
// every max_of heads, and that is all, or share * the sum of their weights.
struct CombineScores {
  const float* scores;  // [n_heads][score_stride]
  int64_t score_stride;
  int32_t n_heads;
  const float* log_sums;  // [n_heads], log2 of the sum of exp2(score); finite
  int32_t max_of;         // divides n_heads; without add: n_heads
  bool add;
  float share;
  int64_t n;   // out is written up to the next multiple of 16
  float* out;  // may be the scores of the first head
};

// Scores of landmarks that lie one behind the other, not clamped, on tiles, where all heads cost as
// much as one: up to 16 of them, or 8 for int8 landmarks, whose queries are two rows of bytes.
struct LandmarkScores {
  const void* landmarks;  // [n][width], bf16 or int8
  int64_t n;
  int32_t width;        // see has_landmark_tiles
  const void* queries;  // [n_heads][width] bf16, or [n_heads][high, low][width] int8
  int32_t n_heads;      // at most landmark_tile_heads
  float scale;          // of bf16
  const float* scales;  // [n_heads], of int8
  float* scores;        // [n_heads][score_stride], written up to the next multiple of 16
  int64_t score_stride;
};
constexpr int32_t landmark_tile_heads(bool coded) { return coded ? 8 : 16; }
constexpr bool has_landmark_tiles(int32_t width, bool coded) {
  return width == 64 || (width == 96 && !coded) || width == 128 || width == 256;
}

// scores[row][query] = (landmark_row . query) * scale, clamped. queries are packed by the level's
// layout: fp32 [head_dim][n_queries], or bf16 [head_dim/2][n_queries][2].
struct PrefillScores {
  const uint16_t* landmarks;  // [n_rows][head_dim]
  int32_t n_rows, head_dim;
  int32_t n_queries;  // a multiple of the level's lanes
  const void* queries;
  float scale;
  float* scores;  // [n_rows][n_queries]
};

// A row in which some of the lanes first_query, first_query + 1, .. exceed their thresholds.
struct PrefillHit {
  int32_t row, first_query;
  uint32_t lanes;
};

// Updates each query's maximum and sum of exp2(score - maximum), and reports scores above
// thresholds.
struct PrefillScan {
  float* scores;  // [n_rows][n_queries]
  int32_t n_rows, n_queries;
  const int32_t* limits;    // [n_queries] rows at or behind it are not candidates; null: all are
  const float* thresholds;  // [n_queries]
  float* max;               // [n_queries] or null: no sums wanted
  float* sum;
  PrefillHit* hits;  // [n_rows * n_queries / lanes] at most
};

struct SelectKernel {
  int32_t lanes;
  bool bf16_query;  // of prefill queries
  // Clamps n scores in place. Reads and writes whole groups of 16.
  void (*clamp_scores)(float* scores, int64_t n);
  // Returns the greatest.
  float (*finish_scores)(const FinishScores&);
  // Adds n scores to (max, sum of exp2(score - max)). -inf adds nothing; max may be -inf before.
  void (*sum_scores)(const float* scores, int64_t n, float* max, float* sum);
  // The same, their maximum known.
  void (*sum_below)(float top, const float* scores, int64_t n, float* max, float* sum);
  // columns[i % 16] = max(columns[i % 16], scores[i]) for n (a multiple of 16) scores.
  void (*fold_max)(const float* scores, int64_t n, float* columns);
  void (*combine_scores)(const CombineScores&);
  // Indices of scores above the threshold, ascending, into found (room for n + 16); their number.
  int64_t (*collect_above)(const float* scores, int64_t n, float threshold, int32_t* found);
  void (*score_blocks)(const PrefillScores&);
  int64_t (*scan_blocks)(const PrefillScan&);
  bool byte_query;  // the layout of score_codes' queries
  // Scores of int8 landmarks, but for the landmarks' scales; those multiply n scores in place,
  // which clamps them too. Reads and writes whole groups of 16.
  void (*score_codes)(const CodeRows&);
  void (*scale_scores)(const float* scales, int64_t n, float* scores);
  // Where the level has tiles.
  void (*score_landmarks)(const LandmarkScores&) = nullptr;
  void (*score_coded_landmarks)(const LandmarkScores&) = nullptr;
};
extern const SelectKernel kSelectPortable, kSelectAvx2, kSelectAvx512, kSelectAvx512Vnni,
    kSelectAvx512Bf16, kSelectAmx;
// kSelectAmx with tiles in plain memory, for tests on machines without AMX.
extern const SelectKernel kSelectAmxEmulated;

namespace {

template <class V>
typename V::F clamp_score(typename V::F x) {
  // max returns its second operand for NaN.
  return V::min(V::max(x, V::set1(-kScoreLimit)), V::set1(kScoreLimit));
}

template <class V>
void clamp_scores(float* scores, int64_t n) {
  for (int64_t i = 0; i < n; i += V::kLanes) {
    V::store(scores + i, clamp_score<V>(V::load(scores + i)));
  }
}

template <class V>
void scale_scores(const float* scales, int64_t n, float* scores) {
  for (int64_t i = 0; i < n; i += V::kLanes) {
    V::store(scores + i, clamp_score<V>(V::mul(V::load(scores + i), V::load(scales + i))));
  }
}

template <class V, bool kScaled, bool kClamped>
float finish_scores(const FinishScores& p) {
  constexpr int L = V::kLanes, kVectors = 16 / L;
  const typename V::F none = V::set1(-__builtin_inff());
  typename V::F columns[kVectors], top = none;
  for (int v = 0; v < kVectors; ++v)
    columns[v] = p.columns != nullptr ? V::load(p.columns + v * L) : none;
  const auto finish = [&](const float* scores, int64_t i, int v) {
    typename V::F s = V::load(scores + v * L);
    if constexpr (kScaled) s = V::mul(s, V::load(p.scales + i + v * L));
    if constexpr (!kClamped) s = clamp_score<V>(s);
    return s;
  };
  const auto keep = [&](typename V::F s, int64_t i, int v) {
    V::store(p.out + i + v * L, s);
    columns[v] = V::max(s, columns[v]);
    top = V::max(s, top);
  };
  const int64_t n_whole = p.n / 16 * 16;
  for (int64_t i = 0; i < n_whole; i += 16) {
    for (int v = 0; v < kVectors; ++v) keep(finish(p.scores + i, i, v), i, v);
  }
  if (n_whole < p.n) {
    alignas(64) float rest[16];
    for (int v = 0; v < kVectors; ++v)
      V::store(rest + v * L, finish(p.scores + n_whole, n_whole, v));
    for (int64_t i = p.n - n_whole; i < 16; ++i) rest[i] = -__builtin_inff();
    for (int v = 0; v < kVectors; ++v) keep(V::load(rest + v * L), n_whole, v);
  }
  for (int v = 0; p.columns != nullptr && v < kVectors; ++v)
    V::store(p.columns + v * L, columns[v]);
  return V::maximum(top);
}
template <class V>
float finish_scores(const FinishScores& p) {
  if (p.scales != nullptr) return finish_scores<V, true, false>(p);
  return p.clamped ? finish_scores<V, false, true>(p) : finish_scores<V, false, false>(p);
}

template <class V>
void sum_below(float top, const float* scores, int64_t n, float* max, float* sum) {
  constexpr int L = V::kLanes;
  const int64_t n_whole = n / L * L;
  alignas(64) float rest[L];
  for (int i = 0; i < L; ++i) rest[i] = n_whole + i < n ? scores[n_whole + i] : -__builtin_inff();
  top = *max > top ? *max : top;
  const typename V::F reference = V::set1(top == -__builtin_inff() ? 0.0f : top);

  typename V::F total0 = V::exp2(V::sub(V::load(rest), reference)), total1 = V::zero();
  int64_t i = 0;
  for (; i + 2 * L <= n_whole; i += 2 * L) {
    total0 = V::add(total0, V::exp2(V::sub(V::load(scores + i), reference)));
    total1 = V::add(total1, V::exp2(V::sub(V::load(scores + i + L), reference)));
  }
  if (i < n_whole) total0 = V::add(total0, V::exp2(V::sub(V::load(scores + i), reference)));
  alignas(64) float factor[L];
  V::store(factor, V::exp2(V::sub(V::set1(*max), reference)));
  *sum = *sum * factor[0] + V::sum(V::add(total0, total1));
  *max = top;
}

template <class V>
void sum_scores(const float* scores, int64_t n, float* max, float* sum) {
  constexpr int L = V::kLanes;
  typename V::F top0 = V::set1(-__builtin_inff()), top1 = top0;
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    top0 = V::max(V::load(scores + i), top0);
    top1 = V::max(V::load(scores + i + L), top1);
  }
  float top = V::maximum(V::max(top0, top1));
  for (; i < n; ++i) top = scores[i] > top ? scores[i] : top;
  sum_below<V>(top, scores, n, max, sum);
}

template <class V>
void fold_max(const float* scores, int64_t n, float* columns) {
  constexpr int kVectors = 16 / V::kLanes;
  typename V::F top[kVectors];
  for (int v = 0; v < kVectors; ++v) top[v] = V::load(columns + v * V::kLanes);
  for (int64_t i = 0; i < n; i += 16) {
    for (int v = 0; v < kVectors; ++v) {
      top[v] = V::max(V::load(scores + i + v * V::kLanes), top[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) V::store(columns + v * V::kLanes, top[v]);
}

template <class V>
void combine_scores(const CombineScores& p) {
  const typename V::F none = V::set1(-__builtin_inff());
  const typename V::F share = V::set1(p.share);
  for (int64_t i = 0; i < p.n; i += V::kLanes) {
    typename V::F all = V::zero(), top = none;
    for (int32_t h = 0; h < p.n_heads; h += p.max_of) {
      top = none;
      for (int32_t m = h; m < h + p.max_of; ++m) {
        const typename V::F s = V::load(p.scores + m * p.score_stride + i);
        top = V::max(V::sub(s, V::set1(p.log_sums[m])), top);
      }
      if (p.add) all = V::add(all, V::exp2(top));
    }
    // -inf in one head is -inf in all: no candidate.
    V::store(p.out + i, p.add ? V::where_greater(top, none, V::mul(all, share), none) : top);
  }
}

template <class V>
int64_t collect_above(const float* scores, int64_t n, float threshold, int32_t* found) {
  const typename V::F bar = V::set1(threshold);
  int64_t count = 0;
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) {
    uint32_t above = V::greater(V::load(scores + i), bar);
    while (above != 0) {
      found[count++] = static_cast<int32_t>(i) + __builtin_ctz(above);
      above &= above - 1;
    }
  }
  for (; i < n; ++i) {
    if (scores[i] > threshold) found[count++] = static_cast<int32_t>(i);
  }
  return count;
}

// kRows landmarks (broadcast, two elements at a time) times kVectors vectors of queries.
template <class V, int kRows, int kVectors>
void score_block_tile(const PrefillScores& p, int32_t row, int32_t query) {
  typename V::F acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) acc[r][v] = V::zero();
  }
  const uint16_t* landmarks = p.landmarks + int64_t{row} * p.head_dim;
  for (int32_t i = 0; i < p.head_dim; i += 2) {
    const typename V::QueryPair queries(p.queries, p.n_queries, i, query);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const typename V::BroadcastPair x(landmarks + r * p.head_dim + i);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[r][v] = queries.dot(v, x, acc[r][v]);
    }
  }
  const typename V::F scale = V::set1(p.scale);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* scores = p.scores + int64_t{row + r} * p.n_queries + query;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      V::store(scores + v * V::kLanes, clamp_score<V>(V::mul(acc[r][v], scale)));
    }
  }
}

template <class V, int kRows, int kVectors>
void score_block_column(const PrefillScores& p, int32_t query) {
  int32_t row = 0;
  for (; row + kRows <= p.n_rows; row += kRows) score_block_tile<V, kRows, kVectors>(p, row, query);
  for (; row < p.n_rows; ++row) score_block_tile<V, 1, kVectors>(p, row, query);
}

// Three quarters of the registers are accumulators.
template <class V>
void score_blocks(const PrefillScores& p) {
  constexpr int kTile = V::kRegisters * 3 / 4;
  int32_t query = 0;
  for (; query + 4 * V::kLanes <= p.n_queries; query += 4 * V::kLanes) {
    score_block_column<V, kTile / 4, 4>(p, query);
  }
  for (; query + 2 * V::kLanes <= p.n_queries; query += 2 * V::kLanes) {
    score_block_column<V, kTile / 2, 2>(p, query);
  }
  for (; query < p.n_queries; query += V::kLanes) score_block_column<V, kTile / 2, 1>(p, query);
}

template <class V, bool kLimited>
int64_t scan_block_lanes(const PrefillScan& p, int32_t query, int64_t n_hits) {
  typename V::F top = V::zero(), reference = V::zero(), sum = V::zero();
  if (kLimited || p.max != nullptr) {
    if (p.max != nullptr) top = V::load(p.max + query);
    const typename V::F before = top;
    for (int32_t row = 0; row < p.n_rows; ++row) {
      float* scores = p.scores + int64_t{row} * p.n_queries + query;
      typename V::F s = V::load(scores);
      if constexpr (kLimited) {
        s = V::keep_below(s, row, p.limits + query);
        V::store(scores, s);
      }
      top = V::max(s, top);
    }
    if (p.max != nullptr) {
      // Finite even where there has been no candidate yet.
      reference = V::max(top, V::set1(-2 * kScoreLimit));
      sum = V::mul(V::load(p.sum + query), V::exp2(V::sub(before, reference)));
    }
  }
  const typename V::F bar = V::load(p.thresholds + query);
  for (int32_t row = 0; row < p.n_rows; ++row) {
    const typename V::F s = V::load(p.scores + int64_t{row} * p.n_queries + query);
    const uint32_t lanes = V::greater(s, bar);
    p.hits[n_hits] = {row, query, lanes};
    n_hits += lanes != 0;
    if (p.max != nullptr) sum = V::add(sum, V::exp2(V::sub(s, reference)));
  }
  if (p.max != nullptr) {
    V::store(p.max + query, top);
    V::store(p.sum + query, sum);
  }
  return n_hits;
}

template <class V>
int64_t scan_blocks(const PrefillScan& p) {
  int64_t n_hits = 0;
  for (int32_t query = 0; query < p.n_queries; query += V::kLanes) {
    n_hits = p.limits != nullptr ? scan_block_lanes<V, true>(p, query, n_hits)
                                 : scan_block_lanes<V, false>(p, query, n_hits);
  }
  return n_hits;
}

template <class V>
constexpr SelectKernel kSelectKernel = {
    V::kLanes,      V::kBf16Query, clamp_scores<V>,   finish_scores<V>, sum_scores<V>,
    sum_below<V>,   fold_max<V>,   combine_scores<V>, collect_above<V>, score_blocks<V>,
    scan_blocks<V>, V::kByteQuery, score_codes<V>,    scale_scores<V>};

}  // namespace
}  // namespace tiercel::cpu
