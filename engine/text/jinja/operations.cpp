#include "engine/text/jinja/operations.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>

#include "engine/text/jinja/strings.h"
#include "engine/text/utf8.h"

namespace tiercel::jinja {
namespace {

[[noreturn]] void refuse_types(std::string_view op, const Value& a, const Value& b) {
  throw Problem(fmt::format("{}: expected values that go together, found {} and {}", op, a.type(), b.type()));
}

// Which holds 64 bits as well as a double.
long double exactly(const Value& number) {
  static_assert(std::numeric_limits<long double>::digits >= 64);
  const auto whole = number.whole();
  return whole ? static_cast<long double>(*whole) : static_cast<long double>(*number.real());
}

bool is_list(const Value& v) { return v.sequence() != nullptr && v.sequence()->kind == Sequence::Kind::kList; }
bool is_tuple(const Value& v) { return v.sequence() != nullptr && v.sequence()->kind == Sequence::Kind::kTuple; }

Value joined_lists(const Value& a, const Value& b, Budget& budget) {
  ListMaker both(budget);
  for (const Value* part : {&a, &b}) {
    for (const Value& item : part->sequence()->items) both.push(item);
  }
  return both.take(a.sequence()->kind);
}

Value repeated_list(const Value& list, int64_t n, Budget& budget) {
  ListMaker result(budget);
  for (int64_t i = 0; i < n && !list.sequence()->items.empty(); ++i) {
    for (const Value& item : list.sequence()->items) result.push(item);
  }
  return result.take(list.sequence()->kind);
}

Value real_arithmetic(std::string_view op, double x, double y) {
  if (op == "+") return x + y;
  if (op == "-") return x - y;
  if (op == "*") return x * y;
  if (op == "//") {  // as CPython has it, which x / y rounded down is not always
    const double rest = std::fmod(x, y);
    const double quotient = (x - rest) / y - (rest != 0 && (rest < 0) != (y < 0) ? 1 : 0);
    if (quotient == 0) return std::copysign(0.0, x / y);
    const double whole = std::floor(quotient);
    return quotient - whole > 0.5 ? whole + 1 : whole;
  }
  if (op == "%") {
    const double rest = std::fmod(x, y);
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest == 0 ? std::copysign(0.0, y) : rest;
  }
  const double power = std::pow(x, y);
  if (std::isnan(power) && !std::isnan(x) && !std::isnan(y)) throw Problem("**: a power that is no real number");
  if (std::isinf(power) && std::isfinite(x) && std::isfinite(y)) throw Problem("**: a number is too large");
  return power;
}

Value whole_arithmetic(std::string_view op, int64_t i, int64_t j) {
  int64_t result = 0;
  bool overflows = false;
  if (op == "+") overflows = __builtin_add_overflow(i, j, &result);
  if (op == "-") overflows = __builtin_sub_overflow(i, j, &result);
  if (op == "*") overflows = __builtin_mul_overflow(i, j, &result);
  if (op == "//" || op == "%") {
    if (j == -1) {  // of the least integer, for which / is not defined
      if (op == "//") overflows = __builtin_sub_overflow(int64_t{0}, i, &result);
    } else {
      const int64_t quotient = i / j - (i % j != 0 && (i < 0) != (j < 0) ? 1 : 0);
      result = op == "//" ? quotient : i - quotient * j;
    }
  }
  if (op == "**") {
    if (j < 0) {
      if (i == 0) throw Problem("division by zero");
      return std::pow(static_cast<double>(i), static_cast<double>(j));
    }
    if (i == 0 || i == 1 || i == -1) return j == 0 || i == 1 || (i == -1 && j % 2 == 0) ? int64_t{1} : i;
    result = 1;
    for (int64_t n = 0; n < j && !overflows; ++n) overflows = __builtin_mul_overflow(result, i, &result);
  }
  if (overflows) throw Problem(fmt::format("{}: expected integers of 64 bits", op));
  return result;
}

}  // namespace

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_number() && b.is_number()) {
    return exactly(a) == exactly(b);
  }
  if (a.text() != nullptr && b.text() != nullptr) {
    budget.read(std::min(a.text()->size(), b.text()->size()));
    return a.text()->view() == b.text()->view();
  }
  if (const Sequence* x = a.sequence(), *y = b.sequence(); x != nullptr && y != nullptr) {
    if (x == y) return true;
    if (!x->is_indexed() && !y->is_indexed() && x->kind != Sequence::Kind::kIterator)
      throw Problem("==: views of dicts are not supported");
    if (x->kind != y->kind || !x->is_indexed()) return false;
    return std::ranges::equal(x->items, y->items, [&](const Value& v, const Value& w) { return equal(v, w, budget); });
  }
  if (const Dict* x = a.dict(), *y = b.dict(); x != nullptr && y != nullptr) {
    return x->size() == y->size() && std::ranges::all_of(x->items(), [&](const Dict::Item& item) {
             const Value* other = y->find(item.first, budget);
             return other != nullptr && equal(item.second, *other, budget);
           });
  }
  if (a.is_undefined()) return b.is_undefined();
  if (a.is_none()) return b.is_none();
  if (a.name_space() != nullptr) return a.name_space() == b.name_space();
  if (a.loop() != nullptr) return a.loop() == b.loop();
  if (a.function() != nullptr) return a.function() == b.function();
  return false;
}

