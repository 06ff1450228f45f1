#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>

#include "engine/text/jinja/ast.h"
#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace tiercel::jinja {
namespace {

constexpr int kMaxDepth = 100, kMaxHeight = 400;  // of what is nested: the stack is finite

struct Token {
  enum class Kind { kText, kBegin, kEnd, kOutputBegin, kOutputEnd, kName, kString, kInteger, kFloat, kOperator, kEof };
  Kind kind;
  std::string text;
  int line;
};

bool is_name_start(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& name) : source_(source), name_(name) {
    // One line break at the end is none of the template's.
    if (source_.ends_with('\n')) source_.remove_suffix(1);
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) read_text_and_tag();
    add(Token::Kind::kEof, "");
    return std::move(tokens_);
  }

 private:
  using Kind = Token::Kind;
  void add(Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  [[noreturn]] void refuse(const std::string& what) const { fail(ErrorKind::kUsage, "{}: line {}: {}", name_, line_, what); }
  void advance(size_t n) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(at_ + n), '\n'));
    at_ += n;
  }

  void read_text_and_tag() {
    size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == source_.npos || tag + 1 >= source_.size()) {
        tag = source_.npos;
        break;
      }
      const char second = source_[tag + 1];
      if (second == '{' || second == '%' || second == '#') break;
    }
    const size_t text_end = std::min(tag, source_.size());
    std::string text(source_.substr(at_, text_end - at_));
    if (tag == source_.npos) {
      if (!text.empty()) add(Kind::kText, text);
      advance(source_.size() - at_);
      return;
    }
    const char kind = source_[tag + 1], control = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    const bool has_control = control == '-' || (control == '+' && kind != '{');
    if (control == '-') {
      while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.pop_back();
    } else if (kind != '{' && control != '+') {
      // lstrip_blocks: what is before a block at the beginning of its line.
      size_t keep = text.size();
      while (keep > 0 && (text[keep - 1] == ' ' || text[keep - 1] == '\t')) --keep;
      const bool at_line = keep > 0 ? text[keep - 1] == '\n' : at_ == 0 || source_[at_ - 1] == '\n';
      if (at_line) text.resize(keep);
    }
    if (!text.empty()) add(Kind::kText, text);
    advance(text_end - at_ + 2 + (has_control ? 1 : 0));
    if (kind == '#') {
      const size_t end = source_.find("#}", at_);
      if (end == source_.npos) refuse("a comment does not end");
      const bool strips = end > at_ && source_[end - 1] == '-';
      advance(end + 2 - at_);
      skip_behind(strips, true);
      return;
    }
    add(kind == '{' ? Kind::kOutputBegin : Kind::kBegin, "");
    read_code(kind == '{' ? "}}" : "%}", kind);
  }

  // trim_blocks: the line break behind a block.
  void skip_behind(bool strips, bool is_block) {
    if (strips) {
      size_t n = 0;
      while (at_ + n < source_.size() && std::isspace(static_cast<unsigned char>(source_[at_ + n])) != 0) ++n;
      advance(n);
    } else if (is_block) {
      if (source_.substr(at_).starts_with('\n')) advance(1);
    }
  }

  void read_code(std::string_view closing, char kind) {
    int open = 0;  // brackets: }} may end two dicts
    for (;;) {
      while (at_ < source_.size() && std::isspace(static_cast<unsigned char>(source_[at_])) != 0) advance(1);
      if (at_ >= source_.size()) refuse(fmt::format("expected {} at the end of a tag, found none", closing));
      const std::string_view rest = source_.substr(at_);
      if (open == 0) {
        const bool strips = rest.starts_with('-') && rest.substr(1).starts_with(closing);
        const bool keeps = rest.starts_with('+') && rest.substr(1).starts_with(closing);
        if (strips || keeps || rest.starts_with(closing)) {
          add(kind == '{' ? Kind::kOutputEnd : Kind::kEnd, "");
          advance(closing.size() + (strips || keeps ? 1 : 0));
          skip_behind(strips, kind == '%' && !keeps);
          return;
        }
      }
      const char c = rest[0];
      if (is_name_start(c)) {
        size_t n = 1;
        while (n < rest.size() && is_name(rest[n])) ++n;
        add(Kind::kName, std::string(rest.substr(0, n)));
        advance(n);
      } else if (std::isdigit(static_cast<unsigned char>(c)) != 0) {
        read_number(rest);
      } else if (c == '\'' || c == '"') {
        read_string(c);
      } else {
        read_operator(rest, open);
      }
    }
  }

  void read_number(std::string_view rest) {
    size_t n = 0;
    const auto digits = [&] {
      while (n < rest.size() && (std::isdigit(static_cast<unsigned char>(rest[n])) != 0 || rest[n] == '_')) ++n;
    };
    digits();
    bool is_float = false;
    if (n + 1 < rest.size() && rest[n] == '.' && std::isdigit(static_cast<unsigned char>(rest[n + 1])) != 0) {
      is_float = true;
      ++n;
      digits();
    }
    if (n + 1 < rest.size() && (rest[n] == 'e' || rest[n] == 'E')) {
      const size_t sign = rest[n + 1] == '+' || rest[n + 1] == '-' ? 2 : 1;
      if (n + sign < rest.size() && std::isdigit(static_cast<unsigned char>(rest[n + sign])) != 0) {
        is_float = true;
        n += sign;
        digits();
      }
    }
    std::string text(rest.substr(0, n));
    std::erase(text, '_');
    add(is_float ? Kind::kFloat : Kind::kInteger, text);
    advance(n);
  }

  void read_string(char quote) {
    const int begin = line_;
    std::string text;
    size_t n = 1;
    const std::string_view rest = source_.substr(at_);
    for (;; ++n) {
      if (n >= rest.size()) refuse("a string does not end");
      const char c = rest[n];
      if (c == quote) break;
      if (c != '\\') {
        text += c;
        continue;
      }
      if (++n >= rest.size()) refuse("a string does not end");
      switch (rest[n]) {
        case 'n': text += '\n'; break;
        case 't': text += '\t'; break;
        case 'r': text += '\r'; break;
        case 'b': text += '\b'; break;
        case 'f': text += '\f'; break;
        case 'a': text += '\a'; break;
        case 'v': text += '\v'; break;
        case '0': text += '\0'; break;
        case '\\':
        case '\'':
        case '"': text += rest[n]; break;
        case '\n': break;
        case 'x':
        case 'u':
        case 'U': {
          const size_t digits = rest[n] == 'x' ? 2 : rest[n] == 'u' ? 4 : 8;
          uint32_t code = 0;
          const char* const first = rest.data() + n + 1;
          const auto [end, error] = std::from_chars(first, std::min(first + digits, rest.data() + rest.size()), code, 16);
          if (error != std::errc() || end != first + digits || code > 0x10ffff) refuse("a \\u without its digits");
          append_utf8(code, text);
          n += digits;
          break;
        }
        default:
          text += '\\';
          text += rest[n];
      }
    }
    tokens_.push_back({Kind::kString, std::move(text), begin});
    advance(n + 1);
  }

  static void append_utf8(uint32_t c, std::string& out) {
    if (c < 0x80) {
      out += static_cast<char>(c);
    } else if (c < 0x800) {
      out += static_cast<char>(0xc0 | c >> 6);
      out += static_cast<char>(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
      out += static_cast<char>(0xe0 | c >> 12);
      out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
      out += static_cast<char>(0x80 | (c & 0x3f));
    } else {
      out += static_cast<char>(0xf0 | c >> 18);
      out += static_cast<char>(0x80 | (c >> 12 & 0x3f));
      out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
      out += static_cast<char>(0x80 | (c & 0x3f));
    }
  }

  void read_operator(std::string_view rest, int& open) {
    for (const std::string_view two : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (!rest.starts_with(two)) continue;
      add(Kind::kOperator, std::string(two));
      return advance(2);
    }
    const char c = rest[0];
    if (std::string_view("+-*/%~<>=.,:|()[]{}").find(c) == std::string_view::npos) {
      refuse(fmt::format("found a character that no expression has: {}", c));
    }
    if (c == '(' || c == '[' || c == '{') ++open;
    if (c == ')' || c == ']' || c == '}') --open;
    add(Kind::kOperator, std::string(1, c));
    advance(1);
  }

  std::string_view source_;
  const std::string& name_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& name) : tokens_(std::move(tokens)), name_(name) {}

  Block run() {
    Block block = parse_block({});
    if (peek().kind != Kind::kEof) refuse("a template's text");
    return block;
  }

 private:
  using Kind = Token::Kind;
  using E = Expression::Kind;
  using S = Statement::Kind;

  struct Deeper {
    explicit Deeper(Parser& parser) : p(parser) {
      if (++p.depth_ > kMaxDepth) p.refuse(fmt::format("at most {} levels", kMaxDepth));
    }
    ~Deeper() { --p.depth_; }
    Parser& p;
  };

  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  Token next() { return tokens_[at_ < tokens_.size() - 1 ? at_++ : at_]; }
  static std::string describe(const Token& token) {
    switch (token.kind) {
      case Kind::kEof: return "the end";
      case Kind::kEnd: return "%}";
      case Kind::kOutputEnd: return "}}";
      case Kind::kBegin: return "{%";
      case Kind::kOutputBegin: return "{{";
      case Kind::kText: return "text";
      default: return "'" + token.text.substr(0, 40) + "'";
    }
  }
  [[noreturn]] void refuse(const std::string& expected) const {
    fail(ErrorKind::kUsage, "{}: line {}: expected {}, found {}", name_, peek().line, expected, describe(peek()));
  }
  bool is_operator(std::string_view text, size_t ahead = 0) const {
    return peek(ahead).kind == Kind::kOperator && peek(ahead).text == text;
  }
  bool is_word(std::string_view text, size_t ahead = 0) const {
    return peek(ahead).kind == Kind::kName && peek(ahead).text == text;
  }
  bool take_operator(std::string_view text) {
    if (!is_operator(text)) return false;
    next();
    return true;
  }
  bool take_word(std::string_view text) {
    if (!is_word(text)) return false;
    next();
    return true;
  }
  void expect_operator(std::string_view text) {
    if (!take_operator(text)) refuse("'" + std::string(text) + "'");
  }
  void expect_end() {
    if (peek().kind != Kind::kEnd) refuse("%}");
    next();
  }
  std::string expect_name() {
    if (peek().kind != Kind::kName) refuse("a name");
    return next().text;
  }

  // Up to a tag that is one of `ends`, whose name has been read then.
  Block parse_block(std::initializer_list<std::string_view> ends) {
    const Deeper deeper(*this);
    Block block;
    for (;;) {
      const Token& token = peek();
      if (token.kind == Kind::kEof) {
        if (ends.size() > 0) refuse("{% " + std::string(*ends.begin()) + " %}");
        return block;
      }
      if (token.kind == Kind::kText) {
        auto statement = std::make_unique<Statement>();
        statement->kind = S::kText;
        statement->text = next().text;
        block.push_back(std::move(statement));
      } else if (token.kind == Kind::kOutputBegin) {
        auto statement = std::make_unique<Statement>();
        statement->kind = S::kOutput;
        statement->line = next().line;
        statement->expression = parse_tuple();
        if (peek().kind != Kind::kOutputEnd) refuse("}}");
        next();
        block.push_back(std::move(statement));
      } else if (token.kind == Kind::kBegin) {
        next();
        for (const std::string_view end : ends) {
          if (is_word(end)) return block;
        }
        block.push_back(parse_statement());
      } else {
        refuse("text or a tag");
      }
    }
  }

  std::unique_ptr<const Statement> parse_statement() {
    auto s = std::make_unique<Statement>();
    s->line = peek().line;
    const std::string word = expect_name();
    if (word == "if") {
      parse_if(*s);
    } else if (word == "for") {
      parse_for(*s);
    } else if (word == "set") {
      parse_set(*s);
    } else if (word == "macro") {
      parse_macro(*s);
    } else if (word == "break" || word == "continue") {
      s->kind = word == "break" ? S::kBreak : S::kContinue;
      expect_end();
    } else if (word == "generation") {
      s->kind = S::kBlock;
      expect_end();
      s->body = parse_block({"endgeneration"});
      next();
      expect_end();
    } else {
      --at_;
      refuse("one of if, for, set, macro, break, continue, generation (no other statement is supported)");
    }
    return s;
  }

  void parse_if(Statement& s) {
    s.kind = S::kIf;
    ExpressionPtr condition = parse_expression();
    expect_end();
    for (;;) {
      Block body = parse_block({"endif", "elif", "else"});
      s.branches.emplace_back(std::move(condition), std::move(body));
      const std::string word = next().text;
      if (word == "endif") break;
      condition = word == "elif" ? parse_expression() : nullptr;
      expect_end();
      if (word == "else") {
        s.branches.emplace_back(nullptr, parse_block({"endif"}));
        next();
        break;
      }
    }
    expect_end();
  }

  std::vector<std::string> parse_targets() {
    std::vector<std::string> names;
    const bool paren = take_operator("(");
    do {
      names.push_back(expect_name());
    } while (take_operator(","));
    if (paren) expect_operator(")");
    return names;
  }

  void parse_for(Statement& s) {
    s.kind = S::kFor;
    s.names = parse_targets();
    if (!take_word("in")) refuse("'in'");
    s.expression = parse_or();  // without an if of its own
    if (is_operator(",")) s.expression = finish_tuple(std::move(s.expression));
    if (take_word("if")) s.condition = parse_expression();
    expect_end();
    s.body = parse_block({"endfor", "else"});
    if (next().text == "else") {
      expect_end();
      s.otherwise = parse_block({"endfor"});
      next();
    }
    expect_end();
  }

  void parse_set(Statement& s) {
    s.names = parse_targets();
    if (s.names.size() == 1 && take_operator(".")) s.attribute = expect_name();
    if (take_operator("=")) {
      s.kind = S::kSet;
      s.expression = parse_tuple();
      return expect_end();
    }
    s.kind = S::kSetBlock;
    expect_end();
    s.body = parse_block({"endset"});
    next();
    expect_end();
  }

  void parse_macro(Statement& s) {
    s.kind = S::kMacro;
    s.text = expect_name();
    expect_operator("(");
    while (!is_operator(")")) {
      s.names.push_back(expect_name());
      s.defaults.push_back(take_operator("=") ? parse_expression() : nullptr);
      if (!take_operator(",")) break;
    }
    expect_operator(")");
    expect_end();
    s.body = parse_block({"endmacro"});
    next();
    if (peek().kind == Kind::kName) next();  // its name again
    expect_end();
  }

  std::unique_ptr<Expression> make(E kind, std::string name = {}) const {
    auto e = std::make_unique<Expression>();
    e->kind = kind;
    e->line = peek().line;
    e->name = std::move(name);
    return e;
  }
  // An expression whose parts are there.
  ExpressionPtr whole(std::unique_ptr<Expression> e) const {
    for (const ExpressionPtr& operand : e->operands) {
      if (operand != nullptr) e->height = std::max(e->height, operand->height + 1);
    }
    for (const auto& [name, operand] : e->named) e->height = std::max(e->height, operand->height + 1);
    if (e->height > kMaxHeight) refuse(fmt::format("expressions of at most {} parts in each other", kMaxHeight));
    return e;
  }
  ExpressionPtr binary(std::string name, ExpressionPtr a, ExpressionPtr b) const {
    auto e = make(E::kBinary, std::move(name));
    e->operands.push_back(std::move(a));
    e->operands.push_back(std::move(b));
    return whole(std::move(e));
  }

  ExpressionPtr finish_tuple(ExpressionPtr first) {
    auto e = make(E::kList);
    e->operands.push_back(std::move(first));
    while (take_operator(",")) {
      if (peek().kind == Kind::kEnd || peek().kind == Kind::kOutputEnd || is_operator(")")) break;
      e->operands.push_back(parse_expression());
    }
    return whole(std::move(e));
  }
  ExpressionPtr parse_tuple() {
    ExpressionPtr first = parse_expression();
    return is_operator(",") ? finish_tuple(std::move(first)) : std::move(first);
  }

  ExpressionPtr parse_expression() {
    const Deeper deeper(*this);
    ExpressionPtr value = parse_or();
    while (take_word("if")) {
      auto e = make(E::kIf);
      e->operands.push_back(std::move(value));
      e->operands.push_back(parse_or());
      e->operands.push_back(take_word("else") ? parse_expression() : nullptr);
      value = whole(std::move(e));
    }
    return value;
  }
  ExpressionPtr parse_or() {
    ExpressionPtr value = parse_and();
    while (take_word("or")) value = binary("or", std::move(value), parse_and());
    return value;
  }
  ExpressionPtr parse_and() {
    ExpressionPtr value = parse_not();
    while (take_word("and")) value = binary("and", std::move(value), parse_not());
    return value;
  }
  ExpressionPtr parse_not() {
    const Deeper deeper(*this);
    if (!take_word("not")) return parse_comparison();
    auto e = make(E::kUnary, "not");
    e->operands.push_back(parse_not());
    return whole(std::move(e));
  }
  // a < b < c: of chat templates none has it.
  ExpressionPtr parse_comparison() {
    ExpressionPtr value = parse_sum();
    for (;;) {
      std::string name;
      for (const char* one : {"==", "!=", "<=", ">=", "<", ">"}) {
        if (is_operator(one)) name = one;
      }
      if (!name.empty()) {
        next();
      } else if (take_word("in")) {
        name = "in";
      } else if (is_word("not") && is_word("in", 1)) {
        next();
        next();
        name = "not in";
      } else {
        return value;
      }
      value = binary(name, std::move(value), parse_sum());
    }
  }
  ExpressionPtr parse_sum() {
    ExpressionPtr value = parse_concat();
    while (is_operator("+") || is_operator("-")) {
      const std::string name = next().text;
      value = binary(name, std::move(value), parse_concat());
    }
    return value;
  }
  ExpressionPtr parse_concat() {
    ExpressionPtr value = parse_product();
    while (take_operator("~")) value = binary("~", std::move(value), parse_product());
    return value;
  }
  ExpressionPtr parse_product() {
    ExpressionPtr value = parse_power();
    while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
      const std::string name = next().text;
      value = binary(name, std::move(value), parse_power());
    }
    return value;
  }
  // A sign binds more tightly than a power, and than filters and tests.
  ExpressionPtr parse_power() {
    ExpressionPtr value = parse_unary();
    while (take_operator("**")) value = binary("**", std::move(value), parse_unary());
    return value;
  }
  ExpressionPtr parse_unary(bool with_filters = true) {
    const Deeper deeper(*this);
    ExpressionPtr value;
    if (is_operator("-") || is_operator("+")) {
      auto e = make(E::kUnary, next().text);
      e->operands.push_back(parse_unary(false));
      value = whole(std::move(e));
    } else {
      value = parse_primary();
    }
    value = parse_postfix(std::move(value));
    return with_filters ? parse_filters(std::move(value)) : std::move(value);
  }

  ExpressionPtr parse_primary() {
    const Token token = peek();
    if (token.kind == Kind::kString) {
      auto e = make(E::kLiteral);
      std::string text;
      while (peek().kind == Kind::kString) text += next().text;
      e->value = Value(std::move(text));
      return e;
    }
    if (token.kind == Kind::kInteger || token.kind == Kind::kFloat) {
      auto e = make(E::kLiteral);
      next();
      if (token.kind == Kind::kFloat) {
        e->value = Value(std::strtod(token.text.c_str(), nullptr));
      } else {
        int64_t value = 0;
        const auto [end, error] = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
        if (error != std::errc()) refuse("an integer of 64 bits");
        e->value = Value(value);
      }
      return e;
    }
    if (token.kind == Kind::kName) {
      next();
      if (token.text == "true" || token.text == "True") return literal(Value(true));
      if (token.text == "false" || token.text == "False") return literal(Value(false));
      if (token.text == "none" || token.text == "None") return literal(Value(None{}));
      return make(E::kName, token.text);
    }
    if (take_operator("(")) {
      if (take_operator(")")) return make(E::kList);
      ExpressionPtr value = parse_tuple();
      expect_operator(")");
      return value;
    }
    if (take_operator("[")) {
      auto e = make(E::kList);
      while (!is_operator("]")) {
        e->operands.push_back(parse_expression());
        if (!take_operator(",")) break;
      }
      expect_operator("]");
      return whole(std::move(e));
    }
    if (take_operator("{")) {
      auto e = make(E::kDict);
      while (!is_operator("}")) {
        e->operands.push_back(parse_expression());
        expect_operator(":");
        e->operands.push_back(parse_expression());
        if (!take_operator(",")) break;
      }
      expect_operator("}");
      return whole(std::move(e));
    }
    refuse("an expression");
  }
  ExpressionPtr literal(Value value) const {
    auto e = make(E::kLiteral);
    e->value = std::move(value);
    return e;
  }

  ExpressionPtr parse_postfix(ExpressionPtr value) {
    for (;;) {
      if (take_operator(".")) {
        auto e = make(peek().kind == Kind::kInteger ? E::kItem : E::kAttribute);
        e->operands.push_back(std::move(value));
        if (peek().kind == Kind::kInteger) {
          e->operands.push_back(parse_primary());
        } else {
          e->name = expect_name();
        }
        value = whole(std::move(e));
      } else if (take_operator("[")) {
        value = parse_subscript(std::move(value));
      } else if (is_operator("(")) {
        auto e = make(E::kCall);
        e->operands.push_back(std::move(value));
        parse_arguments(*e);
        value = whole(std::move(e));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_subscript(ExpressionPtr value) {
    std::vector<ExpressionPtr> parts;
    bool is_slice = false;
    parts.push_back(is_operator(":") ? nullptr : parse_tuple());
    while (take_operator(":")) {
      is_slice = true;
      parts.push_back(is_operator(":") || is_operator("]") ? nullptr : parse_expression());
    }
    expect_operator("]");
    auto e = make(is_slice ? E::kSlice : E::kItem);
    e->operands.push_back(std::move(value));
    for (ExpressionPtr& part : parts) e->operands.push_back(std::move(part));
    if (parts.size() > 3) refuse("at most two colons in a slice");
    if (is_slice) e->operands.resize(4);
    return whole(std::move(e));
  }

  void parse_arguments(Expression& e) {
    expect_operator("(");
    while (!is_operator(")")) {
      if (peek().kind == Kind::kName && is_operator("=", 1)) {
        std::string name = next().text;
        next();
        e.named.emplace_back(std::move(name), parse_expression());
      } else {
        e.operands.push_back(parse_expression());
      }
      if (!take_operator(",")) break;
    }
    expect_operator(")");
  }

  ExpressionPtr parse_filters(ExpressionPtr value) {
    for (;;) {
      if (take_operator("|")) {
        auto e = make(E::kFilter, expect_name());
        e->operands.push_back(std::move(value));
        if (is_operator("(")) parse_arguments(*e);
        value = whole(std::move(e));
      } else if (take_word("is")) {
        auto e = make(E::kTest);
        e->negated = take_word("not");
        e->name = expect_name();
        e->operands.push_back(std::move(value));
        if (is_operator("(")) {
          parse_arguments(*e);
        } else if (is_argument_of_test()) {
          e->operands.push_back(parse_postfix(parse_primary()));
        }
        value = whole(std::move(e));
      } else {
        return value;
      }
    }
  }
  // `is equalto 3`, but not `is defined and`.
  bool is_argument_of_test() const {
    const Token& token = peek();
    if (token.kind == Kind::kString || token.kind == Kind::kInteger || token.kind == Kind::kFloat) return true;
    if (token.kind == Kind::kOperator) return token.text == "[" || token.text == "{";
    if (token.kind != Kind::kName) return false;
    for (const char* word : {"else", "or", "and", "is", "if", "in", "not"}) {
      if (token.text == word) return false;
    }
    return true;
  }

  std::vector<Token> tokens_;
  const std::string& name_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

Block parse(std::string_view source, const std::string& name) {
  std::string lines;  // which end with a line feed
  for (size_t at = 0; at < source.size(); ++at) {
    const bool is_return = source[at] == '\r';
    lines += is_return ? '\n' : source[at];
    if (is_return && at + 1 < source.size() && source[at + 1] == '\n') ++at;
  }
  return Parser(Lexer(lines, name).run(), name).run();
}

}  // namespace tiercel::jinja
