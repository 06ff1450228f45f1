// What a caller wants of sampling, and what becomes of it for one model.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/answer_form.h"
#include "engine/config.h"
#include "engine/options.h"

namespace tiercel {

struct SamplingRequest {
  std::optional<double> temperature, top_p, min_p, repeat_penalty;
  std::optional<int64_t> top_k, repeat_last_n;
  double presence_penalty = 0, frequency_penalty = 0;
  std::vector<LogitBias> logit_bias;
  int64_t seed = -1;  // -1: drawn
  AnswerForm form;
};

// What was asked for, over generation_config.json, over greedy. Draws a seed where one is needed
// and none is given. Throws as AnswerForms::constraint.
SamplingOptions resolve_sampling(const SamplingRequest& wish, const ModelConfig::Sampling& advised, AnswerForms& forms,
                                 bool ignores_ends);

}  // namespace tiercel
