// What an eviction head says, in fp64, from its definition in engine/base/ops.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/base/ops.h"

namespace tiercel::test {

struct Expected {
  double value = 0;
  double tolerance = 0;  // of fp32 sums and of a logarithm to 2^-22
};

inline Expected expected_key_bias(const KeyBiasParams& p, int64_t token, int64_t kv_head) {
  const int64_t width = int64_t{p.n_kv_heads} * p.head_dim;
  double x = 0, magnitude = 0;
  for (int64_t i = 0; i < width; ++i) {
    const double product = double{static_cast<float>(p.v[token * width + i])} *
                           static_cast<float>(p.delta[kv_head * width + i]);
    x += product;
    magnitude += std::abs(product);
  }
  const double a = static_cast<float>(p.a[kv_head]) / std::log(2.0);
  const double softplus = std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
  const double error = static_cast<double>(width + 8) * 0x1p-24 * magnitude + 0x1p-21 * (1 + softplus);
  return {a * softplus, std::abs(a) * error};
}

inline Expected expected_pooled_bias(const PoolBiasParams& p, int64_t chunk, int64_t kv_head) {
  const float* bias = p.bias + kv_head * p.bias_head_stride + chunk * p.chunk_tokens;
  const int64_t window = std::min(p.chunk_tokens, kBiasWindow);
  Expected best{-HUGE_VAL, 0};
  for (int64_t first = 0; first + window <= p.chunk_tokens; first += kBiasWindow / 2) {
    double sum = 0, magnitude = 0;
    for (int64_t i = 0; i < window; ++i) {
      sum += double{bias[first + i]};
      magnitude += std::abs(double{bias[first + i]});
    }
    best.value = std::max(best.value, sum / static_cast<double>(window));
    best.tolerance = std::max(best.tolerance, 40 * 0x1p-24 * magnitude);
  }
  return best;
}

}  // namespace tiercel::test
