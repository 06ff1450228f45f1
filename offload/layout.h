// The extents of everything that the KV cache of one sequence consists of: the one place where the
// sizes come from, for the memory plan (which allocates nothing) and for the store (which does).
//
//   position   0 .. sinks | ........... middle, in chunks ............ | recent window | next
//              exact      |  outlier or static chunks: exact            |  exact K, V   |
//              K, V       |  ordinary: landmark + coded keys on device  |               |
//                         |  values (and exact keys) at home: on the    |               |
//                         |  host, or on the device where they fit      |               |
//
// Several sequences may share one prefix. It is a sequence of its own that is never decoded; those
// behind it read all of the above where it is, and own what they add: exact rows, all in the window.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/base/ops.h"
#include "offload/arena.h"

namespace tiercel {

// What the store must know of a model.
struct KvShape {
  int64_t n_layers = 0;
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  std::vector<int64_t> window;  // per layer; 0: attends everything
  bool eviction_head = false;   // every token biases its own scores (KeyBiasParams)
  QuerySpans spans = {};        // of dual chunk attention
  int64_t scaled_from = 0;      // tokens beyond which scores are scaled (attention_scale); 0: never

  int64_t key_width() const { return int64_t{n_kv_heads} * head_dim; }
  // It matters which keys of the sequence exact chunks are.
  bool looks_up_keys() const { return eviction_head || spans.tokens > 0; }
};

enum class StoreKind : uint8_t {
  kDense,    // exact K and V of every token on the device
  kTiered    // sinks, outliers, recent window exact; the rest indexed on the device, values at home
};

// How keys of ordinary chunks are kept.
enum class KeyForm : uint8_t {
  kExact,    // beside the values, on their tier; or in the index, where chunks are exact tokens
  kLowRank,  // on the device: coefficients of a basis, coded in key_codec
  kCoded     // on the device: int8 or int4, as key_codec says
};

// Whether the host attends what it holds, instead of sending it to the device.
enum class HostUse : uint8_t {
  kNever,
  kAlways,   // there is no selection cache
  kMeasured  // layer by layer, where that was seen to take less time
};

// Options with every "auto" decided. What selection means: SelectParams in engine/base/ops/selection.h.
struct KvSettings {
  StoreKind kind = StoreKind::kTiered;
  bool select_prefill = false;  // prefill attends selected chunks
  bool audit = false;           // exact keys are kept on the host to measure the selection by
  int64_t capacity = 0;         // tokens that the sequence may reach, or its shared prefix has
  int64_t behind = 0;           // tokens that it may reach behind that prefix; 0: it shares none
  bool decodes = true;          // false: a prefix that others share
  int64_t prompt = 0;           // tokens of the prompt; 0 behind a prefix
  int64_t prefill_budget = 0;
  int64_t continued = 0;        // tokens of the longest run of a text behind the prompt (kv_store_continue.h); 0: none

  int32_t chunk_tokens = 8;
  IndexKind index = IndexKind::kMean;
  RowCodec landmark_codec = RowCodec::kBf16;  // or kInt8
  int64_t coarse_tokens = 0;  // per block of the first level, a multiple of chunk_tokens; 0: one level
  double coarse_share = 0;    // of the blocks
  GroupScore group = GroupScore::kMax;
  SelectScope scope = SelectScope::kKvHead;
  int64_t budget = 0;  // selected tokens per KV head; kBudgetAll has become capacity
  double top_p = 0;
  double reuse_cosine = 0;    // 0: the query is not asked
  int64_t reuse_steps = 0;    // that a list serves; 0: no limit. Both 0: every step selects
  int64_t share_layers = 1;   // tiered layers that attend what the first of them selected
  int64_t miss_cap = -1;      // chunks; -1: off
  bool estimate = false;      // chunks beyond the cap count as their means

  int64_t sinks = 0;          // a multiple of chunk_tokens
  int64_t recent = 0;         // tokens
  int64_t outliers = 0;       // chunks; not together with static_chunks
  int64_t static_chunks = 0;
  double drop_share = 0;      // of the middle's chunks
  double slots = 1;           // in budgets

