#include "engine/session_plan.h"

#include <algorithm>

#include "cpu/queue.h"
#include "cpu/select.h"
#include "cpu/topology.h"
#include "engine/base/check.h"
#include "engine/base/rope.h"
#include "engine/decoder.h"
#include "engine/model.h"

namespace tiercel {
namespace {

std::string gib(int64_t bytes) {
  return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
}

void require(bool ok, const char* flag, const char* expected, int64_t found) {
  if (!ok) fail(ErrorKind::kUsage, "{}: expected {}, found {}", flag, expected, found);
}

void check_ranges(const SessionOptions& o) {
  require(o.chunk_size >= 1 && o.chunk_size <= 128, "--chunk-size", "1 to 128 tokens", o.chunk_size);
  require(o.budget == kBudgetAll || o.budget >= o.chunk_size, "--budget",
          "'all' or at least one chunk of tokens", o.budget);
  require(o.prefill_budget == kBudgetAll || o.prefill_budget >= o.chunk_size, "--prefill-budget",
          "'all' or at least one chunk of tokens", o.prefill_budget);
  require(o.sinks >= 0, "--sinks", "0 or more tokens", o.sinks);
  require(o.recent >= 1, "--recent", "1 or more tokens", o.recent);
  require(o.outliers >= 0, "--outliers", "0 or more chunks", o.outliers);
  require(o.rank >= 1, "--rank", "1 or more", o.rank);
  require(o.audit >= 0, "--audit", "0 or more steps", o.audit);
  require(o.context >= 0, "--ctx-size", "0 or more tokens", o.context);
  require(o.device_memory >= 0, "--device-memory", "0 or more bytes", o.device_memory);
  require(o.host_memory >= 0, "--host-memory", "0 or more bytes", o.host_memory);
  if (!(o.slots >= 1 && o.slots <= 1e6)) {
    fail(ErrorKind::kUsage, "--slots: expected 1 or more budgets, found {}", o.slots);
  }
}

int64_t resolve_context(const PlanRequest& r, SessionPlan& plan) {
  const int64_t limit = r.config.max_position_embeddings;
  int64_t context = r.options.context;
  if (context == 0) {
    context = r.n_new >= 0 ? r.n_prompt + r.n_new : std::max(limit, r.n_prompt + 1);
  } else if (r.n_new >= 0) {
    context = std::min(context, r.n_prompt + r.n_new);
  }
  if (context < r.n_prompt) {
    fail(ErrorKind::kUsage, "the prompt has {} tokens, --ctx-size allows {}", r.n_prompt, context);
  }
  if (limit > 0 && r.n_prompt > limit) {
    const std::string what =
        fmt::format("the prompt has {} tokens, the model was made for {} positions", r.n_prompt,
                    limit);
    if (r.options.strict) fail(ErrorKind::kUsage, "{} (--strict)", what);
    plan.notes.push_back(what + "; answers may be poor.");
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
  if (plan.options.prefill != PrefillMode::kSelect) return;
  const int64_t most =
      cpu::max_prefill_chunks(r.config.n_heads / r.config.n_kv_heads) * r.options.chunk_size;
  const int64_t wanted =
      std::min(r.options.prefill_budget == kBudgetAll ? r.n_prompt : r.options.prefill_budget,
               r.n_prompt);
  if (wanted > most) {
    fail(ErrorKind::kUsage, "--prefill-budget: expected at most {} tokens here, found {}; "
         "--prefill dense sees everything", most, wanted);
  }
}

void resolve_keys(const PlanRequest& r, SessionPlan& plan) {
  SessionOptions& o = plan.options;
  const int64_t width = r.config.kv_width();
  if (o.key_codec == KeyCodec::kAuto) {
    // Too few keys say too little about the directions that later ones will take.
    const bool few = r.n_prompt < 4 * std::min(o.rank, width);
    o.key_codec = o.budget == kBudgetAll || few ? KeyCodec::kExact : KeyCodec::kLowRank;
  }
  if (o.key_codec == KeyCodec::kLowRank && o.rank > width) {
    if (r.options.rank != SessionOptions{}.rank) {
      plan.notes.push_back(
          fmt::format("--rank {} is more than the {} key channels of a layer; {} is used.", o.rank,
                      width, width));
    }
    o.rank = width;
  }
}

// What to say when a tier is too small: the flag to raise, and what would need less.
[[noreturn]] void does_not_fit(const PlanRequest& r, const SessionPlan& plan, const char* tier,
                               const char* flag, int64_t need, int64_t limit) {
  std::string help = fmt::format("raise {}", flag);
  if (plan.options.attention == AttentionMode::kDense && std::string_view(flag) != "--host-memory") {
    help += ", or use --attention shadow";
  } else if (plan.options.attention == AttentionMode::kShadow) {
    if (plan.options.key_codec == KeyCodec::kLowRank) help += ", lower --rank or --slots";
    if (plan.options.audit > 0) help += ", drop --audit (it keeps exact keys)";
  }
  fail(ErrorKind::kDoesNotFit,
       "{} tokens need {} of {} memory, {} is allowed; {}, or shorten the context (-c, -n, the prompt "
       "has {} tokens)",
       plan.context, gib(need), tier, gib(limit), help, r.n_prompt);
}

}  // namespace

KvShape kv_shape(const ModelConfig& c) {
  KvShape shape;
  shape.n_layers = c.n_layers;
  shape.n_heads = static_cast<int32_t>(c.n_heads);
  shape.n_kv_heads = static_cast<int32_t>(c.n_kv_heads);
  shape.head_dim = static_cast<int32_t>(c.head_dim);
  shape.window = c.sliding_window;
  return shape;
}

KvSettings kv_settings(const SessionPlan& plan, const ModelConfig& config) {
  const SessionOptions& o = plan.options;
  KvSettings s;
  s.kind = o.attention == AttentionMode::kDense ? StoreKind::kDense : StoreKind::kTiered;
  s.exact_keys = o.key_codec == KeyCodec::kExact;
  s.select_prefill = o.prefill == PrefillMode::kSelect;
  s.audit = o.audit > 0;
  s.capacity = plan.context;
  s.prompt = plan.n_prompt;
  s.budget = o.budget == kBudgetAll ? plan.context : o.budget;
  s.prefill_budget = o.prefill_budget == kBudgetAll ? plan.n_prompt : o.prefill_budget;
  s.chunk_tokens = static_cast<int32_t>(o.chunk_size);
  s.sinks = (o.sinks + o.chunk_size - 1) / o.chunk_size * o.chunk_size;
  s.recent = o.recent;
  s.outliers = o.outliers;
  s.rank = std::min(o.rank, config.kv_width());
  s.slots = o.slots;
  s.imposed_hit_rate = o.imposed_hit_rate;
  s.overlap = plan.backend == BackendKind::kCuda;
  s.replay = s.overlap && !o.no_graphs;
  return s;
}

MemoryReport count_memory(const PlanRequest& r, const SessionPlan& plan) {
  const KvLayout layout(kv_shape(r.config), kv_settings(plan, r.config));
  const PurposeBytes device = layout.device_bytes(), host = layout.host_bytes();
  auto of = [](const PurposeBytes& bytes, Purpose purpose) {
    return bytes[static_cast<size_t>(purpose)];
  };
  const bool cuda = r.backend == BackendKind::kCuda;
  const DecoderLayout decoder(r.config, r.n_prompt, r.logprobs, cuda);
  MemoryReport m;
  m.one_memory = !cuda;
  m.device.weights = r.weight_bytes;
  m.device.keys = of(device, Purpose::kKeys);
  m.device.landmarks = of(device, Purpose::kLandmarks);
  m.device.slots = of(device, Purpose::kSlots);
  m.device.exact = of(device, Purpose::kExact);
  m.device.activations = of(device, Purpose::kActivations) +
                         decoder.bytes() +
                         (cuda ? cuda_scratch_bytes(r.config, plan) : 0) +
                         static_cast<int64_t>(RopeTable::bytes(r.config.head_dim / 2, plan.context));
  m.host.values = of(host, Purpose::kValues);
  m.host.keys = of(host, Purpose::kKeys);
  m.host.staging = decoder.host_bytes();
  const int64_t resident_weights = r.weights_resident ? r.weight_bytes : 0;
  m.process = std::max<int64_t>(0, cpu::current_rss_bytes() - resident_weights) +
              r.n_threads * static_cast<int64_t>(cpu::kScratchBytes);
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
  const int64_t available = cpu::available_memory_bytes() + cpu::current_rss_bytes();
  if (!m.one_memory && r.device_free_bytes > 0 &&
      m.device.total() - m.device.weights > r.device_free_bytes) {
    does_not_fit(r, plan, "device", "--device-memory", m.device.total(),
                 m.device.weights + r.device_free_bytes);
  }
  if (m.resident() > available) {
    fail(ErrorKind::kDoesNotFit,
         "{} tokens need {} of memory in all, this machine has {} left; shorten the context (-c, -n, "
         "the prompt has {} tokens){}",
         plan.context, gib(m.resident()), gib(available), r.n_prompt,
         plan.options.attention == AttentionMode::kDense ? " or use --attention shadow" : "");
  }
}

SessionPlan make_plan(const PlanRequest& r) {
  check_ranges(r.options);
  if (r.n_prompt < 1) fail(ErrorKind::kUsage, "the prompt is empty");
  if (r.n_new < -1) {
    fail(ErrorKind::kUsage, "-n: expected -1 (until the end) or a count, found {}", r.n_new);
  }
  SessionPlan plan;
  plan.options = r.options;
  plan.n_prompt = r.n_prompt;
  plan.logprobs = r.logprobs;
  plan.backend = r.backend;
  plan.context = resolve_context(r, plan);
  plan.options.context = plan.context;
  plan.options.prefill = resolve_prefill(r);
  check_prefill_budget(r, plan);
  resolve_keys(r, plan);
  if (plan.options.audit > 0 && plan.options.attention == AttentionMode::kDense) {
    plan.notes.push_back("--audit measures selection; --attention dense selects nothing.");
    plan.options.audit = 0;
  }
  plan.memory = count_memory(r, plan);
  return plan;
}

}  // namespace tiercel
