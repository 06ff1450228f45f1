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

int plain_step(int state, uint8_t byte) {
  enum : int { kBetween, kOneLeft, kTwoLeft, kThreeLeft, kBehindE0, kBehindEd, kBehindF0, kBehindF4 };
  const auto follows = [byte](uint8_t first, uint8_t last, int to) {
    return first <= byte && byte <= last ? to : kNotPlain;
  };
  switch (state) {
    case kBetween:
      break;
    case kOneLeft:
      return follows(0x80, 0xBF, kBetween);
    case kTwoLeft:
      return follows(0x80, 0xBF, kOneLeft);
    case kThreeLeft:
      return follows(0x80, 0xBF, kTwoLeft);
    case kBehindE0:
      return follows(0xA0, 0xBF, kOneLeft);
    case kBehindEd:
      return follows(0x80, 0x9F, kOneLeft);
    case kBehindF0:
      return follows(0x90, 0xBF, kTwoLeft);
    case kBehindF4:
      return follows(0x80, 0x8F, kTwoLeft);
    default:
      return kNotPlain;
  }
  if (byte < 0x80) return byte < 0x20 || byte == '"' || byte == '\\' ? kNotPlain : kBetween;
  if (byte < 0xC2 || byte > 0xF4) return kNotPlain;
  if (byte < 0xE0) return kOneLeft;
  if (byte < 0xF0) return byte == 0xE0 ? kBehindE0 : byte == 0xED ? kBehindEd : kTwoLeft;
  return byte == 0xF0 ? kBehindF0 : byte == 0xF4 ? kBehindF4 : kThreeLeft;
}

TokenTrie::TokenTrie(std::span<const std::pair<std::string, int32_t>> spelled) {
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
  }
  close(0);
}

struct VocabularyTries::Spelled {
  Spelled(const Tokenizer& tokenizer, int64_t vocab_size, std::span<const int32_t> end_tokens)
      : plain(static_cast<size_t>(token_set_words(vocab_size))) {
    const auto n = static_cast<int32_t>(std::min<int64_t>(tokenizer.vocab_size(), vocab_size));
    for (int32_t id = 0; id < n; ++id) {
      std::string bytes = bytes_of_token(tokenizer, id);
      if (bytes.empty() || bytes.size() > kLongest) continue;
      if (std::ranges::find(end_tokens, id) != end_tokens.end()) continue;
      longest = std::max(longest, std::ssize(bytes));
      int state = 0, n_characters = 0;
      for (const char byte : bytes) {
        n_characters += state == 0;
        state = plain_step(state, static_cast<uint8_t>(byte));
      }
      if (state == kNotPlain || n_characters > kPlainCharacters) {
        others.emplace_back(bytes, id);
      } else {
        insert(plain, id);
      }
      all.emplace_back(std::move(bytes), id);
    }
    std::ranges::sort(all);
    std::ranges::sort(others);
  }

  std::vector<std::pair<std::string, int32_t>> all, others;
  TokenSet plain;
  int64_t longest = 0;
};

VocabularyTries::VocabularyTries(const Tokenizer& tokenizer, int64_t vocab_size, std::span<const int32_t> end_tokens)
    : VocabularyTries(Spelled(tokenizer, vocab_size, end_tokens)) {}

VocabularyTries::VocabularyTries(const Spelled& spelled)
    : all_(spelled.all), others_(spelled.others), plain_(spelled.plain), longest_(spelled.longest) {}

}  // namespace tiercel::grammar
