#include "engine/gguf/gguf_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "engine/base/check.h"
#include "engine/json.h"
#include "engine/text/token_spelling.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

constexpr const char *kTokens = "tokenizer.ggml.tokens", *kTypes = "tokenizer.ggml.token_type",
                     *kMerges = "tokenizer.ggml.merges", *kScores = "tokenizer.ggml.scores";
constexpr size_t kMaxTokens = size_t{1} << 24, kMaxTokenBytes = 1024;

// What a token is (tokenizer.ggml.token_type).
enum TokenType : int64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

// The expressions are those of the tokenizer.json that these names were given to.
constexpr const char* kLlama3Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekkenSplit =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kO200kSplit =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct PreTokenizer {
  const char* name;
  const char* split;  // null: GPT-2's
  bool ignore_merges = false, adds_bos = false, nfc = false, single_digits = false;
  bool is_glm = false;  // texts begin with [gMASK] and <sop>, which its tokenizer adds by itself
};
constexpr PreTokenizer kPreTokenizers[] = {
    {.name = "llama-bpe", .split = kLlama3Split, .ignore_merges = true, .adds_bos = true},
    {.name = "llama3", .split = kLlama3Split, .ignore_merges = true, .adds_bos = true},
    {.name = "llama-v3", .split = kLlama3Split, .ignore_merges = true, .adds_bos = true},
    {.name = "qwen2", .split = kQwen2Split, .nfc = true},
    {.name = "deepseek-r1-qwen", .split = kQwen2Split, .nfc = true},
    {.name = "tekken", .split = kTekkenSplit, .ignore_merges = true, .adds_bos = true},
    {.name = "gpt-4o", .split = kO200kSplit},
    {.name = "dbrx", .split = kLlama3Split},
    {.name = "smaug-bpe", .split = kLlama3Split},
    {.name = "glm4", .split = kLlama3Split, .ignore_merges = true, .is_glm = true},
    {.name = "chatglm-bpe", .split = kLlama3Split, .is_glm = true},
    {.name = "smollm", .split = nullptr, .single_digits = true},
    {.name = "gpt-2", .split = nullptr},
};

// An id that the file names; none: none, or none of its tokens, as files have that mean none.
std::optional<int64_t> named_id(const GgufFile& file, const char* name) {
  const auto value = file.find(fmt::format("tokenizer.ggml.{}_token_id", name));
  if (!value) return std::nullopt;
  const int64_t id = value->integer(INT32_MIN, UINT32_MAX);
  if (id < 0 || id >= static_cast<int64_t>(file.at(kTokens).size())) return std::nullopt;
  return id;
}

// Where a file of SentencePiece's tokens does not say: as every such model has them.
constexpr int64_t kUsualBos = 1, kUsualEos = 2;

std::optional<int64_t> bos_or_eos(const GgufFile& file, const char* name, int64_t usual) {
  const auto kind = file.find("tokenizer.ggml.model");
  const bool is_named = file.find(fmt::format("tokenizer.ggml.{}_token_id", name)).has_value();
  const bool is_usual = !is_named && kind && kind->text() == "llama";
  return is_usual && static_cast<int64_t>(file.at(kTokens).size()) > usual ? usual : named_id(file, name);
}

const PreTokenizer& find_pre_tokenizer(const GgufFile& file) {
  std::string known;
  const auto name = file.find("tokenizer.ggml.pre");
  if (!name) {
    fail("{}: expected tokenizer.ggml.pre in its metadata, found none: files up to April 2024 do not say how texts are "
         "split; convert the original model again",
         file.name());
  }
  for (const PreTokenizer& pre : kPreTokenizers) {
    if (name->text() == pre.name) return pre;
    known += (known.empty() ? "" : ", ") + std::string(pre.name);
  }
  name->unexpected("one of " + known, "how this one splits texts is not known here; use the original checkpoint");
}

class Reader {
 public:
  explicit Reader(const GgufFile& file) : file_(file) {}

