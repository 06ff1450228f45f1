// Schemas: the verdicts of the package jsonschema (tests/golden/grammar), where our reading is narrower, and what is
// refused, with its place.
#include "engine/text/json_schema/json_schema.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/grammar/recognizer.h"
#include "tests/grammar/matches.h"
#include "tests/sanitized.h"

namespace tiercel::grammar {
namespace {

using Json = nlohmann::ordered_json;

Grammar grammar(const std::string& schema) { return parse_json_schema(schema, "schema"); }

bool accepts(const std::string& schema, const std::string& text) { return matches(grammar(schema), text); }

class Reader {
 public:
  explicit Reader(const Grammar& grammar) : recognizer_(grammar) {}
  bool operator()(std::string_view text) {
    const Recognizer::State end = recognizer_.step(recognizer_.start(), text);
    return end != Recognizer::kDead && recognizer_.is_match(end);
  }

 private:
  Recognizer recognizer_;
};

void expect_texts(const std::string& schema, const std::vector<std::string>& matched,
                  const std::vector<std::string>& not_matched) {
  SCOPED_TRACE(schema);
  Reader reads(grammar(schema));
  for (const std::string& text : matched) EXPECT_TRUE(reads(text)) << text;
  for (const std::string& text : not_matched) EXPECT_FALSE(reads(text)) << text;
}

void expect_refused(const std::string& schema, const std::string& place, const std::string& reason) {
  SCOPED_TRACE(schema);
  try {
    (void)Reader(grammar(schema));
    FAIL() << "not refused";
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_EQ(error.kind(), ErrorKind::kUsage) << what;
    EXPECT_EQ(what.find("schema: " + place), 0u) << what;
    EXPECT_NE(what.find(reason), std::string::npos) << what;
  }
}

TEST(Schemas, GiveTheVerdictsOfJsonschema) {
  std::ifstream file(std::string(TIERCEL_SOURCE_DIR) + "/tests/golden/grammar/schemas.json");
  const Json cases = Json::parse(file);
  int n_valid = 0, n_invalid = 0;
  for (const Json& golden : cases) {
    const std::string schema = golden.at("schema").dump();
    SCOPED_TRACE(schema);
    Reader reads(grammar(schema));
    for (const Json& text : golden.at("valid")) {
      EXPECT_TRUE(reads(text.get_ref<const std::string&>())) << text.get_ref<const std::string&>();
      ++n_valid;
    }
    for (const Json& text : golden.at("invalid")) {
      EXPECT_FALSE(reads(text.get_ref<const std::string&>())) << text.get_ref<const std::string&>();
      ++n_invalid;
    }
  }
  EXPECT_GT(n_valid, 1000);
  EXPECT_GT(n_invalid, 1000);
}

TEST(Schemas, WhiteSpaceHasAnEnd) {
  expect_texts(
      R"({"type": "array", "items": {"type": "integer"}})",
      {"[1,2]", "[1, 2]", "[\n1,\n\t2\n]", "[\n\n  1,\n\n2]", "[ ]", "[]", "[ 1 ]",
       "[\n" + std::string(20, ' ') + "1]"},
      {" [1]", "[1] ", "[1 ,2]", "[1,  2]", "[\n\n\n1]", "[\n" + std::string(21, ' ') + "1]", "[1,\r\n2]", "[\t1]"});
  expect_texts(R"({"properties": {"a": {"type": "integer"}}})", {R"({"a": 1})", "{\n  \"a\":\n1\n}", "{ }"},
               {R"({"a" :1})", R"({  "a":1})", "\n{}"});
}

TEST(Schemas, StringsAreWrittenInAnyWay) {
  expect_texts(R"({"type": "string"})", {R"("")", R"("\"\\\/\b\f\n\r\t")", R"("\u0041\uD83d\uDE00é🙂")", "\"\x7f\""},
               {R"("\x")", R"("\u12")", R"("\ud83d")", R"("\ude00")", R"("\ud83dx")", "\"\n\"", "\"\x01\"", "\"\xff\"",
                "\"\xed\xa0\x80\"", R"("a"b")", R"(a)"});
  expect_texts(R"({"type": "string", "minLength": 2, "maxLength": 3})",
               {R"("\n\u0041")", R"("\ud83d\ude00x")", R"("🙂é\\")"},
               {R"("\u0041")", R"("\ud83d\ude00")", R"("abcd")"});
}

TEST(Schemas, MembersComeInTheirOrder) {
  expect_texts(
      R"({"properties": {"b": {"type": "integer"}, "a": {"type": "integer"}}, "required": ["z", "y"],
                   "additionalProperties": {"type": "null"}})",
      {R"({"z":null,"y":null})", R"({"b":1,"a":2,"z":null,"y":null})", R"({"a":1,"z":null,"y":null,"q":null})"},
      {R"({"a":1,"b":2,"z":null,"y":null})", R"({"y":null,"z":null})", R"({"z":null,"a":1,"y":null})",
       R"({"z":null,"y":null,"a":1})", R"({"z":null,"y":null,"b":null})", R"({"z":1,"y":null})"});
}

