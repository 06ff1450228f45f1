#include "engine/text/chat_format.h"

#include <charconv>
#include <ctime>

#include <algorithm>
#include <optional>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

constexpr std::string_view kThink = "<think>", kEndThink = "</think>";
constexpr std::string_view kMarkers[] = {"[INST]", "[/INST]", "[SYSTEM_PROMPT]",
                                         "[/SYSTEM_PROMPT]", "[gMASK]", "<sop>"};
constexpr ChatDate kLlama3Date{.year = 2024, .month = 7, .day = 26};

// Python's str.isspace.
bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

// Python's str.strip of valid UTF-8.
std::string strip(std::string_view text) {
  size_t begin = text.size(), end = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    if (is_space(read_code_point(text, &at))) continue;
    begin = std::min(begin, start);
    end = at;
  }
  return end == 0 ? std::string() : std::string(text.substr(begin, end - begin));
}

std::string_view lstrip_lines(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of('\n'), text.size()));
}
std::string_view rstrip_lines(std::string_view text) {
  return text.substr(0, text.find_last_not_of('\n') + 1);
}

struct Answer {
  std::string_view reasoning, content;
};
// As Qwen's templates take an answer apart.
Answer without_reasoning(std::string_view text) {
  const size_t last = text.rfind(kEndThink);
  if (last == std::string_view::npos) return {.reasoning = {}, .content = text};
  std::string_view reasoning = rstrip_lines(text.substr(0, text.find(kEndThink)));
  if (const size_t begin = reasoning.rfind(kThink); begin != std::string_view::npos) {
    reasoning.remove_prefix(begin + kThink.size());
  }
  return {.reasoning = lstrip_lines(reasoning),
          .content = lstrip_lines(text.substr(last + kEndThink.size()))};
}

class Writer {
 public:
  // Somebody's words: text, whatever it looks like.
  Writer& words(std::string_view text) { return add(ChatPiece::kText, text); }
  Writer& special(const std::string& token) { return add(ChatPiece::kSpecial, token); }
  // The template's own text.
  Writer& text(std::string_view text) {
    while (!text.empty()) {
      const std::optional<ChatPiece> token = token_at(text);
      const std::string_view piece = token ? std::string_view(token->text) : text.substr(0, 1);
      add(token ? token->kind : ChatPiece::kText, piece);
      text.remove_prefix(piece.size());
    }
    return *this;
  }
  std::vector<ChatPiece> take() { return std::move(pieces_); }

 private:
  static std::optional<ChatPiece> token_at(std::string_view text) {
    if (text.starts_with("<|")) {
      return ChatPiece{ChatPiece::kSpecial, std::string(text.substr(0, text.find("|>") + 2))};
    }
    for (const std::string_view marker : kMarkers) {
      if (text.starts_with(marker)) return ChatPiece{ChatPiece::kMarker, std::string(marker)};
    }
    return std::nullopt;
  }
  Writer& add(ChatPiece::Kind kind, std::string_view text) {
    if (text.empty()) return *this;
    if (kind == ChatPiece::kText && !pieces_.empty() && pieces_.back().kind == kind) {
      pieces_.back().text += text;
    } else {
      pieces_.push_back({kind, std::string(text)});
    }
    return *this;
  }
  std::vector<ChatPiece> pieces_;
};

std::string llama3_date(ChatDate date) {
  constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  if (date.year == 0) date = kLlama3Date;
  CHECK(date.month >= 1 && date.month <= 12, "month {}", date.month);
  return fmt::format("{:02} {} {}", date.day, kMonths[date.month - 1], date.year);
}

std::string default_system(const ChatSettings& settings) {
  std::string text;
  for (size_t i = 0; i < settings.default_system.size(); ++i) {
    const ChatDate& date = settings.date;
    if (i > 0) text += fmt::format("{:04}-{:02}-{:02}", date.year, date.month, date.day);
    text += settings.default_system[i];
  }
  return text;
}

