#include "cpu/select_scan.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "cpu/levels.h"
#include "cpu/query.h"

namespace tiercel::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Calls each(first score, scores, first column) for the segments that scores at .. at + n - 1 are
// in.
template <typename Each>
void for_each_segment(const Columns& columns, int64_t at, int64_t n, Each&& each) {
  for (int64_t i = 0; i < n;) {
    const int64_t segment = (at + i) / columns.segment();
    const int64_t end = std::min(n, (segment + 1) * columns.segment() - at);
    each(i, end - i, segment * 16);
    i = end;
  }
}

// 64 bits of a bit map from any bit on.
uint64_t bits_from(const uint64_t* map, int64_t bit, int64_t n_words) {
  const int64_t word = bit >> 6;
  const int shift = static_cast<int>(bit & 63);
  uint64_t bits = map[word] >> shift;
  if (shift != 0 && word + 1 < n_words) bits |= map[word + 1] << (64 - shift);
  return bits;
}

// [min(q, 0) | max(q, 0)]: exact in bf16. NaN stays.
void expand_query(const bf16* q, int32_t n_heads, int32_t head_dim, bf16* out) {
  for (int32_t h = 0; h < n_heads; ++h, q += head_dim, out += 2 * head_dim) {
    for (int32_t i = 0; i < head_dim; ++i) {
      const float x = static_cast<float>(q[i]);
      out[i] = x > 0 ? bf16(0.0f) : q[i];
      out[head_dim + i] = x < 0 ? bf16(0.0f) : q[i];
    }
  }
}

// q ~ step * codes, step = max |q| / kMaxCode, so the error is step / 2. A query that is not finite
// has step NaN: all its scores are NaN.
float quantise_query(const bf16* q, int32_t n, int16_t* codes) {
  float max = 0;
  bool finite = true;
  for (int32_t i = 0; i < n; ++i) {
    const float x = std::abs(static_cast<float>(q[i]));
    finite = finite && x < kInfinity;
    max = std::max(max, x);
  }
  std::fill(codes, codes + n, int16_t{0});
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  if (max == 0) return 0;
  const double per_unit = kMaxCode / static_cast<double>(max);
  for (int32_t i = 0; i < n; ++i) {
    codes[i] = static_cast<int16_t>(std::rint(static_cast<float>(q[i]) * per_unit));
  }
  return max / static_cast<float>(kMaxCode);
}

// q[i] = 256 * high + low.
void split_code_query(const int16_t* q, int32_t n, int8_t* bytes) {
  for (int32_t i = 0; i < n; ++i) {
    const auto low = static_cast<int8_t>(q[i]);
    bytes[i] = static_cast<int8_t>((q[i] - low) / 256);
    bytes[n + i] = low;
  }
}

// The landmarks of one KV head against the queries of its group, of one sequence or of several that
// have the same candidates.
class LandmarkScan {
 public:
  LandmarkScan(std::span<const SelectParams> all, const Candidates& candidates, Isa isa,
               int64_t kv_head, const Worker& worker)
      : all_(all),
        p_(all.front()),
        candidates_(candidates),
        dot_(decode_kernel(isa)),
        kernel_(select_kernel(isa)),
        kv_head_(kv_head),
        group_(p_.n_heads / p_.n_kv_heads),
        n_heads_(group_ * static_cast<int32_t>(all.size())),
        width_(landmark_width(p_.index, p_.head_dim)),
        scratch_(worker.scratch) {
    offsets_ = scratch_.take<int64_t>(2 * kDecodeBlock);
    for (int64_t i = 0; i < 2 * kDecodeBlock; ++i) offsets_[i] = i * width_;
    strip_ = scratch_.take<float>(padded_heads(n_heads_) * kStripLandmarks);
    gathered_ = scratch_.take<bf16>(int64_t{n_heads_} * width_);
    if (p_.views.n > 1)
      block_ = scratch_.take<float>(padded_heads(n_heads_) * int64_t{kDecodeBlock});
    if (p_.codes != nullptr) {
      prepare_codes();
    } else {
      prepare_rows();
    }
    // The same for sequences that are scanned together and for each alone: bits depend on it.
    const bool coded = p_.codes != nullptr;
    with_tiles_ = kernel_.score_landmarks != nullptr && has_landmark_tiles(width_, coded) &&
                  p_.views.n == 1 && !candidates_.scattered();
    if (with_tiles_ && coded) query_bytes_ = scratch_.take<int8_t>(2 * int64_t{n_heads_} * width_);
    if (p_.views.n == 1) pack_view(0);
  }

