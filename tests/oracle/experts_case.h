// Mixtures of experts against fp64: one body for every backend.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/base/ops.h"
#include "tests/oracle/coded_matrix.h"
#include "tests/oracle/elementwise.h"
#include "tests/oracle/linear.h"
#include "tests/oracle/random_rows.h"
#include "tests/seed.h"

namespace tiercel::test {

struct ExpertsShape {
  int64_t n_tokens, width, inner;
  int32_t n_experts, n_chosen;
  bool normalise = true;
  bool alone = false;
  bool one_sided = false;  // most tokens want the same experts
  WeightCodec codec = {};
};

// Tokens, experts, routes and an output. Memory<T>: a vector that the backend reads and writes.
template <template <typename> typename Memory>
struct ExpertsProblem {
  static constexpr int64_t kBehind = 64;  // elements after the output that nobody may touch

  explicit ExpertsProblem(const ExpertsShape& s)
      : shape(s), random(static_cast<std::mt19937::result_type>(test::seed())) {
    const int64_t matrix = s.width * s.inner;
    x = random_rows<Memory>(random, s.n_tokens * s.width);
    before = random_rows<Memory>(random, s.n_tokens * s.width + kBehind);
    const auto spread = [](int64_t n) { return 1 / std::sqrt(static_cast<float>(n)); };
    gate = random_rows<Memory>(random, s.n_experts * matrix, spread(s.width));
    up = random_rows<Memory>(random, s.n_experts * matrix, spread(s.width));
    down = random_rows<Memory>(random, s.n_experts * matrix, spread(s.inner));
    logits.resize(static_cast<size_t>(s.n_tokens * s.n_experts));
    std::normal_distribution<float> normal(0, 2);
    for (size_t i = 0; i < logits.size(); ++i) {
      const auto expert = static_cast<int64_t>(i) % s.n_experts;
      logits[i] = normal(random) + (s.one_sided && expert < s.n_chosen ? 20.0f : 0.0f);
    }
    if (s.codec.is_coded()) {
      const auto code = [&](int64_t n, int64_t k, Memory<bf16>& decoded) {
        coded.emplace_back(random, s.n_experts * n, k, s.codec);
        decoded = coded.back().decoded;
      };
      coded.reserve(3);
      code(s.inner, s.width, gate);
      code(s.inner, s.width, up);
      code(s.width, s.inner, down);
    }
    for (int64_t e = 0; e < s.n_experts; ++e) {
      gates.push_back(gate.data() + e * matrix);
      ups.push_back(up.data() + e * matrix);
      downs.push_back(down.data() + e * matrix);
    }
    const auto pairs = static_cast<size_t>(n_pairs());
    chosen.resize(pairs);
    weights.resize(pairs);
    order.resize(pairs);
    place.resize(pairs);
    starts.resize(static_cast<size_t>(s.n_experts) + 1);
    gated.resize(pairs * static_cast<size_t>(s.inner));
    up_result = gated;
    mixed.resize(pairs * static_cast<size_t>(s.width));
    reset();
  }
  // What is only written is poisoned.
  void reset() {
    out = before;
    const bf16 nan(std::numeric_limits<float>::quiet_NaN());
    for (auto* rows : {&gated, &up_result, &mixed}) std::fill(rows->begin(), rows->end(), nan);
    for (auto* list : {&chosen, &order, &place, &starts}) std::fill(list->begin(), list->end(), -7);
    std::fill(weights.begin(), weights.end(), std::numeric_limits<float>::quiet_NaN());
  }

