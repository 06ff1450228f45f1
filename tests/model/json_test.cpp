// Members taken out of JSON as they were written.
#include "engine/json.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/base/check.h"

namespace tiercel::test {
namespace {

std::string member(std::string_view text, std::initializer_list<std::string_view> path) {
  return ordered_member(text, std::vector<std::string_view>(path));
}

TEST(OrderedMember, IsWhatWasWritten) {
  const std::string text = R"({"z": [{"tools": 1}, {"body": {"tools": 2}}], "body": {"a": {"tools": 3}, "tools": [
    {"name": "f", "b": 1.50, "a": [1, -2, 18446744073709551615, [], {}, null], "q": "\"\u00e9\n", "e": {"y": true, "x": [[{"k": 1e5}]]}}, "s"],
    "later": {"tools": 4}}, "n": 7, "tools": {"c": 1, "b": 2, "a": 3}})";
  EXPECT_EQ(member(text, {"tools"}), R"({"c":1,"b":2,"a":3})");
  EXPECT_EQ(
      member(text, {"body", "tools"}),
      R"([{"name":"f","b":1.50,"a":[1,-2,18446744073709551615,[],{},null],"q":"\"é\n","e":{"y":true,"x":[[{"k":1e5}]]}},"s"])");
  EXPECT_EQ(member(text, {"n"}), "7");
  EXPECT_EQ(member(text, {"body", "a", "tools"}), "3");
  EXPECT_EQ(member(text, {"body", "later"}), R"({"tools":4})");
  for (const auto& path : std::initializer_list<std::vector<std::string_view>>{
           {"missing"}, {"body", "missing"}, {"n", "tools"}, {"z", "tools"}}) {
    EXPECT_EQ(ordered_member(text, path), "");
  }
  EXPECT_EQ(member("[{\"tools\": 1}]", {"tools"}), "");
}

TEST(ParseJson, IsWhatWasWritten) {
  const std::string text = R"({"a": [1, -2, 18446744073709551615, 1e5, [], {}, null, true], "b": {"c": {"a": "\u00e9"}}, "": ""})";
  EXPECT_EQ(parse_json(text, "f"), nlohmann::json::parse(text));
  for (const char* alone : {"7", "\"x\"", "[]", "{}", " null "}) EXPECT_EQ(parse_json(alone, "f"), nlohmann::json::parse(alone));
}

TEST(ParseJson, AZeroIsNoEnd) { EXPECT_THROW(parse_json(std::string_view("{}\0x", 4), "f"), Error); }

// Half a gigabyte of small containers would take weeks with a cost that grows by the square.
TEST(ParseJson, CostsWhatATextIsLong) {
  std::string text = "[";
  for (int i = 0; i < 300'000; ++i) text += R"({"a":[]},)";
  text.back() = ']';
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(parse_json(text, "f").size(), 300'000u);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

}  // namespace
}  // namespace tiercel::test
