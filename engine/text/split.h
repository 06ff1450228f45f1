// Cutting a text into the pieces that byte-pair encoding may not merge across (the
// "pre-tokenizer").
//
// tokenizer.json holds regular expressions written for Oniguruma; they are run by PCRE2's JIT. The
// two agree once a pattern has been translated: translate_pattern states what of the language is
// accepted and refuses the rest by name, so that a pattern is either split identically or not at
// all. PCRE2 of Debian 12 knows Unicode 14, Hugging Face tokenizers Unicode 16: the translation
// adds the characters that are new since.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace tiercel {

// What happens to the text that a pattern matches; names and meaning of Hugging Face tokenizers.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitRule {
  std::string pattern;   // in Oniguruma's syntax
  bool literal = false;  // `pattern` is text to find, not an expression
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // the pattern describes the pieces, not the separators
};

// GPT-2's expression, which a ByteLevel pre-tokenizer with use_regex applies.
SplitRule gpt2_split_rule();
// The Digits pre-tokenizer: every digit by itself, or runs of digits together.
SplitRule digits_split_rule(bool individual_digits);

// The PCRE2 form of an Oniguruma expression (options UTF, UCP, MULTILINE). Throws Error that begins
// with `where` and names the construct, its offset and what is supported.
std::string translate_pattern(std::string_view pattern, const std::string& where);

// Unicode's White_Space property: what \s matches.
bool is_white_space(char32_t code_point);

// One compiled rule. Immutable; safe to share between threads, each with its own Scratch.
class Splitter {
 public:
  // Memory that matching needs; one per thread at a time, usable with every Splitter.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class Splitter;
    struct Handles;
    std::unique_ptr<Handles> handles_;
  };

  // Throws Error that begins with `where` if the pattern is not supported.
  Splitter(const SplitRule& rule, const std::string& where);
  ~Splitter();
  Splitter(Splitter&&) noexcept;
  Splitter& operator=(Splitter&&) noexcept;

  using Emit = std::function<void(std::string_view piece)>;

  // Calls emit for the non-empty pieces of `text`, which must be valid UTF-8, in order. `emit` may
  // itself split with the same scratch. Throws Error if the pattern needs more backtracking than a
  // limit proportional to the text.
  void split(std::string_view text, Scratch* scratch, const Emit& emit) const;

 private:
  struct Match {
    size_t begin;
    size_t end;
    bool matched;
  };
  bool next_match(std::string_view text, size_t from, Scratch* scratch, Match* match) const;
  template <typename Visit>
  void for_each_match(std::string_view text, Scratch* scratch, Visit visit) const;
  void split_merging(std::string_view text, Scratch* scratch, const Emit& emit) const;

  struct Code;
  std::unique_ptr<Code> code_;
  SplitBehavior behavior_;
  bool invert_;
  std::string where_;
};

}  // namespace tiercel
