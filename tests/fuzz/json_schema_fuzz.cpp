// Arbitrary text as a JSON Schema. Only Error(kUsage) may come out, and what the schema's grammar matches is JSON.
//
// Input: as grammar_walk.h says.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "engine/base/check.h"
#include "engine/text/json_schema/json_schema.h"
#include "tests/fuzz/grammar_walk.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;
  if (size > fuzz::kMostInput) return 0;
  const fuzz::FormAndSteps input = fuzz::split(data, size);
  try {
    const grammar::Grammar grammar = grammar::parse_json_schema(input.form, "fuzz");
    CHECK(input.form.find('\0') == input.form.npos, "JSON has no such byte, but nlohmann ends there");
    const std::optional<std::string> text = fuzz::matched_text(grammar, input);
    if (text) static_cast<void>(nlohmann::json::parse(*text));
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kUsage, "{}", error.what());
  } catch (const nlohmann::json::parse_error& error) {
    CHECK(false, "{}", error.what());
  } catch (const nlohmann::json::out_of_range&) {  // a number that is more than a double can say
  }
  return 0;
}
