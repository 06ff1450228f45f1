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

struct BoundRows {
  const uint16_t* rows;  // [n_chunks][chunk_tokens][head_dim]
  uint16_t* bounds;      // [n_chunks][least: head_dim | greatest: head_dim]
  int64_t n_chunks;
  int32_t chunk_tokens, head_dim;
};

struct LandmarkCodes {
  const uint16_t* landmarks;  // [n][width]
  int8_t* codes;              // likewise
  float* scales;              // [n]
  int64_t n;
  int32_t width;
  bool bounds;  // the first half is rounded down, the second up; else all to nearest
};

struct LandmarkKernel {
  void (*mean_rows)(const MeanRows&);
  void (*min_cosine)(const MinCosine&);
  void (*bound_rows)(const BoundRows&);
  void (*encode_landmarks)(const LandmarkCodes&);
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

// bf16 bits as integers in the order of their values, -0 below +0 and NaNs outside the infinities;
// its own inverse.
inline int16_t in_order(int16_t bits) {
  return static_cast<int16_t>(bits ^ (static_cast<int16_t>(bits >> 15) & 0x7fff));
}

// Columns first .. first + kN - 1 of one chunk.
template <int kN>
void bound_columns(const BoundRows& p, const uint16_t* rows, uint16_t* least, uint16_t* greatest,
                   bool ahead) {
  constexpr int16_t kInfinity = 0x7f80;
  int16_t low[kN], high[kN];
  for (int i = 0; i < kN; ++i) low[i] = high[i] = in_order(static_cast<int16_t>(rows[i]));
  for (int32_t t = 1; t < p.chunk_tokens; ++t) {
    rows += p.head_dim;
    if (ahead) __builtin_prefetch(rows + kAheadElements);
    for (int i = 0; i < kN; ++i) {
      const int16_t x = in_order(static_cast<int16_t>(rows[i]));
      low[i] = x < low[i] ? x : low[i];
      high[i] = x > high[i] ? x : high[i];
    }
  }
  for (int i = 0; i < kN; ++i) {
    const bool nan = high[i] > kInfinity || low[i] < ~kInfinity;
    least[i] = nan ? 0x7fc0 : static_cast<uint16_t>(in_order(low[i]));
    greatest[i] = nan ? 0x7fc0 : static_cast<uint16_t>(in_order(high[i]));
  }
}

inline void bound_rows(const BoundRows& p) {
  const int32_t d = p.head_dim;
  for (int64_t c = 0; c < p.n_chunks; ++c) {
    const uint16_t* rows = p.rows + c * p.chunk_tokens * d;
    uint16_t* least = p.bounds + c * 2 * d;
    int32_t i = 0;
    for (; i + kStrands <= d; i += kStrands) {
      bound_columns<kStrands>(p, rows + i, least + i, least + d + i, true);
    }
    for (; i < d; ++i) bound_columns<1>(p, rows + i, least + i, least + d + i, false);
  }
}

enum class Rounding { kNearest, kDown, kUp };

template <Rounding kRounding>
void encode_channels(const uint16_t* x, int32_t n, float scale, int8_t* codes) {
  for (int32_t i = 0; i < n; ++i) {
    const float quotient = widen(x[i]) / scale;
    float code = kRounding == Rounding::kNearest ? __builtin_rintf(quotient)
                 : kRounding == Rounding::kDown  ? __builtin_floorf(quotient)
                                                 : __builtin_ceilf(quotient);
    code = code < 127.0f ? code : 127.0f;
    code = code > -127.0f ? code : -127.0f;
    codes[i] = static_cast<int8_t>(static_cast<int32_t>(code));
  }
}

inline void encode_landmarks(const LandmarkCodes& p) {
  for (int64_t c = 0; c < p.n; ++c) {
    const uint16_t* x = p.landmarks + c * p.width;
    int8_t* codes = p.codes + c * p.width;
    uint16_t largest = 0;  // |x|, whose bits are in order; NaNs are above infinity
    for (int32_t i = 0; i < p.width; ++i) {
      const uint16_t size = x[i] & 0x7fff;
      largest = size > largest ? size : largest;
    }
    const float scale =
        largest >= 0x7f80 ? __builtin_nanf("") : widen(largest) * (1 + 0x1p-20f) / 127.0f;
    p.scales[c] = scale;
    if (!(scale > 0.0f)) {
      __builtin_memset(codes, 0, static_cast<unsigned long>(p.width));
    } else if (p.bounds) {
      const int32_t half = p.width / 2;
      encode_channels<Rounding::kDown>(x, half, scale, codes);
      encode_channels<Rounding::kUp>(x + half, half, scale, codes + half);
    } else {
      encode_channels<Rounding::kNearest>(x, p.width, scale, codes);
    }
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
