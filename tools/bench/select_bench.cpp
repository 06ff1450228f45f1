// Selection: ns per landmark (of one KV head) and GB/s of landmarks, beside the stream bandwidth
// (scan/: int8 landmarks beside bf16, groups of 4);
// prefill selection: ns per landmark, block and KV head.
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "cpu/landmark.h"
#include "cpu/select.h"
#include "tools/bench/memory.h"

namespace tiercel {
namespace {

using cpu::Isa;
using cpu::Queue;

constexpr int64_t kLandmarks = 131072;  // a million tokens in chunks of 8
constexpr size_t kBytes = size_t{3 * 4 * kLandmarks * 64} * sizeof(bf16);
// One plane of the widest scan; of others several, in turn: landmarks come from memory, not from
// L3.
constexpr int64_t kPageBytes = 8 * kLandmarks * 128 * int64_t{sizeof(bf16)};
static_assert(kPageBytes >= static_cast<int64_t>(kBytes));

const bench::Pages& pages() {
  static const bench::Pages all(kPageBytes);
  return all;
}

std::vector<bf16> queries(int64_t n) {
  std::mt19937_64 rng(3);
  std::normal_distribution<float> normal;
  std::vector<bf16> q(n);
  for (bf16& x : q) x = bf16(normal(rng));
  return q;
}

// With k = 1 ranking costs next to nothing, which shows the scan.
struct Scan {
  int64_t k = 1;
  GroupScore score = GroupScore::kMax;
  bool int8 = false;
  int32_t head_dim = 64, n_kv_heads = 4, group = 2;
  SelectScope scope = SelectScope::kKvHead;
  int64_t n_chunks = kLandmarks;
};

void select(benchmark::State& state, Isa isa, const Scan& scan) {
  Queue queue({.n_threads = static_cast<int>(state.range(0)), .isa = isa});
  SelectParams p;
  p.n_kv_heads = scan.n_kv_heads;
  p.n_heads = scan.n_kv_heads * scan.group;
  p.head_dim = scan.head_dim;
  p.landmark_head_stride = scan.n_chunks * p.head_dim;
  p.end_chunk = scan.n_chunks;
  p.k = scan.k;
  p.scale = 0.125f;
  p.group = scan.score;
  p.scope = scan.scope;
  const auto q = queries(p.n_heads * p.head_dim);
  const std::vector<float> scales(scan.int8 ? p.n_kv_heads * scan.n_chunks : 0, 0.01f);
  std::vector<int32_t> ids(p.n_kv_heads * p.k), counts(p.n_kv_heads);
  std::vector<float> workspace(select_workspace_floats(p.n_heads, p.n_kv_heads, scan.n_chunks));
  p.q = q.data();
  p.scales = scales.data();
  p.ids = ids.data();
  p.counts = counts.data();
  p.workspace = workspace.data();
  const int64_t bytes = p.n_kv_heads * p.landmark_head_stride * (scan.int8 ? 1 : 2);
  const int64_t n_planes = kPageBytes / bytes;
  const char* planes = reinterpret_cast<const char*>(pages().rows());
  int64_t plane = 0;
  for (auto _ : state) {
    const char* rows = planes + plane++ % n_planes * bytes;
    if (scan.int8) {
      p.codes = reinterpret_cast<const int8_t*>(rows);
    } else {
      p.landmarks = reinterpret_cast<const bf16*>(rows);
    }
    cpu::select_chunks(queue, p);
  }
  state.SetBytesProcessed(state.iterations() * bytes);
  state.counters["landmark"] =
      benchmark::Counter(static_cast<double>(state.iterations() * p.n_kv_heads * scan.n_chunks),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void select_prefill(benchmark::State& state, Isa isa, int64_t n_tokens, int32_t group) {
  Queue queue({.n_threads = static_cast<int>(state.range(0)), .isa = isa});
  const int64_t n_blocks = n_tokens / 256;
  const auto q = queries(n_tokens * 4 * group * 64);
  std::vector<int32_t> ids(n_blocks * 4 * 258), counts(n_blocks * 4);
  std::vector<int64_t> local_begin(n_blocks);
  PrefillSelectParams p;
  p.q = q.data();
  p.landmarks = pages().rows();
  p.landmark_head_stride = kLandmarks * 64;
  p.first_position = kLandmarks / 2 * 8 - n_tokens;
  p.n_tokens = n_tokens;
  p.block_tokens = 256;
  p.local_tokens = 256;
  p.sink_chunks = 2;
  p.k = 256;
  p.chunk_tokens = 8;
  p.n_heads = 4 * group;
  p.n_kv_heads = 4;
  p.head_dim = 64;
  p.scale = 0.125f;
  p.chunk_ids = ids.data();
  p.chunk_counts = counts.data();
  p.local_begin = local_begin.data();
  for (auto _ : state) cpu::select_prefill_chunks(queue, p);
  state.counters["landmark_block"] =
      benchmark::Counter(static_cast<double>(state.iterations() * 4 * n_blocks * kLandmarks / 2),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

// Reads 8 keys per landmark; bytes are those of the keys.
void landmarks(benchmark::State& state, Isa isa) {
  Queue queue({.n_threads = static_cast<int>(state.range(0)), .isa = isa});
  const int64_t n = static_cast<int64_t>(kBytes) / (8 * 128);
  std::vector<bf16> means(n * 64);
  LandmarkParams p;
  p.keys = pages().rows();
  p.landmarks = means.data();
  p.n_chunks = n;
  p.chunk_tokens = 8;
  p.n_kv_heads = 1;
  p.head_dim = 64;
  for (auto _ : state) cpu::build_landmarks(queue, p);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kBytes));
}

void outliers(benchmark::State& state, Isa isa) {
  Queue queue({.n_threads = static_cast<int>(state.range(0)), .isa = isa});
  const int64_t n = static_cast<int64_t>(kBytes) / (8 * 128);
  std::vector<float> cosines(n);
  std::vector<int32_t> ids(48);
  std::vector<uint64_t> excluded(n / 64 + 1);
  OutlierParams p;
  p.keys = pages().rows();
  p.landmarks = pages().rows();
  p.end_chunk = n;
  p.n_outliers = 48;
  p.chunk_tokens = 8;
  p.n_kv_heads = 1;
  p.head_dim = 64;
  p.ids = ids.data();
  p.excluded = excluded.data();
  p.excluded_stride = static_cast<int64_t>(excluded.size());
  p.workspace = cosines.data();
  for (auto _ : state) cpu::find_outliers(queue, p);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kBytes));
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
      "stream", [](benchmark::State& state) { bench::stream(state, pages(), kBytes); })
      ->Arg(1)
      ->Arg(2)
      ->MeasureProcessCPUTime()
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
  for (const Isa isa : cpu::runnable_isas()) {
    using benchmark::State;
    add("select/k1", isa, [=](State& s) { select(s, isa, {}); });
    add("select/k256", isa, [=](State& s) { select(s, isa, {.k = 256}); });
    add("select/k256_of_4096", isa,
        [=](State& s) { select(s, isa, {.k = 256, .n_chunks = 4096}); });
    add("select/k256_of_16384", isa,
        [=](State& s) { select(s, isa, {.k = 256, .n_chunks = 16384}); });
    add("select/k256_mean", isa,
        [=](State& s) { select(s, isa, {.k = 256, .score = GroupScore::kMean}); });
    add("select/k256_layer_sum", isa, [=](State& s) {
      select(s, isa, {.k = 256, .score = GroupScore::kSum, .scope = SelectScope::kLayer});
    });
    for (const int32_t d : {64, 128}) {
      for (const int32_t n_kv_heads : {2, 4, 8}) {
        for (const bool int8 : {false, true}) {
          add("scan/" + std::string(int8 ? "int8" : "bf16") + "_d" + std::to_string(d) + "_kv" +
                  std::to_string(n_kv_heads),
              isa, [=](State& s) {
                select(s, isa, {.int8 = int8, .head_dim = d, .n_kv_heads = n_kv_heads, .group = 4});
              });
        }
      }
    }
    add("prefill/4096_g2", isa, [=](State& s) { select_prefill(s, isa, 4096, 2); });
    add("prefill/16384_g2", isa, [=](State& s) { select_prefill(s, isa, 16384, 2); });
    add("prefill/4096_g4", isa, [=](State& s) { select_prefill(s, isa, 4096, 4); });
    add("landmarks", isa, [=](State& s) { landmarks(s, isa); });
    add("outliers", isa, [=](State& s) { outliers(s, isa); });
  }
  return true;
}();

}  // namespace
}  // namespace tiercel
