// KvStore: taking memory. What is taken here is counted in layout.cpp; a test compares the two.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
KvStore<Device, Host>::KvStore(Queues queues, Arena<Device>& device_arena, Arena<Host>& host_arena,
                               KvWorkspace<Device>& workspace, const KvLayout& layout, RopeView rope,
                               float scale, bool exact_exp, const KvStore* prefix)
    : device_(queues.device),
      copy_(queues.copy),
      side_(queues.side),
      host_(queues.host),
      device_arena_(device_arena),
      workspace_(workspace),
      layout_(layout),
      rope_(rope),
      scale_(scale),
      exact_exp_(exact_exp),
      layers_(static_cast<size_t>(layout.shape.n_layers)),
      audit_statistics_(static_cast<size_t>(4 * layout.shape.n_heads)),
      mass_(static_cast<size_t>(layout.shape.n_layers)),
      prompt_end_(static_cast<size_t>(layout.shape.n_layers)),
      selected_(layout.select) {
  CHECK(workspace.covers(layout), "a workspace for {} tokens", workspace.capacity);
  worker_ = queues.worker;
  device_arena.reserve(layout_.reserved(layout_.held_bytes()));
  host_arena.reserve(layout_.reserved(layout_.host_bytes()));
  take_shared(device_arena);
  CHECK(layout_.shares_prefix() == (prefix != nullptr));
  for (int64_t layer = 0; layer < layout_.shape.n_layers; ++layer) {
    if (prefix != nullptr) {
      share_layer(layer, *prefix, device_arena);
    } else {
      take_layer(layer, device_arena, host_arena);
    }
  }
  if (prefix != nullptr) n_tokens_ = n_prompt_ = prefix->n_tokens_;
  take_host_staging(host_arena);
}

