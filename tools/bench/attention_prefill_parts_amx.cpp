// Built for the benchmark only: it takes minutes to compile.
#include "cpu/attention_prefill_tiles.h"
#include "tools/bench/attention_prefill_parts.h"

namespace tiercel::cpu::prefill {
namespace {

// For benchmarks, with d 64 and 128 only: `Exp` whatever the params say.
template <typename Tiles, typename Exp, int kWideSliceKeys, int kBlockKeys>
void attend_rows_for_bench(const AttendRows& a) {
  auto& buffers = *static_cast<Buffers<kBlockKeys>*>(a.buffer);
  if (a.padded_dim == 64) Pipeline<Tiles, Exp, 2, 64, kBlockKeys>(a, buffers).run();
  if (a.padded_dim == 128) Pipeline<Tiles, Exp, 4, kWideSliceKeys, kBlockKeys>(a, buffers).run();
}

// No tiles: what is left of a kernel are its weights.
struct NoTiles {
  static void configure() {}
  static void release() {}
  template <int kTile>
  void zero() {}
  template <int kTile, int kOffset = 0>
  void load(const void*, int64_t) {}
  template <int kTile, int kOffset = 0>
  void load_streaming(const void*, int64_t) {}
  template <int kTile, int kOffset = 0>
  void store(void*, int64_t) {}
  template <int kC, int kA, int kB>
  void multiply() {}
};

// No weights: what is left are the tiles.
struct NoWeights : Lookup {
  static constexpr bool kNone = true;
  using Lookup::Lookup;
};

}  // namespace

constinit const AmxBenchKernels kAmxBenchKernels = {
    .long_blocks = amx_kernel<256>(attend_rows_for_bench<HardwareTiles, Lookup, 32, 256>),
    .long_slices = amx_kernel<128>(attend_rows_for_bench<HardwareTiles, Lookup, 64, 128>),
    .products = amx_kernel<128>(attend_rows_for_bench<HardwareTiles, NoWeights, 32, 128>),
    .weights = amx_kernel<128>(attend_rows_for_bench<NoTiles, Lookup, 32, 128>),
    .exact_weights = amx_kernel<128>(attend_rows_for_bench<NoTiles, Polynomial, 32, 128>),
};

}  // namespace tiercel::cpu::prefill
