// Exact top-k, as top_k.cuh's, of a row of which the maximum of every 16 scores, a piece, is known:
// the least that one block can look at when all others are done.
//
// No fewer than k pieces have a maximum in the bin of the k-th of the maxima or above, so the best
// k are above it or in it, and only pieces that reach it are looked at: hardly more than k. What a
// thread looks at stays in registers as long as one batch holds all.
//
//   maxima     all of them, to find the bin; those that reach it make a list, in their order
//   scores     of the listed pieces: few reach the bin, and unless they are many two of these,
//              the survivors, are a thread's from here on
//   survivors  a histogram finds the bin of the k-th score, ranking its key
//   chosen     emitted in ascending order
//
// Four neighbouring scores or maxima are a quad. Rows may have been written by other blocks of this
// grid: they are read past L1.
#pragma once

#include "kernels/block_scan.cuh"
#include "kernels/gpu.cuh"
#include "kernels/top_k.cuh"

namespace tiercel::cuda {

inline constexpr int kPieceThreads = 512;
inline constexpr int kPieceWarps = kPieceThreads / 32;
inline constexpr int kPiece = 16;
inline constexpr int kQuads = 4;  // of a thread in a batch
inline constexpr int kBatchQuads = kPieceThreads * kQuads;
inline constexpr int kListed = 2048;  // pieces listed in shared memory
inline constexpr int kSurvivors = 2 * kPieceThreads;
static_assert(kBins == 4 * kPieceThreads);

struct PieceRow {
  const float* scores;  // [n], the last quad whole
  const float* maxima;  // whole quads of them, -inf behind the end
  int32_t* listed;      // room for all pieces: the list beyond its first kListed
  int32_t n, k;
  Binning binning;

  GPU int32_t n_pieces() const { return (n - 1) / kPiece + 1; }
  GPU float4 quad_at(int32_t index) const {
    if (index >= n) return float4{-gpu::kInf, -gpu::kInf, -gpu::kInf, -gpu::kInf};
    float4 v = gpu::load_uncached(reinterpret_cast<const float4*>(scores + index));
    if (index + 1 >= n) v.y = -gpu::kInf;
    if (index + 2 >= n) v.z = -gpu::kInf;
    if (index + 3 >= n) v.w = -gpu::kInf;
    return v;
  }
};

struct alignas(16) PieceShared {
  uint32_t bins[kBins];  // zeros between counts
  int32_t listed[kListed];
  alignas(16) uint32_t tied[kPieceThreads];
  float survivors[kSurvivors];
  int32_t survivor_indices[kSurvivors];
  uint32_t sums[2][kPieceWarps];
  uint32_t bin, above, in_bin, n_tied, key, n_equal;
};

// The quads of one lane in a batch: first, first + 32, .. below end. A warp has consecutive ones,
// from a multiple of four on.
struct QuadBatch {
  int32_t first, end;

  // Quad j of some lane is inside; the same for all lanes, and false for later ones if for j.
  GPU bool has(int j) const {
    return first - static_cast<int32_t>(threadIdx.x % 32) + 32 * j < end;
  }
};

GPU QuadBatch quads_of(int32_t begin, int32_t n_quads) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int32_t left = n_quads - begin, size = left < kBatchQuads ? left : kBatchQuads;
  const int32_t per_warp = (size + 4 * kPieceWarps - 1) / (4 * kPieceWarps) * 4;
  const int32_t of_warp = begin + warp * per_warp, end = of_warp + per_warp;
  return {of_warp + lane, end < begin + size ? end : begin + size};
}

// A row of n_quads, load(i) each. v: what load_batch has read of the first batch.
template <typename Load>
struct QuadRow {
  int32_t n_quads;
  Load load;
  float4 v[kQuads];

