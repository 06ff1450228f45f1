#include "engine/batch.h"

#include <algorithm>

#include "cpu/topology.h"
#include "engine/append_pass.h"
#include "engine/base/check.h"
#include "engine/batch_plan.h"
#include "engine/model.h"
#include "engine/plan_checks.h"

namespace tiercel {

BatchPlan Batch::plan(const Model& model, const SessionOptions& options, int64_t n_sequences,
                      int64_t max_prompt, int64_t max_new, int64_t max_behind) {
  return plan_batch(dynamic_cast<const LoadedModel&>(model).plan_request(), options, n_sequences,
                    max_prompt, max_new, max_behind);
}

int64_t Batch::largest(const Model& model, const BatchPlan& plan, int64_t n_prompt,
                       int64_t n_new, int64_t n_prefix) {
  const PlanRequest request = dynamic_cast<const LoadedModel&>(model).plan_request();
  return largest_in_batch(request, plan, n_prompt, n_new, n_prefix);
}

std::unique_ptr<Batch> Batch::open(std::shared_ptr<Model> model, const BatchPlan& plan) {
  auto loaded = std::dynamic_pointer_cast<LoadedModel>(std::move(model));
  CHECK(loaded != nullptr);
  LoadedModel& backend = *loaded;
  return backend.open_batch(std::move(loaded), plan);
}

BatchPlan plan_batch(PlanRequest request, const SessionOptions& options, int64_t n_sequences,
                     int64_t max_prompt, int64_t max_new, int64_t max_behind) {
  if (n_sequences < 1 || n_sequences > kMaxSequences) {
    fail(ErrorKind::kUsage, "--parallel: expected 1 to {} sequences, found {}", kMaxSequences,
         n_sequences);
  }
  request.options = options;
  request.options.audit = 0;
  request.n_prompt = max_prompt;
  request.n_new = max_new;
  request.n_sequences = n_sequences;
  request.n_behind = max_behind;
  BatchPlan plan;
  plan.key_codec = options.selection.key_codec;
  plan.prefill = options.prefill;
  plan.n_sequences = n_sequences;
  plan.largest = make_plan(request);
  const SharedBytes shared = shared_bytes(request, plan.largest);
  plan.shared_device = shared.device;
  plan.shared_host = shared.host;
  plan.device_limit = device_limit(request);
  plan.host_limit = options.host_memory;
  // One sequence must fit; how many do at a time is seen when they come.
  request.n_sequences = 1;
  SessionPlan one = plan.largest;
  one.memory = count_memory(request, one);
  check_limits(request, one);
  if (!request.this_machine) return plan;
  const int64_t available = cpu::memory_of_this_process_bytes();
  const int64_t left = std::max<int64_t>(available - one.memory.process, 1);  // 0 would be no limit
  if (one.memory.one_memory) {
    plan.memory_limit = left;
  } else if (plan.host_limit == 0 || plan.host_limit > left) {
    plan.host_limit = left;
  }
  return plan;
}

SessionPlan plan_in_batch(PlanRequest request, const BatchPlan& plan, int64_t n_prompt,
                          int64_t n_new, double slots) {
  const SessionPlan& largest = plan.largest;
  if (n_prompt > largest.n_prompt || n_prompt + n_new > largest.context) {
    fail(ErrorKind::kUsage,
         "{} prompt tokens and {} new ones: the batch was planned for prompts of {} and contexts of "
         "{} tokens",
         n_prompt, n_new, largest.n_prompt, largest.context);
  }
  request.options = largest.options;
  request.options.prefill = plan.prefill;
  // Homes are the largest one's, and what they allow has been judged with it.
  request.options.value_home = ValueHome::kHost;
  request.options.host_attention = HostAttention::kOff;
  request.options.hidden_home = HiddenHome::kDevice;
  request.options.context = 0;  // its own
  if (slots > 0) request.options.selection.slots = slots;
  request.n_prompt = n_prompt;
  request.n_new = n_new;
  request.n_sequences = plan.n_sequences;
  KeyCodec& codec = request.options.selection.key_codec;
  if (plan.key_codec == KeyCodec::kAuto && codec == KeyCodec::kLowRank &&
      too_few_for_basis(request)) {
    codec = KeyCodec::kExact;
  }
  SessionPlan sequence = make_plan(request);
  sequence.options.value_home = largest.options.value_home;
  sequence.options.host_attention = largest.options.host_attention;
  sequence.options.hidden_home = largest.options.hidden_home;
  sequence.device_layers = largest.device_layers;
  if (sequence.options.selection.key_codec != largest.options.selection.key_codec) {
    request.options = sequence.options;
    check_host_attention(request, sequence);
  }
  sequence.states_on_host = largest.states_on_host && (largest.options.hidden_home == HiddenHome::kHost ||
                                                       n_prompt > kLeastStatesOnHost);
  return sequence;
}

SessionPlan plan_prefix_in_batch(const PlanRequest& request, const BatchPlan& plan,
                                 int64_t n_tokens) {
  SessionPlan prefix = plan_in_batch(request, plan, n_tokens, 0);
  prefix.is_prefix = true;
  return prefix;
}

namespace {

// Tokens of a text behind a prefix that are prefilled at once: no more than there are rows for of a prompt; none where
// they are few, or there is no memory for what they take beside prefix and sequence.
int64_t resolve_continued(const PlanRequest& request, const BatchPlan& plan, const SessionPlan& prefix,
                          const SessionPlan& behind) {
  SessionPlan with = behind;
  with.continued = std::min({behind.n_prompt, kSegmentTokens, plan.largest.n_prompt});
  if (with.continued < least_segments(behind.options) || !kv_layout(with, request.config).continues) return 0;
  const SequenceBytes taken = sequence_bytes(request, prefix);
  return room_for(plan, sequence_bytes(request, with), taken.device, taken.host) ? with.continued : 0;
}

}  // namespace

SessionPlan plan_behind_prefix(const PlanRequest& request, const BatchPlan& plan,
                               const SessionPlan& prefix, int64_t n_prompt, int64_t n_new,
                               double slots) {
  const ModelConfig& config = request.config;
  CHECK(prefix.is_prefix);
  const int64_t context = prefix.context + n_prompt + n_new;
  if (context > plan.largest.context) {
    fail(ErrorKind::kUsage,
         "{} prompt tokens behind {} and {} new ones: the batch was planned for contexts of {} tokens",
         n_prompt, prefix.context, n_new, plan.largest.context);
  }
  if (config.rope.is_long(context) != prefix.long_rope) {
    fail(ErrorKind::kUsage,
         "{} tokens behind a shared text of {}: in a context of more than {} this model turns all keys "
         "otherwise (LongRoPE), those of the text too; ask for fewer tokens, or do not share it",
         n_prompt + n_new, prefix.context, config.rope.original_max_position);
  }
  SessionPlan behind = prefix;
  behind.is_prefix = false;
  behind.n_prefix = prefix.context;
  behind.n_prompt = n_prompt;
  behind.context = behind.options.context = context;
  behind.continued = resolve_continued(request, plan, prefix, behind);
  if (slots > 0) behind.options.selection.slots = slots;  // the load decides them, and not how it is prefilled
  return behind;
}

int64_t largest_in_batch(const PlanRequest& request, const BatchPlan& plan, int64_t n_prompt,
                         int64_t n_new, int64_t n_prefix) {
  SessionPlan one;
  SequenceBytes taken;
  if (n_prefix > 0) {
    const SessionPlan prefix = plan_prefix_in_batch(request, plan, n_prefix);
    taken = sequence_bytes(request, prefix);
    if (!room_for(plan, taken, 0, 0)) return 0;
    one = plan_behind_prefix(request, plan, prefix, n_prompt, n_new, 0);
  } else {
    one = plan_in_batch(request, plan, n_prompt, n_new);
  }
  const SequenceBytes bytes = sequence_bytes(request, one);
  int64_t n = 0;
  while (n < plan.n_sequences && room_for(plan, bytes, taken.device, taken.host)) {
    ++n;
    taken.device += bytes.device;
    taken.host += bytes.host;
  }
  return n;
}

bool room_for(const BatchPlan& plan, const SequenceBytes& bytes, int64_t device_taken,
              int64_t host_taken) {
  const int64_t device = plan.shared_device + device_taken + bytes.device + bytes.prefill;
  const int64_t host = plan.shared_host + host_taken + bytes.host + bytes.host_prefill;
  if (plan.device_limit > 0 && device > plan.device_limit) return false;
  if (plan.host_limit > 0 && host > plan.host_limit) return false;
  return plan.memory_limit == 0 || device + host <= plan.memory_limit;
}

}  // namespace tiercel
