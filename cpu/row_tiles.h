// Dot products of rows of bf16, keys or landmarks, with the queries of up to 16 heads, on AMX.
// Included by *_amx.cpp files; everything in it has internal linkage (cpu/isa.h).
//
//   C [16 rows][16 heads] += A [16 rows][32 elements]  x  B [16 pairs][16 heads][2]
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

// Rows `stride` elements apart.
struct SpacedRows {
  const uint16_t* first;
  int64_t stride;

  const uint16_t* at(int64_t row) const { return first + row * stride; }
};

// kPieces pieces of 32 elements; scores of no more than kHeads heads are written.
template <class Tiles, int kPieces, int kHeads>
class RowTiles {
 public:
  static constexpr int kRows = 16;
  static constexpr int kPiece = 32;
  static constexpr int kAheadRows = 64;

  // Of heads query_stride elements apart. Before configure.
  void pack(const uint16_t* queries, int64_t query_stride, int n_heads) {
    n_heads_ = n_heads;
    for (int piece = 0; piece < kPieces; ++piece) {
      __m512i rows[kRows];
#pragma GCC unroll 16
      for (int h = 0; h < kRows; ++h) {
        rows[h] = h < n_heads ? _mm512_loadu_si512(queries + h * query_stride + piece * kPiece)
                              : _mm512_setzero_si512();
      }
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) _mm512_store_si512(queries_[piece][i], rows[i]);
    }
  }

  // scores[head][row] = (row . query) * scale for n rows, up to the next multiple of 16. Takes all
  // tiles.
  void score(Tiles& tiles, const SpacedRows& rows, int64_t n, float scale, float* scores,
             int64_t score_stride) {
    load_queries(tiles);
    const int64_t n_groups = (n + kRows - 1) / kRows;
    const auto finish = [&](int64_t group) {
      write(products_[group % 2], scale, scores + group * kRows, score_stride);
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
    const uint16_t* first = rows.at(group * kRows);
    int64_t row_bytes = 2 * rows.stride;
    const char* ahead = reinterpret_cast<const char*>(first) + kAheadRows * row_bytes;
    const int64_t ahead_bytes = row_bytes;
    const int64_t left = n - group * kRows;
    if (left < kRows) {
      first = copy_last(first, rows.stride, left);
      row_bytes = sizeof last_[0];
    }
    tiles.template zero<kParity>();
    multiply_pieces<kParity>(tiles, first, row_bytes, ahead, ahead_bytes);
    tiles.template store<kParity>(products_[kParity], 64);
  }
  template <int kParity, int piece = 0>
  void multiply_pieces(Tiles& tiles, const uint16_t* rows, int64_t row_bytes, const char* ahead,
                       int64_t ahead_bytes) {
    if constexpr (piece < kPieces) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) Avx512::prefetch(ahead + r * ahead_bytes + piece * 64);
      constexpr int kQueries = 4 + piece % kHeldPieces;
      if constexpr (kPieces > kHeldPieces) {
        tiles.template load<kQueries>(queries_[piece], 64);
      }
      tiles.template load_streaming<2 + piece % 2, piece * 64>(rows, row_bytes);
      tiles.template multiply<kParity, 2 + piece % 2, kQueries>();
      multiply_pieces<kParity, piece + 1>(tiles, rows, row_bytes, ahead, ahead_bytes);
    }
  }
  // What is behind the last row may not be memory.
  const uint16_t* copy_last(const uint16_t* rows, int64_t stride, int64_t n) {
    for (int64_t r = 0; r < n; ++r) {
      __builtin_memcpy(last_[r], rows + r * stride, sizeof last_[r]);
    }
    return last_[0];
  }

  void write(const float (&products)[kRows][kRows], float scale, float* scores, int64_t stride) {
    __m512i rows[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) rows[r] = _mm512_load_si512(products[r]);
    transpose(rows);
    const __m512 factor = _mm512_set1_ps(scale);
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
      if (h >= n_heads_) break;
      _mm512_storeu_ps(scores + h * stride, _mm512_mul_ps(_mm512_castsi512_ps(rows[h]), factor));
    }
  }

  int n_heads_ = 0;
  alignas(64) uint16_t queries_[kPieces][kRows][kPiece];
  alignas(64) float products_[2][kRows][kRows];
  alignas(64) uint16_t last_[kRows][kPieces * kPiece] = {};
};

}  // namespace
}  // namespace tiercel::cpu
