#include "engine/config.h"

#include <algorithm>
#include <limits>

#include "engine/base/check.h"
#include "engine/base/ops/experts.h"
#include "engine/config_family.h"
#include "engine/config_rope.h"
#include "engine/gguf/gguf_config.h"
#include "engine/json.h"

namespace tiercel {
namespace {

// Generous bounds, as kMaxLayers.
constexpr int64_t kMaxHidden = 1 << 18;
constexpr int64_t kMaxIntermediate = 1 << 20;
constexpr int64_t kMaxHeadDim = 256;
constexpr int64_t kMaxVocab = 1 << 24;
constexpr size_t kMaxConfigBytes = size_t{16} << 20;

constexpr Family kFamilies[] = {
    {Architecture::kLlama, "LlamaForCausalLM", "llama", 0, 0, 2048},
    {Architecture::kMistral, "MistralForCausalLM", "mistral", 8, 0, 131072},
    {Architecture::kQwen2, "Qwen2ForCausalLM", "qwen2", 32, 0, 32768},
    {Architecture::kQwen3, "Qwen3ForCausalLM", "qwen3", 32, 128, 32768},
    {Architecture::kPhi3, "Phi3ForCausalLM", "phi3", 0, 0, 4096, 1e-5, 1.0},
    {Architecture::kGlm, "GlmForCausalLM", "glm", 2, 128, 131072, 1.5625e-7, 0.5},
    {Architecture::kGlm4, "Glm4ForCausalLM", "glm4", 2, 128, 131072, 1.5625e-7, 0.5},
    {Architecture::kMixtral, "MixtralForCausalLM", "mixtral", 8, 0, 131072, 1e-5, 0, 1e6},
    {Architecture::kQwen3Moe, "Qwen3MoeForCausalLM", "qwen3_moe", 4, 0, 32768},
};
constexpr int64_t kDefaultSlidingWindow = 4096;  // Mistral and Qwen: the key is absent
constexpr int64_t kDefaultMaxWindowLayers = 28;  // Qwen2, Qwen3

std::string listed(const char* Family::*name) {
  std::string list;
  for (const Family& family : kFamilies) {
    list += fmt::format("{}{}", list.empty() ? "" : ", ", family.*name);
  }
  return list;
}
std::string supported_families() { return listed(&Family::class_name); }

// `architectures` names the class whose weights were saved, `model_type` the configuration class;
// either is enough, both must agree.
const Family& find_family(const JsonNode& root, const std::string& file) {
  const Family* by_class = nullptr;
  const Family* by_type = nullptr;
  if (const auto list = root.find("architectures"); list && list->size() > 0) {
    const JsonNode first = (*list)[0];
    for (const Family& family : kFamilies) {
      if (first.text() == family.class_name) by_class = &family;
    }
    if (by_class == nullptr) first.unexpected("one of " + supported_families());
  }
  if (const auto type = root.find("model_type")) {
    for (const Family& family : kFamilies) {
      if (type->text() == family.model_type) by_type = &family;
    }
    if (by_type == nullptr) {
      type->unexpected("one of " + listed(&Family::model_type),
                       "supported architectures are " + supported_families());
    }
    if (by_class != nullptr && by_class != by_type) {
      type->unexpected(
          fmt::format("{}, as architectures names {}", by_class->model_type, by_class->class_name));
    }
  }
  const Family* family = by_class != nullptr ? by_class : by_type;
  if (family == nullptr) {
    fail("{}: expected architectures or model_type, found neither; supported are {}", file,
         supported_families());
  }
  return *family;
}

void read_extents(const JsonNode& root, const Family& family, ModelConfig& config) {
  config.n_layers = root.at("num_hidden_layers").integer(1, kMaxLayers);
  config.hidden = root.at("hidden_size").integer(1, kMaxHidden);
  config.intermediate = root.at("intermediate_size").integer(1, kMaxIntermediate);
  config.n_heads = root.at("num_attention_heads").integer(1, kMaxHeads);
  config.vocab_size = root.at("vocab_size").integer(1, kMaxVocab);
  config.max_position_embeddings =
      root.integer_or("max_position_embeddings", family.max_position_embeddings, 1, kMaxPosition);
  config.rms_eps = root.number_or("rms_norm_eps", family.rms_eps, 0.0, 1.0);

  // An explicit null means "as many as query heads" to every class; absence is another matter.
  config.n_kv_heads = config.n_heads;
  if (const auto node = root.find("num_key_value_heads")) {
    config.n_kv_heads = node->integer(1, kMaxHeads);
  } else if (!root.has("num_key_value_heads") && family.n_kv_heads != 0) {
    config.n_kv_heads = family.n_kv_heads;
  }
  if (config.n_heads % config.n_kv_heads != 0) {
    root.at("num_attention_heads")
        .unexpected(fmt::format("a multiple of num_key_value_heads ({})", config.n_kv_heads));
  }

  if (const auto node = root.find("head_dim")) {
    config.head_dim = node->integer(1, kMaxHeadDim);
    if (config.head_dim % 2 != 0) node->unexpected("an even number", "RoPE rotates pairs");
    return;
  }
  config.head_dim = family.head_dim;
  if (config.head_dim != 0) return;
  if (config.hidden % config.n_heads != 0) {
    root.at("hidden_size")
        .unexpected(fmt::format("a multiple of num_attention_heads ({})", config.n_heads),
                    "or an explicit head_dim");
  }
  config.head_dim = config.hidden / config.n_heads;
  if (config.head_dim % 2 != 0 || config.head_dim > kMaxHeadDim) {
    root.at("hidden_size")
        .unexpected(fmt::format("an even head_dim of at most {} (hidden_size / "
                                "num_attention_heads)",
                                kMaxHeadDim));
  }
}

// What MixtralConfig and Qwen3MoeConfig have, and assume where it is absent. num_local_experts is what
// transformers 5 calls the number in both.
Experts read_experts(const JsonNode& root, const ModelConfig& config) {
  const bool is_mixtral = config.architecture == Architecture::kMixtral;
  if (!is_mixtral && config.architecture != Architecture::kQwen3Moe) return {};
  Experts experts;
  const char* const count = root.find("num_experts") ? "num_experts" : "num_local_experts";
  experts.n = root.integer_or(count, is_mixtral ? 8 : 128, is_mixtral ? 1 : 0, kMaxExperts);
  if (experts.n == 0) return {};
  const int64_t most = std::min<int64_t>(experts.n, kMaxChosenExperts);
  const char* const chosen = "num_experts_per_tok";
  experts.n_chosen = root.integer_or(chosen, is_mixtral ? 2 : 8, 1, kMaxExperts);
  if (experts.n_chosen > most) {
    (root.has(chosen) ? root.at(chosen) : root).unexpected(fmt::format("at most {} experts per token", most));
  }
  const char* const width = is_mixtral ? "intermediate_size" : "moe_intermediate_size";
  experts.intermediate = root.integer_or(width, 768, 1, kMaxIntermediate);
  for (const char* key : {"hidden_size", width}) {
    if (root.has(key) && root.at(key).integer(1, kMaxIntermediate) % 8 != 0) {
      root.at(key).unexpected("a multiple of 8", "as the kernels of experts need it");
    }
  }
  experts.normalise = is_mixtral || root.boolean_or("norm_topk_prob", false);
  experts.layers.assign(static_cast<size_t>(config.n_layers), 1);
  if (is_mixtral) return experts;
  const int64_t step = root.integer_or("decoder_sparse_step", 1, 1, kMaxLayers);
  for (int64_t i = 0; i < config.n_layers; ++i) {
    experts.layers[static_cast<size_t>(i)] = (i + 1) % step == 0;
  }
  if (const auto dense = root.find("mlp_only_layers")) {
    for (size_t i = 0; i < dense->size(); ++i) {
      experts.layers[static_cast<size_t>((*dense)[i].integer(0, config.n_layers - 1))] = 0;
    }
  }
  return experts;
}

// Features that change the computation and that the engine does not have.
void refuse_unsupported(const JsonNode& root) {
  if (const auto node = root.find("hidden_act"); node && node->text() != "silu") {
    node->unexpected("\"silu\"", "no other activation is supported");
  }
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const auto rope = root.find(key);
    if (!rope) continue;
    if (const auto node = rope->find("mrope_section")) {
      node->unexpected("no multimodal RoPE", "text-only models are supported");
    }
    for (const char* nested : {"full_attention", "sliding_attention"}) {
      if (const auto node = rope->find(nested)) {
        node->unexpected("one RoPE for all layers", "RoPE per layer type is not supported");
      }
    }
  }
}

constexpr const char* kSupportedQuantisation =
    "of quantised weights FP8 (fp8, fbgemm_fp8, compressed-tensors) and integers of 4 and 8 bits (gptq, awq, "
    "compressed-tensors) are supported; use such a checkpoint, or the original one";

struct Quantisation {
  std::optional<Fp8Weights> fp8;
  std::optional<IntWeights> integers;
  ModelConfig::NotCoded not_coded = {};
};

// Of a list of modules, "re:" before a pattern.
void add_not_coded(const JsonNode& parent, const char* key, ModelConfig::NotCoded& found) {
  const auto list = parent.find(key);
  if (!list || !list->raw().is_array()) return;
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string& name = (*list)[i].text();
    // Heads and routers are coded by nobody.
    const bool is_plain = name.find("lm_head") != name.npos || name.ends_with("gate") || name.ends_with("gate$");
    if (is_plain || name.empty()) continue;
    if (name.starts_with("re:")) {
      found.patterns = true;
    } else {
      found.names.push_back(name);
    }
  }
}

