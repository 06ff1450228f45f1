// A template as a tree.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/text/jinja/value.h"

namespace tiercel::jinja {

// Names of variables as numbers, by which scopes look them up.
class Names {
 public:
  int id(const std::string& name) { return ids_.try_emplace(name, static_cast<int>(ids_.size())).first->second; }
  // -1: the template has no such name.
  int find(const std::string& name) const {
    const auto found = ids_.find(name);
    return found != ids_.end() ? found->second : -1;
  }

 private:
  std::unordered_map<std::string, int> ids_;
};

struct Expression;
using ExpressionPtr = std::unique_ptr<const Expression>;

struct Expression {
  enum class Kind {
    kLiteral,    // value
    kName,       // name, id
    kList,       // operands
    kTuple,      // operands
    kDict,       // operands: key, value, key, value ..
    kAttribute,  // operands[0].name
    kItem,       // operands[0][operands[1]]
    kSlice,      // operands[0][a:b:c], null where left out
    kCall,       // operands[0](operands[1..], named)
    kFilter,     // operands[0] | name(operands[1..], named)
    kTest,       // operands[0] is name(operands[1..]); negated
    kNot,        // of operands[0]
    kSign,       // name: - or +
    kBinary,     // name: + - * / // % ** ~
    kAnd,
    kOr,
    kCompare,  // operands[0] names[0] operands[1] names[1] ..: == != < <= > >= in, not in
    kIf        // operands[0] if operands[1] else operands[2], which may be null
  };
  Kind kind;
  int line = 0;
  int height = 1;  // of the tree
  std::string name;
  int id = -1;
  Value value;
  bool negated = false;
  std::vector<ExpressionPtr> operands;
  std::vector<std::string> names;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

// A variable that a statement gives a value.
struct Target {
  std::string name;
  int id = -1;
};

// Variables that a block sets before it reads them, and that no block around it has: to jinja2 they are undefined from
// its beginning on, whatever the caller gave under these names; blocks within it see that.
using Unset = std::vector<Target>;

struct Statement {
  enum class Kind { kText, kOutput, kIf, kFor, kSet, kSetBlock, kMacro, kBreak, kContinue, kWith, kFilterBlock };
  Kind kind;
  int line = 0;
  Text text;                    // kText
  std::vector<Target> targets;  // of kFor, kSet and kWith; parameters of kMacro
  Target macro;                 // kMacro: its name
  std::string attribute;        // kSet, kSetBlock: of a namespace
  ExpressionPtr expression;     // kOutput, kFor, kSet; kSetBlock and kFilterBlock: filters of kBody, or null
  ExpressionPtr condition;      // kFor
  std::vector<std::pair<ExpressionPtr, Block>> branches;  // kIf; a null condition: else
  Block body, otherwise;                                  // kFor, kSetBlock, kMacro, kWith, kFilterBlock
  Unset unset, unset_otherwise;                           // of body and otherwise
  std::vector<ExpressionPtr> values;  // kWith; kMacro: defaults of parameters, null where there is none
};

// How the text of a {% set %} or {% filter %} block is named in its filters; no template can name it so.
inline constexpr const char* kBody = "{body}";

struct Program {
  Names names;
  Block block;
  Unset unset;  // of block
};

// Finds Unset of all blocks.
void find_unset(Program& program);

// Errors: Error(kUsage) "NAME: line N: expected ..., found ...".
Program parse(std::string_view source, const std::string& name);

}  // namespace tiercel::jinja
