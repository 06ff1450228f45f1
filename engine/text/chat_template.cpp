#include "engine/text/chat_template.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "engine/base/check.h"
#include "engine/gguf/gguf_tokenizer.h"
#include "engine/json.h"
#include "engine/text/chat_template_core.h"
#include "engine/text/chat_template_table.h"
#include "engine/text/split.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxConfigBytes = size_t{16} << 20;
constexpr size_t kMaxTemplateBytes = size_t{128} << 10;  // ten times the longest published one
constexpr const char* kWithoutChat =
    "give a prompt without --chat: it is then continued as it is, and --special lets it write the special tokens of "
    "its turns itself";
// `file` of a model: a GGUF file's own template is not for its user to change.
std::string help_for(const std::string& file) {
  if (is_gguf_file(file)) return kWithoutChat;
  return fmt::format("put a supported one into its chat_template.jinja, or {}", kWithoutChat);
}

// What a literal means. None for escapes that no published default has.
std::optional<std::string> unescape(std::string_view literal) {
  std::string text;
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] == '\'') return std::nullopt;  // it ended before
    if (literal[i] != '\\') {
      text += literal[i];
      continue;
    }
    constexpr std::string_view kLetters = "nt\\'", kMeanings = "\n\t\\'";
    const size_t at = ++i < literal.size() ? kLetters.find(literal[i]) : std::string_view::npos;
    if (at == std::string_view::npos) return std::nullopt;
    text += kMeanings[at];
  }
  return text;
}

// 'TEXT', or 'TEXT'+today+'TEXT': the texts.
std::optional<std::vector<std::string>> texts_of(std::string_view expression) {
  constexpr std::string_view kDate = "'+today+'";
  if (expression.size() < 2 || !expression.starts_with('\'') || !expression.ends_with('\'')) {
    return std::nullopt;
  }
  expression = expression.substr(1, expression.size() - 2);
  std::vector<std::string> texts;
  while (true) {
    const size_t end = std::min(expression.find(kDate), expression.size());
    const std::optional<std::string> text = unescape(expression.substr(0, end));
    if (!text) return std::nullopt;
    texts.push_back(*text);
    if (end == expression.size()) return texts;
    expression.remove_prefix(end + kDate.size());
  }
}

// The default system message, empty where the known template has none. None: another template.
std::optional<std::vector<std::string>> match(std::string_view core, std::string_view known) {
  const size_t at = known.find('@');
  if (at == std::string_view::npos) {
    if (core != known) return std::nullopt;
    return std::vector<std::string>{};
  }
  const std::string_view before = known.substr(0, at), after = known.substr(at + 1);
  if (core.size() < before.size() + after.size() || !core.starts_with(before) ||
      !core.ends_with(after)) {
    return std::nullopt;
  }
  core = core.substr(before.size(), core.size() - before.size() - after.size());
  const bool expression = after.starts_with("%}");
  return texts_of(expression ? std::string(core) : "'" + std::string(core) + "'");
}

const std::vector<std::string>& known_cores() {
  static const std::vector<std::string> kCores = [] {
    std::vector<std::string> cores;
    for (const KnownTemplate& known : known_templates()) {
      cores.push_back(chat_template_core(known.jinja));
    }
    return cores;
  }();
  return kCores;
}

// A token's name may be an object that says more about it.
std::string token_name(const JsonNode& root, const char* key) {
  const auto node = root.find(key);
  if (!node) return {};
  return node->raw().is_object() ? node->at("content").text() : node->text();
}

struct Source {
  std::string file, jinja, bos, eos;
};

