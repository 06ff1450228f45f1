#include "engine/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <variant>

#include "engine/base/check.h"
#include "engine/gguf/gguf_tokenizer.h"
#include "engine/json.h"
#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"
#include "engine/text/character_cuts.h"
#include "engine/text/normalizer.h"
#include "engine/text/split.h"
#include "engine/text/token_spelling.h"
#include "engine/text/tokenizer_json.h"

namespace tiercel {
namespace {

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
  std::vector<bool> special, lstrip, rstrip;
  std::unordered_map<std::string_view, int32_t> ids;  // keys look into `tokens`
  Bpe bpe;
  CharacterCuts cuts;
  std::vector<NormalizerStep> normalizer;
  AddedTokenMatcher raw_tokens;
  AddedTokenMatcher normalized_tokens;
  AddedTokenMatcher special_tokens;  // by their contents alone
  std::vector<std::variant<Splitter, PrefixRule>> pre_tokenizer;
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
  size_t n_dropped_spaces;

  void check_id(int32_t id) const {
    if (id < 0 || static_cast<size_t>(id) >= tokens.size()) {
      fail("{}: expected a token id from 0 to {}, found {}", name, tokens.size() - 1, id);
    }
  }
  void encode_text(std::string_view text, EncodeOptions options, Workspace* work,
                   std::vector<int32_t>* ids) const;
  void encode_normalized(std::string_view text, EncodeOptions options, Workspace* work,
                         std::vector<int32_t>* ids) const;
  void encode_pieces(std::string_view text, Follows follows, size_t n_steps_done, Workspace* work,
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
      if (normalized) token.content = normalize(spec.normalizer, token.content, false);
      chosen.push_back(std::move(token));
    }
  }
  return AddedTokenMatcher(std::move(chosen));
}

AddedTokenMatcher matcher_of_special(const TokenizerSpec& spec) {
  std::vector<AddedToken> special;
  for (const AddedToken& token : spec.added_tokens) {
    if (token.special) special.push_back({.id = token.id, .content = token.content, .special = true});
  }
  return AddedTokenMatcher(std::move(special));
}

// The bytes that a token stands for within a text.
std::string bytes_of(const TokenizerSpec& spec, const std::string& token) {
  if (spec.byte_level) return byte_level_bytes(token);
  if (const auto byte = byte_of_token(token)) return std::string(1, static_cast<char>(*byte));
  if (spec.space.empty()) return token;
  return replace_all(token, spec.space, " ");
}

Bpe bpe_of(const TokenizerSpec& spec) {
  BpeAlphabet alphabet;
  std::unordered_map<std::string, int32_t> whole_pieces;
  for (size_t index = 0; index < spec.tokens.size(); ++index) {
    const auto id = static_cast<int32_t>(index);
    const std::string& token = spec.tokens[index];
    if (!spec.in_model[index] || token.empty()) continue;
    if (!spec.byte_level) {
      size_t end = 0;
      const char32_t first = read_code_point(token, &end);
      if (end == token.size()) alphabet.characters[first] = id;
      if (const auto byte = byte_of_token(token); byte && token == byte_token(*byte)) {
        alphabet.bytes[*byte] = id;
      }
      if (spec.ignore_merges) whole_pieces.emplace(token, id);
      continue;
    }
    // Only a piece of bytes can be looked up, so only tokens of the byte alphabet count.
    const std::string bytes = byte_level_bytes(token);
    if (byte_level_token(bytes) != token) continue;
    if (bytes.size() == 1) alphabet.bytes[static_cast<uint8_t>(bytes[0])] = id;
    if (spec.ignore_merges) whole_pieces.emplace(bytes, id);
  }
  return Bpe(alphabet, spec.merges, std::move(whole_pieces));
}

