// The inner loops of landmarks, as plain loops and compiler vectors that become the instructions of
// whatever level includes this file. Sums are made in lanes of one width and folded in a fixed
// order, so all levels agree to the bit.
#pragma once

#include <cstdint>

namespace tiercel::cpu {

struct MeanRows {
  const uint16_t* rows;  // [n_chunks * chunk_tokens] rows of head_dim, row_stride apart
  uint16_t* means;       // [n_chunks][head_dim]
  int64_t n_chunks;
  int64_t row_stride;
  int32_t chunk_tokens, head_dim;
};

struct MinCosine {
  const uint16_t* rows;   // [n_chunks][chunk_tokens][head_dim]
  const uint16_t* means;  // [n_chunks][head_dim]
  float* cosines;         // [n_chunks] the lowest of the chunk's members, NaN -> -inf
  int64_t n_chunks;
  int32_t chunk_tokens, head_dim;
};

struct LandmarkKernel {
  void (*mean_rows)(const MeanRows&);
  void (*min_cosine)(const MinCosine&);
};
extern const LandmarkKernel kLandmarkPortable, kLandmarkAvx2, kLandmarkAvx512;

namespace {

constexpr int kStrands = 32;              // columns of a mean summed side by side
constexpr int kPairLanes = 16;            // elements of one step of a dot product
constexpr int64_t kAheadElements = 2048;  // software prefetch distance

inline float widen(uint16_t bits) {
  const uint32_t u = uint32_t{bits} << 16;
  float x;
  __builtin_memcpy(&x, &u, sizeof x);
  return x;
}

// To nearest, ties to even; NaN stays NaN.
inline uint16_t narrow(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, sizeof u);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t nan = (u >> 16) | 0x40u;
  return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

inline void prefetch_row(const uint16_t* row, int32_t n) {
  for (int32_t i = 0; i < n; i += 32) __builtin_prefetch(row + i);
}

// Columns first .. first + kN - 1 of one chunk.
template <int kN>
void mean_columns(const MeanRows& p, const uint16_t* rows, uint16_t* mean, bool ahead) {
  float sum[kN] = {};
  for (int32_t t = 0; t < p.chunk_tokens; ++t, rows += p.row_stride) {
    if (ahead) __builtin_prefetch(rows + kAheadElements);
    for (int i = 0; i < kN; ++i) sum[i] += widen(rows[i]);
  }
  const float n = static_cast<float>(p.chunk_tokens);
  for (int i = 0; i < kN; ++i) mean[i] = narrow(sum[i] / n);
}

inline void mean_rows(const MeanRows& p) {
  for (int64_t c = 0; c < p.n_chunks; ++c) {
    const uint16_t* rows = p.rows + c * p.chunk_tokens * p.row_stride;
    uint16_t* mean = p.means + c * p.head_dim;
    int32_t i = 0;
    for (; i + kStrands <= p.head_dim; i += kStrands) {
      mean_columns<kStrands>(p, rows + i, mean + i, true);
    }
    for (; i < p.head_dim; ++i) mean_columns<1>(p, rows + i, mean + i, false);
  }
}

// Eight lanes (wider ones GCC 12 splits through memory where registers are narrower).
typedef float Lanes __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef float HalfLanes __attribute__((vector_size(16)));

inline float fold(Lanes v) {
  const HalfLanes a =
      __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  return (a[0] + a[2]) + (a[1] + a[3]);
}

inline void add_products(const uint16_t* a, const uint16_t* b, Lanes& dot, Lanes& square) {
  Words x, y;
  __builtin_memcpy(&x, a, sizeof x);
  __builtin_memcpy(&y, b, sizeof y);
  const Lanes x_even = (Lanes)(x << 16), x_odd = (Lanes)(x & 0xffff0000u);
  const Lanes y_even = (Lanes)(y << 16), y_odd = (Lanes)(y & 0xffff0000u);
  dot = dot + x_even * y_even + x_odd * y_odd;
  square = square + y_even * y_even + y_odd * y_odd;
}

// (a . b, b . b)
inline void products(const uint16_t* a, const uint16_t* b, int32_t n, float& dot, float& square) {
  Lanes ab{}, bb{};
  int32_t i = 0;
  for (; i + kPairLanes <= n; i += kPairLanes) add_products(a + i, b + i, ab, bb);
  if (i < n) {
    uint16_t a_rest[kPairLanes] = {}, b_rest[kPairLanes] = {};
    for (int s = 0; i + s < n; ++s) {
      a_rest[s] = a[i + s];
      b_rest[s] = b[i + s];
    }
    add_products(a_rest, b_rest, ab, bb);
  }
  dot = fold(ab);
  square = fold(bb);
}

inline void min_cosine(const MinCosine& p) {
  for (int64_t c = 0; c < p.n_chunks; ++c) {
    const uint16_t* mean = p.means + c * p.head_dim;
    const uint16_t* row = p.rows + c * p.chunk_tokens * p.head_dim;
    float unused, mean_square;
    products(mean, mean, p.head_dim, unused, mean_square);
    float lowest = __builtin_inff();
    for (int32_t t = 0; t < p.chunk_tokens; ++t, row += p.head_dim) {
      prefetch_row(row + kAheadElements, p.head_dim);
      float dot, square;
      products(mean, row, p.head_dim, dot, square);
      // Two roots, because the product of the squares may overflow.
      const float norm = __builtin_sqrtf(mean_square) * __builtin_sqrtf(square);
      const float cosine = norm == 0.0f ? 0.0f : dot / norm;
      lowest = cosine >= lowest ? lowest : cosine == cosine ? cosine : -__builtin_inff();
    }
    p.cosines[c] = lowest;
  }
}

}  // namespace
}  // namespace tiercel::cpu