  TokenizerSpec run() {
    read_tokens();
    const GgufValue kind = file_.at("tokenizer.ggml.model");
    bool adds_bos = true;
    if (kind.text() == "gpt2") {
      adds_bos = read_byte_level();
    } else if (kind.text() == "llama") {
      read_sentence_piece();
    } else {
      kind.unexpected("gpt2 (byte-level BPE) or llama (SentencePiece's BPE)", "no other tokenizer is supported");
    }
    add_end("bos", kUsualBos, adds_bos, spec_.prefix);
    add_end("eos", kUsualEos, false, spec_.suffix);
    return std::move(spec_);
  }

 private:
  bool flag(const char* key, bool fallback) const {
    const auto value = file_.find(key);
    return value ? value->boolean() : fallback;
  }

  void read_tokens() {
    const GgufValue tokens = file_.at(kTokens);
    if (tokens.size() == 0 || tokens.size() > kMaxTokens) tokens.unexpected(fmt::format("1 to {} tokens", kMaxTokens));
    const size_t n = tokens.size();
    const auto types = file_.find(kTypes);
    types_ = types ? types->integers(0, kByte) : std::vector<int64_t>(n, kNormal);
    if (types_.size() != n) types->unexpected(fmt::format("as many as there are tokens, {}", n));
    spec_.tokens.reserve(n);
    for (const std::string_view token : tokens.texts()) {
      if (valid_utf8_prefix(token) != token.size()) {
        tokens.unexpected("tokens in UTF-8", fmt::format("token {} is something else", spec_.tokens.size()));
      }
      const auto id = static_cast<int32_t>(spec_.tokens.size());
      if (token.size() > kMaxTokenBytes) {
        tokens.unexpected(fmt::format("tokens of at most {} bytes", kMaxTokenBytes),
                          fmt::format("token {} is longer", id));
      }
      const int64_t type = types_[static_cast<size_t>(id)];
      const bool in_model = type == kNormal || type == kByte;
      spec_.tokens.emplace_back(token);
      spec_.in_model.push_back(in_model);
      if (in_model) ids_.emplace(spec_.tokens.back(), id);
      const bool is_special = type == kControl || type == kUnknown;
      if ((is_special || type == kUserDefined) && !token.empty()) {
        spec_.added_tokens.push_back({.id = id, .content = std::string(token), .special = is_special});
      }
    }
  }

  // Words of the vocabulary may be among the added tokens too.
  void add_words_of_merges() {
    for (const AddedToken& token : spec_.added_tokens) ids_.emplace(token.content, token.id);
  }

  int32_t id_of(std::string_view token, const GgufValue& where) const {
    const auto found = ids_.find(std::string(token));
    if (found == ids_.end()) {
      where.unexpected("merges of tokens of the vocabulary", fmt::format("\"{}\" is none", printable(token)));
    }
    return found->second;
  }

  // Returns whether a text begins with a token of its own where the file does not say.
  bool read_byte_level() {
    const PreTokenizer& pre = find_pre_tokenizer(file_);
    spec_.byte_level = true;
    spec_.ignore_merges = pre.ignore_merges;
    if (pre.nfc) spec_.normalizer.push_back({.kind = NormalizerStep::Kind::kNfc, .pattern = {}, .content = {}});
    if (flag("tokenizer.ggml.add_space_prefix", false)) spec_.pre_tokenizer.push_back(PrefixRule{.prefix = " "});
    if (pre.single_digits) spec_.pre_tokenizer.push_back(digits_split_rule(true));
    spec_.pre_tokenizer.push_back(pre.split == nullptr ? gpt2_split_rule() : SplitRule{.pattern = pre.split});
    const GgufValue merges = file_.at(kMerges);
    add_words_of_merges();
    for (const std::string_view merge : merges.texts()) {
      const size_t space = merge.find(' ', 1);
      if (space == merge.npos) merges.unexpected("merges of two tokens with a space between them");
      const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
      spec_.merges.push_back({.left = id_of(left, merges),
                              .right = id_of(right, merges),
                              .merged = id_of(std::string(left) + std::string(right), merges)});
      const BpeMerge& added = spec_.merges.back();
      for (const int32_t id : {added.left, added.right, added.merged}) spec_.in_model[static_cast<size_t>(id)] = true;
    }
    if (pre.is_glm) {
      for (const char* name : {"[gMASK]", "<sop>"}) {
        if (const auto found = ids_.find(name); found != ids_.end()) spec_.prefix.push_back(found->second);
      }
    }
    // Of Phi-4's tokenizer.json, which the metadata do not repeat: white space around its special tokens is theirs.
    const bool is_phi4 = file_.at("general.architecture").text() == "phi3" && std::string_view(pre.name) == "dbrx";
    for (AddedToken& token : spec_.added_tokens) token.lstrip = token.rstrip = is_phi4 && token.special;
    return pre.adds_bos;
  }

