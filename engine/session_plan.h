// From what the user asked for to what will be done: options resolved, memory counted, limits
// checked. Allocates nothing; config.json is enough.
#pragma once

#include "engine/batch.h"
#include "engine/config.h"
#include "engine/session.h"
#include "offload/layout.h"

namespace tiercel {

// A prompt up to this length, or one whose dense attention costs at most this many times its linear
// layers, is prefilled densely under --prefill auto.
inline constexpr int64_t kDensePrefillTokens = 32768;
inline constexpr double kDensePrefillRatio = 8;

// Up to so many tokens of a prompt have their hidden states on the device unless asked otherwise: in host memory
// they would take no less of it (PromptStatesLayout).
inline constexpr int64_t kLeastStatesOnHost = 2 * kPrefillChunk;

// A restored session's planes are as far apart as lets a file's pages be mapped to them, where it
// has so many tokens.
inline constexpr int64_t kMappedTokens = 8192, kTokensPerPages = 2048;

KvSettings kv_settings(const SessionPlan& plan, const ModelConfig& config);
KvLayout kv_layout(const SessionPlan& plan, const ModelConfig& config);

struct PlanRequest {
  const ModelConfig& config;
  BackendKind backend = BackendKind::kCpu;
  int64_t weight_bytes = 0;      // without those that stay in host memory beside a GPU
  bool weights_resident = true;  // those in main memory are part of what this process holds already
  SessionOptions options;
  int64_t n_prompt = 0;
  int64_t n_new = 0;      // -1: as many as the context holds
  bool logprobs = false;  // perplexity needs logits for many rows
  bool restored = false;  // the prompt comes from a saved session: nothing is prefilled
  int64_t n_sequences = 0;  // of this size in a batch; 0: a session of its own
  int64_t n_behind = 0;     // tokens that each of them has behind a prompt that all share; 0: none do
  int n_threads = 1;
  bool this_machine = true;  // what is available here is a limit too
  int64_t device_free_bytes = 0;  // of a CUDA device, beside the weights; 0: unknown
};

// Bytes of one plan. The process itself is taken from what it holds right now, without the weights.
MemoryReport count_memory(const PlanRequest& request, const SessionPlan& plan);

// Of a batch: bytes that do not depend on how many sequences there are; and of one sequence.
struct SharedBytes {
  int64_t device = 0, host = 0;
};
SharedBytes shared_bytes(const PlanRequest& request, const SessionPlan& plan);
SequenceBytes sequence_bytes(const PlanRequest& request, const SessionPlan& plan);

// Of a device's free memory nothing is planned with so much, or with 1 %, whichever is more: libraries,
// kernels that are loaded as they are first used, recorded steps and pages that are not full took 0.13 to
// 0.26 GiB beside plans of 20 to 47 GiB.
inline constexpr int64_t kDeviceReserve = int64_t{512} << 20;

// Bytes of the device, weights included, that a plan may take as far as what is free is known; 0: it is not.
int64_t usable_device_bytes(const PlanRequest& request);
// The same within --device-memory; 0: no limit is known.
int64_t device_limit(const PlanRequest& request);

// Whether keys by a basis would say little, for a prompt so short.
bool too_few_for_basis(const PlanRequest& request);

// Throws Error(kUsage) for options that contradict each other or the model. Checks no limit.
SessionPlan make_plan(const PlanRequest& request);

// Throws Error(kDoesNotFit) when the plan exceeds --device-memory, --host-memory or what the
// machine has left; the message names the flag that would help.
void check_limits(const PlanRequest& request, const SessionPlan& plan);

}  // namespace tiercel