int32_t read_bits(const JsonNode& node) {
  const int64_t bits = node.integer(1, 64);
  if (bits != 4 && bits != 8) node.unexpected("4 or 8", kSupportedQuantisation);
  return static_cast<int32_t>(bits);
}

// -1, as 0 of ours, is a group of a whole row.
int64_t read_group(const JsonNode& parent) {
  const auto node = parent.find("group_size");
  const int64_t group = node ? node->integer(-1, kMaxIntermediate) : -1;
  if (group == 0) node->unexpected("-1, or a number of columns");
  return std::max<int64_t>(group, 0);
}

IntWeights read_gptq(const JsonNode& node) {
  IntWeights found{.layout = IntWeights::Layout::kGptq, .bits = read_bits(node.at("bits"))};
  found.group = read_group(node);
  found.act_order = node.boolean_or("desc_act", false);
  found.less_one = true;
  if (const auto format = node.find("checkpoint_format")) {
    if (format->text() == "gptq_v2") {
      found.less_one = false;
    } else if (format->text() != "gptq") {
      format->unexpected("gptq or gptq_v2", kSupportedQuantisation);
    }
  }
  if (const auto rules = node.find("dynamic"); rules && rules->raw().is_object()) {
    for (const auto& [pattern, rule] : rules->raw().items()) {
      if (pattern.starts_with("-:")) continue;  // modules that stay as they are
      rules->unexpected("the same quantisation of all matrices", kSupportedQuantisation);
    }
  }
  return found;
}

