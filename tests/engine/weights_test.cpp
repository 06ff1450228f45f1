// What a damaged checkpoint makes of Model::open: an Error that names the file and the tensor.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/base/check.h"
#include "engine/config.h"
#include "engine/safetensors.h"
#include "engine/session.h"
#include "engine/weight_codes.h"
#include "engine/weight_store.h"
#include "tests/engine/backend.h"
#include "tests/engine/rms.h"
#include "tests/gguf_of_model.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

std::string model_directory(const std::string& name) { return TIERCEL_SOURCE_DIR "/tests/golden/models/" + name; }

// As a model is opened on a CPU.
ModelConfig config_of(const std::string& name, WeightForm form = WeightForm::kStored) {
  ModelConfig config = load_config(model_directory(name));
  learn_from_checkpoint(config, model_directory(name));
  set_weight_form(config, form);
  return config;
}

// Layers that feed from host memory are spread evenly, and what stays there is counted as it will lie.
TEST(HostLayers, WhatStaysInHostMemory) {
  for (const char* name : {"llama", "llama_tied", "llama_biases", "phi3_partial", "mixtral", "qwen3_moe_sparse_step",
                           "phi3_w4a16", "qwen3_moe_w4a16"}) {
    ModelConfig config = load_config(model_directory(name));
    for (int64_t n = 0; n <= config.n_layers; ++n) {
      set_host_layers(config, n, BackendKind::kCuda);
      config.host_layers = n;
      Weights weights;
      int64_t bytes = 0, largest = 0, n_feed = 0;
      std::vector<int64_t> of_layer(static_cast<size_t>(config.n_layers));
      for (const WeightTensor& tensor : weight_tensors(config, weights)) {
        if (!stays_on_host(config, tensor)) continue;
        const int64_t its = 2 * aligned_elements(tensor.kept_elements());
        bytes += its;
        EXPECT_EQ(tensor.shape.size(), 2u) << tensor.name;
        if (tensor.feeds_layer >= 0) of_layer[static_cast<size_t>(tensor.feeds_layer)] += its;
      }
      for (const int64_t its : of_layer) {
        largest = std::max(largest, its);
        n_feed += its > 0 ? 1 : 0;
      }
      EXPECT_EQ(n_feed, n) << name;
      EXPECT_EQ(host_weight_bytes(config), bytes) << name << ", " << n;
      EXPECT_EQ(largest_host_layer_bytes(config), largest) << name << ", " << n;
    }
    set_host_layers(config, kAllLayers, BackendKind::kCuda);
    EXPECT_EQ(config.host_layers, config.n_layers);
  }
  ModelConfig config;
  config.n_layers = 7;
  config.host_layers = 3;
  std::string spread;
  for (int64_t layer = 0; layer < 7; ++layer) spread += config.feeds_from_host(layer) ? 'h' : '.';
  EXPECT_EQ(spread, "..h.h.h");
}

// What keeps its weights elsewhere is given each of them, as they are loaded whole: mapped, decoded or turned.
TEST(ReadWeights, GivesWhatIsLoaded) {
  cpu::Queue queue;
  const std::pair<const char*, WeightForm> cases[] = {
      {"llama", {}},           {"llama_f16", {}},   {"llama_sharded", {}},   {"phi3_fp8", {}},
      {"glm4_yarn", {}},       {"qwen3_moe", {}},   {"llama_gptq", {}},      {"phi3_w4a16", {}},
      {"glm4_w8a8", {}},       {"qwen3_w4a16", {}}, {"qwen3_moe_w4a16", {}}, {"llama_gptq_act_order", {}},
      {"glm4_fp8", {}},        {"qwen3_fp8", {}},   {"qwen3_moe_fp8", {}},   {"llama_fp8", {}},
      {"glm4_w8a8", WeightForm::kInt4}, {"phi3_w4a16", WeightForm::kBf16}, {"mistral_awq", WeightForm::kInt8},
      {"glm4_fp8", WeightForm::kBf16},  {"qwen3_moe_fp8", WeightForm::kInt4}};
  for (const auto& [name, form] : cases) {
    const std::string directory = model_directory(name);
    const ModelConfig config = config_of(name, form);
    const auto store = WeightStore::load(directory, config, queue);
    EXPECT_EQ(store->bytes(), weight_bytes(config)) << name;
    Weights loaded = store->weights();
    const std::vector<WeightTensor> tensors = weight_tensors(config, loaded);
    for (const int64_t at_once : {1, 9000, 1 << 20}) {
      size_t next = 0;
      const auto compare = [&](size_t i, const bf16* values) {
        ASSERT_EQ(i, next++);
        const auto bytes = static_cast<size_t>(tensors[i].kept_elements()) * sizeof(bf16);
        EXPECT_EQ(std::memcmp(values, *tensors[i].target, bytes), 0) << name << ": " << tensors[i].name;
      };
      read_weights(directory, config, queue, compare, at_once);
      EXPECT_EQ(next, tensors.size()) << name;
    }
  }
}

