// Prefill attention with AMX tiles.
//
// A row tile is 16 consecutive tokens of one query head; a slice is 16 rows x 32 keys; a block is
// up to 8 or 16 slices. Three independent streams run interleaved, slice by slice, one behind the
// other, through all row tiles of the superblock without draining:
//
//   step of slice u     tiles                              vector units
//     scores(u + 1)     tmm4,5 = Q (tmm6) x K (tmm7)
//     weights(u)                                           S[u] -> P[u], bf16
//     values            tmm0-3 += P (tmm6) x V (tmm7),     P of the block before
//                       one pass over that block's slices per 4 tiles of O
//
//   L1   S 2 x 2 KiB | P 2 x 8 or 16 KiB | sums            L2   K, V tiles, read once per row tile
//
// With d <= 64 all of O stays in tmm0-3 while a row tile lasts.
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

constexpr int kRows = 16;
constexpr int kSliceKeys = 32;
constexpr int kTileWords = 512;
constexpr float kSumLimit = 1099511627776.0f;  // 2^40: far from overflow, also times any value

struct Buffers {
  alignas(64) float scores[2][2][kRows][16];               // [parity][16 keys each]
  alignas(64) float spare[2][kRows][16];                   // scores outside the pipeline
  alignas(64) uint16_t weights[2][16][kRows][kSliceKeys];  // [parity][slice]
  alignas(64) float sums[kRows][16];
  alignas(64) float sums_before[kRows][16];  // at the block's start
  alignas(64) float watch[kRows][16];  // of the scores: NaN tells (attention_prefill_weights.h)
};

// Some slices of one row tile.
struct Block {
  int row = -1;  // first row of the tile; -1: no block
  int first = 0, n_slices = 0;
  bool first_of_tile = false, last_of_tile = false;
};

// Walks the blocks of all row tiles in order.
class Blocks {
 public:
  Blocks(const AttendRows& a, int block_slices) : a_(a), block_keys_(block_slices * kSliceKeys) {
    enter(0);
  }

  Block next() {
    if (row_ >= a_.n_rows) return {};
    Block b;
    b.row = row_;
    b.first = key_;
    const int aligned = key_ / block_keys_ * block_keys_ + block_keys_;
    const int end = aligned < end_ ? aligned : end_;
    b.n_slices = (end - key_) / kSliceKeys;
    b.first_of_tile = key_ == begin_;
    b.last_of_tile = end == end_;
    key_ = end;
    if (b.last_of_tile) enter(row_ + kRows);
    return b;
  }

 private:
  // The first row tile from `row` on that sees anything, and the slices it sees.
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

template <typename Tiles, typename Exp, int kHalves>
class Pipeline {
 public:
  Pipeline(const AttendRows& a, Buffers& buffers) : a_(a), b_(buffers) {}

  void run() {
    Blocks blocks(a_, kBlockSlices);
    Block next = blocks.next();
    if (next.row < 0) return;
    tiles_.configure();
    start_scores(next);
    while (next.row >= 0) {
      current_ = next;
      next = blocks.next();
      if (current_.first_of_tile) enter_tile();
      begin_block();
      for (int slice = 0; slice < current_.n_slices; ++slice) {
        const bool last = slice + 1 == current_.n_slices;
        aim_scores(last ? next : current_, last ? 0 : slice + 1);
        step(slice);
      }
      while (unit_ < n_units_) values_unit();
      end_block();
    }
    begin_block();  // of nothing: what is left are the values of the last block
    while (unit_ < n_units_) values_unit();
    tiles_.release();
  }

 private:
  static constexpr int kDim = 32 * kHalves;
  static constexpr int kOutTiles = 2 * kHalves;
  // O tiles per pass: at most four registers, and all passes alike.
  static constexpr int kPassTiles = kOutTiles % 4 == 0 ? 4 : kOutTiles % 3 == 0 ? 3 : 2;
  static constexpr int kPasses = kOutTiles / kPassTiles;
  // Several passes load and store O once per block, so their blocks are longer.
  static constexpr int kBlockSlices = kPasses == 1 ? 8 : 16;
  static constexpr int kRowStride = kDim * 4;  // of O, in bytes

  // ---- scores: the slice that aim_scores chose, into S[score_parity_] ----

