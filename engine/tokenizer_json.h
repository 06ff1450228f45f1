// Hugging Face's tokenizer.json, read into plain values. All knowledge of the file's layout is
// here; what is not supported is refused with the JSON path and the list of what is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/added_tokens.h"
#include "engine/bpe.h"
#include "engine/split.h"

namespace tiercel {

struct TokenizerSpec {
  // tokens[id]: the token in the file's spelling (byte-level alphabet), added tokens included.
  std::vector<std::string> tokens;
  // Ids below belong to the model's vocabulary if in_model[id] is set; only those can be merged.
  std::vector<bool> in_model;
  std::vector<BpeMerge> merges;
  bool ignore_merges = false;
  std::vector<AddedToken> added_tokens;
  bool nfc = false;
  std::vector<SplitRule> splits;  // in order of application
  // ByteLevel's add_prefix_space: applied after the first n_splits_before_prefix rules.
  bool add_prefix_space = false;
  size_t n_splits_before_prefix = 0;
  // What the post-processor puts around the ids of one text.
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};

// Throws Error "NAME: $.json.path: expected X, found Y". `truncation` and `padding` are ignored, as
// transformers does, which sets them anew in every call.
TokenizerSpec parse_tokenizer_json(std::string_view json, const std::string& name);

}  // namespace tiercel