  GPU QuadRow(int32_t n, Load f) : n_quads(n), load(f) {}
  GPU void load_batch(const QuadBatch& batch) {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const int32_t quad = batch.first + 32 * j;
      v[j] = quad < batch.end ? load(quad) : float4{-gpu::kInf, -gpu::kInf, -gpu::kInf, -gpu::kInf};
    }
  }
  // visit(batch) for every batch, by all threads: its scores are in v.
  template <typename Visit>
  GPU void visit(Visit visit_batch) {
    for (int32_t begin = 0; begin < n_quads; begin += kBatchQuads) {
      const QuadBatch batch = quads_of(begin, n_quads);
      if (n_quads > kBatchQuads) load_batch(batch);
      visit_batch(batch);
    }
  }
  // visit(score) for every score, and for -inf as often as it takes.
  template <typename Visit>
  GPU void visit_scores(Visit visit_score) {
    visit([&](const QuadBatch& batch) {
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        if (!batch.has(j)) break;
        visit_score(v[j].x);
        visit_score(v[j].y);
        visit_score(v[j].z);
        visit_score(v[j].w);
      }
    });
  }
};

template <typename Load>
GPU QuadRow<Load> quad_row(int32_t n_quads, Load load) {
  QuadRow<Load> row(n_quads, load);
  row.load_batch(quads_of(0, n_quads));
  return row;
}

struct FoundBin {
  int bin;
  uint32_t above, in_bin;  // how many
};

// The bin in which the k-th entry lies; the last one if there are fewer, and then above is all of
// them. Leaves bins and tied zero.
GPU FoundBin find_bin(PieceShared& s, uint32_t k) {
  gpu::sync_threads();  // all have counted
  uint4* bins = reinterpret_cast<uint4*>(s.bins) + threadIdx.x;
  const uint4 mine = *bins;
  *bins = uint4{0, 0, 0, 0};
  const uint32_t of_four[4] = {mine.x, mine.y, mine.z, mine.w};
  uint32_t total;
  uint32_t before =
      threads_before<kPieceThreads>(mine.x + mine.y + mine.z + mine.w, s.sums[0], total);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (before < k && k <= before + of_four[i]) {
      s.bin = threadIdx.x * 4 + i;
      s.above = before;
      s.in_bin = of_four[i];
    }
    before += of_four[i];
  }
  s.tied[threadIdx.x] = 0;
  if (threadIdx.x == 0) s.n_tied = 0;
  gpu::sync_threads();
  if (k > total) return {kBins - 1, total, 0};
  return {static_cast<int>(s.bin), s.above, s.in_bin};
}

GPU bool is_within(float score, int bin, Binning binning) {
  return score > -gpu::kInf && bin_of(score, binning) <= bin;
}

// How many of a quad's scores pass.
template <typename Pass>
GPU uint32_t count_quad(const float4& v, Pass pass) {
  return uint32_t{pass(v.x)} + uint32_t{pass(v.y)} + uint32_t{pass(v.z)} + uint32_t{pass(v.w)};
}

// Counts up to 4 of a lane's quads, a byte each, and their sums over the lanes of a warp before.
struct WarpCounts {
  static_assert(kQuads == 4 && 32 * 4 < 256);
  uint32_t mine, before_lane, all_lanes;

  GPU explicit WarpCounts(uint32_t packed) : mine(packed) {
    const uint32_t inclusive = warp_scan(packed);
    before_lane = inclusive - packed;
    all_lanes = gpu::shuffle(inclusive, 31);
  }
  // In the quads of the warp that come before quad j of this lane.
  GPU uint32_t before(int j) const {
    uint32_t n = before_lane >> 8 * j & 0xff;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (i < j) n += all_lanes >> 8 * i & 0xff;
    }
    return n;
  }
  GPU uint32_t total() const {
    return (all_lanes & 0xff) + (all_lanes >> 8 & 0xff) + (all_lanes >> 16 & 0xff) +
           (all_lanes >> 24);
  }
};

struct PieceList {
  int32_t *near, *far;  // near: the first kListed
  GPU int32_t& operator[](int32_t i) const { return i < kListed ? near[i] : far[i]; }
};