TEST(Schemas, ObjectsWithPropertiesAreClosed) {
  expect_texts(R"({"properties": {"a": {}}})", {R"({"a":[{"x":1}]})", "{}"}, {R"({"b":1})", R"({"a":1,"b":1})", "1"});
  expect_texts(R"({"type": "object", "properties": {}})", {"{}"}, {R"({"a":1})"});
  expect_texts(R"({"type": "object"})", {"{}", R"({"a":1})"}, {"[]"});
  expect_texts(R"({"type": "object", "required": ["a"]})", {R"({"a":1})", R"({"a":1,"b":2})"},
               {"{}", R"({"b":2,"a":1})"});
}

TEST(Schemas, OtherNamesAreNoneOfTheKnown) {
  expect_texts(R"({"properties": {"ab": {"type": "integer"}, "a\n": {"type": "integer"}, "é": {"type": "integer"}},
                   "additionalProperties": {"type": "string"}})",
               {R"({"a":"x"})", R"({"abc":"x"})", R"({"":"x"})", R"({"b":"x"})", R"({"a\t":"x"})", R"({"a\nb":"x"})",
                R"({"è":"x"})", R"({"éé":"x"})", R"({"ab":1,"ac":"x"})", R"({"x\u0061":"x"})", R"({"aé":"x"})"},
               {R"({"ab":"x"})", R"({"a\n":"x"})", R"({"é":"x"})", R"({"\u0061b":"x"})", R"({"a\u0062":"x"})",
                R"({"\u00e9":"x"})", R"({"a":1})"});
}

TEST(Schemas, TypesAreThoseThatKeywordsAreAbout) {
  expect_texts(R"({"minLength": 1})", {R"("a")"}, {R"("")", "1", "null"});
  expect_texts(R"({"minimum": 1})", {"1", "1.5"}, {"0", R"("a")"});
  expect_texts(R"({"minimum": 1, "maxLength": 1})", {"1", R"("a")"}, {"0", R"("ab")", "null"});
  expect_texts(R"({"items": {"type": "null"}})", {"[null]", "[]"}, {"[1]", "{}"});
  expect_texts(R"({"title": "anything", "x-more": 1})", {"1", R"({"a":[null,true]})", R"("x")", "-1.5e3"},
               {"", "nul", "[1,]"});
}

TEST(Schemas, Numbers) {
  expect_texts(R"({"type": "integer"})", {"0", "-0", "-12", "12345678901234567890"}, {"1.0", "1e3", "01", "+1", ""});
  expect_texts(
      R"({"minimum": 5, "exclusiveMinimum": true, "maximum": 7, "exclusiveMaximum": false, "type": "integer"})",
      {"6", "7"}, {"5", "8"});
  expect_texts(R"({"type": "number", "minimum": 0.1, "exclusiveMaximum": 12345678901234567890.5})",
               {"0.1", "0.10", "12345678901234567890.4999"},
               {"0.09999999999999999999", "12345678901234567890.5", "1e1", "-1"});
  expect_texts(R"({"type": "integer", "multipleOf": 100})", {"0", "100", "-1200"}, {"10", "150", "00"});
  expect_texts(R"({"minimum": 5, "exclusiveMinimum": 5, "maximum": 7, "exclusiveMaximum": 8, "multipleOf": 1})",
               {"6", "7"}, {"5", "8", "6.5"});
  expect_texts(R"({"const": 1.50})", {"1.50", "1.5"}, {"1.500", "1"});
  expect_texts(R"({"type": "integer", "minimum": 0})", {"0", "5"}, {"-0", "-1"});
}

