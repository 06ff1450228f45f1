// Text to token ids and back: byte-pair encoding as published in a Hugging Face tokenizer.json.
//
// It promises the ids of Hugging Face tokenizers 0.23, which the tests compare on many megabytes
// for the files of GPT-2, Llama 3, Qwen 2 (byte-level) and Llama 2 and Mistral (SentencePiece's
// kind). Supported: model BPE, byte-level or with byte_fallback, ignore_merges; added tokens with
// all their flags; normalizers NFC, Prepend, Replace (of a string), Sequence; pre-tokenizers
// ByteLevel, Metaspace, Split, Digits, Sequence, or none; post-processors TemplateProcessing (one
// sequence), ByteLevel, Sequence; decoders ByteLevel, and Sequences of Replace, ByteFallback, Fuse,
// Strip. Anything else is an Error that says so. `truncation` and `padding` in the file are
// ignored.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/added_tokens.h"
#include "engine/text/utf8.h"

namespace tiercel {

// What a text, or a part of one, comes after. Some tokenizers put a space before a text, and drop
// it in front of what they decode (Llama 2, Mistral): where a text goes on, that would come in
// between.
enum class Follows {
  kNothing,  // it is the beginning
  kToken,    // a special token: to some tokenizers this begins a text too
  kText      // other text, which it continues
};

struct EncodeOptions {
  bool add_special = true;    // let the post-processor add its tokens (a begin-of-text, mostly)
  bool parse_special = true;  // find special tokens in the text; if not, they are ordinary text
  Follows follows = Follows::kNothing;
};

// Immutable and safe to share between threads.
class Tokenizer {
 public:
  // Reads `path`: a tokenizer.json, the directory that holds one, or a GGUF file. Throws Error naming the file,
  // the place in it, what was expected and what was found.
  static Tokenizer load(const std::string& path);
  // The same from memory; `name` stands for the file in messages.
  static Tokenizer parse(std::string_view json, const std::string& name);

  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // The ids of arbitrary bytes. Invalid UTF-8 is first replaced by U+FFFD, as Python's
  // decode("utf-8", errors="replace") does; *n_replaced_bytes, if given, says how many bytes that
  // concerned. Throws Error if the vocabulary lacks a byte of the text.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {},
                              int64_t* n_replaced_bytes = nullptr) const;

  // The text of ids: always valid UTF-8 (a character cut off by the choice of ids becomes U+FFFD;
  // of tokens "<0xE2>" in a row Hugging Face then replaces all). skip_special leaves out special
  // tokens. Throws Error naming an id outside the vocabulary.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false,
                     Follows follows = Follows::kNothing) const;

  // Number of ids: they are 0 .. vocab_size() - 1, added tokens included.
  int vocab_size() const;
  // The id of a token in the file's spelling ("Ġthe", "<|im_end|>"); none if there is no such
  // token.
  std::optional<int32_t> id_of(std::string_view token) const;
  // A token in the file's spelling. Throws Error for an id outside the vocabulary.
  std::string_view token(int32_t id) const;
  // The bytes that a token stands for within a text; they may be part of a character. Throws as
  // token().
  std::string_view token_bytes(int32_t id) const;
  // True for added tokens marked special. Throws as token().
  bool is_special(int32_t id) const;
  // Cuts a valid text at what spells special tokens, whatever else encode asks of them: the longest one at each place.
  std::vector<TextSegment> split_special(std::string_view text) const;
  // Whether white space to the left, or right, of this token in a text belongs to it. Throws as
  // token().
  bool takes_space_before(int32_t id) const;
  bool takes_space_behind(int32_t id) const;
  // What a text that is put behind these ids follows; one beyond the vocabulary is no special token.
  Follows behind(std::span<const int32_t> ids) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

// Decodes ids as they are generated, behind a prompt. Never gives out half a character; all that it
// gives out, joined, is decode() of all ids with Follows::kText.
class StreamDecoder {
 public:
  // The tokenizer must outlive the decoder.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // The characters that `id` completes; often none, if it ends within one. An id beyond the vocabulary, as models
  // with a padded one may pick, has no text.
  std::string push(int32_t id);
  // What is left when no more ids follow: U+FFFD for an incomplete character. Ready for reuse.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  Utf8Stream stream_;
};

}  // namespace tiercel
