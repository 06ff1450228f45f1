// A fixed-size record of shares in [0, 1]: mean and percentiles without allocating while recording.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace tiercel {

class MassHistogram {
 public:
  void add(double share) {
    share = std::clamp(share, 0.0, 1.0);  // rounding may exceed 1 by an ulp; NaN becomes 0
    if (!(share >= 0)) share = 0;
    ++bins_[static_cast<size_t>(share * kBins)];
    sum_ += share;
    ++n_;
  }
  void end_step() { ++steps_; }
  void merge(const MassHistogram& other) {
    for (size_t bin = 0; bin <= kBins; ++bin) bins_[bin] += other.bins_[bin];
    sum_ += other.sum_;
    n_ += other.n_;
    steps_ = std::max(steps_, other.steps_);
  }

  int64_t steps() const { return steps_; }
  int64_t samples() const { return n_; }
  double mean() const { return n_ > 0 ? sum_ / static_cast<double>(n_) : 0; }
  // The largest bin edge below which at most `fraction` of the samples lie; exact to 1 / 4096.
  double percentile(double fraction) const {
    const auto wanted = static_cast<int64_t>(fraction * static_cast<double>(n_));
    int64_t below = 0;
    for (size_t bin = 0; bin <= kBins; ++bin) {
      below += bins_[bin];
      if (below > wanted) return static_cast<double>(bin) / kBins;
    }
    return n_ > 0 ? 1 : 0;
  }

 private:
  static constexpr size_t kBins = 4096;
  std::array<int64_t, kBins + 1> bins_{};
  double sum_ = 0;
  int64_t n_ = 0, steps_ = 0;
};

}  // namespace tiercel
