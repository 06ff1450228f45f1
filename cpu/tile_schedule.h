// The order in which products of tiles are issued with their loads and stores, worked out by the
// compiler. Included by attention_prefill_steps.h only; internal linkage (cpu/isa.h).
//
// The multiplier takes a product every 16 cycles and returns it after 52. What keeps it busy, as
// measured (tools/JOURNAL.md, machine E):
//
//   some eight instructions that write a tile are in flight, products among them; zeroing is free.
//   So: about one load per product.
//   A store waits for its product, and instructions retire in order. So: sums leave two at a time
//   (four at a time stop it for 50 cycles), and one product after their last.
//   A tile comes from L2 in 30 to 45 cycles. So: it is loaded as soon as its register's last reader
//   has been issued, up to three products before its use.
#pragma once

#include <cstdint>

namespace tiercel::cpu {
namespace {

// A tile in memory: of what, and which.
struct TilePlace {
  int8_t of = -1;
  int16_t tile = -1;
  constexpr bool operator==(const TilePlace& other) const {
    return of == other.of && tile == other.tile;
  }
};

// sum += a x b. Numbers are registers.
struct TileProduct {
  int8_t sum = 0, a = 0, b = 0;
  TilePlace a_from, b_from, sum_at;
  // The first product of a sum begins at zero, or at what is in memory; the last one stores it.
  bool zero = false, load = false, store = false;
};

enum class TileAction : int8_t { kZero, kLoadA, kLoadB, kLoadSum, kMultiply, kStore };

struct TileStep {
  TileAction action = TileAction::kZero;
  int8_t tile = 0, a = 0, b = 0;
  TilePlace place;
  bool of_next_run = false;  // a load for the run after this one
};

template <int n>
struct TileProducts {
  TileProduct at[n];
  int count = 0;
  constexpr void add(const TileProduct& p) { at[count++] = p; }
};

// Of a run of products that is followed by itself: the first loads of each are among the last steps
// of the one before, and are what must have been loaded before the first.
template <int n_products>
struct TileSchedule {
  static constexpr int kProducts = n_products;
  static constexpr int kAhead = 3;

  TileStep first_loads[3 * kAhead + 1];
  int n_first_loads = 0;
  TileStep steps[6 * n_products];
  int n_steps = 0;

  constexpr explicit TileSchedule(const TileProducts<n_products>& products) {
    Timed loads[6 * n_products], stores[n_products];
    const int n_loads = time_loads(products.at, loads);
    const int n_stores = time_stores(products.at, loads, n_loads, stores);
    for (int i = 0; i < n_products; ++i) {
      const TileProduct& p = products.at[i];
      for (int k = 0; k < n_loads; ++k) {
        TileStep step = loads[k].step;
        step.of_next_run = loads[k].product == i;
        if (step.of_next_run) first_loads[n_first_loads++] = loads[k].step;
        if (step.of_next_run || loads[k].product == n_products + i) steps[n_steps++] = step;
      }
      if (p.zero) steps[n_steps++] = {TileAction::kZero, p.sum, 0, 0, {}};
      steps[n_steps++] = {TileAction::kMultiply, p.sum, p.a, p.b, {}};
      for (int k = 0; k < n_stores; ++k) {
        if (stores[k].product == i) steps[n_steps++] = stores[k].step;
      }
    }
  }

 private:
  // A load before that product, or a store behind it.
  struct Timed {
    int product = 0;
    TileStep step;
  };
  static constexpr int most(int a, int b) { return a > b ? a : b; }

  // The loads of the second of two runs.
  static constexpr int time_loads(const TileProduct* products, Timed* loads) {
    TilePlace held[8];
    int free_from[8] = {};  // the first product behind the last that touches the register
    int n = 0;
    for (int i = 0; i < 2 * n_products; ++i) {
      const TileProduct& p = products[i % n_products];
      const bool second = i >= n_products;
      if (second && !(held[p.a] == p.a_from)) {
        loads[n++] = {most(free_from[p.a], i - kAhead), {TileAction::kLoadA, p.a, 0, 0, p.a_from}};
      }
      if (second && !(held[p.b] == p.b_from)) {
        loads[n++] = {most(free_from[p.b], i - kAhead), {TileAction::kLoadB, p.b, 0, 0, p.b_from}};
      }
      if (second && p.load) {
        loads[n++] = {most(free_from[p.sum], i - 1), {TileAction::kLoadSum, p.sum, 0, 0, p.sum_at}};
      }
      held[p.a] = p.a_from;
      held[p.b] = p.b_from;
      held[p.sum] = {};
      if (i == n_products - 1) {
        for (TilePlace& place : held) place = {};  // the next run is of other tiles
      }
      free_from[p.a] = free_from[p.b] = free_from[p.sum] = i + 1;
    }
    return n;
  }

  // One product later, but in this run and before anything else comes into the register.
  static constexpr int time_stores(const TileProduct* products, const Timed* loads, int n_loads,
                                   Timed* stores) {
    int n = 0;
    for (int i = 0; i < n_products; ++i) {
      const TileProduct& p = products[i];
      if (!p.store) continue;
      bool wait = i + 1 < n_products && products[i + 1].sum != p.sum;
      for (int k = 0; k < n_loads; ++k) {
        const bool right_behind = (loads[k].product - i - 1) % n_products == 0;
        if (loads[k].step.tile == p.sum && right_behind) wait = false;
      }
      stores[n++] = {wait ? i + 1 : i, {TileAction::kStore, p.sum, 0, 0, p.sum_at}};
    }
    return n;
  }
};

}  // namespace
}  // namespace tiercel::cpu
