// The generators of tiercel eval: length, determinism, and that what is asked for is there to find.
#include "tools/eval/sample.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>

#include "engine/base/check.h"
#include "engine/text/tokenizer.h"

namespace tiercel::test {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer demo = Tokenizer::load(TIERCEL_SOURCE_DIR "/tools/demo/recall-4m");
  return demo;
}

int64_t count_tokens(std::string_view text) {
  const EncodeOptions plain{.add_special = false, .parse_special = false};
  return static_cast<int64_t>(tokenizer().encode(text, plain).size());
}

SampleRequest request_of(EvalTask task, EvalStyle style, int64_t length, uint64_t seed = 3) {
  return {.task = task,
          .style = style,
          .length = length,
          .seed = seed,
          .count = count_tokens,
          .n_lead = 1};
}

size_t occurrences(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t i = text.find(part); i != std::string::npos; i = text.find(part, i + 1)) ++n;
  return n;
}

std::vector<EvalTask> all_tasks() {
  std::vector<EvalTask> tasks;
  for (int i = 0; i < kNumEvalTasks; ++i) tasks.push_back(static_cast<EvalTask>(i));
  return tasks;
}

TEST(Sample, IsAsLongAsWasAskedForAndHoldsItsAnswers) {
  for (const EvalStyle style : {EvalStyle::kPlain, EvalStyle::kRecall}) {
    for (const EvalTask task : all_tasks()) {
      for (const int64_t length : {1500, 8192}) {
        SCOPED_TRACE(testing::Message() << name_of(style) << " " << name_of(task) << " " << length);
        const auto samples = make_samples(request_of(task, style, length));
        ASSERT_EQ(samples.size(), 1u);
        const EvalSample& sample = samples[0];
        EXPECT_EQ(sample.task, task);
        EXPECT_EQ(sample.length, length);
        EXPECT_LE(sample.n_tokens, length);
        EXPECT_GE(static_cast<double>(sample.n_tokens), 0.985 * static_cast<double>(length) - 64);
        EXPECT_TRUE(sample.context.ends_with('\n'));
        EXPECT_GT(sample.max_new, 0);
        ASSERT_FALSE(sample.questions.empty());
        for (const EvalQuestion& question : sample.questions) {
          ASSERT_FALSE(question.expected.empty());
          for (const std::string& expected : question.expected) {
            EXPECT_GE(occurrences(sample.context, expected), 1u) << expected;
            EXPECT_EQ(occurrences(question.text, expected), 0u) << question.text;
          }
        }
      }
    }
  }
}

// Keys get longer when many are taken: what the first ones cost says little about the last.
TEST(Sample, LongOnesAreFittedToo) {
  for (const EvalStyle style : {EvalStyle::kPlain, EvalStyle::kRecall}) {
    for (const EvalTask task : all_tasks()) {
      const EvalSample sample = make_samples(request_of(task, style, 400000))[0];
      EXPECT_LE(sample.n_tokens, 400000) << name_of(style) << " " << name_of(task);
      EXPECT_GE(sample.n_tokens, 396000) << name_of(style) << " " << name_of(task);
    }
  }
}

TEST(Sample, SeedDecides) {
  for (const EvalTask task : all_tasks()) {
    const auto make = [&](uint64_t seed) {
      return make_samples(request_of(task, EvalStyle::kPlain, 1200, seed))[0];
    };
    const EvalSample first = make(1);
    EXPECT_EQ(first.context, make(1).context) << name_of(task);
    EXPECT_EQ(first.questions[0].expected, make(1).questions[0].expected);
    EXPECT_NE(first.context, make(2).context) << name_of(task);
  }
}

TEST(Sample, WhatIsAskedForStandsAtItsDepth) {
  for (const EvalStyle style : {EvalStyle::kPlain, EvalStyle::kRecall}) {
    for (const EvalTask task : {EvalTask::kSingle, EvalTask::kMultiKey1, EvalTask::kMultiKey2,
                                EvalTask::kMultiKey3, EvalTask::kRecords}) {
      SampleRequest request = request_of(task, style, 6000);
      request.depths = {0, 0.25, 0.5, 1};
      std::vector<std::pair<std::string, EvalQuestion>> asked;
      for (const EvalSample& sample : make_samples(request)) {
        for (const EvalQuestion& question : sample.questions)
          asked.emplace_back(sample.context, question);
      }
      ASSERT_EQ(asked.size(), 4u) << name_of(task);
      for (size_t i = 0; i < asked.size(); ++i) {
        const auto& [context, question] = asked[i];
        ASSERT_EQ(question.depth, request.depths[i]);
        const double found = static_cast<double>(context.find(question.expected[0])) /
                             static_cast<double>(context.size());
        EXPECT_NEAR(found, request.depths[i], 0.06) << name_of(style) << " " << name_of(task);
      }
    }
  }
}

