// Weights stored as 8-bit floats (E4M3) beside scales: value = code * scale, with one scale for a whole
// tensor, for each row, or for each block of rows and columns.
//
// Matrices of 128 columns, or a multiple, stay such codes (WeightCode::kE4M3), others are decoded to bf16 as a model
// is loaded, which rounds the product; activations stay bf16, whatever the checkpoint's makers quantise them to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/dtype.h"
#include "engine/base/weight_matrix.h"
#include "engine/tensor_info.h"

namespace tiercel {

// What a configuration says about them.
struct Fp8Weights {
  int64_t block_rows = 0, block_columns = 0;  // 0: a scale is a row's or the tensor's

  // How a matrix of k columns is kept as it is: bf16 where codes cannot be.
  WeightCodec codec(int64_t k) const;
};

class Fp8Tensor {
 public:
  // codes: [rows][columns]. scales: one, [rows], [rows][1], or [rows / block][columns / block], rounded
  // up; bf16, f16 or f32. The codes must outlive this. Errors, which name `file`: any other shape or
  // dtype of the scales.
  Fp8Tensor(const TensorInfo& codes, const TensorInfo& scales, const Fp8Weights& format,
            const std::string& file);

  // out: [columns]. Returns how many values are too large for bf16.
  int64_t decode_row(int64_t row, bf16* out) const;
  // The same, as `codec` keeps it, which codec(columns) gave; of groups with scales of 2^120 and more all are too large.
  int64_t pack(int64_t row, WeightCodec codec, std::byte* out) const;

 private:
  const TensorInfo& codes_;
  std::vector<float> scales_;  // [..][scales_per_row_]
  int64_t columns_ = 0, scales_per_row_ = 1;
  int64_t block_rows_ = 0, block_columns_ = 0;
};

}  // namespace tiercel
