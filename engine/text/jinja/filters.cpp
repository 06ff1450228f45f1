// What `value | filter` and `value is test` do.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <set>
#include <unordered_map>

#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/operations.h"
#include "engine/text/jinja/strings.h"
#include "engine/text/utf8.h"

namespace tiercel::jinja {
namespace {

// Digits as int() and float() take them: white space around them, _ between them.
std::optional<std::string> digits_of(const Text& text, Budget& budget) {
  const Text bare = stripped(text, nullptr, true, true, budget);
  std::string digits(bare.view());
  for (size_t at = digits.find('_'); at != digits.npos; at = digits.find('_', at + 1)) {
    const auto is_digit = [&](size_t i) { return i < digits.size() && digits[i] >= '0' && digits[i] <= '9'; };
    if (at == 0 || !is_digit(at - 1) || !is_digit(at + 1)) return std::nullopt;
  }
  for (size_t at = 0; at < digits.size();) {
    if (const char32_t c = read_code_point(digits, &at); c >= 0x80 && is_decimal(c))
      throw Problem("expected ASCII's digits");
  }
  std::erase(digits, '_');
  if (digits.starts_with('+') && digits.size() > 1 && digits[1] != '-' && digits[1] != '+') digits.erase(0, 1);
  return digits;
}

std::optional<double> real_of(const Text& text, Budget& budget) {
  const auto digits = digits_of(text, budget);
  if (!digits) return std::nullopt;
  double value = 0;
  const char* const end = digits->data() + digits->size();
  const auto [last, error] = std::from_chars(digits->data(), end, value);
  if (last != end || (error != std::errc() && error != std::errc::result_out_of_range)) return std::nullopt;
  if (error != std::errc()) throw Problem("expected a number that a double can hold");
  return value;
}

int64_t cut(double value) {
  if (!(std::abs(value) < 9e18)) throw Problem("expected a number of 64 bits");
  return static_cast<int64_t>(value);
}

// A key that is the same for elements that count as one.
std::string unique_key(const Value& value, Budget& budget) {
  if (value.is_undefined()) return "u";
  auto key = key_of(value, budget);
  if (!key) throw Problem(fmt::format("unique: values of type {} cannot be told apart", value.type()));
  return *key;
}

}  // namespace

// A path of names and indices, as in map(attribute="a.b.0"); None: the value itself.
// otherwise: what stands for what is missing; or null.
Value Interpreter::by_path(const Value& value, const Value& path, const Value* otherwise) {
  if (path.is_none()) return value;
  const auto or_other = [&](Value found) { return found.is_undefined() && otherwise != nullptr ? *otherwise : found; };
  if (path.text() == nullptr) return or_other(item(value, path));
  const std::string_view view = path.text()->view();
  Value at = value;
  for (size_t begin = 0; begin <= view.size();) {
    const size_t dot = std::min(view.find('.', begin), view.size());
    const std::string_view part = view.substr(begin, dot - begin);
    const bool is_index =
        !part.empty() && part.size() < 10 && std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
    budget_.step();
    at = or_other(is_index ? item(at, Value(static_cast<int64_t>(std::stoll(std::string(part)))))
                           : item(at, Value(Text::native(std::string(part)))));
    begin = dot + 1;
  }
  return at;
}

// select, reject, selectattr, rejectattr.
Value Interpreter::selected(const Arguments& a, bool by_attribute, bool wanted) {
  const size_t first = by_attribute ? 2 : 1;  // where a test's name would be
  if (a.positional.size() < first) throw Problem("expected the name of an attribute");
  ListMaker kept(budget_);
  if (a.positional[0].truthy()) {
    for (const Value& candidate : Iteration(a.positional[0], budget_)) {
      Arguments of_test;
      of_test.positional.push_back(by_attribute ? by_path(candidate, a.positional[1]) : candidate);
      bool is = of_test.positional[0].truthy();
      if (a.positional.size() > first) {
        const Text* name = a.positional[first].text();
        if (name == nullptr) throw Problem("expected the name of a test");
        of_test.positional.insert(of_test.positional.end(),
                                  a.positional.begin() + static_cast<std::ptrdiff_t>(first) + 1, a.positional.end());
        of_test.named = a.named;
        is = test(name->view(), of_test);
      }
      if (is == wanted) kept.push(candidate);
    }
  }
  return kept.take(Sequence::Kind::kIterator);
}

Value Interpreter::filter_map(const Arguments& a) {
  ListMaker results(budget_);
  const bool by_attribute = a.positional.size() == 1;
  const Value* path = nullptr;
  const Value* otherwise = nullptr;
  for (const auto& [name, value] : a.named) {
    if (!by_attribute) break;
    if (name != "attribute" && name != "default") throw Problem(fmt::format("map: there is no argument {}", name));
    (name == "attribute" ? path : otherwise) = &value;
  }
  if (by_attribute && path == nullptr) throw Problem("map: expected the name of a filter, or attribute=");
  if (!by_attribute && a.positional[1].text() == nullptr) throw Problem("map: expected the name of a filter");
  if (a.positional[0].truthy()) {
    for (const Value& value : Iteration(a.positional[0], budget_)) {
      if (by_attribute) {
        results.push(by_path(value, *path, otherwise != nullptr && !otherwise->is_none() ? otherwise : nullptr));
        continue;
      }
      Arguments of_filter;
      of_filter.positional.push_back(value);
      of_filter.positional.insert(of_filter.positional.end(), a.positional.begin() + 2, a.positional.end());
      of_filter.named = a.named;
      results.push(filter(a.positional[1].text()->view(), of_filter));
    }
  }
  return results.take(Sequence::Kind::kIterator);
}

Value Interpreter::filter_join(const Arguments& a) {
  const Parameters p("join", a, {"value", "d", "attribute"}, 1);
  const Text separator = p[1] != nullptr ? str(*p[1], budget_) : Text();
  TextWriter joined(budget_);
  size_t n = 0;
  for (const Value& value : Iteration(p.at(0), budget_)) {
    if (n++ > 0) joined.add(separator);
    joined.add(str(p[2] != nullptr ? by_path(value, *p[2]) : value, budget_));
  }
  return joined.take();
}

Value Interpreter::sort_key(const Value& value, const Value* path, bool case_sensitive) {
  Value key = path != nullptr ? by_path(value, *path) : value;
  return case_sensitive || key.text() == nullptr ? key : Value(in_case(*key.text(), Case::kLower, budget_));
}

Value Interpreter::sorted_by(ListMaker items, bool reverse, const std::function<Value(const Value&)>& key) {
  std::vector<std::pair<Value, Value>> keyed;
  Held held = budget_.held();
  held.grow(items.items().size() * 2 * sizeof(Value));
  for (const Value& item : items.items()) keyed.emplace_back(key(item), item);
  // Equal keys need no order: jinja2 compares lists of them.
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    const Value &x = reverse ? b.first : a.first, &y = reverse ? a.first : b.first;
    return !equal(x, y, budget_) && compare("<", x, y, budget_);
  });
  ListMaker sorted(budget_);
  for (auto& [ignored, item] : keyed) sorted.push(std::move(item));
  return sorted.take();
}

