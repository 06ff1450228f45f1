// Attention weights of listed chunks against fp64, one body for every backend, and what they become
// once the values are there.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "engine/base/ops.h"
#include "tests/oracle/decode.h"
#include "tests/seed.h"

namespace tiercel::test {

// What rounding weights to bf16 (8 bits) moves: at most 2^-8 of each.
inline constexpr double kWeightUnit = 0x1p-8;

enum class Bias { kNone, kOfKeys, kOfNamedChunks };
struct ListShape {
  int32_t n_kv_heads, group, d, chunk_tokens;
  std::vector<int32_t> counts;  // of every KV head
  Bias bias = Bias::kNone;
  float source_bias = 0;
  int64_t shift = 0;  // elements by which rows miss their alignment
};

// Planes of keys and values, a list of chunks of them, out of order and repeated, and memory for
// its weights. T<..>: vectors that a backend reads and writes.
template <template <typename> typename T>
struct Listed {
  static constexpr float kUntouched = -7.0f;

  Listed(std::mt19937_64& rng, const ListShape& of, float spread = 1.0f)
      : shape(of),
        n_listed(*std::max_element(of.counts.begin(), of.counts.end())),
        n_chunks(n_listed + 3),
        q(rows(rng, n_heads() * of.d + of.shift, spread)),
        keys(rows(rng, plane() * of.n_kv_heads + of.shift, 1)),
        values(rows(rng, plane() * of.n_kv_heads, 1)) {
    const auto below = [&](int64_t n) {
      return static_cast<int32_t>(rng() % static_cast<uint64_t>(n));
    };
    for (const int32_t count : of.counts) counts.push_back(count);
    for (int64_t i = 0; i < of.n_kv_heads * n_listed; ++i) ids.push_back(below(n_chunks));
    for (int64_t i = 0; i < of.n_kv_heads * n_chunks * of.chunk_tokens; ++i) {
      bias.push_back(static_cast<float>(below(8000)) * 1e-3f - 2);
    }
    for (int64_t i = 0; i < of.n_kv_heads * n_chunks; ++i) bias_chunks.push_back(below(n_chunks));
    // Even but for a shift: pairs of weights are words, also where a list ends within one.
    weight_stride = (n_listed * of.chunk_tokens + 1) / 2 * 2 + of.shift;
    maximum_stride = weight_stride / kWeightRange + 2;
    weights.assign(static_cast<size_t>(n_heads() * weight_stride), bf16(kUntouched));
    maxima.assign(static_cast<size_t>(n_heads() * maximum_stride), kUntouched);
  }

  int32_t n_heads() const { return shape.n_kv_heads * shape.group; }
  int64_t plane() const { return n_chunks * shape.chunk_tokens * shape.d; }
  int64_t n_tokens(int32_t kv_head) const {
    return int64_t{counts[static_cast<size_t>(kv_head)]} * shape.chunk_tokens;
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.d)); }

  KvSource source() const {
    KvSource s;
    s.keys = keys.data() + shape.shift;
    s.values = values.data();
    s.head_stride = plane();
    s.chunk_stride = shape.chunk_tokens * shape.d;
    s.token_stride = shape.d;
    s.chunk_tokens = shape.chunk_tokens;
    s.ids = ids.data();
    s.counts = counts.data();
    s.ids_stride = n_listed;
    s.bias = shape.source_bias;
    if (shape.bias != Bias::kNone) {
      s.key_bias = bias.data();
      s.key_bias_head_stride = n_chunks * shape.chunk_tokens;
    }
    if (shape.bias == Bias::kOfNamedChunks) {
      s.bias_chunks = bias_chunks.data();
      s.bias_chunks_stride = n_chunks;
    }
    return s;
  }
  KeyWeightsParams params() {
    KeyWeightsParams p;
    p.q = q.data() + shape.shift;
    p.keys = source();
    p.keys.values = nullptr;
    p.n_heads = n_heads();
    p.n_kv_heads = shape.n_kv_heads;
    p.head_dim = shape.d;
    p.scale = scale();
    p.weights = weights.data();
    p.weight_stride = weight_stride;
    p.maxima = maxima.data();
    p.maximum_stride = maximum_stride;
    return p;
  }
  // The values as they are; out and workspace are the caller's.
  WeightedValuesParams value_params() const {
    WeightedValuesParams p;
    p.weights = weights.data();
    p.weight_stride = weight_stride;
    p.maxima = maxima.data();
    p.maximum_stride = maximum_stride;
    p.ids = ids.data();
    p.counts = counts.data();
    p.ids_stride = n_listed;
    p.chunk_tokens = shape.chunk_tokens;
    p.values = values.data();
    p.value_head_stride = plane();
    p.n_heads = n_heads();
    p.n_kv_heads = shape.n_kv_heads;
    p.head_dim = shape.d;
    return p;
  }
  // attend_decode of the same list.
  DecodeAttendParams attend_params(const KvSource& source) const {
    DecodeAttendParams p;
    p.q = q.data() + shape.shift;
    p.sources = &source;
    p.n_sources = 1;
    p.n_heads = n_heads();
    p.n_kv_heads = shape.n_kv_heads;
    p.head_dim = shape.d;
    p.scale = scale();
    return p;
  }

  static T<bf16> rows(std::mt19937_64& rng, int64_t n, float spread) {
    std::normal_distribution<float> normal(0.0f, spread);
    T<bf16> rows(static_cast<size_t>(n));
    for (bf16& x : rows) x = bf16(normal(rng));
    return rows;
  }

  ListShape shape;
  int64_t n_listed, n_chunks, weight_stride = 0, maximum_stride = 0;
  T<bf16> q, keys, values, weights;
  T<int32_t> ids, counts, bias_chunks;
  T<float> bias, maxima;
};

