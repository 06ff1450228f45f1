#include "engine/batch_layout.h"

#include <algorithm>

#include "engine/append_pass.h"
#include "engine/prompt_states.h"
#include "kernels/stream.h"

namespace tiercel {

BatchLayout::BatchLayout(const ModelConfig& c, int64_t max_prompt, int64_t max_context, int64_t n_sequences,
                         int64_t draft, bool staged)
    : transformer(c, max_context, std::min(max_prompt, kPrefillChunk), std::max(n_sequences, kAppendRows),
                  std::max(n_sequences, 1 + draft)) {
  const int64_t rows = std::max(n_sequences, kAppendRows);
  hidden = rows * c.hidden;
  if (!staged) return;
  ids = host_ids = rows;
  host_best = std::max(n_sequences, 1 + draft);
  clock = 1;
  sampler = {.vocab = c.vocab_size, .places = std::min(host_best, cuda::Stream::kTogether)};
  host_logits = c.vocab_size;
}

int64_t BatchLayout::device_bytes() const {
  return transformer.bytes() + hidden * static_cast<int64_t>(sizeof(bf16)) +
         ids * static_cast<int64_t>(sizeof(int32_t)) + clock * static_cast<int64_t>(sizeof(int64_t)) +
         sampler.device_bytes();
}

int64_t BatchLayout::host_bytes() const {
  return (host_ids + host_best) * static_cast<int64_t>(sizeof(int32_t)) +
         host_logits * static_cast<int64_t>(sizeof(float)) + sampler.host_bytes();
}

int64_t BatchLayout::prompt_bytes(const ModelConfig& c, int64_t n_prompt, bool staged, bool states_on_host) {
  return PromptStatesLayout(c, n_prompt, states_on_host).device * static_cast<int64_t>(sizeof(bf16)) +
         (staged ? n_prompt * static_cast<int64_t>(sizeof(int32_t)) : 0);
}

int64_t BatchLayout::append_bytes(const ModelConfig& c, int64_t n_tokens, bool staged) {
  return n_tokens * (c.hidden * static_cast<int64_t>(sizeof(bf16)) +
                     (staged ? static_cast<int64_t>(sizeof(int32_t)) : 0));
}

int64_t BatchLayout::host_prompt_bytes(const ModelConfig& c, int64_t n_prompt, bool states_on_host) {
  return PromptStatesLayout(c, n_prompt, states_on_host).host * static_cast<int64_t>(sizeof(bf16));
}

}  // namespace tiercel