IntWeights read_awq(const JsonNode& node) {
  IntWeights found{.layout = IntWeights::Layout::kAwq};
  const JsonNode bits = node.has("bits") ? node.at("bits") : node.at("w_bit");
  if (read_bits(bits) != 4) bits.unexpected("4", kSupportedQuantisation);
  const char* group = node.has("group_size") ? "group_size" : "q_group_size";
  found.group = std::max<int64_t>(node.at(group).integer(-1, kMaxIntermediate), 0);
  if (const auto version = node.find("version")) {
    if (version->text() != "gemm" && version->text() != "GEMM") version->unexpected("gemm", kSupportedQuantisation);
  }
  if (const auto zeros = node.find("zero_point")) {
    if (!zeros->boolean()) zeros->unexpected("true", kSupportedQuantisation);
  }
  return found;
}

// [128, 128] and the like.
Fp8Weights read_blocks(const JsonNode& parent, const char* key) {
  const auto node = parent.find(key);
  if (!node) return {};
  if (node->size() != 2) node->unexpected("rows and columns of a block");
  return {(*node)[0].integer(1, kMaxIntermediate), (*node)[1].integer(1, kMaxIntermediate)};
}

// Floats or integers; all groups of matrices have the same.
Quantisation read_compressed_tensors(const JsonNode& node) {
  const JsonNode groups = node.at("config_groups");
  groups.expect_object();
  if (const auto transform = node.find("transform_config"); transform && !transform->raw().empty()) {
    transform->unexpected("no rotations of activations", kSupportedQuantisation);
  }
  Quantisation found;
  for (const auto& [name, ignored] : groups.raw().items()) {
    const JsonNode group = groups.at(name.c_str());
    if (!group.find("weights")) continue;  // of activations or the KV cache alone
    const JsonNode weights = group.at("weights");
    const JsonNode type = weights.at("type"), bits = weights.at("num_bits");
    const auto own = group.find("format");
    const std::string format = own ? own->text() : node.has("format") ? node.at("format").text() : "";
    if (type.text() == "float") {
      if (bits.integer(1, 64) != 8) bits.unexpected("8", kSupportedQuantisation);
      const Fp8Weights blocks = read_blocks(weights, "block_structure");
      if (blocks.block_rows > 0 || !found.fp8) found.fp8 = blocks;
    } else if (type.text() == "int") {
      IntWeights integers{.layout = IntWeights::Layout::kPlain, .bits = read_bits(bits), .group = read_group(weights)};
      if (format == "pack-quantized") {
        integers.layout = IntWeights::Layout::kPacked;
      } else if (format != "int-quantized" || integers.bits != 8) {
        node.unexpected("format pack-quantized, or int-quantized of 8 bits", kSupportedQuantisation);
      }
      const auto order = weights.find("actorder");
      integers.act_order = order && (order->raw().is_string() ? order->text() == "group" || order->text() == "dynamic"
                                                              : order->boolean());
      if (found.integers && !(*found.integers == integers)) {
        groups.unexpected("the same quantisation of all matrices", kSupportedQuantisation);
      }
      found.integers = integers;
    } else {
      type.unexpected("float or int", kSupportedQuantisation);
    }
  }
  if (found.fp8 && found.integers) groups.unexpected("floats or integers, not both", kSupportedQuantisation);
  return found;
}