// Every weight and maximum that there should be, and nothing besides.
template <typename List>
void expect_weights(const List& list) {
  const KvSource source = list.source();
  const ListShape& shape = list.shape;
  for (int32_t h = 0; h < list.n_heads(); ++h) {
    const int32_t kv_head = h / shape.group;
    const bf16* q = list.q.data() + shape.shift + int64_t{h} * shape.d;
    const std::vector<Score> scores = expected_scores(q, source, kv_head, shape.d, list.scale());
    const auto n = static_cast<int64_t>(scores.size());
    const bf16* weights = list.weights.data() + h * list.weight_stride;
    const float* maxima = list.maxima.data() + h * list.maximum_stride;
    int64_t range = 0;
    for (int64_t begin = 0; begin < n; begin += kWeightRange, ++range) {
      const int64_t end = std::min<int64_t>(n, begin + kWeightRange);
      double max = -std::numeric_limits<double>::infinity(), max_error = 0;
      for (int64_t i = begin; i < end; ++i) {
        const Score& s = scores[static_cast<size_t>(i)];
        max = std::max(max, s.value);
        max_error = std::max(max_error, s.error + 2 * kUnit * std::abs(s.value));
      }
      ASSERT_NEAR(double{maxima[range]}, max, max_error) << "head " << h << " range " << range;
      float greatest = 0;
      for (int64_t i = begin; i < end; ++i) {
        const Score& s = scores[static_cast<size_t>(i)];
        const double weight = std::exp2(s.value - max);
        const double delta = std::log(2.0) * (s.error + max_error +
                                              2 * kUnit * (std::abs(s.value) + std::abs(max))) +
                             8 * kUnit;
        const auto found = static_cast<float>(weights[i]);
        ASSERT_NEAR(double{found}, weight, weight * (delta + 1.01 * kWeightUnit) + 0x1p-126)
            << "head " << h << " token " << i;
        greatest = std::max(greatest, found);
      }
      ASSERT_EQ(greatest, 1.0f) << "head " << h << " range " << range;
    }
    for (int64_t i = n; i < list.weight_stride; ++i) {
      ASSERT_EQ(static_cast<float>(weights[i]), List::kUntouched) << "head " << h << " token " << i;
    }
    for (; range < list.maximum_stride; ++range) {
      ASSERT_EQ(maxima[range], List::kUntouched) << "head " << h << " range " << range;
    }
  }
}

inline std::vector<ListShape> list_shapes() {
  std::vector<ListShape> shapes;
  const Bias biases[] = {Bias::kNone, Bias::kOfKeys, Bias::kOfNamedChunks};
  const auto add = [&](int32_t d, int32_t group, int32_t chunk) {
    const int32_t n = 150 / chunk + 1;
    const Bias bias = biases[shapes.size() % 3];
    shapes.push_back(
        {3, group, d, chunk, {n, 0, n / 2 + 1}, bias, shapes.size() % 2 ? 0.0f : 2.5f});
  };
  int32_t group = 0;
  for (const int32_t d : {64, 80, 96, 128, 256, 34}) {
    for (const int32_t chunk : {1, 5, 8, 16, 64}) add(d, group++ % 8 + 1, chunk);
  }
  for (const int32_t g : {1, 2, 3, 4, 5, 6, 7, 8, 11}) add(64, g, 8);
  for (const int32_t d : {64, 128}) {
    shapes.push_back({2, 3, d, 8, {20, 9}, Bias::kOfKeys, 0.0f, 1});  // rows at any address
  }
  return shapes;
}