// Every logit of a prompt, of its continuation, appended or step by step; and bytes of weights.
std::pair<std::vector<float>, int64_t> logits_and_bytes(const std::string& path, WeightForm form) {
  const auto model = Model::open(path, {.backend = test::kBackend, .n_threads = 2, .weight_form = form});
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 90; ++i) prompt.push_back(3 + 31 * i % 90);
  auto session = Session::open(model, Session::plan(*model, {}, std::ssize(prompt), 40));
  std::vector<float> all;
  const auto keep = [&] { all.insert(all.end(), session->logits().begin(), session->logits().end()); };
  EXPECT_TRUE(session->prefill(prompt, {}));
  keep();
  EXPECT_TRUE(session->append(std::vector<int32_t>{5, 6, 7, 8, 9, 10, 11}, {}));
  keep();
  for (const int32_t token : {12, 13}) {
    session->step(token);
    keep();
  }
  return {all, model->weight_bytes()};
}

// A checkpoint's codes are kept where they can be, and what they decode to is what decoding them when they are
// loaded gives.
TEST(CodedWeights, GiveTheLogitsOfDecodedOnes) {
  const auto logits_of = [](const std::string& name, WeightForm form) {
    return logits_and_bytes(model_directory(name), form);
  };
  for (const char* name : {"llama_gptq", "qwen2_gptq_int8", "mistral_awq", "qwen3_w4a16", "phi3_w4a16", "glm4_w8a8",
                           "qwen3_moe_w4a16", "glm4_fp8", "phi3_fp8", "qwen3_moe_fp8", "qwen3_fp8"}) {
    const auto [coded, coded_bytes] = logits_of(name, WeightForm::kStored);
    const auto [decoded, decoded_bytes] = logits_of(name, WeightForm::kBf16);
    const ModelConfig config = config_of(name);
    const int32_t bits = config.fp8 ? 8 : config.int_weights->bits;
    // A GPU's warps share four bits otherwise, so that sums have another order.
    if (test::kBackend == BackendKind::kCpu || bits == 8) {
      EXPECT_EQ(coded, decoded) << name;
    } else {
      EXPECT_LT(test::rms_difference(coded, decoded), 0.02) << name;
    }
    if (test::kBackend != BackendKind::kCpu) continue;  // there tensors lie further apart
    EXPECT_EQ(decoded_bytes, 2 * parameter_count(config)) << name;
    // Of four bits and a param for every 32 to 128, or of eight; rows are padded to 64 bytes.
    int64_t matrices = 0, kept = 0;
    Weights weights;
    for (const WeightTensor& tensor : weight_tensors(config, weights)) {
      if (!tensor.codec.is_coded()) continue;
      matrices += 2 * tensor.n_elements();
      kept += 2 * tensor.kept_elements();
      EXPECT_EQ(tensor.codec.bits(), bits) << tensor.name;
    }
    EXPECT_GT(matrices, 0) << name;
    EXPECT_EQ(decoded_bytes - coded_bytes, matrices - kept) << name;
    EXPECT_LE(static_cast<double>(kept), (bits == 4 ? 0.5 : 0.76) * static_cast<double>(matrices))
        << name;
  }
  // What is left as it was is bf16, and what cannot be kept as codes.
  ModelConfig config = config_of("qwen3_w4a16");
  Weights weights;
  weight_tensors(config, weights);
  EXPECT_FALSE(weights.layers[0].o.codec.is_coded());
  EXPECT_EQ(weights.layers[1].o.codec, (WeightCodec{WeightCode::kInt4, 32}));
  // One expert's matrix is none of codes: neither are the others', nor gate's beside up's.
  config = config_of("qwen3_moe_w4a16");
  weight_tensors(config, weights);
  EXPECT_TRUE(weights.layers[0].expert_gate.codec.is_coded() && weights.layers[0].expert_up.codec.is_coded());
  EXPECT_FALSE(weights.layers[1].expert_gate.codec.is_coded() || weights.layers[1].expert_up.codec.is_coded());
  EXPECT_EQ(weights.layers[1].expert_down.codec, (WeightCodec{WeightCode::kInt4, 64}));
  EXPECT_TRUE(kept_weights(config_of("llama_gptq", WeightForm::kInt4)).text.ends_with("rounded; the rest bf16"));
  EXPECT_EQ(weight_bytes(config_of("llama_gptq_act_order")), 2 * parameter_count(config_of("llama_gptq_act_order")));
  EXPECT_EQ(kept_weights(config_of("llama_gptq_act_order")).text, "the checkpoint's integers, decoded to bf16");
  EXPECT_EQ(kept_weights(config_of("llama")).text, "");
  // Without its tensors: what config.json says, and bf16 where that is not clear.
  ModelConfig unread = load_config(model_directory("qwen3_fp8"));
  const int64_t coded_bytes = weight_bytes(unread);
  EXPECT_EQ(coded_bytes, weight_bytes(config_of("qwen3_fp8")));
  unread.not_coded.names = {"layers.0.mlp."};
  weight_tensors(unread, weights);
  EXPECT_FALSE(weights.layers[0].up.codec.is_coded());
  EXPECT_TRUE(weights.layers[0].q.codec.is_coded() && weights.layers[1].up.codec.is_coded());
  EXPECT_GT(weight_bytes(unread), coded_bytes);
  unread.not_coded.patterns = true;
  EXPECT_EQ(weight_bytes(unread), 2 * parameter_count(unread));
  // Blocks of 48 columns; those of 64 share params, and scales of rows serve all of a row's.
  EXPECT_EQ(kept_weights(config_of("llama_fp8")).text, "the checkpoint's 8-bit floats, decoded to bf16");
  weight_tensors(config_of("qwen3_moe_fp8"), weights);
  EXPECT_EQ(weights.layers[0].expert_up.codec, (WeightCodec{WeightCode::kE4M3, 64}));
  EXPECT_FALSE(weights.layers[1].expert_gate.codec.is_coded() || weights.layers[1].expert_up.codec.is_coded());
  weight_tensors(config_of("glm4_fp8", WeightForm::kInt8), weights);
  EXPECT_EQ(weights.layers[0].up.codec, (WeightCodec{WeightCode::kE4M3, 128}));
  EXPECT_EQ(weights.embedding.codec, kInt8Weights);
}