// What says how a checkpoint's matrices were quantised. Which of them are is for their tensors to say.
Quantisation read_quantisation(const JsonNode& root) {
  const auto node = root.find("quantization_config");
  if (!node) return {};
  const JsonNode method = node->at("quant_method");
  Quantisation found;
  if (method.text() == "fp8") {
    found.fp8 = read_blocks(*node, "weight_block_size");
  } else if (method.text() == "fbgemm_fp8") {
    found.fp8 = Fp8Weights{};
  } else if (method.text() == "gptq") {
    found.integers = read_gptq(*node);
    const auto rules = node->find("dynamic");
    found.not_coded.patterns = rules && !rules->raw().empty();
  } else if (method.text() == "awq") {
    found.integers = read_awq(*node);
  } else if (method.text() == "compressed-tensors") {
    found = read_compressed_tensors(*node);
  } else {
    method.unexpected("fp8, fbgemm_fp8, gptq, awq or compressed-tensors", kSupportedQuantisation);
  }
  add_not_coded(*node, "modules_to_not_convert", found.not_coded);
  add_not_coded(*node, "ignore", found.not_coded);
  return found;
}

// Which heads look at what in sparse attention (sparse_attention_config) is the business of those who
// have it; it approximates this.
DualChunk read_dual_chunk(const JsonNode& root) {
  const auto dual = root.find("dual_chunk_attention_config");
  if (!dual) return {};
  // Where local_size is more, keys two spans before would not be further away than those of one.
  const int64_t chunk = dual->at("chunk_size").integer(1, kMaxPosition);
  const int64_t local = dual->integer_or("local_size", 0, 0, chunk / 2);
  const int64_t scaled_from = dual->integer_or("original_max_position_embeddings", 0, 0, kMaxPosition);
  return {.spans = {.tokens = chunk - local, .local = local}, .scaled_from = scaled_from};
}

