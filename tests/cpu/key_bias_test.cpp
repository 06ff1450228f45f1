// What an eviction head says of tokens and chunks, against fp64.
#include "cpu/key_bias.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/oracle/key_bias.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

template <typename T>
using Memory = std::vector<T>;

Memory<bf16> random_rows(std::mt19937_64& rng, int64_t n, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  Memory<bf16> rows(static_cast<size_t>(n));
  for (bf16& x : rows) x = bf16(normal(rng));
  return rows;
}

TEST(KeyBias, MakesTheBiasOfEveryToken) {
  std::mt19937_64 rng(test::seed());
  cpu::Queue queue({.n_threads = 2});
  for (const int32_t d : {64, 128, 34}) {
    for (const int32_t n_kv_heads : {1, 2, 5}) {
      for (const int64_t n : {1, 3, 130}) {
        for (const float spread : {0.1f, 3.0f}) {  // 3: sums far beyond where softplus bends
          const int64_t width = int64_t{n_kv_heads} * d, capacity = n + 50;
          const auto v = random_rows(rng, n * width, 1);
          const auto delta = random_rows(rng, n_kv_heads * width, spread);
          const auto a = random_rows(rng, n_kv_heads, 1);
          Memory<float> bias(static_cast<size_t>(n_kv_heads * capacity), -7.0f);
          Memory<int64_t> later(1, 11);
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
          cpu::make_key_bias(queue, p);
          const int64_t first = p.first_row + (n == 3 ? 11 : 0);
          for (int64_t j = 0; j < n_kv_heads; ++j) {
            for (int64_t row = 0; row < capacity; ++row) {
              const float found = bias[static_cast<size_t>(j * capacity + row)];
              if (row < first || row >= first + n) {
                ASSERT_EQ(found, -7.0f) << row;
                continue;
              }
              const test::Expected e = test::expected_key_bias(p, row - first, j);
              ASSERT_NEAR(double{found}, e.value, e.tolerance) << "row " << row << " head " << j;
            }
          }
        }
      }
    }
  }
}

TEST(KeyBias, PoolsWindowsOfChunks) {
  std::mt19937_64 rng(test::seed());
  std::normal_distribution<float> normal;
  cpu::Queue queue({.n_threads = 2});
  for (const int32_t chunk_tokens : {1, 8, 16, 32, 33, 48, 64, 100}) {
    const int32_t n_kv_heads = 3;
    const int64_t n_chunks = 21, first_chunk = 2, capacity = (n_chunks + first_chunk) * chunk_tokens;
    Memory<float> bias(static_cast<size_t>(n_kv_heads * capacity));
    for (float& x : bias) x = normal(rng);
    Memory<float> score(static_cast<size_t>(n_kv_heads * (n_chunks + 4)), -7.0f);
    PoolBiasParams p;
    p.bias = bias.data();
    p.bias_head_stride = capacity;
    p.first_chunk = first_chunk;
    p.n_chunks = n_chunks;
    p.chunk_tokens = chunk_tokens;
    p.n_kv_heads = n_kv_heads;
    p.score = score.data();
    p.score_stride = n_chunks + 4;
    cpu::pool_key_bias(queue, p);
    for (int64_t j = 0; j < n_kv_heads; ++j) {
      for (int64_t c = 0; c < n_chunks; ++c) {
        const test::Expected e = test::expected_pooled_bias(p, first_chunk + c, j);
        ASSERT_NEAR(double{score[static_cast<size_t>(j * p.score_stride + c)]}, e.value, e.tolerance)
            << "chunk " << c << " of " << chunk_tokens;
      }
      ASSERT_EQ(score[static_cast<size_t>(j * p.score_stride + n_chunks)], -7.0f);
    }
  }
}

}  // namespace
}  // namespace tiercel
