// What is not a comparison with Hugging Face: streaming, bad files, extreme texts, threads.
#include "engine/text/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <functional>
#include <thread>

#include "engine/base/check.h"
#include "engine/text/split.h"
#include "tests/seed.h"
#include "tests/tokenizer/corpus.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

Tokenizer load(const std::string& name) { return Tokenizer::load(golden_path(name)); }

TEST(StreamDecoder, JoinedEqualsDecodeAndNeverCutsACharacter) {
  Random random(seed());
  for (int round = 0; round < 400; ++round) {
    static const Tokenizer kTokenizers[] = {load("llama3"), load("llama2")};
    const Tokenizer& tokenizer = kTokenizers[round % 2];
    for (const bool skip_special : {false, true}) {
      StreamDecoder decoder(tokenizer, skip_special);
      std::vector<int32_t> ids;
      std::string joined;
      for (uint32_t i = random.below(200); i > 0; --i) {
        // Half of the ids from the single bytes, so that characters are cut everywhere.
        const auto n = static_cast<uint32_t>(tokenizer.vocab_size());
        ids.push_back(static_cast<int32_t>(random.below(random.below(2) == 0 ? 256 : n)));
        const std::string part = decoder.push(ids.back());
        ASSERT_EQ(valid_utf8_prefix(part), part.size());
        joined += part;
      }
      joined += decoder.finish();
      ASSERT_EQ(joined, tokenizer.decode(ids, skip_special, Follows::kText));
    }
  }
}

TEST(StreamDecoder, HoldsBackUntilTheCharacterIsWhole) {
  const Tokenizer tokenizer = load("gpt2");
  StreamDecoder decoder(tokenizer);
  // U+1F600 is F0 9F 98 80; in the byte alphabet: ð Ł ĺ Ģ.
  EXPECT_EQ(decoder.push(*tokenizer.id_of("ð")), "");
  EXPECT_EQ(decoder.push(*tokenizer.id_of("Ł")), "");
  EXPECT_EQ(decoder.push(*tokenizer.id_of("ĺ")), "");
  EXPECT_EQ(decoder.push(*tokenizer.id_of("Ģ")), "\U0001F600");
  EXPECT_EQ(decoder.push(*tokenizer.id_of("ð")), "");
  EXPECT_EQ(decoder.push(*tokenizer.id_of("a")), "\uFFFDa");
  EXPECT_EQ(decoder.push(*tokenizer.id_of("ð")), "");
  EXPECT_EQ(decoder.finish(), "\uFFFD");
}

// A tokenizer that puts a space before a text, and drops it from what it decodes.
TEST(Tokenizer, WhatATextFollowsDecidesAboutItsSpace) {
  const Tokenizer tokenizer = load("llama2");
  const auto tokens_of = [&](std::string_view text, Follows follows) {
    std::vector<std::string> tokens;
    for (const int32_t id : tokenizer.encode(text, {.add_special = false, .follows = follows})) {
      tokens.emplace_back(tokenizer.token(id));
    }
    return tokens;
  };
  using Tokens = std::vector<std::string>;
  EXPECT_EQ(tokens_of("the", Follows::kNothing), Tokens{"\u2581the"});
  EXPECT_EQ(tokens_of("the", Follows::kToken), Tokens{"\u2581the"});
  EXPECT_EQ(tokens_of("the", Follows::kText), (Tokens{"the"}));
  EXPECT_EQ(tokens_of(" the", Follows::kText), Tokens{"\u2581the"});
  EXPECT_EQ(tokens_of("the<s>the", Follows::kText), (Tokens{"the", "<s>", "\u2581the"}));
  EXPECT_EQ(tokens_of("", Follows::kNothing), Tokens{});
  // A text in two parts has the tokens of the whole, if cut where no token is.
  std::vector<int32_t> ids = tokenizer.encode("the work\n", {});
  const std::vector<int32_t> whole = tokenizer.encode("the work\nof the", {});
  const std::vector<int32_t> rest =
      tokenizer.encode("of the", {.add_special = false, .follows = Follows::kText});
  ids.insert(ids.end(), rest.begin(), rest.end());
  EXPECT_EQ(ids, whole);
  const int32_t the = *tokenizer.id_of("\u2581the");
  EXPECT_EQ(tokenizer.token_bytes(the), " the");
  EXPECT_EQ(tokenizer.decode(std::vector{the, the}), "the the");
  EXPECT_EQ(tokenizer.decode(std::vector{the, the}, false, Follows::kText), " the the");
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(the), " the");  // an answer goes on behind its prompt
}

