// KvStore: what the host attends of one decode step of one layer.
//
// Its own worker does so beside the device (where both are one memory, the device's queue attends in
// place, kv_store_decode.h). What crosses the link are the list of chunks and, one way,
//
//   the query              where the host has keys and values, or
//   weights of all tokens  where the device has the keys (P.V on the host; spec of the op: key_weights),
//
// and back a partial result, 4 (head_dim + 2) bytes per head, whatever was selected.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
void KvStore<Device, Host>::take_host_staging(Arena<Host>& arena) {
  if (!layout_.has_worker()) return;
  CHECK(worker_ != nullptr, "the plan has a worker, the session none");
  const int64_t heads = layout_.shape.n_heads;
  const auto take_floats = [&](int64_t n) {
    return arena.template take<float>(Purpose::kActivations, n);
  };
  HostStaging& s = staging_;
  s.q = arena.template take<bf16>(Purpose::kActivations, heads * d());
  s.lists.ids = arena.template take<int32_t>(Purpose::kActivations, kv() * (layout_.select + 1));
  s.lists.counts = s.lists.ids + kv() * layout_.select;
  float* partial = take_floats(heads * (d() + 2));
  s.partial = {partial, partial + heads, partial + 2 * heads};
  s.weights = arena.template take<bf16>(Purpose::kActivations, heads * layout_.staged_weights());
  s.maxima = take_floats(heads * layout_.staged_maxima());
  host_calls_.resize(layers_.size());
  if (workspace_.records != nullptr) {
    std::vector<int32_t> record_of(static_cast<size_t>(kv() * layout_.select));
    std::iota(record_of.begin(), record_of.end(), 0);
    CopyParams ids;
    ids.source = record_of.data();
    ids.target = workspace_.record_of;
    ids.row_bytes = static_cast<int64_t>(record_of.size() * sizeof(int32_t));
    copy(device_, ids);
    device_.finish();
  }
  for (int64_t layer = 0; layer < layout_.shape.n_layers; ++layer) {
    if (layout_.at_home_on_host(layer)) host_calls_[layer] = host_call(layer);
  }
}