// 0: none. An explicit null is none too.
int64_t read_window(const JsonNode& root, int64_t fallback) {
  const auto node = root.find("sliding_window");
  if (node) return node->integer(1, kMaxPosition);
  return root.has("sliding_window") ? 0 : fallback;
}
int64_t read_qwen_window(const JsonNode& root) {
  return root.boolean_or("use_sliding_window", false) ? read_window(root, kDefaultSlidingWindow) : 0;
}

// layer_types, when given, names every layer's attention; otherwise Qwen slides from layer
// max_window_layers on.
std::vector<int64_t> read_qwen_windows(const JsonNode& root, int64_t n_layers) {
  const int64_t window = read_qwen_window(root);
  std::vector<int64_t> windows(static_cast<size_t>(n_layers), 0);
  const auto types = root.find("layer_types");
  if (!types) {
    const int64_t first =
        root.integer_or("max_window_layers", kDefaultMaxWindowLayers, 0, kMaxLayers);
    for (int64_t i = first; i < n_layers; ++i) windows[static_cast<size_t>(i)] = window;
    return windows;
  }
  if (types->size() != windows.size()) {
    types->unexpected(fmt::format("num_hidden_layers ({}) entries", n_layers));
  }
  for (size_t i = 0; i < windows.size(); ++i) {
    const JsonNode type = (*types)[i];
    if (type.text() == "sliding_attention") {
      if (window == 0) {
        type.unexpected("full_attention",
                        "sliding layers need use_sliding_window true and a sliding_window");
      }
      windows[i] = window;
    } else if (type.text() != "full_attention") {
      type.unexpected("full_attention or sliding_attention", "no other layer type is supported");
    }
  }
  return windows;
}

std::vector<int64_t> read_windows(const JsonNode& root, const ModelConfig& config) {
  if (config.architecture == Architecture::kQwen2 || config.architecture == Architecture::kQwen3) {
    return read_qwen_windows(root, config.n_layers);
  }
  int64_t window = 0;
  switch (config.architecture) {
    case Architecture::kMistral: window = read_window(root, kDefaultSlidingWindow); break;
    case Architecture::kPhi3:
    case Architecture::kMixtral: window = read_window(root, 0); break;
    case Architecture::kQwen3Moe: window = read_qwen_window(root); break;  // in all layers
    default: break;
  }
  // transformers ignores layer_types here with a warning; a file that means something else by it
  // must not be run as if it did not.
  if (const auto types = root.find("layer_types")) {
    const std::string_view meant = window > 0 ? "sliding_attention" : "full_attention";
    for (size_t i = 0; i < types->size(); ++i) {
      const JsonNode type = (*types)[i];
      if (type.text() != meant) {
        type.unexpected(meant, "this architecture has the same attention in all layers");
      }
    }
  }
  return std::vector<int64_t>(static_cast<size_t>(config.n_layers), window);
}

void read_token_ids(const JsonNode& root, ModelConfig& config) {
  const int64_t last = config.vocab_size - 1;
  if (const auto node = root.find("bos_token_id")) config.bos_token_id = node->integer(0, last);
  if (const auto node = root.find("eos_token_id")) {
    config.eos_token_ids.clear();
    if (node->raw().is_array()) {
      for (size_t i = 0; i < node->size(); ++i) {
        config.eos_token_ids.push_back((*node)[i].integer(0, last));
      }
    } else {
      config.eos_token_ids.push_back(node->integer(0, last));
    }
  }
}

