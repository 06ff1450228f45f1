// Sampling on the device against engine/sampler.h: the same tokens, draw by draw.
#include "kernels/sample.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>

#include "engine/sampler.h"
#include "tests/kernels/device_vector.h"
#include "tests/random_constraint.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::DeviceVector;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

class KernelSample : public ::testing::Test {
 protected:
  DeviceVector<float> random_logits(int64_t n, float sigma) {
    std::normal_distribution<float> normal(0, sigma);
    DeviceVector<float> logits(static_cast<size_t>(n));
    for (float& x : logits) x = normal(random_);
    return logits;
  }
  int32_t argmax(const DeviceVector<float>& logits) {
    DeviceVector<int32_t> token(1, -7);
    cuda::argmax(stream_, logits.data(), static_cast<int64_t>(logits.size()), token.data(),
                 workspace_.data());
    stream_.finish();
    return token[0];
  }
  // One draw; state goes on.
  int32_t sample(DeviceVector<float>& logits, const SamplingOptions& options,
                 DeviceVector<uint64_t>& state, const DeviceVector<LogitAdjustment>& adjustments = {},
                 const DeviceVector<uint32_t>& allowed = {}) {
    const auto vocab = static_cast<int64_t>(logits.size());
    const DeviceVector<float> before = logits;
    workspace_.resize(static_cast<size_t>(sample_workspace_bytes(vocab)));
    DeviceVector<int32_t> token(1, -7);
    cuda::sample(stream_, {.logits = logits.data(),
                           .vocab = vocab,
                           .adjustments = adjustments.data(),
                           .n_adjustments = static_cast<int64_t>(adjustments.size()),
                           .allowed = allowed.empty() ? nullptr : allowed.data(),
                           .temperature = options.temperature,
                           .top_k = options.top_k,
                           .top_p = options.top_p,
                           .min_p = options.min_p,
                           .generator = state.data(),
                           .token = token.data(),
                           .workspace = workspace_.data()});
    stream_.finish();
    EXPECT_EQ(std::memcmp(before.data(), logits.data(), before.size() * sizeof(float)), 0);
    return token[0];
  }

  cuda::Stream& stream_ = test::stream();
  std::mt19937 random_{static_cast<std::mt19937::result_type>(test::seed())};
  DeviceVector<uint8_t> workspace_ =
      DeviceVector<uint8_t>(static_cast<size_t>(argmax_workspace_bytes()), 0);
};

TEST_F(KernelSample, ArgmaxTakesTheLowestOfEqualTokens) {
  for (int64_t n : {1, 2, 255, 256, 257, 20000, 128256}) {
    DeviceVector<float> logits = random_logits(n, 3);
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    EXPECT_EQ(argmax(logits), best) << n;
    EXPECT_EQ(argmax(logits), best) << "again, in the same workspace";
    for (int64_t at : {n - 1, n / 2, n / 3}) logits[static_cast<size_t>(at)] = 100;
    EXPECT_EQ(argmax(logits), n / 3) << n;
    for (float& x : logits) x = -std::abs(x) - 1;
    logits[static_cast<size_t>(n / 2)] = -0.0f;
    logits[static_cast<size_t>(n - 1)] = 0.0f;
    EXPECT_EQ(argmax(logits), n / 2) << n;
  }
}

TEST_F(KernelSample, ArgmaxOfSpecialValues) {
  DeviceVector<float> logits(3000, -kInf);
  EXPECT_EQ(argmax(logits), -1);
  logits[2000] = -1e30f;
  EXPECT_EQ(argmax(logits), 2000);
  logits[1000] = kInf;
  logits[1001] = kInf;
  EXPECT_EQ(argmax(logits), 1000);
  logits[7] = kNan;
  EXPECT_EQ(argmax(logits), -1);
  logits[7] = -kNan;
  EXPECT_EQ(argmax(logits), -1);
  logits[7] = 0;
  EXPECT_EQ(argmax(logits), 1000);
}

