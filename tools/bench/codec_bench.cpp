// Coded rows: how fast a core encodes and decodes, in cache and on the way into slots. GB/s count
// the bf16 side.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/codec.h"
#include "cpu/levels.h"
#include "cpu/mass.h"
#include "cpu/movement.h"
#include "engine/base/rope.h"
#include "tools/bench/best.h"
#include "tools/bench/memory.h"

namespace tiercel::cpu {
namespace {

using bench::Best;
using bench::queue_of;

RowCodec codec_of(int64_t bits) { return bits == 8 ? RowCodec::kInt8 : RowCodec::kInt4; }

void report(benchmark::State& state, const Best& best, double bytes) {
  state.counters["best_us"] = best.us();
  state.counters["GB/s"] = best.rate(bytes) * 1e-9;
}

// 64 rows that stay in the first-level cache. Level: 0 portable, 1 AVX2, 2 AVX-512.
void BM_Rows(benchmark::State& state) {
  const RowCodec codec = codec_of(state.range(0));
  const int64_t width = state.range(1), n = 64, repeats = 100;
  const Isa isa = static_cast<Isa>(state.range(2));
  if (isa > detected_isa()) return state.SkipWithError("not on this machine");
  const RowCodecKernel& kernel = row_codec_kernel(isa);
  const CodedRows shape = coded_rows(codec, width, n);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<bf16> rows(static_cast<size_t>(n * width));
  for (bf16& x : rows) x = bf16(normal(random));
  std::vector<float> wide(rows.size()), shift(static_cast<size_t>(width));
  std::vector<uint8_t> codes(static_cast<size_t>(n * row_bytes(codec, width)));
  auto* bits = reinterpret_cast<uint16_t*>(rows.data());
  kernel.encode_rows(bits, shape, codes.data());
  Best best;
  for (auto _ : state) {
    best.time([&] {
      for (int64_t i = 0; i < repeats; ++i) {
        switch (state.range(3)) {
          case 0: kernel.encode_rows(bits, shape, codes.data()); break;
          case 1: kernel.decode_rows(codes.data(), shape, bits); break;
          default: kernel.decode_rows_f32(codes.data(), shape, shift.data(), wide.data());
        }
        benchmark::ClobberMemory();
      }
    });
  }
  report(state, best, 2.0 * static_cast<double>(repeats * n * width));
}

// A prompt's codes and random missed chunks of 8: every KV head n_chunks of them.
struct Misses {
  Misses(int64_t n_tokens, int32_t heads, int64_t n_chunks)
      : n_chunks(n_chunks),
        counts(static_cast<size_t>(heads), static_cast<int32_t>(n_chunks)),
        chunks(static_cast<size_t>(heads * n_chunks)),
        slots(chunks.size()) {
    std::mt19937 random(1);
    for (size_t i = 0; i < slots.size(); ++i) {
      slots[i] = static_cast<int32_t>(i % static_cast<size_t>(n_chunks));
      chunks[i] = static_cast<int32_t>(random() % static_cast<uint32_t>(n_tokens / 8));
    }
  }
  int64_t n_chunks;
  std::vector<int32_t> counts, chunks, slots;
};

// Values (kind 0) or keys (kind 1) into slots; bits 16: values as they are.
void BM_Missed(benchmark::State& state) {
  const int64_t n_tokens = 262144, n_chunks = 512;
  const int32_t heads = 8, d = 128, tokens = 8;
  const int64_t bits = state.range(0);
  const RowCodec codec = bits == 16 ? RowCodec::kBf16 : codec_of(bits);
  const int64_t size = row_bytes(codec, d);
  const bench::Pages pages(static_cast<size_t>(heads * n_tokens * size));
  const Misses misses(n_tokens, heads, n_chunks);
  std::vector<bf16> slots(static_cast<size_t>(heads * n_chunks * 2 * tokens * d));
  const std::vector<float> mean(static_cast<size_t>(heads * d));
  std::vector<double> inv_freq;
  for (int i = 0; i < d / 2; ++i) inv_freq.push_back(std::pow(1e4, -2.0 * i / d));
  const RopeTable table(inv_freq, n_tokens);
  const auto* codes = reinterpret_cast<const std::byte*>(pages.rows());
  FetchParams fetch_params;
  fetch_params.values = bits == 16 ? pages.rows() : nullptr;
  fetch_params.value_head_stride = n_tokens * d;
  fetch_params.value_codec = codec;
  fetch_params.value_codes = codes;
  fetch_params.value_code_head_stride = n_tokens * size;
  DecodeKeysParams key_params;
  key_params.codes = codes;
  key_params.code_head_stride = n_tokens * size;
  key_params.codec = codec;
  key_params.mean = mean.data();
  key_params.rope = table.view();
  const auto fill = [&](auto& p) {
    p.miss_chunks = misses.chunks.data();
    p.miss_slots = misses.slots.data();
    p.miss_counts = misses.counts.data();
    p.stride = n_chunks;
    p.slots = slots.data();
    p.slot_head_stride = n_chunks * 2 * tokens * d;
    p.chunk_tokens = tokens;
    p.n_kv_heads = heads;
    p.head_dim = d;
  };
  fill(fetch_params);
  fill(key_params);
  Queue& queue = queue_of(state.range(2));
  // What is read leaves the caches between two calls.
  std::vector<uint64_t> other(size_t{16} << 20);
  Best best;
  for (auto _ : state) {
    state.PauseTiming();
    for (uint64_t& x : other) ++x;
    state.ResumeTiming();
    best.time([&] {
      if (state.range(1) == 0) {
        fetch(queue, fetch_params);
      } else {
        decode_keys(queue, key_params);
      }
    });
  }
  report(state, best, 2.0 * static_cast<double>(heads * n_chunks * tokens * d));
}

// A plane of keys, or of values, into codes.
void BM_Encode(benchmark::State& state) {
  const int64_t n_tokens = 32768;
  const int32_t heads = 8, d = 128;
  const bench::Pages pages(static_cast<size_t>(heads * n_tokens * d * 2));
  const RowCodec codec = codec_of(state.range(0));
  const bench::Pages codes(static_cast<size_t>(heads * n_tokens * row_bytes(codec, d)));
  const std::vector<float> mean(static_cast<size_t>(heads * d));
  std::vector<double> inv_freq;
  for (int i = 0; i < d / 2; ++i) inv_freq.push_back(std::pow(1e4, -2.0 * i / d));
  const RopeTable table(inv_freq, n_tokens);
  EncodeParams p;
  p.rows = pages.rows();
  p.head_stride = n_tokens * d;
  p.n_tokens = n_tokens;
  p.n_kv_heads = heads;
  p.width = d;
  p.codec = codec;
  p.mean = state.range(1) == 0 ? nullptr : mean.data();
  p.rope = table.view();
  p.codes = reinterpret_cast<std::byte*>(const_cast<bf16*>(codes.rows()));
  p.code_head_stride = n_tokens * row_bytes(codec, d);
  Best best;
  for (auto _ : state) best.time([&] { encode_rows(queue_of(state.range(2)), p); });
  report(state, best, 2.0 * static_cast<double>(heads * n_tokens * d));
}

// The last 64 queries of a prompt against the means of chunks of 8.
void BM_Mass(benchmark::State& state) {
  const int64_t n_chunks = state.range(0);
  const int32_t heads = 32, kv_heads = 8, d = 128;
  const bench::Pages landmarks(static_cast<size_t>(kv_heads * n_chunks * d * 2));
  const bench::Pages queries(static_cast<size_t>(kMaxMassTokens * heads * d * 2));
  std::vector<float> mass(static_cast<size_t>(kv_heads * n_chunks));
  std::vector<float> workspace(static_cast<size_t>(mass_workspace_floats(heads, n_chunks)));
  MassParams p;
  p.q = queries.rows();
  p.landmarks = landmarks.rows();
  p.landmark_head_stride = n_chunks * d;
  p.n_tokens = kMaxMassTokens;
  p.end_chunk = n_chunks;
  p.n_heads = heads;
  p.n_kv_heads = kv_heads;
  p.head_dim = d;
  p.scale = 0.088f;
  p.mass = mass.data();
  p.mass_stride = n_chunks;
  p.workspace = workspace.data();
  Best best;
  for (auto _ : state) best.time([&] { accumulate_mass(queue_of(state.range(1)), p); });
  state.counters["best_ms"] = best.us() * 1e-3;
  state.counters["TFLOP/s"] =  // of the scores, made twice
      4e-12 * best.rate(static_cast<double>(kMaxMassTokens * heads * n_chunks * d));
}

BENCHMARK(BM_Rows)
    ->ArgNames({"bits", "width", "level", "op"})
    ->ArgsProduct({{8, 4}, {64, 128, 160}, {0, 1, 2}, {0, 1, 2}})
    ->MinTime(0.05);
BENCHMARK(BM_Missed)
    ->ArgNames({"bits", "keys", "threads"})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->Iterations(10)
    ->Args({16, 0, 1})
    ->ArgsProduct({{8, 4}, {0, 1}, {1, 2}});
BENCHMARK(BM_Encode)
    ->ArgNames({"bits", "keys", "threads"})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(3)
    ->ArgsProduct({{8, 4}, {0, 1}, {1}});
BENCHMARK(BM_Mass)
    ->ArgNames({"chunks", "threads"})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(5)
    ->Args({512, 1})
    ->Args({16384, 1})
    ->Args({16384, 2});

}  // namespace
}  // namespace tiercel::cpu
