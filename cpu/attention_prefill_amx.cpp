// Prefill attention with AMX tiles.
//
// A task is one or two tiles of 16 rows (consecutive tokens of one query head, or where two heads
// meet) against all keys that they see; a slice is a task x 32 keys; a block is 8 or 16 slices.
// Three independent streams run interleaved, slice by slice, one behind the other, through all
// tasks of the superblock without draining:
//
//   step of slice u     tiles                              vector units
//     scores(u + 1)     tmm4,5 = Q (tmm6) x K (tmm7)
//     weights(u)                                           S[u] -> P[u], bf16, some rows after
//     values            tmm0-3 += P (tmm6) x V (tmm7),     each product
//                       one pass over the slices of the
//                       block before per 4 tiles of O
//
//   L1   S 2 x 4 KiB | P 2 x 16 KiB | Q | sums             L2   K, V tiles, read once per task
//
// What bounds it, per product of two tiles (16 cycles of the multiplier; two row tiles, any d):
//
//   lines loaded     22 tiles per 16 products, 4 lines per row            15 cycles at 2 a cycle
//   of them from L2  half a tile (one row tile: a whole one)              11 cycles at 48 B
//   vector units     two rows of 15 operations of p0 and p5, d 64         15 cycles; d 128: 7
//   instructions     50 to 90 with what tile loads decode to, d 64        15 cycles at 6 a cycle
//
// All are near 16, so none may grow: the step is one straight run of code (no calls, whose
// constants and vzeroupper took as long as the weights themselves; no divisions), sums and
// references are read where they lie, and the first scores are stored a whole run of value products
// before they are read.
//
// No running maximum: a row's reference is the maximum over the first slice where it sees a key, as
// a whole octave. bf16 and fp32 have the same exponents, so a stale reference costs no precision.
// Once per block, before its weights are used, one compare per row asks whether a sum has reached
// 2^40 or is not finite; then the reference is raised to the block's maximum and the weights are
// made again.
#include "cpu/attention_prefill.h"
#include "cpu/attention_prefill_weights.h"
#include "cpu/stage.h"
#include "cpu/tile.h"

namespace tiercel::cpu::prefill {
namespace {

constexpr int kTileRows = 16;
constexpr int kMaxRows = 32;
constexpr int kSliceKeys = 32;
constexpr int kTileWords = 512;
constexpr float kSumLimit = 1099511627776.0f;  // 2^40: far from overflow, also times any value

constexpr int kTileFloats = 256;
// Scores of a slice: [row tile][16 keys each][row][key].
constexpr int kScores = kMaxRows * kSliceKeys;

struct Buffers {
  alignas(64) float scores[2][kScores];                        // [parity]
  alignas(64) float spare[kScores];                            // outside the pipeline
  alignas(64) uint16_t weights[2][16][kTileRows][kSliceKeys];  // [parity][slice, row tile]
  alignas(64) float sums[kMaxRows][16];
  alignas(64) float sums_before[kMaxRows][16];  // at the block's start
  alignas(64) float prepared[kMaxRows];         // references, as Exp wants them
};

#define TIERCEL_INLINE __attribute__((always_inline)) inline

// Some slices of one task.
struct Block {
  int row = -1;        // first row of the task; -1: no block
  int task_begin = 0;  // first key of the task
  int first = 0, n_slices = 0;
  bool first_of_task = false, last_of_task = false;
};

// Walks the blocks of all tasks in order.
template <int kRows>
class Blocks {
 public:
  Blocks(const AttendRows& a, int block_slices) : a_(a), block_keys_(block_slices * kSliceKeys) {
    enter(0);
  }

  Block next() {
    if (row_ >= a_.n_rows) return {};
    Block b;
    b.row = row_;
    b.task_begin = begin_;
    b.first = key_;
    const int aligned = key_ / block_keys_ * block_keys_ + block_keys_;
    const int end = aligned < end_ ? aligned : end_;
    b.n_slices = (end - key_) / kSliceKeys;
    b.first_of_task = key_ == begin_;
    b.last_of_task = end == end_;
    key_ = end;
    if (b.last_of_task) enter(row_ + kRows);
    return b;
  }

