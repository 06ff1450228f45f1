#include "offload/kv_state.h"

#include <fmt/format.h>

#include <algorithm>

namespace tiercel {
namespace {

constexpr int64_t kBf16 = sizeof(bf16);
constexpr int64_t kInt = sizeof(int32_t);

// Collects the blocks of one layer.
class LayerBlocks {
 public:
  LayerBlocks(const KvLayout& layout, const KvState& state, int64_t layer,
              std::vector<StateBlock>& out)
      : l_(layout),
        o_(layout.settings),
        state_(state),
        s_(state.layers[static_cast<size_t>(layer)]),
        layer_(layer),
        out_(out) {}

  void collect() {
    window();
    if (l_.shape.eviction_head) {
      heads(StatePart::kKeyBias, state_.n_tokens, o_.capacity, sizeof(float));
    }
    if (!l_.tiered(layer_)) return;
    exact_regions();
    if (l_.shape.looks_up_keys() && l_.indexed(layer_)) {
      const int64_t n = kv() * s_.n_exact;
      ints(StatePart::kExactIds, 1, n, n, 0, std::max<int64_t>(s_.end_chunk, 1));
    }
    late_outliers();
    if (l_.indexed(layer_)) index();
    coded_keys();
    home();
    if (!state_.cache) return;
    if (l_.has_slots(layer_)) slots();
    if (l_.indexed(layer_) && s_.list_chunks >= 0) lists();
  }

 private:
  int64_t kv() const { return l_.shape.n_kv_heads; }
  int64_t d() const { return l_.shape.head_dim; }
  int64_t middle_tokens() const { return s_.end_chunk * o_.chunk_tokens; }

  // A run of `used` elements per KV head, of `capacity`.
  void heads(StatePart part, int64_t used, int64_t capacity, int64_t element_bytes) {
    add(part, kv(), used * element_bytes, capacity * element_bytes);
  }
  void one(StatePart part, int64_t bytes) { add(part, 1, bytes, bytes); }
  void ints(StatePart part, int64_t rows, int64_t used, int64_t capacity, int64_t low,
            int64_t high) {
    add(part, rows, used * kInt, capacity * kInt);
    if (out_.empty() || out_.back().part != part) return;
    out_.back().low = static_cast<int32_t>(low);
    out_.back().high = static_cast<int32_t>(high);
  }
  void add(StatePart part, int64_t n_rows, int64_t row_bytes, int64_t stride) {
    if (n_rows == 0 || row_bytes == 0) return;
    StateBlock block;
    block.part = part;
    block.layer = layer_;
    block.n_rows = n_rows;
    block.row_bytes = row_bytes;
    block.stride = stride;
    out_.push_back(block);
  }

  // Retired rows are in it too: a rewind takes them back.
  void window() {
    const int64_t rows = state_.n_tokens - s_.base, capacity = l_.exact_capacity(layer_);
    heads(StatePart::kRecentKeys, rows * d(), capacity * d(), kBf16);
    heads(StatePart::kRecentValues, rows * d(), capacity * d(), kBf16);
  }

  void exact_regions() {
    heads(StatePart::kSinkKeys, s_.n_sinks * d(), o_.sinks * d(), kBf16);
    heads(StatePart::kSinkValues, s_.n_sinks * d(), o_.sinks * d(), kBf16);
    const LayerState& leader = state_.layers[static_cast<size_t>(l_.leader(layer_))];
    const int64_t rows = leader.n_exact * o_.chunk_tokens;
    heads(StatePart::kExactKeys, rows * d(), l_.outlier_rows * d(), kBf16);
    heads(StatePart::kExactValues, rows * d(), l_.outlier_rows * d(), kBf16);
  }

  void late_outliers() {
    const int64_t n = l_.late_in_use(s_.end_chunk - s_.prompt_end_chunk), most = l_.late_chunks;
    const int64_t rows = o_.chunk_tokens * d();
    heads(StatePart::kLateKeys, n * rows, most * rows, kBf16);
    heads(StatePart::kLateValues, n * rows, most * rows, kBf16);
    if (!l_.indexed(layer_)) return;
    ints(StatePart::kLateIds, kv(), n, most, 0, std::max<int64_t>(s_.end_chunk, 1));
    heads(StatePart::kLateCosines, n, most, sizeof(float));
  }

