#if defined(__x86_64__)
#include "cpu/select_kernel.h"
#include "cpu/tile.h"
#include "cpu/transpose_avx512.h"
#include "cpu/vector_avx512.h"

namespace tiercel::cpu {
namespace {

// 48 landmarks (A, straight from their rows) times 16 queries (B, as packed): three accumulators.
//   C [16 landmarks][16 queries] += A [16 landmarks][32 elements] x B [16 pairs][16 queries][2]
template <class Tiles>
void multiply_48(Tiles& tiles, const PrefillScores& p, int32_t query) {
  const int64_t row_bytes = int64_t{2} * p.head_dim;
  const int64_t query_bytes = int64_t{4} * p.n_queries;
  const char* a = reinterpret_cast<const char*>(p.landmarks);
  const char* b = static_cast<const char*>(p.queries) + int64_t{4} * query;
  tiles.template zero<0>();
  tiles.template zero<1>();
  tiles.template zero<2>();
  for (int32_t i = 0; i < p.head_dim; i += 32, a += 64, b += 16 * query_bytes) {
    tiles.template load<7>(b, query_bytes);
    tiles.template load<3>(a, row_bytes);
    tiles.template load<4>(a + 16 * row_bytes, row_bytes);
    tiles.template load<5>(a + 32 * row_bytes, row_bytes);
    tiles.template multiply<0, 3, 7>();
    tiles.template multiply<1, 4, 7>();
    tiles.template multiply<2, 5, 7>();
  }
  float* scores = p.scores + query;
  tiles.template store<0>(scores, query_bytes);
  tiles.template store<1>(scores + 16 * int64_t{p.n_queries}, query_bytes);
  tiles.template store<2>(scores + 32 * int64_t{p.n_queries}, query_bytes);
}

// Whole blocks of whole tiles; what is ragged goes to the vector kernel.
template <class Tiles>
void score_blocks_tiles(const PrefillScores& p) {
  if (p.n_rows != 48 || p.head_dim % 32 != 0) return score_blocks<Avx512Bf16>(p);
  Tiles::configure();
  Tiles tiles;
  for (int32_t query = 0; query < p.n_queries; query += 16) multiply_48(tiles, p, query);
  Tiles::release();
  const __m512 scale = Avx512::set1(p.scale);
  for (int64_t i = 0; i < int64_t{p.n_rows} * p.n_queries; i += 16) {
    const __m512 s = Avx512::mul(Avx512::load(p.scores + i), scale);
    Avx512::store(p.scores + i, clamp_score<Avx512>(s));
  }
}
static_assert(kPrefillRows == 48);

// Landmarks (A, straight from their rows) times 16 heads (B):
//   C [16 landmarks][16 heads] += A [16 landmarks][32 elements] x B [16 pairs][16 heads][2]
// B tiles of a width of up to 128 stay in registers. What 16 landmarks gave is put in order while
// the next 16 are multiplied. Landmarks ahead are asked for row by row, with the loads of tiles
// between: asked for in one burst, and copied to be loaded from L1, it was half as fast.
template <class Tiles, int kPieces, int kHeads>
class LandmarkTiles {
 public:
  explicit LandmarkTiles(const LandmarkScores& p) : p_(p) {}

  void run() {
    pack_queries();
    Tiles::configure();
    load_queries();
    const int64_t n_groups = (p_.n + kRows - 1) / kRows;
    for (int64_t group = 0; group < n_groups; group += 2) {
      multiply<0>(group);
      if (group > 0) finish<1>(group - 1);
      if (group + 1 < n_groups) multiply<1>(group + 1);
      finish<0>(group);
    }
    if (n_groups % 2 == 0) finish<1>(n_groups - 1);
    Tiles::release();
  }

 private:
  static constexpr int kRows = 16;
  static constexpr int kPiece = 32;
  static constexpr int kAheadRows = 64;
  static constexpr int kHeldPieces = 4;

  void pack_queries() {
    for (int piece = 0; piece < kPieces; ++piece) {
      __m512i rows[kRows];
#pragma GCC unroll 16
      for (int h = 0; h < kRows; ++h) {
        rows[h] = h < p_.n_heads ? _mm512_loadu_si512(p_.queries + h * p_.width + piece * kPiece)
                                 : _mm512_setzero_si512();
      }
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) _mm512_store_si512(queries_[piece][i], rows[i]);
    }
  }
  template <int piece = 0>
  void load_queries() {
    if constexpr (kPieces <= kHeldPieces && piece < kPieces) {
      tiles_.template load<4 + piece>(queries_[piece], 64);
      load_queries<piece + 1>();
    }
  }

