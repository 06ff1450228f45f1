// How much of each tier's memory a plan takes, and for what.
#include <algorithm>

#include "cpu/queue.h"
#include "cpu/topology.h"
#include "engine/base/rope.h"
#include "engine/batch_layout.h"
#include "engine/decoder.h"
#include "engine/model.h"
#include "engine/prompt_lookup.h"
#include "engine/session_plan.h"
#include "engine/weights.h"

namespace tiercel {
namespace {

// Beside weights and what stores take.
SharedBytes activation_bytes(const PlanRequest& r, const SessionPlan& plan) {
  const bool cuda = r.backend == BackendKind::kCuda;
  SharedBytes bytes;
  if (r.n_sequences > 0) {
    const BatchLayout batch(r.config, plan.n_prompt, plan.context, r.n_sequences, plan.draft, cuda);
    bytes = {batch.device_bytes(), batch.host_bytes()};
  } else {
    const DecoderLayout decoder(r.config, plan, cuda);
    bytes = {decoder.bytes(), decoder.host_bytes()};
  }
  if (cuda) bytes.device += cuda_scratch_bytes(r.config, plan);
  const auto add_rope = [&](int64_t context) {
    bytes.device += static_cast<int64_t>(RopeTable::bytes(r.config.head_dim / 2, context));
  };
  add_rope(plan.context);
  if (r.n_sequences > 0 && plan.long_rope) add_rope(r.config.rope.original_max_position);
  return bytes;
}

// Of the device: what long texts behind a prompt need beyond what its prefill did, which has been given back by
// then.
int64_t continued_bytes(const PlanRequest& r, const SessionPlan& plan, const KvLayout& layout) {
  if (!layout.continues) return 0;
  const DecoderLayout decoder(r.config, plan, r.backend == BackendKind::kCuda);
  const int64_t step_hidden = kAppendRows * r.config.hidden;
  const int64_t prefill = sum(layout.prefill_bytes()) + (decoder.hidden - step_hidden) * int64_t{sizeof(bf16)};
  const int64_t runs = layout.run_buffers().bytes() + decoder.continued_hidden * int64_t{sizeof(bf16)};
  return std::max<int64_t>(runs - prefill, 0);
}

}  // namespace

SharedBytes shared_bytes(const PlanRequest& r, const SessionPlan& plan) {
  const KvLayout layout = kv_layout(plan, r.config);
  SharedBytes bytes = activation_bytes(r, plan);
  bytes.device += r.weight_bytes + sum(layout.workspace_bytes());
  bytes.host += host_weight_bytes(r.config);
  return bytes;
}

SequenceBytes sequence_bytes(const PlanRequest& r, const SessionPlan& plan) {
  const KvLayout layout = kv_layout(plan, r.config);
  const bool staged = r.backend == BackendKind::kCuda;
  SequenceBytes bytes{.device = sum(layout.held_bytes()), .host = sum(layout.host_bytes())};
  if (plan.n_prefix > 0) {
    if (layout.continues) {
      bytes.prefill = layout.run_buffers().bytes() + BatchLayout::append_bytes(r.config, plan.continued, staged);
    }
    return bytes;
  }
  bytes.prefill = sum(layout.prefill_bytes()) +
                  BatchLayout::prompt_bytes(r.config, plan.n_prompt, staged, plan.states_on_host);
  bytes.host_prefill = BatchLayout::host_prompt_bytes(r.config, plan.n_prompt, plan.states_on_host);
  return bytes;
}

// Of a batch: all its sequences, one of them in prefill; or a prefix, and all of them behind it.
MemoryReport count_memory(const PlanRequest& r, const SessionPlan& plan) {
  const auto layout_of = [&](const SessionPlan& one) {
    return kv_layout(one, r.config);
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
  m.device.activations =
      of(device, Purpose::kActivations) + activations.device + continued_bytes(r, plan, layout);
  m.host.weights = host_weight_bytes(r.config);
  m.host.values = of(host, Purpose::kValues);
  m.host.keys = of(host, Purpose::kKeys);
  m.host.staging = activations.host + of(host, Purpose::kActivations);
  if (r.n_sequences > 0) {
    m.device.activations += BatchLayout::prompt_bytes(r.config, plan.n_prompt, cuda, plan.states_on_host);
    m.host.staging += BatchLayout::host_prompt_bytes(r.config, plan.n_prompt, plan.states_on_host);
  }
  const int64_t main_weights = cuda ? m.host.weights : r.weight_bytes;
  const int64_t resident_weights = r.weights_resident ? main_weights : 0;
  m.process = std::max<int64_t>(0, cpu::current_rss_bytes() - resident_weights) +
              (plan.draft > 0 ? PromptLookup::bytes(plan.context) : 0) +
              (layout.has_worker() || !cuda ? r.n_threads * static_cast<int64_t>(cpu::kScratchBytes) : 0);
  return m;
}

}  // namespace tiercel
