#include "tools/serve/prefix_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace tiercel {
namespace {

using Tokens = std::vector<int32_t>;

// first, first + 1, ..
Tokens text(int64_t n, int32_t first) {
  Tokens tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}
Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Split {
  int64_t n_prefix = 0, n_behind = 0;
  bool is_kept = false;
  friend bool operator==(const Split&, const Split&) = default;
};
std::ostream& operator<<(std::ostream& out, const Split& s) {
  return out << s.n_prefix << " + " << s.n_behind << (s.is_kept ? ", kept" : "");
}
Split take(PrefixCache& cache, const Tokens& prompt) {
  const SharedPrefix prefix = cache.find(prompt);
  if (prefix == nullptr) return {0, std::ssize(prompt)};
  const int64_t n = std::ssize(*prefix);
  EXPECT_LT(n, std::ssize(prompt));
  EXPECT_TRUE(std::equal(prefix->begin(), prefix->end(), prompt.begin()));
  const bool is_kept = prefix.use_count() > 1;
  cache.keep(prefix);
  return {n, std::ssize(prompt) - n, is_kept};
}

TEST(PrefixCache, ShortPromptsStandByThemselves) {
  PrefixCache cache;
  EXPECT_EQ(take(cache, text(1023, 0)), (Split{0, 1023}));
  EXPECT_EQ(take(cache, text(1023, 0)), (Split{0, 1023}));
}

TEST(PrefixCache, ATurnGoesOnWhereTheLastOneEnded) {
  PrefixCache cache;
  const Tokens first = text(2000, 0), second = first + text(900, 50'000), third = second + text(1500, 70'000);
  EXPECT_EQ(take(cache, first), (Split{1500, 500}));
  EXPECT_EQ(take(cache, second), (Split{1500, 1400, true}));
  // More than half of it is new: kept anew, but for its end.
  EXPECT_EQ(take(cache, third), (Split{3376, 1024}));
  EXPECT_EQ(take(cache, third + text(10, 0)), (Split{3376, 1034, true}));
  EXPECT_EQ(take(cache, first), (Split{1500, 500, true}));  // word for word
}

// Where questions on one text begin is known from the second one on.
TEST(PrefixCache, QuestionsOnOneText) {
  PrefixCache cache;
  const Tokens book = text(100'000, 0);
  EXPECT_EQ(take(cache, book + text(40, 200'000)), (Split{99'016, 1024}));
  EXPECT_EQ(take(cache, book + text(50, 300'000)), (Split{99'016, 1034, true}));
  // A question that was longer than what was left out of the first prompt.
  PrefixCache other;
  EXPECT_EQ(take(other, book + text(5000, 200'000)), (Split{103'976, 1024}));
  EXPECT_EQ(take(other, book + text(50, 300'000)), (Split{100'000, 50}));
  EXPECT_EQ(take(other, book + text(70, 400'000)), (Split{100'000, 70, true}));
  // The longest one that fits; and something stays behind it.
  EXPECT_EQ(take(other, book + text(5000, 200'000)), (Split{103'976, 1024, true}));
  EXPECT_EQ(take(other, book), (Split{99'999, 1}));
}

TEST(PrefixCache, OnlyWhatIsUsedIsKept) {
  PrefixCache cache;
  const Tokens prompt = text(2000, 0);
  const SharedPrefix one = cache.find(prompt), two = cache.find(prompt);
  EXPECT_NE(one, two);
  cache.keep(one);
  cache.keep(two);  // found at the same time: one of them stays
  EXPECT_EQ(cache.find(prompt), two);
  EXPECT_EQ(one.use_count(), 1);
}

TEST(PrefixCache, WhatIsLongUnusedGoes) {
  PrefixCache cache;
  const auto prompt = [](int32_t i) { return text(1024, 10'000 * i); };
  const auto most = static_cast<int32_t>(PrefixCache::kMostKept);
  for (int32_t i = 0; i < most; ++i) EXPECT_FALSE(take(cache, prompt(i)).is_kept);
  EXPECT_TRUE(take(cache, prompt(0)).is_kept);  // used again
  EXPECT_FALSE(take(cache, prompt(most)).is_kept);
  EXPECT_TRUE(take(cache, prompt(0)).is_kept);
  EXPECT_FALSE(take(cache, prompt(1)).is_kept);
}

}  // namespace
}  // namespace tiercel
