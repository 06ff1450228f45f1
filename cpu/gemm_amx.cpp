// Panel products with AMX tiles: 32 rows x 32 columns in four sums, so one tile is loaded per
// product.
//
//   tmm0-3   C [2][2]          += A (tmm4,5: 16 rows x 32 of k, as they lie)
//                               x B (tmm6,7: 16 pairs x 16 columns of the panel, as it lies)
//
// Half a panel is gone through with all rows before the other half: with k 256 it is 16 KiB and
// stays in L1, and the rows stream from L2 at 2 KiB per four products. Tiles are loaded as soon as
// their register is free (cpu/tile_schedule.h says why), and what is left to do with a block's sums
// is done between the products of the next block.
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

// A block whose sums are in a buffer, of which some are written already: first their left halves.
struct Pending {
  int64_t row = 0, column = 0, n_rows = 0;
  int64_t n_done = 0;  // of 2 n_rows vectors
  float (*sums)[kBlock] = nullptr;

  int64_t n_left() const { return 2 * n_rows - n_done; }
};

struct Buffers {
  alignas(64) float c[2][kBlock][kBlock];
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
void copy_start(const PanelProduct& p, int64_t row, int64_t column, float (*sums)[kBlock]) {
  for (int64_t r = 0; r < kBlock; ++r) {
    for (int64_t v = 0; v < kBlock; v += 16) {
      const __mmask16 mask = row + r < p.n_rows ? columns_from(p, column + v) : 0;
      const float* start = p.start + (row + r) * p.start_stride + column + v;
      _mm512_store_ps(sums[r] + v, _mm512_maskz_loadu_ps(mask, start));
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

inline void finish_some(const PanelProduct& p, Pending& pending, int64_t n) {
  for (; n > 0 && pending.n_left() > 0; --n, ++pending.n_done) {
    const bool right = pending.n_done >= pending.n_rows;
    const int64_t r = right ? pending.n_done - pending.n_rows : pending.n_done, v = right ? 16 : 0;
    finish(p, pending.row + r, pending.column + v, _mm512_load_ps(pending.sums[r] + v));
  }
}

// Where half a panel fits L1, many rows had better pass through it on their way from L2 (measured:
// 1.07 TFLOP/s, 0.95 without). Few rows stay there for the other half, and beside wider ones
// nothing would stay anyway.
constexpr int64_t kRowsThatStay = 128, kPairsThatStay = 256;

template <int kTile, bool kStay, typename Tiles>
inline void load_rows_whole(Tiles& tiles, const uint16_t* rows, int64_t stride) {
  if constexpr (kStay) {
    tiles.template load<kTile>(rows, stride);
  } else {
    tiles.template load_streaming<kTile>(rows, stride);
  }
}

// 32 whole rows x 32 columns, over the pairs that make whole tiles, and the block before, some of
// it after each four products; returns the first pair that does not.
template <bool kStay, typename Tiles>
inline int64_t sum_whole(Tiles& tiles, const PanelProduct& p, int64_t row, int64_t column,
                         Pending& pending) {
  const uint16_t* upper = p.a + row * p.row_stride;
  const uint16_t* lower = upper + kTileRows * p.row_stride;
  const uint16_t* panel = p.panel + 2 * column;
  const int64_t stride = 2 * p.row_stride;
  const int64_t n_slices = p.n_pairs / kTilePairs;
  if (n_slices == 0) return 0;
  const int64_t share = (pending.n_left() + n_slices - 1) / n_slices;
  load_rows_whole<4, kStay>(tiles, upper, stride);
  tiles.template load<6>(panel, 2 * kPanelStride);
  load_rows_whole<5, kStay>(tiles, lower, stride);
  tiles.template load<7, 4 * kTileRows>(panel, 2 * kPanelStride);
  for (int64_t slice = 0; slice < n_slices; ++slice) {
    // The last slice loads itself once more.
    const int64_t next = slice + 1 < n_slices ? 1 : 0;
    upper += next * 2 * kTilePairs;
    lower += next * 2 * kTilePairs;
    panel += next * kTilePairs * kPanelStride;
    tiles.template multiply<0, 4, 6>();
    tiles.template multiply<1, 4, 7>();
    load_rows_whole<4, kStay>(tiles, upper, stride);
    tiles.template multiply<3, 5, 7>();
    tiles.template load<7, 4 * kTileRows>(panel, 2 * kPanelStride);
    tiles.template multiply<2, 5, 6>();
    tiles.template load<6>(panel, 2 * kPanelStride);
    load_rows_whole<5, kStay>(tiles, lower, stride);
    finish_some(p, pending, share);
  }
  return n_slices * kTilePairs;
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

// Where the four sums of a block lie: in a buffer, or where they come from or go to.
struct SumTiles {
  float* at = nullptr;
  int64_t stride_bytes = 0;
};

template <typename Tiles>
void load_sums(Tiles& tiles, const SumTiles& from) {
  const float* lower = from.at + kTileRows * from.stride_bytes / 4;
  tiles.template load<0>(from.at, from.stride_bytes);
  tiles.template load<1>(from.at + 16, from.stride_bytes);
  tiles.template load<2>(lower, from.stride_bytes);
  tiles.template load<3>(lower + 16, from.stride_bytes);
}
template <bool kTall, typename Tiles>
void store_sums(Tiles& tiles, const SumTiles& to) {
  float* lower = to.at + kTileRows * to.stride_bytes / 4;
  tiles.template store<0>(to.at, to.stride_bytes);
  tiles.template store<1>(to.at + 16, to.stride_bytes);
  if constexpr (!kTall) return;
  tiles.template store<2>(lower, to.stride_bytes);
  tiles.template store<3>(lower + 16, to.stride_bytes);
}

// Finishes the block before, and leaves this one to be finished later, its sums in b.c[parity]; or
// nothing, where sums are what is wanted of it.
template <typename Tiles>
Pending multiply_block(Tiles& tiles, const PanelProduct& p, int64_t row, int64_t column, Buffers& b,
                       int parity, Pending& before) {
  const int64_t rows = p.n_rows - row < kBlock ? p.n_rows - row : kBlock;
  const bool whole = rows == kBlock && column + kBlock <= p.n_columns;
  const SumTiles buffer{&b.c[parity][0][0], sizeof b.c[0][0]};
  if (p.start == nullptr) {
    tiles.template zero<0>();
    tiles.template zero<1>();
    tiles.template zero<2>();
    tiles.template zero<3>();
  } else if (whole) {
    float* start = const_cast<float*>(p.start) + row * p.start_stride + column;
    load_sums(tiles, {start, p.start_stride * int64_t{sizeof(float)}});
  } else {
    copy_start(p, row, column, b.c[parity]);
    load_sums(tiles, buffer);
  }
  if (rows <= kTileRows) {
    sum_rest<false>(tiles, p, row, column, 0, b);
    store_sums<false>(tiles, buffer);
  } else {
    const int64_t pair = rows < kBlock ? 0
                         : p.n_rows <= kRowsThatStay || p.n_pairs > kPairsThatStay
                             ? sum_whole<true>(tiles, p, row, column, before)
                             : sum_whole<false>(tiles, p, row, column, before);
    sum_rest<true>(tiles, p, row, column, pair, b);
    if (whole && p.out_f32 && !p.accumulate && p.bias == nullptr) {
      float* out = static_cast<float*>(p.out) + row * p.out_stride + column;
      store_sums<true>(tiles, {out, p.out_stride * int64_t{sizeof(float)}});
      finish_some(p, before, before.n_left());
      return {};
    }
    store_sums<true>(tiles, buffer);
  }
  finish_some(p, before, before.n_left());
  return {.row = row, .column = column, .n_rows = rows, .sums = b.c[parity]};
}

template <typename Tiles>
void multiply(const PanelProduct& p) {
  // Pairs that are not neighbours in a row make no tile (the Gram matrix of low-rank keys).
  if (p.pair_stride != 2) return multiply_avx512bf16(p);
  Buffers buffers;
  Tiles tiles;
  tiles.configure();
  Pending pending;
  int parity = 0;
  for (int64_t column = 0; column < p.n_columns; column += kBlock) {
    for (int64_t row = 0; row < p.n_rows; row += kBlock, parity ^= 1) {
      pending = multiply_block(tiles, p, row, column, buffers, parity, pending);
    }
  }
  finish_some(p, pending, pending.n_left());
  tiles.release();
}

}  // namespace

void multiply_amx(const PanelProduct& p) { multiply<HardwareTiles>(p); }
void multiply_amx_emulated(const PanelProduct& p) { multiply<EmulatedTiles>(p); }

}  // namespace tiercel::cpu
