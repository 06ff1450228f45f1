#include "engine/cost_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/base/dtype.h"
#include "engine/session_plan.h"
#include "engine/weights.h"

namespace tiercel {
namespace {

constexpr int64_t kBf16 = sizeof(bf16);

// The index as far as a step reads it: all of it, or blocks and the best of them.
double scanned_bytes(const KvLayout& layout, int64_t layer) {
  if (!layout.indexed(layer)) return 0;
  const KvSettings& o = layout.settings;
  const auto n_kv = static_cast<double>(layout.shape.n_kv_heads);
  const double width = layout.landmark_elements();
  const double landmark = o.landmark_codec == RowCodec::kBf16 ? width * kBf16 : width + 4;
  const auto chunks = static_cast<double>(layout.chunks);
  if (layout.blocks == 0) return n_kv * chunks * landmark;
  const double looked_into = static_cast<double>(layout.coarse_select) * layout.block_chunks();
  return n_kv * (static_cast<double>(layout.blocks) * width * kBf16 +
                 std::min(looked_into, chunks) * landmark);
}

// Of one token's key on the device, where it is coded.
double coded_key_bytes(const KvLayout& layout) {
  const KvSettings& o = layout.settings;
  switch (o.keys) {
    case KeyForm::kExact: return 0;
    case KeyForm::kLowRank: return static_cast<double>(row_bytes(o.key_codec, o.rank));
    case KeyForm::kCoded:
      return layout.shape.n_kv_heads *
             static_cast<double>(row_bytes(o.key_codec, layout.shape.head_dim));
  }
  return 0;
}

// Of experts' bytes, what n sequences leave unread that read this share each.
int64_t unread(int64_t experts, double share, int64_t n) {
  return std::llround(static_cast<double>(experts) * std::pow(1 - share, static_cast<double>(n)));
}

}  // namespace

StepBytes step_bytes(const ModelConfig& config, const SessionPlan& plan, double hit_rate) {
  const KvLayout layout = kv_layout(plan, config);
  const KvSettings& o = layout.settings;
  const auto width = static_cast<double>(layout.shape.key_width());
  const double pair = 2 * width * kBf16;  // a token's key and value
  std::vector<LayerBytes> layers(static_cast<size_t>(config.n_layers));
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    auto& [device, link, host, shared] = layers[static_cast<size_t>(layer)];
    const int64_t window = layout.shape.window[static_cast<size_t>(layer)];
    if (!layout.tiered(layer)) {
      const int64_t seen = window > 0 ? std::min(window, o.capacity) : o.capacity;
      device += static_cast<double>(seen) * pair;
      continue;
    }
    const auto selected = static_cast<double>(layout.select * o.chunk_tokens);
    const auto always = static_cast<double>(o.sinks + o.recent + layout.outlier_rows);
    const double value =
        layout.shape.n_kv_heads * static_cast<double>(row_bytes(o.value_codec, layout.shape.head_dim));
    const double key = layout.weighed_on_device(layer) ? 0 : width * kBf16;
    (plan.n_prefix > 0 ? shared : device) += scanned_bytes(layout, layer);
    device += always * pair;
    if (layout.attended_by_host(layer) && !o.one_memory) {
      const double n_heads = layout.shape.n_heads;
      host += selected * (value + key);
      link += layout.shape.n_kv_heads * static_cast<double>(layout.select) * 4 +
              n_heads * (layout.shape.head_dim + 2) * 4;
      if (!layout.weighed_on_device(layer)) {
        link += n_heads * layout.shape.head_dim * kBf16;
        continue;
      }
      link += n_heads * selected * (kBf16 + 4.0 / kWeightRange);
      // Keys where the index has them; or decoded, written and read again.
      device += selected * (o.keys == KeyForm::kExact ? width * kBf16 : coded_key_bytes(layout) + pair);
      continue;
    }
    device += selected * pair;
    if (!layout.has_slots(layer)) continue;
    const double missed = (1 - hit_rate) * selected;
    device += missed * (coded_key_bytes(layout) + pair);  // read, and written into slots
    (layout.at_home_on_device(layer) ? device : link) += missed * (value + key);
  }
  LayerBytes all;
  for (const LayerBytes& layer : layers) {
    all.device += layer.device;
    all.link += layer.link;
    all.host += layer.host;
    all.shared += layer.shared;
  }
  const int64_t head = head_bytes(config);
  int64_t weights = weight_bytes(config);
  // A step reads a row of the embedding; the same matrix as the head is read whole.
  if (!config.tie_word_embeddings) weights -= embedding_bytes(config);
  int64_t link_weights = 0, experts = 0, link_experts = 0;
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const int64_t bytes = feed_forward_bytes(config, layer);
    const bool over_link = config.feeds_from_host(layer);
    if (over_link) link_weights += bytes;
    if (config.has_experts(layer)) (over_link ? link_experts : experts) += bytes;
  }
  const double share =
      config.experts.n > 0 ? static_cast<double>(config.experts.n_chosen) / static_cast<double>(config.experts.n) : 1;
  return {.weights = weights - link_weights,
          .link_weights = link_weights,
          .head = head,
          .experts = experts,
          .link_experts = link_experts,
          .expert_share = share,
          .device = std::llround(all.device),
          .link = std::llround(all.link),
          .host = std::llround(all.host),
          .layers = std::move(layers),
          .shared = std::llround(all.shared)};
}

