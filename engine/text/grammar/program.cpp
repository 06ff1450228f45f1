#include "engine/text/grammar/program.h"

#include <algorithm>
#include <bitset>
#include <map>
#include <set>
#include <utility>

#include "engine/base/check.h"

namespace tiercel::grammar {
namespace {

constexpr size_t kMostNodes = 400'000;

// Nodes are made from the end of an expression to its beginning: each part is told where it goes on.
class Compiler {
 public:
  Compiler(const Grammar& grammar, int64_t lookahead) : grammar_(grammar), lookahead_(lookahead) {
    new_node();  // kEnd
    for (size_t i = 0; i < grammar.rules.size(); ++i) new_rule(grammar.rules[i].name);
  }

  Program run() {
    for (size_t i = 0; i < grammar_.rules.size(); ++i) define(static_cast<int32_t>(i), grammar_.rules[i].body);
    find_nullable();
    refuse_left_recursion();
    drop_dead_ends();
    if (is_dead(rules_[static_cast<size_t>(grammar_.root)].start)) {
      fail(ErrorKind::kUsage, "{}: no finite text fits", grammar_.rules[static_cast<size_t>(grammar_.root)].name);
    }
    program_.start = rules_[static_cast<size_t>(grammar_.root)].start;
    pass_over_nodes();
    find_twins();
    find_classes();
    return std::move(program_);
  }

 private:
  struct Rule {
    std::string name;
    int32_t start = 0;
  };
  // Repetitions of a part: one node to each, by how many are left (from 1).
  struct Chain {
    std::vector<int32_t> nodes = {};
    int32_t part = -1;  // the rule that each calls; -1: each reads a byte itself
  };

  int32_t new_node() {
    if (program_.nodes.size() >= kMostNodes) {
      fail(ErrorKind::kUsage,
           "the form asked for has more than {} places; lower its counts (maxLength, maxItems, {{m,n}})", kMostNodes);
    }
    program_.nodes.emplace_back();
    return static_cast<int32_t>(program_.nodes.size() - 1);
  }
  Program::Node& node(int32_t index) { return program_.nodes[static_cast<size_t>(index)]; }

  int32_t new_rule(std::string name) {
    rules_.push_back({std::move(name), new_node()});
    return static_cast<int32_t>(rules_.size() - 1);
  }
  void define(int32_t rule, const Expr& body) {
    const int32_t first = build(body, Program::kEnd);
    node(rules_[static_cast<size_t>(rule)].start).free.push_back(first);
  }

  // The node from which this expression is read up to `next`.
  int32_t build(const Expr& expression, int32_t next) {
    const Expression& e = *expression;
    switch (e.kind) {
      case Expression::Kind::kText:
        for (size_t i = e.text.size(); i-- > 0;) next = byte_node(static_cast<uint8_t>(e.text[i]), next);
        return next;
      case Expression::Kind::kCharacters:
        return build_characters(e.ranges, next);
      case Expression::Kind::kSequence:
        for (size_t i = e.parts.size(); i-- > 0;) next = build(e.parts[i], next);
        return next;
      case Expression::Kind::kChoice: {
        const int32_t fork = new_node();
        for (const Expr& part : e.parts) add_free(fork, build(part, next));
        return fork;
      }
      case Expression::Kind::kRepeat:
        return build_repeat(e, next);
      case Expression::Kind::kRule:
        return call_node(e.rule, next);
      case Expression::Kind::kWithout:
        return build_search(e.text, next, false);
      case Expression::Kind::kUpTo:
        return build_search(e.text, next, true);
    }
    CHECK(false);
    return next;
  }

  int32_t byte_node(uint8_t byte, int32_t next) {
    const int32_t made = new_node();
    node(made).bytes.push_back({byte, byte, next});
    return made;
  }
  int32_t call_node(int32_t rule, int32_t next) {
    const int32_t made = new_node();
    node(made).calls.push_back({rules_[static_cast<size_t>(rule)].start, next});
    return made;
  }
  void add_free(int32_t from, int32_t to) { node(from).free.push_back(to); }

  // ---- characters ----

