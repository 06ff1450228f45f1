// The generators behind make_samples, and what they share.
#pragma once

#include <functional>

#include "tools/eval/sample.h"
#include "tools/filler_text.h"

namespace tiercel {

// Needles in prose: kSingle (of one depth), kMultiKey1, kMultiValue, kMultiQuery, kVariables.
EvalSample make_needles(const SampleRequest& request);
// Nothing but needles or records: kMultiKey2, kMultiKey3, kRecords.
EvalSample make_records(const SampleRequest& request);
// kCommonWords, kFrequentWords.
EvalSample make_words(const SampleRequest& request);

// Tokens that are left for the context's body beside `fixed` (an introduction) and the longest
// question. Throws Error(kUsage) when nothing is.
int64_t room_for_body(const SampleRequest& request, std::string_view fixed,
                      const std::vector<EvalQuestion>& questions);

// The largest n from `least` on with tokens_of(n) <= n_tokens, as far as a few calls can tell:
// within 0.5 % of n_tokens or one more item. tokens_of grows with n. Throws Error(kUsage) when
// tokens_of(least) is too much.
int64_t fit(int64_t n_tokens, int64_t least, const std::function<int64_t(int64_t)>& tokens_of);

}  // namespace tiercel
