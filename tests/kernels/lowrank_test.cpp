// Low-rank keys on the GPU: fit, project and rebuild against fp64.
#include "kernels/lowrank.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/codec.h"
#include "tests/kernels/device_rope.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/lowrank_case.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::DeviceVector;
using test::kBf16Unit;
using test::spectrum;
using test::StepShape;
using Op = test::LowRankUnderTest<DeviceVector, test::DeviceRope>;
using Keys = Op::Keys;
using Basis = Op::Basis;
using Rebuilt = Op::Rebuilt;

Op op(cuda::EigenMethod method = cuda::EigenMethod::kAuto) {
  return {test::waiting([method](cuda::Stream& s, const FitBasisParams& p) {
            cuda::fit_basis_with(s, p, method);
          }),
          test::waiting([](cuda::Stream& s, const ProjectParams& p) { cuda::project_keys(s, p); }),
          test::waiting([](cuda::Stream& s, const RebuildParams& p) { cuda::rebuild_keys(s, p); }),
          test::waiting([](cuda::Stream& s, const EncodeParams& p) { cuda::encode_rows(s, p); })};
}

Basis fit(const Keys& keys, int64_t rank) { return op().fit(keys, rank); }

TEST(CudaLowRank, ProjectAndRebuildMatchTheirEquations) {
  const std::vector<StepShape> cases = {
    {{330, 2, 64, 900}, 8, 40},   // across a row of the coarse table
    {{201, 1, 128}, 5, 37},       // rows of the basis not aligned; chunks across tiles
    {{200, 3, 80}, 64, 100},      // a head that is no power of two; a head without misses
    {{100, 1, 96}, 8, 96},        // full rank
    {{130, 2, 128}, 8, 160},      // the default rank
    {{70, 2, 256}, 8, 168},       // two ranges of pairs; two panels of the basis
    {{70, 2, 256}, 16, 330},      // three tiles of columns
    {{100, 5, 16}, 3, 33},        // a small head
    {{60, 3, 2}, 1, 3},           // the smallest head
    {{90, 2, 10}, 4, 7},          // an odd half
    {{66, 1, 192, 3000}, 8, 24},  // three quarters of the tiles
    {{40, 1, 320}, 8, 17},        // several ranges of channels
#if defined(TIERCEL_ON_DEVICE)
    {{20000, 8, 128, 70000}, 8, 160},
    {{5000, 4, 256}, 8, 256},
    {{3000, 8, 64}, 16, 512},
#endif
  };
  for (const StepShape& c : cases) {
    SCOPED_TRACE(testing::Message()
                 << c.keys.n_kv_heads << " x " << c.keys.head_dim << " rank " << c.rank);
    const Keys keys(c.keys, spectrum(std::min<int64_t>(40, c.keys.n_kv_heads * c.keys.head_dim), 2),
                    1);
    Basis basis = Op::random_basis(keys, c.rank, 1);
    ASSERT_NO_FATAL_FAILURE(op().expect_equations(keys, basis, c.chunk_tokens));
  }
}

// Tokens that come later, eight at a time, get the coefficients of the one-shot projection.
TEST(CudaLowRank, PiecesGiveTheSameBits) {
  const Keys keys({150, 2, 64, 1000}, spectrum(128, 2), 2);
  Basis basis = Op::random_basis(keys, 24, 1);
  const DeviceVector<bf16> whole = op().project(keys, basis, keys.n_tokens);
  EXPECT_TRUE(whole == op().project(keys, basis, 8));
  EXPECT_TRUE(whole == op().project(keys, basis, 100));
  const Rebuilt first(op(), keys, basis, whole, 8), second(op(), keys, basis, whole, 8);
  EXPECT_TRUE(first.memory == second.memory);
}

TEST(CudaLowRank, CodedCoefficients) {
  op().expect_coded_are_decoded_first({{130, 2, 64, 900}, 8, 32});
  op().expect_coded_are_decoded_first({{90, 1, 128}, 5, 96});
  op().expect_coded_are_decoded_first({{70, 2, 128}, 8, 160});
  op().expect_coded_are_decoded_first({{70, 3, 256}, 8, 352});  // panels of the basis
}

TEST(CudaLowRank, FullRankGivesTheKeysBack) { op().expect_full_rank_gives_the_keys_back(400); }

// ---- fit ----

