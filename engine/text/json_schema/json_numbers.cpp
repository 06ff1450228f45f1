#include "engine/text/json_schema/json_numbers.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <utility>
#include <vector>

namespace tiercel::grammar {
namespace {

Expr digit_from(char first, char last) {
  return characters({{static_cast<char32_t>(first), static_cast<char32_t>(last)}});
}
Expr digit() { return digit_from('0', '9'); }
Expr digits(size_t n) { return repeat(digit(), static_cast<int64_t>(n), static_cast<int64_t>(n)); }
char after(char digit) { return static_cast<char>(digit + 1); }
char before(char digit) { return static_cast<char>(digit - 1); }

Decimal in_one_form(Decimal number) {
  number.whole.erase(0, std::min(number.whole.find_first_not_of('0'), number.whole.size()));
  number.fraction.erase(number.fraction.find_last_not_of('0') + 1);
  if (number.whole.empty()) number.whole = "0";
  if (number.whole == "0" && number.fraction.empty()) number.negative = false;
  return number;
}

// The point goes so many places to the right.
Decimal shifted(Decimal number, int n) {
  const auto move = [](std::string& from, std::string& to, size_t count, bool forward) {
    if (forward) {
      from.resize(std::max(from.size(), count), '0');
      to += from.substr(0, count);
      from.erase(0, count);
    } else {
      if (from.size() < count) from.insert(0, count - from.size(), '0');
      to.insert(0, from.substr(from.size() - count));
      from.resize(from.size() - count);
    }
  };
  if (n >= 0) {
    move(number.fraction, number.whole, static_cast<size_t>(n), true);
  } else {
    move(number.whole, number.fraction, static_cast<size_t>(-n), false);
  }
  return in_one_form(std::move(number));
}

int compare_whole(std::string_view a, std::string_view b) {
  return a.size() != b.size() ? (a.size() < b.size() ? -1 : 1) : a.compare(b);
}

std::string plus_one(std::string whole) {
  size_t i = whole.size();
  while (i > 0 && whole[i - 1] == '9') whole[--i] = '0';
  if (i == 0) return "1" + whole;
  ++whole[i - 1];
  return whole;
}

std::string minus_one(std::string whole) {  // not of "0"
  size_t i = whole.size();
  while (whole[i - 1] == '0') whole[--i] = '9';
  --whole[i - 1];
  return whole.size() > 1 && whole.front() == '0' ? whole.substr(1) : whole;
}

Decimal negated(Decimal number) {
  number.negative = !number.negative;
  return in_one_form(std::move(number));
}

// ---- whole numbers ----

// Digit strings of the length of `least` that are not below it.
Expr digits_at_least(std::string_view least) {
  if (least.find_first_not_of('0') == least.npos) return digits(least.size());
  const char d = least.front();
  return choice({sequence({digit_from(d, d), digits_at_least(least.substr(1))}),
                 sequence({digit_from(after(d), '9'), digits(least.size() - 1)})});
}

Expr digits_at_most(std::string_view most) {
  if (most.find_first_not_of('9') == most.npos) return digits(most.size());
  const char d = most.front();
  return choice({sequence({digit_from('0', before(d)), digits(most.size() - 1)}),
                 sequence({digit_from(d, d), digits_at_most(most.substr(1))})});
}

Expr digits_between(std::string_view least, std::string_view most) {
  size_t same = 0;
  while (same < least.size() && least[same] == most[same]) ++same;
  if (same == least.size()) return text(std::string(least));
  const char a = least[same], b = most[same];
  const size_t n_behind = least.size() - same - 1;
  return sequence({text(std::string(least.substr(0, same))),
                   choice({sequence({digit_from(a, a), digits_at_least(least.substr(same + 1))}),
                           sequence({digit_from(after(a), before(b)), digits(n_behind)}),
                           sequence({digit_from(b, b), digits_at_most(most.substr(same + 1))})})});
}

// Not negative ones from `least` to `most`; most empty: to no end.
Expr whole_between(const std::string& least, const std::string& most) {
  if (!most.empty() && compare_whole(least, most) > 0) return nothing();
  if (least == "0") return choice({text("0"), whole_between("1", most)});
  if (most.size() == least.size()) return digits_between(least, most);
  const auto n = static_cast<int64_t>(least.size());
  std::vector<Expr> parts = {digits_between(least, std::string(least.size(), '9'))};
  if (most.empty()) {
    parts.push_back(sequence({digit_from('1', '9'), repeat(digit(), n, std::max(n, kMostFreeDigits - 1))}));
  } else {
    const auto last = static_cast<int64_t>(most.size());
    if (n < last - 1) parts.push_back(sequence({digit_from('1', '9'), repeat(digit(), n, last - 2)}));
    parts.push_back(digits_between("1" + std::string(most.size() - 1, '0'), most));
  }
  return choice(std::move(parts));
}

Expr multiples_between(const std::string& least, const std::string& most, int n_zeros) {
  if (n_zeros == 0) return whole_between(least, most);
  const Expr positive = whole_between(least == "0" ? "1" : least, most);
  const Expr written = sequence({positive, text(std::string(static_cast<size_t>(n_zeros), '0'))});
  return least == "0" ? choice({text("0"), written}) : written;
}

// The least integer that this lower bound lets through.
Decimal least_integer(const Bound& bound) {
  Decimal result = in_one_form({bound.value.negative, bound.value.whole, ""});
  const bool is_whole = bound.value.fraction.empty();
  if (is_whole ? !bound.exclusive : bound.value.negative) return result;
  if (!result.negative) return {false, plus_one(result.whole), ""};
  return in_one_form({true, minus_one(result.whole), ""});
}

// ---- fractions ----

// What may stand behind the point: digits, of which a missing one counts as 0.
struct Tail {
  bool may_be_empty = false;
  Expr some;  // at least one digit

