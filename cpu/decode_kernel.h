// The inner loops of decode attention, written once as templates on a Vector (vector_*.h); each
// attention_decode_<level>.cpp instantiates them. Scores of rows against the queries of one group
// are also what the landmark scan needs (select.cpp).
//
// A block is up to kDecodeBlock rows anywhere in memory, given by offsets. Its phases:
//   score    s[h][r] = (q_h . k_r) * scale             horizontal sums by a transposing reduction
//   softmax  p = exp2(s - max), running max and sum
//   add      out_h = out_h * 2^(old max - max) + sum_r p[h][r] v_r
// Where keys and values are apart (key_weights, weighted_values) the phases are called one by one.
// All heads of a group use a row while it is in L1. Rows ahead are prefetched by software: a loop
// with this much arithmetic per line gets little help from the hardware's prefetcher.
#pragma once

#include <cstdint>

namespace tiercel::cpu {

inline constexpr int32_t kDecodeBlock = 64;    // rows of one call
inline constexpr int32_t kMaxHeadTile = 8;     // heads that share a pass over the rows
inline constexpr int32_t kRowsPerReduce = 16;  // rows are padded to a multiple of this

// Scores of n_rows rows: row r is row_base + offsets[r]. offsets has n_rows entries rounded up to a
// multiple of kRowsPerReduce (any valid row fills up), followed by prefetch_rows more.
struct ScoreRows {
  const uint16_t* row_base;
  const int64_t* offsets;
  int32_t n_rows;
  int32_t prefetch_rows;  // how many rows ahead to prefetch; 0: not
  int32_t head_dim;
  int32_t n_heads;      // padded
  const char* queries;  // packed by the level's layout, query_bytes apart
  int64_t query_bytes;
  float scale;
  float* scores;  // [n_heads][score_stride]
  int64_t score_stride;
};

struct DecodeBlock {
  ScoreRows score;  // scores in scratch, kDecodeBlock apart
  const uint16_t* value_base;
  int32_t n_live_heads;  // without padding
  float* max;            // [n_live_heads], in and out
  float* sum;            // [n_live_heads]
  float* out;            // [n_heads][out_stride], even and odd elements split piece by piece
  int64_t out_stride;    // head_dim rounded up to whole pieces
  float* alpha;          // [n_heads] scratch
  const float* bias;     // [n_rows] added to the scores of every head; or null
  // Values ahead are prefetched row after row, not column after column as they are used: 5 to 20 %
  // faster on Zen 4 where no keys are read between.
  bool prefetch_in_rows;
};

// What a level offers. A packed query is one row per head: whole pieces of 2 * lanes elements, as
// fp32 split into even and odd elements, or as the bf16 elements themselves (bf16_query).
struct DecodeKernel {
  int32_t lanes;
  bool bf16_query;
  void (*score_rows)(const ScoreRows&);
  void (*attend_block)(const DecodeBlock&);
  void (*add_values)(const DecodeBlock&);  // the last phase alone: out = out * alpha + scores v
  // n scores (room for whole vectors) with their biases, or null, to bf16 weights relative to their
  // maximum, which is returned.
  float (*weigh_scores)(float* scores, int32_t n, const float* bias, uint16_t* weights);
  // scaled[i] = weights[i] * factor, i < n, and their sum.
  float (*scale_weights)(const uint16_t* weights, int32_t n, float factor, float* scaled);
  // attend_block for all rows of a range, row_stride elements apart, without offsets and bias; what
  // has_plane_tiles. Null where the level has no tiles.
  void (*attend_plane)(const DecodeBlock& range, int64_t row_stride) = nullptr;
};
constexpr bool has_plane_tiles(int32_t n_heads, int32_t head_dim) {
  return n_heads > 4 && n_heads <= 16 &&
         (head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256);
}
extern const DecodeKernel kDecodePortable, kDecodeAvx2, kDecodeAvx512, kDecodeAvx512Bf16, kDecodeAmx;
// kDecodeAmx with tiles in plain memory, for tests on machines without AMX.
extern const DecodeKernel kDecodeAmxEmulated;

namespace {

template <class V>
constexpr int head_tile(int n_heads) {
  const int most = V::kLanes < kMaxHeadTile ? V::kLanes : kMaxHeadTile;
  int tile = most;
  while (tile > n_heads) tile /= 2;
  return tile;
}

// kLanes accumulators: kHeads queries times kRows rows, reduced to one vector of kLanes scores.
template <class V, int kHeads, bool kTail>
void score_tile(const ScoreRows& p, int32_t head, int32_t row, bool prefetch) {
  constexpr int kRows = V::kLanes / kHeads;
  constexpr int kPiece = 2 * V::kLanes;
  typename V::F acc[V::kLanes];
  const uint16_t* rows[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < V::kLanes; ++i) acc[i] = V::zero();
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) rows[r] = p.row_base + p.offsets[row + r];
  const char* queries = p.queries + head * p.query_bytes;
  const uint16_t* ahead[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    ahead[r] = prefetch ? p.row_base + p.offsets[row + r + p.prefetch_rows] : rows[r];
  }
  const auto prefetch_line = [&](int r, int32_t element) {  // once a line of 32 elements
    if (element % 32 == 0) V::prefetch(ahead[r] + element);
  };

