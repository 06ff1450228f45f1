// What a batch and its requests can be asked for, and what is refused by name.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/api/model.h"

namespace tiercel::test {
namespace {

TEST(ApiBatch, SaysWhatItRefuses) {
  const Engine engine = open_demo();
  const auto complaint = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage) << error.what();
      return error.what();
    }
    return "";
  };
  const auto refusal = [&](const Options& options) {
    return complaint([&] { engine.open_batch(options); });
  };
  EXPECT_NE(refusal({}).find("max-prompt"), std::string::npos);
  EXPECT_NE(refusal({{"max-prompt", "90"}, {"ctx-size", "90"}}).find("ctx-size"),
            std::string::npos);
  EXPECT_NE(refusal({{"threads", "2"}}).find("'threads'"), std::string::npos);
  EXPECT_NE(refusal({{"audit", "2"}, {"max-prompt", "9"}}).find("'audit'"), std::string::npos);
  EXPECT_KIND(engine.open_batch({{"max-prompt", "9000"}, {"device-memory", "1MiB"}}),
              ErrorKind::kDoesNotFit);
  EXPECT_KIND(engine.open_session({{"parallel", "2"}}), ErrorKind::kUsage);
  EXPECT_KIND(engine.plan(5, {{"max-gap", "2"}}), ErrorKind::kUsage);
  EXPECT_KIND(engine.open_session({{"micro-batches", "2"}}), ErrorKind::kUsage);
  EXPECT_KIND(Options().set("parallel", "0"), ErrorKind::kUsage);
  EXPECT_NE(complaint([] { Options().set("micro-batches", "3"); }).find("auto, 1 or 2"),
            std::string::npos);

  Batch batch = engine.open_batch({{"max-prompt", "40"}, {"ctx-size", "50"}});
  const std::vector<int32_t> ids(40, 7);
  const auto refused = [&](std::span<const int32_t> tokens, int64_t n, const Options& options) {
    return complaint([&] { batch.submit(tokens, n, options); });
  };
  EXPECT_NE(refused(ids, 1, {{"budget", "64"}}).find("'budget'"), std::string::npos);
  EXPECT_NE(refused(ids, 1, {{"max-gap", "1"}}).find("'max-gap'"), std::string::npos);
  EXPECT_NE(refused(ids, 1, {{"backend", "cpu"}}).find("'backend'"), std::string::npos);
  EXPECT_NE(refused({}, 1, {}).find("empty"), std::string::npos);
  EXPECT_NE(refused(std::vector<int32_t>(41, 7), 1, {}).find("max-prompt"), std::string::npos);
  EXPECT_NE(refused(std::vector{1, 2, 9999}, 1, {}).find("index 2"), std::string::npos);
  EXPECT_NE(refused(ids, 0, {}), "");
  EXPECT_NE(refused(ids, -2, {}), "");
  EXPECT_NE(refused(ids, -1, {{"n-predict", "0"}}), "");
  EXPECT_EQ(batch.stats().ended + batch.stats().queued, 0);
  // All of the context, asked for in three ways; a shorter prompt has more of it.
  const Options on = {{"ignore-eos", "true"}};
  Options all = on;
  all.set("n-predict", "-1");
  for (const Request& request :
       {batch.submit(ids, 11, on), batch.submit(ids, -1, on), batch.submit(ids, -1, all)}) {
    EXPECT_EQ(request.wait().reason, FinishReason::kContextFull);
    EXPECT_EQ(request.wait().tokens.size(), 10u);
  }
  EXPECT_EQ(batch.submit(ids, 10, on).wait().reason, FinishReason::kLength);
  EXPECT_EQ(batch.submit(std::span(ids).first(5), 60, on).wait().tokens.size(), 45u);
  EXPECT_EQ(batch.memory().context, 50);
}

