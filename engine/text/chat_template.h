// The chat template of a model directory: conversations as the token ids that it means.
//
// Published templates are Jinja programs, and are run (engine/text/chat_program.h). The tests compare texts and ids with
// transformers' apply_chat_template.
//
// Only the template's own special tokens become special tokens: what somebody wrote is text, even
// where it spells one, so nobody's words can end a turn. (Where a template's markers are no tokens
// of its tokenizer, as [INST] of Llama 2, no difference can be made; the template makes none.)
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/config.h"
#include "engine/text/chat_message.h"
#include "engine/text/chat_program.h"
#include "engine/text/tokenizer.h"

namespace tiercel {

// Immutable and safe to share between threads.
class ChatTemplate {
 public:
  // A directory has a chat_template.jinja, or a tokenizer_config.json with a chat_template; a GGUF file has one.
  static bool exists(const std::string& directory);
  // Throws Error(kUsage) naming the file, why and what would help, where there is
  // none or it cannot be run; Error(kRuntime) where a file cannot be read.
  static ChatTemplate load(const std::string& directory);
  // None where there is none, or none that can be run. Throws Error(kRuntime) as load does.
  static std::optional<ChatTemplate> find(const std::string& directory);
  // The same from memory; `name` stands for the file in messages. bos and eos are the tokenizer's
  // special tokens, empty where it has none.
  static ChatTemplate parse(std::string_view jinja, const std::string& bos, const std::string& eos,
                            const std::string& name);

  const std::string& file() const { return file_; }  // that it comes from
  // The text depends on the day that it is written.
  bool asks_for_date() const { return program_->asks_for_date(); }
  // A template may write earlier messages differently once later ones follow (Qwen 3 drops what was
  // thought, Mistral v3 moves the system message to the last turn). A session keeps what it holds.
  // A sentence about it, or empty.
  std::string_view rewrites() const { return program_->rewrites(); }

  // The text that transformers' apply_chat_template gives. Throws Error(kUsage) for roles in an
  // order that the template refuses.
  std::string text(std::span<const ChatMessage> messages, const ChatOptions& options) const;
  // Its ids, as the file of the tokenizer has them: where tokenizer_config.json has transformers build
  // another tokenizer than the file's (LlamaTokenizer without "legacy"), theirs differ behind special
  // tokens. So they do where special tokens are "normalized". answer: what the answer begins with, where that is decided;
  // thoughts that the template has begun are ended before it.
  std::vector<int32_t> encode(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                              const ChatOptions& options, const jinja::Text& answer = {}) const;

  // The same with variables of its own given ("enable_thinking"), beside those that are: a JSON object. Throws
  // Error(kUsage): it is none, a name means something else already, or the template does not ask for it.
  ChatTemplate with_variables(const std::string& variables) const;
  const ChatProgram& program() const { return *program_; }

  // For a conversation that goes on in a session: the token that ends an answer, and what follows
  // it when the user says something more, up to where the next answer begins. system: the message that it began with,
  // if that is known; some templates look back at it.
  int32_t end_of_turn(const Tokenizer& tokenizer) const;
  std::vector<int32_t> encode_next_turn(const Tokenizer& tokenizer, std::string_view user,
                                        const std::optional<std::string>& system = {}) const;
  // Whether tokens end where an answer is due.
  bool awaits_answer(const Tokenizer& tokenizer, std::span<const int32_t> ids) const;

 private:
  ChatTemplate(std::string file, std::shared_ptr<const ChatProgram> program)
      : file_(std::move(file)), program_(std::move(program)) {}
  jinja::Text written(std::span<const ChatMessage> messages, const ChatOptions& options) const;
  std::vector<int32_t> encode_pieces(const Tokenizer& tokenizer, std::span<const ChatPiece> pieces,
                                     Follows follows,
                                     std::optional<int32_t> last_special = {}) const;

  std::string file_;
  std::shared_ptr<const ChatProgram> program_;
  std::string variables_;
};

// Tokens that generation stops at: the configuration's, and the one that ends a turn of `chat` (null:
// no template), which many configurations lack.
std::vector<int64_t> end_tokens(const ModelConfig& config, const Tokenizer& tokenizer,
                                const ChatTemplate* chat);

}  // namespace tiercel
