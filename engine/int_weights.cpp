#include "engine/int_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/base/check.h"
#include "engine/weight_codes.h"

namespace tiercel {
namespace {

using Layout = IntWeights::Layout;

constexpr std::string_view kWeight = ".weight";
// Column c of eight that AWQ packs into an int32 lies in its nibble kAwqNibble[c].
constexpr int kAwqNibble[] = {0, 4, 1, 5, 2, 6, 3, 7};

// Times a code it is finite.
constexpr float kMostScale = 0x1p+118f;

const char* codes_suffix(Layout layout) {
  switch (layout) {
    case Layout::kGptq:
    case Layout::kAwq: return ".qweight";
    case Layout::kPacked: return ".weight_packed";
    case Layout::kPlain: break;
  }
  return ".weight";
}

uint32_t word_of(const TensorInfo& tensor, int64_t i) {
  uint32_t word;
  std::memcpy(&word, tensor.data + i * 4, sizeof word);
  return word;
}
int32_t int8_of(const TensorInfo& tensor, int64_t i) {
  return static_cast<int8_t>(std::to_integer<uint8_t>(tensor.data[i]));
}

// Code i of a row of codes that lie in int32 words.
int32_t code_in(uint32_t word, int64_t i, int bits) {
  const auto place = static_cast<int>(i % (32 / bits)) * bits;
  return static_cast<int32_t>(word >> place & ((1u << bits) - 1));
}

}  // namespace

WeightCode IntWeights::code() const {
  if (act_order && group > 0) return WeightCode::kBf16;
  return bits == 4 ? WeightCode::kInt4 : WeightCode::kInt8;
}

WeightCodec IntWeights::codec(int64_t k) const {
  return code() == WeightCode::kBf16 ? WeightCodec{} : codec_in_groups(code(), group, k);
}

std::string_view module_of(std::string_view weight) {
  CHECK(weight.ends_with(kWeight), "{}", weight);
  return weight.substr(0, weight.size() - kWeight.size());
}

bool IntTensor::is_in(const Checkpoint& checkpoint, std::string_view weight, const IntWeights& format) {
  const std::string codes = std::string(module_of(weight)) + codes_suffix(format.layout);
  const TensorInfo* tensor = checkpoint.find_any(codes);
  return tensor != nullptr && (format.layout != Layout::kPlain || tensor->stored_dtype == "I8");
}

const TensorInfo& IntTensor::part(const Checkpoint& checkpoint, const char* suffix, DType dtype,
                                  std::initializer_list<int64_t> shape) {
  const std::string name = module_ + suffix;
  const TensorInfo* tensor = checkpoint.find_any(name);
  if (tensor == nullptr) {
    fail("{}: tensor {} is quantised, and the checkpoint has no {} beside it; fetch it again",
         checkpoint.file_of(module_ + codes_suffix(format_.layout)), module_, name);
  }
  const std::string_view wanted = dtype == DType::kI32 ? "I32" : dtype == DType::kI8 ? "I8" : "F16, BF16 or F32";
  const bool fits = dtype == DType::kF32 ? tensor->supported && tensor->dtype != DType::kF8E4M3
                                         : tensor->stored_dtype == wanted;
  if (!fits) {
    fail("{}: tensor {}: expected dtype {}, found {}", checkpoint.file_of(name), name, wanted, tensor->stored_dtype);
  }
  const std::span<const int64_t> extents(shape.begin(), shape.size());
  if (!std::ranges::equal(tensor->shape, extents)) {
    fail("{}: tensor {}: expected shape {}, found {}; config.json does not describe these weights",
         checkpoint.file_of(name), name, to_string(extents), to_string(tensor->shape));
  }
  tensors_.push_back(tensor);
  return *tensor;
}

IntTensor::IntTensor(const Checkpoint& checkpoint, std::string_view weight, int64_t n_rows, int64_t n_columns,
                     const IntWeights& format)
    : format_(format), module_(module_of(weight)), n_(n_rows), k_(n_columns) {
  const int64_t group = format.group > 0 ? format.group : k_;
  const int64_t per_word = 32 / format.bits;
  const bool packs_rows = format.layout == Layout::kGptq || format.layout == Layout::kAwq;  // codes or zeros
  const bool packs_columns = format.layout != Layout::kPlain;
  if (k_ % group != 0 || (packs_columns && k_ % per_word != 0) || (packs_rows && n_ % per_word != 0)) {
    fail("{}: matrix {} [{}, {}] cannot be in groups of {} columns and words of {} codes; config.json does not "
         "describe these weights",
         checkpoint.file_of(module_ + codes_suffix(format.layout)), module_, n_, k_, group, per_word);
  }
  n_groups_ = k_ / group;
  switch (format.layout) {
    case Layout::kGptq: {
      codes_ = &part(checkpoint, ".qweight", DType::kI32, {k_ / per_word, n_});
      zeros_ = &part(checkpoint, ".qzeros", DType::kI32, {n_groups_, n_ / per_word});
      scales_ = &part(checkpoint, ".scales", DType::kF32, {n_groups_, n_});
      if (checkpoint.find_any(module_ + ".g_idx") != nullptr) read_groups(checkpoint);
      break;
    }
    case Layout::kAwq: {
      codes_ = &part(checkpoint, ".qweight", DType::kI32, {k_, n_ / per_word});
      zeros_ = &part(checkpoint, ".qzeros", DType::kI32, {n_groups_, n_ / per_word});
      scales_ = &part(checkpoint, ".scales", DType::kF32, {n_groups_, n_});
      break;
    }
    case Layout::kPacked:
    case Layout::kPlain: {
      codes_ = format.layout == Layout::kPlain
                   ? &part(checkpoint, ".weight", DType::kI8, {n_, k_})
                   : &part(checkpoint, ".weight_packed", DType::kI32, {n_, k_ / per_word});
      if (const TensorInfo* zeros = checkpoint.find_any(module_ + ".weight_zero_point")) {
        const bool packed = zeros->stored_dtype == "I32";
        const int64_t words = (n_ + per_word - 1) / per_word;
        zeros_ = packed ? &part(checkpoint, ".weight_zero_point", DType::kI32, {words, n_groups_})
                        : &part(checkpoint, ".weight_zero_point", DType::kI8, {n_, n_groups_});
      }
      // One for each row may be a vector, one for all rows is one.
      const TensorInfo* scales = checkpoint.find_any(module_ + ".weight_scale");
      const bool vector = scales != nullptr && scales->shape.size() == 1 && n_groups_ == 1;
      const int64_t n_scales = vector && scales->shape[0] == 1 ? 1 : n_;
      scales_ = vector ? &part(checkpoint, ".weight_scale", DType::kF32, {n_scales})
                       : &part(checkpoint, ".weight_scale", DType::kF32, {n_, n_groups_});
      if (const TensorInfo* shape = checkpoint.find_any(module_ + ".weight_shape")) tensors_.push_back(shape);
      if (checkpoint.find_any(module_ + ".weight_g_idx") != nullptr) read_groups(checkpoint);
      break;
    }
  }
  check_scales(checkpoint);
  // What has been looked at need not stay until it is read.
  for (const TensorInfo* part : tensors_) wont_need(*part);
}

float IntTensor::scale_of_group(int64_t row, int64_t group) const {
  const bool by_group = format_.layout == Layout::kGptq || format_.layout == Layout::kAwq;
  if (by_group) return number_at(*scales_, group * n_ + row);
  return number_at(*scales_, scales_->n_elements() == 1 ? 0 : row * n_groups_ + group);
}

int32_t IntTensor::zero_of_group(int64_t row, int64_t group) const {
  if (zeros_ == nullptr) return 1 << (format_.bits - 1);
  const TensorInfo& zeros = *zeros_;
  const int64_t per_word = 32 / format_.bits;
  switch (format_.layout) {
    case Layout::kGptq: {
      // One was subtracted from all zeros of a word at once: a zero of 0 borrows from the next.
      const uint32_t ones = format_.bits == 4 ? 0x11111111u : 0x01010101u;
      const uint32_t word = word_of(zeros, group * (n_ / per_word) + row / per_word);
      return code_in(word + (format_.less_one ? ones : 0), row, format_.bits);
    }
    case Layout::kAwq:
      return code_in(word_of(zeros, group * (n_ / per_word) + row / per_word), kAwqNibble[row % per_word],
                     format_.bits);
    case Layout::kPacked:
    case Layout::kPlain: break;
  }
  if (zeros.dtype == DType::kI8) return int8_of(zeros, row * n_groups_ + group) + (1 << (format_.bits - 1));
  return code_in(word_of(zeros, row / per_word * n_groups_ + group), row, format_.bits);
}

void IntTensor::check_scales(const Checkpoint& checkpoint) const {
  const TensorInfo& scales = *scales_;
  checkpoint.check_finite(scales);
  for (int64_t i = 0; i < scales.n_elements(); ++i) {
    const float scale = number_at(scales, i);
    if (std::abs(scale) <= kMostScale) continue;
    fail("{}: tensor {}: element {} is {}, with which weights are too large for bf16", checkpoint.file_of(scales.name),
         scales.name, i, scale);
  }
}

void IntTensor::read_groups(const Checkpoint& checkpoint) {
  const char* suffix = format_.layout == Layout::kGptq ? ".g_idx" : ".weight_g_idx";
  const TensorInfo& groups = part(checkpoint, suffix, DType::kI32, {k_});
  const int64_t group = k_ / n_groups_;
  bool in_order = true;
  for (int64_t i = 0; i < k_; ++i) {
    const auto of_column = static_cast<int32_t>(word_of(groups, i));
    if (of_column < 0 || of_column >= n_groups_) {
      fail("{}: tensor {}: expected groups 0 to {}, found {} at column {}", checkpoint.file_of(groups.name),
           groups.name, n_groups_ - 1, of_column, i);
    }
    in_order &= of_column == i / group;
    group_of_.push_back(of_column);
  }
  if (in_order) {
    group_of_.clear();
  } else if (!format_.act_order) {
    fail("{}: tensor {}: its columns are not in the order of their groups, though config.json does not say so "
         "(desc_act, actorder)",
         checkpoint.file_of(groups.name), groups.name);
  }
}

void IntTensor::codes(int64_t first, int64_t n, uint8_t* out) const {
  const int64_t per_word = 32 / format_.bits;
  switch (format_.layout) {
    case Layout::kGptq:
      for (int64_t word = 0; word < k_ / per_word; ++word) {
        for (int64_t row = 0; row < n; ++row) {
          const uint32_t packed = word_of(*codes_, word * n_ + first + row);
          for (int64_t i = 0; i < per_word; ++i) {
            out[row * k_ + word * per_word + i] = static_cast<uint8_t>(code_in(packed, i, format_.bits));
          }
        }
      }
      return;
    case Layout::kAwq:
      for (int64_t column = 0; column < k_; ++column) {
        for (int64_t row = 0; row < n; ++row) {
          const int64_t at = first + row;
          const uint32_t packed = word_of(*codes_, column * (n_ / per_word) + at / per_word);
          out[row * k_ + column] = static_cast<uint8_t>(code_in(packed, kAwqNibble[at % per_word], format_.bits));
        }
      }
      return;
    case Layout::kPacked:
      for (int64_t i = 0; i < n * k_; ++i) {
        out[i] = static_cast<uint8_t>(code_in(word_of(*codes_, (first * k_ + i) / per_word), i, format_.bits));
      }
      return;
    case Layout::kPlain:
      for (int64_t i = 0; i < n * k_; ++i) out[i] = static_cast<uint8_t>(int8_of(*codes_, first * k_ + i) + 128);
      return;
  }
}

void IntTensor::decode(int64_t row, const uint8_t* codes, bf16* out) const {
  std::vector<uint32_t> params(static_cast<size_t>(n_groups_));
  for (size_t i = 0; i < params.size(); ++i) params[i] = param(row, static_cast<int64_t>(i));
  const int64_t group = k_ / n_groups_;
  const auto value = [&](int64_t i, uint32_t param) {
    return bf16(static_cast<float>(codes[i] - zero_of(param)) * scale_of(param));
  };
  if (!group_of_.empty()) {
    for (int64_t i = 0; i < k_; ++i) {
      out[i] = value(i, params[static_cast<size_t>(group_of_[static_cast<size_t>(i)])]);
    }
    return;
  }
  for (int64_t first = 0; first < k_; first += group) {
    const uint32_t param = params[static_cast<size_t>(first / group)];
    for (int64_t i = first; i < first + group; ++i) out[i] = value(i, param);
  }
}

void IntTensor::pack(int64_t row, const uint8_t* codes, WeightCodec codec, std::byte* out) const {
  CHECK(group_of_.empty() && codec == format_.codec(k_), "{}", module_);
  const int64_t group = k_ / n_groups_;
  std::vector<uint32_t> params(static_cast<size_t>(k_ / codec.group));
  for (size_t i = 0; i < params.size(); ++i) {
    params[i] = param(row, static_cast<int64_t>(i) * codec.group / group);
  }
  pack_row({codes, static_cast<size_t>(k_)}, params, codec, out);
}

}  // namespace tiercel