int64_t StepBytes::weights_read(int64_t n_sequences) const {
  return weights - unread(experts, expert_share, n_sequences);
}
int64_t StepBytes::link_weights_read(int64_t n_sequences) const {
  return link_weights - unread(link_experts, expert_share, n_sequences);
}

StepFloor step_floor(const StepBytes& bytes, const Bandwidths& bandwidths, int64_t n_sequences) {
  const auto n = static_cast<double>(n_sequences);
  const int64_t half = (n_sequences + 1) / 2;
  const int64_t weights_read = bytes.weights_read(n_sequences);
  const auto weights_over_link = [&](int64_t sequences) {
    const auto moved = static_cast<double>(bytes.link_weights_read(sequences));
    return moved > 0 ? moved / bandwidths.link : 0;
  };
  const double device = (static_cast<double>(weights_read + bytes.shared) +
                         n * static_cast<double>(bytes.device)) /
                        bandwidths.device;
  const auto seconds = [&](double moved, double bandwidth) {
    return moved > 0 ? n * moved / bandwidth : 0;
  };
  const double link = seconds(static_cast<double>(bytes.link), bandwidths.link) + weights_over_link(n_sequences);
  const double host = seconds(static_cast<double>(bytes.host), bandwidths.host);
  const double head = static_cast<double>(bytes.head) / bandwidths.device;
  double joined = head, split = head;
  for (const LayerBytes& layer : bytes.layers) {
    const auto read_for = [&](int64_t sequences) {
      const auto n_layers = static_cast<double>(bytes.layers.size());
      const auto of_device = static_cast<double>(bytes.weights_read(sequences) - bytes.head);
      return (of_device / n_layers + layer.shared) / bandwidths.device + weights_over_link(sequences) / n_layers;
    };
    const double read = read_for(n_sequences), read_by_half = read_for(half);
    const double attend = n * layer.device / bandwidths.device;
    const double fetch =
        std::max(seconds(layer.link, bandwidths.link), seconds(layer.host, bandwidths.host));
    joined += read + std::max(attend, fetch);
    split += std::max(2 * read_by_half + attend, fetch);
  }
  return {std::max({device, link, host}), device + link + host, link > std::max(device, host),
          host > std::max(device, link), joined, split};
}

bool splitting_gains(const StepBytes& bytes, const Bandwidths& bandwidths, int64_t n_sequences) {
  if (n_sequences < kLeastToSplit || bytes.link == 0) return false;
  Bandwidths known = bandwidths;
  // Nobody measured the host: it reads its memory no slower than the link does.
  if (known.host <= 0) known.host = known.link;
  const StepFloor floor = step_floor(bytes, known, n_sequences);
  return floor.split < floor.joined;
}

}  // namespace tiercel
