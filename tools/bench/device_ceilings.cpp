// The ceilings: what copies and one large matrix product reach on this machine.
#include <fmt/format.h>

#include <chrono>

#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "tools/bench/device_harness.h"

namespace tiercel::bench {
namespace {

void describe(Device& device) {
  const cuda::Stream& stream = device.stream();
  device.line(fmt::format("{}: compute capability {:.1f}, {} processors, {:.1f} of {:.1f} GiB free",
                          stream.device_name(), stream.architecture() / 10.0, stream.n_processors(),
                          static_cast<double>(stream.device_memory_free()) * 0x1p-30,
                          static_cast<double>(stream.device_memory_total()) * 0x1p-30));
}

std::string gib(int64_t bytes) {
  return fmt::format("{:.3g} GiB", static_cast<double>(bytes) * 0x1p-30);
}

void copy(Device& device, Ceilings& ceilings) {
  const int64_t bytes = device.size(int64_t{2} << 30, 1 << 20);
  Noise source(device, bytes / 2), target(device, bytes / 2);
  const double us = device.time_us(
      [&](int64_t) { device.stream().copy_bytes(target.data(), 0, source.data(), 0, bytes, 1); });
  const double moved = 2 * static_cast<double>(bytes);
  ceilings.copy_gbs = moved / us * 1e-3;
  device.report(
      {.name = "ceiling copy", .shape = gib(bytes) + ", read + write", .us = us, .bytes = moved});
}

void allocation(Device& device, int64_t bytes) {
  const auto begin = std::chrono::steady_clock::now();
  void* memory = cuda::allocate(device.pinned(), bytes);
  const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - begin;
  release_quietly(device.pinned(), memory, bytes);
  device.report(
      {.name = "pinned memory", .shape = gib(bytes) + " allocated, zeroed", .us = taken.count()});
}

void link(Device& device, Ceilings& ceilings) {
  const int64_t bytes = device.size(int64_t{1} << 30, 1 << 20);
  allocation(device, bytes);
  PinnedNoise host(device, bytes / 2);
  Noise array(device, bytes / 2);
  cuda::Stream& stream = device.stream();
  const auto moved = static_cast<double>(bytes);
  double us = device.time_us(
      [&](int64_t) { stream.copy_bytes(array.data(), 0, host.data(), 0, bytes, 1); });
  ceilings.link_gbs = moved / us * 1e-3;
  device.report({.name = "ceiling link", .shape = "host to device", .us = us, .link_bytes = moved});
  device.set_ceilings(ceilings);
  us = device.time_us(
      [&](int64_t) { stream.copy_bytes(host.data(), 0, array.data(), 0, bytes, 1); });
  device.report({.name = "link", .shape = "device to host", .us = us, .link_bytes = moved});
  constexpr int64_t kPiece = 2048;
  us = device.time_us([&](int64_t) {
    stream.copy_bytes(array.data(), kPiece, host.data(), 4 * kPiece, kPiece, bytes / kPiece / 4);
  });
  device.report(
      {.name = "link", .shape = "2 KB pieces, one 2D copy", .us = us, .link_bytes = moved / 4});
}

void matmul(Device& device, Ceilings& ceilings) {
  const int64_t n = device.size(8192, 32);
  Noise x(device, n * n), weight(device, n * n), out(device, n * n);
  const double us = device.time_us([&](int64_t) {
    cuda::linear(
        device.stream(),
        {.x = x.data(), .weight = weight.data(), .out = out.data(), .m = n, .k = n, .n = n});
  });
  const double flops = 2 * static_cast<double>(n * n) * static_cast<double>(n);
  ceilings.matmul_tflops = flops / us * 1e-6;
  device.report(
      {.name = "ceiling matmul", .shape = fmt::format("{}^3 bf16", n), .us = us, .flops = flops});
  device.expect_finite("matmul", out.data(), 1024);
}

void launch(Device& device) {
  const int64_t width = 4096;
  Noise x(device, width), weight(device, width), out(device, width);
  const double us = device.time_us([&](int64_t) {
    cuda::rms_norm(device.stream(), {.x = x.data(),
                                     .weight = weight.data(),
                                     .out = out.data(),
                                     .n_rows = 1,
                                     .width = width,
                                     .eps = 1e-5f});
  });
  device.report({.name = "launch", .shape = "rms_norm of one row", .us = us});
}

}  // namespace

void run_ceilings(Device& device) {
  describe(device);
  Ceilings ceilings;
  copy(device, ceilings);
  device.set_ceilings(ceilings);
  link(device, ceilings);
  matmul(device, ceilings);
  device.set_ceilings(ceilings);
  launch(device);
}

}  // namespace tiercel::bench
