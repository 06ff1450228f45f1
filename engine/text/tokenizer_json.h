// Hugging Face's tokenizer.json, read into plain values. All knowledge of the file's layout is
// here; what is not supported is refused with the JSON path and the list of what is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"
#include "engine/text/normalizer.h"
#include "engine/text/split.h"

namespace tiercel {

// What a piece begins with: ByteLevel's add_prefix_space, and Metaspace.
struct PrefixRule {
  enum class Scheme { kNever, kFirst, kAlways };  // kFirst: only the piece that begins the text
  Scheme scheme = Scheme::kAlways;
  std::string prefix;            // not put before a piece that begins with it
  bool replaces_spaces = false;  // first, every " " becomes the prefix
};

using PreTokenizerStep = std::variant<SplitRule, PrefixRule>;

struct TokenizerSpec {
  // Pieces are merged from the bytes of GPT-2's alphabet, or else from characters, with the tokens
  // "<0x00>" to "<0xFF>" for those that have none.
  bool byte_level = true;
  // tokens[id]: the token in the file's spelling, added tokens included.
  std::vector<std::string> tokens;
  // Ids below belong to the model's vocabulary if in_model[id] is set; only those can be merged.
  std::vector<bool> in_model;
  std::vector<BpeMerge> merges;
  bool ignore_merges = false;
  std::vector<AddedToken> added_tokens;
  std::vector<NormalizerStep> normalizer;  // in order of application
  std::vector<PreTokenizerStep>
      pre_tokenizer;  // the same; each works on the pieces of the one before
  // What the post-processor puts around the ids of one text.
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
  // What the decoder writes for a space in a token ("▁"; empty: a space is a space), and how many
  // spaces it drops at the beginning of a text.
  std::string space;
  size_t n_dropped_spaces = 0;
};

// Throws Error "NAME: $.json.path: expected X, found Y". `truncation` and `padding` are ignored, as
// transformers does, which sets them anew in every call.
TokenizerSpec parse_tokenizer_json(std::string_view json, const std::string& name);

}  // namespace tiercel
