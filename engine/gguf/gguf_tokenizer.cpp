#include "engine/gguf/gguf_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
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
constexpr size_t kMaxTokens = size_t{1} << 24;

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
    {.name = "glm4", .split = kLlama3Split, .ignore_merges = true},
    {.name = "chatglm-bpe", .split = kLlama3Split},
    {.name = "smollm", .split = nullptr, .single_digits = true},
    {.name = "gpt-2", .split = nullptr},
};

const PreTokenizer& find_pre_tokenizer(const GgufFile& file) {
  std::string known;
  const GgufValue name = file.at("tokenizer.ggml.pre");
  for (const PreTokenizer& pre : kPreTokenizers) {
    if (name.text() == pre.name) return pre;
    known += (known.empty() ? "" : ", ") + std::string(pre.name);
  }
  name.unexpected("one of " + known, "how this one splits texts is not known here; use the original checkpoint");
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
    add_ends("bos", adds_bos, spec_.prefix);
    add_ends("eos", false, spec_.suffix);
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
      const int64_t type = types_[static_cast<size_t>(id)];
      const bool in_model = type == kNormal || type == kByte || type == kUnknown;
      spec_.tokens.emplace_back(token);
      spec_.in_model.push_back(in_model);
      if (in_model) ids_.emplace(spec_.tokens.back(), id);
      if ((type == kControl || type == kUserDefined) && !token.empty()) {
        spec_.added_tokens.push_back({.id = id, .content = std::string(token), .special = type == kControl});
      }
    }
  }

  // What every byte needs in the one way or the other.
  void require_bytes(const std::function<std::string(uint8_t)>& token_of) const {
    for (int byte = 0; byte < 256; ++byte) {
      const std::string token = token_of(static_cast<uint8_t>(byte));
      if (!ids_.contains(token)) file_.at(kTokens).unexpected("a token for every byte", "there is no " + token);
    }
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
    for (const std::string_view merge : merges.texts()) {
      const size_t space = merge.find(' ', 1);
      if (space == merge.npos) merges.unexpected("merges of two tokens with a space between them");
      const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
      spec_.merges.push_back({.left = id_of(left, merges),
                              .right = id_of(right, merges),
                              .merged = id_of(std::string(left) + std::string(right), merges)});
    }
    require_bytes([](uint8_t byte) {
      const char of_byte = static_cast<char>(byte);
      return byte_level_token({&of_byte, 1});
    });
    return pre.adds_bos;
  }

  void read_sentence_piece() {
    constexpr const char* kSpace = "\u2581";
    spec_.byte_level = false;
    spec_.space = kSpace;
    if (flag("tokenizer.ggml.add_space_prefix", true)) {
      spec_.normalizer.push_back({.kind = NormalizerStep::Kind::kPrepend, .pattern = {}, .content = kSpace});
      spec_.n_dropped_spaces = 1;
    }
    spec_.normalizer.push_back({.kind = NormalizerStep::Kind::kReplace, .pattern = " ", .content = kSpace});
    if (flag("tokenizer.ggml.remove_extra_whitespaces", false)) {
      file_.at("tokenizer.ggml.remove_extra_whitespaces").unexpected("false", "nothing else is supported");
    }
    if (file_.at("general.architecture").text() == "phi3") strip_behind_phi3();
    merge_by_scores();
    require_bytes(byte_token);
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
  void add_ends(const std::string& name, bool fallback, std::vector<int32_t>& ids) const {
    if (!flag(("tokenizer.ggml.add_" + name + "_token").c_str(), fallback)) return;
    const std::string key = "tokenizer.ggml." + name + "_token_id";
    if (!file_.find(key)) return;
    ids.push_back(static_cast<int32_t>(file_.at(key).integer(0, std::ssize(spec_.tokens) - 1)));
  }

  const GgufFile& file_;
  TokenizerSpec spec_;
  std::vector<int64_t> types_;
  std::unordered_map<std::string, int32_t> ids_;  // of tokens that can be merged
};

// An id that the file names; none: none, or none of its tokens, as files have that mean none.
std::optional<int64_t> named_id(const GgufFile& file, const char* name) {
  const auto value = file.find(fmt::format("tokenizer.ggml.{}_token_id", name));
  if (!value) return std::nullopt;
  const int64_t id = value->integer(INT32_MIN, UINT32_MAX);
  if (id < 0 || id >= static_cast<int64_t>(file.at(kTokens).size())) return std::nullopt;
  return id;
}

}  // namespace

TokenizerSpec gguf_tokenizer(const GgufFile& file) { return Reader(file).run(); }

GgufEndTokens gguf_end_tokens(const GgufFile& file) {
  constexpr std::string_view kEnds[] = {"<|eot_id|>",    "<|im_end|>",       "<|end|>",
                                        "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"};
  GgufEndTokens ends;
  ends.bos = named_id(file, "bos");
  for (const char* name : {"eos", "eot", "eom"}) {
    if (const auto id = named_id(file, name)) ends.eos.push_back(*id);
  }
  const auto tokens = file.find(kTokens), types = file.find(kTypes);
  if (tokens && types && tokens->size() == types->size()) {
    const std::vector<int64_t> kinds = types->integers(0, kByte);
    int64_t id = 0;
    for (const std::string_view token : tokens->texts()) {
      const bool is_end = kinds[static_cast<size_t>(id)] == kControl && std::ranges::find(kEnds, token) != std::end(kEnds);
      if (is_end) ends.eos.push_back(id);
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
  const auto text_of = [&](const char* name) {
    const auto id = named_id(file, name);
    return id ? std::string(file.at(kTokens).texts()[static_cast<size_t>(*id)]) : std::string();
  };
  chat.bos = text_of("bos");
  chat.eos = text_of("eos");
  return chat;
}

}  // namespace tiercel
