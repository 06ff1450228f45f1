// Where a token is in its sequence: rotary embedding, and the clock of recorded steps.
#pragma once

#include <cstdint>

namespace tiercel {

// cos and sin of position * inv_freq, as a product of two small tables (angle addition), so that a
// position of many millions is as exact as position 1: angles are reduced in fp64 when the tables
// are made (engine/base/rope.h), and the sum of angles costs one rounding of fp32.
//   position = 1024 * a + b:  cos = ca*cb - sa*sb,  sin = sa*cb + ca*sb
// HF's "rotate half": element i pairs with i + head_dim/2 and turns by inv_freq[i].
struct RopeView {
  const float* coarse_cos = nullptr;  // [n_coarse][half]
  const float* coarse_sin = nullptr;  // [n_coarse][half]
  const float* fine_cos = nullptr;    // [1024][half]
  const float* fine_sin = nullptr;    // [1024][half]
  int64_t n_coarse = 0;               // positions below 1024 * n_coarse are valid
  int32_t half = 0;                   // head_dim / 2
  // Pairs n_turning .. half - 1 stand still (cos 1, sin 0), and a query's are multiplied by still_scale:
  // it takes off what the scale of attention puts on for the others (YaRN, LongRoPE).
  int32_t n_turning = 0;
  float still_scale = 1;
};
inline constexpr int64_t kRopeFine = 1024;

// Dual chunk attention (arXiv 2402.17463, as Qwen2.5-1M has it): no query looks further back than the
// model was trained to. Positions are cut into spans, and to keys of span m a query at position p is one
// at position
//   min(p, (m + 1) * tokens + local),
// its view for that span. The paper has keys at positions modulo `tokens` instead: the distances, which
// are all that counts, are the same, and keys need not know of it.
struct QuerySpans {
  int64_t tokens = 0;  // 0: there are none, every query has one view
  int64_t local = 0;

  constexpr int64_t span_of(int64_t position) const { return tokens > 0 ? position / tokens : 0; }
  constexpr int64_t limit_of(int64_t span) const { return (span + 1) * tokens + local; }
  // The first span to whose keys a query at this position looks as it is; so it does to later ones.
  constexpr int64_t first_plain(int64_t position) const {
    const int64_t own = span_of(position);
    return own > 0 && position <= limit_of(own - 1) ? own - 1 : own;
  }
  // Views that it has: those before, and itself.
  constexpr int64_t views_of(int64_t position) const { return first_plain(position) + 1; }
  bool operator==(const QuerySpans& other) const = default;
};
inline constexpr int64_t kMaxSpans = 64;

// Where an op finds the views of its queries: that for keys of span m at q + min(m, n - 1) * stride.
struct QueryViews {
  int64_t span_tokens = 0;  // with n > 1
  int32_t n = 1;            // at most kMaxSpans
  int64_t stride = 0;       // elements

  // Of a key at this position.
  constexpr int64_t view_at(int64_t position) const {
    if (n == 1) return 0;
    const int64_t span = position / span_tokens;
    return span < n ? span : n - 1;
  }
};

// A decode step that has been recorded is replayed some steps later. What differs then is read from
// a clock, one int64 in device memory: the number of steps since the recording. Params that depend
// on the step point at it with `later`.
struct ClockParams {
  int64_t* clock = nullptr;  // [1]
  bool reset = false;        // to zero; else one step on
};

}  // namespace tiercel