  Expr all() const { return may_be_empty ? optional(some) : some; }
};

Tail any_tail() { return {true, repeat(digit(), 1, kMostFreeDigits)}; }
Expr any_digits() { return repeat(digit(), 0, kMostFreeDigits); }

Tail tail_at_least(std::string_view least, bool exclusive) {
  if (least.empty() && !exclusive) return any_tail();
  if (least.empty())
    return {false, sequence({repeat(text("0"), 0, kMostFreeDigits), digit_from('1', '9'), any_digits()})};
  const char d = least.front();
  return {false, choice({sequence({digit_from(d, d), tail_at_least(least.substr(1), exclusive).all()}),
                         sequence({digit_from(after(d), '9'), any_digits()})})};
}

Tail tail_at_most(std::string_view most, bool exclusive) {
  if (most.empty() && exclusive) return {false, nothing()};
  if (most.empty()) return {true, repeat(text("0"), 1, kMostFreeDigits)};
  const char d = most.front();
  return {true, choice({sequence({digit_from('0', before(d)), any_digits()}),
                        sequence({digit_from(d, d), tail_at_most(most.substr(1), exclusive).all()})})};
}

struct Edge {  // of a range of tails
  std::string_view digits;
  bool exclusive;

  char first() const { return digits.empty() ? '0' : digits.front(); }
  Edge rest() const { return {digits.empty() ? digits : digits.substr(1), exclusive}; }
};

Tail tail_between(const Edge& least, const Edge& most) {
  if (least.digits.empty() && !least.exclusive) return tail_at_most(most.digits, most.exclusive);
  if (most.digits.empty()) return {false, nothing()};  // what is left is above 0
  const char a = least.first(), b = most.first();
  if (a > b) return {false, nothing()};
  if (a == b) return {false, sequence({digit_from(a, a), tail_between(least.rest(), most.rest()).all()})};
  return {false, choice({sequence({digit_from(a, a), tail_at_least(least.rest().digits, least.exclusive).all()}),
                         sequence({digit_from(after(a), before(b)), any_digits()}),
                         sequence({digit_from(b, b), tail_at_most(most.rest().digits, most.exclusive).all()})})};
}

Expr with_tail(Expr whole, const Tail& tail) {
  const Expr point = sequence({text("."), tail.some});
  return sequence({std::move(whole), tail.may_be_empty ? optional(point) : point});
}

// Not negative ones; upper none: to no end.
Expr decimals_between(const Bound& lower, const std::optional<Bound>& upper) {
  const std::string& least = lower.value.whole;
  if (!upper) {
    return choice({with_tail(text(least), tail_at_least(lower.value.fraction, lower.exclusive)),
                   with_tail(whole_between(plus_one(least), ""), any_tail())});
  }
  const std::string& most = upper->value.whole;
  const int order = compare_whole(least, most);
  if (order > 0) return nothing();
  if (order == 0) {
    return with_tail(text(least),
                     tail_between({lower.value.fraction, lower.exclusive}, {upper->value.fraction, upper->exclusive}));
  }
  return choice({with_tail(text(least), tail_at_least(lower.value.fraction, lower.exclusive)),
                 with_tail(whole_between(plus_one(least), minus_one(most)), any_tail()),
                 with_tail(text(most), tail_at_most(upper->value.fraction, upper->exclusive))});
}

// A range of signed numbers out of one of numbers without sign, which is given as between(lower, upper).
template <typename Between>
Expr signed_range(const NumberRange& range, Between between) {
  const Bound zero = {};
  const auto magnitude = [](const Bound& bound) {
    return Bound{{false, bound.value.whole, bound.value.fraction}, bound.exclusive};
  };
  const auto is_negative = [](const std::optional<Bound>& bound) { return bound && bound->value.negative; };
  const bool has_negative = !range.lower || is_negative(range.lower);
  std::vector<Expr> parts;
  if (has_negative) {
    // The bound towards zero: an upper one at or below it, which 0 with "exclusive" is too.
    const bool near = range.upper && (range.upper->value.negative || compare(range.upper->value, {}) == 0);
    std::optional<Bound> far;
    if (range.lower) far = magnitude(*range.lower);
    parts.push_back(sequence({text("-"), between(near ? magnitude(*range.upper) : zero, far)}));
  }
  if (!is_negative(range.upper)) parts.push_back(between(has_negative ? zero : *range.lower, range.upper));
  return choice(std::move(parts));
}

}  // namespace

std::optional<Decimal> parse_decimal(std::string_view number) {
  Decimal result{.negative = number.starts_with('-'), .whole = "", .fraction = ""};
  if (result.negative) number.remove_prefix(1);
  int exponent = 0;
  if (const size_t e = number.find_first_of("eE"); e != number.npos) {
    std::string_view power = number.substr(e + 1);
    if (power.starts_with('+')) power.remove_prefix(1);
    const auto [end, error] = std::from_chars(power.data(), power.data() + power.size(), exponent);
    if (error != std::errc() || std::abs(exponent) > static_cast<int>(kMostDigits)) return std::nullopt;
    number = number.substr(0, e);
  }
  const size_t point = std::min(number.find('.'), number.size());
  result.whole = number.substr(0, point);
  if (point < number.size()) result.fraction = number.substr(point + 1);
  result = shifted(std::move(result), exponent);
  if (result.whole.size() + result.fraction.size() > kMostDigits) return std::nullopt;
  return result;
}

std::string to_text(const Decimal& number) {
  return (number.negative ? "-" : "") + number.whole + (number.fraction.empty() ? "" : "." + number.fraction);
}

int compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  int order = compare_whole(a.whole, b.whole);
  if (order == 0) order = a.fraction.compare(b.fraction);
  return a.negative ? -order : order;
}