TEST(Tokenizer, BytesStandInForCharactersWithoutAToken) {
  const Tokenizer tokenizer = load("llama2");
  ASSERT_FALSE(tokenizer.id_of("\U0001F9FF").has_value());
  const std::vector<int32_t> ids =
      tokenizer.encode("\U0001F9FF", {.add_special = false, .follows = Follows::kText});
  ASSERT_EQ(ids.size(), 4u);
  EXPECT_EQ(tokenizer.token(ids[0]), "<0xF0>");
  StreamDecoder decoder(tokenizer);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(decoder.push(ids[static_cast<size_t>(i)]), "");
  EXPECT_EQ(decoder.push(ids[3]), "\U0001F9FF");
  // Where bytes are no character, what is one stays (Hugging Face replaces all of a row of bytes).
  const int32_t a = *tokenizer.id_of("<0x41>"), cut = *tokenizer.id_of("<0xC3>");
  EXPECT_EQ(tokenizer.decode(std::vector{a, cut, a}), "A\uFFFDA");
}

TEST(Tokenizer, TellsAboutItsTokens) {
  const Tokenizer tokenizer = load("qwen2");
  const int32_t end = *tokenizer.id_of("<|im_end|>");
  EXPECT_TRUE(tokenizer.is_special(end));
  EXPECT_FALSE(tokenizer.is_special(*tokenizer.id_of("<tool_call>")));
  EXPECT_EQ(tokenizer.token(*tokenizer.id_of("Ġthe")), "Ġthe");
  EXPECT_EQ(tokenizer.token_bytes(*tokenizer.id_of("Ġthe")), " the");
  EXPECT_FALSE(tokenizer.id_of("no such token").has_value());
  const std::vector<int32_t> ids = {*tokenizer.id_of("a"), end, *tokenizer.id_of("b")};
  EXPECT_EQ(tokenizer.decode(ids, false), "a<|im_end|>b");
  EXPECT_EQ(tokenizer.decode(ids, true), "ab");
  // Text that spells a special token stays text when asked.
  const std::vector<int32_t> plain =
      tokenizer.encode("<|im_end|>", {.add_special = false, .parse_special = false});
  EXPECT_GT(plain.size(), 1u);
  EXPECT_EQ(tokenizer.decode(plain, true), "<|im_end|>");
  EXPECT_EQ(tokenizer.encode("<|im_end|>"), std::vector<int32_t>{end});
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Tokenizer, RefusesIdsOutsideTheVocabulary) {
  const Tokenizer tokenizer = load("gpt2");
  for (const int32_t id : {-1, tokenizer.vocab_size()}) {
    const std::string error = error_of([&] {
      (void)tokenizer.decode(std::vector<int32_t>{0, id});
    });
    EXPECT_NE(error.find(fmt::format("expected a token id from 0 to 4095, found {}", id)),
              std::string::npos)
        << error;
    StreamDecoder decoder(tokenizer);
    // Models with a padded vocabulary may pick one beyond it.
    if (id < 0) {
      EXPECT_EQ(error_of([&] { (void)decoder.push(id); }), error);
    } else {
      EXPECT_EQ(decoder.push(id), "");
      EXPECT_EQ(tokenizer.behind(std::vector<int32_t>{id}), Follows::kText);
    }
  }
}

// A valid file of five tokens to spoil.
Json small_file() {
  return Json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<s>", "special": true, "normalized": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": null,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": ["a b"]}
  })");
}

