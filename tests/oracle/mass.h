// Attention mass of chunks in fp64, with an error bound (selection.h derives that of a weight).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/base/ops.h"
#include "tests/oracle/decode.h"

namespace tiercel::test {

struct ExpectedMass {
  std::vector<double> mass, tolerance;  // [candidates]
};

inline ExpectedMass expected_mass(const MassParams& p, int32_t kv_head) {
  const int64_t first = p.first_chunk, n = p.end_chunk - first;
  const int32_t d = p.head_dim, group = p.n_heads / p.n_kv_heads;
  const double factor = static_cast<double>(p.scale) * std::log2(std::exp(1.0));
  ExpectedMass e{std::vector<double>(n, 0.0), std::vector<double>(n, 0.0)};
  std::vector<double> s(n), error(n);
  for (int64_t query = 0; query < p.n_tokens * group; ++query) {
    const bf16* q =
        p.q + (query / group * p.n_heads + int64_t{kv_head} * group + query % group) * d;
    double max = -std::numeric_limits<double>::infinity(), worst = 0;
    for (int64_t c = 0; c < n; ++c) {
      const bf16* landmark = p.landmarks + kv_head * p.landmark_head_stride + (first + c) * d;
      double dot = 0, magnitude = 0;
      for (int32_t i = 0; i < d; ++i) {
        const double x = double{static_cast<float>(q[i])} * static_cast<float>(landmark[i]);
        dot += x;
        magnitude += std::abs(x);
      }
      s[c] = std::isnan(dot) ? -0x1p126 : std::clamp(dot * factor, -0x1p126, 0x1p126);
      error[c] = std::isfinite(dot)
                     ? factor * (d + 2) * kUnit * magnitude + 3 * kUnit * std::abs(s[c])
                     : 0;
      max = std::max(max, s[c]);
      worst = std::max(worst, error[c]);
    }
    double sum = 0;
    for (const double x : s) sum += std::exp2(x - max);
    const double log_sum = max + std::log2(sum);
    const double sum_error =
        worst + (static_cast<double>(n) + 100 + 4 * std::abs(max)) * kUnit / std::log(2.0);
    for (int64_t c = 0; c < n; ++c) {
      const double weight = std::exp2(s[c] - log_sum);
      const double moved = error[c] + sum_error + 4 * kUnit * (std::abs(s[c]) + std::abs(log_sum));
      e.mass[c] += weight;
      // The weight, and one addition for every query before it; weights below 2^-126 are dropped.
      if (weight > 0) e.tolerance[c] += weight * (std::log(2.0) * moved + 10 * kUnit);
      e.tolerance[c] += 0x1p-125;
    }
  }
  for (int64_t c = 0; c < n; ++c) {
    e.tolerance[c] += static_cast<double>(p.n_tokens * group + 2) * kUnit * e.mass[c];
  }
  return e;
}

}  // namespace tiercel::test
