// Mixtures of experts against fp64 on every level of this machine; and bit by bit against the ops that they are
// made of, one thread and several.
#include "cpu/experts.h"

#include <gtest/gtest.h>

#include <vector>

#include "cpu/linear.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/experts_case.h"

namespace tiercel::cpu {
namespace {

template <typename T>
using Memory = std::vector<T>;
using Problem = test::ExpertsProblem<Memory>;

class Experts : public ::testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  auto route() {
    return [this](const RouteParams& p) { route_experts(queue_, p); };
  }
  auto mix() {
    return [this](const MixExpertsParams& p) { mix_experts(queue_, p); };
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, Experts, ::testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(Experts, MatchOracle) { test::expect_experts<Memory>(route(), mix()); }

TEST_P(Experts, TokensAloneHaveTheBitsOfOneToken) { test::expect_tokens_alone_alike<Memory>(route(), mix()); }

TEST_P(Experts, TiesAndNanAreRouted) { test::expect_ties_and_nan_are_routed<Memory>(route()); }

// Few tokens and many: whichever way all tokens through all experts would go.
TEST_P(Experts, HaveTheBitsOfLinearLayers) {
  for (const int64_t n : {16, 17, 90}) {
    Problem all({n, 264, 88, 5, 2});
    route_experts(queue_, all.route());
    mix_experts(queue_, all.mix());
    std::vector<float> sum(static_cast<size_t>(n * all.shape.width));
    Memory<bf16> gated(static_cast<size_t>(n * all.shape.inner)), up_result = gated, y = all.before;
    // By choice, as a token's are added up.
    for (int32_t i = 0; i < all.shape.n_chosen; ++i) {
      for (int32_t e = 0; e < all.shape.n_experts; ++e) {
        const auto at = static_cast<size_t>(e);
        gated_linear(queue_, {.x = all.x.data(),
                              .gate = all.gates[at],
                              .up = all.ups[at],
                              .out = gated.data(),
                              .m = n,
                              .k = all.shape.width,
                              .n = all.shape.inner,
                              .up_result = up_result.data()});
        linear(queue_, {.x = gated.data(),
                        .weight = all.downs[at],
                        .out = y.data(),
                        .m = n,
                        .k = all.shape.inner,
                        .n = all.shape.width});
        for (int64_t token = 0; token < n; ++token) {
          const auto pair = static_cast<size_t>(token * all.shape.n_chosen + i);
          if (all.chosen[pair] != e) continue;
          for (int64_t c = token * all.shape.width; c < (token + 1) * all.shape.width; ++c) {
            sum[static_cast<size_t>(c)] += all.weights[pair] * static_cast<float>(y[static_cast<size_t>(c)]);
          }
        }
      }
    }
    for (size_t i = 0; i < sum.size(); ++i) {
      ASSERT_EQ(all.out[i].bits, bf16(static_cast<float>(all.before[i]) + sum[i]).bits) << n << " tokens, at " << i;
    }
  }
}

TEST_P(Experts, BitsDependNotOnThreads) {
  Problem all({200, 264, 88, 9, 3});
  std::vector<bf16> out;
  for (const int n_threads : {1, 2, 3}) {
    Queue queue({.n_threads = n_threads, .isa = GetParam()});
    all.reset();
    route_experts(queue, all.route());
    mix_experts(queue, all.mix());
    if (out.empty()) out = all.out;
    for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i].bits, all.out[i].bits) << n_threads << " threads";
  }
}

}  // namespace
}  // namespace tiercel::cpu
