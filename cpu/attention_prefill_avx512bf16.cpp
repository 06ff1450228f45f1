// Prefill attention with vdpbf16ps, for cores where it runs at full rate (Zen 4 and 5).
//
// A row tile of 6 rows runs over the superblock in blocks of 256 keys, three phases per block:
//
//   scores   S[6][256]  += q (pair broadcast)  x  K tile rows (16 keys)     6 x 4 accumulators
//   weights  P[6][256]   = exp2(S - reference), bf16, in V's row order
//   values   O[6][d]    += P (pair broadcast)  x  V tile rows (16 columns)  6 x 4 accumulators
//
// S and P stay in L1, K and V stream from L2 (21 bytes per cycle at full rate), O is in L1.
// A row's reference is the running maximum rounded up to a whole octave: raising it is an exact
// multiplication by a power of two, so results do not depend on where it was raised.
#include "cpu/attention_prefill.h"
#include "cpu/attention_prefill_weights.h"
#include "cpu/intrinsics.h"
#include "cpu/stage.h"

namespace tiercel::cpu::prefill {
namespace {

constexpr int kRows = 6;
constexpr int kTileWords = 512;

struct Buffers {
  alignas(64) float scores[kRows][kKeyBlock];
  alignas(64) uint16_t weights[kRows][kKeyBlock];
  alignas(64) float sums[kRows][16];  // of the rounded weights, lane by lane
  alignas(64) float watch[kRows][16];
};

// One tile of rows against one block of keys.
struct Block {
  const uint16_t* q = nullptr;     // [kRows][d]
  const uint16_t* keys = nullptr;  // tiles of the block's first key
  const uint16_t* values = nullptr;
  float* out = nullptr;  // [kRows][d]
  int d = 0, n_keys = 0;
};

__m512i broadcast_pair(const uint16_t* pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, 4);
  return _mm512_set1_epi32(bits);
}

// S = q K for 64 keys at a time.
void scores(const Block& b, Buffers& buffers) {
  constexpr int kVectors = 4;
  for (int key = 0; key < b.n_keys; key += 16 * kVectors) {
    __m512 s[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) s[r][v] = _mm512_setzero_ps();
    }
    const uint16_t* keys = b.keys + int64_t{key} * b.d;
    for (int pair = 0; pair < b.d / 2; ++pair) {
      __m512i k[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        k[v] = _mm512_load_si512(keys + v * 16 * b.d + pair * 32);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i q = broadcast_pair(b.q + r * b.d + 2 * pair);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) s[r][v] = dot(s[r][v], q, k[v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        _mm512_store_ps(buffers.scores[r] + key + 16 * v, s[r][v]);
      }
    }
  }
}

void add_bias(const float* bias, int n_keys, Buffers& buffers) {
  for (int key = 0; key < n_keys; key += 16) {
    const __m512 x = _mm512_loadu_ps(bias + key);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      float* s = buffers.scores[r] + key;
      _mm512_store_ps(s, _mm512_add_ps(_mm512_load_ps(s), x));
    }
  }
}

// O += P V for kVectors * 16 columns.
template <int kVectors>
void values(const Block& b, const Buffers& buffers, int column) {
  __m512 o[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) o[r][v] = _mm512_load_ps(b.out + r * b.d + column + 16 * v);
  }
  for (int key = 0; key < b.n_keys; key += 32) {
    const uint16_t* tiles = b.values + int64_t{key} * b.d + (column / 16) * kTileWords;
    const uint16_t* weights = &buffers.weights[0][key];
    for (int i = 0; i < 16; ++i) {
      __m512i x[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) x[v] = _mm512_load_si512(tiles + v * kTileWords + i * 32);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i p = broadcast_pair(weights + r * kKeyBlock + 2 * i);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) o[r][v] = dot(o[r][v], p, x[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) _mm512_store_ps(b.out + r * b.d + column + 16 * v, o[r][v]);
  }
}

// Columns in passes of 4 vectors, or 3 where only that divides: both keep both ports busy.
void values(const Block& b, const Buffers& buffers) {
  for (int column = 0; column < b.d;) {
    const int left = (b.d - column) / 16;
    if (left % 4 != 0) {
      values<3>(b, buffers, column);
      column += 48;
    } else {
      values<4>(b, buffers, column);
      column += 64;
    }
  }
}

template <bool kMasked>
float row_max(const float* s, int n_keys, int begin, int end) {
  __m512 m[2] = {_mm512_set1_ps(kNothing), _mm512_set1_ps(kNothing)};
  for (int key = 0; key < n_keys; key += 32) {
    m[0] = _mm512_max_ps(load_scores(s, key, begin, end, kMasked), m[0]);
    m[1] = _mm512_max_ps(load_scores(s, key + 16, begin, end, kMasked), m[1]);
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(m[0], m[1]));
}