  void read_sentence_piece() {
    constexpr const char* kSpace = "\u2581";
    spec_.byte_level = false;
    spec_.space = kSpace;
    const bool has_prefix = flag("tokenizer.ggml.add_space_prefix", true);
    spec_.n_dropped_spaces = has_prefix ? 1 : 0;
    // Mistral's since [INST] is one token: only the beginning of a text has a space put before it. Of earlier ones, and
    // Llama 2, what follows any special token.
    const bool only_first = std::ranges::any_of(
        spec_.added_tokens, [](const AddedToken& token) { return token.special && token.content == "[INST]"; });
    if (has_prefix && only_first) {
      spec_.pre_tokenizer.push_back(
          PrefixRule{.scheme = PrefixRule::Scheme::kFirst, .prefix = kSpace, .replaces_spaces = true});
    } else {
      if (has_prefix) {
        spec_.normalizer.push_back({.kind = NormalizerStep::Kind::kPrepend, .pattern = {}, .content = kSpace});
      }
      spec_.normalizer.push_back({.kind = NormalizerStep::Kind::kReplace, .pattern = " ", .content = kSpace});
    }
    if (flag("tokenizer.ggml.remove_extra_whitespaces", false)) {
      file_.at("tokenizer.ggml.remove_extra_whitespaces").unexpected("false", "nothing else is supported");
    }
    if (file_.at("general.architecture").text() == "phi3") strip_behind_phi3();
    merge_by_scores();
    for (int byte = 0; byte < 256; ++byte) {
      const std::string token = byte_token(static_cast<uint8_t>(byte));
      if (!ids_.contains(token)) file_.at(kTokens).unexpected("a token for every byte", "there is no " + token);
    }
  }

  // Of Phi-3's tokenizer.json, which the metadata do not repeat: white space behind its special tokens is theirs.
  void strip_behind_phi3() {
    for (AddedToken& token : spec_.added_tokens) {
      const bool is_plain = token.content == "<unk>" || token.content == "<s>" || token.content == "<|endoftext|>";
      token.rstrip = !is_plain;
    }
  }

