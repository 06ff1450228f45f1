// What bandwidth-bound benchmarks share: memory that does not flatter the machine, and its bound.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <random>
#include <vector>

#include "cpu/queue.h"
#include "cpu/topology.h"
#include "engine/base/dtype.h"

namespace tiercel::bench {

// Huge pages filled with bf16 numbers of ordinary size and either sign: never-touched pages would
// be one page of zeros in the first-level cache.
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes), address_(cpu::map_pages(bytes)) {
    std::mt19937_64 rng(1);
    uint64_t* words = static_cast<uint64_t*>(address_);
    for (size_t i = 0; i < bytes / 8; ++i) {
      words[i] = 0x3c003c003c003c00u | (rng() & 0x81ff81ff81ff81ffu);
    }
  }
  ~Pages() { cpu::unmap_pages(address_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  const bf16* rows() const { return static_cast<const bf16*>(address_); }

 private:
  size_t bytes_;
  void* address_;
};

// Every byte loaded once by state.range(0) threads, and nothing computed but a sum.
inline void stream(benchmark::State& state, const Pages& pages, size_t bytes) {
  cpu::Queue queue({.n_threads = static_cast<int>(state.range(0))});
  const uint64_t* words = reinterpret_cast<const uint64_t*>(pages.rows());
  constexpr int64_t kItems = 256;
  const int64_t n = static_cast<int64_t>(bytes) / 8 / kItems;
  std::vector<uint64_t> sums(kItems);
  for (auto _ : state) {
    queue.for_each(kItems, [&](int64_t item, const cpu::Worker&) {
      const uint64_t* p = words + item * n;
      uint64_t sum[16] = {};
      for (int64_t i = 0; i < n; i += 16) {
        __builtin_prefetch(p + i + 512);
        __builtin_prefetch(p + i + 520);
        for (int j = 0; j < 16; ++j) sum[j] += p[i + j];
      }
      for (const uint64_t x : sum) sums[item] += x;
    });
    benchmark::DoNotOptimize(sums.data());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(bytes));
}

}  // namespace tiercel::bench
