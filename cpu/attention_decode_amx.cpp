// Decode attention over the rows of a plane with AMX, for groups of more than four heads: with
// fewer the vector kernel waits for memory too, with eight it has four times as many instructions.
//
//   scores   as row_tiles.h says, of a block of 64 rows
//   softmax  as the vector kernel does it
//   values   C [16 heads][16 elements] += A [16 heads][32 rows]  x  B [16 pairs of rows][16][2]
//
// Of 32 elements of two rows of values the even ones make a row of one B tile and the odd ones of
// another, which is the order of DecodeBlock::out. Weights are sums of two bf16: 16 bits of them.
#if defined(__x86_64__)
#include "cpu/bf16_avx512.h"
#include "cpu/decode_kernel.h"
#include "cpu/row_tiles.h"

namespace tiercel::cpu {
namespace {

using V = Avx512Bf16;

template <class Tiles, int kPieces, int kHeads>
class PlaneAttention {
 public:
  PlaneAttention(const DecodeBlock& range, int64_t row_stride)
      : b_(range),
        n_rows_(range.score.n_rows),
        keys_{reinterpret_cast<const char*>(range.score.row_base), 2 * row_stride},
        values_{reinterpret_cast<const char*>(range.value_base), 2 * row_stride} {}

  void run() {
    scores_.pack(b_.score.queries, b_.score.query_bytes, b_.n_live_heads);
    Tiles::configure();
    for (int32_t row = 0; row < n_rows_; row += kDecodeBlock) {
      b_.score.n_rows = n_rows_ - row < kDecodeBlock ? n_rows_ - row : kDecodeBlock;
      scores_.score(tiles_, {keys_.at(row), keys_.stride}, b_.score.n_rows, {b_.score.scale},
                    b_.score.scores, b_.score.score_stride);
      const SpacedRows values{values_.at(row), values_.stride};
      // Memory is not to wait for exponentials: the first half of the next values is asked for
      // here.
      for (int32_t head = 0; head < b_.n_live_heads; ++head) {
        softmax_head<V>(b_, head);
        ask_for(values, kDecodeBlock + kPiece * head / b_.n_live_heads,
                kDecodeBlock + kPiece * (head + 1) / b_.n_live_heads);
      }
      add_values(values);
    }
    Tiles::release();
  }

 private:
  static constexpr int kRows = 16;
  static constexpr int kPiece = 32;
  static constexpr int kStrips = kDecodeBlock / kPiece;

  static void ask_for(const SpacedRows& rows, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
#pragma GCC unroll 8
      for (int piece = 0; piece < kPieces; ++piece) V::prefetch(rows.at(row) + piece * 64);
    }
  }

  void add_values(const SpacedRows& values) {
    const int n_strips = (b_.score.n_rows + kPiece - 1) / kPiece;
    for (int strip = 0; strip < n_strips; ++strip) {
      for (int row = strip * kPiece; row < (strip + 1) * kPiece; row += 2) {
        interleave(values, row);
        ask_for(values, kDecodeBlock + kPiece + row / 2, kDecodeBlock + kPiece + row / 2 + 1);
      }
      split_weights(strip);
    }
    tiles_.template load<4>(weights_[0][0], 64);
    tiles_.template load<5>(weights_[0][1], 64);
    if (n_strips > 1) {
      tiles_.template load<6>(weights_[1][0], 64);
      tiles_.template load<7>(weights_[1][1], 64);
    }
    add_pieces(n_strips > 1);
    add_to_out(kPieces - 1);
  }

  template <int piece = 0>
  void add_pieces(bool second) {
    if constexpr (piece < kPieces) {
      tiles_.template zero<0>();
      tiles_.template zero<1>();
      add_strip<0>(piece);
      if (second) add_strip<1>(piece);
      tiles_.template store<0>(sums_[piece % 2][0], 64);
      tiles_.template store<1>(sums_[piece % 2][1], 64);
      if constexpr (piece > 0) add_to_out(piece - 1);
      add_pieces<piece + 1>(second);
    }
  }
  template <int kStrip>
  void add_strip(int piece) {
    tiles_.template load<2>(pairs_[kStrip][piece][0], 64);
    tiles_.template load<3>(pairs_[kStrip][piece][1], 64);
    tiles_.template multiply<0, 4 + 2 * kStrip, 2>();
    tiles_.template multiply<1, 4 + 2 * kStrip, 3>();
    tiles_.template multiply<0, 5 + 2 * kStrip, 2>();
    tiles_.template multiply<1, 5 + 2 * kStrip, 3>();
  }

