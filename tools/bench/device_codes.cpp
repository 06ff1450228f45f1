// Linear layers of Llama-3.1-8B with coded weights: beside device_linear.cpp's, what codes gain.
#include <fmt/format.h>

#include <algorithm>

#include "engine/base/weight_matrix.h"
#include "kernels/linear.h"
#include "tools/bench/device_harness.h"

namespace tiercel::bench {
namespace {

struct Layer {
  int64_t n, k;
};
constexpr Layer kLayers[] = {{4096, 4096}, {14336, 4096}, {4096, 14336}};
constexpr WeightCodec kCodecs[] = {{4, 128}, {4, 32}, {8, 128}};

// Random bits are codes and params: of two normal bf16 an fp32 that is nearly normal, and a zero.
WeightMatrix matrix(ColdNoise& weights, const WeightCodec& codec, int64_t n, int64_t k) {
  return {weights.next(n * codec.row_bytes(k) / 2), codec};
}

std::string name_of(const char* op, const WeightCodec& codec) {
  return fmt::format("{} int{}/{}", op, codec.bits, codec.group);
}

void linear(Device& device, ColdNoise& weights, const Noise& x, const Noise& out, int64_t m, const Layer& layer,
            const WeightCodec& codec, bool alone) {
  const int64_t n = device.size(layer.n, 64), k = device.size(layer.k, 256);
  const double us = device.time_us([&](int64_t) {
    cuda::linear(device.stream(), {.x = x.data(),
                                   .weight = matrix(weights, codec, n, k),
                                   .out = out.data(),
                                   .m = m,
                                   .k = k,
                                   .n = n,
                                   .alone = alone});
  });
  const std::string shape = fmt::format("m {} n {} k {}", m, n, k);
  device.report({.name = name_of(alone ? "linear_alone" : "linear", codec),
                 .shape = shape,
                 .us = us,
                 .bytes = static_cast<double>(n * codec.row_bytes(k)),
                 .flops = 2 * static_cast<double>(m * n) * static_cast<double>(k)});
  device.expect_finite("coded linear " + shape, out.data(), std::min<int64_t>(m * n, 4096));
}

void gated(Device& device, ColdNoise& weights, const Noise& x, const Noise& out, int64_t m, const WeightCodec& codec) {
  const int64_t k = device.size(4096, 256), n = device.size(14336, 64);
  const Noise norm(device, k), normed(device, m * k);
  const double us = device.time_us([&](int64_t) {
    cuda::gated_linear(device.stream(), {.x = x.data(),
                                         .norm_weight = norm.data(),
                                         .gate = matrix(weights, codec, n, k),
                                         .up = matrix(weights, codec, n, k),
                                         .out = out.data(),
                                         .m = m,
                                         .k = k,
                                         .n = n,
                                         .eps = 1e-5f,
                                         .alone = true,
                                         .normed = normed.data()});
  });
  device.report({.name = name_of("gated_linear", codec),
                 .shape = fmt::format("m {} n {} k {}", m, n, k),
                 .us = us,
                 .bytes = 2 * static_cast<double>(n * codec.row_bytes(k)),
                 .flops = 4 * static_cast<double>(m * n) * static_cast<double>(k)});
}

}  // namespace

void run_codes(Device& device) {
  const int64_t max_rows = device.size(4096, 16);
  ColdNoise weights(device, device.size(int64_t{14336} * 4096, 1 << 16));
  const Noise x(device, max_rows * device.size(14336, 256));
  const Noise out(device, max_rows * device.size(14336, 64));
  for (const WeightCodec& codec : kCodecs) {
    for (const Layer& layer : kLayers) {
      for (const int64_t m : {1, 4, 8, 64, 512, 4096}) {
        if (m <= max_rows) linear(device, weights, x, out, m, layer, codec, false);
      }
      for (const int64_t m : {16, 32, 64}) {
        if (m <= max_rows) linear(device, weights, x, out, m, layer, codec, true);
      }
      if (device.smoke()) break;
    }
    for (const int64_t m : {1, 8, 32}) {
      if (m <= max_rows) gated(device, weights, x, out, m, codec);
    }
  }
}

}  // namespace tiercel::bench
