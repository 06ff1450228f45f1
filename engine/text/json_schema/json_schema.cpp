#include "engine/text/json_schema/json_schema.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/grammar/json_text.h"
#include "engine/text/grammar/recognizer.h"
#include "engine/text/grammar/regex.h"
#include "engine/text/json_schema/json_formats.h"
#include "engine/text/json_schema/json_objects.h"
#include "engine/text/json_schema/json_values.h"
#include "engine/text/json_schema/schema_constraints.h"

namespace tiercel::grammar {
namespace {

using Kind = SchemaNode::Kind;

constexpr size_t kMostCounted = 200'000;  // schemas, each as often as it is read, and digits of bounds

// A schema becomes an expression where it stands; one that is referred to, or that several ask for, becomes a rule,
// which waits its turn: so nothing is deeper than the document.
class SchemaCompiler {
 public:
  SchemaCompiler(Grammar& grammar, const SchemaDocument& document)
      : grammar_(grammar), document_(document), json_(grammar), reader_(document) {}

  Expr run() {
    const Expr whole = rule_for({document_.root()});
    while (!waiting_.empty()) {
      const auto [set, index] = std::move(waiting_.back());
      waiting_.pop_back();
      const Expr body = set.size() == 1 ? written_out(set.front()) : together(set);
      grammar_.rules[static_cast<size_t>(index)].body = body;
    }
    return whole;
  }

 private:
  // ---- schemas ----

  Expr rule_for(SchemaSet set) {
    const auto [it, is_new] = rules_.try_emplace(set, static_cast<int32_t>(grammar_.rules.size()));
    if (is_new) {
      grammar_.rules.push_back({document_.place(set.front()), nullptr});
      waiting_.emplace_back(std::move(set), it->second);
    }
    return rule(it->second);
  }

  // What satisfies all of these.
  Expr value(SchemaSet set) {
    std::erase_if(set, ConstraintReader::is_trivial);
    if (set.empty()) return json_.value();
    if (std::ranges::any_of(set, [](const SchemaNode* schema) { return schema->is(Kind::kFalse); })) return nothing();
    std::ranges::sort(set, {}, &SchemaNode::order);
    return set.size() == 1 && !becomes_rules_ ? written_out(set.front()) : rule_for(std::move(set));
  }

  Expr written_out(const SchemaNode* schema) {
    if (ConstraintReader::is_trivial(schema)) return json_.value();
    reader_.check(schema);
    const SchemaNode* only = ConstraintReader::only_keyword(schema);
    if (only != nullptr && only->name == "$ref") {
      const SchemaNode* target = document_.target(only);
      return ConstraintReader::is_trivial(target) ? json_.value() : rule_for({target});
    }
    const bool is_list = only != nullptr && (only->name == "anyOf" || only->name == "oneOf" || only->name == "allOf");
    if (!is_list || (only->name == "allOf" && only->parts.size() > 1)) return together({schema});
    std::vector<Expr> parts;
    for (const auto& part : only->parts) parts.push_back(value({part.get()}));
    return choice(std::move(parts));
  }

  Expr together(const SchemaSet& set) {
    count(1);
    const std::vector<Constraints> all = reader_.alternatives(set);
    const bool outer = std::exchange(becomes_rules_, false);
    std::vector<Expr> parts;
    for (const Constraints& one : all) {
      becomes_rules_ = all.size() > 1 || one.is_from_reference || set.size() > 1;
      parts.push_back(of(one, document_.place(set.front())));
    }
    becomes_rules_ = outer;
    return choice(std::move(parts));
  }

  void count(size_t n) {
    n_counted_ += n;
    if (n_counted_ <= kMostCounted) return;
    document_.refuse_as(document_.root(), "with what its references bring, this schema is too large");
  }

