// Decode attention: GB/s of keys and values, beside the stream bandwidth of the same threads; of
// values and their codes where the weights are made elsewhere.
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "cpu/attention_decode.h"
#include "cpu/weighted_values.h"
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

// Lists of chunks of s.chunk tokens, every chunk once.
struct Lists {
  Lists(const Shape& s, int64_t n_chunks) : counts(s.n_kv_heads, static_cast<int32_t>(n_chunks)) {
    std::mt19937 rng(2);
    for (int64_t i = 0; i < s.n_kv_heads * n_chunks; ++i) {
      ids.push_back(static_cast<int32_t>(i % n_chunks));
      if (i % n_chunks == n_chunks - 1) std::shuffle(ids.end() - n_chunks, ids.end(), rng);
    }
  }
  std::vector<int32_t> ids, counts;
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
  const Lists lists(s, s.chunk != 0 ? n_tokens / s.chunk : 0);
  if (s.chunk != 0) {
    source.values = source.keys + s.chunk * s.d;
    source.chunk_tokens = s.chunk;
    source.chunk_stride = 2 * s.chunk * s.d;
    source.ids = lists.ids.data();
    source.counts = lists.counts.data();
    source.ids_stride = n_tokens / s.chunk;
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

// As many values as the pages hold, in lists; any bytes are codes.
void multiply(benchmark::State& state, Isa isa, Shape s, RowCodec codec) {
  Queue queue({.n_threads = static_cast<int>(state.range(0)), .isa = isa});
  const int64_t size = row_bytes(codec, s.d);
  const int64_t head_bytes = static_cast<int64_t>(kPlaneBytes) / s.n_kv_heads / 64 * 64;
  const int64_t n_chunks = head_bytes / (s.chunk * size), n_tokens = n_chunks * s.chunk;
  const Lists lists(s, n_chunks);
  const int64_t n_heads = s.n_kv_heads * s.group;
  std::vector<bf16> weights(n_heads * n_tokens, bf16(0.5f));
  std::vector<float> maxima(n_heads * (n_tokens / kWeightRange + 1), 1.0f);
  std::vector<float> max(n_heads), sum(n_heads), out(n_heads * s.d);
  std::vector<float> workspace(weighted_values_workspace_floats(n_heads, s.d));
  WeightedValuesParams p;
  p.weights = weights.data();
  p.weight_stride = n_tokens;
  p.maxima = maxima.data();
  p.maximum_stride = n_tokens / kWeightRange + 1;
  p.ids = lists.ids.data();
  p.counts = lists.counts.data();
  p.ids_stride = n_chunks;
  p.chunk_tokens = s.chunk;
  p.values = pages().rows();
  p.value_head_stride = head_bytes / 2;
  p.codec = codec;
  p.codes = reinterpret_cast<const std::byte*>(pages().rows());
  p.code_head_stride = head_bytes;
  p.n_heads = static_cast<int32_t>(n_heads);
  p.n_kv_heads = s.n_kv_heads;
  p.head_dim = s.d;
  p.out = {max.data(), sum.data(), out.data()};
  p.workspace = workspace.data();
  for (auto _ : state) cpu::weighted_values(queue, p);
  state.SetBytesProcessed(state.iterations() * s.n_kv_heads * n_tokens * size);
}

template <typename Run>
void add(const std::string& name, Isa isa, Run run) {
  benchmark::RegisterBenchmark((name + "/" + std::string(cpu::name_of(isa))).c_str(), run)
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
    const auto add_attend = [isa](const std::string& name, Shape s) {
      add(name, isa, [=](benchmark::State& state) { attend(state, isa, s); });
    };
    add_attend("plane/d64_g2", {4, 2, 64, 0});
    add_attend("plane/d128_g4", {8, 4, 128, 0});
    add_attend("plane/d128_g8", {8, 8, 128, 0});
    add_attend("gather/d64_g2_c8", {4, 2, 64, 8});
    add_attend("gather/d128_g4_c8", {8, 4, 128, 8});
    const auto add_values = [isa](const std::string& name, Shape s, RowCodec codec) {
      add(name, isa, [=](benchmark::State& state) { multiply(state, isa, s, codec); });
    };
    add_values("values/d128_g4_c8", {8, 4, 128, 8}, RowCodec::kBf16);
    add_values("values/d128_g8_c8", {8, 8, 128, 8}, RowCodec::kBf16);
    add_values("values_int8/d128_g4_c8", {8, 4, 128, 8}, RowCodec::kInt8);
    add_values("values_int4/d128_g4_c8", {8, 4, 128, 8}, RowCodec::kInt4);
  }
  return true;
}();

}  // namespace
}  // namespace tiercel
