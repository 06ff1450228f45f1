#include "engine/text/tokenizer_json.h"

#include <fmt/format.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "engine/base/check.h"
#include "engine/text/token_spelling.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

using Json = nlohmann::json;

// Sequences of sequences deeper than this are no tokenizer; it bounds the recursion.
constexpr int kMaxNesting = 16;
// Nor are more steps than this, which bounds what a text is passed through.
constexpr size_t kMaxSteps = 64;
// Added tokens are looked for at every place of a text.
constexpr size_t kMaxAddedBytes = 1024;

std::string described(const Json& value) {
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    return text.size() <= 60 ? fmt::format("\"{}\"", text)
                             : fmt::format("a string of {} bytes", text.size());
  }
  if (value.is_object()) return fmt::format("an object of {} members", value.size());
  if (value.is_array()) return fmt::format("an array of {} elements", value.size());
  return value.dump();
}

// A value, and where it stands in which file. The path of an array's element is built only when it
// is needed (there are a quarter of a million merges); such a Node must not outlive its array's.
class Node {
 public:
  Node(const Json& value, const std::string& file, std::string path)
      : value_(value), file_(file), path_(std::move(path)) {}
  Node(const Json& value, const Node& array, size_t index)
      : value_(value), file_(array.file_), array_(&array), index_(index) {}

  const Json& json() const { return value_; }
  const std::string& file() const { return file_; }
  bool is_null() const { return value_.is_null(); }

  std::string path() const {
    return array_ == nullptr ? path_ : fmt::format("{}[{}]", array_->path(), index_);
  }
  std::string place() const { return fmt::format("{}: {}", file_, path()); }
  [[noreturn]] void refuse(std::string_view expected) const { refuse(expected, described(value_)); }
  [[noreturn]] void refuse(std::string_view expected, std::string_view found) const {
    fail("{}: expected {}, found {}", place(), expected, found);
  }

  // A member; a missing one reads as null.
  Node operator[](std::string_view key) const {
    static const Json kNull;
    if (!value_.is_object()) refuse("an object");
    const auto member = value_.find(key);
    return Node(member == value_.end() ? kNull : *member, file_, fmt::format("{}.{}", path(), key));
  }
  const std::string& string() const {
    if (!value_.is_string()) refuse("a string");
    return value_.get_ref<const std::string&>();
  }
  bool boolean(std::optional<bool> otherwise) const {
    if (value_.is_null() && otherwise) return *otherwise;
    if (!value_.is_boolean()) refuse("true or false");
    return value_.get<bool>();
  }
  int32_t id() const {
    constexpr uint64_t kMax = std::numeric_limits<int32_t>::max() - 1;
    if (!value_.is_number_unsigned() || value_.get<uint64_t>() > kMax) {
      refuse("a token id (an integer from 0 to 2147483646)");
    }
    return static_cast<int32_t>(value_.get<uint64_t>());
  }
  template <typename Visit>
  void for_each_element(Visit visit) const {
    if (!value_.is_array()) refuse("an array");
    for (size_t i = 0; i < value_.size(); ++i) visit(Node(value_[i], *this, i));
  }

 private:
  const Json& value_;
  const std::string& file_;
  std::string path_;
  const Node* array_ = nullptr;
  size_t index_ = 0;
};

class TokenizerJsonReader {
 public:
  explicit TokenizerJsonReader(const Node& root) : root_(root) {}

  TokenizerSpec run() {
    const Node model = root_["model"];
    check_model_kind(model);
    read_vocabulary(model["vocab"]);
    read_merges(model["merges"]);
    spec_.ignore_merges = model["ignore_merges"].boolean(false);
    read_added_tokens(root_["added_tokens"]);
    check_no_holes();
    read_normalizer(root_["normalizer"], 0);
    if (!root_["pre_tokenizer"].is_null()) read_pre_tokenizer(root_["pre_tokenizer"], 0);
    check_steps();
    check_alphabet(model);
    if (spec_.byte_level) {
      read_byte_level_decoder(root_["decoder"], 0);
    } else {
      read_character_decoder(root_["decoder"]);
    }
    if (!root_["post_processor"].is_null()) read_post_processor(root_["post_processor"], 0);
    return std::move(spec_);
  }

 private:
  static void check_depth(const Node& node, int depth) {
    if (depth > kMaxNesting) node.refuse("at most 16 nested Sequences", "more");
  }