  // Of a head of the group of sequence i: [kStripLandmarks].
  float* strip(int64_t i, int64_t head) const {
    return strip_ + (i * group_ + head) * kStripLandmarks;
  }

  // Scores of candidates at .. at + n - 1 into the strip. Strips are scored in ascending order.
  void score_strip(int64_t at, int64_t n) {
    if (with_tiles_) {
      score_tiles(at, n);
    } else {
      score_blocks(at, n);
    }
    if (p_.codes != nullptr) take_scales(at, n);
    clamped_ = some_excluded(at, n);
    if (!clamped_) return;
    for (int64_t h = 0; h < n_heads_; ++h) {
      float* scores = strip_ + h * kStripLandmarks;
      if (p_.codes != nullptr) {
        kernel_.scale_scores(scales_, n, scores);
      } else {
        kernel_.clamp_scores(scores, n);
      }
    }
    exclude(at, n);
  }

  // Scores i .. i + n - 1 of the strip of a head of the group of sequence s: clamped, -inf where
  // excluded. Returns the greatest.
  float finish(int64_t s, int64_t head, int64_t i, int64_t n, float* out, float* columns) const {
    return kernel_.finish_scores(
        {.scores = strip(s, head) + i,
         .n = n,
         .scales = p_.codes != nullptr && !clamped_ ? scales_ + i : nullptr,
         .clamped = clamped_,
         .out = out,
         .columns = columns});
  }

 private:
  void score_tiles(int64_t at, int64_t n) const {
    const bool coded = p_.codes != nullptr;
    const int64_t first = kv_head_ * p_.landmark_head_stride + candidates_.chunk(at) * width_;
    const int32_t most = landmark_tile_heads(coded);
    for (int32_t head = 0; head < n_heads_; head += most) {
      LandmarkScores scores{};
      scores.n = n;
      scores.width = width_;
      scores.n_heads = std::min(most, n_heads_ - head);
      scores.scores = strip_ + head * kStripLandmarks;
      scores.score_stride = kStripLandmarks;
      if (coded) {
        scores.landmarks = p_.codes + first;
        scores.queries = query_bytes_ + 2 * int64_t{head} * width_;
        scores.scales = factors_ + head;
        kernel_.score_coded_landmarks(scores);
      } else {
        scores.landmarks = p_.landmarks + first;
        scores.queries = gathered_ + int64_t{head} * width_;
        scores.scale = rows_.scale;
        kernel_.score_landmarks(scores);
      }
    }
  }

  void score_blocks(int64_t at, int64_t n) {
    for (int64_t i = 0; i < n; i += kDecodeBlock) {
      const int32_t n_rows = static_cast<int32_t>(std::min<int64_t>(kDecodeBlock, n - i));
      const int64_t base = place_rows(at + i, n_rows);
      if (p_.views.n == 1) {
        score_block(base, n_rows, strip_ + i, kStripLandmarks);
      } else {
        score_by_view(at + i, base, n_rows, strip_ + i);
      }
    }
  }

  // One block of landmarks from a base on, against the queries that are packed.
  void score_block(int64_t base, int32_t n_rows, float* scores, int64_t stride) {
    if (p_.codes != nullptr) {
      codes_.n_rows = n_rows;
      codes_.codes = p_.codes + kv_head_ * p_.landmark_head_stride + base;
      codes_.scores = scores;
      codes_.score_stride = stride;
      kernel_.score_codes(codes_);
    } else {
      rows_.n_rows = n_rows;
      rows_.row_base = bits(p_.landmarks + kv_head_ * p_.landmark_head_stride + base);
      rows_.scores = scores;
      rows_.score_stride = stride;
      dot_.score_rows(rows_);
    }
  }

