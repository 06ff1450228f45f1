// Panel products with AMX tiles: 32 rows x 32 columns in four sums, so one tile is loaded per
// product.
//
//   tmm0-3   C [2][2]          += A (tmm4,5: 16 rows x 32 of k, as they lie)
//                               x B (tmm6,7: 16 pairs x 16 columns of the panel, as it lies)
//
// A panel is made of tiles here: [2 halves][n_slices][2 tiles][16 pairs][16 columns][2], zeros
// behind the last pair. Half a panel is gone through with all rows before the other half: with 512
// of k it is 32 KiB and stays in L1, and the rows stream from L2 at 2 KiB per four products. Tiles
// are loaded as soon as their register is free (cpu/tile_schedule.h says why), and what is left to
// do with a block's sums is done between the products of the next block.
//
// Per element the sum is a chain over slices of 32 of k, each added as tdpbf16ps does (cpu/tile.h).
#include "cpu/bf16_avx512.h"
#include "cpu/gemm.h"
#include "cpu/prefetch.h"
#include "cpu/tile.h"
#include "cpu/transpose_avx512.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTilePairs = 16;
constexpr int64_t kBlock = 32;  // rows, and columns
constexpr int64_t kTileElements = 512;

int64_t n_slices_of(int64_t n_pairs) { return (n_pairs + kTilePairs - 1) / kTilePairs; }

// Tile `slice` of 16 columns, `group` of four.
uint16_t* panel_tile(uint16_t* panel, int64_t n_slices, int64_t group, int64_t slice) {
  return panel + ((group / 2 * n_slices + slice) * 2 + group % 2) * kTileElements;
}

// Sums of a block, its left and its right half.
struct Sums {
  alignas(64) float halves[2][kBlock][kTileRows];
};

// The rows of a block that are not written yet: where their sums are, and where they belong.
struct Pending {
  int64_t n_rows = 0;
  const float* sums = nullptr;  // of the left half
  int64_t row = 0, column = 0;
};

struct Buffers {
  Sums sums[2];
  alignas(64) uint16_t a[kTileRows][2 * kTilePairs];
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

// The sums to begin with, zeros where the matrix ends.
void copy_start(const PanelProduct& p, int64_t row, int64_t column, Sums& sums) {
  for (int64_t r = 0; r < kBlock; ++r) {
    for (int64_t right = 0; right < 2; ++right) {
      const int64_t first = column + right * kTileRows;
      const __mmask16 mask = row + r < p.n_rows ? mask_of(p.n_columns - first) : 0;
      const float* start = p.start + (row + r) * p.start_stride + first;
      _mm512_store_ps(sums.halves[right][r], _mm512_maskz_loadu_ps(mask, start));
    }
  }
}

// Adds what is to be added to 32 sums of a row of the result, n of them, and writes them.
inline void finish_row(const PanelProduct& p, int64_t row, int64_t column, int64_t n, __m512 left,
                       __m512 right) {
  const __mmask16 first = mask_of(n), second = mask_of(n - kTileRows);
  if (p.bias != nullptr) {
    left = _mm512_add_ps(left, _mm512_maskz_loadu_ps(first, p.bias + column));
    right = _mm512_add_ps(right, _mm512_maskz_loadu_ps(second, p.bias + column + kTileRows));
  }
  const int64_t place = row * p.out_stride + column;
  if (p.out_f32) {
    float* out = static_cast<float*>(p.out) + place;
    if (p.accumulate) {
      left = _mm512_add_ps(left, _mm512_maskz_loadu_ps(first, out));
      right = _mm512_add_ps(right, _mm512_maskz_loadu_ps(second, out + kTileRows));
    }
    _mm512_mask_storeu_ps(out, first, left);
    _mm512_mask_storeu_ps(out + kTileRows, second, right);
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(p.out) + place;
  if (p.accumulate) {
    left = _mm512_add_ps(left, widen(_mm256_maskz_loadu_epi16(first, out)));
    right = _mm512_add_ps(right, widen(_mm256_maskz_loadu_epi16(second, out + kTileRows)));
  }
  const auto line = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(right, left));
  _mm512_mask_storeu_epi16(out, _mm512_kunpackw(second, first), line);
}

// Write a block by and by: up to n of what n_left() counts.
class Writer {
 public:
  explicit Writer(const PanelProduct& p) : p_(p) {}
  [[gnu::always_inline]] void begin(const Pending& block) { block_ = block; }
  [[gnu::always_inline]] int64_t n_left() const { return block_.n_rows; }
  [[gnu::always_inline]] void write(int64_t n) {
    for (; n > 0 && block_.n_rows > 0;
         --n, --block_.n_rows, ++block_.row, block_.sums += kTileRows) {
      finish_row(p_, block_.row, block_.column, p_.n_columns - block_.column,
                 _mm512_load_ps(block_.sums), _mm512_load_ps(block_.sums + kBlock * kTileRows));
    }
  }

