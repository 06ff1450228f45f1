// A chat template as a program that writes conversations.
//
// What it writes knows which of it are somebody's words (engine/text/jinja/text.h): only the template's own text may
// become special tokens. What a conversation needs to go on (the end of an answer, the beginning of the next one) is
// found by writing small conversations and looking where their words are.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/chat_message.h"
#include "engine/text/jinja/template.h"
#include "engine/text/tokenizer.h"

namespace tiercel {

class ChatProgram {
 public:
  // Errors: Error(kUsage): it cannot be run, or does not write what a user says.
  ChatProgram(std::string_view source, const std::string& bos, const std::string& eos, const std::string& name);

  // Errors: Error(kUsage): what the template raises, and what it does wrong; that it leaves out a system message.
  jinja::Text write(std::span<const ChatMessage> messages, const ChatOptions& options) const;

  // The special token that ends an answer. Errors: Error(kUsage): the template does not keep answers, or ends them with
  // no token of their own. variables: as those of ChatOptions.
  std::string end_of_turn(const Tokenizer& tokenizer, const std::string& variables) const;
  // That, and what follows it when the user says something more, up to where the next answer begins. system: what the
  // conversation began with, if that is known. Errors: as above.
  struct NextTurn {
    std::string end_of_turn;
    std::vector<ChatPiece> pieces;
  };
  NextTurn next_turn(std::string_view user, const std::optional<std::string>& system, const Tokenizer& tokenizer,
                     const std::string& variables) const;
  // What a conversation ends with when an answer is due.
  jinja::Text generation_prompt(const std::string& variables) const;

  bool mentions(const std::string& variable) const { return template_.mentions(variable); }
  // Whether it knows of thoughts in answers.
  bool writes_thoughts() const { return writes_thoughts_; }
  bool asks_for_date() const { return template_.mentions("strftime_now"); }
  // See ChatTemplate::rewrites.
  std::string_view rewrites() const { return rewrites_; }

  // With the special tokens of `tokenizer` that the template itself writes.
  static std::vector<ChatPiece> pieces(const jinja::Text& text, const Tokenizer& tokenizer);

 private:
  std::string_view find_rewriting() const;
  jinja::Dict variables_of(std::span<const ChatMessage> messages, const ChatOptions& options) const;

  jinja::Template template_;
  std::string bos_, eos_, name_;
  std::string_view rewrites_;
  bool writes_thoughts_;
};

}  // namespace tiercel
