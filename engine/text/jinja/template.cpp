#include "engine/text/jinja/template.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <optional>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace tiercel::jinja {
namespace {

// A conversation of five thousand messages takes a million steps, of 200 ns or so; a million tokens are 5 MB.
constexpr int64_t kMostSteps = 3'000'000;
constexpr size_t kMostBytes = size_t{128} << 20;
constexpr int kMostDepth = 700;  // of statements and expressions in each other, macros' too: the stack is finite

using E = Expression::Kind;
using S = Statement::Kind;

// White space of str.strip(), of ASCII; Unicode's other kinds are rare at the ends of messages but count.
bool is_space_at(std::string_view text, size_t at, size_t* n) {
  const auto c = static_cast<unsigned char>(text[at]);
  *n = 1;
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x1f);
  for (const std::string_view space : {"\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004",
                                       "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a", "\u2028", "\u2029",
                                       "\u202f", "\u205f", "\u3000"}) {
    if (text.substr(at).starts_with(space)) {
      *n = space.size();
      return true;
    }
  }
  return false;
}

bool begins_character(char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }

// Where characters begin, and where the last one ends.
std::vector<size_t> character_starts(std::string_view text) {
  std::vector<size_t> starts;
  for (size_t at = 0; at < text.size(); ++at) {
    if (begins_character(text[at])) starts.push_back(at);
  }
  starts.push_back(text.size());
  return starts;
}
int64_t n_characters(std::string_view text) { return std::count_if(text.begin(), text.end(), begins_character); }

Text stripped(const Text& text, const Text* characters, bool left, bool right) {
  const std::string_view view = text.view();
  size_t begin = 0, end = view.size();
  const auto is_stripped = [&](size_t at, size_t* n) {
    if (characters == nullptr) return is_space_at(view, at, n);
    size_t behind = at + 1;
    while (behind < view.size() && (static_cast<unsigned char>(view[behind]) & 0xc0) == 0x80) ++behind;
    *n = behind - at;
    return characters->view().find(view.substr(at, *n)) != std::string_view::npos;
  };
  size_t n = 0;
  while (left && begin < end && is_stripped(begin, &n)) begin += n;
  while (right && end > begin) {
    size_t at = end - 1;
    while (at > begin && (static_cast<unsigned char>(view[at]) & 0xc0) == 0x80) --at;
    if (!is_stripped(at, &n)) break;
    end = at;
  }
  return text.substr(begin, end - begin);
}

List split(const Text& text, const Text* separator, int64_t most) {
  List parts;
  size_t at = 0;
  if (separator != nullptr) {
    for (int64_t n = 0; n != most; ++n) {
      const size_t found = text.view().find(separator->view(), at);
      if (found == std::string_view::npos) break;
      parts.emplace_back(text.substr(at, found - at));
      at = found + separator->size();
    }
    parts.emplace_back(text.substr(at));
    return parts;
  }
  const std::string_view view = text.view();
  for (int64_t n = 0;; ++n) {
    size_t width = 0;
    while (at < view.size() && is_space_at(view, at, &width)) at += width;
    if (at >= view.size()) return parts;
    if (n == most) {
      parts.emplace_back(stripped(text.substr(at), nullptr, false, true));
      return parts;
    }
    const size_t begin = at;
    while (at < view.size() && !is_space_at(view, at, &width)) ++at;
    parts.emplace_back(text.substr(begin, at - begin));
  }
}

// Every character changed; its origin stays.
template <typename F>
Text mapped(const Text& text, const F& change) {
  Text result;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t before = read_code_point(text.view(), &at);
    const auto after = static_cast<utf8proc_int32_t>(change(before));
    if (after == static_cast<utf8proc_int32_t>(before)) {
      result += text.substr(begin, at - begin);
      continue;
    }
    utf8proc_uint8_t bytes[4];
    const auto n = static_cast<size_t>(utf8proc_encode_char(after, bytes));
    result += Text(std::string(reinterpret_cast<const char*>(bytes), n), text.is_foreign(begin));
  }
  return result;
}
char32_t upper(char32_t c) { return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))); }
char32_t lower(char32_t c) { return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))); }
bool is_letter(char32_t c) {
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

struct Scope {
  Dict variables;
  Scope* outer = nullptr;

  const Value* find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->outer) {
      if (const Value* value = scope->variables.find(name)) return value;
    }
    return nullptr;
  }
};

enum class Flow { kNext, kBreak, kContinue };

