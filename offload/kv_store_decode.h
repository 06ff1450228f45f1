// KvStore: one decode step of one layer.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
void KvStore<Device, Host>::append(int64_t index, const Projections& p) {
  CHECK(p.n_tokens == 1 && n_tokens_ < layout_.settings.capacity, "{} of {}", n_tokens_,
        layout_.settings.capacity);
  Layer& layer = layers_[index];
  Recent& recent = layer.recent;
  if (n_tokens_ - recent.base == recent.capacity) make_room(layer);
  RopeAppendParams append = rope_append_params(p);
  append.keys = recent.keys;
  append.values = recent.values;
  append.head_stride = recent.capacity * d();
  append.first_row = n_tokens_ - recent.base;
  append.first_position = n_tokens_;
  append.later = later();
  rope_append(device_, append);
  const int64_t window = layout_.shape.window[index];
  if (window > 0) recent.first = std::max(recent.first, n_tokens_ + 1 - window);
  if (layout_.tiered(index)) retire_chunks(index);
}

// Moves the rows still attended to the front. They are at most half of the capacity, so source and
// target never overlap.
template <typename Device, typename Host>
void KvStore<Device, Host>::make_room(Layer& layer) {
  Recent& recent = layer.recent;
  const int64_t n = n_tokens_ - recent.first;
  const int64_t shift = recent.first - recent.base;
  CHECK(n <= shift, "{} rows would overlap after a shift of {}", n, shift);
  copy_.wait(device_.record());
  copy_.wait(side_.record());
  const int64_t stride = recent.capacity * d();
  copy_rows(recent.keys + shift * d(), stride, recent.keys, stride, n);
  copy_rows(recent.values + shift * d(), stride, recent.values, stride, n);
  device_.wait(copy_.record());
  recent.base = recent.first;
}

// Growth: the oldest chunks of the window become ordinary chunks of the middle once the window is
// full without them. Their coefficients use the basis of the prompt; their values go home.
template <typename Device, typename Host>
void KvStore<Device, Host>::retire_chunks(int64_t index) {
  Layer& layer = layers_[index];
  Recent& recent = layer.recent;
  const KvSettings& o = layout_.settings;
  const int64_t n = layout_.retire_tokens;
  if (n_tokens_ + 1 - recent.first < o.recent + n) return;
  const int64_t row = recent.first - recent.base;
  const int64_t stride = recent.capacity * d();

  LandmarkParams landmark;
  landmark.keys = recent.keys;
  landmark.key_head_stride = stride;
  landmark.first_row = recent.base;
  landmark.landmarks = layer.landmarks;
  landmark.landmark_head_stride = layout_.chunks * d();
  landmark.first_chunk = recent.first / chunk();
  landmark.n_chunks = n / chunk();
  landmark.chunk_tokens = chunk();
  landmark.n_kv_heads = layout_.shape.n_kv_heads;
  landmark.head_dim = layout_.shape.head_dim;
  build_landmarks(device_, landmark);

  if (!o.exact_keys) {
    ProjectParams project;
    project.keys = recent.keys;
    project.head_stride = stride;
    project.first_row = recent.base;
    project.first_token = recent.first;
    project.n_tokens = n;
    project.n_kv_heads = landmark.n_kv_heads;
    project.head_dim = landmark.head_dim;
    project.rope = rope_;
    project.lowrank = layer.lowrank;
    project.coefficients = layer.coefficients;
    side_.wait(device_.record());
    project_keys(side_, project);
  }
  // Whoever reads these rows on the host or the coefficients does so on the queue that writes them;
  // the device goes on.
  copy_.wait(device_.record());
  copy_rows(recent.values + row * d(), stride, layer.host_values + recent.first * d(),
            o.capacity * d(), n);
  if (layer.host_keys != nullptr) {
    copy_rows(recent.keys + row * d(), stride, layer.host_keys + recent.first * d(),
              o.capacity * d(), n);
  }
  recent.first += n;
  layer.end_chunk = recent.first / chunk();
}

