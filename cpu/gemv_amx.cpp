// Skinny products with AMX, weights as the A operand: 16 rows of 64 bytes are a tile as they lie in
// memory, and nothing of them is packed. x becomes the B operand, one tile per 32 elements of k:
//
//     x tile [16 pairs][16 rows of x][2]      rows beyond n_rows are zero
//     C tile [16 weight rows][16 rows of x]
//
// Smaller tiles are not cheaper, so 1 row costs what 16 cost: the time to read the weights.
#include "cpu/skinny_finish.h"
#include "cpu/tile.h"
#include "cpu/transpose_avx512.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;

// Rounds as panel products do, which flush denormals: so rows have the same bits among few and
// many.
struct RoundAsPanels {
  static __m256i narrow(__m512 value) {
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
  }
};

// x [n_rows][k] -> [k / 32, rounded up][16 pairs][16][2]
void pack_x(const SkinnyProduct& p, uint32_t* out) {
  constexpr int64_t kTilePairs = kTileDepth / 2;
  for (int64_t pair = 0; pair < p.k / 2; pair += kTilePairs) {
    const int64_t left = p.k / 2 - pair;
    const auto mask = static_cast<__mmask16>(left >= kTilePairs ? 0xffffu : (1u << left) - 1u);
    __m512i tile[kTileRows];
#pragma GCC unroll 16
    for (int64_t row = 0; row < kTileRows; ++row) {
      tile[row] = row < p.n_rows ? _mm512_maskz_loadu_epi32(mask, p.x + row * p.k + 2 * pair)
                                 : _mm512_setzero_si512();
    }
    transpose(tile);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kTilePairs; ++i)
      _mm512_storeu_si512(out + (pair + i) * kTileRows, tile[i]);
  }
}

// A 16 x 32 piece of the weights with zeros where the matrix ends.
void copy_edge(const uint16_t* w, int64_t k, int64_t n_rows, int64_t depth, uint16_t* out) {
  __builtin_memset(out, 0, kTileRows * kTileDepth * sizeof(uint16_t));
  for (int64_t row = 0; row < n_rows; ++row) {
    __builtin_memcpy(out + row * kTileDepth, w + row * k,
                     static_cast<size_t>(depth) * sizeof(uint16_t));
  }
}

// Loads the A tile of weight rows n .. n+15 and elements i .. i+31 of k.
template <int kTile, typename Tiles>
void load_weights(Tiles& tiles, const SkinnyProduct& p, int64_t n, int64_t i) {
  const uint16_t* w = p.weight + n * p.k + i;
  if (n + kTileRows <= p.end && i + kTileDepth <= p.k) {
    // 2 KiB ahead: without software prefetch tile loads wait for memory one after the other.
    for (int64_t row = 0; row < kTileRows; ++row) {
      _mm_prefetch(reinterpret_cast<const char*>(w + row * p.k + 1024), _MM_HINT_T1);
    }
    tiles.template load<kTile>(w, 2 * p.k);
    return;
  }
  alignas(64) uint16_t edge[kTileRows * kTileDepth];
  const int64_t rows = p.end - n < kTileRows ? p.end - n : kTileRows;
  copy_edge(w, p.k, rows, p.k - i < kTileDepth ? p.k - i : kTileDepth, edge);
  tiles.template load<kTile>(edge, 2 * kTileDepth);
}

// C tile [16 weight rows][16 rows of x] -> sums [row of x][weight row]
template <int kTile, typename Tiles>
void store_sums(Tiles& tiles, int64_t n_rows, float* sums) {
  alignas(64) float c[kTileRows * kTileRows];
  tiles.template store<kTile>(c, kTileRows * sizeof(float));
  __m512i rows[kTileRows];
#pragma GCC unroll 16
  for (int64_t n = 0; n < kTileRows; ++n) rows[n] = _mm512_load_si512(c + n * kTileRows);
  transpose(rows);
  for (int64_t row = 0; row < n_rows; ++row)
    _mm512_storeu_si512(sums + row * kSkinnyRange, rows[row]);
}

// Two weight tiles share an x tile; an odd one at the end runs alone.
template <typename Tiles>
void multiply(const SkinnyProduct& p) {
  float* sums = p.scratch;
  auto* x = reinterpret_cast<uint32_t*>(sums + p.n_rows * kSkinnyRange);
  pack_x(p, x);

  Tiles tiles;
  Tiles::configure();
  for (int64_t n = p.first; n < p.end; n += 2 * kTileRows) {
    const bool two = n + kTileRows < p.end;
    tiles.template zero<0>();
    tiles.template zero<1>();
    for (int64_t i = 0; i < p.k; i += kTileDepth) {
      tiles.template load<4>(x + i / 2 * kTileRows, kTileRows * sizeof(uint32_t));
      load_weights<6>(tiles, p, n, i);
      tiles.template multiply<0, 6, 4>();
      if (!two) continue;
      load_weights<7>(tiles, p, n + kTileRows, i);
      tiles.template multiply<1, 7, 4>();
    }
    float* to = sums + (n - p.first);
    store_sums<0>(tiles, p.n_rows, to);
    if (two) store_sums<1>(tiles, p.n_rows, to + kTileRows);
  }
  Tiles::release();

  for (int64_t row = 0; row < p.n_rows; ++row)
    finish<RoundAsPanels>(p, row, sums + row * kSkinnyRange);
}

}  // namespace

void multiply_skinny_amx(const SkinnyProduct& p) { multiply<HardwareTiles>(p); }
void multiply_skinny_amx_emulated(const SkinnyProduct& p) { multiply<EmulatedTiles>(p); }

}  // namespace tiercel::cpu
