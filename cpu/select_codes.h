// Scores of int8 landmarks against the queries of one group, written once as templates on a Vector;
// each select_<level>.cpp instantiates them.
//
// Queries are int16 (quantised by select_scan.cpp), sums are 32-bit integers: they are exact
// (modulo 2^32 on the way), so the scores have the same bits at every level.
//   |sum| <= kMaxCode * 128 * kMaxCodeWidth < 2^31, whatever the codes
//
// Lanes are rows, as a horizontal sum per row and head would cost more than the products: 16 bytes
// of kLanes rows are transposed, four codes to a lane, and multiplied by broadcast queries in two
// steps. Four elements of a query are eight bytes:
//   int16 queries   q0 q2 | q1 q3        times (c0, c2), then (c1, c3), as int16
//   byte queries    low bytes of q0 .. q3 | high bytes      q = 256 high + low, both signed;
//                   times (c0 .. c3) + 128, and again; 128 * the sum of q is taken off at the end
#pragma once

#include <cstdint>

#include "cpu/decode_kernel.h"

namespace tiercel::cpu {

inline constexpr int32_t kMaxCode = 127 * 256 + 127;  // of a query
inline constexpr int32_t kMaxCodeWidth = 512;         // elements of a landmark
inline constexpr int32_t kCodeBlock = 16;             // elements that are transposed at once
static_assert(int64_t{kMaxCode} * 128 * kMaxCodeWidth <= INT32_MAX);

// scores[h][r] = (row r . query h) * factors[h]. offsets as in ScoreRows.
struct CodeRows {
  const int8_t* codes;  // row r is codes + offsets[r]
  const int64_t* offsets;
  int32_t n_rows;
  int32_t prefetch_rows;
  int32_t width;
  int32_t n_heads;      // padded
  const char* queries;  // [n_heads][query_bytes], 2 bytes an element, zeros to a whole block
  int64_t query_bytes;
  const int32_t* excess;  // [n_heads] taken off the sums; 0 for int16 queries
  const float* factors;   // [n_heads]
  float* scores;          // [n_heads][score_stride]
  int64_t score_stride;
};

namespace {

// Sums of one block of codes for kHeads heads; every head has kSplit / 2 pairs of them, which keeps
// more products in flight than the heads alone would.
template <class V, int kHeads, int kSplit>
__attribute__((always_inline)) inline void add_code_block(const int8_t* const* rows, int64_t i,
                                                          const char* queries, int64_t stride,
                                                          typename V::I (*acc)[kSplit]) {
  typename V::I x[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) x[r] = V::load_blocks(rows + r, i);
  V::transpose(x);
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const typename V::I first = V::first_codes(x[c]), second = V::second_codes(x[c]);
    const int split = 2 * c % kSplit;
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const char* q = queries + h * stride + 8 * c;
      acc[h][split] = V::dot_codes(acc[h][split], first, q);
      acc[h][split + 1] = V::dot_codes(acc[h][split + 1], second, q + 4);
    }
  }
}

// What is left of the rows from element i on, with zeros to a whole block: nothing behind a row is
// read. The rows become the copies.
__attribute__((noinline, unused)) void copy_rests(const int8_t** rows, int n_rows, int32_t i,
                                                  int32_t width, int8_t* rests) {
  for (int r = 0; r < n_rows; ++r, rests += kCodeBlock) {
    for (int32_t t = 0; t < kCodeBlock; ++t) rests[t] = i + t < width ? rows[r][i + t] : int8_t{0};
    rows[r] = rests;
  }
}

// The lines of some rows, in the order of addresses, some of them with every block: in one burst,
// or in another order, they cost up to twice as much (journal).
class CodePrefetch {
 public:
  CodePrefetch(const CodeRows& p, int32_t row, int32_t n_rows)
      : p_(p), row_(row), end_(row + n_rows) {
    const int32_t n_blocks = (p.width + kCodeBlock - 1) / kCodeBlock;
    n_steps_ = (n_rows * ((p.width + 63) / 64) + n_blocks - 1) / n_blocks;
  }
  void step() {
    for (int32_t n = 0; n < n_steps_ && row_ < end_; ++n) {
      __builtin_prefetch(p_.codes + p_.offsets[row_] + at_);
      at_ += 64;
      row_ += at_ >= p_.width;
      at_ = at_ >= p_.width ? 0 : at_;
    }
  }

 private:
  const CodeRows& p_;
  int32_t row_, end_, at_ = 0, n_steps_;
};

// kLanes rows, kHeads heads.
template <class V, int kHeads>
void score_code_tile(const CodeRows& p, int32_t head, int32_t row, bool prefetch) {
  constexpr int kSplit = kHeads >= 4 ? 2 : 8 / kHeads;
  const int8_t* rows[V::kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < V::kLanes; ++r) rows[r] = p.codes + p.offsets[row + r];
  typename V::I acc[kHeads][kSplit];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int s = 0; s < kSplit; ++s) acc[h][s] = V::zero_sums();
  }
  const char* queries = p.queries + head * p.query_bytes;
  CodePrefetch ahead(p, row + p.prefetch_rows, prefetch ? V::kLanes : 0);
  int32_t i = 0;
  for (; i + kCodeBlock <= p.width; i += kCodeBlock) {
    ahead.step();
    add_code_block<V, kHeads, kSplit>(rows, i, queries + 2 * i, p.query_bytes, acc);
  }
  if (i < p.width) {
    ahead.step();
    int8_t rest[V::kLanes * kCodeBlock];
    copy_rests(rows, V::kLanes, i, p.width, rest);
    add_code_block<V, kHeads, kSplit>(rows, 0, queries + 2 * i, p.query_bytes, acc);
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    typename V::I first = acc[h][0], second = acc[h][1];
#pragma GCC unroll 4
    for (int s = 2; s < kSplit; s += 2) {
      first = V::add(first, acc[h][s]);
      second = V::add(second, acc[h][s + 1]);
    }
    const typename V::I sum = V::subtract(V::join_sums(first, second), p.excess[head + h]);
    V::store(p.scores + (head + h) * p.score_stride + row,
             V::mul(V::to_float(sum), V::set1(p.factors[head + h])));
  }
}

template <class V, int kHeads>
void score_code_heads(const CodeRows& p, int32_t head) {
  const bool prefetch = head == 0 && p.prefetch_rows > 0;
  for (int32_t row = 0; row < p.n_rows; row += V::kLanes) {
    score_code_tile<V, kHeads>(p, head, row, prefetch);
  }
}

// Half the registers are sums: eight heads with 32 of them, four with 16.
template <class V>
void score_codes(const CodeRows& p) {
  constexpr int kMost = V::kRegisters / 4;
  for (int32_t head = 0; head < p.n_heads;) {
    int tile = kMost;
    while (tile > p.n_heads - head) tile /= 2;
    if constexpr (kMost >= 8) {
      if (tile == 8) score_code_heads<V, 8>(p, head);
    }
    if (tile == 4) score_code_heads<V, 4>(p, head);
    if (tile == 2) score_code_heads<V, 2>(p, head);
    if (tile == 1) score_code_heads<V, 1>(p, head);
    head += tile;
  }
}

}  // namespace
}  // namespace tiercel::cpu
