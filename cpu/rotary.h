// cos and sin of one position, for the ops that turn keys or turn them back.
#pragma once

#include "cpu/elementwise_levels.h"
#include "cpu/isa.h"
#include "engine/base/check.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

inline constexpr int64_t kMaxRopeHalf = 256;  // head_dim <= 512

const ElementwiseLevel& elementwise_level(Isa isa);

// cosines and sines: [half]
inline void rope_angles(const ElementwiseLevel& level, const RopeView& rope, int64_t position,
                        float* cosines, float* sines) {
  DCHECK(rope.half <= kMaxRopeHalf && position >= 0 && position < kRopeFine * rope.n_coarse);
  const int64_t coarse = position / kRopeFine * rope.half;
  const int64_t fine = position % kRopeFine * rope.half;
  level.add_angles(rope.coarse_cos + coarse, rope.coarse_sin + coarse, rope.fine_cos + fine,
                   rope.fine_sin + fine, rope.half, cosines, sines);
}

}  // namespace tiercel::cpu