TEST(CudaLowRank, BasisIsAsGoodAsTheBestOne) {
  op().expect_best_basis({4500, 2, 64}, 40, 0, 0);
  op().expect_best_basis({9000, 2, 64}, 40, 7,
                         0.2);  // two panels, and a mean that is not the shift
  op().expect_best_basis({600, 1, 80}, 33, 1, 0);
  op().expect_best_basis({300, 3, 66}, 50, 1, 0);  // two tiles of channels, odd halves
  op().expect_best_basis({37, 1, 32}, 32, 2, 0);
  op().expect_best_basis({200, 3, 2}, 5, 1, 0);
#if defined(TIERCEL_ON_DEVICE)
  op(cuda::EigenMethod::kDense).expect_best_basis({20000, 4, 128}, 160, 1, 0.1);
  op(cuda::EigenMethod::kSubspace).expect_best_basis({20000, 4, 128}, 160, 1, 0.1);
  op().expect_best_basis({10000, 8, 128}, 160, 3, 0.1);
  op().expect_best_basis({10000, 4, 64}, 64, 3, 0.1);
#endif
}

TEST(CudaLowRank, BiasedKeys) { op().expect_bias_is_no_direction(); }
TEST(CudaLowRank, PlantedRankIsFound) { op().expect_planted_rank_is_found(); }

TEST(CudaLowRank, SameKeysSameBits) {
  const Keys keys({700, 2, 32}, spectrum(64, 2), 2);
  const Basis first = fit(keys, 24), second = fit(keys, 24);
  EXPECT_TRUE(first.basis == second.basis);
  EXPECT_TRUE(first.mean == second.mean);
  EXPECT_TRUE(first.residual == second.residual);
}

// Every column of a basis has length 1 and stands upright on the others, whatever the keys are.
void expect_orthonormal(const Basis& basis, int64_t w) {
  const std::vector<double> values = basis.values();
  const size_t rank = static_cast<size_t>(basis.rank);
  for (size_t a = 0; a < rank; ++a) {
    for (size_t b = 0; b <= a; ++b) {
      double sum = 0;
      for (size_t i = 0; i < static_cast<size_t>(w); ++i) {
        sum += values[i * rank + a] * values[i * rank + b];
      }
      // Each vector is rounded: 2^-8 of its length at most, and twice that for their product.
      ASSERT_NEAR(sum, a == b ? 1 : 0, 2.1 * kBf16Unit) << a << " and " << b;
    }
  }
}

TEST(CudaLowRank, DegenerateKeys) {
  std::vector<std::pair<test::KeyShape, int64_t>> shapes = {{{100, 2, 32}, 20}, {{7, 2, 32}, 20}};
#if defined(TIERCEL_ON_DEVICE)
  shapes.push_back({{5000, 8, 128}, 160});
  shapes.push_back({{40, 8, 128}, 160});
#endif
  for (const auto& [shape, rank] : shapes) {
    const std::vector<double> few(3, 1.0);
    for (const double size : {0.0, 1.0}) {  // all keys equal; fewer directions than the rank
      std::vector<double> sigmas(few);
      for (double& sigma : sigmas) sigma *= size;
      const Keys keys(shape, sigmas, 1);
      const Basis basis = fit(keys, rank);
      ASSERT_GE(basis.residual[0], 0);
      ASSERT_LE(basis.residual[0], 1);
      ASSERT_NO_FATAL_FAILURE(expect_orthonormal(basis, keys.w));
    }
    Keys zeros(shape, few, 1);
    std::fill(zeros.plane.begin(), zeros.plane.end(), bf16(0.0f));
    const Basis basis = fit(zeros, rank);
    EXPECT_EQ(basis.residual[0], 0);
    ASSERT_NO_FATAL_FAILURE(expect_orthonormal(basis, zeros.w));
    for (float value : basis.mean) ASSERT_EQ(value, 0);
  }
}

TEST(CudaLowRank, KeysThatAreNotFiniteShowInTheResidual) {
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    Keys keys({90, 2, 32}, spectrum(64, 1), 1);
    keys.plane[90 * 32 + 50 * 32 + 7] = bf16(bad);
    const Basis basis = fit(keys, 10);
    EXPECT_TRUE(std::isnan(basis.residual[0]));
  }
}

TEST(CudaLowRank, ScratchIsEnoughForOneLayer) {
  // 8 heads of 128, rank 160: what a layer of an 8B model takes.
  EXPECT_LT(cuda::fit_basis_scratch_bytes(1024, 160), int64_t{128} << 20);
}

}  // namespace
}  // namespace tiercel
