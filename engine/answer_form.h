// What an answer is held to: JSON of a schema, a pattern, a grammar.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "engine/text/grammar/grammar_constraint.h"
#include "engine/token_constraint.h"

namespace tiercel {

struct AnswerForm {
  enum class Kind : uint8_t {
    kFree,
    kJsonSchema,  // JSON that satisfies the schema `text` (engine/text/json_schema/json_schema.h)
    kRegex,       // what the pattern `text` matches from end to end (regex.h)
    kGrammar      // what the grammar `text` matches, in llama.cpp's notation (gbnf.h)
  };
  // Behind thoughts (engine/text/thoughts.h), that is.
  enum class Thoughts : uint8_t { kNone, kMayBegin, kBegun };

  Kind kind = Kind::kFree;
  std::string text = {};
  Thoughts thoughts = Thoughts::kNone;
};

// Of a form that is not free. Throws Error(kUsage) as its parser.
grammar::Grammar grammar_of(const AnswerForm& form);
// Of an answer to a prompt that has begun thoughts: kBegun; else kNone.
AnswerForm::Thoughts begun_thoughts(const Tokenizer& tokenizer, std::span<const int32_t> prompt);
// An answer that a grammar matches, behind thoughts. The grammar goes in there.
grammar::Grammar behind_thoughts(grammar::Grammar grammar, AnswerForm::Thoughts thoughts, const Tokenizer& tokenizer);

// The constraints of one model's answers; those asked for last are kept.
// Threads: every call is safe from any thread.
class AnswerForms {
 public:
  // end_tokens: any of them ends an answer. The tokenizer must outlive this and its constraints.
  AnswerForms(const Tokenizer& tokenizer, int64_t vocab_size, const std::vector<int64_t>& end_tokens);

  // None for a free answer. Throws Error(kUsage) for a form that is malformed or asks for what is not supported,
  // naming the place; where answers would have no end, as ignores_ends or a model without end tokens have it.
  // This must outlive what it gives.
  ConstraintSource constraint(const AnswerForm& form, bool ignores_ends);
  // Of a grammar that is made where none of this name is kept. Throws as above, and as `make`.
  ConstraintSource constraint(const std::string& name, bool ignores_ends, std::function<grammar::Grammar()> make);

 private:
  std::shared_ptr<TokenConstraint> kept_or_made(const std::string& name, const std::function<grammar::Grammar()>& make);
  std::shared_ptr<const grammar::GrammarConstraint::Vocabulary> vocabulary();
  std::shared_ptr<TokenConstraint> find_kept(const std::string& name);  // under the lock

  struct Kept {
    std::string name;
    std::shared_ptr<grammar::GrammarConstraint> constraint;
  };

  const Tokenizer& tokenizer_;
  int64_t vocab_size_;
  std::vector<int32_t> end_tokens_;
  std::mutex vocabulary_mutex_;
  std::shared_ptr<const grammar::GrammarConstraint::Vocabulary> vocabulary_;  // once somebody asks
  std::mutex mutex_;
  std::list<Kept> kept_;  // the last one asked for comes first
};

}  // namespace tiercel
