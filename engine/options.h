// What a session can be asked to do. Plain values with the defaults of the command.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/ops.h"
#include "engine/token_constraint.h"

namespace tiercel {

enum class BackendKind : uint8_t { kAuto, kCpu, kCuda };
// Decode attends everything, or what a composition of settings selects; presets are named after the
// systems whose method they are (engine/presets.h).
enum class AttentionMode : uint8_t {
  kDense,
  kShadow,       // ShadowKV: mean landmarks, low-rank keys
  kTokenSelect,  // TokenSelect: exact tokens, one soft vote per layer, reuse by query similarity
  kNosa,         // NOSA: a static part by attention mass beside the query-aware one
  kQuest,        // Quest: bounds by per-channel extremes
  kDelta,        // DELTA: few layers select, the following ones attend the same
  kMpcache       // MPCache: a look-once cut, two levels, layers in pairs
};
enum class PrefillMode : uint8_t { kAuto, kDense, kSelect };
// kExact: beside the values, on their tier; or in the index, where chunks are exact tokens.
enum class KeyCodec : uint8_t { kAuto, kExact, kLowRank, kInt8, kInt4 };
// Where values (and exact keys) live. kAuto: layer by layer on the device while they fit the device's
// memory, where that is known. On a CPU whose tiers nobody limits: all of it on the device with exact keys,
// attended in place, where that leaves the machine room; else on the host.
enum class ValueHome : uint8_t { kAuto, kHost, kDevice };
// Where the hidden states of a prompt lie while it is prefilled: on the device; or in host memory beside a GPU,
// whence the rows that are computed come and go, beside the computing. Auto: on the device, where nothing else
// would have its place.
enum class HiddenHome : uint8_t { kAuto, kHost, kDevice };
// Whether the host attends what it holds, instead of sending it. Where the device has the keys, the host
// only multiplies values. kOn: always, there is no selection cache. kAuto: layer by layer where that takes
// less time, tried once some steps were taken; times decide, so a run may differ from the next one in
// rounding.
enum class HostAttention : uint8_t { kOff, kOn, kAuto };

// In how many parts a batch takes a step, one of which is computed while what the other one fetches
// is on its way. kAuto: in two where that takes less time.
enum class MicroBatches : uint8_t { kAuto, kOne, kTwo };

inline constexpr int64_t kBudgetAll = -1;

// How far a model's queries look, where it is not as config.json says: dual chunk attention and YaRN's
// temperature let a model attend more tokens than it was trained for, without training.
struct ReachOptions {
  std::optional<int64_t> dual_chunk = {};        // chunk_size: no query looks further back; 0: as far as there is
  std::optional<int64_t> dual_chunk_local = {};  // local_size; a 32nd of the chunk where only that is given
  std::optional<int64_t> scale_from = {};        // tokens beyond which scores are scaled; 0: never
};

// The composition of selection: what a preset sets.
//
//   index      what stands for a chunk: mean or extremes of its keys; a chunk of one token is exact
//   levels     with coarse_chunk, blocks of so many tokens are scored first, and only the chunks of the
//              best coarse_share of them afterwards
//   score      softmax over what competes, for every query head
//   group      what the heads of a group make of it; scope: a list per KV head or one per layer
//   budget     tokens, or a share of the prompt; top_p stops earlier, where so much weight is reached
//   reuse      a list stays while the query has this cosine with the one it was made for, and for
//              reuse_steps steps at most; share_layers: so many layers attend what the first selected
//   cap        at most miss_cap chunks are fetched per KV head and step; estimate: those left out count
//              as one key and value each, their means
//   static     static_budget: tokens that stay exact on the device because the prompt's last queries
//              attended them most; drop_share: chunks that they attended least never compete. A model
//              with an eviction head says so itself
struct SelectionOptions {
  IndexKind index = IndexKind::kMean;
  int64_t chunk_size = 8;      // tokens per chunk
  int64_t coarse_chunk = 0;    // tokens per block of the first level; 0: one level
  double coarse_share = 0.125;  // of the blocks
  GroupScore group = GroupScore::kMax;
  SelectScope scope = SelectScope::kKvHead;
  int64_t budget = 2048;      // selected tokens per KV head, or kBudgetAll
  double budget_share = 0;    // of the prompt; 0: budget says
  double top_p = 0;           // 0: off
  double reuse = 0;           // cosine; 0: the query is not asked
  int64_t reuse_steps = 0;    // steps that a list serves; 0: no limit. Both 0: every step selects
  int64_t share_layers = 1;
  int64_t miss_cap = -1;      // -1: off
  bool estimate = false;
  int64_t sinks = 16;         // tokens; rounded up to whole chunks
  int64_t recent = 256;       // tokens
  // Chunks per KV head whose mean describes them worst stay exact: so many of the prompt, and again so
  // many of what follows it.
  int64_t outliers = 48;
  int64_t static_budget = 0;  // tokens per KV head; rounded up to whole chunks
  double drop_share = 0;      // of the chunks between sinks and window
  double slots = 3.0;         // selection cache, in budgets

