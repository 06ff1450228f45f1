// Prefill attention with AMX tiles, included by attention_prefill_amx.cpp and
// attention_prefill_parts_amx.cpp; everything in it has internal linkage (cpu/isa.h).
//
// A task is two tiles of 16 rows (consecutive tokens of one query head each) against all keys that
// they see; a slice is a task x 32 keys; a block is 4 slices. Three independent streams run
// interleaved, slice by slice, one behind the other, through all tasks of the superblock without
// draining:
//
//   step of slice u     tiles                              vector units
//     scores(u + 1)     tmm4,5 = Q (tmm6) x K (tmm7)
//     weights(u)                                           S[u] -> P[u], bf16, some rows after
//     values            tmm0-3 += P (tmm6) x V (tmm7),     each product
//                       one pass over the slices of the
//                       block before per 2 x 2 tiles of O
//
//   L1   S 2 x 4 KiB | P 2 x 8 KiB | Q, O | sums            L2   K, V tiles, read once per task
//
// What bounds it, per product of two tiles, which takes the multiplier 16 cycles:
//
//   lines loaded     1.5 tiles and 8 for two rows (d 64)                  16 cycles at 2 a cycle
//   of them from L2  half a tile; with one row tile per task a whole one  11 cycles at 48 bytes
//   vector units     two rows of 14 operations on two ports (d 64)        14 cycles; d 128: 7
//   instructions     38; about 60 operations, as tile loads decode        10 cycles at 6 a cycle
//
// All are near 16, so none may grow. Hence a step is one straight run of code: with a call per
// share of rows it was three times the instructions, half of them constants set up again after
// vzeroupper. Scores come first in it, so a run of value products lies between the last of them and
// their use. (tools/JOURNAL.md, AMX)
//
// No running maximum: a row's reference is the maximum over the first slice where it sees a key, as
// a whole octave. bf16 and fp32 have the same exponents, so a stale reference costs no precision.
// Once per block, before its weights are used, one compare asks whether a sum has reached 2^40 or
// is not finite; then the reference is raised to the block's maximum and the weights are made
// again.
#pragma once

#include "cpu/attention_prefill.h"
#include "cpu/attention_prefill_blocks.h"
#include "cpu/attention_prefill_weights.h"
#include "cpu/stage.h"
#include "cpu/tile.h"