  int32_t build_characters(const std::vector<CodeRange>& ranges, int32_t next) {
    constexpr CodeRange kBySize[] = {
        {0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xD7FF}, {0xE000, 0xFFFF}, {0x10000, kLastCharacter}};
    constexpr int kBehind[] = {0, 1, 2, 2, 3};
    constexpr uint8_t kLead[] = {0, 0xC0, 0xE0, 0xE0, 0xF0};
    const int32_t made = new_node();
    std::array<int32_t, 4> any = {next, -1, -1, -1};  // by how many bytes, whatever they are, lead to next
    for (const CodeRange& range : ranges) {
      for (int size = 0; size < 5; ++size) {
        const char32_t first = std::max(range.first, kBySize[size].first);
        const char32_t last = std::min(range.last, kBySize[size].last);
        if (first <= last) add_range(made, {first, last}, kBehind[size], kLead[size], any);
      }
    }
    return made;
  }

  // From a node, the bytes of these code points of which so many follow the first, which has this mark.
  void add_range(int32_t from, CodeRange range, int n_behind, uint8_t mark, std::array<int32_t, 4>& any) {
    const int shift = 6 * n_behind;
    const char32_t rest = (char32_t{1} << shift) - 1;
    const auto edge = [&](char32_t first, char32_t last, int32_t target) {
      node(from).bytes.push_back({static_cast<uint8_t>(mark | first), static_cast<uint8_t>(mark | last), target});
    };
    const auto part = [&](char32_t lead, char32_t first, char32_t last) {
      const int32_t behind = new_node();
      edge(lead, lead, behind);
      add_range(behind, {first, last}, n_behind - 1, 0x80, any);
    };
    char32_t first = range.first >> shift, last = range.last >> shift;
    if (first == last && (range.first & rest) + (rest - (range.last & rest)) != 0) {
      return part(first, range.first & rest, range.last & rest);
    }
    if ((range.first & rest) != 0) part(first++, range.first & rest, rest);
    const bool cut = (range.last & rest) != rest;
    if (cut) part(last, 0, range.last & rest);
    if (cut && last-- == 0) return;
    if (first <= last) edge(first, last, any_bytes(n_behind, any));
  }

  int32_t any_bytes(int n, std::array<int32_t, 4>& any) {
    for (size_t i = 1; i <= static_cast<size_t>(n); ++i) {
      if (any[i] >= 0) continue;
      any[i] = new_node();
      node(any[i]).bytes.push_back({0x80, 0xBF, any[i - 1]});
    }
    return any[static_cast<size_t>(n)];
  }

  // ---- repetitions ----

  static bool reads_one_byte(const Expression& part) {
    if (part.kind == Expression::Kind::kText) return part.text.size() == 1;
    return part.kind == Expression::Kind::kCharacters && !part.ranges.empty() && part.ranges.back().last < 0x80;
  }

  // What is repeated often becomes a rule, so that each time is one node.
  int32_t rule_of(const Expr& part) {
    if (part->kind == Expression::Kind::kRule) return part->rule;
    const auto [it, is_new] = parts_.try_emplace(part.get(), -1);
    if (is_new) {
      const int32_t rule = new_rule("a repeated part");
      it->second = rule;
      define(rule, part);
    }
    return parts_.at(part.get());
  }

  int32_t build_repeat(const Expression& e, int32_t next) {
    const Expr& part = e.parts.front();
    if (e.most == kUnlimited && e.least <= 1) {
      const int32_t loop = new_node();
      const int32_t first = build(part, loop);
      add_free(loop, first);
      add_free(loop, next);
      return e.least == 0 ? loop : first;
    }
    if (e.most == 1) {
      const int32_t fork = new_node();
      add_free(fork, build(part, next));
      add_free(fork, next);
      return fork;
    }
    const int32_t called = reads_one_byte(*part) ? -1 : rule_of(part);
    const auto once = [&](int32_t behind) { return called < 0 ? build(part, behind) : call_node(called, behind); };
    int32_t at = next;
    if (e.most == kUnlimited) {
      at = new_node();
      add_free(at, once(at));
      add_free(at, next);
    } else if (e.most > e.least) {
      Chain may{.part = called};
      for (int64_t i = e.least; i < e.most; ++i) {
        at = once(at);
        add_free(at, next);
        may.nodes.push_back(at);
      }
      chains_.push_back(std::move(may));
    }
    Chain must{.part = called};
    for (int64_t i = 0; i < e.least; ++i) {
      at = once(at);
      must.nodes.push_back(at);
    }
    chains_.push_back(std::move(must));
    return at;
  }

