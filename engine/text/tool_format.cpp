#include "engine/text/tool_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "engine/base/check.h"
#include "engine/json.h"

namespace tiercel {
namespace {

using Json = nlohmann::json;

// Names and values that no template has.
constexpr const char *kQuestion = "a question for tiercel", *kAnswer = "=an answer of tiercel=";
constexpr const char *kTool = "tiercel_looks_up", *kOther = "tiercel_counts";
constexpr const char* kId = "tiercel01";
constexpr const char *kTextKey = "tiercel_word", *kText = "a value of tiercel", *kNumberKey = "tiercel_number", *kNumber = "7351846";
constexpr const char* kToolsJson = R"([
  {"type": "function", "function": {"name": "tiercel_looks_up", "description": "Looks up.", "parameters": {"type": "object",
    "properties": {"tiercel_word": {"type": "string", "description": "What."}, "tiercel_number": {"type": "integer", "description": "How many."}},
    "required": ["tiercel_word"]}}},
  {"type": "function", "function": {"name": "tiercel_counts", "description": "Counts.", "parameters": {"type": "object",
    "properties": {"tiercel_word": {"type": "string", "description": "What."}, "tiercel_number": {"type": "integer", "description": "How many."}},
    "required": ["tiercel_word"]}}}])";

std::string arguments_json() { return fmt::format(R"({{"{}": "{}", "{}": {}}})", kTextKey, kText, kNumberKey, kNumber); }

constexpr std::string_view kBlanks = " \t\r\n";
std::string_view without_blanks_before(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(kBlanks), text.size()));
}
std::string_view without_blanks_behind(std::string_view text) { return text.substr(0, text.find_last_not_of(kBlanks) + 1); }
std::string_view trimmed(std::string_view text) { return without_blanks_before(without_blanks_behind(text)); }

size_t common_prefix(std::string_view a, std::string_view b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(std::min(a.size(), b.size())), b.begin()).first - a.begin());
}
size_t common_suffix(std::string_view a, std::string_view b) {
  size_t n = 0;
  while (n < std::min(a.size(), b.size()) && a[a.size() - 1 - n] == b[b.size() - 1 - n]) ++n;
  return n;
}

// A tag like <a> ends before white space does, and begins behind it: how much of a text a part takes that may have other white
// space around its tags; npos: it is not there.
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

// The length of the JSON object that a text begins with; 0: it does not end, or there is none, or it is in itself too deep: the
// stack is finite, and so are those of others that read it.
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

// The object that a text begins with, as JSON without white space, in its order and with its digits. Empty: there is none.
std::string object_in(std::string_view text) {
  const std::string object = with_escapes(text.substr(0, object_size(text)));
  if (object.empty() || !Json::accept(object)) return {};
  return ordered_member("{\"a\":" + object + "}", std::array{std::string_view("a")});
}

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// A member by its path, "/a/b", as JSON; empty: it is not there.
std::string member_of(const std::string& object, std::string_view path) {
  std::vector<std::string_view> names;
  while (!path.empty()) {
    const size_t end = std::min(path.find('/', 1), path.size());
    names.push_back(path.substr(1, end - 1));
    path.remove_prefix(end);
  }
  return ordered_member(object, names);
}

// The arguments of a call: an object, or a text that is one; or nothing. None: something else.
std::optional<std::string> arguments_of(const std::string& json) {
  if (json.empty() || json == "null" || json == "\"\"") return "{}";
  if (json[0] == '{') return json;
  if (json[0] != '"') return std::nullopt;
  const std::string object = object_in(trimmed(Json::parse(json).get<std::string>()));
  if (object.empty()) return std::nullopt;
  return object;
}

bool is_wanted_arguments(const Json& value) {
  const auto json = value.is_object() || value.is_string() ? arguments_of(dump(value)) : std::nullopt;
  return json && Json::parse(*json) == Json::parse(arguments_json());
}

// Where in an object something is, as a JSON pointer; empty: nowhere.
template <typename F>
std::string place_in(const Json& object, const F& is_it) {
  for (const auto& [key, value] : object.items()) {
    if (is_it(value)) return "/" + key;
    if (!value.is_object()) continue;
    if (const std::string inner = place_in(value, is_it); !inner.empty()) return "/" + key + inner;
  }
  return {};
}