  void index() {
    const int64_t width = l_.landmark_elements(), n = s_.end_chunk;
    if (o_.landmark_codec == RowCodec::kBf16) {
      heads(StatePart::kLandmarks, n * width, l_.chunks * width, kBf16);
    } else {
      heads(StatePart::kLandmarkCodes, n * width, l_.chunks * width, 1);
      heads(StatePart::kLandmarkScales, n, l_.chunks, sizeof(float));
    }
    if (l_.blocks > 0) heads(StatePart::kCoarse, s_.n_blocks * width, l_.blocks * width, kBf16);
    if (o_.estimate) heads(StatePart::kValueMeans, n * d(), l_.chunks * d(), kBf16);
    if (s_.excludes != 0) {
      heads(StatePart::kExcluded, (n + 63) / 64, l_.mask_words, sizeof(uint64_t));
    }
  }

  void coded_keys() {
    if (o_.keys == KeyForm::kExact) return;
    const int64_t width = l_.shape.key_width(), n = middle_tokens();
    one(StatePart::kKeyMean, width * static_cast<int64_t>(sizeof(float)));
    if (o_.keys == KeyForm::kCoded) {
      add(StatePart::kKeyCodes, kv(), n * row_bytes(o_.key_codec, d()),
          l_.plane_bytes(o_.key_codec));
      return;
    }
    one(StatePart::kBasis, width * o_.rank * kBf16);
    const int64_t row = row_bytes(o_.key_codec, o_.rank);
    add(o_.key_codec == RowCodec::kBf16 ? StatePart::kCoefficients : StatePart::kKeyCodes, 1,
        n * row, o_.capacity * row);
  }

  void home() {
    const int64_t n = middle_tokens() * d(), capacity = o_.capacity * d();
    if (o_.value_codec == RowCodec::kBf16) {
      heads(StatePart::kHomeValues, n, capacity, kBf16);
    } else {
      add(StatePart::kValueCodes, kv(), middle_tokens() * row_bytes(o_.value_codec, d()),
          l_.plane_bytes(o_.value_codec));
    }
    if (o_.keys == KeyForm::kExact && !l_.index_is_keys(layer_)) {
      heads(StatePart::kHomeKeys, n, capacity, kBf16);
    }
    if (o_.audit && o_.keys != KeyForm::kExact) heads(StatePart::kAuditKeys, n, capacity, kBf16);
  }

  void slots() {
    heads(StatePart::kSlots, l_.n_slots * l_.record, l_.n_slots * l_.record, kBf16);
    ints(StatePart::kSlotOfChunk, kv(), s_.end_chunk, l_.chunks, -1, l_.n_slots);
    ints(StatePart::kChunkOfSlot, kv(), l_.n_slots, l_.n_slots, -1, s_.end_chunk);
    ints(StatePart::kSlotOrder, kv(), l_.n_slots, l_.n_slots, 0, l_.n_slots);
  }

  // Ids stand as many apart as were selected then.
  void lists() {
    const int64_t n = kv() * s_.list_chunks;
    one(StatePart::kPreviousQ, l_.shape.n_heads * d() * kBf16);
    one(StatePart::kReuseState, 2 * kInt);
    ints(StatePart::kListIds, 1, n, n, 0, std::max<int64_t>(s_.end_chunk, 1));
    ints(StatePart::kListCounts, 1, kv(), kv(), 0, s_.list_chunks + 1);
    if (o_.miss_cap < 0) return;
    ints(StatePart::kDroppedIds, 1, n, n, 0, std::max<int64_t>(s_.end_chunk, 1));
    ints(StatePart::kDroppedCounts, 1, kv(), kv(), 0, s_.list_chunks + 1);
  }