// Pieces of a byte-level tokenizer are words already. One that takes a whole piece for a token if
// it can must see it whole, and what merges with the token of a byte could be any character.
CharacterCuts cuts_of(const TokenizerSpec& spec) {
  if (spec.byte_level || spec.ignore_merges) return {};
  const auto is_byte = [&](int32_t id) {
    return byte_of_token(spec.tokens[static_cast<size_t>(id)]).has_value();
  };
  const bool bytes_merge = std::any_of(
      spec.merges.begin(), spec.merges.end(),
      [&](const BpeMerge& merge) { return is_byte(merge.left) || is_byte(merge.right); });
  if (bytes_merge) return {};
  return CharacterCuts(spec.merges, spec.tokens);
}

}  // namespace

Tokenizer::Impl::Impl(TokenizerSpec spec, const std::string& name_of_file)
    : name(name_of_file),
      special(spec.tokens.size()),
      lstrip(spec.tokens.size()),
      rstrip(spec.tokens.size()),
      bpe(bpe_of(spec)),
      cuts(cuts_of(spec)),
      normalizer(spec.normalizer),
      raw_tokens(matcher_of(spec, false)),
      normalized_tokens(matcher_of(spec, true)),
      special_tokens(matcher_of_special(spec)),
      prefix(std::move(spec.prefix)),
      suffix(std::move(spec.suffix)),
      n_dropped_spaces(spec.n_dropped_spaces) {
  bytes.reserve(spec.tokens.size());
  for (const std::string& token : spec.tokens) bytes.push_back(bytes_of(spec, token));
  tokens = std::move(spec.tokens);
  ids.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    ids.emplace(tokens[id], static_cast<int32_t>(id));
  }
  for (const AddedToken& token : spec.added_tokens) {
    const auto id = static_cast<size_t>(token.id);
    special[id] = token.special;
    lstrip[id] = token.lstrip;
    rstrip[id] = token.rstrip;
    // What is looked for in the normalised text is also written in that form.
    if (token.normalized) bytes[id] = bytes_of(spec, normalize(normalizer, token.content, false));
  }
  for (const PreTokenizerStep& step : spec.pre_tokenizer) {
    if (const auto* rule = std::get_if<SplitRule>(&step)) {
      pre_tokenizer.emplace_back(Splitter(*rule, name + ": pre_tokenizer"));
    } else {
      pre_tokenizer.emplace_back(std::get<PrefixRule>(step));
    }
  }
}

namespace {

// What comes before a part of a text: what comes before the text, if it is the first.
Follows before_part(std::string_view part, std::string_view text, Follows before_text) {
  return part.data() == text.data() ? before_text : Follows::kToken;
}

}  // namespace

void Tokenizer::Impl::encode_text(std::string_view text, EncodeOptions options, Workspace* work,
                                  std::vector<int32_t>* ids_out) const {
  std::vector<TextSegment> segments;
  raw_tokens.split(text, !options.parse_special, &segments);
  EncodeOptions of_segment = options;
  for (const TextSegment& segment : segments) {
    if (segment.token >= 0) {
      ids_out->push_back(segment.token);
      continue;
    }
    of_segment.follows = before_part(segment.text, text, options.follows);
    if (is_normalized(normalizer, segment.text)) {
      encode_normalized(segment.text, of_segment, work, ids_out);
    } else {
      const bool continues = of_segment.follows == Follows::kText;
      encode_normalized(normalize(normalizer, segment.text, continues), of_segment, work, ids_out);
    }
  }
}

void Tokenizer::Impl::encode_normalized(std::string_view text, EncodeOptions options,
                                        Workspace* work, std::vector<int32_t>* ids_out) const {
  if (normalized_tokens.empty()) {
    encode_pieces(text, options.follows, 0, work, ids_out);
    return;
  }
  std::vector<TextSegment> segments;
  normalized_tokens.split(text, !options.parse_special, &segments);
  for (const TextSegment& segment : segments) {
    if (segment.token >= 0) {
      ids_out->push_back(segment.token);
    } else {
      encode_pieces(segment.text, before_part(segment.text, text, options.follows), 0, work,
                    ids_out);
    }
  }
}

