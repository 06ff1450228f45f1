#include "offload/layout.h"

#include <cmath>

#include "engine/base/dtype.h"
#include "engine/base/ops.h"

namespace tiercel {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kBf16 = sizeof(bf16);

}  // namespace

KvLayout::KvLayout(const KvShape& s, const KvSettings& o) : shape(s), settings(o) {
  CHECK(o.chunk_tokens > 0 && o.sinks % o.chunk_tokens == 0, "sinks {} chunk {}", o.sinks,
        o.chunk_tokens);
  CHECK(o.coarse_tokens % o.chunk_tokens == 0, "blocks of {}, chunks of {}", o.coarse_tokens,
        o.chunk_tokens);
  CHECK(static_cast<int64_t>(s.window.size()) == s.n_layers);
  CHECK(o.outliers == 0 || o.static_chunks == 0, "exact chunks are chosen by one criterion");
  CHECK(o.behind == 0 || (o.prompt == 0 && !o.audit), "a sequence behind a prefix");
  int64_t n_tiered = 0, leader_now = 0;
  for (int64_t layer = 0; layer < s.n_layers; ++layer) {
    tiered_rank.push_back(n_tiered);
    if (tiered(layer) && n_tiered++ % o.share_layers == 0) leader_now = layer;
    leaders.push_back(leader_now);
  }
  any_tiered = n_tiered > 0;
  chunks = ceil_div(o.capacity, o.chunk_tokens);
  prompt_chunks = ceil_div(o.prompt, o.chunk_tokens);
  mask_words = ceil_div(chunks, 64);
  record = int64_t{2} * o.chunk_tokens * s.head_dim;
  select = std::min(ceil_div(o.budget, o.chunk_tokens), chunks);
  n_slots = std::clamp(static_cast<int64_t>(std::ceil(o.slots * static_cast<double>(select))),
                       select, std::max(chunks, select));
  outlier_rows = o.exact_chunks() * o.chunk_tokens;
  late_chunks = any_tiered && !shares_prefix() ? std::min(o.outliers, chunks) : 0;
  if (o.coarse_tokens > 0) {
    blocks = ceil_div(chunks, block_chunks());
    coarse_select = blocks_looked_into(blocks, select);
  }
  const int64_t piece = o.prefill_chunk();
  prefill_ids =
      o.sinks / piece + std::min(ceil_div(o.prefill_budget, piece), ceil_div(o.capacity, piece));
  const bool weighs = any_tiered && o.weighs_chunks() && o.index != IndexKind::kMean;
  mean_plane = weighs;
  for (int64_t layer = 0; layer < s.n_layers; ++layer) {
    if (s.window[layer] == 0 && o.select_prefill) mean_plane |= !prefill_uses_index(layer);
  }
  // A windowed layer of a tiered store keeps only its window, so it prefills through planes too.
  layer_planes = o.kind == StoreKind::kTiered;
  // Where steps are replayed, one that retires chunks is out of the ordinary and should be rare.
  const int64_t at_once = o.overlap ? kRetireTokens / o.chunk_tokens : 1;
  retire_tokens = std::max<int64_t>(at_once, 1) * o.chunk_tokens;
  spare_key_plane = o.overlap && any_tiered && o.keys != KeyForm::kExact;
  const int64_t floats = std::max(select_workspace_floats(s.n_heads, s.n_kv_heads, chunks),
                                  s.n_kv_heads * chunks);
  // Several lie behind each other, aligned as memory of the device is.
  select_floats = any_tiered ? (floats + 63) / 64 * 64 : 0;
  continues = may_continue();
}

// What is fetched comes without biases of its own.
bool KvLayout::may_continue() const {
  if (settings.continued == 0 || !settings.decodes || settings.imposed_hit_rate >= 0) return false;
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    if (shape.eviction_head && shares_prefix() && shape.window[layer] > 0) return false;  // of two planes in one
    if (!tiered(layer) || resident(layer)) continue;
    if (shape.eviction_head || run_needs_means(layer)) return false;
  }
  return true;
}

// A window may be a little longer than asked for where chunks retire from it.
int64_t KvLayout::run_plane_rows() const {
  int64_t rows = 0;
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    if (!runs_in_plane(layer)) continue;
    const int64_t window = shares_prefix() ? std::min(shape.window[layer], positions()) : exact_capacity(layer);
    rows = std::max(rows, window + settings.continued);
  }
  return rows;
}