bool compare(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  budget.step();
  const auto decide = [&](const auto& x, const auto& y) {
    return op == "<" ? x < y : op == ">" ? x > y : op == "<=" ? x <= y : x >= y;
  };
  need_defined(a);
  need_defined(b);
  if (a.is_number() && b.is_number()) {
    return decide(exactly(a), exactly(b));
  }
  if (a.text() != nullptr && b.text() != nullptr) {
    budget.read(std::min(a.text()->size(), b.text()->size()));
    return decide(a.text()->view(), b.text()->view());
  }
  if ((is_list(a) && is_list(b)) || (is_tuple(a) && is_tuple(b))) {
    const List &x = a.sequence()->items, &y = b.sequence()->items;
    const auto [p, q] =
        std::ranges::mismatch(x, y, [&](const Value& v, const Value& w) { return equal(v, w, budget); });
    return p != x.end() && q != y.end() ? compare(op, *p, *q, budget) : decide(x.size(), y.size());
  }
  refuse_types(op, a, b);
}

bool contains(const Value& container, const Value& value, Budget& budget) {
  if (const Text* text = container.text()) {
    if (value.text() == nullptr) refuse_types("in", value, container);
    return place_of(text->view(), value.text()->view(), 0, budget) != std::string_view::npos;
  }
  if (const Dict* dict = container.dict()) return !value.is_undefined() && dict->find(value, budget) != nullptr;
  const Sequence* const generator = container.generator();
  const size_t taken = generator != nullptr ? generator->next : 0;
  const Iteration items(container, budget);
  const auto found = std::ranges::find_if(items, [&](const Value& item) { return equal(item, value, budget); });
  // A generator is asked no further.
  const bool is_there = found != items.end();
  if (is_there && generator != nullptr) generator->next = taken + static_cast<size_t>(found - items.begin()) + 1;
  return is_there;
}

Text joined(const Text& a, const Text& b, Budget& budget) {
  const bool is_markup = a.is_markup() || b.is_markup();
  TextWriter both(budget);
  both.add(is_markup ? escaped(a, budget) : a);
  both.add(is_markup ? escaped(b, budget) : b);
  return both.take().as_markup(is_markup);
}