TEST(Schemas, Formats) {
  const auto expect_format = [](const std::string& format, const std::vector<std::string>& matched,
                                const std::vector<std::string>& not_matched) {
    SCOPED_TRACE(format);
    Reader reads(grammar(R"({"type": "string", "format": ")" + format + "\"}"));
    for (const std::string& text : matched) EXPECT_TRUE(reads("\"" + text + "\"")) << text;
    for (const std::string& text : not_matched) EXPECT_FALSE(reads("\"" + text + "\"")) << text;
  };
  expect_format(
      "date", {"2024-02-29", "2000-02-29", "1999-12-31", "2023-04-30"},
      {"2023-02-29", "1900-02-29", "2023-04-31", "2023-13-01", "2023-00-10", "23-01-01", "2023-1-1", "x2023-01-01"});
  expect_format("time", {"23:59:59Z", "00:00:00.123+05:30"}, {"24:00:00Z", "12:60:00Z", "12:00Z", "12:00:00"});
  expect_format("date-time", {"2024-02-29T12:00:00Z", "2024-01-01T00:00:00.5-08:00"},
                {"2024-01-01 00:00:00Z", "2024-01-01"});
  expect_format("duration", {"P1D", "PT5M", "P1Y2M3DT4H5M6S", "P2W", "P1YT1S"},
                {"P", "PT", "1D", "P1DT", "P1Y2D", "P1W1D"});
  expect_format("uuid", {"123e4567-e89b-12d3-a456-426614174000"},
                {"123e4567e89b12d3a456426614174000", "123e4567-e89b-12d3-a456-42661417400g"});
  expect_format("ipv4", {"0.0.0.0", "255.249.199.99"}, {"256.0.0.1", "1.2.3", "01.2.3.4", "1.2.3.4.5"});
  expect_format(
      "ipv6",
      {"::", "::1", "1::", "2001:db8::ff00:42:8329", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4",
       "1:2:3:4:5:6:7::", "1::3:4:5:6:7:8"},
      {":", ":::", "1:2:3:4:5:6:7", "1::2::3", "12345::", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7::8:9", "::1.2.3"});
  expect_format("email", {"a@b.de", "first.last+tag@example.org"},
                {"a", "@b.de", "a@", "a b@c.de", ".a@b.de", "a@-b.de"});
  expect_format("hostname", {"example.org", "a", "x-1.y"}, {"", "-a", "a-", "a..b", "a_b"});
  expect_format("uri", {"https://example.org/a?b=c#d", "mailto:a@b.de", "urn:x:y", "http://[::1]/%20"},
                {"example.org", "http://a b", "://x", "http://a/%zz"});
  expect_format("unknown", {"", "anything"}, {"\n"});
  expect_texts(R"({"format": "date", "maxLength": 3})", {R"("abc")"}, {R"("abcd")"});  // the length goes before
  expect_texts(R"({"format": "date", "maxLength": 10})", {R"("2024-01-01")"}, {R"("abc")"});
  expect_texts(R"({"format": "int64", "type": "integer"})", {"1"}, {"x"});
}

TEST(Schemas, OlderDraftsAndOpenApi) {
  expect_texts(R"({"items": [{"type": "integer"}, {"type": "null"}], "additionalItems": false})",
               {"[]", "[1]", "[1,null]"}, {"[1,null,1]", "[null]"});
  expect_texts(R"({"items": [{"type": "integer"}], "additionalItems": {"type": "boolean"}, "minItems": 2})",
               {"[1,true]"}, {"[1]", "[1,1]"});
  expect_texts(R"({"type": "string", "nullable": true, "enum": ["a"]})", {"null", R"("a")"}, {R"("b")"});
  expect_texts(R"({"$ref": "#/$defs/a", "nullable": true, "$defs": {"a": {"type": "integer"}}})", {"null", "1"},
               {"true"});
  expect_texts(
      R"({"id": "x", "definitions": {"a": {"type": "integer"}}, "properties": {"a": {"$ref": "#/definitions/a"}}})",
      {R"({"a":1})"}, {R"({"a":null})"});
}

TEST(Schemas, References) {
  expect_texts(R"({"properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}}})", {R"({"b":1})"},
               {R"({"b":null})"});
  expect_texts(
      R"({"$defs": {"in": {"$id": "https://x.org/in", "$defs": {"t": {"type": "null"}}, "items": {"$ref": "#/$defs/t"}},
                             "t": {"type": "integer"}}, "anyOf": [{"$ref": "#/$defs/in"}, {"$ref": "#/$defs/t"}]})",
      {"[null]", "1"}, {"[1]", "null"});
  // Recursive through alternatives that bring keywords together.
  expect_texts(
      R"({"$defs": {"n": {"properties": {"v": {"type": "integer"}, "l": {"$ref": "#/$defs/n", "required": ["v"]},
                             "r": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}}}, "$ref": "#/$defs/n"})",
      {"{}", R"({"l":{"v":1,"l":{"v":2}},"r":null})", R"({"r":{"r":{"r":{}}}})"},
      {R"({"l":{}})", R"({"l":{"v":1,"l":{}}})"});
  expect_texts(R"({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]})", {"1", "[[1],[[]]]"},
               {"[null]"});
}