// The texts of the calls that a template writes: what is between the beginning of an answer and its end.
std::string body_of(const ChatProgram& program, const std::vector<ToolCall>& calls) {
  constexpr ChatDate kSomeDay{.year = 2024, .month = 7, .day = 26};
  const ChatOptions due{.add_generation_prompt = true, .date = kSomeDay, .tools = kToolsJson};
  const ChatOptions past{.add_generation_prompt = false, .date = kSomeDay, .tools = kToolsJson};
  std::vector<ChatMessage> messages = {{ChatRole::kUser, kQuestion}};
  const std::string prompt(program.write(messages, due).view());
  messages.push_back({.role = ChatRole::kAssistant, .content = kAnswer});
  const std::string plain(program.write(messages, past).view());
  messages.back() = {.role = ChatRole::kAssistant, .content = "", .calls = calls};
  const std::string called(program.write(messages, past).view());
  const size_t answer = plain.find(kAnswer);
  if (answer == std::string::npos) return {};
  size_t begin = prompt.size();
  if (!called.starts_with(prompt)) {
    begin = std::min(common_prefix(plain, called), answer);
    // Not within a tag.
    const size_t tag = called.find_last_of("<[", begin - std::min<size_t>(begin, 1));
    if (tag != std::string::npos && called.substr(tag, begin - tag).find_first_of(">]\n") == std::string::npos) begin = tag;
  }
  const std::string_view tail = std::string_view(plain).substr(answer + std::string_view(kAnswer).size());
  const size_t n_end = common_suffix(tail, called);
  return begin + n_end < called.size() ? called.substr(begin, called.size() - n_end - begin) : std::string();
}

// Whether what a schema allows is text, or nothing.
bool is_text_schema(const nlohmann::json& schema) {
  if (!schema.is_object()) return false;
  const auto all = [](const nlohmann::json& list, const auto& is) {
    return list.is_array() && std::ranges::any_of(list, is) && std::ranges::all_of(list, [&](const nlohmann::json& one) {
             return is(one) || one == "null" || one.is_null() || (one.is_object() && one.value("type", nlohmann::json()) == "null");
           });
  };
  if (schema.contains("type")) {
    return schema["type"] == "string" || all(schema["type"], [](const nlohmann::json& one) { return one == "string"; });
  }
  for (const char* several : {"anyOf", "oneOf"}) {
    if (schema.contains(several)) return all(schema[several], is_text_schema);
  }
  return schema.contains("enum") && all(schema["enum"], [](const nlohmann::json& one) { return one.is_string(); });
}

}  // namespace

Tools::Tools(std::string json) : json_(std::move(json)) {
  const std::string place = "tools";
  const nlohmann::json parsed = parse_json(json_, place, {.max_depth = kMostJsonDepth});
  const JsonNode root(parsed, place);
  root.expect_array();
  for (size_t i = 0; i < root.size(); ++i) {
    const JsonNode tool = root[i];
    tool.expect_object();
    if (tool.at("type").text() != "function") tool.at("type").unexpected("\"function\"");
    const JsonNode function = tool.at("function");
    const std::string& name = function.at("name").text();
    if (name.empty()) function.at("name").unexpected("a name");
    const auto [entry, is_new] = is_text_.try_emplace(name);
    if (!is_new) function.at("name").unexpected("another name for each tool");
    const auto parameters = function.find("parameters");
    if (!parameters) continue;
    parameters->expect_object();
    const auto properties = parameters->find("properties");
    if (!properties) continue;
    properties->expect_object();
    for (const auto& [key, schema] : properties->raw().items()) entry->second[key] = is_text_schema(schema);
  }
  if (is_text_.empty()) root.unexpected("a tool or more");
}

std::string_view Tools::name_at(std::string_view text) const {
  std::string_view longest;
  for (const auto& [name, parameters] : is_text_) {
    if (text.starts_with(name) && name.size() > longest.size()) longest = name;
  }
  return longest;
}

bool Tools::may_begin(std::string_view text) const {
  return std::ranges::any_of(is_text_, [&](const auto& tool) {
    const size_t n = std::min(text.size(), tool.first.size());
    return text.substr(0, n) == std::string_view(tool.first).substr(0, n);
  });
}

