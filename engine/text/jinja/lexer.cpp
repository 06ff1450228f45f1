#include "engine/text/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <initializer_list>

#include "engine/base/check.h"
#include "engine/text/jinja/strings.h"
#include "engine/text/utf8.h"

namespace tiercel::jinja {
namespace {

bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name(char c) { return is_letter(c) || is_digit(c); }

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& name) : source_(source), name_(name) {
    // One line break at the end is none of the template's.
    if (source_.ends_with('\n')) source_.remove_suffix(1);
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) read_text_and_tag();
    add(Kind::kEof, "");
    return std::move(tokens_);
  }

 private:
  using Kind = Token::Kind;

  void add(Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  [[noreturn]] void refuse(const std::string& what) const {
    fail(ErrorKind::kUsage, "{}: line {}: {}", name_, line_, what);
  }
  void advance(size_t n) {
    line_ += static_cast<int>(std::ranges::count(source_.substr(at_, n), '\n'));
    at_ += n;
  }
  std::string_view rest() const { return source_.substr(at_); }
  void skip_space() { advance(leading_space(rest())); }

  void read_text_and_tag() {
    size_t tag = source_.find('{', at_);
    while (tag != source_.npos && std::string_view("{%#").find(source_.substr(tag + 1, 1)) == std::string_view::npos) {
      tag = source_.find('{', tag + 1);
    }
    if (tag == source_.npos || tag + 1 == source_.size()) {
      add_text(source_.substr(at_));
      return advance(source_.size() - at_);
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    add_text(before_tag(source_.substr(at_, tag - at_), kind != '{', sign));
    advance(tag - at_ + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    if (kind == '#') return skip_comment();
    if (kind == '%' && read_raw()) return;
    add(kind == '{' ? Kind::kOutputBegin : Kind::kBegin, "");
    read_code(kind == '{' ? "}}" : "%}");
  }

  void add_text(std::string_view text) {
    if (!text.empty()) add(Kind::kText, std::string(text));
  }

  // What of a text is left in front of a tag: lstrip_blocks takes what stands before a block at the beginning of a
  // line.
  std::string_view before_tag(std::string_view text, bool is_block, char sign) const {
    if (sign == '-') return text.substr(0, text.size() - trailing_space(text));
    if (!is_block || sign == '+') return text;
    const size_t line = text.rfind('\n') + 1;  // npos + 1 = 0
    const bool at_line = line > 0 || at_ == 0 || source_[at_ - 1] == '\n';
    const std::string_view indent = text.substr(line);
    return at_line && leading_space(indent) == indent.size() ? text.substr(0, line) : text;
  }

  // trim_blocks: the line break behind a block.
  void end_tag(std::string_view closing, bool is_block) {
    const char sign = rest()[0];
    advance(closing.size() + (sign == '-' || sign == '+' ? 1 : 0));
    if (sign == '-') {
      skip_space();
    } else if (is_block && sign != '+' && rest().starts_with('\n')) {
      advance(1);
    }
  }
  bool at_end(std::string_view closing) const {
    const std::string_view text = rest();
    const bool has_sign = text.starts_with('-') || (text.starts_with('+') && closing != "}}");
    return text.starts_with(closing) || (has_sign && text.substr(1).starts_with(closing));
  }

  void skip_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == source_.npos) refuse("a comment does not end");
    const bool has_sign = end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+');
    advance(end - at_ - (has_sign ? 1 : 0));
    end_tag("#}", true);
  }

  // {% raw %} .. {% endraw %}: text, whatever it looks like.
  bool read_raw() {
    size_t n = leading_space(rest());
    if (!rest().substr(n).starts_with("raw")) return false;
    n += 3;
    n += leading_space(rest().substr(n));
    const bool strips = rest().substr(n).starts_with("-%}");
    if (!strips && !rest().substr(n).starts_with("%}")) return false;
    advance(n + (strips ? 3 : 2));
    if (strips) skip_space();
    for (size_t tag = source_.find("{%", at_); tag != source_.npos; tag = source_.find("{%", tag + 1)) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
      size_t end = tag + 2 + (sign == '-' || sign == '+' ? 1 : 0);
      end += leading_space(source_.substr(std::min(end, source_.size())));
      if (end >= source_.size() || !source_.substr(end).starts_with("endraw")) continue;
      end += 6;
      end += leading_space(source_.substr(end));
      const std::string_view closing = source_.substr(end);
      if (!closing.starts_with("%}") && !closing.starts_with("-%}") && !closing.starts_with("+%}")) continue;
      add_text(before_tag(source_.substr(at_, tag - at_), true, sign));
      advance(end - at_);
      end_tag("%}", true);
      return true;
    }
    refuse("expected {% endraw %}, found none");
  }

  void read_code(std::string_view closing) {
    int open = 0;  // brackets: }} may end two dicts
    for (;;) {
      skip_space();
      if (at_ >= source_.size()) refuse(fmt::format("expected {} at the end of a tag, found none", closing));
      if (open == 0 && at_end(closing)) {
        add(closing == "}}" ? Kind::kOutputEnd : Kind::kEnd, "");
        return end_tag(closing, closing == "%}");
      }
      const std::string_view text = rest();
      if (is_letter(text[0])) {
        size_t n = 1;
        while (n < text.size() && is_name(text[n])) ++n;
        add(Kind::kName, std::string(text.substr(0, n)));
        advance(n);
      } else if (is_digit(text[0])) {
        read_number(text);
      } else if (text[0] == '\'' || text[0] == '"') {
        read_string(text);
      } else {
        read_operator(text, open);
      }
    }
  }

  void read_number(std::string_view text) {
    size_t n = 0;
    const auto digits = [&] {
      while (n < text.size() && (is_digit(text[n]) || (text[n] == '_' && n + 1 < text.size() && is_digit(text[n + 1]))))
        ++n;
    };
    digits();
    bool is_float = false;
    // x.0.1 is an item of an item.
    const bool behind_dot = !tokens_.empty() && tokens_.back().kind == Kind::kOperator && tokens_.back().text == ".";
    if (!behind_dot && n + 1 < text.size() && text[n] == '.' && is_digit(text[n + 1])) {
      is_float = true;
      ++n;
      digits();
    }
    if (!behind_dot && n + 1 < text.size() && (text[n] == 'e' || text[n] == 'E')) {
      const size_t sign = text[n + 1] == '+' || text[n + 1] == '-' ? 2 : 1;
      if (n + sign < text.size() && is_digit(text[n + sign])) {
        is_float = true;
        n += sign;
        digits();
      }
    }
    if (n < text.size() && is_name(text[n])) refuse("expected a decimal number");
    std::string number(text.substr(0, n));
    std::erase(number, '_');
    add(is_float ? Kind::kFloat : Kind::kInteger, number);
    advance(n);
  }

  void read_string(std::string_view text) {
    std::string meant;
    size_t n = 1;
    const auto next = [&] {
      if (n >= text.size()) refuse("a string does not end");
      return text[n++];
    };
    for (char c = next(); c != text[0]; c = next()) {
      if (c != '\\') {
        meant += c;
      } else if (const char escape = next(); escape == 'x' || escape == 'u' || escape == 'U') {
        n += read_code_point(text.substr(n), escape == 'x' ? 2 : escape == 'u' ? 4 : 8, meant);
      } else if (escape == 'N') {
        refuse("\\N in a string is not supported");
      } else if (escape >= '0' && escape <= '7') {
        int code = escape - '0';
        for (int i = 0; i < 2 && n < text.size() && text[n] >= '0' && text[n] <= '7'; ++i)
          code = code * 8 + (text[n++] - '0');
        append_code_point(static_cast<char32_t>(code), &meant);
      } else if (escape != '\n') {
        constexpr std::string_view kEscapes = "ntrbfav\\'\"", kMeanings = "\n\t\r\b\f\a\v\\'\"";
        const size_t known = kEscapes.find(escape);
        meant += known != kEscapes.npos ? std::string(1, kMeanings[known]) : std::string({'\\', escape});
      }
    }
    add(Kind::kString, std::move(meant));
    advance(n);
  }

  size_t read_code_point(std::string_view text, size_t n_digits, std::string& meant) const {
    uint32_t code = 0;
    const char* const end = text.data() + std::min(n_digits, text.size());
    const auto [last, error] = std::from_chars(text.data(), end, code, 16);
    if (error != std::errc() || last != text.data() + n_digits || code > 0x10ffff ||
        (code >= 0xd800 && code < 0xe000)) {
      refuse(fmt::format("expected the {} hexadecimal digits of a character", n_digits));
    }
    append_code_point(code, &meant);
    return n_digits;
  }

  void read_operator(std::string_view text, int& open) {
    const size_t two = std::ranges::any_of(std::initializer_list<std::string_view>{"==", "!=", "<=", ">=", "//", "**"},
                                           [&](std::string_view known) { return text.starts_with(known); })
                           ? 2
                           : 1;
    const char c = text[0];
    if (two == 1 && std::string_view("+-*/%~<>=.,:|()[]{}").find(c) == std::string_view::npos) {
      const Utf8Next character = next_utf8(text);
      refuse(fmt::format("expected an expression, found {}", text.substr(0, static_cast<size_t>(character.length))));
    }
    if (c == '(' || c == '[' || c == '{') ++open;
    if (c == ')' || c == ']' || c == '}') --open;
    add(Kind::kOperator, std::string(text.substr(0, two)));
    advance(two);
  }

  std::string_view source_;
  const std::string& name_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> read_tokens(std::string_view source, const std::string& name) {
  std::string lines;  // which end with a line feed
  append_valid_utf8(source, &lines);
  size_t n = 0;
  for (size_t at = 0; at < lines.size(); ++at) {
    const bool is_return = lines[at] == '\r';
    if (is_return && at + 1 < lines.size() && lines[at + 1] == '\n') ++at;
    lines[n++] = is_return ? '\n' : lines[at];
  }
  lines.resize(n);
  return Lexer(lines, name).run();
}

}  // namespace tiercel::jinja
