// matmul of the SIMT emulator: plain loops, fp32 sums, one rounding.
#include "kernels/matmul.h"

#include <vector>

#include "tests/simt/work_queue.h"

namespace tiercel::cuda {

namespace {

void multiply(const LinearParams& p, int64_t out_stride) {
  std::vector<float> x(static_cast<size_t>(p.k));
  for (int64_t row = 0; row < p.m; ++row) {
    for (int64_t i = 0; i < p.k; ++i) {
      x[static_cast<size_t>(i)] = static_cast<float>(p.x[row * p.k + i]);
    }
    for (int64_t column = 0; column < p.n; ++column) {
      float sum = 0;
      for (int64_t i = 0; i < p.k; ++i) {
        sum += x[static_cast<size_t>(i)] * static_cast<float>(p.weight.values[column * p.k + i]);
      }
      const int64_t at = row * out_stride + column;
      auto* f32 = static_cast<float*>(p.out) + at;
      auto* half = static_cast<bf16*>(p.out) + at;
      const bool is_f32 = p.out_type == DType::kF32;
      if (p.bias != nullptr) sum += static_cast<float>(p.bias[column]);
      if (p.accumulate) sum += is_f32 ? *f32 : static_cast<float>(*half);
      if (is_f32) {
        *f32 = sum;
      } else {
        *half = bf16(sum);
      }
    }
  }
}

}  // namespace

bool matmul(Stream& stream, const LinearParams& p, int64_t out_stride) {
  simt::queue_of(stream.raw()).add([p, out_stride] { multiply(p, out_stride); });
  return true;
}

}  // namespace tiercel::cuda
