// KvStore: a long text behind what is held. As a prompt's, its tokens pass through a layer in runs, whose queries
// attend together:
//
//   position   0 ............. middle ............. | window | run
//              chunks that blocks of queries have    exact rows of one plane, causally
//              selected, or all: in place, or
//              fetched as records, a part at a time
//
// A dense store has all of them in one plane. What the window has no room for retires behind each run. Behind a prefix
// that others share, middle and window are the prefix's, and nothing retires:
//
//   position   0 ............. middle ............. | window | own rows, run
//
// There only layers that attend no more than a window have a plane, of both windows and the run. Where the run's
// queries have several views (QuerySpans), each of them has its own span of all this.
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
  r.view_means = take_bf16(n.view_means);
  r.means = take_bf16(n.means);
  r.records = take_bf16(n.records);
  r.numbers = device_arena_.template take<int32_t>(Purpose::kActivations, n.ids);
  r.begins = device_arena_.template take<int64_t>(Purpose::kActivations, n.begins);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::give_back_runs() {
  const Runs& r = *runs_;
  for (const void* block : std::initializer_list<const void*>{r.keys, r.values, r.state, r.view_means,
                                                              r.means, r.records, r.numbers, r.begins}) {
    device_arena_.give_back(block);
  }
  runs_.reset();
}

