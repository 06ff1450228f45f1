#include "engine/text/chat_template_core.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <vector>

namespace tiercel {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";
constexpr int kMaxDepth = 64;  // of nested blocks: the stack is finite, published ones need 6

// Conditions of an `if` as normalise() spells them, for messages of a role and a text and nothing
// else: no tools, no reasoning_content, no keyword arguments (enable_thinking and the like).
constexpr std::string_view kNever[] = {
    "tools",
    "tools is not none",
    "not tools is defined",  // guards a `set tools=none`
    "tools is not none and not tools_in_user_message",
    "tools_in_user_message and not tools is none",
    "not tools_in_user_message is defined",
    "not add_generation_prompt is defined",  // guards a default
    "tools is not none and(message==user_messages[-1])",
    "custom_tools is defined",
    "builtin_tools is defined",
    "builtin_tools is defined or tools is not none",
    "message.tool_calls",
    "message.tool_calls is defined and message.tool_calls is not none",
    "'tool_calls'in message",
    "message.role=='tool'",
    "message.role=='system'and'tools'in message and message.tools is not none",
    "item.tools is defined",
    "message.role=='tool'or message.role=='ipython'",
    "message.role=='tool_results'or message.role=='tool'",
    "message.reasoning_content is string",
    "message.reasoning_content is defined and message.reasoning_content is not none",
    "enable_thinking is defined and enable_thinking is false",
    // Templates into which a default was pasted, switched off.
    "false==true and not'<<SYS>>'in messages[0].content",
};
constexpr std::string_view kAlways[] = {
    "message.content is string",
    "messages[0].content is string",
    "not(message.role=='ipython'or message.role=='tool'or'tool_calls'in message)",
    "not(message.role=='tool'or message.role=='tool_results'or(message.tool_calls is defined and "
    "message.tool_calls is not none))",
};
// Terms of an `and` that are true.
constexpr std::string_view kTrueTerms[] = {"and message.content is string",
                                           "and not message.tool_calls"};
// Variables that only the branches above read.
constexpr std::string_view kUnread[] = {"set user_messages="};

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

template <size_t N>
bool is_one_of(std::string_view text, const std::string_view (&list)[N]) {
  return std::find(std::begin(list), std::end(list), text) != std::end(list);
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

// The end of the string literal that begins at code[at]: one past its closing quote.
size_t literal_end(std::string_view code, size_t at) {
  const char quote = code[at++];
  while (at < code.size() && code[at] != quote) at += code[at] == '\\' ? 2 : 1;
  return std::min(at + 1, code.size());
}

// A literal in single quotes, with \n for a line break and no needless backslash.
std::string canonical_literal(std::string_view literal) {
  std::string result = "'";
  for (size_t i = 1; i + 1 < literal.size(); ++i) {
    const char c = literal[i];
    if (c == '\\' && literal[i + 1] == '"') continue;
    if (c == '\\') {
      result += {c, literal[++i]};
    } else if (c == '\n') {
      result += "\\n";
    } else {
      if (c == '\'') result += '\\';
      result += c;
    }
  }
  return result + "'";
}

// The code of one tag: blanks only where they part words, literals canonical, x['y'] as x.y.
std::string normalise(std::string_view code) {
  std::string result;
  bool blank = false;
  for (size_t at = 0; at < code.size();) {
    if (kBlanks.find(code[at]) != std::string_view::npos) {
      blank = true;
      ++at;
      continue;
    }
    if (blank && !result.empty() && is_word(result.back()) && is_word(code[at])) result += ' ';
    blank = false;
    if (code[at] != '\'' && code[at] != '"') {
      result += code[at++];
      continue;
    }
    const size_t end = literal_end(code, at);
    const std::string literal = canonical_literal(code.substr(at, end - at));
    const std::string_view name = std::string_view(literal).substr(1, literal.size() - 2);
    at = end;
    const bool index = !result.empty() && result.back() == '[' && at < code.size() &&
                       code[at] == ']' && std::all_of(name.begin(), name.end(), is_word);
    if (index) {
      result.back() = '.';
      result += name;
      ++at;
    } else {
      result += literal;
    }
  }
  replace_all(result, "'+'", "");
  return result;
}

struct Part {
  enum Kind { kText, kOutput, kBlock } kind;
  std::string text;
};

// Text between two tags as Jinja leaves it with trim_blocks and lstrip_blocks, which is how
// transformers compiles templates.
struct Gap {
  bool after_block, strip_left;  // the tag before is a block or a comment; it ends in a dash
  bool before_block, strip_right;
  bool line_start;  // nothing stands before it on its first line
};
std::string trimmed(std::string_view text, const Gap& gap) {
  bool line_start = gap.line_start;
  if (gap.strip_left) {
    text.remove_prefix(std::min(text.find_first_not_of(kBlanks), text.size()));
  } else if (gap.after_block && text.starts_with('\n')) {
    text.remove_prefix(1);
    line_start = true;
  }
  if (gap.strip_right) {
    text = text.substr(0, text.find_last_not_of(kBlanks) + 1);
  } else if (gap.before_block) {
    const size_t kept = text.find_last_not_of(" \t") + 1;
    if (kept == 0 ? line_start : text[kept - 1] == '\n') text = text.substr(0, kept);
  }
  return std::string(text);
}

std::vector<Part> parts_of(std::string_view jinja) {
  if (jinja.ends_with('\n')) jinja.remove_suffix(1);  // as Jinja does
  std::vector<Part> parts;
  Gap gap{.after_block = false,
          .strip_left = false,
          .before_block = false,
          .strip_right = false,
          .line_start = true};
  for (size_t at = 0;;) {
    size_t tag = at;
    while ((tag = jinja.find('{', tag)) != std::string_view::npos) {
      if (tag + 1 < jinja.size() &&
          std::string_view("{%#").find(jinja[tag + 1]) != std::string_view::npos) {
        break;
      }
      ++tag;
    }
    const size_t end_of_text = std::min(tag, jinja.size());
    const char kind = end_of_text < jinja.size() ? jinja[tag + 1] : '\0';
    gap.before_block = kind == '%' || kind == '#';
    gap.strip_right = kind != '\0' && tag + 2 < jinja.size() && jinja[tag + 2] == '-';
    std::string text = trimmed(jinja.substr(at, end_of_text - at), gap);
    if (!text.empty()) parts.push_back({Part::kText, std::move(text)});
    if (kind == '\0') return parts;

    const std::string_view closing = kind == '{' ? "}}" : kind == '%' ? "%}" : "#}";
    const size_t begin = tag + (gap.strip_right ? 3 : 2);
    size_t end = begin;
    while (end < jinja.size() && jinja.substr(end, 2) != closing) {
      const bool literal = kind != '#' && (jinja[end] == '\'' || jinja[end] == '"');
      end = literal ? literal_end(jinja, end) : end + 1;
    }
    const bool dash = end > begin && end < jinja.size() && jinja[end - 1] == '-';
    if (kind != '#') {
      const std::string_view code = jinja.substr(begin, end - begin - (dash ? 1 : 0));
      parts.push_back({kind == '{' ? Part::kOutput : Part::kBlock, normalise(code)});
    }
    at = std::min(end + 2, jinja.size());
    gap.after_block = kind != '{';
    gap.strip_left = dash;
    gap.line_start = false;
  }
}

// Takes what is known out of a condition. True, false, or (none) unknown.
std::optional<bool> decide(std::string* condition) {
  for (const std::string_view term : kTrueTerms) replace_all(*condition, term, "");
  *condition = normalise(*condition);
  const auto unwrap = [&](std::string_view text) {
    return text.size() > 2 && text.front() == '(' && text.find(')') == text.size() - 1;
  };
  if (unwrap(*condition)) *condition = condition->substr(1, condition->size() - 2);
  if (is_one_of(*condition, kNever)) return false;
  if (is_one_of(*condition, kAlways)) return true;
  return std::nullopt;
}

class Reducer {
 public:
  explicit Reducer(std::vector<Part> parts) : parts_(std::move(parts)) {}

  // Everything up to the block that ends this one: elif, else, endif, endfor.
  std::string reduce() {
    if (++depth_ > kMaxDepth) {
      next_ = parts_.size();
      return "text:too deep;";
    }
    std::string core;
    for (; next_ < parts_.size(); ++next_) {
      const Part& part = parts_[next_];
      if (part.kind == Part::kText) {
        core += "text:" + part.text + ";";  // like no tag
      } else if (part.kind == Part::kOutput) {
        core += "{{" + part.text + "}}";
      } else if (part.text.starts_with("if ") || part.text.starts_with("if(") ||
                 part.text.starts_with("if'")) {
        core += reduce_if();
      } else if (part.text.starts_with("for ")) {
        const std::string head = part.text;
        ++next_;
        const std::string body = reduce();
        if (!body.empty()) core += "{%" + head + "%}" + body + "{%endfor%}";
      } else if (is_end(part.text)) {
        break;
      } else if (!is_unread(part.text)) {
        core += "{%" + part.text + "%}";
      }
    }
    --depth_;
    return core;
  }

 private:
  static bool is_end(std::string_view block) {
    return block == "endif" || block == "endfor" || block == "else" || block.starts_with("elif");
  }
  static bool is_unread(std::string_view block) {
    // Marks an assistant's words for training.
    if (block == "generation" || block == "endgeneration") return true;
    return std::any_of(std::begin(kUnread), std::end(kUnread),
                       [&](std::string_view prefix) { return block.starts_with(prefix); });
  }

  // if .. elif .. else .. endif, with next_ at the `if`; leaves it at the endif.
  std::string reduce_if() {
    std::string core, rest;  // rest: the else
    std::vector<std::string> seen;
    bool decided = false;  // a branch that is always taken was seen
    while (next_ < parts_.size()) {
      const std::string block = parts_[next_].text;
      if (block == "endif" || block == "endfor") break;
      const bool is_else = block == "else";
      std::string condition = is_else ? "" : block.substr(block.starts_with("elif") ? 4 : 2);
      const std::optional<bool> value = is_else ? true : decide(&condition);
      ++next_;
      const std::string body = reduce();
      // Once the terms about tools are gone, a later branch may ask what an earlier one did.
      const bool unreachable = std::any_of(seen.begin(), seen.end(), [&](const std::string& other) {
        return other == condition || other.ends_with("or(" + condition + ")");
      });
      if (decided || value == false || unreachable) continue;
      seen.push_back(condition);
      if (value == true) {
        decided = true;
        rest = body;
      } else {
        core += (core.empty() ? "{%if " : "{%elif ") + condition + "%}" + body;
      }
    }
    if (core.empty()) return rest;
    return core + (rest.empty() ? "" : "{%else%}" + rest) + "{%endif%}";
  }

  std::vector<Part> parts_;
  size_t next_ = 0;
  int depth_ = 0;
};

}  // namespace

std::string chat_template_core(std::string_view jinja) {
  std::string core = Reducer(parts_of(jinja)).reduce();
  replace_all(core, "}}{{", "+");
  replace_all(core, "'+'", "");
  return core;
}

}  // namespace tiercel
