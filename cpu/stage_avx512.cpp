#include "cpu/exp2.h"
#include "cpu/intrinsics.h"
#include "cpu/stage.h"

namespace tiercel::cpu::prefill {
namespace {

constexpr int kSliceKeys = 32;
constexpr int kTileWords = 512;
// How far ahead rows are asked for: chunks are gathered, so the hardware cannot know the next row.
constexpr int kPrefetchKeys = 64;

// Row of a V tile that holds key pair p; the inverse of the list in stage.h.
constexpr int kRowOfPair[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};

__m512i round_to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, _mm512_set1_epi32(0x7fc0));
}

// The 64-byte pieces [32h, 32h + 32) of n rows. A piece that the head dim cuts short is copied to
// `padded` and filled with zeros.
void half_rows(const uint16_t* plane, const int64_t* rows, int n, int h, int head_dim,
               uint16_t (*padded)[32], const uint16_t** pieces) {
  const int width = head_dim - 32 * h;
  for (int i = 0; i < n; ++i) pieces[i] = plane + rows[i] + 32 * h;
  if (width >= 32) return;
  const __mmask32 mask = width <= 0 ? 0 : (1u << width) - 1;
  for (int i = 0; i < n; ++i) {
    _mm512_store_si512(padded[i], _mm512_maskz_loadu_epi16(mask, pieces[i]));
    pieces[i] = padded[i];
  }
}

__m512i lane_gather(const uint16_t* const* rows, int first, int word) {
  auto lane = [&](int row) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + word));
  };
  __m512i v = _mm512_castsi128_si512(lane(first));
  v = _mm512_inserti32x4(v, lane(first + 4), 1);
  v = _mm512_inserti32x4(v, lane(first + 8), 2);
  return _mm512_inserti32x4(v, lane(first + 12), 3);
}

// 16 rows x 16 dwords -> their transpose. Lane L of a gather is row 4L + t, so that two rounds of
// in-lane unpacks leave the keys in natural order.
void transpose_tile(const uint16_t* const* rows, uint16_t* tile) {
  for (int q = 0; q < 4; ++q) {
    const __m512i g0 = lane_gather(rows, 0, 8 * q), g1 = lane_gather(rows, 1, 8 * q);
    const __m512i g2 = lane_gather(rows, 2, 8 * q), g3 = lane_gather(rows, 3, 8 * q);
    const __m512i a = _mm512_unpacklo_epi32(g0, g1), b = _mm512_unpackhi_epi32(g0, g1);
    const __m512i c = _mm512_unpacklo_epi32(g2, g3), d = _mm512_unpackhi_epi32(g2, g3);
    uint16_t* out = tile + 128 * q;
    _mm512_store_si512(out, _mm512_unpacklo_epi64(a, c));
    _mm512_store_si512(out + 32, _mm512_unpackhi_epi64(a, c));
    _mm512_store_si512(out + 64, _mm512_unpacklo_epi64(b, d));
    _mm512_store_si512(out + 96, _mm512_unpackhi_epi64(b, d));
  }
}

// 32 rows -> two tiles of key pairs.
void interleave_tiles(const uint16_t* const* rows, uint16_t* tiles) {
  for (int p = 0; p < 16; ++p) {
    const __m512i even = _mm512_loadu_si512(rows[2 * p]);
    const __m512i odd = _mm512_loadu_si512(rows[2 * p + 1]);
    uint16_t* out = tiles + 32 * kRowOfPair[p];
    _mm512_store_si512(out, _mm512_unpacklo_epi16(even, odd));
    _mm512_store_si512(out + kTileWords, _mm512_unpackhi_epi16(even, odd));
  }
}

// The largest of 16 or 32 bf16 words without their sign; NaN are larger than infinities.
__m512i larger(__m512i largest, __m512i words) {
  return _mm512_max_epu16(largest, _mm512_and_si512(words, _mm512_set1_epi16(0x7fff)));
}
void tell_largest(__m512i words, uint16_t* largest) {
  if (largest == nullptr) return;
  alignas(64) uint16_t each[32];
  _mm512_store_si512(each, words);
  for (const uint16_t word : each) *largest = word > *largest ? word : *largest;
}