 private:
  const PanelProduct& p_;
  Pending block_;
};

// Whole lines of bf16, with its numbers in registers: behind a tile instruction g++ reads again
// what is in memory.
template <bool kBias, bool kAccumulate>
class LineWriter {
 public:
  explicit LineWriter(const PanelProduct& p)
      : first_(static_cast<uint16_t*>(p.out)), stride_(p.out_stride), all_bias_(p.bias) {}
  [[gnu::always_inline]] void begin(const Pending& block) {
    n_rows_ = block.n_rows;
    sums_ = block.sums;
    out_ = first_ + block.row * stride_ + block.column;
    if constexpr (kBias) bias_ = all_bias_ + block.column;
  }
  [[gnu::always_inline]] int64_t n_left() const { return n_rows_; }
  [[gnu::always_inline]] void write(int64_t n) {
    for (; n > 0 && n_rows_ > 0; --n, --n_rows_, out_ += stride_, sums_ += kTileRows) {
      __m512 left = _mm512_load_ps(sums_), right = _mm512_load_ps(sums_ + kBlock * kTileRows);
      if constexpr (kBias) {
        left = _mm512_add_ps(left, _mm512_loadu_ps(bias_));
        right = _mm512_add_ps(right, _mm512_loadu_ps(bias_ + kTileRows));
      }
      if constexpr (kAccumulate) {
        const auto* halves = reinterpret_cast<const __m256i*>(out_);
        left = _mm512_add_ps(left, widen(_mm256_loadu_si256(halves)));
        right = _mm512_add_ps(right, widen(_mm256_loadu_si256(halves + 1)));
      }
      _mm512_storeu_si512(out_, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(right, left)));
    }
  }

 private:
  uint16_t* const first_;
  const int64_t stride_;
  const float* const all_bias_;
  int64_t n_rows_ = 0;
  const float *sums_ = nullptr, *bias_ = nullptr;
  uint16_t* out_ = nullptr;
};

// Transposes: rows of the block are columns of the result. Counts halves of a block.
class TransposingWriter {
 public:
  explicit TransposingWriter(const PanelProduct& p) : p_(p) {}
  void begin(const Pending& block) {
    block_ = block;
    n_halves_ = 2;
  }
  int64_t n_left() const { return n_halves_; }
  void write(int64_t n) {
    for (; n > 0 && n_halves_ > 0; --n, --n_halves_, block_.column += kTileRows) write_half();
  }

