// KvStore: what it counted, how much of the attention its selections covered, and going back.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
void KvStore<Device, Host>::read_back(const void* source, void* target, int64_t bytes) const {
  CopyParams params;
  params.source = source;
  params.target = target;
  params.row_bytes = bytes;
  copy(device_, params);
  device_.finish();
}

// What a miss moves from the host.
template <typename Device, typename Host>
int64_t KvStore<Device, Host>::chunk_bytes(int64_t layer) const {
  const KvSettings& o = layout_.settings;
  int64_t bytes = row_bytes(o.value_codec, d());
  if (layout_.home_key_bytes(layer) > 0) bytes += d() * static_cast<int64_t>(sizeof(bf16));
  return chunk() * bytes;
}

template <typename Device, typename Host>
SelectionCounters KvStore<Device, Host>::selection() const {
  SelectionCounters counters;
  counters.steps = steps_;
  for (const Layer& layer : layers_) {
    counters.host_layers += layer.host_attends;
    if (!layer.trial) continue;
    counters.tried_fetch_seconds += layer.trial->fetched;
    counters.tried_host_seconds += layer.trial->on_host;
  }
  if (lists_.totals == nullptr) return counters;
  std::vector<int64_t> totals(static_cast<size_t>(layout_.total_counts()));
  read_back(lists_.totals, totals.data(),
            layout_.total_counts() * static_cast<int64_t>(sizeof(int64_t)));
  const int64_t* next = totals.data();
  for (int64_t layer = 0; layer < layout_.shape.n_layers; ++layer) {
    for (int64_t j = 0; j < kv(); ++j, next += 3) {
      counters.selected_chunks += next[0];
      counters.hit_chunks += next[1];
      counters.fetched_bytes += next[2] * chunk_bytes(layer);
    }
  }
  counters.decisions = next[0];
  counters.reused = next[1];
  return counters;
}

template <typename Device, typename Host>
double KvStore<Device, Host>::key_coding_seconds() const {
  double seconds = 0;
  for (const auto& [begin, end] : key_coding_) seconds += side_.seconds_between(begin, end);
  return seconds;
}

template <typename Device, typename Host>
std::vector<double> KvStore<Device, Host>::residual_energy() const {
  if (residual_energy_ == nullptr) return {};
  std::vector<double> energy(layers_.size());
  read_back(residual_energy_, energy.data(), static_cast<int64_t>(energy.size() * sizeof(double)));
  return energy;
}

// The share of exact attention mass that this step's selection covers: the sum of exp over what was
// attended, divided by the sum over everything, both with exact keys. What is estimated does not
// count. Values do not matter here, so the keys stand in for them.
template <typename Device, typename Host>
void KvStore<Device, Host>::audit_layer(int64_t index, const bf16* q, int64_t n_rows) {
  const Layer& layer = layers_[index];
  const Lists& lists = index_of(index).lists;
  device_.wait(copy_.record());  // keys of the newest chunks may be on their way to the host
  std::array<KvSource, kMaxDecodeSources> sources;
  int n = exact_sources(index, n_rows, sources.data());
  KvSource& selected = sources[n];
  selected = KvSource{};
  selected.keys = selected.values =
      layer.audit_keys != nullptr ? layer.audit_keys : layer.home_keys;
  selected.head_stride = layout_.settings.capacity * d();
  selected.chunk_stride = chunk() * d();
  selected.token_stride = d();
  selected.chunk_tokens = chunk();
  selected.ids = lists.ids;
  selected.counts = lists.counts;
  selected.ids_stride = selected_per_head(layer);
  selected.position_step = chunk();
  add_key_bias(layer, 0, selected);
  attend_sources(n_rows - 1, q, sources.data(), n + 1, audit_partials_[0]);

  // Everything: the window, and all that precedes it (sinks and outliers included) from the host.
  KvSource all[2];
  all[0] = sources[0];
  all[1] = selected;
  all[1].ids = nullptr;
  all[1].counts = nullptr;
  all[1].chunk_stride = d();
  all[1].chunk_tokens = 1;
  all[1].position_step = 1;
  all[1].n_tokens = layer.recent.first;
  attend_sources(n_rows - 1, q, all, 2, audit_partials_[1]);
  // take_partial puts max and sum side by side.
  const int64_t heads = layout_.shape.n_heads;
  float* part = audit_statistics_.data();
  float* whole = part + 2 * heads;
  read_back(audit_partials_[0].max, part, 2 * heads * static_cast<int64_t>(sizeof(float)));
  read_back(audit_partials_[1].max, whole, 2 * heads * static_cast<int64_t>(sizeof(float)));
  for (int64_t head = 0; head < heads; ++head) {
    mass_[static_cast<size_t>(index)].add(static_cast<double>(part[heads + head]) /
                                          whole[heads + head] *
                                          std::exp2(static_cast<double>(part[head]) - whole[head]));
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

// Their bits go: chunks behind the prompt's last one have none.
template <typename Device, typename Host>
void KvStore<Device, Host>::forget_late_chunks(int64_t index) {
  if (!layout_.indexed(index) || n_late(index) == 0) return;
  Index& its = layers_[index].index;
  const int64_t end = prompt_end_[index].end_chunk, first_word = end / 64;
  const int64_t n_words = layout_.mask_words - first_word;
  const auto word = static_cast<int64_t>(sizeof(uint64_t));
  std::vector<uint64_t> words(static_cast<size_t>(kv() * n_words));
  CopyParams rows;
  rows.source = its.excluded + first_word;
  rows.target = words.data();
  rows.n_rows = kv();
  rows.row_bytes = rows.target_stride = n_words * word;
  rows.source_stride = layout_.mask_words * word;
  copy(device_, rows);
  device_.finish();
  for (int64_t j = 0; j < kv(); ++j) {
    auto first = words.begin() + j * n_words;
    *first &= (uint64_t{1} << end % 64) - 1;
    std::fill(first + 1, first + n_words, 0);
  }
  std::swap(rows.source_stride, rows.target_stride);
  rows.source = words.data();
  rows.target = its.excluded + first_word;
  copy(device_, rows);
  device_.finish();
  its.excludes = layer_after_prompt(layout_, index, n_prompt_).excludes != 0;
}

// Rows behind the prompt stay where they are and are written again. Retired chunks go back to the
// window: their rows were left in place, unless make_room moved them.
template <typename Device, typename Host>
bool KvStore<Device, Host>::rewind() {
  CHECK(!layout_.shares_prefix());
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (layers_[i].recent.base != prompt_end_[i].base) return false;
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    forget_late_chunks(static_cast<int64_t>(i));
    layer.recent.first = prompt_end_[i].first;
    layer.end_chunk = prompt_end_[i].end_chunk;
    // A chunk that retires again may hold other tokens.
    if (layer.slot_state.n_slots > 0) {
      reset_slots(device_, layer.slot_state, layout_.shape.n_kv_heads);
    }
    layer.index.list_chunks = -1;
    layer.index.n_blocks = prompt_end_[i].n_blocks;
    mass_[i] = {};
  }
  n_tokens_ = n_prompt_;
  steps_ = 0;
  if (lists_.totals != nullptr) {
    const std::vector<int64_t> zeros(static_cast<size_t>(layout_.total_counts()));
    CopyParams params;
    params.source = zeros.data();
    params.target = lists_.totals;
    params.row_bytes = layout_.total_counts() * static_cast<int64_t>(sizeof(int64_t));
    copy(device_, params);
  }
  device_.finish();
  return true;
}

}  // namespace tiercel