// The first message's words where it is the system's.
std::optional<std::string> take_system(std::span<const ChatMessage>* messages) {
  if (messages->empty() || messages->front().role != ChatRole::kSystem) return std::nullopt;
  const std::string words = messages->front().content;
  *messages = messages->subspan(1);
  return words;
}

void chatml_turn(Writer& out, std::string_view role, std::string_view words) {
  out.text("<|im_start|>").text(role).text("\n").words(words).text("<|im_end|>\n");
}

void write_chatml(const ChatStyle& style, const ChatSettings& settings,
                  std::span<const ChatMessage> messages, Writer& out) {
  if (messages.front().role != ChatRole::kSystem && !settings.default_system.empty()) {
    chatml_turn(out, "system", default_system(settings));
  }
  // The last thing the user asked; what a tool said is written as the user's words.
  size_t question = messages.size() - 1;
  for (size_t i = messages.size(); i-- > 0;) {
    const ChatMessage& m = messages[i];
    const bool tool =
        m.content.starts_with("<tool_response>") && m.content.ends_with("</tool_response>");
    if (m.role != ChatRole::kUser || tool) continue;
    question = i;
    break;
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const bool last = i + 1 == messages.size();
    std::string words = message.content;
    if (message.role == ChatRole::kAssistant && style.reasoning != ChatStyle::kKept) {
      const Answer answer = without_reasoning(message.content);
      if (style.reasoning == ChatStyle::kKeptInLast) {
        // Without a </think> the split gives the whole answer, whose first line breaks go too.
        if (!last) words = lstrip_lines(answer.content);
      } else if (i > question && (last || !answer.reasoning.empty())) {
        words =
            fmt::format("<think>\n{}\n</think>\n\n{}", lstrip_lines(rstrip_lines(answer.reasoning)),
                        lstrip_lines(answer.content));
      } else {
        words = answer.content;
      }
    }
    chatml_turn(out, name_of(message.role), words);
  }
}

void llama3_turn(Writer& out, std::string_view role, std::string_view words) {
  out.text("<|start_header_id|>").text(role).text("<|end_header_id|>\n\n").words(words);
  out.text("<|eot_id|>");
}

void write_llama3(const ChatStyle& style, const ChatSettings& settings,
                  std::span<const ChatMessage> messages, Writer& out) {
  out.special(settings.bos);
  if (style.date != ChatStyle::kNoDate) {
    const std::string system = strip(take_system(&messages).value_or(""));
    llama3_turn(out, "system",
                fmt::format("Cutting Knowledge Date: December 2023\nToday Date: {}\n\n{}",
                            llama3_date(settings.date), system));
  }
  for (const ChatMessage& message : messages) {
    llama3_turn(out, name_of(message.role), strip(message.content));
  }
}

void inst_turn(const ChatStyle& style, const ChatSettings& settings, std::string words,
               Writer& out) {
  if (style.bos_per_turn) out.special(settings.bos);
  out.text(style.open).words(style.strips_user ? strip(words) : words).text(style.close);
}

// As the templates check it: users at even places, answers at odd ones, nothing else.
void check_order(const ChatStyle& style, std::span<const ChatMessage> messages) {
  const auto order = [&](size_t i) {
    const bool user = messages[i].role == ChatRole::kUser;
    if (user != (i % 2 == 0)) fail(ErrorKind::kUsage, "{}", style.wrong_order);
  };
  if (style.order_first) {
    for (size_t i = 0; i < messages.size(); ++i) order(i);
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    order(i);
    if (messages[i].role == ChatRole::kSystem) fail(ErrorKind::kUsage, "{}", style.wrong_role);
  }
}