// Rounded weights: a model of them is near the one that it was made from, and none but they are.
TEST(CodedWeights, RoundedOnesAreNear) {
  std::vector<std::vector<float>> logits;
  std::vector<std::string> fingerprints;
  std::vector<int64_t> bytes;
  for (const WeightForm form : {WeightForm::kStored, WeightForm::kBf16, WeightForm::kInt8, WeightForm::kInt4}) {
    const auto model = Model::open(TIERCEL_SOURCE_DIR "/tools/demo/recall-4m",
                                   {.backend = BackendKind::kCpu, .n_threads = 2, .weight_form = form});
    std::vector<int32_t> prompt;
    for (int32_t i = 0; i < 200; ++i) prompt.push_back(3 + 31 * i % 1900);
    auto session = Session::open(model, Session::plan(*model, {}, std::ssize(prompt), 1));
    ASSERT_TRUE(session->prefill(prompt, {}));
    logits.emplace_back(session->logits().begin(), session->logits().end());
    fingerprints.push_back(model->fingerprint());
    bytes.push_back(model->weight_bytes());
  }
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_EQ(fingerprints[0], fingerprints[1]);
  EXPECT_EQ(std::set(fingerprints.begin(), fingerprints.end()).size(), 3u);
  EXPECT_LT(bytes[2], bytes[1]);
  EXPECT_LT(bytes[3], bytes[2]);
  double scale = 0;
  for (const float logit : logits[0]) scale += double{logit} * double{logit};
  scale = std::sqrt(scale / static_cast<double>(logits[0].size()));
  const double of_8 = test::rms_difference(logits[2], logits[0]) / scale;
  const double of_4 = test::rms_difference(logits[3], logits[0]) / scale;
  EXPECT_GT(of_8, 1e-4);
  EXPECT_LT(of_8, 0.02);
  EXPECT_GT(of_4, of_8);
  EXPECT_LT(of_4, 0.2);
}

