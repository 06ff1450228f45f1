// Software prefetch beside other work. Internal linkage, because files with different compiler
// flags include it (cpu/isa.h).
#pragma once

#include <cstdint>

#include "cpu/intrinsics.h"

namespace tiercel::cpu {
namespace {

// Asks for some rows of memory in equal shares, row by row: in the order of memory. (As many
// streams as there are rows in a tile, a row apart, are a quarter slower.)
template <_mm_hint kHint>
class RowPrefetch {
 public:
  // n_rows of row_bytes each, stride bytes apart.
  RowPrefetch(const void* from, int64_t n_rows, int64_t row_bytes, int64_t stride, int64_t n_shares)
      : at_(static_cast<const char*>(from)),
        row_lines_((row_bytes + 63) / 64),
        jump_(stride - 64 * row_lines_) {
    if (n_rows > 0) n_lines_ = n_rows * row_lines_;
    if (jump_ == 0) row_lines_ = n_lines_;
    lines_left_ = row_lines_;
    share_ = (n_lines_ + n_shares - 1) / n_shares;
  }
  // The next share.
  [[gnu::always_inline]] void ask() {
    int64_t n = share_ < n_lines_ ? share_ : n_lines_;
    n_lines_ -= n;
    while (n > 0) {
      const int64_t run = n < lines_left_ ? n : lines_left_;
#pragma GCC unroll 8
      for (int64_t i = 0; i < run; ++i) _mm_prefetch(at_ + 64 * i, kHint);
      at_ += 64 * run;
      n -= run;
      lines_left_ -= run;
      if (lines_left_ > 0) continue;
      lines_left_ = row_lines_;
      at_ += jump_;
    }
  }

 private:
  const char* at_;
  int64_t row_lines_, jump_;  // of a row; from its last line to the next row
  int64_t n_lines_ = 0, lines_left_ = 0, share_ = 0;
};

}  // namespace
}  // namespace tiercel::cpu