// What an earlier run, or layer, had in the planes has been coded and is at home. The window follows it there.
template <typename Device, typename Host>
void KvStore<Device, Host>::bring_window(int64_t index, int64_t first_token) {
  const Layer& layer = layers_[index];
  Runs& r = *runs_;
  device_.wait(copy_.record());
  device_.wait(side_.record());
  const bool has_prefix = layout_.shares_prefix() && layer.prefix.first < n_prompt_;
  r.base = has_prefix ? layer.prefix.first : layer.recent.first;
  CHECK(first_token - r.base <= r.rows - layout_.settings.continued, "{} rows before the run of {}",
        first_token - r.base, r.rows);
  const auto bring = [&](const Recent& recent, int64_t end) {
    const int64_t from = (recent.first - recent.base) * d(), to = (recent.first - r.base) * d();
    const int64_t n = end - recent.first, stride = recent.capacity * d();
    copy_rows_on(device_, recent.keys + from, stride, r.keys + to, r.rows * d(), n);
    copy_rows_on(device_, recent.values + from, stride, r.values + to, r.rows * d(), n);
  };
  if (has_prefix) bring(layer.prefix, n_prompt_);
  bring(layer.recent, first_token);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::append_run(int64_t index, const Projections& p, int64_t first_token) {
  CHECK(runs_ && p.n_tokens <= layout_.settings.continued && first_token + p.n_tokens <= layout_.positions(),
        "a run of {} behind {} tokens", p.n_tokens, first_token);
  runs_->first = first_token;
  move_windows(index, first_token);
  if (layout_.runs_in_plane(index)) bring_window(index, first_token);
  const ExactRows rows = run_rows(index);
  RopeAppendParams append = rope_append_params(p);
  append.keys = rows.keys;
  append.values = rows.values;
  append.head_stride = rows.head_stride;
  append.first_row = first_token - rows.base;
  append.first_position = first_token;
  if (views_at(first_token + p.n_tokens - 1).n > 1) append.q = nullptr;  // turned view by view
  rope_append(device_, append);
  append_key_bias(layers_[index], p, first_token);
}

// Where the keys are that the run's queries see, in the order of their positions; the last place has the run.
template <typename Device, typename Host>
std::vector<typename KvStore<Device, Host>::RunPlace> KvStore<Device, Host>::run_places(int64_t index) const {
  const Layer& layer = layers_[index];
  const int64_t capacity = layout_.settings.capacity;
  const bool shares = layout_.shares_prefix(), in_plane = layout_.runs_in_plane(index);
  const auto place_of = [&](const ExactRows& rows, int64_t begin, int64_t end) {
    RunPlace place = {rows, begin, end};
    if (layer.key_bias == nullptr) return place;
    place.bias = layer.key_bias + rows.base;
    place.bias_head_stride = capacity;
    return place;
  };
  std::vector<RunPlace> places;
  const ExactRows own = run_rows(index);
  if (layout_.tiered(index)) {
    const int64_t end = shares ? layer.prefix.first : own.base;
    if (end > 0) {
      places.push_back(place_of({layer.home_keys, layer.home_values, capacity * d(), 0}, 0, end));
      places.back().is_fetched = !layout_.resident(index);
      places.back().is_listed = true;
    }
  }
  if (shares && !in_plane) places.push_back(place_of(rows_of(layer.prefix), layer.prefix.first, n_prompt_));
  places.push_back(place_of(own, own.base, std::numeric_limits<int64_t>::max()));
  const bool is_dense = layout_.settings.kind == StoreKind::kDense && layout_.shape.window[index] == 0;
  if (is_dense) places.front().is_listed = true;
  if (layer.key_bias_behind != nullptr) {
    places.back().bias = layer.key_bias_behind + own.base - n_prompt_;
    places.back().bias_head_stride = layout_.settings.behind;
  }
  return places;
}

// Means of the chunks before end, which are all in one plane.
template <typename Device, typename Host>
void KvStore<Device, Host>::make_run_means(int64_t index, const ExactRows& rows, int64_t end_chunk) {
  Runs& r = *runs_;
  if (r.means_layer != index) r.n_means = 0;
  r.means_layer = index;
  if (end_chunk <= r.n_means) return;
  CHECK(rows.base == 0, "chunks from {} on", rows.base);
  LandmarkParams params = landmark_params(rows.keys, rows.head_stride, 0, r.n_means, end_chunk);
  params.chunk_tokens = layout_.settings.prefill_chunk();
  params.landmarks = r.means;
  params.landmark_head_stride = layout_.run_means() * d();
  build_landmarks(device_, params);
  r.n_means = end_chunk;
}

// The chunks that blocks of the run's queries attend, of those before a token of the first place.
template <typename Device, typename Host>
void KvStore<Device, Host>::select_for_run(int64_t index, const Projections& p, int64_t first_token,
                                           const RunPlace& place, int64_t end, float scale) {
  PrefillSelectParams select = prompt_select_params(p, first_token, scale);
  select.end_chunk = end / layout_.settings.prefill_chunk();
  if (layout_.run_needs_means(index)) {
    make_run_means(index, place.rows, select.end_chunk);
    select.landmarks = runs_->means;
    select.landmark_head_stride = layout_.run_means() * d();
  } else {
    select.landmarks = prefill_landmarks(index, &select.landmark_head_stride);
  }
  if (select.views.n > 1) mean_views(p, first_token, layout_.run_blocks(), runs_->view_means, select);
  select_prefill_chunks(device_, select);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::attend_run(int64_t index, const Projections& p, int64_t first_token,
                                       int64_t n_context, bool dense, bf16* out) {
  const std::vector<RunPlace> places = run_places(index);
  PrefillAttendParams attend = prompt_attend_params(p, n_context, out);
  attend.first_position = first_token;
  attend.window = layout_.shape.window[index];
  const bool selects = layout_.settings.select_prefill && !dense && places.front().is_listed;
  if (selects) {
    // What a store has no window for: the last tokens before the run, or of the prefix.
    int64_t end = std::min(places.front().end, first_token);
    if (!layout_.tiered(index)) end = std::max<int64_t>(end - kPrefillLocal, 0);
    select_for_run(index, p, first_token, places.front(), end, attend.scale);
  }
  const QueryViews views = views_at(first_token + p.n_tokens - 1);
  CHECK((views.n - 1) * views.span_tokens <= first_token, "queries {} to {} look at one span in two ways", first_token,
        first_token + p.n_tokens - 1);
  if (places.size() > 1 || views.n > 1) attend.part.state = runs_->state;
  runs_->fetched_list = -1;
  const int64_t end_token = first_token + p.n_tokens;
  for (int32_t view = 0; view < views.n; ++view) {
    if (views.n > 1) {
      turn_view(p, first_token, view);
      attend.q = p.views;
    }
    const int64_t span = view * views.span_tokens, end_span = view + 1 < views.n ? span + views.span_tokens : end_token;
    for (const RunPlace& place : places) {
      const int64_t begin = std::max(place.begin, span), end = std::min(place.end, end_span);
      if (begin >= end) continue;
      attend.part.is_last = end == end_token;
      PrefillAttendParams some = attend;
      if (selects && &place == &places.front()) attend_listed(some);
      if (place.is_fetched) {
        CHECK(selects == layout_.settings.select_prefill, "what is selected would be fetched whole");
        attend_fetched_place(index, p, begin, end, some);
      } else {
        attend_place(place, begin, end, some);
      }
      attend.part.is_first = false;
    }
  }
}

// Tokens begin .. end - 1, which are in rows.
template <typename Device, typename Host>
void KvStore<Device, Host>::attend_place(const RunPlace& place, int64_t begin, int64_t end,
                                         PrefillAttendParams attend) {
  const ExactRows& rows = place.rows;
  attend.keys = rows.keys;
  attend.values = rows.values;
  attend.head_stride = rows.head_stride;
  attend.first_position -= rows.base;
  attend.bias = place.bias;
  attend.bias_head_stride = place.bias_head_stride;
  attend.part.begin = begin - rows.base;
  attend.part.end = attend.part.is_last ? 0 : end - rows.base;
  attend_prefill(device_, attend);
}

// The same of the middle, whose chunks are fetched: those that are listed, or all.
template <typename Device, typename Host>
void KvStore<Device, Host>::attend_fetched_place(int64_t index, const Projections& p, int64_t begin, int64_t end,
                                                 PrefillAttendParams attend) {
  const Layer& layer = layers_[index];
  const Runs& r = *runs_;
  CHECK(begin % chunk() == 0 && end % chunk() == 0, "tokens {} to {}, chunks of {}", begin, end, chunk());
  attend.part.first_chunk = begin / chunk();
  attend.part.end_chunk = end / chunk();
  std::vector<MissList> lists;
  if (layout_.settings.select_prefill) {
    const int64_t one = kv() * layout_.run_list();
    for (int64_t block = 0; block * kPrefillBlock < p.n_tokens; ++block) {
      lists.push_back(run_list(attend.chunk_ids + block * one, attend.chunk_counts + block * kv(), block));
    }
    attend_fetched(index, 0, lists, attend);
    return;
  }
  attend.block_tokens = p.n_tokens;
  attend.chunk_tokens = chunk();
  const int64_t most = layout_.run_list();
  for (int64_t list = attend.part.first_chunk / most; list * most < attend.part.end_chunk; ++list) {
    const int64_t n = std::min(most, layer.end_chunk - list * most);
    attend.chunk_counts = r.counts + n * kv();
    lists.assign(1, run_list(r.numbers + list * most * kv(), attend.chunk_counts, 0));
    attend_fetched(index, list, lists, attend);
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

// Fetches the chunks of these lists, number `number` of the run, if they are not the ones that are there, and attends
// them as one part. attend has their counts, and which of them it is.
template <typename Device, typename Host>
void KvStore<Device, Host>::attend_fetched(int64_t index, int64_t number, std::span<const MissList> lists,
                                           PrefillAttendParams attend) {
  Runs& r = *runs_;
  if (r.fetched_list != number) fetch_for_run(layers_[index], lists);
  r.fetched_list = number;
  const int64_t end = layout_.run_record_rows();
  attend.keys = r.records;
  attend.values = r.records + chunk() * d();
  attend.head_stride = layout_.run_blocks() * layout_.run_list() * layout_.record;
  attend.first_position = end;
  attend.part.chunks = lists.front().chunks;
  attend.chunk_ids = r.record_ids;
  attend.local_begin = r.begins;
  attend.max_chunks = layout_.run_list();
  attend.part.end = end;
  attend_prefill(device_, attend);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::fetch_for_run(const Layer& layer, std::span<const MissList> lists) {
  const auto chosen = device_.record();  // and what was in the records before has been attended
  copy_.wait(chosen);
  std::vector<FetchParams>& fetches = workspace_.fetches;
  fetches.clear();
  for (const MissList& list : lists) fetches.push_back(fetch_params(layer, list));
  fetch(copy_, std::span<const FetchParams>(fetches));
  device_.wait(copy_.record());
  if (layout_.settings.keys == KeyForm::kExact) return;
  side_.wait(chosen);
  for (const MissList& list : lists) rebuild_keys_of(layer, list);
  device_.wait(side_.record());
}

template <typename Device, typename Host>
void KvStore<Device, Host>::finish_run(int64_t index, int64_t end_token) {
  Recent& recent = layers_[index].recent;
  move_windows(index, end_token);
  if (!layout_.runs_in_plane(index)) return;
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