Value Interpreter::filter_sort(const Arguments& a) {
  const Parameters p("sort", a, {"value", "reverse", "case_sensitive", "attribute"}, 1);
  if (p[3] != nullptr && p[3]->text() != nullptr && p[3]->text()->view().find(',') != std::string_view::npos) {
    throw Problem("sort: several attributes are not supported");
  }
  return sorted_by(listed(p.at(0), budget_), p.flag(1),
                   [&](const Value& value) { return sort_key(value, p[3], p.flag(2)); });
}

Value Interpreter::filter_dictsort(const Arguments& a) {
  const Parameters p("dictsort", a, {"value", "case_sensitive", "by", "reverse"}, 1);
  const std::string_view by = p[2] != nullptr ? p.text(2).view() : "key";
  if (by != "key" && by != "value") throw Problem("dictsort: expected 'key' or 'value' as by");
  const Value pairs = pairs_of(p.at(0), Sequence::Kind::kItems);
  return sorted_by(listed(pairs, budget_), p.flag(3), [&](const Value& pair) {
    return sort_key(pair.sequence()->items[by == "key" ? 0 : 1], nullptr, p.flag(1));
  });
}

Value Interpreter::filter_unique(const Arguments& a) {
  const Parameters p("unique", a, {"value", "case_sensitive", "attribute"}, 1);
  std::set<std::string> seen;
  Held held = budget_.held();
  ListMaker kept(budget_);
  for (const Value& value : Iteration(p.at(0), budget_)) {
    std::string key = unique_key(sort_key(value, p[2], p.flag(1)), budget_);
    held.grow(key.size() + 64);
    if (seen.insert(std::move(key)).second) kept.push(value);
  }
  return kept.take(Sequence::Kind::kIterator);
}

