#include "engine/session_plan.h"

#include <algorithm>
#include <cmath>

#include "cpu/queue.h"
#include "cpu/select.h"
#include "cpu/topology.h"
#include "engine/base/check.h"
#include "engine/base/rope.h"
#include "engine/base/units.h"
#include "engine/batch_layout.h"
#include "engine/decoder.h"
#include "engine/model.h"
#include "engine/option_rows.h"
#include "kernels/stream.h"

namespace tiercel {
namespace {

// Of the memory that is left: what everything in place may take where nothing is asked for.
constexpr double kInPlaceShare = 0.75;

void require(bool ok, const char* flag, const char* expected, int64_t found) {
  if (!ok) fail(ErrorKind::kUsage, "{}: expected {}, found {}", flag, expected, found);
}

void require_share(double share, const char* flag) {
  if (!(share >= 0 && share <= 1)) {
    fail(ErrorKind::kUsage, "{}: expected a share from 0 to 1, found {}", flag, share);
  }
}

void check_ranges(const SessionOptions& o) {
  const SelectionOptions& s = o.selection;
  require(s.chunk_size >= 1 && s.chunk_size <= 128, "--chunk-size", "1 to 128 tokens", s.chunk_size);
  require(s.budget == kBudgetAll || s.budget >= s.chunk_size, "--budget",
          "'all' or at least one chunk of tokens", s.budget);
  require(o.prefill_budget == kBudgetAll || o.prefill_budget >= s.chunk_size, "--prefill-budget",
          "'all' or at least one chunk of tokens", o.prefill_budget);
  require(s.sinks >= 0, "--sinks", "0 or more tokens", s.sinks);
  require(s.recent >= 1, "--recent", "1 or more tokens", s.recent);
  require(s.outliers >= 0, "--outliers", "0 or more chunks", s.outliers);
  require(s.static_budget >= 0, "--static-budget", "0 or more tokens", s.static_budget);
  require(s.rank >= 1, "--rank", "1 or more", s.rank);
  require(s.share_layers >= 1, "--share-layers", "1 or more layers", s.share_layers);
  require(s.reuse_steps >= 0, "--reuse-steps", "0 or more steps", s.reuse_steps);
  require(s.miss_cap >= -1, "--miss-cap", "-1 (no limit) or chunks", s.miss_cap);
  require(s.coarse_chunk >= 0, "--coarse-chunk", "0 or more tokens", s.coarse_chunk);
  require(o.audit >= 0, "--audit", "0 or more steps", o.audit);
  require(o.context >= 0, "--ctx-size", "0 or more tokens", o.context);
  require(o.device_memory >= 0, "--device-memory", "0 or more bytes", o.device_memory);
  require(o.host_memory >= 0, "--host-memory", "0 or more bytes", o.host_memory);
  require_share(s.budget_share, "--budget");
  require_share(s.top_p, "--top-p-mass");
  require_share(s.reuse, "--reuse");
  require_share(s.drop_share, "--drop-share");
  require_share(s.coarse_share, "--coarse-share");
  if (!(s.slots >= 1 && s.slots <= 1e6)) {
    fail(ErrorKind::kUsage, "--slots: expected 1 or more budgets, found {}", s.slots);
  }
}

// The options of a selection by name, each with its value as text.
class OptionTexts {
 public:
  explicit OptionTexts(SelectionOptions s) { add_selection_options(*this, s); }
  const std::vector<std::pair<std::string, std::string>>& texts() const { return texts_; }

  // A sink of option_rows.h.
  void section(const char*) {}
  void integer(const char* name, int64_t value, int64_t, int64_t, const char*) { add(name, value); }
  void tokens(const char* name, int64_t value, int64_t, int64_t, const char*) { add(name, value); }
  void number(const char* name, double value, double, double, const char*) { add(name, value); }
  void flag(const char* name, bool value, const char*) { add(name, value); }
  template <typename E>
  void choice(const char* name, E value, std::vector<std::pair<const char*, E>>, const char*) {
    add(name, static_cast<int>(value));
  }
  template <typename Parse>
  void value(const char* name, const char*, const std::string& text, const char*, Parse&&) {
    add(name, text);
  }

