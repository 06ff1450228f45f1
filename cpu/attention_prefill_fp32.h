// Prefill attention in fp32, for levels without bf16 dot products: one implementation, a template
// on the vector that each level has. Included by attention_prefill_{portable,avx2,avx512}.cpp only,
// and everything in it has internal linkage (see cpu/isa.h).
//
//   staged K  [n/16][d][16 keys]   staged V  [n][d]   both widened to fp32
//
//   scores    S[rows][256] = q (broadcast) x K          weights  P = 2^(S - reference), in place
//   values    O[rows][d]  += P (broadcast) x V
//
// References are whole octaves: raising one multiplies sum and out by a power of two, exactly.
#pragma once

#include <cstdint>

#include "cpu/attention_prefill.h"

namespace tiercel::cpu::prefill {
namespace {

// Level: its Vector (see vector_portable.h), kRows per row tile, kScoreVectors key vectors and
// kValueVectors column vectors at once.
template <typename Level>
class Fp32Attention {
 public:
  static constexpr int kRows = Level::kRows;

  struct Buffers {
    alignas(64) float scores[kRows][kKeyBlock];
    float sums[kRows];
  };

  static void pack(const PackRows& p) {
    auto* target = static_cast<float*>(p.target);
    for (int row = 0; row < p.n_rows; ++row, target += p.padded_dim) {
      const uint16_t* source = p.source + row * p.source_stride;
      for (int i = 0; i < p.head_dim; ++i) target[i] = widen(source[i]) * p.scale;
      for (int i = p.head_dim; i < p.padded_dim; ++i) target[i] = 0.0f;
    }
  }

  static void stage(const StageRows& s) {
    auto* keys = static_cast<float*>(s.staged_keys);
    auto* values = static_cast<float*>(s.staged_values);
    for (int first = 0; first < s.n_keys; first += kGroup) {
      for (int ahead = first + 2 * kGroup; ahead < first + 3 * kGroup; ++ahead) {
        if (ahead >= s.n_keys) break;
        for (int i = 0; i < s.head_dim; i += 32) {
          __builtin_prefetch(s.keys + s.rows[ahead] + i);
          __builtin_prefetch(s.values + s.rows[ahead] + i);
        }
      }
      float* group = keys + int64_t{first} * s.padded_dim;
      const uint16_t* source[kGroup];
      for (int c = 0; c < kGroup; ++c) source[c] = s.keys + s.rows[first + c];
      for (int i = 0; i < s.padded_dim; ++i) {
        for (int c = 0; c < kGroup; ++c) {
          group[i * kGroup + c] = i < s.head_dim ? widen(source[c][i]) : 0.0f;
        }
      }
      for (int c = 0; c < kGroup; ++c) {
        const uint16_t* value = s.values + s.rows[first + c];
        float* row = values + int64_t{first + c} * s.padded_dim;
        for (int i = 0; i < s.head_dim; ++i) row[i] = widen(value[i]);
        for (int i = s.head_dim; i < s.padded_dim; ++i) row[i] = 0.0f;
      }
    }
  }

  static void attend(const AttendRows& a) {
    Buffers& buffers = *static_cast<Buffers*>(a.buffer);
    for (int row = 0; row < a.n_rows; row += kRows) attend_tile(a, row, buffers);
  }

  static void store(const StoreRows& s) {
    for (int row = 0; row < s.n_rows; ++row) {
      const float* out = s.out + int64_t{row} * s.padded_dim;
      uint16_t* target = s.target + row * s.target_stride;
      const float inverse = 1.0f / s.sum[row];
      bool finite = is_finite(inverse);
      for (int i = 0; i < s.head_dim; ++i) {
        const float value = out[i] * inverse;
        finite &= is_finite(value);
        target[i] = narrow(value);
      }
      s.failed[row] = !finite;
    }
  }

 private:
  using V = typename Level::Vector;
  using F = typename V::F;
  static constexpr int kWidth = V::kLanes;
  static constexpr int kGroup = 16;  // keys per group of staged K
  static constexpr float kNothing = -__builtin_inff();

  // One tile of rows against one block of keys.
  struct Block {
    const float* q = nullptr;       // [kRows][d]
    const float* keys = nullptr;    // groups, from the block's first key
    const float* values = nullptr;  // [n_keys][d]
    const float* bias = nullptr;    // [n_keys] or null
    float* out = nullptr;           // [kRows][d]
    int d = 0, n_keys = 0;
  };

  static float from_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
  static uint32_t to_bits(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
  }
  static float widen(uint16_t bits) { return from_bits(uint32_t{bits} << 16); }
  static bool is_finite(float value) { return (to_bits(value) & 0x7f800000u) != 0x7f800000u; }
  static uint16_t narrow(float value) {  // nearest, ties to even; NaN is replaced later
    const uint32_t bits = to_bits(value);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }

