// Low-rank keys on every level of this machine: fit, project and rebuild against fp64.
#include "cpu/lowrank.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "cpu/codec.h"
#include "cpu/eigen.h"
#include "engine/base/rope.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/lowrank_case.h"
#include "tests/seed.h"

namespace tiercel::cpu {
namespace {

using test::spectrum;
template <typename T>
using Memory = std::vector<T>;
using Op = test::LowRankUnderTest<Memory, RopeTable>;
using Keys = Op::Keys;
using Basis = Op::Basis;
using Rebuilt = Op::Rebuilt;

Op op(Queue& queue) {
  return {[&queue](const FitBasisParams& p) { fit_basis(queue, p); },
          [&queue](const ProjectParams& p) { project_keys(queue, p); },
          [&queue](const RebuildParams& p) { rebuild_keys(queue, p); },
          [&queue](const EncodeParams& p) { encode_rows(queue, p); }};
}

class LowRank : public ::testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  const Op op_ = op(queue_);
};
INSTANTIATE_TEST_SUITE_P(Levels, LowRank, ::testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(LowRank, BasisIsAsGoodAsTheBestOne) {
  op_.expect_best_basis({4500, 2, 64}, 40, 0, 0);
  op_.expect_best_basis({6000, 2, 64}, 40, 7, 0.2);
  op_.expect_best_basis({600, 1, 80}, 33, 1, 0);
  op_.expect_best_basis({37, 1, 32}, 32, 2, 0);
}

TEST_P(LowRank, BiasedKeys) { op_.expect_bias_is_no_direction(); }
TEST_P(LowRank, PlantedRankIsFound) { op_.expect_planted_rank_is_found(); }

TEST_P(LowRank, ProjectAndRebuildMatchTheirEquations) {
  for (const test::StepShape& c : {test::StepShape{{1100, 2, 64}, 8, 40},
                                   {{1100, 1, 128, 900}, 5, 37},
                                   {{1100, 3, 80}, 64, 100}}) {
    const Keys keys(c.keys, spectrum(c.keys.n_kv_heads * c.keys.head_dim, 2), 3);
    Basis basis = op_.fit(keys, c.rank);
    ASSERT_NO_FATAL_FAILURE(op_.expect_equations(keys, basis, c.chunk_tokens));
  }
}

TEST_P(LowRank, CodedCoefficientsAreDecodedFirst) {
  op_.expect_coded_are_decoded_first({{600, 2, 64}, 8, 96});
  op_.expect_coded_are_decoded_first({{600, 1, 128, 70}, 5, 64});
  op_.expect_coded_are_decoded_first({{600, 3, 80}, 1, 160});
}

TEST_P(LowRank, FullRankGivesTheKeysBack) { op_.expect_full_rank_gives_the_keys_back(1000); }

TEST_P(LowRank, SameBitsForAnyThreadsAndPieces) {
  const Keys keys({9000, 2, 32}, spectrum(64, 2), 2);
  Queue one({.n_threads = 1, .isa = GetParam()});
  Queue three({.n_threads = 3, .isa = GetParam()});
  Basis basis = op(one).fit(keys, 24);
  for (Queue* queue : {&queue_, &three}) {
    const Basis other = op(*queue).fit(keys, 24);
    EXPECT_EQ(basis.basis, other.basis);
    EXPECT_EQ(basis.mean, other.mean);
    EXPECT_EQ(basis.residual, other.residual);
  }
  // Tokens that come later, eight at a time, get the coefficients of the one-shot projection.
  const std::vector<bf16> coefficients = op(one).project(keys, basis, keys.n_tokens);
  EXPECT_EQ(coefficients, op(three).project(keys, basis, keys.n_tokens));
  EXPECT_EQ(coefficients, op_.project(keys, basis, 8));
  const Rebuilt first(op(one), keys, basis, coefficients, 8);
  const Rebuilt second(op(three), keys, basis, coefficients, 8);
  EXPECT_EQ(first.memory, second.memory);
}

TEST(Eigen, VectorsSatisfyTheirEquation) {
  const int64_t n = 30;
  std::mt19937 random(static_cast<std::mt19937::result_type>(test::seed()));
  std::normal_distribution<double> normal;
  std::vector<double> matrix(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const double value = normal(random);
      matrix[static_cast<size_t>(i * n + j)] = matrix[static_cast<size_t>(j * n + i)] = value;
    }
  }
  const Eigenvectors result = leading_eigenvectors(matrix, n, 5);
  for (int64_t r = 0; r < 5; ++r) {
    const double* v = result.vectors.data() + r * n;
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += matrix[static_cast<size_t>(i * n + j)] * v[j];
      EXPECT_NEAR(sum, result.values[static_cast<size_t>(r)] * v[i], 1e-12);
    }
    EXPECT_GE(result.values[static_cast<size_t>(r)], result.values[static_cast<size_t>(r + 1)]);
  }
  matrix[3] = std::nan("");
  EXPECT_ANY_THROW(leading_eigenvectors(matrix, n, 5));
}

}  // namespace
}  // namespace tiercel::cpu
