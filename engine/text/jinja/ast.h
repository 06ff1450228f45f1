// A template as a tree, and the parser that makes one.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/jinja/value.h"

namespace tiercel::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<const Expression>;

struct Expression {
  enum class Kind {
    kLiteral,   // value
    kName,      // name
    kList,      // operands
    kDict,      // operands: key, value, key, value ..
    kAttribute,  // operands[0].name
    kItem,      // operands[0][operands[1]]
    kSlice,     // operands[0][a:b:c], null where left out
    kCall,      // operands[0](operands[1..], named)
    kFilter,    // operands[0] | name(operands[1..], named)
    kTest,      // operands[0] is name(operands[1..]); negated
    kUnary,     // name: not, -, +
    kBinary,    // name: + - * / // % ** ~ == != < <= > >= in, not in, and, or
    kIf         // operands[0] if operands[1] else operands[2], which may be null
  };
  Kind kind;
  int line = 0;
  int height = 1;  // of the tree
  std::string name;
  Value value;
  bool negated = false;
  std::vector<ExpressionPtr> operands;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

struct Statement;
using Block = std::vector<std::unique_ptr<const Statement>>;

struct Statement {
  enum class Kind { kText, kOutput, kIf, kFor, kSet, kSetBlock, kMacro, kBreak, kContinue, kBlock };
  Kind kind;
  int line = 0;
  std::string text;                       // kText; of kMacro and kSet its name
  std::vector<std::string> names;         // targets of kFor and kSet; parameters of kMacro
  std::string attribute;                  // kSet: of a namespace
  ExpressionPtr expression;               // kOutput, kFor, kSet
  ExpressionPtr condition;                // kFor
  std::vector<std::pair<ExpressionPtr, Block>> branches;  // kIf; a null condition: else
  Block body, otherwise;                  // kFor, kSetBlock, kMacro, kBlock
  std::vector<ExpressionPtr> defaults;    // kMacro: of parameters, null where there is none
};

// Errors: Error(kUsage) "NAME: line N: expected ..., found ...".
Block parse(std::string_view source, const std::string& name);

}  // namespace tiercel::jinja
