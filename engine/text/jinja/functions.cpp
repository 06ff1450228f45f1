// Attributes, items and methods of values, and the functions that templates find.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>

#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/operations.h"
#include "engine/text/jinja/strings.h"
#include "engine/text/utf8.h"

namespace tiercel::jinja {
namespace {

// Python's methods, those that are not known here included: that they are there can be asked.
constexpr std::string_view kOfText[] = {
    "capitalize",   "casefold",   "center",    "count",       "encode",    "endswith",     "expandtabs",   "find",
    "format",       "format_map", "index",     "isalnum",     "isalpha",   "isascii",      "isdecimal",    "isdigit",
    "isidentifier", "islower",    "isnumeric", "isprintable", "isspace",   "istitle",      "isupper",      "join",
    "ljust",        "lower",      "lstrip",    "maketrans",   "partition", "removeprefix", "removesuffix", "replace",
    "rfind",        "rindex",     "rjust",     "rpartition",  "rsplit",    "rstrip",       "split",        "splitlines",
    "startswith",   "strip",      "swapcase",  "title",       "translate", "upper",        "zfill"};
constexpr std::string_view kOfDict[] = {"copy", "fromkeys", "get", "items", "keys", "values"};
constexpr std::string_view kOfSequence[] = {"copy", "count", "index"};
constexpr std::string_view kOfLoop[] = {"cycle", "changed"};
// Those that would change what they are called on.
constexpr std::string_view kUnsafe[] = {"append", "clear",   "extend", "insert", "pop",       "popitem",
                                        "remove", "reverse", "sort",   "update", "setdefault"};

std::string_view found_in(std::span<const std::string_view> names, std::string_view name) {
  const auto found = std::ranges::find(names, name);
  return found != names.end() ? *found : std::string_view();
}

bool changes(const Value& object, std::string_view name) {
  const Sequence* sequence = object.sequence();
  return (object.dict() != nullptr || (sequence != nullptr && sequence->kind == Sequence::Kind::kList)) &&
         !found_in(kUnsafe, name).empty();
}

// Empty: values of this type have no such method.
std::string_view method_name(const Value& object, std::string_view name) {
  if (object.text() != nullptr) return found_in(kOfText, name);
  if (object.dict() != nullptr) return found_in(kOfDict, name);
  if (object.loop() != nullptr) return found_in(kOfLoop, name);
  if (const Sequence* s = object.sequence(); s != nullptr && s->is_indexed()) {
    return name == "copy" && s->kind != Sequence::Kind::kList ? std::string_view() : found_in(kOfSequence, name);
  }
  return {};
}

// What Python's values have beside their methods, and nobody asks for.
bool is_other_attribute(const Value& value, std::string_view name) {
  constexpr std::string_view kOfNumber[] = {
      "real",     "imag",       "numerator",  "denominator",      "conjugate", "bit_length", "bit_count",
      "to_bytes", "from_bytes", "is_integer", "as_integer_ratio", "hex",       "fromhex"};
  constexpr std::string_view kOfMacro[] = {"name", "arguments", "catch_kwargs", "catch_varargs", "caller"};
  constexpr std::string_view kOfRange[] = {"start", "stop", "step"};
  if (value.is_number()) return !found_in(kOfNumber, name).empty();
  if (value.function() != nullptr) return !found_in(kOfMacro, name).empty();
  return value.sequence() != nullptr && value.sequence()->kind == Sequence::Kind::kRange &&
         !found_in(kOfRange, name).empty();
}

Value attribute_of_loop(const Loop& loop, std::string_view name) {
  const size_t i = loop.index, n = loop.items.size();
  const auto number = [](size_t x) { return Value(static_cast<int64_t>(x)); };
  if (name == "index") return number(i + 1);
  if (name == "index0") return number(i);
  if (name == "revindex") return number(n - i);
  if (name == "revindex0") return number(n - i - 1);
  if (name == "first") return i == 0;
  if (name == "last") return i + 1 == n;
  if (name == "length") return number(n);
  if (name == "depth" || name == "depth0") return static_cast<int64_t>(1 - (name == "depth0" ? 1 : 0));
  if (name == "previtem" && i > 0) return loop.items[i - 1];
  if (name == "nextitem" && i + 1 < n) return loop.items[i + 1];
  return Undefined{name == "previtem" || name == "nextitem" ? Undefined::Kind::kNeighbour : Undefined::Kind::kMember};
}

bool all_characters(std::string_view text, bool (*is)(char32_t)) {
  for (size_t at = 0; at < text.size();) {
    if (!is(read_code_point(text, &at))) return false;
  }
  return !text.empty();
}

// Where `what` is, as a character's index; -1: nowhere.
int64_t index_of(std::string_view text, std::string_view what, bool last, Budget& budget) {
  const size_t found = last ? last_place_of(text, what, budget) : place_of(text, what, 0, budget);
  return found != text.npos ? static_cast<int64_t>(n_characters(text.substr(0, found))) : -1;
}

bool has_end(const Text& text, const Value& end, bool at_start) {
  const Sequence* ends = end.sequence();
  if (ends != nullptr && ends->kind == Sequence::Kind::kTuple) {
    return std::ranges::any_of(ends->items,
                               [&](const Value& one) { return one.text() != nullptr && has_end(text, one, at_start); });
  }
  if (end.text() == nullptr)
    throw Problem(fmt::format("expected a string or a tuple of them, found a value of type {}", end.type()));
  return at_start ? text.view().starts_with(end.text()->view()) : text.view().ends_with(end.text()->view());
}

// A text filled up to a number of characters.
Text padded(const Text& text, int64_t width, const Text& fill, bool left, bool right, Budget& budget) {
  const auto length = static_cast<int64_t>(n_characters(text.view()));
  const int64_t missing = width > length ? width - length : 0;
  const int64_t before = left && right ? missing / 2 + (missing & width & 1) : left ? missing : 0;
  TextWriter result(budget);
  budget.step(static_cast<size_t>(missing));
  for (int64_t i = 0; i < before; ++i) result.add(fill);
  result.add(text);
  for (int64_t i = before; i < missing && right; ++i) result.add(fill);
  return result.take().as_markup(text.is_markup());
}

}  // namespace

// ---- attributes and items ----

Value Interpreter::method_value(const Value& object, std::string_view method) {
  auto function = std::make_shared<Function>(
      Function{.kind = Function::Kind::kMethod, .object = object, .name = method, .held = budget_.held()});
  function->held.grow(sizeof(Function));
  return std::shared_ptr<const Function>(std::move(function));
}

// As jinja2's sandbox has it: Python's attribute first, then the item of that name.
Value Interpreter::attribute(const Value& value, std::string_view name, const std::string* kept_name) {
  need_defined(value);
  if (const Namespace* space = value.name_space()) {
    const Value* found = space->values.find(name, budget_);
    return found != nullptr ? *found : Value(Undefined{Undefined::Kind::kMember, kept_name});
  }
  if (const std::string_view method = method_name(value, name); !method.empty()) return method_value(value, method);
  if (is_other_attribute(value, name))
    throw Problem(fmt::format("the attribute {} of values of type {} is not supported", name, value.type()));
  if (name.starts_with("__") || changes(value, name)) return Undefined{Undefined::Kind::kUnsafe, kept_name};
  if (const Loop* loop = value.loop()) return attribute_of_loop(*loop, name);
  if (const Dict* dict = value.dict()) {
    if (const Value* found = dict->find(name, budget_)) return *found;
  }
  return Undefined{Undefined::Kind::kMember, kept_name};
}

// The item first, then Python's attribute.
Value Interpreter::item(const Value& value, const Value& key) {
  need_defined(value);
  if (const Dict* dict = value.dict(); dict != nullptr && (key.text() != nullptr || key_of(key, budget_))) {
    if (const Value* found = dict->find(key, budget_)) return *found;
  }
  if (const Text* name = key.text()) {
    if (name->view().starts_with("__")) return Undefined{};
    return attribute(value, name->view(), nullptr);
  }
  const auto whole = key.whole();
  const Sequence* sequence = value.sequence();
  if (!whole || (value.text() == nullptr && (sequence == nullptr || !sequence->is_indexed()))) return Undefined{};
  if (value.text() != nullptr) budget_.read_characters(value.text()->size());
  const size_t n = value.text() != nullptr ? n_characters(value.text()->view()) : sequence->items.size();
  const int64_t index = *whole < 0 ? *whole + static_cast<int64_t>(n) : *whole;
  if (index < 0 || index >= static_cast<int64_t>(n)) return Undefined{};
  const auto i = static_cast<size_t>(index);
  if (sequence != nullptr) return sequence->items[i];
  const size_t at = offset_of(value.text()->view(), i);
  return part_of(*value.text(), at, at + character_size(value.text()->view(), at), budget_);
}

Value Interpreter::pairs_of(const Value& value, Sequence::Kind kind) {
  need_defined(value);
  if (value.dict() == nullptr) throw Problem(fmt::format("expected a dict, found a value of type {}", value.type()));
  ListMaker pairs(budget_);
  for (const auto& [key, member] : value.dict()->items()) {
    ListMaker pair(budget_);
    pair.push(key);
    pair.push(member);
    pairs.push(pair.take(Sequence::Kind::kTuple));
  }
  return pairs.take(kind);
}

// ---- functions ----

void Interpreter::define_globals(Scope& scope) {
  using Kind = Function::Kind;
  for (const auto& [name, kind] : std::initializer_list<std::pair<const char*, Kind>>{{"raise_exception", Kind::kRaise},
                                                                                      {"strftime_now", Kind::kClock},
                                                                                      {"namespace", Kind::kNamespace},
                                                                                      {"dict", Kind::kDict},
                                                                                      {"range", Kind::kRange}}) {
    const int id = program_.names.find(name);
    if (id < 0 || (kind == Kind::kClock && !clock_)) continue;
    set(scope, id, Value(std::make_shared<const Function>(Function{.kind = kind})));
  }
}

Value Interpreter::call(const Value& function, const Arguments& arguments) {
  need_defined(function);
  const Function* f = function.function();
  if (f == nullptr) throw Problem(fmt::format("expected a function, found a value of type {}", function.type()));
  switch (f->kind) {
    case Function::Kind::kRaise: {
      const Parameters p("raise_exception", arguments, {"message"}, 1);
      throw Problem(std::string(str(p.at(0), budget_).view()));
    }
    case Function::Kind::kClock: return clock(arguments);
    case Function::Kind::kNamespace: return name_space(arguments);
    case Function::Kind::kDict: return dict_of(dict(arguments));
    case Function::Kind::kRange: return range(arguments);
    case Function::Kind::kMethod: return call_method(f->object, f->name, arguments);
    case Function::Kind::kMacro: return call_macro(*f, arguments);
  }
  return Value();
}

Value Interpreter::clock(const Arguments& arguments) {
  const Parameters p("strftime_now", arguments, {"format"}, 1);
  const std::string text = clock_(std::string(p.text(0).view()));
  return p.text(0).has_foreign() ? Text::foreign(text) : Text::native(text);
}

Dict Interpreter::dict(const Arguments& arguments) {
  Dict result;
  if (arguments.positional.size() > 1) throw Problem("dict: expected at most one argument without a name");
  for (const Value& values : arguments.positional) {
    if (values.dict() != nullptr) {
      for (const auto& [key, value] : values.dict()->items()) result.set(key, value, budget_);
      continue;
    }
    for (const Value& pair : Iteration(values, budget_)) {
      const Iteration parts(pair, budget_);
      if (parts.size() != 2) throw Problem("dict: expected pairs of a key and a value");
      result.set(parts[0], parts[1], budget_);
    }
  }
  for (const auto& [key, value] : arguments.named) result.set(Text::native(std::string(key)), value, budget_);
  return result;
}

Value Interpreter::name_space(const Arguments& arguments) {
  auto space = std::make_shared<Namespace>();
  kept_.grow(sizeof(Namespace));
  space->values = dict(arguments);
  spaces_.push_back(space);
  return space;
}

Value Interpreter::range(const Arguments& arguments) {
  constexpr int64_t kMost = 100'000;  // jinja2's sandbox has no more
  std::array<int64_t, 3> bounds = {0, 0, 1};
  const size_t n = arguments.positional.size();
  if (n < 1 || n > 3 || !arguments.named.empty()) throw Problem("range: expected one to three integers");
  for (size_t i = 0; i < n; ++i) {
    const auto whole = arguments.positional[i].whole();
    if (!whole)
      throw Problem(fmt::format("range: expected integers, found a value of type {}", arguments.positional[i].type()));
    bounds[n == 1 ? 1 : i] = *whole;
  }
  const auto [first, end, stride] = bounds;
  if (stride == 0) throw Problem("range: the step is 0");
  ListMaker list(budget_);
  for (int64_t i = first; stride > 0 ? i < end : i > end;) {
    if (static_cast<int64_t>(list.items().size()) == kMost)
      throw Problem(fmt::format("range: expected at most {} numbers", kMost));
    list.push(i);
    if (__builtin_add_overflow(i, stride, &i)) break;
  }
  return list.take(Sequence::Kind::kRange);
}

// ---- methods ----

Value Interpreter::call_method(const Value& object, std::string_view name, const Arguments& arguments) {
  if (const Text* text = object.text()) return method_of_text(*text, name, arguments);
  if (object.dict() != nullptr) return method_of_dict(object, name, arguments);
  if (object.sequence() != nullptr) return method_of_sequence(object, name, arguments);
  if (const Loop* loop = object.loop(); loop != nullptr && name == "cycle") {
    if (arguments.positional.empty()) throw Problem("cycle: expected values to take in turns");
    return arguments.positional[loop->index % arguments.positional.size()];
  }
  throw Problem(fmt::format("the method {} of values of type {} is not supported", name, object.type()));
}

Value Interpreter::method_of_dict(const Value& object, std::string_view name, const Arguments& arguments) {
  const Dict& dict = *object.dict();
  if (name == "get") {
    const Parameters p("get", arguments, {"key", "default"}, 1);
    const Value* found = p.at(0).is_undefined() ? nullptr : dict.find(p.at(0), budget_);
    return found != nullptr ? *found : p[1] != nullptr ? *p[1] : Value();
  }
  const Parameters none(name, arguments, {});
  if (name == "copy") return object;
  if (name == "items") return pairs_of(object, Sequence::Kind::kItems);
  if (name == "keys") return listed(object, budget_).take(Sequence::Kind::kKeys);
  if (name == "values") {
    ListMaker values(budget_);
    for (const auto& [key, value] : dict.items()) values.push(value);
    return values.take(Sequence::Kind::kValues);
  }
  throw Problem(fmt::format("the method {} of dicts is not supported", name));
}

Value Interpreter::method_of_sequence(const Value& object, std::string_view name, const Arguments& arguments) {
  const List& items = object.sequence()->items;
  if (name == "copy") return object;
  const Parameters p(name, arguments, {"value"}, 1);
  int64_t n = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!equal(items[i], p.at(0), budget_)) continue;
    if (name == "index") return static_cast<int64_t>(i);
    ++n;
  }
  if (name == "index") throw Problem("index: the value is not in the list");
  return n;
}