TEST(Schemas, ValuesAreWrittenInOneWay) {
  expect_texts(R"({"const": {"b": [1, "é"], "a": {}}})",
               {R"({"b":[1,"é"],"a":{}})", "{ \"b\": [\n1, \"é\" ],\n\n \"a\": { } }"},
               {R"({"a":{},"b":[1,"é"]})", R"({"b":[1,"\u00e9"],"a":{}})"});
  expect_texts(R"({"enum": ["a", "b", "a"], "type": ["string", "null"]})", {R"("a")", R"("b")"}, {"null", R"("c")"});
}

TEST(Schemas, AnyObject) {
  const Grammar any = grammar(R"({"type": "object"})");
  EXPECT_TRUE(matches(any, R"({"a": [1, {"b": null}], "c\n": "d"})"));
  EXPECT_TRUE(matches(any, "{}"));
  for (const char* text : {"[]", "1", "", "{", R"({"a"})", R"({"a":1,})", "{} "})
    EXPECT_FALSE(matches(any, text)) << text;
}

TEST(Schemas, ShareOneGrammar) {
  Grammar both;
  const Expr first = add_json_schema(both, R"({"type": "array", "items": {}})", "first");
  const size_t n_rules = both.rules.size();
  const Expr second = add_json_schema(both, R"({"type": "object"})", "second");
  EXPECT_LT(both.rules.size(), n_rules + 3);  // JSON's own are there
  both.root = static_cast<int32_t>(both.rules.size());
  both.rules.push_back({"root", sequence({text("<"), choice({first, second}), text(">")})});
  EXPECT_TRUE(matches(both, "<[1, {}]>"));
  EXPECT_TRUE(matches(both, R"(<{"a": [1]}>)"));
  EXPECT_FALSE(matches(both, "<1>"));
}

