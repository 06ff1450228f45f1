// Bounded numbers: the grammar against exact arithmetic, for numbers around the bounds and digits added to them.
#include "engine/text/json_schema/json_numbers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>
#include <string>

#include "engine/text/grammar/recognizer.h"
#include "tests/grammar/matches.h"
#include "tests/seed.h"

namespace tiercel::grammar {
namespace {

Decimal decimal(const std::string& text) { return parse_decimal(text).value(); }

std::string description(const NumberRange& range) {
  const auto of = [](const std::optional<Bound>& bound) {
    return bound ? (bound->exclusive ? "exclusive " : "") + to_text(bound->value) : std::string("none");
  };
  return "lower " + of(range.lower) + ", upper " + of(range.upper);
}

bool matches_text(Recognizer& recognizer, const std::string& text) {
  const Recognizer::State end = recognizer.step(recognizer.start(), text);
  return end != Recognizer::kDead && recognizer.is_match(end);
}

// A number of 1 to 4 digits whose point is `scale` from the right, as a text without a useless zero at the front.
std::string scaled(int64_t value, int scale) {
  std::string digits = std::to_string(value < 0 ? -value : value);
  if (digits.size() <= static_cast<size_t>(scale))
    digits.insert(0, static_cast<size_t>(scale) + 1 - digits.size(), '0');
  if (scale > 0) digits.insert(digits.size() - static_cast<size_t>(scale), ".");
  return (value < 0 ? "-" : "") + digits;
}

class Ranges {
 public:
  explicit Ranges(uint64_t seed) : random_(seed) {}

  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_); }
  NumberRange next(int most_scale) {
    NumberRange range;
    if (integer(0, 5) > 0) range.lower = bound(most_scale);
    if (integer(0, 5) > 0) range.upper = bound(most_scale);
    return range;
  }

 private:
  Bound bound(int most_scale) {
    const int64_t size = integer(0, 3) == 0 ? 12 : integer(0, 1) == 0 ? 300 : 40000;
    const int scale = static_cast<int>(integer(0, most_scale));
    return {decimal(scaled(integer(-size, size), scale)), integer(0, 1) == 0};
  }
  std::mt19937_64 random_;
};

// Values near both bounds and zero, in steps of 10^-scale.
std::set<int64_t> near_values(const NumberRange& range, int scale) {
  std::set<int64_t> values;
  const auto around = [&](double value) {
    const auto center = static_cast<int64_t>(value * std::pow(10.0, scale));
    for (int64_t i = -25; i <= 25; ++i) values.insert(center + i);
    for (int64_t power = 10; power <= 1'000'000; power *= 10) {
      for (const int64_t step : {power, -power}) values.insert(center + step);
      for (int64_t i = -2; i <= 2; ++i) {
        values.insert(power + i);
        values.insert(-power + i);
      }
    }
  };
  around(0);
  for (const auto* bound : {&range.lower, &range.upper}) {
    if (*bound) around(std::stod(to_text((*bound)->value)));
  }
  return values;
}

bool minus_zero_is_allowed(const NumberRange& range) {
  return contains(range, Decimal{}) && (!range.lower || range.lower->value.negative);
}

TEST(Decimals, HaveOneForm) {
  EXPECT_EQ(to_text(decimal("-0")), "0");
  EXPECT_EQ(to_text(decimal("-0.000")), "0");
  EXPECT_EQ(to_text(decimal("1e-3")), "0.001");
  EXPECT_EQ(to_text(decimal("1.250E+2")), "125");
  EXPECT_EQ(to_text(decimal("-12.5e1")), "-125");
  EXPECT_EQ(to_text(decimal("0.00120")), "0.0012");
  EXPECT_FALSE(parse_decimal("1e500"));
  EXPECT_FALSE(parse_decimal("1e99999999999"));
  EXPECT_LT(compare(decimal("-2"), decimal("-1.9")), 0);
  EXPECT_LT(compare(decimal("9.99"), decimal("10")), 0);
  EXPECT_GT(compare(decimal("0.10001"), decimal("1e-1")), 0);
  EXPECT_EQ(compare(decimal("10.0"), decimal("1e1")), 0);
}

