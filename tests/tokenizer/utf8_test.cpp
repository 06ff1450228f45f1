#include "engine/text/utf8.h"

#include <gtest/gtest.h>

#include "engine/text/nfc.h"
#include "tests/seed.h"
#include "tests/tokenizer/corpus.h"

namespace tiercel::test {
namespace {

std::string repaired(std::string_view text, int64_t* n_replaced = nullptr) {
  std::string output;
  const int64_t n = append_valid_utf8(text, &output);
  if (n_replaced != nullptr) *n_replaced = n;
  return output;
}

// Expected values: Python 3.11, bytes.decode("utf-8", errors="replace").
TEST(Utf8, ReplacesMaximalSubparts) {
  const struct {
    std::string bytes;
    std::string expected;
    int64_t n_replaced;
  } cases[] = {
      {"abc", "abc", 0},
      {"\x80", "\uFFFD", 1},
      {"\xC0\xAF", "\uFFFD\uFFFD", 2},
      {"\xE0\x80\xAF", "\uFFFD\uFFFD\uFFFD", 3},
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD", 3},
      {"\xF4\x91\x92\x93", "\uFFFD\uFFFD\uFFFD\uFFFD", 4},
      {"\xF0\x9F\x98", "\uFFFD", 3},
      {"\xF0\x9F\x98x", "\uFFFDx", 3},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
       "A",
       "\uFFFD\uFFFD\uFFFD\uFFFD"
       "A",
       8},
      {"\xE2\x82\xAC\xFF\xE2\x82", "\u20AC\uFFFD\uFFFD", 3},
  };
  for (const auto& c : cases) {
    int64_t n_replaced = -1;
    EXPECT_EQ(repaired(c.bytes, &n_replaced), c.expected);
    EXPECT_EQ(n_replaced, c.n_replaced) << c.expected;
  }
}

TEST(Utf8, EveryCodePointSurvives) {
  std::string all;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const size_t start = all.size();
    append_code_point(c, &all);
    size_t at = start;
    ASSERT_EQ(read_code_point(all, &at), c);
    ASSERT_EQ(at, all.size());
  }
  EXPECT_EQ(valid_utf8_prefix(all), all.size());
}

TEST(Utf8, StreamEqualsOneShotForAnyCut) {
  Random random(seed());
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    const uint32_t n = random.below(40);
    for (uint32_t i = 0; i < n; ++i) {
      // Bytes near the edges of the format are the interesting ones.
      constexpr uint8_t kEdges[] = {0x41, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xDF,
                                    0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF, 0x00};
      bytes.push_back(static_cast<char>(kEdges[random.below(std::size(kEdges))]));
    }
    Utf8Stream stream;
    std::string joined;
    for (size_t at = 0; at < bytes.size();) {
      const size_t size = std::min<size_t>(random.below(5), bytes.size() - at);
      std::string part;
      stream.push(std::string_view(bytes).substr(at, size), &part);
      EXPECT_EQ(valid_utf8_prefix(part), part.size());
      joined += part;
      at += size;
    }
    stream.finish(&joined);
    ASSERT_EQ(joined, repaired(bytes)) << "round " << round;
  }
}

std::string nfc(std::string_view text) {
  std::string output;
  append_nfc(text, &output);
  return output;
}

TEST(Nfc, ComposesOrdersAndLeavesTheRest) {
  EXPECT_EQ(nfc("Cafe\u0301s"), "Caf\u00E9s");
  EXPECT_EQ(nfc("q\u0307\u0323"), "q\u0323\u0307");
  EXPECT_EQ(nfc("\u1100\u1161\u11A8"), "\uAC01");
  EXPECT_EQ(nfc("\uAC00\u11A8"), "\uAC01");
  EXPECT_EQ(nfc("\u212B\u2126"), "\u00C5\u03A9");
  EXPECT_EQ(nfc("\u0958"), "\u0915\u093C");  // excluded from composition
  EXPECT_EQ(nfc("plain"), "plain");
  EXPECT_EQ(nfc(""), "");
  // Newer than Unicode 9: Hugging Face does not compose it (see nfc.h).
  EXPECT_EQ(nfc("\U00011935\U00011930"), "\U00011935\U00011930");
}

TEST(Nfc, LongRunsOfMarksAreNotQuadratic) {
  std::string text = "a";
  std::string expected = "\u1EA1";
  constexpr int kPairs = kSanitized ? 20000 : 500000;
  for (int i = 0; i < kPairs; ++i) text += "\u0301\u0323";
  for (int i = 1; i < kPairs; ++i) expected += "\u0323";
  for (int i = 0; i < kPairs; ++i) expected += "\u0301";
  EXPECT_EQ(nfc(text), expected);
}

}  // namespace
}  // namespace tiercel::test
