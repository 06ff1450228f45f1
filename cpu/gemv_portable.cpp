// Skinny products in plain C++, eight lanes.
#include <bit>

#include "cpu/gemm.h"
#include "engine/base/dtype.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kLanes = 8;

float widen(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

float dot(const uint16_t* w, const float* x, int64_t k) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += widen(w[i + l]) * x[i + l];
  }
  for (; i < k; ++i) lanes[i % kLanes] += widen(w[i]) * x[i];
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
         ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

}  // namespace

void multiply_skinny_portable(const SkinnyProduct& p) {
  for (int64_t i = 0; i < p.n_rows * p.k; ++i) p.scratch[i] = widen(p.x[i]);
  for (int64_t n = p.first; n < p.end; ++n) {
    for (int64_t row = 0; row < p.n_rows; ++row) {
      float value = dot(p.weight + n * p.k, p.scratch + row * p.k, p.k);
      if (p.bias != nullptr) value += widen(p.bias[n]);
      if (p.out_f32) {
        float& out = static_cast<float*>(p.out)[row * p.n + n];
        out = p.accumulate ? value + out : value;
      } else {
        uint16_t& out = static_cast<uint16_t*>(p.out)[row * p.n + n];
        out = bf16(p.accumulate ? value + widen(out) : value).bits;
      }
    }
  }
}

}  // namespace tiercel::cpu
