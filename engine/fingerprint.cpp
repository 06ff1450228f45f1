#include "engine/fingerprint.h"

#include <xxhash.h>

#include <algorithm>
#include <string_view>

#include "engine/base/check.h"
#include "engine/checkpoint.h"

namespace tiercel {
namespace {

constexpr uint64_t kWhole = uint64_t{1} << 20, kSample = 4096;

class Hash {
 public:
  Hash() { CHECK(state_ != nullptr && XXH3_64bits_reset(state_) == XXH_OK); }
  ~Hash() { XXH3_freeState(state_); }
  Hash(const Hash&) = delete;
  Hash& operator=(const Hash&) = delete;

  void bytes(const void* data, uint64_t n) { XXH3_64bits_update(state_, data, n); }
  void text(std::string_view text) {
    number(static_cast<int64_t>(text.size()));
    bytes(text.data(), text.size());
  }
  void number(int64_t value) { bytes(&value, sizeof value); }
  void number(double value) { bytes(&value, sizeof value); }
  std::string digits() const { return fmt::format("{:016x}", XXH3_64bits_digest(state_)); }

 private:
  XXH3_state_t* state_ = XXH3_createState();
};

void add_config(const ModelConfig& c, Hash& hash) {
  hash.text(name_of(c.architecture));
  for (const int64_t extent :
       {c.n_layers, c.hidden, c.intermediate, c.n_heads, c.n_kv_heads, c.head_dim, c.vocab_size}) {
    hash.number(extent);
  }
  hash.number(c.rms_eps);
  // What a checkpoint has as codes, gives the same decoded.
  if (const auto& q = c.int_weights) {
    for (const int64_t value : {int64_t{static_cast<uint8_t>(q->layout)}, int64_t{q->bits}, q->group,
                                int64_t{q->less_one}, int64_t{q->act_order}}) {
      hash.number(value);
    }
  }
  if (c.weight_form == WeightForm::kInt8) hash.text(c.fp8 ? "int8 weights, but for fp8" : "int8 weights");
  if (c.weight_form == WeightForm::kInt4) hash.text("int4 weights");
  for (const bool flag : {c.tie_word_embeddings, c.qkv_bias, c.o_bias, c.mlp_bias, c.qk_norm}) {
    hash.number(int64_t{flag});
  }
  for (const int64_t window : c.sliding_window) hash.number(window);
  if (c.experts.n > 0) {
    for (const int64_t extent : {c.experts.n, c.experts.n_chosen, c.experts.intermediate}) hash.number(extent);
    hash.number(int64_t{c.experts.normalise});
    for (const uint8_t has : c.experts.layers) hash.number(int64_t{has});
  }
  const auto head_dim = static_cast<int>(c.head_dim);
  const RopeFrequencies rope = rope_frequencies(c.rope, head_dim, false);
  for (const double frequency : rope.inv_freq) hash.number(frequency);
  hash.number(rope.attention_scaling);
  if (c.rope.type == RopeType::kLongRope) {
    for (const double frequency : rope_frequencies(c.rope, head_dim, true).inv_freq) {
      hash.number(frequency);
    }
    hash.number(c.rope.original_max_position);
  }
}

void add_tensor(const TensorInfo& tensor, Hash& hash) {
  hash.text(tensor.name);
  hash.text(tensor.stored_dtype);
  hash.number(static_cast<int64_t>(tensor.shape.size()));
  for (const int64_t extent : tensor.shape) hash.number(extent);
  if (tensor.bytes <= kWhole) return hash.bytes(tensor.data, tensor.bytes);
  for (uint64_t at = 0; at + kSample <= tensor.bytes; at += kWhole) {
    hash.bytes(tensor.data + at, kSample);
  }
  hash.bytes(tensor.data + tensor.bytes - kSample, kSample);
}

}  // namespace

std::string fingerprint_of(const ModelConfig& config, const std::string& directory) {
  Hash hash;
  add_config(config, hash);
  if (directory.empty()) {
    hash.text("random weights");
    return hash.digits();
  }
  const Checkpoint checkpoint = Checkpoint::open(directory);
  for (const std::string_view name : checkpoint.names()) {
    const TensorInfo& tensor = *checkpoint.find_any(name);
    // What the engine cannot use, no result depends on.
    if (!tensor.supported && tensor.blocks == nullptr && !config.int_weights) continue;
    add_tensor(tensor, hash);
    // Of a file in huge pages a sample maps two MiB, beside the mapping that the weights are read from.
    wont_need(tensor);
  }
  return hash.digits();
}

}  // namespace tiercel
