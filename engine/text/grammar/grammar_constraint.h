// Holds answers to a grammar: the tokens after whose bytes a text that the grammar matches may still come, and
// the end tokens where the text is one.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/text/grammar/recognizer.h"
#include "engine/text/grammar/token_trie.h"
#include "engine/token_constraint.h"

namespace tiercel::grammar {

class GrammarConstraint : public TokenConstraint {
 public:
  // Of a model, for all that its answers are held to.
  struct Vocabulary {
    // The tokenizer must outlive it.
    Vocabulary(const Tokenizer& its_tokenizer, int64_t vocab_size, std::vector<int32_t> its_end_tokens)
        : tokenizer(its_tokenizer),
          tries(its_tokenizer, vocab_size, its_end_tokens),
          size(vocab_size),
          end_tokens(std::move(its_end_tokens)) {}

    const Tokenizer& tokenizer;
    VocabularyTries tries;
    int64_t size;
    std::vector<int32_t> end_tokens;
  };
  // Throws as Recognizer.
  GrammarConstraint(const Grammar& grammar, std::shared_ptr<const Vocabulary> vocabulary);

  int32_t start() const override { return recognizer_.start(); }
  int32_t behind(int32_t place, int32_t token) override;
  std::shared_ptr<const TokenSet> allowed(int32_t place) override;
  std::shared_ptr<const std::vector<int32_t>> expected(int32_t place) override;

  // It has thrown: another one of the same grammar may have more room.
  bool is_full() const;
  int64_t bytes() const;

 private:
  template <typename F>
  auto guarded(F f);
  void check_time(int64_t n_before) const;
  int64_t bytes_of_sets() const;
  std::shared_ptr<const TokenSet> find_allowed(Recognizer::State state);
  bool takes_plain_text(Recognizer::State state);
  std::shared_ptr<const std::vector<int32_t>> find_expected(Recognizer::State state);

  std::shared_ptr<const Vocabulary> vocabulary_;
  mutable std::mutex mutex_;  // over all below
  bool is_full_ = false;
  Recognizer recognizer_;
  std::unordered_map<Recognizer::State, std::shared_ptr<const TokenSet>> allowed_;  // by twin
  std::unordered_map<Recognizer::State, std::shared_ptr<const std::vector<int32_t>>> expected_;
  std::vector<Recognizer::State> path_;                                             // of a walk in hand
};

}  // namespace tiercel::grammar
