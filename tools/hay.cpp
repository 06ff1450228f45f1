#include "tools/hay.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>

#include "engine/base/check.h"
#include "tools/filler_text.h"

namespace tiercel {
namespace {

constexpr std::string_view kLabels[] = {"magic number",  "pass key",    "secret code",
                                        "serial number", "access code", "account number"};

// True for a line that could pass for a planted fact.
bool looks_like_fact(std::string_view line) {
  std::string lower(line);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const std::string_view label : kLabels) {
    if (lower.find(label) != std::string::npos) return true;
  }
  // "K: V": a colon, then a value of digits to the end of the line.
  while (!lower.empty() && std::isspace(static_cast<unsigned char>(lower.back()))) lower.pop_back();
  const size_t digits = lower.find_last_not_of("0123456789");
  if (digits == std::string::npos || digits + 3 >= lower.size()) return false;
  const size_t before = lower.find_last_not_of(' ', digits);
  return before != std::string::npos && lower[before] == ':';
}

struct Block {
  std::string text;
  int64_t n_tokens;
};

// Blocks of filler, ours or the user's.
class Filler {
 public:
  Filler(const HayRequest& request, std::vector<std::string>& notes)
      : own_(request.seed ^ 0x46494C4C4552u), text_(request.text) {
    if (text_) drop_facts(notes);
  }

  std::string next(std::vector<std::string>& notes) {
    if (!text_) return own_.next_block();
    if (position_ == text_->size()) {
      if (!repeated_) notes.emplace_back("--text is shorter than the haystack and is repeated.");
      repeated_ = true;
      position_ = 0;
    }
    // A paragraph, or a few kilobytes where there are none.
    constexpr size_t kLongest = 4096;
    size_t end = text_->find("\n\n", position_);
    end = end == std::string::npos ? text_->size() : end + 2;
    if (end - position_ > kLongest) {
      const size_t newline = text_->rfind('\n', position_ + kLongest);
      const size_t space = text_->rfind(' ', position_ + kLongest);
      const size_t cut = newline != std::string::npos && newline > position_ ? newline : space;
      if (cut != std::string::npos && cut > position_) end = cut + 1;
    }
    std::string block = text_->substr(position_, end - position_);
    position_ = end;
    if (block.back() != '\n') block += '\n';
    return block;
  }

 private:
  void drop_facts(std::vector<std::string>& notes) {
    std::string kept;
    int64_t n_dropped = 0;
    for (size_t begin = 0; begin < text_->size();) {
      const size_t newline = text_->find('\n', begin);
      const size_t end = newline == std::string::npos ? text_->size() : newline + 1;
      const auto line = std::string_view(*text_).substr(begin, end - begin);
      if (looks_like_fact(line)) {
        ++n_dropped;
      } else {
        kept += line;
      }
      begin = end;
    }
    if (n_dropped > 0) {
      notes.push_back(
          fmt::format("{} lines of --text look like a planted fact and are left out.", n_dropped));
    }
    if (kept.find_first_not_of(" \n\t\r") == std::string::npos) {
      fail(ErrorKind::kUsage, "--text: expected lines to use as filler, found {}",
           n_dropped == 0 ? "none" : "only such as look like a planted fact");
    }
    text_ = std::move(kept);
  }

  FillerText own_;
  std::optional<std::string> text_;
  size_t position_ = 0;
  bool repeated_ = false;
};

// The longest beginning of `text`, cut between words, of at most `n_tokens`.
Block shorten(const std::string& text, int64_t n_tokens, const HayRequest& request) {
  std::vector<size_t> cuts = {0};
  for (size_t i = 1; i < text.size(); ++i) {
    if (text[i] == ' ' && text[i - 1] != ' ') cuts.push_back(i);
  }
  size_t low = 0, high = cuts.size();
  const auto candidate = [&](size_t i) { return text.substr(0, cuts[i]) + ".\n"; };
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    (request.count(candidate(middle)) <= n_tokens ? low : high) = middle;
  }
  if (low == 0) return {"", 0};
  return {candidate(low), request.count(candidate(low))};
}

