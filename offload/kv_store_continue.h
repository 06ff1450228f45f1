// KvStore: a long text behind what is held. As a prompt's, its tokens pass through a layer in runs, whose queries
// attend together:
//
//   position   0 ............. middle ............. | window | run
//              chunks that blocks of queries have    exact rows of one plane, causally
//              selected, or all: in place, or
//              fetched as records, a part at a time
//
// A dense store has all of them in one plane. What the window has no room for retires behind each run.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
void KvStore<Device, Host>::begin_runs() {
  CHECK(layout_.continues && !runs_, "runs behind {} tokens", n_tokens_);
  const RunBuffers n = layout_.run_buffers();
  Runs& r = runs_.emplace();
  r.rows = layout_.run_plane_rows();
  try {  // others may have taken what was planned with
    take_runs(n);
  } catch (...) {
    give_back_runs();
    throw;
  }
  if (n.records == 0) return;
  const int64_t list = layout_.run_list(), blocks = layout_.run_blocks();
  r.record_ids = r.numbers + layout_.run_numbers();
  r.counts = r.record_ids + blocks * kv() * list;
  std::vector<int32_t> ids(static_cast<size_t>(n.ids));
  for (int64_t i = 0; i < layout_.run_numbers(); ++i) {
    ids[static_cast<size_t>(i)] = static_cast<int32_t>(i / (kv() * list) * list + i % list);
  }
  // A record is keys and values of a chunk, so keys of the next one are two chunks further.
  int32_t* record_ids = ids.data() + layout_.run_numbers();
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < kv() * list; ++i) {
      *record_ids++ = static_cast<int32_t>(2 * (block * list + i % list));
    }
  }
  for (int64_t i = 0; i < (list + 1) * kv(); ++i) *record_ids++ = static_cast<int32_t>(i / kv());
  const std::vector<int64_t> begins(static_cast<size_t>(blocks), layout_.run_record_rows());
  copy_block(device_, ids.data(), r.numbers, n.ids * static_cast<int64_t>(sizeof(int32_t)));
  copy_block(device_, begins.data(), r.begins, n.begins * static_cast<int64_t>(sizeof(int64_t)));
  device_.finish();  // they are this call's
}

