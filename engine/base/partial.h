// The one idea of the engine: a partial attention result is a value, and merging is associative and
// commutative, so where a chunk of keys lives never changes an answer beyond its last rounding.
//
//   (m1, s1, o1) + (m2, s2, o2) = (m, s1 2^(m1-m) + s2 2^(m2-m), o1 2^(m1-m) + o2 2^(m2-m)),
//   m = max(m1, m2); the neutral element is (-inf, 0, 0). Maxima are in units of log2.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace tiercel {

inline constexpr float kEmptyMax = -std::numeric_limits<float>::infinity();

// Weights by which two partials with these maxima are scaled before they are added.
struct MergeWeights {
  float max;
  float left;
  float right;
};
inline MergeWeights merge_weights(float left_max, float right_max) {
  const float max = left_max > right_max ? left_max : right_max;
  if (max == kEmptyMax) return {max, 0.0f, 0.0f};
  return {max, std::exp2(left_max - max), std::exp2(right_max - max)};
}

// Adds partial (max, sum, out) of head_dim values into the accumulator, in place.
inline void merge_into(float& acc_max, float& acc_sum, float* acc_out, float max, float sum,
                       const float* out, int64_t head_dim) {
  const MergeWeights w = merge_weights(acc_max, max);
  acc_max = w.max;
  acc_sum = acc_sum * w.left + sum * w.right;
  for (int64_t i = 0; i < head_dim; ++i) acc_out[i] = acc_out[i] * w.left + out[i] * w.right;
}

}  // namespace tiercel
