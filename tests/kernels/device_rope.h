// A rotary table where the device can read it.
#pragma once

#include <vector>

#include "engine/base/rope.h"
#include "tests/kernels/device_vector.h"

namespace tiercel::test {

struct DeviceRope {
  DeviceRope(const std::vector<double>& inv_freq, int64_t n_positions, float still_scale = 1)
      : table(inv_freq, n_positions, still_scale), rope(table.view()) {
    rope.coarse_cos = copy(rope.coarse_cos, rope.n_coarse);
    rope.coarse_sin = copy(rope.coarse_sin, rope.n_coarse);
    rope.fine_cos = copy(rope.fine_cos, kRopeFine);
    rope.fine_sin = copy(rope.fine_sin, kRopeFine);
  }
  RopeView view() const { return rope; }

  const float* copy(const float* from, int64_t n_rows) {
    copies.emplace_back(from, from + n_rows * rope.half);
    return copies.back().data();
  }
  RopeTable table;
  std::vector<DeviceVector<float>> copies;
  RopeView rope;
};

}  // namespace tiercel::test
