// tiercel tokenize: text to ids, and back.
#include <algorithm>
#include <charconv>

#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/json.h"
#include "engine/text/tokenizer.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/flags.h"
#include "tools/prompt.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

constexpr size_t kFlushBytes = size_t{1} << 18;

// Ids between anything that is neither digit nor sign: "1 2", "1,2" and "[1, 2]" alike.
std::vector<int32_t> parse_ids(std::string_view text) {
  const auto separates = [](char c) {
    return c == ' ' || c == ',' || c == '[' || c == ']' || c == '\n' || c == '\t' || c == '\r';
  };
  std::vector<int32_t> ids;
  size_t i = 0;
  while (true) {
    while (i < text.size() && separates(text[i])) ++i;
    if (i == text.size()) return ids;
    size_t end = i;
    while (end < text.size() && !separates(text[end])) ++end;
    const std::string_view word = text.substr(i, end - i);
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || stop != word.data() + word.size() || id < 0) {
      fail(ErrorKind::kUsage, "--decode: expected token ids, found '{}' at position {}",
           printable(word, 40), ids.size());
    }
    ids.push_back(id);
    i = end;
  }
}

void print_json(const std::vector<int32_t>& ids) {
  std::string buffer = "[";
  char digits[16];
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) buffer += ',';
    buffer.append(digits, std::to_chars(digits, digits + sizeof digits, ids[i]).ptr);
    if (buffer.size() < kFlushBytes) continue;
    print_result(buffer);
    buffer.clear();
  }
  print_result(buffer + "]\n");
}

// One "id  'piece'" per line. Bytes that are no whole characters, and controls, appear as \xNN.
void print_lines(const std::vector<int32_t>& ids, const Tokenizer& tokenizer) {
  std::string buffer;
  for (const int32_t id : ids) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    const bool whole = valid_utf8_prefix(bytes) == bytes.size();
    buffer += fmt::format("{:>7}  '", id);
    for (const char c : bytes) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '\n') {
        buffer += "\\n";
      } else if (c == '\t') {
        buffer += "\\t";
      } else if (c == '\\' || c == '\'') {
        buffer += {'\\', c};
      } else if (byte < 0x20 || byte == 0x7F || (byte >= 0x80 && !whole)) {
        buffer += fmt::format("\\x{:02X}", byte);
      } else {
        buffer += c;
      }
    }
    buffer += "'\n";
    if (buffer.size() < kFlushBytes) continue;
    print_result(buffer);
    buffer.clear();
  }
  print_result(buffer);
}

}  // namespace

int command_tokenize(int argc, char** argv) {
  std::string model;
  std::optional<std::string> ids_text;
  bool json = false, no_bos = false, special = false, strict = false;
  PromptFlags prompt;
  Flags flags("tokenize", "Text to token ids and back.",
              "Without --json: one \"id  'piece'\" per line, and the count on stderr.\n");
  flags.section("Model");
  flags.text("-m,--model", model, "Directory with a tokenizer.json, or a GGUF file", "DIR|FILE");
  prompt.add_to(flags, true);
  flags.section("Tokens");
  flags.flag("--json", json, "Print one array of ids");
  flags.text("--decode", ids_text, "Print the text of these ids instead; -: read them from stdin");
  flags.flag("--no-bos", no_bos, "Do not put the begin-of-text token in front");
  flags.flag("--special", special, "Read <|special|> tokens in the text as such");
  flags.flag("--strict", strict, "Refuse text that is not UTF-8");
  if (!flags.parse(argc, argv)) return 0;
  const StopsAtOnce at_once;
  const Console console(false);
  if (model.empty()) {
    fail(ErrorKind::kUsage, "--model: expected a model, found none; add -m DIR, or -m FILE.gguf");
  }
  const Tokenizer tokenizer = Tokenizer::load(model);
  if (ids_text) {
    if (prompt.given() || json || no_bos || special) {
      fail(ErrorKind::kUsage, "--decode: expected no text beside it, nor --json, --no-bos or --special");
    }
    const std::string text = *ids_text == "-" ? read_input("-", "--decode") : *ids_text;
    const std::vector<int32_t> ids = parse_ids(text);
    for (const int32_t id : ids) {
      if (id < tokenizer.vocab_size()) continue;
      fail(ErrorKind::kUsage, "--decode: expected ids from 0 to {}, found {}", tokenizer.vocab_size() - 1, id);
    }
    print_result(tokenizer.decode(ids));
    return 0;
  }
  const std::string text = prompt.read(console, strict);
  const auto ids = tokenizer.encode(text, {.add_special = !no_bos, .parse_special = special});
  if (json) {
    print_json(ids);
  } else {
    print_lines(ids, tokenizer);
    console.info("{} tokens, {:.3f} bytes per token",
                 format_count(static_cast<int64_t>(ids.size())),
                 static_cast<double>(text.size()) / std::max<size_t>(ids.size(), 1));
  }
  return 0;
}

}  // namespace tiercel