TEST(Schemas, LargeOnesTakeLittleTime) {
  const auto start = std::chrono::steady_clock::now();
  Json wide = {{"type", "object"}, {"additionalProperties", {{"type", "integer"}}}};
  for (int i = 0; i < 500; ++i)
    wide["properties"]["property_" + std::to_string(i)] = {{"type", "array"},
                                                           {"items", {{"properties", {{"a", true}, {"b", true}}}}}};
  Reader reads(grammar(wide.dump()));
  EXPECT_TRUE(reads("{}"));
  EXPECT_TRUE(reads(R"({"property_3":[{"b":1}],"property_499":[],"property_500":1})"));
  EXPECT_FALSE(reads(R"({"property_499":[],"property_3":[]})"));
  EXPECT_FALSE(reads(R"({"property_4":1})"));
  Json chain;
  for (int i = 0; i < 5000; ++i) {
    chain["$defs"]["d" + std::to_string(i)] = {
        {"properties", {{"next", {{"$ref", "#/$defs/d" + std::to_string((i + 1) % 5000)}}}}}};
  }
  chain["$ref"] = "#/$defs/d0";
  const std::string long_name(1000, 'n');  // beside others, names are shorter
  EXPECT_TRUE(accepts(R"({"additionalProperties": false, "properties": {")" + long_name + R"(": {"type": "null"}}})",
                      "{\"" + long_name + "\": null}"));
  EXPECT_TRUE(accepts(chain.dump(), R"({"next":{"next":{}}})"));
  // Alternatives within alternatives do not multiply.
  Json deep = {{"type", "null"}};
  for (int i = 0; i < 25; ++i) {
    deep = {{"properties", {{"a", deep}, {"b", true}}}, {"anyOf", {{{"required", {"a"}}}, {{"required", {"b"}}}}}};
  }
  EXPECT_TRUE(accepts(deep.dump(), R"({"a":{"b":1}})"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

TEST(Schemas, WhatIsNotUnderstoodIsRefused) {
  for (const char* keyword : {"not", "if", "then", "contains", "patternProperties", "dependentRequired",
                              "dependentSchemas", "$dynamicRef", "minContains"}) {
    expect_refused(R"({"properties": {"a": {")" + std::string(keyword) + R"(": {}}}})",
                   "#/properties/a/" + std::string(keyword), "not supported; remove it");
  }
  expect_refused(R"({"properties": {"a": {"propertyNames": {"enum": ["x"]}}}})", "#/properties/a/propertyNames",
                 "not supported");
  expect_refused(R"({"items": {"items": {}, "uniqueItems": true}})", "#/items/uniqueItems", "expected false");
  expect_refused(R"({"multipleOf": 0.5})", "#/multipleOf", "power of ten");
  expect_refused(R"({"pattern": "^a+$", "maxLength": 3})", "#/pattern", "write the lengths into it");
  expect_refused(R"({"allOf": [{"pattern": "a"}, {"pattern": "b"}]})", "#/allOf/1/pattern", "one pattern");
  expect_refused(R"({"properties": {"a": {}}, "minProperties": 1})", "#/minProperties", "list the required ones");
  expect_refused(R"({"enum": [[1]], "minItems": 1})", "#/enum/0", "not checked");
  expect_refused(R"({"unevaluatedProperties": {}})", "#/unevaluatedProperties", "true or false");
}

TEST(Schemas, WhatSaysNothingIsLeftOut) {
  expect_texts(R"({"type": "integer", "unit": "cm", "made_up": {"x": 1}, "propertyOrdering": ["a"]})", {"7"}, {"7.5"});
  expect_texts(R"({"additionalProperties": {"type": "null"}, "propertyNames": {"type": "string", "title": "t"}})",
               {R"({"a":null})"}, {R"({"a":1})"});
  // What is required is there, whatever it is, where nobody says that there is nothing else.
  expect_texts(R"({"properties": {"a": {"type": "null"}}, "required": ["b"]})", {R"({"b":1})", R"({"a":null,"b":[]})"},
               {"{}", R"({"a":null})"});
}

TEST(Schemas, LengthsOfOneSetOfCharacters) {
  expect_texts(R"({"type": "string", "pattern": "^[a-z0-9_\"]+$", "minLength": 3, "maxLength": 5})",
               {R"("abc")", R"("a_c1e")", R"("\"\"\"")"}, {R"("ab")", R"("abcdef")", R"("aBc")"});
  expect_texts(R"({"pattern": "^[a-z]{2,4}$", "maxLength": 3})", {R"("ab")", R"("abc")"}, {R"("a")", R"("abcd")"});
}

// A few words may ask for much: it is refused before it is done.
TEST(Schemas, CostIsBounded) {
  const auto begin = std::chrono::steady_clock::now();
  const auto refused = [](const std::string& schema) {
    const ExpressionBudget budget;
    try {
      (void)Reader(grammar(schema));
      return std::string("none");
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return std::string(error.what());
    }
  };
  Json twice = {{"$defs", {{"a60", false}}}, {"allOf", {{{"$ref", "#/$defs/a0"}}, {{"type", "string"}}}}};
  for (int i = 0; i < 60; ++i) {
    const Json next = {{"$ref", "#/$defs/a" + std::to_string(i + 1)}};
    twice["$defs"]["a" + std::to_string(i)] = {{"allOf", {next, next}}};
  }
  EXPECT_NE(refused(twice.dump()).find("too many alternatives"), std::string::npos);
  Json given = {{"pattern", "^(?:.{0,90000}|.{0,90000}|.{0,90000}|.{0,90000})$"}};
  for (int i = 0; i < 1000; ++i) given["enum"].push_back("v" + std::to_string(i));
  EXPECT_EQ(refused(given.dump()), "none");
  Json many;
  for (int i = 0; i < 100'000; ++i) many["enum"].push_back(i);
  for (int i = 0; i < 500; ++i) many["anyOf"].push_back(Json::object());
  EXPECT_NE(refused(many.dump()).find("too many alternatives"), std::string::npos);
  Json letters;
  for (int i = 0; i < 10'000; ++i) letters["properties"]["p" + std::to_string(i)] = {{"pattern", "^\\p{L}$"}};
  EXPECT_NE(refused(letters.dump()).find("too large"), std::string::npos);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(test::kSanitized ? 120 : 20));
}

TEST(Schemas, BadOnesAreRefused) {
  expect_refused("", "", "expected JSON");
  expect_refused(R"({"type": "string", "type": "null"})", "key", "twice");
  expect_refused("[]", "#", "expected a schema");
  expect_refused(R"({"properties": {"a/b": 3}})", "#/properties/a~1b", "expected a schema");
  expect_refused(R"({"type": "text"})", "#/type", "null, boolean");
  expect_refused(R"({"type": []})", "#/type", "at least one");
  expect_refused(R"({"minLength": -1})", "#/minLength", "0 to 100000");
  expect_refused(R"({"maxLength": 100001})", "#/maxLength", "0 to 100000");
  expect_refused(R"({"maxItems": 1.5})", "#/maxItems", "0 to 100000");
  expect_refused(R"({"minimum": "1"})", "#/minimum", "a number");
  expect_refused(R"({"minItems": 3, "maxItems": 2})", "#", "3 to 2 is nothing");
  expect_refused(R"({"items": {"minimum": 3, "maximum": 2.5}})", "#/items", "3 to 2.5 is nothing");
  expect_refused(R"({"pattern": 3})", "#/pattern", "regular expression");
  expect_refused(R"({"pattern": "("})", "#/pattern", "expected");
  expect_refused(R"({"required": "a"})", "#/required", "array of names");
  expect_refused(R"({"enum": []})", "#/enum", "at least one");
  expect_refused(R"({"anyOf": []})", "#/anyOf", "at least one");
  expect_refused(R"({"properties": []})", "#/properties", "object of schemas");
  expect_refused(R"({"$ref": "#/$defs/a"})", "#/$ref", "nothing at that place");
  expect_refused(R"({"$ref": "other.json"})", "#/$ref", "not looked up");
  expect_refused(R"({"$ref": "#name"})", "#/$ref", "not looked up");
  expect_refused(R"({"$ref": "#"})", "#", "defined by itself");
  expect_refused(R"({"anyOf": [{"type": "null"}, {"$ref": "#"}]})", "#", "defined by itself");
  expect_refused(
      R"({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"minimum": 1, "$ref": "#/$defs/a"}},
          "items": {"$ref": "#/$defs/a"}})",
      "#/$defs/a", "defined by itself");
  expect_refused(std::string(2 << 20, ' '), "", "1048576 bytes");
  std::string deep = "{}";
  for (int i = 0; i < 100; ++i) deep = R"({"items":)" + deep + "}";
  expect_refused(deep, "", "nested levels");
}

TEST(Schemas, ThatNothingSatisfiesAreRefused) {
  for (const char* schema :
       {"false", R"({"type": "string", "enum": [1]})", R"({"allOf": [{"type": "string"}, {"type": "null"}]})",
        R"({"required": ["a"], "properties": {"a": false}})",
        R"({"required": ["b"], "properties": {"a": true}, "additionalProperties": false})",
        R"({"required": ["a"], "properties": {"a": {"$ref": "#"}}})", R"({"allOf": [{"minimum": 3}, {"maximum": 2}]})",
        R"({"type": "integer", "minimum": 0.2, "maximum": 0.8})", R"({"items": false, "minItems": 1})",
        R"({"anyOf": [false, {"const": 1, "enum": [2]}]})"}) {
    expect_refused(schema, "#", "no finite text fits");
  }
  // Within others they are left out, so that no answer ends in them.
  expect_texts(
      R"({"properties": {"a": {"$ref": "#/$defs/never"}, "b": {"anyOf": [{"$ref": "#/$defs/never"}, {"type": "null"}]}},
                   "$defs": {"never": {"required": ["n"], "properties": {"n": {"$ref": "#/$defs/never"}}}}})",
      {"{}", R"({"b":null})"}, {R"({"a":)"});
}

}  // namespace
}  // namespace tiercel::grammar