  static void scores(const Block& b, Buffers& buffers) {
    constexpr int kVectors = Level::kScoreVectors;
    for (int key = 0; key < b.n_keys; key += kWidth * kVectors) {
      F s[kRows][kVectors];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) s[r][v] = V::zero();
      }
      const float* column[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const int c = key + v * kWidth;
        column[v] = b.keys + c / kGroup * kGroup * b.d + c % kGroup;
      }
      for (int i = 0; i < b.d; ++i) {
        F k[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) k[v] = V::load(column[v] + i * kGroup);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const F q = V::set1(b.q[r * b.d + i]);
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) s[r][v] = V::fma(q, k[v], s[r][v]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) V::store(buffers.scores[r] + key + v * kWidth, s[r][v]);
      }
    }
  }

  template <int kVectors>
  static void values(const Block& b, const Buffers& buffers, int first) {
    F o[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) o[r][v] = V::load(b.out + r * b.d + first + v * kWidth);
    }
    for (int key = 0; key < b.n_keys; ++key) {
      F x[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) x[v] = V::load(b.values + key * b.d + first + v * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F p = V::set1(buffers.scores[r][key]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) o[r][v] = V::fma(p, x[v], o[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) V::store(b.out + r * b.d + first + v * kWidth, o[r][v]);
    }
  }

  static void values(const Block& b, const Buffers& buffers) {
    for (int first = 0; first < b.d;) {
      const int left = (b.d - first) / kWidth;
      if (Level::kValueVectors == 2) {
        values<2>(b, buffers, first);
        first += 2 * kWidth;
      } else if (left % 4 != 0) {
        values<3>(b, buffers, first);
        first += 3 * kWidth;
      } else {
        values<4>(b, buffers, first);
        first += 4 * kWidth;
      }
    }
  }

  // Scores of one row become weights; what is not in [begin, end) weighs 0.
  static void weights(const Block& b, Buffers& buffers, int r, int begin, int end,
                      float& reference) {
    float* s = buffers.scores[r];
    begin = begin < 0 ? 0 : begin;
    end = end > b.n_keys ? b.n_keys : end;
    for (int key = 0; b.bias != nullptr && key < b.n_keys; ++key) s[key] += b.bias[key];
    for (int key = 0; key < begin && key < b.n_keys; ++key) s[key] = kNothing;
    for (int key = end < 0 ? 0 : end; key < b.n_keys; ++key) s[key] = kNothing;
    static_assert(kKeyMultiple % (4 * kWidth) == 0);
    F highest[4] = {V::set1(kNothing), V::set1(kNothing), V::set1(kNothing), V::set1(kNothing)};
    for (int key = 0; key < b.n_keys; key += 4 * kWidth) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) highest[v] = V::max(V::load(s + key + v * kWidth), highest[v]);
    }
    const float max =
        V::maximum(V::max(V::max(highest[0], highest[1]), V::max(highest[2], highest[3])));
    if (max > reference) raise(b, buffers, r, max, reference);
    const F shift = V::set1(reference == kNothing ? 0.0f : reference);
    F sum = V::zero();
    for (int key = 0; key < b.n_keys; key += kWidth) {
      const F p = V::exp2(V::sub(V::load(s + key), shift));
      sum = V::add(sum, p);
      V::store(s + key, p);
    }
    buffers.sums[r] += V::sum(sum);
  }

  static void raise(const Block& b, Buffers& buffers, int r, float max, float& reference) {
    const float raised = __builtin_ceilf(max);
    if (reference != kNothing) {
      const F factor = V::exp2(V::set1(reference - raised));
      buffers.sums[r] *= V::maximum(factor);
      float* out = b.out + r * b.d;
      for (int i = 0; i < b.d; i += kWidth) V::store(out + i, V::mul(V::load(out + i), factor));
    }
    reference = raised;
  }

  static void attend_tile(const AttendRows& a, int row, Buffers& buffers) {
    int first = a.n_keys, last = 0;
    for (int r = 0; r < kRows; ++r) {
      buffers.sums[r] = a.sum[row + r];
      if (a.begin[row + r] >= a.end[row + r]) continue;
      first = a.begin[row + r] < first ? a.begin[row + r] : first;
      last = a.end[row + r] > last ? a.end[row + r] : last;
    }
    first = first / kKeyMultiple * kKeyMultiple;
    last = (last + kKeyMultiple - 1) / kKeyMultiple * kKeyMultiple;
    Block b;
    b.d = a.padded_dim;
    b.q = static_cast<const float*>(a.q) + int64_t{row} * b.d;
    b.out = a.out + int64_t{row} * b.d;
    for (; first < last; first += b.n_keys) {
      const int block_end = first / kKeyBlock * kKeyBlock + kKeyBlock;
      b.n_keys = (block_end < last ? block_end : last) - first;
      b.keys = static_cast<const float*>(a.keys) + int64_t{first} * b.d;
      b.values = static_cast<const float*>(a.values) + int64_t{first} * b.d;
      b.bias = a.bias == nullptr ? nullptr : a.bias + first;
      scores(b, buffers);
      for (int r = 0; r < kRows; ++r) {
        weights(b, buffers, r, a.begin[row + r] - first, a.end[row + r] - first,
                a.reference[row + r]);
      }
      values(b, buffers);
    }
    for (int r = 0; r < kRows; ++r) a.sum[row + r] = buffers.sums[r];
  }
};

template <typename Level>
constexpr Kernel fp32_kernel() {
  using Attention = Fp32Attention<Level>;
  Kernel kernel;
  kernel.row_tile = Attention::kRows;
  kernel.head_tile = 1;
  kernel.element_bytes = 4;
  kernel.buffer_bytes = sizeof(typename Attention::Buffers);
  kernel.pack = Attention::pack;
  kernel.stage = Attention::stage;
  kernel.attend = Attention::attend;
  kernel.store = Attention::store;
  return kernel;
}

}  // namespace
}  // namespace tiercel::cpu::prefill
