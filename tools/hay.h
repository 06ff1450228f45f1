// Lines hidden in prose: the part of a haystack that knows nothing of what is hidden.
//
//   prose ... line 0 ... prose ... line 1 ... prose
//
// Lines stand between blocks of prose, each as close to its depth as the blocks allow. The text is
// as long as was asked for, counted by the caller's tokenizer. Deterministic from the seed.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tiercel {

// Tokens of a text without the begin-of-text token.
using TokenCount = std::function<int64_t(std::string_view)>;

struct HiddenLine {
  std::string text;           // without a newline
  double depth = 0;           // 0: the first line, 1: the last one
  int64_t tokens_before = 0;  // where it really stands; filled by hide_lines
};

struct HayRequest {
  int64_t n_tokens = 0;  // of all of it, the begin-of-text token included
  uint64_t seed = 0;
  std::optional<std::string> text;  // filler to use instead of our own; repeated when too short
  TokenCount count;
  int64_t n_lead = 0;  // tokens that the tokenizer adds in front
};

struct Hay {
  std::string text;                // ends with a newline
  int64_t n_tokens = 0;            // as counted by encoding all of it
  std::vector<std::string> notes;  // what the user should know; whole sentences
};

// `lines` by depth, at least one. n_tokens is met to 0.5 %. Throws Error(kUsage), without a flag's
// name, when the lines alone are longer.
Hay hide_lines(const HayRequest& request, std::vector<HiddenLine>& lines);

}  // namespace tiercel
