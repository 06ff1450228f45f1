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

// Rows first_row .. of x [n_rows][k], up to 16 -> [k / 32, rounded up][16 pairs][16][2]
void pack_x(const SkinnyProduct& p, int64_t first_row, uint32_t* out) {
  constexpr int64_t kTilePairs = kTileDepth / 2;
  for (int64_t pair = 0; pair < p.k / 2; pair += kTilePairs) {
    const int64_t left = p.k / 2 - pair;
    const auto mask = static_cast<__mmask16>(left >= kTilePairs ? 0xffffu : (1u << left) - 1u);
    __m512i tile[kTileRows];
#pragma GCC unroll 16
    for (int64_t row = 0; row < kTileRows; ++row) {
      const uint16_t* from = p.x + (first_row + row) * p.k + 2 * pair;
      tile[row] = first_row + row < p.n_rows ? _mm512_maskz_loadu_epi32(mask, from)
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
    for (int64_t row = p.again ? kTileRows : 0; row < kTileRows; ++row) {
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

// Two weight tiles share an x tile, two x tiles (kGroups of 16 rows) a weight tile; an odd weight
// tile at the end runs alone.
template <typename Tiles, int kGroups>
void multiply(const SkinnyProduct& p) {
  float* sums = p.scratch;
  auto* x = reinterpret_cast<uint32_t*>(sums + p.n_rows * kSkinnyRange);
  const int64_t group_words = (p.k + kTileDepth - 1) / kTileDepth * kTileDepth / 2 * kTileRows;
  for (int group = 0; group < kGroups; ++group) {
    pack_x(p, group * kTileRows, x + group * group_words);
  }

  Tiles tiles;
  Tiles::configure();
  for (int64_t n = p.first; n < p.end; n += 2 * kTileRows) {
    const bool two = n + kTileRows < p.end;
    tiles.template zero<0>();
    tiles.template zero<1>();
    tiles.template zero<2>();
    tiles.template zero<3>();
    for (int64_t i = 0; i < p.k; i += kTileDepth) {
      const uint32_t* x_tile = x + i / 2 * kTileRows;
      tiles.template load<4>(x_tile, kTileRows * sizeof(uint32_t));
      load_weights<6>(tiles, p, n, i);
      tiles.template multiply<0, 6, 4>();
      if constexpr (kGroups > 1) {
        tiles.template load<5>(x_tile + group_words, kTileRows * sizeof(uint32_t));
        tiles.template multiply<2, 6, 5>();
      }
      if (!two) continue;
      load_weights<7>(tiles, p, n + kTileRows, i);
      tiles.template multiply<1, 7, 4>();
      if constexpr (kGroups > 1) tiles.template multiply<3, 7, 5>();
    }
    float* to = sums + (n - p.first);
    const int64_t rows = p.n_rows < kTileRows ? p.n_rows : kTileRows;
    store_sums<0>(tiles, rows, to);
    if (two) store_sums<1>(tiles, rows, to + kTileRows);
    if constexpr (kGroups > 1) {
      float* second = to + kTileRows * kSkinnyRange;
      store_sums<2>(tiles, p.n_rows - kTileRows, second);
      if (two) store_sums<3>(tiles, p.n_rows - kTileRows, second + kTileRows);
    }
  }
  Tiles::release();

  for (int64_t row = 0; row < p.n_rows; ++row) finish(p, row, sums + row * kSkinnyRange);
}
template <typename Tiles>
void multiply(const SkinnyProduct& p) {
  if (p.n_rows > kTileRows) {
    multiply<Tiles, 2>(p);
  } else {
    multiply<Tiles, 1>(p);
  }
}

}  // namespace

void multiply_skinny_amx(const SkinnyProduct& p) { multiply<HardwareTiles>(p); }
void multiply_skinny_amx_emulated(const SkinnyProduct& p) { multiply<EmulatedTiles>(p); }

}  // namespace tiercel::cpu