namespace tiercel::cpu::prefill {
namespace {

constexpr int kTileRows = 16;
constexpr int kMaxRows = 32;
constexpr int kTileWords = 512;
constexpr int kTileBytes = 1024;
constexpr int kTileFloats = 256;
constexpr float kSumLimit = 1099511627776.0f;  // 2^40: far from overflow, also times any value

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

// Steps are straight code, except under sanitizers, where that would take minutes to compile.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TIERCEL_INLINE __attribute__((noinline))
#else
#define TIERCEL_INLINE __attribute__((always_inline))
#endif

// kTall: row tiles of a task, 2; or 1, with O in tmm0-3 for good where d is 64, for comparison.
template <typename Tiles, typename Exp, int kTall, int kBlockSlices, int kHalves>
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
  static constexpr int kRowStride = kDim * 4;              // of O, in bytes

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
      tiles_.template load<6, (kTile * kTileRows * kDim + 32 * kHalf) * 2>(q, kDim * 2);
    }
    if constexpr (kTall == 1 || kTile == 0) {
      tiles_.template load_streaming<7, (kGroup * kHalves + kHalf) * kTileBytes>(keys, 64);
    }
    tiles_.template multiply<kSum, 6, 7>();
    if constexpr (kHalf == kHalves - 1) {
      tiles_.template store<kSum, (2 * kTile + kGroup) * kTileBytes>(target, 64);
    }
  }
  template <int i = 0>
  void all_scores(float* target) {
    score_product<i>(score_q_, score_keys_, target);
    if constexpr (i + 1 < kStepProducts) all_scores<i + 1>(target);
  }

  // ---- weights: rows of the current slice ----

  // Beside a stale reference a score may be too high for a word: then +inf.
  static TIERCEL_INLINE void store_weights(__m512i p, uint16_t* weights, float* sum) {
    p = _mm512_min_epu16(p, _mm512_set1_epi16(0x7f80));
    _mm512_store_si512(weights, p);
    _mm512_store_ps(sum, dot(_mm512_load_ps(sum), p, _mm512_set1_epi16(0x3f80)));
  }
  // The first 16 keys of row r; the others are kTileFloats on.
  static TIERCEL_INLINE const float* row_of(const float* scores, int r) {
    return scores + r / kTileRows * 2 * kTileFloats + r % kTileRows * 16;
  }
  // A row that sees all of the slice.
  TIERCEL_INLINE void row_weights(const Step& s, int r, __m512i& watch) {
    if constexpr (Exp::kNone) return;
    const float* scores = row_of(s.scores, r);
    const __m512i p =
        Exp(s.prepared[r])(_mm512_load_ps(scores), _mm512_load_ps(scores + kTileFloats), watch);
    asm("" : "+v"(watch));  // now: g++ would gather these operations, and spill their operands
    store_weights(p, s.weights + r * kSliceKeys, s.sums + r * 16);
  }
  // All rows of a slice of which some rows do not see all (few slices are), or whose keys have a bias.
  __attribute__((noinline)) void masked_weights(const float* scores, int slice) {
    if constexpr (Exp::kNone) return;
    uint16_t* weights = weights_of(weight_parity_, slice);
    for (int r = 0; r < kRows; ++r) {
      const Visible v = visible(scores, r, slice);
      masked_watch_ = _mm512_add_ps(masked_watch_, _mm512_add_ps(v.a, v.b));
      store_weights(Exp(b_.prepared[r])(v.a, v.b), weights + r * kSliceKeys, b_.sums[r]);
    }
  }
  uint16_t* weights_of(int parity, int slice) { return &b_.weights[parity][slice * kTall][0][0]; }

  struct Visible {
    __m512 a, b;
  };
  // Row r of the scores of a slice of the current block, with their bias, -inf where it does not see.
  Visible visible(const float* scores, int r, int slice) const {
    const int first_key = current_.first + slice * kSliceKeys;
    const int begin = a_.begin[current_.row + r] - first_key;
    const int end = a_.end[current_.row + r] - first_key;
    const float* s = row_of(scores, r);
    Visible v{load_scores(s, 0, begin, end, true),
              load_scores(s + kTileFloats - 16, 16, begin, end, true)};
    if (a_.bias != nullptr) {
      v.a = _mm512_add_ps(v.a, _mm512_loadu_ps(a_.bias + first_key));
      v.b = _mm512_add_ps(v.b, _mm512_loadu_ps(a_.bias + first_key + 16));
    }
    return v;
  }

  // ---- values: P of the block before x V, in units of one slice x one pass ----

  // The i-th product of the unit. Two row tiles share a tile of V and take turns in going first, so
  // that every second tile of P is there already.
  template <int i>
  TIERCEL_INLINE void value_product() {
    constexpr int kColumn = i / kTall;
    constexpr int kTile = kTall == 1 ? 0 : (i + kColumn) % 2;
    if constexpr (i == 0) {
      if (!resident_) begin_pass();
    }
    if constexpr (i == 0 || (kTall == 2 && i % 2 == 1)) {
      tiles_.template load<6, kTile * kTileBytes>(value_weights_, 64);
    }
    if constexpr (i % kTall == 0) {
      tiles_.template load_streaming<7, kColumn * kTileBytes>(values_, 64);
    }
    tiles_.template multiply<kTile * kPassTiles + kColumn, 6, 7>();
    if constexpr (i == kUnitProducts - 1) finish_unit();
  }
  TIERCEL_INLINE void finish_unit() {
    --units_left_;
    values_ += kSliceKeys * kDim;
    value_weights_ += kTall * kTileWords;
    if (--slices_left_ == 0) finish_pass();
  }
  // Out of line: once per block and pass.
  __attribute__((noinline)) void begin_pass() {
    load_out();
    resident_ = true;
  }
  __attribute__((noinline)) void finish_pass() {
    if (kPasses > 1 || previous_.last_of_task) {
      store_out(previous_.row);
      resident_ = false;
    }
    if (++pass_ == kPasses) pass_ = 0;
    slices_left_ = previous_.n_slices;
    values_ += kPassTiles * kTileWords - previous_.n_slices * kSliceKeys * kDim;
    value_weights_ -= previous_.n_slices * kTall * kTileWords;
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
    const bool masked = first_key < all_begin_ || first_key + kSliceKeys > all_end_ || a_.bias != nullptr;
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
    __m512i watch = watch_;
    if (units_left_ >= kPasses) {
      products<2 * kStepProducts>(s, watch);
    } else {
      products<kStepProducts>(s, watch);
    }
    watch_ = watch;
  }
  // The products of scores, then n - kStepProducts of values, and a share of the rows after each.
  template <int n, int i = 0>
  TIERCEL_INLINE void products(const Step& s, __m512i& watch) {
    if constexpr (i < kStepProducts) {
      score_product<i>(s.q, s.keys, s.target);
    } else {
      value_product<(i - kStepProducts) % kUnitProducts>();
    }
#pragma GCC unroll 32
    for (int r = kRows * i / n; r < kRows * (i + 1) / n; ++r) row_weights(s, r, watch);
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
    watch_ = _mm512_setzero_si512();
    masked_watch_ = _mm512_setzero_ps();
    for (int r = 0; r < kRows; ++r) {
      const int row = current_.row + r;
      all_begin_ = a_.begin[row] > all_begin_ ? a_.begin[row] : all_begin_;
      all_end_ = a_.end[row] < all_end_ ? a_.end[row] : all_end_;
      _mm512_store_ps(b_.sums[r], _mm512_setzero_ps());
      b_.sums[r][0] = a_.sum[row];
    }
    // Rows of a window may begin in any slice. One left without would be summed against a reference
    // of 0 that the next superblock knows nothing of.
    const int n_slices = (current_.task_end - current_.task_begin) / kSliceKeys;
    for (int slice = 0; slice < n_slices && !referenced(); ++slice) {
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
    pass_ = 0;
    slices_left_ = previous_.n_slices;
    units_left_ = previous_.n_slices * kPasses;
    value_weights_ = weights_of(weight_parity_ ^ 1, 0);
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
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    const float watch = _mm512_reduce_add_ps(masked_watch_);
    if (watch != watch ||
        _mm512_cmpeq_epi32_mask(_mm512_and_si512(watch_, exponent), exponent) != 0) {
      mark_nan_rows();
    }
  }
  // Bits of floats that are not negative, infinities and NaN included, have the order of integers.
  bool sums_in_range() const {
    __m512i highest = _mm512_setzero_si512();
    for (int r = 0; r < kRows; ++r) {
      highest = _mm512_max_epu32(highest, _mm512_load_si512(b_.sums[r]));
    }
    const __m512i limit = _mm512_castps_si512(_mm512_set1_ps(kSumLimit));
    return _mm512_cmplt_epu32_mask(highest, limit) == 0xffff;
  }

  // Perhaps some score of the task is NaN: the sums of rows with such a score become NaN.
  void mark_nan_rows() {
    current_.n_slices = (current_.task_end - current_.task_begin) / kSliceKeys;
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
  // Of the next unit: its values and weights, and how many there are. Counters lie apart: g++ would
  // count two neighbours in one vector.
  int slices_left_ = 0;  // of the pass
  const uint16_t* values_ = nullptr;
  int units_left_ = 0;  // of the block
  const uint16_t* value_weights_ = nullptr;
  int pass_ = 0;
  bool resident_ = false;  // O of previous_.row is in tmm0-3
  int score_parity_ = 0, weight_parity_ = 0;
  int all_begin_ = 0, all_end_ = 0;
  __m512i watch_ = _mm512_setzero_si512();  // for NaN (attention_prefill_weights.h)
  __m512 masked_watch_ = _mm512_setzero_ps();
};

#undef TIERCEL_INLINE

constexpr Kernel amx_kernel(int tall, void (*attend)(const AttendRows&)) {
  Kernel kernel;
  kernel.row_tile = tall * kTileRows;
  kernel.head_tile = kTileRows;
  kernel.element_bytes = 2;
  kernel.buffer_bytes = sizeof(Buffers);
  kernel.units_per_octave = kUnitsPerOctave;
  kernel.pack = pack_tiles;
  kernel.stage = stage_tiles;
  kernel.attend = attend;
  kernel.store = store_tiles;
  return kernel;
}

}  // namespace
}  // namespace tiercel::cpu::prefill
