#include "engine/text/tool_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "engine/base/check.h"
#include "engine/json.h"

namespace tiercel {
namespace {

using Json = nlohmann::ordered_json;

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

// The length of the JSON object that a text begins with; 0: it does not end, or there is none.
size_t object_size(std::string_view text) {
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
      ++depth;
    } else if (c == '}' || c == ']') {
      if (--depth == 0) return c == '}' ? at + 1 : 0;
    }
    if (depth == 0) return 0;
  }
  return 0;
}

// Of what a model has written: anything. Deep nesting would take the stack.
std::optional<Json> object_in(std::string_view text) {
  constexpr int kMostDepth = 64;
  int depth = 0, deepest = 0;
  for (const char c : text) {
    if (c == '{' || c == '[') deepest = std::max(deepest, ++depth);
    if (c == '}' || c == ']') --depth;
  }
  if (deepest > kMostDepth) return std::nullopt;
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;
  return json;
}

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// The arguments of a call: an object, or a text that is one.
std::optional<std::string> arguments_of(const Json& value) {
  if (value.is_object()) return dump(value);
  if (!value.is_string()) return std::nullopt;
  const std::optional<Json> json = object_in(value.get_ref<const std::string&>());
  if (!json) return std::nullopt;
  return dump(*json);
}

bool is_wanted_arguments(const Json& value) {
  const auto json = arguments_of(value);
  return json && nlohmann::json::parse(*json) == nlohmann::json::parse(arguments_json());
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

}  // namespace

Tools::Tools(std::string json) : json_(std::move(json)) {
  const std::string place = "tools";
  const nlohmann::json parsed = parse_json(json_, place);
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
    for (const auto& [key, schema] : properties->raw().items()) {
      entry->second[key] = schema.is_object() && schema.contains("type") && schema["type"] == "string";
    }
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
  const bool is_found = find_object(one, two) || find_arguments(one, two) || find_parameters(one, two);
  if (!is_found || !is_general()) {
    fail(ErrorKind::kUsage, "the chat template writes calls of tools in a form that is not supported, or not at all");
  }
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
    if (const std::string_view part = trimmed(before.substr(at, line - at)); !part.empty()) openings_.emplace_back(part);
    at = line + 1;
  }
}

bool ToolFormat::find_object(std::string_view one, std::string_view two) {
  const auto is_name = [](const char* name) { return [name](const Json& value) { return value == name; }; };
  const auto is_call = [&](std::string_view text, const char* name) {
    const std::optional<Json> json = object_in(text);
    if (!json) return false;
    name_path_ = place_in(*json, is_name(name));
    arguments_path_ = place_in(*json, is_wanted_arguments);
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
    const size_t n = object_size(text.substr(object));
    const std::optional<Json> json = object_in(text.substr(object, n));
    if (!json || !is_wanted_arguments(*json)) return std::nullopt;
    return Found{place, object, object + n};
  };
  const auto call = find_call(one, kTool, 0);
  if (!call) return false;
  std::string_view between;
  if (const auto first = find_call(two, kTool, 0)) {
    if (const auto next = find_call(two, kOther, first->end)) between = two.substr(first->end, next->name - first->end);
  }
  shape_ = Shape::kArguments;
  set_beginning(one.substr(0, call->name), between);
  const size_t name_end = call->name + std::string_view(kTool).size();
  middle_ = trimmed(one.substr(name_end, call->object - name_end));
  if (const size_t id = middle_.find(kId); id != middle_.npos) {
    behind_id_ = middle_.substr(id + std::string_view(kId).size());
    middle_.resize(id);
    if (behind_id_.empty()) return false;
  }
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
  const std::string_view end = one.substr(at);
  const size_t n_before_key = common_suffix(to_key, to_next);
  behind_value_ = to_next.substr(0, to_next.size() - n_before_key);
  if (n_before_key == 0 || trimmed(behind_value_).empty() || !end.starts_with(behind_value_)) return false;
  before_key_ = trimmed(to_next.substr(to_next.size() - n_before_key));
  behind_name_ = trimmed(to_key.substr(0, to_key.size() - n_before_key));
  behind_key_ = trimmed(to_text);
  behind_value_ = trimmed(behind_value_);
  if (before_key_.empty() || behind_key_.empty()) return false;
  std::string_view between;
  const size_t first = two.find(kNumber), next = two.find(kOther);
  if (first != two.npos && next != two.npos && first < next) {
    const std::string_view left = two.substr(first + std::string_view(kNumber).size(), next - first - std::string_view(kNumber).size());
    between = left.substr(std::min(left.size(), behind_value_.size()));
  }
  shape_ = Shape::kParameters;
  set_call(one, before.size() + std::string_view(kTool).size());
  set_beginning(before, between);
  return !marker_.empty();
}

// ---- reading ----