// Lists the pieces whose maxima reach a bin, in ascending order. Returns how many.
template <typename Row>
GPU int32_t list_pieces(const PieceRow& row, Row& maxima, int bin, const PieceList& listed,
                        PieceShared& s) {
  const auto is_wanted = [&](float top) { return is_within(top, bin, row.binning); };
  int32_t n = 0;
  int turn = 0;
  maxima.visit([&](const QuadBatch& batch) {
    uint32_t counts = 0;
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (!batch.has(j)) break;
      counts |= count_quad(maxima.v[j], is_wanted) << 8 * j;
    }
    const WarpCounts scan(counts);
    uint32_t total;
    const int32_t base =
        n + static_cast<int32_t>(warps_before<kPieceWarps>(scan.total(), s.sums[turn], total));
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (!batch.has(j)) break;
      int32_t at = base + static_cast<int32_t>(scan.before(j));
      const int32_t piece = (batch.first + 32 * j) * 4;
      if (is_wanted(maxima.v[j].x)) listed[at++] = piece;
      if (is_wanted(maxima.v[j].y)) listed[at++] = piece + 1;
      if (is_wanted(maxima.v[j].z)) listed[at++] = piece + 2;
      if (is_wanted(maxima.v[j].w)) listed[at++] = piece + 3;
    }
    n += static_cast<int32_t>(total);
    turn ^= 1;
  });
  gpu::sync_threads();
  return n;
}

// The n-th score of one bin that holds no more than kPieceThreads.
template <typename Row>
GPU void rank_tied(Row& scores, const FoundBin& found, Binning binning, uint32_t n,
                   PieceShared& s) {
  scores.visit_scores([&](float score) {
    if (score == -gpu::kInf || bin_of(score, binning) != found.bin) return;
    s.tied[gpu::atomic_add(&s.n_tied, 1u)] = ordered(score);
  });
  gpu::sync_threads();
  if (threadIdx.x < found.in_bin) {
    const uint32_t mine = s.tied[threadIdx.x];
    uint32_t above = 0, equal = 0;
    for (uint32_t i = 0; i < found.in_bin; i += 4) {  // behind the last are zeros, below any key
      const uint4 of_four = *reinterpret_cast<const uint4*>(s.tied + i);
      const uint32_t others[4] = {of_four.x, of_four.y, of_four.z, of_four.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        above += others[e] > mine;
        equal += others[e] == mine;
      }
    }
    if (above < n && n <= above + equal) {  // all threads with this score write the same
      s.key = mine;
      s.n_equal = n - above;
    }
  }
  gpu::sync_threads();
}

// The same for any number of them: three digits, from the highest.
template <typename Row>
GPU void rank_digits(Row& scores, const FoundBin& found, Binning binning, uint32_t n,
                     PieceShared& s) {
  uint32_t key = 0;
  for (int digit = 0; digit < 3; ++digit) {
    const int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
    const uint32_t last = digit == 2 ? 1023u : 2047u;
    const uint32_t known = digit == 0 ? 0u : ~0u << (digit == 1 ? 21 : 10);
    scores.visit_scores([&](float score) {
      if (score == -gpu::kInf || bin_of(score, binning) != found.bin) return;
      const uint32_t other = ordered(score);
      if (((other ^ key) & known) != 0) return;
      gpu::atomic_add(s.bins + (last - (other >> shift & last)), 1u);
    });
    const FoundBin of_digit = find_bin(s, n);
    key |= (last - static_cast<uint32_t>(of_digit.bin)) << shift;
    n -= of_digit.above;
  }
  if (threadIdx.x == 0) {
    s.key = key;
    s.n_equal = n;
  }
  gpu::sync_threads();
}

template <typename Row>
GPU Threshold find_threshold(const PieceRow& row, Row& scores, int bin, PieceShared& s) {
  const uint32_t k = static_cast<uint32_t>(row.k);
  scores.visit_scores([&](float score) {
    if (is_within(score, bin, row.binning)) {
      gpu::atomic_add(s.bins + bin_of(score, row.binning), 1u);
    }
  });
  const FoundBin found = find_bin(s, k);
  if (found.in_bin == 0) return {ordered(-gpu::kInf), 0, found.above};  // fewer than k: all
  if (found.in_bin <= kPieceThreads) {
    rank_tied(scores, found, row.binning, k - found.above, s);
  } else {
    rank_digits(scores, found, row.binning, k - found.above, s);
  }
  return {s.key, s.n_equal, k};
}

