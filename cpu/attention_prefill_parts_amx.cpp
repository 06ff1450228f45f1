// Parts and variants of the AMX kernel, for the benchmark and a test.
#include "cpu/attention_prefill_tiles.h"

namespace tiercel::cpu::prefill {
namespace {

// For benchmarks, with d 64 and 128 only: `Exp` whatever the params say.
template <typename Tiles, typename Exp, int kTall, int kBlockSlices>
void attend_rows_for_bench(const AttendRows& a) {
  Buffers& buffers = *static_cast<Buffers*>(a.buffer);
  if (a.padded_dim == 64) Pipeline<Tiles, Exp, kTall, kBlockSlices, 2>(a, buffers).run();
  if (a.padded_dim == 128) Pipeline<Tiles, Exp, kTall, kBlockSlices, 4>(a, buffers).run();
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
    .long_blocks = amx_kernel(2, attend_rows_for_bench<HardwareTiles, Lookup, 2, 8>),
    .one_row_tile = amx_kernel(1, attend_rows_for_bench<HardwareTiles, Lookup, 1, 8>),
    .products = amx_kernel(2, attend_rows_for_bench<HardwareTiles, NoWeights, 2, 4>),
    .one_row_tile_products = amx_kernel(1, attend_rows_for_bench<HardwareTiles, NoWeights, 1, 8>),
    .weights = amx_kernel(2, attend_rows_for_bench<NoTiles, Lookup, 2, 4>),
    .exact_weights = amx_kernel(2, attend_rows_for_bench<NoTiles, Polynomial, 2, 4>),
};
constinit const Kernel kAmxOneRowTileEmulatedKernel =
    amx_kernel(1, attend_rows_for_bench<EmulatedTiles, Lookup, 1, 8>);

}  // namespace tiercel::cpu::prefill
