// Skinny products with AMX, weights as the A operand: 16 rows of 64 bytes are a tile as they lie in
// memory, and nothing of them is packed. x becomes the B operand, one tile per 32 elements of k:
//
//     x tile [16 pairs][16 rows of x][2]      rows beyond n_rows are zero
//     C tile [16 weight rows][16 rows of x]
//
// Smaller tiles are not cheaper, so 1 row costs what 16 cost: the time to read the weights. Coded
// weights become tiles in L1, some rows at a time.
#include "cpu/prefetch.h"
#include "cpu/skinny_finish.h"
#include "cpu/tile.h"
#include "cpu/transpose_avx512.h"
#include "cpu/weight_codes_avx512bf16.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;
// Of longer rows one tile at a time, so that blocks are short; shorter ones want two products at
// once.
constexpr int64_t kLongRow = 1024;
// Of k, what is multiplied while as much of what lies behind it is asked for, row by row.
constexpr int64_t kPart = 512;

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
    pack_tile(p.x + 2 * pair, p.k, p.n_rows, p.k / 2 - pair, out + pair * kTileRows);
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

using Stream = RowPrefetch<_MM_HINT_T1>;

// Loads the A tile of weight rows n .. n+15 and elements i .. i+31 of k. first: of the first piece,
// which no stream has asked for.
template <int kTile, typename Tiles>
void load_weights(Tiles& tiles, const SkinnyProduct& p, int64_t n, int64_t i, bool first) {
  const uint16_t* w = p.weight + n * p.k + i;
  if (n + kTileRows <= p.end && i + kTileDepth <= p.k) {
    if (first) {  // 2 KiB ahead
      for (int64_t row = 0; row < kTileRows; ++row) {
        _mm_prefetch(reinterpret_cast<const char*>(w + row * p.k + 1024), _MM_HINT_T1);
      }
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

// The weights behind elements begin .. end - 1 of a block of rows from n on, for as many steps:
// further along its rows, or of the next block.
Stream piece_behind(const SkinnyProduct& p, int64_t n, int64_t begin, int64_t end, int64_t block) {
  const int64_t n_steps = (end - begin + kTileDepth - 1) / kTileDepth;
  if (end == p.k) {
    n += block;
    end = 0;
  }
  const int64_t n_rows = p.end - n < block ? p.end - n : block;
  const int64_t n_columns = p.k - end < kPart ? p.k - end : kPart;
  return {p.weight + n * p.k + end, n_rows, 2 * n_columns, 2 * p.k, n_steps};
}

// Two weight tiles share an x tile, if rows are not too long; an odd one at the end runs alone.
template <typename Tiles>
void multiply(const SkinnyProduct& p) {
  float* sums = p.scratch;
  auto* x = reinterpret_cast<uint32_t*>(sums + p.n_rows * kSkinnyRange);
  pack_x(p, x);

  Tiles tiles;
  Tiles::configure();
  const int64_t block = p.k <= kLongRow ? 2 * kTileRows : kTileRows;
  for (int64_t n = p.first; n < p.end; n += block) {
    const bool two = block > kTileRows && n + kTileRows < p.end;
    tiles.template zero<0>();
    tiles.template zero<1>();
    for (int64_t part = 0; part < p.k; part += kPart) {
      const int64_t end = part + kPart < p.k ? part + kPart : p.k;
      const bool first = n == p.first && part == 0;
      Stream next = piece_behind(p, n, part, end, block);
      for (int64_t i = part; i < end; i += kTileDepth) {
        tiles.template load<4>(x + i / 2 * kTileRows, kTileRows * sizeof(uint32_t));
        next.ask();
        load_weights<6>(tiles, p, n, i, first);
        tiles.template multiply<0, 6, 4>();
        if (!two) continue;
        load_weights<7>(tiles, p, n + kTileRows, i, first);
        tiles.template multiply<1, 7, 4>();
      }
    }
    float* to = sums + (n - p.first);
    store_sums<0>(tiles, p.n_rows, to);
    if (two) store_sums<1>(tiles, p.n_rows, to + kTileRows);
  }
  Tiles::release();

  for (int64_t row = 0; row < p.n_rows; ++row)
    finish<RoundAsPanels>(p, row, sums + row * kSkinnyRange);
}

// ---- coded weights ----

// Decoded weights of 16 rows, 128 elements of k at a time.
constexpr int64_t kRunsAtOnce = 4;
struct DecodedTiles {
  alignas(64) uint16_t runs[kRunsAtOnce][kTileRows][kTileDepth];
};

// The codes of up to 16 rows, from their first element on.
struct CodedBlock {
  const uint8_t* codes;
  int64_t n_rows;
};

// Elements i .. i + 127 of k of some rows of a block. Out of line: beside tile instructions g++
// makes its constants anew.
template <WeightCode kCode>
__attribute__((noinline)) void decode(const SkinnyProduct& p, const CodedBlock& block,
                                      int64_t first, int64_t end, int64_t i,
                                      GroupScales (&scales)[kTileRows], Stream& next,
                                      DecodedTiles& out) {
  const int shift = __builtin_ctz(static_cast<unsigned>(p.group));
  const int64_t group = (i >> shift) % kGroupsAtOnce, row_bytes = p.row_bytes;
  if (end > block.n_rows) end = block.n_rows;
  if (group == 0) {
    const uint8_t* params = block.codes + p.code_bytes + (i >> shift) * 4;
    for (int64_t row = first; row < end; ++row) {
      scales[row].template load<kCode>(reinterpret_cast<const uint32_t*>(params + row * row_bytes));
    }
  }
  const uint8_t* codes = block.codes + first * row_bytes + i * bits_of(kCode) / 8;
  for (int64_t row = first; row < end; ++row, codes += row_bytes) {
    next.ask();
    __m512i runs[kRunsAtOnce];
    decode_128<RoundAvx512Bf16, kCode>(codes, scales[row], group, shift, runs);
#pragma GCC unroll 4
    for (int64_t run = 0; run < kRunsAtOnce; ++run)
      _mm512_store_si512(out.runs[run][row], runs[run]);
  }
}

// The product of run kRun of 32 elements.
template <int kRun, typename Tiles>
[[gnu::always_inline]] inline void multiply_run(Tiles& tiles, const DecodedTiles& decoded,
                                                const uint32_t* x_tile) {
  constexpr int kX = 4 + kRun % 2, kWeights = 6 + kRun % 2;
  tiles.template load<kX>(x_tile + kRun * kTileDepth / 2 * kTileRows, kTileRows * sizeof(uint32_t));
  tiles.template load<kWeights>(decoded.runs[kRun], 2 * kTileDepth);
  tiles.template multiply<0, kWeights, kX>();
}

// Weights are decoded one step ahead of the products, so that their stores are done when tiles read
// them, and some rows between two products, which wait for each other. The order of the sums is
// that of weights which are no codes.
template <typename Tiles, WeightCode kCode>
void multiply_coded(const SkinnyProduct& p) {
  constexpr int64_t kStep = kRunsAtOnce * kTileDepth, kShare = kTileRows / kRunsAtOnce;
  float* sums = p.scratch;
  auto* x = reinterpret_cast<uint32_t*>(sums + p.n_rows * kSkinnyRange);
  pack_x(p, x);
  DecodedTiles decoded[2] = {};  // rows behind the last one are sums that nobody reads
  GroupScales scales[kTileRows];
  const auto* rows = reinterpret_cast<const uint8_t*>(p.weight);

  Tiles tiles;
  Tiles::configure();
  for (int64_t n = p.first; n < p.end; n += kTileRows) {
    CodedBlock block{rows + n * p.row_bytes, p.end - n < kTileRows ? p.end - n : kTileRows};
    const int64_t rows_behind =
        p.end - n - kTileRows < kTileRows ? p.end - n - kTileRows : kTileRows;
    Stream next(rows + (n + kTileRows) * p.row_bytes, rows_behind, p.row_bytes, p.row_bytes,
                p.k / kStep * kTileRows);
    tiles.template zero<0>();
    decode<kCode>(p, block, 0, kTileRows, 0, scales, next, decoded[0]);
    for (int64_t i = 0; i < p.k; i += kStep) {
      const DecodedTiles& now = decoded[i / kStep % 2];
      DecodedTiles& then = decoded[(i / kStep + 1) % 2];
      const uint32_t* x_tile = x + i / 2 * kTileRows;
      if (i + kStep == p.k) block.n_rows = 0;  // nothing left to decode
      multiply_run<0>(tiles, now, x_tile);
      decode<kCode>(p, block, 0, kShare, i + kStep, scales, next, then);
      multiply_run<1>(tiles, now, x_tile);
      decode<kCode>(p, block, kShare, 2 * kShare, i + kStep, scales, next, then);
      multiply_run<2>(tiles, now, x_tile);
      decode<kCode>(p, block, 2 * kShare, 3 * kShare, i + kStep, scales, next, then);
      multiply_run<3>(tiles, now, x_tile);
      decode<kCode>(p, block, 3 * kShare, 4 * kShare, i + kStep, scales, next, then);
    }
    store_sums<0>(tiles, p.n_rows, sums + (n - p.first));
  }
  Tiles::release();

  for (int64_t row = 0; row < p.n_rows; ++row)
    finish<RoundAsPanels>(p, row, sums + row * kSkinnyRange);
}

template <typename Tiles>
void multiply_any(const SkinnyProduct& p) {
  switch (p.code) {
    case WeightCode::kInt4: return multiply_coded<Tiles, WeightCode::kInt4>(p);
    case WeightCode::kInt8: return multiply_coded<Tiles, WeightCode::kInt8>(p);
    case WeightCode::kE4M3: return multiply_coded<Tiles, WeightCode::kE4M3>(p);
    case WeightCode::kInt4Min: return multiply_coded<Tiles, WeightCode::kInt4Min>(p);
    case WeightCode::kInt8Min: return multiply_coded<Tiles, WeightCode::kInt8Min>(p);
    case WeightCode::kInt8x16: return multiply_coded<Tiles, WeightCode::kInt8x16>(p);
    case WeightCode::kBf16: break;
  }
  multiply<Tiles>(p);
}

}  // namespace

void multiply_skinny_amx(const SkinnyProduct& p) { multiply_any<HardwareTiles>(p); }
void multiply_skinny_amx_emulated(const SkinnyProduct& p) { multiply_any<EmulatedTiles>(p); }

}  // namespace tiercel::cpu