  const int32_t n_whole = p.head_dim / kPiece;
  for (int32_t piece = 0; piece < n_whole; ++piece) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      prefetch_line(r, piece * kPiece);
      const typename V::Piece k = V::load_piece(rows[r] + piece * kPiece);
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) {
        acc[h * kRows + r] = V::dot(acc[h * kRows + r], k, queries + h * p.query_bytes, piece);
      }
    }
  }
  if constexpr (kTail) {
    const int n = p.head_dim - n_whole * kPiece;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      prefetch_line(r, n_whole * kPiece);
      const typename V::Piece k = V::load_piece(rows[r] + n_whole * kPiece, n);
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) {
        acc[h * kRows + r] = V::dot(acc[h * kRows + r], k, queries + h * p.query_bytes, n_whole);
      }
    }
  }

  alignas(64) float lanes[V::kLanes];
  V::store(lanes, V::mul(V::reduce(acc), V::set1(p.scale)));
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    __builtin_memcpy(p.scores + (head + h) * p.score_stride + row, lanes + h * kRows,
                     kRows * sizeof(float));
  }
}

template <class V, int kHeads>
void score_heads(const ScoreRows& p, int32_t head) {
  constexpr int kRows = V::kLanes / kHeads;
  const bool prefetch = head == 0 && p.prefetch_rows > 0;
  if (p.head_dim % (2 * V::kLanes) == 0) {
    for (int32_t row = 0; row < p.n_rows; row += kRows) {
      score_tile<V, kHeads, false>(p, head, row, prefetch);
    }
  } else {
    for (int32_t row = 0; row < p.n_rows; row += kRows) {
      score_tile<V, kHeads, true>(p, head, row, prefetch);
    }
  }
}

template <class V>
void score_rows(const ScoreRows& p) {
  for (int32_t head = 0; head < p.n_heads;) {
    const int tile = head_tile<V>(p.n_heads - head);
    if constexpr (V::kLanes >= 8) {
      if (tile == 8) score_heads<V, 8>(p, head);
    }
    if (tile == 4) score_heads<V, 4>(p, head);
    if (tile == 2) score_heads<V, 2>(p, head);
    if (tile == 1) score_heads<V, 1>(p, head);
    head += tile;
  }
}

template <class V>
constexpr int32_t whole_vectors(int32_t n) {
  return (n + V::kLanes - 1) / V::kLanes * V::kLanes;
}

// Weights in place of n scores, and their sum. max: of what came before, then of these too. A NaN
// score never becomes the maximum, but its weight is NaN; so is every weight where the maximum is
// +inf. -inf weighs nothing.
template <class V>
typename V::F weigh(float* s, int32_t n, const float* bias, float& max) {
  const int32_t n_padded = whole_vectors<V>(n);
  if (bias != nullptr) {
    for (int32_t i = 0; i < n; ++i) s[i] += bias[i];
  }
  for (int32_t i = n; i < n_padded; ++i) s[i] = -__builtin_inff();

  typename V::F top = V::set1(max);
  for (int32_t i = 0; i < n_padded; i += V::kLanes) top = V::max(V::load(s + i), top);
  max = V::maximum(top);
  const typename V::F reference = V::set1(max == -__builtin_inff() ? 0.0f : max);
  typename V::F total = V::zero();
  for (int32_t i = 0; i < n_padded; i += V::kLanes) {
    const typename V::F weight = V::exp2(V::sub(V::load(s + i), reference));
    V::store(s + i, weight);
    total = V::add(total, weight);
  }
  return total;
}

template <class V>
void softmax_head(const DecodeBlock& b, int32_t head) {
  float max = b.max[head];
  const typename V::F total =
      weigh<V>(b.score.scores + head * kDecodeBlock, b.score.n_rows, b.bias, max);
  const typename V::F reference = V::set1(max == -__builtin_inff() ? 0.0f : max);
  alignas(64) float factor[V::kLanes];
  V::store(factor, V::exp2(V::sub(V::set1(b.max[head]), reference)));
  b.alpha[head] = factor[0];
  b.sum[head] = b.sum[head] * factor[0] + V::sum(total);
  b.max[head] = max;
}

