// Arbitrary text as a regular expression. Only Error(kUsage) may come out. What it matches is UTF-8 of as many
// characters as it says; and a text is matched if and only if it is as the inside of a JSON string.
//
// Input: byte 0: bit 0: it is anchored; bit 1: the walk is inside of a JSON string; the rest as grammar_walk.h says.
#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "engine/base/check.h"
#include "engine/text/grammar/regex.h"
#include "engine/text/utf8.h"
#include "tests/fuzz/grammar_walk.h"
#include "tests/grammar/matches.h"

namespace {

using namespace tiercel;
using namespace tiercel::grammar;

bool matches_unless_too_large(const Regex& regex, const std::string& text) {
  try {
    return matches(grammar_of(regex.expression), text);
  } catch (const Error&) {
    return true;
  }
}

void check_match(const Regex& regex, const Regex& in_json, const std::string& text, const std::string& inside) {
  const int64_t n = std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; });
  CHECK(n >= regex.shortest && (regex.longest == kUnlimited || n <= regex.longest), "{} of {} to {}: {}", n,
        regex.shortest, regex.longest, text);
  CHECK(regex.shortest == in_json.shortest && regex.longest == in_json.longest, "{}", text);
  CHECK(matches_unless_too_large(regex, text), "{}", text);
  CHECK(matches_unless_too_large(in_json, inside), "{}", inside);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > fuzz::kMostInput) return 0;
  const bool is_anchored = (data[0] & 1) != 0, is_in_json = (data[0] & 2) != 0;
  const fuzz::FormAndSteps input = fuzz::split(data + 1, size - 1);
  try {
    const Regex regex = parse_regex(input.form, {.anchored = is_anchored, .json_string = false}, "fuzz");
    const Regex in_json = parse_regex(input.form, {.anchored = is_anchored, .json_string = true}, "fuzz");
    const auto found = fuzz::matched_text(grammar_of((is_in_json ? in_json : regex).expression), input);
    if (!found) return 0;
    if (is_in_json) {
      const auto text = nlohmann::json::parse("\"" + *found + "\"", nullptr, false);
      CHECK(text.is_string(), "{}", *found);
      check_match(regex, in_json, text.get<std::string>(), *found);
    } else {
      CHECK(valid_utf8_prefix(*found) == found->size(), "{}", *found);
      const std::string quoted = nlohmann::json(*found).dump();
      check_match(regex, in_json, *found, quoted.substr(1, quoted.size() - 2));
    }
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kUsage, "{}", error.what());
  }
  return 0;
}
