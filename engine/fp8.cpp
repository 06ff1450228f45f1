#include "engine/fp8.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "engine/base/check.h"
#include "engine/weight_codes.h"

namespace tiercel {
namespace {

std::array<float, 256> all_codes() {
  std::array<float, 256> values{};
  for (size_t i = 0; i < values.size(); ++i) values[i] = f8_e4m3_to_float(static_cast<uint8_t>(i));
  return values;
}

constexpr float kLargestCode = 448;
// Kernels multiply scales by 256.
constexpr float kMostBlockScale = 0x1p+120f;

bool is_infinite(bf16 value) { return (value.bits & 0x7fffu) == 0x7f80u; }

}  // namespace

WeightCodec Fp8Weights::codec(int64_t k) const { return codec_in_groups(WeightCode::kE4M3, block_columns, k); }

Fp8Tensor::Fp8Tensor(const TensorInfo& codes, const TensorInfo& scales, const Fp8Weights& format,
                     const std::string& file)
    : codes_(codes) {
  CHECK(codes.dtype == DType::kF8E4M3 && codes.shape.size() == 2, "{}", codes.name);
  const int64_t rows = codes.shape[0];
  columns_ = codes.shape[1];
  const auto blocks = [](int64_t n, int64_t block) { return (n + block - 1) / block; };
  std::vector<int64_t> of_blocks;
  if (format.block_rows > 0) {
    of_blocks = {blocks(rows, format.block_rows), blocks(columns_, format.block_columns)};
  }
  if (!of_blocks.empty() && scales.shape == of_blocks) {
    block_rows_ = format.block_rows;
    block_columns_ = format.block_columns;
    scales_per_row_ = of_blocks[1];
  } else if (scales.n_elements() == 1) {
    block_rows_ = std::max<int64_t>(rows, 1);
  } else if (scales.shape == std::vector<int64_t>{rows} || scales.shape == std::vector<int64_t>{rows, 1}) {
    block_rows_ = 1;
  } else {
    fail("{}: tensor {}: expected a scale for the tensor, for each of its {} rows{}, found shape {}", file,
         scales.name, rows,
         of_blocks.empty() ? "" : " or for each block, " + to_string(of_blocks), to_string(scales.shape));
  }
  if (block_columns_ == 0) block_columns_ = std::max<int64_t>(columns_, 1);
  if (scales.dtype == DType::kF8E4M3) {
    fail("{}: tensor {}: expected scales of dtype BF16, F16 or F32, found {}", file, scales.name,
         scales.stored_dtype);
  }
  for (int64_t i = 0; i < scales.n_elements(); ++i) scales_.push_back(number_at(scales, i));
}

int64_t Fp8Tensor::decode_row(int64_t row, bf16* out) const {
  static const std::array<float, 256> kValues = all_codes();
  const float* scales = scales_.data() + row / block_rows_ * scales_per_row_;
  const std::byte* codes = codes_.data + row * columns_;
  int64_t overflowed = 0;
  for (int64_t first = 0, block = 0; first < columns_; first += block_columns_, ++block) {
    const int64_t end = std::min(first + block_columns_, columns_);
    for (int64_t i = first; i < end; ++i) {
      out[i] = bf16(kValues[std::to_integer<size_t>(codes[i])] * scales[block]);
      overflowed += is_infinite(out[i]);
    }
  }
  return overflowed;
}

int64_t Fp8Tensor::pack(int64_t row, WeightCodec codec, std::byte* out) const {
  const float* scales = scales_.data() + row / block_rows_ * scales_per_row_;
  const auto* codes = reinterpret_cast<const uint8_t*>(codes_.data + row * columns_);
  std::vector<uint32_t> params;
  int64_t overflowed = 0;
  for (int64_t first = 0; first < columns_; first += codec.group) {
    const float scale = scales[first / block_columns_];
    params.push_back(std::bit_cast<uint32_t>(scale));
    if (std::abs(scale) >= kMostBlockScale) {
      overflowed += codec.group;
    } else if (is_infinite(bf16(kLargestCode * scale))) {
      overflowed += std::count_if(codes + first, codes + first + codec.group, [&](uint8_t code) {
        return is_infinite(value_of_code(codec, code, params.data(), first));
      });
    }
  }
  pack_row({codes, static_cast<size_t>(columns_)}, params, codec, out);
  return overflowed;
}

}  // namespace tiercel