// About a 32nd, at most half, so that spans are whole numbers of any chunks that are selected.
int64_t usual_local(int64_t chunk) {
  const int64_t span = chunk - chunk / 32;
  for (const int64_t unit : {1024, 64}) {
    const int64_t local = chunk - span / unit * unit;
    if (local <= chunk / 2) return local;
  }
  return chunk - span;
}

}  // namespace

std::string_view name_of(Architecture architecture) {
  for (const Family& family : kFamilies) {
    if (family.architecture == architecture) return family.class_name;
  }
  return "?";
}

int64_t ModelConfig::widest_mlp() const {
  const int64_t n_with = std::count(experts.layers.begin(), experts.layers.end(), 1);
  const int64_t widest = n_with > 0 ? experts.n_chosen * experts.intermediate : 0;
  return n_with < n_layers ? std::max(widest, intermediate) : widest;
}

double ModelConfig::mean_mlp_width() const {
  const int64_t n_with = std::count(experts.layers.begin(), experts.layers.end(), 1);
  const int64_t sum = n_with * experts.n_chosen * experts.intermediate + (n_layers - n_with) * intermediate;
  return static_cast<double>(sum) / static_cast<double>(n_layers);
}

ModelConfig parse_config(std::string_view text, const std::string& file) {
  const nlohmann::json document = parse_json(text, file, {.max_bytes = kMaxConfigBytes});
  const JsonNode root(document, file);
  root.expect_object();

  const Family& family = find_family(root, file);
  ModelConfig config;
  config.architecture = family.architecture;
  refuse_unsupported(root);
  read_extents(root, family, config);
  config.experts = read_experts(root, config);
  config.rope = read_rope(root, family, config);
  config.dual_chunk = read_dual_chunk(root);
  config.sliding_window = read_windows(root, config);
  // A window of all positions (Phi-3's of 128K) hides nothing from the queries that a model is made for.
  for (int64_t& window : config.sliding_window) {
    if (window >= config.max_position_embeddings) window = 0;
    if (window > 0 && config.dual_chunk.spans.tokens > 0) {
      root.at("dual_chunk_attention_config").unexpected("no sliding window beside it");
    }
  }
  const Quantisation quantisation = read_quantisation(root);
  config.fp8 = quantisation.fp8;
  config.int_weights = quantisation.integers;
  config.not_coded = quantisation.not_coded;
  config.tie_word_embeddings = root.boolean_or("tie_word_embeddings", false);

  switch (config.architecture) {
    case Architecture::kLlama:
      config.qkv_bias = config.o_bias = root.boolean_or("attention_bias", false);
      config.mlp_bias = root.boolean_or("mlp_bias", false);
      break;
    case Architecture::kMistral:
    case Architecture::kMixtral: break;
    case Architecture::kQwen2: config.qkv_bias = true; break;
    case Architecture::kQwen3:
    case Architecture::kQwen3Moe:
      config.qkv_bias = config.o_bias = root.boolean_or("attention_bias", false);
      config.qk_norm = true;
      break;
    case Architecture::kPhi3: config.fused_qkv = config.fused_gate_up = true; break;
    case Architecture::kGlm4: config.post_norms = true; [[fallthrough]];
    case Architecture::kGlm:
      config.rope.interleaved = true;
      config.qkv_bias = root.boolean_or("attention_bias", true);
      config.fused_gate_up = true;
      break;
  }
  read_token_ids(root, config);
  return config;
}

std::string flags_of(const DualChunk& dual) {
  return fmt::format("--dual-chunk {} --dual-chunk-local {} --scale-from {}",
                     dual.spans.tokens + dual.spans.local, dual.spans.local, dual.scaled_from);
}

