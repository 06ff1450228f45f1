// The tokenizer in a GGUF file's metadata, as tokenizer.json says it: which text becomes which ids is as in the model
// that the file was converted from, whose pre-tokenizer it has by name only ("qwen2").
//
// Supported: byte-level BPE (tokenizer.ggml.model gpt2) with the pre-tokenizers listed in gguf_tokenizer.cpp, and
// SentencePiece's BPE (llama), whose merges follow from the tokens' scores.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/gguf/gguf_file.h"
#include "engine/text/tokenizer_json.h"

namespace tiercel {

// Errors name file and key: a kind of tokenizer that is not supported, a value that is missing or of another length.
TokenizerSpec gguf_tokenizer(const GgufFile& file);

// Where generation ends: the ids that the file names, and special tokens whose name says so, sorted.
struct GgufEndTokens {
  std::optional<int64_t> bos;
  std::vector<int64_t> eos;
};
GgufEndTokens gguf_end_tokens(const GgufFile& file);

// A chat template, and the text of the tokens that begin and end texts, as tokenizer_config.json has them; empty: none.
struct GgufChat {
  std::string jinja, bos, eos;
};
GgufChat gguf_chat(const GgufFile& file);

}  // namespace tiercel
