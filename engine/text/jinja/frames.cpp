// Which variables are undefined from the beginning of a block on: jinja2 decides that before a template runs (its
// idtracking.py). Bodies of loops, macros, {% with %}, {% set %} and {% filter %} are frames; those of {% if %} are
// not.
#include <set>
#include <utility>

#include "engine/text/jinja/ast.h"

namespace tiercel::jinja {
namespace {

using S = Statement::Kind;

class Frame {
 public:
  explicit Frame(const Frame* outer) : outer_(outer) {}

  void hold(const Target& target) { refs_.insert(target.id); }  // a parameter, or what a loop sets
  void load(const Expression& e) {
    if (e.kind == Expression::Kind::kName) refs_.insert(e.id);
    for (const ExpressionPtr& operand : e.operands) {
      if (operand != nullptr) load(*operand);
    }
    for (const auto& [ignored, operand] : e.named) load(*operand);
  }
  void store(const Target& target) {
    const bool is_first = refs_.insert(target.id).second;
    if (is_first && !outer_has(target.id)) unset_.push_back(target);
  }
  // One that a branch sets only is looked up where it is not set.
  void visit(const Block& block, bool in_branch = false) {
    for (const auto& statement : block) visit(*statement, in_branch);
  }
  // Bodies of frames within this one, when all of this one is known.
  void descend(Block& block) const {
    for (auto& statement : block) descend(*statement);
  }
  Unset take_unset() { return std::move(unset_); }
  bool has(int id) const { return refs_.contains(id); }

 private:
  bool outer_has(int id) const { return outer_ != nullptr && (outer_->has(id) || outer_->outer_has(id)); }

  void visit(const Statement& s, bool in_branch) {
    const auto stores = [&](const Target& target) { in_branch ? hold(target) : store(target); };
    switch (s.kind) {
      case S::kOutput:
      case S::kFilterBlock: return load(*s.expression);
      case S::kIf:
        for (const auto& [condition, body] : s.branches) {
          if (condition != nullptr) load(*condition);
          visit(body, /*in_branch=*/true);
        }
        return;
      case S::kFor: return load(*s.expression);
      case S::kSet: load(*s.expression); [[fallthrough]];
      case S::kSetBlock:
        for (const Target& target : s.targets) s.attribute.empty() ? stores(target) : hold(target);
        return;
      case S::kMacro: return stores(s.macro);
      case S::kWith:
        for (const ExpressionPtr& value : s.values) load(*value);
        return;
      default: return;
    }
  }

  void descend(Statement& s) const {
    switch (s.kind) {
      case S::kIf:
        for (auto& [condition, body] : s.branches) descend(body);
        return;
      case S::kFor: inner(s, s.body, s.unset, s.targets); return inner(s, s.otherwise, s.unset_otherwise, {});
      case S::kSetBlock:
      case S::kFilterBlock: return inner(s, s.body, s.unset, {});
      case S::kMacro:
      case S::kWith: return inner(s, s.body, s.unset, s.targets);
      default: return;
    }
  }

  void inner(const Statement& s, Block& block, Unset& unset, const std::vector<Target>& held) const {
    Frame frame(this);
    for (const Target& target : held) frame.hold(target);
    if (s.kind == S::kMacro) {
      for (const ExpressionPtr& value : s.values) {
        if (value != nullptr) frame.load(*value);
      }
    }
    frame.visit(block);
    frame.descend(block);
    unset = frame.take_unset();
  }

  const Frame* outer_;
  std::set<int> refs_;  // names that are read or set here
  Unset unset_;
};

}  // namespace

void find_unset(Program& program) {
  Frame frame(nullptr);
  frame.visit(program.block);
  frame.descend(program.block);
  program.unset = frame.take_unset();
}

}  // namespace tiercel::jinja