  void aim_scores(const Block& block, int slice) {
    score_parity_ ^= 1;
    if (block.row < 0) {
      score_q_ = nullptr;
      return;
    }
    score_q_ = static_cast<const uint16_t*>(a_.q) + int64_t{block.row} * kDim;
    score_keys_ = keys_of(block, slice);
  }
  const uint16_t* keys_of(const Block& block, int slice) const {
    return static_cast<const uint16_t*>(a_.keys) + int64_t{block.first + slice * kSliceKeys} * kDim;
  }

  // One of the slice's 2 * kHalves products: 16 of its keys, 32 of the channels. The last of each
  // 16 keys stores S.
  template <int kHalf, int kGroup>
  void score_product(float (*target)[kRows][16]) {
    if constexpr (kHalf == 0) tiles_.template zero<4 + kGroup>();
    if constexpr (kGroup == 0) tiles_.template load<6>(score_q_ + 32 * kHalf, kDim * 2);
    tiles_.template load_streaming<7>(score_keys_ + (kGroup * kHalves + kHalf) * kTileWords, 64);
    tiles_.template multiply<4 + kGroup, 6, 7>();
    if constexpr (kHalf == kHalves - 1) tiles_.template store<4 + kGroup>(target[kGroup], 64);
  }
  template <int kHalf = 0>
  void all_scores(float (*target)[kRows][16]) {
    score_product<kHalf, 0>(target);
    score_product<kHalf, 1>(target);
    if constexpr (kHalf + 1 < kHalves) all_scores<kHalf + 1>(target);
  }
  void start_scores(const Block& block) {
    aim_scores(block, 0);
    all_scores(b_.scores[score_parity_]);
  }

  // ---- weights: rows of the current slice ----

  template <bool kMasked>
  void row_weights(float (*scores)[kRows][16], uint16_t (*weights)[kSliceKeys], int first_key,
                   int from, int to) {
    for (int r = from; r < to; ++r) {
      const int begin = a_.begin[current_.row + r] - first_key;
      const int end = a_.end[current_.row + r] - first_key;
      const __m512 a = load_scores(scores[0][r], 0, begin, end, kMasked);
      const __m512 b = load_scores(scores[1][r] - 16, 16, begin, end, kMasked);
      _mm512_store_ps(b_.watch[r], _mm512_add_ps(_mm512_load_ps(b_.watch[r]), _mm512_add_ps(a, b)));
      // Beside a stale reference a score may be too high for a word: then +inf.
      const __m512i p = _mm512_min_epu16(Exp(used_[r])(a, b), _mm512_set1_epi16(0x7f80));
      _mm512_store_si512(weights[r], p);
      const __m512i ones = _mm512_set1_epi16(0x3f80);
      _mm512_store_ps(b_.sums[r], dot(_mm512_load_ps(b_.sums[r]), p, ones));
    }
  }
  // Slices at the edge of what a row sees. Out of line: they are few, and code is not free.
  __attribute__((noinline)) void masked_weights(float (*scores)[kRows][16],
                                                uint16_t (*weights)[kSliceKeys], int first_key,
                                                int from, int to) {
    row_weights<true>(scores, weights, first_key, from, to);
  }
  void row_weights(float (*scores)[kRows][16], uint16_t (*weights)[kSliceKeys], int first_key,
                   int from, int to) {
    if (first_key >= all_begin_ && first_key + kSliceKeys <= all_end_) {
      row_weights<false>(scores, weights, first_key, from, to);
    } else {
      masked_weights(scores, weights, first_key, from, to);
    }
  }

  // ---- values: P of the block before x V, in units of one slice x one pass ----

  // The kTile-th tile of O of the unit. tmm6 is shared with Q: kLoad when Q may be in it.
  template <int kTile, bool kLoad>
  void value_product() {
    const int pass = unit_ / previous_.n_slices, slice = unit_ % previous_.n_slices;
    if constexpr (kTile == 0) {
      if (slice == 0 && !resident_) load_out(pass);
    }
    if constexpr (kTile == 0 || kLoad) {
      tiles_.template load<6>(b_.weights[weight_parity_ ^ 1][slice], 64);
    }
    const int64_t key = previous_.first + slice * kSliceKeys;
    tiles_.template load_streaming<7>(static_cast<const uint16_t*>(a_.values) + key * kDim +
                                          (pass * kPassTiles + kTile) * kTileWords,
                                      64);
    tiles_.template multiply<kTile, 6, 7>();
    if constexpr (kTile == kPassTiles - 1) {
      resident_ = kPasses == 1;
      if (slice + 1 == previous_.n_slices && (kPasses > 1 || previous_.last_of_tile)) {
        store_out(pass, previous_.row);
        resident_ = false;
      }
      ++unit_;
    }
  }
  template <int kTile = 0>
  void values_unit() {
    value_product<kTile, false>();
    if constexpr (kTile + 1 < kPassTiles) values_unit<kTile + 1>();
  }

