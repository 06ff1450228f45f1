// KvStore: one decode step of one layer.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

template <typename Device, typename Host>
void KvStore<Device, Host>::append(int64_t index, const Projections& p, int64_t ahead, bool follows) {
  position_ = n_tokens_ + ahead;
  CHECK(p.n_tokens == 1 && position_ < layout_.positions(), "{} of {}", position_,
        layout_.positions());
  Layer& layer = layers_[index];
  Recent& recent = layer.recent;
  if (position_ - recent.base == recent.capacity) make_room(layer);
  RopeAppendParams append = rope_append_params(p);
  append.keys = recent.keys;
  append.values = recent.values;
  append.head_stride = recent.capacity * d();
  append.first_row = position_ - recent.base;
  append.first_position = position_;
  append.later = later();
  const QueryViews views = views_at(position_);
  if (views.n > 1) {
    append.spans = layout_.shape.spans;
    append.n_views = views.n;
    append.views = p.views;
    append.view_stride = views.stride;
  }
  rope_append(device_, append);
  append_key_bias(layer, p, position_);
  move_windows(index, position_);
  if (follows || layout_.shares_prefix()) return;
  // Once at most, but after such tokens, or for a window that was restored from a backend with longer
  // ones.
  while (layout_.tiered(index) && retire_chunks(index)) {
  }
}

// The windows of layers that attend no more, before the token at this position is attended.
template <typename Device, typename Host>
void KvStore<Device, Host>::move_windows(int64_t index, int64_t position) {
  const int64_t window = layout_.shape.window[index];
  if (window == 0) return;
  for (Recent* rows : {&layers_[index].recent, &layers_[index].prefix}) {
    rows->first = std::max(rows->first, position + 1 - window);
  }
}

// What leaves the window must be selected to be attended, so it stays while a list does, as long as
// make_room will find it in the upper half.
template <typename Device, typename Host>
bool KvStore<Device, Host>::may_follow(int64_t index, int64_t ahead) const {
  if (layout_.shares_prefix()) return layout_.tiered(index) && chosen_ > 0;
  const int64_t most = layout_.settings.recent + layout_.retire_tokens + chunk();
  return layout_.tiered(index) && chosen_ > 0 &&
         n_tokens_ + ahead + 1 - layers_[index].recent.first < most;
}