// None where the model has no template.
std::optional<Source> find_source(const std::string& directory) {
  if (is_gguf_file(directory)) {
    GgufChat chat = gguf_chat(GgufFile::open(directory));
    if (chat.jinja.empty()) return std::nullopt;
    return Source{directory, std::move(chat.jinja), std::move(chat.bos), std::move(chat.eos)};
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
  if (!fs::exists(config, ignored)) return own_file ? std::optional(source) : std::nullopt;
  const std::string name = config.string();
  const nlohmann::json document =
      parse_json(read_text_file(config, kMaxConfigBytes), name, {.max_bytes = kMaxConfigBytes});
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
         "{}: expected a chat template ({}), found none: the model may not be made for conversations. Supported are "
         "{}; {}",
         directory, place, kSupportedTemplates, help_for(directory));
  }
  return parse(source->jinja, source->bos, source->eos, source->file);
}

std::optional<ChatTemplate> ChatTemplate::find(const std::string& directory) {
  return unless_usage_error([&] { return load(directory); });
}

ChatTemplate ChatTemplate::parse(std::string_view jinja, const std::string& bos,
                                 const std::string& eos, const std::string& name) {
  ChatTemplate result;
  result.file_ = name;
  const bool is_short = jinja.size() <= kMaxTemplateBytes;
  if (is_short) {
    try {
      result.program_ = std::make_shared<const ChatProgram>(jinja, bos, eos, name);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kUsage) throw;
      result.why_not_run_ = error.what();
    }
  } else {
    result.why_not_run_ = fmt::format("it has more than {} bytes", kMaxTemplateBytes);
  }
  if (is_short && result.find_style(jinja, bos, eos)) return result;
  result.name_ = "Jinja";
  if (result.program_ == nullptr) {
    fail(ErrorKind::kUsage,
         "{}: expected one of the supported chat templates ({}), or another one that can be run, found one that cannot "
         "({}); {}",
         name, kSupportedTemplates, result.why_not_run_, help_for(name));
  }
  return result;
}

bool ChatTemplate::find_style(std::string_view jinja, const std::string& bos, const std::string& eos) {
  const std::string core = chat_template_core(jinja);
  for (size_t i = 0; i < known_cores().size(); ++i) {
    std::optional<std::vector<std::string>> system = match(core, known_cores()[i]);
    if (!system) continue;
    const KnownTemplate& known = known_templates()[i];
    is_known_ = true;
    name_ = known.name;
    style_ = known.style;
    settings_ = {.bos = bos, .eos = eos, .default_system = *std::move(system), .date = {}};
    const auto need = [&](bool needed, const std::string& token, const char* key) {
      if (needed && token.empty()) {
        fail(ErrorKind::kUsage,
             "{}: the chat template ({}) writes {}, expected its name in tokenizer_config.json, "
             "found none",
             file_, known.name, key);
      }
    };
    const ChatStyle::Family family = known.style.family;
    need(family == ChatStyle::kLlama3 || family == ChatStyle::kInst || known.style.writes_bos, bos,
         "bos_token");
    need(family == ChatStyle::kInst || known.style.writes_eos, eos, "eos_token");
    return true;
  }
  return false;
}

const ChatProgram& ChatTemplate::program() const {
  if (program_ == nullptr) {
    fail(ErrorKind::kUsage, "{}: the chat template ({}) cannot be run, as tools and variables need it: {}", file_, name_,
         why_not_run_);
  }
  return *program_;
}

