// Weights stored as integers of 8 or 4 bits beside scales and zeros: value = (code - zero) * scale, one scale and
// zero for a row of a matrix, or for each group of its columns. What GPTQ, AWQ and llm-compressor write
// (quant_method gptq, awq, compressed-tensors); activations stay bf16, whatever the checkpoint's makers quantise
// them to.
//
//   gptq                 X.qweight [k * bits / 32][n] int32, packed along k, the first code in the lowest bits
//                        X.qzeros  [groups][n * bits / 32], packed along n; version 1 stores zero - 1
//                        X.scales  [groups][n]; X.g_idx [k]: the group of a column
//   awq (gemm)           X.qweight [k][n / 8] int32; columns 0 2 4 6 1 3 5 7 of eight from the lowest bits on
//                        X.qzeros  [groups][n / 8] likewise; X.scales [groups][n]
//   pack-quantized       X.weight_packed [n][k * bits / 32] int32, codes less their middle
//                        X.weight_scale [n][groups]; X.weight_zero_point: none (the middle), int8 [n][groups], or
//                        packed along n, [n * bits / 32][groups]
//   int-quantized        X.weight [n][k] int8; X.weight_scale [n][groups], [n] or one; X.weight_zero_point likewise
//
// Sources: AutoAWQ 0.2.9 (awq/utils/packing_utils.py), GPTQModel 7.7 (nn_modules/qlinear), compressed-tensors 0.20
// (compressors/pack_quantized, compressors/naive_quantized).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/weight_matrix.h"
#include "engine/checkpoint.h"

namespace tiercel {

// What a configuration says about them.
struct IntWeights {
  enum class Layout : uint8_t { kGptq, kAwq, kPacked, kPlain };
  Layout layout = Layout::kGptq;
  int32_t bits = 4;       // 4 or 8
  int64_t group = 0;      // columns; 0: a whole row
  bool less_one = false;  // qzeros hold zero - 1
  bool act_order = false;  // a group's columns lie anywhere in the row (GPTQ's desc_act)

  // How codes are kept as they are: bf16 where they cannot be. A matrix of k columns is.
  WeightCode code() const;
  WeightCodec codec(int64_t k) const;
  friend bool operator==(const IntWeights&, const IntWeights&) = default;
};

// "model.layers.0.mlp.up_proj" of its "....weight".
std::string_view module_of(std::string_view weight);

// A matrix of a checkpoint. Its files must stay mapped while this is used.
class IntTensor {
 public:
  // Whether the checkpoint has this matrix, "X.weight", as codes.
  static bool is_in(const Checkpoint& checkpoint, std::string_view weight, const IntWeights& format);

  // The matrix has so many rows and columns. Errors, which name file and tensor: one is missing, or of another
  // dtype or shape; a scale that is no number; groups in another order than the format says.
  IntTensor(const Checkpoint& checkpoint, std::string_view weight, int64_t n_rows, int64_t n_columns,
            const IntWeights& format);

  // The tensors that it is made of.
  const std::vector<const TensorInfo*>& tensors() const { return tensors_; }
  int64_t n_columns() const { return k_; }

  // Of rows first .. first + n - 1: [n][columns]. Many at a time, as they may lie beside each other.
  void codes(int64_t first, int64_t n, uint8_t* out) const;
  // A row of these codes: to bf16, [columns]; and as `codec` keeps it, which codec(columns) gave.
  void decode(int64_t row, const uint8_t* codes, bf16* out) const;
  void pack(int64_t row, const uint8_t* codes, WeightCodec codec, std::byte* out) const;

 private:
  const TensorInfo& part(const Checkpoint& checkpoint, const char* suffix, DType dtype,
                         std::initializer_list<int64_t> shape);
  void check_scales(const Checkpoint& checkpoint) const;
  void read_groups(const Checkpoint& checkpoint);
  float scale_of_group(int64_t row, int64_t group) const;
  int32_t zero_of_group(int64_t row, int64_t group) const;
  uint32_t param(int64_t row, int64_t group) const {
    return weight_param(scale_of_group(row, group), zero_of_group(row, group));
  }

  IntWeights format_;
  std::string module_;
  int64_t n_ = 0, k_ = 0, n_groups_ = 0;
  const TensorInfo *codes_ = nullptr, *scales_ = nullptr, *zeros_ = nullptr;  // no zeros: the middle of the codes
  std::vector<const TensorInfo*> tensors_;
  std::vector<int32_t> group_of_;  // [columns], with act_order
};

}  // namespace tiercel
