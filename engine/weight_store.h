// Loads the weights of a decoder.
//
// Everything is checked: each tensor's presence, type and shape, that no tensor of a layer is left
// over, and that every value is finite (a NaN weight would silently become a NaN answer). Small
// checkpoints, f16 and f32 ones are copied into aligned memory; a large bf16 checkpoint is used where it
// is mapped. Matrices of 8-bit floats and of integers stay codes, or are decoded, and other matrices may be coded
// (WeightForm). Heads whose pairs of channels lie otherwise than the
// engine turns them (interleaved, or a part of the head) are copied in its order: scores only see that
// queries and keys agree on one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cpu/queue.h"
#include "engine/checkpoint.h"
#include "engine/weights.h"

namespace tiercel {

// What config.json does not tell and the checkpoint's tensors do: whether layers have an eviction head, and which
// matrices are codes. Errors: those of Checkpoint::open.
void learn_from_checkpoint(ModelConfig& config, const std::string& directory);

// Reads and checks a checkpoint's tensors, some at a time, and calls put(i, values) with those of tensor i of
// weight_tensors as they are to be kept, which stay until it returns. For what keeps them elsewhere: no more are in
// memory at once than so many elements, or one tensor. Errors: as of WeightStore::load, but for kDoesNotFit.
using PutWeights = std::function<void(size_t i, const bf16* values)>;
void read_weights(const std::string& directory, const ModelConfig& config, cpu::Queue& queue, const PutWeights& put,
                  int64_t elements_at_once = int64_t{128} << 20);

// What one of them would fill a coded matrix with, as the codes that are kept of it: kept_elements() of out.
void fill_random_codes(cpu::Queue& queue, const RandomParams& fill, const WeightTensor& tensor, bf16* out);

// Owns what Weights points into.
class WeightStore {
 public:
  // Errors name file and tensor; kDoesNotFit comes before anything is read.
  static std::unique_ptr<WeightStore> load(const std::string& directory, const ModelConfig& config,
                                           cpu::Queue& queue);
  static std::unique_ptr<WeightStore> random(const ModelConfig& config, cpu::Queue& queue);
  ~WeightStore();
  WeightStore(const WeightStore&) = delete;
  WeightStore& operator=(const WeightStore&) = delete;

  const Weights& weights() const { return weights_; }
  int64_t bytes() const { return bytes_; }  // as they are kept

 private:
  WeightStore(std::optional<Checkpoint> checkpoint, cpu::Queue& queue);
  friend void read_weights(const std::string& directory, const ModelConfig& config, cpu::Queue& queue,
                           const PutWeights& put, int64_t elements_at_once);
  struct Wanted;

  static std::unique_ptr<WeightStore> open(const std::string& directory, const ModelConfig& config,
                                           cpu::Queue& queue);
  void collect(const ModelConfig& config);
  void collect_tensor(const WeightTensor& wanted, const ModelConfig& config);
  const TensorInfo& scales_of(const TensorInfo& codes, const ModelConfig& config) const;
  void check_nothing_ignored(const ModelConfig& config) const;
  void check_tied_head(const ModelConfig& config) const;
  int64_t copy_rows(const Wanted& wanted, bf16* out) const;
  int64_t copy_coded_rows(const Wanted& wanted, bf16* out) const;
  void read(size_t first, std::span<bf16* const> copies) const;
  void place(bool coded);

  std::optional<Checkpoint> checkpoint_;
  bool in_place_ = false;  // some tensor is used where it is mapped
  cpu::Queue& queue_;
  std::vector<Wanted> wanted_;
  std::vector<int64_t> channel_order_;  // of a head, where RoPE's pairs are not as the checkpoint has them
  Weights weights_;
  bf16* block_ = nullptr;  // copied tensors, each 64-byte aligned
  int64_t block_bytes_ = 0;
  int64_t bytes_ = 0;
  int64_t n_parameters_ = 0;
};

}  // namespace tiercel
