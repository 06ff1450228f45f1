// Members taken out of JSON as they were written.
#include "engine/json.h"

#include <gtest/gtest.h>

#include <array>

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

}  // namespace
}  // namespace tiercel::test