int64_t KvLayout::run_list() const {
  return settings.select_prefill ? prefill_ids : ceil_div(kFetchedForRun, settings.chunk_tokens);
}

// Where a run attends everything, one list serves all of it.
int64_t KvLayout::run_blocks() const {
  return settings.select_prefill ? ceil_div(settings.continued, kPrefillBlock) : 1;
}

int64_t KvLayout::run_means() const { return ceil_div(settings.capacity, settings.prefill_chunk()); }

RunBuffers KvLayout::run_buffers() const {
  RunBuffers n;
  if (!continues) return n;
  bool fetches = false, means = false;
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    fetches |= tiered(layer) && !resident(layer);
    means |= run_needs_means(layer);
  }
  const int64_t n_kv = shape.n_kv_heads;
  n.plane = run_plane_rows() * shape.key_width();
  const int64_t views = most_views();
  const bool in_parts = any_tiered || shares_prefix() || views > 1;
  if (in_parts) n.state = prefill_state_floats(settings.continued, shape.n_heads, shape.head_dim);
  if (views > 1 && settings.select_prefill) n.view_means = views * run_blocks() * shape.n_heads * shape.head_dim;
  if (means) n.means = run_means() * shape.key_width();
  if (!fetches) return n;
  const int64_t listed = run_blocks() * n_kv * run_list();
  n.records = listed * record;
  // Numbers of chunks and records; ids of records; counts of every length.
  n.ids = run_numbers() + listed + (run_list() + 1) * n_kv;
  n.begins = run_blocks();
  return n;
}

int64_t KvLayout::run_numbers() const {
  const int64_t lists = settings.select_prefill ? 1 : std::max<int64_t>(ceil_div(chunks, run_list()), 1);
  return lists * shape.n_kv_heads * run_list();
}

int64_t KvLayout::blocks_looked_into(int64_t n_blocks, int64_t k) const {
  const auto share =
      static_cast<int64_t>(std::ceil(settings.coarse_share * static_cast<double>(n_blocks)));
  // Enough of them to find k chunks in, whatever the share.
  return std::min(std::max(share, k / block_chunks() + 1), n_blocks);
}

int64_t KvLayout::recent_tokens(int64_t layer) const {
  return shape.window[layer] > 0 ? shape.window[layer] : settings.recent;
}

int64_t KvLayout::exact_capacity(int64_t layer) const {
  const bool all = settings.kind == StoreKind::kDense || (shares_prefix() && tiered(layer));
  if (all) return shares_prefix() ? settings.behind : settings.capacity;
  // Twice what must stay, so that moving the window down happens once per window and never
  // overlaps.
  const int64_t slack = retire_tokens + settings.chunk_tokens;
  const int64_t most = shares_prefix() ? settings.behind : settings.capacity;
  return std::min(2 * (recent_tokens(layer) + slack), most + slack);
}

int64_t KvLayout::index_bytes(int64_t layer) const {
  const KvSettings& o = settings;
  const int64_t n_kv = shape.n_kv_heads, width = landmark_elements();
  if (!indexed(layer)) return 0;
  int64_t bytes = n_kv * (mask_words * 8 + o.exact_chunks() * 4 + late_chunks * 8);
  bytes += o.landmark_codec == RowCodec::kBf16 ? n_kv * chunks * width * kBf16
                                               : n_kv * chunks * (width + 4);
  bytes += n_kv * blocks * width * kBf16;
  if (o.estimate) bytes += n_kv * chunks * shape.head_dim * kBf16;
  return bytes;
}

int64_t KvLayout::reuse_bytes(int64_t layer) const {
  if (!indexed(layer) || !settings.reuses()) return 0;
  return shape.n_heads * shape.head_dim * kBf16 + 2 * 4;
}

int64_t KvLayout::plane_bytes(RowCodec codec) const {
  return ceil_div(settings.capacity * row_bytes(codec, shape.head_dim), 16) * 16;
}

int64_t KvLayout::coded_key_bytes() const {
  const KvSettings& o = settings;
  const int64_t width = shape.key_width();
  switch (o.keys) {
    case KeyForm::kExact: return 0;
    case KeyForm::kLowRank:
      return o.capacity * row_bytes(o.key_codec, o.rank) + width * o.rank * kBf16 + width * 4;
    case KeyForm::kCoded:
      return shape.n_kv_heads * plane_bytes(o.key_codec) + width * 4;
  }
  return 0;
}

