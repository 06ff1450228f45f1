// What an evaluation asks: a context of a wanted length in tokens, and questions about it.
//
// The families are those of RULER (Hsieh et al., arXiv 2404.06654), written anew: needles with one
// or many keys, values and queries, tracking of variables, common and frequent words. To them comes
// retrieval from a prompt that is nothing but records: where every token may be asked for, a
// selector that blurs its keys shows it. Deterministic from the seed. Knows no model: styles are
// text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/hay.h"

namespace tiercel {

enum class EvalTask : uint8_t {
  kSingle,         // one needle in prose
  kMultiKey1,      // four needles in prose (or one per depth), one is asked for
  kMultiKey2,      // nothing but needles
  kMultiKey3,      // the same with long keys and values
  kMultiValue,     // one key, four values
  kMultiQuery,     // four keys asked for at once
  kVariables,      // a chain of five variables
  kCommonWords,    // the ten words of a list that occur ten times as often as the others
  kFrequentWords,  // the three most frequent coded words; frequencies fall with the rank squared
  kRecords,        // key-value retrieval from nothing but records
};
inline constexpr int kNumEvalTasks = 10;
const char* name_of(EvalTask task);
// Throws Error(kUsage) "expected ..., found ...".
EvalTask parse_task(std::string_view name);

// kRecall: as tools/demo/recall-4m was trained to be asked.
enum class EvalStyle : uint8_t { kPlain, kRecall };
const char* name_of(EvalStyle style);
// False for families that the style has no form of; they are asked plainly.
bool has_form(EvalStyle style, EvalTask task);

enum class Scoring : uint8_t {
  kShare,      // of the expected strings, those that occur in the output, as RULER scores
  kFirstLine,  // 1 when the output's first line is the expected string, else 0
};

struct EvalQuestion {
  std::string text;  // goes behind the context, which ends with a newline
  std::vector<std::string> expected;
  Scoring scoring = Scoring::kShare;
  std::optional<double> depth;  // of what is asked for, 0..1; none: it is in several places
};

struct EvalSample {
  EvalTask task = EvalTask::kSingle;
  int64_t length = 0;  // tokens that were asked for
  int64_t n_tokens =
      0;  // of the context and its longest question; the begin-of-text token included
  std::string context;
  std::vector<EvalQuestion> questions;
  bool in_turn = false;  // each question follows the answer to the one before
  int64_t max_new = 0;   // tokens per answer
};

struct SampleRequest {
  EvalTask task = EvalTask::kSingle;
  EvalStyle style = EvalStyle::kPlain;
  int64_t length = 0;
  uint64_t seed = 0;
  std::vector<double> depths = {};       // of what is asked for; empty: one drawn from the seed
  std::optional<std::string> text = {};  // prose to hide needles in; none: our own
  TokenCount count = {};
  int64_t n_lead = 0;
};

// One sample; several where one prompt cannot hold all depths (kSingle). At most `length` tokens,
// and close to it. Throws Error(kUsage) when the length is too short for the task.
std::vector<EvalSample> make_samples(const SampleRequest& request);

}  // namespace tiercel
