#include "tools/haystack.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <iterator>
#include <memory>
#include <unordered_set>

#include "engine/base/check.h"
#include "tools/filler_text.h"

namespace tiercel {
namespace {

constexpr std::string_view kLabels[] = {"magic number",  "pass key",    "secret code",
                                        "serial number", "access code", "account number"};

constexpr std::string_view kKeyWords[] = {
    "amber",  "cobalt",  "falcon",  "lantern", "marble",  "onyx",    "pebble", "quartz",
    "raven",  "saffron", "topaz",   "umber",   "velvet",  "willow",  "zephyr", "badger",
    "cedar",  "dolphin", "ember",   "fjord",   "garnet",  "heron",   "indigo", "jasper",
    "kiwi",   "lotus",   "mango",   "nectar",  "otter",   "panther", "quill",  "ruby",
    "sable",  "tulip",   "unicorn", "vortex",  "walrus",  "xenon",   "yonder", "zinc",
    "acorn",  "bison",   "crimson", "drift",   "eagle",   "fern",    "goblin", "hazel",
    "iris",   "jade",    "krypton", "lemur",   "magnet",  "nova",    "opal",   "piston",
    "raptor", "scarlet", "tundra",  "violet",  "wizard",  "argon",   "bronze", "cactus",
    "dagger", "fossil",  "gecko",   "hermit",  "ivory",   "jaguar",  "kelp",   "lilac",
    "meteor", "neptune", "oyster",  "pepper",  "quokka",  "rocket",  "sphinx", "tiger",
    "pluto",  "viking",  "wombat",  "python",  "yeti",    "zebra",   "aurora", "bamboo",
    "coral",  "domino",  "emerald", "ferret",  "granite", "hornet",  "igloo",  "jigsaw"};

// Facts with unique keys and values that do not occur in `text`, which may be null.
std::vector<Fact> invent_facts(const HaystackRequest& request, RandomBits& random) {
  const std::string* text = request.text ? &*request.text : nullptr;
  std::unordered_set<std::string> taken;
  const auto fresh = [&](const std::string& candidate) {
    if (text != nullptr && text->find(candidate) != std::string::npos) return false;
    return taken.insert(candidate).second;
  };
  // While the words last, no two keys share one: a wrong answer then tells of attention that missed,
  // not of two names mistaken for each other.
  std::vector<std::string_view> unused(std::begin(kKeyWords), std::end(kKeyWords));
  const auto word = [&] {
    if (unused.empty()) return std::string(kKeyWords[random.below(std::size(kKeyWords))]);
    const size_t i = random.below(unused.size());
    std::swap(unused[i], unused.back());
    const std::string_view taken_word = unused.back();
    unused.pop_back();
    return std::string(taken_word);
  };
  constexpr FactForm kForms[] = {FactForm::kMagic, FactForm::kSpecial, FactForm::kPassKey,
                                 FactForm::kLine};
  std::vector<Fact> facts(static_cast<size_t>(request.n_facts));
  for (size_t i = 0; i < facts.size(); ++i) {
    Fact& fact = facts[i];
    fact.form = request.form == FactForm::kMixed ? kForms[i % std::size(kForms)] : request.form;
    fact.depth = facts.size() == 1 ? 0.5 : static_cast<double>(i) / (facts.size() - 1.0);
    do {
      const std::string first = word();
      if (random.below(4) == 0) {
        fact.key = first + "-" + std::to_string(10 + random.below(90));
        continue;
      }
      std::string second = word();
      while (second == first) second = word();
      fact.key = first + (random.below(2) == 0 ? "-" : " ") + second;
    } while (!fresh(fact.key));
    do {
      fact.value = static_cast<char>('1' + random.below(9));
      const size_t n_digits = 3 + random.below(7);
      while (fact.value.size() < n_digits) fact.value += static_cast<char>('0' + random.below(10));
    } while (!fresh(fact.value));
  }
  return facts;
}

struct Block {
  std::string text;
  int64_t n_tokens;
};

// Blocks of filler, ours or the user's.
class Filler {
 public:
  Filler(const HaystackRequest& request, std::vector<std::string>& notes)
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
      fail(ErrorKind::kUsage, "--text: expected text to use as filler, found none");
    }
    text_ = std::move(kept);
  }

