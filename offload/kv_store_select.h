// KvStore: which chunks a decode step of one layer attends.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
int64_t KvStore<Device, Host>::selected_per_head(const Layer& layer) const {
  return std::min(selected_, layer.end_chunk - layer.first_chunk);
}

template <typename Device, typename Host>
SelectParams KvStore<Device, Host>::select_params(int64_t layer, const bf16* q, int64_t k) const {
  const Layer& l = layers_[layer];
  const Index& index = l.index;
  const KvSettings& o = layout_.settings;
  SelectParams select;
  select.q = q;
  select.views = views_at(position_);
  select.chunk_tokens = chunk();
  select.index = o.index;
  select.landmarks = index.landmarks;
  select.codes = index.codes;
  select.scales = index.scales;
  select.landmark_head_stride = layout_.chunks * layout_.landmark_elements();
  select.excluded = index.excludes ? index.excluded : nullptr;
  select.excluded_stride = layout_.mask_words;
  select.first_chunk = l.first_chunk;
  select.end_chunk = l.end_chunk;
  select.k = k;
  select.n_heads = layout_.shape.n_heads;
  select.n_kv_heads = layout_.shape.n_kv_heads;
  select.head_dim = layout_.shape.head_dim;
  select.scale = scale_at(position_ + 1);
  select.group = o.group;
  select.scope = o.scope;
  select.top_p = static_cast<float>(o.top_p);
  if (o.miss_cap >= 0 && fetches(layer)) {
    select.max_misses = o.miss_cap;
    select.slot_of_chunk = l.slot_state.slot_of_chunk;
    select.chunk_capacity = l.slot_state.chunk_capacity;
    select.dropped_ids = index.lists.dropped_ids;
    select.dropped_counts = index.lists.dropped_counts;
  }
  select.ids = index.lists.ids;
  select.counts = index.lists.counts;
  select.workspace = workspace_.select(place_);
  return select;
}

template <typename Device, typename Host>
MapSlotsParams KvStore<Device, Host>::map_params(int64_t layer, int64_t k) const {
  const Lists& lists = index_of(layer).lists;
  MapSlotsParams map;
  map.state = layers_[layer].slot_state;
  map.n_kv_heads = layout_.shape.n_kv_heads;
  map.ids = lists.ids;
  map.counts = lists.counts;
  map.stride = k;
  map.hit_slots = lists_.hit_slots;
  map.hit_counts = lists_.hit_counts;
  map.miss_chunks = lists_.miss_chunks;
  map.miss_slots = lists_.miss_slots;
  map.miss_counts = lists_.miss_counts;
  map.scratch = lists_.scratch;
  // What a layer at home on the device copies costs no transfer.
  if (!layout_.at_home_on_device(layer)) map.totals = lists_.totals + layer * kv() * 3;
  return map;
}

// Ids of the chunks to attend, and with `map` where they are in the selection cache. Layers behind
// their leader attend what it selected.
template <typename Device, typename Host>
void KvStore<Device, Host>::choose_chunks(int64_t layer, const bf16* q, int64_t k, bool map) {
  if (layout_.leader(layer) != layer) {
    if (map) map_slots(device_, map_params(layer, k));
    return;
  }
  const SelectParams select = choice_params(layer, q, k);
  if (layout_.settings.imposed_hit_rate >= 0) {
    select_chunks(device_, select);
    impose(layer, k);
    if (map) map_slots(device_, map_params(layer, k));
  } else if (map) {
    select_and_map(device_, select, map_params(layer, k));
  } else {
    select_chunks(device_, select);
  }
}

// Of a layer that selects for itself. Enqueues what decides about it beforehand.
template <typename Device, typename Host>
SelectParams KvStore<Device, Host>::choice_params(int64_t layer, const bf16* q, int64_t k) {
  SelectParams select = select_params(layer, q, k);
  select.keep = decide_reuse_of(layer, q);
  choose_blocks(select, layers_[layer].index);
  return select;
}

// Where the device writes whether the list may stay; null: every step selects.
template <typename Device, typename Host>
const int32_t* KvStore<Device, Host>::decide_reuse_of(int64_t layer, const bf16* q) {
  const KvSettings& o = layout_.settings;
  if (!o.reuses()) return nullptr;
  Index& index = layers_[layer].index;
  const int64_t k = selected_per_head(layers_[layer]);
  ReuseParams reuse;
  const QueryViews views = views_at(position_);
  reuse.q = q + (views.n - 1) * views.stride;  // as it looks at its own span
  reuse.previous = index.previous_q;
  reuse.n = layout_.shape.n_heads * d();
  reuse.min_cosine = o.reuse_cosine > 0 ? static_cast<float>(o.reuse_cosine) : -1.0f;
  // A list of another length is of no use: one step is what it may serve.
  reuse.every = index.list_chunks == k ? static_cast<int32_t>(o.reuse_steps) : 1;
  reuse.state = index.reuse_state;
  reuse.totals = lists_.totals + layout_.total_counts() - 2;
  decide_reuse(device_, reuse);
  index.list_chunks = k;
  return index.reuse_state;
}