Value Interpreter::extreme(const Arguments& a, std::string_view name, std::string_view op) {
  const Parameters p(name, a, {"value", "case_sensitive", "attribute"}, 1);
  const Iteration items(p.at(0), budget_);
  if (items.size() == 0) return Undefined{Undefined::Kind::kEmpty};
  size_t best = 0;
  Value best_key = sort_key(items[0], p[2], p.flag(1));
  for (size_t i = 1; i < items.size(); ++i) {
    Value key = sort_key(items[i], p[2], p.flag(1));
    if (!compare(op, key, best_key, budget_)) continue;
    best = i;
    best_key = std::move(key);
  }
  return items[best];
}

Value Interpreter::filter_sum(const Arguments& a) {
  const Parameters p("sum", a, {"iterable", "attribute", "start"}, 1);
  Value sum = p[2] != nullptr ? *p[2] : Value(int64_t{0});
  if (sum.text() != nullptr) throw Problem("sum: strings have none");
  for (const Value& term : Iteration(p.at(0), budget_)) {
    sum = arithmetic("+", sum, p[1] != nullptr ? by_path(term, *p[1]) : term, budget_);
  }
  return sum;
}

Value Interpreter::filter_default(const Arguments& a) {
  const Parameters p("default", a, {"value", "default_value", "boolean"}, 1);
  const bool is_missing = p.at(0).is_undefined() || (p.flag(2) && !p.at(0).truthy());
  return !is_missing ? p.at(0) : p[1] != nullptr ? *p[1] : Value(Text());
}

Value Interpreter::filter_tojson(const Arguments& a) {
  const Parameters p("tojson", a, {"value", "ensure_ascii", "indent", "separators", "sort_keys"}, 1);
  need_defined(p.at(0));
  JsonStyle style;
  style.ensure_ascii = p.flag(1);
  style.sort_keys = p.flag(4);
  if (p[2] != nullptr && !p[2]->is_none()) {
    style.has_lines = true;
    style.item_separator = Text::native(",");
    if (const Text* indent = p[2]->text()) {
      style.indent = *indent;
    } else {
      style.indent = repeated(Text::native(" "), p.integer(2, 0), budget_);
    }
  }
  if (p[3] != nullptr && !p[3]->is_none()) {
    const Iteration separators(*p[3], budget_);
    if (separators.size() != 2 || separators[0].text() == nullptr || separators[1].text() == nullptr) {
      throw Problem("tojson: expected two strings as separators");
    }
    style.item_separator = *separators[0].text();
    style.key_separator = *separators[1].text();
  }
  return to_json(p.at(0), style, budget_);
}

Value Interpreter::filter_trim(const Arguments& a) {
  const Parameters p("trim", a, {"value", "chars"}, 1);
  return stripped(str(p.at(0), budget_), p.optional_text(1), true, true, budget_);
}

Value Interpreter::filter_length(const Arguments& a) {
  const Parameters p("length", a, {"value"}, 1);
  const Value& value = p.at(0);
  if (value.is_undefined()) return int64_t{0};
  if (const Text* text = value.text()) {
    budget_.read(text->size());
    return static_cast<int64_t>(n_characters(text->view()));
  }
  if (const Dict* dict = value.dict()) return static_cast<int64_t>(dict->size());
  const Sequence* sequence = value.sequence();
  if (sequence == nullptr || value.generator() != nullptr) {
    throw Problem(fmt::format("length: expected something that has one, found a value of type {}", value.type()));
  }
  return static_cast<int64_t>(sequence->items.size());
}

Value Interpreter::filter_string(const Arguments& a) {
  return str(Parameters("string", a, {"value"}, 1).at(0), budget_);
}

Value Interpreter::filter_safe(const Arguments& a) {
  return str(Parameters("safe", a, {"value"}, 1).at(0), budget_).as_markup();
}

