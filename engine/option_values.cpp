#include "engine/option_values.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>
#include <unordered_set>
#include <utility>

#include "engine/base/check.h"
#include "engine/json.h"

namespace tiercel {

namespace {

std::string range_text(int64_t low, int64_t high) {
  return high == INT64_MAX ? fmt::format("from {} up", low)
                           : fmt::format("from {} to {}", low, high);
}

// False: it is none, or out of range.
bool read_integer(std::string_view text, int64_t low, int64_t high, int64_t& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end && low <= value && value <= high;
}

}  // namespace

int64_t parse_integer(std::string_view text, int64_t low, int64_t high) {
  int64_t value = 0;
  if (!read_integer(text, low, high, value)) {
    fail(ErrorKind::kUsage, "expected an integer {}, found '{}'", range_text(low, high),
         printable(text, 40));
  }
  return value;
}

double parse_number(std::string_view text, double low, double high) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || !std::isfinite(value) || value < low || value > high) {
    const std::string range =
        std::isinf(high) ? fmt::format("from {} up", low) : fmt::format("from {} to {}", low, high);
    fail(ErrorKind::kUsage, "expected a number {}, found '{}'", range, printable(text, 40));
  }
  return value;
}

std::vector<LogitBias> parse_biases(std::string_view text) {
  std::vector<LogitBias> biases;
  std::unordered_set<int32_t> tokens;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view item = text.substr(begin, end - begin);
    begin = end + 1;
    const size_t sign = std::min(item.find_first_of("+-"), item.size());
    LogitBias bias;
    int64_t token = 0;
    const bool has_token = read_integer(item.substr(0, sign), 0, INT32_MAX, token);
    const std::string_view number = item.substr(std::min(sign + 1, item.size()));
    const char* last = number.data() + number.size();
    const auto [stop, error] = std::from_chars(number.data(), last, bias.bias);
    if (item.substr(sign).starts_with('-')) bias.bias = -bias.bias;
    const bool is_bias = std::abs(bias.bias) <= 1000 || bias.bias == -std::numeric_limits<double>::infinity();
    const bool read = error == std::errc() && stop == last && !number.starts_with('-');
    if (!has_token || !read || !is_bias) {
      fail(ErrorKind::kUsage,
           "expected a token's id and what to add, from -1000 to 1000 or -inf, as in 15043+1,13-inf, found '{}'",
           printable(item, 40));
    }
    bias.token = static_cast<int32_t>(token);
    if (!tokens.insert(bias.token).second) {
      fail(ErrorKind::kUsage, "expected every token once, found {} twice", bias.token);
    }
    biases.push_back(bias);
  }
  return biases;
}

int64_t parse_size(std::string_view text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  std::string_view unit(stop, static_cast<size_t>(end - stop));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  constexpr std::pair<std::string_view, double> kUnits[] = {{"", 1},
                                                            {"B", 1},
                                                            {"KiB", 1024},
                                                            {"MiB", 1048576},
                                                            {"GiB", 1073741824},
                                                            {"TiB", 1099511627776}};
  const auto found = std::find_if(std::begin(kUnits), std::end(kUnits),
                                  [&](const auto& entry) { return entry.first == unit; });
  const double bytes = found == std::end(kUnits) ? -1 : value * found->second;
  const bool is_size = bytes == 0 || (bytes >= 1 && bytes < 9e18);
  if (error != std::errc() || !is_size) {
    fail(ErrorKind::kUsage,
         "expected a size such as 4096, 64MiB or 1.5GiB (KiB, MiB, GiB, TiB or plain bytes), "
         "found '{}'",
         printable(text, 40));
  }
  return static_cast<int64_t>(bytes);
}

int64_t parse_tokens(std::string_view text, int64_t low, int64_t high) {
  const int64_t unit = text.ends_with('M') ? 1024 * 1024 : text.ends_with('K') ? 1024 : 1;
  const std::string_view digits = unit > 1 ? text.substr(0, text.size() - 1) : text;
  int64_t n = 0;
  const bool read = read_integer(digits, INT64_MIN / unit, INT64_MAX / unit, n);
  if (!read || n * unit < low || n * unit > high) {
    fail(ErrorKind::kUsage, "expected a number of tokens {}, such as 4096, 16K or 1M, found '{}'",
         range_text(low, high), printable(text, 40));
  }
  return n * unit;
}

int64_t parse_layers(std::string_view text) {
  int64_t n = 0;
  if (text == "all") return kAllLayers;
  if (text == "auto") return kAutoLayers;
  if (read_integer(text, 0, INT32_MAX, n)) return n;
  fail(ErrorKind::kUsage, "expected a number of layers, all or auto, found '{}'", printable(text, 40));
}

void refuse_choice(std::string_view text, const std::vector<std::string_view>& legal) {
  std::string list;
  for (size_t i = 0; i < legal.size(); ++i) {
    list += (i == 0 ? "" : i + 1 == legal.size() ? " or " : ", ") + std::string(legal[i]);
  }
  fail(ErrorKind::kUsage, "expected {}, found '{}'", list, printable(text, 40));
}

}  // namespace tiercel