// Everything in it stays as it is while the store lives: a call may be on its way, or recorded.
template <typename Device, typename Host>
typename KvStore<Device, Host>::HostCall KvStore<Device, Host>::host_call(int64_t index) {
  const Layer& layer = layers_[index];
  const KvSettings& o = layout_.settings;
  HostCall call;
  call.worker = worker_;
  call.weighed = layout_.weighed_on_device(index);
  if (call.weighed) {
    WeightedValuesParams& p = call.values;
    p.weights = staging_.weights;
    p.weight_stride = layout_.staged_weights();
    p.maxima = staging_.maxima;
    p.maximum_stride = layout_.staged_maxima();
    p.ids = staging_.lists.ids;
    p.counts = staging_.lists.counts;
    p.ids_stride = layout_.select;
    p.chunk_tokens = chunk();
    p.values = layer.home_values;
    p.value_head_stride = o.capacity * d();
    p.codec = o.value_codec;
    p.codes = layer.value_codes;
    p.code_head_stride = layout_.plane_bytes(o.value_codec);
    p.n_heads = layout_.shape.n_heads;
    p.n_kv_heads = layout_.shape.n_kv_heads;
    p.head_dim = layout_.shape.head_dim;
    p.out = staging_.partial;
    return call;
  }
  call.source = home_source(index);
  call.source.ids = staging_.lists.ids;
  call.source.counts = staging_.lists.counts;
  call.source.ids_stride = layout_.select;
  DecodeAttendParams& p = call.attend;
  p.q = staging_.q;
  p.n_sources = 1;
  p.n_heads = layout_.shape.n_heads;
  p.n_kv_heads = layout_.shape.n_kv_heads;
  p.head_dim = layout_.shape.head_dim;
  p.scale = scale_;
  p.out = staging_.partial;
  return call;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::run_host_call(void* data) {
  const HostCall& call = *static_cast<const HostCall*>(data);
  if (call.weighed) {
    call.worker->weighted_values(call.values);
    return;
  }
  DecodeAttendParams attend = call.attend;
  attend.sources = &call.source;
  call.worker->attend_decode(attend);
}

// On the side queue: weights of the chosen chunks to the host, from keys that are rebuilt, or that the
// index has.
template <typename Device, typename Host>
void KvStore<Device, Host>::weigh_chosen(int64_t index, const bf16* q) {
  const Layer& layer = layers_[index];
  const Lists& lists = index_of(index).lists;
  KeyWeightsParams p;
  p.keys = home_source(index);
  if (layout_.settings.keys != KeyForm::kExact) {
    // Records follow each other as the lists do, whatever their heads.
    MissList all;
    all.chunks = lists.ids;
    all.slots = workspace_.record_of;
    all.counts = lists.counts;
    all.stride = chosen_;
    all.records = workspace_.records;
    all.head_stride = 0;
    rebuild_keys_of(layer, all);
    p.keys.keys = workspace_.records;
    p.keys.head_stride = 0;
    p.keys.chunk_stride = layout_.record;
    p.keys.ids = workspace_.record_of;
    p.keys.bias_chunks = lists.ids;
    p.keys.bias_chunks_stride = 0;
  }
  p.q = q;
  p.n_heads = layout_.shape.n_heads;
  p.n_kv_heads = layout_.shape.n_kv_heads;
  p.head_dim = layout_.shape.head_dim;
  p.scale = scale_;
  p.weights = staging_.weights;
  p.weight_stride = layout_.staged_weights();
  p.maxima = staging_.maxima;
  p.maximum_stride = layout_.staged_maxima();
  key_weights(side_, p);
}

// On the copy queue: what the worker needs, then its call.
template <typename Device, typename Host>
void KvStore<Device, Host>::begin_host_attend(int64_t index, const bf16* q) {
  const auto chosen = device_.record();
  HostCall& call = host_calls_[index];
  if (call.weighed) {
    side_.wait(chosen);
    weigh_chosen(index, q);
    copy_.wait(side_.record());
  } else {
    copy_.wait(chosen);
    CopyParams query;
    query.source = q;
    query.target = staging_.q;
    query.row_bytes = layout_.shape.n_heads * d() * static_cast<int64_t>(sizeof(bf16));
    copy(copy_, query);
  }
  constexpr auto kInt = static_cast<int64_t>(sizeof(int32_t));
  const Lists& lists = index_of(index).lists;
  CopyParams ids;
  ids.source = lists.ids;
  ids.target = staging_.lists.ids;
  ids.n_rows = kv();
  ids.row_bytes = ids.source_stride = chosen_ * kInt;
  ids.target_stride = layout_.select * kInt;
  copy(copy_, ids);
  CopyParams counts;
  counts.source = lists.counts;
  counts.target = staging_.lists.counts;
  counts.row_bytes = kv() * kInt;
  copy(copy_, counts);
  call_host(copy_, {&run_host_call, &call});
  pending_.host = copy_.record();
}

template <typename Device, typename Host>
void KvStore<Device, Host>::end_host_attend(bf16* out) {
  const PartialView both[] = {partials_[0], staging_.partial};
  MergeParams merge;
  merge.partials = both;
  merge.n_partials = 2;
  merge.n_heads = layout_.shape.n_heads;
  merge.head_dim = layout_.shape.head_dim;
  merge.out = out;
  merge_partials(device_, merge);
}

template <typename Device, typename Host>
bool KvStore<Device, Host>::is_to_be_tried(int64_t index) const {
  return layout_.settings.host_use == HostUse::kMeasured && n_steps_ >= kStepsBeforeTrial &&
         layout_.at_home_on_host(index) && !layers_[index].trial &&
         selected_per_head(layers_[index]) > 0;
}

// Of this layer so far.
template <typename Device, typename Host>
double KvStore<Device, Host>::hit_rate(int64_t index) const {
  std::vector<int64_t> counts(static_cast<size_t>(kv() * 3));
  read_back(lists_.totals + index * kv() * 3, counts.data(),
            kv() * 3 * static_cast<int64_t>(sizeof(int64_t)));
  int64_t selected = 0, hit = 0;
  for (int64_t j = 0; j < kv(); ++j) {
    selected += counts[static_cast<size_t>(j * 3)];
    hit += counts[static_cast<size_t>(j * 3 + 1)];
  }
  return selected > 0 ? static_cast<double>(hit) / static_cast<double>(selected) : 0;
}

// In the middle of a step, with the chunks chosen: attends them with an empty cache, from a cache that
// has them all, and on the host. At the hit rate that was seen a fetch takes a mean of the first two. The
// layer goes on as takes less; its cache has lost what was not chosen now.
template <typename Device, typename Host>
void KvStore<Device, Host>::try_both_ways(int64_t index, const bf16* q, bf16* out) {
  Layer& layer = layers_[index];
  MapSlotsParams map = map_params(index, chosen_);
  map.totals = nullptr;  // what is tried is not counted
  const auto seconds = [&](bool empty, bool on_host) {
    double best = std::numeric_limits<double>::infinity();
    layer.host_attends = on_host;
    for (int trial = 0; trial < kTrials; ++trial) {
      if (empty) reset_slots(device_, layer.slot_state, layout_.shape.n_kv_heads);
      device_.finish();
      const auto start = std::chrono::steady_clock::now();
      if (!on_host) map_slots(device_, map);
      const Attention alone{this, q, out};
      if (fetches(index)) {
        pending_.misses = true;
        fetch_misses(index, {&alone, 1});
        attend_hits(index, q);
      } else {
        attend_at_home(index, q, out);
      }
      await_chosen({&alone, 1});
      end_chosen(index, q, out);
      device_.finish();
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      best = std::min(best, taken.count());
    }
    return best;
  };
  const double missed = seconds(true, false), hit = seconds(false, false);
  const double share = hit_rate(index);
  layer.trial = {(1 - share) * missed + share * hit, seconds(false, true)};
  layer.host_attends = layer.trial->on_host < layer.trial->fetched;
}

}  // namespace tiercel