bool ToolFormat::read_object(std::string_view& text, const Tools&, ToolCall& call) const {
  const size_t n = object_size(text);
  const std::optional<Json> json = object_in(text.substr(0, n));
  if (!json) return false;
  const Json::json_pointer name(name_path_), arguments(arguments_path_);
  if (!json->contains(name) || !json->at(name).is_string()) return false;
  call.name = json->at(name).get<std::string>();
  call.arguments = "{}";
  // Some models say the one for the other.
  for (const char* other : {arguments_path_.c_str(), "/arguments", "/parameters"}) {
    const Json::json_pointer place(other);
    if (!json->contains(place)) continue;
    const auto given = arguments_of(json->at(place));
    if (!given) return false;
    call.arguments = *given;
    break;
  }
  text.remove_prefix(n);
  return true;
}

bool ToolFormat::read_arguments(std::string_view& text, const Tools& tools, ToolCall& call) const {
  call.name = std::string(tools.name_at(text));
  if (call.name.empty()) return false;
  std::string_view rest = without_blanks_before(text.substr(call.name.size()));
  if (!rest.starts_with(middle_)) return false;
  rest = without_blanks_before(rest.substr(middle_.size()));
  if (!behind_id_.empty()) {
    const size_t id_end = rest.find(behind_id_);
    if (id_end == rest.npos) return false;
    rest = without_blanks_before(rest.substr(id_end + behind_id_.size()));
  }
  const size_t n = object_size(rest);
  const std::optional<Json> json = object_in(rest.substr(0, n));
  if (!json) return false;
  call.arguments = dump(*json);
  text = rest.substr(n);
  return true;
}

bool ToolFormat::read_parameters(std::string_view& text, const Tools& tools, ToolCall& call) const {
  call.name = std::string(tools.name_at(text));
  if (call.name.empty()) return false;
  std::string_view rest = without_blanks_before(text.substr(call.name.size()));
  if (!rest.starts_with(behind_name_)) return false;
  rest.remove_prefix(behind_name_.size());
  Json arguments = Json::object();
  for (;;) {
    const std::string_view next = without_blanks_before(rest);
    if (!next.starts_with(before_key_)) break;
    const size_t key_begin = before_key_.size(), key_end = next.find(behind_key_, key_begin);
    if (key_end == next.npos) return false;
    const size_t value_begin = key_end + behind_key_.size(), value_end = next.find(behind_value_, value_begin);
    if (value_end == next.npos) return false;
    const std::string key(trimmed(next.substr(key_begin, key_end - key_begin)));
    // A line break each is the form's, the rest the value's.
    std::string_view value = next.substr(value_begin, value_end - value_begin);
    if (value.starts_with('\n')) value.remove_prefix(1);
    if (value.ends_with('\n')) value.remove_suffix(1);
    Json parsed = tools.is_text(call.name, key) ? Json(Json::value_t::discarded) : Json::parse(value, nullptr, false);
    arguments[key] = parsed.is_discarded() ? Json(std::string(value)) : std::move(parsed);
    rest = next.substr(value_end + behind_value_.size());
  }
  call.arguments = dump(arguments);
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

// From the first call's marker on, which has been taken.
bool ToolFormat::read_calls(std::string_view text, const Tools& tools, Answer& answer) const {
  text = without_blanks_before(text);
  if (is_list_ && text.starts_with('[')) text = without_blanks_before(text.substr(1));
  for (;;) {
    ToolCall call;
    if (!read_call(text, tools, call)) break;
    answer.calls.push_back(std::move(call));
    std::string_view next = without_blanks_before(text);
    if (is_list_ && next.starts_with(',')) {
      text = without_blanks_before(next.substr(1));
      continue;
    }
    if (shape_ == Shape::kObject && next.starts_with('{')) {
      text = next;
      continue;
    }
    const size_t marker = marker_.empty() ? next.npos : next.find(marker_);
    if (marker == next.npos) break;
    text = without_blanks_before(next.substr(marker + marker_.size()));
  }
  return !answer.calls.empty();
}

ToolFormat::Answer ToolFormat::read(std::string_view text, const Tools& tools) const {
  Answer answer;
  if (marker_.empty()) {
    if (read_calls(text, tools, answer)) return answer;
  } else {
    for (size_t at = text.find(marker_); at != text.npos; at = text.find(marker_, at + marker_.size())) {
      if (!read_calls(text.substr(at + marker_.size()), tools, answer)) continue;
      answer.content = std::string(without_openings(text.substr(0, at)));
      return answer;
    }
  }
  return {.content = std::string(text), .calls = {}};
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

size_t ToolFormat::n_before_calls(std::string_view answer, size_t n_known, const Tools& tools) const {
  if (marker_.empty()) return n_known == 0 && may_begin_with_call(answer, tools) ? 0 : answer.size();
  const std::string_view text = answer.substr(n_known);
  std::vector<std::string_view> beginnings(openings_.begin(), openings_.end());
  beginnings.push_back(marker_);
  size_t n = text.size();
  for (const std::string_view begin : beginnings) {
    n = std::min(n, text.find(begin));
    // Its end may be the beginning of one.
    for (size_t length = std::min(begin.size() - 1, text.size()); length > 0; --length) {
      if (!text.ends_with(begin.substr(0, length))) continue;
      n = std::min(n, text.size() - length);
      break;
    }
  }
  return n_known + without_blanks_behind(text.substr(0, n)).size();
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
