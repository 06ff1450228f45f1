#include "engine/tokenizer.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "engine/added_tokens.h"
#include "engine/base/check.h"
#include "engine/bpe.h"
#include "engine/json.h"
#include "engine/nfc.h"
#include "engine/split.h"
#include "engine/tokenizer_json.h"

namespace tiercel {
namespace {

// GPT-2's spelling of bytes as characters that are visible and no white space: printable Latin-1
// stands for itself, the other 68 bytes are U+0100 onwards in order (Radford et al. 2019,
// encoder.py).
struct ByteAlphabet {
  std::array<char32_t, 256> to_character;
  std::array<int, 0x144> to_byte;  // -1: not in the alphabet

  ByteAlphabet() {
    to_byte.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const char32_t character = visible ? static_cast<char32_t>(byte) : next++;
      to_character[static_cast<size_t>(byte)] = character;
      to_byte[character] = byte;
    }
  }
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet kAlphabet;
  return kAlphabet;
}

// The bytes of a token. A token with any character outside the alphabet stands for itself, as a
// whole (an added token with a space in it, for example).
std::string bytes_of(const std::string& token) {
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const char32_t c = read_code_point(token, &at);
    const int byte = c < byte_alphabet().to_byte.size() ? byte_alphabet().to_byte[c] : -1;
    if (byte < 0) return token;
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 128; });
}

// The largest published ones have 30 MB.
constexpr size_t kMaxFileBytes = size_t{1} << 30;

// What one encode call works with. Pieces memoised in one call are known to the next.
struct Workspace {
  Splitter::Scratch split;
  BpeScratch bpe;
};

}  // namespace

struct Tokenizer::Impl {
  Impl(TokenizerSpec spec, const std::string& name);

  std::string name;
  std::vector<std::string> tokens;
  std::vector<std::string> bytes;
  std::vector<bool> special;
  std::unordered_map<std::string_view, int32_t> ids;  // keys look into `tokens`
  Bpe bpe;
  bool nfc;
  AddedTokenMatcher raw_tokens;
  AddedTokenMatcher normalized_tokens;
  std::vector<Splitter> splitters;
  bool add_prefix_space;
  size_t n_splits_before_prefix;
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;

  void check_id(int32_t id) const {
    if (id < 0 || static_cast<size_t>(id) >= tokens.size()) {
      fail("{}: expected a token id from 0 to {}, found {}", name, tokens.size() - 1, id);
    }
  }
  void encode_text(std::string_view text, EncodeOptions options, Workspace* work,
                   std::vector<int32_t>* ids) const;
  void encode_normalized(std::string_view text, EncodeOptions options, Workspace* work,
                         std::vector<int32_t>* ids) const;
  void encode_pieces(std::string_view text, size_t n_splits_done, Workspace* work,
                     std::vector<int32_t>* ids) const;

  // Idle workspaces. A call takes one (or makes one) and gives it back, so that threads never
  // share.
  std::unique_ptr<Workspace> take_workspace() const {
    const std::lock_guard lock(mutex);
    if (idle.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> work = std::move(idle.back());
    idle.pop_back();
    return work;
  }
  void give_back(std::unique_ptr<Workspace> work) const {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(work));
  }
  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<Workspace>> idle;
};

namespace {

// Added tokens that are looked for in the raw text or in the normalised text; special ones first,
// as among equal contents the first counts.
AddedTokenMatcher matcher_of(const TokenizerSpec& spec, bool normalized) {
  std::vector<AddedToken> chosen;
  for (const bool special : {true, false}) {
    for (AddedToken token : spec.added_tokens) {
      if (token.normalized != normalized || token.special != special) continue;
      if (normalized && spec.nfc) {
        std::string content;
        append_nfc(token.content, &content);
        token.content = std::move(content);
      }
      chosen.push_back(std::move(token));
    }
  }
  return AddedTokenMatcher(std::move(chosen));
}

// Only a piece of bytes can be looked up, so only tokens of the byte alphabet count.
Bpe bpe_of(const TokenizerSpec& spec) {
  std::array<int32_t, 256> byte_ids;
  byte_ids.fill(-1);
  std::unordered_map<std::string, int32_t> whole_pieces;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!spec.in_model[id]) continue;
    const std::string& token = spec.tokens[id];
    const std::string bytes = bytes_of(token);
    std::string spelled;
    for (const char byte : bytes) {
      append_code_point(byte_alphabet().to_character[static_cast<uint8_t>(byte)], &spelled);
    }
    if (token.empty() || spelled != token) continue;
    if (bytes.size() == 1) byte_ids[static_cast<uint8_t>(bytes[0])] = static_cast<int32_t>(id);
    if (spec.ignore_merges) whole_pieces.emplace(bytes, static_cast<int32_t>(id));
  }
  return Bpe(byte_ids, spec.merges, std::move(whole_pieces));
}

}  // namespace