bool Tools::is_text(const std::string& tool, const std::string& parameter) const {
  const auto found = is_text_.find(tool);
  if (found == is_text_.end()) return false;
  const auto of = found->second.find(parameter);
  return of != found->second.end() && of->second;
}

ToolFormat::ToolFormat(const ChatProgram& program) {
  // Mistral's takes ids of nine letters and digits only.
  const ToolCall first{.id = kId, .name = kTool, .arguments = arguments_json()};
  const ToolCall second{.id = "tiercel02", .name = kOther, .arguments = arguments_json()};
  const std::string one = body_of(program, {first});
  std::string two;
  try {
    two = body_of(program, {first, second});
  } catch (const Error&) {
    // A template for one call at a time.
  }
  written_ = one + two;
  const auto is_general = [&] {  // what is read by has nothing of this call
    return std::ranges::none_of(std::initializer_list<std::string_view>{marker_, middle_, behind_id_, behind_name_, before_key_, behind_key_},
                                [](std::string_view part) { return part.find("tiercel") != part.npos; });
  };
  thinks_ = without_blanks_behind(program.generation_prompt("").view()).ends_with("<think>");
  const bool is_found = find_object(one, two) || find_arguments(one, two) || find_parameters(one, two);
  if (!is_found || !is_general() || !is_sound(two)) {
    fail(ErrorKind::kUsage, "the chat template writes calls of tools in a form that is not supported, or not at all");
  }
}

// Whether what the template writes is read as what it is: where several calls are in a form of their own, some would be lost.
bool ToolFormat::is_sound(std::string_view two) const {
  const Tools tools{std::string(kToolsJson)};
  const size_t n = two.find(kOther) == two.npos ? 0 : 2;
  return n == 0 || read(two, tools).calls.size() == n;
}

// arguments: where what is given begins.
void ToolFormat::set_call(std::string_view one, size_t arguments) {
  const size_t name = one.find(kTool), name_end = name + std::string_view(kTool).size();
  if (name == one.npos || arguments < name_end) return;  // the name comes last: nothing to begin with
  const size_t thought = one.substr(0, name).rfind("</think>");
  const size_t begin = thought == one.npos ? 0 : thought + 8;
  before_name_ = without_blanks_before(one.substr(begin, name - begin));
  from_name_ = one.substr(name_end, arguments - name_end);
  if (from_name_.find("tiercel") != std::string::npos) from_name_.clear();  // an id, which the model may give
}

// before: the first call, in an answer that says nothing else. between: from the end of a call to the beginning of the next
// one, or empty where that is not known.
void ToolFormat::set_beginning(std::string_view before, std::string_view between) {
  // What is thought comes before.
  if (const size_t thought = before.rfind("</think>"); thought != before.npos) before.remove_prefix(thought + 8);
  is_list_ = trimmed(between) == "," || (between.empty() && trimmed(before).ends_with('['));
  if (is_list_ && trimmed(before).ends_with('[')) before = before.substr(0, before.rfind('['));
  before = trimmed(before);
  size_t begin = before.size() - common_suffix(before, without_blanks_behind(between));
  // From where a tag begins: what is common may begin within one.
  if (const size_t tag = before.find_last_of("<[", begin == before.size() ? before.npos : begin); tag != before.npos) {
    const bool is_within = tag < begin && before.substr(tag, begin - tag).find_first_of(">]\n") == before.npos;
    if (is_within) begin = std::min(before.find_first_of("<[", begin), before.size());
  }
  if (trimmed(before.substr(begin)).empty()) begin = 0;
  // Lines are parts, as some models write another one.
  if (const size_t line = before.rfind('\n'); line != before.npos) begin = std::max(begin, line + 1);
  marker_ = trimmed(before.substr(begin));
  for (size_t at = 0; at < begin;) {
    const size_t line = std::min(before.find('\n', at), begin);
    std::string_view part = trimmed(before.substr(at, line - at));
    part = part.substr(0, part.find("tiercel"));  // up to an id
    if (!part.empty()) openings_.emplace_back(part);
    at = line + 1;
  }
}