TEST(Tokenizer, SaysWhatIsWrongWithAFile) {
  const struct {
    const char* pointer;
    const char* value;  // JSON; empty: remove the member
    const char* message;
  } cases[] = {
      {"/model/type", R"("Unigram")",
       "f: $.model.type: expected \"BPE\" (supported: byte-level BPE, and BPE with "
       "byte_fallback), found \"Unigram\""},
      {"/model/vocab", "[]", "f: $.model.vocab: expected an object of token: id, found an array"},
      {"/model/vocab/a", "-1", "f: $.model.vocab.a: expected a token id"},
      {"/model/vocab/a", "1.5", "found 1.5"},
      {"/model/vocab/a", "99999999999", "found 99999999999"},
      {"/model/vocab/b", "0", "every id once; 0 already belongs to"},
      {"/model/vocab/Ġ", "9", "(added ones included) to have the ids 0 to 4, found none with id 3"},
      {"/model/merges/0", R"("a c")",
       "f: $.model.merges[0]: expected tokens of the vocabulary, "
       "found the unknown token \"c\""},
      {"/model/merges/0", R"(["b", "a"])", "the unknown token \"ba\""},
      {"/model/merges/0", R"("a b c")", "two tokens with one space between"},
      {"/model/merges/0", "7", "found 7"},
      {"/model/merges", "", "f: $.model.merges: expected an array, found null"},
      {"/model/dropout", "0.1", "f: $.model.dropout: expected null"},
      {"/model/unk_token", R"("a")", "f: $.model.unk_token"},
      {"/model/end_of_word_suffix", R"("</w>")", "f: $.model.end_of_word_suffix"},
      {"/model", "", "f: $.model: expected an object, found null"},
      {"/normalizer", R"({"type": "NFKC"})",
       "f: $.normalizer.type: expected a supported "
       "normalizer: NFC, Prepend, Replace, Sequence, or null for none, found "
       "\"NFKC\""},
      {"/normalizer", R"({"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"})",
       "f: $.normalizer.pattern: expected {\"String\": text to find}"},
      {"/pre_tokenizer", "null",
       "f: $.pre_tokenizer: expected a pre-tokenizer that ends with ByteLevel, or a model with "
       "byte_fallback, found null"},
      {"/pre_tokenizer/type", R"("Whitespace")",
       "f: $.pre_tokenizer.type: expected a supported pre-tokenizer: ByteLevel, Metaspace, Split, "
       "Digits, Sequence, found \"Whitespace\""},
      {"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": []})", "ends with ByteLevel"},
      {"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "Split",
        "pattern": {"Regex": "a\\b"}, "behavior": "Isolated", "invert": false}]})",
       "f: $.pre_tokenizer.pretokenizers[0].pattern: expected a supported regular expression, "
       "found the escape \\b at byte 1"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated",
        "invert": false})",
       "which PCRE2 refuses: missing closing parenthesis"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Gone"})",
       "found \"Gone\""},
      {"/decoder", "null", "f: $.decoder: expected the decoder ByteLevel, found null"},
      {"/decoder/type", R"("Metaspace")", "f: $.decoder.type"},
      {"/post_processor", R"({"type": "BertProcessing"})", "TemplateProcessing, ByteLevel"},
      {"/post_processor", R"({"type": "TemplateProcessing", "single": [{"SpecialToken":
        {"id": "<s>"}}], "special_tokens": {"<s>": {"ids": [4]}}})",
       "the sequence A, once"},
      {"/post_processor", R"({"type": "TemplateProcessing", "single": [{"SpecialToken":
        {"id": "<s>"}}, {"Sequence": {"id": "A"}}], "special_tokens": {"<s>": {"ids": [5]}}})",
       "expected an id below 5, found 5"},
      {"/added_tokens/0/id", "0", "every id once; 0 already belongs to \"a\""},
      {"/added_tokens/0/content", R"("a")", "expected id 0 for \"a\""},
      {"/added_tokens/0/content", R"("")", "a token of at least one byte"},
      {"/added_tokens/0/lstrip", "3", "f: $.added_tokens[0].lstrip: expected true or false"},
  };
  for (const auto& c : cases) {
    Json file = small_file();
    file[Json::json_pointer(c.pointer)] = *c.value == '\0' ? Json() : Json::parse(c.value);
    const std::string error = error_of([&] { Tokenizer::parse(file.dump(), "f"); });
    EXPECT_NE(error.find(c.message), std::string::npos) << c.pointer << ": " << error;
  }
}

