#include "engine/transformer.h"

namespace tiercel {

TransformerLayout::TransformerLayout(const ModelConfig& c, int64_t positions, int64_t n_prompt_rows,
                                     int64_t n_step_rows, int64_t n_logit_rows) {
  const int64_t rows = std::max(n_prompt_rows, n_step_rows);
  normed = std::max(rows, n_logit_rows) * c.hidden;
  q = rows * c.q_width();
  kv = rows * c.kv_width();
  qkv = n_step_rows * (c.q_width() + 2 * c.kv_width());
  const int64_t n_views = c.dual_chunk.spans.views_of(std::max<int64_t>(positions - 1, 0));
  if (n_views > 1) {
    views_of_row = n_views * c.q_width();
    views = std::max(n_step_rows * views_of_row, n_prompt_rows * c.q_width());
  }
  ffn = rows * c.widest_mlp();
  staged = largest_host_layer_bytes(c) / static_cast<int64_t>(sizeof(bf16));
  logits = n_logit_rows * c.vocab_size;
  if (c.experts.n == 0) return;
  pairs = rows * c.experts.n_chosen;
  mixed = pairs * c.hidden;
  router_logits = rows * c.experts.n;
  expert_starts = c.experts.n + 1;
}

int64_t TransformerLayout::bytes() const {
  const int64_t experts = mixed * static_cast<int64_t>(sizeof(bf16)) +
                          (4 * pairs + expert_starts) * static_cast<int64_t>(sizeof(int32_t));
  return (normed + 2 * q + 2 * kv + qkv + views + 2 * ffn + staged) * static_cast<int64_t>(sizeof(bf16)) +
         (logits + router_logits) * static_cast<int64_t>(sizeof(float)) + experts;
}

}  // namespace tiercel
