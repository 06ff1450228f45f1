// The demo model, or another Llama, as a GGUF file: what llama.cpp's converter makes of one, and simple quantisers.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "tests/gguf_writer.h"

namespace tiercel::test {

// f16 of a number that is not too large for it, cut.
inline uint16_t half_of(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const int32_t exponent = static_cast<int32_t>(bits >> 23 & 0xff) - 127 + 15;
  if (exponent <= 0) return static_cast<uint16_t>((bits >> 16 & 0x8000) | static_cast<uint32_t>(std::abs(value) * 0x1p24f));
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 0x3ff));
}

struct Quantiser {
  uint32_t type;
  int64_t elements;
  std::string (*block)(const float* values);
};

inline std::string q8_0_block(const float* x) {
  float most = 1e-3f;
  for (int i = 0; i < 32; ++i) most = std::max(most, std::abs(x[i]));
  const uint16_t scale = half_of(most / 127 * 1.001f);
  std::string block = GgufWriter::bytes(scale);
  for (int i = 0; i < 32; ++i) block += static_cast<char>(std::lround(x[i] / f16_to_float(scale)));
  return block;
}

inline std::string q4_0_block(const float* x) {
  float most = 1e-3f;
  for (int i = 0; i < 32; ++i) most = std::max(most, std::abs(x[i]));
  const uint16_t scale = half_of(most / 7);
  const auto code = [&](int i) {
    return static_cast<uint32_t>(std::clamp(std::lround(x[i] / f16_to_float(scale)) + 8, 0L, 15L));
  };
  std::string block = GgufWriter::bytes(scale);
  for (int i = 0; i < 16; ++i) block += static_cast<char>(code(i) | code(i + 16) << 4);
  return block;
}

inline std::string q4_1_block(const float* x) {
  const auto [low, high] = std::minmax_element(x, x + 32);
  const uint16_t scale = half_of(std::max((*high - *low) / 15, 1e-4f) * 1.001f), least = half_of(*low);
  const auto code = [&](int i) {
    return static_cast<uint32_t>(std::clamp(std::lround((x[i] - f16_to_float(least)) / f16_to_float(scale)), 0L, 15L));
  };
  std::string block = GgufWriter::bytes(scale) + GgufWriter::bytes(least);
  for (int i = 0; i < 16; ++i) block += static_cast<char>(code(i) | code(i + 16) << 4);
  return block;
}

// Super-block formats: every group's least value and range, in 63rds of the largest ones.
struct SuperGroups {
  explicit SuperGroups(const float* x) {
    float largest_scale = 1e-4f, largest_minimum = 1e-4f;
    for (int g = 0; g < 8; ++g) {
      const auto [low, high] = std::minmax_element(x + 32 * g, x + 32 * g + 32);
      minima[g] = std::max(-*low, 0.0f);
      scales[g] = (std::max(*high, 0.0f) + minima[g]);
      largest_scale = std::max(largest_scale, scales[g]);
      largest_minimum = std::max(largest_minimum, minima[g]);
    }
    scale = half_of(largest_scale / 15 / 63 * 1.01f);
    minimum = half_of(largest_minimum / 63 * 1.01f);
    for (int g = 0; g < 8; ++g) {
      s[g] = static_cast<uint8_t>(std::clamp(std::lround(scales[g] / 15 / f16_to_float(scale)), 0L, 63L));
      m[g] = static_cast<uint8_t>(std::clamp(std::lround(minima[g] / f16_to_float(minimum)), 0L, 63L));
    }
  }
  float scales[8], minima[8];
  uint16_t scale, minimum;
  uint8_t s[8], m[8];
};

