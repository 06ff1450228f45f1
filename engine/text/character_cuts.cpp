#include "engine/text/character_cuts.h"

#include <algorithm>
#include <bit>

namespace tiercel {
namespace {

char32_t first_character(std::string_view text) {
  size_t at = 0;
  return read_code_point(text, &at);
}

char32_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while ((static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return read_code_point(text, &at);
}

}  // namespace

CharacterCuts::CharacterCuts(std::span<const BpeMerge> merges,
                             std::span<const std::string> tokens) {
  std::vector<uint64_t> pairs;
  pairs.reserve(merges.size());
  for (const BpeMerge& merge : merges) {
    const std::string& left = tokens[static_cast<size_t>(merge.left)];
    const std::string& right = tokens[static_cast<size_t>(merge.right)];
    if (left.empty() || right.empty()) continue;  // no text has such a symbol
    pairs.push_back(pair_of(last_character(left), first_character(right)));
  }
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  joined_.assign(std::bit_ceil(pairs.size() * 2 + 2), kFree);
  for (const uint64_t pair : pairs) {
    size_t i = slot_of(pair);
    while (joined_[i] != kFree) i = (i + 1) & (joined_.size() - 1);
    joined_[i] = pair;
    const auto before = static_cast<char32_t>(pair >> 32), after = static_cast<char32_t>(pair);
    if (before < 128 && after < 128) ascii_[before][after / 64] |= uint64_t{1} << (after % 64);
  }
}

}  // namespace tiercel
