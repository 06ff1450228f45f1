// Conversations written as a chat template would, as pieces that know what is a special token.
//
// A style says which of four families a template belongs to and how it differs from the others in
// it; engine/text/chat_template.h finds the style of a template. Knows nothing of files or tokenizers.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tiercel {

enum class ChatRole { kSystem, kUser, kAssistant, kTool };
std::string_view name_of(ChatRole role);

// What an answer asks to be done.
struct ToolCall {
  std::string id, name;
  std::string arguments;  // a JSON object
};

struct ChatMessage {
  ChatRole role;
  std::string content;  // any bytes; what is not UTF-8 becomes U+FFFD
  std::string reasoning = {};             // of an answer: what was thought before it, where that is said apart
  std::vector<ToolCall> calls = {};       // of an answer
  std::string call_id = {}, name = {};    // of what a tool gave
};

struct ChatDate {
  int year = 0, month = 1, day = 1;
};

// This machine's.
ChatDate chat_date_today();
// "YYYY-MM-DD". Throws Error(kUsage).
ChatDate parse_chat_date(const std::string& text);

struct ChatOptions {
  bool add_generation_prompt = true;
  // Of templates that write a date (as their date_string); none (year 0): what they write where
  // nothing is given and there is no clock.
  ChatDate date = {};
  std::string tools = {};      // that may be called: a JSON array, as OpenAI's; empty: none
  std::string variables = {};  // others of the template ("enable_thinking"): a JSON object, or empty
};

struct ChatPiece {
  enum Kind {
    kText,     // neighbours are one text to the tokenizer
    kMarker,   // [INST] and the like: a special token where the tokenizer has it, else text
    kSpecial,  // must be a special token
  } kind;
  std::string text;
};

struct ChatStyle {
  enum Family { kChatMl, kLlama3, kInst, kTagged } family;

  // ChatML. What becomes of <think> .. </think> in an answer: it stays; it goes unless the answer
  // is the last message (QwQ); it goes unless the answer follows the last user message (Qwen 3). Tagged:
  // it stays; it goes, out of anybody's words, and so do the blanks around what is left (GLM-Z1).
  enum Reasoning { kKept, kKeptInLast, kKeptAfterQuestion, kGone } reasoning = kKept;
  std::string_view answer_start = {};  // the generation prompt goes on with it

  // Llama 3. The system block of 3.1 and later: none, or with the date of its making, or today's.
  enum Date { kNoDate, kFixedDate, kToday } date = kNoDate;
  bool always_prompts = false;  // add_generation_prompt is not asked

  // Llama 2 and Mistral: bos, then open USER close, answer_open ANSWER answer_close eos after_eos.
  std::string_view open = {}, close = {}, answer_open = {}, answer_close = {}, after_eos = {};
  // The system message: refused; within the first or last user message; a turn of its own.
  enum System { kRefused, kInFirst, kInLast, kTurn } system = kRefused;
  std::string_view system_open = {}, system_close = {};
  bool bos_per_turn = false;  // before every user message
  bool strips_user = false, strips_answer = false;
  std::string_view wrong_order = {}, wrong_role = {};  // what the template raises
  bool order_first = false;  // the order of all roles is checked before anything else

  // Phi and GLM: start, then tag_open ROLE tag_close WORDS close, for every message. The generation
  // prompt has its own end of a tag, and without one some write the eos token.
  std::string_view start = {}, tag_open = {}, tag_close = {}, prompt_close = {};
  std::string_view end_of_turn = {};
  bool writes_bos = false, writes_eos = false;
  bool prompts_after_user = false;  // behind every user's words, and only there
  enum Skip { kNothing, kEmptySystem, kEmpty, kNoSystem } skips = kNothing;  // messages
  bool systems_first = false;
};

// What a template takes from its model and its caller.
struct ChatSettings {
  std::string bos, eos;  // special tokens; may be empty where the style does not write them
  // The system message where the first one is none: texts with a date between them ("today" as
  // YYYY-MM-DD). Empty: none is written.
  std::vector<std::string> default_system;
  ChatDate date;  // none (year 0): the template's own
};

// All messages as `style` writes them. Throws Error(kUsage) for roles in an order that the template
// refuses, in its words, and for a system message in the middle where it would drop that silently.
std::vector<ChatPiece> write_chat(const ChatStyle& style, const ChatSettings& settings,
                                  std::span<const ChatMessage> messages,
                                  bool add_generation_prompt);

// What an answer and its end-of-turn token are followed by when the user says something more.
std::vector<ChatPiece> write_next_turn(const ChatStyle& style, const ChatSettings& settings,
                                       std::string_view user);

// What the messages end with when an answer is due.
std::vector<ChatPiece> write_generation_prompt(const ChatStyle& style);

// The special token that ends an answer.
std::string end_of_turn(const ChatStyle& style, const ChatSettings& settings);

}  // namespace tiercel
