// Linear layers of Llama-3.1-8B from one row to a prefill chunk, and those that a decode step
// fuses; with bf16 weights, and with coded ones.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kernels/linear.h"
#include "tools/bench/device_harness.h"
#include "tools/bench/measured_codecs.h"

namespace tiercel::bench {
namespace {

struct Layer {
  int64_t n, k;
};
constexpr Layer kLayers[] = {
    {4096, 4096}, {1024, 4096}, {14336, 4096}, {4096, 14336}, {128256, 4096}};

// Random bits are codes and params too: of two normal bf16 an fp32 that is nearly normal, and a zero.
WeightMatrix next_matrix(ColdNoise& weights, const WeightCodec& codec, int64_t n, int64_t k) {
  return {weights.next(n * codec.row_bytes(k) / 2), codec};
}

std::string in_codec(const char* op, const WeightCodec& codec) {
  return codec.is_coded() ? fmt::format("{} {}/{}", op, name_of(codec.code), codec.group) : op;
}

// Weights come cold; x and out lie in the cache, as they do in a model. alone: with the bits of one row.
void linear(Device& device, ColdNoise& weights, const Noise& x, const Noise& out, int64_t m,
            const Layer& layer, bool alone, const WeightCodec& codec = {}) {
  const int64_t n = device.size(layer.n, 64), k = device.size(layer.k, 128);
  const double us = device.time_us([&](int64_t) {
    cuda::linear(device.stream(), {.x = x.data(),
                                   .weight = next_matrix(weights, codec, n, k),
                                   .out = out.data(),
                                   .m = m,
                                   .k = k,
                                   .n = n,
                                   .alone = alone});
  });
  const std::string shape = fmt::format("m {} n {} k {}", m, n, k);
  device.report({.name = in_codec(alone ? "linear_alone" : "linear", codec),
                 .shape = shape,
                 .us = us,
                 .bytes = static_cast<double>(n * codec.row_bytes(k)),
                 .flops = 2 * static_cast<double>(m * n) * static_cast<double>(k)});
  device.expect_finite("linear " + shape, out.data(), std::min<int64_t>(m * n, 4096));
}

// What is in flight of the weights, where two blocks a multiprocessor read them.
void reading_ahead(Device& device, ColdNoise& weights, const Noise& x, const Noise& out, const Layer& layer) {
  const int64_t n = device.size(layer.n, 64), k = device.size(layer.k, 128);
  for (const auto& [name, ahead] : {std::pair{"linear 32 KiB", cuda::ReadAhead::kShort},
                                    std::pair{"linear 64 KiB", cuda::ReadAhead::kLong}}) {
    const double us = device.time_us([&](int64_t) {
      const LinearParams p = {.x = x.data(), .weight = weights.next(n * k), .out = out.data(), .m = 1, .k = k, .n = n};
      cuda::linear_reading_ahead(device.stream(), p, ahead);
    });
    device.report({.name = name,
                   .shape = fmt::format("n {} k {}, in flight a block", n, k),
                   .us = us,
                   .bytes = 2 * static_cast<double>(n * k)});
  }
}

// Norm and product in one, and the gated pair of products: what a decode step launches.
void fused(Device& device, ColdNoise& weights, const Noise& x, const Noise& out, int64_t m,
           const WeightCodec& codec = {}) {
  const int64_t k = device.size(4096, 128), n_qkv = device.size(6144, 64);
  const int64_t n_gate = device.size(14336, 64);
  const Noise norm(device, k), normed(device, m * k);
  const auto row = [&](const char* name, int64_t n, double products, const Device::Call& call) {
    const double rows = products * static_cast<double>(n);
    device.report({.name = in_codec(name, codec),
                   .shape = fmt::format("m {} n {} k {}", m, n, k),
                   .us = device.time_us(call),
                   .bytes = rows * static_cast<double>(codec.row_bytes(k)),
                   .flops = 2 * static_cast<double>(m * k) * rows});
  };
  row("norm_linear", n_qkv, 1, [&](int64_t) {
    cuda::norm_linear(device.stream(), {.linear = {.x = x.data(),
                                                   .weight = next_matrix(weights, codec, n_qkv, k),
                                                   .out = out.data(),
                                                   .m = m,
                                                   .k = k,
                                                   .n = n_qkv,
                                                   .alone = true},
                                        .norm_weight = norm.data(),
                                        .eps = 1e-5f,
                                        .normed = normed.data()});
  });
  row("gated_linear", n_gate, 2, [&](int64_t) {
    cuda::gated_linear(device.stream(), {.x = x.data(),
                                         .norm_weight = norm.data(),
                                         .gate = next_matrix(weights, codec, n_gate, k),
                                         .up = next_matrix(weights, codec, n_gate, k),
                                         .out = out.data(),
                                         .m = m,
                                         .k = k,
                                         .n = n_gate,
                                         .eps = 1e-5f,
                                         .alone = true,
                                         .normed = normed.data()});
  });
}

}  // namespace

void run_linear(Device& device) {
  const int64_t largest = device.size(int64_t{128256} * 4096, 1 << 16);
  ColdNoise weights(device, largest);
  const int64_t max_rows = device.size(4096, 16);
  const Noise x(device, max_rows * device.size(14336, 128));
  const Noise out(device, max_rows * device.size(128256, 64));
  for (const Layer& layer : {Layer{4096, 4096}, Layer{4096, 14336}}) {
    reading_ahead(device, weights, x, out, layer);
  }
  for (const Layer& layer : kLayers) {
    for (const int64_t m : {1, 2, 4, 8, 16, 64, 512, 4096}) {
      if (m <= max_rows) linear(device, weights, x, out, m, layer, false);
    }
    // Sequences that take a step together, tokens that are appended.
    for (const int64_t m : {16, 32, 48, 64}) {
      if (m <= max_rows) linear(device, weights, x, out, m, layer, true);
    }
    if (device.smoke()) break;
  }
  for (const int64_t m : {1, 4, 8, 16, 32, 48, 64}) {
    if (m > max_rows) continue;
    fused(device, weights, x, out, m);
  }
}

void run_codes(Device& device) {
  const int64_t max_rows = device.size(4096, 16);
  ColdNoise weights(device, device.size(int64_t{14336} * 4096, 1 << 16));
  const Noise x(device, max_rows * device.size(14336, 128));
  const Noise out(device, max_rows * device.size(14336, 64));
  for (const WeightCodec& codec : kMeasuredCodecs) {
    for (const Layer& layer : {Layer{4096, 4096}, Layer{14336, 4096}, Layer{4096, 14336}}) {
      for (const int64_t m : {1, 4, 8, 64, 512, 4096}) {
        if (m <= max_rows) linear(device, weights, x, out, m, layer, false, codec);
      }
      for (const int64_t m : {16, 32, 64}) {
        if (m <= max_rows) linear(device, weights, x, out, m, layer, true, codec);
      }
      if (device.smoke()) break;
    }
    for (const int64_t m : {1, 8, 32}) {
      if (m <= max_rows) fused(device, weights, x, out, m, codec);
    }
  }
}

}  // namespace tiercel::bench