  // Of candidates at .. at + n_rows - 1, each by the view of its span. A block that spans meet in
  // is scored by each of their views.
  void score_by_view(int64_t at, int64_t base, int32_t n_rows, float* scores) {
    const int64_t last = view_of(at + n_rows - 1);
    for (int64_t view = view_of(at), first = 0; view <= last; ++view) {
      pack_view(view);
      if (first == 0 && view == last) {
        score_block(base, n_rows, scores, kStripLandmarks);
        return;
      }
      score_block(base, n_rows, block_, kDecodeBlock);
      int64_t end = first;
      while (end < n_rows && view_of(at + end) == view) ++end;
      for (int64_t h = 0; h < n_heads_; ++h) {
        std::copy(block_ + h * kDecodeBlock + first, block_ + h * kDecodeBlock + end,
                  scores + h * kStripLandmarks + first);
      }
      first = end;
    }
  }

  int64_t view_of(int64_t candidate) const {
    return p_.views.view_at(candidates_.chunk(candidate) * p_.chunk_tokens);
  }

  // Queries of [n_heads_][width_], as they meet candidates of a span.
  void pack_view(int64_t view) {
    if (view == packed_) return;
    packed_ = view;
    for (size_t i = 0; i < all_.size(); ++i) {
      const bf16* q =
          all_[i].q + view * all_[i].views.stride + kv_head_ * group_ * int64_t{p_.head_dim};
      bf16* to = gathered_ + static_cast<int64_t>(i) * group_ * width_;
      if (p_.index == IndexKind::kMinMax) {
        expand_query(q, group_, p_.head_dim, to);
      } else {
        std::copy(q, q + int64_t{group_} * width_, to);
      }
    }
    if (p_.codes == nullptr) {
      if (with_tiles_) return;
      rows_.query_bytes = pack_queries(dot_, gathered_, n_heads_, width_, packed_queries_);
      return;
    }
    for (int32_t h = 0; h < n_heads_; ++h) {
      factors_[h] = quantise_query(gathered_ + int64_t{h} * width_, width_, quantised_) *
                    (p_.scale * std::numbers::log2e_v<float>);
      if (with_tiles_) {
        split_code_query(quantised_, width_, query_bytes_ + 2 * int64_t{h} * width_);
        continue;
      }
      excess_[h] =
          pack_code_query(kernel_, quantised_, width_, packed_queries_ + h * codes_.query_bytes);
    }
  }

  void prepare_rows() {
    packed_queries_ = scratch_.take<char>(padded_heads(n_heads_) * packed_width(dot_, width_) * 4);
    rows_.offsets = offsets_;
    rows_.prefetch_rows = kDecodeBlock;
    rows_.head_dim = width_;
    rows_.n_heads = padded_heads(n_heads_);
    rows_.queries = packed_queries_;
    rows_.scale = p_.scale * std::numbers::log2e_v<float>;
  }

  void prepare_codes() {
    const int32_t n_heads = padded_heads(n_heads_);
    const int64_t bytes = (width_ + kCodeBlock - 1) / kCodeBlock * kCodeBlock * 2;
    packed_queries_ = scratch_.take<char>(n_heads * bytes);
    excess_ = scratch_.take<int32_t>(n_heads);
    factors_ = scratch_.take<float>(n_heads);
    quantised_ = scratch_.take<int16_t>(width_);
    std::memset(packed_queries_, 0, static_cast<size_t>(n_heads * bytes));
    std::fill(excess_, excess_ + n_heads, 0);
    std::fill(factors_, factors_ + n_heads, 0.0f);
    scales_ = scratch_.take<float>(kStripLandmarks);
    codes_.offsets = offsets_;
    codes_.prefetch_rows = kDecodeBlock;
    codes_.width = width_;
    codes_.n_heads = n_heads;
    codes_.queries = packed_queries_;
    codes_.query_bytes = bytes;
    codes_.excess = excess_;
    codes_.factors = factors_;
  }

