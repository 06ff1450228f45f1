// Prefill attention: TFLOP/s (4 d per visible pair of query and key), at every level of this
// machine.
//
//   staged   the kernel alone, on keys that are staged already
//   dense    causal, all included
//   select   blocks of queries x chosen chunks + local range, all included
//
// Data are random: zeros draw less power and read a fifth too fast. `exact` is the fp32 exp2.
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cpu/attention_prefill.h"
#include "cpu/isa.h"
#include "cpu/queue.h"
#include "cpu/topology.h"
#include "engine/base/ops.h"

namespace tiercel {
namespace {

using cpu::prefill::Kernel;

struct Random {
  std::mt19937_64 engine{7};
  std::vector<bf16> some = pool();

  std::vector<bf16> pool() {
    std::normal_distribution<float> normal(0, 1);
    std::vector<bf16> values(1 << 16);
    for (bf16& x : values) x = bf16(normal(engine));
    return values;
  }
  std::vector<bf16> tensor(int64_t n) {
    std::vector<bf16> t(static_cast<size_t>(n));
    for (size_t i = 0; i < t.size(); ++i) t[i] = some[(i * 2654435761u >> 7) % some.size()];
    return t;
  }
};

class Pages {
 public:
  explicit Pages(int64_t bytes) : bytes_(static_cast<size_t>(bytes)), at_(cpu::map_pages(bytes_)) {}
  ~Pages() { cpu::unmap_pages(at_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  template <typename T>
  T* as() {
    return static_cast<T*>(at_);
  }

 private:
  size_t bytes_;
  void* at_;
};

// CPU seconds of all threads: rates per CPU second stand still on a machine that others use too.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void report(benchmark::State& state, double flop, double cpu_began) {
  state.counters["TFLOP/cpu_s"] =
      flop * 1e-12 * static_cast<double>(state.iterations()) / (cpu_seconds() - cpu_began);
  state.counters["TFLOP/s"] = benchmark::Counter(
      flop * 1e-12 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void staged(benchmark::State& state, const Kernel* kernel, int32_t d, int32_t n_keys, bool exact) {
  const int32_t n_rows = 512 / kernel->row_tile * kernel->row_tile;
  Random random;
  const std::vector<bf16> source = random.tensor(int64_t{n_keys} * d);
  const auto* bits = reinterpret_cast<const uint16_t*>(source.data());
  const int64_t row_bytes = int64_t{d} * kernel->element_bytes;
  Pages q(n_rows * row_bytes), keys(n_keys * row_bytes), values(n_keys * row_bytes);
  Pages out(int64_t{n_rows} * d * 4), buffer(kernel->buffer_bytes);
  kernel->pack({bits, d, q.as<void>(), n_rows, d, d, 1.4427f / std::sqrt(static_cast<float>(d))});
  std::vector<int64_t> rows(static_cast<size_t>(n_keys));
  for (int32_t i = 0; i < n_keys; ++i) rows[static_cast<size_t>(i)] = int64_t{i} * d;
  kernel->stage({bits, bits, rows.data(), n_keys, d, d, keys.as<void>(), values.as<void>()});
  const auto n = static_cast<size_t>(n_rows);
  std::vector<float> sum(n), reference(n, -INFINITY);
  const std::vector<int32_t> begin(n, 0), end(n, n_keys);
  const double began = cpu_seconds();
  for (auto _ : state) {
    kernel->attend({q.as<void>(), keys.as<void>(), values.as<void>(), out.as<float>(), sum.data(),
                    reference.data(), begin.data(), end.data(), n_rows, n_keys, d, exact,
                    buffer.as<void>()});
    std::fill(sum.begin(), sum.end(), 0.0f);
  }
  report(state, 4.0 * d * n_rows * n_keys, began);
}

void stage_only(benchmark::State& state, const Kernel* kernel, int32_t d, int64_t n_pool) {
  constexpr int32_t kKeys = 2304 / 64 * 64, kChunk = 8;
  Pages keys(n_pool * d * 2), values(n_pool * d * 2);
  Random random;
  for (int64_t i = 0; i < n_pool * d; ++i) {
    keys.as<bf16>()[i] = values.as<bf16>()[i] = random.some[static_cast<size_t>(i % 65521)];
  }
  Pages staged_keys(int64_t{kKeys} * d * kernel->element_bytes);
  Pages staged_values(int64_t{kKeys} * d * kernel->element_bytes);
  std::vector<int64_t> rows(kKeys);
  for (auto _ : state) {
    state.PauseTiming();
    for (size_t i = 0; i < rows.size(); i += kChunk) {
      const auto chunk =
          static_cast<int64_t>(random.engine() % static_cast<uint64_t>(n_pool / kChunk));
      for (int64_t t = 0; t < kChunk; ++t)
        rows[i + static_cast<size_t>(t)] = (chunk * kChunk + t) * d;
    }
    state.ResumeTiming();
    kernel->stage({keys.as<uint16_t>(), values.as<uint16_t>(), rows.data(), kKeys, d, d,
                   staged_keys.as<void>(), staged_values.as<void>()});
  }
  state.SetBytesProcessed(state.iterations() * kKeys * d * 4);
}

// The small model: 8 query heads over 4 KV heads of 64.
struct Layer {
  int64_t n_keys;
  std::vector<bf16> q, keys, values, out;
  PrefillAttendParams p;

  Layer(int64_t n_queries, int64_t n) : n_keys(n) {
    Random random;
    p.n_heads = 8;
    p.n_kv_heads = 4;
    p.head_dim = 64;
    p.scale = 0.125f;
    p.n_tokens = n_queries;
    p.first_position = n - n_queries;
    p.head_stride = n * 64;
    q = random.tensor(n_queries * 8 * 64);
    keys = random.tensor(n * 4 * 64);
    values = random.tensor(n * 4 * 64);
    out.resize(q.size());
    p.q = q.data();
    p.keys = keys.data();
    p.values = values.data();
    p.out = out.data();
  }
};

void dense(benchmark::State& state, cpu::Isa isa, int64_t n, int n_threads, bool exact) {
  cpu::Queue queue({.n_threads = n_threads, .isa = isa});
  Layer layer(n, n);
  layer.p.exact_exp = exact;
  const double began = cpu_seconds();
  for (auto _ : state) cpu::attend_prefill(queue, layer.p);
  report(state, 4.0 * 64 * 8 * 0.5 * static_cast<double>(n) * static_cast<double>(n), began);
}

void select(benchmark::State& state, cpu::Isa isa, int64_t block_tokens, int n_threads) {
  constexpr int64_t kQueries = 4096, kKeys = 1 << 18, kChunk = 8, kChosen = 256, kLocal = 256;
  cpu::Queue queue({.n_threads = n_threads, .isa = isa});
  Layer layer(kQueries, kKeys);
  PrefillAttendParams& p = layer.p;
  p.block_tokens = block_tokens;
  p.chunk_tokens = kChunk;
  p.max_chunks = kChosen;
  std::mt19937_64 random(3);
  std::vector<int32_t> ids, counts;
  std::vector<int64_t> local_begin;
  double pairs = 0;
  for (int64_t first = p.first_position; first < kKeys; first += block_tokens) {
    local_begin.push_back((first - kLocal) / kChunk * kChunk);
    pairs += static_cast<double>(block_tokens) *
             static_cast<double>(kChosen * kChunk + first - local_begin.back() + block_tokens / 2);
    for (int j = 0; j < p.n_kv_heads; ++j) {
      counts.push_back(kChosen);
      const size_t start = ids.size();
      for (int i = 0; i < kChosen; ++i) {
        ids.push_back(
            static_cast<int32_t>(random() % static_cast<uint64_t>(local_begin.back() / kChunk)));
      }
      std::sort(ids.begin() + static_cast<std::ptrdiff_t>(start), ids.end());
    }
  }
  p.chunk_ids = ids.data();
  p.chunk_counts = counts.data();
  p.local_begin = local_begin.data();
  const double began = cpu_seconds();
  for (auto _ : state) cpu::attend_prefill(queue, p);
  report(state, 4.0 * 64 * 8 * pairs, began);
}

const bool kRegistered = [] {
  const auto add = [](const std::string& name, auto body) {
    benchmark::RegisterBenchmark(name.c_str(), body)
        ->Unit(benchmark::kMicrosecond)
        ->UseRealTime()
        ->MinTime(0.2);
  };
  for (cpu::Isa isa : cpu::runnable_isas()) {
    const std::string level(cpu::name_of(isa));
    const Kernel* kernel = &cpu::prefill::kernel_of(isa);
    for (bool exact : {false, true}) {
      if (exact && isa < cpu::Isa::kAvx512Bf16) continue;
      const std::string tail = exact ? "/exact" : "";
      for (int32_t d : {64, 128}) {
        const int32_t keys = kernel->element_bytes == 2 ? 2304 * 64 / d : 1152 * 64 / d;
        add("staged/" + level + "/d:" + std::to_string(d) + "/keys:" + std::to_string(keys) + tail,
            [=](benchmark::State& s) { staged(s, kernel, d, keys, exact); });
      }
    }
    add("stage_only/" + level + "/cache",
        [=](benchmark::State& s) { stage_only(s, kernel, 64, 1 << 10); });
    add("stage_only/" + level + "/memory",
        [=](benchmark::State& s) { stage_only(s, kernel, 64, 1 << 20); });
    const int64_t n = isa < cpu::Isa::kAvx512Bf16 ? 4096 : 32768;
    for (int threads : {1, 2}) {
      const std::string tail = "/threads:" + std::to_string(threads);
      add("dense/" + level + "/n:" + std::to_string(n) + tail,
          [=](benchmark::State& s) { dense(s, isa, n, threads, false); });
      if (isa < cpu::Isa::kAvx512Bf16) continue;
      for (int64_t block : {256, 512}) {
        add("select/" + level + "/block:" + std::to_string(block) + tail,
            [=](benchmark::State& s) { select(s, isa, block, threads); });
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace tiercel