void prefetch_rows(const StageRows& s, int first, int n) {
  for (int i = first; i < first + n && i < s.n_keys; ++i) {
    const auto* k = reinterpret_cast<const char*>(s.keys + s.rows[i]);
    const auto* v = reinterpret_cast<const char*>(s.values + s.rows[i]);
    for (int byte = 0; byte < 2 * s.head_dim; byte += 64) {
      _mm_prefetch(k + byte, _MM_HINT_T0);
      _mm_prefetch(v + byte, _MM_HINT_T0);
    }
  }
}

}  // namespace

void stage_tiles(const StageRows& s) {
  alignas(64) uint16_t padded[kSliceKeys][32];
  const uint16_t* pieces[kSliceKeys];
  const int halves = s.padded_dim / 32;
  auto* keys = static_cast<uint16_t*>(s.staged_keys);
  auto* values = static_cast<uint16_t*>(s.staged_values);
  __m512i largest = _mm512_setzero_si512();
  prefetch_rows(s, 0, kPrefetchKeys);
  for (int first = 0; first < s.n_keys; first += kSliceKeys) {
    prefetch_rows(s, first + kPrefetchKeys, kSliceKeys);
    const int64_t slice = int64_t{first} * s.padded_dim;
    for (int h = 0; h < halves; ++h) {
      half_rows(s.keys, s.rows + first, kSliceKeys, h, s.head_dim, padded, pieces);
      for (int i = 0; i < kSliceKeys; ++i) largest = larger(largest, _mm512_loadu_si512(pieces[i]));
      transpose_tile(pieces, keys + slice + h * kTileWords);
      transpose_tile(pieces + 16, keys + slice + (halves + h) * kTileWords);
      half_rows(s.values, s.rows + first, kSliceKeys, h, s.head_dim, padded, pieces);
      interleave_tiles(pieces, values + slice + 2 * h * kTileWords);
    }
  }
  tell_largest(largest, s.largest);
}

void pack_tiles(const PackRows& p) {
  const __m512 scale = _mm512_set1_ps(p.scale * kUnitsPerOctave);
  auto* target = static_cast<uint16_t*>(p.target);
  __m512i largest = _mm512_setzero_si512();
  for (int row = 0; row < p.n_rows; ++row, target += p.padded_dim) {
    const uint16_t* source = p.source + row * p.source_stride;
    for (int i = 0; i < p.padded_dim; i += 16) {
      const int width = p.head_dim - i;
      const __mmask16 mask = width >= 16 ? 0xffff : width <= 0 ? 0 : (1u << width) - 1;
      const __m256i words = _mm256_maskz_loadu_epi16(mask, source + i);
      const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16);
      const __m512 scaled = _mm512_mul_ps(_mm512_castsi512_ps(bits), scale);
      const __m256i rounded = _mm512_cvtepi32_epi16(round_to_bf16(scaled));
      largest = larger(largest, _mm512_zextsi256_si512(rounded));
      _mm256_store_si256(reinterpret_cast<__m256i*>(target + i), rounded);
    }
  }
  tell_largest(largest, p.largest);
}

void store_tiles(const StoreRows& s) {
  constexpr int kNotFinite = 0x99;  // quiet and signalling NaN, both infinities
  for (int row = 0; row < s.n_rows; ++row) {
    const float* out = s.out + int64_t{row} * s.padded_dim;
    uint16_t* target = s.target + row * s.target_stride;
    const __m512 inverse = _mm512_set1_ps(1.0f / s.sum[row]);
    __mmask16 bad = _mm512_fpclass_ps_mask(inverse, kNotFinite);
    for (int i = 0; i < s.padded_dim; i += 32) {
      const __m512 lo = _mm512_mul_ps(_mm512_load_ps(out + i), inverse);
      const __m512 hi = _mm512_mul_ps(_mm512_load_ps(out + i + 16), inverse);
      bad |= _mm512_fpclass_ps_mask(lo, kNotFinite) | _mm512_fpclass_ps_mask(hi, kNotFinite);
      const __m512i words = _mm512_packus_epi32(round_to_bf16(lo), round_to_bf16(hi));
      const int width = s.head_dim - i;
      const __mmask32 mask = width >= 32 ? 0xffffffffu : width <= 0 ? 0 : (1u << width) - 1;
      _mm512_mask_storeu_epi16(target + i, mask, words);
    }
    s.failed[row] = bad != 0;
  }
}

}  // namespace tiercel::cpu::prefill