TEST(Tokenizer, SaysWhatIsWrongWithAFileOfCharacters) {
  const Json valid = Json::parse(read_file(golden_path("llama2/tokenizer.json")));
  const struct {
    const char* pointer;
    const char* value;  // JSON
    const char* message;
  } cases[] = {
      {"/model/byte_fallback", "false",
       "f: $.pre_tokenizer: expected a pre-tokenizer that ends with ByteLevel, or a model with "
       "byte_fallback, found null"},
      {"/pre_tokenizer", R"({"type": "ByteLevel"})",
       "f: $.model.unk_token: expected null beside the pre-tokenizer ByteLevel, found \"<unk>\""},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "ab"})",
       "f: $.pre_tokenizer.replacement: expected one character, found \"ab\""},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "last"})",
       "f: $.pre_tokenizer.prepend_scheme: expected \"always\", \"first\" or \"never\", found"},
      {"/normalizer/normalizers/1/pattern", R"({"String": ""})",
       "f: $.normalizer.normalizers[1].pattern: expected {\"String\": text to find}"},
      {"/normalizer/normalizers/0/prepend", "7",
       "f: $.normalizer.normalizers[0].prepend: expected a string, found 7"},
      {"/normalizer/normalizers/1/pattern", R"({"String": "  "})", "no error"},
      {"/decoder/decoders/0/pattern", R"({"String": "0"})",
       "f: $.decoder.decoders[0].pattern: expected a text that is in no token of a byte"},
      {"/decoder", "null",
       "f: $.decoder: expected the decoder Sequence of Replace, ByteFallback, Fuse and Strip"},
      {"/decoder/type", R"("ByteLevel")", "f: $.decoder.type: expected the decoder Sequence of"},
      {"/decoder/decoders/1/type", R"("Strip")",
       "f: $.decoder.decoders[1]: expected Fuse before Strip, found none"},
      {"/decoder/decoders/0/content", R"("-")",
       "f: $.decoder.decoders[0].content: expected \" \", found \"-\""},
      {"/decoder/decoders/3/stop", "1", "f: $.decoder.decoders[3].stop: expected 0"},
      {"/decoder/decoders/3/start", "-1", "f: $.decoder.decoders[3].start: expected"},
      {"/decoder/decoders/3/type", R"("Fuse")", "f: $.decoder.decoders[3].type: expected"},
  };
  for (const auto& c : cases) {
    Json file = valid;
    file[Json::json_pointer(c.pointer)] = Json::parse(c.value);
    const std::string error = error_of([&] { Tokenizer::parse(file.dump(), "f"); });
    EXPECT_NE(error.find(c.message), std::string::npos) << c.pointer << ": " << error;
  }
  // "first" behind what changes where a text begins.
  Json first = valid;
  first["pre_tokenizer"] = Json::parse(
      R"({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
      {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first"}]})");
  const auto refused = [&] {
    return error_of([&] {
             Tokenizer::parse(first.dump(), "f");
           }).find("f: $.pre_tokenizer: expected the prepend_scheme") != std::string::npos;
  };
  EXPECT_TRUE(refused());  // digits behind a prefix
  first["normalizer"] = nullptr;
  EXPECT_FALSE(refused());
  first["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "ab"}}}, {"content", "a"}};
  EXPECT_TRUE(refused());
  // New tokens are numbered in their order.
  Json shuffled = valid;
  for (const auto& [id, content] : {std::pair{4601, "QQ"}, std::pair{4600, "WW"}}) {
    shuffled["added_tokens"].push_back({{"id", id}, {"content", content}});
  }
  EXPECT_NE(error_of([&] { Tokenizer::parse(shuffled.dump(), "f"); }).find("in ascending order"),
            std::string::npos);
  Json file = valid;
  Json& vocab = file["model"]["vocab"];
  vocab["<0x4>"] = vocab["<0x41>"];
  vocab.erase("<0x41>");
  EXPECT_EQ(
      error_of([&] { Tokenizer::parse(file.dump(), "f"); }),
      "f: $.model.vocab: expected the tokens \"<0x00>\" to \"<0xFF>\", as byte_fallback is true, "
      "found no \"<0x41>\"");
}

TEST(Tokenizer, SaysWhatIsWrongWithTheFileItself) {
  EXPECT_NE(error_of([] { Tokenizer::parse("{\"model\": ", "f"); }).find("f: expected JSON"),
            std::string::npos);
  EXPECT_NE(error_of([] { Tokenizer::parse("[]", "f"); }).find("f: $: expected an object"),
            std::string::npos);
  EXPECT_NE(error_of([] { Tokenizer::parse("{\"a\": 9e99999}", "f"); }).find("f: expected JSON"),
            std::string::npos);
  const std::string missing = error_of([] { Tokenizer::load("/no/such/file.json"); });
  EXPECT_NE(missing.find("/no/such/file.json: cannot be opened"), std::string::npos) << missing;
  const std::string device = error_of([] { Tokenizer::load("/dev/null"); });
  EXPECT_NE(device.find("/dev/null: expected a regular file"), std::string::npos) << device;
  const std::filesystem::path directory =
      std::filesystem::path(::testing::TempDir()) / fmt::format("tokenizer-{}", ::getpid());
  std::filesystem::create_directory(directory);
  EXPECT_NE(error_of([&] { Tokenizer::load(directory); }).find("tokenizer.json: cannot be opened"),
            std::string::npos);
  std::ofstream(directory / "tokenizer.model") << "x";
  EXPECT_NE(error_of([&] { Tokenizer::load(directory); }).find("expected beside tokenizer.model"),
            std::string::npos);
  std::filesystem::remove_all(directory);
  const std::string nested = std::string(100000, '[') + std::string(100000, ']');
  EXPECT_NE(error_of([&] { Tokenizer::parse(nested, "f"); }), "no error");
  Json deep = {{"type", "NFC"}};
  for (int i = 0; i < 50; ++i) deep = {{"type", "Sequence"}, {"normalizers", {deep}}};
  Json file = small_file();
  file["normalizer"] = deep;
  EXPECT_NE(error_of([&] { Tokenizer::parse(file.dump(), "f"); }).find("at most 16 nested"),
            std::string::npos);
}

// White space that a token takes is not taken twice; expected ids: Hugging Face tokenizers 0.23.3.
TEST(Tokenizer, TokensTakeWhiteSpaceOnce) {
  Json file = small_file();
  const auto add = [&](int id, const char* content, bool lstrip, bool rstrip) {
    file["added_tokens"].push_back({{"id", id},
                                    {"content", content},
                                    {"lstrip", lstrip},
                                    {"rstrip", rstrip},
                                    {"normalized", false}});
  };
  add(5, "[L]", false, true);
  add(6, " ", true, false);
  add(7, "  \t", false, true);
  const Tokenizer tokenizer = Tokenizer::parse(file.dump(), "f");
  const std::pair<const char*, std::vector<int32_t>> cases[] = {
      {"a[L] b", {0, 5, 1}},    {"[L] ", {5}},    {"a  b", {0, 6, 6, 1}},
      {"[L] [L] b", {5, 5, 1}}, {" [L]", {6, 5}}, {"a  \t  \tb", {0, 7, 7, 1}},
      {"[L]  \tb", {5, 7, 1}}};
  for (const auto& [text, ids] : cases) EXPECT_EQ(tokenizer.encode(text), ids) << text;
  // Hugging Face refuses this one.
  EXPECT_EQ(tokenizer.encode("[L]  a"), (std::vector<int32_t>{5, 0}));
  // Each match of a long run finds where it ends; that is looked for once.
  std::string text;
  while (text.size() < (kSanitized ? 1u << 16 : 4u << 20)) text += "  \t";
  EXPECT_EQ(tokenizer.encode(text).size(), text.size() / 3);
}

TEST(Tokenizer, WhatIsNormalisedAwayHasNoTokens) {
  for (const char* pre_tokenizer :
       {"null", R"({"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"})"}) {
    Json file = Json::parse(read_file(golden_path("llama2/tokenizer.json")));
    file["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "\n"}}}, {"content", ""}};
    file["pre_tokenizer"] = Json::parse(pre_tokenizer);
    const Tokenizer tokenizer = Tokenizer::parse(file.dump(), "f");
    EXPECT_EQ(tokenizer.encode("\n\n", {.add_special = false}), std::vector<int32_t>{});
    EXPECT_EQ(tokenizer.encode("\n<s>\n", {.add_special = false}), std::vector<int32_t>{1});
  }
}

TEST(Tokenizer, StepsThatMultiplyATextAreStopped) {
  Json file = Json::parse(read_file(golden_path("llama2/tokenizer.json")));
  const Json twice = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::vector<Json>(40, twice)}};
  const Tokenizer tokenizer = Tokenizer::parse(file.dump(), "f");
  EXPECT_NE(error_of([&] { (void)tokenizer.encode("aaaa"); }).find("the normalizer makes"),
            std::string::npos);
  file["normalizer"]["normalizers"] = std::vector<Json>(65, {{"type", "NFC"}});
  EXPECT_NE(error_of([&] { Tokenizer::parse(file.dump(), "f"); }).find("at most 64 steps"),
            std::string::npos);
}