// emit(i, index) for the i-th chosen of the row, in the order of indices.
template <typename Row, typename Emit>
GPU void emit_chosen(Row& scores, const PieceList& listed, const Threshold& t, PieceShared& s,
                     Emit emit) {
  uint32_t above = 0, equal = 0;  // of batches before
  int turn = 0;
  scores.visit([&](const QuadBatch& batch) {
    uint32_t counts[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (!batch.has(j)) break;
      const float4& v = scores.v[j];
      counts[0] |= count_quad(v, [&](float x) { return ordered(x) > t.key; }) << 8 * j;
      counts[1] |= count_quad(v, [&](float x) { return ordered(x) == t.key; }) << 8 * j;
    }
    const WarpCounts of_above(counts[0]), of_equal(counts[1]);
    uint32_t total;  // a batch has 8192 scores: a half word each
    const uint32_t before =
        warps_before<kPieceWarps>(of_above.total() | of_equal.total() << 16, s.sums[turn], total);
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (!batch.has(j)) break;
      const int32_t quad = batch.first + 32 * j;
      const bool has_any = ((of_above.mine | of_equal.mine) >> 8 * j & 0xff) != 0;
      if (!has_any || quad >= batch.end) continue;
      const int32_t index = listed[quad / 4] * kPiece + quad % 4 * 4;
      uint32_t n_above = above + (before & 0xffff) + of_above.before(j);
      uint32_t n_equal = equal + (before >> 16) + of_equal.before(j);
      const float of_quad[4] = {scores.v[j].x, scores.v[j].y, scores.v[j].z, scores.v[j].w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t key = ordered(of_quad[e]);
        const uint32_t at = n_above + (n_equal < t.n_equal ? n_equal : t.n_equal);
        if (key > t.key || (key == t.key && n_equal < t.n_equal)) emit(at, index + e);
        n_above += key > t.key;
        n_equal += key == t.key;
      }
    }
    above += total & 0xffff;
    equal += total >> 16;
    turn ^= 1;
  });
}

// A thread's two of the scores that reach a bin, in the order of indices. No score: -inf.
struct Survivors {
  float scores[2];
  int32_t indices[2];

  template <typename Visit>
  GPU void visit_scores(Visit visit_score) {
    visit_score(scores[0]);
    visit_score(scores[1]);
  }
};

// Deals out the survivors of a row of one batch, if they are no more than kSurvivors. Returns how
// many there are.
template <typename Row>
GPU uint32_t collect_survivors(const PieceRow& row, const Row& scores, const PieceList& listed,
                               int bin, PieceShared& s, Survivors& mine) {
  const auto is_wanted = [&](float score) { return is_within(score, bin, row.binning); };
  const QuadBatch batch = quads_of(0, scores.n_quads);
  uint32_t counts = 0;
#pragma unroll
  for (int j = 0; j < kQuads; ++j) {
    if (!batch.has(j)) break;
    counts |= count_quad(scores.v[j], is_wanted) << 8 * j;
  }
  const WarpCounts scan(counts);
  uint32_t total;
  const uint32_t base = warps_before<kPieceWarps>(scan.total(), s.sums[0], total);
  if (total > kSurvivors) return total;
#pragma unroll
  for (int j = 0; j < kQuads; ++j) {
    if (!batch.has(j)) break;
    if ((counts >> 8 * j & 0xff) == 0) continue;
    const int32_t quad = batch.first + 32 * j;
    const int32_t index = listed[quad / 4] * kPiece + quad % 4 * 4;
    const float of_quad[4] = {scores.v[j].x, scores.v[j].y, scores.v[j].z, scores.v[j].w};
    uint32_t at = base + scan.before(j);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (!is_wanted(of_quad[e])) continue;
      s.survivors[at] = of_quad[e];
      s.survivor_indices[at++] = index + e;
    }
  }
  gpu::sync_threads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t at = threadIdx.x * 2 + i;
    mine.scores[i] = at < total ? s.survivors[at] : -gpu::kInf;
    mine.indices[i] = at < total ? s.survivor_indices[at] : 0;
  }
  return total;
}

