#if defined(__x86_64__)
#include "cpu/row_tiles.h"
#include "cpu/select_kernel.h"

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

template <class Tiles, class Products, int kPieces, int kHeads>
void score_landmarks(const LandmarkScores& p, const Products& products) {
  RowTiles<Tiles, Products, kPieces, kHeads> rows;
  rows.pack(p.queries, kPieces * 64, p.n_heads);
  Tiles::configure();
  Tiles tiles;
  rows.score(tiles, {static_cast<const char*>(p.landmarks), kPieces * 64}, p.n, products, p.scores,
             p.score_stride);
  Tiles::release();
}
template <class Tiles, class Products, int kPieces>
void score_landmarks(const LandmarkScores& p, const Products& products) {
  if (p.n_heads <= 4) return score_landmarks<Tiles, Products, kPieces, 4>(p, products);
  if (p.n_heads <= 8) return score_landmarks<Tiles, Products, kPieces, 8>(p, products);
  if constexpr (Products::kColumnsPerHead == 1) {
    score_landmarks<Tiles, Products, kPieces, 16>(p, products);
  }
}
template <class Tiles>
void score_landmarks(const LandmarkScores& p) {
  const Bf16Products products{p.scale};
  switch (p.width) {
    case 64: return score_landmarks<Tiles, Bf16Products, 2>(p, products);
    case 96: return score_landmarks<Tiles, Bf16Products, 3>(p, products);
    case 128: return score_landmarks<Tiles, Bf16Products, 4>(p, products);
    case 256: return score_landmarks<Tiles, Bf16Products, 8>(p, products);
  }
}
template <class Tiles>
void score_coded_landmarks(const LandmarkScores& p) {
  const ByteProducts products{p.scales};
  switch (p.width) {
    case 64: return score_landmarks<Tiles, ByteProducts, 1>(p, products);
    case 128: return score_landmarks<Tiles, ByteProducts, 2>(p, products);
    case 256: return score_landmarks<Tiles, ByteProducts, 4>(p, products);
  }
}

template <class Tiles>
constexpr SelectKernel kSelectTiles = {Avx512Bf16::kLanes,      Avx512Bf16::kBf16Query,
                                       clamp_scores<Avx512>,    finish_scores<Avx512>,
                                       sum_scores<Avx512>,      sum_below<Avx512>,
                                       fold_max<Avx512>,        combine_scores<Avx512>,
                                       collect_above<Avx512>,   score_blocks_tiles<Tiles>,
                                       scan_blocks<Avx512>,     Avx512Bf16::kByteQuery,
                                       score_codes<Avx512Bf16>, scale_scores<Avx512>,
                                       score_landmarks<Tiles>,  score_coded_landmarks<Tiles>};

}  // namespace

const SelectKernel kSelectAmx = kSelectTiles<HardwareTiles>;
const SelectKernel kSelectAmxEmulated = kSelectTiles<EmulatedTiles>;

}  // namespace tiercel::cpu
#endif