int64_t KvLayout::key_bias_bytes() const {
  const int64_t own = shares_prefix() ? settings.behind : settings.capacity;
  return shape.eviction_head ? own * shape.n_kv_heads * 4 : 0;
}

int64_t KvLayout::slot_bytes(int64_t layer) const {
  if (!has_slots(layer)) return 0;
  return shape.n_kv_heads * (n_slots * record * kBf16 + (chunks + 2 * n_slots) * 4);
}

bool KvLayout::has_worker() const {
  if (!settings.decodes) return false;
  if (settings.host_use == HostUse::kNever || settings.one_memory) return false;
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    if (at_home_on_host(layer)) return true;
  }
  return false;
}

int64_t KvLayout::staged_weights() const {
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    if (at_home_on_host(layer) && weighed_on_device(layer)) return select * settings.chunk_tokens;
  }
  return 0;
}

int64_t KvLayout::host_staging_bytes() const {
  if (!has_worker()) return 0;
  const int64_t heads = shape.n_heads, d = shape.head_dim;
  return heads * d * kBf16 + shape.n_kv_heads * (select + 1) * 4 + heads * (d + 2) * 4 +
         heads * (staged_weights() * kBf16 + staged_maxima() * 4);
}

int64_t KvLayout::weighed_records() const {
  return has_worker() && settings.keys != KeyForm::kExact ? shape.n_kv_heads * select * record : 0;
}

int64_t KvLayout::home_value_bytes() const {
  if (settings.value_codec == RowCodec::kBf16) return settings.capacity * shape.key_width() * kBf16;
  return shape.n_kv_heads * plane_bytes(settings.value_codec);
}

int64_t KvLayout::home_key_bytes(int64_t layer) const {
  if (settings.keys != KeyForm::kExact || index_is_keys(layer)) return 0;
  return settings.capacity * shape.key_width() * kBf16;
}

PurposeBytes KvLayout::held_bytes() const {
  PurposeBytes bytes{};
  auto add = [&](Purpose purpose, int64_t n) { bytes[static_cast<size_t>(purpose)] += n; };
  const KvSettings& o = settings;
  const int64_t width = shape.key_width(), n_kv = shape.n_kv_heads;
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    add(Purpose::kExact, 2 * exact_capacity(layer) * width * kBf16);
    add(Purpose::kKeys, key_bias_bytes());
    if (!tiered(layer)) continue;
    add(Purpose::kLandmarks, reuse_bytes(layer));
    add(Purpose::kSlots, slot_bytes(layer));
    if (indexed(layer) && o.reuses()) add(Purpose::kSlots, list_ints() * 4);
    if (shares_prefix()) continue;  // the rest is the prefix's
    add(Purpose::kExact,
        2 * (o.sinks + outlier_rows + late_chunks * o.chunk_tokens) * width * kBf16);
    add(Purpose::kLandmarks, index_bytes(layer));
    add(Purpose::kKeys, coded_key_bytes());
    if (!at_home_on_device(layer)) continue;
    add(Purpose::kValues, home_value_bytes());
    add(Purpose::kKeys, home_key_bytes(layer));
  }
  if (any_tiered) {
    if (!o.reuses()) add(Purpose::kSlots, list_ints() * 4);
    add(Purpose::kSlots, n_kv * (3 * select + n_slots + 2) * 4);
    add(Purpose::kSlots, n_kv * (coarse_select > 0 ? coarse_select + 1 : 0) * 4);
    add(Purpose::kSlots, total_counts() * 8);
    if (any_low_rank() && !shares_prefix()) add(Purpose::kKeys, shape.n_layers * 8);
  }
  add(Purpose::kActivations, 4 * shape.n_heads * (int64_t{shape.head_dim} + 2) * 4);
  if (reserved(bytes) > 0) add(Purpose::kActivations, kReservedSpare);
  return bytes;
}

PurposeBytes KvLayout::prefill_bytes() const {
  const int64_t plane = settings.prompt * shape.key_width() * kBf16;
  PurposeBytes bytes{};
  int64_t& n = bytes[static_cast<size_t>(Purpose::kActivations)];
  if (mean_plane) n += mean_plane_chunks() * shape.key_width() * kBf16;
  if (layer_planes) n += (spare_key_plane ? 3 : 2) * plane;
  return bytes;
}

