#include "cpu/elementwise.h"

#include <cmath>
#include <cstring>

#include "cpu/elementwise_levels.h"
#include "cpu/linear.h"
#include "cpu/rotary.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

// An item is about this much memory: some tens of microseconds, far above the cost of claiming it.
constexpr int64_t kItemBytes = 256 << 10;

const uint16_t* bits(const bf16* values) { return reinterpret_cast<const uint16_t*>(values); }
uint16_t* bits(bf16* values) { return reinterpret_cast<uint16_t*>(values); }

// Calls body(first, end) over [0, n) in items of about kItemBytes.
template <typename Body>
void for_ranges(Queue& queue, int64_t n, int64_t bytes_each, Body&& body) {
  const int64_t step = std::max<int64_t>(1, kItemBytes / std::max<int64_t>(1, bytes_each));
  queue.for_each((n + step - 1) / step, [&](int64_t item, const Worker&) {
    body(item * step, std::min(n, (item + 1) * step));
  });
}

}  // namespace

const ElementwiseLevel& elementwise_level(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return kElementwiseAvx512;
  if (isa >= Isa::kAvx2) return kElementwiseAvx2;
#endif
  static_cast<void>(isa);
  return kElementwisePortable;
}

void embed(Queue& queue, const EmbedParams& p) {
  const size_t row_bytes = static_cast<size_t>(p.width) * sizeof(bf16);
  const bool coded = p.table.codec.is_coded();
  const GemmLevel& level = gemm_level(queue.isa());
  for_ranges(queue, p.n_tokens, 2 * p.width * 2, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; ++t) {
      const int64_t id = p.ids[t];
      CHECK(id >= 0 && id < p.vocab, "token {} has id {}, the vocabulary {}", t, id, p.vocab);
      bf16* const out = p.out + t * p.width;
      if (coded) {
        decode_rows(level, p.table, p.width, id, 1, 0, p.width, reinterpret_cast<uint16_t*>(out));
      } else {
        std::memcpy(out, p.table.values + id * p.width, row_bytes);
      }
    }
  });
}

void rms_norm(Queue& queue, const NormParams& p) {
  const ElementwiseLevel& level = elementwise_level(queue.isa());
  for_ranges(queue, p.n_rows, 4 * p.width, [&](int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row) {
      const int64_t at = row * p.width;
      level.norm(bits(p.x) + at, bits(p.weight), p.added != nullptr ? bits(p.added) + at : nullptr,
                 bits(p.out) + at, p.width, p.eps);
    }
  });
}

void swiglu(Queue& queue, const SwigluParams& p) {
  const ElementwiseLevel& level = elementwise_level(queue.isa());
  for_ranges(queue, p.n, 6, [&](int64_t first, int64_t end) {
    level.swiglu(bits(p.gate) + first, bits(p.up) + first, bits(p.out) + first, end - first);
  });
}

namespace {

// The queries of token t, turned by angles that are theirs.
void turn_queries(const ElementwiseLevel& level, const RopeAppendParams& p, int64_t t,
                  const float* cosines, const float* sines, bf16* target) {
  const int64_t row = t * p.n_heads * p.head_dim;
  const uint16_t* q = bits(p.q) + row;
  uint16_t* turned = bits(target) + row;
  for (int64_t h = 0; h < p.n_heads; ++h, q += p.head_dim, turned += p.head_dim) {
    level.rotate(q, bits(p.q_norm), p.eps, cosines, sines, p.rope.half, turned);
  }
}

void append_key(const ElementwiseLevel& level, const RopeAppendParams& p, int64_t t, int64_t row,
                const float* cosines, const float* sines) {
  const int64_t d = p.head_dim;
  const uint16_t* k = bits(p.k) + t * p.n_kv_heads * d;
  const uint16_t* v = bits(p.v) + t * p.n_kv_heads * d;
  for (int64_t j = 0; j < p.n_kv_heads; ++j) {
    const int64_t at = j * p.head_stride + row * d;
    level.rotate(k + j * d, bits(p.k_norm), p.eps, cosines, sines, p.rope.half, bits(p.keys) + at);
    std::memcpy(bits(p.values) + at, v + j * d, static_cast<size_t>(d) * sizeof(uint16_t));
  }
}

}  // namespace

void rope_append(Queue& queue, const RopeAppendParams& p) {
  const int64_t later = p.later != nullptr ? *p.later : 0;
  CHECK(p.head_dim == 2 * p.rope.half, "head dimension {}, table for {}", p.head_dim,
        2 * p.rope.half);
  CHECK(p.first_position >= 0 && p.first_position + p.n_tokens <= kRopeFine * p.rope.n_coarse,
        "positions {} to {}, table for {}", p.first_position, p.first_position + p.n_tokens,
        kRopeFine * p.rope.n_coarse);
  const ElementwiseLevel& level = elementwise_level(queue.isa());
  const int64_t n_queries = p.n_heads * std::max(p.n_views, 1);
  const int64_t token_bytes = 4 * p.head_dim * (n_queries + 2 * p.n_kv_heads);
  for_ranges(queue, p.n_tokens, token_bytes, [&](int64_t first, int64_t end) {
    alignas(64) float cosines[kMaxRopeHalf];
    alignas(64) float sines[kMaxRopeHalf];
    const auto scale_still = [&] {  // of queries; keys are done
      for (int64_t i = p.rope.n_turning; i < p.rope.half; ++i) cosines[i] *= p.rope.still_scale;
    };
    for (int64_t t = first; t < end; ++t) {
      const int64_t position = p.first_position + later + t;
      rope_angles(level, p.rope, position, cosines, sines);
      if (p.k != nullptr) append_key(level, p, t, p.first_row + later + t, cosines, sines);
      if (p.q == nullptr) continue;
      if (p.n_views == 0) {
        scale_still();
        turn_queries(level, p, t, cosines, sines, p.q);
      }
      for (int32_t i = 0; i < p.n_views; ++i) {
        const int64_t limit = p.spans.limit_of(p.first_span + i);
        rope_angles(level, p.rope, std::min(position, limit), cosines, sines);
        scale_still();
        turn_queries(level, p, t, cosines, sines, p.views + i * p.view_stride);
      }
    }
  });
}

void token_logprobs(Queue& queue, const LogprobParams& p) {
  const ElementwiseLevel& level = elementwise_level(queue.isa());
  for_ranges(queue, p.n_rows, 4 * p.vocab, [&](int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row) {
      const float* x = p.logits + row * p.vocab;
      const int64_t target = p.targets[row];
      CHECK(target >= 0 && target < p.vocab, "row {}: target {}, vocabulary {}", row, target,
            p.vocab);
      const float max = level.maximum(x, p.vocab);
      p.logprobs[row] = static_cast<double>(x[target]) - static_cast<double>(max) -
                        std::log(level.sum_exp(x, p.vocab, max));
    }
  });
}

}  // namespace tiercel::cpu