void set_reach(ModelConfig& config, const ReachOptions& options) {
  DualChunk dual = config.dual_chunk;
  if (options.dual_chunk_local && !options.dual_chunk) {
    fail(ErrorKind::kUsage, "--dual-chunk-local: expected --dual-chunk beside it");
  }
  if (options.dual_chunk) {
    const int64_t chunk = *options.dual_chunk, local = options.dual_chunk_local.value_or(usual_local(chunk));
    if (local > chunk / 2) {
      fail(ErrorKind::kUsage, "--dual-chunk-local: expected at most half of the chunk, {}, found {}", chunk / 2,
           local);
    }
    dual.spans = {.tokens = chunk - local, .local = chunk == 0 ? 0 : local};
  }
  if (options.scale_from) dual.scaled_from = *options.scale_from;
  const bool reaches = dual.spans.tokens > 0 || dual.scaled_from > 0;
  for (const int64_t window : config.sliding_window) {
    if (reaches && window > 0) {
      fail(ErrorKind::kUsage, "--dual-chunk, --scale-from: this model has sliding windows, in which no query "
                              "looks far back");
    }
  }
  config.dual_chunk = dual;
}

void set_host_layers(ModelConfig& config, int64_t n_layers, BackendKind backend) {
  config.host_layers = 0;
  if (n_layers == 0 || n_layers == kAutoLayers) return;
  if (backend == BackendKind::kCpu) {
    fail(ErrorKind::kUsage, "--host-layers: on a CPU all weights are in host memory; leave it out");
  }
  if (n_layers > config.n_layers || n_layers < kAllLayers) {
    fail(ErrorKind::kUsage, "--host-layers: expected 0 to {} layers, all or auto, found {}", config.n_layers, n_layers);
  }
  config.host_layers = n_layers == kAllLayers ? config.n_layers : n_layers;
}

void apply_generation_config(ModelConfig& config, std::string_view text, const std::string& file) {
  const nlohmann::json document = parse_json(text, file, {.max_bytes = kMaxConfigBytes});
  const JsonNode root(document, file);
  read_token_ids(root, config);
  ModelConfig::Sampling& sampling = config.sampling;
  const auto number = [&](const char* key, double low, double high, std::optional<double>& target) {
    if (const auto node = root.find(key)) target = node->number(low, high);
  };
  if (const auto node = root.find("do_sample")) sampling.do_sample = node->boolean();
  if (const auto node = root.find("top_k")) sampling.top_k = node->integer(0, kMaxVocab);
  number("temperature", 0, 1000, sampling.temperature);
  number("top_p", 0, 1, sampling.top_p);
  number("min_p", 0, 1, sampling.min_p);
  number("repetition_penalty", 1e-3, 1e3, sampling.repetition_penalty);
}

ModelConfig load_config(const std::filesystem::path& path) {
  std::error_code ignored;
  // Also one that is not there: which then says so.
  if (is_gguf_file(path) || (path.extension() == ".gguf" && !std::filesystem::exists(path, ignored))) {
    return gguf_config(GgufModel::open(path));
  }
  const bool is_directory = std::filesystem::is_directory(path, ignored);
  const std::filesystem::path directory = is_directory ? path : path.parent_path();
  const std::filesystem::path file = is_directory ? path / "config.json" : path;
  std::error_code error;
  if (!std::filesystem::exists(file, error)) {
    if (error) fail("{}: cannot be opened: {}", file.string(), error.message());
    const std::string gguf = is_directory ? gguf_file_in(directory) : "";
    fail("{}: expected a model's config.json, found no such file; {}", file.string(),
         gguf.empty() ? "give a Hugging Face model directory, or a GGUF file"
                      : fmt::format("the folder holds {}: give -m that file", printable(gguf)));
  }
  const std::string name = file.filename().string();
  if (!is_directory && !name.ends_with(".json")) {
    fail(ErrorKind::kUsage, "{}: expected a Hugging Face model directory or a GGUF file, found another file; give the "
                            "directory that holds it",
         file.string());
  }
  ModelConfig config = parse_config(read_text_file(file, kMaxConfigBytes), file.string());
  const std::filesystem::path generation = directory / "generation_config.json";
  if (std::filesystem::exists(generation, ignored)) {
    apply_generation_config(config, read_text_file(generation, kMaxConfigBytes),
                            generation.string());
  }
  return config;
}

}  // namespace tiercel
