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
  CHECK(static_cast<int64_t>(s.window.size()) == s.n_layers);
  chunks = ceil_div(o.capacity, o.chunk_tokens);
  mask_words = ceil_div(chunks, 64);
  record = int64_t{2} * o.chunk_tokens * s.head_dim;
  select = std::min(ceil_div(o.budget, o.chunk_tokens), chunks);
  n_slots = std::clamp(static_cast<int64_t>(std::ceil(o.slots * static_cast<double>(select))),
                       select, std::max(chunks, select));
  outlier_rows = o.outliers * o.chunk_tokens;
  prefill_ids =
      o.sinks / o.chunk_tokens + std::min(ceil_div(o.prefill_budget, o.chunk_tokens), chunks);
  for (int64_t layer = 0; layer < s.n_layers; ++layer) any_tiered |= tiered(layer);
  // A windowed layer of a tiered store keeps only its window, so it prefills through planes too.
  layer_planes = o.kind == StoreKind::kTiered;
  // Where steps are replayed, one that retires chunks is out of the ordinary and should be rare.
  const int64_t at_once = o.overlap ? kRetireTokens / o.chunk_tokens : 1;
  retire_tokens = std::max<int64_t>(at_once, 1) * o.chunk_tokens;
  spare_key_plane = o.overlap && any_low_rank();
  select_floats = any_tiered ? std::max(select_workspace_floats(s.n_heads, s.n_kv_heads, chunks),
                                        s.n_kv_heads * chunks)
                             : 0;
}

int64_t KvLayout::recent_tokens(int64_t layer) const {
  return shape.window[layer] > 0 ? shape.window[layer] : settings.recent;
}

int64_t KvLayout::exact_capacity(int64_t layer) const {
  if (settings.kind == StoreKind::kDense) return settings.capacity;
  // Twice what must stay, so that moving the window down happens once per window and never
  // overlaps.
  const int64_t slack = retire_tokens + settings.chunk_tokens;
  return std::min(2 * (recent_tokens(layer) + slack), settings.capacity + slack);
}

PurposeBytes KvLayout::device_bytes() const {
  PurposeBytes bytes{};
  auto add = [&](Purpose purpose, int64_t n) { bytes[static_cast<size_t>(purpose)] += n; };
  const int64_t width = shape.key_width();
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    add(Purpose::kExact, 2 * exact_capacity(layer) * width * kBf16);
    if (!tiered(layer)) continue;
    add(Purpose::kExact, 2 * (settings.sinks + outlier_rows) * width * kBf16);
    add(Purpose::kLandmarks, chunks * width * kBf16);
    add(Purpose::kLandmarks, shape.n_kv_heads * (mask_words * 8 + settings.outliers * 4));
    if (!settings.exact_keys) {
      add(Purpose::kKeys, settings.capacity * settings.rank * kBf16);
      add(Purpose::kKeys, width * settings.rank * kBf16 + width * 4);
    }
    add(Purpose::kSlots, shape.n_kv_heads * n_slots * record * kBf16);
    add(Purpose::kSlots, shape.n_kv_heads * (chunks + 2 * n_slots) * 4);
  }
  if (any_tiered) {
    add(Purpose::kSlots, shape.n_kv_heads * (4 * select + n_slots + 3) * 4);
    add(Purpose::kLandmarks, select_floats * 4);
    add(Purpose::kSlots, 3 * shape.n_kv_heads * 8);
    if (any_low_rank()) add(Purpose::kKeys, shape.n_layers * 8);
  }
  if (settings.select_prefill) {
    if (settings.kind == StoreKind::kDense) add(Purpose::kActivations, chunks * width * kBf16);
    const int64_t blocks = ceil_div(kPrefillChunk, kPrefillBlock);
    add(Purpose::kActivations, blocks * shape.n_kv_heads * (prefill_ids + 1) * 4 + blocks * 8);
  }
  if (settings.replay) add(Purpose::kActivations, 8);
  if (layer_planes) {
    add(Purpose::kActivations, (spare_key_plane ? 3 : 2) * settings.prompt * width * kBf16);
  }
  const int64_t partial = shape.n_heads * (int64_t{shape.head_dim} + 2);
  add(Purpose::kActivations,
      4 * partial * 4 + decode_workspace_floats(shape.n_heads, shape.head_dim) * 4);
  return bytes;
}

PurposeBytes KvLayout::host_bytes() const {
  PurposeBytes bytes{};
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    if (!tiered(layer)) continue;
    const int64_t plane = settings.capacity * shape.key_width() * kBf16;
    bytes[static_cast<size_t>(Purpose::kValues)] += plane;
    if (settings.exact_keys || settings.audit) bytes[static_cast<size_t>(Purpose::kKeys)] += plane;
  }
  return bytes;
}

}  // namespace tiercel
