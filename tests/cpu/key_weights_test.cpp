// Attention weights of listed chunks at every level that this machine runs, against fp64.
#include "cpu/key_weights.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/cpu/tested_isas.h"
#include "tests/oracle/key_weights.h"

namespace tiercel::cpu {
namespace {

template <typename T>
using Memory = std::vector<T>;

class KeyWeightsTest : public testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
};

TEST_P(KeyWeightsTest, OfAnyShape) {
  test::expect_key_weights<Memory>([&](const KeyWeightsParams& p) { key_weights(queue_, p); });
}

TEST_P(KeyWeightsTest, NanAndInfinityStayWhereTheyAre) {
  test::expect_nan_and_infinity_stay<Memory>(
      [&](const KeyWeightsParams& p) { key_weights(queue_, p); });
}

TEST_P(KeyWeightsTest, AnyNumberOfThreadsMakesTheSameBits) {
  std::mt19937_64 rng(test::seed());
  test::Listed<Memory> list(rng, {2, 3, 128, 8, {300, 77}, test::Bias::kOfKeys, 1.5f});
  key_weights(queue_, list.params());
  ASSERT_NO_FATAL_FAILURE(test::expect_weights(list));
  const std::vector<bf16> weights = list.weights;
  const std::vector<float> maxima = list.maxima;
  for (const int n_threads : {1, 3}) {
    Queue queue({.n_threads = n_threads, .isa = GetParam()});
    key_weights(queue, list.params());
    EXPECT_TRUE(list.weights == weights);
    EXPECT_EQ(list.maxima, maxima);
  }
}

INSTANTIATE_TEST_SUITE_P(EveryLevel, KeyWeightsTest, testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace tiercel::cpu