// As emit_chosen.
template <typename Emit>
GPU void emit_survivors(const Survivors& mine, const Threshold& t, PieceShared& s, Emit emit) {
  const uint32_t keys[2] = {ordered(mine.scores[0]), ordered(mine.scores[1])};
  const uint32_t above = uint32_t{keys[0] > t.key} + uint32_t{keys[1] > t.key};
  const uint32_t equal = uint32_t{keys[0] == t.key} + uint32_t{keys[1] == t.key};
  uint32_t total;  // half words
  const uint32_t before = threads_before<kPieceThreads>(above | equal << 16, s.sums[0], total);
  uint32_t n_above = before & 0xffff, n_equal = before >> 16;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t at = n_above + (n_equal < t.n_equal ? n_equal : t.n_equal);
    const bool is_equal = keys[i] == t.key;
    if (keys[i] > t.key || (is_equal && n_equal < t.n_equal)) emit(at, mine.indices[i]);
    n_above += keys[i] > t.key;
    n_equal += is_equal;
  }
}

// The maximum of a lane's quad and of its three neighbours: their piece's, as warps have them.
GPU float piece_maximum(const float4& quad) {
  static_assert(kPiece == 16);
  float top = fmaxf(fmaxf(quad.x, quad.y), fmaxf(quad.z, quad.w));
  top = fmaxf(top, gpu::shuffle_xor(top, 1));
  return fmaxf(top, gpu::shuffle_xor(top, 2));
}

// row.maxima, for a block that has the row to itself.
GPU void fill_maxima(const PieceRow& row, float* maxima) {
  const int32_t n_maxima = (row.n_pieces() + 3) / 4 * 4;
  auto scores = quad_row(n_maxima * 4, [&](int32_t quad) { return row.quad_at(quad * 4); });
  scores.visit([&](const QuadBatch& batch) {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const int32_t quad = batch.first + 32 * j;
      const float top = piece_maximum(scores.v[j]);
      if (quad % 4 == 0 && quad < batch.end) maxima[quad / 4] = top;
    }
  });
  gpu::sync_threads();
}

// By a block of kPieceThreads whose bins are zero. touch(index): called early for every quad that
// may be chosen from. Returns how many are chosen; emissions are seen after a barrier.
template <typename Touch, typename Emit>
GPU int32_t choose_best(const PieceRow& row, PieceShared& s, Touch touch, Emit emit) {
  auto maxima = quad_row((row.n_pieces() + 3) / 4, [&](int32_t quad) {
    return gpu::load_uncached(reinterpret_cast<const float4*>(row.maxima) + quad);
  });
  maxima.visit_scores([&](float top) {
    if (top > -gpu::kInf) gpu::atomic_add(s.bins + bin_of(top, row.binning), 1u);
  });
  const int bin = find_bin(s, static_cast<uint32_t>(row.k)).bin;
  const PieceList listed{s.listed, row.listed};
  const int32_t n_listed = list_pieces(row, maxima, bin, listed, s);
  auto scores = quad_row(n_listed * 4, [&](int32_t quad) {
    const int32_t index = listed[quad / 4] * kPiece + quad % 4 * 4;
    touch(index);
    return row.quad_at(index);
  });
  Survivors survivors;
  if (row.k <= kSurvivors && scores.n_quads <= kBatchQuads &&
      collect_survivors(row, scores, listed, bin, s, survivors) <= kSurvivors) {
    const Threshold threshold = find_threshold(row, survivors, bin, s);
    emit_survivors(survivors, threshold, s, emit);
    return static_cast<int32_t>(threshold.n);
  }
  const Threshold threshold = find_threshold(row, scores, bin, s);
  emit_chosen(scores, listed, threshold, s, emit);
  return static_cast<int32_t>(threshold.n);
}

}  // namespace tiercel::cuda
