#include "engine/text/chat_template.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "engine/base/check.h"
#include "engine/gguf/gguf_tokenizer.h"
#include "engine/json.h"
#include "engine/text/split.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxTokenizerConfigBytes = size_t{16} << 20;
constexpr size_t kMaxTemplateBytes = size_t{128} << 10;  // ten times the longest published one
constexpr const char* kWithoutChat =
    "give a prompt without --chat: it is then continued as it is, and --special lets it write the special tokens of "
    "its turns itself";
// `file` of a model: a GGUF file's own template is not for its user to change.
std::string help_for(const std::string& file) {
  if (is_gguf_file(file)) return kWithoutChat;
  return fmt::format("put one into its chat_template.jinja, or {}", kWithoutChat);
}

// A token's name may be an object that says more about it.
std::string token_name(const JsonNode& root, const char* key) {
  const auto node = root.find(key);
  if (!node) return {};
  return node->raw().is_object() ? node->at("content").text() : node->text();
}

struct Source {
  std::string file, jinja, bos, eos;
  bool names_tokens = true;  // there is a file that says what those are called, if they are
};

// None where the model has no template.
std::optional<Source> find_source(const std::string& directory) {
  if (is_gguf_file(directory)) {
    GgufChat chat = gguf_chat(GgufFile::open(directory));
    if (chat.jinja.empty()) return std::nullopt;
    return Source{directory, std::move(chat.jinja), std::move(chat.bos), std::move(chat.eos), true};
  }
  std::error_code ignored;
  const fs::path folder = directory;
  const fs::path jinja = folder / "chat_template.jinja";
  const fs::path config = folder / "tokenizer_config.json";
  Source source;
  // transformers prefers the file of its own.
  const bool own_file = fs::exists(jinja, ignored);
  if (own_file) {
    source.file = jinja.string();
    source.jinja = read_text_file(jinja, kMaxTemplateBytes);
  }
  source.names_tokens = fs::exists(config, ignored);
  if (!source.names_tokens) return own_file ? std::optional(source) : std::nullopt;
  const std::string name = config.string();
  const nlohmann::json document =
      parse_json(read_text_file(config, kMaxTokenizerConfigBytes), name, {.max_bytes = kMaxTokenizerConfigBytes});
  const JsonNode root(document, name);
  root.expect_object();
  source.bos = token_name(root, "bos_token");
  source.eos = token_name(root, "eos_token");
  if (own_file) return source;
  const auto node = root.find("chat_template");
  if (!node) return std::nullopt;
  source.file = name;
  if (!node->raw().is_array()) {
    source.jinja = node->text();
    return source;
  }
  for (size_t i = 0; i < node->size(); ++i) {
    const JsonNode entry = (*node)[i];
    if (entry.at("name").text() != "default") continue;
    source.jinja = entry.at("template").text();
    return source;
  }
  fail(ErrorKind::kUsage,
       "{}: chat_template: expected one of the {} templates to be named \"default\", found none; "
       "{}",
       name, node->size(), help_for(name));
}

// What is missing or not supported is said to whoever wants to chat, and to nobody else.
template <typename F>
auto unless_usage_error(F&& f) -> std::optional<decltype(f())> {
  try {
    return f();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    return std::nullopt;
  }
}

}  // namespace

bool ChatTemplate::exists(const std::string& directory) {
  return find_source(directory).has_value();
}

ChatTemplate ChatTemplate::load(const std::string& directory) {
  const std::optional<Source> source = find_source(directory);
  if (!source) {
    const char* const place = is_gguf_file(directory)
                                  ? "tokenizer.chat_template in its metadata"
                                  : "chat_template in tokenizer_config.json, or chat_template.jinja";
    fail(ErrorKind::kUsage,
         "{}: expected a chat template ({}), found none: the model may not be made for conversations; {}",
         directory, place, help_for(directory));
  }
  ChatTemplate chat = parse(source->jinja, source->bos, source->eos, source->file);
  for (const char* token : {"bos_token", "eos_token"}) {
    if (source->names_tokens || !chat.program().mentions(token)) continue;
    fail(ErrorKind::kUsage, "{}: the chat template writes {}, expected its name in tokenizer_config.json, found no such file",
         source->file, token);
  }
  return chat;
}

std::optional<ChatTemplate> ChatTemplate::find(const std::string& directory) {
  return unless_usage_error([&] { return load(directory); });
}

ChatTemplate ChatTemplate::parse(std::string_view jinja, const std::string& bos,
                                 const std::string& eos, const std::string& name) {
  try {
    if (jinja.size() > kMaxTemplateBytes) fail(ErrorKind::kUsage, "it has more than {} bytes", kMaxTemplateBytes);
    return ChatTemplate(name, std::make_shared<const ChatProgram>(jinja, bos, eos, name));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    fail(ErrorKind::kUsage, "{}: expected a chat template that can be run, found one that cannot ({}); {}", name,
         error.what(), help_for(name));
  }
}

ChatTemplate ChatTemplate::with_variables(const std::string& variables) const {
  const std::string what = "variables of the chat template";
  const nlohmann::json json = parse_json(variables, what, {.max_bytes = size_t{64} << 10, .max_depth = kMostJsonDepth});
  const JsonNode root(json, what);
  root.expect_object();
  for (const auto& [key, value] : json.items()) {
    for (const char* taken : {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}) {
      if (key == taken) fail(ErrorKind::kUsage, "{}: {} is none to be given", what, key);
    }
    if (!program_->mentions(key)) {
      fail(ErrorKind::kUsage, "{}: {}: the chat template does not ask for {}", file_, what, printable(key, 40));
    }
  }
  ChatTemplate result = *this;
  if (json.empty()) return result;
  nlohmann::ordered_json all = variables_.empty() ? nlohmann::ordered_json::object() : nlohmann::ordered_json::parse(variables_);
  all.update(nlohmann::ordered_json::parse(variables));
  result.variables_ = all.dump();
  return result;
}