 private:
  template <typename T>
  void add(const char* name, const T& value) {
    texts_.emplace_back(name, fmt::format("{}", value));
  }
  std::vector<std::pair<std::string, std::string>> texts_;
};

// Dense attention selects nothing: chunks and sinks count, where they are what its prompt selects, and
// nothing else of a selection. What was asked for besides is not judged, but said.
void drop_selection(SessionOptions& o, std::vector<std::string>& notes) {
  const SelectionOptions s = o.selection, unasked;
  std::string names;
  const auto mention = [&names](std::string_view name) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  };
  const auto asked = OptionTexts(s).texts(), defaults = OptionTexts(unasked).texts();
  for (size_t i = 0; i < asked.size(); ++i) {
    const auto& [name, text] = asked[i];
    const bool of_use = name == "--chunk-size" || name == "--sinks" ||
                        (name == "--key-codec" && s.key_codec == KeyCodec::kExact);
    if (!of_use && text != defaults[i].second) mention(name);
  }
  if (o.value_home == ValueHome::kHost) mention("--value-home");
  if (o.host_attention != HostAttention::kOff) mention("--host-attention");
  if (o.audit > 0) mention("--audit");
  if (!names.empty()) {
    notes.push_back(names + ": of no use, as --attention dense attends everything, exactly and on "
                            "the device.");
  }
  o.selection = unasked;
  o.selection.chunk_size = s.chunk_size;
  o.selection.sinks = s.sinks;
  o.selection.key_codec = KeyCodec::kExact;
  o.host_attention = HostAttention::kOff;
  o.audit = 0;
}

// Settings that are fine by themselves, but not together.
void check_composition(const SelectionOptions& s) {
  const auto refuse_if = [](bool wrong, const char* what) {
    if (wrong) fail(ErrorKind::kUsage, "{}", what);
  };
  const bool exact_tokens = s.chunk_size == 1 && s.index == IndexKind::kMean;
  refuse_if(s.top_p > 0 && s.group == GroupScore::kMax,
            "--top-p-mass: the weights of --group max have no sum; use --group mean or sum");
  refuse_if(s.outliers > 0 && s.index != IndexKind::kMean,
            "--outliers: extremes describe every chunk; use --index mean or --outliers 0");
  refuse_if(s.outliers > 0 && s.static_budget > 0,
            "--outliers and --static-budget: the chunks that stay exact are chosen by one of them");
  refuse_if(s.scope == SelectScope::kLayer && (s.outliers > 0 || s.static_budget > 0 || s.drop_share > 0),
            "--scope layer: --outliers, --static-budget and --drop-share choose per KV head; use "
            "--scope head, or --outliers 0 without them");
  refuse_if(s.coarse_chunk > 0 && (s.coarse_chunk % s.chunk_size != 0 || s.coarse_chunk == s.chunk_size),
            "--coarse-chunk: expected a multiple of --chunk-size");
  refuse_if(s.coarse_chunk > 0 && s.coarse_share == 0, "--coarse-share: expected more than 0");
  refuse_if(s.landmark_codec == RowCodec::kInt4 || s.rank_codec == RowCodec::kInt4,
            "landmarks and coefficients are bf16 or int8");
  refuse_if((s.static_budget > 0 || s.drop_share > 0) && s.index != IndexKind::kMean && s.chunk_size < 8,
            "--static-budget, --drop-share: with --index minmax expected --chunk-size 8 or more");
  refuse_if(s.estimate && s.miss_cap < 0, "--estimate: nothing is left out without --miss-cap");
  refuse_if(s.estimate && (s.index != IndexKind::kMean || s.landmark_codec != RowCodec::kBf16 || exact_tokens),
            "--estimate: chunks are estimated by their means; expected --index mean, "
            "--landmark-codec bf16 and --chunk-size 2 or more");
  refuse_if(s.miss_cap >= 0 && s.share_layers > 1,
            "--miss-cap: layers that share a list have caches of their own; use --share-layers 1");
}

// In place, or with keys and values, the host attends them as they are: bf16. Where the device has the
// keys, values may be coded.
void check_host_attention(const PlanRequest& r, const SessionPlan& plan) {
  const SelectionOptions& s = plan.options.selection;
  if (plan.options.host_attention == HostAttention::kOff) return;
  if (s.miss_cap >= 0) {
    fail(ErrorKind::kUsage, "--host-attention: nothing is fetched; --miss-cap has no meaning beside it");
  }
  if (r.backend == BackendKind::kCpu) {
    if (s.key_codec == KeyCodec::kExact && s.value_codec == RowCodec::kBf16) return;
    fail(ErrorKind::kUsage, "--host-attention: expected --key-codec exact and --value-codec bf16 on a CPU");
  }
  const KvLayout layout(kv_shape(r.config), kv_settings(plan, r.config));
  bool keys_on_device = true;
  for (int64_t layer = 0; layer < r.config.n_layers; ++layer) {
    keys_on_device &= !layout.tiered(layer) || layout.weighed_on_device(layer);
  }
  if (keys_on_device) return;
  if (s.value_codec != RowCodec::kBf16) {
    fail(ErrorKind::kUsage, "--host-attention: with --key-codec exact expected --value-codec bf16; or use "
                            "--key-codec int8, then the host only multiplies values");
  }
  if (r.config.eviction_head) {
    fail(ErrorKind::kUsage, "--host-attention: what this model's eviction head says of keys is on the "
                            "device; use --key-codec int8, then the host only multiplies values");
  }
}

void check_codecs(const SelectionOptions& s, const ModelConfig& config) {
  const auto require_groups = [](int64_t width, const char* flag, const char* what) {
    if (!can_code(width)) {
      fail(ErrorKind::kUsage, "{}: codes come in groups of 32, this {} is {}", flag, what, width);
    }
  };
  if (config.eviction_head && s.estimate) {
    fail(ErrorKind::kUsage, "--estimate: a chunk's mean does not know what this model's eviction head "
                            "says of its tokens; leave it out");
  }
  const int64_t d = config.head_dim;
  if (s.value_codec != RowCodec::kBf16) require_groups(d, "--value-codec", "model's head_dim");
  if (s.key_codec == KeyCodec::kInt8 || s.key_codec == KeyCodec::kInt4) {
    require_groups(d, "--key-codec", "model's head_dim");
  }
  if (s.key_codec == KeyCodec::kLowRank && s.rank_codec != RowCodec::kBf16) {
    require_groups(std::min(s.rank, config.kv_width()), "--rank-codec", "rank");
  }
}

int64_t resolve_context(const PlanRequest& r, SessionPlan& plan) {
  const int64_t limit = r.config.max_position_embeddings;
  int64_t context = r.options.context;
  if (context == 0) {
    context = r.n_new >= 0 ? r.n_prompt + r.n_new : std::max(limit, r.n_prompt + 1);
  }
  if (context < r.n_prompt) {
    fail(ErrorKind::kUsage, "the prompt has {} tokens, --ctx-size allows {}", r.n_prompt, context);
  }
  if (limit > 0 && r.n_prompt > limit) {
    plan.notes.push_back(
        fmt::format("The prompt has {} tokens, the model was made for {} positions; answers may be poor.",
                    r.n_prompt, limit));
  } else if (limit > 0 && context > limit) {
    plan.notes.push_back(fmt::format(
        "The context has room for {} tokens, the model was made for {} positions; beyond them answers "
        "may be poor.",
        context, limit));
  }
  return context;
}

PrefillMode resolve_prefill(const PlanRequest& r) {
  if (r.options.prefill != PrefillMode::kAuto) return r.options.prefill;
  if (r.n_prompt <= kDensePrefillTokens) return PrefillMode::kDense;
  const ModelConfig& c = r.config;
  KvSettings settings;
  double dense = 0, linear = 0;
  for (int64_t window : c.sliding_window) {
    const double all = layer_flops(c, settings, window, {0, r.n_prompt, true});
    const double fixed = layer_flops(c, settings, 1, {0, r.n_prompt, true});
    dense += all - fixed;
    linear += fixed;
  }
  return dense <= kDensePrefillRatio * linear ? PrefillMode::kDense : PrefillMode::kSelect;
}

// The scoring of prefill keeps its lists in a worker's scratch memory.
void check_prefill_budget(const PlanRequest& r, const SessionPlan& plan) {
  if (plan.options.prefill != PrefillMode::kSelect || r.restored) return;
  const int64_t most =
      cpu::max_prefill_chunks(r.config.n_heads / r.config.n_kv_heads) *
      KvLayout(kv_shape(r.config), kv_settings(plan, r.config)).prefill_chunk;
  const int64_t wanted =
      std::min(r.options.prefill_budget == kBudgetAll ? r.n_prompt : r.options.prefill_budget,
               r.n_prompt);
  if (wanted > most) {
    fail(ErrorKind::kUsage, "--prefill-budget: expected at most {} tokens here, found {}; "
         "--prefill dense sees everything", most, wanted);
  }
}

void resolve_budget(const PlanRequest& r, SelectionOptions& s) {
  if (s.budget_share == 0) return;
  s.budget = static_cast<int64_t>(std::ceil(s.budget_share * static_cast<double>(r.n_prompt)));
  s.budget = std::max(s.budget, s.chunk_size);
}

bool fits_device(const PlanRequest& r, const SessionPlan& plan) {
  const int64_t limit = device_limit(r);
  return limit == 0 || count_memory(r, plan).device.total() <= limit;
}

int64_t available_bytes() { return cpu::available_memory_bytes() + cpu::current_rss_bytes(); }

// Where both tiers are one memory and nobody limits the device, what is attended in place is copied
// nowhere; it is worth its exact keys as long as they leave the machine some room.
bool fits_in_place(const PlanRequest& r, const SessionPlan& whole) {
  const SelectionOptions& s = whole.options.selection;
  if (r.backend != BackendKind::kCpu || r.options.host_memory > 0 ||
      r.options.host_attention != HostAttention::kOff ||
      r.options.imposed_hit_rate >= 0 || s.key_codec != KeyCodec::kExact ||
      s.value_codec != RowCodec::kBf16) {
    return false;
  }
  const auto room = static_cast<int64_t>(kInPlaceShare * static_cast<double>(available_bytes()));
  return !r.this_machine || count_memory(r, whole).resident() <= room;
}

// How many layers' values (and exact keys) live on the device. With room for everything, keys that
// nobody chose are exact: then nothing is fetched, rebuilt or decoded, and nothing is lost.
void resolve_homes(const PlanRequest& r, SessionPlan& plan) {
  if (plan.options.attention == AttentionMode::kDense) return;
  const ValueHome home = r.options.value_home;
  if (home == ValueHome::kHost) return;
  const bool unlimited = home == ValueHome::kAuto && device_limit(r) == 0;
  const int64_t n_layers = r.config.n_layers;
  SessionPlan whole = plan;
  whole.device_layers = n_layers;
  if (r.options.selection.key_codec == KeyCodec::kAuto) {
    whole.options.selection.key_codec = KeyCodec::kExact;
    if (unlimited ? fits_in_place(r, whole) : fits_device(r, whole)) {
      plan = whole;
      return;
    }
  }
  if (unlimited) {
    whole.options.selection = plan.options.selection;
    if (fits_in_place(r, whole)) plan = whole;
    return;
  }
  plan.device_layers = n_layers;
  while (home == ValueHome::kAuto && plan.device_layers > 0 && !fits_device(r, plan)) {
    --plan.device_layers;
  }
}

// What one tier has too little room for may be what the other one has room for: of a batch, with the
// homes that would be chosen.
bool fits_tiers(const PlanRequest& r, SessionPlan plan) {
  if (r.n_sequences == 0) return fits_device(r, plan);
  PlanRequest decided = r;  // exact keys are not chosen on the way
  decided.options.selection.key_codec = plan.options.selection.key_codec;
  resolve_homes(decided, plan);
  const int64_t host = count_memory(r, plan).host.total();
  return fits_device(r, plan) && (r.options.host_memory == 0 || host <= r.options.host_memory);
}

// The best of the codecs that fit the device. At equal bytes codes lose less than low-rank keys (journal,
// "Codecs of keys"); the latter are the smallest that there is.
KeyCodec best_key_codec(const PlanRequest& r, SessionPlan plan) {
  SelectionOptions& s = plan.options.selection;
  const bool in_place = r.options.host_attention != HostAttention::kOff && r.backend == BackendKind::kCpu;
  if (s.budget == kBudgetAll || s.chunk_size == 1 || in_place) {
    return KeyCodec::kExact;
  }
  if (can_code(r.config.head_dim)) {
    for (const KeyCodec codec : {KeyCodec::kInt8, KeyCodec::kInt4}) {
      s.key_codec = codec;
      if (fits_tiers(r, plan)) return codec;
    }
  }
  if (too_few_for_basis(r)) return KeyCodec::kExact;
  s.key_codec = KeyCodec::kLowRank;
  if (fits_tiers(r, plan)) return KeyCodec::kLowRank;
  // Exact keys beside the values take nothing of the device: what lets most sequences in.
  if (r.n_sequences > 0) return KeyCodec::kExact;
  // The smallest, so that what is said to be needed is the least that would do.
  if (!can_code(r.config.head_dim)) return KeyCodec::kLowRank;
  const int64_t low_rank = count_memory(r, plan).device.total();
  s.key_codec = KeyCodec::kInt4;
  return count_memory(r, plan).device.total() < low_rank ? KeyCodec::kInt4 : KeyCodec::kLowRank;
}

void resolve_keys(const PlanRequest& r, SessionPlan& plan) {
  SelectionOptions& s = plan.options.selection;
  const int64_t width = r.config.kv_width();
  if (s.key_codec == KeyCodec::kAuto) s.key_codec = best_key_codec(r, plan);
  if (s.key_codec == KeyCodec::kLowRank && s.rank > width) {
    if (r.options.selection.rank != SelectionOptions{}.rank) {
      plan.notes.push_back(
          fmt::format("--rank {} is more than the {} key channels of a layer; {} is used.", s.rank,
                      width, width));
    }
    s.rank = width;
  }
}

// What to say when a tier is too small: the flag to raise, and what would need less.
[[noreturn]] void does_not_fit(const PlanRequest& r, const SessionPlan& plan, const char* tier,
                               const char* flag, int64_t need, int64_t limit) {
  std::string help = fmt::format("raise {}", flag);
  if (plan.options.attention == AttentionMode::kDense && std::string_view(flag) != "--host-memory") {
    help += ", or use --attention shadow";
  } else if (plan.options.attention != AttentionMode::kDense) {
    if (plan.options.selection.key_codec == KeyCodec::kLowRank) help += ", lower --rank or --slots";
    if (plan.options.selection.value_codec == RowCodec::kBf16) help += ", try --value-codec int8";
    if (plan.options.audit > 0) help += ", drop --audit (it keeps exact keys)";
  }
  fail(ErrorKind::kDoesNotFit,
       "{} tokens need {} of {} memory, {} is allowed; {}, or shorten the context (-c, -n, the prompt "
       "has {} tokens)",
       plan.context, format_bytes(need), tier, format_bytes(limit), help, r.n_prompt);
}

}  // namespace

