// Linear layers against oneDNN alone (its own best layout, one thread per core) and against the
// bounds: multiply-adds per second for many rows, bytes of weights per second for few.
#include <benchmark/benchmark.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <dnnl.hpp>
#include <memory>
#include <random>

#include "cpu/elementwise.h"
#include "cpu/linear.h"
#include "cpu/topology.h"
#include "engine/base/rope.h"
#include "tools/bench/best.h"
#include "tools/bench/measured_codecs.h"

namespace tiercel::cpu {
namespace {

using bench::Best;
using bench::kMeasuredCodecs;
using bench::queue_of;

std::vector<bf16> random_bf16(int64_t n) {
  std::mt19937 random(1);
  std::vector<bf16> values(static_cast<size_t>(n));
  for (bf16& value : values) {
    value = bf16(static_cast<float>(static_cast<int32_t>(random()) >> 8) * 0x1p-23f);
  }
  return values;
}

void report(benchmark::State& state, const Best& best, int64_t m, int64_t k, int64_t n) {
  state.counters["best_us"] = best.us();
  state.counters["TFLOP/s"] = best.rate(2e-12 * static_cast<double>(m * k * n));
  state.counters["GB/s"] = best.rate(2e-9 * static_cast<double>(k * n));
}

// Random numbers on huge pages: a row of weights that starts inside a cache line costs 8 %.
class Memory {
 public:
  explicit Memory(int64_t n) : bytes_(static_cast<size_t>(n) * sizeof(bf16)) {
    data_ = static_cast<bf16*>(map_pages(bytes_));
    const std::vector<bf16> values = random_bf16(std::min<int64_t>(n, 1 << 20));
    for (int64_t i = 0; i < n; ++i) data_[i] = values[static_cast<size_t>(i) % values.size()];
  }
  ~Memory() { unmap_pages(data_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  bf16* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  bf16* data_;
};

// Weights are taken in turn from a pool of at least pool_bytes, so that they come from memory
// wherever the pool exceeds the caches.
struct Weights {
  Weights(int64_t k, int64_t n, int64_t pool_bytes)
      : size(k * n), count(std::max<int64_t>(1, pool_bytes / (2 * k * n))), values(size * count) {}
  const bf16* next() { return values.data() + (turn++ % count) * size; }
  int64_t size, count, turn = 0;
  Memory values;
};

constexpr int64_t kFromMemory = int64_t{256} << 20;

void BM_Linear(benchmark::State& state) {
  const int64_t m = state.range(0), k = state.range(1), n = state.range(2);
  Queue& queue = queue_of(state.range(3));
  Weights weights(k, n, m <= kMaxSkinnyRows && k >= 2048 ? kFromMemory : 0);
  const std::vector<bf16> x = random_bf16(m * k);
  std::vector<bf16> out(static_cast<size_t>(m * n));
  Best best;
  for (auto _ : state) {
    best.time([&] {
      linear(queue,
             {.x = x.data(), .weight = weights.next(), .out = out.data(), .m = m, .k = k, .n = n});
    });
  }
  report(state, best, m, k, n);
}

// Coded weights: bytes of codes, and weights, per second.
void BM_CodedLinear(benchmark::State& state) {
  const int64_t m = state.range(0), k = state.range(1), n = state.range(2);
  const WeightCodec codec{static_cast<WeightCode>(state.range(3)), static_cast<int32_t>(state.range(4))};
  Queue& queue = queue_of(state.range(5));
  const int64_t matrix_bytes = n * codec.row_bytes(k);
  const int64_t count = m <= kMaxSkinnyRows && n > 64 ? std::max<int64_t>(1, kFromMemory / matrix_bytes) : 1;
  Memory weights(count * matrix_bytes / 2);
  state.SetLabel(name_of(codec.code));
  // Random bits are codes (of floats some are NaN, which take no longer), but no scales.
  for (int64_t row = 0; row < count * n; ++row) {
    auto* params = reinterpret_cast<uint32_t*>(reinterpret_cast<std::byte*>(weights.data()) +
                                               row * codec.row_bytes(k) + codec.code_bytes(k));
    for (int64_t group = 0; group < k / codec.group; ++group) params[group] = weight_param(0.01f, 7);
  }
  const std::vector<bf16> x = random_bf16(m * k);
  std::vector<bf16> out(static_cast<size_t>(m * n));
  Best best;
  int64_t turn = 0;
  for (auto _ : state) {
    const WeightMatrix matrix(weights.data() + turn++ % count * matrix_bytes / 2, codec);
    best.time([&] {
      linear(queue, {.x = x.data(), .weight = matrix, .out = out.data(), .m = m, .k = k, .n = n});
    });
  }
  state.counters["best_us"] = best.us();
  state.counters["TFLOP/s"] = best.rate(2e-12 * static_cast<double>(m * k * n));
  state.counters["GB/s"] = best.rate(1e-9 * static_cast<double>(matrix_bytes));
  state.counters["Gweights/s"] = best.rate(1e-9 * static_cast<double>(k * n));
}

void BM_OneDnn(benchmark::State& state) {
  const int64_t m = state.range(0), k = state.range(1), n = state.range(2);
  using dnnl::memory;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  omp_set_num_threads(1);  // as BM_Linear with one thread
  constexpr auto kBf16 = memory::data_type::bf16;
  const bool any = state.range(3) != 0;
  const memory::desc x({m, k}, kBf16, memory::format_tag::ab);
  const memory::desc weight({k, n}, kBf16, any ? memory::format_tag::any : memory::format_tag::ba);
  const memory::desc out({m, n}, kBf16, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(x, weight, out), engine);
  dnnl::matmul matmul(desc);
  const int64_t pool_count =
      m <= kMaxSkinnyRows && k >= 2048 ? std::max<int64_t>(1, kFromMemory / (2 * k * n)) : 1;
  std::vector<bf16> input = random_bf16(m * k), output(static_cast<size_t>(m * n));
  // A layout of oneDNN's choice may be padded; it is filled with the same kind of numbers.
  const size_t weight_bytes = desc.weights_desc().get_size();
  const Memory padded(static_cast<int64_t>(weight_bytes / 2) * pool_count);
  memory source(x, engine, input.data()), target(out, engine, output.data());
  memory weights(desc.weights_desc(), engine, padded.data());
  int64_t turn = 0;
  Best best;
  for (auto _ : state) {
    weights.set_data_handle(reinterpret_cast<std::byte*>(padded.data()) +
                            static_cast<size_t>(turn++ % pool_count) * weight_bytes);
    best.time([&] {
      matmul.execute(stream,
                     {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, target}});
    });
  }
  report(state, best, m, k, n);
}

void shapes(benchmark::internal::Benchmark* b, std::initializer_list<int64_t> last) {
  for (int64_t variant : last) {
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{256, 1024},
                               {256, 1536},
                               {768, 256},
                               {256, 2048},
                               {4096, 1024},
                               {4096, 4096}}) {
      for (int64_t m : {1, 4, 16, 17, 64, 512}) b->Args({m, k, n, variant});
    }
  }
}
BENCHMARK(BM_Linear)->Apply([](auto* b) {
  b->ArgNames({"m", "k", "n", "threads"})->UseRealTime()->MinTime(0.05);
  shapes(b, {1, 2});
});
BENCHMARK(BM_CodedLinear)->Apply([](auto* b) {
  b->ArgNames({"m", "k", "n", "code", "group", "threads"})->UseRealTime()->MinTime(0.05);
  for (int64_t threads : {1, 2}) {
    for (const auto& [code_of_weights, group] : kMeasuredCodecs) {
      const auto code = static_cast<int64_t>(code_of_weights);
      for (int64_t m : {1, 4, 16, 512}) b->Args({m, 4096, 4096, code, group, threads});
      b->Args({1, 4096, 64, code, group, threads});
      b->Args({1, 18944, 3584, code, group, threads});
      b->Args({1, 3584, 18944, code, group, threads});
      b->Args({1, 896, 4864, code, group, threads});
    }
  }
});
BENCHMARK(BM_OneDnn)->Apply([](auto* b) {
  b->ArgNames({"m", "k", "n", "any"})->UseRealTime()->MinTime(0.05);
  shapes(b, {0, 1});
});

// Bound of the skinny kernels: the same bytes, only read.
void BM_StreamRead(benchmark::State& state) {
  const Memory memory(kFromMemory / 2);
  const auto* words = reinterpret_cast<const uint64_t*>(memory.data());
  const size_t n = memory.bytes() / 8;
  constexpr size_t kPiece = size_t{32} << 17;  // words of 32 MiB, as much as a large layer
  Best best;
  size_t piece = 0;
  for (auto _ : state) {
    best.time([&] {
      uint64_t sums[8] = {};
      for (size_t i = 0; i < kPiece; i += 8) {
        for (size_t lane = 0; lane < 8; ++lane) sums[lane] |= words[piece + i + lane];
      }
      benchmark::DoNotOptimize(sums);
    });
    piece = (piece + kPiece) % n;
  }
  state.counters["GB/s"] = best.rate(8e-9 * static_cast<double>(kPiece));
}
BENCHMARK(BM_StreamRead)->UseRealTime()->MinTime(0.1);

// ---- elementwise ops, in bytes moved ------------------------------------------------------------

constexpr int64_t kTokens = 4096, kWidth = 256;

void moved(benchmark::State& state, const Best& best, int64_t bytes) {
  state.counters["best_us"] = best.us();
  state.counters["GB/s"] = best.rate(1e-9 * static_cast<double>(bytes));
}

void BM_RmsNorm(benchmark::State& state) {
  const std::vector<bf16> x = random_bf16(kTokens * kWidth), weight = random_bf16(kWidth);
  std::vector<bf16> out(x.size());
  Best best;
  for (auto _ : state) {
    best.time([&] {
      rms_norm(queue_of(1), {.x = x.data(),
                             .weight = weight.data(),
                             .out = out.data(),
                             .n_rows = kTokens,
                             .width = kWidth,
                             .eps = 1e-5f});
    });
  }
  moved(state, best, 4 * kTokens * kWidth);
}
void BM_Swiglu(benchmark::State& state) {
  const int64_t n = kTokens * 768;
  const std::vector<bf16> gate = random_bf16(n), up = random_bf16(n);
  std::vector<bf16> out(gate.size());
  Best best;
  for (auto _ : state) {
    best.time([&] {
      swiglu(queue_of(1), {.gate = gate.data(), .up = up.data(), .out = out.data(), .n = n});
    });
  }
  moved(state, best, 6 * n);
}
void BM_RopeAppend(benchmark::State& state) {
  const int32_t heads = 8, kv_heads = 4, d = 64;
  std::vector<double> inv_freq;
  for (int i = 0; i < d / 2; ++i) inv_freq.push_back(std::pow(1e4, -i / 32.0));
  const RopeTable table(inv_freq, kTokens);
  std::vector<bf16> q = random_bf16(kTokens * heads * d);
  const std::vector<bf16> k = random_bf16(kTokens * kv_heads * d);
  std::vector<bf16> keys(k.size()), values(k.size());
  Best best;
  for (auto _ : state) {
    best.time([&] {
      rope_append(queue_of(1), {.q = q.data(),
                                .k = k.data(),
                                .v = k.data(),
                                .keys = keys.data(),
                                .values = values.data(),
                                .head_stride = kTokens * d,
                                .n_tokens = kTokens,
                                .n_heads = heads,
                                .n_kv_heads = kv_heads,
                                .head_dim = d,
                                .rope = table.view()});
    });
  }
  moved(state, best, 4 * kTokens * d * (heads + 2 * kv_heads));
}
void BM_TokenLogprobs(benchmark::State& state) {
  const int64_t rows = 512, vocab = 2048;
  std::vector<float> logits(static_cast<size_t>(rows * vocab), 0.5f);
  const std::vector<int32_t> targets(static_cast<size_t>(rows), 7);
  std::vector<double> out(static_cast<size_t>(rows));
  Best best;
  for (auto _ : state) {
    best.time([&] {
      token_logprobs(queue_of(1), {.logits = logits.data(),
                                   .targets = targets.data(),
                                   .logprobs = out.data(),
                                   .n_rows = rows,
                                   .vocab = vocab});
    });
  }
  moved(state, best, 4 * rows * vocab);
}
BENCHMARK(BM_RmsNorm)->UseRealTime()->MinTime(0.05);
BENCHMARK(BM_Swiglu)->UseRealTime()->MinTime(0.05);
BENCHMARK(BM_RopeAppend)->UseRealTime()->MinTime(0.05);
BENCHMARK(BM_TokenLogprobs)->UseRealTime()->MinTime(0.05);

}  // namespace
}  // namespace tiercel::cpu