jinja::Text ChatTemplate::written(std::span<const ChatMessage> messages, const ChatOptions& options) const {
  if (messages.empty()) fail(ErrorKind::kUsage, "expected a conversation, found no messages");
  ChatOptions with = options;
  with.variables = variables_;
  return program_->write(messages, with);
}

std::string ChatTemplate::text(std::span<const ChatMessage> messages,
                               const ChatOptions& options) const {
  return std::string(written(messages, options).view());
}

std::vector<int32_t> ChatTemplate::encode(const Tokenizer& tokenizer,
                                          std::span<const ChatMessage> messages,
                                          const ChatOptions& options,
                                          const jinja::Text& answer) const {
  jinja::Text text = written(messages, options);
  if (!answer.empty()) {
    jinja::Budget budget = jinja::budget_of_input();
    jinja::TextWriter begun(budget);
    begun.add(text);
    const std::string_view prompt = text.view();
    if (prompt.substr(0, prompt.find_last_not_of(" \n") + 1).ends_with("<think>")) begun.add("\n\n</think>\n\n");
    begun.add(answer);
    text = begun.take();
  }
  return encode_pieces(tokenizer, ChatProgram::pieces(text, tokenizer), Follows::kNothing);
}

int32_t ChatTemplate::end_of_turn(const Tokenizer& tokenizer) const {
  return *tokenizer.id_of(program_->end_of_turn(tokenizer, variables_));
}

std::vector<int32_t> ChatTemplate::encode_next_turn(const Tokenizer& tokenizer,
                                                    std::string_view user,
                                                    const std::optional<std::string>& system) const {
  const ChatProgram::NextTurn next = program_->next_turn(user, system, tokenizer, variables_);
  return encode_pieces(tokenizer, next.pieces, Follows::kToken, tokenizer.id_of(next.end_of_turn));
}

bool ChatTemplate::awaits_answer(const Tokenizer& tokenizer, std::span<const int32_t> ids) const {
  const std::vector<ChatPiece> prompt = ChatProgram::pieces(program_->generation_prompt(variables_), tokenizer);
  if (prompt.empty()) return false;
  const std::vector<int32_t> expected = encode_pieces(tokenizer, prompt, Follows::kText);
  const size_t n = std::min(expected.size() + 1, ids.size());
  const std::span<const int32_t> end = ids.last(n);
  if (prompt.front().kind == ChatPiece::kSpecial) {
    return n >= expected.size() &&
           std::equal(expected.begin(), expected.end(), ids.last(expected.size()).begin());
  }
  // Text may have grown together with the words before it.
  std::string text;
  for (const ChatPiece& piece : prompt) text += piece.text;
  return tokenizer.decode(end, false, Follows::kText).ends_with(text);
}

namespace {

void repair(std::string* text) {
  if (valid_utf8_prefix(*text) == text->size()) return;
  std::string valid;
  append_valid_utf8(*text, &valid);
  *text = std::move(valid);
}

void drop_space_before(std::string* text) {
  repair(text);
  size_t begin = 0;
  for (size_t at = 0; at < text->size() && is_white_space(read_code_point(*text, &at));) begin = at;
  text->erase(0, begin);
}

void drop_space_behind(std::string* text) {
  repair(text);
  size_t end = 0;
  for (size_t at = 0; at < text->size();) {
    if (!is_white_space(read_code_point(*text, &at))) end = at;
  }
  text->resize(end);
}

}  // namespace

std::vector<int32_t> ChatTemplate::encode_pieces(const Tokenizer& tokenizer,
                                                 std::span<const ChatPiece> pieces, Follows follows,
                                                 std::optional<int32_t> last_special) const {
  std::vector<int32_t> ids;
  std::string text;
  const auto flush = [&] {
    // White space around a special token may belong to it.
    if (last_special && tokenizer.takes_space_behind(*last_special)) drop_space_before(&text);
    const std::vector<int32_t> more =
        tokenizer.encode(text, {.add_special = false,
                                .parse_special = false,
                                .follows = ids.empty() ? follows : Follows::kToken});
    ids.insert(ids.end(), more.begin(), more.end());
    text.clear();
  };
  for (const ChatPiece& piece : pieces) {
    if (piece.kind == ChatPiece::kText) {
      text += piece.text;
      continue;
    }
    const int32_t id = *tokenizer.id_of(piece.text);
    if (tokenizer.takes_space_before(id)) drop_space_behind(&text);
    flush();
    ids.push_back(id);
    last_special = id;
  }
  flush();
  return ids;
}

std::vector<int64_t> end_tokens(const ModelConfig& config, const Tokenizer& tokenizer,
                                const ChatTemplate* chat) {
  std::vector<int64_t> ends = config.eos_token_ids;
  if (chat == nullptr) return ends;
  const std::optional<int64_t> end =
      unless_usage_error([&] { return int64_t{chat->end_of_turn(tokenizer)}; });
  if (end && std::find(ends.begin(), ends.end(), *end) == ends.end()) ends.push_back(*end);
  return ends;
}

}  // namespace tiercel
