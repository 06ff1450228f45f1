// What the fuzzers of grammars share: a walk along some text that a grammar matches, and what must hold wherever it
// comes by.
//
// Input: a schema, pattern or grammar, up to the first byte 0xFF; behind it a byte for each step of the walk. Without
// those the walk is any one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <string_view>

#include "engine/base/check.h"
#include "engine/text/grammar/recognizer.h"

namespace tiercel::fuzz {

inline constexpr size_t kMostInput = 4096;
inline constexpr int64_t kLookahead = 8;

struct FormAndSteps {
  std::string form;
  std::string_view steps;
};
inline FormAndSteps split(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t at = input.find('\xFF');
  return {std::string(input.substr(0, at)), at == input.npos ? "" : input.substr(at + 1)};
}

// About how many places a program of it has, up to `most`.
inline int64_t n_places(const grammar::Expr& expression, int64_t most) {
  const auto& e = *expression;
  int64_t n = 1 + std::ssize(e.text) + 3 * std::ssize(e.ranges) + std::max(e.least, e.most);
  for (const grammar::Expr& part : e.parts) {
    if (n >= most) break;
    n += n_places(part, most - n);
  }
  return n;
}
// Large programs take their time: few of them are let through.
inline bool is_let_through(const grammar::Grammar& grammar) {
  constexpr int64_t kMostPlaces = 10'000;
  int64_t n = 0;
  for (const auto& rule : grammar.rules) n += n_places(rule.body, kMostPlaces);
  return n < kMostPlaces || n % 64 == 0;
}

class Walk {
 public:
  using State = grammar::Recognizer::State;
  static constexpr State kDead = grammar::Recognizer::kDead;

  Walk(grammar::Recognizer& recognizer, const FormAndSteps& input)
      : recognizer_(recognizer),
        steps_(input.steps),
        random_(static_cast<uint32_t>(std::hash<std::string>{}(input.form))) {}

  // The last text on the way that is matched.
  std::optional<std::string> run() {
    constexpr size_t kMostSteps = 200, kAnySteps = 60, kTwinSteps = 20;
    constexpr int64_t kMostBytes = 1 << 18;  // of states: more of them take their time
    const size_t n_steps = steps_.empty() ? kAnySteps : std::min(steps_.size(), kMostSteps);
    std::optional<std::string> matched;
    std::string text;
    State state = recognizer_.start();
    for (size_t i = 0;; ++i) {
      const bool is_match = recognizer_.is_match(state);
      CHECK(is_match || goes_on(state), "behind '{}'", text);
      if (i < kTwinSteps || i % 8 == 0) check_twin(state, text);
      if (is_match) matched = text;
      if (i == kMostSteps || (i >= n_steps && is_match) || !goes_on(state)) break;
      if (recognizer_.bytes() > kMostBytes) break;
      auto byte = static_cast<uint8_t>(i < steps_.size() ? static_cast<uint8_t>(steps_[i]) : random_());
      state = i < n_steps ? live_step(state, byte) : last_step(state, byte);
      CHECK(state != kDead, "nothing may come behind '{}'", text);
      text += static_cast<char>(byte);
    }
    CHECK(recognizer_.step(recognizer_.start(), text) == state, "'{}'", text);
    return matched;
  }

 private:
  bool goes_on(State state) {
    uint8_t byte = 0;
    return live_step(state, byte) != kDead;
  }
  // With the first byte, from this one on, that leads anywhere.
  State live_step(State state, uint8_t& byte) {
    for (int i = 0; i < 256; ++i, ++byte) {
      if (const State to = recognizer_.step(state, byte); to != kDead) return to;
    }
    return kDead;
  }
  // With a byte that ends what is open, if one may come.
  State last_step(State state, uint8_t& byte) {
    for (const char end : {'"', '}', ']'}) {
      if (const State to = recognizer_.step(state, static_cast<uint8_t>(end)); to != kDead) {
        byte = static_cast<uint8_t>(end);
        return to;
      }
    }
    return live_step(state, byte);
  }

  // A state and its twin go on alike, as far as the recognizer was asked to look ahead.
  void check_twin(State state, const std::string& text) {
    constexpr int kMostTwins = 16;
    State twin = recognizer_.twin(state);
    CHECK(recognizer_.twin(twin) == twin && recognizer_.is_match(twin) == recognizer_.is_match(state), "'{}'", text);
    if (twin == state || ++n_twins_ > kMostTwins) return;
    std::string behind;
    for (int64_t i = 0; i < kLookahead && state != twin && goes_on(state); ++i) {
      for (int other = 0; other < 256; ++other) {
        const auto byte = static_cast<uint8_t>(other);
        CHECK((recognizer_.step(state, byte) == kDead) == (recognizer_.step(twin, byte) == kDead),
              "byte {:02X} behind '{}' and '{}'", byte, text, behind);
      }
      auto byte = static_cast<uint8_t>(random_());
      state = live_step(state, byte);
      twin = recognizer_.step(twin, byte);
      behind += static_cast<char>(byte);
      CHECK(recognizer_.is_match(state) == recognizer_.is_match(twin), "behind '{}' and '{}'", text, behind);
    }
  }

  grammar::Recognizer& recognizer_;
  std::string_view steps_;
  std::minstd_rand random_;
  int n_twins_ = 0;
};

// A text that the grammar matches, if the walk comes to one. Throws what the recognizer throws of the grammar.
inline std::optional<std::string> matched_text(const grammar::Grammar& grammar, const FormAndSteps& input) {
  if (!is_let_through(grammar)) return std::nullopt;
  grammar::Recognizer recognizer(grammar, kLookahead);
  try {
    return Walk(recognizer, input).run();
  } catch (const Error& error) {  // too many ways to read it
    CHECK(error.kind() == ErrorKind::kRuntime, "{}", error.what());
    return std::nullopt;
  }
}

}  // namespace tiercel::fuzz
