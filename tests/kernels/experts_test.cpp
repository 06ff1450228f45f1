// Mixtures of experts on the device (or its emulator) against fp64; and few rows bit by bit against the ops that
// they are made of.
#include "kernels/experts.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/linear.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/experts_case.h"

namespace tiercel {
namespace {

template <typename T>
using Memory = test::DeviceVector<T>;
using Problem = test::ExpertsProblem<Memory>;

const auto route = [](const RouteParams& p) {
  cuda::route_experts(test::stream(), p);
  test::stream().finish();
};
const auto mix = [](const MixExpertsParams& p) {
  cuda::mix_experts(test::stream(), p);
  test::stream().finish();
};

TEST(KernelExperts, MatchOracle) { test::expect_experts<Memory>(route, mix); }

TEST(KernelExperts, TokensAloneHaveTheBitsOfOneToken) { test::expect_tokens_alone_alike<Memory>(route, mix); }

TEST(KernelExperts, TiesAndNanAreRouted) { test::expect_ties_and_nan_are_routed<Memory>(route); }

TEST(KernelExperts, FewHaveTheBitsOfLinearLayers) {
  Problem all({6, 1032, 520, 5, 2});
  cuda::route_experts(test::stream(), all.route());
  mix(all.mix());
  std::vector<float> sum(static_cast<size_t>(all.shape.n_tokens * all.shape.width));
  Memory<bf16> gated(static_cast<size_t>(all.shape.inner)), y(static_cast<size_t>(all.shape.width));
  for (size_t pair = 0; pair < all.chosen.size(); ++pair) {
    const auto expert = static_cast<size_t>(all.chosen[pair]);
    const int64_t token = static_cast<int64_t>(pair) / all.shape.n_chosen * all.shape.width;
    cuda::gated_linear(test::stream(), {.x = all.x.data() + token,
                                        .gate = all.gates[expert],
                                        .up = all.ups[expert],
                                        .out = gated.data(),
                                        .m = 1,
                                        .k = all.shape.width,
                                        .n = all.shape.inner});
    cuda::linear(test::stream(), {.x = gated.data(),
                                  .weight = all.downs[expert],
                                  .out = y.data(),
                                  .m = 1,
                                  .k = all.shape.inner,
                                  .n = all.shape.width});
    test::stream().finish();
    for (int64_t c = 0; c < all.shape.width; ++c) {
      sum[static_cast<size_t>(token + c)] += all.weights[pair] * static_cast<float>(y[static_cast<size_t>(c)]);
    }
  }
  for (size_t i = 0; i < sum.size(); ++i) {
    ASSERT_EQ(all.out[i].bits, bf16(sum[i] + static_cast<float>(all.before[i])).bits) << i;
  }
}

}  // namespace
}  // namespace tiercel
