// The row kernels in plain C++. Eight independent lanes where a sum is taken, so that a compiler
// may vectorise it without reordering anything.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "cpu/elementwise_levels.h"
#include "engine/base/dtype.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kLanes = 8;

float widen(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
uint16_t narrow(float value) { return bf16(value).bits; }

float norm_scale(const uint16_t* x, int64_t width, float eps) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += widen(x[i + l]) * widen(x[i + l]);
  }
  for (; i < width; ++i) lanes[0] += widen(x[i]) * widen(x[i]);
  float sum = 0;
  for (float lane : lanes) sum += lane;
  return 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
}

void norm(const uint16_t* x, const uint16_t* weight, const uint16_t* added, uint16_t* out,
          int64_t width, float eps) {
  const float scale = norm_scale(x, width, eps);
  for (int64_t i = 0; i < width; ++i) {
    const float normed = widen(x[i]) * scale * widen(weight[i]);
    out[i] = narrow(added != nullptr ? widen(added[i]) + normed : normed);
  }
}

void swiglu(const uint16_t* gate, const uint16_t* up, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = widen(gate[i]);
    out[i] = narrow(g / (1.0f + std::exp(-g)) * widen(up[i]));
  }
}

void add_angles(const float* ac, const float* as, const float* bc, const float* bs, int64_t half,
                float* out_cos, float* out_sin) {
  for (int64_t i = 0; i < half; ++i) {
    out_cos[i] = ac[i] * bc[i] - as[i] * bs[i];
    out_sin[i] = as[i] * bc[i] + ac[i] * bs[i];
  }
}

void rotate(const uint16_t* in, const uint16_t* weight, float eps, const float* cosines,
            const float* sines, int64_t half, uint16_t* out) {
  const float scale = weight != nullptr ? norm_scale(in, 2 * half, eps) : 1.0f;
  for (int64_t i = 0; i < half; ++i) {
    float low = widen(in[i]), high = widen(in[half + i]);
    if (weight != nullptr) {
      low = low * scale * widen(weight[i]);
      high = high * scale * widen(weight[half + i]);
    }
    out[i] = narrow(low * cosines[i] - high * sines[i]);
    out[half + i] = narrow(high * cosines[i] + low * sines[i]);
  }
}

void rotate_f32(const float* in, const float* cosines, const float* sines, int64_t half,
                uint16_t* out) {
  for (int64_t i = 0; i < half; ++i) {
    const float low = in[i], high = in[half + i];
    out[i] = narrow(low * cosines[i] - high * sines[i]);
    out[half + i] = narrow(high * cosines[i] + low * sines[i]);
  }
}

void unrotate(const uint16_t* in, const float* cosines, const float* sines, const float* shift,
              int64_t half, float* out) {
  for (int64_t i = 0; i < half; ++i) {
    const float low = widen(in[i]), high = widen(in[half + i]);
    out[i] = low * cosines[i] + high * sines[i] - shift[i];
    out[half + i] = high * cosines[i] - low * sines[i] - shift[half + i];
  }
}

void pair_rows(const float* even, const float* odd, int64_t n, uint16_t* pairs, float* sums) {
  for (int64_t i = 0; i < n; ++i) {
    pairs[2 * i] = narrow(even[i]);
    pairs[2 * i + 1] = narrow(odd[i]);
    sums[i] += even[i] + odd[i];
  }
}

void round_row(const float* in, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = narrow(in[i]);
}

float maximum(const float* x, int64_t n) {
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    if (std::isnan(x[i])) return x[i];
    max = std::max(max, x[i]);
  }
  return max;
}

double sum_exp(const float* x, int64_t n, float max) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(std::exp(x[i] - max));
  return sum;
}

}  // namespace

const ElementwiseLevel kElementwisePortable = {norm,     swiglu,    add_angles, rotate,  rotate_f32,
                                               unrotate, pair_rows, round_row,  maximum, sum_exp};

}  // namespace tiercel::cpu
