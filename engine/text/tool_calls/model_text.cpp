#include "engine/text/tool_calls/model_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/json.h"

namespace tiercel {
namespace {

using Json = nlohmann::json;

// Small models write line breaks in strings as they are.
std::string with_escapes(std::string_view text) {
  std::string result;
  bool quoted = false;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '"') quoted = !quoted;
    if (quoted && static_cast<unsigned char>(c) < 0x20) {
      result += c == '\n' ? "\\n" : c == '\t' ? "\\t" : c == '\r' ? "\\r" : " ";
      continue;
    }
    result += c;
    if (quoted && c == '\\' && at + 1 < text.size()) result += text[++at];
  }
  return result;
}

}  // namespace

std::string_view without_blanks_before(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(kBlanks), text.size()));
}
std::string_view without_blanks_behind(std::string_view text) {
  return text.substr(0, text.find_last_not_of(kBlanks) + 1);
}
std::string_view trimmed(std::string_view text) { return without_blanks_before(without_blanks_behind(text)); }

size_t common_prefix(std::string_view a, std::string_view b) {
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(std::min(a.size(), b.size())), b.begin()).first -
      a.begin());
}
size_t common_suffix(std::string_view a, std::string_view b) {
  size_t n = 0;
  while (n < std::min(a.size(), b.size()) && a[a.size() - 1 - n] == b[b.size() - 1 - n]) ++n;
  return n;
}

size_t match(std::string_view text, std::string_view part) {
  size_t at = 0;
  const auto skip_blanks = [&] { at = std::min(text.find_first_not_of(kBlanks, at), text.size()); };
  for (size_t i = 0; i < part.size(); ++i) {
    const bool is_blank = kBlanks.find(part[i]) != kBlanks.npos;
    if (is_blank || part[i] == '<' || (i > 0 && part[i - 1] == '>')) skip_blanks();
    if (is_blank) continue;
    if (at >= text.size() || text[at] != part[i]) return text.npos;
    ++at;
  }
  return at;
}
bool take(std::string_view& text, std::string_view part) {
  const size_t n = match(text, part);
  if (n != text.npos) text.remove_prefix(n);
  return n != text.npos;
}

// The stack is finite, and so are those of others that read it.
size_t object_size(std::string_view text) {
  constexpr int kMostDepth = 64;
  int depth = 0;
  bool quoted = false;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (quoted) {
      if (c == '\\') ++at;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMostDepth) return 0;
    } else if (c == '}' || c == ']') {
      if (--depth == 0) return c == '}' ? at + 1 : 0;
    }
    if (depth == 0) return 0;
  }
  return 0;
}

std::string object_in(std::string_view text) {
  const std::string object = with_escapes(text.substr(0, object_size(text)));
  if (object.empty() || !Json::accept(object)) return {};
  return ordered_member("{\"a\":" + object + "}", std::array{std::string_view("a")});
}

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string member_at(const std::string& object, std::string_view path) {
  std::vector<std::string_view> names;
  while (!path.empty()) {
    const size_t end = std::min(path.find('/', 1), path.size());
    names.push_back(path.substr(1, end - 1));
    path.remove_prefix(end);
  }
  return ordered_member(object, names);
}

std::optional<std::string> arguments_of(const std::string& json) {
  if (json.empty() || json == "null" || json == "\"\"") return "{}";
  if (json[0] == '{') return json;
  if (json[0] != '"') return std::nullopt;
  const std::string object = object_in(trimmed(Json::parse(json).get<std::string>()));
  if (object.empty()) return std::nullopt;
  return object;
}

std::string once_each(std::string object) try {
  parse_json(object, "arguments", {.max_bytes = object.size(), .max_depth = kMostJsonDepth});
  return object;
} catch (const Error&) {  // a name is there twice
  return dump(Json::parse(object));
}

std::string json_of(std::string_view value, bool is_text) {
  if (!is_text) {
    for (const auto& [python, json] :
         {std::pair("True", "true"), std::pair("False", "false"), std::pair("None", "null")}) {
      if (trimmed(value) == python) return json;
    }
    const std::string bare(trimmed(value)), object = "{\"a\":" + bare + "}";
    if (object_size(object) == object.size() && Json::accept(bare)) {
      return ordered_member(object, std::array{std::string_view("a")});
    }
  }
  return dump(Json(std::string(value)));
}

}  // namespace tiercel