  const KvLayout& l_;
  const KvSettings& o_;
  const KvState& state_;
  const LayerState& s_;
  int64_t layer_;
  std::vector<StateBlock>& out_;
};

std::string why_impossible_layer(const KvLayout& l, const KvState& state, int64_t layer) {
  const LayerState& s = state.layers[static_cast<size_t>(layer)];
  const KvSettings& o = l.settings;
  const int64_t chunk = o.chunk_tokens;
  const auto within = [](int64_t low, int64_t value, int64_t high) {
    return low <= value && value <= high;
  };
  if (!within(0, s.base, s.first) || !within(0, s.first, state.n_tokens)) return "its window";
  if (!has_room(l, layer, state)) {
    return fmt::format("a window of {} tokens, here is room for {}", state.n_tokens - s.first,
                       l.exact_capacity(layer));
  }
  if (!within(0, s.prompt_base, s.prompt_first) || !within(0, s.prompt_first, s.first)) {
    return "the window at the end of its prompt";
  }
  if (!l.tiered(layer)) {
    LayerState plain;
    plain.base = s.base, plain.first = s.first;
    plain.prompt_base = s.prompt_base, plain.prompt_first = s.prompt_first;
    return plain == s ? "" : "an index where there is none";
  }
  if (!within(0, s.n_sinks, o.sinks) || s.n_sinks % chunk != 0) return "its sinks";
  if (s.first_chunk != s.n_sinks / chunk || s.first != s.end_chunk * chunk ||
      !within(s.first_chunk, s.end_chunk, l.chunks) ||
      !within(s.first_chunk, s.prompt_end_chunk, s.end_chunk) ||
      s.prompt_first != s.prompt_end_chunk * chunk) {
    return "its chunks";
  }
  const int64_t most_blocks = l.blocks > 0 ? s.end_chunk / l.block_chunks() : 0;
  if (!within(0, s.n_exact, o.exact_chunks()) || !within(0, s.n_blocks, most_blocks) ||
      !within(0, s.prompt_blocks, s.n_blocks) || !within(0, s.excludes, 1) ||
      !within(-1, s.list_chunks, l.select)) {
    return "its index";
  }
  return "";
}

}  // namespace

const char* name_of(StatePart part) {
  switch (part) {
    case StatePart::kRecentKeys: return "recent keys";
    case StatePart::kRecentValues: return "recent values";
    case StatePart::kSinkKeys: return "sink keys";
    case StatePart::kSinkValues: return "sink values";
    case StatePart::kExactKeys: return "exact keys";
    case StatePart::kExactValues: return "exact values";
    case StatePart::kLandmarks: return "landmarks";
    case StatePart::kLandmarkCodes: return "landmark codes";
    case StatePart::kLandmarkScales: return "landmark scales";
    case StatePart::kCoarse: return "blocks of landmarks";
    case StatePart::kValueMeans: return "value means";
    case StatePart::kExcluded: return "excluded chunks";
    case StatePart::kKeyMean: return "key mean";
    case StatePart::kBasis: return "key basis";
    case StatePart::kCoefficients: return "key coefficients";
    case StatePart::kKeyCodes: return "key codes";
    case StatePart::kHomeValues: return "values";
    case StatePart::kValueCodes: return "value codes";
    case StatePart::kHomeKeys: return "keys";
    case StatePart::kAuditKeys: return "audit keys";
    case StatePart::kSlots: return "slots";
    case StatePart::kSlotOfChunk: return "slots of chunks";
    case StatePart::kChunkOfSlot: return "chunks of slots";
    case StatePart::kSlotOrder: return "slot order";
    case StatePart::kPreviousQ: return "previous query";
    case StatePart::kReuseState: return "reuse state";
    case StatePart::kListIds: return "list";
    case StatePart::kListCounts: return "list counts";
    case StatePart::kDroppedIds: return "dropped chunks";
    case StatePart::kDroppedCounts: return "dropped counts";
    case StatePart::kResidualEnergy: return "residual energy";
    case StatePart::kKeyBias: return "key bias";
    case StatePart::kExactIds: return "exact chunks";
    case StatePart::kLateKeys: return "late outliers' keys";
    case StatePart::kLateValues: return "late outliers' values";
    case StatePart::kLateIds: return "late outliers";
    case StatePart::kLateCosines: return "late outliers' cosines";
  }
  return "";
}

std::string StateBlock::name() const { return fmt::format("layer {} {}", layer, name_of(part)); }

std::vector<StateBlock> state_blocks(const KvLayout& layout, const KvState& state) {
  std::vector<StateBlock> blocks;
  for (int64_t layer = 0; layer < layout.shape.n_layers; ++layer) {
    LayerBlocks(layout, state, layer, blocks).collect();
  }
  if (layout.any_low_rank()) {
    StateBlock energy;
    energy.part = StatePart::kResidualEnergy;
    energy.n_rows = 1;
    energy.row_bytes = energy.stride = layout.shape.n_layers * static_cast<int64_t>(sizeof(double));
    blocks.push_back(energy);
  }
  return blocks;
}

LayerState layer_after_prompt(const KvLayout& layout, int64_t layer, int64_t n_tokens) {
  const KvSettings& o = layout.settings;
  LayerState s;
  if (layout.tiered(layer)) {
    // Of a prompt too short to have a middle, what the window does not hold are sinks.
    s.end_chunk = std::max<int64_t>(n_tokens - o.recent, 0) / o.chunk_tokens;
    s.first_chunk = std::min(o.sinks / o.chunk_tokens, s.end_chunk);
    s.n_sinks = s.first_chunk * o.chunk_tokens;
    s.first = s.end_chunk * o.chunk_tokens;
    if (layout.indexed(layer)) {
      const int64_t n_middle = s.end_chunk - s.first_chunk;
      // No more than half of the middle: the rest must be worth selecting from.
      s.n_exact = std::min(o.exact_chunks(), n_middle / 2);
      s.excludes =
          s.n_exact > 0 || static_cast<int64_t>(o.drop_share * static_cast<double>(n_middle)) > 0;
      if (layout.blocks > 0) s.n_blocks = s.end_chunk / layout.block_chunks();
    }
  } else if (layout.layer_planes) {
    s.first = std::max<int64_t>(0, n_tokens - layout.recent_tokens(layer));
  }
  s.base = s.first;
  s.prompt_base = s.base;
  s.prompt_first = s.first;
  s.prompt_end_chunk = s.end_chunk;
  s.prompt_blocks = s.n_blocks;
  return s;
}

KvState state_after_prompt(const KvLayout& layout, int64_t n_tokens) {
  KvState state;
  state.n_tokens = state.n_prompt = n_tokens;
  for (int64_t layer = 0; layer < layout.shape.n_layers; ++layer) {
    state.layers.push_back(layer_after_prompt(layout, layer, n_tokens));
  }
  return state;
}

bool has_room(const KvLayout& layout, int64_t layer, const KvState& state) {
  const LayerState& s = state.layers[static_cast<size_t>(layer)];
  const int64_t rows = state.n_tokens - s.base, capacity = layout.exact_capacity(layer);
  if (rows < capacity) return true;
  const bool can_move = state.n_tokens - s.first <= s.first - s.base;
  return rows == capacity && (can_move || state.n_tokens == layout.settings.capacity);
}

std::string why_impossible(const KvLayout& layout, const KvState& state) {
  if (static_cast<int64_t>(state.layers.size()) != layout.shape.n_layers) {
    return fmt::format("{} layers, the model has {}", state.layers.size(), layout.shape.n_layers);
  }
  if (state.n_prompt < 1 || state.n_prompt > state.n_tokens) return "its tokens";
  if (state.n_tokens > layout.settings.capacity) {
    return fmt::format("{} tokens, the context holds {}", state.n_tokens, layout.settings.capacity);
  }
  for (int64_t layer = 0; layer < layout.shape.n_layers; ++layer) {
    const std::string why = why_impossible_layer(layout, state, layer);
    if (!why.empty()) return fmt::format("layer {}: {}", layer, why);
  }
  return "";
}

}  // namespace tiercel