  // ---- texts with and without a word ----

  // How much of the word the last bytes are: the automaton of Knuth, Morris and Pratt.
  int32_t build_search(const std::string& word, int32_t next, bool up_to_it) {
    const size_t n = word.size();
    std::vector<std::array<size_t, 256>> follow(n);
    size_t restart = 0;
    for (size_t i = 0; i < n; ++i) {
      const auto byte = static_cast<uint8_t>(word[i]);
      follow[i] = i == 0 ? std::array<size_t, 256>{} : follow[restart];
      if (i > 0) restart = follow[restart][byte];
      follow[i][byte] = i + 1;
    }
    std::vector<int32_t> places(n);
    for (int32_t& place : places) place = new_node();
    for (size_t i = 0; i < n; ++i) {
      for (int first = 0; first < 256;) {
        const size_t to = follow[i][static_cast<size_t>(first)];
        int last = first;
        while (last < 255 && follow[i][static_cast<size_t>(last + 1)] == to) ++last;
        if (to < n || up_to_it) {
          node(places[i]).bytes.push_back(
              {static_cast<uint8_t>(first), static_cast<uint8_t>(last), to < n ? places[to] : next});
        }
        first = last + 1;
      }
      if (!up_to_it) add_free(places[i], next);
    }
    return places.front();
  }

  // ---- what nodes can do ----

  // Nodes that have a property once others have it.
  template <typename Has>
  std::vector<bool> closure(Has has) const {
    const size_t n = program_.nodes.size();
    std::vector<std::vector<int32_t>> asking(n);  // by what they ask for
    for (size_t i = 0; i < n; ++i) {
      const auto ask = [&](int32_t of) { asking[static_cast<size_t>(of)].push_back(static_cast<int32_t>(i)); };
      for (const ByteEdge& edge : program_.nodes[i].bytes) ask(edge.target);
      for (const int32_t to : program_.nodes[i].free) ask(to);
      for (const RuleCall& call : program_.nodes[i].calls) {
        ask(call.start);
        ask(call.behind);
      }
    }
    std::vector<bool> found(n, false);
    found[Program::kEnd] = true;
    std::vector<int32_t> work = {Program::kEnd};
    while (!work.empty()) {
      const int32_t now = work.back();
      work.pop_back();
      for (const int32_t i : asking[static_cast<size_t>(now)]) {
        if (found[static_cast<size_t>(i)] || !has(program_.nodes[static_cast<size_t>(i)], found)) continue;
        found[static_cast<size_t>(i)] = true;
        work.push_back(i);
      }
    }
    return found;
  }
  static bool any_free(const Program::Node& node, const std::vector<bool>& found) {
    const auto is_found = [&](int32_t i) { return found[static_cast<size_t>(i)]; };
    return std::ranges::any_of(node.free, is_found) || std::ranges::any_of(node.calls, [&](const RuleCall& call) {
             return is_found(call.start) && is_found(call.behind);
           });
  }

  void find_nullable() { nullable_ = closure(any_free); }

  bool is_nullable(int32_t node) const { return nullable_[static_cast<size_t>(node)]; }
  bool is_dead(int32_t node) const { return !alive_[static_cast<size_t>(node)]; }

  void drop_dead_ends() {
    alive_ = closure([](const Program::Node& node, const std::vector<bool>& found) {
      return any_free(node, found) || std::ranges::any_of(node.bytes, [&](const ByteEdge& edge) {
               return found[static_cast<size_t>(edge.target)];
             });
    });
    for (Program::Node& node : program_.nodes) {
      std::erase_if(node.bytes, [&](const ByteEdge& edge) { return is_dead(edge.target); });
      std::erase_if(node.calls, [&](const RuleCall& call) { return is_dead(call.start) || is_dead(call.behind); });
      std::erase_if(node.free, [&](int32_t to) { return is_dead(to); });
    }
  }