  // SentencePiece merges two neighbours into the token of the highest score; as a list of merges, that is every way
  // to cut a token in two, by its score. In the order that transformers gives them, where scores are equal.
  void merge_by_scores() {
    const GgufValue key = file_.at(kScores);
    const std::vector<float> scores = key.floats();
    if (scores.size() != spec_.tokens.size()) {
      key.unexpected(fmt::format("as many as there are tokens, {}", spec_.tokens.size()));
    }
    const bool are_finite = std::ranges::all_of(scores, [](float score) { return std::isfinite(score); });
    if (!are_finite) key.unexpected("finite numbers", "convert the original model again");
    struct Cut {
      BpeMerge merge;
      float score;
      uint32_t left_length, right_length;  // in characters
    };
    std::vector<Cut> cuts;
    for (size_t id = 0; id < spec_.tokens.size(); ++id) {
      if (types_[id] != kNormal) continue;
      const std::string& token = spec_.tokens[id];
      const size_t before = cuts.size();
      std::vector<size_t> starts;  // of characters
      for (size_t at = 0; at < token.size(); ++at) {
        if ((static_cast<uint8_t>(token[at]) & 0xc0) != 0x80) starts.push_back(at);
      }
      for (size_t i = 1; i < starts.size(); ++i) {
        const auto left = ids_.find(token.substr(0, starts[i])), right = ids_.find(token.substr(starts[i]));
        if (left == ids_.end() || right == ids_.end()) continue;
        cuts.push_back({{left->second, right->second, static_cast<int32_t>(id)},
                        scores[id],
                        static_cast<uint32_t>(i),
                        static_cast<uint32_t>(starts.size() - i)});
      }
      std::sort(cuts.begin() + static_cast<std::ptrdiff_t>(before), cuts.end(), [](const Cut& a, const Cut& b) {
        return std::tie(a.merge.left, a.merge.right) < std::tie(b.merge.left, b.merge.right);
      });
    }
    std::stable_sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) {
      return std::tie(a.score, a.left_length, a.right_length) > std::tie(b.score, b.left_length, b.right_length);
    });
    for (const Cut& cut : cuts) spec_.merges.push_back(cut.merge);
  }

  // "bos", "eos": the token that is put around a text.
  void add_end(const char* name, int64_t usual, bool fallback, std::vector<int32_t>& ids) const {
    if (!flag(fmt::format("tokenizer.ggml.add_{}_token", name).c_str(), fallback)) return;
    if (const auto id = bos_or_eos(file_, name, usual)) ids.push_back(static_cast<int32_t>(*id));
  }

  const GgufFile& file_;
  TokenizerSpec spec_;
  std::vector<int64_t> types_;
  std::unordered_map<std::string, int32_t> ids_;  // of tokens that can be merged
};

}  // namespace

TokenizerSpec gguf_tokenizer(const GgufFile& file) { return Reader(file).run(); }

GgufEndTokens gguf_end_tokens(const GgufFile& file) {
  constexpr std::string_view kEnds[] = {"<|eot_id|>",      "<|im_end|>", "<|end|>",        "<|endoftext|>",
                                        "<|end_of_text|>", "<|eom_id|>", "<|observation|>"};
  GgufEndTokens ends;
  if (!file.find(kTokens)) return ends;
  ends.bos = bos_or_eos(file, "bos", kUsualBos);
  if (const auto id = bos_or_eos(file, "eos", kUsualEos)) ends.eos.push_back(*id);
  for (const char* name : {"eot", "eom"}) {
    if (const auto id = named_id(file, name)) ends.eos.push_back(*id);
  }
  const auto tokens = file.find(kTokens), types = file.find(kTypes);
  if (tokens && types && tokens->size() == types->size()) {
    const std::vector<int64_t> kinds = types->integers(0, kByte);
    int64_t id = 0;
    for (const std::string_view token : tokens->texts()) {
      const int64_t kind = kinds[static_cast<size_t>(id)];
      const bool is_added = kind == kControl || kind == kUserDefined;
      if (is_added && std::ranges::find(kEnds, token) != std::end(kEnds)) ends.eos.push_back(id);
      ++id;
    }
  }
  std::ranges::sort(ends.eos);
  ends.eos.erase(std::unique(ends.eos.begin(), ends.eos.end()), ends.eos.end());
  return ends;
}

GgufChat gguf_chat(const GgufFile& file) {
  GgufChat chat;
  if (const auto jinja = file.find("tokenizer.chat_template")) chat.jinja = jinja->text();
  const auto text_of = [&](const char* name, int64_t usual) {
    const auto id = file.find(kTokens) ? bos_or_eos(file, name, usual) : std::nullopt;
    return id ? std::string(file.at(kTokens).texts()[static_cast<size_t>(*id)]) : std::string();
  };
  chat.bos = text_of("bos", kUsualBos);
  chat.eos = text_of("eos", kUsualEos);
  return chat;
}

}  // namespace tiercel