 private:
  __attribute__((noinline)) void write_half() {
    const float* sums = block_.sums + (2 - n_halves_) * kBlock * kTileRows;
    __m512i first[kTileRows], second[kTileRows];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kTileRows; ++i) first[i] = _mm512_load_si512(sums + i * kTileRows);
    transpose(first);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kTileRows; ++i)
      second[i] = _mm512_load_si512(sums + (kTileRows + i) * kTileRows);
    transpose(second);
    const int64_t n_rows =
        p_.n_columns - block_.column < kTileRows ? p_.n_columns - block_.column : kTileRows;
    for (int64_t i = 0; i < n_rows; ++i) {
      finish_row(p_, block_.column + i, block_.row, block_.n_rows, _mm512_castsi512_ps(first[i]),
                 _mm512_castsi512_ps(second[i]));
    }
  }

  const PanelProduct& p_;
  Pending block_;
  int64_t n_halves_ = 0;
};

using AheadPrefetch = RowPrefetch<_MM_HINT_T1>;
using SumsPrefetch = RowPrefetch<_MM_HINT_T0>;

// p.ahead, some lines after each four products.
AheadPrefetch prefetch_ahead(const PanelProduct& p) {
  const int64_t n_steps = (p.n_rows + kBlock - 1) / kBlock * 2 * n_slices_of(p.n_pairs);
  return {p.ahead.rows, p.ahead.n_rows, p.ahead.row_bytes, p.ahead.stride, n_steps};
}

// The sums that the block after this one begins with, in as many steps: from L2 they would be
// waited for, going in and coming out.
SumsPrefetch prefetch_sums(const PanelProduct& p, int64_t row, int64_t column, int64_t n_steps) {
  row += kBlock;
  if (row >= p.n_rows) {
    row = 0;
    column += kBlock;
  }
  const int64_t n_rows = column < p.n_columns ? kBlock : 0, floats = sizeof(float);
  return {p.start + row * p.start_stride + column, n_rows, kBlock * floats, p.start_stride * floats,
          n_steps};
}

// 32 whole rows x 32 columns, over the pairs that make whole tiles, and rows of the block before
// after each four products; returns the first pair that does not. Rows stream past L1, which half a
// panel has to itself.
template <bool kStart, typename Tiles, typename Out>
[[gnu::always_inline]] inline int64_t sum_whole(Tiles& tiles, const PanelProduct& p, int64_t row,
                                                int64_t column, const uint16_t* panel, Out& out,
                                                AheadPrefetch& ahead) {
  const uint16_t* upper = p.a + row * p.row_stride;
  const uint16_t* lower = upper + kTileRows * p.row_stride;
  const int64_t stride = 2 * p.row_stride;
  const int64_t n_slices = p.n_pairs / kTilePairs;
  if (n_slices == 0) return 0;
  SumsPrefetch next_sums =
      kStart ? prefetch_sums(p, row, column, n_slices) : SumsPrefetch(nullptr, 0, 0, 0, 1);
  const int64_t share = (out.n_left() + n_slices - 1) / n_slices;
  tiles.template load_streaming<4>(upper, stride);
  tiles.template load<6>(panel, 64);
  tiles.template load_streaming<5>(lower, stride);
  tiles.template load<7, 2 * kTileElements>(panel, 64);
  for (int64_t slice = 0; slice < n_slices; ++slice) {
    // The last slice loads itself once more.
    const int64_t next = slice + 1 < n_slices ? 1 : 0;
    upper += next * 2 * kTilePairs;
    lower += next * 2 * kTilePairs;
    panel += next * 2 * kTileElements;
    tiles.template multiply<0, 4, 6>();
    tiles.template multiply<1, 4, 7>();
    tiles.template load_streaming<4>(upper, stride);
    tiles.template multiply<3, 5, 7>();
    tiles.template load<7, 2 * kTileElements>(panel, 64);
    tiles.template multiply<2, 5, 6>();
    tiles.template load<6>(panel, 64);
    tiles.template load_streaming<5>(lower, stride);
    out.write(share);
    ahead.ask();
    if constexpr (kStart) next_sums.ask();
  }
  return n_slices * kTilePairs;
}