template <class V, int kHeads, int kPieces>
void add_tile(const DecodeBlock& b, int32_t head, int32_t piece, int tail) {
  constexpr int kPiece = 2 * V::kLanes;
  typename V::F acc[kHeads][2 * kPieces];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    const float* out = b.out + (head + h) * b.out_stride + piece * kPiece;
    const typename V::F alpha = V::set1(b.alpha[head + h]);
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kPieces; ++i) {
      acc[h][i] = V::mul(V::load(out + i * V::kLanes), alpha);
    }
  }
  const uint16_t* base = b.value_base + piece * kPiece;
  const float* weights = b.score.scores + head * kDecodeBlock;
  const bool prefetch = head == 0 && b.score.prefetch_rows > 0;
  // All passes together go once through the rows ahead, in either order.
  int32_t ahead_row = b.score.prefetch_rows, ahead_column = piece * kPiece;
  int32_t ahead_step = b.score.head_dim;
  if (b.prefetch_in_rows) {
    ahead_row += ahead_column * b.score.n_rows / b.score.head_dim;
    ahead_column = ahead_column * b.score.n_rows % b.score.head_dim;
    ahead_step = tail == 0 ? kPieces * kPiece : tail;
  }
  for (int32_t row = 0; row < b.score.n_rows; ++row) {
    const uint16_t* value = base + b.score.offsets[row];
    if (prefetch) {
      const uint16_t* ahead = b.value_base + b.score.offsets[ahead_row] + ahead_column;
#pragma GCC unroll 4
      for (int i = 0; i < kPieces * kPiece; i += 32) V::prefetch(ahead + i);
      if ((ahead_column += ahead_step) >= b.score.head_dim) {
        ++ahead_row;
        ahead_column -= b.score.head_dim;
      }
    }
    typename V::F v[2 * kPieces];
#pragma GCC unroll 4
    for (int i = 0; i < kPieces; ++i) {
      if (tail == 0) {
        V::load_pairs(value + i * kPiece, v[2 * i], v[2 * i + 1]);
      } else {
        V::load_pairs(value + i * kPiece, tail, v[2 * i], v[2 * i + 1]);
      }
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const typename V::F weight = V::set1(weights[h * kDecodeBlock + row]);
#pragma GCC unroll 8
      for (int i = 0; i < 2 * kPieces; ++i) acc[h][i] = V::fma(weight, v[i], acc[h][i]);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    float* out = b.out + (head + h) * b.out_stride + piece * kPiece;
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kPieces; ++i) V::store(out + i * V::kLanes, acc[h][i]);
  }
}

// Half the registers are accumulators: kHeads * 2 * kPieces of them.
template <class V, int kHeads>
void add_heads(const DecodeBlock& b, int32_t head) {
  constexpr int kMost = V::kRegisters / 2 / 2 / kHeads;
  constexpr int kPieces = kMost > 4 ? 4 : kMost;
  const int32_t n_whole = b.score.head_dim / (2 * V::kLanes);
  const int tail = b.score.head_dim % (2 * V::kLanes);
  int32_t piece = 0;
  for (; piece + kPieces <= n_whole; piece += kPieces)
    add_tile<V, kHeads, kPieces>(b, head, piece, 0);
  if constexpr (kPieces > 2) {
    for (; piece + 2 <= n_whole; piece += 2) add_tile<V, kHeads, 2>(b, head, piece, 0);
  }
  if constexpr (kPieces > 1) {
    for (; piece < n_whole; ++piece) add_tile<V, kHeads, 1>(b, head, piece, 0);
  }
  if (tail != 0) add_tile<V, kHeads, 1>(b, head, piece, tail);
}

template <class V>
void add_values(const DecodeBlock& b) {
  constexpr int kMost = V::kRegisters / 4 < kMaxHeadTile ? V::kRegisters / 4 : kMaxHeadTile;
  for (int32_t head = 0; head < b.n_live_heads;) {
    int tile = kMost;
    while (head + tile > b.score.n_heads) tile /= 2;
    if constexpr (kMost >= 8) {
      if (tile == 8) add_heads<V, 8>(b, head);
    }
    if (tile == 4) add_heads<V, 4>(b, head);
    if (tile == 2) add_heads<V, 2>(b, head);
    if (tile == 1) add_heads<V, 1>(b, head);
    head += tile;
  }
}

template <class V>
void attend_block(const DecodeBlock& b) {
  score_rows<V>(b.score);
  for (int32_t head = 0; head < b.n_live_heads; ++head) softmax_head<V>(b, head);
  add_values<V>(b);
}

// Loops on integers become the level's instructions by themselves.
template <class V>
float weigh_scores(float* scores, int32_t n, const float* bias, uint16_t* weights) {
  float max = -__builtin_inff();
  weigh<V>(scores, n, bias, max);
  for (int32_t i = 0; i < n; ++i) {  // to nearest, ties to even; NaN stays NaN
    uint32_t u;
    __builtin_memcpy(&u, scores + i, sizeof u);
    const uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
    weights[i] = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
  return max;
}

template <class V>
float scale_weights(const uint16_t* weights, int32_t n, float factor, float* scaled) {
  for (int32_t i = 0; i < n; ++i) {
    const uint32_t u = uint32_t{weights[i]} << 16;
    float weight;
    __builtin_memcpy(&weight, &u, sizeof weight);
    scaled[i] = weight * factor;
  }
  const int32_t n_padded = whole_vectors<V>(n);
  for (int32_t i = n; i < n_padded; ++i) scaled[i] = 0.0f;
  typename V::F total = V::zero();
  for (int32_t i = 0; i < n_padded; i += V::kLanes) total = V::add(total, V::load(scaled + i));
  return V::sum(total);
}

template <class V>
constexpr DecodeKernel kDecodeKernel = {V::kLanes,       V::kBf16Query, score_rows<V>,
                                        attend_block<V>, add_values<V>, weigh_scores<V>,
                                        scale_weights<V>};

}  // namespace
}  // namespace tiercel::cpu