bool contains(const NumberRange& range, const Decimal& number) {
  const int from_lower = range.lower ? compare(number, range.lower->value) : 1;
  const int from_upper = range.upper ? compare(number, range.upper->value) : -1;
  return (from_lower > 0 || (from_lower == 0 && !range.lower->exclusive)) &&
         (from_upper < 0 || (from_upper == 0 && !range.upper->exclusive));
}

Expr json_integer(const NumberRange& range, int n_zeros) {
  NumberRange whole;  // of the multiples' counts, both ends inside
  if (range.lower) {
    whole.lower = Bound{least_integer({shifted(range.lower->value, -n_zeros), range.lower->exclusive})};
  }
  if (range.upper) {  // the same in the mirror
    whole.upper =
        Bound{negated(least_integer({negated(shifted(range.upper->value, -n_zeros)), range.upper->exclusive}))};
  }
  if (whole.lower && whole.upper && compare(whole.lower->value, whole.upper->value) > 0) return nothing();
  return signed_range(whole, [&](const Bound& lower, const std::optional<Bound>& upper) {
    return multiples_between(lower.value.whole, upper ? upper->value.whole : "", n_zeros);
  });
}

Expr json_number(const NumberRange& range) {
  if (!range.lower && !range.upper) {
    const Expr exponent = sequence(
        {characters({{'e', 'e'}, {'E', 'E'}}), optional(characters({{'+', '+'}, {'-', '-'}})), repeat(digit(), 1, 3)});
    const Expr fraction = sequence({text("."), repeat(digit(), 1, kMostFreeDigits)});
    return sequence({json_integer({}), optional(fraction), optional(exponent)});
  }
  if (range.lower && range.upper && compare(range.lower->value, range.upper->value) > 0) return nothing();
  return signed_range(range, decimals_between);
}

}  // namespace tiercel::grammar
