#include "engine/config_rope.h"

#include <fmt/format.h>

namespace tiercel {
namespace {

constexpr int64_t kPhi3OriginalPositions = 4096;

RopeType rope_type_of(const JsonNode& parameters, const Family& family) {
  auto node = parameters.find("rope_type");
  if (!node) node = parameters.find("type");
  if (!node) return RopeType::kDefault;
  // What longrope was called by Phi-3's first checkpoints.
  const bool is_phi3 = family.architecture == Architecture::kPhi3;
  if (is_phi3 && (node->text() == "su" || node->text() == "yarn")) return RopeType::kLongRope;
  for (const RopeType type : {RopeType::kDefault, RopeType::kLinear, RopeType::kLlama3,
                              RopeType::kYarn, RopeType::kLongRope}) {
    if (node->text() == name_of(type)) return type;
  }
  node->unexpected("default, linear, llama3, yarn or longrope",
                   "no other RoPE scaling is supported");
}

// How many of a head's channels turn.
int64_t read_rotary_dim(const JsonNode& root, const JsonNode& parameters, const Family& family,
                        int64_t head_dim) {
  constexpr const char* kKey = "partial_rotary_factor";
  auto node = parameters.find(kKey);
  if (!node) node = root.find(kKey);
  // An explicit null is no absent key: the class's own default does not apply.
  const bool is_absent = !parameters.has(kKey) && !root.has(kKey);
  double factor = is_absent && family.partial_rotary_factor > 0 ? family.partial_rotary_factor : 1;
  if (node) factor = node->number(0, 1);
  if (factor == 1) return head_dim;
  if (family.partial_rotary_factor == 0) {
    node->unexpected("1", fmt::format("a {} rotates all of head_dim", family.class_name));
  }
  const auto rotary_dim = static_cast<int64_t>(factor * static_cast<double>(head_dim));
  if (rotary_dim < 2 || rotary_dim % 2 != 0) {
    (node ? *node : root.at("head_dim"))
        .unexpected(fmt::format("an even part of head_dim ({})", head_dim), "RoPE rotates pairs");
  }
  return rotary_dim;
}

std::vector<double> read_stretch(const JsonNode& parameters, const char* key, int64_t n) {
  const JsonNode list = parameters.at(key);
  if (list.size() != static_cast<size_t>(n)) {
    list.unexpected(fmt::format("{} numbers, one for each pair of channels", n));
  }
  std::vector<double> stretch;
  for (size_t i = 0; i < list.size(); ++i) stretch.push_back(list[i].number(1e-6, 1e6));
  return stretch;
}

}  // namespace

RopeSpec read_rope(const JsonNode& root, const Family& family, const ModelConfig& config) {
  const int64_t max_position = config.max_position_embeddings;
  const bool is_phi3 = family.architecture == Architecture::kPhi3;
  RopeSpec rope;
  const nlohmann::json nothing = nlohmann::json::object();
  const std::string no_file;
  JsonNode parameters(nothing, no_file);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const auto node = root.find(key);
    if (!node) continue;
    node->expect_object();
    if (!node->raw().empty()) parameters = *node;
  }

  const double outer_theta = root.number_or("rope_theta", family.rope_theta, kTiny, kHuge);
  rope.theta = parameters.number_or("rope_theta", outer_theta, kTiny, kHuge);
  if (rope.theta <= 1) {
    (parameters.find("rope_theta") ? parameters : root)
        .at("rope_theta")
        .unexpected("a number above 1", "RoPE wavelengths must grow with the channel");
  }
  rope.rotary_dim = read_rotary_dim(root, parameters, family, config.head_dim);
  rope.type = rope_type_of(parameters, family);
  if (rope.type == RopeType::kDefault) return rope;

  // Without a factor the ratio of the two context lengths is meant: by a null of yarn's, and by
  // longrope in any case.
  const bool may_lack_factor = rope.type == RopeType::kLongRope ||
                               (rope.type == RopeType::kYarn && parameters.has("factor"));
  if (!may_lack_factor || parameters.find("factor")) {
    rope.factor = parameters.at("factor").number(kTiny, kHuge);
  }
  if (rope.type == RopeType::kLinear) return rope;

  const int64_t fewest = rope.type == RopeType::kLongRope ? 2 : 1;  // whose logarithm divides
  rope.original_max_position = parameters.integer_or("original_max_position_embeddings",
                                                     max_position, fewest, kMaxPosition);
  if (is_phi3) rope.original_max_position = kPhi3OriginalPositions;
  rope.original_max_position = root.integer_or("original_max_position_embeddings",
                                               rope.original_max_position, fewest, kMaxPosition);
  if (rope.type == RopeType::kLlama3) {
    rope.low_freq_factor = parameters.at("low_freq_factor").number(kTiny, kHuge);
    rope.high_freq_factor = parameters.at("high_freq_factor").number(kTiny, kHuge);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      parameters.at("high_freq_factor")
          .unexpected(fmt::format("more than low_freq_factor ({})", rope.low_freq_factor));
    }
    return rope;
  }

  if (!parameters.find("factor")) {
    rope.factor =
        static_cast<double>(max_position) / static_cast<double>(rope.original_max_position);
  }
  if (const auto node = parameters.find("attention_factor")) {
    rope.attention_factor = node->number(1e-6, 1e6);
  }
  if (rope.type == RopeType::kLongRope) {
    rope.short_factor = read_stretch(parameters, "short_factor", rope.rotary_dim / 2);
    rope.long_factor = read_stretch(parameters, "long_factor", rope.rotary_dim / 2);
    return rope;
  }
  // 0 means "the default" to transformers, which writes `get(...) or 32`.
  const auto or_default = [](double value, double fallback) {
    return value == 0 ? fallback : value;
  };
  rope.beta_fast = or_default(parameters.number_or("beta_fast", 0, 0, kHuge), 32);
  rope.beta_slow = or_default(parameters.number_or("beta_slow", 0, 0, kHuge), 1);
  rope.mscale = parameters.number_or("mscale", 0, 0, kHuge);
  rope.mscale_all_dim = parameters.number_or("mscale_all_dim", 0, 0, kHuge);
  // An explicit null is falsy in transformers, unlike an absent key.
  rope.truncate = parameters.boolean_or("truncate", !parameters.has("truncate"));
  return rope;
}

}  // namespace tiercel