class DamagedModel : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "tiercel-weights-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    use("llama");
  }
  void use(const char* model) {
    for (const char* file : {"config.json", "generation_config.json", "model.safetensors"}) {
      fs::copy(fs::path(TIERCEL_SOURCE_DIR "/tests/golden/models") / model / file, directory_ / file,
               fs::copy_options::overwrite_existing);
      fs::permissions(directory_ / file, fs::perms::owner_write, fs::perm_options::add);
    }
  }
  void TearDown() override { fs::remove_all(directory_); }

  // Overwrites bytes of the weights file.
  void poke(uint64_t offset, std::string_view bytes) {
    std::fstream file(directory_ / "model.safetensors",
                      std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    ASSERT_TRUE(file.good());
  }
  uint64_t offset_of(const char* tensor) {
    return SafetensorsFile::open(directory_ / "model.safetensors").find(tensor)->offset;
  }
  void replace_in(const char* file, const std::string& from, const std::string& to) {
    std::ifstream in(directory_ / file, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    std::ofstream(directory_ / file, std::ios::binary) << text.replace(at, from.size(), to);
  }
  void replace_in_config(const std::string& from, const std::string& to) {
    replace_in("config.json", from, to);
  }
  // A tensor's name, or what else the file's header says of it.
  void replace_in_header(const std::string& from, const std::string& to) {
    ASSERT_EQ(from.size(), to.size());
    replace_in("model.safetensors", from, to);
  }
  std::string error() {
    try {
      Model::open(directory_.string(), {.backend = BackendKind::kCpu, .n_threads = 2});
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kRuntime);
      return e.what();
    }
    ADD_FAILURE() << "opened";
    return {};
  }

  fs::path directory_;
};

void expect_mentions(const std::string& message, std::initializer_list<const char*> words) {
  for (const char* word : words) {
    EXPECT_NE(message.find(word), std::string::npos) << word << " in: " << message;
  }
}

TEST_F(DamagedModel, OpensWhenNothingIsWrong) {
  EXPECT_EQ(Model::open(directory_.string(), {.backend = BackendKind::kCpu, .n_threads = 2})
                ->config()
                .n_layers,
            2);
}

TEST_F(DamagedModel, NanWeightsAreSaid) {
  const char* tensor = "model.layers.1.mlp.up_proj.weight";
  poke(offset_of(tensor) + 2 * 77, std::string_view("\xc0\x7f", 2));  // bf16 NaN
  expect_mentions(error(), {"model.safetensors", tensor, "77"});
}

TEST_F(DamagedModel, IsReadAsItIsLoaded) {
  poke(offset_of("model.layers.1.mlp.up_proj.weight") + 2 * 77, std::string_view("\xc0\x7f", 2));
  cpu::Queue queue;
  std::string why;
  try {
    read_weights(directory_, load_config(directory_), queue, [](size_t, const bf16*) {});
  } catch (const Error& error) {
    why = error.what();
  }
  EXPECT_EQ(why, error());
}

TEST_F(DamagedModel, InfiniteWeightsAreSaid) {
  const char* tensor = "model.norm.weight";
  poke(offset_of(tensor), std::string_view("\x80\xff", 2));  // bf16 -inf
  expect_mentions(error(), {"model.safetensors", tensor});
}

TEST_F(DamagedModel, WrongShapeIsSaid) {
  replace_in_config("\"intermediate_size\": 48", "\"intermediate_size\": 64");
  expect_mentions(error(), {"model.layers.0.mlp.gate_proj.weight", "[64, 64]", "[48, 64]"});
}

TEST_F(DamagedModel, MissingTensorIsSaid) {
  replace_in_config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
  expect_mentions(error(), {"model.layers.2."});
}

TEST_F(DamagedModel, TensorsThatWouldBeIgnoredAreSaid) {
  replace_in_config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
  expect_mentions(error(), {"model.safetensors", "model.layers.1.", "LlamaForCausalLM of 1 layers"});
  // The biases of a Qwen2 checkpoint, which a Llama has not.
  use("qwen2");
  replace_in_config("Qwen2ForCausalLM", "LlamaForCausalLM");
  replace_in_config("\"model_type\": \"qwen2\"", "\"model_type\": \"llama\"");
  expect_mentions(error(), {"model.safetensors", "model.layers.0.self_attn.", "_proj.bias"});
}