template <typename Body>
void for_list_shapes(Body&& body) {
  for (const ListShape& s : list_shapes()) {
    SCOPED_TRACE(testing::Message()
                 << s.group << " heads of " << s.d << ", chunks of " << s.chunk_tokens << ", bias "
                 << static_cast<int>(s.bias) << ", shift " << s.shift);
    ASSERT_NO_FATAL_FAILURE(body(s));
  }
}

// weigh(params) computes and waits.
template <template <typename> typename T, typename Weigh>
void expect_key_weights(Weigh&& weigh) {
  std::mt19937_64 rng(seed());
  for_list_shapes([&](const ListShape& shape) {
    Listed<T> list(rng, shape, 2.0f);
    weigh(list.params());
    expect_weights(list);
  });
}

// A key of NaN weighs NaN, so does one of +inf, and nothing beside that; one of -inf weighs
// nothing; a range of nothing but those has a maximum of -inf.
template <template <typename> typename T, typename Weigh>
void expect_nan_and_infinity_stay(Weigh&& weigh) {
  const float inf = std::numeric_limits<float>::infinity();
  std::mt19937_64 rng(seed());
  Listed<T> list(rng, {1, 2, 64, 8, {40}});  // 320 tokens, five ranges
  for (bf16& x : list.q) x = bf16(std::abs(static_cast<float>(x)) + 0.1f);
  for (size_t i = 0; i < list.ids.size(); ++i) list.ids[i] = static_cast<int32_t>(i);
  const auto poison = [&](int64_t token, float with) {
    list.keys[static_cast<size_t>(token * 64 + 5)] = bf16(with);
  };
  poison(70, std::numeric_limits<float>::quiet_NaN());
  poison(71, -inf);
  for (int64_t token = 128; token < 192; ++token) poison(token, -inf);
  poison(200, inf);
  weigh(list.params());
  for (int32_t h = 0; h < 2; ++h) {
    const float* maxima = list.maxima.data() + h * list.maximum_stride;
    for (const int range : {0, 1, 4}) EXPECT_TRUE(std::isfinite(maxima[range])) << range;
    EXPECT_EQ(maxima[2], -inf);
    EXPECT_EQ(maxima[3], inf);
    for (int64_t i = 0; i < 320; ++i) {
      const auto weight =
          static_cast<float>(list.weights[static_cast<size_t>(h * list.weight_stride + i)]);
      const bool beside_infinity = i >= 192 && i < 256;
      ASSERT_EQ(std::isnan(weight), i == 70 || i == 200) << i;
      if (i == 70 || i == 200) continue;
      if (i == 71 || (i >= 128 && i < 192) || beside_infinity) {
        ASSERT_EQ(weight, 0.0f) << i;
      } else {
        ASSERT_GT(weight, 0.0f) << i;
      }
    }
  }
}

// A partial of the list against attention in fp64.
inline void expect_attends(const DecodeAttendParams& p, const PartialView& found) {
  for (int32_t h = 0; h < p.n_heads; ++h) {
    const DecodeExpected e = expected_decode(p, h);
    if (std::isinf(e.log_sum)) {
      ASSERT_EQ(found.max[h], -std::numeric_limits<float>::infinity());
      ASSERT_EQ(found.sum[h], 0.0f);
      for (int32_t i = 0; i < p.head_dim; ++i) ASSERT_EQ(found.out[h * p.head_dim + i], 0.0f);
      continue;
    }
    // Weights that are off by 2^-8 move their sum by as much; out by 2^-8 of sum p (|v| + |out|),
    // as it is divided by the sum of the same weights.
    ASSERT_NEAR(double{found.max[h]} + std::log2(double{found.sum[h]}), e.log_sum,
                e.log_sum_tolerance * 1.01 + 1.01 * kWeightUnit / std::log(2.0));
    for (int32_t i = 0; i < p.head_dim; ++i) {
      const auto at = static_cast<size_t>(i);
      ASSERT_NEAR(double{found.out[h * p.head_dim + i]} / double{found.sum[h]}, e.out[at],
                  e.tolerance[at] * 1.01 + 1.01 * kWeightUnit * (e.size[at] + std::abs(e.out[at])))
          << "head " << h << " element " << i;
    }
  }
}

}  // namespace tiercel::test
