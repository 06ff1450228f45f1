// Panel products with AMX tiles: 32 rows x 32 columns in four sums, so one tile is loaded per
// product.
//
//   tmm0-3   C [2][2]          += A (tmm4,5: 16 rows x 32 of k, as they lie)
//                               x B (tmm6,7: 16 pairs x 16 columns of the panel, as it lies)
//
// Half a panel is gone through with all rows before the other half: with k 256 it is 16 KiB and
// stays in L1, and the rows stream from L2 at 2 KiB per four products.
//
// Per element the sum is a chain over slices of 32 of k, each added as tdpbf16ps does (cpu/tile.h).
#include "cpu/gemm.h"
#include "cpu/intrinsics.h"
#include "cpu/tile.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTilePairs = 16;
constexpr int64_t kBlock = 32;  // rows, and columns
constexpr int64_t kPanelStride = 2 * kPanelColumns;

struct Buffers {
  alignas(64) float c[kBlock][kBlock];
  alignas(64) uint16_t a[kTileRows][2 * kTilePairs];
  alignas(64) uint16_t b[kTilePairs][2 * kTileRows];
};

// A tile of rows row .. row + 15 and pairs pair .. pair + 15, with zeros where the matrix ends.
template <int kTile, typename Tiles>
inline void load_rows(Tiles& tiles, const PanelProduct& p, int64_t row, int64_t pair, Buffers& b) {
  const uint16_t* a = p.a + row * p.row_stride + 2 * pair;
  if (row + kTileRows <= p.n_rows && pair + kTilePairs <= p.n_pairs) {
    tiles.template load<kTile>(a, 2 * p.row_stride);
    return;
  }
  const int64_t pairs = p.n_pairs - pair < kTilePairs ? p.n_pairs - pair : kTilePairs;
  __builtin_memset(b.a, 0, sizeof b.a);
  for (int64_t r = 0; r < kTileRows && row + r < p.n_rows; ++r) {
    __builtin_memcpy(b.a[r], a + r * p.row_stride, static_cast<size_t>(pairs) * 4);
  }
  tiles.template load<kTile>(b.a, sizeof b.a[0]);
}

// A tile of pairs pair .. pair + 15 and columns column .. column + 15.
template <int kTile, typename Tiles>
inline void load_panel(Tiles& tiles, const PanelProduct& p, int64_t pair, int64_t column,
                       Buffers& b) {
  const uint16_t* panel = p.panel + pair * kPanelStride + 2 * column;
  if (pair + kTilePairs <= p.n_pairs) {
    tiles.template load<kTile>(panel, 2 * kPanelStride);
    return;
  }
  __builtin_memset(b.b, 0, sizeof b.b);
  for (int64_t i = 0; pair + i < p.n_pairs; ++i) {
    __builtin_memcpy(b.b[i], panel + i * kPanelStride, sizeof b.b[0]);
  }
  tiles.template load<kTile>(b.b, sizeof b.b[0]);
}

__mmask16 columns_from(const PanelProduct& p, int64_t column) {
  const int64_t left = p.n_columns - column;
  return static_cast<__mmask16>(left >= 16 ? 0xffffu : left <= 0 ? 0u : (1u << left) - 1u);
}

__m512 widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// The sums to begin with, zeros where the matrix ends.
void copy_start(const PanelProduct& p, int64_t row, int64_t column, Buffers& b) {
  for (int64_t r = 0; r < kBlock; ++r) {
    for (int64_t v = 0; v < kBlock; v += 16) {
      const __mmask16 mask = row + r < p.n_rows ? columns_from(p, column + v) : 0;
      const float* start = p.start + (row + r) * p.start_stride + column + v;
      _mm512_store_ps(b.c[r] + v, _mm512_maskz_loadu_ps(mask, start));
    }
  }
}

// Adds what is to be added to 16 sums, and writes them.
inline void finish(const PanelProduct& p, int64_t row, int64_t column, __m512 value) {
  const __mmask16 mask = columns_from(p, column);
  if (p.bias != nullptr) {
    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, p.bias + column));
  }
  const int64_t place = row * p.out_stride + column;
  if (p.out_f32) {
    float* out = static_cast<float*>(p.out) + place;
    if (p.accumulate) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, out));
    _mm512_mask_storeu_ps(out, mask, value);
  } else {
    uint16_t* out = static_cast<uint16_t*>(p.out) + place;
    if (p.accumulate) value = _mm512_add_ps(value, widen(_mm256_maskz_loadu_epi16(mask, out)));
    const auto words = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
    if (mask == 0xffff) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), words);
    } else {
      _mm256_mask_storeu_epi16(out, mask, words);
    }
  }
}