ChatTemplate ChatTemplate::with_variables(const std::string& variables) const {
  const std::string what = "variables of the chat template";
  const nlohmann::json json = parse_json(variables, what);
  const JsonNode root(json, what);
  root.expect_object();
  for (const auto& [key, value] : json.items()) {
    for (const char* taken : {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}) {
      if (key == taken) fail(ErrorKind::kUsage, "{}: {} is none to be given", what, key);
    }
    if (!program().mentions(key)) {
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

bool ChatTemplate::must_run(std::span<const ChatMessage> messages, const ChatOptions& options) const {
  return !is_known_ || !variables_.empty() || !options.tools.empty() || std::ranges::any_of(messages, [](const ChatMessage& m) {
    return m.role == ChatRole::kTool || !m.calls.empty() || !m.reasoning.empty();
  });
}

jinja::Text ChatTemplate::written(std::span<const ChatMessage> messages, const ChatOptions& options) const {
  ChatOptions with = options;
  with.variables = variables_;
  return program().write(messages, with);
}

bool ChatTemplate::asks_for_date() const {
  if (!is_known_) return program_->asks_for_date();
  return style_.date == ChatStyle::kToday || settings_.default_system.size() > 1;
}

std::string_view ChatTemplate::rewrites() const {
  if (!is_known_) {
    if (!program_->rewrites()) return {};
    return "the template writes differently later what was said or thought before; here it stays as it was";
  }
  if (style_.reasoning != ChatStyle::kKept) {
    return "the template leaves out of earlier answers what was thought; here it stays";
  }
  if (style_.system == ChatStyle::kInLast) {
    return "the template moves the system message to the last turn; here it stays in the first";
  }
  return {};
}

ChatSettings ChatTemplate::settings_for(const ChatOptions& options) const {
  ChatSettings settings = settings_;
  settings.date = options.date;
  if (settings.default_system.size() > 1 && options.date.year == 0) {
    fail(ErrorKind::kUsage, "{}: the default system message has a date, expected one, found none",
         file_);
  }
  return settings;
}

std::string ChatTemplate::text(std::span<const ChatMessage> messages,
                               const ChatOptions& options) const {
  if (must_run(messages, options)) return std::string(written(messages, options).view());
  std::string text;
  for (const ChatPiece& piece :
       write_chat(style_, settings_for(options), messages, options.add_generation_prompt)) {
    text += piece.text;
  }
  return text;
}

std::vector<int32_t> ChatTemplate::encode(const Tokenizer& tokenizer,
                                          std::span<const ChatMessage> messages,
                                          const ChatOptions& options) const {
  if (must_run(messages, options)) {
    return encode_pieces(tokenizer, ChatProgram::pieces(written(messages, options), tokenizer), Follows::kNothing);
  }
  return encode_pieces(
      tokenizer, write_chat(style_, settings_for(options), messages, options.add_generation_prompt),
      Follows::kNothing);
}

int32_t ChatTemplate::end_of_turn(const Tokenizer& tokenizer) const {
  if (must_run({}, {})) return special_id(tokenizer, program_->end_of_turn(tokenizer, variables_));
  return special_id(tokenizer, tiercel::end_of_turn(style_, settings_));
}

std::vector<int32_t> ChatTemplate::encode_next_turn(const Tokenizer& tokenizer,
                                                    std::string_view user,
                                                    const std::optional<std::string>& system) const {
  if (must_run({}, {})) {
    const ChatProgram::NextTurn next = program_->next_turn(user, system, tokenizer, variables_);
    return encode_pieces(tokenizer, next.pieces, Follows::kToken, special_id(tokenizer, next.end_of_turn));
  }
  return encode_pieces(tokenizer, write_next_turn(style_, settings_, user), Follows::kToken,
                       end_of_turn(tokenizer));
}

bool ChatTemplate::awaits_answer(const Tokenizer& tokenizer, std::span<const int32_t> ids) const {
  const std::vector<ChatPiece> prompt = must_run({}, {})
                                            ? ChatProgram::pieces(program_->generation_prompt(variables_), tokenizer)
                                            : write_generation_prompt(style_);
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

int32_t ChatTemplate::special_id(const Tokenizer& tokenizer, const std::string& token) const {
  const std::optional<int32_t> id = tokenizer.id_of(token);
  if (id && tokenizer.is_special(*id)) return *id;
  fail(ErrorKind::kUsage,
       "{}: the chat template ({}) writes {}, expected a special token of that name in "
       "tokenizer.json, found {}",
       file_, name_, token, id ? "an ordinary one" : "none");
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
    const auto is_token = [&] {
      const std::optional<int32_t> id = tokenizer.id_of(piece.text);
      return id && tokenizer.is_special(*id);
    };
    if (piece.kind == ChatPiece::kText || (piece.kind == ChatPiece::kMarker && !is_token())) {
      text += piece.text;
      continue;
    }
    const int32_t id = special_id(tokenizer, piece.text);
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
