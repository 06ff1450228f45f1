#include "engine/session_plan.h"

#include <algorithm>
#include <cmath>

#include "cpu/queue.h"
#include "cpu/select.h"
#include "cpu/topology.h"
#include "engine/append_pass.h"
#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/option_rows.h"
#include "engine/plan_checks.h"
#include "engine/prompt_pass.h"
#include "engine/weights.h"
#include "kernels/stream.h"

namespace tiercel {
namespace {

// Of the memory that is left: what everything in place may take where nothing is asked for.
constexpr double kInPlaceShare = 0.75;

int64_t resolve_context(const PlanRequest& r, SessionPlan& plan) {
  const int64_t limit = r.config.max_position_embeddings;
  int64_t context = r.options.context;
  if (context == 0) {
    context = r.n_new >= 0 ? r.n_prompt + r.n_new : std::max(limit, r.n_prompt + 1);
  }
  if (context < r.n_prompt) {
    fail(ErrorKind::kUsage, "the prompt has {} tokens, --ctx-size allows {}", r.n_prompt, context);
  }
  // Where no query looks further back than the model was made for, its positions do not end there.
  const QuerySpans& spans = r.config.dual_chunk.spans;
  if (spans.tokens > 0 && spans.limit_of(0) <= limit) return context;
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

void resolve_budget(const PlanRequest& r, SelectionOptions& s) {
  if (s.budget_share == 0) return;
  s.budget = static_cast<int64_t>(std::ceil(s.budget_share * static_cast<double>(r.n_prompt)));
  s.budget = std::max(s.budget, s.chunk_size);
}

bool fits_device(const PlanRequest& r, const SessionPlan& plan) {
  const int64_t limit = device_limit(r);
  return limit == 0 || count_memory(r, plan).device.total() <= limit;
}

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
  const auto room = static_cast<int64_t>(kInPlaceShare * static_cast<double>(cpu::memory_of_this_process_bytes()));
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

// Whether keys may be at home on the host where nobody asked for it: one that attends what it holds needs it as it
// is (check_host_attention).
bool may_leave_device(const PlanRequest& r) {
  const bool as_it_is = r.options.selection.value_codec == RowCodec::kBf16 && !r.config.eviction_head;
  return r.options.host_attention == HostAttention::kOff || as_it_is;
}

// The best of the codecs that fit the device. At equal bytes codes lose less than low-rank keys (journal,
// "Codecs of keys"); the latter are the smallest that there is. Where none fits, keys are fetched as values are.
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
  const bool may_leave = may_leave_device(r);
  if (r.n_sequences > 0 && may_leave) return KeyCodec::kExact;
  // The smallest, so that what is said to be needed is the least that would do.
  if (may_leave && r.options.value_home != ValueHome::kDevice) {
    s.key_codec = KeyCodec::kExact;
    const int64_t host = count_memory(r, plan).host.total();
    if (r.options.host_memory == 0 || host <= r.options.host_memory) return KeyCodec::kExact;
    s.key_codec = KeyCodec::kLowRank;
  }
  const int64_t low_rank = count_memory(r, plan).device.total();
  if (!can_code(r.config.head_dim)) return KeyCodec::kLowRank;
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

// Whether a prompt's hidden states are better kept in host memory: beside a GPU, where they cost nothing but their
// way there and back while others are computed, and where keys, values or the whole plan gain by the place.
bool states_belong_on_host(const PlanRequest& r, const SessionPlan& plan) {
  const HiddenHome home = r.options.hidden_home;
  const bool can_be = r.backend == BackendKind::kCuda && !r.logprobs && plan.prefills;
  if (home == HiddenHome::kDevice || !can_be) return false;
  if (home == HiddenHome::kHost) return true;
  if (plan.n_prompt <= kLeastStatesOnHost) return false;
  SessionPlan on_device = plan, on_host = plan;
  on_host.states_on_host = true;
  for (SessionPlan* one : {&on_device, &on_host}) {
    resolve_keys(r, *one);
    resolve_homes(r, *one);
  }
  const MemoryReport m = count_memory(r, on_host);
  if (r.options.host_memory > 0 && m.host.total() > r.options.host_memory) return false;
  if (r.this_machine && m.resident() > cpu::memory_of_this_process_bytes()) return false;
  return !fits_device(r, on_device) || on_device.device_layers < on_host.device_layers ||
         on_device.options.selection.key_codec != on_host.options.selection.key_codec;
}

// Tokens of a text behind the prompt that are prefilled at once: 0 where the context has no room for enough of them,
// or memory for what they take, or the budget would be more than there can be of it.
int64_t resolve_continued(const PlanRequest& r, const SessionPlan& plan) {
  const int64_t room = plan.context - r.n_prompt;
  if (r.n_sequences > 0 || room < least_segments(plan.options)) return 0;
  const int64_t asked = r.options.prefill_budget, budget = asked == kBudgetAll ? plan.context : asked;
  const bool selects = plan.options.prefill == PrefillMode::kSelect;
  if (selects && std::min(budget, plan.context) > most_prefill_budget(r.config, plan.options.selection)) return 0;
  SessionPlan with = plan;
  with.continued = std::min(room, kSegmentTokens);
  if (!kv_layout(with, r.config).continues || !fits_device(r, with)) return 0;
  const int64_t resident = count_memory(r, with).resident();
  return !r.this_machine || resident <= cpu::memory_of_this_process_bytes() ? with.continued : 0;
}

struct Lever {
  const char* text;
  void (*pull)(SessionOptions&);
};
constexpr Lever kLevers[] = {
    {"--outliers 48", [](SessionOptions& o) { o.selection.outliers = 48; }},
    {"--slots 1", [](SessionOptions& o) { o.selection.slots = 1; }},
    {"--value-codec int8", [](SessionOptions& o) { o.selection.value_codec = RowCodec::kInt8; }},
    {"--slots 1 --value-codec int8",
     [](SessionOptions& o) {
       o.selection.slots = 1;
       o.selection.value_codec = RowCodec::kInt8;
     }},
    {"--key-codec int4 --value-codec int4 --slots 1",
     [](SessionOptions& o) {
       o.selection.slots = 1;
       o.selection.key_codec = KeyCodec::kInt4;
       o.selection.value_codec = RowCodec::kInt4;
     }},
    {"--attention shadow", [](SessionOptions& o) { o.attention = AttentionMode::kShadow; }},
};

// The first of these with which it would fit; empty: none.
std::string_view lever_that_helps(const PlanRequest& r, bool device, int64_t limit) {
  // A prefill's memory, which they leave as it is; a batch's plan is of more than this request.
  if (r.logprobs || r.n_sequences > 0) return {};
  for (const Lever& lever : kLevers) {
    const bool is_dense = r.options.attention == AttentionMode::kDense;
    if (is_dense != (std::string_view(lever.text) == "--attention shadow")) continue;
    PlanRequest other = r;
    lever.pull(other.options);
    try {
      const MemoryReport memory = make_plan(other).memory;
      if ((device ? memory.device.total() : memory.host.total()) <= limit) return lever.text;
    } catch (const Error&) {
      // A combination that there is not.
    }
  }
  return {};
}

// Whether the host tier has room for the weights of so many layers, beside what is planned.
bool hosts_weights(const PlanRequest& r, const SessionPlan& plan, int64_t host_layers) {
  ModelConfig config = r.config;
  config.host_layers = host_layers;
  const int64_t more = host_weight_bytes(config) - host_weight_bytes(r.config);
  if (r.options.host_memory > 0 && plan.memory.host.total() + more > r.options.host_memory) return false;
  return !r.this_machine || plan.memory.resident() + more <= cpu::memory_of_this_process_bytes();
}

// What of a full host tier might be on the device.
std::string to_leave_host(const SessionPlan& plan, std::string_view tier) {
  std::string help;
  if (tier == "device") return help;
  if (plan.memory.host.weights > 0) help += ", leave weights on a larger device (--host-layers)";
  if (plan.states_on_host) help += ", leave the prompt's hidden states there (--hidden-home device)";
  return help;
}

// What to say when a tier is too small: the flag to raise, and what would need less.
[[noreturn]] void does_not_fit(const PlanRequest& r, const SessionPlan& plan, const char* tier,
                               const char* flag, int64_t need, int64_t limit) {
  std::string help = fmt::format("raise {}", flag);
  const std::string_view lever = lever_that_helps(r, std::string_view(tier) == "device", limit);
  if (!lever.empty()) help += fmt::format(", add {}", lever);
  const bool beside_gpu = r.backend == BackendKind::kCuda && std::string_view(tier) == "device";
  const int64_t host_layers = beside_gpu ? host_layers_to_free(r.config, need - limit) : 0;
  if (host_layers > 0 && hosts_weights(r, plan, host_layers)) {
    help += fmt::format(", keep weights in host memory (--host-layers {})", host_layers);
  }
  const bool states_may_leave = plan.prefills && !r.logprobs && r.n_prompt > kLeastStatesOnHost;
  if (beside_gpu && states_may_leave && r.options.hidden_home == HiddenHome::kDevice) {
    help += ", drop --hidden-home device";
  }
  help += to_leave_host(plan, tier);
  if (plan.options.audit > 0) help += ", drop --audit (it keeps exact keys)";
  help += r.logprobs ? ", or shorten the text, or its windows (-c)"
                     : fmt::format(", or shorten the context (-c, -n, the prompt has {} tokens)", r.n_prompt);
  fail(ErrorKind::kDoesNotFit, "{} tokens need {} of {} memory, {} is allowed; {}", plan.context,
       format_bytes(need), tier, format_bytes(limit), help);
}

KvShape kv_shape(const ModelConfig& c) {
  KvShape shape;
  shape.n_layers = c.n_layers;
  shape.n_heads = static_cast<int32_t>(c.n_heads);
  shape.n_kv_heads = static_cast<int32_t>(c.n_kv_heads);
  shape.head_dim = static_cast<int32_t>(c.head_dim);
  shape.window = c.sliding_window;
  shape.eviction_head = c.eviction_head;
  shape.spans = c.dual_chunk.spans;
  shape.scaled_from = c.dual_chunk.scaled_from;
  return shape;
}

// Guesses that turn out wrong must leave no trace in what later tokens attend.
std::string_view why_no_drafts(const SessionOptions& o) {
  const SelectionOptions& s = o.selection;
  if (o.audit > 0) return "--audit measures steps one by one";
  if (s.reuses()) return "a list that is kept (--reuse) would depend on them";
  if (s.miss_cap >= 0) return "what may be fetched (--miss-cap) would depend on them";
  if (s.share_layers > 1) return "layers that share lists (--share-layers) take tokens one by one";
  if (o.host_attention != HostAttention::kOff) return "--host-attention takes tokens one by one";
  if (o.imposed_hit_rate >= 0) return "made-up selections have nothing to guess from";
  return {};
}

int64_t resolve_draft(SessionPlan& plan) {
  if (plan.options.draft == DraftMode::kOff) return 0;
  const std::string_view why = why_no_drafts(plan.options);
  if (why.empty()) return plan.options.draft_max;
  plan.notes.push_back(fmt::format("--draft: of no use, as {}.", why));
  plan.options.draft = DraftMode::kOff;
  return 0;
}

}  // namespace

KvSettings kv_settings(const SessionPlan& plan, const ModelConfig& config) {
  const SessionOptions& o = plan.options;
  const SelectionOptions& from = o.selection;
  const auto chunks = [&](int64_t tokens) {
    return (tokens + from.chunk_size - 1) / from.chunk_size;
  };
  KvSettings s;
  s.kind = o.attention == AttentionMode::kDense ? StoreKind::kDense : StoreKind::kTiered;
  const bool behind_prefix = plan.n_prefix > 0;
  const bool prefills = plan.continued > 0 || (plan.prefills && !behind_prefix);
  s.select_prefill = o.prefill == PrefillMode::kSelect && prefills;
  s.continued = std::min(plan.continued, kContinuedRun);
  s.audit = o.audit > 0;
  s.capacity = behind_prefix ? plan.n_prefix : plan.context;
  s.behind = plan.context - s.capacity;
  s.decodes = !plan.is_prefix;
  if (plan.maps_file) {
    s.capacity = (plan.context + kTokensPerPages - 1) / kTokensPerPages * kTokensPerPages;
  }
  s.prompt = behind_prefix ? 0 : plan.n_prompt;
  // More than everything that is selected from is everything.
  const int64_t reach = plan.continued > 0 ? plan.context : plan.n_prompt;
  s.prefill_budget = o.prefill_budget == kBudgetAll ? reach : std::min(o.prefill_budget, reach);

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
  s.reserves = plan.backend == BackendKind::kCuda;
  s.together = plan.together;
  s.attend_places = plan.attend_places;
  return s;
}

KvLayout kv_layout(const SessionPlan& plan, const ModelConfig& config) {
  return KvLayout(kv_shape(config), kv_settings(plan, config));
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

void check_limits(const PlanRequest& r, const SessionPlan& plan) {
  const MemoryReport& m = plan.memory;
  if (r.options.device_memory > 0 && m.device.total() > r.options.device_memory) {
    does_not_fit(r, plan, "device", "--device-memory", m.device.total(), r.options.device_memory);
  }
  if (r.options.host_memory > 0 && m.host.total() > r.options.host_memory) {
    does_not_fit(r, plan, "host", "--host-memory", m.host.total(), r.options.host_memory);
  }
  // What this process holds already (weights, prompt) is not to be found again.
  const int64_t available = cpu::memory_of_this_process_bytes();
  const int64_t usable = usable_device_bytes(r);
  if (!m.one_memory && usable > 0 && m.device.total() > usable) {
    does_not_fit(r, plan, "device", "--device-memory", m.device.total(), usable);
  }
  if (r.this_machine && m.resident() > available) {
    fail(ErrorKind::kDoesNotFit,
         "{} tokens need {} of memory in all, this machine has {} left; shorten the context (-c, -n, "
         "the prompt has {} tokens){}{}",
         plan.context, format_bytes(m.resident()), format_bytes(available), r.n_prompt,
         to_leave_host(plan, "host"),
         plan.options.attention == AttentionMode::kDense ? ", or use --attention shadow" : "");
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
  plan.prefills = !r.restored;
  plan.maps_file = r.restored && r.n_prompt >= kMappedTokens && r.backend == BackendKind::kCpu;
  plan.logprobs = r.logprobs;
  plan.backend = r.backend;
  const bool is_cuda = r.backend == BackendKind::kCuda;
  const int64_t places = is_cuda ? cuda::Stream::kTogether : cpu::Queue::kTogether;
  const int64_t most = is_cuda ? places : static_cast<int64_t>(cpu::kScoredTogether);
  plan.together = std::clamp<int64_t>(r.n_sequences, 1, most);
  plan.attend_places = places;  // tokens of one sequence that follow each other attend at once too
  plan.context = resolve_context(r, plan);
  plan.options.context = plan.context;
  plan.long_rope = r.config.rope.is_long(plan.context);
  const int64_t short_tokens = r.config.rope.original_max_position;
  if (plan.long_rope && r.n_prompt <= short_tokens && r.n_sequences == 0 && !r.restored) {
    plan.notes.push_back(fmt::format(
        "LongRoPE: the context has room for {} tokens, so all of it is turned by the factors for long ones, the "
        "prompt's {} tokens too; those for short ones end at {} (-c).",
        plan.context, r.n_prompt, short_tokens));
  }
  plan.dual_chunk = r.config.dual_chunk;
  plan.weights = kept_weights(r.config).text;
  plan.options.prefill = resolve_prefill(r);
  resolve_budget(r, plan.options.selection);
  check_composition(plan.options.selection);
  plan.states_on_host = states_belong_on_host(r, plan);
  if (r.options.hidden_home == HiddenHome::kHost && plan.prefills && !plan.states_on_host) {
    plan.notes.push_back(r.logprobs ? "--hidden-home host: of no use, as every token's state is wanted at the end."
                                    : "--hidden-home host: of no use on a CPU.");
  }
  resolve_keys(r, plan);
  check_codecs(plan.options.selection, r.config);
  check_host_attention(r, plan);
  check_dual_chunk(r, plan);
  check_prefill_budget(r, plan);
  resolve_homes(r, plan);
  plan.continued = resolve_continued(r, plan);
  plan.draft = resolve_draft(plan);
  plan.memory = count_memory(r, plan);
  if (!r.restored) note_unused(asked.options, plan.options, plan.notes);
  if (r.options.strict && !plan.notes.empty()) {
    fail(ErrorKind::kUsage, "{} (--strict)", plan.notes.front());
  }
  return plan;
}

}  // namespace tiercel
