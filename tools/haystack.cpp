#include "tools/haystack.h"

#include <fmt/format.h>

#include <iterator>

#include "engine/base/check.h"
#include "tools/filler_text.h"
#include "tools/unique_names.h"

namespace tiercel {
namespace {

// Facts with unique keys and values that do not occur in the filler.
std::vector<Fact> invent_facts(const HaystackRequest& request, RandomBits& random) {
  UniqueNames names(random, request.text ? &*request.text : nullptr);
  constexpr FactForm kForms[] = {FactForm::kMagic, FactForm::kSpecial, FactForm::kPassKey,
                                 FactForm::kLine};
  std::vector<Fact> facts(static_cast<size_t>(request.n_facts));
  for (size_t i = 0; i < facts.size(); ++i) {
    Fact& fact = facts[i];
    fact.form = request.form == FactForm::kMixed ? kForms[i % std::size(kForms)] : request.form;
    fact.depth = facts.size() == 1 ? 0.5 : static_cast<double>(i) / (facts.size() - 1.0);
    fact.key = names.key();
    fact.value = names.value();
  }
  return facts;
}

}  // namespace

const char* name_of(FactForm form) {
  switch (form) {
    case FactForm::kMagic: return "magic";
    case FactForm::kSpecial: return "special";
    case FactForm::kPassKey: return "passkey";
    case FactForm::kLine: return "line";
    case FactForm::kMixed: return "mixed";
  }
  return "?";
}

std::string Fact::sentence() const {
  switch (form) {
    case FactForm::kSpecial:
      return fmt::format("One of the special magic numbers for {} is: {}.", key, value);
    case FactForm::kPassKey:
      return fmt::format("The pass key of {} is {}. Remember it.", key, value);
    case FactForm::kLine: return fmt::format("{}: {}", key, value);
    default: return fmt::format("The magic number for {} is {}.", key, value);
  }
}

std::string Fact::question() const {
  switch (form) {
    case FactForm::kSpecial:
      return fmt::format(
          "What is the special magic number for {0}? The special magic number for {0} is", key);
    case FactForm::kPassKey:
      return fmt::format("Question: What is the pass key of {}?\nAnswer:", key);
    case FactForm::kLine: return key + ":";
    default:
      return fmt::format("What is the magic number for {0}? The magic number for {0} is", key);
  }
}

std::string Fact::answer() const { return " " + value; }

Haystack make_haystack(const HaystackRequest& request) {
  RandomBits random(request.seed);
  Haystack haystack;
  haystack.facts = invent_facts(request, random);
  std::vector<HiddenLine> lines;
  for (const Fact& fact : haystack.facts) lines.push_back({fact.sentence(), fact.depth});
  Hay hay = [&] {
    try {
      return hide_lines(request, lines);
    } catch (const Error& error) {
      fail(error.kind(), "--tokens: {}", error.what());
    }
  }();
  for (size_t i = 0; i < lines.size(); ++i)
    haystack.facts[i].tokens_before = lines[i].tokens_before;
  haystack.prompt = std::move(hay.text);
  haystack.n_tokens = hay.n_tokens;
  haystack.notes = std::move(hay.notes);
  return haystack;
}

}  // namespace tiercel
