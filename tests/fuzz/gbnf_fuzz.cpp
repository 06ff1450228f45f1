// Arbitrary text as a grammar in GBNF. Only Error(kUsage) may come out, and what the grammar matches is UTF-8.
//
// Input: as grammar_walk.h says.
#include <cstdint>
#include <optional>
#include <string>

#include "engine/base/check.h"
#include "engine/text/grammar/gbnf.h"
#include "engine/text/utf8.h"
#include "tests/fuzz/grammar_walk.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;
  if (size > fuzz::kMostInput) return 0;
  const fuzz::FormAndSteps input = fuzz::split(data, size);
  try {
    const std::optional<std::string> text = fuzz::matched_text(grammar::parse_gbnf(input.form, "fuzz"), input);
    if (text) CHECK(valid_utf8_prefix(*text) == text->size(), "{}", *text);
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kUsage, "{}", error.what());
  }
  return 0;
}