class Run {
 public:
  Run(const std::string& name, const std::function<std::string(const std::string&)>& strftime_now)
      : name_(name), strftime_now_(strftime_now) {}
  // Namespaces may hold each other, or themselves.
  ~Run() {
    for (const auto& space : spaces_) space->values = Dict();
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  Text all(const Block& block, const Dict& variables) {
    Scope globals, scope;
    define_globals(globals);
    scope.outer = &globals;
    scope.variables = variables;
    top_ = &scope;
    Text out;
    run(block, scope, out);
    return out;
  }

 private:
  [[noreturn]] void refuse(int line, const std::string& what) const {
    fail(ErrorKind::kUsage, "{}: line {}: {}", name_, line, what);
  }
  void step(int line) { charge(1, line); }
  struct Deeper {
    Deeper(Run& run, int line) : depth(run.depth_) {
      if (depth >= kMostDepth) run.refuse(line, "blocks, expressions and macros are in each other too deeply");
      ++depth;
    }
    ~Deeper() { --depth; }
    int& depth;
  };
  // What takes as long as so many steps.
  void charge(size_t steps, int line) {
    steps_ += static_cast<int64_t>(steps);
    if (steps_ > kMostSteps) refuse(line, fmt::format("the template takes more than {} steps", kMostSteps));
  }
  // Of a string that grew.
  void check_size(const Text& text, int line) {
    charge(text.size() / 1024, line);
    if (text.size() > kMostBytes) refuse(line, fmt::format("the template writes more than {} bytes", kMostBytes));
  }

  // ---- statements ----

  void write(Text& out, const Text& text, int line) {
    out += text;
    charge(text.size() / 1024, line);
    if (out.size() > kMostBytes) refuse(line, fmt::format("the template writes more than {} bytes", kMostBytes));
  }

  Flow run(const Block& block, Scope& scope, Text& out) {
    for (const auto& statement : block) {
      const Flow flow = run(*statement, scope, out);
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  Flow run(const Statement& s, Scope& scope, Text& out) {
    const Deeper deeper(*this, s.line);
    step(s.line);
    switch (s.kind) {
      case S::kText: write(out, Text(s.text), s.line); break;
      case S::kOutput: write(out, value_of(*s.expression, scope).str(), s.line); break;
      case S::kIf:
        for (const auto& [condition, body] : s.branches) {
          if (condition == nullptr || value_of(*condition, scope).truthy()) return run(body, scope, out);
        }
        break;
      case S::kFor: run_for(s, scope, out); break;
      case S::kSet: assign(s, value_of(*s.expression, scope), scope); break;
      case S::kSetBlock: {
        Text text;
        Scope inner;
        inner.outer = &scope;
        run(s.body, inner, text);
        assign(s, Value(std::move(text)), scope);
        break;
      }
      case S::kMacro: define_macro(s, scope); break;
      case S::kBlock: return run(s.body, scope, out);
      case S::kBreak: return Flow::kBreak;
      case S::kContinue: return Flow::kContinue;
    }
    return Flow::kNext;
  }

  void assign(const Statement& s, Value value, Scope& scope) {
    if (!s.attribute.empty()) {
      const Value* target = scope.find(s.names[0]);
      if (target == nullptr || target->name_space() == nullptr) refuse(s.line, "expected a namespace before the dot");
      target->name_space()->values.set(s.attribute, std::move(value));
      return;
    }
    bind(s.names, std::move(value), scope, s.line);
  }

  void bind(const std::vector<std::string>& names, Value value, Scope& scope, int line) {
    if (names.size() == 1) return scope.variables.set(names[0], std::move(value));
    const List* list = value.list();
    if (list == nullptr || list->size() != names.size()) {
      refuse(line, fmt::format("expected {} values, found {}", names.size(), value.repr().bytes().substr(0, 60)));
    }
    for (size_t i = 0; i < names.size(); ++i) scope.variables.set(names[i], (*list)[i]);
  }

  List iterated(const Value& value, int line) {
    if (const List* list = value.list()) {
      charge(list->size(), line);
      return *list;
    }
    List items;
    if (value.is_undefined()) return items;
    if (const Dict* dict = value.dict()) {
      for (const auto& [key, ignored] : dict->items()) items.emplace_back(Text(key));
      return items;
    }
    if (const Text* text = value.text()) {
      charge(text->size(), line);
      const std::vector<size_t> starts = character_starts(text->view());
      for (size_t i = 0; i + 1 < starts.size(); ++i) items.emplace_back(text->substr(starts[i], starts[i + 1] - starts[i]));
      return items;
    }
    refuse(line, fmt::format("expected something to go through, found a value of type {}", value.type()));
  }

  void run_for(const Statement& s, Scope& scope, Text& out) {
    List items = iterated(value_of(*s.expression, scope), s.line);
    if (s.condition != nullptr) {
      List kept;
      for (const Value& item : items) {
        Scope inner;
        inner.outer = &scope;
        bind(s.names, item, inner, s.line);
        if (value_of(*s.condition, inner).truthy()) kept.push_back(item);
      }
      items = std::move(kept);
    }
    if (items.empty()) {
      run(s.otherwise, scope, out);
      return;
    }
    const auto n = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < n; ++i) {
      step(s.line);
      Scope inner;
      inner.outer = &scope;
      Dict loop;
      loop.set("index0", Value(i));
      loop.set("index", Value(i + 1));
      loop.set("revindex", Value(n - i));
      loop.set("revindex0", Value(n - i - 1));
      loop.set("first", Value(i == 0));
      loop.set("last", Value(i + 1 == n));
      loop.set("length", Value(n));
      loop.set("previtem", i > 0 ? items[static_cast<size_t>(i - 1)] : Value(Undefined{"there is no previous item"}));
      loop.set("nextitem", i + 1 < n ? items[static_cast<size_t>(i + 1)] : Value(Undefined{"there is no next item"}));
      loop.set("cycle", Value(Callable{"cycle", [i](const Arguments& a) {
                 if (a.positional.empty()) return Value(Undefined{"cycle"});
                 return a.positional[static_cast<size_t>(i) % a.positional.size()];
               }}));
      inner.variables.set("loop", Value(std::move(loop)));
      bind(s.names, items[static_cast<size_t>(i)], inner, s.line);
      if (run(s.body, inner, out) == Flow::kBreak) break;
    }
  }

  void define_macro(const Statement& s, Scope& scope) {
    // A macro sees what is defined outside of everything, and may be called when the block that it is in is gone.
    scope.variables.set(s.text, Value(Callable{s.text, [this, &s](const Arguments& a) {
                          Scope inner;
                          inner.outer = top_;
                          if (a.positional.size() > s.names.size()) {
                            refuse(s.line, fmt::format("{}: expected {} arguments, found {}", s.text, s.names.size(),
                                                       a.positional.size()));
                          }
                          for (size_t i = 0; i < s.names.size(); ++i) {
                            const Value* given = a.get(i, s.names[i]);
                            inner.variables.set(s.names[i], given != nullptr          ? *given
                                                            : s.defaults[i] != nullptr ? value_of(*s.defaults[i], inner)
                                                                                       : Value(Undefined{s.names[i]}));
                          }
                          Text text;
                          run(s.body, inner, text);
                          return Value(std::move(text));
                        }}));
  }

  // ---- expressions ----

  Value value_of(const Expression& e, Scope& scope) {
    const Deeper deeper(*this, e.line);
    step(e.line);
    switch (e.kind) {
      case E::kLiteral: return e.value;
      case E::kName: {
        const Value* value = scope.find(e.name);
        return value != nullptr ? *value : Value(Undefined{"'" + e.name + "' is undefined"});
      }
      case E::kList: {
        List list;
        for (const ExpressionPtr& operand : e.operands) list.push_back(value_of(*operand, scope));
        return Value(std::move(list));
      }
      case E::kDict: {
        Dict dict;
        for (size_t i = 0; i < e.operands.size(); i += 2) {
          dict.set(value_of(*e.operands[i], scope).str().bytes(), value_of(*e.operands[i + 1], scope));
        }
        return Value(std::move(dict));
      }
      case E::kAttribute: return attribute(value_of(*e.operands[0], scope), e.name, e.line);
      case E::kItem: return item(value_of(*e.operands[0], scope), value_of(*e.operands[1], scope), e.line);
      case E::kSlice: return slice(e, scope);
      case E::kCall: return call(e, scope);
      case E::kFilter: return filter(e.name, arguments_of(e, 0, scope), e.line);
      case E::kTest: return Value(test(e.name, arguments_of(e, 0, scope), e.line) != e.negated);
      case E::kUnary: return unary(e, scope);
      case E::kBinary: return binary(e, scope);
      case E::kIf:
        if (value_of(*e.operands[1], scope).truthy()) return value_of(*e.operands[0], scope);
        return e.operands[2] != nullptr ? value_of(*e.operands[2], scope) : Value(Undefined{"the if has no else"});
    }
    return Value();
  }

  Arguments arguments_of(const Expression& e, size_t first, Scope& scope) {
    Arguments arguments;
    for (size_t i = first; i < e.operands.size(); ++i) arguments.positional.push_back(value_of(*e.operands[i], scope));
    for (const auto& [name, value] : e.named) arguments.named.set(name, value_of(*value, scope));
    return arguments;
  }

  void need_defined(const Value& value, int line) const {
    if (value.is_undefined()) refuse(line, std::get<Undefined>(value.storage()).name);
  }

  // Members before methods, as templates ask for them: jinja asks Python for an attribute first.
  Value attribute(const Value& value, const std::string& name, int line) {
    need_defined(value, line);
    if (Namespace* space = value.name_space()) {
      const Value* found = space->values.find(name);
      return found != nullptr ? *found : Value(Undefined{"the namespace has no " + name});
    }
    if (const Dict* dict = value.dict()) {
      if (const Value* found = dict->find(name)) return *found;
    }
    return Value(Undefined{fmt::format("a value of type {} has no {}", value.type(), name)});
  }

  Value item(const Value& value, const Value& key, int line) {
    need_defined(value, line);
    const Value missing(Undefined{fmt::format("a value of type {} has no item {}", value.type(), key.repr().bytes())});
    if (value.dict() != nullptr || value.name_space() != nullptr) {
      return key.text() != nullptr ? attribute(value, key.text()->bytes(), line) : missing;
    }
    if (key.integer() == nullptr) return missing;
    int64_t index = *key.integer();
    if (const List* list = value.list()) {
      const auto n = static_cast<int64_t>(list->size());
      if (index < 0) index += n;
      return index >= 0 && index < n ? (*list)[static_cast<size_t>(index)] : missing;
    }
    if (const Text* text = value.text()) {
      charge(text->size() / 128, line);
      const std::vector<size_t> starts = character_starts(text->view());
      const auto n = static_cast<int64_t>(starts.size()) - 1;
      if (index < 0) index += n;
      if (index < 0 || index >= n) return missing;
      const auto at = static_cast<size_t>(index);
      return Value(text->substr(starts[at], starts[at + 1] - starts[at]));
    }
    return missing;
  }

  Value slice(const Expression& e, Scope& scope) {
    const Value value = value_of(*e.operands[0], scope);
    need_defined(value, e.line);
    if (value.list() == nullptr && value.text() == nullptr) {
      refuse(e.line, fmt::format("expected a list or a string to slice, found a value of type {}", value.type()));
    }
    const Text* const text = value.text();
    if (text != nullptr) charge(text->size() / 128, e.line);
    const std::vector<size_t> starts = text != nullptr ? character_starts(text->view()) : std::vector<size_t>{};
    const List items = text != nullptr ? List{} : iterated(value, e.line);
    const auto n = text != nullptr ? static_cast<int64_t>(starts.size()) - 1 : static_cast<int64_t>(items.size());
    const auto bound = [&](size_t i) -> std::optional<int64_t> {
      if (e.operands[i] == nullptr) return std::nullopt;
      const Value v = value_of(*e.operands[i], scope);
      if (v.is_none()) return std::nullopt;
      if (v.integer() == nullptr) refuse(e.line, "expected integers in a slice");
      return *v.integer();
    };
    const std::optional<int64_t> from = bound(1), to = bound(2);
    const int64_t stride = bound(3).value_or(1);
    if (stride == 0) refuse(e.line, "a slice's step is 0");
    const auto clamp = [&](int64_t i, int64_t low, int64_t high) { return std::clamp(i < 0 ? i + n : i, low, high); };
    const int64_t begin = stride > 0 ? clamp(from.value_or(0), 0, n) : from ? clamp(*from, -1, n - 1) : n - 1;
    const int64_t end = stride > 0 ? (to ? clamp(*to, 0, n) : n) : to ? clamp(*to, -1, n - 1) : -1;
    if (text != nullptr && stride == 1) {
      if (begin >= end) return Value(Text());
      const size_t first = starts[static_cast<size_t>(begin)];
      return Value(text->substr(first, starts[static_cast<size_t>(end)] - first));
    }
    List part;
    Text characters;
    for (int64_t i = begin; stride > 0 ? i < end : i > end; i += stride) {
      const auto at = static_cast<size_t>(i);
      if (text == nullptr) {
        part.push_back(items[at]);
      } else {
        step(e.line);
        characters += text->substr(starts[at], starts[at + 1] - starts[at]);
      }
      if (stride > n || stride < -n) break;  // there is one
    }
    return text != nullptr ? Value(std::move(characters)) : Value(std::move(part));
  }

  Value call(const Expression& e, Scope& scope) {
    const Expression& callee = *e.operands[0];
    if (callee.kind == E::kAttribute) {
      const Value object = value_of(*callee.operands[0], scope);
      need_defined(object, e.line);
      const Value member = attribute(object, callee.name, e.line);
      if (member.callable() == nullptr) return method(object, callee.name, arguments_of(e, 1, scope), e.line);
      return member.callable()->call(arguments_of(e, 1, scope));
    }
    const Value function = value_of(callee, scope);
    need_defined(function, e.line);
    if (function.callable() == nullptr) {
      refuse(e.line, fmt::format("expected a function, found a value of type {}", function.type()));
    }
    line_ = e.line;
    return function.callable()->call(arguments_of(e, 1, scope));
  }

  // Of a bool or an int.
  static int64_t integer_of(const Value& value) {
    return value.boolean() != nullptr ? int64_t{*value.boolean()} : *value.integer();
  }
  int64_t cut(double value, int line) const {
    if (!(std::abs(value) < 9e18)) refuse(line, "a number leaves 64 bits");
    return static_cast<int64_t>(value);
  }

  Value unary(const Expression& e, Scope& scope) {
    const Value value = value_of(*e.operands[0], scope);
    if (e.name == "not") return Value(!value.truthy());
    need_defined(value, e.line);
    if (!value.is_number()) refuse(e.line, fmt::format("expected a number, found a value of type {}", value.type()));
    if (value.real() != nullptr) return Value(e.name == "-" ? -*value.real() : *value.real());
    const int64_t integer = integer_of(value);
    return e.name == "-" ? arithmetic("-", Value(int64_t{0}), value, e.line) : Value(integer);
  }

  bool contains(const Value& container, const Value& value, int line) {
    if (const Text* text = container.text()) {
      if (value.text() == nullptr) refuse(line, fmt::format("expected a string before in, found a value of type {}", value.type()));
      return text->view().find(value.text()->view()) != std::string_view::npos;
    }
    if (const Dict* dict = container.dict()) return value.text() != nullptr && dict->find(value.text()->view()) != nullptr;
    if (const List* list = container.list()) {
      charge(list->size(), line);
      return std::ranges::any_of(*list, [&](const Value& item) { return equal(item, value); });
    }
    if (container.is_undefined()) return false;
    if (Namespace* space = container.name_space()) return value.text() != nullptr && space->values.find(value.text()->view()) != nullptr;
    refuse(line, fmt::format("expected a container behind in, found a value of type {}", container.type()));
  }

  Value binary(const Expression& e, Scope& scope) {
    const std::string& op = e.name;
    Value a = value_of(*e.operands[0], scope);
    if (op == "and") return a.truthy() ? value_of(*e.operands[1], scope) : a;
    if (op == "or") return a.truthy() ? a : value_of(*e.operands[1], scope);
    const Value b = value_of(*e.operands[1], scope);
    if (op == "==") return Value(equal(a, b));
    if (op == "!=") return Value(!equal(a, b));
    if (op == "in") return Value(contains(b, a, e.line));
    if (op == "not in") return Value(!contains(b, a, e.line));
    if (op == "~") return joined_text(a.str(), b.str(), e.line);
    need_defined(a, e.line);
    need_defined(b, e.line);
    if (op == "<" || op == ">" || op == "<=" || op == ">=") return Value(compare(op, a, b, e.line));
    if (op == "+") {
      if (a.text() != nullptr && b.text() != nullptr) return joined_text(*a.text(), *b.text(), e.line);
      if (a.list() != nullptr && b.list() != nullptr) {
        charge(2 * (a.list()->size() + b.list()->size()), e.line);
        List both = *a.list();
        both.insert(both.end(), b.list()->begin(), b.list()->end());
        return Value(std::move(both));
      }
    }
    if (op == "*" && a.text() != nullptr && b.integer() != nullptr) {
      Text repeated;
      for (int64_t i = 0; i < *b.integer(); ++i) write(repeated, *a.text(), e.line);
      return Value(std::move(repeated));
    }
    if (!a.is_number() || !b.is_number()) {
      refuse(e.line, fmt::format("{}: expected two numbers, or two strings to be joined, found values of types {} and {}",
                                 op, a.type(), b.type()));
    }
    return arithmetic(op, a, b, e.line);
  }

  Value joined_text(Text a, const Text& b, int line) {
    a += b;
    check_size(a, line);
    return Value(std::move(a));
  }

  bool compare(const std::string& op, const Value& a, const Value& b, int line) const {
    const auto decide = [&](const auto& x, const auto& y) {
      return op == "<" ? x < y : op == ">" ? x > y : op == "<=" ? x <= y : x >= y;
    };
    if (a.is_number() && b.is_number()) return decide(a.number(), b.number());
    if (a.text() != nullptr && b.text() != nullptr) return decide(a.text()->view(), b.text()->view());
    refuse(line, fmt::format("{}: values of types {} and {} have no order", op, a.type(), b.type()));
  }

  Value arithmetic(const std::string& op, const Value& a, const Value& b, int line) const {
    const double x = a.number(), y = b.number();
    if ((op == "/" || op == "//" || op == "%") && y == 0) refuse(line, "division by zero");
    if (op == "/") return Value(x / y);
    if (a.real() != nullptr || b.real() != nullptr) {
      if (op == "+") return Value(x + y);
      if (op == "-") return Value(x - y);
      if (op == "*") return Value(x * y);
      if (op == "//") return Value(std::floor(x / y));
      if (op == "%") return Value(x - std::floor(x / y) * y);
      return Value(std::pow(x, y));
    }
    const int64_t i = integer_of(a), j = integer_of(b);
    int64_t result = 0;
    bool overflows = j == -1 && i == INT64_MIN;
    if (op == "+") overflows = __builtin_add_overflow(i, j, &result);
    if (op == "-") overflows = __builtin_sub_overflow(i, j, &result);
    if (op == "*") overflows = __builtin_mul_overflow(i, j, &result);
    if (!overflows && (op == "//" || op == "%")) {
      const int64_t quotient = i / j - ((i % j != 0) && ((i < 0) != (j < 0)) ? 1 : 0);
      result = op == "//" ? quotient : i - quotient * j;
    }
    if (op == "**") {
      if (j < 0) return Value(std::pow(x, y));
      if (i == 0 || i == 1 || i == -1) return Value(j == 0 || i == 1 || (i == -1 && j % 2 == 0) ? int64_t{1} : i);
      result = 1;
      for (int64_t n = 0; n < j && !overflows; ++n) overflows = __builtin_mul_overflow(result, i, &result);
    }
    if (overflows) refuse(line, "an integer leaves 64 bits");
    return Value(result);
  }

  // ---- filters, tests, methods, functions ----

  const Text& text_of(const Value& value, int line) const {
    need_defined(value, line);
    if (value.text() == nullptr) refuse(line, fmt::format("expected a string, found a value of type {}", value.type()));
    return *value.text();
  }
  const Text* optional_text(const Arguments& a, size_t index, const char* name, int line) const {
    const Value* value = a.get(index, name);
    return value == nullptr || value->is_none() ? nullptr : &text_of(*value, line);
  }
  int64_t optional_integer(const Arguments& a, size_t index, const char* name, int64_t fallback, int line) const {
    const Value* value = a.get(index, name);
    if (value == nullptr || value->is_none()) return fallback;
    if (value->integer() == nullptr) refuse(line, fmt::format("{}: expected an integer", name));
    return *value->integer();
  }

  // A dotted path of names and indices.
  Value by_path(const Value& value, const std::string& path, int line) {
    Value at = value;
    for (size_t begin = 0; begin <= path.size();) {
      const size_t dot = std::min(path.find('.', begin), path.size());
      const std::string part = path.substr(begin, dot - begin);
      const bool is_index = !part.empty() && part.size() < 10 && std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
      at = is_index ? item(at, Value(static_cast<int64_t>(std::stoll(part))), line)
                    : at.is_undefined() ? at : attribute(at, part, line);
      begin = dot + 1;
    }
    return at;
  }

  // select, reject, selectattr, rejectattr.
  Value selected(const std::string& name, const Arguments& a, int line) {
    const bool by_attribute = name.ends_with("attr"), wanted = name.starts_with("select");
    size_t next = 1;
    std::string path;
    if (by_attribute) path = text_of(a.positional.size() > next ? a.positional[next++] : Value(Undefined{name}), line).bytes();
    std::string test_name;
    if (a.positional.size() > next) test_name = text_of(a.positional[next++], line).bytes();
    List kept;
    for (const Value& candidate : iterated(a.positional[0], line)) {
      const Value value = by_attribute ? by_path(candidate, path, line) : candidate;
      bool is = value.truthy();
      if (!test_name.empty()) {
        Arguments of_test;
        of_test.positional.push_back(value);
        for (size_t i = next; i < a.positional.size(); ++i) of_test.positional.push_back(a.positional[i]);
        is = test(test_name, of_test, line);
      }
      if (is == wanted) kept.push_back(candidate);
    }
    return Value(std::move(kept));
  }

  Value map_filter(const Arguments& a, int line) {
    List results;
    const Value* path = a.named.find("attribute");
    const Value* fallback = a.named.find("default");
    for (const Value& value : iterated(a.positional[0], line)) {
      if (path != nullptr) {
        Value found = path->integer() != nullptr ? item(value, *path, line) : by_path(value, text_of(*path, line).bytes(), line);
        results.push_back(found.is_undefined() && fallback != nullptr ? *fallback : found);
        continue;
      }
      Arguments of_filter;
      of_filter.positional.push_back(value);
      if (a.positional.size() < 2) refuse(line, "map: expected a filter or attribute=");
      for (size_t i = 2; i < a.positional.size(); ++i) of_filter.positional.push_back(a.positional[i]);
      results.push_back(filter(text_of(a.positional[1], line).bytes(), of_filter, line));
    }
    return Value(std::move(results));
  }

  Value joined(const Arguments& a, int line) {
    const Value* separator = a.get(1, "d");
    const Value* path = a.get(2, "attribute");
    Text text;
    bool first = true;
    for (const Value& value : iterated(a.positional[0], line)) {
      if (!std::exchange(first, false) && separator != nullptr) text += separator->str();
      write(text, path != nullptr ? by_path(value, path->str().bytes(), line).str() : value.str(), line);
    }
    return Value(std::move(text));
  }

  Value sorted(const Arguments& a, int line) {
    List list = iterated(a.positional[0], line);
    const Value* reverse = a.get(1, "reverse");
    const Value* sensitive = a.get(2, "case_sensitive");
    const Value* path = a.get(3, "attribute");
    const auto key = [&](const Value& value) {
      Value k = path != nullptr ? by_path(value, path->str().bytes(), line) : value;
      const bool folds = k.text() != nullptr && !(sensitive != nullptr && sensitive->truthy());
      return folds ? Value(mapped(*k.text(), lower)) : k;
    };
    const bool down = reverse != nullptr && reverse->truthy();
    std::stable_sort(list.begin(), list.end(), [&](const Value& x, const Value& y) {
      return down ? compare("<", key(y), key(x), line) : compare("<", key(x), key(y), line);
    });
    return Value(std::move(list));
  }

  Value pairs_of(const Value& value, int line) {
    need_defined(value, line);
    const Dict* dict = value.dict();
    if (dict == nullptr) refuse(line, fmt::format("expected a dict, found a value of type {}", value.type()));
    List pairs;
    for (const auto& [key, member] : dict->items()) pairs.emplace_back(List{Value(Text(key)), member});
    return Value(std::move(pairs));
  }

  Value filter(const std::string& name, const Arguments& a, int line) {
    const Value& value = a.positional[0];
    if (name == "default" || name == "d") {
      const Value* fallback = a.get(1, "default_value");
      const Value* also_false = a.get(2, "boolean");
      const bool is_missing = value.is_undefined() || (also_false != nullptr && also_false->truthy() && !value.truthy());
      return is_missing ? (fallback != nullptr ? *fallback : Value("")) : value;
    }
    if (name == "tojson") {
      need_defined(value, line);
      return Value(to_json(value, static_cast<int>(optional_integer(a, 1, "indent", -1, line))));
    }
    if (name == "trim") return Value(stripped(value.str(), optional_text(a, 1, "chars", line), true, true));
    if (name == "length" || name == "count") {
      if (value.is_undefined()) return Value(int64_t{0});
      if (value.text() != nullptr) return Value(n_characters(value.text()->view()));
      return Value(static_cast<int64_t>(value.dict() != nullptr ? value.dict()->size() : iterated(value, line).size()));
    }
    if (name == "string") return Value(value.str());
    if (name == "safe") return value;
    if (name == "upper" || name == "lower") {
      const Text text = value.str();
      charge(text.size() / 16, line);
      return Value(mapped(text, name == "upper" ? upper : lower));
    }
    if (name == "capitalize" || name == "title") {
      const Text text = value.str();
      charge(text.size() / 16, line);
      bool starts = true;
      return Value(mapped(text, [&](char32_t c) {
        const char32_t result = starts ? upper(c) : lower(c);
        starts = name == "title" && !is_letter(c) && c != '\'' && !(c >= '0' && c <= '9');
        return result;
      }));
    }
    if (name == "replace") {
      const Text* from = optional_text(a, 1, "old", line);
      const Text* to = optional_text(a, 2, "new", line);
      if (from == nullptr || to == nullptr || from->empty()) refuse(line, "replace: expected what to replace, and by what");
      Text changed = value.str().replaced(from->view(), *to, optional_integer(a, 3, "count", -1, line));
      check_size(changed, line);
      return Value(std::move(changed));
    }
    if (name == "join") return joined(a, line);
    if (name == "first" || name == "last") {
      const List list = iterated(value, line);
      if (list.empty()) return Value(Undefined{"the list is empty"});
      return name == "first" ? list.front() : list.back();
    }
    if (name == "list") return Value(iterated(value, line));
    if (name == "reverse") {
      List list = iterated(value, line);
      std::ranges::reverse(list);
      if (value.text() == nullptr) return Value(std::move(list));
      Text text;
      for (const Value& character : list) text += *character.text();
      return Value(std::move(text));
    }
    if (name == "unique") {
      List list;
      for (const Value& candidate : iterated(value, line)) {
        if (std::ranges::none_of(list, [&](const Value& v) { return equal(v, candidate); })) list.push_back(candidate);
      }
      return Value(std::move(list));
    }
    if (name == "items") return value.is_undefined() ? Value(List{}) : pairs_of(value, line);
    if (name == "dictsort") {
      Arguments by_key;
      by_key.positional = {pairs_of(value, line), Value(false), Value(false), Value("0")};
      return sorted(by_key, line);
    }
    if (name == "sort") return sorted(a, line);
    if (name == "map") return map_filter(a, line);
    if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr") return selected(name, a, line);
    if (name == "int") {
      if (value.real() != nullptr) return Value(cut(*value.real(), line));
      if (value.is_number()) return Value(integer_of(value));
      int64_t result = optional_integer(a, 1, "default", 0, line);
      if (const Text* t = value.text()) {
        const Text bare = stripped(*t, nullptr, true, true);
        char* end = nullptr;
        const double parsed = std::strtod(bare.bytes().c_str(), &end);
        if (!bare.empty() && *end == '\0' && std::abs(parsed) < 9e18) result = static_cast<int64_t>(parsed);
      }
      return Value(result);
    }
    if (name == "float") {
      if (value.is_number()) return Value(value.number());
      if (const Text* t = value.text()) {
        char* end = nullptr;
        const Text bare = stripped(*t, nullptr, true, true);
        const double parsed = std::strtod(bare.bytes().c_str(), &end);
        if (!bare.empty() && *end == '\0') return Value(parsed);
      }
      return Value(0.0);
    }
    if (name == "abs") {
      if (value.integer() != nullptr) {
        return *value.integer() < 0 ? arithmetic("-", Value(int64_t{0}), value, line) : value;
      }
      if (value.real() != nullptr) return Value(std::abs(*value.real()));
    }
    if (name == "sum") {
      Value sum(int64_t{0});
      for (const Value& term : iterated(value, line)) {
        if (!term.is_number()) refuse(line, "sum: expected numbers");
        sum = arithmetic("+", sum, term, line);
      }
      return sum;
    }
    if (name == "max" || name == "min") {
      const List list = iterated(value, line);
      if (list.empty()) return Value(Undefined{"the list is empty"});
      Value best = list[0];
      for (const Value& candidate : list) {
        if (compare(name == "max" ? ">" : "<", candidate, best, line)) best = candidate;
      }
      return best;
    }
    if (name == "indent") {
      const Value* width = a.get(1, "width");
      const Value* also_first = a.get(2, "first");
      const Value* also_blank = a.get(3, "blank");
      const Text pad = width == nullptr ? Text("    ")
                       : width->text() != nullptr
                           ? *width->text()
                           : Text(std::string(static_cast<size_t>(std::clamp<int64_t>(optional_integer(a, 1, "width", 4, line), 0, 1000)), ' '));
      const List lines = split(value.str(), std::make_unique<Text>("\n").get(), -1);
      Text result;
      for (size_t i = 0; i < lines.size(); ++i) {
        const Text& one = *lines[i].text();
        if (i > 0) result += "\n";
        const bool pads = i == 0 ? also_first != nullptr && also_first->truthy()
                                 : !one.empty() || (also_blank != nullptr && also_blank->truthy());
        if (pads) result += pad;
        result += one;
      }
      return Value(std::move(result));
    }
    if (name == "wordcount") return Value(static_cast<int64_t>(split(value.str(), nullptr, -1).size()));
    refuse(line, fmt::format("the filter {} is not supported", name));
  }

  bool test(const std::string& name, const Arguments& a, int line) {
    const Value& value = a.positional[0];
    const auto other = [&]() -> const Value& {
      if (a.positional.size() < 2) refuse(line, fmt::format("is {}: expected a value to compare with", name));
      return a.positional[1];
    };
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
    if (name == "sequence") return value.list() != nullptr || value.text() != nullptr || value.dict() != nullptr;
    if (name == "iterable") {
      return value.list() != nullptr || value.text() != nullptr || value.dict() != nullptr || value.is_undefined();
    }
    if (name == "callable") return value.callable() != nullptr;
    if (name == "equalto" || name == "eq" || name == "==") return equal(value, other());
    if (name == "ne" || name == "!=") return !equal(value, other());
    if (name == "lt" || name == "<" || name == "lessthan") return compare("<", value, other(), line);
    if (name == "gt" || name == ">" || name == "greaterthan") return compare(">", value, other(), line);
    if (name == "le" || name == "<=") return compare("<=", value, other(), line);
    if (name == "ge" || name == ">=") return compare(">=", value, other(), line);
    if (name == "in") return contains(other(), value, line);
    if (name == "sameas") return equal(value, other());
    if (name == "odd" || name == "even") {
      if (value.integer() == nullptr) refuse(line, fmt::format("is {}: expected an integer", name));
      return (*value.integer() % 2 != 0) == (name == "odd");
    }
    if (name == "divisibleby") {
      if (value.integer() == nullptr || other().integer() == nullptr || *other().integer() == 0) refuse(line, "is divisibleby: expected integers");
      return *value.integer() % *other().integer() == 0;
    }
    if (name == "upper" || name == "lower") {
      const std::string text = value.str().bytes();
      return std::ranges::any_of(text, [](char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }) &&
             std::ranges::none_of(text, [&](char c) { return name == "upper" ? std::islower(static_cast<unsigned char>(c)) != 0 : std::isupper(static_cast<unsigned char>(c)) != 0; });
    }
    refuse(line, fmt::format("the test {} is not supported", name));
  }

  bool has_end(const Text& text, const Value& ends, bool at_start, int line) const {
    if (const List* list = ends.list()) {
      return std::ranges::any_of(*list, [&](const Value& end) { return has_end(text, end, at_start, line); });
    }
    const std::string_view end = text_of(ends, line).view();
    return at_start ? text.view().starts_with(end) : text.view().ends_with(end);
  }

  Value method(const Value& object, const std::string& name, const Arguments& a, int line) {
    if (const Dict* dict = object.dict()) {
      if (name == "items") return pairs_of(object, line);
      if (name == "keys") return Value(iterated(object, line));
      if (name == "values") {
        List values;
        for (const auto& [key, value] : dict->items()) values.push_back(value);
        return Value(std::move(values));
      }
      if (name == "get") {
        const Value* key = a.get(0, "key");
        const Value* found = key != nullptr && key->text() != nullptr ? dict->find(key->text()->view()) : nullptr;
        const Value* fallback = a.get(1, "default");
        return found != nullptr ? *found : fallback != nullptr ? *fallback : Value(None{});
      }
    }
    if (const Text* text = object.text()) {
      const auto need = [&](size_t index, const char* of) -> const Value& {
        const Value* value = a.get(index, of);
        if (value == nullptr) refuse(line, fmt::format("{}: expected an argument", name));
        return *value;
      };
      if (name == "strip") return Value(stripped(*text, optional_text(a, 0, "chars", line), true, true));
      if (name == "lstrip") return Value(stripped(*text, optional_text(a, 0, "chars", line), true, false));
      if (name == "rstrip") return Value(stripped(*text, optional_text(a, 0, "chars", line), false, true));
      if (name == "split") {
        const Text* separator = optional_text(a, 0, "sep", line);
        if (separator != nullptr && separator->empty()) refuse(line, "split: expected a separator, found an empty one");
        return Value(split(*text, separator, optional_integer(a, 1, "maxsplit", -1, line)));
      }
      if (name == "splitlines") {
        List lines = split(*text, std::make_unique<Text>("\n").get(), -1);
        if (!lines.empty() && lines.back().text()->empty()) lines.pop_back();
        return Value(std::move(lines));
      }
      if (name == "startswith") return Value(has_end(*text, need(0, "prefix"), true, line));
      if (name == "endswith") return Value(has_end(*text, need(0, "suffix"), false, line));
      if (name == "replace") {
        const Text& from = text_of(need(0, "old"), line);
        if (from.empty()) refuse(line, "replace: expected what to replace, found nothing");
        Text changed = text->replaced(from.view(), text_of(need(1, "new"), line), optional_integer(a, 2, "count", -1, line));
        check_size(changed, line);
        return Value(std::move(changed));
      }
      if (name == "upper" || name == "lower" || name == "capitalize" || name == "title") {
        Arguments of_filter;
        of_filter.positional.push_back(object);
        return filter(name, of_filter, line);
      }
      if (name == "join") {
        Arguments of_filter;
        of_filter.positional = {need(0, "iterable"), object};
        return joined(of_filter, line);
      }
      if (name == "find") {
        const size_t found = text->view().find(text_of(need(0, "sub"), line).view());
        if (found == std::string_view::npos) return Value(int64_t{-1});
        return Value(n_characters(text->view().substr(0, found)));
      }
      if (name == "count") {
        const std::string_view what = text_of(need(0, "sub"), line).view();
        int64_t n = 0;
        for (size_t at = 0; !what.empty() && (at = text->view().find(what, at)) != std::string_view::npos; at += what.size()) ++n;
        return Value(n);
      }
      if (name == "removeprefix" || name == "removesuffix") {
        const std::string_view part = text_of(need(0, "part"), line).view();
        if (name == "removeprefix") return Value(text->view().starts_with(part) ? text->substr(part.size()) : *text);
        return Value(text->view().ends_with(part) ? text->substr(0, text->size() - part.size()) : *text);
      }
      if (name == "format") {  // of places without a name or a number
        Text result;
        size_t at = 0;
        for (const Value& argument : a.positional) {
          const size_t place = text->view().find("{}", at);
          if (place == std::string_view::npos) break;
          result += text->substr(at, place - at);
          result += argument.str();
          at = place + 2;
        }
        if (text->view().find('{', at) != std::string_view::npos) refuse(line, "format: expected {} for every argument");
        return Value(result += text->substr(at));
      }
      if (name == "isdigit") {
        return Value(!text->empty() && std::ranges::all_of(text->view(), [](char c) { return c >= '0' && c <= '9'; }));
      }
    }
    refuse(line, fmt::format("values of type {} have no method {} here", object.type(), name));
  }

  void define_globals(Scope& globals) {
    const auto define = [&](const char* name, std::function<Value(const Arguments&)> call) {
      globals.variables.set(name, Value(Callable{name, std::move(call)}));
    };
    define("raise_exception", [this](const Arguments& a) -> Value {
      const Value* message = a.get(0, "message");
      fail(ErrorKind::kUsage, "{}: {}", name_, message != nullptr ? message->str().bytes() : "the template raises an exception");
    });
    if (strftime_now_) define("strftime_now", [this](const Arguments& a) {
      return Value(strftime_now_(text_of(a.positional.empty() ? Value(Undefined{"a format"}) : a.positional[0], line_).bytes()));
    });
    define("namespace", [this](const Arguments& a) {
      auto space = std::make_shared<Namespace>();
      spaces_.push_back(space);
      for (const Value& value : a.positional) {
        if (value.dict() != nullptr) space->values = *value.dict();
      }
      for (const auto& [key, value] : a.named.items()) space->values.set(key, value);
      return Value(std::move(space));
    });
    define("dict", [](const Arguments& a) {
      Dict dict;
      if (!a.positional.empty() && a.positional[0].dict() != nullptr) dict = *a.positional[0].dict();
      for (const auto& [key, value] : a.named.items()) dict.set(key, value);
      return Value(std::move(dict));
    });
    define("range", [this](const Arguments& a) {
      int64_t bounds[3] = {0, 0, 1};
      const size_t n = a.positional.size();
      for (size_t i = 0; i < n && i < 3; ++i) {
        if (a.positional[i].integer() == nullptr) refuse(line_, "range: expected integers");
        bounds[n == 1 ? 1 : i] = *a.positional[i].integer();
      }
      if (bounds[2] == 0) refuse(line_, "range: the step is 0");
      List list;
      for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1]; i += bounds[2]) {
        step(line_);
        if (list.size() > 100'000) refuse(line_, "range: more than 100,000 numbers");
        list.emplace_back(i);
      }
      return Value(std::move(list));
    });
  }

  const std::string& name_;
  const std::function<std::string(const std::string&)>& strftime_now_;
  Scope* top_ = nullptr;
  std::vector<std::shared_ptr<Namespace>> spaces_;
  int64_t steps_ = 0;
  int depth_ = 0, line_ = 0;
};

}  // namespace

Template Template::parse(std::string_view source, const std::string& name) {
  Template result;
  result.name_ = name;
  result.block_ = std::make_shared<const Block>(jinja::parse(source, name));
  return result;
}

Text Template::render(const Dict& variables, const std::function<std::string(const std::string&)>& strftime_now) const {
  return Run(name_, strftime_now).all(*block_, variables);
}

}  // namespace tiercel::jinja
