// What weights are kept as (engine/base/weight_matrix.h).
#pragma once

#include <cstdint>

namespace tiercel {

enum class WeightCode : uint8_t {
  kBf16,
  kInt8,
  kInt4,
  kE4M3,
  kInt4Min,  // integers whose groups have a least value
  kInt8Min,  // of five bits, in eight
  kInt8x16,  // integers with a scale for each sixteen
};

// Always inlined: files with compiler flags of their own include this (cpu/isa.h).
[[gnu::always_inline]] constexpr int32_t bits_of(WeightCode code) {
  switch (code) {
    case WeightCode::kBf16: return 16;
    case WeightCode::kInt4:
    case WeightCode::kInt4Min: return 4;
    case WeightCode::kInt8:
    case WeightCode::kE4M3:
    case WeightCode::kInt8Min:
    case WeightCode::kInt8x16: break;
  }
  return 8;
}

[[gnu::always_inline]] constexpr bool has_minima(WeightCode code) {
  return code == WeightCode::kInt4Min || code == WeightCode::kInt8Min;
}

}  // namespace tiercel
