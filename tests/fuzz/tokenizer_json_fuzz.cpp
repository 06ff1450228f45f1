// Any bytes as a tokenizer.json: they are refused with an Error, or give a tokenizer that works.
//
// Input: byte 0 modulo 3 says what the rest is: a whole file; a patch of a small valid file,
// byte-level or of characters (RFC 7396: members replaced or, by null, removed).
#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/tokenizer.h"

namespace {

using namespace tiercel;
using Json = nlohmann::json;

const Json& byte_level_file() {
  static const Json kFile = Json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<s>", "special": true, "normalized": false},
                     {"id": 5, "content": "b ", "normalized": true, "lstrip": true}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\s+|\\p{L}+"}, "behavior": "Isolated", "invert": false},
      {"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}]},
    "post_processor": {"type": "TemplateProcessing", "single": [
      {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
      "special_tokens": {"<s>": {"ids": [4]}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3}, "merges": ["a b"]}
  })");
  return kFile;
}

const Json& character_file() {
  static const Json kFile = [] {
    Json file = Json::parse(R"({
      "added_tokens": [{"id": 1, "content": "<s>", "special": true, "normalized": false}],
      "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
      "pre_tokenizer": null,
      "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
      "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true,
        "vocab": {"<unk>": 0, "<s>": 1, "a": 2, "b": 3, "\u2581": 4, "\u2581a": 5, "ab": 6},
        "merges": [["\u2581", "a"], ["a", "b"]]}
    })");
    for (int byte = 0; byte < 256; ++byte) {
      file["model"]["vocab"][fmt::format("<0x{:02X}>", byte)] = 7 + byte;
    }
    return file;
  }();
  return kFile;
}

// Empty: not even JSON.
std::string patched(const Json& file, std::string_view patch) {
  const Json parsed = Json::parse(patch, nullptr, false);
  if (!parsed.is_object()) return {};
  Json document = file;
  document.merge_patch(parsed);
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

// What is behind the door must be reached: the files that are patched are valid.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  for (const Json* file : {&byte_level_file(), &character_file()}) {
    CHECK(!Tokenizer::parse(file->dump(), "valid").encode("ab").empty());
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data + 1), size - 1);
  const int mode = data[0] % 3;
  std::string file(input);
  if (mode != 0) file = patched(mode == 1 ? byte_level_file() : character_file(), input);
  if (file.empty()) return 0;
  try {
    const Tokenizer tokenizer = Tokenizer::parse(file, "fuzz");
    for (const std::string_view text : {std::string_view("ab  <s>\xC3\xA9\xFF'S 12\r\n"), input}) {
      std::vector<int32_t> ids;
      try {
        ids = tokenizer.encode(text);
      } catch (const Error&) {  // a byte without a token, a pattern that gives up
      }
      StreamDecoder decoder(tokenizer);
      std::string joined;
      for (const int32_t id : ids) joined += decoder.push(id);
      joined += decoder.finish();
      CHECK(joined == tokenizer.decode(ids, false, Follows::kText));
    }
  } catch (const Error&) {
  }
  return 0;
}
