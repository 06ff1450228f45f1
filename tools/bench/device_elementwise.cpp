// Ops whose cost is memory, for a prefill chunk of 4096 tokens; and picking a token.
#include <fmt/format.h>

#include <string>
#include <vector>

#include "kernels/elementwise.h"
#include "kernels/sample.h"
#include "tools/bench/device_harness.h"

namespace tiercel::bench {
namespace {

// Operands of the elementwise ops of one prefill chunk.
struct Elementwise {
  explicit Elementwise(Device& device)
      : device(device),
        n_tokens(device.size(4096, 8)),
        width(device.size(4096, 64)),
        pool(device, device.size(kColdBytes / 2, 1 << 18)),
        out(device, device.size(kColdBytes / 2, 1 << 18)) {}

  void report(const std::string& name, const std::string& shape, double values,
              const Device::Call& call) {
    device.report({.name = name, .shape = shape, .us = device.time_us(call), .bytes = 2 * values});
  }

  Device& device;
  int64_t n_tokens, width;
  ColdNoise pool, out;
};

void rms_norm(Elementwise& e) {
  const Noise weight(e.device, e.width);
  const int64_t n = e.n_tokens * e.width;
  e.report("rms_norm", fmt::format("{} x {}", e.n_tokens, e.width), 2.0 * static_cast<double>(n),
           [&](int64_t) {
             cuda::rms_norm(e.device.stream(), {.x = e.pool.next(n),
                                                .weight = weight.data(),
                                                .out = e.out.next(n),
                                                .n_rows = e.n_tokens,
                                                .width = e.width,
                                                .eps = 1e-5f});
           });
}

void swiglu(Elementwise& e) {
  const int64_t width = e.device.size(14336, 128), n = e.n_tokens * width;
  e.report("swiglu", fmt::format("{} x {}", e.n_tokens, width), 3.0 * static_cast<double>(n),
           [&](int64_t) {
             cuda::swiglu(
                 e.device.stream(),
                 {.gate = e.pool.next(n), .up = e.pool.next(n), .out = e.out.next(n), .n = n});
           });
}

void rope_append(Elementwise& e) {
  constexpr int64_t kHeadDim = 128;
  const int64_t n_heads = e.device.size(32, 4), n_kv_heads = e.device.size(8, 1);
  const int64_t n_q = e.n_tokens * n_heads * kHeadDim, n_k = e.n_tokens * n_kv_heads * kHeadDim;
  const DeviceRope rope(e.device, kHeadDim, 65536);
  e.report("rope_append", fmt::format("{} tokens {}/{}", e.n_tokens, n_heads, n_kv_heads),
           static_cast<double>(2 * n_q + 4 * n_k), [&](int64_t) {
             cuda::rope_append(e.device.stream(), {.q = e.pool.next(n_q),
                                                   .k = e.pool.next(n_k),
                                                   .v = e.pool.next(n_k),
                                                   .keys = e.out.next(n_k),
                                                   .values = e.out.next(n_k),
                                                   .head_stride = e.n_tokens * kHeadDim,
                                                   .first_position = 32768,
                                                   .n_tokens = e.n_tokens,
                                                   .n_heads = static_cast<int32_t>(n_heads),
                                                   .n_kv_heads = static_cast<int32_t>(n_kv_heads),
                                                   .head_dim = kHeadDim,
                                                   .rope = rope.view()});
           });
}

std::vector<int32_t> random_ids(Device& device, int64_t n, int64_t end) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) {
    id = static_cast<int32_t>(device.rng()() % static_cast<uint64_t>(end));
  }
  return ids;
}

void embed(Elementwise& e) {
  const int64_t vocab = e.device.size(128256, 256), n = e.n_tokens * e.width, n_lists = 16;
  const Noise table(e.device, vocab * e.width);
  const Array<int32_t> ids(e.device, random_ids(e.device, n_lists * e.n_tokens, vocab));
  e.report("embed", fmt::format("{} x {}", e.n_tokens, e.width), 2.0 * static_cast<double>(n),
           [&](int64_t turn) {
             cuda::embed(e.device.stream(), {.ids = ids.data() + turn % n_lists * e.n_tokens,
                                             .table = table.data(),
                                             .out = e.out.next(n),
                                             .n_tokens = e.n_tokens,
                                             .vocab = vocab,
                                             .width = e.width});
           });
}

// fp32 logits out of the bf16 pool: any bits will do that are finite, as pairs of normal bf16 are.
void token_logprobs(Elementwise& e) {
  const int64_t n_rows = e.device.size(512, 4), vocab = e.device.size(128256, 256);
  const Array<int32_t> targets(e.device, random_ids(e.device, n_rows, vocab));
  const Array<double> logprobs(e.device, n_rows);
  const int64_t n = 2 * n_rows * vocab;
  e.report("token_logprobs", fmt::format("{} x {}", n_rows, vocab), static_cast<double>(n),
           [&](int64_t) {
             cuda::token_logprobs(e.device.stream(),
                                  {.logits = reinterpret_cast<const float*>(e.pool.next(n)),
                                   .targets = targets.data(),
                                   .logprobs = logprobs.data(),
                                   .n_rows = n_rows,
                                   .vocab = vocab});
           });
}

void sampling(Elementwise& e) {
  const int64_t vocab = e.device.size(128256, 512);
  const Array<int32_t> token(e.device, 1);
  const Array<uint64_t> generator(e.device, 1);
  const Array<uint8_t> workspace(e.device, sample_workspace_bytes(vocab));
  const auto logits = [&] { return reinterpret_cast<float*>(e.pool.next(2 * vocab)); };
  const auto shape = fmt::format("{} logits", vocab);
  e.report("argmax", shape, 2.0 * static_cast<double>(vocab), [&](int64_t) {
    cuda::argmax(e.device.stream(), logits(), vocab, token.data(), workspace.data());
  });
  e.report("sample", shape + ", top 40 of 0.95", 2.0 * static_cast<double>(vocab), [&](int64_t) {
    cuda::sample(e.device.stream(), {.logits = logits(),
                                     .vocab = vocab,
                                     .temperature = 0.8,
                                     .top_k = 40,
                                     .top_p = 0.95,
                                     .generator = generator.data(),
                                     .token = token.data(),
                                     .workspace = workspace.data()});
  });
}

}  // namespace

void run_elementwise(Device& device) {
  Elementwise elementwise(device);
  rms_norm(elementwise);
  swiglu(elementwise);
  rope_append(elementwise);
  embed(elementwise);
  token_logprobs(elementwise);
  sampling(elementwise);
}

}  // namespace tiercel::bench
