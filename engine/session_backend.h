// What sessions and batches of one backend have in common.
#pragma once

#include <string>

#include "engine/base/check.h"
#include "engine/base/ops.h"
#include "engine/config.h"
#include "engine/options.h"
#include "engine/weights.h"
#include "offload/kv_store.h"

namespace tiercel {

// The queues of a session or a batch, and what it computes with; all outlive it.
template <typename Device, typename Host>
struct SessionBackend {
  Device& device;
  Device& copy;  // moves bytes beside the device queue
  Device& side;  // makes low-rank keys beside it
  Device& upload;  // brings weights from host memory beside it
  Device& states;  // brings hidden states of prompts from there, and takes them back
  Host& host;
  const Weights& weights;
  int64_t weight_bytes = 0;  // on the device
  RopeView rope;        // as the plan has it
  RopeView short_rope;  // of a batch's sequences whose contexts are no long ones; else the same
  std::string description;
  HostWorker* worker = nullptr;  // where the layout has one
};

// Throws Error(kUsage) for an id outside the vocabulary.
inline void check_token(const ModelConfig& config, int32_t token, int64_t index) {
  if (token >= 0 && token < config.vocab_size) return;
  fail(ErrorKind::kUsage, "token {} at index {}: the vocabulary has {} tokens", token, index,
       config.vocab_size);
}

inline SelectionReport report_of(const SelectionCounters& c) {
  SelectionReport report;
  report.steps = c.steps;
  report.selected_chunks = c.selected_chunks;
  report.hit_chunks = c.hit_chunks;
  report.fetched_bytes = c.fetched_bytes;
  report.decisions = c.decisions;
  report.reused = c.reused;
  report.host_layers = c.host_layers;
  report.tried_fetch_seconds = c.tried_fetch_seconds;
  report.tried_host_seconds = c.tried_host_seconds;
  return report;
}

}  // namespace tiercel