  KeyForm keys = KeyForm::kLowRank;
  RowCodec key_codec = RowCodec::kBf16;
  int64_t rank = 0;
  RowCodec value_codec = RowCodec::kBf16;
  int64_t device_layers = 0;  // so many tiered layers, the first ones, have their home on the device

  HostUse host_use = HostUse::kNever;
  bool one_memory = false;  // the device's queue reaches what is at home on the host, where it is
  bool overlap = false;  // the queues run beside each other
  // What is held is one block of either tier. On a GPU a block is a call of the driver, which may wait for
  // everything in flight, and whole pages of 2 MiB: by estimate 0.2 s and 0.1 GiB for the hundreds of a
  // sequence (journal).
  bool reserves = false;
  int64_t together = 1;  // stores that share a workspace and select at once
  int64_t attend_places = 1;  // attentions that run at once, of different stores or of one
  double imposed_hit_rate = -1;  // 0..1: selections are made up, for measurements; -1: they are real

  // Tokens per chunk of selection in prefill: a block of queries gains nothing from finer ones.
  int32_t prefill_chunk() const { return std::max(chunk_tokens, 8); }
  bool reuses() const { return reuse_cosine > 0 || reuse_steps > 1; }
  bool weighs_chunks() const { return static_chunks > 0 || drop_share > 0; }
  int64_t exact_chunks() const { return outliers + static_chunks; }
};

// Queries per selection block of prefill, and how many tokens before a block it sees anyway.
inline constexpr int64_t kPrefillBlock = 256;
inline constexpr int64_t kPrefillLocal = 256;
// The last tokens of a prompt always attend densely, so that the question sees everything.
inline constexpr int64_t kDenseTail = 256;
// Tokens that leave the recent window together where decode steps may be replayed.
inline constexpr int64_t kRetireTokens = 64;
// A window that grows is cut among the processors as if it was a multiple of so many tokens long, so that
// the same cut serves as many steps.
inline constexpr int64_t kCutTokens = 256;
// Tokens that run through a layer together during prefill.
inline constexpr int64_t kPrefillChunk = 4096;
// The same of a long text behind the prompt, at most: fewer, as such a run attends all of itself. And tokens that
// are fetched at once for one that attends everything.
inline constexpr int64_t kContinuedRun = 1024;
inline constexpr int64_t kFetchedForRun = 2048;
// Lengths that scores are scaled by are multiples of so many tokens, so that recorded steps can have one.
inline constexpr int64_t kScaleTokens = kCutTokens;

// What runs behind the prompt need beside a sequence while they last (kv_store_continue.h), in elements.
struct RunBuffers {
  int64_t plane = 0;    // bf16, twice: keys and values of a layer's window and of a run
  int64_t state = 0;    // fp32: PrefillPart
  int64_t view_means = 0;  // bf16: mean queries of each view
  int64_t means = 0;    // bf16: of chunks of one layer
  int64_t records = 0;  // bf16: chunks that were fetched
  int64_t ids = 0;      // int32: of chunks and records, and counts
  int64_t begins = 0;   // int64
  int64_t bytes() const {
    return (2 * plane + view_means + means + records) * int64_t{sizeof(bf16)} + state * int64_t{sizeof(float)} +
           ids * int64_t{sizeof(int32_t)} + begins * int64_t{sizeof(int64_t)};
  }
};

// Everything in elements or counts, for one layer unless said.
struct KvLayout {
  KvLayout(const KvShape& shape, const KvSettings& settings);

