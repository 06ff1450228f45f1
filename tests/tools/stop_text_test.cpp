#include "tools/stop_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/seed.h"

namespace tiercel {
namespace {

TEST(StopText, HoldsBackWhatMayBeTheBeginning) {
  StopText stop({"\n\n", "User:"});
  std::string out;
  EXPECT_FALSE(stop.push("One.\n", &out));
  EXPECT_EQ(out, "One.");
  EXPECT_FALSE(stop.push("Two. Us", &out));
  EXPECT_EQ(out, "One.\nTwo. ");
  EXPECT_FALSE(stop.push("e", &out));
  EXPECT_FALSE(stop.push("d", &out));
  EXPECT_EQ(out, "One.\nTwo. Used");
  EXPECT_TRUE(stop.push(" User: who?\n\n", &out));
  EXPECT_EQ(out, "One.\nTwo. Used ");
  EXPECT_FALSE(stop.push("Use", &out));
  stop.finish("", &out);
  EXPECT_EQ(out, "One.\nTwo. Used Use");
}

TEST(StopText, WithoutAnyEverythingGoesThrough) {
  StopText stop({});
  std::string out;
  EXPECT_FALSE(stop.push("abc", &out));
  EXPECT_EQ(out, "abc");
}

// However the text is cut, the output is what comes before the stop that is complete first.
TEST(StopText, CutsMakeNoDifference) {
  std::mt19937_64 random(test::seed());
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const auto word = [&](size_t most) {
    std::string text;
    for (size_t n = 1 + below(most); n > 0; --n) text += "ab"[below(2)];
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t n = 1 + below(3); n > 0; --n) stops.push_back(word(6));
    const std::string text = word(40);
    size_t seen = 0, expected = text.size();
    bool found = false;
    for (seen = 1; seen <= text.size() && !found; ++seen) {
      for (const std::string& stop : stops) {
        const size_t at = text.substr(0, seen).find(stop);
        if (at == std::string::npos) continue;
        expected = found ? std::min(expected, at) : at;
        found = true;
      }
    }
    StopText filter(stops);
    std::string out;
    bool stopped = false;
    for (size_t at = 0, n = 0; at < text.size() && !stopped; at += n) {
      n = 1 + below(round % 2 == 0 ? 3 : 40);
      stopped = filter.push(text.substr(at, n), &out);
    }
    if (!stopped) filter.finish("", &out);
    ASSERT_EQ(stopped, found) << text;
    ASSERT_EQ(out, text.substr(0, expected)) << text;
  }
}

}  // namespace
}  // namespace tiercel