Value Interpreter::filter_escape(const Arguments& a) {
  return escaped(str(Parameters("escape", a, {"value"}, 1).at(0), budget_), budget_);
}

Value Interpreter::filter_forceescape(const Arguments& a) {
  return escaped(str(Parameters("forceescape", a, {"value"}, 1).at(0), budget_).as_markup(false), budget_);
}

template <Case kCase>
Value Interpreter::filter_case(const Arguments& a) {
  const Text text = str(Parameters("case", a, {"value"}, 1).at(0), budget_);
  // Of this one jinja2 joins the words anew.
  return in_case(kCase == Case::kTitleOfWords ? text.as_markup(false) : text, kCase, budget_);
}

Value Interpreter::filter_replace(const Arguments& a) {
  const Parameters p("replace", a, {"value", "old", "new", "count"}, 3);
  const int64_t most = p[3] == nullptr || p[3]->is_none() ? -1 : p.integer(3, -1);
  return replaced(str(p.at(0), budget_).as_markup(false), str(p.at(1), budget_), str(p.at(2), budget_),
                  most < 0 ? -1 : most, budget_);
}

Value Interpreter::filter_first(const Arguments& a) {
  const Parameters p("first", a, {"value"}, 1);
  if (const Sequence* generator = p.at(0).generator()) {
    return generator->next < generator->items.size() ? generator->items[generator->next++]
                                                     : Value(Undefined{Undefined::Kind::kEmpty});
  }
  if (const Text* text = p.at(0).text()) {
    return text->empty() ? Value(Undefined{Undefined::Kind::kEmpty})
                         : Value(part_of(*text, 0, character_size(text->view(), 0), budget_).as_markup(false));
  }
  const Iteration items(p.at(0), budget_);
  return items.size() > 0 ? items[0] : Value(Undefined{Undefined::Kind::kEmpty});
}

Value Interpreter::filter_last(const Arguments& a) {
  const Parameters p("last", a, {"value"}, 1);
  if (p.at(0).generator() != nullptr) throw Problem("last: a generator has none");
  if (const Text* text = p.at(0).text(); text != nullptr && !text->empty()) {
    return item(p.at(0), Value(int64_t{-1}));
  }
  const Iteration items(p.at(0), budget_);
  return items.size() > 0 ? items[items.size() - 1] : Value(Undefined{Undefined::Kind::kEmpty});
}

Value Interpreter::filter_list(const Arguments& a) {
  return listed(Parameters("list", a, {"value"}, 1).at(0), budget_).take();
}

Value Interpreter::filter_reverse(const Arguments& a) {
  const Parameters p("reverse", a, {"value"}, 1);
  if (const Text* text = p.at(0).text()) return reversed(*text, budget_);
  ListMaker list = listed(p.at(0), budget_);
  std::ranges::reverse(list.items());
  // Python goes through a generator first.
  return list.take(p.at(0).generator() != nullptr ? Sequence::Kind::kList : Sequence::Kind::kIterator);
}

Value Interpreter::filter_items(const Arguments& a) {
  const Parameters p("items", a, {"value"}, 1);
  return p.at(0).is_undefined() ? ListMaker(budget_).take(Sequence::Kind::kIterator)
                                : pairs_of(p.at(0), Sequence::Kind::kIterator);
}

Value Interpreter::filter_attr(const Arguments& a) {
  const Parameters p("attr", a, {"obj", "name"}, 2);
  // Of what a dict has, methods only.
  return p.at(0).dict() != nullptr ? attribute(dict_of(Dict()), p.text(1).view(), nullptr)
                                   : attribute(p.at(0), p.text(1).view(), nullptr);
}

Value Interpreter::filter_int(const Arguments& a) {
  const Parameters p("int", a, {"value", "default", "base"}, 1);
  const Value& value = p.at(0);
  need_defined(value);
  const Value otherwise = p[1] != nullptr ? *p[1] : Value(int64_t{0});
  if (p.integer(2, 10) != 10) throw Problem("int: other bases than 10 are not supported");
  if (const auto whole = value.whole()) return *whole;
  if (value.real() != nullptr) return std::isfinite(*value.real()) ? Value(cut(*value.real())) : otherwise;
  if (value.text() == nullptr) return otherwise;
  const auto digits = digits_of(*value.text(), budget_);
  if (!digits) return otherwise;
  int64_t result = 0;
  const char* const end = digits->data() + digits->size();
  const auto [last, error] = std::from_chars(digits->data(), end, result);
  if (last == end && error == std::errc::result_out_of_range) throw Problem("int: expected an integer of 64 bits");
  if (last == end && error == std::errc()) return result;
  const auto real = real_of(*value.text(), budget_);
  return real && std::isfinite(*real) ? Value(cut(*real)) : otherwise;
}

