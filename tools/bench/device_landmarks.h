// The landmarks that selection is measured on: eight KV heads of 128, chunks of eight tokens.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tools/bench/device_harness.h"

namespace tiercel::bench {

inline constexpr int32_t kHeadDim = 128, kChunkTokens = 8;
inline constexpr int64_t kGroup = 4;

inline int64_t kv_heads(const Device& device) { return device.size(8, 2); }

// Landmarks of n_chunks chunks, as many planes of them as make the caches forget.
class Landmarks {
 public:
  Landmarks(Device& device, int64_t n_chunks)
      : plane_(kv_heads(device) * n_chunks * kHeadDim),
        n_planes_(device.size(std::max<int64_t>(2, kColdBytes / (2 * plane_)), 1)),
        noise_(device, n_planes_ * plane_) {}
  const bf16* plane(int64_t turn) const { return noise_.data() + turn % n_planes_ * plane_; }
  double plane_bytes() const { return 2.0 * static_cast<double>(plane_); }

 private:
  int64_t plane_, n_planes_;
  Noise noise_;
};

}  // namespace tiercel::bench