void write_inst(const ChatStyle& style, const ChatSettings& settings,
                std::span<const ChatMessage> messages, Writer& out) {
  std::optional<std::string> system;
  if (style.system != ChatStyle::kRefused) system = take_system(&messages);
  if (style.system != ChatStyle::kTurn) check_order(style, messages);
  if (!style.bos_per_turn) out.special(settings.bos);
  const auto system_turn = [&](std::string_view words) {
    out.text(style.system_open).words(words).text(style.system_close);
  };
  if (style.system == ChatStyle::kTurn) {
    if (!system && !settings.default_system.empty()) system = default_system(settings);
    if (system) system_turn(*system);
  }
  const size_t carrier = style.system == ChatStyle::kInFirst ? 0 : messages.size() - 1;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role == ChatRole::kSystem) {
      system_turn(message.content);
    } else if (message.role == ChatRole::kAssistant) {
      out.text(style.answer_open)
          .words(style.strips_answer ? strip(message.content) : message.content)
          .text(style.answer_close)
          .special(settings.eos)
          .text(style.after_eos);
    } else {
      std::string words = message.content;
      if (system && style.system != ChatStyle::kTurn && i == carrier) {
        words = fmt::format("{}{}{}{}", style.system_open, *system, style.system_close, words);
      }
      inst_turn(style, settings, std::move(words), out);
    }
  }
}

void tag(const ChatStyle& style, std::string_view role, std::string_view close, Writer& out) {
  out.text(fmt::format("{}{}{}", style.tag_open, role, close));
}
void tagged_prompt(const ChatStyle& style, Writer& out) {
  tag(style, "assistant", style.prompt_close, out);
  out.text(style.answer_start);
}
// A user's words as a template that drops what was thought has them, too.
std::string tagged_words(const ChatStyle& style, std::string_view words) {
  return style.reasoning == ChatStyle::kGone ? strip(without_reasoning(words).content)
                                             : std::string(words);
}

void write_tagged(const ChatStyle& style, const ChatSettings& settings,
                  std::vector<ChatMessage> messages, Writer& out) {
  const auto is_system = [](const ChatMessage& m) { return m.role == ChatRole::kSystem; };
  if (style.skips == ChatStyle::kNoSystem && std::any_of(messages.begin(), messages.end(), is_system)) {
    fail(ErrorKind::kUsage, "The chat template has no place for a system message");
  }
  if (style.systems_first) std::stable_partition(messages.begin(), messages.end(), is_system);
  if (style.writes_bos) out.special(settings.bos);
  out.text(style.start);
  for (const ChatMessage& message : messages) {
    const bool skips = style.skips == ChatStyle::kEmpty ||
                       (style.skips == ChatStyle::kEmptySystem && is_system(message));
    if (skips && message.content.empty()) continue;
    const bool was_tagged = style.prompts_after_user && message.role == ChatRole::kAssistant;
    if (!was_tagged) tag(style, name_of(message.role), style.tag_close, out);
    out.words(is_system(message) ? message.content : tagged_words(style, message.content));
    out.text(style.close);
    if (style.prompts_after_user && message.role == ChatRole::kUser) tagged_prompt(style, out);
  }
}

}  // namespace

std::string_view name_of(ChatRole role) {
  switch (role) {
    case ChatRole::kSystem: return "system";
    case ChatRole::kUser: return "user";
    case ChatRole::kAssistant: return "assistant";
    case ChatRole::kTool: return "tool";
  }
  return "?";
}

ChatDate chat_date_today() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  return {.year = local.tm_year + 1900, .month = local.tm_mon + 1, .day = local.tm_mday};
}

ChatDate parse_chat_date(const std::string& text) {
  ChatDate date;
  int* const fields[] = {&date.year, &date.month, &date.day};
  const char* at = text.data();
  const char* const end = at + text.size();
  bool good = text.size() == 10;
  for (int i = 0; i < 3 && good; ++i) {
    const char* const stop = at + (i == 0 ? 4 : 2);
    const auto [next, error] = std::from_chars(at, stop, *fields[i]);
    good = error == std::errc() && next == stop && (stop == end || *stop == '-');
    at = stop + 1;
  }
  if (!good || date.year < 1 || date.month < 1 || date.month > 12 || date.day < 1 ||
      date.day > 31) {
    fail(ErrorKind::kUsage, "expected YYYY-MM-DD, found '{}'", text);
  }
  return date;
}