template <typename Device, typename Host>
int64_t KvStore<Device, Host>::selected_per_head(const Layer& layer) const {
  return std::min(selected_, layer.end_chunk - layer.first_chunk);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::choose_chunks(const Layer& layer, const bf16* q, int64_t k) {
  SelectParams select;
  select.q = q;
  select.landmarks = layer.landmarks;
  select.landmark_head_stride = layout_.chunks * d();
  select.excluded = layer.n_outliers > 0 ? layer.excluded : nullptr;
  select.excluded_stride = layout_.mask_words;
  select.first_chunk = layer.first_chunk;
  select.end_chunk = layer.end_chunk;
  select.k = k;
  select.n_heads = layout_.shape.n_heads;
  select.n_kv_heads = layout_.shape.n_kv_heads;
  select.head_dim = layout_.shape.head_dim;
  select.scale = scale_;
  select.ids = lists_.ids;
  select.counts = lists_.counts;
  select.workspace = lists_.select_workspace;
  MapSlotsParams map;
  map.state = layer.slot_state;
  map.n_kv_heads = layout_.shape.n_kv_heads;
  map.ids = lists_.ids;
  map.counts = lists_.counts;
  map.stride = k;
  map.hit_slots = lists_.hit_slots;
  map.hit_counts = lists_.hit_counts;
  map.miss_chunks = lists_.miss_chunks;
  map.miss_slots = lists_.miss_slots;
  map.miss_counts = lists_.miss_counts;
  map.scratch = lists_.scratch;
  map.totals = lists_.totals;
  if (layout_.settings.imposed_hit_rate < 0) {
    select_and_map(device_, select, map);
    return;
  }
  select_chunks(device_, select);
  ImposeParams impose;
  impose.ids = lists_.ids;
  impose.counts = lists_.counts;
  impose.k = k;
  impose.first_chunk = layer.first_chunk;
  impose.end_chunk = layer.end_chunk;
  impose.step = n_tokens_;
  impose.later = later();
  impose.n_kv_heads = layout_.shape.n_kv_heads;
  impose.hit_rate = static_cast<float>(layout_.settings.imposed_hit_rate);
  impose_selection(device_, impose);
  map_slots(device_, map);
}

// The regions that are always attended: window, sinks, outliers.
template <typename Device, typename Host>
int KvStore<Device, Host>::exact_sources(const Layer& layer, int64_t n_rows,
                                         KvSource* sources) const {
  int n = 0;
  auto plane = [&](const bf16* keys, const bf16* values, int64_t head_stride, int64_t n_tokens) {
    if (n_tokens <= 0) return;
    KvSource& source = sources[n++];
    source.keys = keys;
    source.values = values;
    source.head_stride = head_stride;
    source.chunk_stride = d();
    source.token_stride = d();
    source.chunk_tokens = 1;
    source.n_tokens = n_tokens;
  };
  const Recent& recent = layer.recent;
  const int64_t row = (recent.first - recent.base) * d();
  plane(recent.keys + row, recent.values + row, recent.capacity * d(), n_rows - recent.first);
  sources[0].later = later();  // never empty: the newest token is in it
  plane(layer.sink_keys, layer.sink_values, layout_.settings.sinks * d(), layer.n_sinks);
  plane(layer.outlier_keys, layer.outlier_values, layout_.outlier_rows * d(),
        layer.n_outliers * chunk());
  return n;
}

template <typename Device, typename Host>
KvSource KvStore<Device, Host>::slot_source(const Layer& layer, const int32_t* slots,
                                            const int32_t* counts) const {
  KvSource source;
  source.keys = layer.slots;
  source.values = layer.slots + chunk() * d();
  source.head_stride = layout_.n_slots * layout_.record;
  source.chunk_stride = layout_.record;
  source.token_stride = d();
  source.chunk_tokens = chunk();
  source.ids = slots;
  source.counts = counts;
  source.ids_stride = selected_per_head(layer);
  return source;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::attend_sources(const bf16* q, const KvSource* sources, int n_sources,
                                           PartialView out, const PartialView* merge_with,
                                           bf16* final_out) {
  DecodeAttendParams attend;
  attend.q = q;
  attend.sources = sources;
  attend.n_sources = n_sources;
  attend.n_heads = layout_.shape.n_heads;
  attend.n_kv_heads = layout_.shape.n_kv_heads;
  attend.head_dim = layout_.shape.head_dim;
  attend.scale = scale_;
  attend.out = out;
  attend.workspace = decode_workspace_;
  attend.merge_with = merge_with;
  attend.n_merge = merge_with != nullptr ? 1 : 0;
  attend.final_out = final_out;
  attend_decode(device_, attend);
}

// On the copy queue: values (and exact keys) of the missed chunks into their slots.
template <typename Device, typename Host>
void KvStore<Device, Host>::fetch_misses(const Layer& layer, int64_t k) {
  FetchParams params;
  params.values = layer.host_values;
  params.keys = layout_.settings.exact_keys ? layer.host_keys : nullptr;
  params.value_head_stride = params.key_head_stride = layout_.settings.capacity * d();
  params.miss_chunks = lists_.miss_chunks;
  params.miss_slots = lists_.miss_slots;
  params.miss_counts = lists_.miss_counts;
  params.stride = k;
  params.slots = layer.slots;
  params.slot_head_stride = layout_.n_slots * layout_.record;
  params.chunk_tokens = chunk();
  params.n_kv_heads = layout_.shape.n_kv_heads;
  params.head_dim = layout_.shape.head_dim;
  fetch(copy_, params);
}

// On the side queue: keys of the missed chunks into their slots.
template <typename Device, typename Host>
void KvStore<Device, Host>::rebuild_misses(const Layer& layer, int64_t k) {
  RebuildParams params;
  params.coefficients = layer.coefficients;
  params.lowrank = layer.lowrank;
  params.rope = rope_;
  params.miss_chunks = lists_.miss_chunks;
  params.miss_slots = lists_.miss_slots;
  params.miss_counts = lists_.miss_counts;
  params.stride = k;
  params.slots = layer.slots;
  params.slot_head_stride = layout_.n_slots * layout_.record;
  params.chunk_tokens = chunk();
  params.n_kv_heads = layout_.shape.n_kv_heads;
  params.head_dim = layout_.shape.head_dim;
  rebuild_keys(side_, params);
}

// 2-5 select and map; 6 fetch the misses on the copy queue and rebuild their keys on the side
// queue, meanwhile attend the exact regions and the hits; 7 attend the misses and merge (DESIGN,
// "Decode").
template <typename Device, typename Host>
void KvStore<Device, Host>::attend(int64_t index, const bf16* q, bf16* out) {
  const Layer& layer = layers_[index];
  const int64_t n_rows = n_tokens_ + 1;
  std::array<KvSource, 4> sources;
  int n_sources = exact_sources(layer, n_rows, sources.data());
  const int64_t k = selected_per_head(layer);
  if (k == 0) {
    attend_sources(q, sources.data(), n_sources, partials_[0], nullptr, out);
    return;
  }
  choose_chunks(layer, q, k);
  const auto chosen = device_.record();
  copy_.wait(chosen);
  fetch_misses(layer, k);
  const auto fetched = copy_.record();
  std::optional<typename Device::Ticket> rebuilt;
  if (!layout_.settings.exact_keys) {
    side_.wait(chosen);
    rebuild_misses(layer, k);
    rebuilt = side_.record();
  }
  sources[n_sources++] = slot_source(layer, lists_.hit_slots, lists_.hit_counts);
  attend_sources(q, sources.data(), n_sources, partials_[0]);
  device_.wait(fetched);
  if (rebuilt) device_.wait(*rebuilt);
  const KvSource misses = slot_source(layer, lists_.miss_slots, lists_.miss_counts);
  attend_sources(q, &misses, 1, partials_[1], &partials_[0], out);
  ++steps_;
  if (auditing_) audit_layer(index, q, n_rows);
}

template <typename Device, typename Host>
int64_t KvStore<Device, Host>::chunk_bytes() const {
  return chunk() * d() * static_cast<int64_t>(sizeof(bf16)) * (layout_.settings.exact_keys ? 2 : 1);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::read_back(const void* source, void* target, int64_t bytes) const {
  CopyParams params;
  params.source = source;
  params.target = target;
  params.row_bytes = bytes;
  copy(device_, params);
  device_.finish();
}

template <typename Device, typename Host>
SelectionCounters KvStore<Device, Host>::selection() const {
  SelectionCounters counters;
  counters.steps = steps_;
  if (lists_.totals == nullptr) return counters;
  std::vector<int64_t> totals(static_cast<size_t>(3 * kv()));
  read_back(lists_.totals, totals.data(), 3 * kv() * static_cast<int64_t>(sizeof(int64_t)));
  for (size_t i = 0; i < totals.size(); i += 3) {
    counters.selected_chunks += totals[i];
    counters.hit_chunks += totals[i + 1];
    counters.fetched_bytes += totals[i + 2] * chunk_bytes();
  }
  return counters;
}

// The share of exact attention mass that this step's selection covers: the sum of exp over what was
// attended, divided by the sum over everything, both with the exact keys kept on the host. Values
// do not matter here, so the keys stand in for them.
template <typename Device, typename Host>
void KvStore<Device, Host>::audit_layer(int64_t index, const bf16* q, int64_t n_rows) {
  const Layer& layer = layers_[index];
  device_.wait(copy_.record());  // keys of the newest chunks may be on their way to the host
  std::array<KvSource, 4> sources;
  int n = exact_sources(layer, n_rows, sources.data());
  KvSource& selected = sources[n];
  selected = KvSource{};
  selected.keys = selected.values = layer.host_keys;
  selected.head_stride = layout_.settings.capacity * d();
  selected.chunk_stride = chunk() * d();
  selected.token_stride = d();
  selected.chunk_tokens = chunk();
  selected.ids = lists_.ids;
  selected.counts = lists_.counts;
  selected.ids_stride = selected_per_head(layer);
  attend_sources(q, sources.data(), n + 1, audit_partials_[0]);

  // Everything: the window, and all that precedes it (sinks and outliers included) from the host.
  KvSource all[2];
  all[0] = sources[0];
  all[1] = selected;
  all[1].ids = nullptr;
  all[1].counts = nullptr;
  all[1].chunk_stride = d();
  all[1].chunk_tokens = 1;
  all[1].n_tokens = layer.recent.first;
  attend_sources(q, all, 2, audit_partials_[1]);
  // take_partial puts max and sum side by side.
  const int64_t heads = layout_.shape.n_heads;
  float* part = audit_statistics_.data();
  float* whole = part + 2 * heads;
  read_back(audit_partials_[0].max, part, 2 * heads * static_cast<int64_t>(sizeof(float)));
  read_back(audit_partials_[1].max, whole, 2 * heads * static_cast<int64_t>(sizeof(float)));
  for (int64_t head = 0; head < heads; ++head) {
    mass_[static_cast<size_t>(index)].add(static_cast<double>(part[heads + head]) / whole[heads + head] *
              std::exp2(static_cast<double>(part[head]) - whole[head]));
  }
}

template <typename Device, typename Host>
bool KvStore<Device, Host>::next_step_is_plain() const {
  const KvSettings& o = layout_.settings;
  if (auditing_) return false;
  for (int64_t index = 0; index < layout_.shape.n_layers; ++index) {
    const Recent& recent = layers_[index].recent;
    if (layout_.shape.window[index] > 0) return false;
    if (n_tokens_ - recent.base == recent.capacity) return false;
    if (layout_.tiered(index) && n_tokens_ + 1 - recent.first >= o.recent + layout_.retire_tokens) {
      return false;
    }
  }
  return true;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::count_replayed_step() {
  for (const Layer& layer : layers_) steps_ += selected_per_head(layer) > 0;
  advance();
}

template <typename Device, typename Host>
void KvStore<Device, Host>::advance() {
  ++n_tokens_;
  if (auditing_) {
    for (MassHistogram& mass : mass_) mass.end_step();
  }
}

template <typename Device, typename Host>
MassHistogram KvStore<Device, Host>::audit() const {
  MassHistogram all;
  for (const MassHistogram& mass : mass_) all.merge(mass);
  return all;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::set_selected(int64_t chunks) {
  CHECK(chunks >= 0 && chunks <= layout_.select, "{} chunks of {}", chunks, layout_.select);
  selected_ = chunks;
}

// Rows behind the prompt stay where they are and are written again. Retired chunks go back to the
// window: their rows were left in place, unless make_room moved them.
template <typename Device, typename Host>
bool KvStore<Device, Host>::rewind() {
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (layers_[i].recent.base != prompt_end_[i].base) return false;
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    layer.recent.first = prompt_end_[i].first;
    layer.end_chunk = prompt_end_[i].end_chunk;
    // A chunk that retires again may hold other tokens.
    if (layer.slot_state.n_slots > 0) {
      reset_slots(device_, layer.slot_state, layout_.shape.n_kv_heads);
    }
    mass_[i] = {};
  }
  n_tokens_ = n_prompt_;
  steps_ = 0;
  if (lists_.totals != nullptr) {
    const std::vector<int64_t> zeros(static_cast<size_t>(3 * kv()));
    CopyParams params;
    params.source = zeros.data();
    params.target = lists_.totals;
    params.row_bytes = 3 * kv() * static_cast<int64_t>(sizeof(int64_t));
    copy(device_, params);
  }
  device_.finish();
  return true;
}

}  // namespace tiercel
