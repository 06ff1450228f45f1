// A grammar as a graph: nodes between bytes, edges that read one, and calls of rules.
//
// Kept are only nodes from which the end of their rule can be reached: whatever was read so far, a matched text
// goes on from it.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/text/grammar/expression.h"

namespace tiercel::grammar {

struct ByteEdge {
  uint8_t first = 0, last = 0;
  int32_t target = 0;
};
struct RuleCall {
  int32_t start = 0;   // the first node of the rule
  int32_t behind = 0;  // where its caller goes on; kEnd: nowhere
};

struct Program {
  static constexpr int32_t kEnd = 0;  // of whatever rule

  struct Node {
    std::vector<ByteEdge> bytes;
    std::vector<RuleCall> calls;
    std::vector<int32_t> free;  // nodes that are reached without reading
  };
  std::vector<Node> nodes;
  int32_t start = 0;
  // For each node one of which the next `lookahead` bytes are the same: of many repetitions, those with more of
  // them left than such bytes can have are one.
  std::vector<int32_t> twins;
  // Bytes that no edge tells apart.
  std::array<uint8_t, 256> class_of{};
  int32_t n_classes = 0;
};

// Throws Error(kUsage) for a grammar that matches no text at all, a rule that begins with itself, and one that
// is too large.
Program compile(const Grammar& grammar, int64_t lookahead);

}  // namespace tiercel::grammar
