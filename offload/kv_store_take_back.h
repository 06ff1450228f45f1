// KvStore: tokens that turn out not to belong to the sequence.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
int64_t KvStore<Device, Host>::most_to_take_back() const {
  if (auditing_) return 0;
  if (layout_.any_tiered && (layout_.settings.reuses() || layout_.settings.share_layers > 1)) return 0;
  int64_t most = layout_.positions() - n_tokens_;
  for (int64_t index = 0; index < layout_.shape.n_layers; ++index) {
    if (is_to_be_tried(index) || (layout_.shares_prefix() && layout_.shape.window[index] > 0)) return 0;
    most = std::min(most, layers_[index].recent.first + most_rows(index) - n_tokens_);
  }
  return std::max<int64_t>(most, 0);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_back(int64_t n) {
  CHECK(n <= n_steps_, "{} tokens of {}", n, n_steps_);
  if (n == 0) return;  // whatever most_to_take_back says
  n_tokens_ -= n;
  n_steps_ -= n;
  for (int64_t index = 0; index < layout_.shape.n_layers; ++index) {
    const int64_t window = layout_.shape.window[index];
    if (window == 0) continue;
    CHECK(!layout_.shares_prefix(), "windows behind a prefix begin where it ends");
    // Where the windows of the tokens that stay had moved it.
    Recent& recent = layers_[index].recent;
    recent.first = std::min(recent.first, std::max(prompt_end_[index].first, n_tokens_ - window));
  }
}

}  // namespace tiercel