  int64_t n_pairs() const { return shape.n_tokens * shape.n_chosen; }
  ExpertRoutes routes() {
    return {.chosen = chosen.data(),
            .weights = weights.data(),
            .order = order.data(),
            .place = place.data(),
            .starts = starts.data()};
  }
  RouteParams route() {
    return {.logits = logits.data(),
            .n_tokens = shape.n_tokens,
            .n_experts = shape.n_experts,
            .n_chosen = shape.n_chosen,
            .normalise = shape.normalise,
            .routes = routes()};
  }
  // Of gate, up or down: as codes, where they are.
  ExpertMatrices matrices(size_t which, const std::vector<const bf16*>& plain, int64_t n, int64_t k) {
    if (!shape.codec.is_coded()) return {plain.data(), plain[0], n * k};
    std::vector<const bf16*>& of = coded_of[which];
    of.clear();
    for (int64_t e = 0; e < shape.n_experts; ++e) of.push_back(coded[which].matrix().from_row(e * n, k).values);
    return {of.data(), of[0], n * shape.codec.row_bytes(k) / 2, shape.codec};
  }
  MixExpertsParams mix() {
    return {.x = x.data(),
            .out = out.data(),
            .routes = routes(),
            .gate = matrices(0, gates, shape.inner, shape.width),
            .up = matrices(1, ups, shape.inner, shape.width),
            .down = matrices(2, downs, shape.width, shape.inner),
            .n_tokens = shape.n_tokens,
            .width = shape.width,
            .inner = shape.inner,
            .n_experts = shape.n_experts,
            .n_chosen = shape.n_chosen,
            .alone = shape.alone,
            .gated = gated.data(),
            .up_result = up_result.data(),
            .mixed = mixed.data()};
  }

  std::string name() const {
    return fmt::format("{} tokens of {}, {} of {} experts of {}{}, {}", shape.n_tokens, shape.width,
                       shape.n_chosen, shape.n_experts, shape.inner, shape.alone ? ", alone" : "",
                       name_of(shape.codec.code));
  }