template <typename Device, typename Host>
typename KvStore<Device, Host>::Recent KvStore<Device, Host>::take_recent(int64_t layer,
                                                                          Arena<Device>& device) {
  Recent recent;
  recent.capacity = layout_.exact_capacity(layer);
  const int64_t n = recent.capacity * kv() * d();
  recent.keys = device.template take<bf16>(Purpose::kExact, n);
  recent.values = device.template take<bf16>(Purpose::kExact, n);
  return recent;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_layer(int64_t index, Arena<Device>& device, Arena<Host>& host) {
  const KvSettings& o = layout_.settings;
  Layer& layer = layers_[index];
  const int64_t width = kv() * d();
  layer.recent = take_recent(index, device);
  layer.key_bias = device.template take<float>(
      Purpose::kKeys, layout_.shape.eviction_head ? o.capacity * kv() : 0);
  if (!layout_.tiered(index)) return;
  layer.sink_keys = device.template take<bf16>(Purpose::kExact, o.sinks * width);
  layer.sink_values = device.template take<bf16>(Purpose::kExact, o.sinks * width);
  layer.exact_keys = device.template take<bf16>(Purpose::kExact, layout_.outlier_rows * width);
  layer.exact_values = device.template take<bf16>(Purpose::kExact, layout_.outlier_rows * width);
  const int64_t late_rows = layout_.late_chunks * chunk();
  layer.late_keys = device.template take<bf16>(Purpose::kExact, late_rows * width);
  layer.late_values = device.template take<bf16>(Purpose::kExact, late_rows * width);
  if (layout_.indexed(index)) take_index(index, device);
  take_coded_keys(layer, device);
  if (layout_.at_home_on_device(index)) {
    take_home(index, device);
  } else {
    take_home(index, host);
  }
  if (o.audit && o.keys != KeyForm::kExact) {
    layer.audit_keys = host.template take<bf16>(Purpose::kKeys, o.capacity * width);
  }
  if (layout_.has_slots(index)) take_slots(layer, device);
  layer.host_attends = layout_.attended_by_host(index);
}

// What the prefix has is read where it lies; what is behind it is all in a window of this store.
template <typename Device, typename Host>
void KvStore<Device, Host>::share_layer(int64_t index, const KvStore& prefix, Arena<Device>& device) {
  CHECK(prefix.n_tokens_ == layout_.settings.capacity, "a prefix of {} tokens, planned with {}",
        prefix.n_tokens_, layout_.settings.capacity);
  Layer& layer = layers_[index];
  layer = prefix.layers_[index];
  layer.prefix = layer.recent;
  layer.recent = take_recent(index, device);
  layer.recent.base = layer.recent.first = prefix.n_tokens_;
  layer.key_bias_behind = device.template take<float>(
      Purpose::kKeys, layout_.shape.eviction_head ? layout_.settings.behind * kv() : 0);
  if (!layout_.tiered(index)) return;
  if (layout_.indexed(index)) take_reuse(layer.index, device);
  if (layout_.has_slots(index)) take_slots(layer, device);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_index(int64_t layer, Arena<Device>& arena) {
  const KvSettings& o = layout_.settings;
  Index& index = layers_[layer].index;
  const int64_t n = kv() * layout_.chunks, width = layout_.landmark_elements();
  if (o.landmark_codec == RowCodec::kBf16) {
    index.landmarks = arena.template take<bf16>(Purpose::kLandmarks, n * width);
  } else {
    index.codes = arena.template take<int8_t>(Purpose::kLandmarks, n * width);
    index.scales = arena.template take<float>(Purpose::kLandmarks, n);
  }
  index.coarse = arena.template take<bf16>(Purpose::kLandmarks, kv() * layout_.blocks * width);
  if (o.estimate) index.value_means = arena.template take<bf16>(Purpose::kLandmarks, n * d());
  index.excluded = arena.template take<uint64_t>(Purpose::kLandmarks, kv() * layout_.mask_words);
  index.exact_ids = arena.template take<int32_t>(Purpose::kLandmarks, kv() * o.exact_chunks());
  index.late_ids = arena.template take<int32_t>(Purpose::kLandmarks, kv() * layout_.late_chunks);
  index.late_cosines = arena.template take<float>(Purpose::kLandmarks, kv() * layout_.late_chunks);
  take_reuse(index, arena);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_reuse(Index& index, Arena<Device>& arena) {
  index.lists = lists_.shared;
  index.list_chunks = -1;
  if (!layout_.settings.reuses()) return;
  index.previous_q = arena.template take<bf16>(Purpose::kLandmarks, layout_.shape.n_heads * d());
  index.reuse_state = arena.template take<int32_t>(Purpose::kLandmarks, 2);
  index.lists = take_lists(arena);
}

template <typename Device, typename Host>
typename KvStore<Device, Host>::Lists KvStore<Device, Host>::take_lists(Arena<Device>& arena) {
  int32_t* block = arena.template take<int32_t>(Purpose::kSlots, layout_.list_ints());
  const int64_t n = kv() * layout_.select;
  Lists lists;
  lists.ids = block;
  lists.counts = block + n;
  if (layout_.settings.miss_cap >= 0) {
    lists.dropped_ids = lists.counts + kv();
    lists.dropped_counts = lists.dropped_ids + n;
  }
  return lists;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_coded_keys(Layer& layer, Arena<Device>& arena) {
  const KvSettings& o = layout_.settings;
  if (o.keys == KeyForm::kExact) return;
  const int64_t width = kv() * d();
  layer.lowrank.mean = arena.template take<float>(Purpose::kKeys, width);
  if (o.keys == KeyForm::kCoded) {
    layer.key_codes =
        arena.template take<std::byte>(Purpose::kKeys, kv() * layout_.plane_bytes(o.key_codec));
    return;
  }
  layer.lowrank.basis = arena.template take<bf16>(Purpose::kKeys, width * o.rank);
  layer.lowrank.rank = o.rank;
  if (o.key_codec == RowCodec::kBf16) {
    layer.coefficients = arena.template take<bf16>(Purpose::kKeys, o.capacity * o.rank);
  } else {
    layer.key_codes =
        arena.template take<std::byte>(Purpose::kKeys, o.capacity * row_bytes(o.key_codec, o.rank));
  }
}

template <typename Device, typename Host>
template <typename Tier>
void KvStore<Device, Host>::take_home(int64_t index, Arena<Tier>& arena) {
  const KvSettings& o = layout_.settings;
  Layer& layer = layers_[index];
  if (o.value_codec == RowCodec::kBf16) {
    layer.home_values = arena.template take<bf16>(Purpose::kValues, o.capacity * kv() * d());
  } else {
    layer.value_codes =
        arena.template take<std::byte>(Purpose::kValues, layout_.home_value_bytes());
  }
  if (layout_.index_is_keys(index)) {
    layer.home_keys = layer.index.landmarks;
  } else if (o.keys == KeyForm::kExact) {
    layer.home_keys = arena.template take<bf16>(Purpose::kKeys, o.capacity * kv() * d());
  }
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_slots(Layer& layer, Arena<Device>& arena) {
  layer.slots = arena.template take<bf16>(Purpose::kSlots, kv() * layout_.n_slots * layout_.record);
  SlotState& state = layer.slot_state;
  state.slot_of_chunk = arena.template take<int32_t>(Purpose::kSlots, kv() * layout_.chunks);
  state.chunk_of_slot = arena.template take<int32_t>(Purpose::kSlots, kv() * layout_.n_slots);
  state.order = arena.template take<int32_t>(Purpose::kSlots, kv() * layout_.n_slots);
  state.chunk_capacity = layout_.chunks;
  state.n_slots = layout_.n_slots;
  reset_slots(device_, state, layout_.shape.n_kv_heads);
}

template <typename Device, typename Host>
PartialView KvStore<Device, Host>::take_partial(Arena<Device>& arena) {
  const int64_t heads = layout_.shape.n_heads;
  float* block = arena.template take<float>(Purpose::kActivations, heads * (d() + 2));
  return {block, block + heads, block + 2 * heads};
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_step_lists(Arena<Device>& arena) {
  if (!layout_.settings.reuses()) lists_.shared = take_lists(arena);
  const int64_t n = kv() * layout_.select;
  int32_t* block =
      arena.template take<int32_t>(Purpose::kSlots, 3 * n + kv() * (layout_.n_slots + 2));
  lists_.hit_slots = block;
  lists_.miss_chunks = block + n;
  lists_.miss_slots = block + 2 * n;
  lists_.hit_counts = block + 3 * n;
  lists_.miss_counts = lists_.hit_counts + kv();
  lists_.scratch = lists_.miss_counts + kv();
  if (layout_.coarse_select > 0) {
    lists_.blocks =
        arena.template take<int32_t>(Purpose::kSlots, kv() * (layout_.coarse_select + 1));
    lists_.block_counts = lists_.blocks + kv() * layout_.coarse_select;
  }
  lists_.totals = arena.template take<int64_t>(Purpose::kSlots, layout_.total_counts());
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_prefill_buffers(Arena<Device>& arena) {
  const KvSettings& o = layout_.settings;
  const int64_t width = kv() * d();
  auto take = [&](int64_t n) { return arena.template take<bf16>(Purpose::kActivations, n); };
  if (layout_.mean_plane) plane_means_ = take(layout_.mean_plane_chunks() * width);
  if (!layout_.layer_planes) return;
  plane_keys_ = take(o.prompt * width);
  plane_values_ = take(o.prompt * width);
  if (layout_.spare_key_plane) other_keys_ = take(o.prompt * width);
  offloads_.resize(static_cast<size_t>((o.prompt + kPrefillChunk - 1) / kPrefillChunk));
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_shared(Arena<Device>& arena) {
  if (layout_.any_tiered) take_step_lists(arena);
  if (layout_.any_low_rank() && !layout_.shares_prefix()) {
    residual_energy_ = arena.template take<double>(Purpose::kKeys, layout_.shape.n_layers);
  }
  take_prefill_buffers(arena);
  for (PartialView& partial : partials_) partial = take_partial(arena);
  for (PartialView& partial : audit_partials_) partial = take_partial(arena);
}

}  // namespace tiercel
