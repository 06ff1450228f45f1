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

  // Errors: Error(kUsage): what the template raises, and what it does wrong; that it leaves out a system message, or
  // a call.
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
  // None: it writes what an answer calls. Else why not, as far as it says so.
  const std::optional<std::string>& why_no_calls() const { return why_no_calls_; }
  bool asks_for_date() const { return template_.mentions("strftime_now"); }
  // See ChatTemplate::rewrites.
  std::string_view rewrites() const { return rewrites_; }

  // With the special tokens of `tokenizer` that the template itself writes.
  static std::vector<ChatPiece> pieces(const jinja::Text& text, const Tokenizer& tokenizer);

  // What a template is given of an answer that calls: most take it as transformers' documentation has it (arguments a
  // dict, no words: an empty text); some join what OpenAI's endpoint has (a text that is JSON, and none).
  struct CallStyle {
    bool arguments_are_text = false, content_is_none = false;
  };

 private:
  std::string_view find_rewriting() const;
  void find_call_style();
  // As write, whatever it leaves out.
  jinja::Text rendered(std::span<const ChatMessage> messages, const ChatOptions& options) const;
  jinja::Dict variables_of(std::span<const ChatMessage> messages, const ChatOptions& options) const;

  jinja::Template template_;
  std::string bos_, eos_, name_;
  std::string_view rewrites_;
  CallStyle call_style_;
  std::optional<std::string> why_no_calls_;
  bool writes_thoughts_;
};

}  // namespace tiercel
