#include "engine/text/grammar/recognizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/utf8.h"
#include "tests/grammar/random_grammar.h"
#include "tests/seed.h"

namespace tiercel::grammar {
namespace {

using test::Definition;
using test::kLetters;
using test::RandomGrammar;

// A grammar of the seed's that matches anything at all.
std::optional<Recognizer> recognizer_of(const Grammar& grammar, int64_t lookahead = 0) {
  try {
    return Recognizer(grammar, lookahead);
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no finite text"), std::string::npos) << error.what();
    return std::nullopt;
  }
}

std::string message_of(const Grammar& grammar) {
  try {
    Recognizer recognizer(grammar);
    return "none";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
}

void for_each_text(size_t longest, const std::function<void(const std::string&)>& visit) {
  std::vector<std::string> texts = {""};
  for (size_t i = 0; i < texts.size(); ++i) {
    visit(texts[i]);
    if (texts[i].size() == longest) continue;
    for (const char letter : kLetters) texts.push_back(texts[i] + letter);
  }
}

TEST(Recognizer, MatchesWhatExpressionsAreDefinedToMatch) {
  std::mt19937_64 random(test::seed());
  int64_t n_matched = 0, n_texts = 0;
  for (int round = 0; round < 400; ++round) {
    const RandomGrammar some(random);
    std::optional<Recognizer> recognizer = recognizer_of(some.grammar());
    for_each_text(5, [&](const std::string& text) {
      const bool expected = Definition(some.grammar(), text).matches();
      ++n_texts;
      n_matched += expected;
      if (!recognizer) {
        ASSERT_FALSE(expected) << "round " << round << ": " << text;
        return;
      }
      const Recognizer::State end = recognizer->step(recognizer->start(), text);
      ASSERT_EQ(end != Recognizer::kDead && recognizer->is_match(end), expected) << "round " << round << ": " << text;
    });
  }
  EXPECT_GT(n_matched, n_texts / 20);
  EXPECT_LT(n_matched, n_texts / 2);
}

// Whatever was read, a text that is matched goes on from there.
TEST(Recognizer, HasNoDeadEnds) {
  std::mt19937_64 random(test::seed() + 1);
  for (int round = 0; round < 300; ++round) {
    const RandomGrammar some(random);
    std::optional<Recognizer> recognizer = recognizer_of(some.grammar());
    if (!recognizer) continue;
    Recognizer::State state = recognizer->start();
    for (int i = 0; i < 30; ++i) {
      const auto next = recognizer->step(state, static_cast<uint8_t>(kLetters[random() % kLetters.size()]));
      if (next != Recognizer::kDead) state = next;
    }
    std::vector<Recognizer::State> reached = {state};
    bool ends = false;
    for (size_t i = 0; i < reached.size() && i < 20'000 && !ends; ++i) {
      ends = recognizer->is_match(reached[i]);
      for (int byte = 0; byte < 256; ++byte) {
        const auto next = recognizer->step(reached[i], static_cast<uint8_t>(byte));
        if (next != Recognizer::kDead && std::ranges::find(reached, next) == reached.end()) reached.push_back(next);
      }
    }
    ASSERT_TRUE(ends) << "round " << round;
  }
}

TEST(Recognizer, TwinsAgreeOnAsManyBytesAsAreLookedAt) {
  constexpr size_t kLookahead = 4;
  std::mt19937_64 random(test::seed() + 2);
  const Expr ab = choice({text("a"), text("bb"), text("cab")});
  const Grammar grammars[] = {grammar_of(repeat(ab, 3, 40)), grammar_of(repeat(characters({{U'a', U'b'}}), 10, 11)),
                              grammar_of(sequence({repeat(repeat(ab, 7, 20), 9, 30), text("c")}))};
  for (const Grammar& grammar : grammars) {
    Recognizer recognizer(grammar, kLookahead);
    int n_twins = 0;
    for (int walk = 0; walk < 40; ++walk) {
      Recognizer::State state = recognizer.start();
      for (int i = 0; i < 60; ++i) {
        const auto next = recognizer.step(state, static_cast<uint8_t>(kLetters[random() % kLetters.size()]));
        if (next != Recognizer::kDead) state = next;
        const Recognizer::State twin = recognizer.twin(state);
        if (twin == state) continue;
        ++n_twins;
        for_each_text(kLookahead, [&](const std::string& text) {
          const auto a = recognizer.step(state, text), b = recognizer.step(twin, text);
          ASSERT_EQ(a == Recognizer::kDead, b == Recognizer::kDead) << text;
          if (a != Recognizer::kDead && text.size() < kLookahead) {
            ASSERT_EQ(recognizer.is_match(a), recognizer.is_match(b)) << text;
          }
        });
      }
    }
    EXPECT_GT(n_twins, 100);
  }
}

// One of a thousand repetitions looks like another one, so that what is known of one is known of all.
TEST(Recognizer, CountsTakeNoSetOfTokensOfTheirOwn) {
  Recognizer recognizer(grammar_of(repeat(characters({{U'a', U'z'}, {0x80, 0x7FF}}), 0, 1000)), 10);
  std::set<Recognizer::State> twins;
  Recognizer::State state = recognizer.start();
  for (int i = 0; i < 1000; ++i) {
    twins.insert(recognizer.twin(state));
    state = recognizer.step(state, "x");
    ASSERT_NE(state, Recognizer::kDead);
  }
  EXPECT_EQ(recognizer.step(state, "x"), Recognizer::kDead);
  EXPECT_EQ(std::ssize(twins), 12);  // 10 to 0 left, and more
}

TEST(Recognizer, ReadsCharactersByTheirBytes) {
  std::mt19937_64 random(test::seed() + 3);
  constexpr char32_t kEdges[] = {0,      0x41,   0x7F,   0x80,    0x3FF,   0x7FF,   0x800,   0xFFF,
                                 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF, 0x40000, 0xFFFFF, 0x10FFFF};
  for (int round = 0; round < 200; ++round) {
    const auto edge = [&] {
      const auto near = static_cast<char32_t>(kEdges[random() % std::size(kEdges)] + random() % 5 - 2);
      return std::min(near, kLastCharacter);  // below 0 it wraps around
    };
    std::vector<CodeRange> ranges;
    for (int i = 0; i < 3; ++i) {
      const char32_t a = edge(), b = edge();
      ranges.push_back({std::min(a, b), std::max(a, b)});
    }
    if (round % 2 == 0) ranges.resize(1);
    const bool is_inverse = round % 3 == 0;
    std::optional<Recognizer> recognizer =
        recognizer_of(grammar_of(is_inverse ? characters_except(ranges) : characters(ranges)));
    for (int i = 0; i < 300; ++i) {
      const char32_t c = edge();
      if (c >= 0xD800 && c <= 0xDFFF) continue;
      const bool is_in = std::ranges::any_of(ranges, [&](const CodeRange& r) { return r.first <= c && c <= r.last; });
      std::string bytes;
      append_code_point(c, &bytes);
      const auto state = recognizer ? recognizer->step(recognizer->start(), bytes) : Recognizer::kDead;
      ASSERT_EQ(state != Recognizer::kDead && recognizer->is_match(state), is_in != is_inverse)
          << "round " << round << " character " << static_cast<uint32_t>(c);
    }
    if (!recognizer) continue;
    for (const char* bad :
         {"\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF8\x88\x80\x80\x80", "\x80", "\xE2\x82"}) {
      const auto state = recognizer->step(recognizer->start(), bad);
      ASSERT_TRUE(state == Recognizer::kDead || !recognizer->is_match(state)) << bad;
    }
  }
}

TEST(Recognizer, TailCallsTakeNoMemory) {
  Grammar list{.rules = {{"root", choice({sequence({text("a"), rule(0)}), text("b")})}}, .root = 0};
  Recognizer recognizer(list);
  Recognizer::State state = recognizer.start();
  for (int i = 0; i < 100'000; ++i) state = recognizer.step(state, 'a');
  EXPECT_EQ(state, recognizer.step(recognizer.start(), 'a'));
  EXPECT_TRUE(recognizer.is_match(recognizer.step(state, 'b')));
}

TEST(Recognizer, SaysWhatCannotBeRead) {
  EXPECT_NE(
      message_of(grammar_of(repeat(optional(characters_except({})), 20'000, 20'000))).find("more than 30000 ways"),
      std::string::npos);
  const auto of = [](Expr body) { return Grammar{.rules = {{"item", std::move(body)}}, .root = 0}; };
  EXPECT_EQ(message_of(of(sequence({rule(0), text("a")}))), "item: it begins with itself; write it as a repetition");
  // Behind what may be nothing, too.
  EXPECT_EQ(message_of(of(choice({text("b"), sequence({optional(text("a")), rule(0), text("a")})}))),
            "item: it begins with itself; write it as a repetition");
  EXPECT_EQ(message_of(of(sequence({text("a"), rule(0)}))), "item: no finite text fits");
  EXPECT_EQ(message_of(of(nothing())), "item: no finite text fits");
  EXPECT_NE(message_of(of(repeat(repeat(text("ab"), 1000, 1000), 1000, 1000))).find("none"), std::string::npos);
  std::vector<Expr> many(50, repeat(text("a"), 90'000, 90'000));
  EXPECT_NE(message_of(of(sequence(many))).find("more than 400000 places"), std::string::npos);
}

// The depth of an answer is limited by memory, and that by a number.
TEST(Recognizer, RefusesPlacesWithoutEnd) {
  const auto deepest = [](Recognizer& recognizer, std::string_view why) {
    Recognizer::State state = recognizer.start();
    for (int64_t i = 0;; ++i) {
      try {
        state = recognizer.step(state, '(');
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
        EXPECT_NE(recognizer.step(recognizer.start(), '('), Recognizer::kDead);  // what was there still is
        return i;
      }
    }
  };
  Recognizer nested({.rules = {{"root", sequence({text("("), optional(rule(0)), text(")")})}}, .root = 0});
  EXPECT_GT(deepest(nested, "256 MiB"), 1'000'000);
  EXPECT_LT(nested.bytes(), Recognizer::kMostBytes * 5 / 4);
  Recognizer ambiguous(
      {.rules = {{"root", sequence({text("("), optional(rule(0)), optional(rule(0)), text(")")})}}, .root = 0});
  EXPECT_GT(deepest(ambiguous, "more than 30000 ways"), 10);
}

}  // namespace
}  // namespace tiercel::grammar
