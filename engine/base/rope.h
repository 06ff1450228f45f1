// RopeTable owns the tables behind a RopeView: cos and sin of position * inv_freq, as a product of
// a coarse table (one row per 1024 positions) and a fine one (1024 rows).
//
// Promise: angles are reduced modulo 2 pi before they are rounded to fp32, so that the product of
// the two tables is as exact at position 2^33 as at position 1: below 2e-7 from the true value
// (four table entries of half an ulp each, two products, one sum). What the frequencies mean
// (theta, Llama 3 or YaRN scaling) is the business of whoever makes inv_freq.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/ops.h"

namespace tiercel {

class RopeTable {
 public:
  RopeTable() = default;
  // Tables for positions 0 .. n_positions-1 (rounded up to 1024) and inv_freq.size() pairs of
  // channels. The turn keeps lengths, so that it can be undone; an attention factor (YaRN) belongs,
  // squared, into the scale of attention. Pairs of frequency 0, which are the last ones, stand still;
  // still_scale is theirs (RopeView).
  RopeTable(std::span<const double> inv_freq, int64_t n_positions, float still_scale = 1);

  RopeView view() const;
  size_t bytes() const { return tables_.size() * sizeof(float); }
  // What a table of this shape takes, for the memory plan.
  static size_t bytes(int64_t half, int64_t n_positions);

 private:
  std::vector<float> tables_;  // coarse cos | coarse sin | fine cos | fine sin
  int64_t n_coarse_ = 0;
  int64_t half_ = 0;
  int64_t n_turning_ = 0;
  float still_scale_ = 1;
};

// cos and sin of position * inv_freq, reduced in extended precision; the angle is within 1e-9 of
// the exact product for positions up to 2^33 (64-bit mantissa).
struct Turn {
  double cos;
  double sin;
};
Turn rope_turn(int64_t position, double inv_freq);

}  // namespace tiercel