KvShape kv_shape(const ModelConfig& c) {
  KvShape shape;
  shape.n_layers = c.n_layers;
  shape.n_heads = static_cast<int32_t>(c.n_heads);
  shape.n_kv_heads = static_cast<int32_t>(c.n_kv_heads);
  shape.head_dim = static_cast<int32_t>(c.head_dim);
  shape.window = c.sliding_window;
  shape.eviction_head = c.eviction_head;
  return shape;
}

KvSettings kv_settings(const SessionPlan& plan, const ModelConfig& config) {
  const SessionOptions& o = plan.options;
  const SelectionOptions& from = o.selection;
  const auto chunks = [&](int64_t tokens) {
    return (tokens + from.chunk_size - 1) / from.chunk_size;
  };
  KvSettings s;
  s.kind = o.attention == AttentionMode::kDense ? StoreKind::kDense : StoreKind::kTiered;
  const bool behind_prefix = plan.n_prefix > 0;
  s.select_prefill =
      o.prefill == PrefillMode::kSelect && plan.n_restored == 0 && !behind_prefix;
  s.audit = o.audit > 0;
  s.capacity = behind_prefix ? plan.n_prefix : plan.context;
  s.behind = plan.context - s.capacity;
  s.decodes = !plan.is_prefix;
  if (plan.n_restored >= kMappedTokens && plan.backend == BackendKind::kCpu) {
    s.capacity = (plan.context + kTokensPerPages - 1) / kTokensPerPages * kTokensPerPages;
  }
  s.prompt = behind_prefix ? 0 : plan.n_prompt;
  s.prefill_budget = o.prefill_budget == kBudgetAll ? plan.n_prompt : o.prefill_budget;

  s.chunk_tokens = static_cast<int32_t>(from.chunk_size);
  s.index = from.index;
  s.landmark_codec = from.landmark_codec;
  s.coarse_tokens = from.coarse_chunk;
  s.coarse_share = from.coarse_share;
  s.group = from.group;
  s.scope = from.scope;
  s.budget = from.budget == kBudgetAll ? plan.context : from.budget;
  s.top_p = from.top_p;
  s.reuse_cosine = from.reuse;
  s.reuse_steps = from.reuse_steps;
  s.share_layers = from.share_layers;
  s.miss_cap = from.miss_cap;
  s.estimate = from.estimate;
  s.sinks = chunks(from.sinks) * from.chunk_size;
  s.recent = from.recent;
  s.outliers = from.outliers;
  s.static_chunks = chunks(from.static_budget);
  s.drop_share = from.drop_share;
  s.slots = from.slots;

  switch (from.key_codec) {
    case KeyCodec::kAuto:
    case KeyCodec::kExact: s.keys = KeyForm::kExact; break;
    case KeyCodec::kLowRank:
      s.keys = KeyForm::kLowRank;
      s.key_codec = from.rank_codec;
      break;
    case KeyCodec::kInt8:
    case KeyCodec::kInt4:
      s.keys = KeyForm::kCoded;
      s.key_codec = from.key_codec == KeyCodec::kInt8 ? RowCodec::kInt8 : RowCodec::kInt4;
      break;
  }
  s.rank = std::min(from.rank, config.kv_width());
  s.value_codec = from.value_codec;
  s.device_layers = plan.device_layers;
  s.host_use = o.host_attention == HostAttention::kOff  ? HostUse::kNever
               : o.host_attention == HostAttention::kOn ? HostUse::kAlways
                                                        : HostUse::kMeasured;
  s.one_memory = plan.backend == BackendKind::kCpu;
  s.imposed_hit_rate = o.imposed_hit_rate;
  s.overlap = plan.backend == BackendKind::kCuda;
  s.replay = s.overlap && !o.no_graphs;
  s.together = plan.together;
  s.attend_places = plan.attend_places;
  return s;
}

