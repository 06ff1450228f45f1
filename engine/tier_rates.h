// How fast this machine's tiers are, for the cost model (engine/cost_model.h): measured where a
// decision needs it, with the ops and the memory that a session uses.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>

#include "engine/backend.h"
#include "engine/cost_model.h"
#include "offload/arena.h"

namespace tiercel {

// A device's caches hold less; on a link of 50 GB/s it takes 1.3 ms.
inline constexpr int64_t kMeasuredBytes = int64_t{64} << 20;

// Bytes copied per second, at best. Several copies share one wait, which takes as long as a copy does on
// a fast device.
template <typename Queue>
double copy_rate(Queue& queue, const void* source, void* target, int64_t bytes) {
  constexpr int kTries = 3, kCopies = 4;
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kTries; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (int j = 0; j < kCopies; ++j) copy_block(queue, source, target, bytes);
    queue.finish();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  return static_cast<double>(kCopies * bytes) / best;
}

// Takes, for as long as it runs, twice so many bytes of the device and once of the host, and waits for
// both queues. bytes: at least 1.
template <Backend Device, HostTier Host>
Bandwidths measure_bandwidths(Device& device, Device& copy, Host& host, int64_t bytes) {
  const TierBlock source(device, bytes), target(device, bytes);
  const TierBlock home(host, bytes);
  // A page that nobody has written may be one page of zeros, for ever so many.
  copy_rate(device, target.address(), source.address(), bytes);
  copy_rate(copy, source.address(), home.address(), bytes);
  // The device reads and writes every byte.
  return {2 * copy_rate(device, source.address(), target.address(), bytes),
          copy_rate(copy, home.address(), target.address(), bytes)};
}

}  // namespace tiercel