Value arithmetic(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  need_defined(a);
  if (op == "%" && a.text() != nullptr) return printed(*a.text(), b, budget);
  need_defined(b);
  if (op == "+" && a.text() != nullptr && b.text() != nullptr) return joined(*a.text(), *b.text(), budget);
  if (op == "+" && ((is_list(a) && is_list(b)) || (is_tuple(a) && is_tuple(b)))) return joined_lists(a, b, budget);
  if (op == "*") {
    for (const auto& [one, other] : {std::pair(&a, &b), std::pair(&b, &a)}) {
      const auto n = other->whole();
      if (n && one->text() != nullptr) return repeated(*one->text(), *n, budget);
      if (n && (is_list(*one) || is_tuple(*one))) return repeated_list(*one, *n, budget);
    }
  }
  if (!a.is_number() || !b.is_number()) refuse_types(op, a, b);
  if ((op == "/" || op == "//" || op == "%") && b.number() == 0) throw Problem("division by zero");
  if (op == "/") return a.number() / b.number();
  const auto i = a.whole(), j = b.whole();
  return i && j ? whole_arithmetic(op, *i, *j) : real_arithmetic(op, a.number(), b.number());
}

Value signed_number(std::string_view sign, const Value& value, Budget& budget) {
  need_defined(value);
  if (!value.is_number()) throw Problem(fmt::format("expected a number behind {}, found {}", sign, value.type()));
  if (value.real() != nullptr) return sign == "-" ? -*value.real() : *value.real();
  return arithmetic(sign, Value(int64_t{0}), value, budget);
}

// The shortest digits that mean it, as Python writes them.
std::string python_float(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char digits[32];
  const auto end = std::to_chars(std::begin(digits), std::end(digits), value, std::chars_format::scientific).ptr;
  std::string mantissa(digits, end);
  const size_t e = mantissa.find('e');
  const int exponent = std::stoi(mantissa.substr(e + 1));
  if (exponent < -4 || exponent >= 16) {
    mantissa.resize(e);
    return fmt::format("{}e{}{:02}", mantissa, exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  const auto fixed = std::to_chars(std::begin(digits), std::end(digits), value, std::chars_format::fixed).ptr;
  std::string text(digits, fixed);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

Text printed(const Text& format, const Value& values, Budget& budget) {
  const std::string_view view = format.view();
  TextWriter result(budget);
  size_t used = 0, plain = 0;
  const auto add = [&](const Text& text) { result.add(format.is_markup() ? escaped(text, budget) : text); };
  const auto next = [&]() -> const Value& {
    if (!is_tuple(values)) {
      if (used++ > 0) throw Problem("%: not enough values for the format");
      return values;
    }
    const List& items = values.sequence()->items;
    if (used >= items.size()) throw Problem("%: not enough values for the format");
    return items[used++];
  };
  for (size_t at = view.find('%'); at != std::string_view::npos; at = view.find('%', plain)) {
    result.add(format, plain, at);
    const char kind = at + 1 < view.size() ? view[at + 1] : ' ';
    plain = at + 2;
    if (kind == '%') {
      result.add(format, at, at + 1);
    } else if (kind == 's') {
      add(str(next(), budget));
    } else if (kind == 'r') {
      add(repr(next(), budget));
    } else if (kind == 'd' || kind == 'i') {
      const Value& value = next();
      const auto whole = value.whole();
      if (!whole) throw Problem(fmt::format("%d: expected an integer, found a value of type {}", value.type()));
      result.add(std::to_string(*whole));
    } else {
      throw Problem("%: expected a format of %s, %r, %d and %%");
    }
  }
  // What has items may be there for names in the format; Python does not ask whether there are any.
  const bool takes_one = values.sequence() == nullptr && values.dict() == nullptr && !values.is_undefined();
  if (used < (is_tuple(values) ? values.sequence()->items.size() : takes_one ? 1 : 0)) {
    throw Problem("%: not all values are in the format");
  }
  result.add(format, plain);
  return result.take().as_markup(format.is_markup());
}

}  // namespace tiercel::jinja