// Sentences, each on a line of its own.
std::vector<std::string> cut_sentences(const std::string& text) {
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t stop; (stop = text.find(". ", begin)) != std::string::npos; begin = stop + 2) {
    lines.push_back(text.substr(begin, stop + 1 - begin) + "\n");
  }
  lines.push_back(text.substr(begin));
  return lines;
}

std::vector<Block> fill(const HayRequest& request, int64_t n_tokens, size_t n_lines,
                        std::vector<std::string>& notes) {
  notes.clear();
  Filler filler(request, notes);
  std::vector<Block> blocks;
  int64_t total = 0;
  int n_empty = 0;
  // Lines stand between blocks. Where they are close together, paragraphs are too coarse.
  const bool by_sentence = n_tokens / static_cast<int64_t>(n_lines) < 2000;
  std::vector<std::string> pending;  // last one first
  while (total < n_tokens) {
    if (pending.empty()) {
      pending = {filler.next(notes)};
      if (by_sentence) pending = cut_sentences(pending[0]);
      std::reverse(pending.begin(), pending.end());
    }
    Block block{std::move(pending.back()), 0};
    pending.pop_back();
    block.n_tokens = request.count(block.text);
    if (total + block.n_tokens > n_tokens) block = shorten(block.text, n_tokens - total, request);
    if (block.n_tokens == 0 && ++n_empty > 8) break;  // no word is short enough for what is left
    total += block.n_tokens;
    if (!block.text.empty()) blocks.push_back(std::move(block));
  }
  return blocks;
}

// Writes each line in front of the block at whose beginning its depth is reached most closely.
std::string interleave(const std::vector<Block>& blocks, std::vector<HiddenLine>& lines,
                       const HayRequest& request) {
  int64_t n_filler = 0;
  for (const Block& block : blocks) n_filler += block.n_tokens;
  std::string all;
  int64_t filler_before = 0, line_tokens = 0;
  size_t next = 0;
  for (size_t i = 0; i <= blocks.size(); ++i) {
    const int64_t half = i < blocks.size() ? blocks[i].n_tokens / 2 : n_filler;
    while (next < lines.size() && lines[next].depth * static_cast<double>(n_filler) <=
                                      static_cast<double>(filler_before + half)) {
      HiddenLine& line = lines[next++];
      line.tokens_before = request.n_lead + filler_before + line_tokens;
      line_tokens += request.count(line.text + "\n");
      all += line.text + "\n";
    }
    if (i == blocks.size()) break;
    all += blocks[i].text;
    filler_before += blocks[i].n_tokens;
  }
  return all;
}

}  // namespace

Hay hide_lines(const HayRequest& request, std::vector<HiddenLine>& lines) {
  int64_t n_fixed = request.n_lead;
  for (const HiddenLine& line : lines) n_fixed += request.count(line.text + "\n");
  if (n_fixed > request.n_tokens) {
    fail(ErrorKind::kUsage, "expected at least the {} tokens of {} facts, found {}", n_fixed,
         lines.size(), request.n_tokens);
  }
  // Counting block by block misses what a tokenizer merges across their borders: count all of it
  // and correct the target until it fits.
  Hay hay;
  int64_t n_filler = request.n_tokens - n_fixed;
  for (int attempt = 0; attempt < 4; ++attempt) {
    const auto blocks = fill(request, n_filler, lines.size(), hay.notes);
    hay.text = interleave(blocks, lines, request);
    hay.n_tokens = request.n_lead + request.count(hay.text);
    const int64_t missing = request.n_tokens - hay.n_tokens;
    if (std::abs(missing) * 400 <= request.n_tokens) break;
    n_filler = std::max<int64_t>(n_filler + missing, 0);
  }
  return hay;
}

}  // namespace tiercel