  bool tiered(int64_t layer) const {
    return settings.kind == StoreKind::kTiered && shape.window[layer] == 0;
  }
  // Late outliers of a layer when so many of its chunks have left the window since the prompt.
  int64_t late_in_use(int64_t retired) const { return std::min(late_chunks, retired); }
  bool any_low_rank() const { return any_tiered && settings.keys == KeyForm::kLowRank; }
  bool shares_prefix() const { return settings.behind > 0; }
  int64_t positions() const { return settings.capacity + settings.behind; }
  // Views of a query, of the last token of the prompt and of all (QuerySpans).
  int64_t prompt_views() const { return shape.spans.views_of(std::max<int64_t>(settings.prompt - 1, 0)); }
  int64_t most_views() const { return shape.spans.views_of(std::max<int64_t>(positions() - 1, 0)); }
  // What the scale of attention is multiplied by in a context of so many tokens: YaRN's temperature, as
  // the reference implementation of Qwen2.5-1M has it, (0.1 ln(n / scaled_from) + 1)^2.
  double length_scale(int64_t n_tokens) const;
  // Values and exact keys live on the device.
  bool at_home_on_device(int64_t layer) const {
    return tiered(layer) && tiered_rank[static_cast<size_t>(layer)] < settings.device_layers;
  }
  bool at_home_on_host(int64_t layer) const { return tiered(layer) && !at_home_on_device(layer); }
  // The host attends what it holds of this layer, whatever is measured.
  bool attended_by_host(int64_t layer) const {
    return at_home_on_host(layer) && settings.host_use == HostUse::kAlways;
  }
  // Nothing need be fetched, rebuilt or decoded: selected chunks are attended where they are.
  bool resident(int64_t layer) const {
    return (at_home_on_device(layer) || (attended_by_host(layer) && settings.one_memory)) &&
           settings.keys == KeyForm::kExact && settings.value_codec == RowCodec::kBf16;
  }
  // Selected chunks are fetched, or may be.
  bool has_slots(int64_t layer) const {
    return settings.decodes && tiered(layer) && !resident(layer) && !attended_by_host(layer);
  }
  // A worker of the host's own attends, beside the device's queue.
  bool has_worker() const;
  // The host has values only: the device, which has the keys, weighs them.
  bool weighed_on_device(int64_t layer) const {
    return settings.keys != KeyForm::kExact || index_is_keys(layer);
  }
  // The layer whose selection this one attends: the first of its group.
  int64_t leader(int64_t layer) const { return leaders[static_cast<size_t>(layer)]; }
  // Only leaders have an index.
  bool indexed(int64_t layer) const { return tiered(layer) && leader(layer) == layer; }
  // The index of this layer is its exact keys.
  bool index_is_keys(int64_t layer) const {
    return indexed(layer) && settings.keys == KeyForm::kExact && settings.chunk_tokens == 1 &&
           settings.index == IndexKind::kMean && settings.landmark_codec == RowCodec::kBf16;
  }
  int32_t landmark_elements() const { return landmark_width(settings.index, shape.head_dim); }
  // Chunks per block of the first level.
  int32_t block_chunks() const {
    return static_cast<int32_t>(settings.coarse_tokens / settings.chunk_tokens);
  }
  // Blocks that are looked into, of n_blocks, to select up to k chunks.
  int64_t blocks_looked_into(int64_t n_blocks, int64_t k) const;
  // Means of chunks of prefill_chunk tokens that no layer's index has: for selection in prefill, or for
  // weighing chunks.
  bool prefill_uses_index(int64_t layer) const {
    return indexed(layer) && settings.index == IndexKind::kMean &&
           settings.prefill_chunk() == settings.chunk_tokens;
  }
  // Tokens that a layer keeps exactly on the device, besides sinks and outliers.
  int64_t exact_capacity(int64_t layer) const;
  // Exact tokens that stay behind the newest one.
  int64_t recent_tokens(int64_t layer) const;

  // From one KV head's rows to the next one's, at home or on the device, in bytes.
  int64_t plane_bytes(RowCodec codec) const;
  // Of one layer, in bytes.
  int64_t index_bytes(int64_t layer) const;
  int64_t reuse_bytes(int64_t layer) const;
  int64_t coded_key_bytes() const;
  int64_t key_bias_bytes() const;
  int64_t slot_bytes(int64_t layer) const;
  int64_t home_value_bytes() const;
  int64_t home_key_bytes(int64_t layer) const;
  // Blocks of queries of one prefill run.
  static constexpr int64_t prefill_blocks() { return kPrefillChunk / kPrefillBlock; }
  // Rows of the plane of means; of bf16 landmarks from which coded ones are made; coded values on their way home.
  int64_t mean_plane_chunks() const;
  int64_t index_plane_chunks() const { return prompt_chunks; }
  int64_t retire_chunks() const { return retire_tokens / settings.chunk_tokens; }
  // Of one prefill run whose queries have several views: what its parts leave (PrefillPart), floats, and
  // mean queries, elements.
  int64_t part_floats() const;
  int64_t view_means() const;
  int64_t value_staging_bytes() const;
  // What goes to the host's worker and comes back: of weights, for each query head; and in all, in bytes.
  int64_t staged_weights() const;
  int64_t staged_maxima() const {
    return (staged_weights() + kWeightRange - 1) / kWeightRange;
  }
  int64_t host_staging_bytes() const;
  // Rebuilt keys of one selection, on the device; elements.
  int64_t weighed_records() const;
  // Counters of all layers and KV heads.
  int64_t total_counts() const { return shape.n_layers * shape.n_kv_heads * 3 + 2; }
  // Ids and counts of one selection, and of what the cap dropped.
  int64_t list_ints() const;