Value Interpreter::method_of_text(const Text& text, std::string_view name, const Arguments& a) {
  const std::string_view view = text.view();
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Parameters p(name, a, {"chars"});
    return stripped(text, p.optional_text(0), name != "rstrip", name != "lstrip", budget_);
  }
  if (name == "split" || name == "rsplit") {
    const Parameters p(name, a, {"sep", "maxsplit"});
    const Text* separator = p.optional_text(0);
    if (separator != nullptr && separator->empty()) throw Problem("split: expected a separator, found an empty one");
    const int64_t most = p.integer(1, -1);
    return split(text, separator, most < 0 ? -1 : most, name == "rsplit", budget_);
  }
  if (name == "splitlines") return split_lines(text, Parameters(name, a, {"keepends"}).flag(0), budget_);
  if (name == "startswith" || name == "endswith") {
    const Parameters p(name, a, {"end"}, 1);
    return has_end(text, p.at(0), name == "startswith");
  }
  if (name == "replace") {
    const Parameters p(name, a, {"old", "new", "count"}, 2);
    const int64_t most = p.integer(2, -1);
    return replaced(text, p.text(0), p.text(1), most < 0 ? -1 : most, budget_);
  }
  constexpr std::pair<std::string_view, Case> kCases[] = {{"upper", Case::kUpper},
                                                          {"lower", Case::kLower},
                                                          {"swapcase", Case::kSwapped},
                                                          {"capitalize", Case::kCapital},
                                                          {"title", Case::kTitle}};
  for (const auto& [of, to] : kCases) {
    if (name != of) continue;
    const Parameters none(name, a, {});
    return in_case(text, to, budget_);
  }
  if (name == "join") {
    const Parameters p(name, a, {"iterable"}, 1);
    TextWriter joined(budget_);
    size_t n = 0;
    for (const Value& part : Iteration(p.at(0), budget_)) {
      if (part.text() == nullptr)
        throw Problem(fmt::format("join: expected strings, found a value of type {}", part.type()));
      if (n++ > 0) joined.add(text);
      joined.add(text.is_markup() ? escaped(*part.text(), budget_) : *part.text());
    }
    return joined.take().as_markup(text.is_markup());
  }
  if (name == "find" || name == "rfind" || name == "index" || name == "rindex") {
    const Parameters p(name, a, {"sub"}, 1);
    const int64_t place = index_of(view, p.text(0).view(), name[0] == 'r', budget_);
    if (place < 0 && name.ends_with("index")) throw Problem("index: the string has no such part");
    return place;
  }
  if (name == "count") {
    const Parameters p(name, a, {"sub"}, 1);
    const std::string_view what = p.text(0).view();
    if (what.empty()) return static_cast<int64_t>(n_characters(view) + 1);
    int64_t n = 0;
    for (size_t at = place_of(view, what, 0, budget_); at != view.npos;
         at = place_of(view, what, at + what.size(), budget_))
      ++n;
    return n;
  }
  if (name == "removeprefix" || name == "removesuffix") {
    const Parameters p(name, a, {"part"}, 1);
    const std::string_view part = p.text(0).view();
    if (name == "removeprefix") return view.starts_with(part) ? part_of(text, part.size(), view.size(), budget_) : text;
    return view.ends_with(part) ? part_of(text, 0, view.size() - part.size(), budget_) : text;
  }
  if (name == "partition" || name == "rpartition") {
    const Parameters p(name, a, {"sep"}, 1);
    const std::string_view separator = p.text(0).view();
    if (separator.empty()) throw Problem("partition: expected a separator, found an empty one");
    const bool first = name == "partition";
    const size_t at = first ? place_of(view, separator, 0, budget_) : last_place_of(view, separator, budget_);
    ListMaker parts(budget_);
    if (at == view.npos) {
      for (const Text& part : {first ? text : Text(), Text(), first ? Text() : text}) parts.push(part);
    } else {
      parts.push(part_of(text, 0, at, budget_));
      parts.push(part_of(text, at, at + separator.size(), budget_));
      parts.push(part_of(text, at + separator.size(), view.size(), budget_));
    }
    return parts.take(Sequence::Kind::kTuple);
  }
  if (name == "ljust" || name == "rjust" || name == "center") {
    const Parameters p(name, a, {"width", "fillchar"}, 1);
    const Text fill = p[1] != nullptr ? p.text(1) : Text::native(" ");
    if (n_characters(fill.view()) != 1) throw Problem(fmt::format("{}: expected one character to fill with", name));
    return padded(text, p.integer(0, 0), fill, name != "ljust", name != "rjust", budget_);
  }
  if (name == "format") return formatted(text, a);
  constexpr std::pair<std::string_view, bool (*)(char32_t)> kKinds[] = {
      {"isalpha", is_letter},
      {"isdecimal", is_decimal},
      {"isdigit", [](char32_t c) { return is_decimal(c) || is_numeral(c); }},
      {"isnumeric", [](char32_t c) { return is_decimal(c) || is_numeral(c); }},
      {"isalnum", [](char32_t c) { return is_letter(c) || is_decimal(c) || is_numeral(c); }},
      {"isascii", [](char32_t c) { return c < 0x80; }}};
  for (const auto& [of, is] : kKinds) {
    if (name != of) continue;
    const Parameters none(name, a, {});
    budget_.read_characters(view.size());
    // Of letters some are numbers, and of other numbers not all are digits: which ones is not known here.
    const bool is_plain = all_characters(view, [](char32_t c) { return c < 0x80 || is_decimal(c); }) || view.empty();
    if ((name == "isdigit" || name == "isnumeric") && !is_plain)
      throw Problem(fmt::format("{}: is not supported of such characters", name));
    return all_characters(view, is) || (name == "isascii" && view.empty());
  }
  if (name == "isspace") return !view.empty() && leading_space(view) == view.size();
  if (name == "isupper" || name == "islower") {
    Arguments of_test;
    of_test.positional.emplace_back(text);
    return test(name.substr(2), of_test);
  }
  throw Problem(fmt::format("the method {} of strings is not supported", name));
}