// Two tiles of rows (kTall) or one x 32 columns, over the pairs from `pair` on.
template <bool kTall, typename Tiles>
__attribute__((noinline)) void sum_rest(Tiles& tiles, const PanelProduct& p, int64_t row,
                                        const uint16_t* panel, int64_t pair, Buffers& b) {
  panel += pair / kTilePairs * 2 * kTileElements;
  for (; pair < p.n_pairs; pair += kTilePairs, panel += 2 * kTileElements) {
    load_rows<4>(tiles, p, row, pair, b);
    tiles.template load<6>(panel, 64);
    tiles.template multiply<0, 4, 6>();
    tiles.template load<7, 2 * kTileElements>(panel, 64);
    tiles.template multiply<1, 4, 7>();
    if constexpr (kTall) {
      load_rows<5>(tiles, p, row + kTileRows, pair, b);
      tiles.template multiply<2, 5, 6>();
      tiles.template multiply<3, 5, 7>();
    }
  }
}

// Where the four sums of a block lie, [2][2] tiles.
struct SumTiles {
  float* at = nullptr;
  int64_t stride_bytes = 0;
  int64_t right = 0, down = 0;  // in floats
};
SumTiles tiles_of(Sums& sums) {
  return {sums.halves[0][0], 64, kBlock * kTileRows, kTileRows * kTileRows};
}
SumTiles tiles_of(float* rows, int64_t stride) {
  return {rows, 4 * stride, kTileRows, kTileRows * stride};
}

template <typename Tiles>
void load_sums(Tiles& tiles, const SumTiles& from) {
  tiles.template load<0>(from.at, from.stride_bytes);
  tiles.template load<1>(from.at + from.right, from.stride_bytes);
  tiles.template load<2>(from.at + from.down, from.stride_bytes);
  tiles.template load<3>(from.at + from.down + from.right, from.stride_bytes);
}
template <bool kTall, typename Tiles>
void store_sums(Tiles& tiles, const SumTiles& to) {
  tiles.template store<0>(to.at, to.stride_bytes);
  tiles.template store<1>(to.at + to.right, to.stride_bytes);
  if constexpr (!kTall) return;
  tiles.template store<2>(to.at + to.down, to.stride_bytes);
  tiles.template store<3>(to.at + to.down + to.right, to.stride_bytes);
}

// Writes the block before, and leaves this one to be written later, its sums in `sums`; or nothing,
// where sums are what is wanted of it.
template <bool kStart, typename Tiles, typename Out>
[[gnu::always_inline]] inline void multiply_block(Tiles& tiles, const PanelProduct& p, int64_t row,
                                                  int64_t column, Buffers& b, Sums& sums, Out& out,
                                                  AheadPrefetch& ahead) {
  const int64_t rows = p.n_rows - row < kBlock ? p.n_rows - row : kBlock;
  const bool whole = rows == kBlock && column + kBlock <= p.n_columns;
  const uint16_t* panel = p.panel + column * n_slices_of(p.n_pairs) * 2 * kTilePairs;
  if constexpr (!kStart) {
    tiles.template zero<0>();
    tiles.template zero<1>();
    tiles.template zero<2>();
    tiles.template zero<3>();
  } else if (whole) {
    float* start = const_cast<float*>(p.start) + row * p.start_stride + column;
    load_sums(tiles, tiles_of(start, p.start_stride));
  } else {
    copy_start(p, row, column, sums);
    load_sums(tiles, tiles_of(sums));
  }
  SumTiles to = tiles_of(sums);
  bool is_written = false;
  if (rows <= kTileRows) {
    sum_rest<false>(tiles, p, row, panel, 0, b);
    store_sums<false>(tiles, to);
  } else {
    const int64_t pair =
        rows < kBlock ? 0 : sum_whole<kStart>(tiles, p, row, column, panel, out, ahead);
    if (pair < p.n_pairs) sum_rest<true>(tiles, p, row, panel, pair, b);
    is_written = whole && p.out_f32 && !p.transposed && !p.accumulate && p.bias == nullptr;
    if (is_written)
      to = tiles_of(static_cast<float*>(p.out) + row * p.out_stride + column, p.out_stride);
    store_sums<true>(tiles, to);
  }
  out.write(out.n_left());
  if (!is_written)
    out.begin({.n_rows = rows, .sums = sums.halves[0][0], .row = row, .column = column});
}

