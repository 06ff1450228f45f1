// Which requests of a file share the beginning of their prompts.
#include "tools/batch/prefixes.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/seed.h"

namespace tiercel {
namespace {

using Ids = std::vector<int32_t>;

// n tokens that no other mark has, then some more.
Ids ids(int32_t mark, size_t n, const Ids& more = {}) {
  Ids all(n, mark);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::vector<BatchRequest> found(const std::vector<Ids>& prompts, bool share, int64_t* n_saved) {
  std::vector<BatchRequest> requests;
  PrefixFinder finder(requests, share);
  for (const Ids& prompt : prompts) {
    requests.emplace_back();
    requests.back().prompt = prompt;
    finder.add_last();
  }
  finder.finish();
  *n_saved = finder.n_saved();
  return requests;
}

Ids whole(const BatchRequest& request) {
  Ids all = request.prefix ? *request.prefix : Ids{};
  all.insert(all.end(), request.prompt.begin(), request.prompt.end());
  return all;
}

TEST(PrefixFinder, QuestionsOnDocuments) {
  const std::vector<Ids> prompts = {
      ids(1, 1000, {10, 11, 12}), ids(1, 1000, {10, 11, 13}), ids(1, 1000, {14}),  // one document
      ids(2, 600, {20}),                                                           // by itself
      ids(3, 700, {30}), ids(3, 700, {31, 32}),                                    // another one
      ids(3, 100, {4})};                                                           // too short
  int64_t n_saved = 0;
  const std::vector<BatchRequest> requests = found(prompts, true, &n_saved);
  EXPECT_EQ(n_saved, 2 * 1000 + 700);
  ASSERT_EQ(requests.size(), prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(whole(requests[i]), prompts[i]) << i;
  EXPECT_EQ(requests[0].n_prefix(), 1000);
  EXPECT_EQ(requests[0].prefix, requests[1].prefix);
  EXPECT_EQ(requests[0].prefix, requests[2].prefix);
  EXPECT_EQ(requests[3].prefix, nullptr);
  EXPECT_EQ(requests[4].n_prefix(), 700);
  EXPECT_EQ(requests[4].prefix, requests[5].prefix);
  EXPECT_EQ(requests[6].prefix, nullptr);
  // What is shared is part of what an answer depends on.
  EXPECT_NE(requests[0].hash, BatchRequest{}.hash);
  EXPECT_EQ(requests[3].hash, BatchRequest{}.hash);
}

// The same text twice, or the beginning of another: something is left to be prefilled behind it.
TEST(PrefixFinder, SomethingIsLeftBehind) {
  int64_t n_saved = 0;
  const std::vector<Ids> prompts = {ids(1, 500), ids(1, 500), ids(1, 400)};
  const std::vector<BatchRequest> requests = found(prompts, true, &n_saved);
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(requests[i].n_prefix(), 399);
    EXPECT_EQ(whole(requests[i]), prompts[i]);
  }
  EXPECT_EQ(n_saved, 2 * 399);
}

// A few common words at the beginning of long prompts save next to nothing: what is behind a prefix is
// slower than a prompt.
TEST(PrefixFinder, HalfOfEach) {
  int64_t n_saved = 0;
  const std::vector<Ids> prompts = {ids(1, 300, ids(2, 250)), ids(1, 300, ids(3, 301))};
  EXPECT_EQ(found(prompts, true, &n_saved)[0].prefix, nullptr);
  EXPECT_EQ(n_saved, 0);
  const std::vector<Ids> shorter = {prompts[0], ids(1, 300, ids(3, 300))};
  EXPECT_EQ(found(shorter, true, &n_saved)[0].n_prefix(), 300);
  // One that would leave less than half of another one is not taken in.
  const std::vector<Ids> three = {ids(1, 1000, {2}), ids(1, 1000, {3}), ids(1, 400, {4})};
  const std::vector<BatchRequest> requests = found(three, true, &n_saved);
  EXPECT_EQ(requests[1].n_prefix(), 1000);
  EXPECT_EQ(requests[2].prefix, nullptr);
}

// Several answers to one prompt read it once, but for its end.
TEST(PrefixFinder, SeveralAnswers) {
  for (const bool share : {true, false}) {
    std::vector<BatchRequest> requests;
    PrefixFinder finder(requests, share);
    const std::vector<Ids> prompts = {ids(1, 1000), ids(2, 300), ids(3, 600, {4}), ids(3, 600, {5, 6})};
    for (const Ids& prompt : prompts) {
      requests.emplace_back();
      requests.back().prompt = prompt;
      requests.back().n_answers = 3;
      finder.add_last();
    }
    finder.finish();
    EXPECT_EQ(finder.n_saved(), 2 * 750 + 5 * 600);  // a quarter of 300 is left, so less than 256 would be shared
    for (size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(whole(requests[i]), prompts[i]) << i;
    EXPECT_EQ(requests[0].n_prefix(), share ? 750 : 0);
    EXPECT_EQ(requests[1].n_prefix(), 0);
    EXPECT_EQ(requests[3].n_prefix(), share ? 600 : 0);
  }
}

TEST(PrefixFinder, CountsWithoutSharing) {
  int64_t n_saved = 0;
  const std::vector<Ids> prompts = {ids(1, 500, {2}), ids(1, 500, {3, 4})};
  const std::vector<BatchRequest> requests = found(prompts, false, &n_saved);
  EXPECT_EQ(n_saved, 500);
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(requests[i].prompt, prompts[i]);
    EXPECT_EQ(requests[i].prefix, nullptr);
    EXPECT_EQ(requests[i].hash, BatchRequest{}.hash);
  }
}

// Whatever is shared, no prompt changes.
TEST(PrefixFinder, PromptsStayAsTheyAre) {
  std::mt19937_64 random(test::seed());
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int64_t n_sharing = 0;
  for (int round = 0; round < 200; ++round) {
    std::vector<Ids> prompts;
    for (int64_t i = pick(1, 12); i > 0; --i) {
      Ids prompt;
      if (!prompts.empty() && pick(0, 3) > 0) {
        const Ids& before = prompts[static_cast<size_t>(pick(0, std::ssize(prompts) - 1))];
        prompt.assign(before.begin(), before.begin() + pick(1, std::ssize(before)));
      }
      for (int64_t n = pick(1, pick(0, 1) == 0 ? 20 : 900); n > 0; --n) {
        prompt.push_back(static_cast<int32_t>(pick(0, 3)));
      }
      prompts.push_back(std::move(prompt));
    }
    int64_t n_saved = 0, counted = 0, n_prefilled = 0, n_whole = 0;
    const std::vector<BatchRequest> requests = found(prompts, true, &n_saved);
    found(prompts, false, &counted);
    EXPECT_EQ(n_saved, counted);
    const void* last = nullptr;
    for (size_t i = 0; i < prompts.size(); ++i) {
      const BatchRequest& request = requests[i];
      ASSERT_EQ(whole(request), prompts[i]) << "round " << round << ", " << i;
      ASSERT_GE(request.prompt.size(), 1u);
      if (request.prefix) {
        ++n_sharing;
        EXPECT_GE(request.n_prefix(), kLeastShared);
        EXPECT_GE(2 * request.n_prefix(), request.n_prompt());
        if (request.prefix.get() != last) n_prefilled += request.n_prefix();
      }
      last = request.prefix.get();
      n_prefilled += std::ssize(request.prompt);
      n_whole += std::ssize(prompts[i]);
    }
    EXPECT_EQ(n_saved, n_whole - n_prefilled);
  }
  EXPECT_GT(n_sharing, 100);
}

}  // namespace
}  // namespace tiercel