inline std::string q4_k_block(const float* x) {
  const SuperGroups groups(x);
  std::string block = GgufWriter::bytes(groups.scale) + GgufWriter::bytes(groups.minimum);
  uint8_t packed[12] = {};
  for (int g = 0; g < 4; ++g) {
    packed[g] = static_cast<uint8_t>(groups.s[g] | groups.s[g + 4] >> 4 << 6);
    packed[g + 4] = static_cast<uint8_t>(groups.m[g] | groups.m[g + 4] >> 4 << 6);
    packed[g + 8] = static_cast<uint8_t>((groups.s[g + 4] & 15) | (groups.m[g + 4] & 15) << 4);
  }
  block.append(reinterpret_cast<const char*>(packed), sizeof packed);
  const auto code = [&](int i) {
    const float scale = f16_to_float(groups.scale) * groups.s[i / 32], minimum = f16_to_float(groups.minimum) * groups.m[i / 32];
    return scale == 0 ? 0u : static_cast<uint32_t>(std::clamp(std::lround((x[i] + minimum) / scale), 0L, 15L));
  };
  for (int half = 0; half < 256; half += 64) {
    for (int i = half; i < half + 32; ++i) block += static_cast<char>(code(i) | code(i + 32) << 4);
  }
  return block;
}

inline std::string q6_k_block(const float* x) {
  float largest = 1e-4f;
  for (int i = 0; i < 256; ++i) largest = std::max(largest, std::abs(x[i]));
  const uint16_t scale = half_of(largest / 31 / 127 * 1.01f);
  int8_t scales[16];
  uint8_t codes[256];
  for (int g = 0; g < 16; ++g) {
    float most = 0;
    for (int i = 0; i < 16; ++i) most = std::max(most, std::abs(x[16 * g + i]));
    scales[g] = static_cast<int8_t>(std::clamp(std::lround(most / 31 / f16_to_float(scale)), 1L, 127L));
    if (g % 2 == 1) scales[g] = static_cast<int8_t>(-scales[g]);
    const float step = f16_to_float(scale) * scales[g];
    for (int i = 0; i < 16; ++i) {
      codes[16 * g + i] = static_cast<uint8_t>(std::clamp(std::lround(x[16 * g + i] / step) + 32, 0L, 63L));
    }
  }
  std::string low(128, '\0'), high(64, '\0');
  for (int i = 0; i < 256; ++i) {
    const int in_half = i % 128;
    low[static_cast<size_t>(i / 128 * 64 + in_half % 64)] |= static_cast<char>((codes[i] & 15) << (in_half / 64 * 4));
    high[static_cast<size_t>(i / 128 * 32 + i % 32)] |= static_cast<char>(codes[i] >> 4 << (in_half / 32 * 2));
  }
  return low + high + std::string(reinterpret_cast<const char*>(scales), 16) + GgufWriter::bytes(scale);
}

inline constexpr Quantiser kQ4_0{2, 32, q4_0_block}, kQ4_1{3, 32, q4_1_block}, kQ8_0{8, 32, q8_0_block}, kQ4_K{12, 256, q4_k_block},
    kQ6_K{14, 256, q6_k_block};