  Expr of(const Constraints& c, const std::string& place) {
    for (const auto* bound : {&c.range.lower, &c.range.upper}) {
      if (*bound) count((*bound)->value.whole.size() + (*bound)->value.fraction.size());
    }
    if (c.values) return given_values(c);
    uint8_t types = c.has_type ? c.types : c.spoken_of != 0 ? c.spoken_of : uint8_t{kAnyType};
    if (c.n_zeros >= 0) types &= ~kFraction;
    if (types == kAnyType && c.spoken_of == 0) return json_.value();
    std::vector<Expr> parts;
    if (types & kObject) parts.push_back(object(c, place));
    if (types & kArray) parts.push_back(array(c, place));
    if (types & kString) parts.push_back(string(c));
    if (types & kFraction) {
      parts.push_back(json_number(c.range));
    } else if (types & kInteger) {
      parts.push_back(json_integer(c.range, std::max(c.n_zeros, 0)));
    }
    if (types & kBoolean) parts.push_back(choice({text("true"), text("false")}));
    if (types & kNull) parts.push_back(text("null"));
    return choice(std::move(parts));
  }

  // ---- strings ----

  Expr string(const Constraints& c) {
    const bool has_length = c.length.least > 0 || c.length.most != kUnlimited;
    if (c.pattern != nullptr) {
      const Regex& regex = pattern(c.pattern);
      if (!keeps(regex, c.length)) {
        if (const auto counted = counted_characters(c)) return *counted;
        const std::string longest = regex.longest == kUnlimited ? "any number of" : std::to_string(regex.longest);
        document_.refuse(c.pattern, "a pattern that keeps minLength and maxLength by itself",
                         fmt::format("it lets through {} to {} characters; write the lengths into it as {{m,n}}",
                                     regex.shortest, longest));
      }
      return json_.string_of(regex.expression);
    }
    if (c.format != nullptr && !format_pattern(c.format->text).empty()) {
      const Regex regex = parse_regex(format_pattern(c.format->text), {.anchored = true, .json_string = true},
                                      document_.place(c.format));
      if (keeps(regex, c.length)) return json_.string_of(regex.expression);
    }
    if (!has_length) return json_.string();
    if (!c.length.is_possible()) return nothing();
    return json_.string_of(repeat(json_.character(), c.length.least, c.length.most));
  }

  // Of a pattern that repeats one set of characters, "^[a-z]+$", as often as the lengths have it.
  std::optional<Expr> counted_characters(const Constraints& c) const {
    const Expr e =
        parse_regex(c.pattern->text, {.anchored = false, .json_string = false}, document_.place(c.pattern)).expression;
    if (e->kind != Expression::Kind::kRepeat || e->parts[0]->kind != Expression::Kind::kCharacters) return std::nullopt;
    Counts counts = {std::max(e->least, c.length.least), c.length.most};
    if (counts.most == kUnlimited || (e->most != kUnlimited && e->most < counts.most)) counts.most = e->most;
    if (!counts.is_possible()) return nothing();
    return json_.string_of(repeat(json_characters(e->parts[0]->ranges), counts.least, counts.most));
  }

  const Regex& pattern(const SchemaNode* keyword) {
    const auto [it, is_new] = patterns_.try_emplace(keyword);
    if (is_new) {
      it->second = parse_regex(keyword->text, {.anchored = false, .json_string = true}, document_.place(keyword));
    }
    return it->second;
  }

  static bool keeps(const Regex& regex, const Counts& length) {
    if (regex.shortest < length.least) return false;
    return length.most == kUnlimited || (regex.longest != kUnlimited && regex.longest <= length.most);
  }

  static bool is_nothing(const Expr& e) { return e->kind == Expression::Kind::kChoice && e->parts.empty(); }

  // ---- objects ----

