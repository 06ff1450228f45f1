// Attention weights of listed chunks on the device (or its emulator), against fp64, and what the
// host makes of them.
#include "kernels/key_weights.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "cpu/weighted_values.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/key_weights.h"

namespace tiercel {
namespace {

using Listed = test::Listed<test::DeviceVector>;

void weigh(const KeyWeightsParams& p) {
  cuda::key_weights(test::stream(), p);
  test::stream().finish();
}

TEST(CudaKeyWeights, OfAnyShape) { test::expect_key_weights<test::DeviceVector>(weigh); }

TEST(CudaKeyWeights, NanAndInfinityStayWhereTheyAre) {
  test::expect_nan_and_infinity_stay<test::DeviceVector>(weigh);
}

TEST(CudaKeyWeights, SameListSameBits) {
  std::mt19937_64 rng(test::seed());
  Listed list(rng, {2, 4, 128, 8, {60, 33}, test::Bias::kOfKeys});
  weigh(list.params());
  const auto weights = list.weights;
  const auto maxima = list.maxima;
  weigh(list.params());
  EXPECT_TRUE(list.weights == weights);
  EXPECT_TRUE(list.maxima == maxima);
}

// The device weighs, the host multiplies: decode attention of the same list.
TEST(CudaKeyWeights, ValuesOfTheHostCompleteThem) {
  std::mt19937_64 rng(test::seed());
  cpu::Queue host({.n_threads = 2});
  const auto check = [&](const test::ListShape& shape) {
    Listed list(rng, shape, 2.0f);
    weigh(list.params());
    WeightedValuesParams p = list.value_params();
    const auto n_heads = static_cast<size_t>(p.n_heads), d = static_cast<size_t>(p.head_dim);
    std::vector<float> max(n_heads), sum(n_heads), out(n_heads * d);
    std::vector<float> workspace(
        static_cast<size_t>(weighted_values_workspace_floats(p.n_heads, p.head_dim)));
    p.out = {max.data(), sum.data(), out.data()};
    p.workspace = workspace.data();
    cpu::weighted_values(host, p);
    const KvSource source = list.source();
    test::expect_attends(list.attend_params(source), p.out);
  };
  ASSERT_NO_FATAL_FAILURE(test::for_list_shapes(check));
  ASSERT_NO_FATAL_FAILURE(check({2, 8, 64, 16, {100, 3}, test::Bias::kOfNamedChunks, 1.0f}));
}

}  // namespace
}  // namespace tiercel
