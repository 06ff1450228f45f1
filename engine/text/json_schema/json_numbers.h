// Numbers of JSON between bounds, digit by digit: no rounding anywhere.
//
// Digits that no bound is about are kMostFreeDigits at most, and three in an exponent: a model that writes one after
// the other comes to an end. With a bound, numbers are written without exponent. Zero has a minus only where negative
// numbers are allowed too.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "engine/text/grammar/expression.h"

namespace tiercel::grammar {

// A number in its one form: whole "0" or without leading zeros, fraction without trailing ones, zero not negative.
struct Decimal {
  bool negative = false;
  std::string whole = "0", fraction;
};
inline constexpr size_t kMostDigits = 400;
inline constexpr int64_t kMostFreeDigits = 20;

// Of a number as JSON writes it. None: written out it has more digits than kMostDigits.
std::optional<Decimal> parse_decimal(std::string_view number);
std::string to_text(const Decimal& number);
// Less than 0, 0, or more than 0.
int compare(const Decimal& a, const Decimal& b);

struct Bound {
  Decimal value;
  bool exclusive = false;
};
struct NumberRange {
  std::optional<Bound> lower, upper;
};
bool contains(const NumberRange& range, const Decimal& number);

// Integers of the range that are multiples of 10^n_zeros.
Expr json_integer(const NumberRange& range, int n_zeros = 0);
// Any numbers of the range.
Expr json_number(const NumberRange& range);

}  // namespace tiercel::grammar
