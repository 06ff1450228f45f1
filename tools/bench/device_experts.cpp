// A layer of Qwen3-30B-A3B: 8 of 128 experts, for one token and for those of a prompt; with weights that stay in
// host memory; and with coded ones.
#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <type_traits>
#include <vector>

#include "kernels/experts.h"
#include "tools/bench/device_harness.h"
#include "tools/bench/measured_codecs.h"

namespace tiercel::bench {
namespace {

constexpr int32_t kChosen = 8;
// Tokens are others in every call, so that few of them find their experts' weights in the cache.
constexpr int64_t kSets = 16;

// Matrices: Noise, or PinnedNoise.
template <typename Matrices>
struct Layer {
  static constexpr bool kOnHost = std::is_same_v<Matrices, PinnedNoise>;

  explicit Layer(Device& device)
      : n_experts(static_cast<int32_t>(device.size(128, 16))),
        width(device.size(2048, 128)),
        inner(device.size(768, 128)),
        max_tokens(device.size(8192, 40)),
        gate(device, n_experts * width * inner),
        up(device, n_experts * width * inner),
        down(device, n_experts * width * inner),
        x(device, max_tokens * width),
        out(device, max_tokens * width),
        gated(device, max_tokens * kChosen * inner),
        mixed(device, max_tokens * kChosen * width),
        logits(device, random_logits(device)),
        weights(device, max_tokens * kChosen),
        pairs(device, 3 * max_tokens * kChosen),
        starts(device, n_experts + 1) {}

  std::vector<float> random_logits(Device& device) const {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(kSets * max_tokens * n_experts));
    for (float& value : values) value = normal(device.rng());
    return values;
  }
  ExpertRoutes routes() const {
    const int64_t n = max_tokens * kChosen;
    return {.chosen = pairs.data(),
            .weights = weights.data(),
            .order = pairs.data() + n,
            .place = pairs.data() + 2 * n,
            .starts = starts.data()};
  }
  RouteParams route(int64_t call, int64_t n_tokens) const {
    return {.logits = logits.data() + call % kSets * max_tokens * n_experts,
            .n_tokens = n_tokens,
            .n_experts = n_experts,
            .n_chosen = kChosen,
            .normalise = true,
            .routes = routes()};
  }
  // Of n rows of k columns. Random bits are codes, and params that are nearly normal.
  ExpertMatrices matrices(const Matrices& noise, int64_t n, int64_t k) const {
    return {nullptr, noise.data(), n * codec.row_bytes(k) / 2, codec};
  }
  double bytes_of_expert() const {
    return static_cast<double>(2 * inner * codec.row_bytes(width) + width * codec.row_bytes(inner));
  }
  MixExpertsParams mix(int64_t n_tokens, bool alone) const {
    return {.x = x.data(),
            .out = out.data(),
            .routes = routes(),
            .gate = matrices(gate, inner, width),
            .up = matrices(up, inner, width),
            .down = matrices(down, width, inner),
            .n_tokens = n_tokens,
            .width = width,
            .inner = inner,
            .n_experts = n_experts,
            .n_chosen = kChosen,
            .alone = alone,
            .gated = gated.data(),
            .mixed = mixed.data()};
  }
  // Experts that the tokens of a call have, on average over the sets.
  double active(Device& device, int64_t n_tokens) const {
    int64_t n = 0;
    for (int64_t set = 0; set < kSets; ++set) {
      cuda::route_experts(device.stream(), route(set, n_tokens));
      const std::vector<int32_t> at = starts.host();
      for (size_t e = 0; e + 1 < at.size(); ++e) n += at[e + 1] > at[e] ? 1 : 0;
    }
    return static_cast<double>(n) / kSets;
  }

  int32_t n_experts;
  int64_t width, inner, max_tokens;
  Matrices gate, up, down;
  Noise x, out, gated, mixed;
  Array<float> logits, weights;
  Array<int32_t> pairs, starts;
  WeightCodec codec = {};
};

template <typename Matrices>
void measure(Device& device, const Layer<Matrices>& layer, int64_t n_tokens, bool alone) {
  constexpr bool kOnHost = Layer<Matrices>::kOnHost;
  const std::string shape =
      fmt::format("{} tokens{}, {} of {} experts of {} x {}, {}{}", n_tokens, alone ? " alone" : "", kChosen,
                  layer.n_experts, layer.inner, layer.width, name_of(layer.codec.code),
                  kOnHost ? ", in host memory" : "");
  const double values = 3 * static_cast<double>(layer.width * layer.inner);  // of an expert
  const double route_us =
      device.time_us([&](int64_t i) { cuda::route_experts(device.stream(), layer.route(i, n_tokens)); });
  device.report({.name = "route_experts",
                 .shape = shape,
                 .us = route_us,
                 .bytes = 4 * static_cast<double>(n_tokens) * layer.n_experts});
  // Both ops: what is multiplied is another call's choice every time.
  const double both_us = device.time_us([&](int64_t i) {
    cuda::route_experts(device.stream(), layer.route(i, n_tokens));
    cuda::mix_experts(device.stream(), layer.mix(n_tokens, alone));
  });
  const double read = layer.bytes_of_expert() * layer.active(device, n_tokens);
  device.report({.name = "route, mix",
                 .shape = shape,
                 .us = both_us,
                 .bytes = kOnHost ? 0 : read,
                 .link_bytes = kOnHost ? read : 0,
                 .flops = 2 * values * static_cast<double>(n_tokens * kChosen)});
  device.expect_finite("mix_experts " + shape, layer.mixed.data(), n_tokens * kChosen * layer.width);
}

}  // namespace

void run_experts(Device& device) {
  {
    const Layer<PinnedNoise> on_host(device);
    for (const int64_t n : {1, 4, 16, 64}) {
      if (n <= on_host.max_tokens) measure(device, on_host, n, true);
    }
  }
  Layer<Noise> layer(device);
  for (const WeightCodec& codec : kMeasuredCodecs) {
    layer.codec = codec;
    for (const int64_t n : {1, 8, 64}) {
      if (n <= layer.max_tokens) measure(device, layer, n, true);
    }
    for (const int64_t n : {40, 1024, 8192}) {
      if (n <= layer.max_tokens) measure(device, layer, n, false);
    }
  }
  layer.codec = {};
  for (const int64_t n : {1, 2, 4, 8, 16, 32, 64}) {
    if (n <= layer.max_tokens) measure(device, layer, n, true);
  }
  for (const int64_t n : {40, 256, 1024, 4096, 8192}) {
    if (n <= layer.max_tokens) measure(device, layer, n, false);
  }
}

}  // namespace tiercel::bench