template <bool kStart, typename Tiles, typename Out>
void multiply_blocks(const PanelProduct& p) {
  Buffers buffers;
  Tiles tiles;
  tiles.configure();
  Out out(p);
  AheadPrefetch ahead = prefetch_ahead(p);
  int parity = 0;
  for (int64_t column = 0; column < p.n_columns; column += kBlock) {
    for (int64_t row = 0; row < p.n_rows; row += kBlock, parity ^= 1) {
      multiply_block<kStart>(tiles, p, row, column, buffers, buffers.sums[parity], out, ahead);
    }
  }
  out.write(out.n_left());
  tiles.release();
}

template <typename Tiles, typename Out>
void multiply_blocks(const PanelProduct& p) {
  p.start != nullptr ? multiply_blocks<true, Tiles, Out>(p) : multiply_blocks<false, Tiles, Out>(p);
}

template <typename Tiles>
void multiply(const PanelProduct& p) {
  // Pairs that are not neighbours in a row make no tile (the Gram matrix of low-rank keys).
  if (p.pair_stride != 2) return multiply_avx512bf16(p);
  if (p.transposed) return multiply_blocks<Tiles, TransposingWriter>(p);
  if (p.out_f32 || p.n_columns < kPanelColumns) return multiply_blocks<Tiles, Writer>(p);
  if (p.bias != nullptr) {
    p.accumulate ? multiply_blocks<Tiles, LineWriter<true, true>>(p)
                 : multiply_blocks<Tiles, LineWriter<true, false>>(p);
  } else {
    p.accumulate ? multiply_blocks<Tiles, LineWriter<false, true>>(p)
                 : multiply_blocks<Tiles, LineWriter<false, false>>(p);
  }
}

}  // namespace

void pack_rows_amx(const uint16_t* source, int64_t row_stride, int64_t n_columns, int64_t k,
                   uint16_t* panel) {
  const int64_t n_slices = n_slices_of(k / 2);
  const int64_t n_groups = (n_columns + kBlock - 1) / kBlock * 2;  // halves beyond it are not read
  for (int64_t group = 0; group < n_groups; ++group) {
    const uint16_t* rows = source + kTileRows * group * row_stride;
    for (int64_t slice = 0; slice < n_slices; ++slice) {
      const int64_t pair = slice * kTilePairs;
      pack_tile(rows + 2 * pair, row_stride, n_columns - kTileRows * group, k / 2 - pair,
                panel_tile(panel, n_slices, group, slice));
    }
  }
}

void pack_columns_amx(const uint16_t* matrix, int64_t row_stride, int64_t n_columns, int64_t k,
                      uint16_t* panel) {
  const int64_t n_slices = n_slices_of(k / 2);
  for (int64_t pair = 0; pair < n_slices * kTilePairs; ++pair) {
    const uint16_t* even = matrix + 2 * pair * row_stride;
    for (int64_t group = 0; group < kPanelColumns / kTileRows; ++group) {
      const int64_t column = kTileRows * group;
      const __mmask16 columns = pair < k / 2 ? mask_of(n_columns - column) : __mmask16{0};
      uint16_t* tile = panel_tile(panel, n_slices, group, pair / kTilePairs);
      _mm512_storeu_si512(tile + pair % kTilePairs * 2 * kTileRows,
                          pairs_of_rows(even + column, row_stride, columns));
    }
  }
}

void multiply_amx(const PanelProduct& p) { multiply<HardwareTiles>(p); }
void multiply_amx_emulated(const PanelProduct& p) { multiply<EmulatedTiles>(p); }

}  // namespace tiercel::cpu