  // Offsets of the rows of candidates at .. at + n - 1 and of those to prefetch, from a base that
  // is returned. What is behind the last row repeats it.
  int64_t place_rows(int64_t at, int32_t n) {
    if (candidates_.scattered()) {
      for (int64_t r = 0; r < 2 * kDecodeBlock;) {
        const int64_t i = std::min(at + r, candidates_.size() - 1);
        const int64_t run = std::min(2 * kDecodeBlock - r, candidates_.run(i));
        const int64_t row = candidates_.chunk(i) * width_;
        for (int64_t t = 0; t < run; ++t) offsets_[r + t] = row + t * width_;
        r += run;
      }
      return 0;
    }
    if (n < kDecodeBlock) {
      for (int64_t r = n; r < 2 * kDecodeBlock; ++r) offsets_[r] = (n - 1) * int64_t{width_};
    }
    return candidates_.chunk(at) * width_;
  }

  void take_scales(int64_t at, int64_t n) {
    const float* scales = p_.scales + kv_head_ * (p_.landmark_head_stride / width_);
    for (int64_t i = 0; i < n;) {
      const int64_t run = std::min(n - i, candidates_.run(at + i));
      std::memcpy(scales_ + i, scales + candidates_.chunk(at + i),
                  static_cast<size_t>(run) * sizeof(float));
      i += run;
    }
  }

  bool some_excluded(int64_t at, int64_t n) const {
    for (const SelectParams& p : all_) {
      if (p.excluded == nullptr) continue;
      const uint64_t* map = p.excluded + kv_head_ * p.excluded_stride;
      const int64_t first = candidates_.chunk(at) / 64, last = candidates_.chunk(at + n - 1) / 64;
      for (int64_t word = first; word <= last; ++word) {
        if (map[word] != 0) return true;
      }
    }
    return false;
  }

  void exclude(int64_t at, int64_t n) {
    for (size_t s = 0; s < all_.size(); ++s) {
      if (all_[s].excluded == nullptr) continue;
      for (int64_t i = 0; i < n;) {
        const int64_t run = std::min(n - i, candidates_.run(at + i));
        exclude_run(all_[s], candidates_.chunk(at + i), run, strip(static_cast<int64_t>(s), 0) + i);
        i += run;
      }
    }
  }

  // Of chunks first .. first + n - 1, for the group of one sequence.
  void exclude_run(const SelectParams& p, int64_t first, int64_t n, float* scores) {
    const uint64_t* map = p.excluded + kv_head_ * p.excluded_stride;
    for (int64_t i = 0; i < n; i += 64) {
      uint64_t bits = bits_from(map, first + i, p.excluded_stride);
      if (n - i < 64) bits &= (uint64_t{1} << (n - i)) - 1;
      for (; bits != 0; bits &= bits - 1) {
        const int64_t at = i + std::countr_zero(bits);
        for (int64_t h = 0; h < group_; ++h) scores[h * kStripLandmarks + at] = -kInfinity;
      }
    }
  }

  std::span<const SelectParams> all_;
  const SelectParams& p_;
  const Candidates& candidates_;
  const DecodeKernel& dot_;
  const SelectKernel& kernel_;
  int64_t kv_head_;
  int32_t group_, n_heads_, width_;
  Carver scratch_;
  ScoreRows rows_{};
  CodeRows codes_{};
  int64_t* offsets_;         // [2 * kDecodeBlock]
  float* strip_;             // [padded heads][kStripLandmarks]
  float* scales_ = nullptr;  // [kStripLandmarks]
  bool with_tiles_ = false;
  bool clamped_ = false;    // the strip, and the excluded are -inf
  float* block_ = nullptr;  // [padded heads][kDecodeBlock], with several views
  int64_t packed_ = -1;     // the view
  bf16* gathered_;          // [n_heads_][width_]
  char* packed_queries_ = nullptr;
  int32_t* excess_ = nullptr;      // [padded heads], of codes, as are
  float* factors_ = nullptr;       // [padded heads]
  int16_t* quantised_ = nullptr;   // [width_]
  int8_t* query_bytes_ = nullptr;  // [n_heads_][high, low][width_], for tiles
};

}  // namespace

