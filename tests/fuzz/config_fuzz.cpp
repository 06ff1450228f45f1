// Arbitrary text as config.json, generation_config.json and a checkpoint's index. Only Error may
// come out; a configuration that is accepted must be consistent, and its frequencies finite.
//
// Input: byte 0 modulo 4 says what the rest is: a config.json; overrides of a valid Llama's keys; a
// generation_config.json; an index.
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/base/check.h"
#include "engine/checkpoint.h"
#include "engine/config.h"

namespace {

using namespace tiercel;

const char kLlama[] = R"({"model_type":"llama","num_hidden_layers":4,"hidden_size":256,
  "intermediate_size":512,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":1000})";

void check_config(const std::string& text) {
  const ModelConfig config = parse_config(text, "fuzz");
  CHECK(config.n_layers > 0 && std::ssize(config.sliding_window) == config.n_layers, "{}",
        config.n_layers);
  CHECK(config.n_heads % config.n_kv_heads == 0, "{} {}", config.n_heads, config.n_kv_heads);
  CHECK(config.head_dim > 0 && config.head_dim % 2 == 0 && config.head_dim <= 256, "{}",
        config.head_dim);
  for (const bool is_long : {false, true}) {
    const RopeFrequencies rope =
        rope_frequencies(config.rope, static_cast<int>(config.head_dim), is_long);
    for (const double value : rope.inv_freq) CHECK(std::isfinite(value) && value >= 0, "{}", value);
    CHECK(std::isfinite(rope.attention_scaling), "{}", rope.attention_scaling);
  }
  const size_t n_moved = rope_channel_order(config.rope, config.head_dim).size();
  CHECK(n_moved == 0 || std::cmp_equal(n_moved, config.head_dim), "{} channels", n_moved);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  check_config(kLlama);  // what is behind the door must be reached
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  try {
    switch (data[0] % 4) {
      case 0: check_config(text); break;
      case 1: {
        const auto overrides = nlohmann::json::parse(text, nullptr, false);
        if (!overrides.is_object()) break;
        auto document = nlohmann::json::parse(kLlama);
        document.update(overrides);
        check_config(document.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
        break;
      }
      case 2: {
        ModelConfig config = parse_config(kLlama, "fuzz");
        apply_generation_config(config, text, "fuzz");
        break;
      }
      case 3:
        for (const auto& [tensor, shard] : parse_checkpoint_index(text, "fuzz")) {
          CHECK(shard.find('/') == shard.npos && shard[0] != '.', "{}", shard);
        }
        break;
    }
  } catch (const Error&) {
  }
  return 0;
}