// A NaN score would pass for weight 0, so the scores themselves are added up too (`watch`): that is
// free, as additions run beside the dot products. -inf of masked keys is harmless there.
template <bool kMasked, typename Exp>
void row_weights(Buffers& buffers, int r, int n_keys, int begin, int end, float reference) {
  const Exp exp(Exp::prepared(reference));
  const __m512i ones = _mm512_set1_epi16(0x3f80);
  __m512 sum = _mm512_load_ps(buffers.sums[r]);
  __m512 watch = _mm512_load_ps(buffers.watch[r]);
  for (int key = 0; key < n_keys; key += 32) {
    const __m512 a = load_scores(buffers.scores[r], key, begin, end, kMasked);
    const __m512 b = load_scores(buffers.scores[r], key + 16, begin, end, kMasked);
    watch = _mm512_add_ps(watch, _mm512_add_ps(a, b));
    const __m512i p = exp(a, b);
    _mm512_store_si512(buffers.weights[r] + key, p);
    sum = dot(sum, p, ones);
  }
  _mm512_store_ps(buffers.sums[r], sum);
  _mm512_store_ps(buffers.watch[r], watch);
}

// Raises a row's reference to the octave at or above its new maximum; what was summed shrinks.
float raise_reference(float reference, float max, float* sums, float* out, int d) {
  if (!(max > reference)) return reference;
  const float raised = octave_above(max);
  if (reference != kNothing) {
    rescale(sums, 16, reference, raised);
    rescale(out, d, reference, raised);
  }
  return raised;
}

template <typename Exp>
void weights(const Block& b, Buffers& buffers, const int* begin, const int* end, float* reference) {
  float max[kRows];
  for (int r = 0; r < kRows; ++r) {
    max[r] = begin[r] <= 0 && end[r] >= b.n_keys
                 ? row_max<false>(buffers.scores[r], b.n_keys, 0, 0)
                 : row_max<true>(buffers.scores[r], b.n_keys, begin[r], end[r]);
  }
  for (int r = 0; r < kRows; ++r) {
    reference[r] = raise_reference(reference[r], max[r], buffers.sums[r], b.out + r * b.d, b.d);
    // A row that has seen nothing yet gets weights 0 from scores -inf.
    const float used = reference[r] == kNothing ? 0.0f : reference[r];
    if (begin[r] <= 0 && end[r] >= b.n_keys) {
      row_weights<false, Exp>(buffers, r, b.n_keys, 0, 0, used);
    } else {
      row_weights<true, Exp>(buffers, r, b.n_keys, begin[r], end[r], used);
    }
  }
}

// Which staged keys any row of the tile sees, in multiples of kKeyMultiple.
struct Span {
  int begin, end;
};
Span visible_span(const AttendRows& a, int row) {
  Span span{a.n_keys, 0};
  for (int r = row; r < row + kRows; ++r) {
    if (a.begin[r] >= a.end[r]) continue;
    span.begin = a.begin[r] < span.begin ? a.begin[r] : span.begin;
    span.end = a.end[r] > span.end ? a.end[r] : span.end;
  }
  span.begin = span.begin / kKeyMultiple * kKeyMultiple;
  span.end = (span.end + kKeyMultiple - 1) / kKeyMultiple * kKeyMultiple;
  return span;
}

template <typename Exp>
void attend_tile(const AttendRows& a, int row, Buffers& buffers) {
  const Span span = visible_span(a, row);
  if (span.begin >= span.end) return;
  for (int r = 0; r < kRows; ++r) {
    _mm512_store_ps(buffers.sums[r], _mm512_setzero_ps());
    _mm512_store_ps(buffers.watch[r], _mm512_setzero_ps());
    buffers.sums[r][0] = a.sum[row + r];
  }
  const int d = a.padded_dim;
  Block b;
  b.d = d;
  b.q = static_cast<const uint16_t*>(a.q) + int64_t{row} * d;
  b.out = a.out + int64_t{row} * d;
  for (int first = span.begin; first < span.end; first += b.n_keys) {
    const int block_end = first / kKeyBlock * kKeyBlock + kKeyBlock;
    b.n_keys = (block_end < span.end ? block_end : span.end) - first;
    b.keys = static_cast<const uint16_t*>(a.keys) + int64_t{first} * d;
    b.values = static_cast<const uint16_t*>(a.values) + int64_t{first} * d;
    int begin[kRows], end[kRows];
    for (int r = 0; r < kRows; ++r) {
      begin[r] = a.begin[row + r] - first;
      end[r] = a.end[row + r] - first;
    }
    scores(b, buffers);
    if (a.bias != nullptr) add_bias(a.bias + first, b.n_keys, buffers);
    weights<Exp>(b, buffers, begin, end, a.reference + row);
    values(b, buffers);
  }
  for (int r = 0; r < kRows; ++r) {
    const float watch = _mm512_reduce_add_ps(_mm512_load_ps(buffers.watch[r]));
    const float sum = _mm512_reduce_add_ps(_mm512_load_ps(buffers.sums[r]));
    a.sum[row + r] = watch != watch ? watch : sum;
  }
}

void attend_rows(const AttendRows& a) {
  Buffers& buffers = *static_cast<Buffers*>(a.buffer);
  for (int row = 0; row < a.n_rows; row += kRows) {
    if (a.exact_exp) {
      attend_tile<Polynomial>(a, row, buffers);
    } else {
      attend_tile<Lookup>(a, row, buffers);
    }
  }
}

}  // namespace

const Kernel kAvx512Bf16Kernel{.row_tile = kRows,
                               .head_tile = 1,
                               .element_bytes = 2,
                               .buffer_bytes = sizeof(Buffers),
                               .units_per_octave = kUnitsPerOctave,
                               .pack = pack_tiles,
                               .stage = stage_tiles,
                               .attend = attend_rows,
                               .store = store_tiles};

}  // namespace tiercel::cpu::prefill
