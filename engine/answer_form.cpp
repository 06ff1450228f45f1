#include "engine/answer_form.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/grammar/gbnf.h"
#include "engine/text/grammar/regex.h"
#include "engine/text/json_schema/json_schema.h"
#include "engine/text/thoughts.h"

namespace tiercel {
namespace {

constexpr size_t kMostKept = 16;
constexpr int64_t kMostKeptBytes = int64_t{512} << 20;

}  // namespace

grammar::Grammar grammar_of(const AnswerForm& form) {
  switch (form.kind) {
    case AnswerForm::Kind::kJsonSchema:
      return grammar::parse_json_schema(form.text, "schema");
    case AnswerForm::Kind::kRegex:
      return grammar::grammar_of(grammar::parse_regex(form.text, {}, "regex").expression);
    case AnswerForm::Kind::kGrammar:
      return grammar::parse_gbnf(form.text, "grammar");
    case AnswerForm::Kind::kFree:
      break;
  }
  CHECK(false, "a free answer has no grammar");
  return {};
}

AnswerForm::Thoughts begun_thoughts(const Tokenizer& tokenizer, std::span<const int32_t> prompt) {
  return thoughts_at_end(tokenizer, prompt) == PromptThoughts::kBegun ? AnswerForm::Thoughts::kBegun
                                                                      : AnswerForm::Thoughts::kNone;
}

grammar::Grammar behind_thoughts(grammar::Grammar grammar, AnswerForm::Thoughts thoughts, const Tokenizer& tokenizer) {
  using namespace grammar;
  if (thoughts == AnswerForm::Thoughts::kNone) return grammar;
  const Expr blanks = repeat(characters({{U' ', U' '}, {U'\n', U'\n'}}), 0, 4);
  Expr before = sequence({up_to(written_with_special(tokenizer, kThoughtsEnd)), blanks});
  if (thoughts == AnswerForm::Thoughts::kMayBegin) {
    before = optional(sequence({text(written_with_special(tokenizer, kThoughtsBegin)), before}));
  }
  grammar.rules.push_back({"answer", sequence({before, rule(grammar.root)})});
  grammar.root = static_cast<int32_t>(grammar.rules.size() - 1);
  return grammar;
}

AnswerForms::AnswerForms(const Tokenizer& tokenizer, int64_t vocab_size, const std::vector<int64_t>& end_tokens)
    : tokenizer_(tokenizer), vocab_size_(vocab_size) {
  for (const int64_t token : end_tokens) {
    if (token < vocab_size) end_tokens_.push_back(static_cast<int32_t>(token));
  }
}

ConstraintSource AnswerForms::constraint(const AnswerForm& form, bool ignores_ends) {
  if (form.kind == AnswerForm::Kind::kFree) return {};
  const std::string name =
      fmt::format("{} {} {}", static_cast<int>(form.kind), static_cast<int>(form.thoughts), form.text);
  return constraint(name, ignores_ends,
                    [this, form] { return behind_thoughts(grammar_of(form), form.thoughts, tokenizer_); });
}

ConstraintSource AnswerForms::constraint(const std::string& name, bool ignores_ends,
                                         std::function<grammar::Grammar()> make) {
  if (ignores_ends) {
    fail(ErrorKind::kUsage, "ignore-eos: an answer that is held to a form ends where the form does; leave it out");
  }
  if (end_tokens_.empty()) {
    fail(ErrorKind::kUsage,
         "this model names no token that ends a text (eos_token_id of its configuration), so that "
         "its answers cannot be held to a form");
  }
  ConstraintSource source = [this, name, make = std::move(make)] { return kept_or_made(name, make); };
  source();  // what is wrong with it is said now
  return source;
}

std::shared_ptr<TokenConstraint> AnswerForms::kept_or_made(const std::string& name,
                                                           const std::function<grammar::Grammar()>& make) {
  {
    const std::lock_guard lock(mutex_);
    if (auto kept = find_kept(name)) return kept;
  }
  // Others need not wait for a large one.
  const grammar::ExpressionBudget budget;
  auto made = std::make_shared<grammar::GrammarConstraint>(make(), vocabulary());
  const std::lock_guard lock(mutex_);
  if (auto kept = find_kept(name)) return kept;
  kept_.push_front({name, made});
  const auto bytes = [&] {
    int64_t sum = 0;
    for (const Kept& kept : kept_) sum += kept.constraint->bytes();
    return sum;
  };
  while (kept_.size() > 1 && (kept_.size() > kMostKept || bytes() > kMostKeptBytes)) kept_.pop_back();
  return made;
}

std::shared_ptr<TokenConstraint> AnswerForms::find_kept(const std::string& name) {
  const auto it = std::ranges::find(kept_, name, &Kept::name);
  if (it == kept_.end()) return nullptr;
  if (it->constraint->is_full()) {
    kept_.erase(it);
    return nullptr;
  }
  kept_.splice(kept_.begin(), kept_, it);
  return it->constraint;
}

std::shared_ptr<const grammar::GrammarConstraint::Vocabulary> AnswerForms::vocabulary() {
  const std::lock_guard lock(vocabulary_mutex_);
  if (vocabulary_ == nullptr) {
    vocabulary_ = std::make_shared<grammar::GrammarConstraint::Vocabulary>(tokenizer_, vocab_size_, end_tokens_);
  }
  return vocabulary_;
}

}  // namespace tiercel