Value Interpreter::filter_float(const Arguments& a) {
  const Parameters p("float", a, {"value", "default"}, 1);
  need_defined(p.at(0));
  const Value otherwise = p[1] != nullptr ? *p[1] : Value(0.0);
  if (p.at(0).is_number()) return p.at(0).number();
  if (p.at(0).text() == nullptr) return otherwise;
  const auto real = real_of(*p.at(0).text(), budget_);
  return real ? Value(*real) : otherwise;
}

Value Interpreter::filter_abs(const Arguments& a) {
  const Parameters p("abs", a, {"value"}, 1);
  const Value& value = p.at(0);
  if (value.real() != nullptr) return std::abs(*value.real());
  return signed_number(value.is_number() && value.number() < 0 ? "-" : "+", value, budget_);
}

Value Interpreter::filter_format(const Arguments& a) {
  if (!a.named.empty() || a.positional.empty()) throw Problem("format: expected values without names");
  ListMaker values(budget_);
  for (size_t i = 1; i < a.positional.size(); ++i) values.push(a.positional[i]);
  return printed(str(a.positional[0], budget_), values.take(Sequence::Kind::kTuple), budget_);
}

Value Interpreter::filter_indent(const Arguments& a) {
  const Parameters p("indent", a, {"s", "width", "first", "blank"}, 1);
  const Text pad = p[1] == nullptr           ? Text::native("    ")
                   : p[1]->text() != nullptr ? *p[1]->text()
                                             : repeated(Text::native(" "), p.integer(1, 4), budget_);
  TextWriter closed(budget_);
  closed.add(p.text(0));
  closed.add("\n");  // so that an empty text has a line
  const Value lines = split_lines(closed.take(), false, budget_);
  const bool is_foreign = p.text(0).has_foreign();  // line breaks are then, too
  const bool is_markup = p.text(0).is_markup();
  TextWriter result(budget_);
  if (p.flag(2)) result.add(pad);
  size_t n = 0;
  for (const Value& line : lines.sequence()->items) {
    if (n > 0) result.add("\n", is_foreign);
    if (n++ > 0 && (p.flag(3) || !line.text()->empty())) result.add(pad);
    result.add(*line.text());
  }
  return result.take().as_markup(is_markup);
}

Value Interpreter::filter_wordcount(const Arguments& a) {
  const Text text = str(Parameters("wordcount", a, {"s"}, 1).at(0), budget_);
  budget_.read_characters(text.size());
  int64_t n = 0;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = read_code_point(text.view(), &at);
    const bool is = is_letter(c) || (c >= '0' && c <= '9') || c == '_';
    n += is && !inside ? 1 : 0;
    inside = is;
  }
  return n;
}

Value Interpreter::filter(std::string_view name, const Arguments& a) {
  using I = Interpreter;
  static const std::unordered_map<std::string_view, Filter> kFilters = {
      {"abs", &I::filter_abs},
      {"attr", &I::filter_attr},
      {"capitalize", &I::filter_case<Case::kCapital>},
      {"count", &I::filter_length},
      {"d", &I::filter_default},
      {"default", &I::filter_default},
      {"dictsort", &I::filter_dictsort},
      {"e", &I::filter_escape},
      {"escape", &I::filter_escape},
      {"first", &I::filter_first},
      {"float", &I::filter_float},
      {"forceescape", &I::filter_forceescape},
      {"format", &I::filter_format},
      {"indent", &I::filter_indent},
      {"int", &I::filter_int},
      {"items", &I::filter_items},
      {"join", &I::filter_join},
      {"last", &I::filter_last},
      {"length", &I::filter_length},
      {"list", &I::filter_list},
      {"lower", &I::filter_case<Case::kLower>},
      {"map", &I::filter_map},
      {"max", &I::filter_max},
      {"min", &I::filter_min},
      {"reject", &I::filter_reject},
      {"rejectattr", &I::filter_rejectattr},
      {"replace", &I::filter_replace},
      {"reverse", &I::filter_reverse},
      {"safe", &I::filter_safe},
      {"select", &I::filter_select},
      {"selectattr", &I::filter_selectattr},
      {"sort", &I::filter_sort},
      {"string", &I::filter_string},
      {"sum", &I::filter_sum},
      {"title", &I::filter_case<Case::kTitleOfWords>},
      {"tojson", &I::filter_tojson},
      {"trim", &I::filter_trim},
      {"unique", &I::filter_unique},
      {"upper", &I::filter_case<Case::kUpper>},
      {"wordcount", &I::filter_wordcount},
  };
  const Deeper deeper(*this);
  budget_.step();
  const auto found = kFilters.find(name);
  if (found == kFilters.end()) throw Problem(fmt::format("the filter {} is not supported", name));
  return (this->*found->second)(a);
}

