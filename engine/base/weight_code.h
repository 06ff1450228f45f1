// What weights are kept as (engine/base/weight_matrix.h).
#pragma once

#include <cstdint>

namespace tiercel {

enum class WeightCode : uint8_t { kBf16, kInt8, kInt4, kE4M3 };

// Always inlined: files with compiler flags of their own include this (cpu/isa.h).
[[gnu::always_inline]] constexpr int32_t bits_of(WeightCode code) {
  switch (code) {
    case WeightCode::kBf16: return 16;
    case WeightCode::kInt4: return 4;
    case WeightCode::kInt8:
    case WeightCode::kE4M3: break;
  }
  return 8;
}

}  // namespace tiercel
