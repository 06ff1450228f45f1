#include "tools/chat_flags.h"

#include "engine/base/check.h"

namespace tiercel {
Turns::Turns(const Tokenizer& tokenizer, ChatTemplate chat, std::optional<std::string> system,
             ChatDate date)
    : tokenizer_(&tokenizer), chat_(std::move(chat)), system_(std::move(system)), date_(date) {
  end_ = chat_->end_of_turn(tokenizer);
}

std::vector<int32_t> Turns::first(const std::string& words) const {
  if (!chat_) {
    return tokenizer_->encode(words, {.add_special = plain_.bos, .parse_special = plain_.special});
  }
  std::vector<ChatMessage> messages;
  if (system_) messages.push_back({ChatRole::kSystem, *system_});
  messages.push_back({ChatRole::kUser, words});
  return chat_->encode(*tokenizer_, messages, {.add_generation_prompt = true, .date = date_});
}

std::vector<int32_t> Turns::next(const std::string& words,
                                 std::span<const int32_t> before) const {
  if (!chat_) {
    return tokenizer_->encode(words, {.add_special = false,
                                      .parse_special = plain_.special,
                                      .follows = tokenizer_->behind(before)});
  }
  std::vector<int32_t> ids = chat_->encode_next_turn(*tokenizer_, words, system_);
  ids.insert(ids.begin(), *end_);
  return ids;
}

bool Turns::awaits_answer(std::span<const int32_t> ids) const {
  return chat_ && chat_->awaits_answer(*tokenizer_, ids);
}

std::vector<int32_t> Turns::behind(std::span<const int32_t> saved, const std::string& words,
                                   const std::string& path, const Console& console) const {
  if (!chat_) return next(words, saved);
  if (awaits_answer(saved)) {
    if (words.empty()) return {};
    console.warn("{}: it waits for an answer, which is taken to be empty: the prompt follows",
                 path);
    return next(words, saved);
  }
  if (saved.empty() || saved.back() != *end_) {
    fail(ErrorKind::kUsage,
         "{}: expected a conversation, found a session that ends neither with an answer nor where "
         "one is due by the chat template ({}); leave out --chat, or save it with --chat",
         path, chat_->file());
  }
  if (words.empty()) {
    fail(ErrorKind::kUsage, "{}: its last answer is complete; add -p TEXT or --interactive", path);
  }
  std::vector<int32_t> ids = next(words, saved);
  ids.erase(ids.begin());  // it ends with that token already
  return ids;
}

void add_template_variables_flag(Flags& flags, std::optional<std::string>& variables) {
  flags.text("--chat-template-kwargs", variables,
             "JSON object of variables that the chat template asks for, such as {\"enable_thinking\": false}");
}

void add_thoughts_option(Flags& flags, bool& has_thoughts) {
  flags.choice("--reasoning-format", has_thoughts, {{"auto", true}, {"none", false}},
               "Chat completions: what a model thinks comes as reasoning_content, apart from its answer; none: within it");
}

ChatTemplate with_variables(ChatTemplate chat, const std::optional<std::string>& variables) {
  if (!variables) return chat;
  try {
    return chat.with_variables(*variables);
  } catch (const Error& error) {
    fail(ErrorKind::kUsage, "--chat-template-kwargs: {}", error.what());
  }
}

std::optional<ChatTemplate> find_chat_template(const std::string& directory, const std::optional<std::string>& variables,
                                               std::string& why) {
  std::optional<ChatTemplate> chat;
  try {
    chat = ChatTemplate::load(directory);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    why = error.what();
    if (variables) fail(ErrorKind::kUsage, "--chat-template-kwargs: {}", why);
    return std::nullopt;
  }
  return with_variables(*std::move(chat), variables);
}

std::vector<int32_t> end_ids(const ModelConfig& config, const Tokenizer& tokenizer, const ChatTemplate* chat) {
  std::vector<int32_t> ids;
  for (const int64_t id : end_tokens(config, tokenizer, chat)) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

ChatDate chat_date_of(const std::optional<std::string>& flag, bool is_asked) {
  if (!flag) return is_asked ? chat_date_today() : ChatDate();
  try {
    return parse_chat_date(*flag);
  } catch (const Error& error) {
    fail(error.kind(), "--date: {}", error.what());
  }
}

void ChatFlags::add_to(Flags& flags) {
  flags.section("Conversation");
  flags.flag("--chat", chat,
             "The prompt is a user's message: put the model's chat template around it");
  flags.flag("-i,--interactive", interactive,
             "Read further messages from stdin, a line each (\\ at its end: more follows), until "
             "/exit; means --chat if the model has a template, else text is continued");
  flags.flag("--no-template", no_template,
             "With --interactive: text is continued, whatever template the model has");
  flags.text("--system,--system-prompt", system_, "System message of the conversation");
  flags.text("--date", date_,
             "YYYY-MM-DD, for templates that write a date (default: today's, if they ask for it)");
  add_template_variables_flag(flags, variables_);
}

Turns ChatFlags::turns(const std::string& directory, const Tokenizer& tokenizer, Turns::Plain plain,
                       bool restored, const Console& console) const {
  if (no_template && (chat || !interactive)) {
    fail(ErrorKind::kUsage, "--no-template: expected --interactive and no --chat beside it");
  }
  const bool by_template =
      chat || (interactive && !no_template && ChatTemplate::exists(directory));
  if (!by_template) {
    for (const auto& [given, name] :
         {std::pair{system_.has_value(), "--system"}, std::pair{date_.has_value(), "--date"},
          std::pair{variables_.has_value(), "--chat-template-kwargs"}}) {
      if (given && !interactive) fail(ErrorKind::kUsage, "{}: needs --chat", name);
      if (given) {
        fail(ErrorKind::kUsage, "{}: {} has no chat template, which would say where it goes", name,
             directory);
      }
    }
    if (interactive) {
      console.info("chat template: {}; what you type is continued as plain text",
                   no_template ? "not used" : "none");
    }
    return Turns(tokenizer, plain);
  }
  if (!plain.bos || plain.special) {
    fail(ErrorKind::kUsage,
         "{}: not with --chat: the template says which special tokens there are, and what is said "
         "has none",
         plain.special ? "--special" : "--no-bos");
  }
  if (system_ && restored) {
    fail(ErrorKind::kUsage, "--system: the saved conversation has begun without or with another");
  }
  ChatTemplate chat_template = [&] {
    try {
      return ChatTemplate::load(directory);
    } catch (const Error& error) {
      if (chat || error.kind() != ErrorKind::kUsage) throw;
      fail(error.kind(), "{}; or --no-template: what you type is continued as plain text",
           error.what());
    }
  }();
  chat_template = with_variables(std::move(chat_template), variables_);
  console.info("chat template: {}", chat_template.file());
  if (interactive && !chat_template.rewrites().empty()) {
    console.info("note: {}", chat_template.rewrites());
  }
  const ChatDate date = chat_date_of(date_, chat_template.asks_for_date());
  return Turns(tokenizer, std::move(chat_template), system_, date);
}

}  // namespace tiercel