// str.format with places like {}, {0} and {name}.
Value Interpreter::formatted(const Text& format, const Arguments& arguments) {
  const std::string_view view = format.view();
  TextWriter result(budget_);
  size_t next = 0;
  for (size_t at = 0; at < view.size();) {
    const size_t brace = std::min(view.find_first_of("{}", at), view.size());
    result.add(format, at, brace);
    if (brace == view.size()) break;
    if (view.substr(brace + 1, 1) == view.substr(brace, 1)) {  // doubled, it is itself
      result.add(format, brace, brace + 1);
      at = brace + 2;
      continue;
    }
    budget_.step(1 + arguments.named.size() / 8);
    const size_t end = view.find('}', brace);
    if (view[brace] == '}' || end == view.npos) throw Problem("format: expected { and } in pairs");
    const std::string_view place = view.substr(brace + 1, end - brace - 1);
    const bool is_number = place.size() < 9 && std::ranges::all_of(place, [](char c) { return c >= '0' && c <= '9'; });
    const Value* value = nullptr;
    if (is_number) {
      const size_t index = place.empty() ? next++ : std::stoul(std::string(place));
      if (index < arguments.positional.size()) value = &arguments.positional[index];
    } else {
      const auto named = std::ranges::find(arguments.named, place, [](const auto& pair) { return pair.first; });
      if (named != arguments.named.end()) value = &named->second;
    }
    if (value == nullptr)
      throw Problem(fmt::format("format: there is no argument for {{{}}}, or its form is not supported", place));
    const Text written = str(*value, budget_);
    result.add(format.is_markup() ? escaped(written, budget_) : written);
    at = end + 1;
  }
  return result.take().as_markup(format.is_markup());
}

}  // namespace tiercel::jinja