  FillerText own_;
  std::optional<std::string> text_;
  size_t position_ = 0;
  bool repeated_ = false;
};

// The longest beginning of `text`, cut between words, of at most `n_tokens`.
Block shorten(const std::string& text, int64_t n_tokens, const HaystackRequest& request) {
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

std::vector<Block> fill(const HaystackRequest& request, int64_t n_tokens,
                        std::vector<std::string>& notes) {
  notes.clear();
  Filler filler(request, notes);
  std::vector<Block> blocks;
  int64_t total = 0;
  int n_empty = 0;
  // Facts stand between blocks. Where they are close together, paragraphs are too coarse.
  const bool by_sentence = n_tokens / request.n_facts < 2000;
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

// Writes each fact in front of the block at whose beginning its depth is reached most closely.
std::string interleave(const std::vector<Block>& blocks, std::vector<Fact>& facts,
                       const HaystackRequest& request) {
  int64_t n_filler = 0;
  for (const Block& block : blocks) n_filler += block.n_tokens;
  std::string prompt;
  int64_t filler_before = 0, fact_tokens = 0;
  size_t next_fact = 0;
  for (size_t i = 0; i <= blocks.size(); ++i) {
    const int64_t half = i < blocks.size() ? blocks[i].n_tokens / 2 : n_filler;
    while (next_fact < facts.size() && facts[next_fact].depth * static_cast<double>(n_filler) <=
                                           static_cast<double>(filler_before + half)) {
      Fact& fact = facts[next_fact++];
      fact.tokens_before = request.n_lead + filler_before + fact_tokens;
      fact_tokens += request.count(fact.sentence() + "\n");
      prompt += fact.sentence() + "\n";
    }
    if (i == blocks.size()) break;
    prompt += blocks[i].text;
    filler_before += blocks[i].n_tokens;
  }
  return prompt;
}

}  // namespace

const char* name_of(FactForm form) {
  switch (form) {
    case FactForm::kMagic: return "magic";
    case FactForm::kSpecial: return "special";
    case FactForm::kPassKey: return "passkey";
    case FactForm::kLine: return "line";
    case FactForm::kMixed: return "mixed";
  }
  return "?";
}

std::string Fact::sentence() const {
  switch (form) {
    case FactForm::kSpecial:
      return fmt::format("One of the special magic numbers for {} is: {}.", key, value);
    case FactForm::kPassKey:
      return fmt::format("The pass key of {} is {}. Remember it.", key, value);
    case FactForm::kLine: return fmt::format("{}: {}", key, value);
    default: return fmt::format("The magic number for {} is {}.", key, value);
  }
}

std::string Fact::question() const {
  switch (form) {
    case FactForm::kSpecial:
      return fmt::format(
          "What is the special magic number for {0}? The special magic number for {0} is", key);
    case FactForm::kPassKey:
      return fmt::format("Question: What is the pass key of {}?\nAnswer:", key);
    case FactForm::kLine: return key + ":";
    default:
      return fmt::format("What is the magic number for {0}? The magic number for {0} is", key);
  }
}

std::string Fact::answer() const { return " " + value; }

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

Haystack make_haystack(const HaystackRequest& request) {
  RandomBits random(request.seed);
  Haystack haystack;
  haystack.facts = invent_facts(request, random);
  int64_t n_fixed = request.n_lead;
  for (const Fact& fact : haystack.facts) n_fixed += request.count(fact.sentence() + "\n");
  if (n_fixed > request.n_tokens) {
    fail(ErrorKind::kUsage, "--tokens: expected at least the {} tokens of {} facts, found {}",
         n_fixed, request.n_facts, request.n_tokens);
  }
  // Counting block by block misses what a tokenizer merges across their borders: count all of it
  // and correct the target until it fits.
  int64_t n_filler = request.n_tokens - n_fixed;
  for (int attempt = 0; attempt < 4; ++attempt) {
    const auto blocks = fill(request, n_filler, haystack.notes);
    haystack.prompt = interleave(blocks, haystack.facts, request);
    haystack.n_tokens = request.n_lead + request.count(haystack.prompt);
    const int64_t missing = request.n_tokens - haystack.n_tokens;
    if (std::abs(missing) * 400 <= request.n_tokens) break;
    n_filler = std::max<int64_t>(n_filler + missing, 0);
  }
  return haystack;
}

}  // namespace tiercel
