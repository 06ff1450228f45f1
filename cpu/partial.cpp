#include "engine/base/partial.h"

#include <cmath>

#include "cpu/attention_decode.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

void merge_head(const MergeParams& p, int64_t head, float* acc) {
  float max = kEmptyMax;
  float sum = 0;
  for (int64_t i = 0; i < p.head_dim; ++i) acc[i] = 0;
  for (int32_t s = 0; s < p.n_partials; ++s) {
    const PartialView& partial = p.partials[s];
    merge_into(max, sum, acc, partial.max[head], partial.sum[head], partial.out + head * p.head_dim,
               p.head_dim);
  }
  // Only the empty merge has sum 0 (a key with the largest score weighs 1); NaN stays NaN.
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  bf16* out = p.out + head * p.head_dim;
  for (int64_t i = 0; i < p.head_dim; ++i) out[i] = bf16(acc[i] * inverse);
}

}  // namespace

// A few microseconds of work at most: it stays on the calling thread.
void merge_partials(Queue& queue, const MergeParams& p) {
  CHECK(p.n_heads > 0 && p.head_dim > 0 && p.n_partials >= 0, "{} heads of {}, {} partials",
        p.n_heads, p.head_dim, p.n_partials);
  CHECK(static_cast<size_t>(p.head_dim) * sizeof(float) <= kScratchBytes);
  queue.for_each(1, [&](int64_t, const Worker& worker) {
    for (int32_t head = 0; head < p.n_heads; ++head) {
      merge_head(p, head, reinterpret_cast<float*>(worker.scratch));
    }
  });
}

}  // namespace tiercel::cpu