  Expr object(const Constraints& c, const std::string& place) {
    if (!c.n_properties.is_possible()) return nothing();
    const bool is_open = c.additional || !c.has_properties;
    JsonObjectForm form;
    Expr other = is_open ? value(c.additional.value_or(SchemaSet{})) : nullptr;
    if (other != nullptr && is_nothing(other)) other = nullptr;
    std::unordered_set<std::string_view> required(c.required.begin(), c.required.end()), known;
    for (const SchemaProperty& property : c.properties) {
      known.insert(property.name);
      form.members.push_back({property.name, value(property.schema), required.contains(property.name)});
    }
    for (const std::string& name : c.required) {
      if (known.contains(name)) continue;
      if (other == nullptr && c.additional) return nothing();
      form.members.push_back({name, other != nullptr ? other : json_.value(), true});
    }
    form.other_value = other;
    if (c.counts_properties != nullptr) count_properties(c, form);
    if (form.members.empty() && form.n_least == 0 && form.n_most == kUnlimited && is_open && !c.additional) {
      return json_.object();
    }
    return json_object_of(grammar_, json_, form, place);
  }

  // Others are counted; known ones that may be missing are not.
  void count_properties(const Constraints& c, JsonObjectForm& form) const {
    const auto n = static_cast<int64_t>(form.members.size());
    const auto n_required = std::ranges::count_if(form.members, &JsonMember::is_required);
    const bool is_open = form.other_value != nullptr;
    const bool is_kept = c.n_properties.least <= n_required &&
                         (c.n_properties.most == kUnlimited || (!is_open && n <= c.n_properties.most));
    if (is_kept) return;
    if (n_required < n) {
      document_.refuse_as(c.counts_properties, "optional `properties` are not counted; list the required ones instead");
    }
    form.n_least = std::max<int64_t>(c.n_properties.least - n, 0);
    if (c.n_properties.most == kUnlimited) return;
    form.n_most = c.n_properties.most - n;
    if (form.n_most < 0) {
      form.other_value = nullptr;
      form.n_least = 1;  // of nothing
    }
  }

  // ---- arrays ----

  Expr array(const Constraints& c, const std::string& place) {
    if (!c.n_items.is_possible()) return nothing();
    const bool has_one = c.n_items.most == 0 || c.n_items.most == 1;
    if (c.unique != nullptr && !has_one) {
      document_.refuse(c.unique, "false", "an answer cannot be held to this; remove it, if it may be ignored");
    }
    const int64_t least = c.n_items.least;
    const auto n_prefix = static_cast<int64_t>(c.prefix.size());
    const auto n = c.n_items.most == kUnlimited ? n_prefix : std::min(n_prefix, c.n_items.most);
    const int64_t n_others = c.n_items.most == kUnlimited ? kUnlimited : c.n_items.most - n;
    Expr other = nothing();
    if (n_others != 0) {
      other = value(c.items);
      if (!is_nothing(other)) other = as_rule(grammar_, place + " (an item)", other);
    }
    if (n == 0) {
      const Expr some = n_others == 0 ? nothing() : json_.list(other, std::max<int64_t>(least, 1), n_others);
      return json_.in_brackets('[', ']', some, least == 0);
    }
    // The first ones are there, or all are missing; behind each that may be the last one, the others are a rule.
    const int64_t n_head = std::clamp<int64_t>(least, 1, n);
    const auto element = [&](int64_t i) { return value(c.prefix[static_cast<size_t>(i)]); };
    Expr behind = repeat(json_.next(other), std::max<int64_t>(least - n, 0), n_others);
    for (int64_t i = n; i-- > n_head;) {
      behind = optional(as_rule(grammar_, place + " (items behind)", sequence({json_.next(element(i)), behind})));
    }
    std::vector<Expr> parts = {element(0)};
    for (int64_t i = 1; i < n_head; ++i) parts.push_back(json_.next(element(i)));
    parts.push_back(behind);
    return json_.in_brackets('[', ']', sequence(std::move(parts)), least == 0);
  }

  // ---- enum, const ----

  Expr given_values(const Constraints& c) {
    std::vector<Expr> parts;
    std::optional<Recognizer> by_pattern;
    if (c.pattern != nullptr) by_pattern.emplace(grammar_of(json_.string_of(pattern(c.pattern).expression)));
    for (const SchemaNode* node : *c.values) {
      if (is_allowed(*node, c, by_pattern)) parts.push_back(literal(*node));
    }
    return choice(std::move(parts));
  }