TEST(Tokenizer, RefusesBytesThatHaveNoToken) {
  const Tokenizer tokenizer = Tokenizer::parse(small_file().dump(), "f");
  EXPECT_EQ(tokenizer.encode("ab a<s>"), (std::vector<int32_t>{2, 3, 0, 4}));
  EXPECT_NE(error_of([&] { (void)tokenizer.encode("abc"); }).find("no token for the byte 0x63"),
            std::string::npos);
  EXPECT_EQ(tokenizer.encode("ab"), std::vector<int32_t>{2});  // and goes on working
}

TEST(Split, RefusesWhatIsNotTranslated) {
  for (const char* pattern :
       {"\\h", "\\Aa", "[a&&b]", "[[:alpha:]]", "(?<n>a)", "(?i)a", "a{2}+", "\\p{Greek}", "\\1",
        "(?i:\\p{Lu})", "[\\D]", "\\", "[a", "\\x{110000}", "\\xE9", "\\pL", ")", "(*FAIL)"}) {
    const std::string error = error_of([&] { (void)translate_pattern(pattern, "here"); });
    EXPECT_TRUE(error.starts_with("here: expected a supported regular expression"))
        << pattern << error;
  }
}

TEST(Split, GivesUpOnCatastrophicBacktracking) {
  const Splitter splitter({.pattern = "(?:a|a|aa)+[bc]"}, "here");
  Splitter::Scratch scratch;
  const std::string text(300, 'a');
  EXPECT_NE(
      error_of([&] { splitter.split(text, &scratch, [](std::string_view) {}); }).find("gave up"),
      std::string::npos);
}

