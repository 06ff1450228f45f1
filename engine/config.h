// What a model is: config.json and generation_config.json of a Hugging Face directory, or what a GGUF file says
// instead, as numbers.
//
// Promises: a ModelConfig that parse_config returns is complete and consistent (extents positive
// and bounded, heads divisible, one sliding window per layer), follows the defaults of the
// transformers 5 configuration classes, and describes only what the engine computes: anything else
// is an Error that says what is supported. Knows nothing of weights; enough for an estimate without
// them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/ops/position.h"
#include "engine/fp8.h"
#include "engine/int_weights.h"
#include "engine/options.h"
#include "engine/rope.h"

namespace tiercel {

// How all tensors of a model are kept (engine/weights.h).
struct KeptWeights {
  int64_t bytes = 0;
  bool coded = false;  // some of them
  std::string text;    // in words; empty where all are bf16, and none integers in the checkpoint
};

enum class Architecture : uint8_t { kLlama, kMistral, kQwen2, kQwen3, kPhi3, kGlm, kGlm4, kMixtral, kQwen3Moe };
// "LlamaForCausalLM" and so on.
std::string_view name_of(Architecture architecture);

// Dual chunk attention (Qwen2.5-1M), which matters in contexts longer than one span, and what comes with it.
struct DualChunk {
  QuerySpans spans;
  int64_t scaled_from = 0;  // tokens beyond which scores are scaled (KvLayout::length_scale); 0: never

  // Tokens of which every query has one view; and those that are attended as without all this.
  int64_t tokens_of_one_view() const {
    if (spans.tokens == 0) return std::numeric_limits<int64_t>::max();
    return std::min(spans.limit_of(0) + 1, 2 * spans.tokens);
  }
  int64_t plain_tokens() const {
    return scaled_from > 0 ? std::min(tokens_of_one_view(), scaled_from) : tokens_of_one_view();
  }
  bool operator==(const DualChunk& other) const = default;
};

// A module of which a checkpoint has codes, and how those can be kept: bf16 where they cannot.
struct CodedModule {
  std::string name;
  WeightCode code = WeightCode::kBf16;
  int64_t group = 0;  // columns; 0: a whole row
  // Of a matrix of k columns.
  WeightCodec codec(int64_t k) const {
    return code == WeightCode::kBf16 ? WeightCodec{} : codec_in_groups(code, group, k);
  }
};

// Mixture of experts (Mixtral, Qwen3-MoE): the MLP of some layers, or of all.
struct Experts {
  int64_t n = 0;         // 0: every layer has one gated MLP
  int64_t n_chosen = 0;  // of a token
  int64_t intermediate = 0;  // width of each expert, a multiple of 8
  bool normalise = false;    // a token's weights are divided by their sum
  std::vector<uint8_t> layers;  // [n_layers]: whether it has experts
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  int64_t n_layers = 0;
  int64_t hidden = 0;        // width of the residual stream
  int64_t intermediate = 0;  // width of the gated MLP
  Experts experts;
  int64_t n_heads = 0;       // query heads, a multiple of n_kv_heads
  int64_t n_kv_heads = 0;
  int64_t head_dim = 0;  // even, <= 256; n_heads * head_dim need not equal hidden
  int64_t vocab_size = 0;
  double rms_eps = 1e-6;
  RopeSpec rope;
  bool tie_word_embeddings = false;  // lm_head.weight is model.embed_tokens.weight
  int64_t max_position_embeddings = 0;
  DualChunk dual_chunk;
  // Per layer [n_layers]: W > 0 lets the query at position i see keys i - W < j <= i; 0 is full,
  // as is a window of all positions.
  std::vector<int64_t> sliding_window;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;  // gate, up and down
  bool qk_norm = false;   // RMS norm of every query and key head, before RoPE
  bool fused_qkv = false;      // q, k and v are one tensor of the checkpoint, qkv_proj
  bool fused_gate_up = false;  // gate and up are one, gate_up_proj
  bool post_norms = false;     // what attention and the MLP give is normed before it is added
  // NOSA: a head that says of every token how much it will be attended, and biases attention by it.
  // config.json does not tell; the checkpoint's tensors do.
  bool eviction_head = false;
  std::optional<Fp8Weights> fp8;  // some matrices are 8-bit floats with scales
  std::optional<IntWeights> int_weights;  // some are integers with scales; not both
  std::string block_formats;  // of a GGUF file's matrices: "Q4_K, Q6_K"
  bool has_codes() const { return fp8 || int_weights || !block_formats.empty(); }
  // What config.json says that stays as it was: modules whose names have one of these in them. patterns: it has
  // others, which are not read.
  struct NotCoded {
    std::vector<std::string> names;
    bool patterns = false;
  } not_coded;
  // Modules of which the checkpoint has codes, sorted; null: what config.json says of it is all that is known.
  std::shared_ptr<const std::vector<CodedModule>> coded_modules;
  WeightForm weight_form = WeightForm::kStored;  // ModelOptions
  std::shared_ptr<const KeptWeights> kept;       // which takes milliseconds to find out of many experts; may be null
  // Beside a GPU: so many layers' feed-forward matrices stay in host memory (ModelOptions).
  int64_t host_layers = 0;

  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;  // generation stops at any of them; may be empty

  // Sampling that the model's authors recommend (generation_config.json), absent where they do not.
  struct Sampling {
    std::optional<bool> do_sample;
    std::optional<double> temperature, top_p, min_p, repetition_penalty;
    std::optional<int64_t> top_k;  // 0: off
  } sampling;

  bool has_experts(int64_t layer) const {
    return experts.n > 0 && experts.layers[static_cast<size_t>(layer)] != 0;
  }
  // Whether this layer is one of host_layers, which are spread evenly: while the layers between them are
  // computed, a prompt has the next one's brought to the device.
  bool feeds_from_host(int64_t layer) const {
    return (layer + 1) * host_layers / n_layers > layer * host_layers / n_layers;
  }
  // Width of all gated MLPs together that a token passes in a layer: most, and on average.
  int64_t widest_mlp() const;
  double mean_mlp_width() const;
  int64_t q_width() const { return n_heads * head_dim; }
  int64_t kv_width() const { return n_kv_heads * head_dim; }
};

// The configuration in `text`. `file` only serves the messages. Pure: what the fuzzer calls.
// Errors: not JSON, a missing or mistyped value, an inconsistency, something unsupported.
ModelConfig parse_config(std::string_view text, const std::string& file);

// Overrides token ids and fills the sampling defaults from a generation_config.json.
void apply_generation_config(ModelConfig& config, std::string_view text, const std::string& file);

// The flags that say so: "--dual-chunk 262144 --dual-chunk-local 8192 --scale-from 16384".
std::string flags_of(const DualChunk& dual);

// Sets dual_chunk where options say otherwise than config.json. Errors: numbers that do not go together, or
// with this model.
void set_reach(ModelConfig& config, const ReachOptions& options);

// Sets host_layers, as many as n_layers asks for; kAutoLayers: none, until host_layers_for says otherwise.
// Errors: more layers than there are, or a backend that has no use for it.
void set_host_layers(ModelConfig& config, int64_t n_layers, BackendKind backend);

// `path` is a model directory, a config.json by itself, or a GGUF file. A generation_config.json beside it is
// applied when it exists. Errors: those of the two parsers, and a missing config.json.
ModelConfig load_config(const std::filesystem::path& path);

}  // namespace tiercel
