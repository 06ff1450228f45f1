// Four fp32 lanes in plain C++ (GCC and clang vector extensions): the Vector of the portable level.
//
// A Vector is the type that the kernels of decode_kernel.h and select_kernel.h are templates on.
// bf16 data is read as *pairs*: a piece is 2 * kLanes consecutive elements, split into the even and
// the odd ones, because that costs one shift and one mask and no shuffle.
#pragma once

#include <cstdint>

#include "cpu/exp2_poly.h"
#include "cpu/vector_pairs.h"

namespace tiercel::cpu {
namespace {

struct PortableLanes {
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;  // decides how many accumulators a kernel keeps
  static constexpr bool kBf16Query = false;
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  typedef int16_t S __attribute__((vector_size(16)));

  static F zero() { return F{}; }
  static F set1(float x) { return F{x, x, x, x}; }
  static F load(const float* p) {
    F v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, F v) { __builtin_memcpy(p, &v, sizeof v); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  // As maxps: where either operand is NaN the result is b.
  static F max(F a, F b) { return select(a > b, a, b); }
  static F min(F a, F b) { return select(a < b, a, b); }
  static uint32_t greater(F a, F b) {
    const I m = a > b;
    return (m[0] & 1u) | (m[1] & 2u) | (m[2] & 4u) | (m[3] & 8u);
  }
  // Per lane a > b ? x : y.
  static F where_greater(F a, F b, F x, F y) { return select(a > b, x, y); }
  // Lane i keeps its value where row < limit[i], and becomes -inf elsewhere.
  static F keep_below(F v, int32_t row, const int32_t* limit) {
    I l;
    __builtin_memcpy(&l, limit, sizeof l);
    return select(I{row, row, row, row} < l, v, set1(-__builtin_inff()));
  }

  // x <= 0 or NaN; -inf gives 0. Results below 2^-126 are 0.
  static F exp2(F x) {
    const F magic = set1(12582912.0f);  // 1.5 * 2^23: adding it leaves round(x) in the low bits
    const F y = max(set1(-126.0f), x);
    const F shifted = y + magic;
    const F f = y - (shifted - magic);
    F p = set1(TIERCEL_EXP2_C6);
    p = fma(p, f, set1(TIERCEL_EXP2_C5));
    p = fma(p, f, set1(TIERCEL_EXP2_C4));
    p = fma(p, f, set1(TIERCEL_EXP2_C3));
    p = fma(p, f, set1(TIERCEL_EXP2_C2));
    p = fma(p, f, set1(TIERCEL_EXP2_C1));
    p = fma(p, f, set1(1.0f));
    const U exponent = ((U)shifted + 127u) << 23;
    return select(x < set1(-126.0f), zero(), p * (F)exponent);
  }

  static float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  static float maximum(F v) {
    const float a = v[0] > v[2] ? v[0] : v[2];
    const float b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
  }
  // Lane i of the result is the sum of the lanes of a[i].
  static F reduce(const F* a) {
    const F t0 = __builtin_shufflevector(a[0], a[1], 0, 4, 1, 5) +
                 __builtin_shufflevector(a[0], a[1], 2, 6, 3, 7);
    const F t1 = __builtin_shufflevector(a[2], a[3], 0, 4, 1, 5) +
                 __builtin_shufflevector(a[2], a[3], 2, 6, 3, 7);
    return __builtin_shufflevector(t0, t1, 0, 1, 4, 5) +
           __builtin_shufflevector(t0, t1, 2, 3, 6, 7);
  }

  static void load_pairs(const uint16_t* p, F& even, F& odd) {
    U u;
    __builtin_memcpy(&u, p, sizeof u);
    even = (F)(u << 16);
    odd = (F)(u & 0xffff0000u);
  }
  // The first n elements (n even), zeros behind; nothing past them is read.
  static void load_pairs(const uint16_t* p, int n, F& even, F& odd) {
    uint16_t whole[2 * kLanes] = {};
    for (int i = 0; i < n; ++i) whole[i] = p[i];
    load_pairs(whole, even, odd);
  }
  static void broadcast_pair(const uint16_t* p, F& even, F& odd) {
    uint32_t u;
    __builtin_memcpy(&u, p, sizeof u);
    even = (F)(U{u, u, u, u} << 16);
    odd = (F)(U{u, u, u, u} & 0xffff0000u);
  }
  static void prefetch(const void* p) { __builtin_prefetch(p); }

  // int8 codes against int16 queries; lanes are rows.
  static I zero_sums() { return I{}; }
  static I add(I a, I b) { return a + b; }
  static I subtract(I a, int32_t x) { return (I)((U)a - static_cast<uint32_t>(x)); }
  static F to_float(I sums) { return __builtin_convertvector(sums, F); }
  // 16 codes of rows 0, 4, 8, .. : one row to every four lanes.
  static I load_blocks(const int8_t* const* rows, int64_t i) {
    I v;
    __builtin_memcpy(&v, rows[0] + i, sizeof v);
    return v;
  }
  // Four times four lanes: lane r of x[c] was lane c of x[r].
  static void transpose(I* x) {
    const I a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
    const I b = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
    const I c = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
    const I d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
    x[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    x[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    x[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    x[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
  }
  // The two halves of the work on four codes in a lane (CodeQuery): of the first and third, and of
  // the second and fourth, as two int16.
  static constexpr bool kByteQuery = false;
  static I first_codes(I codes) { return (I)((S)codes << 8 >> 8); }
  static I second_codes(I codes) { return (I)((S)codes >> 8); }
  // Adds the products with four bytes of the query.
  static I dot_codes(I acc, I codes, const char* query) {
    int16_t q[2];
    __builtin_memcpy(q, query, sizeof q);
    return acc + (codes << 16 >> 16) * int32_t{q[0]} + (codes >> 16) * int32_t{q[1]};
  }
  static I join_sums(I first, I second) { return first + second; }

 private:
  static F select(I mask, F a, F b) { return (F)((mask & (I)a) | (~mask & (I)b)); }
};

using Vector = WithPairs<PortableLanes>;

}  // namespace
}  // namespace tiercel::cpu
