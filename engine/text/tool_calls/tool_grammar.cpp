// Answers that call to the letter: what a template writes around names and arguments, as a grammar.
#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/grammar/json_text.h"
#include "engine/text/grammar/token_trie.h"
#include "engine/text/json_schema/json_schema.h"
#include "engine/text/json_schema/json_values.h"
#include "engine/text/json_schema/schema_document.h"
#include "engine/text/tool_calls/model_text.h"
#include "engine/text/tool_calls/probe_call.h"
#include "engine/text/tool_calls/tool_format.h"

namespace tiercel {
namespace {

using namespace probe_call;
using namespace grammar;
using Json = nlohmann::json;

bool is_of_this_call(std::string_view text) { return text.find("tiercel") != text.npos; }

// Where the arguments of the first call behind `from` begin and end, as an object; {0, 0}: they are none.
std::pair<size_t, size_t> object_behind(std::string_view text, size_t from) {
  const size_t key = text.find(kTextKey, from);
  const size_t begin = key == text.npos ? key : text.rfind('{', key);
  if (begin == text.npos || begin < from) return {0, 0};
  const size_t n = object_size(text.substr(begin));
  const Json json = Json::parse(text.substr(begin, n), nullptr, false);
  return n > 0 && json == Json::parse(arguments_json()) ? std::pair{begin, begin + n} : std::pair<size_t, size_t>{0, 0};
}

Expr anything() { return without("\xFE\xFF"); }

}  // namespace

// Needs all but what is said of one call by set_call.
void ToolFormat::find_writing(std::string_view one, std::string_view two) {
  const auto behind_name = [](std::string_view text, std::string_view name, size_t from) {
    const size_t found = text.find(name, from);
    return found == text.npos ? found : found + name.size();
  };
  const size_t name_end = behind_name(one, kTool, 0);
  if (before_name_.empty() && marker_.empty() && shape_ != Shape::kArguments) return;
  if (name_end == one.npos || (shape_ != Shape::kParameters && from_name_.empty())) return;
  Writing writing;
  size_t first_end = 0;  // of the arguments, in `two`
  if (shape_ == Shape::kParameters) {
    const size_t first = one.find(kTextKey), word = one.find(kText), second = one.find(kNumberKey),
                 number = one.find(kNumber);
    if (number == one.npos || first < name_end) return;
    const std::string_view to_first = one.substr(name_end, first - name_end);
    const size_t word_end = word + std::string_view(kText).size(),
                 number_end = number + std::string_view(kNumber).size();
    const std::string_view to_second = one.substr(word_end, second - word_end);
    writing.key =
        one.substr(first + std::string_view(kTextKey).size(), word - first - std::string_view(kTextKey).size());
    size_t n_key = common_suffix(to_first, to_second);
    n_key -= std::min(to_first.substr(to_first.size() - n_key).find_first_of("<["), n_key);
    if (n_key == 0) return;
    writing.next_key = to_first.substr(to_first.size() - n_key);
    writing.first_key = to_first.substr(0, to_first.size() - n_key);
    writing.value = to_second.substr(0, to_second.size() - n_key);
    std::string_view rest = one.substr(number_end);
    if (writing.value.empty() || !rest.starts_with(writing.value)) return;
    writing.behind = rest.substr(writing.value.size());
    const size_t in_two = behind_name(two, kNumber, 0);
    first_end =
        in_two == two.npos || !two.substr(in_two).starts_with(writing.value) ? 0 : in_two + writing.value.size();
  } else {
    const auto [begin, end] = object_behind(one, name_end);
    if (end == 0 || one.substr(name_end, begin - name_end) != from_name_) return;
    writing.behind = one.substr(end);
    const size_t in_two = behind_name(two, kTool, 0);
    first_end = in_two == two.npos ? 0 : object_behind(two, in_two).second;
  }
  // An answer that calls may end with a token of its own, of which a part was taken for the end of any.
  if (const size_t tag = writing.behind.rfind("<|"); tag != writing.behind.npos) {
    if (writing.behind.find('>', tag) == writing.behind.npos) writing.behind.resize(tag);
  }
  if (const size_t next = two.find(kOther, first_end); first_end > 0 && next != two.npos) {
    writing.between = std::string(two.substr(first_end, next - first_end));
    // Not where a number counts calls.
    const bool is_same =
        shape_ == Shape::kParameters || two.substr(behind_name(two, kOther, next)).starts_with(from_name_);
    if (is_of_this_call(*writing.between) || !is_same) writing.between.reset();
  }
  for (const std::string* part : {&before_name_, &from_name_, &writing.behind, &writing.key, &writing.value}) {
    if (shape_ == Shape::kParameters && part == &from_name_) continue;
    if (is_of_this_call(*part)) return;
  }
  writing_ = std::move(writing);
}

namespace {

// The arguments of calls that write a tag for each parameter.
class TaggedArguments {
 public:
  struct Tags {
    Expr first_key, key, value, next_key;
    std::string value_end;  // as bytes
  };
  TaggedArguments(Grammar& grammar, const Tools& tools, std::string name, Tags tags)
      : grammar_(grammar), tools_(tools), name_(std::move(name)), tags_(std::move(tags)) {}

  // Any of the parameters that are declared, in any order.
  Expr any() {
    std::vector<Expr> keys;
    const Tools::Tool& tool = tools_.tools().at(name_);
    if (!tool.parameters.empty()) {
      const SchemaDocument document(tool.parameters, name_);
      if (const SchemaNode* properties = document.root()->find("properties")) {
        for (const auto& property : properties->parts) keys.push_back(text(property->name));
      }
    }
    if (keys.empty()) return tags_.first_key;
    const Expr one = as_rule(grammar_, name_ + " (a parameter)",
                             sequence({tags_.next_key, choice(keys), tags_.key, up_to(tags_.value_end)}));
    return sequence({tags_.first_key, repeat(one, 0, kUnlimited)});
  }

