// The rows of a decode step: where the tokens of a source lie, how they are cut into ranges that
// threads take, and how those become one result again.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/decode_kernel.h"
#include "engine/base/ops.h"
#include "engine/base/partial.h"

namespace tiercel::cpu {

inline constexpr int64_t kMinRangeTokens = 512;
// Below this many bytes of keys and values waking a second thread costs more than it saves.
inline constexpr int64_t kMinParallelBytes = 256 * 1024;

// At most kMaxDecodeRanges of whole blocks: a function of the number of tokens only.
inline int64_t range_tokens(int64_t n_tokens) {
  const int64_t share = (n_tokens + kMaxDecodeRanges - 1) / kMaxDecodeRanges;
  const int64_t whole = (share + kDecodeBlock - 1) / kDecodeBlock * kDecodeBlock;
  return std::max(whole, kMinRangeTokens);
}
inline int64_t range_count(int64_t n_tokens) {
  const int64_t size = range_tokens(n_tokens);
  return (n_tokens + size - 1) / size;
}

// Offsets, in elements from the KV head's first row, of the tokens of a source.
class SourceRows {
 public:
  SourceRows(const KvSource& source, int32_t kv_head)
      : source_(source),
        ids_(source.ids == nullptr ? nullptr : source.ids + kv_head * source.ids_stride) {
    if (source.position_chunks != nullptr) {
      position_chunks_ = source.position_chunks + kv_head * source.position_chunks_stride;
    }
    if (source.key_bias == nullptr) return;
    bias_ = source.key_bias + kv_head * source.key_bias_head_stride;
    if (source.bias_chunks == nullptr) return;
    bias_chunks_ = source.bias_chunks + kv_head * source.bias_chunks_stride;
  }

  // All tokens are token_stride apart: a property of the source, not of what is in it.
  bool is_plane() const {
    return ids_ == nullptr && source_.chunk_stride == source_.chunk_tokens * source_.token_stride;
  }

  // Tokens begin .. end - 1 into offsets[0 ..]; the last one again until n are filled.
  void fill(int64_t begin, int64_t end, int64_t n, int64_t* offsets) const {
    const int64_t n_live = std::min(end - begin, n);
    int64_t i = 0;
    if (is_plane()) {
      for (; i < n_live; ++i) offsets[i] = (begin + i) * source_.token_stride;
    }
    int64_t chunk = begin / source_.chunk_tokens;
    int64_t within = begin % source_.chunk_tokens;
    for (; i < n_live; ++chunk, within = 0) {
      const int64_t id = ids_ == nullptr ? chunk : ids_[chunk];
      int64_t offset = id * source_.chunk_stride + within * source_.token_stride;
      for (; within < source_.chunk_tokens && i < n_live; ++within) {
        offsets[i++] = offset;
        offset += source_.token_stride;
      }
    }
    const int64_t last = i > 0 ? offsets[i - 1] : 0;
    while (i < n) offsets[i++] = last;
  }

  // What is added to the scores of tokens begin .. end - 1, in bias[0 ..].
  void fill_bias(int64_t begin, int64_t end, float* bias) const {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t chunk = token / source_.chunk_tokens;
      int64_t id = ids_ == nullptr ? chunk : ids_[chunk];
      if (bias_chunks_ != nullptr) id = bias_chunks_[id];
      bias[token - begin] = bias_[id * source_.chunk_tokens + token % source_.chunk_tokens];
    }
  }
  bool has_bias() const { return source_.key_bias != nullptr; }

  // Tokens begin .. end - 1 to which queries have the same view.
  struct ViewRun {
    int64_t view, end;
  };
  // That from token `begin` on, within begin .. end - 1.
  ViewRun view_run(int64_t begin, int64_t end, const QueryViews& views) const {
    if (views.n == 1) return {0, end};
    const auto view_at = [&](int64_t token) { return views.view_at(position(token)); };
    ViewRun run{view_at(begin), begin};
    if (ids_ == nullptr && position_chunks_ == nullptr && source_.position_step == source_.chunk_tokens) {
      const int64_t left = (run.view + 1) * views.span_tokens - position(begin);
      run.end = run.view + 1 < views.n ? std::min(end, begin + left) : end;
      return run;
    }
    while (run.end < end && view_at(run.end) == run.view) {
      run.end = std::min(end, (run.end / source_.chunk_tokens + 1) * source_.chunk_tokens);
    }
    return run;
  }

 private:
  int64_t position(int64_t token) const {
    const int64_t chunk = token / source_.chunk_tokens;
    int64_t id = ids_ == nullptr ? chunk : ids_[chunk];
    if (position_chunks_ != nullptr) id = position_chunks_[id];
    return source_.first_position + id * source_.position_step + token % source_.chunk_tokens;
  }

  const KvSource& source_;
  const int32_t* ids_;
  const float* bias_ = nullptr;
  const int32_t* bias_chunks_ = nullptr;
  const int32_t* position_chunks_ = nullptr;
};

// One head's result of its n ranges, in their order; partials: [n][max, sum, out of head_dim].
inline void merge_ranges(const float* partials, int64_t n, int64_t head, int64_t head_dim,
                         const PartialView& result) {
  float max = kEmptyMax, sum = 0;
  float* out = result.out + head * head_dim;
  std::fill(out, out + head_dim, 0.0f);
  for (int64_t range = 0; range < n; ++range, partials += head_dim + 2) {
    merge_into(max, sum, out, partials[0], partials[1], partials + 2, head_dim);
  }
  result.max[head] = max;
  result.sum[head] = sum;
}

}  // namespace tiercel::cpu