int32_t pack_code_query(const SelectKernel& kernel, const int16_t* q, int32_t n, char* packed) {
  int64_t sum = 0;
  for (int32_t i = 0; i < n; ++i) {
    char* four = packed + i / 4 * 8;
    sum += q[i];
    if (kernel.byte_query) {
      const int8_t low = static_cast<int8_t>(q[i]);
      four[i % 4] = static_cast<char>(low);
      four[4 + i % 4] = static_cast<char>((q[i] - low) / 256);
    } else {
      std::memcpy(four + i % 2 * 4 + i % 4 / 2 * 2, q + i, sizeof *q);
    }
  }
  return kernel.byte_query ? static_cast<int32_t>(128 * sum) : 0;
}

void clear_columns(const Columns& columns, int64_t at, int64_t n, float* maxima) {
  if (!columns.usable()) return;
  const int64_t first = at / columns.segment() * 16;
  const int64_t last = (at + n + columns.segment() - 1) / columns.segment() * 16;
  std::fill(maxima + first, maxima + last, -kInfinity);
}

void fold_columns(const Columns& columns, const SelectKernel& kernel, int64_t at, int64_t n,
                  float* scores, float* maxima) {
  if (!columns.usable()) return;
  for (int64_t i = n; i % 16 != 0; ++i) scores[i] = -kInfinity;
  for_each_segment(columns, at, n, [&](int64_t i, int64_t length, int64_t first_column) {
    kernel.fold_max(scores + i, (length + 15) / 16 * 16, maxima + first_column);
  });
}

void scan_range(std::span<const SelectParams> all, Isa isa, int64_t kv_head, int64_t range,
                const Worker& worker) {
  const SelectParams& first = all.front();
  const Candidates candidates = candidates_of(first, kv_head);
  const int64_t begin = range * kRangeLandmarks;
  const int64_t end = std::min(begin + kRangeLandmarks, candidates.size());
  const int64_t group = first.n_heads / first.n_kv_heads, first_head = kv_head * group;
  const SelectKernel& kernel = select_kernel(isa);
  const Columns columns(candidates.size(), first.k);
  const bool fold = !adds_weights(first) && columns.usable();
  for (const SelectParams& p : all) {
    const SelectWorkspace work(p);
    for (int64_t h = first_head; h < first_head + group; ++h) {
      work.sums(h, range)[0] = -kInfinity;
      work.sums(h, range)[1] = 0;
      if (fold && begin < end) clear_columns(columns, begin, end - begin, work.columns(h));
    }
  }
  if (begin >= end) return;  // few blocks

  LandmarkScan scan(all, candidates, isa, kv_head, worker);
  for (int64_t at = begin; at < end; at += kStripLandmarks) {
    const int64_t n = std::min(kStripLandmarks, end - at);
    scan.score_strip(at, n);
    for (size_t i = 0; i < all.size(); ++i) {
      const SelectWorkspace work(all[i]);
      for (int64_t h = 0; h < group; ++h) {
        float* scores = work.scores(first_head + h) + at;
        float top = -kInfinity;
        const auto finish = [&](int64_t from, int64_t length, float* maxima) {
          const float t =
              scan.finish(static_cast<int64_t>(i), h, from, length, scores + from, maxima);
          top = std::max(top, t);
        };
        if (fold) {
          for_each_segment(columns, at, n, [&](int64_t from, int64_t length, int64_t first_column) {
            finish(from, length, work.columns(first_head + h) + first_column);
          });
        } else {
          finish(0, n, nullptr);
        }
        float* sums = work.sums(first_head + h, range);
        kernel.sum_below(top, scores, n, sums, sums + 1);
      }
    }
  }
}

}  // namespace tiercel::cpu