  // By their schema, in its order.
  Expr by_schema() {
    const SchemaDocument document(tools_.tools().at(name_).parameters, name_ + ": parameters");
    const SchemaNode* root = document.root();
    for (const auto& keyword : root->parts) {
      constexpr std::string_view kKnown[] = {"type",   "properties",  "required",    "additionalProperties",
                                             "$defs",  "definitions", "description", "title",
                                             "$schema"};
      if (std::ranges::find(kKnown, keyword->name) == std::end(kKnown)) {
        document.refuse_as(keyword.get(),
                           "this model writes a tag for each parameter, which is not held to this keyword");
      }
    }
    const SchemaNode *properties = root->find("properties"), *required = root->find("required");
    std::vector<Expr> parts = {tags_.first_key};
    for (size_t i = 0; properties != nullptr && i < properties->parts.size(); ++i) {
      const SchemaNode& property = *properties->parts[i];
      const bool must = required != nullptr && std::ranges::any_of(required->parts, [&](const auto& name) {
                          return name->text == property.name;
                        });
      const Expr one = sequence({tags_.next_key, text(property.name), tags_.key, value(document, property)});
      parts.push_back(must ? one : optional(one));
    }
    return sequence(std::move(parts));
  }

 private:
  Expr value(const SchemaDocument& document, const SchemaNode& schema) {
    if (!tools_.is_text(name_, schema.name)) {
      std::string whole = "{\"allOf\":[" + to_json(schema) + "]";
      for (const char* definitions : {"$defs", "definitions"}) {
        const SchemaNode* found = document.root()->find(definitions);
        if (found != nullptr) whole += fmt::format(",\"{}\":{}", definitions, to_json(*found));
      }
      return sequence({add_json_schema(grammar_, whole + "}", document.place(&schema)), tags_.value});
    }
    std::vector<Expr> given;
    for (const auto& keyword : schema.parts) {
      if (keyword->name == "enum") {
        for (const auto& one : keyword->parts) given.push_back(text(one->text));
      } else if (keyword->name != "type" && keyword->name != "description" && keyword->name != "title" &&
                 keyword->name != "default") {
        document.refuse_as(keyword.get(), "this model writes texts without quotes, which are not held to this keyword");
      }
    }
    return given.empty() ? up_to(tags_.value_end) : sequence({choice(std::move(given)), tags_.value});
  }

  Grammar& grammar_;
  const Tools& tools_;
  std::string name_;
  Tags tags_;
};

}  // namespace

Grammar ToolFormat::grammar(const Tools& tools, const Calls& calls, const Tokenizer& tokenizer) const {
  CHECK(writing_.has_value());
  Grammar grammar = calls.otherwise.value_or(Grammar());
  const auto written = [&](std::string_view part) { return text(written_with_special(tokenizer, part)); };
  const auto arguments = [&](const std::string& name, const Tools::Tool& tool) {
    const bool by_schema = tool.is_strict && !tool.parameters.empty();
    if (shape_ != Shape::kParameters) {
      return by_schema ? add_json_schema(grammar, tool.parameters, name + ": parameters")
                       : JsonValues(grammar).object();
    }
    TaggedArguments tagged(grammar, tools, name,
                           {written(writing_->first_key), written(writing_->key), written(writing_->value),
                            written(writing_->next_key), written_with_special(tokenizer, writing_->value)});
    return by_schema ? tagged.by_schema() : tagged.any();
  };
  // From a name on: the call, and what follows it.
  const auto call = static_cast<int32_t>(grammar.rules.size());
  grammar.rules.push_back({"a call", nullptr});
  Expr behind = written(writing_->behind);
  if (calls.several && writing_->between) {
    behind = choice({behind, sequence({written(*writing_->between), rule(call)})});
  }
  std::vector<Expr> some;
  Expr only;
  for (const auto& [name, tool] : tools.tools()) {
    const Expr given = arguments(name, tool);
    if (name == calls.name) only = given;
    some.push_back(sequence({text(spelled(name)), written(from_name_), given}));
  }
  const Expr next = as_rule(grammar, "behind a call", behind);
  grammar.rules[static_cast<size_t>(call)].body = sequence({choice(std::move(some)), next});
  Expr root = rule(call);
  if (calls.from == From::kArguments) {
    // beginning(name) has what is before the arguments.
    CHECK(only != nullptr, "no tool {}", calls.name);
    root = sequence({only, next});
  } else if (calls.from == From::kAnswer) {
    const size_t marker = before_name_.rfind(marker_);
    if (calls.otherwise) {
      root = choice({rule(grammar.root), sequence({written(before_name_), root})});
    } else if (!marker_.empty() && marker != std::string::npos) {
      const std::string begin = written_with_special(tokenizer, marker_);
      root = choice(
          {without(begin),
           sequence({up_to(begin), written(std::string_view(before_name_).substr(marker + marker_.size())), root})});
    } else {
      // A call is all that an answer is, or none begins like one.
      const auto first =
          static_cast<char32_t>(static_cast<unsigned char>(before_name_.empty() ? '{' : before_name_[0]));
      root = choice(
          {sequence({written(before_name_), root}), text(""),
           sequence({choice({characters_except({{first, first}}), text(std::string(1, kSpecialMark))}), anything()})});
    }
  }
  grammar.rules.push_back({"answer", root});
  grammar.root = static_cast<int32_t>(grammar.rules.size() - 1);
  return grammar;
}

}  // namespace tiercel
