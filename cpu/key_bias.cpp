#include "cpu/key_bias.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

// Sums are kept apart by i % kLanes: a loop that vectorises, and the same bits everywhere.
constexpr int64_t kLanes = 16;
constexpr int64_t kItemTokens = 64;

float dot(const bf16* a, const bf16* b, int64_t n) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sums[lane] += static_cast<float>(a[i + lane]) * static_cast<float>(b[i + lane]);
    }
  }
  for (; i < n; ++i) sums[i % kLanes] += static_cast<float>(a[i]) * static_cast<float>(b[i]);
  float sum = 0;
  for (const float x : sums) sum += x;
  return sum;
}

float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(x))); }

float mean(const float* x, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum / static_cast<float>(n);
}

}  // namespace

void make_key_bias(Queue& queue, const KeyBiasParams& p) {
  CHECK(p.n_kv_heads > 0 && p.head_dim > 0, "{} KV heads of {}", p.n_kv_heads, p.head_dim);
  const int64_t width = int64_t{p.n_kv_heads} * p.head_dim;
  const int64_t first_row = p.first_row + (p.later != nullptr ? *p.later : 0);
  queue.for_each((p.n_tokens + kItemTokens - 1) / kItemTokens, [&](int64_t item, const Worker&) {
    const int64_t end = std::min(p.n_tokens, (item + 1) * kItemTokens);
    for (int64_t t = item * kItemTokens; t < end; ++t) {
      for (int64_t j = 0; j < p.n_kv_heads; ++j) {
        const float u = softplus(dot(p.v + t * width, p.delta + j * width, width));
        // A NaN or an infinity in v stays what it is, in the scores too.
        p.bias[j * p.bias_head_stride + first_row + t] =
            static_cast<float>(p.a[j]) * u * std::numbers::log2e_v<float>;
      }
    }
  });
}

void pool_key_bias(Queue& queue, const PoolBiasParams& p) {
  CHECK(p.chunk_tokens > 0, "chunks of {}", p.chunk_tokens);
  queue.for_each(p.n_kv_heads, [&](int64_t j, const Worker&) {
    for (int64_t c = 0; c < p.n_chunks; ++c) {
      const float* bias =
          p.bias + j * p.bias_head_stride + (p.first_chunk + c) * int64_t{p.chunk_tokens};
      float score = mean(bias, std::min(p.chunk_tokens, kBiasWindow));
      for (int32_t at = kBiasWindow / 2; at + kBiasWindow <= p.chunk_tokens; at += kBiasWindow / 2) {
        score = std::max(score, mean(bias + at, kBiasWindow));
      }
      p.score[j * p.score_stride + c] = score;
    }
  });
}

}  // namespace tiercel::cpu
