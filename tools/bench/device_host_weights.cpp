// Feed-forward weights of Llama-3.1-8B that stay in pinned host memory: read there by a step's products, or brought
// to the device first, as a prompt has it.
#include <fmt/format.h>

#include "kernels/linear.h"
#include "tools/bench/device_harness.h"

namespace tiercel::bench {

void run_host_weights(Device& device) {
  const int64_t width = device.size(4096, 128), inner = device.size(14336, 64), most_rows = 64;
  const int64_t matrix = width * inner;
  const PinnedNoise weights(device, 3 * matrix);
  const Noise brought(device, 3 * matrix), norm(device, width), x(device, most_rows * width);
  const Noise normed(device, most_rows * width), gated(device, most_rows * inner), out(device, most_rows * width);
  const bf16 *gate = weights.data(), *up = gate + matrix, *down = up + matrix;
  for (const int64_t m : {1, 8, 16, 64}) {
    const double us = device.time_us([&](int64_t) {
      cuda::gated_linear(device.stream(), {.x = x.data(),
                                           .norm_weight = norm.data(),
                                           .gate = gate,
                                           .up = up,
                                           .out = gated.data(),
                                           .m = m,
                                           .k = width,
                                           .n = inner,
                                           .eps = 1e-5f,
                                           .alone = true,
                                           .normed = normed.data()});
      cuda::linear(device.stream(), {.x = gated.data(),
                                     .weight = down,
                                     .out = out.data(),
                                     .m = m,
                                     .k = inner,
                                     .n = width,
                                     .alone = true});
    });
    const std::string shape = fmt::format("m {}, {} x {}", m, inner, width);
    device.report({.name = "mlp from host memory",
                   .shape = shape,
                   .us = us,
                   .link_bytes = 6 * static_cast<double>(matrix)});
    device.expect_finite("mlp from host memory " + shape, out.data(), m * width);
  }
  device.report({.name = "mlp brought",
                 .shape = fmt::format("{} x {}", inner, width),
                 .us = device.time_us([&](int64_t) {
                   device.stream().copy_bytes(brought.data(), 0, gate, 0, weights.bytes(), 1);
                 }),
                 .link_bytes = 6 * static_cast<double>(matrix)});
}

}  // namespace tiercel::bench