  // Of runs behind the prompt: whether a layer's window and run are in one plane while its queries attend; rows of
  // that; chunks of a list, and blocks of queries that have one; chunks that have a mean where the index has none to
  // select by.
  bool runs_in_plane(int64_t layer) const { return shares_prefix() ? shape.window[layer] > 0 : layer_planes; }
  int64_t run_plane_rows() const;
  int64_t run_list() const;
  int64_t run_blocks() const;
  bool run_needs_means(int64_t layer) const {
    const bool has_index = prefill_uses_index(layer) && settings.landmark_codec == RowCodec::kBf16;
    return settings.select_prefill && shape.window[layer] == 0 && !has_index;
  }
  // Rows of records, as those of a plane: of keys, or of values, which begin a chunk behind them.
  int64_t run_record_rows() const { return (2 * run_blocks() * run_list() - 1) * settings.chunk_tokens; }
  int64_t run_means() const;
  int64_t run_numbers() const;  // of a table of ids
  RunBuffers run_buffers() const;

  // Bytes of the device by purpose: what a sequence holds as long as it lives, what its prompt takes
  // besides until it is prefilled, and what ops use only while they run, which many sequences share.
  // Weights and the decoder's own activations are not in it.
  PurposeBytes held_bytes() const;
  PurposeBytes prefill_bytes() const;
  PurposeBytes workspace_bytes() const;
  // Their sum: the peak of one sequence by itself, at the end of its prefill.
  PurposeBytes device_bytes() const;
  PurposeBytes host_bytes() const;
  // Of held or of host bytes, what one block of the arena is reserved for (Arena::reserve).
  int64_t reserved(const PurposeBytes& bytes) const;
  // Workspace of attention, and a partial result that nobody reads.
  int64_t attend_floats() const {
    return decode_workspace_floats(shape.n_heads, shape.head_dim) + partial_floats();
  }
  int64_t partial_floats() const { return (shape.n_heads * (shape.head_dim + 2) + 63) / 64 * 64; }

  KvShape shape;
  KvSettings settings;
  std::vector<int64_t> tiered_rank;  // per layer: how many tiered ones come before it
  std::vector<int64_t> leaders;      // per layer
  int64_t chunks = 0;        // chunk slots of the index: capacity / chunk_tokens
  int64_t prompt_chunks = 0;  // of the prompt, rounded up
  int64_t blocks = 0;        // of the first level; 0: one level
  int64_t coarse_select = 0;  // blocks looked into, at most
  bool mean_plane = false;    // prefill needs means of its own
  int64_t retire_tokens = 0;  // that leave the recent window together: whole chunks
  int64_t select = 0;        // chunks selected per KV head and step, at most
  int64_t n_slots = 0;       // per KV head
  int64_t outlier_rows = 0;  // tokens in outlier or static chunks
  int64_t late_chunks = 0;   // outliers among what leaves the window, kept beside the prompt's
  int64_t mask_words = 0;    // of the bit map over chunks
  int64_t record = 0;        // elements of a slot: K and V of one chunk
  int64_t prefill_ids = 0;   // chunk ids of one block and KV head: sinks and selection
  int64_t select_floats = 0; // workspace of scoring
  bool spare_key_plane = false;  // a second key plane, so that low-rank keys are made beside prefill
  bool layer_planes = false; // prefill needs its own planes (freed at its end)
  bool any_tiered = false;
  bool continues = false;    // runs may go on behind the prompt

 private:
  bool may_continue() const;
};

}  // namespace tiercel
