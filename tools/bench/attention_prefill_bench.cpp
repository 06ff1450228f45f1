// Prefill attention: TFLOP/s (4 d per visible pair of query and key), at every level of this
// machine.
//
//   staged   the kernel alone, on keys that are staged already
//   dense    causal, all included
//   select   blocks of queries x chosen chunks + local range, all included
//
// and, on AMX machines, what the first of them is made of:
//
//   peak     tile instructions alone, and the clock: what no kernel can beat
//   part     staged, without its weights (products), or without its tiles (weights)
//   variant  staged, by schedules that were not chosen
//
// Data are random: zeros draw less power and read a fifth too fast. `exact` is the fp32 exp2.
// `best` is the rate of the best call: on a machine that others use too, an average measures them.
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
#include "cpu/tile.h"
#include "cpu/topology.h"
#include "engine/base/ops.h"
#include "tools/bench/attention_prefill_parts.h"
#include "tools/bench/best.h"

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

void report(benchmark::State& state, double flop, double cpu_began, const bench::Best& best) {
  state.counters["best"] = best.rate(flop * 1e-12);
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
  // Parts of a kernel read what the others would have left there.
  for (int32_t i = 0; i < kernel->buffer_bytes / 2; ++i) {
    buffer.as<bf16>()[i] = random.some[static_cast<size_t>(i % 65521)];
  }
  kernel->pack({bits, d, q.as<void>(), n_rows, d, d, 1.4427f / std::sqrt(static_cast<float>(d))});
  std::vector<int64_t> rows(static_cast<size_t>(n_keys));
  for (int32_t i = 0; i < n_keys; ++i) rows[static_cast<size_t>(i)] = int64_t{i} * d;
  kernel->stage({bits, bits, rows.data(), n_keys, d, d, keys.as<void>(), values.as<void>()});
  const auto n = static_cast<size_t>(n_rows);
  std::vector<float> sum(n), reference(n, -INFINITY);
  const std::vector<int32_t> begin(n, 0), end(n, n_keys);
  bench::Best best;
  const double began = cpu_seconds();
  for (auto _ : state) {
    best.time([&] {
      kernel->attend({.q = q.as<void>(),
                      .keys = keys.as<void>(),
                      .values = values.as<void>(),
                      .out = out.as<float>(),
                      .sum = sum.data(),
                      .reference = reference.data(),
                      .begin = begin.data(),
                      .end = end.data(),
                      .n_rows = n_rows,
                      .n_keys = n_keys,
                      .padded_dim = d,
                      .exact_exp = exact,
                      .buffer = buffer.as<void>()});
    });
    std::fill(sum.begin(), sum.end(), 0.0f);
  }
  report(state, 4.0 * d * n_rows * n_keys, began, best);
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
  bench::Best best;
  for (auto _ : state) {
    state.PauseTiming();
    for (size_t i = 0; i < rows.size(); i += kChunk) {
      const auto chunk =
          static_cast<int64_t>(random.engine() % static_cast<uint64_t>(n_pool / kChunk));
      for (int64_t t = 0; t < kChunk; ++t)
        rows[i + static_cast<size_t>(t)] = (chunk * kChunk + t) * d;
    }
    state.ResumeTiming();
    best.time([&] {
      kernel->stage({keys.as<uint16_t>(), values.as<uint16_t>(), rows.data(), kKeys, d, d,
                     staged_keys.as<void>(), staged_values.as<void>()});
    });
  }
  state.counters["best_us"] = best.us();
  state.SetBytesProcessed(state.iterations() * kKeys * d * 4);
}

// 8 query heads over 4 KV heads, with a head dim of 64 the small model's.
struct Layer {
  int64_t n_keys;
  std::vector<bf16> q, keys, values, out;
  PrefillAttendParams p;

  Layer(int64_t n_queries, int64_t n, int32_t d) : n_keys(n) {
    Random random;
    p.n_heads = 8;
    p.n_kv_heads = 4;
    p.head_dim = d;
    p.scale = 1 / std::sqrt(static_cast<float>(d));
    p.n_tokens = n_queries;
    p.first_position = n - n_queries;
    p.head_stride = n * d;
    q = random.tensor(n_queries * 8 * d);
    keys = random.tensor(n * 4 * d);
    values = random.tensor(n * 4 * d);
    out.resize(q.size());
    p.q = q.data();
    p.keys = keys.data();
    p.values = values.data();
    p.out = out.data();
  }
};

