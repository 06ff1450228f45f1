// Precedences and their names are jinja2's own (its documentation, "Template Designer Documentation").
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <iterator>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/lexer.h"

namespace tiercel::jinja {
namespace {

constexpr int kMaxDepth = 100, kMaxHeight = 400;  // of what is nested: the stack is finite
constexpr size_t kMaxTargets = 200;               // of one statement

class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& name) : tokens_(std::move(tokens)), name_(name) {}

  Program run() {
    program_.block = parse_block({});
    find_unset(program_);
    return std::move(program_);
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
  Target expect_target() {
    const std::string name = expect_name();
    return {name, program_.names.id(name)};
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
        statement->text = Text::native(next().text);
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

  std::unique_ptr<Statement> parse_statement() {
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
      if (loops_ == 0) refuse("a loop around " + word);
      s->kind = word == "break" ? S::kBreak : S::kContinue;
      expect_end();
    } else if (word == "generation") {
      s->kind = S::kWith;
      parse_body(*s, "endgeneration");
    } else if (word == "with") {
      parse_with(*s);
    } else if (word == "filter") {
      s->kind = S::kFilterBlock;
      s->expression = parse_filters_of_body();
      parse_body(*s, "endfilter");
    } else {
      --at_;
      refuse("one of if, for, set, macro, break, continue, with, filter, generation (no other statement is supported)");
    }
    return s;
  }

  // From the end of the tag on that opens it.
  void parse_body(Statement& s, std::string_view end) {
    const int loops = std::exchange(loops_, s.kind == S::kWith ? loops_ : 0);
    expect_end();
    s.body = parse_block({end});
    next();
    if (s.kind == S::kMacro && peek().kind == Kind::kName) next();  // its name again
    expect_end();
    loops_ = loops;
  }

  void parse_with(Statement& s) {
    s.kind = S::kWith;
    while (peek().kind == Kind::kName) {
      s.targets.push_back(expect_target());
      expect_operator("=");
      s.values.push_back(parse_expression());
      if (!take_operator(",")) break;
    }
    check_targets(s.targets);
    parse_body(s, "endwith");
  }

  void check_targets(const std::vector<Target>& targets) const {
    if (targets.size() > kMaxTargets) refuse(fmt::format("at most {} names", kMaxTargets));
  }

  ExpressionPtr parse_filters_of_body() {
    auto body = make(E::kName, kBody);
    body->id = program_.names.id(kBody);
    auto first = make(E::kFilter, expect_name());
    first->operands.push_back(std::move(body));
    if (is_operator("(")) parse_arguments(*first);
    return parse_filters(whole(std::move(first)));
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

  std::vector<Target> parse_targets() {
    std::vector<Target> targets;
    const bool paren = take_operator("(");
    do {
      targets.push_back(expect_target());
    } while (take_operator(","));
    if (paren) expect_operator(")");
    check_targets(targets);
    return targets;
  }

  void parse_for(Statement& s) {
    s.kind = S::kFor;
    s.targets = parse_targets();
    if (!take_word("in")) refuse("'in'");
    s.expression = parse_or();  // without an if of its own
    if (is_operator(",")) s.expression = finish_tuple(std::move(s.expression), /*with_if=*/false);
    if (take_word("if")) s.condition = parse_expression();
    if (is_word("recursive")) refuse("a loop that is not recursive (those are not supported)");
    expect_end();
    ++loops_;
    s.body = parse_block({"endfor", "else"});
    --loops_;
    if (next().text == "else") {
      expect_end();
      s.otherwise = parse_block({"endfor"});
      next();
    }
    expect_end();
  }

  void parse_set(Statement& s) {
    s.targets = parse_targets();
    if (s.targets.size() == 1 && take_operator(".")) s.attribute = expect_name();
    if (take_operator("=")) {
      s.kind = S::kSet;
      s.expression = parse_tuple();
      return expect_end();
    }
    s.kind = S::kSetBlock;
    if (s.targets.size() > 1) refuse("'='");
    if (take_operator("|")) s.expression = parse_filters_of_body();
    parse_body(s, "endset");
  }

  void parse_macro(Statement& s) {
    s.kind = S::kMacro;
    s.macro = expect_target();
    expect_operator("(");
    while (!is_operator(")")) {
      s.targets.push_back(expect_target());
      s.values.push_back(take_operator("=") ? parse_expression() : nullptr);
      if (s.values.back() == nullptr && s.values.size() > 1 && s.values[s.values.size() - 2] != nullptr) {
        refuse("a default behind one that has a default");
      }
      if (!take_operator(",")) break;
    }
    expect_operator(")");
    check_targets(s.targets);
    macros_.push_back(&s);
    parse_body(s, "endmacro");
    macros_.pop_back();
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
  ExpressionPtr binary(std::string name, ExpressionPtr a, ExpressionPtr b, E kind = E::kBinary) const {
    auto e = make(kind, std::move(name));
    e->operands.push_back(std::move(a));
    e->operands.push_back(std::move(b));
    return whole(std::move(e));
  }

  ExpressionPtr finish_tuple(ExpressionPtr first, bool with_if = true) {
    auto e = make(E::kTuple);
    e->operands.push_back(std::move(first));
    while (take_operator(",")) {
      if (peek().kind == Kind::kEnd || peek().kind == Kind::kOutputEnd || is_operator(")") || is_operator("]") ||
          is_word("if"))
        break;
      e->operands.push_back(with_if ? parse_expression() : parse_or());
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
    while (take_word("or")) value = binary("or", std::move(value), parse_and(), E::kOr);
    return value;
  }
  ExpressionPtr parse_and() {
    ExpressionPtr value = parse_not();
    while (take_word("and")) value = binary("and", std::move(value), parse_not(), E::kAnd);
    return value;
  }
  ExpressionPtr parse_not() {
    const Deeper deeper(*this);
    if (!take_word("not")) return parse_comparison();
    auto e = make(E::kNot);
    e->operands.push_back(parse_not());
    return whole(std::move(e));
  }
  // a < b < c is a < b and b < c.
  ExpressionPtr parse_comparison() {
    ExpressionPtr first = parse_sum();
    auto e = make(E::kCompare);
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
        break;
      }
      e->names.push_back(name);
      e->operands.push_back(parse_sum());
    }
    if (e->names.empty()) return first;
    e->operands.insert(e->operands.begin(), std::move(first));
    return whole(std::move(e));
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
      auto e = make(E::kSign, next().text);
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
      e->value = Value(Text::native(std::move(text)));
      return e;
    }
    if (token.kind == Kind::kInteger || token.kind == Kind::kFloat) {
      auto e = make(E::kLiteral);
      next();
      if (token.kind == Kind::kFloat) {
        double value = 0;
        const auto [end, error] = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
        if (error != std::errc()) refuse("a number that a double can hold");
        e->value = Value(value);
      } else {
        int64_t value = 0;
        const auto [end, error] = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
        if (error != std::errc()) refuse("an integer of 64 bits");
        if (token.text.size() > 1 && token.text[0] == '0' && value != 0) refuse("a number that does not begin with 0");
        e->value = Value(value);
      }
      return e;
    }
    if (token.kind == Kind::kName) {
      next();
      if (token.text == "true" || token.text == "True") return literal(Value(true));
      if (token.text == "false" || token.text == "False") return literal(Value(false));
      if (token.text == "none" || token.text == "None") return literal(Value());
      for (const char* given : {"varargs", "kwargs", "caller"}) {
        const bool is_parameter = std::ranges::any_of(macros_, [&](const Statement* macro) {
          return std::ranges::find(macro->targets, given, &Target::name) != macro->targets.end();
        });
        if (token.text == given && !macros_.empty() && !is_parameter) {
          --at_;
          refuse("parameters of the macro (others than those are not supported)");
        }
      }
      auto e = make(E::kName, token.text);
      e->id = program_.names.id(token.text);
      return e;
    }
    if (take_operator("(")) {
      if (take_operator(")")) return make(E::kTuple);
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
        value = parse_call(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_call(ExpressionPtr function) {
    auto e = make(E::kCall);
    e->operands.push_back(std::move(function));
    parse_arguments(*e);
    return whole(std::move(e));
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
        for (const auto& [other, value] : e.named) {
          if (other == name) refuse("each argument once, not " + name + " again");
        }
        e.named.emplace_back(std::move(name), parse_expression());
      } else {
        if (!e.named.empty()) refuse("arguments without names before those with names");
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
      } else if (is_operator("(")) {
        value = parse_call(std::move(value));
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
    if (token.kind == Kind::kOperator) return token.text == "[" || token.text == "{";  // of ( see above
    if (token.kind != Kind::kName) return false;
    for (const char* word : {"else", "or", "and", "is", "if", "in", "not"}) {
      if (token.text == word) return false;
    }
    return true;
  }

  std::vector<Token> tokens_;
  const std::string& name_;
  Program program_;
  std::vector<const Statement*> macros_;  // around what is read
  size_t at_ = 0;
  int depth_ = 0, loops_ = 0;
};

}  // namespace

Program parse(std::string_view source, const std::string& name) {
  return Parser(read_tokens(source, name), name).run();
}

}  // namespace tiercel::jinja
