#include "engine/sampling_request.h"

#include <limits>
#include <random>

namespace tiercel {

SamplingOptions resolve_sampling(const SamplingRequest& wish, const ModelConfig::Sampling& advised, AnswerForms& forms,
                                 bool ignores_ends) {
  const bool sample = advised.do_sample.value_or(false);
  SamplingOptions options;
  options.temperature = wish.temperature.value_or(sample ? advised.temperature.value_or(1.0) : 0.0);
  // transformers' own defaults where the file turns sampling on and says no more.
  options.top_k = wish.top_k.value_or(advised.top_k.value_or(sample ? 50 : 0));
  options.top_p = wish.top_p.value_or(advised.top_p.value_or(1.0));
  options.min_p = wish.min_p.value_or(advised.min_p.value_or(0.0));
  options.repeat_penalty = wish.repeat_penalty.value_or(advised.repetition_penalty.value_or(1.0));
  // transformers penalises the whole context, llama.cpp the last 64 tokens.
  const bool penalty_advised = !wish.repeat_penalty && advised.repetition_penalty;
  options.repeat_last_n = wish.repeat_last_n.value_or(penalty_advised ? -1 : 64);
  if (options.repeat_last_n < 0) options.repeat_last_n = std::numeric_limits<int64_t>::max();
  options.presence_penalty = wish.presence_penalty;
  options.frequency_penalty = wish.frequency_penalty;
  options.logit_bias = wish.logit_bias;
  options.constraint = forms.constraint(wish.form, ignores_ends);
  if (options.temperature > 0) {
    options.seed = wish.seed >= 0 ? static_cast<uint64_t>(wish.seed) : std::random_device{}();
  }
  return options;
}

}  // namespace tiercel