TEST_F(KernelSample, DrawsAreThoseOfTheSampler) {
  const SamplingOptions kOptions[] = {
      {.temperature = 0},
      {.temperature = 1},
      {.temperature = 0.7, .top_k = 40, .top_p = 0.95, .min_p = 0.05},
      {.temperature = 1.5, .top_k = 1},
      {.temperature = 2, .top_p = 0.3},
      {.temperature = 1, .top_p = 0},
      {.temperature = 1, .min_p = 0.2},
      {.temperature = 5, .top_k = 100000},
      {.temperature = 0.01},
      {.temperature = 1, .top_k = 7, .repeat_penalty = 1.3, .repeat_last_n = 5},
      {.temperature = 0, .repeat_penalty = 3, .repeat_last_n = 8},
      {.temperature = 1, .presence_penalty = 2, .frequency_penalty = 1},
      {.temperature = 0, .repeat_penalty = 1.1, .presence_penalty = -0.5, .logit_bias = {{0, -2.5}}},
      {.temperature = 0.8, .top_p = 0.9, .frequency_penalty = 3, .logit_bias = {{0, -kInf}}},
  };
  for (int64_t vocab : {1, 40, 3000}) {
    for (SamplingOptions options : kOptions) {
      options.seed = random_();
      if (vocab == 1 && !options.logit_bias.empty()) continue;  // nothing is left of it
      Sampler sampler(options, vocab), twin(options, vocab);
      DeviceVector<uint64_t> state = {options.seed};
      std::vector<int32_t> history = {0, 0};
      for (int step = 0; step < 4; ++step) {
        DeviceVector<float> logits = random_logits(vocab, 3);
        if (step == 1) std::fill(logits.begin(), logits.end(), 1.0f);
        if (step == 2) logits[static_cast<size_t>(vocab / 2)] = kInf;
        if (step == 3 && vocab > 1) logits[static_cast<size_t>(vocab / 2)] = -kInf;
        const auto list = twin.adjustments(history);
        const DeviceVector<LogitAdjustment> adjustments(list.begin(), list.end());
        const int32_t want = sampler.sample(logits, history);
        ASSERT_EQ(sample(logits, options, state, adjustments), want)
            << "vocabulary " << vocab << " temperature " << options.temperature << " top-k "
            << options.top_k << " top-p " << options.top_p << " min-p " << options.min_p << " step "
            << step;
        twin.picked(want, state[0]);
        history.push_back(want);
      }
    }
  }
}

TEST_F(KernelSample, TakesOnlyWhatIsAllowed) {
  const SamplingOptions kOptions[] = {
      {.temperature = 0},
      {.temperature = 1},
      {.temperature = 0.7, .top_k = 40, .top_p = 0.95, .min_p = 0.05},
      {.temperature = 2, .top_k = 2000},
      {.temperature = 0, .repeat_penalty = 3, .repeat_last_n = 8},
      {.temperature = 1, .presence_penalty = 2, .frequency_penalty = 1},
  };
  for (int64_t vocab : {1, 31, 32, 33, 3001}) {
    for (SamplingOptions options : kOptions) {
      options.seed = random_();
      options.constraint = test::source_of(std::make_shared<test::RandomConstraint>(random_(), vocab));
      Sampler sampler(options, vocab), twin(options, vocab);
      DeviceVector<uint64_t> state = {options.seed};
      std::vector<int32_t> history;
      for (int step = 0; step < 8; ++step) {
        DeviceVector<float> logits = random_logits(vocab, 3);
        if (step == 5) std::fill(logits.begin(), logits.end(), 1.0f);
        const auto list = twin.adjustments(history);
        const DeviceVector<LogitAdjustment> adjustments(list.begin(), list.end());
        const TokenSet& set = *twin.allowed();
        const DeviceVector<uint32_t> allowed(set.begin(), set.end());
        const int32_t want = sampler.sample(logits, history);
        ASSERT_EQ(sample(logits, options, state, adjustments, allowed), want)
            << "vocabulary " << vocab << " temperature " << options.temperature << " step " << step;
        logits[static_cast<size_t>(vocab - 1)] = kNan;  // allowed or not
        DeviceVector<uint64_t> other = state;
        ASSERT_EQ(sample(logits, options, other, {}, allowed), -1);
        twin.picked(want, state[0]);
        history.push_back(want);
      }
    }
  }
}

TEST_F(KernelSample, BadLogitsGiveNoToken) {
  DeviceVector<uint64_t> state = {1};
  const SamplingOptions options{.temperature = 1, .top_k = 3, .top_p = 0.9};
  DeviceVector<float> logits(500, -kInf);
  EXPECT_EQ(sample(logits, options, state), -1);
  logits[3] = 1;
  EXPECT_EQ(sample(logits, options, state), 3);
  logits[9] = kNan;
  EXPECT_EQ(sample(logits, options, state), -1);
  logits[9] = -kInf;
  EXPECT_EQ(sample(logits, options, state), 3) << "the workspace is clean again";
}

}  // namespace
}  // namespace tiercel