  // Rows row and row + 1 of the block; those behind its last are zero.
  void interleave(const SpacedRows& values, int row) {
    const int left = b_.score.n_rows - row;
    const char* first = values.at(row);
#pragma GCC unroll 8
    for (int piece = 0; piece < kPieces; ++piece) {
      __m512i a = _mm512_setzero_si512(), b = a;
      if (left > 0) a = _mm512_loadu_si512(first + piece * 64);
      if (left > 1) b = _mm512_loadu_si512(first + values.stride + piece * 64);
      constexpr __mmask32 kOdd = 0xaaaaaaaa;
      auto& to = pairs_[row / kPiece][piece];
      const int pair = row % kPiece / 2;
      _mm512_store_si512(to[0][pair], _mm512_mask_blend_epi16(kOdd, a, _mm512_slli_epi32(b, 16)));
      _mm512_store_si512(to[1][pair], _mm512_mask_blend_epi16(kOdd, _mm512_srli_epi32(a, 16), b));
    }
  }

  void split_weights(int strip) {
    const int left = b_.score.n_rows - strip * kPiece;
    const __mmask32 live = left >= kPiece ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
    for (int h = 0; h < b_.n_live_heads; ++h) {
      const float* weights = b_.score.scores + h * b_.score.score_stride + strip * kPiece;
      const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(live), weights);
      const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(live >> 16), weights + 16);
      const auto rounded = (__m512i)_mm512_cvtne2ps_pbh(high, low);
      const auto rest = (__m512i)_mm512_cvtne2ps_pbh(
          _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64(rounded, 1))),
          _mm512_sub_ps(low, widen(_mm512_castsi512_si256(rounded))));
      _mm512_store_si512(weights_[strip][0][h], rounded);
      _mm512_store_si512(weights_[strip][1][h], rest);
    }
  }

  void add_to_out(int piece) {
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
      if (h >= b_.n_live_heads) break;
      float* out = b_.out + h * b_.out_stride + piece * kPiece;
      const __m512 alpha = _mm512_set1_ps(b_.alpha[h]);
      const auto& sums = sums_[piece % 2];
      const __m512 even = _mm512_fmadd_ps(_mm512_loadu_ps(out), alpha, _mm512_load_ps(sums[0][h]));
      const __m512 odd =
          _mm512_fmadd_ps(_mm512_loadu_ps(out + 16), alpha, _mm512_load_ps(sums[1][h]));
      _mm512_storeu_ps(out, even);
      _mm512_storeu_ps(out + 16, odd);
    }
  }

  DecodeBlock b_;  // the block in hand
  int32_t n_rows_;
  SpacedRows keys_, values_;
  Tiles tiles_;
  RowTiles<Tiles, Bf16Products, kPieces, kHeads> scores_;
  alignas(64) uint16_t pairs_[kStrips][kPieces][2][kRows][kPiece];
  alignas(64) uint16_t weights_[kStrips][2][kRows][kPiece] = {};
  alignas(64) float sums_[2][2][kRows][kRows];
};

template <class Tiles, int kPieces>
void attend_plane(const DecodeBlock& range, int64_t row_stride) {
  if (range.n_live_heads <= 8) {
    PlaneAttention<Tiles, kPieces, 8>(range, row_stride).run();
  } else {
    PlaneAttention<Tiles, kPieces, 16>(range, row_stride).run();
  }
}
template <class Tiles>
void attend_plane(const DecodeBlock& range, int64_t row_stride) {
  switch (range.score.head_dim) {
    case 64: return attend_plane<Tiles, 2>(range, row_stride);
    case 96: return attend_plane<Tiles, 3>(range, row_stride);
    case 128: return attend_plane<Tiles, 4>(range, row_stride);
    case 256: return attend_plane<Tiles, 8>(range, row_stride);
  }
}

template <class Tiles>
constexpr DecodeKernel with_tiles() {
  DecodeKernel kernel = kDecodeKernel<V>;
  kernel.attend_plane = attend_plane<Tiles>;
  return kernel;
}

}  // namespace

constinit const DecodeKernel kDecodeAmx = with_tiles<HardwareTiles>();
constinit const DecodeKernel kDecodeAmxEmulated = with_tiles<EmulatedTiles>();

}  // namespace tiercel::cpu
#endif