  // Whether a value that enum or const names satisfies the other keywords.
  bool is_allowed(const SchemaNode& node, const Constraints& c, std::optional<Recognizer>& by_pattern) const {
    switch (node.kind) {
      case Kind::kNull:
        return c.types & kNull;
      case Kind::kTrue:
      case Kind::kFalse:
        return c.types & kBoolean;
      case Kind::kNumber: {
        const auto number = parse_decimal(node.text);
        if (!number) document_.refuse(&node, fmt::format("a number of at most {} digits", kMostDigits));
        const bool is_integer = number->fraction.empty();
        if (!(c.types & (is_integer ? kInteger : kFraction)) || !contains(c.range, *number)) return false;
        if (c.n_zeros < 0 || number->whole == "0") return c.n_zeros < 0 || is_integer;
        const size_t last = number->whole.find_last_not_of('0');
        return is_integer && number->whole.size() - 1 - last >= static_cast<size_t>(c.n_zeros);
      }
      case Kind::kString: {
        const auto n = std::ranges::count_if(node.text, [](char c) { return (c & 0xC0) != 0x80; });
        if (!(c.types & kString) || !c.length.contains(n)) return false;
        if (!by_pattern) return true;
        const auto end = by_pattern->step(by_pattern->start(), nlohmann::json(node.text).dump());
        return end != Recognizer::kDead && by_pattern->is_match(end);
      }
      case Kind::kArray:
      case Kind::kObject: {
        const uint8_t type = node.is(Kind::kArray) ? kArray : kObject;
        if ((c.types & type) && (c.spoken_of & type)) {
          document_.refuse_as(&node, "beside other keywords about its type it is not checked; remove those or this");
        }
        return c.types & type;
      }
    }
    return false;
  }

  Expr literal(const SchemaNode& node) const {
    std::vector<Expr> parts;
    switch (node.kind) {
      case Kind::kNull:
        return text("null");
      case Kind::kTrue:
        return text("true");
      case Kind::kFalse:
        return text("false");
      case Kind::kString:
        return json_.string_of(json_string_text(node.text));
      case Kind::kNumber: {
        const auto number = parse_decimal(node.text);
        if (!number || to_text(*number) == node.text) return text(node.text);
        return choice({text(node.text), text(to_text(*number))});
      }
      case Kind::kArray:
        for (const auto& part : node.parts) parts.push_back(in_list(parts, literal(*part)));
        return json_.in_brackets('[', ']', node.parts.empty() ? nothing() : sequence(parts), node.parts.empty());
      case Kind::kObject:
        for (const auto& part : node.parts) {
          parts.push_back(in_list(parts, json_.member(json_.string_of(json_string_text(part->name)), literal(*part))));
        }
        return json_.in_brackets('{', '}', node.parts.empty() ? nothing() : sequence(parts), node.parts.empty());
    }
    return nothing();
  }
  Expr in_list(const std::vector<Expr>& before, const Expr& element) const {
    return before.empty() ? element : json_.next(element);
  }

  Grammar& grammar_;
  const SchemaDocument& document_;
  JsonValues json_;
  ConstraintReader reader_;
  std::map<SchemaSet, int32_t> rules_;
  std::map<const SchemaNode*, Regex> patterns_;
  std::vector<std::pair<SchemaSet, int32_t>> waiting_;
  bool becomes_rules_ = false;  // whatever is within the value that is being read
  size_t n_counted_ = 0;
};

}  // namespace

Expr add_json_schema(Grammar& grammar, std::string_view schema, const std::string& name) {
  const SchemaDocument document(schema, name);
  return SchemaCompiler(grammar, document).run();
}

Grammar parse_json_schema(std::string_view schema, const std::string& name) {
  Grammar grammar;
  grammar.root = add_json_schema(grammar, schema, name)->rule;
  return grammar;
}

}  // namespace tiercel::grammar
