// A checkpoint: a Hugging Face directory whose weights are one model.safetensors, or several shards
// named by model.safetensors.index.json; or a GGUF file, whose tensors have Hugging Face's names here.
//
// Promises: every file is mapped and checked when the checkpoint is opened, and every tensor that
// the index names is where the index says; after that a tensor is a pointer and asking for it is a
// look-up. Does not know: which tensors a model needs, or what they mean.
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/gguf/gguf_model.h"
#include "engine/safetensors.h"

namespace tiercel {

// Whether this is a directory with a checkpoint, complete or not.
bool has_weights(const std::filesystem::path& directory);

// The pairs (tensor, shard file) of an index file, sorted by tensor. Pure: what the fuzzer calls.
// Errors: not JSON, no weight_map, a shard that is not a plain "*.safetensors" file name.
std::vector<std::pair<std::string, std::string>> parse_checkpoint_index(std::string_view text,
                                                                        const std::string& file);

class Checkpoint {
 public:
  // `model` is a GGUF file, or a directory that holds model.safetensors (preferred when both exist, as in
  // transformers) or the index. Errors: neither file, a missing or damaged shard, a tensor that is missing in its
  // shard.
  static Checkpoint open(const std::filesystem::path& model);

  // The tensor, or null when the checkpoint has none of this name.
  // Errors: it has one, of a dtype other than BF16, F16, F32, F8_E4M3.
  const TensorInfo* find(std::string_view name) const;
  // The same of any dtype.
  const TensorInfo* find_any(std::string_view name) const;
  // The tensor. Errors: missing, or its dtype.
  const TensorInfo& tensor(std::string_view name) const;
  // The tensor, which must have exactly this shape. Errors: missing, its dtype, its shape.
  const TensorInfo& require(std::string_view name, std::span<const int64_t> shape) const;
  const TensorInfo& require(std::string_view name, std::initializer_list<int64_t> shape) const {
    return require(name, std::span<const int64_t>(shape.begin(), shape.size()));
  }

  // Names of all tensors, sorted.
  std::vector<std::string_view> names() const;
  // The file that holds a tensor, for messages. The tensor must exist.
  const std::string& file_of(std::string_view name) const;
  // A tensor of this checkpoint has no NaN or infinity among its values. first: of what it is a part of, the element
  // that it begins with. Errors: it has; names file, tensor and element.
  void check_finite(const TensorInfo& tensor, int64_t first = 0) const;
  // Data of all tensors, as stored.
  uint64_t total_bytes() const { return total_bytes_; }
  size_t n_tensors() const { return where_.size(); }
  const std::string& name() const { return name_; }  // the directory, or the file
  // What describes the model: "config.json", or what a GGUF file has instead. For messages.
  const char* description() const { return gguf_ ? "its metadata" : "config.json"; }
  // Asks the kernel to start reading all data ahead of use.
  void will_need() const;

 private:
  struct Place {
    const TensorInfo* tensor;
    const std::string* file;  // its name
  };

  static Checkpoint open_gguf(const std::filesystem::path& file);
  void add(const TensorInfo& tensor, const std::string& file);

  std::string name_;
  std::vector<SafetensorsFile> files_;
  std::optional<GgufModel> gguf_;                         // instead of them
  std::unordered_map<std::string_view, Place> where_;  // looks into the files
  uint64_t total_bytes_ = 0;
};

}  // namespace tiercel