  static void check_model_kind(const Node& model) {
    if (!model.json().is_object()) model.refuse("an object");
    // Files of 2020 have no type; a model with merges is BPE.
    const Node type = model["type"];
    if (!(type.is_null() && model["merges"].json().is_array()) &&
        (!type.json().is_string() || type.string() != "BPE")) {
      type.refuse("\"BPE\" (supported: byte-level BPE, and BPE with byte_fallback)");
    }
    if (!model["dropout"].is_null()) {
      model["dropout"].refuse("null (nothing else is supported)");
    }
    for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const Node node = model[key];
      if (!node.is_null() && !node.string().empty()) {
        node.refuse("null or \"\" (nothing else is supported)");
      }
    }
  }

  // Every byte must have a token, in the one way or the other: unk_token is never needed.
  void check_alphabet(const Node& model) {
    spec_.byte_level = seen_byte_level_;
    const bool byte_fallback = model["byte_fallback"].boolean(false);
    if (spec_.byte_level) {
      if (!model["unk_token"].is_null()) {
        model["unk_token"].refuse("null beside the pre-tokenizer ByteLevel");
      }
      for (int byte = 0; byte_fallback && byte < 256; ++byte) {
        const char of_byte = static_cast<char>(byte);
        const std::string token = byte_level_token({&of_byte, 1});
        if (!model_ids_.contains(token)) {
          model["vocab"].refuse("a token for every byte, as byte_fallback is true",
                                fmt::format("no \"{}\"", token));
        }
      }
      return;
    }
    if (!byte_fallback) {
      root_["pre_tokenizer"].refuse(
          "a pre-tokenizer that ends with ByteLevel, or a model with byte_fallback");
    }
    for (int byte = 0; byte < 256; ++byte) {
      const std::string token = byte_token(static_cast<uint8_t>(byte));
      if (!model_ids_.contains(token)) {
        model["vocab"].refuse("the tokens \"<0x00>\" to \"<0xFF>\", as byte_fallback is true",
                              fmt::format("no \"{}\"", token));
      }
    }
  }

  void add_token(const std::string& content, int32_t id, const Node& where) {
    const auto [place, inserted] = ids_.emplace(content, id);
    if (!inserted && place->second != id) {
      where.refuse(
          fmt::format("id {} for \"{}\", which has it in the vocabulary", place->second, content));
    }
    if (!inserted) return;
    const auto [owner, is_new] = contents_.emplace(id, content);
    if (!is_new) {
      where.refuse(fmt::format("every id once; {} already belongs to \"{}\"", id, owner->second),
                   fmt::format("it for \"{}\" too", content));
    }
  }

  void read_vocabulary(const Node& vocab) {
    if (!vocab.json().is_object()) vocab.refuse("an object of token: id");
    ids_.reserve(vocab.json().size());
    contents_.reserve(vocab.json().size());
    for (const auto& [content, id] : vocab.json().items()) {
      const Node entry(id, vocab.file(), fmt::format("{}.{}", vocab.path(), content));
      add_token(content, entry.id(), entry);
    }
    model_ids_ = ids_;
  }

  int32_t model_id(const Node& where, const std::string& token) const {
    const auto found = model_ids_.find(token);
    if (found == model_ids_.end()) {
      where.refuse("tokens of the vocabulary", fmt::format("the unknown token \"{}\"", token));
    }
    return found->second;
  }

  void read_merges(const Node& merges) {
    merges.for_each_element([&](const Node& merge) {
      std::string left;
      std::string right;
      if (merge.json().is_array() && merge.json().size() == 2) {
        left = Node(merge.json()[0], merge, size_t{0}).string();
        right = Node(merge.json()[1], merge, size_t{1}).string();
      } else if (merge.json().is_string()) {
        const std::string& both = merge.string();
        if (both.starts_with("#version")) return;
        const size_t space = both.find(' ');
        if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos) {
          merge.refuse("two tokens with one space between them");
        }
        left = both.substr(0, space);
        right = both.substr(space + 1);
      } else {
        merge.refuse("\"left right\" or [\"left\", \"right\"]");
      }
      spec_.merges.push_back({.left = model_id(merge, left),
                              .right = model_id(merge, right),
                              .merged = model_id(merge, left + right)});
    });
  }

  void read_added_tokens(const Node& added) {
    if (added.is_null()) return;
    std::unordered_map<std::string, bool> seen;
    int32_t last_added = -1;
    added.for_each_element([&](const Node& node) {
      const AddedToken token{.id = node["id"].id(),
                             .content = node["content"].string(),
                             .single_word = node["single_word"].boolean(false),
                             .lstrip = node["lstrip"].boolean(false),
                             .rstrip = node["rstrip"].boolean(false),
                             .normalized = node["normalized"].boolean(true),
                             .special = node["special"].boolean(false)};
      if (token.content.empty()) node["content"].refuse("a token of at least one byte");
      if (token.content.size() > kMaxAddedBytes) {
        node["content"].refuse(fmt::format("a token of at most {} bytes", kMaxAddedBytes));
      }
      if (!seen.emplace(token.content, true).second) {
        node["content"].refuse("every added token once");
      }
      // Hugging Face numbers new ones itself, in this order.
      const bool is_new = !ids_.contains(token.content);
      if (is_new && token.id <= last_added) {
        node["id"].refuse(
            fmt::format("the ids of new tokens in ascending order, one above {}", last_added));
      }
      if (is_new) last_added = token.id;
      add_token(token.content, token.id, node["id"]);
      spec_.added_tokens.push_back(token);
    });
  }

  // Ids must be 0 .. n-1: the embedding has a row for each, and a hole would have no text.
  void check_no_holes() {
    const size_t n = contents_.size();
    if (n == 0) root_["model"]["vocab"].refuse("at least one token");
    spec_.tokens.resize(n);
    spec_.in_model.resize(n);
    for (size_t id = 0; id < n; ++id) {
      const auto found = contents_.find(static_cast<int32_t>(id));
      if (found == contents_.end()) {
        root_["model"]["vocab"].refuse(
            fmt::format("{} tokens (added ones included) to have the ids 0 to {}", n, n - 1),
            fmt::format("none with id {}", id));
      }
      spec_.tokens[id] = found->second;
      spec_.in_model[id] = model_ids_.contains(found->second);
    }
  }

  void read_normalizer(const Node& node, int depth) {
    using Kind = NormalizerStep::Kind;
    check_depth(node, depth);
    if (node.is_null()) return;
    const std::string& type = node["type"].string();
    if (type == "NFC") {
      spec_.normalizer.push_back({.kind = Kind::kNfc, .pattern = {}, .content = {}});
    } else if (type == "Prepend") {
      spec_.normalizer.push_back(
          {.kind = Kind::kPrepend, .pattern = {}, .content = node["prepend"].string()});
    } else if (type == "Replace") {
      const Node pattern = node["pattern"];
      if (pattern["String"].is_null() || pattern["String"].string().empty()) {
        pattern.refuse("{\"String\": text to find} (nothing else is supported)");
      }
      spec_.normalizer.push_back({.kind = Kind::kReplace,
                                  .pattern = pattern["String"].string(),
                                  .content = node["content"].string()});
    } else if (type == "Sequence") {
      node["normalizers"].for_each_element(
          [&](const Node& element) { read_normalizer(element, depth + 1); });
    } else {
      node["type"].refuse(
          "a supported normalizer: NFC, Prepend, Replace, Sequence, or null for none");
    }
  }

  void read_pre_tokenizer(const Node& node, int depth) {
    constexpr const char* kSupported =
        "a supported pre-tokenizer: ByteLevel, Metaspace, Split, Digits, Sequence";
    check_depth(node, depth);
    if (node.is_null()) node.refuse(kSupported);
    if (seen_byte_level_) node.refuse("nothing after ByteLevel");
    const std::string& type = node["type"].string();
    if (type == "Sequence") {
      node["pretokenizers"].for_each_element(
          [&](const Node& element) { read_pre_tokenizer(element, depth + 1); });
    } else if (type == "Split") {
      read_split(node);
    } else if (type == "Digits") {
      spec_.pre_tokenizer.push_back(digits_split_rule(node["individual_digits"].boolean(false)));
    } else if (type == "Metaspace") {
      read_metaspace(node);
    } else if (type == "ByteLevel") {
      seen_byte_level_ = true;
      if (node["add_prefix_space"].boolean(true)) {
        spec_.pre_tokenizer.push_back(PrefixRule{.prefix = " "});
      }
      if (node["use_regex"].boolean(true)) spec_.pre_tokenizer.push_back(gpt2_split_rule());
    } else {
      node["type"].refuse(kSupported);
    }
  }

  // Files before 2024 have add_prefix_space where there is a prepend_scheme now.
  void read_metaspace(const Node& node) {
    using Scheme = PrefixRule::Scheme;
    const std::string& replacement = node["replacement"].string();
    size_t end = 0;
    if (!replacement.empty()) read_code_point(replacement, &end);
    if (replacement.empty() || end != replacement.size()) {
      node["replacement"].refuse("one character");
    }
    PrefixRule rule{.prefix = replacement, .replaces_spaces = true};
    const Node scheme = node["prepend_scheme"];
    if (scheme.is_null()) {
      rule.scheme = node["add_prefix_space"].boolean(true) ? Scheme::kAlways : Scheme::kNever;
    } else {
      static const std::unordered_map<std::string, Scheme> kSchemes = {
          {"always", Scheme::kAlways}, {"first", Scheme::kFirst}, {"never", Scheme::kNever}};
      const auto found = kSchemes.find(scheme.string());
      if (found == kSchemes.end()) scheme.refuse("\"always\", \"first\" or \"never\"");
      rule.scheme = found->second;
    }
    spec_.pre_tokenizer.push_back(rule);
    if (node["split"].boolean(true)) {
      spec_.pre_tokenizer.push_back(SplitRule{
          .pattern = replacement, .literal = true, .behavior = SplitBehavior::kMergedWithNext});
    }
  }

  // "first" means that nothing of the original text comes before. Here that is the first piece, and
  // so what takes bytes from the text, or puts a piece of its own before it, would make a
  // difference.
  void check_steps() {
    if (spec_.normalizer.size() > kMaxSteps || spec_.pre_tokenizer.size() > kMaxSteps) {
      root_.refuse(fmt::format("at most {} steps of a normalizer or pre-tokenizer", kMaxSteps),
                   "more");
    }
    bool shifts = false, prefixes = false, splits_prefix = false;
    for (const NormalizerStep& step : spec_.normalizer) {
      size_t end = 0;
      if (step.kind == NormalizerStep::Kind::kReplace) read_code_point(step.pattern, &end);
      shifts |= step.kind == NormalizerStep::Kind::kReplace &&
                (step.content.empty() || end != step.pattern.size());
      prefixes |= step.kind == NormalizerStep::Kind::kPrepend;
    }
    for (const PreTokenizerStep& step : spec_.pre_tokenizer) {
      const auto* rule = std::get_if<PrefixRule>(&step);
      splits_prefix |= rule == nullptr && prefixes;
      if (rule == nullptr) continue;
      if (rule->scheme == PrefixRule::Scheme::kFirst && (shifts || splits_prefix)) {
        root_["pre_tokenizer"].refuse(
            "the prepend_scheme \"always\" or \"never\" behind steps that change where a text "
            "begins",
            "\"first\"");
      }
      prefixes |= rule->scheme != PrefixRule::Scheme::kNever;
    }
  }

  void read_split(const Node& node) {
    SplitRule rule;
    const Node pattern = node["pattern"];
    const Node regex = pattern["Regex"];
    rule.literal = regex.is_null();
    if (rule.literal && pattern["String"].is_null()) {
      pattern.refuse("{\"Regex\": ...} or {\"String\": ...}");
    }
    rule.pattern = rule.literal ? pattern["String"].string() : regex.string();
    static const std::unordered_map<std::string, SplitBehavior> kBehaviors = {
        {"Removed", SplitBehavior::kRemoved},
        {"Isolated", SplitBehavior::kIsolated},
        {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
        {"MergedWithNext", SplitBehavior::kMergedWithNext},
        {"Contiguous", SplitBehavior::kContiguous}};
    const auto behavior = kBehaviors.find(node["behavior"].string());
    if (behavior == kBehaviors.end()) {
      node["behavior"].refuse(
          "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
    }
    rule.behavior = behavior->second;
    rule.invert = node["invert"].boolean(false);
    // Compiled here once only to say where a bad pattern stands.
    Splitter(rule, pattern.place());
    spec_.pre_tokenizer.push_back(rule);
  }

  void read_byte_level_decoder(const Node& node, int depth) {
    check_depth(node, depth);
    const Node type = node.is_null() ? node : node["type"];
    if (type.is_null()) type.refuse("the decoder ByteLevel");
    if (type.string() == "ByteLevel") return;
    if (type.string() != "Sequence" || node["decoders"].json().size() != 1) {
      type.refuse("the decoder ByteLevel, or a Sequence of only that");
    }
    node["decoders"].for_each_element(
        [&](const Node& element) { read_byte_level_decoder(element, depth + 1); });
  }

  // Replace, ByteFallback, Fuse, Strip: all but ByteFallback may be missing, and what is stripped
  // are spaces that the whole text begins with, so Fuse must come before.
  void read_character_decoder(const Node& node) {
    constexpr const char* kSupported =
        "the decoder Sequence of Replace, ByteFallback, Fuse and Strip, in this order";
    const Node type = node.is_null() ? node : node["type"];
    if (type.is_null() || type.string() != "Sequence") type.refuse(kSupported);
    const std::string_view order[] = {"Replace", "ByteFallback", "Fuse", "Strip"};
    size_t next = 0;
    bool seen[4] = {};
    node["decoders"].for_each_element([&](const Node& element) {
      const Node kind = element["type"];
      while (next < 4 && kind.string() != order[next]) ++next;
      if (next == 4) kind.refuse(kSupported);
      seen[next] = true;
      if (next == 0) read_decoder_replace(element);
      if (next == 3) read_decoder_strip(element, seen[2]);
      ++next;
    });
    if (!seen[1]) node["decoders"].refuse(kSupported, "no ByteFallback");
  }

  void read_decoder_replace(const Node& node) {
    const Node pattern = node["pattern"];
    if (pattern["String"].is_null() || pattern["String"].string().empty()) {
      pattern.refuse("{\"String\": text to find}");
    }
    if (node["content"].string() != " ") node["content"].refuse("\" \"");
    spec_.space = pattern["String"].string();
    for (int byte = 0; byte < 256; ++byte) {
      if (byte_token(static_cast<uint8_t>(byte)).find(spec_.space) != std::string::npos) {
        pattern.refuse("a text that is in no token of a byte (<0x00> to <0xFF>)");
      }
    }
  }

  void read_decoder_strip(const Node& node, bool is_fused) {
    if (!is_fused) node.refuse("Fuse before Strip", "none");
    if (node["content"].string() != " ") node["content"].refuse("\" \"");
    if (node["stop"].id() != 0) node["stop"].refuse("0 (nothing else is supported)");
    spec_.n_dropped_spaces = static_cast<size_t>(node["start"].id());
  }

  void read_post_processor(const Node& node, int depth) {
    check_depth(node, depth);
    const std::string& type = node["type"].string();
    if (type == "Sequence") {
      node["processors"].for_each_element(
          [&](const Node& element) { read_post_processor(element, depth + 1); });
    } else if (type == "TemplateProcessing") {
      read_template(node);
    } else if (type != "ByteLevel") {  // which only moves offsets
      node["type"].refuse("a supported post-processor: TemplateProcessing, ByteLevel, Sequence");
    }
  }

  // A second template goes around the first.
  void read_template(const Node& node) {
    std::vector<int32_t> before;
    std::vector<int32_t> after;
    bool seen_text = false;
    node["single"].for_each_element([&](const Node& element) {
      if (!element["Sequence"].is_null()) {
        const Node id = element["Sequence"]["id"];
        if (seen_text || id.string() != "A") id.refuse("the sequence A, once");
        seen_text = true;
        return;
      }
      const Node id = element["SpecialToken"]["id"];
      const Node special = node["special_tokens"][id.string()];
      if (special.is_null()) id.refuse("a key of special_tokens");
      special["ids"].for_each_element([&](const Node& value) {
        if (static_cast<size_t>(value.id()) >= spec_.tokens.size()) {
          value.refuse(fmt::format("an id below {}", spec_.tokens.size()));
        }
        (seen_text ? after : before).push_back(value.id());
      });
    });
    if (!seen_text) node["single"].refuse("the sequence A, once");
    before.insert(before.end(), spec_.prefix.begin(), spec_.prefix.end());
    spec_.prefix = std::move(before);
    spec_.suffix.insert(spec_.suffix.end(), after.begin(), after.end());
  }

  const Node& root_;
  TokenizerSpec spec_;
  bool seen_byte_level_ = false;
  std::unordered_map<std::string, int32_t> ids_;        // added tokens included
  std::unordered_map<std::string, int32_t> model_ids_;  // the vocabulary of the model alone
  std::unordered_map<int32_t, std::string> contents_;
};

}  // namespace

TokenizerSpec parse_tokenizer_json(std::string_view json, const std::string& name) {
  Json document;
  try {
    document = Json::parse(json);
  } catch (const Json::parse_error& error) {
    fail("{}: expected JSON, found an error at byte {}: {}", name, error.byte, error.what());
  } catch (const Json::exception& error) {  // a number beyond any type
    fail("{}: expected JSON, found: {}", name, error.what());
  }
  const Node root(document, name, "$");
  if (!document.is_object()) root.refuse("an object");
  return TokenizerJsonReader(root).run();
}

}  // namespace tiercel
