// Low-rank keys at the small model's shape (4 KV heads of 64, rank 160) and at an 8B model's.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <random>

#include "cpu/lowrank.h"
#include "engine/base/rope.h"
#include "tools/bench/best.h"

namespace tiercel::cpu {
namespace {

using bench::Best;
using bench::queue_of;

struct Setup {
  Setup(int64_t n, int32_t heads, int32_t d, int64_t rank)
      : n_tokens(n),
        n_kv_heads(heads),
        head_dim(d),
        rank(rank),
        keys(static_cast<size_t>(n * heads * d)),
        basis(static_cast<size_t>(heads * d * rank)),
        coefficients(static_cast<size_t>(n * rank)),
        mean(static_cast<size_t>(heads * d)) {
    std::mt19937 random(1);
    for (bf16& key : keys) {
      key = bf16(static_cast<float>(static_cast<int32_t>(random()) >> 8) * 0x1p-23f);
    }
    std::vector<double> inv_freq;
    for (int i = 0; i < d / 2; ++i) inv_freq.push_back(std::pow(1e4, -2.0 * i / d));
    table = RopeTable(inv_freq, n);
  }
  LowRankView view() { return {basis.data(), mean.data(), rank}; }

  int64_t n_tokens;
  int32_t n_kv_heads, head_dim;
  int64_t rank;
  std::vector<bf16> keys, basis, coefficients;
  std::vector<float> mean;
  RopeTable table;
};

void report(benchmark::State& state, const Best& best, const char* name, double units) {
  state.counters["best_us"] = best.us();
  state.counters[name] = best.rate(units);
}

void BM_FitBasis(benchmark::State& state) {
  Setup s(state.range(0), static_cast<int32_t>(state.range(1)),
          static_cast<int32_t>(state.range(2)), state.range(3));
  Best best;
  for (auto _ : state) {
    best.time([&] {
      fit_basis(queue_of(state.range(4)), {.keys = s.keys.data(),
                                           .head_stride = s.n_tokens * s.head_dim,
                                           .n_tokens = s.n_tokens,
                                           .n_kv_heads = s.n_kv_heads,
                                           .head_dim = s.head_dim,
                                           .rope = s.table.view(),
                                           .lowrank = s.view()});
    });
  }
  report(state, best, "tokens/s", static_cast<double>(s.n_tokens));
}

void BM_ProjectKeys(benchmark::State& state) {
  Setup s(state.range(0), static_cast<int32_t>(state.range(1)),
          static_cast<int32_t>(state.range(2)), state.range(3));
  Best best;
  for (auto _ : state) {
    best.time([&] {
      project_keys(queue_of(state.range(4)), {.keys = s.keys.data(),
                                              .head_stride = s.n_tokens * s.head_dim,
                                              .n_tokens = s.n_tokens,
                                              .n_kv_heads = s.n_kv_heads,
                                              .head_dim = s.head_dim,
                                              .rope = s.table.view(),
                                              .lowrank = s.view(),
                                              .coefficients = s.coefficients.data()});
    });
  }
  report(state, best, "tokens/s", static_cast<double>(s.n_tokens));
}

// n_chunks random chunks of 8 for every KV head, out of n_tokens.
void BM_RebuildKeys(benchmark::State& state) {
  Setup s(state.range(0), static_cast<int32_t>(state.range(1)),
          static_cast<int32_t>(state.range(2)), state.range(3));
  const int64_t n_chunks = state.range(5), tokens = 8;
  std::mt19937 random(1);
  std::vector<int32_t> chunks(static_cast<size_t>(n_chunks * s.n_kv_heads)), slots(chunks.size());
  const std::vector<int32_t> counts(static_cast<size_t>(s.n_kv_heads),
                                    static_cast<int32_t>(n_chunks));
  for (size_t i = 0; i < slots.size(); ++i) {
    slots[i] = static_cast<int32_t>(i % static_cast<size_t>(n_chunks));
  }
  std::vector<bf16> memory(static_cast<size_t>(s.n_kv_heads * n_chunks * 2 * tokens * s.head_dim));
  Best best;
  for (auto _ : state) {
    state.PauseTiming();
    for (int32_t& chunk : chunks) {
      chunk = static_cast<int32_t>(random() % static_cast<uint32_t>(s.n_tokens / tokens));
    }
    state.ResumeTiming();
    best.time([&] {
      rebuild_keys(queue_of(state.range(4)),
                   {.coefficients = s.coefficients.data(),
                    .lowrank = s.view(),
                    .rope = s.table.view(),
                    .miss_chunks = chunks.data(),
                    .miss_slots = slots.data(),
                    .miss_counts = counts.data(),
                    .stride = n_chunks,
                    .slots = memory.data(),
                    .slot_head_stride = n_chunks * 2 * tokens * s.head_dim,
                    .chunk_tokens = static_cast<int32_t>(tokens),
                    .n_kv_heads = s.n_kv_heads,
                    .head_dim = s.head_dim});
    });
  }
  report(state, best, "TFLOP/s",
         2e-12 * static_cast<double>(n_chunks * tokens * s.n_kv_heads * s.head_dim * s.rank));
}

const std::vector<std::string> kNames = {"tokens", "heads", "d", "rank", "threads"};
BENCHMARK(BM_FitBasis)
    ->ArgNames(kNames)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(2)
    ->Args({262144, 4, 64, 160, 1})
    ->Args({262144, 4, 64, 160, 2})
    ->Args({32768, 8, 128, 160, 2});
BENCHMARK(BM_ProjectKeys)
    ->ArgNames(kNames)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(3)
    ->Args({262144, 4, 64, 160, 1})
    ->Args({262144, 4, 64, 160, 2})
    ->Args({32768, 8, 128, 160, 2})
    ->Args({8, 4, 64, 160, 1});
BENCHMARK(BM_RebuildKeys)
    ->ArgNames({"tokens", "heads", "d", "rank", "threads", "chunks"})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->MinTime(0.05)
    ->Args({262144, 4, 64, 160, 1, 256})
    ->Args({262144, 4, 64, 160, 2, 256})
    ->Args({262144, 4, 64, 160, 2, 20})
    ->Args({65536, 8, 128, 160, 2, 256});

}  // namespace
}  // namespace tiercel::cpu
