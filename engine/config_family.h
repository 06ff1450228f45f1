// What config.json leaves unsaid: the defaults of each family of models, and bounds of its numbers.
#pragma once

#include <cstdint>
#include <limits>

#include "engine/config.h"

namespace tiercel {

inline constexpr int64_t kMaxPosition = int64_t{1} << 40;
// Generous bounds: ten times the largest published model, small enough that no product of three of
// them leaves 64 bits.
inline constexpr int64_t kMaxLayers = 2048;
inline constexpr int64_t kMaxHeads = 4096;
inline constexpr double kHuge = std::numeric_limits<float>::max();
inline constexpr double kTiny = std::numeric_limits<float>::min();

// What the configuration classes of transformers 5 assume when a key is absent.
struct Family {
  Architecture architecture;
  const char* class_name;
  const char* model_type;
  int64_t n_kv_heads;  // 0: as many as query heads
  int64_t head_dim;    // 0: hidden / n_heads
  int64_t max_position_embeddings;
  double rms_eps = 1e-6;
  double partial_rotary_factor = 0;  // 0: all of head_dim turns, and nothing else is supported
  double rope_theta = 10000.0;
};

}  // namespace tiercel