// What is wrong is found within the checkpoint's tensor, of which ours is a part.
TEST_F(DamagedModel, FusedTensors) {
  use("phi3_window");  // 2 heads and a KV head of 64 channels, hidden 128, MLP 32
  const char* gate_up = "model.layers.1.mlp.gate_up_proj.weight";
  poke(offset_of(gate_up) + 2 * 5000, std::string_view("\xc0\x7f", 2));
  expect_mentions(error(), {"model.safetensors", gate_up, "element 5000 "});
  use("phi3_window");
  replace_in_config("\"intermediate_size\": 32", "\"intermediate_size\": 64");
  expect_mentions(error(), {"model.layers.0.mlp.gate_up_proj.weight", "[128, 128]", "[64, 128]"});
  use("phi3_window");
  replace_in_header("layers.1.self_attn.qkv_proj", "layers.1.self_attn.qkv_pro_");
  expect_mentions(error(), {"model.layers.1.self_attn.qkv_proj.weight"});
}

TEST_F(DamagedModel, Experts) {
  use("qwen3_moe");  // 8 experts of 24
  const char* up = "model.layers.2.mlp.experts.5.up_proj.weight";
  poke(offset_of(up) + 2 * 77, std::string_view("\xc0\x7f", 2));
  expect_mentions(error(), {"model.safetensors", up, "element 77 "});
  use("qwen3_moe");
  replace_in_header("layers.2.mlp.experts.7.down_proj", "layers.2.mlp.experts.7.down_pro_");
  expect_mentions(error(), {"model.layers.2.mlp.experts.7.down_proj.weight"});
  use("qwen3_moe");
  replace_in_config("\"moe_intermediate_size\": 24", "\"moe_intermediate_size\": 32");
  expect_mentions(error(), {"model.layers.0.mlp.experts.0.gate_proj.weight", "[32, 64]", "[24, 64]"});
  use("qwen3_moe");
  replace_in_config("\"num_experts\": 8", "\"num_experts\": 7");
  expect_mentions(error(), {"model.layers.0.mlp.gate.weight", "[7, 64]", "[8, 64]"});
  use("mixtral");
  replace_in_header("layers.1.block_sparse_moe.experts.3.w3", "layers.1.block_sparse_moe.experts.3.w4");
  expect_mentions(error(), {"model.layers.1.block_sparse_moe.experts.3.w3.weight"});
}

TEST_F(DamagedModel, Fp8) {
  use("llama_fp8");
  replace_in_header("layers.1.mlp.up_proj.weight_scale_inv", "layers.1.mlp.up_proj.weight_scale_in_");
  expect_mentions(error(), {"model.safetensors", "model.layers.1.mlp.up_proj.weight is F8_E4M3", "weight_scale_inv"});
  use("llama_fp8");
  const char* tensor = "model.layers.1.mlp.down_proj.weight";
  poke(offset_of(tensor) + 77, "\xff");  // NaN
  expect_mentions(error(), {tensor, "element 77 "});
  use("llama_fp8");
  const char* scales = "model.layers.0.self_attn.k_proj.weight_scale_inv";
  poke(offset_of(scales) + 4, std::string_view("\0\0\x80\x7f", 4));  // infinity
  expect_mentions(error(), {scales, "element 1 "});
  use("llama_fp8");
  replace_in_config("48\n", "64\n");  // of a block
  expect_mentions(error(), {"_proj.weight_scale_inv", "or for each block", "found shape"});
  use("llama_fp8");
  replace_in_config("\"quantization_config\"", "\"other\"");
  expect_mentions(error(), {"_proj.weight", "F8_E4M3", "quantization_config"});
  // Codes that stay codes.
  use("qwen3_fp8");
  poke(offset_of(tensor) + 77, "\xff");
  expect_mentions(error(), {tensor, "element 77 "});
  const char* block = "model.layers.1.mlp.down_proj.weight_scale_inv";
  use("qwen3_fp8");
  poke(offset_of(block), std::string_view("\0\0\x80\x7e", 4));  // 2^126
  expect_mentions(error(), {tensor, "too large for bf16"});
  use("qwen3_fp8");
  poke(offset_of(block), std::string_view("\0\0\x40\x7b", 4));  // 1.5 * 2^119, of which 448 are
  expect_mentions(error(), {tensor, "too large for bf16"});
  use("qwen3_fp8");
  replace_in_header("layers.1.mlp.up_proj.weight_scale_inv", "layers.1.mlp.up_proj.weight_scale_in_");
  expect_mentions(error(), {"model.layers.1.mlp.up_proj.weight is F8_E4M3", "weight_scale_inv"});
  use("phi3_fp8");
  replace_in_header("\"model.layers.0.input_layernorm.weight\"", "\"model.layers.0.input_layernorm.w_ight\"");
  expect_mentions(error(), {"model.layers.0.input_layernorm.weight"});
}

