#include "engine/text/grammar/json_text.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

namespace tiercel::grammar {
namespace {

constexpr std::string_view kShort = "\"\\\b\f\n\r\t", kLetters = "\"\\bfnrt";

// "uXX" and its other controls: \u000a is not another way to write \n here.
Expr long_escapes(const auto& contains) {
  std::vector<Expr> halves;
  for (const char32_t high : {0u, 1u}) {
    std::vector<CodeRange> digits;
    for (const char32_t low : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 9u, 10u, 11u, 12u, 13u, 14u, 15u}) {
      const char32_t c = high * 16 + low;
      if (!contains(c) || kShort.find(static_cast<char>(c)) != kShort.npos) continue;
      if (low < 10) {
        digits.push_back({'0' + low, '0' + low});
      } else {
        digits.push_back({'a' + low - 10, 'a' + low - 10});
        digits.push_back({'A' + low - 10, 'A' + low - 10});
      }
    }
    if (!digits.empty()) halves.push_back(sequence({text(high == 0 ? "u000" : "u001"), characters(std::move(digits))}));
  }
  return choice(std::move(halves));
}

}  // namespace

Expr json_characters(std::vector<CodeRange> ranges) {
  std::vector<CodeRange> others = characters_except(std::move(ranges))->ranges;
  const auto contains = [&](char32_t c) {
    return std::ranges::none_of(others, [&](const CodeRange& range) { return range.first <= c && c <= range.last; });
  };
  std::vector<CodeRange> letters;
  for (size_t i = 0; i < kShort.size(); ++i) {
    const char32_t letter = static_cast<unsigned char>(kLetters[i]);
    if (contains(static_cast<unsigned char>(kShort[i]))) letters.push_back({letter, letter});
  }
  std::vector<Expr> escapes{long_escapes(contains)};
  if (!letters.empty()) escapes.push_back(characters(std::move(letters)));
  others.insert(others.end(), {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}, {0xD800, 0xDFFF}});
  Expr raw = characters_except(std::move(others));
  Expr escaped = sequence({text("\\"), choice(std::move(escapes))});
  return raw->ranges.empty() ? escaped : choice({std::move(raw), std::move(escaped)});
}

Expr json_string_text(std::string_view utf8) {
  const std::string quoted = nlohmann::json(utf8).dump();
  return text(quoted.substr(1, quoted.size() - 2));
}

}  // namespace tiercel::grammar
