// Decode attention: GB/s of keys and values, beside the stream bandwidth of the same threads.
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "cpu/attention_decode.h"
#include "tools/bench/memory.h"

namespace tiercel {
namespace {

using cpu::Isa;
using cpu::Queue;

constexpr size_t kPlaneBytes = size_t{256} << 20;  // of keys and values together

const bench::Pages& pages() {
  static const bench::Pages all(kPlaneBytes);
  return all;
}

struct Shape {
  int32_t n_kv_heads, group, d;
  int32_t chunk;  // 0: a contiguous plane; else gathered records of this many tokens
};

void attend(benchmark::State& state, Isa isa, Shape s) {
  Queue queue({.n_threads = static_cast<int>(state.range(0)), .isa = isa});
  const int64_t n_tokens = static_cast<int64_t>(kPlaneBytes) / (4 * s.d * s.n_kv_heads);
  const int64_t head_stride = 2 * n_tokens * s.d;
  std::vector<bf16> q(s.n_kv_heads * s.group * s.d, bf16(0.5f));
  const int64_t n_heads = s.n_kv_heads * s.group;
  std::vector<float> max(n_heads), sum(n_heads), out(n_heads * s.d);
  std::vector<float> workspace(decode_workspace_floats(n_heads, s.d));

  KvSource source;
  source.keys = pages().rows();
  source.values = source.keys + n_tokens * s.d;
  source.head_stride = head_stride;
  source.token_stride = source.chunk_stride = s.d;
  source.n_tokens = n_tokens;
  std::vector<int32_t> ids, counts;
  if (s.chunk != 0) {
    const int64_t n_chunks = n_tokens / s.chunk;
    std::mt19937 rng(2);
    for (int64_t i = 0; i < s.n_kv_heads * n_chunks; ++i) {
      ids.push_back(static_cast<int32_t>(i % n_chunks));
      if (i % n_chunks == n_chunks - 1) std::shuffle(ids.end() - n_chunks, ids.end(), rng);
    }
    counts.assign(s.n_kv_heads, static_cast<int32_t>(n_chunks));
    source.values = source.keys + s.chunk * s.d;
    source.chunk_tokens = s.chunk;
    source.chunk_stride = 2 * s.chunk * s.d;
    source.ids = ids.data();
    source.counts = counts.data();
    source.ids_stride = n_chunks;
  }
  DecodeAttendParams p;
  p.q = q.data();
  p.sources = &source;
  p.n_sources = 1;
  p.n_heads = static_cast<int32_t>(n_heads);
  p.n_kv_heads = s.n_kv_heads;
  p.head_dim = s.d;
  p.scale = 0.125f;
  p.out = {max.data(), sum.data(), out.data()};
  p.workspace = workspace.data();
  for (auto _ : state) cpu::attend_decode(queue, p);
  state.SetBytesProcessed(state.iterations() * s.n_kv_heads * n_tokens * 4 * s.d);
}

void add(const std::string& name, Isa isa, Shape s) {
  benchmark::RegisterBenchmark((name + "/" + std::string(cpu::name_of(isa))).c_str(),
                               [=](benchmark::State& state) { attend(state, isa, s); })
      ->Arg(1)
      ->Arg(2)
      ->MeasureProcessCPUTime()
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

const bool kRegistered = [] {
  benchmark::RegisterBenchmark(
      "stream", [](benchmark::State& state) { bench::stream(state, pages(), kPlaneBytes); })
      ->Arg(1)
      ->Arg(2)
      ->MeasureProcessCPUTime()
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
  for (const Isa isa : cpu::runnable_isas()) {
    add("plane/d64_g2", isa, {4, 2, 64, 0});
    add("plane/d128_g4", isa, {8, 4, 128, 0});
    add("plane/d128_g8", isa, {8, 8, 128, 0});
    add("gather/d64_g2_c8", isa, {4, 2, 64, 8});
    add("gather/d128_g4_c8", isa, {8, 4, 128, 8});
  }
  return true;
}();

}  // namespace
}  // namespace tiercel
