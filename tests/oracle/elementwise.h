// Norms, SwiGLU, rotary positions and log probabilities in fp64 (angles: long double).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <utility>
#include <vector>

#include "engine/base/ops.h"

namespace tiercel::test {

inline double value_of(bf16 v) { return static_cast<double>(static_cast<float>(v)); }

// 1 / sqrt(mean(x^2) + eps)
inline double norm_scale(const bf16* x, int64_t width, double eps) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += value_of(x[i]) * value_of(x[i]);
  return 1 / std::sqrt(sum / static_cast<double>(width) + eps);
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }

// (cos, sin) of position * inv_freq. The product needs 33 + 53 bits: it is taken in two halves.
inline std::pair<long double, long double> turn_oracle(int64_t position, double inv_freq) {
  constexpr long double kTwoPi = 2 * std::numbers::pi_v<long double>;
  const double high = static_cast<double>(static_cast<float>(inv_freq));
  const double low = inv_freq - high;
  const long double p = static_cast<long double>(position);
  // 2 pi to 128 bits: what fmod by the rounded 2 pi leaves out is subtracted per whole turn.
  constexpr long double kTwoPiRest = -1.00331152253366640475e-19L;
  const long double a = p * high;
  const long double turns = std::floor(a / kTwoPi);
  const long double angle = std::fmod(a, kTwoPi) - turns * kTwoPiRest + p * low;
  return {std::cos(angle), std::sin(angle)};
}

// One head turned by the angles of a position; optionally RMS-normalised first.
inline std::vector<double> rotate_oracle(const bf16* head, const bf16* norm, double eps, int64_t d,
                                         int64_t position, const std::vector<double>& inv_freq) {
  std::vector<double> x(static_cast<size_t>(d)), out(x.size());
  const double scale = norm != nullptr ? norm_scale(head, d, eps) : 1.0;
  for (int64_t i = 0; i < d; ++i) {
    x[static_cast<size_t>(i)] =
        value_of(head[i]) * (norm != nullptr ? scale * value_of(norm[i]) : 1.0);
  }
  const size_t half = x.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const auto [c, s] = turn_oracle(position, inv_freq[i]);
    out[i] = static_cast<double>(x[i] * c - x[half + i] * s);
    out[half + i] = static_cast<double>(x[half + i] * c + x[i] * s);
  }
  return out;
}

inline double logprob_oracle(const float* logits, int64_t vocab, int64_t target) {
  const double max = static_cast<double>(*std::max_element(logits, logits + vocab));
  long double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<long double>(logits[i]) - max);
  return static_cast<double>(static_cast<long double>(logits[target]) - max - std::log(sum));
}

inline std::vector<double> rope_frequencies(int64_t half, double theta) {
  std::vector<double> result;
  for (int64_t i = 0; i < half; ++i) {
    result.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(half)));
  }
  return result;
}

}  // namespace tiercel::test