bool ToolFormat::find_object(std::string_view one, std::string_view two) {
  const auto is_name = [](const char* name) { return [name](const Json& value) { return value == name; }; };
  const auto is_call = [&](std::string_view text, const char* name) {
    const Json json = Json::parse(object_in(text), nullptr, false);
    if (!json.is_object()) return false;
    name_path_ = place_in(json, is_name(name));
    arguments_path_ = place_in(json, is_wanted_arguments);
    return !name_path_.empty() && !arguments_path_.empty();
  };
  const auto find_call = [&](std::string_view text, const char* name, size_t from) -> std::pair<size_t, size_t> {
    for (size_t at = text.find('{', from); at != text.npos; at = text.find('{', at + 1)) {
      const size_t n = object_size(text.substr(at));
      if (n > 0 && is_call(text.substr(at, n), name)) return {at, at + n};
    }
    return {0, 0};
  };
  const auto [begin, end] = find_call(one, kTool, 0);
  if (end == 0) return false;
  std::string_view between;
  const auto [first, first_end] = find_call(two, kTool, 0);
  const auto [next, next_end] = find_call(two, kOther, first_end);
  if (first_end > 0 && next_end > 0) between = two.substr(first_end, next - first_end);
  find_call(one, kTool, 0);  // whose paths count
  shape_ = Shape::kObject;
  set_beginning(one.substr(0, begin), between);
  closing_ = trimmed(one.substr(end));
  set_call(one, one.rfind('{', one.find(kTextKey)));
  return true;
}

bool ToolFormat::find_arguments(std::string_view one, std::string_view two) {
  struct Found {
    size_t name = 0, object = 0, end = 0;
  };
  const auto find_call = [](std::string_view text, std::string_view name, size_t from) -> std::optional<Found> {
    const size_t place = text.find(name, from);
    if (place == text.npos) return std::nullopt;
    const size_t object = text.find('{', place + name.size());
    if (object == text.npos) return std::nullopt;
    const Json json = Json::parse(object_in(text.substr(object)), nullptr, false);
    if (!is_wanted_arguments(json)) return std::nullopt;
    return Found{place, object, object + object_size(text.substr(object))};
  };
  const auto call = find_call(one, kTool, 0);
  if (!call) return false;
  const auto middle_of = [](std::string_view text, const Found& found, std::string_view name) {
    return trimmed(text.substr(found.name + name.size(), found.object - found.name - name.size()));
  };
  std::string_view between, middle = middle_of(one, *call, kTool), other = middle;
  if (const auto first = find_call(two, kTool, 0)) {
    if (const auto next = find_call(two, kOther, first->end)) {
      between = two.substr(first->end, next->name - first->end);
      other = middle_of(two, *next, kOther);
    }
  }
  shape_ = Shape::kArguments;
  set_beginning(one.substr(0, call->name), between);
  middle_ = middle;
  // An id may be in it, or a number that counts calls.
  const size_t id = middle.find(kId), n_same = common_prefix(middle, other);
  if (id != middle.npos) {
    middle_ = middle.substr(0, id);
    behind_id_ = middle.substr(id + std::string_view(kId).size());
  } else if (middle != other) {
    middle_ = middle.substr(0, n_same);
    behind_id_ = middle.substr(middle.size() - std::min(middle.size() - n_same, common_suffix(middle, other)));
  }
  if ((id != middle.npos || middle != other) && behind_id_.empty()) return false;
  closing_ = trimmed(one.substr(call->end));
  set_call(one, call->object);
  return true;
}