 private:
  // The first task from `row` on that sees anything, and the slices it sees.
  void enter(int row) {
    for (row_ = row; row_ < a_.n_rows; row_ += kRows) {
      begin_ = a_.n_keys;
      end_ = 0;
      for (int r = row_; r < row_ + kRows; ++r) {
        if (a_.begin[r] >= a_.end[r]) continue;
        begin_ = a_.begin[r] < begin_ ? a_.begin[r] : begin_;
        end_ = a_.end[r] > end_ ? a_.end[r] : end_;
      }
      begin_ = begin_ / kSliceKeys * kSliceKeys;
      end_ = (end_ + kSliceKeys - 1) / kSliceKeys * kSliceKeys;
      key_ = begin_;
      if (begin_ < end_) return;
    }
  }

  const AttendRows& a_;
  int block_keys_;
  int row_ = 0, begin_ = 0, end_ = 0, key_ = 0;
};

template <typename Tiles, typename Exp, int kTall, int kHalves>
class Pipeline {
 public:
  Pipeline(const AttendRows& a, Buffers& buffers) : a_(a), b_(buffers) {}

  void run() {
    Blocks<kRows> blocks(a_, kBlockSlices);
    Block next = blocks.next();
    if (next.row < 0) return;
    tiles_.configure();
    aim_scores(next, 0);
    all_scores(b_.scores[score_parity_]);
    while (next.row >= 0) {
      current_ = next;
      next = blocks.next();
      if (current_.first_of_task) enter_task();
      begin_block();
      for (int slice = 0; slice < current_.n_slices; ++slice) {
        const bool last = slice + 1 == current_.n_slices;
        // After the last slice of all, some scores that nobody reads.
        aim_scores(last && next.row >= 0 ? next : current_, last ? 0 : slice + 1);
        step(slice);
      }
      while (units_left_ > 0) values_unit();
      end_block();
    }
    begin_block();  // of nothing: what is left are the values of the last block
    while (units_left_ > 0) values_unit();
    tiles_.release();
  }

 private:
  static constexpr int kRows = kTall * kTileRows;
  static constexpr int kDim = 32 * kHalves;
  static constexpr int kOutTiles = 2 * kHalves;  // of a row tile
  // O tiles in a row per pass: with both row tiles at most four registers, and all passes alike.
  static constexpr int kPassTiles = kTall == 2           ? 2
                                    : kOutTiles % 4 == 0 ? 4
                                    : kOutTiles % 3 == 0 ? 3
                                                         : 2;
  static constexpr int kPasses = kOutTiles / kPassTiles;
  static constexpr int kUnitProducts = kTall * kPassTiles;
  static constexpr int kStepProducts = kTall * kOutTiles;  // of scores, and of values
  // Several passes load and store O once per block. P must stay in L1.
  static constexpr int kBlockSlices = kPasses == 1 || kTall == 2 ? 8 : 16;
  static constexpr int kRowStride = kDim * 4;  // of O, in bytes

  // What the straight run of code of a step keeps in registers.
  struct Step {
    float* target;        // of the scores
    const float* scores;  // of this slice
    uint16_t* weights;
    float* sums;
    const float* prepared;
    const uint16_t* q;
    const uint16_t* keys;
  };

  // ---- scores: the slice that aim_scores chose, into S[score_parity_] ----

  void aim_scores(const Block& block, int slice) {
    score_parity_ ^= 1;
    aim(block, slice);
  }
  void aim(const Block& block, int slice) {
    score_q_ = static_cast<const uint16_t*>(a_.q) + int64_t{block.row} * kDim;
    score_keys_ =
        static_cast<const uint16_t*>(a_.keys) + int64_t{block.first + slice * kSliceKeys} * kDim;
  }

  // The i-th of the slice's products: 16 rows, 16 of its keys, 32 of the channels. One row tile
  // shares a tile of Q between both halves of the slice, two share a tile of K.
  template <int i>
  TIERCEL_INLINE void score_product(const uint16_t* q, const uint16_t* keys, float* target) {
    constexpr int kTile = kTall == 2 ? i % 2 : 0;
    constexpr int kGroup = kTall == 2 ? i / 2 / kHalves : i % 2;
    constexpr int kHalf = kTall == 2 ? i / 2 % kHalves : i / 2;
    constexpr int kSum = 4 + i % 2;
    if constexpr (kHalf == 0) tiles_.template zero<kSum>();
    if constexpr (kTall == 2 || kGroup == 0) {
      tiles_.template load<6>(q + kTile * kTileRows * kDim + 32 * kHalf, kDim * 2);
    }
    if constexpr (kTall == 1 || kTile == 0) {
      tiles_.template load_streaming<7>(keys + (kGroup * kHalves + kHalf) * kTileWords, 64);
    }
    tiles_.template multiply<kSum, 6, 7>();
    if constexpr (kHalf == kHalves - 1) {
      tiles_.template store<kSum>(target + (2 * kTile + kGroup) * kTileFloats, 64);
    }
  }
  template <int i = 0>
  void all_scores(float* target) {
    score_product<i>(score_q_, score_keys_, target);
    if constexpr (i + 1 < kStepProducts) all_scores<i + 1>(target);
  }