TEST_F(DamagedModel, CodesAndTheirScalesAreChecked) {
  use("llama_gptq");
  replace_in_header("layers.1.mlp.up_proj.qzeros", "layers.1.mlp.up_proj.qzer_s");
  expect_mentions(error(), {"model.safetensors", "model.layers.1.mlp.up_proj is quantised", "up_proj.qzeros"});
  use("llama_gptq");
  const char* scales = "model.layers.0.self_attn.k_proj.scales";
  poke(offset_of(scales) + 2, std::string_view("\x00\x7c", 2));  // infinity
  expect_mentions(error(), {scales, "element 1 "});
  use("llama_gptq");
  replace_in_config("\"group_size\": 32", "\"group_size\": 64");
  expect_mentions(error(), {"_proj.qzeros", "expected shape", "config.json"});
  use("llama_gptq");
  replace_in_config("\"group_size\": 32", "\"group_size\": 48");
  expect_mentions(error(), {"_proj", "groups of 48 columns", "config.json"});
  use("llama_gptq");
  replace_in_config("\"bits\": 4", "\"bits\": 8");
  expect_mentions(error(), {"_proj.qweight", "expected shape"});
  use("llama_gptq");
  poke(offset_of("model.layers.1.mlp.down_proj.bias"), std::string_view("\x01", 1));
  expect_mentions(error(), {"model.layers.1.mlp.down_proj.bias", "would be ignored"});
  use("llama_gptq");
  replace_in_config("\"quantization_config\"", "\"other\"");
  expect_mentions(error(), {"_proj.weight", "expected a tensor"});
  // A matrix of which there is neither.
  use("llama_gptq");
  replace_in_header("layers.1.mlp.up_proj.qweight", "layers.1.mlp.up_proj.qweigh_");
  expect_mentions(error(), {"model.layers.1.mlp.up_proj.weight"});

  use("llama_gptq_act_order");
  const char* groups = "model.layers.0.mlp.gate_proj.g_idx";
  poke(offset_of(groups) + 4, std::string_view("\x04\0\0\0", 4));  // of four groups
  expect_mentions(error(), {groups, "0 to 3", "found 4 at column 1"});
  use("llama_gptq_act_order");
  replace_in_config("\"desc_act\": true", "\"desc_act\": false");
  expect_mentions(error(), {"g_idx", "order of their groups", "desc_act"});

  use("mistral_awq");
  replace_in_header("layers.1.mlp.up_proj.scales", "layers.1.mlp.up_proj.scale_");
  expect_mentions(error(), {"up_proj.scales"});
  use("qwen3_w4a16");
  const char* packed = "model.layers.1.self_attn.q_proj.weight_scale";
  poke(offset_of(packed), std::string_view("\xc0\x7f", 2));  // NaN
  expect_mentions(error(), {packed, "element 0 "});
  use("glm4_w8a8");
  replace_in_header("layers.1.mlp.gate_up_proj.weight_scale", "layers.1.mlp.gate_up_proj.weight_scal_");
  expect_mentions(error(), {"gate_up_proj.weight_scale"});
}