// Takes the pre-tokenizer's steps from number n_steps_done on.
void Tokenizer::Impl::encode_pieces(std::string_view text, Follows follows, size_t n_steps_done,
                                    Workspace* work, std::vector<int32_t>* ids_out) const {
  if (text.empty()) return;  // all that there was has been normalised away
  if (n_steps_done == pre_tokenizer.size()) {
    cuts.split(text, [&](std::string_view piece) { bpe.encode(piece, &work->bpe, ids_out); });
    return;
  }
  const auto& step = pre_tokenizer[n_steps_done];
  if (const auto* splitter = std::get_if<Splitter>(&step)) {
    splitter->split(text, &work->split, [&](std::string_view piece) {
      encode_pieces(piece, before_part(piece, text, follows), n_steps_done + 1, work, ids_out);
    });
    return;
  }
  const auto& rule = std::get<PrefixRule>(step);
  using Scheme = PrefixRule::Scheme;
  std::string changed;
  if (rule.replaces_spaces) {
    changed = replace_all(text, " ", rule.prefix);
    text = changed;
  }
  const bool is_due = follows == Follows::kNothing
                          ? rule.scheme != Scheme::kNever
                          : rule.scheme == Scheme::kAlways && follows == Follows::kToken;
  if (is_due && !text.starts_with(rule.prefix)) {
    changed = rule.prefix + std::string(text);
    text = changed;
  }
  encode_pieces(text, follows, n_steps_done + 1, work, ids_out);
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::parse(std::string_view json, const std::string& name) {
  return Tokenizer(std::make_unique<const Impl>(parse_tokenizer_json(json, name), name));
}

Tokenizer Tokenizer::load(const std::string& path) {
  namespace fs = std::filesystem;
  if (is_gguf_file(path)) return Tokenizer(std::make_unique<const Impl>(gguf_tokenizer(GgufFile::open(path)), path));
  std::error_code ignored;
  if (fs::path(path).filename() == "config.json" && fs::is_regular_file(path, ignored)) {
    fail(ErrorKind::kUsage, "{}: expected a model directory, found its configuration; give the directory", path);
  }
  if (!fs::is_directory(path, ignored)) return parse(read_text_file(path, kMaxFileBytes), path);
  const std::string file = (fs::path(path) / "tokenizer.json").string();
  if (!fs::exists(file, ignored) && fs::exists(fs::path(path) / "tokenizer.model", ignored)) {
    fail(
        "{}: not there; expected beside tokenizer.model, which is not read: in Python, "
        "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) makes one of the "
        "other",
        file);
  }
  if (const std::string gguf = gguf_file_in(path); !fs::exists(file, ignored) && !gguf.empty()) {
    fail("{}: not there; the folder holds {}: give -m that file", file, printable(gguf));
  }
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

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special,
                              Follows follows) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!(is_special(id) && skip_special)) bytes += token_bytes(id);
  }
  std::string text;
  text.reserve(bytes.size());
  append_valid_utf8(bytes, &text);
  if (follows == Follows::kNothing && impl_->n_dropped_spaces > 0) {
    const size_t n_spaces = std::min(text.find_first_not_of(' '), text.size());
    text.erase(0, std::min(n_spaces, impl_->n_dropped_spaces));
  }
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

std::vector<TextSegment> Tokenizer::split_special(std::string_view text) const {
  std::vector<TextSegment> segments;
  impl_->special_tokens.split(text, false, &segments);
  return segments;
}

bool Tokenizer::is_special(int32_t id) const {
  impl_->check_id(id);
  return impl_->special[static_cast<size_t>(id)];
}

bool Tokenizer::takes_space_before(int32_t id) const {
  impl_->check_id(id);
  return impl_->lstrip[static_cast<size_t>(id)];
}

bool Tokenizer::takes_space_behind(int32_t id) const {
  impl_->check_id(id);
  return impl_->rstrip[static_cast<size_t>(id)];
}

Follows Tokenizer::behind(std::span<const int32_t> ids) const {
  if (ids.empty()) return Follows::kNothing;
  return ids.back() < vocab_size() && is_special(ids.back()) ? Follows::kToken : Follows::kText;
}

std::string StreamDecoder::push(int32_t id) {
  std::string text;
  if (id >= tokenizer_->vocab_size()) return text;
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
