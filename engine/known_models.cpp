#include "engine/known_models.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "engine/base/check.h"

namespace tiercel {
namespace {

struct KnownModel {
  std::string_view name;
  std::string_view config;  // config.json, what parse_config reads of it
};

constexpr KnownModel kModels[] = {
    {"llama-3.1-8b",
     R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
     "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
     "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
     "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
     "max_position_embeddings": 131072, "tie_word_embeddings": false})"},
    {"llama-3.1-70b",
     R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192,
     "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
     "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
     "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
     "max_position_embeddings": 131072, "tie_word_embeddings": false})"},
    {"llama-3.2-1b",
     R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
     "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
     "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "rms_norm_eps": 1e-5,
     "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
     "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
     "max_position_embeddings": 131072, "tie_word_embeddings": true})"},
    {"llama-3.2-3b",
     R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 3072,
     "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
     "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "rms_norm_eps": 1e-5,
     "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
     "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
     "max_position_embeddings": 131072, "tie_word_embeddings": true})"},
    {"mistral-7b-v0.3",
     R"({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096,
     "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
     "num_key_value_heads": 8, "vocab_size": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
     "sliding_window": null, "max_position_embeddings": 32768, "tie_word_embeddings": false})"},
    {"qwen2.5-0.5b",
     R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
     "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
     "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
     "max_position_embeddings": 32768, "use_sliding_window": false, "tie_word_embeddings": true})"},
    {"qwen2.5-7b",
     R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584,
     "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
     "num_key_value_heads": 4, "vocab_size": 152064, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
     "max_position_embeddings": 131072, "use_sliding_window": false,
     "tie_word_embeddings": false})"},
    {"qwen2.5-7b-1m",
     R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584,
     "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
     "num_key_value_heads": 4, "vocab_size": 152064, "rms_norm_eps": 1e-5, "rope_theta": 10000000.0,
     "max_position_embeddings": 1010000, "use_sliding_window": false,
     "dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192,
     "original_max_position_embeddings": 262144}, "tie_word_embeddings": false})"},
    {"qwen3-8b",
     R"({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096,
     "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
     "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rms_norm_eps": 1e-6,
     "rope_theta": 1000000.0, "max_position_embeddings": 40960, "use_sliding_window": false,
     "tie_word_embeddings": false})"},
    {"qwen3-30b-a3b-1m",
     R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
     "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
     "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "num_hidden_layers": 48,
     "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
     "rms_norm_eps": 1e-6, "rope_theta": 10000000.0, "max_position_embeddings": 1010000,
     "use_sliding_window": false, "dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192,
     "original_max_position_embeddings": 262144}, "tie_word_embeddings": false})"},
    {"mixtral-8x7b",
     R"({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096,
     "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 32,
     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-5,
     "rope_theta": 1000000.0, "sliding_window": null, "max_position_embeddings": 32768,
     "tie_word_embeddings": false})"},
    {"glm-4-9b-1m",
     R"({"architectures": ["GlmForCausalLM"], "model_type": "glm", "hidden_size": 4096,
     "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 32,
     "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151552, "rms_norm_eps": 1.5625e-7,
     "rope_theta": 100000000.0, "partial_rotary_factor": 0.5, "attention_bias": true,
     "max_position_embeddings": 1048576, "tie_word_embeddings": false})"},
    // Without their LongRoPE factors, which change no speed.
    {"phi-3.5-mini",
     R"({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072,
     "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
     "num_key_value_heads": 32, "vocab_size": 32064, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
     "sliding_window": 262144, "max_position_embeddings": 131072, "tie_word_embeddings": false})"},
    {"phi-4-mini",
     R"({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072,
     "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24,
     "num_key_value_heads": 8, "vocab_size": 200064, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
     "partial_rotary_factor": 0.75, "sliding_window": 262144, "max_position_embeddings": 131072,
     "tie_word_embeddings": true})"},
};

}  // namespace

std::vector<std::string_view> known_models() {
  std::vector<std::string_view> names;
  for (const KnownModel& model : kModels) names.push_back(model.name);
  return names;
}

ModelConfig known_model(std::string_view name) {
  for (const KnownModel& model : kModels) {
    if (model.name == name) return parse_config(model.config, std::string(name));
  }
  fail(ErrorKind::kUsage, "expected one of {}, found '{}'", fmt::join(known_models(), ", "), name);
}

}  // namespace tiercel
