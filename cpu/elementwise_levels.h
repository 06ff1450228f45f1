// The row kernels behind elementwise.cpp and lowrank.cpp, one set per ISA level.
//
// bf16 travels as its bits: these declarations are included by files with their own compiler flags,
// which may not instantiate anybody else's inline functions (cpu/isa.h). Rows need no alignment and
// no padding; out may be the input wherever both have the same type.
#pragma once

#include <cstdint>

namespace tiercel::cpu {

struct ElementwiseLevel {
  // out = x / sqrt(mean(x^2) + eps) * weight (+ added, unless null)
  void (*norm)(const uint16_t* x, const uint16_t* weight, const uint16_t* added, uint16_t* out,
               int64_t width, float eps);
  // out = gate / (1 + exp(-gate)) * up
  void (*swiglu)(const uint16_t* gate, const uint16_t* up, uint16_t* out, int64_t n);
  // The sum of two angles: out_cos = ac*bc - as*bs, out_sin = as*bc + ac*bs.
  void (*add_angles)(const float* ac, const float* as, const float* bc, const float* bs,
                     int64_t half, float* out_cos, float* out_sin);
  // Turns one head of 2*half channels; with a weight, RMS-normalises it first.
  void (*rotate)(const uint16_t* in, const uint16_t* norm_weight, float eps, const float* cosines,
                 const float* sines, int64_t half, uint16_t* out);
  // Turns one head of fp32 channels and rounds it.
  void (*rotate_f32)(const float* in, const float* cosines, const float* sines, int64_t half,
                     uint16_t* out);
  // Turns one head back, and subtracts shift.
  void (*unrotate)(const uint16_t* in, const float* cosines, const float* sines, const float* shift,
                   int64_t half, float* out);
  // pairs[i] = (even[i], odd[i]) rounded to bf16; sums[i] += even[i] + odd[i].
  void (*pair_rows)(const float* even, const float* odd, int64_t n, uint16_t* pairs, float* sums);
  void (*round_row)(const float* in, int64_t n, uint16_t* out);
  // The largest element; NaN if there is one.
  float (*maximum)(const float* x, int64_t n);
  // sum of exp(x - max): fp32 exponentials (2 ulp), fp64 sum.
  double (*sum_exp)(const float* x, int64_t n, float max);
};

extern const ElementwiseLevel kElementwisePortable;
#if defined(__x86_64__)
extern const ElementwiseLevel kElementwiseAvx2;
extern const ElementwiseLevel kElementwiseAvx512;
#endif

}  // namespace tiercel::cpu
