// What is done to a text before it is split: the "normalizer" of tokenizer.json.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tiercel {

struct NormalizerStep {
  enum class Kind {
    kNfc,      // Unicode normalisation form C
    kPrepend,  // `content` before a text that is not empty
    kReplace   // `content` for every `pattern`, from left to right
  };
  Kind kind = Kind::kNfc;
  std::string pattern;  // not empty where it is used
  std::string content;
};

// Applies the steps in their order. `text` must be valid UTF-8. continues: the text goes on where
// another one ends, so nothing comes before it. Throws Error where the text becomes many times as
// long.
std::string normalize(std::span<const NormalizerStep> steps, std::string_view text, bool continues);

// `content` for every `pattern` (not empty), from left to right.
std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content);

// True if normalize would return `text` as it is; may say no where it would.
bool is_normalized(std::span<const NormalizerStep> steps, std::string_view text);

}  // namespace tiercel