  float* out_tiles(int pass, int row) const {
    return a_.out + int64_t{row} * kDim + pass * kPassTiles * 16;
  }
  template <int kTile = 0>
  void load_out(int pass) {
    tiles_.template load<kTile>(out_tiles(pass, previous_.row) + 16 * kTile, kRowStride);
    if constexpr (kTile + 1 < kPassTiles) load_out<kTile + 1>(pass);
  }
  template <int kTile = 0>
  void store_out(int pass, int row) {
    tiles_.template store<kTile>(out_tiles(pass, row) + 16 * kTile, kRowStride);
    if constexpr (kTile + 1 < kPassTiles) store_out<kTile + 1>(pass, row);
  }

  // ---- the interleaved step ----

  void step(int slice) {
    if (score_q_ != nullptr && unit_ + kPasses <= n_units_) {
      interleaved_step<true>(slice);
    } else if (score_q_ != nullptr) {
      interleaved_step<false>(slice);
    } else {
      weights_share(slice, 0, 1, 1);
    }
  }
  // Rows [kRows * i / n, kRows * j / n) of the current slice.
  void weights_share(int slice, int i, int j, int n) {
    row_weights(b_.scores[score_parity_ ^ 1], b_.weights[weight_parity_][slice],
                current_.first + slice * kSliceKeys, kRows * i / n, kRows * j / n);
  }
  // Per 32 channels two products of scores and two of values, and some rows after each.
  template <bool kValues, int kHalf = 0>
  void interleaved_step(int slice) {
    constexpr int kFirst = 4 * kHalf, kShares = 4 * kHalves;
    score_product<kHalf, 0>(b_.scores[score_parity_]);
    weights_share(slice, kFirst, kFirst + 1, kShares);
    score_product<kHalf, 1>(b_.scores[score_parity_]);
    weights_share(slice, kFirst + 1, kFirst + 2, kShares);
    if constexpr (kValues) value_product<2 * kHalf % kPassTiles, true>();
    weights_share(slice, kFirst + 2, kFirst + 3, kShares);
    if constexpr (kValues) value_product<(2 * kHalf + 1) % kPassTiles, false>();
    weights_share(slice, kFirst + 3, kFirst + 4, kShares);
    if constexpr (kHalf + 1 < kHalves) interleaved_step<kValues, kHalf + 1>(slice);
  }

  // ---- references ----

  float use(float reference) const { return reference == kNothing ? 0.0f : reference; }

  // max[r] over what row r sees of one slice, whose scores are in `spare`.
  void slice_max(int first_key, float* max) {
    for (int r = 0; r < kRows; ++r) {
      const int begin = a_.begin[current_.row + r] - first_key;
      const int end = a_.end[current_.row + r] - first_key;
      const __m512 a = load_scores(b_.spare[0][r], 0, begin, end, true);
      const __m512 b = load_scores(b_.spare[1][r] - 16, 16, begin, end, true);
      const float highest = _mm512_reduce_max_ps(_mm512_max_ps(a, b));
      if (highest > max[r]) max[r] = highest;
    }
  }
  void spare_scores(const Block& block, int slice) {
    score_q_ = static_cast<const uint16_t*>(a_.q) + int64_t{block.row} * kDim;
    score_keys_ = keys_of(block, slice);
    all_scores(b_.spare);
  }

