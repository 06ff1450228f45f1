// Values of options as text, for the command's flags and the library's settings alike.
//
// All throw Error(kUsage) "expected ..., found '...'" without the option's name, which the caller
// puts in front.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/options.h"

namespace tiercel {

inline constexpr int64_t kMaxOptionTokens = int64_t{1} << 40;

// high = INT64_MAX: no limit.
int64_t parse_integer(std::string_view text, int64_t low, int64_t high);
double parse_number(std::string_view text, double low, double high);
int64_t parse_size(std::string_view text);  // "4096", "64MiB", "1.5 GiB"; bytes
// "4096", "16K", "1M": K is 1,024 tokens, M is 1,024 K.
int64_t parse_tokens(std::string_view text, int64_t low = 1, int64_t high = kMaxOptionTokens);
// "12", "all" (kAllLayers) or "auto" (kAutoLayers).
int64_t parse_layers(std::string_view text);
// "15043+1,29871-2.5,13-inf": ids of tokens, and from -1000 to 1000, or minus infinity.
std::vector<LogitBias> parse_biases(std::string_view text);
[[noreturn]] void refuse_choice(std::string_view text, const std::vector<std::string_view>& legal);

}  // namespace tiercel