// Moves the rows still attended to the front. They are at most half of the capacity, so source and
// target never overlap.
template <typename Device, typename Host>
void KvStore<Device, Host>::make_room(Layer& layer) {
  Recent& recent = layer.recent;
  const int64_t n = position_ - recent.first;
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
// full without them. False: it is not full.
template <typename Device, typename Host>
bool KvStore<Device, Host>::retire_chunks(int64_t index) {
  const Recent& recent = layers_[index].recent;
  const int64_t n = layout_.retire_tokens;
  if (position_ + 1 - recent.first < layout_.settings.recent + n) return false;
  retire(index, rows_of(recent), n);
  return true;
}

// The window's first n_tokens, from rows that hold them: at most what its landmarks have room for on their way to
// codes, and kPrefillChunk. Their codes use the basis, or the mean, of the prompt; their values go home.
template <typename Device, typename Host>
void KvStore<Device, Host>::retire(int64_t index, const ExactRows& rows, int64_t n) {
  Layer& layer = layers_[index];
  Recent& recent = layer.recent;
  const KvSettings& o = layout_.settings;
  const int64_t row = recent.first - rows.base;
  const int64_t stride = rows.head_stride;
  const int64_t first = recent.first / chunk(), end = first + n / chunk();
  if (layout_.indexed(index)) {
    Index& its = layer.index;
    const LandmarkPlane plane = retired_plane(its, first);
    build_index(its, plane, landmark_params(rows.keys, stride, rows.base, first, end), rows.values);
    encode_index(its, plane, first, end);
    // Of coded landmarks nothing is left to make blocks from: what is generated competes one by one.
    if (its.codes == nullptr) build_blocks(its, plane, end);
  }
  if (layout_.late_chunks > 0) keep_late_chunks(index, rows, first, end);
  if (o.keys != KeyForm::kExact) {
    side_.wait(device_.record());
    if (o.keys == KeyForm::kLowRank) {
      project_rows(layer, rows.keys, stride, rows.base, recent.first, recent.first + n);
    } else {
      encode_key_rows(layer, rows.keys, stride, rows.base, recent.first, n);
    }
  }
  // Whoever reads these rows at home on the host, or the codes, does so on the queue that writes them;
  // the device goes on, unless it reads its own home.
  copy_.wait(device_.record());
  send_home(layer, rows.keys + row * d(), rows.values + row * d(), stride, recent.first, n);
  if (in_place(index)) device_.wait(copy_.record());
  recent.first += n;
  layer.end_chunk = recent.first / chunk();
}

// Of chunks that leave the window, those that their means describe worst stay exact, as the prompt's
// do. Every layer of a group keeps the same ones.
template <typename Device, typename Host>
void KvStore<Device, Host>::keep_late_chunks(int64_t index, const ExactRows& rows, int64_t first_chunk,
                                             int64_t end_chunk) {
  const Layer& layer = layers_[index];
  Index& its = index_of(index);
  LateOutlierParams late;
  late.keys = rows.keys;
  late.values = rows.values;
  late.head_stride = rows.head_stride;
  late.first_row = rows.base;
  late.choose = layout_.indexed(index);
  if (late.choose) {
    const LandmarkPlane plane = retired_plane(its, first_chunk);
    late.landmarks = plane.rows;
    late.landmark_head_stride = plane.head_stride;
    late.first_landmark = plane.first_chunk;
    its.excludes = true;
  }
  late.first_chunk = first_chunk;
  late.n_chunks = end_chunk - first_chunk;
  late.chunk_tokens = chunk();
  late.n_kv_heads = layout_.shape.n_kv_heads;
  late.head_dim = layout_.shape.head_dim;
  late.n_kept = n_late(index);
  late.n_most = layout_.late_chunks;
  late.ids = its.late_ids;
  late.cosines = its.late_cosines;
  late.excluded = its.excluded;
  late.excluded_stride = layout_.mask_words;
  late.kept_keys = layer.late_keys;
  late.kept_values = layer.late_values;
  keep_late_outliers(device_, late);
}

// The regions that are always attended: windows, sinks, outliers.
template <typename Device, typename Host>
int KvStore<Device, Host>::exact_sources(int64_t index, int64_t n_rows, KvSource* sources) const {
  const Layer& layer = layers_[index];
  int n = 0;
  auto plane = [&](const bf16* keys, const bf16* values, int64_t head_stride, int64_t n_tokens,
                   int64_t first_position) {
    if (n_tokens <= 0) return;
    KvSource& source = sources[n++];
    source.first_position = first_position;
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
  plane(recent.keys + row, recent.values + row, recent.capacity * d(), n_rows - recent.first,
        recent.first);
  sources[0].later = later();  // never empty: the newest token is in it
  sources[0].most_tokens = cut_tokens(sources[0].n_tokens);
  add_key_bias(layer, recent.first, sources[0]);
  if (layer.key_bias_behind != nullptr) {
    sources[0].key_bias = layer.key_bias_behind + (recent.first - n_prompt_);
    sources[0].key_bias_head_stride = layout_.settings.behind;
  }
  const Recent& before = layer.prefix;
  if (before.keys != nullptr && before.first < n_prompt_) {
    const int64_t first = (before.first - before.base) * d();
    plane(before.keys + first, before.values + first, before.capacity * d(), n_prompt_ - before.first,
          before.first);
    add_key_bias(layer, before.first, sources[n - 1]);
  }
  plane(layer.sink_keys, layer.sink_values, layout_.settings.sinks * d(), layer.n_sinks, 0);
  if (layer.n_sinks > 0) add_key_bias(layer, 0, sources[n - 1]);
  // Chunks that another list names: their rows here say nothing of their positions.
  auto chunks = [&](const bf16* keys, const bf16* values, int64_t capacity, int64_t n_chunks,
                    const int32_t* ids, int64_t ids_stride) {
    plane(keys, values, capacity * chunk() * d(), n_chunks * chunk(), 0);
    if (n_chunks == 0) return;
    KvSource& source = sources[n - 1];
    source.chunk_tokens = chunk();
    source.chunk_stride = chunk() * d();
    source.position_step = chunk();
    source.position_chunks = ids;
    source.position_chunks_stride = ids_stride;
    add_key_bias(layer, 0, source, ids, ids_stride);
  };
  if (!layout_.tiered(index)) return n;
  const Index& its = index_of(index);
  chunks(layer.exact_keys, layer.exact_values, layout_.settings.exact_chunks(), its.n_exact,
         its.exact_ids, its.n_exact);
  chunks(layer.late_keys, layer.late_values, layout_.late_chunks, n_late(index), its.late_ids,
         layout_.late_chunks);
  return n;
}

// first_position: of the source's first row, or of its chunk 0. chunks: those that its own stand for
// (KvSource::bias_chunks), or null.
template <typename Device, typename Host>
void KvStore<Device, Host>::add_key_bias(const Layer& layer, int64_t first_position, KvSource& source,
                                         const int32_t* chunks, int64_t chunks_stride) const {
  if (layer.key_bias == nullptr) return;
  source.key_bias = layer.key_bias + first_position;
  source.key_bias_head_stride = layout_.settings.capacity;
  source.bias_chunks = chunks;
  source.bias_chunks_stride = chunks_stride;
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
  source.ids_stride = chosen_;
  source.position_step = chunk();
  source.position_chunks = layer.slot_state.chunk_of_slot;
  source.position_chunks_stride = layout_.n_slots;
  add_key_bias(layer, 0, source, layer.slot_state.chunk_of_slot, layout_.n_slots);
  return source;
}

// Selected chunks where they live: nothing is copied.
template <typename Device, typename Host>
KvSource KvStore<Device, Host>::home_source(int64_t index) const {
  const Layer& layer = layers_[index];
  const Lists& lists = index_of(index).lists;
  KvSource source;
  source.keys = layer.home_keys;
  source.values = layer.home_values;
  source.head_stride = layout_.settings.capacity * d();
  source.chunk_stride = chunk() * d();
  source.token_stride = d();
  source.chunk_tokens = chunk();
  source.ids = lists.ids;
  source.counts = lists.counts;
  source.ids_stride = chosen_;
  source.position_step = chunk();
  add_key_bias(layer, 0, source);
  return source;
}

// Chunks that the cap dropped: one key and one value each, their means, for all of their tokens.
template <typename Device, typename Host>
KvSource KvStore<Device, Host>::estimate_source(int64_t index) const {
  const Index& its = index_of(index);
  KvSource source;
  source.keys = its.landmarks;
  source.values = its.value_means;
  source.head_stride = layout_.chunks * d();
  source.chunk_stride = source.token_stride = d();
  source.chunk_tokens = 1;
  source.position_step = chunk();
  source.ids = its.lists.dropped_ids;
  source.counts = its.lists.dropped_counts;
  source.ids_stride = chosen_;
  source.bias = std::log2(static_cast<float>(chunk()));
  return source;
}

// Of the query at a position.
template <typename Device, typename Host>
QueryViews KvStore<Device, Host>::views_at(int64_t position) const {
  const QuerySpans& spans = layout_.shape.spans;
  QueryViews views;
  views.span_tokens = spans.tokens;
  views.n = static_cast<int32_t>(spans.views_of(position));
  views.stride = layout_.shape.n_heads * d();
  return views;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::attend_sources(int64_t position, const bf16* q, const KvSource* sources,
                                           int n_sources, PartialView out,
                                           const PartialView* merge_with, bf16* final_out) {
  DecodeAttendParams attend;
  attend.q = q;
  attend.views = views_at(position);
  attend.sources = sources;
  attend.n_sources = n_sources;
  attend.n_heads = layout_.shape.n_heads;
  attend.n_kv_heads = layout_.shape.n_kv_heads;
  attend.head_dim = layout_.shape.head_dim;
  attend.scale = scale_at(position + 1);
  attend.out = out;
  attend.workspace = workspace_.attend(place_);
  attend.merge_with = merge_with;
  attend.n_merge = merge_with != nullptr ? 1 : 0;
  attend.final_out = final_out;
  attend_decode(device_, attend);
}

template <typename Device, typename Host>
typename KvStore<Device, Host>::MissList KvStore<Device, Host>::misses_of(const Layer& layer) const {
  MissList list;
  list.chunks = lists_.miss_chunks;
  list.slots = lists_.miss_slots;
  list.counts = lists_.miss_counts;
  list.stride = chosen_;
  list.records = layer.slots;
  list.head_stride = layout_.n_slots * layout_.record;
  return list;
}

template <typename Device, typename Host>
template <typename Params>
Params KvStore<Device, Host>::params_of(const MissList& list) const {
  Params params;
  params.miss_chunks = list.chunks;
  params.miss_slots = list.slots;
  params.miss_counts = list.counts;
  params.stride = list.stride;
  params.slots = list.records;
  params.slot_head_stride = list.head_stride;
  params.chunk_tokens = chunk();
  params.n_kv_heads = layout_.shape.n_kv_heads;
  params.head_dim = layout_.shape.head_dim;
  return params;
}

// Values (and exact keys) of the missed chunks, for their slots.
template <typename Device, typename Host>
FetchParams KvStore<Device, Host>::fetch_params(const Layer& layer, const MissList& list) const {
  const KvSettings& o = layout_.settings;
  auto params = params_of<FetchParams>(list);
  params.values = layer.home_values;
  params.value_head_stride = params.key_head_stride = o.capacity * d();
  params.value_codec = o.value_codec;
  params.value_codes = layer.value_codes;
  params.value_code_head_stride = layout_.plane_bytes(o.value_codec);
  params.keys = layer.home_keys;
  return params;
}

// On the side queue: coded keys of these chunks into their records.
template <typename Device, typename Host>
void KvStore<Device, Host>::rebuild_keys_of(const Layer& layer, const MissList& list) {
  if (layout_.settings.keys == KeyForm::kCoded) {
    auto params = params_of<DecodeKeysParams>(list);
    params.codec = layout_.settings.key_codec;
    params.rope = rope_;
    params.codes = layer.key_codes;
    params.code_head_stride = layout_.plane_bytes(params.codec);
    params.mean = layer.lowrank.mean;
    decode_keys(side_, params);
    return;
  }
  auto params = params_of<RebuildParams>(list);
  params.codec = layout_.settings.key_codec;
  params.rope = rope_;
  params.coefficients = layer.coefficients;
  params.coded = layer.key_codes;
  params.lowrank = layer.lowrank;
  rebuild_keys(side_, params);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::attend(int64_t index, const bf16* q, bf16* out) {
  const Attention alone{this, q, out};
  begin_attend(index, {&alone, 1});
  end_attend(index, {&alone, 1});
}

template <typename Device, typename Host>
void KvStore<Device, Host>::attend_followers(int64_t index, std::span<const Follower> followers) {
  CHECK(workspace_.attend_places >= std::min(std::ssize(followers), Device::kTogether), "{} places",
        workspace_.attend_places);
  together(device_, std::ssize(followers), [&](int64_t i) {
    place_ = i;
    attend_as_before(index, followers[static_cast<size_t>(i)]);
  });
  place_ = 0;
}

// What was selected is in its slots by now.
template <typename Device, typename Host>
void KvStore<Device, Host>::attend_as_before(int64_t index, const Follower& follower) {
  const Layer& layer = layers_[index];
  const auto& [ahead, q, out] = follower;
  std::array<KvSource, kMaxDecodeSources> sources;
  const int64_t position = n_tokens_ + ahead;
  int n_sources = exact_sources(index, position + 1, sources.data());
  ++steps_;
  if (by_worker(index)) {
    begin_host_attend(index, q);
    attend_sources(position, q, sources.data(), n_sources, partials_[0]);
    device_.wait(*pending_.host);
    end_host_attend(out);
    return;
  }
  if (in_place(index)) {
    sources[n_sources++] = home_source(index);
  } else {
    sources[n_sources++] = slot_source(layer, lists_.hit_slots, lists_.hit_counts);
    sources[n_sources++] = slot_source(layer, lists_.miss_slots, lists_.miss_counts);
    if (layout_.settings.estimate) sources[n_sources++] = estimate_source(index);
  }
  attend_sources(position, q, sources.data(), n_sources, workspace_.partial(place_), nullptr, out);
}

// Calls each(store, q, out) for stores that the device serves at once, if each has a workspace.
template <typename Device, typename Host>
template <typename Each>
void KvStore<Device, Host>::for_each_store(std::span<const Attention> some, Each&& each) {
  KvStore& first = *some.front().store;
  const auto n = static_cast<int64_t>(some.size());
  const auto call = [&](int64_t i) {
    const Attention& a = some[static_cast<size_t>(i)];
    a.store->place_ = i;
    each(*a.store, a.q, a.out);
  };
  if (first.workspace_.together >= n) {
    together(first.device_, n, call);
  } else {
    for (int64_t i = 0; i < n; ++i) call(i);
  }
}

// Some stores choose, then what they all miss is on its way while they attend their hits, and others
// choose.
template <typename Device, typename Host>
void KvStore<Device, Host>::begin_attend(int64_t index, std::span<const Attention> all) {
  while (!all.empty()) {
    const auto some = all.first(std::min(all.size(), kFetchedTogether));
    choose_all(index, some);
    for_each_store(some, [&](KvStore& store, const bf16* q, bf16* out) {
      store.begin_chosen(index, q, out);
    });
    fetch_misses(index, some);
    for_each_store(some, [&](KvStore& store, const bf16* q, bf16*) {
      if (store.pending_.misses) store.attend_hits(index, q);
    });
    all = all.subspan(some.size());
  }
}

// What is chosen is attended at once where it lies; where it must be fetched, misses are pending.
template <typename Device, typename Host>
void KvStore<Device, Host>::begin_chosen(int64_t index, const bf16* q, bf16* out) {
  if (chosen_ > 0 && is_to_be_tried(index)) {
    try_both_ways(index, q, out);
  } else if (chosen_ > 0 && fetches(index)) {
    pending_.misses = true;
  } else {
    attend_at_home(index, q, out);
  }
}

template <typename Device, typename Host>
void KvStore<Device, Host>::attend_at_home(int64_t index, const bf16* q, bf16* out) {
  std::array<KvSource, kMaxDecodeSources> sources;
  int n_sources = exact_sources(index, position_ + 1, sources.data());
  if (chosen_ > 0 && by_worker(index)) {
    begin_host_attend(index, q);
    attend_sources(position_, q, sources.data(), n_sources, partials_[0]);
    return;
  }
  if (chosen_ > 0) sources[n_sources++] = home_source(index);
  attend_sources(position_, q, sources.data(), n_sources, partials_[0], nullptr, out);
}

// 6 on the copy queue: what these stores miss, in one fetch as far as they are alike; on the side queue:
// its keys are rebuilt (DESIGN, "Decode").
template <typename Device, typename Host>
void KvStore<Device, Host>::fetch_misses(int64_t index, std::span<const Attention> some) {
  const auto misses = [](const Attention& a) { return a.store->pending_.misses; };
  if (std::none_of(some.begin(), some.end(), misses)) return;
  KvStore& first = *some.front().store;
  std::vector<FetchParams>& fetches = first.workspace_.fetches;
  fetches.clear();
  const auto chosen = first.device_.record();
  first.copy_.wait(chosen);
  for (const Attention& a : some) {
    if (!misses(a)) continue;
    const KvStore& store = *a.store;
    const Layer& layer = store.layers_[index];
    const FetchParams next = store.fetch_params(layer, store.misses_of(layer));
    if (!fetches.empty() && !are_alike(fetches.front(), next)) {
      fetch(first.copy_, std::span<const FetchParams>(fetches));
      fetches.clear();
    }
    fetches.push_back(next);
  }
  fetch(first.copy_, std::span<const FetchParams>(fetches));
  const auto fetched = first.copy_.record();
  for (const Attention& a : some) {
    if (misses(a)) a.store->pending_.fetched = fetched;
  }

  const auto rebuilds = [&](const Attention& a) {
    return misses(a) && a.store->layout_.settings.keys != KeyForm::kExact;
  };
  if (std::none_of(some.begin(), some.end(), rebuilds)) return;
  first.side_.wait(chosen);
  together(first.side_, static_cast<int64_t>(some.size()), [&](int64_t i) {
    const Attention& a = some[static_cast<size_t>(i)];
    KvStore& store = *a.store;
    if (rebuilds(a)) store.rebuild_keys_of(store.layers_[index], store.misses_of(store.layers_[index]));
  });
  const auto rebuilt = first.side_.record();
  for (const Attention& a : some) {
    if (rebuilds(a)) a.store->pending_.rebuilt = rebuilt;
  }
}

// Meanwhile the exact regions and the hits.
template <typename Device, typename Host>
void KvStore<Device, Host>::attend_hits(int64_t index, const bf16* q) {
  std::array<KvSource, kMaxDecodeSources> sources;
  int n_sources = exact_sources(index, position_ + 1, sources.data());
  sources[n_sources++] = slot_source(layers_[index], lists_.hit_slots, lists_.hit_counts);
  if (layout_.settings.estimate) sources[n_sources++] = estimate_source(index);
  attend_sources(position_, q, sources.data(), n_sources, partials_[0]);
}

// 7 attend the misses and merge.
template <typename Device, typename Host>
void KvStore<Device, Host>::end_attend(int64_t index, std::span<const Attention> all) {
  while (!all.empty()) {
    const auto some = all.first(std::min(all.size(), kFetchedTogether));
    await_chosen(some);
    for_each_store(some, [&](KvStore& store, const bf16* q, bf16* out) {
      store.end_chosen(index, q, out);
    });
    for (const Attention& a : some) a.store->audit_if_wanted(index, a.q);
    all = all.subspan(some.size());
  }
}

// What stores fetched together arrives together.
template <typename Device, typename Host>
void KvStore<Device, Host>::await_chosen(std::span<const Attention> some) {
  std::optional<typename Device::Ticket> fetched, rebuilt;
  for (const Attention& a : some) {
    KvStore& store = *a.store;
    const auto await = [&](const auto& ticket, auto& last) {
      if (!ticket || ticket == last) return;
      store.device_.wait(*ticket);
      last = ticket;
    };
    await(store.pending_.fetched, fetched);
    await(store.pending_.rebuilt, rebuilt);
    if (store.pending_.host) store.device_.wait(*store.pending_.host);
  }
}

template <typename Device, typename Host>
void KvStore<Device, Host>::audit_if_wanted(int64_t index, const bf16* q) {
  const bool selected = layout_.tiered(index) && selected_per_head(layers_[index]) > 0;
  if (auditing_ && selected) audit_layer(index, q, position_ + 1);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::end_chosen(int64_t index, const bf16* q, bf16* out) {
  if (pending_.misses) {
    const KvSource misses = slot_source(layers_[index], lists_.miss_slots, lists_.miss_counts);
    attend_sources(position_, q, &misses, 1, partials_[1], &partials_[0], out);
  }
  if (pending_.host) end_host_attend(out);
  pending_ = {};
}

template <typename Device, typename Host>
int64_t KvStore<Device, Host>::steps_alike() const {
  const KvSettings& o = layout_.settings;
  if (auditing_) return 0;
  int64_t alike = layout_.positions() - n_tokens_;
  const QuerySpans& spans = layout_.shape.spans;
  if (spans.tokens > 0) {
    alike = std::min(alike, spans.limit_of(spans.first_plain(n_tokens_)) + 1 - n_tokens_);
  }
  if (const int64_t from = layout_.shape.scaled_from; from > 0) {
    const int64_t left = n_tokens_ < from ? from - n_tokens_ : kScaleTokens - n_tokens_ % kScaleTokens;
    alike = std::min(alike, left);
  }
  for (int64_t index = 0; index < layout_.shape.n_layers; ++index) {
    const Layer& layer = layers_[index];
    const Recent& recent = layer.recent;
    if (layout_.shape.window[index] > 0 || is_to_be_tried(index)) return 0;
    // The first list of a new length is made whatever the query says.
    if (o.reuses() && layout_.indexed(index) && layer.index.list_chunks != selected_per_head(layer)) {
      return 0;
    }
    // Rows that the last of these steps may have.
    const int64_t most = std::min(most_rows(index), cut_tokens(n_tokens_ + 1 - recent.first));
    alike = std::min(alike, recent.first + most - n_tokens_);
  }
  return std::max<int64_t>(alike, 0);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::count_replayed_step() {
  for (int64_t index = 0; index < layout_.shape.n_layers; ++index) {
    steps_ += layout_.tiered(index) && selected_per_head(layers_[index]) > 0;
  }
  advance();
}

template <typename Device, typename Host>
void KvStore<Device, Host>::advance(int64_t n) {
  n_tokens_ += n;
  n_steps_ += n;
  if (auditing_) {
    for (MassHistogram& mass : mass_) mass.end_step();
  }
}

}  // namespace tiercel
