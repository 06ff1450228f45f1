// A chat template that is run: of those that are not among the recognised ones (engine/text/chat_template_table.h),
// most of which are variations of them.
//
// What it writes knows which of it are somebody's words (engine/text/jinja/text.h): only the template's own text may
// become special tokens. What a conversation needs to go on (the end of an answer, the beginning of the next one) is
// found by writing small conversations and looking where their words are.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/chat_format.h"
#include "engine/text/jinja/template.h"
#include "engine/text/tokenizer.h"

namespace tiercel {

class ChatProgram {
 public:
  // Errors: Error(kUsage): it cannot be run, or does not write what a user says.
  static std::shared_ptr<const ChatProgram> parse(std::string_view source, const std::string& bos,
                                                  const std::string& eos, const std::string& name);

  // Errors: Error(kUsage): what the template raises.
  jinja::Text write(std::span<const ChatMessage> messages, bool add_generation_prompt, const ChatDate& date) const;
  // What follows an answer's words when the user says something more, up to where the next answer begins; and what a
  // conversation ends with when an answer is due.
  jinja::Text behind_answer(std::string_view user) const;
  jinja::Text generation_prompt() const;

  bool asks_for_date() const { return asks_for_date_; }
  bool rewrites() const { return rewrites_; }

  // With the special tokens of `tokenizer` that the template itself writes.
  static std::vector<ChatPiece> pieces(const jinja::Text& text, const Tokenizer& tokenizer);

 private:
  jinja::Template template_;
  std::string bos_, eos_, name_;
  bool asks_for_date_ = false, rewrites_ = false;
};

}  // namespace tiercel