  // Rules that a rule may begin with, before it has read anything.
  std::vector<int32_t> first_calls(int32_t start) const {
    std::vector<int32_t> called, work = {start};
    std::set<int32_t> seen = {start};
    const auto visit = [&](int32_t node) {
      if (seen.insert(node).second) work.push_back(node);
    };
    while (!work.empty()) {
      const Program::Node& node = program_.nodes[static_cast<size_t>(work.back())];
      work.pop_back();
      for (const int32_t to : node.free) visit(to);
      for (const RuleCall& call : node.calls) {
        called.push_back(call.start);
        if (is_nullable(call.start)) visit(call.behind);
      }
    }
    return called;
  }

  void refuse_left_recursion() const {
    std::map<int32_t, const Rule*> by_start;
    for (const Rule& rule : rules_) by_start[rule.start] = &rule;
    struct Frame {
      int32_t rule;
      std::vector<int32_t> calls;
    };
    std::map<int32_t, bool> done;  // false: it is being looked at
    for (const Rule& from : rules_) {
      if (done.contains(from.start)) continue;
      std::vector<Frame> frames;
      const auto enter = [&](int32_t rule) {
        done[rule] = false;
        frames.push_back({rule, first_calls(rule)});
      };
      enter(from.start);
      while (!frames.empty()) {
        if (frames.back().calls.empty()) {
          done[frames.back().rule] = true;
          frames.pop_back();
          continue;
        }
        const int32_t next = frames.back().calls.back();
        frames.back().calls.pop_back();
        const auto it = done.find(next);
        if (it == done.end()) {
          enter(next);
        } else if (!it->second) {
          fail(ErrorKind::kUsage, "{}: it begins with itself; write it as a repetition", by_start.at(next)->name);
        }
      }
    }
  }

  // Nodes that only lead to another one are passed over.
  void pass_over_nodes() {
    std::vector<int32_t> leads(program_.nodes.size());
    for (size_t i = 0; i < leads.size(); ++i) {
      const Program::Node& node = program_.nodes[i];
      const bool only_leads = node.bytes.empty() && node.calls.empty() && node.free.size() == 1;
      leads[i] = only_leads ? node.free.front() : static_cast<int32_t>(i);
    }
    for (int32_t& to : leads) {
      for (int n = 0; n < 64 && leads[static_cast<size_t>(to)] != to; ++n) to = leads[static_cast<size_t>(to)];
    }
    const auto pass = [&](int32_t& node) { node = leads[static_cast<size_t>(node)]; };
    for (Program::Node& node : program_.nodes) {
      for (ByteEdge& edge : node.bytes) pass(edge.target);
      for (int32_t& to : node.free) pass(to);
      for (RuleCall& call : node.calls) {
        pass(call.start);
        pass(call.behind);
      }
    }
    pass(program_.start);
  }

  void find_twins() {
    program_.twins.resize(program_.nodes.size());
    for (size_t i = 0; i < program_.twins.size(); ++i) program_.twins[i] = static_cast<int32_t>(i);
    for (const Chain& chain : chains_) {
      if (chain.part >= 0 && is_nullable(rules_[static_cast<size_t>(chain.part)].start)) continue;
      const auto far = static_cast<size_t>(lookahead_);
      for (size_t i = far + 1; i < chain.nodes.size(); ++i) {
        program_.twins[static_cast<size_t>(chain.nodes[i])] = chain.nodes[far];
      }
    }
  }

  void find_classes() {
    std::bitset<257> begins;
    for (const Program::Node& node : program_.nodes) {
      for (const ByteEdge& edge : node.bytes) {
        begins.set(edge.first);
        begins.set(size_t{edge.last} + 1);
      }
    }
    int32_t now = 0;
    for (size_t byte = 0; byte < 256; ++byte) {
      if (byte > 0 && begins[byte]) ++now;
      program_.class_of[byte] = static_cast<uint8_t>(now);
    }
    program_.n_classes = now + 1;
  }

  const Grammar& grammar_;
  int64_t lookahead_;
  Program program_;
  std::vector<Rule> rules_;                     // the grammar's first
  std::map<const Expression*, int32_t> parts_;  // what is repeated: its rule
  std::vector<Chain> chains_;
  std::vector<bool> nullable_, alive_;
};

}  // namespace

Program compile(const Grammar& grammar, int64_t lookahead) { return Compiler(grammar, lookahead).run(); }

}  // namespace tiercel::grammar