// Two levels: the best blocks first. Chunks behind the last whole block always compete.
template <typename Device, typename Host>
void KvStore<Device, Host>::choose_blocks(SelectParams& fine, const Index& index) {
  if (layout_.coarse_select == 0) return;
  const int32_t n = layout_.block_chunks();
  SelectParams coarse = fine;
  coarse.landmarks = index.coarse;
  coarse.codes = nullptr;
  coarse.scales = nullptr;
  coarse.first_chunk = fine.first_chunk / n;
  coarse.end_chunk = std::min(fine.end_chunk / n, index.n_blocks);
  const int64_t n_blocks = coarse.end_chunk - coarse.first_chunk;
  if (n_blocks <= 0) return;
  coarse.k = layout_.blocks_looked_into(n_blocks, fine.k);
  coarse.landmark_head_stride = layout_.blocks * layout_.landmark_elements();
  coarse.excluded = nullptr;
  coarse.top_p = 0;
  coarse.max_misses = -1;
  coarse.ids = lists_.blocks;
  coarse.counts = lists_.block_counts;
  select_chunks(device_, coarse);
  fine.blocks = lists_.blocks;
  fine.block_counts = lists_.block_counts;
  fine.block_stride = coarse.k;
  fine.block_chunks = n;
  fine.first_loose_chunk = coarse.end_chunk * n;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::impose(int64_t layer, int64_t k) {
  const Layer& l = layers_[layer];
  ImposeParams impose;
  impose.ids = l.index.lists.ids;
  impose.counts = l.index.lists.counts;
  impose.k = k;
  impose.first_chunk = l.first_chunk;
  impose.end_chunk = l.end_chunk;
  impose.step = position_;
  impose.later = later();
  impose.n_kv_heads = layout_.shape.n_kv_heads;
  impose.hit_rate = static_cast<float>(layout_.settings.imposed_hit_rate);
  impose_selection(device_, impose);
}

// How many chunks this step selects. How they are attended is not known yet.
template <typename Device, typename Host>
void KvStore<Device, Host>::begin_choice(int64_t index) {
  pending_ = {};
  chosen_ = layout_.tiered(index) ? selected_per_head(layers_[index]) : 0;
  if (chosen_ > 0) ++steps_;
}

// 2-5 select and map.
template <typename Device, typename Host>
void KvStore<Device, Host>::choose(int64_t index, const bf16* q) {
  begin_choice(index);
  if (chosen_ > 0) choose_chunks(index, q, chosen_, maps_choice(index));
}

// The same of several stores. Where one op can select for all of them, stores behind one prefix read its
// landmarks once; where launches are merged they take theirs at once.
template <typename Device, typename Host>
void KvStore<Device, Host>::choose_all(int64_t index, std::span<const Attention> some) {
  constexpr bool kForAll =
      requires(Device& queue, std::span<const SelectParams> all) { select_chunks(queue, all); };
  if constexpr (kForAll) {
    KvStore& first = *some.front().store;
    const bool has_places = first.workspace_.together >= std::ssize(some);
    const bool leads = first.layout_.leader(index) == index;
    if (has_places && leads && some.size() > 1 && first.layout_.settings.imposed_hit_rate < 0) {
      std::vector<SelectParams>& selections = first.workspace_.selections;
      selections.clear();
      for_each_store(some, [&](KvStore& store, const bf16* q, bf16*) {
        store.begin_choice(index);
        if (store.chosen_ == 0) return;
        selections.push_back(store.choice_params(index, q, store.chosen_));
      });
      select_chunks(first.device_, std::span<const SelectParams>(selections));
      for_each_store(some, [&](KvStore& store, const bf16*, bf16*) {
        if (store.chosen_ > 0 && store.maps_choice(index)) {
          map_slots(store.device_, store.map_params(index, store.chosen_));
        }
      });
      return;
    }
  }
  for_each_store(some, [&](KvStore& store, const bf16* q, bf16*) { store.choose(index, q); });
}

}  // namespace tiercel