void dense(benchmark::State& state, cpu::Isa isa, int64_t n, int32_t d, int n_threads, bool exact) {
  cpu::Queue queue({.n_threads = n_threads, .isa = isa});
  Layer layer(n, n, d);
  layer.p.exact_exp = exact;
  const double began = cpu_seconds();
  bench::Best best;
  for (auto _ : state) best.time([&] { cpu::attend_prefill(queue, layer.p); });
  report(state, 4.0 * d * 8 * 0.5 * static_cast<double>(n) * static_cast<double>(n), began, best);
}

void select(benchmark::State& state, cpu::Isa isa, int64_t block_tokens, int n_threads) {
  constexpr int64_t kQueries = 4096, kKeys = 1 << 18, kChunk = 8, kChosen = 256, kLocal = 256;
  cpu::Queue queue({.n_threads = n_threads, .isa = isa});
  Layer layer(kQueries, kKeys, 64);
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
  bench::Best best;
  for (auto _ : state) best.time([&] { cpu::attend_prefill(queue, p); });
  report(state, 4.0 * 64 * 8 * pairs, began, best);
}

#if defined(__x86_64__)
// ---- tile instructions alone ----

constexpr int64_t kTileBytes = 1024;

// Calls `body(tiles, memory, tile)` for tiles 0, 4, 8 ... below n_tiles, round and round, and
// counts what `units_per_four` it does in each. Memory is random bf16.
template <typename Body>
void tiles(benchmark::State& state, int64_t n_tiles, double units_per_four, const char* unit,
           Body body) {
  constexpr int64_t kFours = 4096;
  Random random;
  Pages memory(n_tiles * kTileBytes);
  for (int64_t i = 0; i < n_tiles * kTileBytes / 2; ++i) {
    memory.as<bf16>()[i] = random.some[static_cast<size_t>(i % 65521)];
  }
  auto* bytes = memory.as<char>();
  cpu::HardwareTiles hardware;
  hardware.configure();
  hardware.load<0>(bytes, 64), hardware.load<1>(bytes, 64), hardware.load<2>(bytes, 64);
  hardware.load<3>(bytes, 64), hardware.load<4>(bytes, 64), hardware.load<5>(bytes, 64);
  hardware.load<6>(bytes, 64), hardware.load<7>(bytes, 64);
  bench::Best best;
  for (auto _ : state) {
    best.time([&] {
      for (int64_t i = 0, tile = 0; i < kFours; ++i, tile = (tile + 4) % n_tiles) {
        body(hardware, bytes + tile * kTileBytes);
      }
    });
  }
  hardware.release();
  state.counters[unit] = best.rate(units_per_four * static_cast<double>(kFours));
  state.counters["ns"] = best.us() * 1e3 / (4.0 * static_cast<double>(kFours));
}

using Tiles = cpu::HardwareTiles;

void four_products(Tiles& t, char*) {
  t.multiply<0, 4, 6>();
  t.multiply<1, 4, 7>();
  t.multiply<2, 5, 6>();
  t.multiply<3, 5, 7>();
}
// As a matrix product loads them: one tile per product.
void four_products_four_loads(Tiles& t, char* from) {
  t.load<4, 0>(from, 64);
  t.load<6, 1024>(from, 64);
  t.multiply<0, 4, 6>();
  t.load<7, 2048>(from, 64);
  t.multiply<1, 4, 7>();
  t.load<5, 3072>(from, 64);
  t.multiply<2, 5, 6>();
  t.multiply<3, 5, 7>();
}
// As attention loads them: six tiles per four products, through one register per operand.
void four_products_six_loads(Tiles& t, char* from) {
  t.load<7, 0>(from, 64);
  t.load<6, 1024>(from, 64);
  t.multiply<0, 6, 7>();
  t.load<6, 2048>(from, 64);
  t.multiply<1, 6, 7>();
  t.load<7, 3072>(from, 64);
  t.load<6, 1024>(from, 64);
  t.multiply<2, 6, 7>();
  t.load<6, 2048>(from, 64);
  t.multiply<3, 6, 7>();
}
void four_loads(Tiles& t, char* from) {
  t.load<4, 0>(from, 64);
  t.load<5, 1024>(from, 64);
  t.load<6, 2048>(from, 64);
  t.load<7, 3072>(from, 64);
}
void four_streaming_loads(Tiles& t, char* from) {
  t.load_streaming<4, 0>(from, 64);
  t.load_streaming<5, 1024>(from, 64);
  t.load_streaming<6, 2048>(from, 64);
  t.load_streaming<7, 3072>(from, 64);
}
void four_stores(Tiles& t, char* to) {
  t.store<4, 0>(to, 64);
  t.store<5, 1024>(to, 64);
  t.store<6, 2048>(to, 64);
  t.store<7, 3072>(to, 64);
}