  // ---- weights: rows of the current slice ----

  // Beside a stale reference a score may be too high for a word: then +inf.
  static TIERCEL_INLINE void row_weights(__m512 a, __m512 b, float prepared, uint16_t* weights,
                                         float* sum, __m512& watch) {
    const __m512i p = _mm512_min_epu16(Exp(prepared)(a, b, watch), _mm512_set1_epi16(0x7f80));
    _mm512_store_si512(weights, p);
    _mm512_store_ps(sum, dot(_mm512_load_ps(sum), p, _mm512_set1_epi16(0x3f80)));
  }
  // The first 16 keys of row r; the others are kTileFloats on.
  static TIERCEL_INLINE const float* row_of(const float* scores, int r) {
    return scores + r / kTileRows * 2 * kTileFloats + r % kTileRows * 16;
  }
  // Rows that see all of the slice.
  template <int kFrom, int kTo>
  TIERCEL_INLINE void rows(const Step& s, __m512& watch) {
    if constexpr (Exp::kNone) return;
#pragma GCC unroll 32
    for (int r = kFrom; r < kTo; ++r) {
      const float* scores = row_of(s.scores, r);
      row_weights(_mm512_load_ps(scores), _mm512_load_ps(scores + kTileFloats), s.prepared[r],
                  s.weights + r * kSliceKeys, s.sums + r * 16, watch);
    }
  }
  // All rows of a slice of which some rows do not see all. Few slices are.
  __attribute__((noinline)) void masked_weights(const float* scores, int slice) {
    if constexpr (Exp::kNone) return;
    uint16_t* weights = weights_of(weight_parity_, slice);
    __m512 watch = watch_;
    for (int r = 0; r < kRows; ++r) {
      const Visible v = visible(scores, r, slice);
      row_weights(v.a, v.b, b_.prepared[r], weights + r * kSliceKeys, b_.sums[r], watch);
    }
    watch_ = watch;
  }
  uint16_t* weights_of(int parity, int slice) { return &b_.weights[parity][slice * kTall][0][0]; }

  struct Visible {
    __m512 a, b;
  };
  // Row r of the scores of a slice of the current block, -inf where it does not see.
  Visible visible(const float* scores, int r, int slice) const {
    const int first_key = current_.first + slice * kSliceKeys;
    const int begin = a_.begin[current_.row + r] - first_key;
    const int end = a_.end[current_.row + r] - first_key;
    const float* s = row_of(scores, r);
    return {load_scores(s, 0, begin, end, true),
            load_scores(s + kTileFloats - 16, 16, begin, end, true)};
  }

  // ---- values: P of the block before x V, in units of one slice x one pass ----

  // The i-th product of the unit. Two row tiles share a tile of V and take turns in going first, so
  // that every second tile of P is there already.
  template <int i>
  TIERCEL_INLINE void value_product() {
    constexpr int kColumn = i / kTall;
    constexpr int kTile = kTall == 1 ? 0 : (i + kColumn) % 2;
    if constexpr (i == 0) {
      if (value_slice_ == 0 && !resident_) load_out();
    }
    if constexpr (i == 0 || (kTall == 2 && i % 2 == 1)) {
      const uint16_t* weights = weights_of(weight_parity_ ^ 1, value_slice_);
      tiles_.template load<6>(weights + kTile * kTileWords, 64);
    }
    if constexpr (i % kTall == 0) {
      tiles_.template load_streaming<7>(values_ + kColumn * kTileWords, 64);
    }
    tiles_.template multiply<kTile * kPassTiles + kColumn, 6, 7>();
    if constexpr (i == kUnitProducts - 1) finish_unit();
  }
  TIERCEL_INLINE void finish_unit() {
    resident_ = kPasses == 1;
    --units_left_;
    ++value_slice_;
    values_ += kSliceKeys * kDim;
    if (value_slice_ < previous_.n_slices) return;
    if (kPasses > 1 || previous_.last_of_task) {
      store_out(previous_.row);
      resident_ = false;
    }
    value_slice_ = 0;
    ++pass_;
    values_ += kPassTiles * kTileWords - previous_.n_slices * kSliceKeys * kDim;
  }
  template <int i = 0>
  void values_unit() {
    value_product<i>();
    if constexpr (i + 1 < kUnitProducts) values_unit<i + 1>();
  }