int64_t usable_device_bytes(const PlanRequest& r) {
  if (r.device_free_bytes <= 0) return 0;
  const int64_t left = std::max(kDeviceReserve, r.device_free_bytes / 100);
  return r.weight_bytes + std::max<int64_t>(r.device_free_bytes - left, 0);
}

int64_t device_limit(const PlanRequest& r) {
  const int64_t usable = usable_device_bytes(r), asked = r.options.device_memory;
  if (usable == 0) return asked;
  return asked > 0 ? std::min(asked, usable) : usable;
}

// Too few keys say too little about the directions that later ones will take.
bool too_few_for_basis(const PlanRequest& r) {
  return r.n_prompt < 4 * std::min(r.options.selection.rank, r.config.kv_width());
}

namespace {

int64_t most_together(BackendKind backend) {
  return backend == BackendKind::kCuda ? cuda::Stream::kTogether : cpu::Queue::kTogether;
}

// Beside weights and what stores take.
SharedBytes activation_bytes(const PlanRequest& r, const SessionPlan& plan) {
  const bool cuda = r.backend == BackendKind::kCuda;
  SharedBytes bytes;
  if (r.n_sequences > 0) {
    const BatchLayout batch(r.config, plan.n_prompt, r.n_sequences, cuda);
    bytes = {batch.device_bytes(), batch.host_bytes()};
  } else {
    const DecoderLayout decoder(r.config, plan.n_prompt, r.logprobs, cuda);
    bytes = {decoder.bytes(), decoder.host_bytes()};
  }
  if (cuda) bytes.device += cuda_scratch_bytes(r.config, plan);
  bytes.device += static_cast<int64_t>(RopeTable::bytes(r.config.head_dim / 2, plan.context));
  return bytes;
}

}  // namespace

