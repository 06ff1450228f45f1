#include "engine/text/grammar/grammar_constraint.h"

#include <algorithm>

#include "engine/base/check.h"

namespace tiercel::grammar {
namespace {

constexpr int64_t kMostBytesOfSets = int64_t{128} << 20;

}  // namespace

GrammarConstraint::GrammarConstraint(const Grammar& grammar, std::shared_ptr<const Vocabulary> vocabulary)
    : vocabulary_(std::move(vocabulary)),
      recognizer_(grammar, vocabulary_->trie.longest()),
      path_(static_cast<size_t>(vocabulary_->trie.longest()) + 1) {}

int32_t GrammarConstraint::behind(int32_t place, int32_t token) {
  if (std::ranges::find(vocabulary_->end_tokens, token) != vocabulary_->end_tokens.end()) return start();
  const std::lock_guard lock(mutex_);
  const Recognizer::State state = recognizer_.step(place, bytes_of_token(vocabulary_->tokenizer, token));
  CHECK(state != Recognizer::kDead, "token {} is not allowed there", token);
  return state;
}

std::shared_ptr<const TokenSet> GrammarConstraint::allowed(int32_t place) {
  const std::lock_guard lock(mutex_);
  const Recognizer::State state = recognizer_.twin(place);
  if (const auto it = allowed_.find(state); it != allowed_.end()) return it->second;
  const int64_t bytes = token_set_words(vocabulary_->size) * static_cast<int64_t>(sizeof(uint32_t));
  if (bytes * std::ssize(allowed_) > kMostBytesOfSets) allowed_.clear();
  return allowed_[state] = find_allowed(state);
}

std::shared_ptr<const TokenSet> GrammarConstraint::find_allowed(Recognizer::State state) {
  const TokenTrie& trie = vocabulary_->trie;
  auto set = std::make_shared<TokenSet>(static_cast<size_t>(token_set_words(vocabulary_->size)));
  bool is_empty = true;
  const auto allow = [&](int32_t token) {
    (*set)[static_cast<size_t>(token) / 32] |= uint32_t{1} << token % 32;
    is_empty = false;
  };
  path_[0] = state;
  const std::span<const TokenTrie::Node> nodes = trie.nodes();
  for (size_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    const Recognizer::State to = recognizer_.step(path_[node.depth - 1u], node.byte);
    if (to == Recognizer::kDead) {
      i = static_cast<size_t>(node.next);
      continue;
    }
    path_[node.depth] = to;
    for (int32_t t = 0; t < node.n_tokens; ++t) allow(trie.tokens()[static_cast<size_t>(node.first_token + t)]);
    ++i;
  }
  if (recognizer_.is_match(state)) std::ranges::for_each(vocabulary_->end_tokens, allow);
  if (is_empty) fail("the form asked for: no token of this model's vocabulary may come next in this answer");
  return set;
}

}  // namespace tiercel::grammar