TEST(Integers, OfRandomRanges) {
  Ranges ranges(test::seed());
  int n_possible = 0;
  for (int i = 0; i < 400; ++i) {
    const NumberRange range = ranges.next(2);
    const int n_zeros = ranges.integer(0, 2) == 0 ? static_cast<int>(ranges.integer(1, 3)) : 0;
    int64_t multiple = 1;
    for (int k = 0; k < n_zeros; ++k) multiple *= 10;
    const Grammar grammar = grammar_of(choice({json_integer(range, n_zeros), text("x")}));
    Recognizer recognizer(grammar);
    SCOPED_TRACE(description(range) + ", multiples of " + std::to_string(multiple));
    for (const int64_t value : near_values(range, 0)) {
      const std::string written = std::to_string(value);
      const bool is_in = contains(range, decimal(written)) && value % multiple == 0;
      ASSERT_EQ(matches_text(recognizer, written), is_in) << written;
      ASSERT_FALSE(matches_text(recognizer, "0" + written)) << written;
      ASSERT_FALSE(matches_text(recognizer, written + ".0")) << written;
      n_possible += is_in;
    }
    // For integers the bounds that count are whole: -0 is in where -1, or its multiple, is.
    const bool minus = contains(range, Decimal{}) && contains(range, decimal("-" + std::to_string(multiple)));
    ASSERT_EQ(matches_text(recognizer, "-0"), minus);
  }
  EXPECT_GT(n_possible, 1000);
}

TEST(Numbers, OfRandomRanges) {
  Ranges ranges(test::seed() + 1);
  int n_possible = 0;
  for (int i = 0; i < 300; ++i) {
    const NumberRange range = ranges.next(4);
    if (!range.lower && !range.upper) continue;
    const Grammar grammar = grammar_of(choice({json_number(range), text("x")}));
    Recognizer recognizer(grammar);
    SCOPED_TRACE(description(range));
    for (int scale = 0; scale <= 5; ++scale) {
      for (const int64_t value : near_values(range, scale)) {
        const std::string written = scaled(value, scale);
        const bool is_in = contains(range, decimal(written));
        ASSERT_EQ(matches_text(recognizer, written), is_in) << written;
        if (scale > 0) {  // digits behind it: zeros change nothing, others are compared
          ASSERT_EQ(matches_text(recognizer, written + "000"), is_in) << written;
          if (value != 0) {  // to -0, see below
            ASSERT_EQ(matches_text(recognizer, written + "01"), contains(range, decimal(written + "01"))) << written;
          }
        }
        ASSERT_FALSE(matches_text(recognizer, written + ".")) << written;
        ASSERT_FALSE(matches_text(recognizer, written + "e0")) << written;
        n_possible += is_in;
      }
    }
    for (const char* zero : {"-0", "-0.0", "-0.000"}) {
      ASSERT_EQ(matches_text(recognizer, zero), minus_zero_is_allowed(range)) << zero;
    }
  }
  EXPECT_GT(n_possible, 1000);
}

TEST(Numbers, WithoutBounds) {
  const Grammar grammar = grammar_of(json_number({}));
  for (const char* text : {"0", "-0", "-0.5", "12", "12.50", "1e5", "1E-5", "1.5e+10", "0e0"}) {
    EXPECT_TRUE(matches(grammar, text)) << text;
  }
  for (const char* text : {"", "-", "01", "1.", ".5", "+1", "1e", "1e+", "1.5.2", "0x1", "NaN", "--1", "1 "}) {
    EXPECT_FALSE(matches(grammar, text)) << text;
  }
}

TEST(Numbers, OfManyDigitsAreExact) {
  NumberRange range;
  range.lower = Bound{decimal("12345678901234567890.12345678901234567891")};
  range.upper = Bound{decimal("12345678901234567890.12345678901234567893"), true};
  const Grammar grammar = grammar_of(json_number(range));
  EXPECT_FALSE(matches(grammar, "12345678901234567890.12345678901234567890"));
  EXPECT_TRUE(matches(grammar, "12345678901234567890.12345678901234567891"));
  EXPECT_TRUE(matches(grammar, "12345678901234567890.1234567890123456789299999"));
  EXPECT_FALSE(matches(grammar, "12345678901234567890.12345678901234567893"));
  const Decimal wide = decimal("1e300");
  const Grammar above = grammar_of(json_integer({.lower = Bound{wide, true}, .upper = std::nullopt}));
  EXPECT_FALSE(matches(above, to_text(wide)));
  std::string next = to_text(wide);
  next.back() = '1';
  EXPECT_TRUE(matches(above, next));
}

}  // namespace
}  // namespace tiercel::grammar
