// out = x weight^T (+ bias) (+ out) in fp64, and how far an fp32 sum of rounded inputs may be off.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/base/ops.h"

namespace tiercel::test {

struct Expected {
  double value = 0;
  double tolerance = 0;
};

// Half an ulp of bf16, relative: 8 significant bits.
inline constexpr double kBf16Unit = 0x1p-8;
inline constexpr double kF32Unit = 0x1p-24;

// Error of an fp32 sum of k products: sqrt(k) roundings of the sum of magnitudes, six sigmas
// (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis"), whatever the
// order. vdpbf16ps flushes denormals: one smallest normal number per product.
inline double dot_tolerance(int64_t k, double magnitude) {
  const double n = static_cast<double>(k) + 2;
  return 6 * std::sqrt(n) * kF32Unit * magnitude + n * 0x1p-126;
}

// before: what out held, for accumulate.
inline std::vector<Expected> linear_oracle(const LinearParams& p,
                                           const std::vector<double>& before) {
  std::vector<Expected> result(static_cast<size_t>(p.m * p.n));
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < p.k; ++k) {
        const double product = static_cast<double>(static_cast<float>(p.x[i * p.k + k])) *
                               static_cast<double>(static_cast<float>(p.weight.values[j * p.k + k]));
        sum += product;
        magnitude += std::abs(product);
      }
      const size_t at = static_cast<size_t>(i * p.n + j);
      const double bias =
          p.bias != nullptr ? static_cast<double>(static_cast<float>(p.bias[j])) : 0;
      const double old = p.accumulate ? before[at] : 0;
      sum += bias + old;
      magnitude += std::abs(bias) + std::abs(old);
      const double error = dot_tolerance(p.k, magnitude);
      result[at].value = sum;
      result[at].tolerance =
          error + (p.out_type == DType::kBf16 ? kBf16Unit * (std::abs(sum) + error) : 0.0);
    }
  }
  return result;
}

}  // namespace tiercel::test