std::vector<ChatPiece> write_chat(const ChatStyle& style, const ChatSettings& settings,
                                  std::span<const ChatMessage> messages,
                                  bool add_generation_prompt) {
  if (messages.empty()) fail(ErrorKind::kUsage, "expected a conversation, found no messages");
  std::vector<ChatMessage> valid;
  for (const ChatMessage& message : messages) {
    valid.push_back({message.role, {}});
    append_valid_utf8(message.content, &valid.back().content);
  }
  Writer out;
  switch (style.family) {
    case ChatStyle::kChatMl: write_chatml(style, settings, valid, out); break;
    case ChatStyle::kLlama3: write_llama3(style, settings, valid, out); break;
    case ChatStyle::kInst: write_inst(style, settings, valid, out); break;
    case ChatStyle::kTagged: write_tagged(style, settings, std::move(valid), out); break;
  }
  const bool prompts = add_generation_prompt || style.always_prompts;
  if (style.writes_eos && !prompts) out.special(settings.eos);
  std::vector<ChatPiece> pieces = out.take();
  if (prompts) {
    // A user's turn ends with it.
    if (style.family == ChatStyle::kInst || style.prompts_after_user) return pieces;
    const std::vector<ChatPiece> prompt = write_generation_prompt(style);
    pieces.insert(pieces.end(), prompt.begin(), prompt.end());
  }
  return pieces;
}

std::vector<ChatPiece> write_generation_prompt(const ChatStyle& style) {
  Writer out;
  switch (style.family) {
    case ChatStyle::kChatMl: out.text("<|im_start|>assistant\n").text(style.answer_start); break;
    case ChatStyle::kLlama3: out.text("<|start_header_id|>assistant<|end_header_id|>\n\n"); break;
    case ChatStyle::kInst: out.text(style.close); break;
    case ChatStyle::kTagged: tagged_prompt(style, out); break;
  }
  return out.take();
}

std::vector<ChatPiece> write_next_turn(const ChatStyle& style, const ChatSettings& settings,
                                       std::string_view user) {
  std::string words;
  append_valid_utf8(user, &words);
  Writer out;
  switch (style.family) {
    case ChatStyle::kChatMl:
      out.text("\n");
      chatml_turn(out, "user", words);
      out.text("<|im_start|>assistant\n").text(style.answer_start);
      break;
    case ChatStyle::kLlama3:
      llama3_turn(out, "user", strip(words));
      out.text("<|start_header_id|>assistant<|end_header_id|>\n\n");
      break;
    case ChatStyle::kInst:
      out.text(style.after_eos);
      inst_turn(style, settings, std::move(words), out);
      break;
    case ChatStyle::kTagged: {
      // GLM's answers end with the user's tag, others' with what closes them.
      std::string turn = fmt::format("{}{}user{}", style.close, style.tag_open, style.tag_close);
      CHECK(turn.starts_with(style.end_of_turn), "{} after {}", turn, style.end_of_turn);
      out.text(std::string_view(turn).substr(style.end_of_turn.size()));
      out.words(tagged_words(style, words)).text(style.close);
      tagged_prompt(style, out);
      break;
    }
  }
  return out.take();
}

std::string end_of_turn(const ChatStyle& style, const ChatSettings& settings) {
  switch (style.family) {
    case ChatStyle::kChatMl: return "<|im_end|>";
    case ChatStyle::kLlama3: return "<|eot_id|>";
    case ChatStyle::kInst: return settings.eos;
    case ChatStyle::kTagged: return std::string(style.end_of_turn);
  }
  return {};
}

}  // namespace tiercel