Tokenizer::Impl::Impl(TokenizerSpec spec, const std::string& name_of_file)
    : name(name_of_file),
      special(spec.tokens.size()),
      bpe(bpe_of(spec)),
      nfc(spec.nfc),
      raw_tokens(matcher_of(spec, false)),
      normalized_tokens(matcher_of(spec, true)),
      add_prefix_space(spec.add_prefix_space),
      n_splits_before_prefix(spec.n_splits_before_prefix),
      prefix(std::move(spec.prefix)),
      suffix(std::move(spec.suffix)) {
  tokens = std::move(spec.tokens);
  bytes.reserve(tokens.size());
  ids.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    bytes.push_back(bytes_of(tokens[id]));
    ids.emplace(tokens[id], static_cast<int32_t>(id));
  }
  for (const AddedToken& token : spec.added_tokens) {
    special[static_cast<size_t>(token.id)] = token.special;
  }
  for (const SplitRule& rule : spec.splits) splitters.emplace_back(rule, name + ": pre_tokenizer");
}

void Tokenizer::Impl::encode_text(std::string_view text, EncodeOptions options, Workspace* work,
                                  std::vector<int32_t>* ids_out) const {
  std::vector<TextSegment> segments;
  raw_tokens.split(text, !options.parse_special, &segments);
  std::string normalized;
  for (const TextSegment& segment : segments) {
    if (segment.token >= 0) {
      ids_out->push_back(segment.token);
    } else if (nfc && !is_ascii(segment.text)) {
      normalized.clear();
      append_nfc(segment.text, &normalized);
      encode_normalized(normalized, options, work, ids_out);
    } else {
      encode_normalized(segment.text, options, work, ids_out);
    }
  }
}

void Tokenizer::Impl::encode_normalized(std::string_view text, EncodeOptions options,
                                        Workspace* work, std::vector<int32_t>* ids_out) const {
  if (normalized_tokens.empty()) {
    encode_pieces(text, 0, work, ids_out);
    return;
  }
  std::vector<TextSegment> segments;
  normalized_tokens.split(text, !options.parse_special, &segments);
  for (const TextSegment& segment : segments) {
    if (segment.token >= 0) {
      ids_out->push_back(segment.token);
    } else {
      encode_pieces(segment.text, 0, work, ids_out);
    }
  }
}

// Splits by the rules from number n_splits_done on, each applied to the pieces of the one before.
void Tokenizer::Impl::encode_pieces(std::string_view text, size_t n_splits_done, Workspace* work,
                                    std::vector<int32_t>* ids_out) const {
  std::string with_prefix;
  if (add_prefix_space && n_splits_done == n_splits_before_prefix && !text.starts_with(' ')) {
    with_prefix.reserve(text.size() + 1);
    with_prefix.append(" ").append(text);
    text = with_prefix;
  }
  if (n_splits_done == splitters.size()) {
    bpe.encode(text, &work->bpe, ids_out);
    return;
  }
  splitters[n_splits_done].split(text, &work->split, [&](std::string_view piece) {
    encode_pieces(piece, n_splits_done + 1, work, ids_out);
  });
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::parse(std::string_view json, const std::string& name) {
  return Tokenizer(std::make_unique<const Impl>(parse_tokenizer_json(json, name), name));
}

Tokenizer Tokenizer::load(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::path given(path);
  const std::string file =
      std::filesystem::is_directory(given, ignored) ? (given / "tokenizer.json").string() : path;
  return parse(read_text_file(file, kMaxFileBytes), file);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options,
                                       int64_t* n_replaced_bytes) const {
  std::string repaired;
  int64_t n_replaced = 0;
  if (valid_utf8_prefix(text) != text.size()) {
    n_replaced = append_valid_utf8(text, &repaired);
    text = repaired;
  }
  if (n_replaced_bytes != nullptr) *n_replaced_bytes = n_replaced;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + impl_->prefix.size() + impl_->suffix.size());
  if (options.add_special) ids = impl_->prefix;
  // If encoding throws, the workspace is dropped rather than handed on.
  std::unique_ptr<Workspace> work = impl_->take_workspace();
  impl_->encode_text(text, options, work.get(), &ids);
  impl_->give_back(std::move(work));
  if (options.add_special) ids.insert(ids.end(), impl_->suffix.begin(), impl_->suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!(is_special(id) && skip_special)) bytes += token_bytes(id);
  }
  std::string text;
  text.reserve(bytes.size());
  append_valid_utf8(bytes, &text);
  return text;
}

int Tokenizer::vocab_size() const { return static_cast<int>(impl_->tokens.size()); }

std::optional<int32_t> Tokenizer::id_of(std::string_view token) const {
  const auto found = impl_->ids.find(token);
  if (found == impl_->ids.end()) return std::nullopt;
  return found->second;
}

std::string_view Tokenizer::token(int32_t id) const {
  impl_->check_id(id);
  return impl_->tokens[static_cast<size_t>(id)];
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  impl_->check_id(id);
  return impl_->bytes[static_cast<size_t>(id)];
}

bool Tokenizer::is_special(int32_t id) const {
  impl_->check_id(id);
  return impl_->special[static_cast<size_t>(id)];
}

std::string StreamDecoder::push(int32_t id) {
  std::string text;
  const bool skip = tokenizer_->is_special(id) && skip_special_;
  if (!skip) stream_.push(tokenizer_->token_bytes(id), &text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  stream_.finish(&text);
  return text;
}

}  // namespace tiercel