// A chain of multiplications, three cycles each, right after some thousand products: the clock that
// they run at. (Additions of constants will not do: several of a chain are renamed in one cycle.)
void clock_beside_products(benchmark::State& state) {
  constexpr int64_t kMultiplications = 1 << 14;
  Tiles t;
  t.configure();
  bench::Best best;
  int64_t product = 1;
  for (auto _ : state) {
    for (int i = 0; i < 4096; ++i) four_products(t, nullptr);
    best.time([&] {
      for (int64_t i = 0; i < kMultiplications / 4; ++i) {
        asm volatile("imul $3, %0, %0\n imul $3, %0, %0\n imul $3, %0, %0\n imul $3, %0, %0" : "+r"(product));
      }
    });
  }
  t.release();
  state.counters["GHz"] = best.rate(3 * static_cast<double>(kMultiplications) * 1e-9);
}

template <typename Add>
void add_tile_cases(Add add) {
  constexpr double kTflop = 4 * 16384e-12, kGb = 4 * 1024e-9;
  constexpr int64_t kL1 = 16, kL2 = 512, kL3 = 16384;  // tiles
  add("peak/clock", clock_beside_products);
  const auto tile_case = [&](const char* name, int64_t n_tiles, bool products, auto body) {
    add(name, [=](benchmark::State& s) {
      tiles(s, n_tiles, products ? kTflop : kGb, products ? "TFLOP/s" : "GB/s", body);
    });
  };
  tile_case("peak/products/registers", 4, true, four_products);
  tile_case("peak/products/4_loads/L1", kL1, true, four_products_four_loads);
  tile_case("peak/products/4_loads/L2", kL2, true, four_products_four_loads);
  tile_case("peak/products/6_loads/L1", kL1, true, four_products_six_loads);
  tile_case("peak/loads/L1", kL1, false, four_loads);
  tile_case("peak/loads/L2", kL2, false, four_loads);
  tile_case("peak/loads/L3", kL3, false, four_loads);
  tile_case("peak/streaming_loads/L1", kL1, false, four_streaming_loads);
  tile_case("peak/streaming_loads/L2", kL2, false, four_streaming_loads);
  tile_case("peak/stores/L1", kL1, false, four_stores);
  tile_case("peak/stores/L2", kL2, false, four_stores);

  const cpu::prefill::AmxBenchKernels& kernels = cpu::prefill::kAmxBenchKernels;
  const auto kernel_case = [&](const std::string& name, const Kernel* kernel) {
    for (int32_t d : {64, 128}) {
      add(name + "/d:" + std::to_string(d),
          [=](benchmark::State& s) { staged(s, kernel, d, 2304 * 64 / d, false); });
    }
  };
  kernel_case("part/products", &kernels.products);
  kernel_case("part/weights", &kernels.weights);
  kernel_case("part/weights_exact", &kernels.exact_weights);
  kernel_case("variant/long_blocks", &kernels.long_blocks);
  kernel_case("variant/long_slices", &kernels.long_slices);
}
#endif

const bool kRegistered = [] {
  const auto add = [](const std::string& name, auto body) {
    benchmark::RegisterBenchmark(name.c_str(), body)
        ->Unit(benchmark::kMicrosecond)
        ->UseRealTime()
        ->MinTime(0.2);
  };
#if defined(__x86_64__)
  if (cpu::runnable_isas().back() == cpu::Isa::kAmx) add_tile_cases(add);
#endif
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
      for (int32_t d : {64, 128}) {
        add("dense/" + level + "/d:" + std::to_string(d) + "/n:" + std::to_string(n) + tail,
            [=](benchmark::State& s) { dense(s, isa, n, d, threads, false); });
      }
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
