// From what the user asked for to what will be done: options resolved, memory counted, limits
// checked. Allocates nothing; config.json is enough.
#pragma once

#include "engine/config.h"
#include "engine/session.h"
#include "offload/layout.h"

namespace tiercel {

// A prompt up to this length, or one whose dense attention costs at most this many times its linear
// layers, is prefilled densely under --prefill auto.
inline constexpr int64_t kDensePrefillTokens = 32768;
inline constexpr double kDensePrefillRatio = 8;

// A restored session's planes are as far apart as lets a file's pages be mapped to them, where it
// has so many tokens.
inline constexpr int64_t kMappedTokens = 8192, kTokensPerPages = 2048;

KvShape kv_shape(const ModelConfig& config);
KvSettings kv_settings(const SessionPlan& plan, const ModelConfig& config);

struct PlanRequest {
  const ModelConfig& config;
  BackendKind backend = BackendKind::kCpu;
  int64_t weight_bytes = 0;      // as bf16
  bool weights_resident = true;  // they are part of what this process holds already
  SessionOptions options;
  int64_t n_prompt = 0;
  int64_t n_new = 0;      // -1: as many as the context holds
  bool logprobs = false;  // perplexity needs logits for many rows
  bool restored = false;  // the prompt comes from a saved session: nothing is prefilled
  int n_threads = 1;
  int64_t device_free_bytes = 0;  // of a CUDA device, beside the weights; 0: unknown
};

// Bytes of one plan. The process itself is taken from what it holds right now, without the weights.
MemoryReport count_memory(const PlanRequest& request, const SessionPlan& plan);

// Throws Error(kUsage) for options that contradict each other or the model. Checks no limit.
SessionPlan make_plan(const PlanRequest& request);

// Throws Error(kDoesNotFit) when the plan exceeds --device-memory, --host-memory or what the
// machine has left; the message names the flag that would help.
void check_limits(const PlanRequest& request, const SessionPlan& plan);

}  // namespace tiercel