bool ToolFormat::find_parameters(std::string_view one, std::string_view two) {
  size_t at = 0;
  const auto behind = [&](std::string_view what) {  // what is before it; npos behind it: it is not there
    const size_t found = at == one.npos ? one.npos : one.find(what, at);
    const std::string_view before = found == one.npos ? std::string_view() : one.substr(at, found - at);
    at = found == one.npos ? found : found + what.size();
    return before;
  };
  const std::string_view before = behind(kTool), to_key = behind(kTextKey), to_text = behind(kText), to_next = behind(kNumberKey),
                         to_number = behind(kNumber);
  if (at == one.npos || to_text != to_number) return false;
  // From where a tag begins: what is common may begin within one.
  const std::string_view end = one.substr(at), common = to_next.substr(to_next.size() - common_suffix(to_key, to_next));
  const std::string_view before_key = common.substr(std::min(common.find_first_of("<["), common.size()));
  before_key_ = trimmed(before_key.empty() ? common : before_key);
  const auto without_key = [&](std::string_view text) { return trimmed(text.substr(0, text.size() - (before_key.empty() ? common : before_key).size())); };
  behind_name_ = without_key(to_key);
  behind_value_ = without_key(to_next);
  behind_key_ = trimmed(to_text);
  std::string_view rest = end;
  if (before_key_.empty() || behind_key_.empty() || behind_value_.empty() || !take(rest, behind_value_)) return false;
  closing_ = trimmed(rest);
  if (closing_.empty()) return false;  // nothing says that a call has ended
  std::string_view between;
  const size_t first = two.find(kNumber), next = two.find(kOther);
  if (first != two.npos && next != two.npos && first < next) {
    between = two.substr(first + std::string_view(kNumber).size(), next - first - std::string_view(kNumber).size());
    take(between, behind_value_);
  }
  shape_ = Shape::kParameters;
  set_call(one, before.size() + std::string_view(kTool).size());
  set_beginning(before, between);
  return !marker_.empty();
}

// ---- reading ----

bool ToolFormat::read_object(std::string_view& text, const Tools& tools, ToolCall& call) const {
  const std::string object = object_in(text);
  if (object.empty()) return false;
  const std::string name = member_of(object, name_path_);
  if (!name.starts_with('"')) return false;
  call.name = Json::parse(name).get<std::string>();
  // Some models say the one for the other.
  std::string given;
  for (const std::string_view path : {std::string_view(arguments_path_), std::string_view("/arguments"), std::string_view("/parameters")}) {
    if (given.empty()) given = member_of(object, path);
  }
  const auto arguments = arguments_of(given);
  // An answer that is nothing but an object may be one that is wanted.
  if (!tools.has(call.name) || !arguments || (given.empty() && marker_.empty())) return false;
  call.arguments = *arguments;
  text.remove_prefix(object_size(text));
  return true;
}

bool ToolFormat::read_arguments(std::string_view& text, const Tools& tools, ToolCall& call) const {
  call.name = std::string(tools.name_at(text));
  if (call.name.empty()) return false;
  std::string_view rest = without_blanks_before(text.substr(call.name.size()));
  if (!take(rest, middle_)) return false;
  if (!behind_id_.empty()) {
    const size_t id_end = rest.find(behind_id_);
    if (id_end == rest.npos) return false;
    rest = rest.substr(id_end + behind_id_.size());
  }
  rest = without_blanks_before(rest);
  call.arguments = object_in(rest);
  if (call.arguments.empty()) return false;
  text = rest.substr(object_size(rest));
  return true;
}

// What a value without quotes means, as JSON.
std::string json_of(std::string_view value, bool is_text) {
  if (!is_text) {
    for (const auto& [python, json] : {std::pair("True", "true"), std::pair("False", "false"), std::pair("None", "null")}) {
      if (trimmed(value) == python) return json;
    }
    const std::string_view bare = trimmed(value);
    const bool is_list = bare.starts_with('[');
    const size_t n = bare.starts_with('{') ? object_size(bare) : is_list ? 0 : bare.size();
    if (is_list) {  // as what an object holds
      const std::string object = object_in("{\"a\":" + std::string(bare) + "}");
      if (!object.empty()) return ordered_member(object, std::array{std::string_view("a")});
    } else if (n == bare.size() && n > 0 && Json::accept(bare)) {
      return ordered_member("{\"a\":" + std::string(bare) + "}", std::array{std::string_view("a")});
    }
  }
  return dump(Json(std::string(value)));
}

