// Linear layers against fp64: one body for every backend.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <random>
#include <vector>

#include "engine/base/ops.h"
#include "tests/oracle/linear.h"
#include "tests/oracle/random_rows.h"
#include "tests/seed.h"

namespace tiercel::test {

struct LinearShape {
  int64_t m, k, n;
  bool bias = false, accumulate = false, f32 = false;
};

// Rows, weights and an output. Memory<T>: a vector that the backend reads and writes.
template <template <typename> typename Memory>
struct LinearProblem {
  static constexpr int64_t kBehind = 64;  // elements after the output that nobody may touch

  explicit LinearProblem(const LinearShape& c)
      : shape(c), random(static_cast<std::mt19937::result_type>(test::seed())) {
    x = random_rows<Memory>(random, c.m * c.k);
    weight = random_rows<Memory>(random, c.n * c.k);
    bias = random_rows<Memory>(random, c.n);
    before = random_rows<Memory>(random, c.m * c.n + kBehind, 10);
    reset();
  }
  // Without accumulate the output is poisoned.
  void reset() {
    out = before;
    out_f32.resize(before.size());
    for (size_t i = 0; i < before.size(); ++i) {
      if (!shape.accumulate && i < size()) out[i] = bf16(std::numeric_limits<float>::quiet_NaN());
      out_f32[i] = static_cast<float>(out[i]);
    }
  }
  size_t size() const { return static_cast<size_t>(shape.m * shape.n); }
  LinearParams params() {
    return {.x = x.data(),
            .weight = weight.data(),
            .bias = shape.bias ? bias.data() : nullptr,
            .out = shape.f32 ? static_cast<void*>(out_f32.data()) : out.data(),
            .m = shape.m,
            .k = shape.k,
            .n = shape.n,
            .out_type = shape.f32 ? DType::kF32 : DType::kBf16,
            .accumulate = shape.accumulate};
  }
  double got(size_t i) const {
    return shape.f32 ? static_cast<double>(out_f32[i])
                     : static_cast<double>(static_cast<float>(out[i]));
  }
  std::vector<double> held() const {
    std::vector<double> old(before.size());
    for (size_t i = 0; i < old.size(); ++i) {
      old[i] = static_cast<double>(static_cast<float>(before[i]));
    }
    return old;
  }
  std::vector<Expected> expected() { return linear_oracle(params(), held()); }
  void expect_close(const std::vector<Expected>& expected) const {
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(got(i), expected[i].value, expected[i].tolerance)
          << "m " << shape.m << " k " << shape.k << " n " << shape.n << " at " << i;
    }
    for (size_t i = size(); i < before.size(); ++i) {
      ASSERT_EQ(got(i), static_cast<double>(static_cast<float>(before[i])))
          << "behind the output, at " << i - size();
    }
  }

  LinearShape shape;
  std::mt19937 random;
  Memory<bf16> x, weight, bias, before, out;
  Memory<float> out_f32;
};

// linear: multiplies and waits.
template <template <typename> typename Memory>
void expect_nan_and_infinity_reach_their_outputs(
    std::initializer_list<int64_t> rows, const std::function<void(const LinearParams&)>& linear) {
  for (const int64_t m : rows) {
    for (int64_t k : {98, 104}) {
      LinearProblem<Memory> problem({.m = m, .k = k, .n = 70});
      problem.x[static_cast<size_t>((m - 1) * k + k - 1)] =
          bf16(std::numeric_limits<float>::quiet_NaN());
      problem.weight[static_cast<size_t>(k * 3 + 5)] = bf16(std::numeric_limits<float>::infinity());
      linear(problem.params());
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < 70; ++j) {
          const double value = problem.got(static_cast<size_t>(i * 70 + j));
          EXPECT_EQ(std::isnan(value), i == m - 1) << i << " " << j;
          if (i != m - 1) {
            EXPECT_EQ(std::isinf(value), j == 3) << i << " " << j;
          }
        }
      }
    }
  }
}

}  // namespace tiercel::test
