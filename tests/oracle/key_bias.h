// What an eviction head says, in fp64, from its definition in engine/base/ops/layers.h, and a backend against
// it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>

#include "engine/base/ops.h"
#include "tests/seed.h"

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

template <template <typename> typename T>
T<bf16> random_rows(std::mt19937_64& rng, int64_t n, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  T<bf16> rows(static_cast<size_t>(n));
  for (bf16& x : rows) x = bf16(normal(rng));
  return rows;
}

// make(params) computes and waits. T<..>: vectors that it reads and writes.
template <template <typename> typename T, typename Make>
void expect_key_biases(Make&& make) {
  std::mt19937_64 rng(seed());
  for (const int32_t d : {64, 128, 34}) {
    for (const int32_t n_kv_heads : {1, 2, 5}) {
      for (const int64_t n : {1, 3, 130}) {
        for (const float spread : {0.1f, 3.0f}) {  // 3: sums far beyond where softplus bends
          const int64_t width = int64_t{n_kv_heads} * d, capacity = n + 50;
          const auto v = random_rows<T>(rng, n * width, 1);
          const auto delta = random_rows<T>(rng, n_kv_heads * width, spread);
          const auto a = random_rows<T>(rng, n_kv_heads, 1);
          T<float> bias(static_cast<size_t>(n_kv_heads * capacity), -7.0f);
          T<int64_t> later(1, 11);
          KeyBiasParams p;
          p.v = v.data();
          p.delta = delta.data();
          p.a = a.data();
          p.bias = bias.data();
          p.bias_head_stride = capacity;
          p.first_row = 20;
          if (n == 3) p.later = later.data();
          p.n_tokens = n;
          p.n_kv_heads = n_kv_heads;
          p.head_dim = d;
          make(p);
          const int64_t first = p.first_row + (n == 3 ? 11 : 0);
          for (int64_t j = 0; j < n_kv_heads; ++j) {
            for (int64_t row = 0; row < capacity; ++row) {
              const float found = bias[static_cast<size_t>(j * capacity + row)];
              if (row < first || row >= first + n) {
                ASSERT_EQ(found, -7.0f) << row;
                continue;
              }
              const Expected e = expected_key_bias(p, row - first, j);
              ASSERT_NEAR(double{found}, e.value, e.tolerance) << "row " << row << " head " << j;
            }
          }
        }
      }
    }
  }
}

template <template <typename> typename T, typename Pool>
void expect_pooled_biases(Pool&& pool) {
  std::mt19937_64 rng(seed());
  std::normal_distribution<float> normal;
  for (const int32_t chunk_tokens : {1, 8, 16, 32, 33, 48, 64, 100}) {
    const int32_t n_kv_heads = 3;
    const int64_t n_chunks = 21, first_chunk = 2, capacity = (n_chunks + first_chunk) * chunk_tokens;
    T<float> bias(static_cast<size_t>(n_kv_heads * capacity));
    for (float& x : bias) x = normal(rng);
    T<float> score(static_cast<size_t>(n_kv_heads * (n_chunks + 4)), -7.0f);
    PoolBiasParams p;
    p.bias = bias.data();
    p.bias_head_stride = capacity;
    p.first_chunk = first_chunk;
    p.n_chunks = n_chunks;
    p.chunk_tokens = chunk_tokens;
    p.n_kv_heads = n_kv_heads;
    p.score = score.data();
    p.score_stride = n_chunks + 4;
    pool(p);
    for (int64_t j = 0; j < n_kv_heads; ++j) {
      for (int64_t c = 0; c < n_chunks; ++c) {
        const Expected e = expected_pooled_bias(p, first_chunk + c, j);
        ASSERT_NEAR(double{score[static_cast<size_t>(j * p.score_stride + c)]}, e.value, e.tolerance)
            << "chunk " << c << " of " << chunk_tokens;
      }
      ASSERT_EQ(score[static_cast<size_t>(j * p.score_stride + n_chunks)], -7.0f);
    }
  }
}

}  // namespace tiercel::test