bool ToolFormat::read_parameters(std::string_view& text, const Tools& tools, ToolCall& call) const {
  call.name = std::string(tools.name_at(text));
  if (call.name.empty()) return false;
  std::string_view rest = without_blanks_before(text.substr(call.name.size()));
  if (!take(rest, behind_name_)) return false;
  std::string arguments;
  for (rest = without_blanks_before(rest); take(rest, before_key_); rest = without_blanks_before(rest)) {
    // Up to the value, and its end, whatever white space there is.
    const size_t key_end = rest.find(behind_key_.substr(0, behind_key_.find_first_of(kBlanks)));
    if (key_end == rest.npos) return false;
    const std::string key(trimmed(rest.substr(0, key_end)));
    rest.remove_prefix(key_end);
    const size_t n_behind_key = match(rest, behind_key_);
    const size_t value_end = n_behind_key == rest.npos ? rest.npos : rest.find(behind_value_, n_behind_key);
    if (value_end == rest.npos) return false;
    // A line break each is the form's, the rest the value's.
    std::string_view value = rest.substr(n_behind_key, value_end - n_behind_key);
    if (value.starts_with('\n')) value.remove_prefix(1);
    if (value.ends_with('\n')) value.remove_suffix(1);
    arguments += fmt::format("{}{}:{}", arguments.empty() ? "" : ",", dump(Json(key)), json_of(value, tools.is_text(call.name, key)));
    rest.remove_prefix(value_end + behind_value_.size());
  }
  // What has no end was cut off.
  if (match(rest, closing_.substr(0, closing_.find('>', 1) + 1)) == rest.npos) return false;
  call.arguments = "{" + arguments + "}";
  text = rest;
  return true;
}

bool ToolFormat::read_call(std::string_view& text, const Tools& tools, ToolCall& call) const {
  switch (shape_) {
    case Shape::kObject: return read_object(text, tools, call);
    case Shape::kArguments: return read_arguments(text, tools, call);
    case Shape::kParameters: return read_parameters(text, tools, call);
  }
  return false;
}

// From the first call's marker on, which has been taken; up to what is behind the last call.
bool ToolFormat::read_calls(std::string_view& text, const Tools& tools, Answer& answer) const {
  std::string_view next = without_blanks_before(text);
  if (is_list_ && next.starts_with('[')) next = without_blanks_before(next.substr(1));
  ToolCall call;
  while (read_call(next, tools, call)) {
    answer.calls.push_back(std::move(call));
    text = next;
    next = without_blanks_before(next);
    if (shape_ == Shape::kObject && (next.starts_with(',') || next.starts_with(';'))) next = without_blanks_before(next.substr(1));
    if (marker_.empty() || (shape_ == Shape::kObject && next.starts_with('{'))) continue;
    const size_t marker = next.find(marker_);
    if (marker == next.npos) break;
    next = without_blanks_before(next.substr(marker + marker_.size()));
  }
  return !answer.calls.empty();
}

// Where an answer may begin to call.
size_t ToolFormat::end_of_thoughts(std::string_view text) const {
  constexpr std::string_view kBegin = "<think>", kEnd = "</think>";
  const bool begins = without_blanks_before(text).starts_with(kBegin);
  const size_t end = text.find(kEnd);
  if (!begins && !thinks_) return 0;
  return end != text.npos ? end + kEnd.size() : begins ? text.size() : 0;
}

ToolFormat::Answer ToolFormat::read(std::string_view text, const Tools& tools) const {
  constexpr int kMostFailures = 16;  // each may look at all that follows
  Answer answer;
  const size_t begin = end_of_thoughts(text);
  std::string_view rest;
  if (marker_.empty()) {
    rest = text.substr(begin);
    if (!read_calls(rest, tools, answer)) return {.content = std::string(text), .calls = {}};
    answer.content = std::string(without_blanks_behind(text.substr(0, begin)));
  } else {
    int n_failures = 0;
    size_t at = text.find(marker_, begin);
    for (; at != text.npos && n_failures < kMostFailures; at = text.find(marker_, at + marker_.size()), ++n_failures) {
      rest = text.substr(at + marker_.size());
      if (read_calls(rest, tools, answer)) break;
    }
    if (answer.calls.empty()) return {.content = std::string(text), .calls = {}};
    answer.content = std::string(without_openings(text.substr(0, at)));
  }
  // What closes calls, tag by tag; the rest was said.
  for (std::string_view closing = closing_; !closing.empty();) {
    const size_t n = std::min(closing.find('>', 1), closing.size() - 1) + 1;
    rest = without_blanks_before(rest);
    take(rest, closing.substr(0, n));
    closing = without_blanks_before(closing.substr(n));
  }
  if (const std::string_view behind = trimmed(rest); !behind.empty()) {
    answer.content += (answer.content.empty() ? "" : "\n\n") + std::string(behind);
  }
  return answer;
}

