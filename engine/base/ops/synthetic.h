// What stands for weights and selections in synthetic runs.
#pragma once

#include <cstdint>

#include "engine/base/dtype.h"

namespace tiercel {

// out[i] = offset + scale * sqrt(3) * u_i with u_i uniform in [-1, 1), so scale is the standard
// deviation. u_i depends on seed and i only (splitmix64 of their sum), so every backend makes the
// same bits.
struct RandomParams {
  bf16* out = nullptr;  // [n]
  int64_t n = 0;
  uint64_t seed = 0;
  float scale = 1, offset = 0;
};
inline constexpr uint64_t kSplitmixStep = 0x9e3779b97f4a7c15;

// Replaces a selection by one of which a share of hit_rate was selected in the step before too: the
// candidates are cut into k strata, stratum i gives one chunk, and keeps it for about
// 1 / (1 - hit_rate) steps. For speed measurements on synthetic weights, where real locality is not
// to be had; never part of an answer.
struct ImposeParams {
  int32_t* ids = nullptr;     // [n_kv_heads][k], ascending
  int32_t* counts = nullptr;  // [n_kv_heads]
  int64_t k = 0;
  int64_t first_chunk = 0, end_chunk = 0;  // at least k
  int64_t step = 0;
  const int64_t* later = nullptr;  // added to step; null: 0
  int32_t n_kv_heads = 0;
  float hit_rate = 0;
};

}  // namespace tiercel