TEST(Split, HundredMegabytesOfSpaces) {
  const size_t n_bytes = kSanitized ? 1 << 20 : 100 << 20;
  const std::string text = std::string(n_bytes, ' ') + "x";
  Splitter::Scratch scratch;
  // Llama 3's expression, the one that backtracks most.
  const Json file = Json::parse(read_file(golden_path("llama3/tokenizer.json")));
  const std::string llama3 = file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
  for (const SplitRule& rule : {gpt2_split_rule(), SplitRule{.pattern = llama3}}) {
    std::vector<size_t> sizes;
    Splitter(rule, "here").split(text, &scratch, [&](std::string_view piece) {
      sizes.push_back(piece.size());
    });
    EXPECT_EQ(sizes, (std::vector<size_t>{n_bytes - 1, 2}));
  }
}

TEST(Tokenizer, LongRunsOfOneCharacter) {
  const size_t n_bytes = kSanitized ? 1 << 18 : 4 << 20;
  for (const char* name : {"gpt2", "llama3", "llama2"}) {
    const Tokenizer tokenizer = load(name);
    for (const char* unit : {" ", "\n", "\r\n", "\u3000", "!", " a"}) {
      std::string text;
      while (text.size() < n_bytes) text += unit;
      text += "x";
      const std::vector<int32_t> ids = tokenizer.encode(text, {.add_special = false});
      EXPECT_TRUE(tokenizer.decode(ids) == text) << name << " run of " << unit;
    }
  }
}

TEST(Tokenizer, OneWordOfTenMegabytes) {
  for (const char* name : {"qwen2", "llama2"}) {
    const Tokenizer tokenizer = load(name);
    const std::string word(kSanitized ? 1 << 18 : 10 << 20, 'a');
    const std::vector<int32_t> ids = tokenizer.encode(word, {.add_special = false});
    EXPECT_TRUE(tokenizer.decode(ids) == word) << name;
  }
}

class SharedTokenizer : public ::testing::TestWithParam<const char*> {};

TEST_P(SharedTokenizer, ThreadsShareOne) {
  const Tokenizer tokenizer = load(GetParam());
  const std::vector<std::string> parts = fragments();
  std::vector<std::vector<int32_t>> expected;
  for (uint64_t i = 0; i < 4; ++i) expected.push_back(tokenizer.encode(mixed_block(i, parts)));
  std::vector<std::thread> threads;
  std::vector<int> n_wrong(4, 0);
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 4; ++i) {
        const std::string text = mixed_block((i + t) % 4, parts);
        n_wrong[t] += tokenizer.encode(text) != expected[(i + t) % 4];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(n_wrong, std::vector<int>(4, 0));
}
INSTANTIATE_TEST_SUITE_P(Models, SharedTokenizer, ::testing::Values("llama3", "llama2"));

}  // namespace
}  // namespace tiercel::test
