// Products of bf16 rows, read as pairs, with fp32 queries: the same on every set of lanes without
// bf16 products (vector_portable.h). Internal linkage, because files with different compiler flags
// include it (cpu/isa.h).
#pragma once

#include <cstdint>

namespace tiercel::cpu {
namespace {

// Lanes: load, fma, load_pairs and broadcast_pair of F.
template <class Lanes>
struct WithPairs : Lanes {
  using F = typename Lanes::F;

  // A piece of a row, multiplied by a piece of the query. The query is packed as fp32: the even
  // elements of the piece, then the odd ones.
  struct Piece {
    F even, odd;
  };
  static Piece load_piece(const uint16_t* p) {
    Piece piece;
    Lanes::load_pairs(p, piece.even, piece.odd);
    return piece;
  }
  static Piece load_piece(const uint16_t* p, int n) {
    Piece piece;
    Lanes::load_pairs(p, n, piece.even, piece.odd);
    return piece;
  }
  static F dot(F acc, const Piece& row, const char* query, int64_t piece) {
    const float* q = reinterpret_cast<const float*>(query) + piece * 2 * Lanes::kLanes;
    const F even = Lanes::fma(row.even, Lanes::load(q), acc);
    return Lanes::fma(row.odd, Lanes::load(q + Lanes::kLanes), even);
  }

  // The other way round: lanes are queries, and two elements of a row are broadcast to all of them.
  struct BroadcastPair {
    explicit BroadcastPair(const uint16_t* p) { Lanes::broadcast_pair(p, even, odd); }
    F even, odd;
  };
  // Elements i and i + 1 of queries first, first + 1, ..; queries are fp32 [head_dim][n_queries].
  struct QueryPair {
    QueryPair(const void* queries, int32_t n_queries, int32_t i, int32_t first)
        : even(static_cast<const float*>(queries) + int64_t{i} * n_queries + first),
          odd(even + n_queries) {}
    F dot(int v, const BroadcastPair& x, F acc) const {
      const int at = v * Lanes::kLanes;
      return Lanes::fma(x.odd, Lanes::load(odd + at),
                        Lanes::fma(x.even, Lanes::load(even + at), acc));
    }
    const float* even;
    const float* odd;
  };
};

}  // namespace
}  // namespace tiercel::cpu
