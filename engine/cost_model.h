// The least time that a decode step can take: the bytes that it must move, over the bandwidths that
// move them. Kernels, launches and synchronisation come on top.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/config.h"
#include "engine/session.h"

namespace tiercel {

// Bytes per second.
struct Bandwidths {
  double device = 0;  // of the device's memory
  double link = 0;    // between host and device
  double host = 0;    // at which the host attends (HostAttention)
};

// The share of the selected chunks that a selection cache is expected to hold, where nothing was
// measured: ShadowKV's published figure. Ours were 0.41 to 0.73 on real text (tools/JOURNAL.md).
inline constexpr double kExpectedHitRate = 0.6;
// Sequences from which a step may be taken in two micro-batches: fewer are too few to hide behind.
inline constexpr int64_t kLeastToSplit = 4;

// Of one layer: for each sequence, and once for all that are behind one prefix.
struct LayerBytes {
  double device = 0, link = 0, host = 0;
  double shared = 0;
};

// Bytes of one decode step at the planned context.
struct StepBytes {
  int64_t weights = 0;  // of the device, once for all sequences
  int64_t link_weights = 0;  // those that stay in host memory, likewise over the link
  int64_t head = 0;     // of those, what makes logits behind the last layer
  int64_t experts = 0, link_experts = 0;  // of either, what a step reads of in part
  double expert_share = 1;  // of them that one sequence's token reads
  int64_t device = 0;   // of the device, for each sequence: index, attended keys and values, slots
  int64_t link = 0;     // for each sequence: fetched, or sent to the host that attends and back
  int64_t host = 0;     // for each sequence: keys and values that the host attends
  std::vector<LayerBytes> layers;  // the latter three and what is shared, layer by layer
  // Of the device, once for all sequences behind a prefix: its landmarks.
  int64_t shared = 0;

  // Weights that a step of n sequences reads, on average where tokens choose experts independently.
  int64_t weights_read(int64_t n_sequences) const;
  int64_t link_weights_read(int64_t n_sequences) const;
};

// hit_rate: share of the selected chunks that the selection cache holds, 0..1.
StepBytes step_bytes(const ModelConfig& config, const SessionPlan& plan, double hit_rate);

// Seconds of one step of n sequences: fetches (and what the host attends) beside everything else, or after
// it; and in the order of a batch. Per layer, with W to read its weights, A to attend and F to fetch, or
// have attended by the host, for all sequences, that is
//
//   joined   W + max(A, F)     nothing is left to do while the last of the layer is fetched
//   split    max(2W + A, F)    two micro-batches: one is computed while the other one fetches
//
// What sequences behind one prefix share is read as weights are. Those that come over the link are read while
// nothing else is fetched.
struct StepFloor {
  double overlapped = 0, serial = 0;
  bool link_bound = false, host_bound = false;  // overlapped, that takes longest
  double joined = 0, split = 0;
};
StepFloor step_floor(const StepBytes& bytes, const Bandwidths& bandwidths, int64_t n_sequences);

// Whether two micro-batches take less time than one.
bool splitting_gains(const StepBytes& bytes, const Bandwidths& bandwidths, int64_t n_sequences);

}  // namespace tiercel
