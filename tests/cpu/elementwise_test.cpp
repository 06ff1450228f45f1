// Elementwise ops against fp64 on every level of this machine.
#include "cpu/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/base/rope.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/elementwise_case.h"
#include "tests/seed.h"

namespace tiercel::cpu {
namespace {

template <typename T>
using Memory = std::vector<T>;

class Elementwise : public ::testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  std::mt19937 random_{static_cast<std::mt19937::result_type>(test::seed())};
  const test::ElementwiseUnderTest<Memory> op_ = {
      [this](const EmbedParams& p) { embed(queue_, p); },
      [this](const NormParams& p) { rms_norm(queue_, p); },
      [this](const SwigluParams& p) { swiglu(queue_, p); },
      [this](const LogprobParams& p) { token_logprobs(queue_, p); }};
};
INSTANTIATE_TEST_SUITE_P(Levels, Elementwise, ::testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(Elementwise, EmbedDecodesRows) { op_.expect_coded_embed(); }

TEST_P(Elementwise, EmbedCopiesRows) { op_.expect_embed({19, 64}, {0, 36, 5, 5, 12}); }
TEST_P(Elementwise, RmsNorm) { op_.expect_rms_norm({1, 7, 16, 33, 64, 100, 256, 1000}); }
TEST_P(Elementwise, RmsNormKeepsNanInItsRow) { op_.expect_nan_stays_in_its_row({40, 41}); }
TEST_P(Elementwise, Swiglu) { op_.expect_swiglu(200001); }
TEST_P(Elementwise, SwigluOfSpecialValues) { op_.expect_swiglu_of_special_values(); }
TEST_P(Elementwise, TokenLogprobs) { op_.expect_token_logprobs(); }

TEST_P(Elementwise, RopeAppend) {
  for (const test::RopeShape& c : {test::RopeShape{1, 0, 2, 1, 64, false},
                                   {9, 1020, 8, 4, 64, false},
                                   {3, 4000000, 4, 2, 128, true},
                                   {5, 77, 3, 1, 80, true},
                                   {2, 2047, 2, 2, 10, true},
                                   {40, 500, 7, 1, 96, false},
                                   {6, 1022, 3, 1, 128, false, 32},
                                   {6, 1022, 3, 2, 96, true, 13},
                                   {6, 1022, 3, 2, 96, true, 13, {.tokens = 256, .local = 0}, 2, 3},
                                   {1, 900, 8, 2, 64, false, 0, {.tokens = 128, .local = 32}, 0, 8}}) {
    test::RopeProblem<Memory, RopeTable> problem(c, random_);
    rope_append(queue_, problem.params());
    problem.expect_right();
  }
}

TEST_P(Elementwise, TokenLogprobsOfNan) {
  std::vector<float> logits(40, 1.0f);
  logits[33] = std::numeric_limits<float>::quiet_NaN();
  const int32_t target = 2;
  double got = 0;
  token_logprobs(
      queue_,
      {.logits = logits.data(), .targets = &target, .logprobs = &got, .n_rows = 1, .vocab = 40});
  EXPECT_TRUE(std::isnan(got));
}

}  // namespace
}  // namespace tiercel::cpu