SharedBytes shared_bytes(const PlanRequest& r, const SessionPlan& plan) {
  const KvLayout layout(kv_shape(r.config), kv_settings(plan, r.config));
  SharedBytes bytes = activation_bytes(r, plan);
  bytes.device += r.weight_bytes + sum(layout.workspace_bytes());
  return bytes;
}

SequenceBytes sequence_bytes(const PlanRequest& r, const SessionPlan& plan) {
  const KvLayout layout(kv_shape(r.config), kv_settings(plan, r.config));
  const bool staged = r.backend == BackendKind::kCuda;
  return {.device = sum(layout.held_bytes()),
          .prefill = plan.n_prefix > 0
                         ? 0
                         : sum(layout.prefill_bytes()) +
                               BatchLayout::prompt_bytes(r.config, plan.n_prompt, staged),
          .host = sum(layout.host_bytes())};
}

// Of a batch: all its sequences, one of them in prefill; or a prefix, and all of them behind it.
MemoryReport count_memory(const PlanRequest& r, const SessionPlan& plan) {
  const auto layout_of = [&](const SessionPlan& one) {
    return KvLayout(kv_shape(r.config), kv_settings(one, r.config));
  };
  const KvLayout layout = layout_of(plan);
  PurposeBytes device = layout.workspace_bytes(), host{};
  const auto add = [&](PurposeBytes& to, const PurposeBytes& bytes, int64_t n) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += n * bytes[i];
  };
  const auto add_sequences = [&](const KvLayout& one, int64_t n) {
    add(device, one.held_bytes(), n);
    add(host, one.host_bytes(), n);
  };
  add(device, layout.prefill_bytes(), 1);
  if (r.n_behind > 0) {
    SessionPlan prefix = plan, behind = plan;
    prefix.is_prefix = true;
    behind.n_prefix = prefix.context = std::max<int64_t>(plan.context - r.n_behind, 1);
    behind.context = behind.n_prefix + r.n_behind;
    add_sequences(layout_of(prefix), 1);
    add_sequences(layout_of(behind), r.n_sequences);
  } else {
    add_sequences(layout, std::max<int64_t>(r.n_sequences, 1));
  }
  auto of = [](const PurposeBytes& bytes, Purpose purpose) {
    return bytes[static_cast<size_t>(purpose)];
  };
  const bool cuda = r.backend == BackendKind::kCuda;
  const SharedBytes activations = activation_bytes(r, plan);
  MemoryReport m;
  m.one_memory = !cuda;
  m.device.weights = r.weight_bytes;
  m.device.keys = of(device, Purpose::kKeys);
  m.device.values = of(device, Purpose::kValues);
  m.device.landmarks = of(device, Purpose::kLandmarks);
  m.device.slots = of(device, Purpose::kSlots);
  m.device.exact = of(device, Purpose::kExact);
  m.device.activations = of(device, Purpose::kActivations) + activations.device;
  if (r.n_sequences > 0) {
    m.device.activations += BatchLayout::prompt_bytes(r.config, plan.n_prompt, cuda);
  }
  m.host.values = of(host, Purpose::kValues);
  m.host.keys = of(host, Purpose::kKeys);
  m.host.staging = activations.host + of(host, Purpose::kActivations);
  const int64_t resident_weights = r.weights_resident ? r.weight_bytes : 0;
  m.process = std::max<int64_t>(0, cpu::current_rss_bytes() - resident_weights) +
              (layout.has_worker() || !cuda ? r.n_threads * static_cast<int64_t>(cpu::kScratchBytes) : 0);
  return m;
}

