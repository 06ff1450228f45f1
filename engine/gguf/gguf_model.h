// A model in GGUF: one file, or several that llama.cpp split it into, whose first one is given
// ("NAME-00001-of-00003.gguf"). Says where its tensors are, under the names that Hugging Face has for them, so that the
// rest of the engine need not know where a checkpoint came from.
//
//   blk.3.attn_q.weight             model.layers.3.self_attn.q_proj.weight
//   blk.3.ffn_gate_exps.weight      [experts][rows][columns]: of every expert a tensor of its own
//   blk.3.attn_qkv.weight           of chatglm: rows of q, k and v
//
// Does not know: what the metadata mean (gguf_config.h, gguf_tokenizer.h).
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf_file.h"

namespace tiercel {

// What general.architecture stands for.
struct GgufFamily {
  const char* architecture;
  const char* model_type;  // of config.json; of llama without experts
  bool interleaved = false;    // RoPE turns neighbouring channels
  bool fused_gate_up = false;  // ffn_up is both
};

class GgufModel {
 public:
  // Errors: those of GgufFile::open; an architecture that is not supported; a part that is missing, or not the first;
  // a tensor that is no part of such a model.
  static GgufModel open(const std::filesystem::path& path);

  const GgufFile& first() const { return files_[0]; }  // which has the metadata
  const std::vector<GgufFile>& files() const { return files_; }
  const GgufFamily& family() const { return *family_; }

  struct Tensor {
    TensorInfo info;
    size_t file;  // of files()
  };
  // Under Hugging Face's names.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  // Null: there is none.
  const TensorInfo* find_tensor(std::string_view name) const;
  // Tensors that are no weights of a layer, by the file's name: factors of RoPE. Null: there is none.
  const TensorInfo* find_other(std::string_view name) const;

  // "llama.block_count" of "block_count".
  std::string key(std::string_view name) const { return std::string(family_->architecture) + "." + std::string(name); }
  // Which experts' block a layer has.
  bool is_mixtral() const { return is_mixtral_; }
  // Width of query heads together, and of key heads. Errors: those of their values.
  int64_t head_dim() const;
  int64_t n_heads() const;
  int64_t n_kv_heads() const;

 private:
  void add(const TensorInfo& tensor, size_t file);
  [[noreturn]] void refuse(const TensorInfo& tensor, size_t file) const;
  void add_named(const TensorInfo& tensor, size_t file, std::string name);
  void add_of_layer(const TensorInfo& tensor, size_t file, const std::string& layer, std::string_view part);

  std::vector<GgufFile> files_;
  const GgufFamily* family_ = nullptr;
  bool is_mixtral_ = false;
  std::vector<Tensor> tensors_;
  std::vector<TensorInfo> others_;
};

}  // namespace tiercel