bool Interpreter::test(std::string_view name, const Arguments& a) {
  const Deeper deeper(*this);
  budget_.step();
  const Value& value = a.positional[0];
  const auto is = [&](std::initializer_list<std::string_view> names) {
    return std::ranges::find(names, name) != names.end();
  };
  const auto other = [&]() -> const Value& {
    if (a.positional.size() != 2 || !a.named.empty())
      throw Problem(fmt::format("is {}: expected one value to compare with", name));
    return a.positional[1];
  };
  if (is({"equalto", "eq", "=="})) return equal(value, other(), budget_);
  if (is({"ne", "!="})) return !equal(value, other(), budget_);
  if (is({"lt", "lessthan", "<"})) return compare("<", value, other(), budget_);
  if (is({"gt", "greaterthan", ">"})) return compare(">", value, other(), budget_);
  if (is({"le", "<="})) return compare("<=", value, other(), budget_);
  if (is({"ge", ">="})) return compare(">=", value, other(), budget_);
  if (name == "in") return contains(other(), value, budget_);
  if (name == "sameas") {
    const Value& same = other();
    const bool alike = std::string_view(value.type()) == same.type();
    return alike && (value.sequence() != nullptr ? value.sequence() == same.sequence()
                     : value.dict() != nullptr   ? value.dict() == same.dict()
                                                 : equal(value, same, budget_));
  }
  if (name == "divisibleby") {
    return equal(arithmetic("%", value, other(), budget_), Value(int64_t{0}), budget_);
  }
  if (a.positional.size() > 1 || !a.named.empty()) throw Problem(fmt::format("is {}: expected no arguments", name));
  const Sequence* sequence = value.sequence();
  if (name == "defined") return !value.is_undefined();
  if (name == "undefined") return value.is_undefined();
  if (name == "none") return value.is_none();
  if (name == "string") return value.text() != nullptr;
  if (name == "mapping") return value.dict() != nullptr;
  if (name == "number") return value.is_number();
  if (name == "integer") return value.integer() != nullptr;
  if (name == "float") return value.real() != nullptr;
  if (name == "boolean") return value.boolean() != nullptr;
  if (name == "true") return value.boolean() != nullptr && *value.boolean();
  if (name == "false") return value.boolean() != nullptr && !*value.boolean();
  const bool is_container = value.text() != nullptr || value.dict() != nullptr || value.is_undefined();
  if (name == "sequence") return is_container || (sequence != nullptr && sequence->is_indexed());
  if (name == "iterable") return is_container || sequence != nullptr || value.loop() != nullptr;
  if (name == "callable") return value.function() != nullptr || value.is_undefined();
  if (name == "odd" || name == "even") {
    return equal(arithmetic("%", value, Value(int64_t{2}), budget_), Value(int64_t{name == "odd"}), budget_);
  }
  if (name == "upper" || name == "lower") {
    const Text text = str(value, budget_);
    budget_.read_characters(text.size());
    bool has_case = false;
    for (size_t at = 0; at < text.size();) {
      const char32_t c = read_code_point(text.view(), &at);
      if (name == "upper" ? is_lower(c) : is_upper(c)) return false;
      has_case = has_case || is_upper(c) || is_lower(c);
    }
    return has_case;
  }
  throw Problem(fmt::format("the test {} is not supported", name));
}

}  // namespace tiercel::jinja