  // Auto: exact where budget is all, tokens are chunks or everything fits the device; else the first of
  // int8, int4 and low-rank that fits.
  KeyCodec key_codec = KeyCodec::kAuto;
  int64_t rank = 160;                    // of the low-rank keys; capped by the key width
  RowCodec rank_codec = RowCodec::kBf16;  // of their coefficients: kBf16, kInt8
  RowCodec landmark_codec = RowCodec::kBf16;  // kBf16, kInt8
  RowCodec value_codec = RowCodec::kBf16;

  bool reuses() const { return reuse > 0 || reuse_steps > 1; }
};

// Whether tokens are guessed by what came before and computed ahead: never; where that was measured to gain; wherever
// there is a guess.
enum class DraftMode : uint8_t { kOff, kAuto, kAlways };

inline constexpr int64_t kMaxDraft = 31;  // tokens guessed at once: with the certain one, what one launch takes

struct SessionOptions {
  AttentionMode attention = AttentionMode::kShadow;  // names the preset that selection comes from
  SelectionOptions selection;
  PrefillMode prefill = PrefillMode::kAuto;  // auto: dense where it is affordable
  int64_t prefill_budget = 2048;             // selected tokens of prefill blocks, or kBudgetAll
  ValueHome value_home = ValueHome::kAuto;
  HiddenHome hidden_home = HiddenHome::kAuto;
  HostAttention host_attention = HostAttention::kOff;
  int64_t audit = 0;                         // every N steps; 0: off
  int64_t context = 0;                       // tokens per sequence; 0: prompt plus generation
  int64_t device_memory = 0;                 // bytes; 0: no limit of its own
  int64_t host_memory = 0;                   // bytes; 0: no limit of its own
  int n_threads = 0;                         // 0: all cores
  bool exact_exp = false;                    // fp32 exp2 in prefill instead of the 16-bit lookup
  bool no_graphs = false;                    // decode steps are not recorded and replayed (CUDA)
  bool strict = false;                       // refuse what is otherwise a warning
  DraftMode draft = DraftMode::kOff;
  int64_t draft_max = 15;  // tokens guessed at once, at most kMaxDraft
  double imposed_hit_rate = -1;  // 0..1: selections are made up (synthetic models); -1: real
};

// What a model is opened for, as far as that is known: weights leave it room.
struct ExpectedLoad {
  SessionOptions session = {};
  int64_t n_prompt = 1;
  int64_t n_new = 0;       // as of Session::plan
  int64_t n_sequences = 0, n_behind = 0;  // of a batch, as of PlanRequest
  bool logprobs = false;
  bool restored = false;   // the prompt comes from a saved session
  bool this_machine = true;  // as of PlanRequest
  bool is_certain = false;   // what does not fit may be refused before weights are read
};

// How matrices are kept, but for routers and eviction heads: as the checkpoint has them (bf16, or its codes), or as
// bf16, or in codes of eight or four bits, which loses something (engine/weight_codes.h). Codes of a checkpoint that are
// no wider stay as they are.
enum class WeightForm : uint8_t { kStored, kBf16, kInt8, kInt4 };

inline constexpr int64_t kAllLayers = -1, kAutoLayers = -2;

// Where and with what a model computes.
struct ModelOptions {
  BackendKind backend = BackendKind::kAuto;  // auto: a CUDA device where there is one
  int n_threads = 0;                         // of the CPU; 0: all cores
  int device = 0;                            // CUDA device
  ReachOptions reach = {};
  // Beside a CUDA device: layers, or kAllLayers, whose feed-forward matrices stay in pinned host memory, for
  // models that its memory has too little room for. Steps read them there, over the link; prompts and long appends
  // have them brought over layer by layer. The embedding stays there too, where the head is another matrix.
  // kAutoLayers: the fewest with which the expected load fits.
  int64_t host_layers = kAutoLayers;
  WeightForm weight_form = WeightForm::kStored;
  ExpectedLoad load = {};
};

// Added to the logit of a token; minus infinity: it is never picked.
struct LogitBias {
  int32_t token = 0;
  double bias = 0;
};

struct SamplingOptions {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;       // 0: off
  double top_p = 1;        // 1: off
  double min_p = 0;        // 0: off
  double repeat_penalty = 1;
  int64_t repeat_last_n = 64;  // tokens that the penalty looks back on
  // Subtracted from the logit of a token that was generated: once, and for each time.
  double presence_penalty = 0, frequency_penalty = 0;
  std::vector<LogitBias> logit_bias = {};  // each of another token
  uint64_t seed = 0;
  ConstraintSource constraint = {};  // which tokens may come at all
};

// Bytes per tier and purpose. The plan announces them before anything is allocated.
struct MemoryReport {
  struct Device {
    int64_t weights = 0, keys = 0, values = 0, landmarks = 0, slots = 0, exact = 0, activations = 0;
    int64_t total() const {
      return weights + keys + values + landmarks + slots + exact + activations;
    }
  } device;
  struct Host {
    int64_t weights = 0;  // that stay here beside a GPU
    int64_t values = 0, keys = 0;
    int64_t staging = 0;  // ids and logits on their way to and from a device
    int64_t total() const { return weights + values + keys + staging; }
  } host;
  bool one_memory = true;  // the device tier is main memory too
  int64_t process = 0;     // the program itself: code, tokenizer, prompt text, thread scratch
  int64_t total() const { return device.total() + host.total() + process; }
  // Main memory.
  int64_t resident() const { return one_memory ? total() : host.total() + process; }
};

// Work is counted in FLOPs, so done / total is honest when layers and chunks differ in cost.
struct Progress {
  const char* phase = "";   // "prefill", "append", "decode", "save", "restore"
  double fraction = 0;      // 0..1 of the phase's work
  int64_t tokens_done = 0;  // fraction of the prompt, in tokens; or tokens generated
  int64_t tokens_total = 0;
  double seconds = 0;  // since the phase began
};
// Return false to stop. What has been generated stays valid.
using ProgressCallback = std::function<bool(const Progress&)>;

struct SelectionReport {
  int64_t steps = 0;  // layer steps that selected; here and below, those of wrong guesses (DraftMode) too
  int64_t selected_chunks = 0, hit_chunks = 0;
  int64_t fetched_bytes = 0;
  int64_t decisions = 0, reused = 0;  // whether an earlier selection may stay, and how often it did
  int64_t host_layers = 0;  // whose selection the host attends now
  // Of layers that were tried both ways: seconds of one step's attention (HostAttention::kAuto).
  double tried_fetch_seconds = 0, tried_host_seconds = 0;
  double reuse_rate() const {
    return decisions > 0 ? static_cast<double>(reused) / static_cast<double>(decisions) : 0;
  }
  double hit_rate() const {
    return selected_chunks > 0 ? static_cast<double>(hit_chunks) / selected_chunks : 0;
  }
};

// Tokens that were guessed, and how many of them were right (DraftMode).
struct DraftReport {
  int64_t steps = 0;  // with or without a guess
  int64_t guessed = 0, right = 0;
};

// Share of the exact attention mass that the selection covered, over audited (layer, head, step)s.
struct AuditReport {
  int64_t steps = 0;
  double mass_mean = 0;
  double mass_p05 = 0;             // 5th percentile
  std::vector<double> layer_mass;  // mean per layer; NaN where nothing was selected
};

}  // namespace tiercel