  // What route_experts wrote.
  void expect_routes() const {
    const int32_t n_chosen = shape.n_chosen;
    std::vector<int32_t> by_weight(static_cast<size_t>(shape.n_experts));
    std::vector<std::vector<int32_t>> pairs(by_weight.size());
    for (int64_t token = 0; token < shape.n_tokens; ++token) {
      const float* row = logits.data() + token * shape.n_experts;
      std::iota(by_weight.begin(), by_weight.end(), 0);
      std::stable_sort(by_weight.begin(), by_weight.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
      const auto power = [&](int32_t e) { return std::exp(static_cast<double>(row[e]) - row[by_weight[0]]); };
      double sum = 0;
      for (int32_t i = 0; i < (shape.normalise ? n_chosen : shape.n_experts); ++i) {
        sum += power(by_weight[static_cast<size_t>(i)]);
      }
      for (int32_t i = 0; i < n_chosen; ++i) {
        const auto pair = static_cast<size_t>(token * n_chosen + i);
        const int32_t expert = by_weight[static_cast<size_t>(i)];
        ASSERT_EQ(chosen[pair], expert) << name() << ": token " << token << ", choice " << i;
        ASSERT_NEAR(weights[pair], power(expert) / sum, 2e-6) << name() << ": token " << token << ", choice " << i;
        pairs[static_cast<size_t>(expert)].push_back(static_cast<int32_t>(pair));
      }
    }
    int32_t at = 0;
    for (int32_t e = 0; e < shape.n_experts; ++e) {
      ASSERT_EQ(starts[static_cast<size_t>(e)], at) << name() << ": expert " << e;
      for (const int32_t pair : pairs[static_cast<size_t>(e)]) {
        ASSERT_EQ(order[static_cast<size_t>(at)], pair) << name() << ": expert " << e;
        ASSERT_EQ(place[static_cast<size_t>(pair)], at++) << name() << ": expert " << e;
      }
    }
    ASSERT_EQ(starts.back(), at) << name();
  }

  // What mix_experts wrote, behind expect_routes.
  void expect_mixed() const {
    for (int64_t token = 0; token < shape.n_tokens; ++token) {
      std::vector<Expected> sum(static_cast<size_t>(shape.width));
      for (int32_t i = 0; i < shape.n_chosen; ++i) {
        const auto pair = static_cast<size_t>(token * shape.n_chosen + i);
        add_expert(token, chosen[pair], static_cast<double>(weights[pair]), sum);
      }
      for (int64_t c = 0; c < shape.width; ++c) {
        const auto at = static_cast<size_t>(token * shape.width + c);
        const double value = sum[static_cast<size_t>(c)].value + value_of(before[at]);
        const double error = sum[static_cast<size_t>(c)].tolerance;
        ASSERT_NEAR(value_of(out[at]), value, error + kBf16Unit * (std::abs(value) + error))
            << name() << ": token " << token << " at " << c;
      }
    }
    for (size_t i = out.size() - kBehind; i < out.size(); ++i) {
      ASSERT_EQ(out[i].bits, before[i].bits) << name() << ": behind the output";
    }
  }

  ExpertsShape shape;
  std::mt19937 random;
  Memory<bf16> x, before, out, gate, up, down, gated, up_result, mixed;
  Memory<float> logits, weights;
  Memory<int32_t> chosen, order, place, starts;
  std::vector<const bf16*> gates, ups, downs;
  std::vector<CodedMatrix<Memory>> coded;  // gate, up, down
  std::array<std::vector<const bf16*>, 3> coded_of;

 private:
  // A row of x, or of something computed, times a row of weights: value, and how far it may be off.
  template <typename Row>
  static Expected dot(const Row& row, const bf16* weight, int64_t k) {
    double sum = 0, magnitude = 0, squares = 0;
    for (int64_t i = 0; i < k; ++i) {
      const Expected element = row(i);
      const double w = value_of(weight[i]);
      sum += element.value * w;
      magnitude += std::abs(element.value * w);
      squares += (element.tolerance * w) * (element.tolerance * w);
    }
    // Errors of what was rounded before are independent: three times their root mean square bound.
    const double error = dot_tolerance(k, magnitude) + 3 * std::sqrt(squares);
    return {sum, error + kBf16Unit * (std::abs(sum) + error)};
  }

  void add_expert(int64_t token, int32_t expert, double weight, std::vector<Expected>& sum) const {
    const auto e = static_cast<size_t>(expert);
    const auto input = [&](int64_t i) { return Expected{value_of(x[static_cast<size_t>(token * shape.width + i)]), 0}; };
    std::vector<Expected> inner(static_cast<size_t>(shape.inner));
    for (int64_t j = 0; j < shape.inner; ++j) {
      const Expected g = dot(input, gates[e] + j * shape.width, shape.width);
      const Expected u = dot(input, ups[e] + j * shape.width, shape.width);
      const double value = silu(g.value) * u.value;
      // silu has a slope of at most 1.1.
      const double error = 1.1 * g.tolerance * (std::abs(u.value) + u.tolerance) + std::abs(silu(g.value)) * u.tolerance;
      inner[static_cast<size_t>(j)] = {value, error + kBf16Unit * (std::abs(value) + error)};
    }
    const auto gated_row = [&](int64_t i) { return inner[static_cast<size_t>(i)]; };
    for (int64_t c = 0; c < shape.width; ++c) {
      const Expected y = dot(gated_row, downs[e] + c * shape.inner, shape.inner);
      sum[static_cast<size_t>(c)].value += weight * y.value;
      sum[static_cast<size_t>(c)].tolerance += weight * y.tolerance + 1e-6 * std::abs(y.value);
    }
  }
};

// Tokens alone and many; experts without any, with a row, with more than a tile; ends of tiles in every direction.
inline const ExpertsShape kExpertsShapes[] = {
    {1, 64, 24, 8, 3},
    {1, 264, 40, 128, 8},
    {1, 64, 48, 4, 2, false},
    {2, 4168, 16, 3, 2},  // more than a panel
    {8, 64, 48, 4, 4},
    {13, 72, 56, 6, 2, false, true},
    {40, 64, 24, 5, 3, true, true, true},
    {17, 64, 24, 8, 3},
    {150, 72, 136, 3, 2, false},
    {70, 104, 200, 40, 6},
    {300, 64, 72, 6, 2, true, false, true},
    {37, 40, 8, 512, 32},
    {20, 64, 64, 1, 1},
    {5, 256, 128, 4, 2, true, false, false, {WeightCode::kInt4, 32}},
    {8, 128, 384, 5, 2, true, false, false, {WeightCode::kInt8, 64}},
    {40, 1280, 256, 4, 2, true, true, false, {WeightCode::kInt4, 128}},
    {40, 128, 128, 3, 1, false, true, false, {WeightCode::kInt8, 128}},
    {90, 384, 256, 5, 2, true, false, true, {WeightCode::kInt4, 64}},
    {90, 256, 384, 5, 2, true, false, false, {WeightCode::kInt8, 32}},
    {140, 128, 128, 2, 1, true, false, true, {WeightCode::kInt4, 32}},
    {8, 256, 384, 4, 2, true, false, false, {WeightCode::kE4M3, 64}},
    {40, 256, 128, 4, 2, true, true, false, {WeightCode::kE4M3, 128}},
    {140, 128, 256, 3, 1, true, false, true, {WeightCode::kE4M3, 32}},
    {8, 256, 384, 4, 2, true, false, false, {WeightCode::kInt4Min, 32}},
    {40, 256, 128, 4, 2, true, true, false, {WeightCode::kInt8Min, 32}},
    {140, 128, 256, 3, 1, true, false, true, {WeightCode::kInt8x16, 32}},
    {90, 384, 256, 5, 2, true, false, true, {WeightCode::kInt4Min, 32}},
};

// Op: op(params), and its results can be looked at.
template <template <typename> typename Memory, typename Route, typename Mix>
void expect_experts(const Route& route, const Mix& mix) {
  for (const ExpertsShape& shape : kExpertsShapes) {
    ExpertsProblem<Memory> problem(shape);
    route(problem.route());
    problem.expect_routes();
    if (::testing::Test::HasFatalFailure()) return;
    mix(problem.mix());
    problem.expect_mixed();
    if (::testing::Test::HasFatalFailure()) return;
  }
}

// A token's bits do not depend on those beside it: all together, and each by itself.
template <template <typename> typename Memory, typename Route, typename Mix>
void expect_tokens_alone_alike(const Route& route, const Mix& mix) {
  ExpertsProblem<Memory> all({50, 264, 88, 7, 3, true, true});
  route(all.route());
  mix(all.mix());
  const auto weights = all.weights;
  const auto out = all.out;
  for (int64_t token = 0; token < all.shape.n_tokens; token += 7) {
    all.reset();
    RouteParams one = all.route();
    one.logits += token * one.n_experts;
    one.n_tokens = 1;
    route(one);
    MixExpertsParams params = all.mix();
    params.x += token * params.width;
    params.out += token * params.width;
    params.n_tokens = 1;
    mix(params);
    for (int64_t i = 0; i < all.shape.n_chosen; ++i) {
      EXPECT_EQ(all.weights[static_cast<size_t>(i)], weights[static_cast<size_t>(token * all.shape.n_chosen + i)]);
    }
    for (int64_t i = token * params.width; i < (token + 1) * params.width; ++i) {
      ASSERT_EQ(all.out[static_cast<size_t>(i)].bits, out[static_cast<size_t>(i)].bits) << "token " << token;
    }
  }
}

// Equal logits: the lower index first. NaN: whatever is chosen exists, and the weights are NaN.
template <template <typename> typename Memory, typename Route>
void expect_ties_and_nan_are_routed(const Route& route) {
  ExpertsProblem<Memory> problem({3, 8, 8, 70, 4});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::fill(problem.logits.begin(), problem.logits.end(), 1.5f);
  for (int e : {3, 40, 69}) problem.logits[static_cast<size_t>(70 + e)] = 2.5f;
  for (int e : {0, 33, 34, 35, 36}) problem.logits[static_cast<size_t>(140 + e)] = nan;
  route(problem.route());
  const std::vector<int32_t> expected = {0, 1, 2, 3, 3, 40, 69, 0};
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), problem.chosen.begin()));
  for (size_t i = 8; i < 12; ++i) {
    EXPECT_TRUE(problem.chosen[i] >= 0 && problem.chosen[i] < 70) << problem.chosen[i];
    EXPECT_TRUE(std::isnan(problem.weights[i]));
  }
}

}  // namespace tiercel::test
