#include "tools/eval/sample.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "engine/base/check.h"
#include "tools/eval/generators.h"
#include "tools/flags.h"

namespace tiercel {
namespace {

int64_t longest_question(const std::vector<EvalQuestion>& questions, const TokenCount& count) {
  int64_t longest = 0;
  for (const EvalQuestion& question : questions) longest = std::max(longest, count(question.text));
  return longest;
}

constexpr const char* kTaskNames[] = {"single",         "multikey-1", "multikey-2", "multikey-3",
                                      "multivalue",     "multiquery", "variables",  "common-words",
                                      "frequent-words", "records"};
static_assert(std::size(kTaskNames) == kNumEvalTasks);

EvalSample generate(const SampleRequest& request) {
  switch (request.task) {
    case EvalTask::kMultiKey2:
    case EvalTask::kMultiKey3:
    case EvalTask::kRecords: return make_records(request);
    case EvalTask::kCommonWords:
    case EvalTask::kFrequentWords: return make_words(request);
    default: return make_needles(request);
  }
}

EvalSample make_sample(const SampleRequest& request) {
  EvalSample sample = generate(request);
  sample.task = request.task;
  sample.length = request.length;
  sample.n_tokens = request.n_lead + request.count(sample.context) +
                    longest_question(sample.questions, request.count);
  return sample;
}

}  // namespace

const char* name_of(EvalTask task) { return kTaskNames[static_cast<size_t>(task)]; }

EvalTask parse_task(std::string_view name) {
  for (int i = 0; i < kNumEvalTasks; ++i) {
    if (name == kTaskNames[i]) return static_cast<EvalTask>(i);
  }
  refuse_choice(name, {std::begin(kTaskNames), std::end(kTaskNames)});
}

const char* name_of(EvalStyle style) { return style == EvalStyle::kRecall ? "recall" : "plain"; }

bool has_form(EvalStyle style, EvalTask task) {
  if (style == EvalStyle::kPlain) return true;
  // A recall model copies one value per key; it neither lists, follows nor counts.
  constexpr EvalTask kUnknown[] = {EvalTask::kMultiValue, EvalTask::kVariables,
                                   EvalTask::kCommonWords, EvalTask::kFrequentWords};
  return std::find(std::begin(kUnknown), std::end(kUnknown), task) == std::end(kUnknown);
}

int64_t room_for_body(const SampleRequest& request, std::string_view fixed,
                      const std::vector<EvalQuestion>& questions) {
  const int64_t others =
      request.n_lead + request.count(fixed) + longest_question(questions, request.count);
  if (others >= request.length) {
    fail(ErrorKind::kUsage, "expected more than the {} tokens of the question, found {}", others,
         request.length);
  }
  return request.length - others;
}

int64_t fit(int64_t n_tokens, int64_t least, const std::function<int64_t(int64_t)>& tokens_of) {
  int64_t low = least, low_tokens = tokens_of(least);
  if (low_tokens > n_tokens) {
    fail(ErrorKind::kUsage, "expected at least {} tokens, found {}", low_tokens, n_tokens);
  }
  int64_t high = -1, high_tokens = 0;  // the smallest n seen to be too much
  int64_t n = std::max<int64_t>(2 * least, 16);
  for (int attempt = 0; attempt < 24; ++attempt) {
    const int64_t tokens = tokens_of(n);
    if (tokens <= n_tokens) {
      low = n, low_tokens = tokens;
      if ((n_tokens - tokens) * 200 <= n_tokens) break;
    } else {
      high = n, high_tokens = tokens;
    }
    // Items cost about the same each: aim a little below the target along the line of the last two.
    const double per_item =
        high < 0 ? static_cast<double>(low_tokens) / static_cast<double>(low)
                 : static_cast<double>(high_tokens - low_tokens) / static_cast<double>(high - low);
    n = low + static_cast<int64_t>((0.998 * static_cast<double>(n_tokens) - low_tokens) /
                                   std::max(per_item, 1e-3));
    // What a line predicts badly is halved now and then, which always gets on.
    if (high >= 0) n = attempt % 3 == 2 ? (low + high) / 2 : std::min(n, high - 1);
    n = std::max(n, low + 1);
    if (n == high) break;  // low + 1 is too much
  }
  return low;
}

std::vector<EvalSample> make_samples(const SampleRequest& request) {
  SampleRequest one = request;
  if (one.depths.empty()) {
    // From another stream than the generators', which start with the same seed.
    one.depths = {static_cast<double>(RandomBits(request.seed ^ 0x4445505448u).below(101)) / 100};
  }
  try {
    std::vector<EvalSample> samples;
    if (request.task != EvalTask::kSingle) return {make_sample(one)};
    const std::vector<double> depths = one.depths;
    for (const double depth : depths) {
      one.depths = {depth};
      samples.push_back(make_sample(one));
    }
    return samples;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    fail(ErrorKind::kUsage, "--lengths: {}: {}", name_of(request.task), error.what());
  }
}

}  // namespace tiercel
