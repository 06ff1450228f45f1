#include "engine/decoder.h"

#include <algorithm>

#include "kernels/stream.h"

namespace tiercel {

// A dense tail may be a chunk longer than kDenseTail, never longer than a whole run.
DecoderLayout::DecoderLayout(const ModelConfig& c, const SessionPlan& plan, bool staged)
    : transformer(c, plan.context,
                  std::max(std::min(plan.n_prompt, kPrefillChunk), std::min(plan.continued, kContinuedRun)), kAppendRows,
                  std::max(plan.logprobs ? std::min(kLogprobRows, plan.n_prompt) : 1, 1 + plan.draft)) {
  const PromptStatesLayout states(c, plan.n_prompt, plan.states_on_host);
  hidden = std::max(states.device, kAppendRows * c.hidden);
  continued_hidden = plan.continued * c.hidden;
  prompt_end = c.hidden;
  if (!staged) return;
  host_hidden = states.host;
  ids = std::max({plan.n_prompt, kAppendRows, plan.continued});
  logprobs = plan.logprobs ? kLogprobRows : 0;
  clock = 1;
  host_logits = c.vocab_size;
  host_best = 1 + plan.draft;
  sampler = {.vocab = c.vocab_size, .places = std::min(1 + plan.draft, cuda::Stream::kTogether)};
}

int64_t DecoderLayout::bytes() const {
  return transformer.bytes() + (hidden + prompt_end) * static_cast<int64_t>(sizeof(bf16)) +
         ids * static_cast<int64_t>(sizeof(float)) +
         logprobs * static_cast<int64_t>(sizeof(double)) + clock * static_cast<int64_t>(sizeof(int64_t)) +
         sampler.device_bytes();
}

int64_t DecoderLayout::host_bytes() const {
  if (host_logits == 0) return 0;
  return host_hidden * static_cast<int64_t>(sizeof(bf16)) +
         (host_logits + kTokenRing + host_best) * static_cast<int64_t>(sizeof(float)) + sampler.host_bytes();
}

}  // namespace tiercel
