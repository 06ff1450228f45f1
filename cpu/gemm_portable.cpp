// Panel products in plain C++: the reference of the other levels, and all there is on a processor
// that this project has no kernels for. Written so that a compiler vectorises over columns.
#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/gemm.h"
#include "engine/base/dtype.h"

namespace tiercel::cpu {
namespace {

float widen(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

void finish_row(const PanelProduct& p, int64_t row, const float* sums) {
  for (int64_t c = 0; c < p.n_columns; ++c) {
    float value = sums[c];
    if (p.bias != nullptr) value += p.bias[c];
    if (p.out_f32) {
      float& out = static_cast<float*>(p.out)[row * p.out_stride + c];
      out = p.accumulate ? value + out : value;
    } else {
      uint16_t& out = static_cast<uint16_t*>(p.out)[row * p.out_stride + c];
      out = bf16(p.accumulate ? value + widen(out) : value).bits;
    }
  }
}

}  // namespace

void pack_rows_portable(const uint16_t* rows, int64_t row_stride, int64_t n_columns, int64_t k,
                        uint16_t* panel) {
  for (int64_t pair = 0; pair < k / 2; ++pair) {
    uint16_t* target = panel + pair * 2 * kPanelColumns;
    for (int64_t c = 0; c < n_columns; ++c) {
      std::memcpy(target + 2 * c, rows + c * row_stride + 2 * pair, 4);
    }
    std::fill(target + 2 * n_columns, target + 2 * kPanelColumns, uint16_t{0});
  }
}

void pack_columns_portable(const uint16_t* matrix, int64_t row_stride, int64_t n_columns, int64_t k,
                           uint16_t* panel) {
  for (int64_t pair = 0; pair < k / 2; ++pair) {
    const uint16_t* even = matrix + 2 * pair * row_stride;
    const uint16_t* odd = even + row_stride;
    uint16_t* target = panel + pair * 2 * kPanelColumns;
    for (int64_t c = 0; c < n_columns; ++c) {
      target[2 * c] = even[c];
      target[2 * c + 1] = odd[c];
    }
    std::fill(target + 2 * n_columns, target + 2 * kPanelColumns, uint16_t{0});
  }
}

void multiply_portable(const PanelProduct& p) {
  for (int64_t row = 0; row < p.n_rows; ++row) {
    float sums[kPanelColumns] = {};
    if (p.start != nullptr) {
      std::copy_n(p.start + row * p.start_stride, p.n_columns, sums);
    }
    for (int64_t pair = 0; pair < p.n_pairs; ++pair) {
      const uint16_t* a = p.a + row * p.row_stride + pair * p.pair_stride;
      const float even = widen(a[0]), odd = widen(a[1]);
      const uint16_t* b = p.panel + pair * 2 * kPanelColumns;
      for (int64_t c = 0; c < kPanelColumns; ++c) {
        uint32_t both;
        std::memcpy(&both, b + 2 * c, 4);
        sums[c] += even * std::bit_cast<float>(both << 16);
        sums[c] += odd * std::bit_cast<float>(both & 0xffff0000u);
      }
    }
    finish_row(p, row, sums);
  }
}

}  // namespace tiercel::cpu