template <typename Device, typename Host>
void KvStore<Device, Host>::take_runs(const RunBuffers& n) {
  Runs& r = *runs_;
  const auto take_bf16 = [&](int64_t count) {
    return device_arena_.template take<bf16>(Purpose::kActivations, count);
  };
  r.keys = take_bf16(n.plane);
  r.values = take_bf16(n.plane);
  r.state = device_arena_.template take<float>(Purpose::kActivations, n.state);
  r.means = take_bf16(n.means);
  r.records = take_bf16(n.records);
  r.numbers = device_arena_.template take<int32_t>(Purpose::kActivations, n.ids);
  r.begins = device_arena_.template take<int64_t>(Purpose::kActivations, n.begins);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::give_back_runs() {
  const Runs& r = *runs_;
  for (const void* block : std::initializer_list<const void*>{r.keys, r.values, r.state, r.means, r.records,
                                                              r.numbers, r.begins}) {
    device_arena_.give_back(block);
  }
  runs_.reset();
}

// What an earlier run, or layer, had in the planes has been coded and is at home. The window follows it there.
template <typename Device, typename Host>
void KvStore<Device, Host>::bring_window(int64_t index, int64_t first_token) {
  const Layer& layer = layers_[index];
  const Recent& recent = layer.recent;
  Runs& r = *runs_;
  device_.wait(copy_.record());
  device_.wait(side_.record());
  r.base = recent.first;
  const int64_t home = layout_.settings.capacity * d();
  if (layout_.run_needs_means(index)) {
    // Up to where the chunks end that are selected among.
    r.base -= recent.first % layout_.settings.prefill_chunk();
    const int64_t n = recent.first - r.base;
    copy_rows_on(device_, layer.home_keys + r.base * d(), home, r.keys, r.rows * d(), n);
    copy_rows_on(device_, layer.home_values + r.base * d(), home, r.values, r.rows * d(), n);
  }
  CHECK(first_token - r.base <= r.rows - layout_.settings.continued, "{} rows before the run of {}",
        first_token - r.base, r.rows);
  const int64_t from = (recent.first - recent.base) * d(), to = (recent.first - r.base) * d();
  const int64_t n = first_token - recent.first, stride = recent.capacity * d();
  copy_rows_on(device_, recent.keys + from, stride, r.keys + to, r.rows * d(), n);
  copy_rows_on(device_, recent.values + from, stride, r.values + to, r.rows * d(), n);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::append_run(int64_t index, const Projections& p, int64_t first_token) {
  CHECK(runs_ && p.n_tokens <= layout_.settings.continued && first_token + p.n_tokens <= layout_.positions(),
        "a run of {} behind {} tokens", p.n_tokens, first_token);
  runs_->first = first_token;
  if (layout_.layer_planes) bring_window(index, first_token);
  if (layout_.run_needs_means(index)) append_run_means(index, first_token);
  const ExactRows rows = run_rows(index);
  RopeAppendParams append = rope_append_params(p);
  append.keys = rows.keys;
  append.values = rows.values;
  append.head_stride = rows.head_stride;
  append.first_row = first_token - rows.base;
  append.first_position = first_token;
  rope_append(device_, append);
  append_key_bias(layers_[index], p, first_token);
}

// Means of all chunks that the run's queries may select.
template <typename Device, typename Host>
void KvStore<Device, Host>::append_run_means(int64_t index, int64_t first_token) {
  const Layer& layer = layers_[index];
  Runs& r = *runs_;
  if (r.means_layer != index) r.n_means = 0;
  r.means_layer = index;
  const bool at_home = layout_.layer_planes;
  const int32_t piece = layout_.settings.prefill_chunk();
  const int64_t end = (at_home ? layer.recent.first : first_token) / piece;
  if (end <= r.n_means) return;
  const bf16* keys = at_home ? layer.home_keys : layer.recent.keys;
  const int64_t rows = at_home ? layout_.settings.capacity : layer.recent.capacity;
  LandmarkParams params = landmark_params(keys, rows * d(), 0, r.n_means, end);
  params.chunk_tokens = piece;
  params.landmarks = r.means;
  params.landmark_head_stride = layout_.run_means() * d();
  build_landmarks(device_, params);
  r.n_means = end;
}

template <typename Device, typename Host>
PrefillSelectParams KvStore<Device, Host>::run_select_params(int64_t index, const Projections& p,
                                                             int64_t first_token, int64_t end_chunk,
                                                             float scale) const {
  PrefillSelectParams select = prompt_select_params(p, first_token, scale);
  select.end_chunk = end_chunk;
  if (layout_.run_needs_means(index)) {
    select.landmarks = runs_->means;
    select.landmark_head_stride = layout_.run_means() * d();
  } else {
    select.landmarks = prefill_landmarks(index, &select.landmark_head_stride);
  }
  return select;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::attend_run(int64_t index, const Projections& p, int64_t first_token,
                                       int64_t n_context, bool dense, bf16* out) {
  const bool planes = layout_.layer_planes, selects = layout_.settings.select_prefill && !dense;
  CHECK(!planes || !dense || !layout_.settings.select_prefill, "what is selected would be fetched whole");
  const float* bias = layers_[index].key_bias;
  const ExactRows rows = run_rows(index);
  PrefillAttendParams attend = prompt_attend_params(p, n_context, out);
  attend.keys = rows.keys;
  attend.values = rows.values;
  attend.head_stride = rows.head_stride;
  attend.first_position = first_token - rows.base;
  attend.window = layout_.shape.window[index];
  attend.bias = bias != nullptr ? bias + rows.base : nullptr;
  if (planes && attend.window == 0 && rows.base > 0) {
    attend_middle(index, p, first_token, attend);
    attend.part.state = runs_->state;
    attend.part.is_first = false;
  } else if (!planes && attend.window == 0 && selects) {
    const int64_t end = std::max<int64_t>(first_token - kPrefillLocal, 0) / layout_.settings.prefill_chunk();
    select_prefill_chunks(device_, run_select_params(index, p, first_token, end, attend.scale));
    attend_listed(attend);
  }
  attend_prefill(device_, attend);
}

// What comes before the plane's first row, as the first parts of the attention.
template <typename Device, typename Host>
void KvStore<Device, Host>::attend_middle(int64_t index, const Projections& p, int64_t first_token,
                                          PrefillAttendParams attend) {
  const Layer& layer = layers_[index];
  const KvSettings& o = layout_.settings;
  const Runs& r = *runs_;
  attend.part.state = r.state;
  attend.part.is_last = false;
  if (o.select_prefill) {
    const int64_t end = r.base / o.prefill_chunk();
    CHECK(end * o.prefill_chunk() == r.base, "{} tokens before the window, chunks of {}", r.base, o.prefill_chunk());
    select_prefill_chunks(device_, run_select_params(index, p, first_token, end, attend.scale));
    attend_listed(attend);
  }
  if (layout_.resident(index)) {
    attend.keys = layer.home_keys;
    attend.values = layer.home_values;
    attend.head_stride = o.capacity * d();
    attend.first_position = first_token;
    attend.part.end = r.base;
    attend.bias = layer.key_bias;
    attend_prefill(device_, attend);
    return;
  }
  std::vector<MissList> lists;
  if (o.select_prefill) {
    const int64_t one = kv() * layout_.run_list();
    for (int64_t block = 0; block * kPrefillBlock < p.n_tokens; ++block) {
      lists.push_back(run_list(attend.chunk_ids + block * one, attend.chunk_counts + block * kv(), block));
    }
    attend_fetched(index, lists, attend);
    return;
  }
  attend.block_tokens = p.n_tokens;
  attend.chunk_tokens = chunk();
  for (int64_t first = 0; first < layer.end_chunk; first += layout_.run_list()) {
    const int64_t n = std::min(layout_.run_list(), layer.end_chunk - first);
    attend.chunk_counts = r.counts + n * kv();
    lists.assign(1, run_list(r.numbers + first * kv(), attend.chunk_counts, 0));
    attend_fetched(index, lists, attend);
    attend.part.is_first = false;
  }
}

// To the records of a block.
template <typename Device, typename Host>
typename KvStore<Device, Host>::MissList KvStore<Device, Host>::run_list(const int32_t* chunks,
                                                                         const int32_t* counts,
                                                                         int64_t block) const {
  MissList list;
  list.chunks = chunks;
  list.slots = runs_->numbers;
  list.counts = counts;
  list.stride = layout_.run_list();
  list.records = runs_->records + block * layout_.run_list() * layout_.record;
  list.head_stride = layout_.run_blocks() * layout_.run_list() * layout_.record;
  return list;
}

// Fetches the chunks of these lists and attends them as one part. attend has their counts.
template <typename Device, typename Host>
void KvStore<Device, Host>::attend_fetched(int64_t index, std::span<const MissList> lists,
                                           PrefillAttendParams attend) {
  const Layer& layer = layers_[index];
  const Runs& r = *runs_;
  const auto chosen = device_.record();  // and what was in the records before has been attended
  copy_.wait(chosen);
  std::vector<FetchParams>& fetches = workspace_.fetches;
  fetches.clear();
  for (const MissList& list : lists) fetches.push_back(fetch_params(layer, list));
  fetch(copy_, std::span<const FetchParams>(fetches));
  device_.wait(copy_.record());
  if (layout_.settings.keys != KeyForm::kExact) {
    side_.wait(chosen);
    for (const MissList& list : lists) rebuild_keys_of(layer, list);
    device_.wait(side_.record());
  }
  const int64_t end = layout_.run_record_rows();
  attend.keys = r.records;
  attend.values = r.records + chunk() * d();
  attend.head_stride = layout_.run_blocks() * layout_.run_list() * layout_.record;
  attend.first_position = end;
  attend.chunk_ids = r.record_ids;
  attend.local_begin = r.begins;
  attend.max_chunks = layout_.run_list();
  attend.part.end = end;
  attend_prefill(device_, attend);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::finish_run(int64_t index, int64_t end_token) {
  Recent& recent = layers_[index].recent;
  const int64_t window = layout_.shape.window[index];
  if (window > 0) recent.first = std::max(recent.first, end_token - window);
  if (!layout_.layer_planes) return;
  const Runs& r = *runs_;
  if (layout_.tiered(index)) {
    const int64_t n = layout_.retire_tokens;
    const bool coded = layout_.settings.landmark_codec != RowCodec::kBf16;
    const int64_t most = coded ? n : kPrefillChunk / n * n;
    int64_t left = std::max<int64_t>(end_token - recent.first - layout_.settings.recent, 0) / n * n;
    for (; left > 0; left -= std::min(left, most)) {
      retire(index, run_rows(index), std::min(left, most));
    }
  }
  // Rows before the run are there, and stay as long as there is room: a rewind wants them.
  int64_t first = r.first;
  if (end_token - recent.base > recent.capacity) first = recent.base = recent.first;
  const int64_t n = end_token - first;
  CHECK(first - recent.base + n <= recent.capacity, "{} of {}", n, recent.capacity);
  const int64_t from = (first - r.base) * d(), to = (first - recent.base) * d(), stride = recent.capacity * d();
  copy_rows_on(device_, r.keys + from, r.rows * d(), recent.keys + to, stride, n);
  copy_rows_on(device_, r.values + from, r.rows * d(), recent.values + to, stride, n);
}

// A list that reuse may keep is of another text.
template <typename Device, typename Host>
void KvStore<Device, Host>::end_runs() {
  CHECK(runs_.has_value());
  for (Layer& layer : layers_) layer.index.list_chunks = -1;
  device_.wait(copy_.record());
  device_.wait(side_.record());
  device_.finish();
  give_back_runs();
}

}  // namespace tiercel