  // A new row tile: what its rows see in common, and a reference for rows that have none. A masked
  // key never sets it: too high a reference is the one way to underflow.
  void enter_tile() {
    all_begin_ = 0;
    all_end_ = a_.n_keys;
    for (int r = 0; r < kRows; ++r) {
      const int row = current_.row + r;
      all_begin_ = a_.begin[row] > all_begin_ ? a_.begin[row] : all_begin_;
      all_end_ = a_.end[row] < all_end_ ? a_.end[row] : all_end_;
      _mm512_store_ps(b_.sums[r], _mm512_setzero_ps());
      _mm512_store_ps(b_.watch[r], _mm512_setzero_ps());
      b_.sums[r][0] = a_.sum[row];
    }
    for (int slice = 0; slice < current_.n_slices && !referenced(); ++slice) {
      float max[kRows];
      for (float& m : max) m = kNothing;
      spare_scores(current_, slice);
      slice_max(current_.first + slice * kSliceKeys, max);
      for (int r = 0; r < kRows; ++r) {
        float& reference = a_.reference[current_.row + r];
        if (reference == kNothing && max[r] > kNothing) reference = octave_above(max[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) used_[r] = use(a_.reference[current_.row + r]);
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
    unit_ = 0;
    n_units_ = previous_.row < 0 ? 0 : previous_.n_slices * kPasses;
    for (int r = 0; r < kRows; ++r) {
      _mm512_store_ps(b_.sums_before[r], _mm512_load_ps(b_.sums[r]));
    }
  }

  void end_block() {
    if (!sums_in_range()) repair();
    previous_ = current_;
    if (!current_.last_of_tile) return;
    for (int r = 0; r < kRows; ++r) {
      const float watch = _mm512_reduce_add_ps(_mm512_load_ps(b_.watch[r]));
      const float sum = _mm512_reduce_add_ps(_mm512_load_ps(b_.sums[r]));
      a_.sum[current_.row + r] = watch != watch ? watch : sum;
    }
  }
  bool sums_in_range() const {
    __mmask16 beyond = 0;
    for (int r = 0; r < kRows; ++r) {
      beyond |=
          _mm512_cmp_ps_mask(_mm512_load_ps(b_.sums[r]), _mm512_set1_ps(kSumLimit), _CMP_NLT_UQ);
    }
    return beyond == 0;
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
    if (resident_) store_out(0, current_.row);
    resident_ = false;
    float max[kRows];
    for (float& m : max) m = kNothing;
    for (int slice = 0; slice < current_.n_slices; ++slice) {
      spare_scores(current_, slice);
      slice_max(current_.first + slice * kSliceKeys, max);
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
        used_[r] = use(raised);
      }
    }
    for (int slice = 0; slice < current_.n_slices; ++slice) {
      spare_scores(current_, slice);
      row_weights(b_.spare, b_.weights[weight_parity_][slice], current_.first + slice * kSliceKeys,
                  0, kRows);
    }
  }

  const AttendRows& a_;
  Buffers& b_;
  Tiles tiles_;
  Block current_, previous_;
  const uint16_t* score_q_ = nullptr;  // null: no slice is left
  const uint16_t* score_keys_ = nullptr;
  int score_parity_ = 0, weight_parity_ = 0;
  int unit_ = 0, n_units_ = 0;
  bool resident_ = false;  // O of previous_.row is in tmm0-3
  int all_begin_ = 0, all_end_ = 0;
  float used_[kRows] = {};
};

template <typename Tiles, typename Exp>
void attend_rows(const AttendRows& a) {
  Buffers& buffers = *static_cast<Buffers*>(a.buffer);
  switch (a.padded_dim / 32) {  // see padded_dim()
    case 2: return Pipeline<Tiles, Exp, 2>(a, buffers).run();
    case 3: return Pipeline<Tiles, Exp, 3>(a, buffers).run();
    case 4: return Pipeline<Tiles, Exp, 4>(a, buffers).run();
    case 6: return Pipeline<Tiles, Exp, 6>(a, buffers).run();
    case 8: return Pipeline<Tiles, Exp, 8>(a, buffers).run();
  }
}

template <typename Tiles>
void attend_rows(const AttendRows& a) {
  if (a.exact_exp) {
    attend_rows<Tiles, Polynomial>(a);
  } else {
    attend_rows<Tiles, Lookup>(a);
  }
}

template <typename Tiles>
constexpr Kernel amx_kernel() {
  Kernel kernel;
  kernel.row_tile = kRows;
  kernel.head_tile = kRows;
  kernel.element_bytes = 2;
  kernel.buffer_bytes = sizeof(Buffers);
  kernel.pack = pack_tiles;
  kernel.stage = stage_tiles;
  kernel.attend = attend_rows<Tiles>;
  kernel.store = store_tiles;
  return kernel;
}

}  // namespace

constinit const Kernel kAmxKernel = amx_kernel<HardwareTiles>();
constinit const Kernel kAmxEmulatedKernel = amx_kernel<EmulatedTiles>();

}  // namespace tiercel::cpu::prefill
