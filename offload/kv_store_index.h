// KvStore: the index of a layer, its exact chunks, and its coded keys. Made at the end of a layer's
// prefill, and extended when chunks leave the recent window.
#pragma once

#include "offload/kv_store.h"

namespace tiercel {

// From rows of a plane (row r is position first_row + r), for chunks of the index.
template <typename Device, typename Host>
LandmarkParams KvStore<Device, Host>::landmark_params(const bf16* rows, int64_t head_stride,
                                                      int64_t first_row, int64_t first_chunk,
                                                      int64_t end_chunk) const {
  LandmarkParams params;
  params.keys = rows;
  params.key_head_stride = head_stride;
  params.first_row = first_row;
  params.first_chunk = first_chunk;
  params.n_chunks = end_chunk - first_chunk;
  params.chunk_tokens = chunk();
  params.n_kv_heads = layout_.shape.n_kv_heads;
  params.head_dim = layout_.shape.head_dim;
  return params;
}

template <typename Device, typename Host>
typename KvStore<Device, Host>::LandmarkPlane KvStore<Device, Host>::landmark_plane(
    const Index& index) const {
  const int64_t width = layout_.landmark_elements();
  if (index.codes != nullptr) return {workspace_.landmarks, layout_.index_plane_chunks() * width};
  return {index.landmarks, layout_.chunks * width};
}

// The same of chunks that leave the window, from first_chunk on.
template <typename Device, typename Host>
typename KvStore<Device, Host>::LandmarkPlane KvStore<Device, Host>::retired_plane(
    const Index& index, int64_t first_chunk) const {
  if (index.codes == nullptr) return landmark_plane(index);
  return {workspace_.retired_landmarks, layout_.retire_chunks() * layout_.landmark_elements(),
          first_chunk};
}

// Landmarks of keys, and the means of the values that stand in the same rows.
template <typename Device, typename Host>
void KvStore<Device, Host>::build_index(const Index& index, const LandmarkPlane& plane,
                                        const LandmarkParams& keys, const bf16* values) {
  LandmarkParams params = keys;
  params.kind = layout_.settings.index;
  params.first_landmark = plane.first_chunk;
  params.landmarks = plane.rows;
  params.landmark_head_stride = plane.head_stride;
  build_landmarks(device_, params);
  if (index.value_means == nullptr) return;
  params = keys;
  params.keys = values;
  params.first_landmark = 0;
  params.landmarks = index.value_means;
  params.landmark_head_stride = layout_.chunks * d();
  build_landmarks(device_, params);
}

// Landmarks of the chunks that these prompt tokens completed.
template <typename Device, typename Host>
void KvStore<Device, Host>::append_landmarks(int64_t layer, const RopeAppendParams& append,
                                             int64_t first_token, int64_t n_tokens) {
  const KvSettings& o = layout_.settings;
  const int64_t first = first_token / chunk(), end = (first_token + n_tokens) / chunk();
  const bool weighs_means = o.weighs_chunks() && o.index != IndexKind::kMean;
  if (layout_.indexed(layer) && end > first) {
    const Index& index = layers_[layer].index;
    build_index(index, landmark_plane(index),
                landmark_params(append.keys, append.head_stride, 0, first, end), append.values);
  }
  const bool selects = o.select_prefill && layout_.shape.window[layer] == 0;
  const bool needs_means =
      (selects && !layout_.prefill_uses_index(layer)) || (layout_.indexed(layer) && weighs_means);
  const int64_t piece = layout_.settings.prefill_chunk();
  LandmarkParams params = landmark_params(append.keys, append.head_stride, 0, first_token / piece,
                                          (first_token + n_tokens) / piece);
  if (!needs_means || params.n_chunks == 0) return;
  params.chunk_tokens = layout_.settings.prefill_chunk();
  params.landmarks = plane_means_;
  params.landmark_head_stride = layout_.mean_plane_chunks() * d();
  build_landmarks(device_, params);
}

// Means of chunks of prefill_chunk tokens.
template <typename Device, typename Host>
const bf16* KvStore<Device, Host>::prefill_landmarks(int64_t layer, int64_t* head_stride) const {
  if (!layout_.prefill_uses_index(layer)) {
    *head_stride = layout_.mean_plane_chunks() * d();
    return plane_means_;
  }
  const LandmarkPlane plane = landmark_plane(layers_[layer].index);
  *head_stride = plane.head_stride;
  return plane.rows;
}

template <typename Device, typename Host>
void KvStore<Device, Host>::index_layer(int64_t layer, int64_t n_tokens) {
  Layer& l = layers_[layer];
  const KvSettings& o = layout_.settings;
  const int64_t plane = o.prompt * d();
  copy_rows(plane_keys_, plane, l.sink_keys, o.sinks * d(), l.n_sinks);
  copy_rows(plane_values_, plane, l.sink_values, o.sinks * d(), l.n_sinks);
  if (o.keys != KeyForm::kExact) code_keys(layer, n_tokens);
  if (layout_.indexed(layer)) {
    choose_exact_chunks(layer, n_tokens);
    encode_index(l.index, landmark_plane(l.index), 0, n_tokens / chunk());
    build_blocks(l.index, landmark_plane(l.index), l.end_chunk);
  }
  gather_exact_chunks(layer);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::encode_index(Index& index, const LandmarkPlane& plane,
                                         int64_t first_chunk, int64_t end_chunk) {
  if (index.codes == nullptr || end_chunk == first_chunk) return;
  EncodeLandmarksParams params;
  params.landmarks = plane.rows;
  params.landmark_head_stride = plane.head_stride;
  params.first_landmark = plane.first_chunk;
  params.first_chunk = first_chunk;
  params.n_chunks = end_chunk - first_chunk;
  params.n_kv_heads = layout_.shape.n_kv_heads;
  params.width = layout_.landmark_elements();
  params.kind = layout_.settings.index;
  params.codes = index.codes;
  params.scales = index.scales;
  params.capacity = layout_.chunks;
  encode_landmarks(device_, params);
}

// Blocks of the first level that chunks up to end - 1 completed: the means of their landmarks.
template <typename Device, typename Host>
void KvStore<Device, Host>::build_blocks(Index& index, const LandmarkPlane& plane,
                                         int64_t end_chunk) {
  if (index.coarse == nullptr) return;
  const int32_t n = layout_.block_chunks();
  LandmarkParams params = landmark_params(plane.rows, plane.head_stride, 0, index.n_blocks, end_chunk / n);
  if (params.n_chunks <= 0) return;
  params.landmarks = index.coarse;
  params.landmark_head_stride = layout_.blocks * layout_.landmark_elements();
  params.chunk_tokens = n;
  params.head_dim = layout_.landmark_elements();
  build_landmarks(device_, params);
  index.n_blocks = end_chunk / n;
}

// Outliers, or the chunks that the prompt's end attended most; and those that never compete.
template <typename Device, typename Host>
void KvStore<Device, Host>::choose_exact_chunks(int64_t layer, int64_t n_tokens) {
  Layer& l = layers_[layer];
  Index& index = l.index;
  const KvSettings& o = layout_.settings;
  const int64_t n_middle = l.end_chunk - l.first_chunk;
  const LayerState end = layer_after_prompt(layout_, layer, n_tokens);
  index.n_exact = end.n_exact;
  index.excludes = end.excludes != 0;
  const auto n_dropped = static_cast<int64_t>(o.drop_share * static_cast<double>(n_middle));
  if (o.outliers > 0 && index.n_exact > 0) {
    OutlierParams params;
    params.keys = plane_keys_;
    params.key_head_stride = o.prompt * d();
    const LandmarkPlane plane = landmark_plane(index);
    params.landmarks = plane.rows;
    params.landmark_head_stride = plane.head_stride;
    params.first_chunk = l.first_chunk;
    params.end_chunk = l.end_chunk;
    params.n_outliers = index.n_exact;
    params.chunk_tokens = chunk();
    params.n_kv_heads = layout_.shape.n_kv_heads;
    params.head_dim = layout_.shape.head_dim;
    params.ids = index.exact_ids;
    params.excluded = index.excluded;
    params.excluded_stride = layout_.mask_words;
    params.workspace = workspace_.select(place_);
    find_outliers(device_, params);
  }
  if (!o.weighs_chunks() || n_middle == 0) return;
  weigh_chunks(layer, n_tokens);
  PickParams pick;
  pick.mass = workspace_.chunk_mass;
  pick.mass_stride = layout_.chunks;
  pick.first_chunk = l.first_chunk;
  pick.end_chunk = l.end_chunk;
  pick.n_kv_heads = layout_.shape.n_kv_heads;
  pick.excluded = index.excluded;
  pick.excluded_stride = layout_.mask_words;
  if (o.static_chunks > 0 && index.n_exact > 0) {
    pick.n = index.n_exact;
    pick.ids = index.exact_ids;
    pick_chunks(device_, pick);
  }
  if (n_dropped == 0) return;
  pick.n = n_dropped;
  pick.ids = nullptr;
  pick.greatest = false;
  pick_chunks(device_, pick);
}

// What the model's eviction head says of them; without one, the attention of the prompt's last queries,
// as far as the means of chunks tell.
template <typename Device, typename Host>
void KvStore<Device, Host>::weigh_chunks(int64_t layer, int64_t n_tokens) {
  const Layer& l = layers_[layer];
  const Index& index = l.index;
  if (l.key_bias != nullptr) {
    PoolBiasParams pool;
    pool.bias = l.key_bias;
    pool.bias_head_stride = layout_.settings.capacity;
    pool.first_chunk = l.first_chunk;
    pool.n_chunks = l.end_chunk - l.first_chunk;
    pool.chunk_tokens = chunk();
    pool.n_kv_heads = layout_.shape.n_kv_heads;
    pool.score = workspace_.chunk_mass;
    pool.score_stride = layout_.chunks;
    pool_key_bias(device_, pool);
    return;
  }
  CHECK(layout_.prompt_views() == 1, "chunks are weighed by queries of one view");
  MassParams params;
  params.q = last_q_;
  params.n_tokens = n_last_q_;
  if (layout_.settings.index != IndexKind::kMean) {
    params.landmarks = plane_means_;  // of chunks: prefill_chunk is chunk_tokens then
    params.landmark_head_stride = layout_.mean_plane_chunks() * d();
  } else {
    const LandmarkPlane plane = landmark_plane(index);
    params.landmarks = plane.rows;
    params.landmark_head_stride = plane.head_stride;
  }
  params.first_chunk = l.first_chunk;
  params.end_chunk = l.end_chunk;
  params.n_heads = layout_.shape.n_heads;
  params.n_kv_heads = layout_.shape.n_kv_heads;
  params.head_dim = layout_.shape.head_dim;
  params.scale = scale_at(n_tokens);
  params.mass = workspace_.chunk_mass;
  params.mass_stride = layout_.chunks;
  params.workspace = workspace_.select(place_);
  accumulate_mass(device_, params);
}

template <typename Device, typename Host>
void KvStore<Device, Host>::gather_exact_chunks(int64_t layer) {
  const Index& index = index_of(layer);
  if (index.n_exact == 0) return;
  GatherParams gather;
  gather.keys = plane_keys_;
  gather.values = plane_values_;
  gather.head_stride = layout_.settings.prompt * d();
  gather.ids = index.exact_ids;
  gather.n_ids = index.n_exact;
  gather.out_keys = layers_[layer].exact_keys;
  gather.out_values = layers_[layer].exact_values;
  gather.out_head_stride = layout_.outlier_rows * d();
  gather.chunk_tokens = chunk();
  gather.n_kv_heads = layout_.shape.n_kv_heads;
  gather.head_dim = layout_.shape.head_dim;
  gather_chunks(device_, gather);
}

// On the side queue, from a key plane that the next layer leaves alone.
template <typename Device, typename Host>
void KvStore<Device, Host>::code_keys(int64_t index, int64_t n_tokens) {
  Layer& layer = layers_[index];
  const int64_t plane = layout_.settings.prompt * d();
  const int64_t middle_end = layer.end_chunk * chunk();
  side_.wait(device_.record());
  const auto begin = side_.mark_time();
  if (layout_.settings.keys == KeyForm::kCoded) {
    MeanKeysParams mean;
    mean.keys = plane_keys_;
    mean.head_stride = plane;
    mean.n_tokens = n_tokens;
    mean.n_kv_heads = layout_.shape.n_kv_heads;
    mean.head_dim = layout_.shape.head_dim;
    mean.rope = rope_;
    mean.mean = layer.lowrank.mean;
    mean_keys(side_, mean);
    encode_key_rows(layer, plane_keys_, plane, 0, 0, middle_end);
    key_coding_.emplace_back(begin, side_.mark_time());
    return;
  }
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
  project_rows(layer, plane_keys_, plane, 0, 0, middle_end);
  key_coding_.emplace_back(begin, side_.mark_time());
}

// Coefficients of tokens first .. end - 1, from rows of a key plane, on the side queue. Coded ones
// pass through a piece of bf16.
template <typename Device, typename Host>
void KvStore<Device, Host>::project_rows(Layer& layer, const bf16* keys, int64_t head_stride,
                                         int64_t first_row, int64_t first_token,
                                         int64_t end_token) {
  const KvSettings& o = layout_.settings;
  const bool coded = o.key_codec != RowCodec::kBf16;
  const int64_t at_once = coded ? kPrefillChunk : std::max<int64_t>(end_token - first_token, 1);
  for (int64_t first = first_token; first < end_token; first += at_once) {
    ProjectParams project;
    project.keys = keys;
    project.head_stride = head_stride;
    project.first_row = first_row;
    project.first_token = first;
    project.n_tokens = std::min(at_once, end_token - first);
    project.n_kv_heads = layout_.shape.n_kv_heads;
    project.head_dim = layout_.shape.head_dim;
    project.rope = rope_;
    project.lowrank = layer.lowrank;
    // Token t goes to row t.
    project.coefficients = coded ? workspace_.coefficients - first * o.rank : layer.coefficients;
    project_keys(side_, project);
    if (!coded) continue;
    EncodeParams encode;
    encode.rows = workspace_.coefficients;
    encode.first_row = first;
    encode.first_token = first;
    encode.n_tokens = project.n_tokens;
    encode.n_kv_heads = 1;
    encode.width = o.rank;
    encode.codec = o.key_codec;
    encode.codes = layer.key_codes;
    encode_rows(side_, encode);
  }
}

template <typename Device, typename Host>
void KvStore<Device, Host>::encode_key_rows(Layer& layer, const bf16* keys, int64_t head_stride,
                                            int64_t first_row, int64_t first_token,
                                            int64_t n_tokens) {
  if (n_tokens == 0) return;
  EncodeParams encode;
  encode.rows = keys;
  encode.head_stride = head_stride;
  encode.first_row = first_row;
  encode.first_token = first_token;
  encode.n_tokens = n_tokens;
  encode.n_kv_heads = layout_.shape.n_kv_heads;
  encode.width = d();
  encode.codec = layout_.settings.key_codec;
  encode.mean = layer.lowrank.mean;
  encode.rope = rope_;
  encode.codes = layer.key_codes;
  encode.code_head_stride = layout_.plane_bytes(encode.codec);
  encode_rows(side_, encode);
}

}  // namespace tiercel