  template <int i>
  float* out_tile(int row) const {
    constexpr int kTile = i / kPassTiles, kColumn = i % kPassTiles;
    return a_.out + int64_t{row + kTile * kTileRows} * kDim + (pass_ * kPassTiles + kColumn) * 16;
  }
  template <int i = 0>
  void load_out() {
    tiles_.template load<i>(out_tile<i>(previous_.row), kRowStride);
    if constexpr (i + 1 < kUnitProducts) load_out<i + 1>();
  }
  template <int i = 0>
  void store_out(int row) {
    tiles_.template store<i>(out_tile<i>(row), kRowStride);
    if constexpr (i + 1 < kUnitProducts) store_out<i + 1>(row);
  }

  // ---- the interleaved step ----

  void step(int slice) {
    const int first_key = current_.first + slice * kSliceKeys;
    const bool masked = first_key < all_begin_ || first_key + kSliceKeys > all_end_;
    if (masked) {
      all_scores(b_.scores[score_parity_]);
      masked_weights(b_.scores[score_parity_ ^ 1], slice);
      for (int i = 0; i < kPasses && units_left_ > 0; ++i) values_unit();
      return;
    }
    const Step s{.target = b_.scores[score_parity_],
                 .scores = b_.scores[score_parity_ ^ 1],
                 .weights = weights_of(weight_parity_, slice),
                 .sums = b_.sums[0],
                 .prepared = b_.prepared,
                 .q = score_q_,
                 .keys = score_keys_};
    __m512 watch = watch_;
    if (units_left_ >= kPasses) {
      products<2 * kStepProducts>(s, watch);
    } else {
      products<kStepProducts>(s, watch);
    }
    watch_ = watch;
  }
  // The products of scores, then n - kStepProducts of values, and a share of the rows after each.
  template <int n, int i = 0>
  TIERCEL_INLINE void products(const Step& s, __m512& watch) {
    if constexpr (i < kStepProducts) {
      score_product<i>(s.q, s.keys, s.target);
    } else {
      value_product<(i - kStepProducts) % kUnitProducts>();
    }
    rows<kRows * i / n, kRows*(i + 1) / n>(s, watch);
    if constexpr (i + 1 < n) products<n, i + 1>(s, watch);
  }

  // ---- references ----

  void prepare(int r) {
    const float reference = a_.reference[current_.row + r];
    b_.prepared[r] = Exp::prepared(reference == kNothing ? 0.0f : reference);
  }

  // max[r] over what row r sees of a slice of the current block, whose scores are in `spare`.
  void slice_max(int slice, float* max) {
    for (int r = 0; r < kRows; ++r) {
      const Visible v = visible(b_.spare, r, slice);
      const float highest = _mm512_reduce_max_ps(_mm512_max_ps(v.a, v.b));
      if (highest > max[r]) max[r] = highest;
    }
  }
  void spare_scores(int slice) {
    aim(current_, slice);
    all_scores(b_.spare);
  }

