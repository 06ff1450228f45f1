// KvStore: taking memory, prefill, and turning a finished layer into its tiered form.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
KvStore<Device, Host>::KvStore(Queues queues, Arena<Device>& device_arena,
                               Arena<Host>& host_arena, const KvLayout& layout, RopeView rope,
                               float scale, bool exact_exp)
    : device_(queues.device),
      copy_(queues.copy),
      side_(queues.side),
      host_(queues.host),
      device_arena_(device_arena),
      layout_(layout),
      rope_(rope),
      scale_(scale),
      exact_exp_(exact_exp),
      layers_(static_cast<size_t>(layout.shape.n_layers)),
      audit_statistics_(static_cast<size_t>(4 * layout.shape.n_heads)),
      mass_(static_cast<size_t>(layout.shape.n_layers)),
      prompt_end_(static_cast<size_t>(layout.shape.n_layers)),
      selected_(layout.select) {
  for (int64_t layer = 0; layer < layout_.shape.n_layers; ++layer) {
    take_layer(layer, device_arena, host_arena);
  }
  take_shared(device_arena);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_layer(int64_t index, Arena<Device>& device, Arena<Host>& host) {
  const KvSettings& o = layout_.settings;
  Layer& layer = layers_[index];
  const int64_t width = kv() * d();
  layer.recent.capacity = layout_.exact_capacity(index);
  layer.recent.keys = device.template take<bf16>(Purpose::kExact, layer.recent.capacity * width);
  layer.recent.values = device.template take<bf16>(Purpose::kExact, layer.recent.capacity * width);
  if (!layout_.tiered(index)) return;
  layer.sink_keys = device.template take<bf16>(Purpose::kExact, o.sinks * width);
  layer.sink_values = device.template take<bf16>(Purpose::kExact, o.sinks * width);
  layer.outlier_keys = device.template take<bf16>(Purpose::kExact, layout_.outlier_rows * width);
  layer.outlier_values = device.template take<bf16>(Purpose::kExact, layout_.outlier_rows * width);
  layer.landmarks = device.template take<bf16>(Purpose::kLandmarks, layout_.chunks * width);
  layer.excluded = device.template take<uint64_t>(Purpose::kLandmarks, kv() * layout_.mask_words);
  layer.outlier_ids = device.template take<int32_t>(Purpose::kLandmarks, kv() * o.outliers);
  if (!o.exact_keys) {
    layer.coefficients = device.template take<bf16>(Purpose::kKeys, o.capacity * o.rank);
    layer.lowrank.basis = device.template take<bf16>(Purpose::kKeys, width * o.rank);
    layer.lowrank.mean = device.template take<float>(Purpose::kKeys, width);
    layer.lowrank.rank = o.rank;
  }
  layer.slots =
      device.template take<bf16>(Purpose::kSlots, kv() * layout_.n_slots * layout_.record);
  SlotState& state = layer.slot_state;
  state.slot_of_chunk = device.template take<int32_t>(Purpose::kSlots, kv() * layout_.chunks);
  state.chunk_of_slot = device.template take<int32_t>(Purpose::kSlots, kv() * layout_.n_slots);
  state.order = device.template take<int32_t>(Purpose::kSlots, kv() * layout_.n_slots);
  state.chunk_capacity = layout_.chunks;
  state.n_slots = layout_.n_slots;
  reset_slots(device_, state, layout_.shape.n_kv_heads);
  layer.host_values = host.template take<bf16>(Purpose::kValues, o.capacity * width);
  if (o.exact_keys || o.audit) {
    layer.host_keys = host.template take<bf16>(Purpose::kKeys, o.capacity * width);
  }
}

template <typename Device, typename Host>
PartialView KvStore<Device, Host>::take_partial(Arena<Device>& arena) {
  const int64_t heads = layout_.shape.n_heads;
  float* block = arena.template take<float>(Purpose::kActivations, heads * (d() + 2));
  return {block, block + heads, block + 2 * heads};
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_shared(Arena<Device>& arena) {
  const KvSettings& o = layout_.settings;
  const int64_t width = kv() * d();
  if (layout_.any_tiered) {
    const int64_t n = kv() * layout_.select;
    int32_t* block =
        arena.template take<int32_t>(Purpose::kSlots, 4 * n + kv() * (layout_.n_slots + 3));
    lists_.ids = block;
    lists_.hit_slots = block + n;
    lists_.miss_chunks = block + 2 * n;
    lists_.miss_slots = block + 3 * n;
    lists_.counts = block + 4 * n;
    lists_.hit_counts = lists_.counts + kv();
    lists_.miss_counts = lists_.hit_counts + kv();
    lists_.scratch = lists_.miss_counts + kv();
    lists_.totals = arena.template take<int64_t>(Purpose::kSlots, 3 * kv());
    lists_.select_workspace =
        arena.template take<float>(Purpose::kLandmarks, layout_.select_floats);
  }
  if (layout_.any_low_rank()) {
    residual_energy_ = arena.template take<double>(Purpose::kKeys, layout_.shape.n_layers);
  }
  if (o.select_prefill) {
    if (o.kind == StoreKind::kDense) {
      plane_landmarks_ = arena.template take<bf16>(Purpose::kActivations, layout_.chunks * width);
    }
    const int64_t blocks = (kPrefillChunk + kPrefillBlock - 1) / kPrefillBlock;
    block_ids_ =
        arena.template take<int32_t>(Purpose::kActivations, blocks * kv() * layout_.prefill_ids);
    block_counts_ = arena.template take<int32_t>(Purpose::kActivations, blocks * kv());
    block_local_ = arena.template take<int64_t>(Purpose::kActivations, blocks);
  }
  if (o.replay) clock_ = arena.template take<int64_t>(Purpose::kActivations, 1);
  if (layout_.layer_planes) {
    plane_keys_ = arena.template take<bf16>(Purpose::kActivations, o.prompt * width);
    plane_values_ = arena.template take<bf16>(Purpose::kActivations, o.prompt * width);
    if (layout_.spare_key_plane) {
      other_keys_ = arena.template take<bf16>(Purpose::kActivations, o.prompt * width);
    }
    offloads_.resize(static_cast<size_t>((o.prompt + kPrefillChunk - 1) / kPrefillChunk));
  }
  for (PartialView& partial : partials_) partial = take_partial(arena);
  for (PartialView& partial : audit_partials_) partial = take_partial(arena);
  decode_workspace_ = arena.template take<float>(
      Purpose::kActivations, decode_workspace_floats(layout_.shape.n_heads, d()));
}

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
bf16* KvStore<Device, Host>::prefill_landmarks(int64_t layer) {
  return layout_.tiered(layer) ? layers_[layer].landmarks : plane_landmarks_;
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
  if (planes) await_offload(first_token + p.n_tokens);
  rope_append(device_, append);

  if (!layout_.tiered(index) && !(layout_.settings.select_prefill && plane_landmarks_ != nullptr)) {
    return;
  }
  // Chunks that these tokens completed.
  const int64_t first = first_token / chunk();
  const int64_t end = (first_token + p.n_tokens) / chunk();
  LandmarkParams params;
  params.keys = append.keys;
  params.key_head_stride = append.head_stride;
  params.landmarks = prefill_landmarks(index);
  params.landmark_head_stride = layout_.chunks * d();
  params.first_chunk = first;
  params.n_chunks = end - first;
  params.chunk_tokens = chunk();
  params.n_kv_heads = layout_.shape.n_kv_heads;
  params.head_dim = layout_.shape.head_dim;
  if (params.n_chunks > 0) build_landmarks(device_, params);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::attend_prompt(int64_t index, const bf16* q, int64_t first_token,
                                          int64_t n_tokens, bool dense, bf16* out) {
  const bool planes = layout_.layer_planes;
  const Recent& recent = layers_[index].recent;
  PrefillAttendParams attend;
  attend.q = q;
  attend.keys = planes ? plane_keys_ : recent.keys;
  attend.values = planes ? plane_values_ : recent.values;
  attend.out = out;
  attend.head_stride = (planes ? layout_.settings.prompt : recent.capacity) * d();
  attend.n_tokens = n_tokens;
  attend.first_position = first_token;
  attend.window = layout_.shape.window[index];
  attend.n_heads = layout_.shape.n_heads;
  attend.n_kv_heads = layout_.shape.n_kv_heads;
  attend.head_dim = layout_.shape.head_dim;
  attend.scale = scale_;
  attend.exact_exp = exact_exp_;
  if (layout_.settings.select_prefill && !dense && attend.window == 0) {
    CHECK(n_tokens <= kPrefillChunk && first_token % chunk() == 0);
    PrefillSelectParams select;
    select.q = q;
    select.landmarks = prefill_landmarks(index);
    select.landmark_head_stride = layout_.chunks * d();
    select.first_position = first_token;
    select.n_tokens = n_tokens;
    select.block_tokens = kPrefillBlock;
    select.local_tokens = kPrefillLocal;
    select.sink_chunks = layout_.settings.sinks / chunk();
    select.k = layout_.prefill_ids - select.sink_chunks;
    select.chunk_tokens = chunk();
    select.n_heads = attend.n_heads;
    select.n_kv_heads = attend.n_kv_heads;
    select.head_dim = attend.head_dim;
    select.scale = scale_;
    select.chunk_ids = block_ids_;
    select.chunk_counts = block_counts_;
    select.local_begin = block_local_;
    select_prefill_chunks(device_, select);
    attend.block_tokens = kPrefillBlock;
    attend.chunk_ids = block_ids_;
    attend.chunk_counts = block_counts_;
    attend.local_begin = block_local_;
    attend.max_chunks = layout_.prefill_ids;
    attend.chunk_tokens = chunk();
  }
  attend_prefill(device_, attend);
}

// n_rows rows of every KV head.
template <typename Device, typename Host>
void KvStore<Device, Host>::copy_rows(const bf16* source, int64_t source_stride, bf16* target,
                                      int64_t target_stride, int64_t n_rows) {
  if (n_rows <= 0) return;
  CopyParams params;
  params.source = source;
  params.target = target;
  params.n_rows = kv();
  params.row_bytes = n_rows * d() * static_cast<int64_t>(sizeof(bf16));
  params.source_stride = source_stride * static_cast<int64_t>(sizeof(bf16));
  params.target_stride = target_stride * static_cast<int64_t>(sizeof(bf16));
  copy(copy_, params);
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
  if (layout_.tiered(index)) {
    // A prompt too short to have a middle after sinks and window keeps everything in the window.
    layer.n_sinks = n_tokens >= o.sinks + o.recent + chunk() ? o.sinks : 0;
    const int64_t middle_end = layer.n_sinks > 0 ? (n_tokens - o.recent) / chunk() * chunk() : 0;
    layer.first_chunk = layer.n_sinks / chunk();
    layer.end_chunk = std::max(middle_end / chunk(), layer.first_chunk);
    layer.recent.first = layer.end_chunk * chunk();
    index_layer(index, n_tokens);
  } else {
    layer.recent.first = std::max<int64_t>(0, n_tokens - layout_.recent_tokens(index));
  }
  layer.recent.base = layer.recent.first;
  const int64_t n_recent = n_tokens - layer.recent.first;
  CHECK(n_recent <= layer.recent.capacity, "{} of {}", n_recent, layer.recent.capacity);
  copy_rows(plane_keys_ + layer.recent.first * d(), plane, layer.recent.keys,
            layer.recent.capacity * d(), n_recent);
  copy_rows(plane_values_ + layer.recent.first * d(), plane, layer.recent.values,
            layer.recent.capacity * d(), n_recent);
  offload_planes(layer, layout_.tiered(index) ? layer.end_chunk * chunk() : 0);
  change_key_plane();
}

// Starts moving the middle's values (and keys, where they are kept) to the host, in pieces, so that
// the next layer need not wait for the whole.
template <typename Device, typename Host>
void KvStore<Device, Host>::offload_planes(const Layer& layer, int64_t n_tokens) {
  const KvSettings& o = layout_.settings;
  const int64_t plane = o.prompt * d();
  offloading_ = 0;
  for (int64_t first = 0; first < o.prompt; first += kPrefillChunk) {
    const int64_t n = std::min(kPrefillChunk, n_tokens - first);
    if (n > 0) {
      copy_rows(plane_values_ + first * d(), plane, layer.host_values + first * d(),
                o.capacity * d(), n);
    }
    if (n > 0 && layer.host_keys != nullptr) {
      copy_rows(plane_keys_ + first * d(), plane, layer.host_keys + first * d(), o.capacity * d(),
                n);
    }
    offloads_[static_cast<size_t>(offloading_++)] = copy_.record();
  }
}

// Before rows up to end_token of the planes are written again.
template <typename Device, typename Host>
void KvStore<Device, Host>::await_offload(int64_t end_token) {
  if (offloading_ == 0) return;
  device_.wait(offloads_[static_cast<size_t>((end_token - 1) / kPrefillChunk)]);
}

template <typename Device, typename Host>
std::vector<double> KvStore<Device, Host>::residual_energy() const {
  if (residual_energy_ == nullptr) return {};
  std::vector<double> energy(layers_.size());
  read_back(residual_energy_, energy.data(), static_cast<int64_t>(energy.size() * sizeof(double)));
  return energy;
}

// Sinks and outliers, the low-rank basis and coefficients.
template <typename Device, typename Host>
void KvStore<Device, Host>::index_layer(int64_t index, int64_t n_tokens) {
  Layer& layer = layers_[index];
  const KvSettings& o = layout_.settings;
  const int64_t plane = o.prompt * d();
  copy_rows(plane_keys_, plane, layer.sink_keys, o.sinks * d(), layer.n_sinks);
  copy_rows(plane_values_, plane, layer.sink_values, o.sinks * d(), layer.n_sinks);

  if (!o.exact_keys) make_low_rank_keys(index, n_tokens);
  // No more outliers than half of the middle: the rest must be worth selecting from.
  keep_outliers(layer, std::min(o.outliers, (layer.end_chunk - layer.first_chunk) / 2));
}

// On the side queue, from a key plane that the next layer leaves alone.
template <typename Device, typename Host>
void KvStore<Device, Host>::make_low_rank_keys(int64_t index, int64_t n_tokens) {
  Layer& layer = layers_[index];
  const int64_t plane = layout_.settings.prompt * d();
  const int64_t middle_end = layer.end_chunk * chunk();
  side_.wait(device_.record());
  FitBasisParams fit;
  fit.keys = plane_keys_;
  fit.head_stride = plane;
  fit.n_tokens = n_tokens;
  fit.n_kv_heads = layout_.shape.n_kv_heads;
  fit.head_dim = layout_.shape.head_dim;
  fit.rope = rope_;
  fit.lowrank = layer.lowrank;
  fit.residual_energy = residual_energy_ + index;
  fit_basis(side_, fit);

  ProjectParams project;
  project.keys = plane_keys_;
  project.head_stride = plane;
  project.n_tokens = middle_end;
  project.n_kv_heads = fit.n_kv_heads;
  project.head_dim = fit.head_dim;
  project.rope = rope_;
  project.lowrank = layer.lowrank;
  project.coefficients = layer.coefficients;
  if (middle_end > 0) project_keys(side_, project);
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
void KvStore<Device, Host>::keep_outliers(Layer& layer, int64_t n_outliers) {
  layer.n_outliers = n_outliers;
  if (n_outliers == 0) return;
  const int64_t plane = layout_.settings.prompt * d();
  OutlierParams params;
  params.keys = plane_keys_;
  params.key_head_stride = plane;
  params.landmarks = layer.landmarks;
  params.landmark_head_stride = layout_.chunks * d();
  params.first_chunk = layer.first_chunk;
  params.end_chunk = layer.end_chunk;
  params.n_outliers = n_outliers;
  params.chunk_tokens = chunk();
  params.n_kv_heads = layout_.shape.n_kv_heads;
  params.head_dim = layout_.shape.head_dim;
  params.ids = layer.outlier_ids;
  params.excluded = layer.excluded;
  params.excluded_stride = layout_.mask_words;
  params.workspace = lists_.select_workspace;
  find_outliers(device_, params);

  GatherParams gather;
  gather.keys = plane_keys_;
  gather.values = plane_values_;
  gather.head_stride = plane;
  gather.ids = layer.outlier_ids;
  gather.n_ids = n_outliers;
  gather.out_keys = layer.outlier_keys;
  gather.out_values = layer.outlier_values;
  gather.out_head_stride = layout_.outlier_rows * d();
  gather.chunk_tokens = chunk();
  gather.n_kv_heads = layout_.shape.n_kv_heads;
  gather.head_dim = layout_.shape.head_dim;
  gather_chunks(device_, gather);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::end_prefill(int64_t n_tokens) {
  n_tokens_ = n_prompt_ = n_tokens;
  for (size_t i = 0; i < layers_.size(); ++i) {
    prompt_end_[i] = {layers_[i].recent.base, layers_[i].recent.first, layers_[i].end_chunk};
  }
  device_.wait(side_.record());
  copy_.wait(device_.record());
  host_.wait(copy_.record());
  for (bf16** block : {&plane_keys_, &other_keys_, &plane_values_, &plane_landmarks_}) {
    device_arena_.give_back(*block);
    *block = nullptr;
  }
}

}  // namespace tiercel