// Writes the model at `directory` to `file`. matrices: null, bf16; embedding: likewise, of the tokens' matrix.
inline void write_gguf(const std::filesystem::path& directory, const std::filesystem::path& file,
                       const Quantiser* matrices, const Quantiser* embedding = nullptr,
                       const std::string& chat_template = {}) {
  const ModelConfig config = load_config(directory);
  const Checkpoint checkpoint = Checkpoint::open(directory);
  GgufWriter w;
  w.text("general.architecture", "llama").text("general.name", "a test's");
  const auto u32 = [&](const char* key, int64_t value) { w.u32(std::string("llama.") + key, static_cast<uint32_t>(value)); };
  u32("block_count", config.n_layers);
  u32("context_length", config.max_position_embeddings);
  u32("embedding_length", config.hidden);
  u32("feed_forward_length", config.intermediate);
  u32("attention.head_count", config.n_heads);
  u32("attention.head_count_kv", config.n_kv_heads);
  u32("attention.key_length", config.head_dim);
  u32("rope.dimension_count", config.head_dim);
  w.f32("llama.rope.freq_base", static_cast<float>(config.rope.theta));
  w.f32("llama.attention.layer_norm_rms_epsilon", static_cast<float>(config.rms_eps));

  const nlohmann::json tokenizer = nlohmann::json::parse(std::ifstream(directory / "tokenizer.json"));
  std::vector<std::string> tokens(static_cast<size_t>(config.vocab_size)), merges;
  std::vector<int32_t> types(tokens.size(), 1);
  for (const auto& [token, id] : tokenizer["model"]["vocab"].items()) tokens[id.get<size_t>()] = token;
  for (const auto& added : tokenizer["added_tokens"]) {
    tokens[added["id"].get<size_t>()] = added["content"];
    types[added["id"].get<size_t>()] = added["special"].get<bool>() ? 3 : 4;
  }
  for (const auto& merge : tokenizer["model"]["merges"]) {
    merges.push_back(merge.is_string() ? merge.get<std::string>() : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  w.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "dbrx").flag("tokenizer.ggml.add_bos_token", true);
  w.texts("tokenizer.ggml.tokens", tokens).texts("tokenizer.ggml.merges", merges);
  w.array_of<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, types);
  w.u32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(*config.bos_token_id));
  w.u32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(config.eos_token_ids.at(0)));
  if (!chat_template.empty()) w.text("tokenizer.chat_template", chat_template);

  uint64_t offset = 0;
  const auto add = [&](const std::string& from, const std::string& name, const Quantiser* quantiser, bool turns) {
    const TensorInfo& info = checkpoint.tensor(from);
    const int64_t columns = info.shape.back(), rows = info.n_elements() / columns, d = config.head_dim;
    std::vector<bf16> values(static_cast<size_t>(info.n_elements()));
    CHECK(to_bf16(info, values.data()) == 0);
    std::string data;
    for (int64_t r = 0; r < rows; ++r) {
      // Neighbours turn together there, halves of a head here.
      const int64_t source = turns ? r / d * d + r % d / 2 + r % 2 * (d / 2) : r;
      std::vector<float> row;
      for (int64_t c = 0; c < columns; ++c) row.push_back(static_cast<float>(values[static_cast<size_t>(source * columns + c)]));
      if (info.shape.size() == 1) {
        for (const float value : row) data += GgufWriter::bytes(value);
      } else if (quantiser == nullptr) {
        for (const float value : row) data += GgufWriter::bytes(bf16(value).bits);
      } else {
        for (int64_t c = 0; c < columns; c += quantiser->elements) data += quantiser->block(row.data() + c);
      }
    }
    std::vector<uint64_t> shape(info.shape.rbegin(), info.shape.rend());
    const uint32_t type = info.shape.size() == 1 ? 0 : quantiser == nullptr ? 30 : quantiser->type;
    w.tensor_at(name, shape, type, offset, data);
    offset += (data.size() + 31) / 32 * 32;
  };
  add("model.embed_tokens.weight", "token_embd.weight", embedding, false);
  add("model.norm.weight", "output_norm.weight", nullptr, false);
  if (!config.tie_word_embeddings) add("lm_head.weight", "output.weight", embedding, false);
  constexpr std::pair<const char*, const char*> kNames[] = {
      {"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"}, {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},   {"self_attn.v_proj", "attn_v"},           {"self_attn.o_proj", "attn_output"},
      {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},                {"mlp.down_proj", "ffn_down"}};
  for (int64_t i = 0; i < config.n_layers; ++i) {
    for (const auto& [theirs, ours] : kNames) {
      const bool turns = std::string_view(ours) == "attn_q" || std::string_view(ours) == "attn_k";
      add(fmt::format("model.layers.{}.{}.weight", i, theirs), fmt::format("blk.{}.{}.weight", i, ours), matrices, turns);
    }
  }
  const std::string all = w.file();
  std::ofstream(file, std::ios::binary).write(all.data(), std::ssize(all));
}

}  // namespace tiercel::test