TEST_F(DamagedModel, AHeadThatIsNotTheEmbeddingIsSaid) {
  replace_in_config("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
  expect_mentions(error(), {"model.safetensors", "lm_head.weight", "tie_word_embeddings"});
}

TEST_F(DamagedModel, TruncatedFileIsSaid) {
  const fs::path file = directory_ / "model.safetensors";
  fs::resize_file(file, fs::file_size(file) - 1);
  expect_mentions(error(), {"model.safetensors"});
}

// A file with a hole where they would be: nothing of it is read.
TEST_F(DamagedModel, WeightsThatNoMemoryHolds) {
  constexpr int64_t kTooMuch = int64_t{500} << 30;
  if (int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE) > kTooMuch) GTEST_SKIP() << "this machine has more";
  replace_in_config("\"hidden_size\": 64", "\"hidden_size\": 8192");
  replace_in_config("\"vocab_size\": 256", "\"vocab_size\": 16777216");
  nlohmann::ordered_json header;
  int64_t end = 0;
  Weights unused;
  for (const WeightTensor& tensor : weight_tensors(load_config(directory_ / "config.json"), unused)) {
    const int64_t bytes = 2 * tensor.n_elements();
    header[tensor.name] = {{"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {end, end + bytes}}};
    end += bytes;
  }
  ASSERT_GT(end, kTooMuch);
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::ofstream(directory_ / "model.safetensors", std::ios::binary)
      .write(reinterpret_cast<const char*>(&length), 8)
      .write(text.data(), static_cast<std::streamsize>(length));
  fs::resize_file(directory_ / "model.safetensors", 8 + length + static_cast<uint64_t>(end));
  try {
    Model::open(directory_.string(), {.backend = BackendKind::kCpu, .n_threads = 2});
    FAIL() << "opened";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kDoesNotFit);
    EXPECT_NE(std::string(e.what()).find("its weights take"), std::string::npos) << e.what();
  }
}

// The demo model in a GGUF file, in bf16 or in blocks, kept as codes or decoded.
TEST(GgufWeights, GiveTheLogitsOfDecodedOnes) {
  const std::string model = TIERCEL_SOURCE_DIR "/tools/demo/recall-4m";
  const std::string file = fs::temp_directory_path() / fmt::format("tiercel_weights_{}.gguf", ::getpid());
  const auto logits_of = [&](const test::Quantiser* matrices, const test::Quantiser* embedding, WeightForm form) {
    test::write_gguf(model, file, matrices, embedding);
    return logits_and_bytes(file, form);
  };
  const auto [original, bytes] = logits_and_bytes(model, WeightForm::kStored);
  EXPECT_EQ(logits_of(nullptr, nullptr, WeightForm::kStored), std::pair(original, bytes));
  struct Case {
    const test::Quantiser *matrices, *embedding;
    double share;  // of bf16's bytes, at most
    double error;  // of logits, rms: less than this, and more than a tenth of it
    const char* text;
  };
  for (const Case& c : {Case{&test::kQ8_0, &test::kQ8_0, 0.62, 0.2, "100 % in 8 bits, groups of 32"},
                        Case{&test::kQ4_0, &test::kQ8_0, 0.4, 2, "groups of 32, as the checkpoint has them"},
                        Case{&test::kQ4_K, &test::kQ6_K, 0.42, 2, "12 % in 8 bits, groups of 16, as the checkpoint has"},
                        Case{&test::kQ4_1, nullptr, 1, 2, "the checkpoint's Q4_1, decoded to bf16"}}) {
    const auto [kept, kept_bytes] = logits_of(c.matrices, c.embedding, WeightForm::kStored);
    const auto [decoded, decoded_bytes] = logits_and_bytes(file, WeightForm::kBf16);
    const bool is_exact = test::kBackend == BackendKind::kCpu || c.matrices == &test::kQ8_0;  // as above
    if (is_exact) {
      EXPECT_EQ(kept, decoded) << c.text;
    } else {
      EXPECT_LT(test::rms_difference(kept, decoded), 0.02) << c.text;
    }
    EXPECT_EQ(decoded_bytes, bytes) << c.text;
    EXPECT_LE(static_cast<double>(kept_bytes), c.share * static_cast<double>(bytes)) << c.text;
    const double error = test::rms_difference(decoded, original);
    EXPECT_LT(error, c.error) << c.text;
    EXPECT_GT(error, c.error / 50) << c.text;
    ModelConfig config = load_config(file);
    set_weight_form(config, WeightForm::kStored);
    EXPECT_TRUE(config.kept->text.find(c.text) != std::string::npos) << config.kept->text;
    EXPECT_EQ(weight_bytes(config), test::kBackend == BackendKind::kCpu ? kept_bytes : weight_bytes(config));
  }
  fs::remove(file);
}

}  // namespace
}  // namespace tiercel