PurposeBytes KvLayout::workspace_bytes() const {
  const KvSettings& o = settings;
  const int64_t n_kv = shape.n_kv_heads;
  PurposeBytes bytes{};
  auto add = [&](Purpose purpose, int64_t n) { bytes[static_cast<size_t>(purpose)] += n; };
  add(Purpose::kActivations, o.attend_places * attend_floats() * 4);
  if (o.select_prefill) {
    add(Purpose::kActivations,
        prefill_blocks() * n_kv * (prefill_ids + 1) * 4 + prefill_blocks() * 8);
  }
  add(Purpose::kActivations, part_floats() * 4 + view_means() * kBf16);
  if (!any_tiered) return bytes;
  add(Purpose::kLandmarks, o.together * select_floats * 4);
  if (o.weighs_chunks()) add(Purpose::kActivations, n_kv * chunks * 4);
  if (any_low_rank() && o.key_codec != RowCodec::kBf16) {
    add(Purpose::kActivations, kPrefillChunk * o.rank * kBf16);
  }
  if (o.landmark_codec != RowCodec::kBf16) {
    add(Purpose::kActivations,
        n_kv * (index_plane_chunks() + retire_chunks()) * landmark_elements() * kBf16);
  }
  add(Purpose::kActivations, value_staging_bytes());
  if (weighed_records() > 0) {
    add(Purpose::kSlots, weighed_records() * kBf16 + n_kv * select * 4);
  }
  return bytes;
}

PurposeBytes KvLayout::device_bytes() const {
  PurposeBytes bytes = held_bytes();
  for (const PurposeBytes& more : {prefill_bytes(), workspace_bytes()}) {
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] += more[i];
  }
  return bytes;
}

PurposeBytes KvLayout::host_bytes() const {
  PurposeBytes bytes{};
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    if (!tiered(layer) || shares_prefix()) continue;
    if (!at_home_on_device(layer)) {
      bytes[static_cast<size_t>(Purpose::kValues)] += home_value_bytes();
      bytes[static_cast<size_t>(Purpose::kKeys)] += home_key_bytes(layer);
    }
    if (settings.audit && settings.keys != KeyForm::kExact) {
      bytes[static_cast<size_t>(Purpose::kKeys)] += settings.capacity * shape.key_width() * kBf16;
    }
  }
  const int64_t spare = reserved(bytes) > 0 ? kReservedSpare : 0;
  bytes[static_cast<size_t>(Purpose::kActivations)] += host_staging_bytes() + spare;
  return bytes;
}

int64_t KvLayout::reserved(const PurposeBytes& bytes) const {
  return settings.reserves ? sum(bytes) - bytes[static_cast<size_t>(Purpose::kActivations)] : 0;
}

double KvLayout::length_scale(int64_t n_tokens) const {
  if (shape.scaled_from == 0 || n_tokens <= shape.scaled_from) return 1;
  const int64_t n = ceil_div(n_tokens, kScaleTokens) * kScaleTokens;
  const double factor =
      0.1 * std::log(static_cast<double>(n) / static_cast<double>(shape.scaled_from)) + 1;
  return factor * factor;
}

int64_t KvLayout::part_floats() const {
  if (prompt_views() == 1) return 0;
  return prefill_state_floats(std::min(settings.prompt, kPrefillChunk), shape.n_heads, shape.head_dim);
}

int64_t KvLayout::view_means() const {
  if (prompt_views() == 1 || !settings.select_prefill) return 0;
  return prompt_views() * prefill_blocks() * shape.n_heads * shape.head_dim;
}

int64_t KvLayout::mean_plane_chunks() const { return ceil_div(settings.prompt, settings.prefill_chunk()); }

int64_t KvLayout::value_staging_bytes() const {
  if (settings.value_codec == RowCodec::kBf16 || !any_tiered) return 0;
  return kPrefillChunk * shape.n_kv_heads * row_bytes(settings.value_codec, shape.head_dim);
}

int64_t KvLayout::list_ints() const {
  const int64_t one = shape.n_kv_heads * (select + 1);
  return settings.miss_cap >= 0 ? 2 * one : one;
}

}  // namespace tiercel
