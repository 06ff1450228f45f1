#include "cpu/reuse.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

// Products of two bf16 numbers are exact in fp32. Sums are kept apart by i % kLanes, so that the
// loop is not one chain of additions.
double cosine(const bf16* a, const bf16* b, int64_t n) {
  constexpr int64_t kLanes = 8;
  double ab[kLanes] = {}, aa[kLanes] = {}, bb[kLanes] = {};
  const auto add = [&](int64_t i, int64_t lane) {
    const float x = static_cast<float>(a[i]), y = static_cast<float>(b[i]);
    ab[lane] += static_cast<double>(x * y);
    aa[lane] += static_cast<double>(x * x);
    bb[lane] += static_cast<double>(y * y);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (; i < n; ++i) add(i, i % kLanes);
  for (int64_t lane = 1; lane < kLanes; ++lane) {
    ab[0] += ab[lane];
    aa[0] += aa[lane];
    bb[0] += bb[lane];
  }
  return ab[0] / std::sqrt(aa[0] * bb[0]);  // a = b: exactly 1
}

bool stays(const ReuseParams& p) {
  const int32_t served = p.state[1];
  if (served < 1 || (p.every > 0 && served >= p.every)) return false;
  return p.min_cosine <= -1 || cosine(p.q, p.previous, p.n) >= static_cast<double>(p.min_cosine);
}

}  // namespace

void decide_reuse(Queue&, const ReuseParams& p) {
  CHECK(p.n > 0 && p.every >= 0, "{} elements, every {} steps", p.n, p.every);
  const bool keep = stays(p);
  if (!keep) std::copy(p.q, p.q + p.n, p.previous);
  p.state[0] = keep ? 1 : 0;
  p.state[1] = keep ? p.state[1] + 1 : 1;
  if (p.totals != nullptr) {
    p.totals[0] += 1;
    p.totals[1] += keep ? 1 : 0;
  }
}

}  // namespace tiercel::cpu
