// --chat and --interactive: how a user's words become the tokens of a session.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "tools/console.h"
#include "tools/flags.h"

namespace tiercel {

// Turns of a conversation as ids: by the model's chat template, or, without one, as text that is
// continued. Looks at its tokenizer, which must outlive it.
class Turns {
 public:
  struct Plain {
    bool bos = true;       // the post-processor adds its tokens to the first one
    bool special = false;  // special tokens are read as such
  };
  Turns(const Tokenizer& tokenizer, Plain plain) : tokenizer_(&tokenizer), plain_(plain) {}
  Turns(const Tokenizer& tokenizer, ChatTemplate chat, std::optional<std::string> system,
        ChatDate date);

  // The beginning of a conversation, up to its first answer.
  std::vector<int32_t> first(const std::string& words) const;
  // What follows an answer, the token that ends it included.
  std::vector<int32_t> next(const std::string& words, std::span<const int32_t> before) const;
  // What follows the tokens of a saved session, at `path`; empty words: nothing if an answer is due
  // there. Throws Error(kUsage) where neither an answer nor a user's words can follow.
  std::vector<int32_t> behind(std::span<const int32_t> saved, const std::string& words,
                              const std::string& path, const Console& console) const;
  // An answer is due behind these tokens. Never, without a template.
  bool awaits_answer(std::span<const int32_t> ids) const;

  const ChatTemplate* chat() const { return chat_ ? &*chat_ : nullptr; }
  // The token that ends an answer; none without a template.
  std::optional<int32_t> end() const { return end_; }

 private:
  const Tokenizer* tokenizer_;
  Plain plain_;
  std::optional<ChatTemplate> chat_;
  std::optional<std::string> system_;
  std::optional<int32_t> end_;
  ChatDate date_;
};

// --chat-template-kwargs: variables that a template asks for.
void add_template_variables_flag(Flags& flags, std::optional<std::string>& variables);
// --reasoning-format: BatchRequestDefaults::has_thoughts.
void add_thoughts_option(Flags& flags, bool& has_thoughts);
// Throws Error(kUsage): with the flag's name.
ChatTemplate with_variables(ChatTemplate chat, const std::optional<std::string>& variables);

// A model's template; none: why says why there is none, or none that can be run. Throws Error(kUsage) as with_variables,
// and where there is no template for variables.
std::optional<ChatTemplate> find_chat_template(const std::string& directory, const std::optional<std::string>& variables,
                                               std::string& why);

// end_tokens (engine/text/chat_template.h), as a scheduler takes them.
std::vector<int32_t> end_ids(const ModelConfig& config, const Tokenizer& tokenizer, const ChatTemplate* chat);

// What --date says, or today where nothing does and the template asks for a date; else none. Throws
// Error(kUsage).
ChatDate chat_date_of(const std::optional<std::string>& flag, bool is_asked);

struct ChatFlags {
  bool chat = false, interactive = false, no_template = false;

  void add_to(Flags& flags);
  // Throws Error(kUsage) for flags that contradict each other or need --chat; for a template that
  // is needed and missing, or cannot be run. restored: a saved session is.
  Turns turns(const std::string& directory, const Tokenizer& tokenizer, Turns::Plain plain,
              bool restored, const Console& console) const;

 private:
  std::optional<std::string> system_, date_, variables_;
};

}  // namespace tiercel
