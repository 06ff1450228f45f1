// The least time that a decode step can take: the bytes that it must move, over the bandwidths that
// move them. Kernels, launches and synchronisation come on top.
#pragma once

#include <cstdint>

#include "engine/config.h"
#include "engine/session.h"

namespace tiercel {

// Bytes per second.
struct Bandwidths {
  double device = 0;  // of the device's memory
  double link = 0;    // between host and device
};

// Bytes of one decode step at the planned context.
struct StepBytes {
  int64_t weights = 0;  // of the device, once for all sequences
  int64_t device = 0;   // of the device, for each sequence: index, attended keys and values, slots
  int64_t link = 0;     // fetched for each sequence
};

// hit_rate: share of the selected chunks that the selection cache holds, 0..1.
StepBytes step_bytes(const ModelConfig& config, const SessionPlan& plan, double hit_rate);

// Seconds of one step of n sequences: fetches beside everything else, or after it.
struct StepFloor {
  double overlapped = 0, serial = 0;
  bool link_bound = false;  // overlapped, the link takes longer than the device
};
StepFloor step_floor(const StepBytes& bytes, const Bandwidths& bandwidths, int64_t n_sequences);

}  // namespace tiercel
