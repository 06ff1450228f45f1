#include "engine/text/jinja/interpreter.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "engine/text/jinja/operations.h"
#include "engine/text/jinja/strings.h"

namespace tiercel::jinja {
namespace {

constexpr int kMostDepth = 700;  // of statements, expressions, filters and macros in each other

using E = Expression::Kind;
using S = Statement::Kind;

}  // namespace

Parameters::Parameters(std::string_view function, const Arguments& arguments,
                       std::initializer_list<std::string_view> names, size_t n_required)
    : function_(function), names_(names), values_(names.size()) {
  if (arguments.positional.size() > names_.size()) {
    throw Problem(fmt::format("{}: expected at most {} arguments, found {}", function, names_.size(),
                              arguments.positional.size()));
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::ranges::find(names_, name);
    if (found == names_.end()) throw Problem(fmt::format("{}: there is no argument {}", function, name));
    const Value*& place = values_[static_cast<size_t>(found - names_.begin())];
    if (place != nullptr) throw Problem(fmt::format("{}: the argument {} is given twice", function, name));
    place = &value;
  }
  for (size_t i = 0; i < n_required; ++i) {
    if (values_[i] == nullptr) throw Problem(fmt::format("{}: expected an argument {}", function, names_[i]));
  }
}

const Text& Parameters::text(size_t i) const {
  need_defined(at(i));
  if (at(i).text() == nullptr) {
    throw Problem(
        fmt::format("{}: expected a string as {}, found a value of type {}", function_, names_[i], at(i).type()));
  }
  return *at(i).text();
}

const Text* Parameters::optional_text(size_t i) const {
  return values_[i] == nullptr || values_[i]->is_none() ? nullptr : &text(i);
}

int64_t Parameters::integer(size_t i, int64_t otherwise) const {
  if (values_[i] == nullptr) return otherwise;
  need_defined(at(i));
  const auto whole = at(i).whole();
  if (!whole) {
    throw Problem(
        fmt::format("{}: expected an integer as {}, found a value of type {}", function_, names_[i], at(i).type()));
  }
  return *whole;
}

bool Parameters::flag(size_t i, bool otherwise) const {
  return values_[i] != nullptr ? values_[i]->truthy() : otherwise;
}

Interpreter::Deeper::Deeper(Interpreter& of) : of_(of) {
  if (of.depth_ >= kMostDepth) throw Problem("blocks, expressions and macros are in each other too deeply");
  ++of.depth_;
}

Interpreter::~Interpreter() {
  for (const auto& space : spaces_) space->values = Dict();
  for (const ScopePtr& scope : kept_scopes_) {
    scope->variables.clear();
    scope->outer.reset();
  }
}

Interpreter::ScopePtr Interpreter::inner(const ScopePtr& scope, const Unset& unset) {
  const auto result = std::make_shared<Scope>(Scope{scope, {}});
  for (const Target& target : unset) set(*result, target.id, Value(Undefined{Undefined::Kind::kName, &target.name}));
  return result;
}

const Value* Interpreter::find(const Scope& scope, int id) {
  for (const Scope* at = &scope; at != nullptr; at = at->outer.get()) {
    budget_.step(at->variables.size() / 16);
    for (const auto& [variable, value] : at->variables) {
      if (variable == id) return &value;
    }
  }
  return nullptr;
}

void Interpreter::set(Scope& scope, int id, Value value) {
  budget_.step(scope.variables.size() / 16);
  for (auto& [variable, old] : scope.variables) {
    if (variable != id) continue;
    old = std::move(value);
    return;
  }
  scope.variables.emplace_back(id, std::move(value));
}

Text Interpreter::run(const Dict& variables) {
  const auto globals = std::make_shared<Scope>();
  define_globals(*globals);
  for (const auto& [name, value] : variables.items()) {
    const int id = program_.names.find(std::string(name.text()->view()));
    if (id >= 0) set(*globals, id, value);
  }
  const ScopePtr scope = inner(globals, program_.unset);
  TextWriter out(budget_);
  run(program_.block, scope, out);
  return out.take();
}

// ---- statements ----

Interpreter::Flow Interpreter::run(const Block& block, const ScopePtr& scope, TextWriter& out) {
  for (const auto& statement : block) {
    const Flow flow = run(*statement, scope, out);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::run(const Statement& s, const ScopePtr& scope, TextWriter& out) {
  const Deeper deeper(*this);
  budget_.step();
  line_ = s.line;
  switch (s.kind) {
    case S::kText: out.add(s.text); break;
    case S::kOutput: out.add(str(value_of(*s.expression, scope), budget_)); break;
    case S::kIf:
      for (const auto& [condition, body] : s.branches) {
        if (condition == nullptr || value_of(*condition, scope).truthy()) return run(body, scope, out);
      }
      break;
    case S::kFor: run_for(s, scope, out); break;
    case S::kSet: assign(s, value_of(*s.expression, scope), *scope); break;
    case S::kSetBlock: assign(s, body_of(s, scope), *scope); break;
    case S::kFilterBlock: out.add(str(body_of(s, scope), budget_)); break;
    case S::kMacro: define_macro(s, scope); break;
    case S::kWith: {
      List values;
      for (const ExpressionPtr& value : s.values) values.push_back(value_of(*value, scope));
      const ScopePtr within = inner(scope, s.unset);
      for (size_t i = 0; i < values.size(); ++i) set(*within, s.targets[i].id, std::move(values[i]));
      return run(s.body, within, out);
    }
    case S::kBreak: return Flow::kBreak;
    case S::kContinue: return Flow::kContinue;
  }
  return Flow::kNext;
}

// What is within {% set %} or {% filter %}, through the filters of that.
Value Interpreter::body_of(const Statement& s, const ScopePtr& scope) {
  TextWriter text(budget_);
  run(s.body, inner(scope, s.unset), text);
  if (s.expression == nullptr) return text.take();
  const ScopePtr of_filters = inner(scope, {});
  set(*of_filters, program_.names.find(kBody), text.take());
  return value_of(*s.expression, of_filters);
}

void Interpreter::assign(const Statement& s, Value value, Scope& scope) {
  line_ = s.line;
  if (s.attribute.empty()) return bind(s.targets, std::move(value), scope);
  const Value* space = find(scope, s.targets[0].id);
  if (space == nullptr || space->name_space() == nullptr) {
    throw Problem(fmt::format("expected a namespace, found something else as {}", s.targets[0].name));
  }
  space->name_space()->values.set(Text::native(s.attribute), std::move(value), budget_);
}

void Interpreter::bind(const std::vector<Target>& targets, Value value, Scope& scope) {
  if (targets.size() == 1) return set(scope, targets[0].id, std::move(value));
  const Iteration values(value, budget_);
  if (values.size() != targets.size()) {
    throw Problem(fmt::format("expected {} values, found {}", targets.size(), values.size()));
  }
  for (size_t i = 0; i < targets.size(); ++i) set(scope, targets[i].id, values[i]);
}

Value Interpreter::filtered(const Statement& s, const Value& items, const ScopePtr& scope) {
  ListMaker kept(budget_);
  for (const Value& item : Iteration(items, budget_)) {
    const ScopePtr of_item = inner(scope, {});
    bind(s.targets, item, *of_item);
    if (value_of(*s.condition, of_item).truthy()) kept.push(item);
  }
  return kept.take();
}

void Interpreter::run_for(const Statement& s, const ScopePtr& scope, TextWriter& out) {
  Value items = value_of(*s.expression, scope);
  line_ = s.line;
  if (s.condition != nullptr) items = filtered(s, items, scope);
  // Of a generator, what is taken here is gone for others, and what others take is gone here.
  const Sequence* const generator = items.generator();
  const size_t taken = generator != nullptr ? generator->next : 0;
  const auto loop = std::make_shared<Loop>(items, budget_);
  loop->held = budget_.held();
  loop->held.grow(sizeof(Loop));
  const int id = program_.names.find("loop");
  bool has_run = false;  // to its end, as jinja2 counts
  if (generator != nullptr) generator->next = taken;
  for (size_t i = 0; i < loop->items.size(); ++i) {
    if (generator != nullptr) {
      i = generator->next - taken;
      if (i >= loop->items.size()) break;
      ++generator->next;
    }
    budget_.step();
    loop->index = i;
    const ScopePtr of_item = inner(scope, s.unset);
    if (id >= 0) set(*of_item, id, Value(std::shared_ptr<const Loop>(loop)));
    bind(s.targets, loop->items[i], *of_item);
    const Flow flow = run(s.body, of_item, out);
    has_run = has_run || flow == Flow::kNext;
    if (flow == Flow::kBreak) break;
  }
  if (!has_run) run(s.otherwise, inner(scope, s.unset_otherwise), out);
}

void Interpreter::define_macro(const Statement& s, const ScopePtr& scope) {
  kept_.grow(sizeof(Function) + sizeof(Scope) + scope->variables.size() * sizeof(Value));
  kept_scopes_.push_back(scope);
  set(*scope, s.macro.id,
      Value(std::make_shared<const Function>(Function{.kind = Function::Kind::kMacro, .macro = &s, .scope = scope})));
}

Value Interpreter::call_macro(const Function& macro, const Arguments& arguments) {
  const Deeper deeper(*this);
  const Statement& s = *macro.macro;
  if (arguments.positional.size() > s.targets.size()) {
    throw Problem(fmt::format("{}: expected at most {} arguments, found {}", s.macro.name, s.targets.size(),
                              arguments.positional.size()));
  }
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::ranges::find(s.targets, name, &Target::name);
    if (found == s.targets.end() || static_cast<size_t>(found - s.targets.begin()) < arguments.positional.size()) {
      throw Problem(fmt::format("{}: there is no argument {} to be given", s.macro.name, name));
    }
  }
  budget_.step(s.targets.size() * (arguments.named.size() + 1) / 16);
  const ScopePtr scope = inner(macro.scope, s.unset);
  std::vector<const Expression*> defaults(s.targets.size());
  for (size_t i = 0; i < s.targets.size(); ++i) {
    const Target& target = s.targets[i];
    const auto named = std::ranges::find(arguments.named, target.name, [](const auto& pair) { return pair.first; });
    const bool is_named = named != arguments.named.end();
    const Undefined missing{Undefined::Kind::kArgument, &target.name};
    set(*scope, target.id,
        i < arguments.positional.size() ? arguments.positional[i]
        : is_named                      ? named->second
                                        : Value(missing));
    if (i >= arguments.positional.size() && !is_named) defaults[i] = s.values[i].get();
  }
  // Which see what was given, all of it.
  for (size_t i = 0; i < s.targets.size(); ++i) {
    if (defaults[i] != nullptr) set(*scope, s.targets[i].id, value_of(*defaults[i], scope));
  }
  TextWriter text(budget_);
  const int line = line_;
  run(s.body, scope, text);
  line_ = line;
  return text.take();
}

// ---- expressions ----

// An operand's value, behind which the line is the expression's again.
Value Interpreter::operand(const Expression& e, size_t i, const ScopePtr& scope) {
  Value value = value_of(*e.operands[i], scope);
  line_ = e.line;
  return value;
}

Value Interpreter::value_of(const Expression& e, const ScopePtr& scope) {
  const Deeper deeper(*this);
  budget_.step();
  line_ = e.line;
  switch (e.kind) {
    case E::kLiteral: return e.value;
    case E::kName: {
      const Value* value = find(*scope, e.id);
      if (value != nullptr) return *value;
      for (const char* known : {"cycler", "joiner", "lipsum", "self"}) {
        if (e.name == known) throw Problem(fmt::format("{} is not supported", e.name));
      }
      return Undefined{Undefined::Kind::kName, &e.name};
    }
    case E::kList:
    case E::kTuple: {
      ListMaker list(budget_);
      for (size_t i = 0; i < e.operands.size(); ++i) list.push(operand(e, i, scope));
      return list.take(e.kind == E::kList ? Sequence::Kind::kList : Sequence::Kind::kTuple);
    }
    case E::kDict: {
      Dict dict;
      for (size_t i = 0; i < e.operands.size(); i += 2) {
        const Value key = operand(e, i, scope);
        dict.set(key, operand(e, i + 1, scope), budget_);
      }
      return dict_of(std::move(dict));
    }
    case E::kAttribute: return attribute(operand(e, 0, scope), e.name, &e.name);
    case E::kItem: {
      const Value value = operand(e, 0, scope);
      return item(value, operand(e, 1, scope));
    }
    case E::kSlice: return slice(e, scope);
    case E::kCall: return call(e, scope);
    case E::kFilter: return filter(e.name, arguments_of(e, 0, scope));
    case E::kTest: return test(e.name, arguments_of(e, 0, scope)) != e.negated;
    case E::kNot: return !operand(e, 0, scope).truthy();
    case E::kSign: return signed_number(e.name, operand(e, 0, scope), budget_);
    case E::kBinary: {
      const Value a = operand(e, 0, scope), b = operand(e, 1, scope);
      if (e.name != "~") return arithmetic(e.name, a, b, budget_);
      // Which knows of no markup, as nothing escapes by itself here.
      return joined(str(a, budget_).as_markup(false), str(b, budget_).as_markup(false), budget_);
    }
    case E::kAnd:
    case E::kOr: {
      Value a = operand(e, 0, scope);
      return a.truthy() == (e.kind == E::kAnd) ? operand(e, 1, scope) : a;
    }
    case E::kCompare: return compared(e, scope);
    case E::kIf:
      if (operand(e, 1, scope).truthy()) return operand(e, 0, scope);
      return e.operands[2] != nullptr ? operand(e, 2, scope) : Value(Undefined{Undefined::Kind::kElse});
  }
  return Value();
}

Value Interpreter::compared(const Expression& e, const ScopePtr& scope) {
  Value left = operand(e, 0, scope);
  for (size_t i = 0; i < e.names.size(); ++i) {
    Value right = operand(e, i + 1, scope);
    const std::string& op = e.names[i];
    const bool holds = op == "==" || op == "!="       ? equal(left, right, budget_) == (op == "==")
                       : op == "in" || op == "not in" ? contains(right, left, budget_) == (op == "in")
                                                      : compare(op, left, right, budget_);
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Arguments Interpreter::arguments_of(const Expression& e, size_t first, const ScopePtr& scope) {
  Arguments arguments;
  for (size_t i = first; i < e.operands.size(); ++i) arguments.positional.push_back(operand(e, i, scope));
  for (const auto& [name, value] : e.named) arguments.named.emplace_back(name, value_of(*value, scope));
  line_ = e.line;
  return arguments;
}

Value Interpreter::slice(const Expression& e, const ScopePtr& scope) {
  const Value value = operand(e, 0, scope);
  need_defined(value);
  const Text* const text = value.text();
  const Sequence* const sequence = value.sequence();
  if (text == nullptr && (sequence == nullptr || !sequence->is_indexed())) {
    throw Problem(fmt::format("expected a list or a string to slice, found a value of type {}", value.type()));
  }
  const auto bound = [&](size_t i) -> std::optional<int64_t> {
    const Value v = e.operands[i] != nullptr ? operand(e, i, scope) : Value();
    if (!v.is_none() && !v.whole()) {
      throw Problem(fmt::format("expected integers in a slice, found a value of type {}", v.type()));
    }
    return v.whole();
  };
  const std::optional<int64_t> from = bound(1), to = bound(2);
  const int64_t stride = bound(3).value_or(1);
  if (stride == 0) throw Problem("a slice's step is 0");
  if (text != nullptr) budget_.read_characters(text->size());
  const auto n = static_cast<int64_t>(text != nullptr ? n_characters(text->view()) : sequence->items.size());
  const auto clamp = [&](int64_t i, int64_t low, int64_t high) { return std::clamp(i < 0 ? i + n : i, low, high); };
  const int64_t begin = stride > 0 ? clamp(from.value_or(0), 0, n) : from ? clamp(*from, -1, n - 1) : n - 1;
  const int64_t end = stride > 0 ? (to ? clamp(*to, 0, n) : n) : to ? clamp(*to, -1, n - 1) : -1;
  if (text != nullptr && stride == 1) {
    const size_t first = offset_of(text->view(), static_cast<size_t>(begin));
    const size_t length = begin < end ? offset_of(text->view().substr(first), static_cast<size_t>(end - begin)) : 0;
    return part_of(*text, first, first + length, budget_);
  }
  if (text != nullptr && stride == -1 && !from && !to) return reversed(*text, budget_);
  const Value characters = text != nullptr ? listed(value, budget_).take() : Value();
  const List& items = text != nullptr ? characters.sequence()->items : sequence->items;
  ListMaker part(budget_);
  for (int64_t i = begin; stride > 0 ? i < end : i > end;) {
    budget_.step();
    part.push(items[static_cast<size_t>(i)]);
    if (__builtin_add_overflow(i, stride, &i)) break;
  }
  if (text == nullptr) return part.take(sequence->kind);
  TextWriter joined(budget_);
  for (const Value& character : part.items()) joined.add(*character.text());
  return joined.take().as_markup(text->is_markup());
}

Value Interpreter::call(const Expression& e, const ScopePtr& scope) {
  const Expression& callee = *e.operands[0];
  if (callee.kind != E::kAttribute) {
    const Value function = operand(e, 0, scope);
    return call(function, arguments_of(e, 1, scope));
  }
  const Value object = value_of(*callee.operands[0], scope);
  line_ = callee.line;
  const Value member = attribute(object, callee.name, &callee.name);
  return call(member, arguments_of(e, 1, scope));
}

}  // namespace tiercel::jinja