TEST(Sample, KeysAreUniqueSoAnswersAre) {
  for (const EvalTask task : {EvalTask::kMultiKey2, EvalTask::kMultiKey3, EvalTask::kRecords}) {
    for (const EvalStyle style : {EvalStyle::kPlain, EvalStyle::kRecall}) {
      const EvalSample sample = make_samples(request_of(task, style, 30000))[0];
      std::istringstream lines(sample.context);
      std::set<std::string> distinct;
      size_t n = 0;
      for (std::string line; std::getline(lines, line);) {
        if (line.size() < 8) continue;
        ++n;
        distinct.insert(line);
      }
      EXPECT_GT(n, 300u);
      EXPECT_EQ(distinct.size(), n);
      EXPECT_EQ(occurrences(sample.context, sample.questions[0].expected[0]), 1u);
    }
  }
}

TEST(Sample, VariablesFormOneChain) {
  const EvalSample sample =
      make_samples(request_of(EvalTask::kVariables, EvalStyle::kPlain, 4000))[0];
  std::istringstream lines(sample.context);
  std::vector<std::string> chain;
  std::string value;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("VAR ")) continue;
    std::istringstream words(line);
    std::string var, name, equals, from;
    words >> var >> name >> equals >> from;
    if (from == "VAR") {
      words >> from;
      ASSERT_FALSE(chain.empty());
      EXPECT_EQ(from, chain.back());
    } else {
      value = from;
    }
    chain.push_back(name);
  }
  EXPECT_EQ(chain, sample.questions[0].expected);
  EXPECT_TRUE(sample.questions[0].text.find(value) != std::string::npos);
}

std::map<std::string, int> frequencies(const EvalSample& sample) {
  std::istringstream words(sample.context.substr(sample.context.find("\n\n")));
  std::map<std::string, int> counts;
  for (std::string word; words >> word;) {
    if (!word.ends_with('.')) ++counts[word];  // neither "12." nor the dots
  }
  return counts;
}

TEST(Sample, CommonWordsAreTenTimesAsCommon) {
  for (const int64_t length : {1500, 20000}) {
    const EvalSample sample =
        make_samples(request_of(EvalTask::kCommonWords, EvalStyle::kPlain, length))[0];
    auto counts = frequencies(sample);
    ASSERT_EQ(sample.questions[0].expected.size(), 10u);
    int least = INT32_MAX;
    for (const std::string& word : sample.questions[0].expected) {
      least = std::min(least, counts.at(word));
      counts.erase(word);
    }
    ASSERT_FALSE(counts.empty());
    for (const auto& [word, n] : counts) EXPECT_LE(4 * n, least) << word;
    EXPECT_EQ(least, length == 20000 ? 30 : least);
  }
}

TEST(Sample, FrequentWordsAreTheMostFrequent) {
  const EvalSample sample =
      make_samples(request_of(EvalTask::kFrequentWords, EvalStyle::kPlain, 8000))[0];
  const auto counts = frequencies(sample);
  const auto& expected = sample.questions[0].expected;
  ASSERT_EQ(expected.size(), 3u);
  EXPECT_GT(counts.at(expected[0]), counts.at(expected[1]));
  EXPECT_GT(counts.at(expected[1]), counts.at(expected[2]));
  for (const auto& [word, n] : counts) {
    if (std::find(expected.begin(), expected.end(), word) == expected.end()) {
      EXPECT_LT(n, counts.at(expected[2])) << word;
    }
  }
}

TEST(Sample, TooShortIsRefused) {
  for (const EvalTask task : all_tasks()) {
    try {
      make_samples(request_of(task, EvalStyle::kPlain, 30));
      FAIL() << name_of(task);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find("--lengths"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("30"), std::string::npos) << error.what();
    }
  }
}

TEST(Sample, NamesAreRead) {
  for (const EvalTask task : all_tasks()) EXPECT_EQ(parse_task(name_of(task)), task);
  EXPECT_THROW(parse_task("poetry"), Error);
}

}  // namespace
}  // namespace tiercel::test
