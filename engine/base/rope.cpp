#include "engine/base/rope.h"

#include <cmath>
#include <numbers>

#include "engine/base/check.h"

namespace tiercel {
namespace {

int64_t coarse_rows(int64_t n_positions) { return (n_positions + kRopeFine - 1) / kRopeFine; }

}  // namespace

Turn rope_turn(int64_t position, double inv_freq) {
  // fmod is exact; what is lost is the rounding of the product (2^-64 of it) and of 2 pi (times the
  // number of whole turns), both below 2^33 * 2^-63.
  constexpr long double kTwoPi = 2 * std::numbers::pi_v<long double>;
  const long double angle = static_cast<long double>(position) * inv_freq;
  const double reduced = static_cast<double>(std::fmod(angle, kTwoPi));
  return {std::cos(reduced), std::sin(reduced)};
}

RopeTable::RopeTable(std::span<const double> inv_freq, int64_t n_positions, float still_scale)
    : n_coarse_(coarse_rows(n_positions)),
      half_(static_cast<int64_t>(inv_freq.size())),
      still_scale_(still_scale) {
  while (n_turning_ < half_ && inv_freq[static_cast<size_t>(n_turning_)] != 0) ++n_turning_;
  CHECK(n_positions > 0 && half_ > 0, "{} positions, {} frequencies", n_positions, half_);
  tables_.resize(bytes(half_, n_positions) / sizeof(float));
  float* table = tables_.data();
  const auto fill = [&](int64_t n_rows, int64_t step) {
    float* cosines = table;
    float* sines = table + n_rows * half_;
    for (int64_t row = 0; row < n_rows; ++row) {
      for (int64_t i = 0; i < half_; ++i) {
        const Turn turn = rope_turn(row * step, inv_freq[static_cast<size_t>(i)]);
        cosines[row * half_ + i] = static_cast<float>(turn.cos);
        sines[row * half_ + i] = static_cast<float>(turn.sin);
      }
    }
    table = sines + n_rows * half_;
  };
  fill(n_coarse_, kRopeFine);
  fill(kRopeFine, 1);
}

RopeView RopeTable::view() const {
  const float* coarse = tables_.data();
  const float* fine = coarse + 2 * n_coarse_ * half_;
  return {.coarse_cos = coarse,
          .coarse_sin = coarse + n_coarse_ * half_,
          .fine_cos = fine,
          .fine_sin = fine + kRopeFine * half_,
          .n_coarse = n_coarse_,
          .half = static_cast<int32_t>(half_),
          .n_turning = static_cast<int32_t>(n_turning_),
          .still_scale = still_scale_};
}

size_t RopeTable::bytes(int64_t half, int64_t n_positions) {
  return static_cast<size_t>(2 * (coarse_rows(n_positions) + kRopeFine) * half) * sizeof(float);
}

}  // namespace tiercel