// 32 whole rows x 32 columns, over the pairs that make whole tiles; returns the first that do not.
template <typename Tiles>
inline int64_t sum_whole(Tiles& tiles, const PanelProduct& p, int64_t row, int64_t column) {
  const uint16_t* upper = p.a + row * p.row_stride;
  const uint16_t* lower = upper + kTileRows * p.row_stride;
  const uint16_t* panel = p.panel + 2 * column;
  const int64_t stride = 2 * p.row_stride;
  int64_t pair = 0;
  for (; pair + kTilePairs <= p.n_pairs; pair += kTilePairs) {
    tiles.template load<4>(upper, stride);
    tiles.template load<6>(panel, 2 * kPanelStride);
    tiles.template multiply<0, 4, 6>();
    tiles.template load<7, 4 * kTileRows>(panel, 2 * kPanelStride);
    tiles.template multiply<1, 4, 7>();
    tiles.template load<5>(lower, stride);
    tiles.template multiply<2, 5, 6>();
    tiles.template multiply<3, 5, 7>();
    upper += 2 * kTilePairs;
    lower += 2 * kTilePairs;
    panel += kTilePairs * kPanelStride;
  }
  return pair;
}

// Two tiles of rows (kTall) or one x 32 columns, over the pairs from `pair` on.
template <bool kTall, typename Tiles>
inline void sum_rest(Tiles& tiles, const PanelProduct& p, int64_t row, int64_t column, int64_t pair,
                     Buffers& b) {
  for (; pair < p.n_pairs; pair += kTilePairs) {
    load_rows<4>(tiles, p, row, pair, b);
    load_panel<6>(tiles, p, pair, column, b);
    tiles.template multiply<0, 4, 6>();
    load_panel<7>(tiles, p, pair, column + kTileRows, b);
    tiles.template multiply<1, 4, 7>();
    if constexpr (kTall) {
      load_rows<5>(tiles, p, row + kTileRows, pair, b);
      tiles.template multiply<2, 5, 6>();
      tiles.template multiply<3, 5, 7>();
    }
  }
}

template <typename Tiles>
void multiply_block(Tiles& tiles, const PanelProduct& p, int64_t row, int64_t column, Buffers& b) {
  constexpr int64_t kStride = sizeof b.c[0];
  const int64_t rows = p.n_rows - row < kBlock ? p.n_rows - row : kBlock;
  if (p.start != nullptr) {
    copy_start(p, row, column, b);
    tiles.template load<0>(&b.c[0][0], kStride);
    tiles.template load<1>(&b.c[0][16], kStride);
    tiles.template load<2>(&b.c[16][0], kStride);
    tiles.template load<3>(&b.c[16][16], kStride);
  } else {
    tiles.template zero<0>();
    tiles.template zero<1>();
    tiles.template zero<2>();
    tiles.template zero<3>();
  }
  if (rows > kTileRows) {
    const int64_t pair = rows == kBlock ? sum_whole(tiles, p, row, column) : 0;
    sum_rest<true>(tiles, p, row, column, pair, b);
    tiles.template store<2>(&b.c[16][0], kStride);
    tiles.template store<3>(&b.c[16][16], kStride);
  } else {
    sum_rest<false>(tiles, p, row, column, 0, b);
  }
  tiles.template store<0>(&b.c[0][0], kStride);
  tiles.template store<1>(&b.c[0][16], kStride);
  for (int64_t r = 0; r < rows; ++r) {
    finish(p, row + r, column, _mm512_load_ps(b.c[r]));
    finish(p, row + r, column + 16, _mm512_load_ps(b.c[r] + 16));
  }
}

template <typename Tiles>
void multiply(const PanelProduct& p) {
  // Pairs that are not neighbours in a row make no tile (the Gram matrix of low-rank keys).
  if (p.pair_stride != 2) return multiply_avx512bf16(p);
  Buffers buffers;
  Tiles tiles;
  tiles.configure();
  for (int64_t column = 0; column < p.n_columns; column += kBlock) {
    for (int64_t row = 0; row < p.n_rows; row += kBlock) {
      multiply_block(tiles, p, row, column, buffers);
    }
  }
  tiles.release();
}

}  // namespace

void multiply_amx(const PanelProduct& p) { multiply<HardwareTiles>(p); }
void multiply_amx_emulated(const PanelProduct& p) { multiply<EmulatedTiles>(p); }

}  // namespace tiercel::cpu
