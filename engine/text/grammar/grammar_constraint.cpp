#include "engine/text/grammar/grammar_constraint.h"

#include <algorithm>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace tiercel::grammar {
namespace {

constexpr int64_t kMostBytesOfSets = int64_t{128} << 20;
constexpr size_t kMostExpected = 128;  // bytes
constexpr int64_t kMostVisits = 5'000'000;  // of places, for one set of tokens: half a second or so

}  // namespace

GrammarConstraint::GrammarConstraint(const Grammar& grammar, std::shared_ptr<const Vocabulary> vocabulary)
    : vocabulary_(std::move(vocabulary)),
      recognizer_(grammar, vocabulary_->tries.longest()),
      path_(static_cast<size_t>(vocabulary_->tries.longest()) + 1) {}

template <typename F>
auto GrammarConstraint::guarded(F f) {
  const std::lock_guard lock(mutex_);
  try {
    return f();
  } catch (...) {
    is_full_ = true;
    throw;
  }
}

int32_t GrammarConstraint::behind(int32_t place, int32_t token) {
  if (std::ranges::find(vocabulary_->end_tokens, token) != vocabulary_->end_tokens.end()) return start();
  return guarded([&] {
    const Recognizer::State state = recognizer_.step(place, bytes_of_token(vocabulary_->tokenizer, token));
    if (state == Recognizer::kDead) fail("the form asked for: token {} may not come next", token);
    return state;
  });
}

bool GrammarConstraint::is_full() const {
  const std::lock_guard lock(mutex_);
  return is_full_;
}

int64_t GrammarConstraint::bytes_of_sets() const {
  return std::ssize(allowed_) * token_set_words(vocabulary_->size) * static_cast<int64_t>(sizeof(uint32_t));
}

int64_t GrammarConstraint::bytes() const {
  const std::lock_guard lock(mutex_);
  constexpr int64_t kBytesOfExpected = 256;  // of one place, about
  return recognizer_.bytes() + bytes_of_sets() + std::ssize(expected_) * kBytesOfExpected;
}

void GrammarConstraint::check_time(int64_t n_before) const {
  if (recognizer_.n_visited() - n_before < kMostVisits) return;
  fail("the form asked for: there are too many ways to go on with this answer; make it simpler");
}

std::shared_ptr<const TokenSet> GrammarConstraint::allowed(int32_t place) {
  return guarded([&] {
    const Recognizer::State state = recognizer_.twin(place);
    if (const auto it = allowed_.find(state); it != allowed_.end()) return it->second;
    if (bytes_of_sets() > kMostBytesOfSets) allowed_.clear();
    return allowed_[state] = find_allowed(state);
  });
}

std::shared_ptr<const std::vector<int32_t>> GrammarConstraint::expected(int32_t place) {
  try {
    return guarded([&] {
      const auto [it, is_new] = expected_.try_emplace(place);
      if (is_new) it->second = find_expected(place);
      return it->second;
    });
  } catch (const std::exception&) {
    return nullptr;  // where it matters it is said: allowed()
  }
}

std::shared_ptr<const std::vector<int32_t>> GrammarConstraint::find_expected(Recognizer::State state) {
  std::string text = recognizer_.forced(state, kMostExpected);
  text.resize(std::min(text.find(kSpecialMark), text.size()));
  text.resize(valid_utf8_prefix(text));
  if (text.empty()) return nullptr;
  return std::make_shared<const std::vector<int32_t>>(vocabulary_->tokenizer.encode(
      text, {.add_special = false, .parse_special = false, .follows = Follows::kText}));
}

// Whether any plain text of kPlainCharacters may come next.
bool GrammarConstraint::takes_plain_text(Recognizer::State state) {
  constexpr size_t kMostStates = 256;
  const int64_t n_before = recognizer_.n_visited();
  std::vector<Recognizer::State> between = {state};  // characters; those of one round come behind those of the last
  size_t n_done = 0;
  for (int i = 0; i < VocabularyTries::kPlainCharacters && n_done < between.size(); ++i) {
    std::vector<std::pair<Recognizer::State, int>> within;
    for (const size_t end = between.size(); n_done < end; ++n_done) within.emplace_back(between[n_done], 0);
    for (size_t j = 0; j < within.size(); ++j) {
      const auto [at, plain] = within[j];
      check_time(n_before);
      for (int byte = 0; byte < 256; ++byte) {
        const int next_plain = plain_step(plain, static_cast<uint8_t>(byte));
        if (next_plain == kNotPlain) continue;
        const Recognizer::State next = recognizer_.step(at, static_cast<uint8_t>(byte));
        if (next == Recognizer::kDead) return false;
        if (next_plain == 0) {
          if (std::ranges::find(between, next) == between.end()) between.push_back(next);
        } else if (std::ranges::find(within, std::pair{next, next_plain}) == within.end()) {
          within.emplace_back(next, next_plain);
        }
      }
      if (between.size() + within.size() > kMostStates) return false;
    }
  }
  return true;
}

std::shared_ptr<const TokenSet> GrammarConstraint::find_allowed(Recognizer::State state) {
  const VocabularyTries& tries = vocabulary_->tries;
  const bool takes_plain = takes_plain_text(state);
  const TokenTrie& trie = takes_plain ? tries.others() : tries.all();
  auto set = takes_plain ? std::make_shared<TokenSet>(tries.plain())
                         : std::make_shared<TokenSet>(static_cast<size_t>(token_set_words(vocabulary_->size)));
  bool is_empty = std::ranges::all_of(*set, [](uint32_t word) { return word == 0; });
  const auto allow = [&](int32_t token) {
    insert(*set, token);
    is_empty = false;
  };
  const int64_t n_before = recognizer_.n_visited();
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
    check_time(n_before);
    for (int32_t t = 0; t < node.n_tokens; ++t) allow(trie.tokens()[static_cast<size_t>(node.first_token + t)]);
    ++i;
  }
  if (recognizer_.is_match(state)) std::ranges::for_each(vocabulary_->end_tokens, allow);
  if (is_empty) fail("the form asked for: no token of this model's vocabulary may come next in this answer");
  return set;
}

}  // namespace tiercel::grammar