std::string_view ToolFormat::without_openings(std::string_view text) const {
  text = without_blanks_behind(text);
  for (auto opening = openings_.rbegin(); opening != openings_.rend(); ++opening) {
    if (text.ends_with(*opening)) text = without_blanks_behind(text.substr(0, text.size() - opening->size()));
  }
  return text;
}

bool ToolFormat::may_begin_with_call(std::string_view text, const Tools& tools) const {
  const std::string_view begin = without_blanks_before(text);
  if (begin.empty()) return true;
  if (shape_ == Shape::kObject) return begin[0] == '{' || (is_list_ && begin[0] == '[');
  return tools.may_begin(begin);
}

void ToolFormat::follow(std::string_view answer, const Tools& tools, Progress& progress) const {
  if (progress.calls) return;
  const size_t solid = answer.substr(progress.n_searched).find_last_not_of(kBlanks);
  if (solid != answer.npos) progress.n_solid = progress.n_searched + solid + 1;
  const size_t from = progress.n_searched;
  progress.n_searched = answer.size();
  // Thoughts call nothing, as long as they last; where a template begins them, that is not known before they end.
  const std::string_view begin = without_blanks_before(answer.substr(0, std::min<size_t>(answer.size(), 64)));
  const bool thinks = begin.starts_with("<think>") && end_of_thoughts(answer) == answer.size();
  if (std::string_view("<think>").starts_with(begin.substr(0, 7)) && begin.size() < 7) return;  // or may be about to
  if (thinks) {
    progress.n_before = progress.n_solid;
    return;
  }
  if (marker_.empty()) {
    const size_t thought = end_of_thoughts(answer);
    progress.calls = progress.n_before <= thought && may_begin_with_call(answer.substr(thought), tools);
    if (!progress.calls) progress.n_before = answer.size();
    // A blank may be followed by one, and a name by another one.
    progress.calls = progress.calls && !without_blanks_before(answer.substr(thought)).empty() && shape_ == Shape::kObject;
    return;
  }
  std::vector<std::string_view> beginnings(openings_.begin(), openings_.end());
  beginnings.push_back(marker_);
  size_t n = progress.n_solid;
  for (const std::string_view begin_of_call : beginnings) {
    // From where one may have begun before.
    const size_t since = std::max(progress.n_before, from - std::min(from, begin_of_call.size() - 1));
    if (const size_t found = answer.find(begin_of_call, since); found != answer.npos) {
      n = std::min(n, found);
      progress.calls = true;
    }
    // The end may be the beginning of one.
    for (size_t length = std::min(begin_of_call.size() - 1, answer.size() - progress.n_before); length > 0; --length) {
      if (!answer.ends_with(begin_of_call.substr(0, length))) continue;
      n = std::min(n, answer.size() - length);
      break;
    }
  }
  progress.n_before = without_blanks_behind(answer.substr(progress.n_before, n - progress.n_before)).size() + progress.n_before;
}

jinja::Text ToolFormat::beginning(const std::string& name) const {
  jinja::Budget budget = jinja::budget_of_input();
  jinja::TextWriter text(budget);
  text.add(before_name_);
  if (name.empty()) return text.take();
  // Within a JSON text, without its quotes.
  const std::string quoted = dump(Json(name));
  text.add(shape_ == Shape::kObject ? quoted.substr(1, quoted.size() - 2) : name, /*foreign=*/true);
  text.add(from_name_);
  return text.take();
}

std::vector<int32_t> ToolFormat::special_tokens(const Tokenizer& tokenizer) const {
  std::vector<int32_t> tokens;
  for (const TextSegment& segment : tokenizer.split_special(written_)) {
    if (segment.token >= 0 && std::ranges::find(tokens, segment.token) == tokens.end()) tokens.push_back(segment.token);
  }
  return tokens;
}

}  // namespace tiercel
