// KvStore: its state as blocks of bytes (kv_state.h), to be saved and to be put back.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
KvState KvStore<Device, Host>::state() const {
  KvState state;
  state.n_tokens = n_tokens_;
  state.n_prompt = n_prompt_;
  // Nothing has been selected since the end of the prompt: the cache is empty.
  state.cache = layout_.any_tiered && n_tokens_ > n_prompt_;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const PromptEnd& end = prompt_end_[i];
    state.layers.push_back({.base = layer.recent.base,
                            .first = layer.recent.first,
                            .n_sinks = layer.n_sinks,
                            .first_chunk = layer.first_chunk,
                            .end_chunk = layer.end_chunk,
                            .n_exact = layer.index.n_exact,
                            .n_blocks = layer.index.n_blocks,
                            .excludes = layer.index.excludes ? 1 : 0,
                            .list_chunks = layer.index.list_chunks,
                            .prompt_base = end.base,
                            .prompt_first = end.first,
                            .prompt_end_chunk = end.end_chunk,
                            .prompt_blocks = end.n_blocks});
  }
  return state;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::adopt(const KvState& state) {
  CHECK(n_tokens_ == 0, "a store that holds {} tokens", n_tokens_);
  CHECK(!layout_.shares_prefix());
  const std::string why = why_impossible(layout_, state);
  CHECK(why.empty(), "{}", why);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerState& s = state.layers[i];
    Layer& layer = layers_[i];
    layer.recent.base = s.base;
    layer.recent.first = s.first;
    layer.n_sinks = s.n_sinks;
    layer.first_chunk = s.first_chunk;
    layer.end_chunk = s.end_chunk;
    layer.index.n_exact = s.n_exact;
    layer.index.n_blocks = s.n_blocks;
    layer.index.excludes = s.excludes != 0;
    layer.index.list_chunks = state.cache ? s.list_chunks : -1;
    prompt_end_[i] = {s.prompt_base, s.prompt_first, s.prompt_end_chunk, s.prompt_blocks};
  }
  n_tokens_ = state.n_tokens;
  n_prompt_ = state.n_prompt;
  give_back_prefill_planes();
}

template <typename Device, typename Host>
void KvStore<Device, Host>::settle() {
  device_.wait(copy_.record());
  device_.wait(side_.record());
  device_.finish();
}

template <typename Device, typename Host>
bool KvStore<Device, Host>::on_host_tier(const StateBlock& block) const {
  switch (block.part) {
    case StatePart::kHomeValues:
    case StatePart::kValueCodes:
    case StatePart::kHomeKeys: return !layout_.at_home_on_device(block.layer);
    case StatePart::kAuditKeys: return true;
    default: return false;
  }
}

template <typename Device, typename Host>
void* KvStore<Device, Host>::address_of(const StateBlock& block) {
  Layer& layer = layers_[static_cast<size_t>(block.layer)];
  Index& index = layer.index;
  switch (block.part) {
    case StatePart::kRecentKeys: return layer.recent.keys;
    case StatePart::kRecentValues: return layer.recent.values;
    case StatePart::kSinkKeys: return layer.sink_keys;
    case StatePart::kSinkValues: return layer.sink_values;
    case StatePart::kExactKeys: return layer.exact_keys;
    case StatePart::kExactValues: return layer.exact_values;
    case StatePart::kLandmarks: return index.landmarks;
    case StatePart::kLandmarkCodes: return index.codes;
    case StatePart::kLandmarkScales: return index.scales;
    case StatePart::kCoarse: return index.coarse;
    case StatePart::kValueMeans: return index.value_means;
    case StatePart::kExcluded: return index.excluded;
    case StatePart::kKeyMean: return layer.lowrank.mean;
    case StatePart::kBasis: return layer.lowrank.basis;
    case StatePart::kCoefficients: return layer.coefficients;
    case StatePart::kKeyCodes: return layer.key_codes;
    case StatePart::kHomeValues: return layer.home_values;
    case StatePart::kValueCodes: return layer.value_codes;
    case StatePart::kHomeKeys: return layer.home_keys;
    case StatePart::kAuditKeys: return layer.audit_keys;
    case StatePart::kSlots: return layer.slots;
    case StatePart::kSlotOfChunk: return layer.slot_state.slot_of_chunk;
    case StatePart::kChunkOfSlot: return layer.slot_state.chunk_of_slot;
    case StatePart::kSlotOrder: return layer.slot_state.order;
    case StatePart::kPreviousQ: return index.previous_q;
    case StatePart::kReuseState: return index.reuse_state;
    case StatePart::kListIds: return index.lists.ids;
    case StatePart::kListCounts: return index.lists.counts;
    case StatePart::kDroppedIds: return index.lists.dropped_ids;
    case StatePart::kDroppedCounts: return index.lists.dropped_counts;
    case StatePart::kResidualEnergy: return residual_energy_;
    case StatePart::kKeyBias: return layer.key_bias;
    case StatePart::kExactIds: return index.exact_ids;
    case StatePart::kLateKeys: return layer.late_keys;
    case StatePart::kLateValues: return layer.late_values;
    case StatePart::kLateIds: return index.late_ids;
    case StatePart::kLateCosines: return index.late_cosines;
  }
  return nullptr;
}

}  // namespace tiercel
