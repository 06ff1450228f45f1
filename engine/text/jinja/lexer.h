// A template's text and tags as tokens, white space and comments taken out as transformers has jinja2 do it
// (trim_blocks, lstrip_blocks).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tiercel::jinja {

struct Token {
  enum class Kind { kText, kBegin, kEnd, kOutputBegin, kOutputEnd, kName, kString, kInteger, kFloat, kOperator, kEof };
  Kind kind;
  std::string text;  // of a string what it means
  int line;
};

// Ends with kEof. Errors: Error(kUsage) "NAME: line N: ...".
std::vector<Token> read_tokens(std::string_view source, const std::string& name);

}  // namespace tiercel::jinja
