// Dot products of rows, keys or landmarks, with the queries of some heads, on AMX. Included by
// *_amx.cpp files; everything in it has internal linkage (cpu/isa.h).
//
//   bf16   C [16 rows][16 heads]  += A [16 rows][32 elements]  x  B [16 pairs][16 heads][2]
//   int8   C [16 rows][16]        += A [16 rows][64 elements]  x  B [16 fours][16][4]
//          columns 2h and 2h + 1: the high and low bytes of the 16-bit query of head h
//
// Rows are the A operand as they lie in memory, so all heads cost as much as one. What 16 rows gave
// is put in order while the next 16 are multiplied. Rows ahead are asked for one by one, with the
// loads of tiles between: asked for in one burst, and copied to be loaded from L1, it was half as
// fast. Configuring tiles takes as long as scoring 10 rows: the caller does it, for many rows.
#pragma once

#include <cstdint>

#include "cpu/tile.h"
#include "cpu/transpose_avx512.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {
namespace {

// Rows `stride` bytes apart.
struct SpacedRows {
  const char* first;
  int64_t stride;

  const char* at(int64_t row) const { return first + row * stride; }
};

// How products become scores: scores[head][row] = (row . query) * scale.
struct Bf16Products {
  float scale;

  static constexpr int kColumnsPerHead = 1;
  template <int kC, int kA, int kB, class Tiles>
  static void multiply(Tiles& tiles) {
    tiles.template multiply<kC, kA, kB>();
  }
  __m512 scores(const __m512i* columns, int head) const {
    return _mm512_mul_ps(_mm512_castsi512_ps(columns[head]), _mm512_set1_ps(scale));
  }
};
struct ByteProducts {
  const float* scales;  // of the heads

  static constexpr int kColumnsPerHead = 2;
  template <int kC, int kA, int kB, class Tiles>
  static void multiply(Tiles& tiles) {
    tiles.template multiply_bytes<kC, kA, kB>();
  }
  __m512 scores(const __m512i* columns, int head) const {
    const __m512i high = _mm512_slli_epi32(columns[2 * head], 8);
    const __m512i sum = _mm512_add_epi32(high, columns[2 * head + 1]);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scales[head]));
  }
};

// kPieces pieces of 64 bytes; scores of no more than kHeads heads are written.
template <class Tiles, class Products, int kPieces, int kHeads>
class RowTiles {
 public:
  static constexpr int kRows = 16;
  static constexpr int kAheadRows = 64;

  // Columns of queries, query_stride bytes apart. Before configure.
  void pack(const void* queries, int64_t query_stride, int n_heads) {
    n_heads_ = n_heads;
    const int n_columns = n_heads * Products::kColumnsPerHead;
    for (int piece = 0; piece < kPieces; ++piece) {
      const char* from = static_cast<const char*>(queries) + piece * kPieceBytes;
      __m512i columns[kRows];
#pragma GCC unroll 16
      for (int c = 0; c < kRows; ++c) {
        columns[c] =
            c < n_columns ? _mm512_loadu_si512(from + c * query_stride) : _mm512_setzero_si512();
      }
      transpose(columns);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) _mm512_store_si512(queries_[piece][i], columns[i]);
    }
  }

  // Scores of n rows, written up to the next multiple of 16. Takes all tiles.
  void score(Tiles& tiles, const SpacedRows& rows, int64_t n, const Products& products,
             float* scores, int64_t score_stride) {
    load_queries(tiles);
    const int64_t n_groups = (n + kRows - 1) / kRows;
    const auto finish = [&](int64_t group) {
      write(products, products_[group % 2], scores + group * kRows, score_stride);
    };
    for (int64_t group = 0; group < n_groups; group += 2) {
      multiply<0>(tiles, rows, n, group);
      if (group > 0) finish(group - 1);
      if (group + 1 < n_groups) multiply<1>(tiles, rows, n, group + 1);
      finish(group);
    }
    if (n_groups > 0 && n_groups % 2 == 0) finish(n_groups - 1);
  }

 private:
  static constexpr int kPieceBytes = 64;
  static constexpr int kHeldPieces = 4;  // of queries, that stay in registers

  template <int piece = 0>
  void load_queries(Tiles& tiles) {
    if constexpr (kPieces <= kHeldPieces && piece < kPieces) {
      tiles.template load<4 + piece>(queries_[piece], 64);
      load_queries<piece + 1>(tiles);
    }
  }

  template <int kParity>
  void multiply(Tiles& tiles, const SpacedRows& rows, int64_t n, int64_t group) {
    const char* first = rows.at(group * kRows);
    const SpacedRows ahead{first + kAheadRows * rows.stride, rows.stride};
    const int64_t left = n - group * kRows;
    tiles.template zero<kParity>();
    multiply_pieces<kParity>(
        tiles, left < kRows ? copy_last(first, rows.stride, left) : SpacedRows{first, rows.stride},
        ahead);
    tiles.template store<kParity>(products_[kParity], 64);
  }
  template <int kParity, int piece = 0>
  void multiply_pieces(Tiles& tiles, const SpacedRows& rows, const SpacedRows& ahead) {
    if constexpr (piece < kPieces) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) Avx512::prefetch(ahead.at(r) + piece * kPieceBytes);
      constexpr int kQueries = 4 + piece % kHeldPieces;
      if constexpr (kPieces > kHeldPieces) {
        tiles.template load<kQueries>(queries_[piece], kPieceBytes);
      }
      tiles.template load_streaming<2 + piece % 2, piece * kPieceBytes>(rows.first, rows.stride);
      Products::template multiply<kParity, 2 + piece % 2, kQueries>(tiles);
      multiply_pieces<kParity, piece + 1>(tiles, rows, ahead);
    }
  }
  // What is behind the last row may not be memory.
  SpacedRows copy_last(const char* rows, int64_t stride, int64_t n) {
    for (int64_t r = 0; r < n; ++r) {
      __builtin_memcpy(last_[r], rows + r * stride, sizeof last_[r]);
    }
    return {last_[0], sizeof last_[0]};
  }

  void write(const Products& products, const int32_t (&sums)[kRows][kRows], float* scores,
             int64_t stride) {
    __m512i columns[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) columns[r] = _mm512_load_si512(sums[r]);
    transpose(columns);
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
      if (h >= n_heads_) break;
      _mm512_storeu_ps(scores + h * stride, products.scores(columns, h));
    }
  }

  int n_heads_ = 0;
  alignas(64) char queries_[kPieces][kRows][kPieceBytes];
  alignas(64) int32_t products_[2][kRows][kRows];
  alignas(64) char last_[kRows][kPieces * kPieceBytes] = {};
};

}  // namespace
}  // namespace tiercel::cpu
