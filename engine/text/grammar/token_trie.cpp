#include "engine/text/grammar/token_trie.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace tiercel::grammar {

std::string bytes_of_token(const Tokenizer& tokenizer, int32_t id) {
  return tokenizer.is_special(id) ? kSpecialMark + std::string(tokenizer.token(id))
                                  : std::string(tokenizer.token_bytes(id));
}

std::string written_with_special(const Tokenizer& tokenizer, std::string_view text) {
  std::string written;
  for (const TextSegment& segment : tokenizer.split_special(text)) {
    if (segment.token >= 0) {
      written += bytes_of_token(tokenizer, segment.token);
    } else {
      written += segment.text;
    }
  }
  return written;
}

TokenTrie::TokenTrie(const Tokenizer& tokenizer, int64_t vocab_size, std::span<const int32_t> end_tokens) {
  std::vector<std::pair<std::string, int32_t>> spelled;
  const auto n = static_cast<int32_t>(std::min<int64_t>(tokenizer.vocab_size(), vocab_size));
  for (int32_t id = 0; id < n; ++id) {
    std::string bytes = bytes_of_token(tokenizer, id);
    if (bytes.empty() || bytes.size() > kLongest) continue;
    if (std::ranges::find(end_tokens, id) != end_tokens.end()) continue;
    spelled.emplace_back(std::move(bytes), id);
  }
  std::ranges::sort(spelled);
  std::vector<size_t> open;  // the nodes of the way to the last token
  std::string_view before;
  const auto close = [&](size_t depth) {
    for (; open.size() > depth; open.pop_back()) nodes_[open.back()].next = static_cast<int32_t>(nodes_.size());
  };
  for (const auto& [bytes, id] : spelled) {
    const auto shared = static_cast<size_t>(std::ranges::mismatch(bytes, before).in1 - bytes.begin());
    close(shared);
    for (size_t depth = shared; depth < bytes.size(); ++depth) {
      open.push_back(nodes_.size());
      nodes_.push_back({.first_token = static_cast<int32_t>(tokens_.size()),
                        .depth = static_cast<uint16_t>(depth + 1),
                        .byte = static_cast<uint8_t>(bytes[depth])});
    }
    ++nodes_[open.back()].n_tokens;
    tokens_.push_back(id);
    before = bytes;
    longest_ = std::max(longest_, std::ssize(bytes));
  }
  close(0);
}

}  // namespace tiercel::grammar
