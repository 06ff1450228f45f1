// KvStore: prefill, and sending a finished layer home.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
RopeAppendParams KvStore<Device, Host>::rope_append_params(const Projections& p) const {
  RopeAppendParams append;
  append.q = p.q;
  append.k = p.k;
  append.v = p.v;
  append.q_norm = p.q_norm;
  append.k_norm = p.k_norm;
  append.eps = p.norm_eps;
  append.n_tokens = p.n_tokens;
  append.n_heads = layout_.shape.n_heads;
  append.n_kv_heads = layout_.shape.n_kv_heads;
  append.head_dim = layout_.shape.head_dim;
  append.rope = rope_;
  return append;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::append_key_bias(const Layer& layer, const Projections& p,
                                            int64_t first_token) {
  if (layer.key_bias == nullptr) return;
  KeyBiasParams params;
  params.v = p.v;
  params.delta = p.delta;
  params.a = p.a;
  params.bias = layer.key_bias;
  params.bias_head_stride = layout_.settings.capacity;
  params.first_row = first_token;
  if (layer.key_bias_behind != nullptr) {
    params.bias = layer.key_bias_behind;
    params.bias_head_stride = layout_.settings.behind;
    params.first_row = first_token - n_prompt_;
  }
  params.later = later();
  params.n_tokens = p.n_tokens;
  params.n_kv_heads = layout_.shape.n_kv_heads;
  params.head_dim = layout_.shape.head_dim;
  make_key_bias(device_, params);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::append_prompt(int64_t index, const Projections& p,
                                          int64_t first_token) {
  const bool planes = layout_.layer_planes;
  Recent& recent = layers_[index].recent;
  const int64_t rows = planes ? layout_.settings.prompt : recent.capacity;
  CHECK(first_token + p.n_tokens <= rows, "token {} of {}", first_token + p.n_tokens, rows);
  RopeAppendParams append = rope_append_params(p);
  append.keys = planes ? plane_keys_ : recent.keys;
  append.values = planes ? plane_values_ : recent.values;
  append.head_stride = rows * d();
  append.first_row = first_token;
  append.first_position = first_token;
  if (views_at(first_token + p.n_tokens - 1).n > 1) append.q = nullptr;  // turned view by view
  if (planes) await_offload(first_token + p.n_tokens);
  rope_append(device_, append);
  append_key_bias(layers_[index], p, first_token);
  append_landmarks(index, append, first_token, p.n_tokens);
}

// Queries of a run that append_prompt has left as they were, as they look at a span.
template <typename Device, typename Host>
void KvStore<Device, Host>::turn_view(const Projections& p, int64_t first_token, int64_t view) {
  RopeAppendParams turn = rope_append_params(p);
  turn.k = turn.v = nullptr;
  turn.first_position = first_token;
  turn.spans = layout_.shape.spans;
  turn.first_span = static_cast<int32_t>(view);
  turn.n_views = 1;
  turn.views = p.views;
  rope_append(device_, turn);
}

// All but keys and values, and what is seen of them.
template <typename Device, typename Host>
PrefillAttendParams KvStore<Device, Host>::prompt_attend_params(const Projections& p, int64_t n_context,
                                                                bf16* out) const {
  PrefillAttendParams attend;
  attend.q = p.q;
  attend.out = out;
  attend.n_tokens = p.n_tokens;
  attend.n_heads = layout_.shape.n_heads;
  attend.n_kv_heads = layout_.shape.n_kv_heads;
  attend.head_dim = layout_.shape.head_dim;
  attend.scale = scale_at(n_context);
  attend.exact_exp = exact_exp_;
  attend.bias_head_stride = layout_.settings.capacity;
  return attend;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::attend_prompt(int64_t index, const Projections& p, int64_t first_token,
                                          int64_t n_prompt, bool dense, bf16* out) {
  const bool planes = layout_.layer_planes;
  const Recent& recent = layers_[index].recent;
  PrefillAttendParams attend = prompt_attend_params(p, n_prompt, out);
  attend.keys = planes ? plane_keys_ : recent.keys;
  attend.values = planes ? plane_values_ : recent.values;
  attend.head_stride = (planes ? layout_.settings.prompt : recent.capacity) * d();
  attend.first_position = first_token;
  attend.window = layout_.shape.window[index];
  attend.bias = layers_[index].key_bias;
  n_last_q_ = std::min(p.n_tokens, kMaxMassTokens);
  last_q_ = p.q + (p.n_tokens - n_last_q_) * attend.n_heads * d();
  if (layout_.settings.select_prefill && !dense && attend.window == 0) {
    select_for_prompt(index, p, first_token, attend);
  }
  const QueryViews views = views_at(first_token + p.n_tokens - 1);
  if (views.n == 1) {
    attend_prefill(device_, attend);
    return;
  }
  CHECK((views.n - 1) * views.span_tokens <= first_token, "queries {} to {} look at one span in two ways",
        first_token, first_token + p.n_tokens - 1);
  attend.q = p.views;
  attend.part.state = workspace_.part_state;
  for (int32_t view = 0; view < views.n; ++view) {
    turn_view(p, first_token, view);
    attend.part.begin = view * views.span_tokens;
    attend.part.is_first = view == 0;
    attend.part.is_last = view + 1 == views.n;
    attend.part.end = attend.part.is_last ? 0 : (view + 1) * views.span_tokens;
    attend_prefill(device_, attend);
  }
}

// All but the landmarks.
template <typename Device, typename Host>
PrefillSelectParams KvStore<Device, Host>::prompt_select_params(const Projections& p, int64_t first_token,
                                                                float scale) const {
  const int32_t chunk = layout_.settings.prefill_chunk();
  CHECK(p.n_tokens <= kPrefillChunk);
  PrefillSelectParams select;
  select.q = p.q;
  select.views = views_at(first_token + p.n_tokens - 1);
  select.first_position = first_token;
  select.n_tokens = p.n_tokens;
  select.block_tokens = kPrefillBlock;
  select.local_tokens = kPrefillLocal;
  select.sink_chunks = layout_.settings.sinks / chunk;
  select.k = layout_.prefill_ids - select.sink_chunks;
  select.chunk_tokens = chunk;
  select.n_heads = layout_.shape.n_heads;
  select.n_kv_heads = layout_.shape.n_kv_heads;
  select.head_dim = layout_.shape.head_dim;
  select.scale = scale;
  select.chunk_ids = workspace_.block_ids;
  select.chunk_counts = workspace_.block_counts;
  select.local_begin = workspace_.block_local;
  return select;
}

// What prompt_select_params writes is attended.
template <typename Device, typename Host>
void KvStore<Device, Host>::attend_listed(PrefillAttendParams& attend) const {
  attend.block_tokens = kPrefillBlock;
  attend.chunk_ids = workspace_.block_ids;
  attend.chunk_counts = workspace_.block_counts;
  attend.local_begin = workspace_.block_local;
  attend.max_chunks = layout_.prefill_ids;
  attend.chunk_tokens = layout_.settings.prefill_chunk();
}

// Mean queries as they look at each span. means: [views][n_blocks][n_heads][d].
template <typename Device, typename Host>
void KvStore<Device, Host>::mean_views(const Projections& p, int64_t first_token, int64_t n_blocks, bf16* means,
                                       PrefillSelectParams& select) {
  select.means = means;
  select.views.stride = n_blocks * select.n_heads * d();
  for (int32_t view = 0; view < select.views.n; ++view) {
    turn_view(p, first_token, view);
    MeanQueriesParams mean;
    mean.q = p.views;
    mean.n_tokens = p.n_tokens;
    mean.block_tokens = kPrefillBlock;
    mean.n_heads = select.n_heads;
    mean.head_dim = select.head_dim;
    mean.means = means + view * select.views.stride;
    mean_queries(device_, mean);
  }
}

// The chunks that blocks of queries attend.
template <typename Device, typename Host>
void KvStore<Device, Host>::select_for_prompt(int64_t index, const Projections& p, int64_t first_token,
                                              PrefillAttendParams& attend) {
  CHECK(first_token % layout_.settings.prefill_chunk() == 0);
  PrefillSelectParams select = prompt_select_params(p, first_token, attend.scale);
  select.landmarks = prefill_landmarks(index, &select.landmark_head_stride);
  if (select.views.n > 1) mean_views(p, first_token, KvLayout::prefill_blocks(), workspace_.view_means, select);
  select_prefill_chunks(device_, select);
  attend_listed(attend);
}

// n_rows rows of every KV head.
template <typename Device, typename Host>
void KvStore<Device, Host>::copy_rows_on(Device& queue, const bf16* source, int64_t source_stride,
                                         bf16* target, int64_t target_stride, int64_t n_rows) {
  if (n_rows <= 0) return;
  CopyParams params;
  params.source = source;
  params.target = target;
  params.n_rows = kv();
  params.row_bytes = n_rows * d() * static_cast<int64_t>(sizeof(bf16));
  params.source_stride = source_stride * static_cast<int64_t>(sizeof(bf16));
  params.target_stride = target_stride * static_cast<int64_t>(sizeof(bf16));
  copy(queue, params);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::finish_layer(int64_t index, int64_t n_tokens) {
  if (!layout_.layer_planes) {
    layers_[index].recent.first = 0;
    return;
  }
  Layer& layer = layers_[index];
  const KvSettings& o = layout_.settings;
  const int64_t plane = o.prompt * d();
  copy_.wait(device_.record());
  const LayerState end = layer_after_prompt(layout_, index, n_tokens);
  layer.recent.base = layer.recent.first = end.first;
  if (layout_.tiered(index)) {
    layer.n_sinks = end.n_sinks;
    layer.first_chunk = end.first_chunk;
    layer.end_chunk = end.end_chunk;
    index_layer(index, n_tokens);
  }
  const int64_t n_recent = n_tokens - layer.recent.first;
  CHECK(n_recent <= layer.recent.capacity, "{} of {}", n_recent, layer.recent.capacity);
  copy_rows(plane_keys_ + layer.recent.first * d(), plane, layer.recent.keys,
            layer.recent.capacity * d(), n_recent);
  copy_rows(plane_values_ + layer.recent.first * d(), plane, layer.recent.values,
            layer.recent.capacity * d(), n_recent);
  offload_planes(layer, layout_.tiered(index) ? layer.end_chunk * chunk() : 0);
  change_key_plane();
}

// Starts moving the middle's values (and keys, where they are kept) home, in pieces, so that the next
// layer need not wait for the whole.
template <typename Device, typename Host>
void KvStore<Device, Host>::offload_planes(const Layer& layer, int64_t n_tokens) {
  const int64_t plane = layout_.settings.prompt * d();
  offloading_ = 0;
  for (int64_t first = 0; first < layout_.settings.prompt; first += kPrefillChunk) {
    const int64_t n = std::min(kPrefillChunk, n_tokens - first);
    if (n > 0) {
      send_home(layer, plane_keys_ + first * d(), plane_values_ + first * d(), plane, first, n);
    }
    offloads_[static_cast<size_t>(offloading_++)] = copy_.record();
  }
}

// Rows of n_tokens (at most kPrefillChunk) on the copy queue. Coded values pass through a piece on the
// device.
template <typename Device, typename Host>
void KvStore<Device, Host>::send_home(const Layer& layer, const bf16* keys, const bf16* values,
                                      int64_t head_stride, int64_t first_token, int64_t n_tokens) {
  const KvSettings& o = layout_.settings;
  const int64_t home = o.capacity * d();
  const bool keys_are_home = layer.home_keys == nullptr || layer.home_keys == layer.index.landmarks;
  if (!keys_are_home) {
    copy_rows(keys, head_stride, layer.home_keys + first_token * d(), home, n_tokens);
  }
  if (layer.audit_keys != nullptr) {
    copy_rows(keys, head_stride, layer.audit_keys + first_token * d(), home, n_tokens);
  }
  if (layer.home_values != nullptr) {
    copy_rows(values, head_stride, layer.home_values + first_token * d(), home, n_tokens);
    return;
  }
  const int64_t bytes = row_bytes(o.value_codec, d());
  EncodeParams encode;
  encode.rows = values;
  encode.head_stride = head_stride;
  encode.first_row = first_token;
  encode.first_token = first_token;
  encode.n_tokens = n_tokens;
  encode.n_kv_heads = layout_.shape.n_kv_heads;
  encode.width = d();
  encode.codec = o.value_codec;
  encode.codes = workspace_.values;
  encode.first_code = first_token;
  encode.code_head_stride = kPrefillChunk * bytes;
  encode_rows(copy_, encode);
  CopyParams params;
  params.source = workspace_.values;
  params.target = layer.value_codes + first_token * bytes;
  params.n_rows = kv();
  params.row_bytes = n_tokens * bytes;
  params.source_stride = kPrefillChunk * bytes;
  params.target_stride = layout_.plane_bytes(o.value_codec);
  copy(copy_, params);
}

// Before rows up to end_token of the planes are written again.
template <typename Device, typename Host>
void KvStore<Device, Host>::await_offload(int64_t end_token) {
  if (offloading_ == 0) return;
  device_.wait(offloads_[static_cast<size_t>((end_token - 1) / kPrefillChunk)]);
}

// The next layer writes the other plane, once the side queue has read what the layer before left there.
template <typename Device, typename Host>
void KvStore<Device, Host>::change_key_plane() {
  if (other_keys_ == nullptr) {
    device_.wait(side_.record());
    return;
  }
  std::swap(plane_keys_, other_keys_);
  if (other_keys_read_) device_.wait(*other_keys_read_);
  other_keys_read_ = side_.record();
}

template <typename Device, typename Host>
void KvStore<Device, Host>::end_prefill(int64_t n_tokens) {
  n_tokens_ = n_prompt_ = n_tokens;
  for (size_t i = 0; i < layers_.size(); ++i) {
    prompt_end_[i] = {layers_[i].recent.base, layers_[i].recent.first, layers_[i].end_chunk,
                      layers_[i].index.n_blocks};
  }
  device_.wait(side_.record());
  copy_.wait(device_.record());
  device_.wait(copy_.record());  // what is at home on the device
  host_.wait(copy_.record());
  give_back_prefill_planes();
}

template <typename Device, typename Host>
void KvStore<Device, Host>::give_back_prefill_planes() {
  for (bf16** block : {&plane_keys_, &other_keys_, &plane_values_, &plane_means_}) {
    device_arena_.give_back(*block);
    *block = nullptr;
  }
}

}  // namespace tiercel