TEST(ApiBatch, OptionsOfARequestBeatThoseOfTheBatchAndOfTheEngine) {
  const Engine engine(demo_directory(), {{"backend", "cpu"},
                                         {"threads", "2"},
                                         {"max-prompt", "40"},
                                         {"n-predict", "3"},
                                         {"audit", "1"},
                                         {"temp", "0.9"},
                                         {"seed", "3"},
                                         {"ignore-eos", "true"}});
  Batch batch = engine.open_batch({{"seed", "4"}, {"parallel", "2"}});
  const Request plain = batch.submit("Once"), other = batch.submit("Once", -1, {{"seed", "5"}});
  EXPECT_EQ(plain.wait().tokens.size(), 3u);
  EXPECT_EQ(plain.stats().seed, 4u);
  EXPECT_EQ(other.stats().seed, 5u);
  EXPECT_EQ(batch.submit("Once", -1, {{"temp", "0"}}).stats().seed, 0u);
  // Begin-of-text is added, or not, as the engine would.
  EXPECT_EQ(batch.submit("Once", 1, {{"no-bos", "true"}}).stats().prompt_tokens,
            static_cast<int64_t>(engine.tokenize("Once", {{"no-bos", "true"}}).size()));
  EXPECT_EQ(batch.memory().context, 43);
  EXPECT_NE(batch.memory().composition, "");
}

// Of the model, whatever was made of them before a token was picked.
TEST(ApiBatch, LogProbabilitiesAreThoseOfTheLogits) {
  const Engine engine = open_demo();
  const std::vector<int32_t> prompt = engine.tokenize(prompt_text(6));
  Batch batch = engine.open_batch({{"max-prompt", "400"}, {"n-predict", "6"}, {"ignore-eos", "true"}});
  const Request request = batch.submit(prompt, -1, {{"logprobs", "3"},
                                                    {"temp", "1.5"},
                                                    {"seed", "4"},
                                                    {"presence-penalty", "2"},
                                                    {"logit-bias", "11-inf,700+2.5"}});
  const Generation generation = request.wait();
  ASSERT_EQ(generation.tokens.size(), 6u);
  ASSERT_EQ(generation.logprobs.size(), 6u);
  Session session = engine.open_session();
  session.prefill(prompt);
  for (size_t i = 0; i < 6; ++i) {
    const auto [logprob, top] = generation.logprobs[i];
    const std::span<const float> logits = session.logits();
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    const auto expected = [&](int32_t token) {
      return static_cast<double>(logits[static_cast<size_t>(token)]) - std::log(sum);
    };
    EXPECT_NEAR(logprob, expected(generation.tokens[i]), 1e-9);
    ASSERT_EQ(top.size(), 3u);
    EXPECT_EQ(top[0].token, std::max_element(logits.begin(), logits.end()) - logits.begin());
    for (size_t j = 0; j < 3; ++j) {
      EXPECT_NEAR(top[j].logprob, expected(top[j].token), 1e-9);
      const auto likelier = std::count_if(logits.begin(), logits.end(), [&](float logit) {
        return logit > logits[static_cast<size_t>(top[j].token)];
      });
      EXPECT_EQ(likelier, static_cast<std::ptrdiff_t>(j));
    }
    session.step(generation.tokens[i]);
  }
  EXPECT_TRUE(batch.submit(prompt, 2).wait().logprobs.empty());
  // One for each token, also where it is cancelled in the middle.
  for (int i = 0; i < 10; ++i) {
    Request cut = batch.submit(std::span(prompt).first(20), 200, {{"logprobs", "0"}});
    while (cut.stats().generated_tokens < 3 && !cut.done()) {
    }
    cut.cancel();
    EXPECT_EQ(cut.wait().logprobs.size(), cut.wait().tokens.size());
  }
  EXPECT_TRUE(batch.submit(prompt, 2, {{"logprobs", "0"}}).wait().logprobs[1].top.empty());
  EXPECT_KIND(engine.open_session({{"logprobs", "1"}}), ErrorKind::kUsage);
  EXPECT_KIND(batch.submit(prompt, 2, {{"logit-bias", "99999+1"}}), ErrorKind::kUsage);
  EXPECT_KIND(Options().set("logit-bias", "5"), ErrorKind::kUsage);
}

}  // namespace
}  // namespace tiercel::test