  // A new task: what its rows see in common, and a reference for rows that have none. A masked key
  // never sets it: too high a reference is the one way to underflow.
  void enter_task() {
    all_begin_ = 0;
    all_end_ = a_.n_keys;
    watch_ = _mm512_setzero_ps();
    for (int r = 0; r < kRows; ++r) {
      const int row = current_.row + r;
      all_begin_ = a_.begin[row] > all_begin_ ? a_.begin[row] : all_begin_;
      all_end_ = a_.end[row] < all_end_ ? a_.end[row] : all_end_;
      _mm512_store_ps(b_.sums[r], _mm512_setzero_ps());
      b_.sums[r][0] = a_.sum[row];
    }
    for (int slice = 0; slice < current_.n_slices && !referenced(); ++slice) {
      float max[kRows];
      for (float& m : max) m = kNothing;
      spare_scores(slice);
      slice_max(slice, max);
      for (int r = 0; r < kRows; ++r) {
        float& reference = a_.reference[current_.row + r];
        if (reference == kNothing && max[r] > kNothing) reference = octave_above(max[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) prepare(r);
  }
  // Every row that sees a key has a reference.
  bool referenced() const {
    for (int row = current_.row; row < current_.row + kRows; ++row) {
      if (a_.begin[row] < a_.end[row] && a_.reference[row] == kNothing) return false;
    }
    return true;
  }

  // ---- blocks ----

  // The block before has its weights; from here on its values are the third stream.
  void begin_block() {
    weight_parity_ ^= 1;
    pass_ = value_slice_ = 0;
    units_left_ = previous_.row < 0 ? 0 : previous_.n_slices * kPasses;
    values_ = static_cast<const uint16_t*>(a_.values) + int64_t{previous_.first} * kDim;
    for (int r = 0; r < kRows; ++r) {
      _mm512_store_ps(b_.sums_before[r], _mm512_load_ps(b_.sums[r]));
    }
  }

  void end_block() {
    if (!sums_in_range()) repair();
    previous_ = current_;
    if (!current_.last_of_task) return;
    for (int r = 0; r < kRows; ++r) {
      a_.sum[current_.row + r] = _mm512_reduce_add_ps(_mm512_load_ps(b_.sums[r]));
    }
    const float watch = _mm512_reduce_add_ps(watch_);
    if (watch != watch) mark_nan_rows();
  }
  bool sums_in_range() const {
    __mmask16 beyond = 0;
    for (int r = 0; r < kRows; ++r) {
      beyond |=
          _mm512_cmp_ps_mask(_mm512_load_ps(b_.sums[r]), _mm512_set1_ps(kSumLimit), _CMP_NLT_UQ);
    }
    return beyond == 0;
  }

  // Some score of the task is NaN, or infinities met: the sums of rows with such a score become
  // NaN.
  void mark_nan_rows() {
    const int end = current_.first + current_.n_slices * kSliceKeys;
    current_.n_slices = (end - current_.task_begin) / kSliceKeys;
    current_.first = current_.task_begin;
    for (int slice = 0; slice < current_.n_slices; ++slice) {
      spare_scores(slice);
      for (int r = 0; r < kRows; ++r) {
        const Visible v = visible(b_.spare, r, slice);
        const float watch = _mm512_reduce_add_ps(_mm512_add_ps(v.a, v.b));
        if (watch != watch) a_.sum[current_.row + r] = watch;
      }
    }
  }

  // The block's maximum; or what brings the sum back to 1, where many weights made it large. That
  // is less than log2(n_keys) octaves above the largest score, so nothing underflows.
  static float repaired_reference(float reference, float max, const float* sums) {
    float raised = octave_above(max);
    const float sum = _mm512_reduce_add_ps(_mm512_load_ps(sums));
    if (sum > 1.0f && sum < __builtin_inff()) {
      const float octaves = _mm512_cvtss_f32(_mm512_getexp_ps(_mm512_set1_ps(sum)));
      const float balanced = reference + kUnitsPerOctave * octaves;
      raised = balanced > raised ? balanced : raised;
    }
    return raised;
  }

  // Raises references out of the current block's reach, moves what was summed before the block, and
  // makes the block's weights again. Done once: what is still not finite comes from the input.
  void repair() {
    if (resident_) store_out(current_.row);
    resident_ = false;
    float max[kRows];
    for (float& m : max) m = kNothing;
    for (int slice = 0; slice < current_.n_slices; ++slice) {
      spare_scores(slice);
      slice_max(slice, max);
    }
    for (int r = 0; r < kRows; ++r) {
      float& reference = a_.reference[current_.row + r];
      _mm512_store_ps(b_.sums[r], _mm512_load_ps(b_.sums_before[r]));
      const float raised = repaired_reference(reference, max[r], b_.sums[r]);
      if (raised > reference) {
        if (reference != kNothing) {
          rescale(b_.sums[r], 16, reference, raised);
          rescale(a_.out + int64_t{current_.row + r} * kDim, kDim, reference, raised);
        }
        reference = raised;
        prepare(r);
      }
    }
    for (int slice = 0; slice < current_.n_slices; ++slice) {
      spare_scores(slice);
      masked_weights(b_.spare, slice);
    }
  }

  const AttendRows& a_;
  Buffers& b_;
  Tiles tiles_;
  Block current_, previous_;
  const uint16_t* score_q_ = nullptr;
  const uint16_t* score_keys_ = nullptr;
  const uint16_t* values_ = nullptr;  // of the next unit
  int score_parity_ = 0, weight_parity_ = 0;
  int pass_ = 0, value_slice_ = 0, units_left_ = 0;
  bool resident_ = false;  // O of previous_.row is in tmm0-3
  int all_begin_ = 0, all_end_ = 0;
  __m512 watch_ = _mm512_setzero_ps();  // NaN tells (attention_prefill_weights.h)
};

#undef TIERCEL_INLINE

template <typename Tiles, typename Exp, int kTall>
void attend_rows(const AttendRows& a) {
  Buffers& buffers = *static_cast<Buffers*>(a.buffer);
  switch (a.padded_dim / 32) {  // see padded_dim()
    case 2: return Pipeline<Tiles, Exp, kTall, 2>(a, buffers).run();
    case 3: return Pipeline<Tiles, Exp, kTall, 3>(a, buffers).run();
    case 4: return Pipeline<Tiles, Exp, kTall, 4>(a, buffers).run();
    case 6: return Pipeline<Tiles, Exp, kTall, 6>(a, buffers).run();
    case 8: return Pipeline<Tiles, Exp, kTall, 8>(a, buffers).run();
  }
}
template <typename Tiles, int kTall>
void attend_rows(const AttendRows& a) {
  if (a.exact_exp) {
    attend_rows<Tiles, Polynomial, kTall>(a);
  } else {
    attend_rows<Tiles, Lookup, kTall>(a);
  }
}

// For benchmarks, with d 64 and 128 only: `Exp` whatever the params say.
template <typename Tiles, typename Exp, int kTall>
void attend_rows_for_bench(const AttendRows& a) {
  Buffers& buffers = *static_cast<Buffers*>(a.buffer);
  if (a.padded_dim == 64) Pipeline<Tiles, Exp, kTall, 2>(a, buffers).run();
  if (a.padded_dim == 128) Pipeline<Tiles, Exp, kTall, 4>(a, buffers).run();
}

// No tiles: what is left of a kernel are its weights.
struct NoTiles {
  static void configure() {}
  static void release() {}
  template <int kTile>
  void zero() {}
  template <int kTile>
  void load(const void*, int64_t) {}
  template <int kTile>
  void load_streaming(const void*, int64_t) {}
  template <int kTile>
  void store(void*, int64_t) {}
  template <int kC, int kA, int kB>
  void multiply() {}
};

// No weights: what is left are the tiles.
struct NoWeights : Lookup {
  static constexpr bool kNone = true;
  using Lookup::Lookup;
};

constexpr Kernel amx_kernel(int tall, void (*attend)(const AttendRows&)) {
  Kernel kernel;
  kernel.row_tile = tall * kTileRows;
  kernel.head_tile = kTileRows;
  kernel.element_bytes = 2;
  kernel.buffer_bytes = sizeof(Buffers);
  kernel.pack = pack_tiles;
  kernel.stage = stage_tiles;
  kernel.attend = attend;
  kernel.store = store_tiles;
  return kernel;
}

}  // namespace

constinit const Kernel kAmxKernel = amx_kernel(2, attend_rows<HardwareTiles, 2>);
constinit const Kernel kAmxEmulatedKernel = amx_kernel(2, attend_rows<EmulatedTiles, 2>);

constinit const AmxBenchKernels kAmxBenchKernels = {
    .one_row_tile = amx_kernel(1, attend_rows_for_bench<HardwareTiles, Lookup, 1>),
    .one_row_tile_products = amx_kernel(1, attend_rows_for_bench<HardwareTiles, NoWeights, 1>),
    .products = amx_kernel(2, attend_rows_for_bench<HardwareTiles, NoWeights, 2>),
    .weights = amx_kernel(2, attend_rows_for_bench<NoTiles, Lookup, 2>),
    .exact_weights = amx_kernel(2, attend_rows_for_bench<NoTiles, Polynomial, 2>),
};
constinit const Kernel kAmxOneRowTileEmulatedKernel =
    amx_kernel(1, attend_rows_for_bench<EmulatedTiles, Lookup, 1>);

}  // namespace tiercel::cpu::prefill
