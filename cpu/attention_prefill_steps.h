// The products of a step of the AMX kernel, scheduled. Included by attention_prefill_tiles.h only;
// internal linkage (cpu/isa.h).
#pragma once

#include "cpu/tile_schedule.h"

namespace tiercel::cpu::prefill {
namespace {

constexpr int kTileRows = 16;
constexpr int kRowTiles = 2;
constexpr int kRows = kRowTiles * kTileRows;

enum : int8_t { kOfQueries, kOfKeys, kOfScores, kOfWeights, kOfValues, kOfOut };

// Those of the scores of n_groups x 16 keys, then those of n_columns columns of O, from n_strips of
// P and V.
template <int kHalves, int n_groups, int n_strips, int n_columns>
constexpr auto step_schedule() {
  constexpr int kProducts = kRowTiles * (n_groups * kHalves + n_columns * n_strips);
  TileProducts<kProducts> products;
  const auto tile = [](int8_t of, int i) { return TilePlace{of, static_cast<int16_t>(i)}; };
  for (int group = 0; group < n_groups; ++group) {
    for (int h = 0; h < kHalves; ++h) {
      for (int8_t row_tile = 0; row_tile < kRowTiles; ++row_tile) {
        TileProduct p;
        p.sum = static_cast<int8_t>(4 + row_tile);
        p.a = static_cast<int8_t>(h % 2 * kRowTiles + row_tile);
        p.b = static_cast<int8_t>(6 + h % 2);
        p.a_from = tile(kOfQueries, row_tile * kHalves + h);
        p.b_from = tile(kOfKeys, group * kHalves + h);
        p.sum_at = tile(kOfScores, row_tile * n_groups + group);
        p.zero = h == 0;
        p.store = h == kHalves - 1;
        products.add(p);
      }
    }
  }
  for (int column = 0; column < n_columns; ++column) {
    for (int strip = 0; strip < n_strips; ++strip) {
      for (int8_t row_tile = 0; row_tile < kRowTiles; ++row_tile) {
        TileProduct p;
        p.sum = static_cast<int8_t>(column % 2 * kRowTiles + row_tile);
        p.a = static_cast<int8_t>(4 + row_tile);
        p.b = static_cast<int8_t>(6 + strip % 2);
        p.a_from = tile(kOfWeights, strip * kRowTiles + row_tile);
        p.b_from = tile(kOfValues, strip * 2 * kHalves + column);
        p.sum_at = tile(kOfOut, row_tile * 2 * kHalves + column);
        p.load = strip == 0;
        p.store = strip == n_strips - 1;
        products.add(p);
      }
    }
  }
  return TileSchedule<kProducts>(products);
}

}  // namespace
}  // namespace tiercel::cpu::prefill