void check_limits(const PlanRequest& r, const SessionPlan& plan) {
  const MemoryReport& m = plan.memory;
  if (r.options.device_memory > 0 && m.device.total() > r.options.device_memory) {
    does_not_fit(r, plan, "device", "--device-memory", m.device.total(), r.options.device_memory);
  }
  if (r.options.host_memory > 0 && m.host.total() > r.options.host_memory) {
    does_not_fit(r, plan, "host", "--host-memory", m.host.total(), r.options.host_memory);
  }
  // What this process holds already (weights, prompt) is not to be found again.
  const int64_t available = available_bytes();
  const int64_t usable = usable_device_bytes(r);
  if (!m.one_memory && usable > 0 && m.device.total() > usable) {
    does_not_fit(r, plan, "device", "--device-memory", m.device.total(), usable);
  }
  if (r.this_machine && m.resident() > available) {
    fail(ErrorKind::kDoesNotFit,
         "{} tokens need {} of memory in all, this machine has {} left; shorten the context (-c, -n, "
         "the prompt has {} tokens){}",
         plan.context, format_bytes(m.resident()), format_bytes(available), r.n_prompt,
         plan.options.attention == AttentionMode::kDense ? " or use --attention shadow" : "");
  }
}

SessionPlan make_plan(const PlanRequest& asked) {
  SessionPlan plan;
  PlanRequest r = asked;
  if (r.options.attention == AttentionMode::kDense) drop_selection(r.options, plan.notes);
  check_ranges(r.options);
  if (r.n_prompt < 1) fail(ErrorKind::kUsage, "the prompt is empty");
  if (r.n_prompt > kMaxOptionTokens || r.n_new > kMaxOptionTokens) {
    fail(ErrorKind::kUsage, "expected at most {} tokens, found a prompt of {} and {} new ones",
         kMaxOptionTokens, r.n_prompt, r.n_new);
  }
  if (r.n_new < -1) {
    fail(ErrorKind::kUsage, "-n: expected -1 (until the end) or a count, found {}", r.n_new);
  }
  plan.options = r.options;
  // Room for one token's hidden state is what a step needs.
  plan.n_prompt = r.restored ? 1 : r.n_prompt;
  plan.n_restored = r.restored ? r.n_prompt : 0;
  plan.logprobs = r.logprobs;
  plan.backend = r.backend;
  const int64_t most = most_together(r.backend);
  plan.together = std::clamp<int64_t>(r.n_sequences, 1, most);
  plan.attend_places = r.n_sequences > 0 ? plan.together : most;
  plan.context = resolve_context(r, plan);
  plan.options.context = plan.context;
  plan.options.prefill = resolve_prefill(r);
  resolve_budget(r, plan.options.selection);
  check_composition(plan.options.selection);
  resolve_keys(r, plan);
  check_codecs(plan.options.selection, r.config);
  check_host_attention(r, plan);
  check_prefill_budget(r, plan);
  resolve_homes(r, plan);
  plan.memory = count_memory(r, plan);
  if (r.options.strict && !plan.notes.empty()) {
    fail(ErrorKind::kUsage, "{} (--strict)", plan.notes.front());
  }
  return plan;
}

}  // namespace tiercel
