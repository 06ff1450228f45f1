#include "cpu/synthetic.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kPiece = int64_t{1} << 18;

uint64_t splitmix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

void fill_random(Queue& queue, const RandomParams& p) {
  const float width = p.scale * 1.7320508f;
  queue.for_each((p.n + kPiece - 1) / kPiece, [&](int64_t piece, Worker&) {
    const int64_t end = std::min(p.n, (piece + 1) * kPiece);
    for (int64_t i = piece * kPiece; i < end; ++i) {
      const uint64_t bits = splitmix(p.seed + kSplitmixStep * (static_cast<uint64_t>(i) + 1));
      const float u = static_cast<float>(static_cast<int32_t>(bits >> 40) - (1 << 23)) * 0x1p-23f;
      p.out[i] = bf16(std::fmaf(u, width, p.offset));
    }
  });
}

void impose_selection(Queue&, const ImposeParams& p) {
  const int64_t n = p.end_chunk - p.first_chunk;
  CHECK(p.k >= 0 && p.k <= n, "{} of {} chunks", p.k, n);
  const int64_t step = p.step + (p.later != nullptr ? *p.later : 0);
  for (int64_t j = 0; j < p.n_kv_heads; ++j) {
    for (int64_t i = 0; i < p.k; ++i) {
      const int64_t size = n / p.k, begin = i * size;
      // Strata change at different steps.
      const float phase = static_cast<float>(i) / static_cast<float>(p.k);
      const auto epoch = static_cast<uint64_t>(
          std::floor(std::fmaf(static_cast<float>(step), 1.0f - p.hit_rate, phase)));
      const uint64_t bits =
          splitmix(kSplitmixStep * (epoch + 1) + static_cast<uint64_t>(j * p.k + i));
      p.ids[j * p.k + i] = static_cast<int32_t>(
          p.first_chunk + begin + static_cast<int64_t>(bits % static_cast<uint64_t>(size)));
    }
    p.counts[j] = static_cast<int32_t>(p.k);
  }
}

}  // namespace tiercel::cpu
