// The inner loops of landmarks, as plain loops over arrays of kLanes that the compiler turns into
// vector instructions of whatever level includes this file. Sums are made in kLanes strands and
// folded in a fixed order, so all levels agree to the bit.
#pragma once

#include <cstdint>

namespace tiercel::cpu {

struct MeanRows {
  const uint16_t* rows;  // [n_chunks][chunk_tokens][head_dim]
  uint16_t* means;       // [n_chunks][head_dim]
  int64_t n_chunks;
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

constexpr int kStrands = 32;
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
  for (int32_t t = 0; t < p.chunk_tokens; ++t, rows += p.head_dim) {
    if (ahead) __builtin_prefetch(rows + kAheadElements);
    for (int i = 0; i < kN; ++i) sum[i] += widen(rows[i]);
  }
  const float n = static_cast<float>(p.chunk_tokens);
  for (int i = 0; i < kN; ++i) mean[i] = narrow(sum[i] / n);
}

inline void mean_rows(const MeanRows& p) {
  for (int64_t c = 0; c < p.n_chunks; ++c) {
    const uint16_t* rows = p.rows + c * p.chunk_tokens * p.head_dim;
    uint16_t* mean = p.means + c * p.head_dim;
    int32_t i = 0;
    for (; i + kStrands <= p.head_dim; i += kStrands) {
      mean_columns<kStrands>(p, rows + i, mean + i, true);
    }
    for (; i < p.head_dim; ++i) mean_columns<1>(p, rows + i, mean + i, false);
  }
}

struct Strands {
  float v[kStrands] = {};

  float fold() {
    for (int n = kStrands / 2; n > 0; n /= 2) {
      for (int i = 0; i < n; ++i) v[i] += v[i + n];
    }
    return v[0];
  }
};

// (a . b, b . b)
inline void products(const uint16_t* a, const uint16_t* b, int32_t n, float& dot, float& square) {
  Strands ab, bb;
  int32_t i = 0;
  for (; i + kStrands <= n; i += kStrands) {
    for (int s = 0; s < kStrands; ++s) {
      const float x = widen(a[i + s]);
      const float y = widen(b[i + s]);
      ab.v[s] += x * y;
      bb.v[s] += y * y;
    }
  }
  for (int s = 0; i + s < n; ++s) {
    const float x = widen(a[i + s]);
    const float y = widen(b[i + s]);
    ab.v[s] += x * y;
    bb.v[s] += y * y;
  }
  dot = ab.fold();
  square = bb.fold();
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