  template <int kParity>
  void multiply(int64_t group) {
    tiles_.template zero<kParity>();
    const int64_t row_bytes = int64_t{2} * p_.width;
    const char* rows = reinterpret_cast<const char*>(p_.landmarks) + group * kRows * row_bytes;
    const int64_t left = p_.n - group * kRows;
    if (left < kRows) rows = copy_last(rows, left, row_bytes);
    multiply_pieces<kParity>(rows, row_bytes);
    tiles_.template store<kParity>(products_[kParity], 64);
  }
  template <int kParity, int piece = 0>
  void multiply_pieces(const char* rows, int64_t row_bytes) {
    if constexpr (piece < kPieces) {
      const char* ahead = rows + kAheadRows * row_bytes + piece * 64;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) Avx512::prefetch(ahead + r * row_bytes);
      constexpr int kQueries = 4 + piece % kHeldPieces;
      if constexpr (kPieces > kHeldPieces) tiles_.template load<kQueries>(queries_[piece], 64);
      tiles_.template load<2 + piece % 2, piece * 64>(rows, row_bytes);
      tiles_.template multiply<kParity, 2 + piece % 2, kQueries>();
      multiply_pieces<kParity, piece + 1>(rows, row_bytes);
    }
  }
  const char* copy_last(const char* rows, int64_t n, int64_t row_bytes) {
    __builtin_memcpy(last_, rows, static_cast<size_t>(n * row_bytes));
    return last_;
  }

  template <int kParity>
  void finish(int64_t group) {
    __m512i rows[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) rows[r] = _mm512_load_si512(products_[kParity][r]);
    transpose(rows);
    const __m512 scale = Avx512::set1(p_.scale);
    float* scores = p_.scores + group * kRows;
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
      if (h < p_.n_heads) {
        Avx512::store(scores + h * p_.score_stride,
                      Avx512::mul(_mm512_castsi512_ps(rows[h]), scale));
      }
    }
  }

  const LandmarkScores& p_;
  Tiles tiles_;
  alignas(64) uint16_t queries_[kPieces][kRows][kPiece];
  alignas(64) float products_[2][kRows][kRows];
  alignas(64) char last_[kRows * kPieces * 64] = {};
};

template <class Tiles, int kPieces>
void score_landmarks(const LandmarkScores& p) {
  if (p.n_heads <= 4) return LandmarkTiles<Tiles, kPieces, 4>(p).run();
  if (p.n_heads <= 8) return LandmarkTiles<Tiles, kPieces, 8>(p).run();
  LandmarkTiles<Tiles, kPieces, 16>(p).run();
}
template <class Tiles>
void score_landmarks(const LandmarkScores& p) {
  switch (p.width) {
    case 64: return score_landmarks<Tiles, 2>(p);
    case 96: return score_landmarks<Tiles, 3>(p);
    case 128: return score_landmarks<Tiles, 4>(p);
    case 256: return score_landmarks<Tiles, 8>(p);
  }
}

}  // namespace

const SelectKernel kSelectAmx = {Avx512Bf16::kLanes,
                                 Avx512Bf16::kBf16Query,
                                 clamp_scores<Avx512>,
                                 finish_scores<Avx512>,
                                 sum_scores<Avx512>,
                                 sum_below<Avx512>,
                                 fold_max<Avx512>,
                                 combine_scores<Avx512>,
                                 collect_above<Avx512>,
                                 score_blocks_tiles<HardwareTiles>,
                                 scan_blocks<Avx512>,
                                 Avx512Bf16::kByteQuery,
                                 score_codes<Avx512Bf16>,
                                 scale_scores<Avx512>,
                                 score_landmarks<HardwareTiles>};

const SelectKernel kSelectAmxEmulated = {Avx512Bf16::kLanes,
                                         Avx512Bf16::kBf16Query,
                                         clamp_scores<Avx512>,
                                         finish_scores<Avx512>,
                                         sum_scores<Avx512>,
                                         sum_below<Avx512>,
                                         fold_max<Avx512>,
                                         combine_scores<Avx512>,
                                         collect_above<Avx512>,
                                         score_blocks_tiles<EmulatedTiles>,
                                         scan_blocks<Avx512>,
                                         Avx512Bf16::kByteQuery,
                                         score_codes<Avx512Bf16>,
                                         scale_scores<Avx512>,
                                         score_landmarks<EmulatedTiles>};

}  // namespace tiercel::cpu
#endif
