// Prefill attention with AMX tiles, included by attention_prefill_amx.cpp and
// tools/bench/attention_prefill_parts_amx.cpp; everything in it has internal linkage (cpu/isa.h).
//
// A task is two tiles of 16 rows (consecutive tokens of one query head each) against all keys that
// they see; a block is a task x 128 keys; a slice x 64, or 32 where heads are wide; a strip, what
// one tile of P or V holds, x 32. Three independent streams run interleaved, slice by slice, one
// behind the other, through all tasks of the superblock without draining:
//
//   step of slice u     tiles                                    vector units
//     scores(u + 1)     tmm4,5 = Q (tmm0-3) x K (tmm6,7)
//     weights(u)                                                 S[u] -> P[u], bf16, some rows
//     values            O (tmm0,1 or 2,3) += P (tmm4,5) x V      after each product
//                       (tmm6,7): the block before, one
//                       column of 16 channels after the other
//
//   L1   S 2 x 8 KiB | P 2 x 8 KiB | Q, O | sums            L2   K, V tiles, read once per task
//
// Bound by the multiplier, 16 cycles per product of two tiles, if the order of instructions lets
// it: cpu/tile_schedule.h. A step is one straight run of code: with a call per share of rows it was
// three times the instructions, half of them constants set up again after vzeroupper. Scores come
// first in it, so a run of value products lies between the last of them and their use.
//
// No running maximum: a row's reference lies some octaves above the maximum over the first slice
// where it sees a key. bf16 and fp32 have the same exponents, so weights far below 1 cost no
// precision. All weights of a block are or-ed together: one of 2 or more, or one that is not
// finite, has a bit that others have not. Then references are raised and the block's weights are
// made again, before their use. A NaN that passes for a weight of 0 cannot come from finite scores;
// where the largest numbers among Q and K leave that open, all slices go the way of those that some
// rows do not see.
#pragma once

#include "cpu/attention_prefill.h"
#include "cpu/attention_prefill_steps.h"
#include "cpu/attention_prefill_weights.h"
#include "cpu/stage.h"
#include "cpu/tile.h"

namespace tiercel::cpu::prefill {
namespace {

constexpr int kTileWords = 512;
constexpr int kTileBytes = 1024;
constexpr int kTileFloats = 256;
constexpr int kStripKeys = 32;
constexpr int kMostSliceKeys = 64;
// A reference lies so far above what it was taken from. More: values below 2^-86 would be lost, as
// 0 is all there is below 2^-126. Less: the block's weights are made again more often.
constexpr float kHeadroom = 40 * kUnitsPerOctave;

template <int kBlockKeys>
struct Buffers {
  // [parity][row tile][16 keys each][row][key]
  alignas(64) float scores[2][kRows * kMostSliceKeys];
  // [parity][strip, row tile][row][key]
  alignas(64) uint16_t weights[2][kBlockKeys / kStripKeys * kRowTiles][kTileRows][kStripKeys];
  alignas(64) float sums[2][kRows][16];
  alignas(64) float prepared[kRows];                // references, as Exp wants them
  alignas(64) float spare[kRows * kMostSliceKeys];  // scores outside the pipeline
};

// Steps are straight code, except under sanitizers, where that would take minutes to compile.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TIERCEL_INLINE __attribute__((noinline))
#else
#define TIERCEL_INLINE __attribute__((always_inline))
#endif

// What out-of-line functions need of a task comes to them by value: whatever they had the address
// of, g++ would load again behind every tile instruction, which may write anything.
template <typename Tiles, typename Exp, int kHalves, int kSliceKeys, int kBlockKeys>
class Pipeline {
 public:
  using Buffers = prefill::Buffers<kBlockKeys>;

  Pipeline(const AttendRows& a, Buffers& buffers) : a_(a), b_(buffers) {}

  void run() {
    Task task = task_from(0);
    if (task.row < 0) return;
    tiles_.configure();
    Values values;
    int parity = 0;        // of the scores in hand
    int block_parity = 0;  // of the weights and sums in hand
    bool loaded = false;   // the first tiles of the step in hand
    all_scores(task.row, task.begin, b_.scores[parity]);
    while (task.row >= 0) {
      const Task next = task_from(task.row + kRows);
      if (enter_task(task, b_.sums[block_parity ^ 1])) loaded = false;
      __m512 watch = _mm512_setzero_ps();  // the sum of all masked scores: is it a number?
      int key = task.begin;
      while (key < task.end) {
        const Block block = block_from(task, key, block_parity);
        __m512i seen = _mm512_setzero_si512();  // all weights, or-ed
        for (; key < block.end; key += kSliceKeys, parity ^= 1) {
          const Scored one = scored(task, next, key + kSliceKeys);
          const Scored two = scored(task, next, key + 2 * kSliceKeys);
          const Step step{.target = b_.scores[parity ^ 1],
                          .scores = b_.scores[parity],
                          .weights = weights_of(block, key),
                          .sums_from = key == block.first ? block.sums_before[0] : block.sums[0],
                          .sums = block.sums[0],
                          .prepared = b_.prepared,
                          .q = queries_of(one.row),
                          .keys = keys_from(one.key),
                          .next_q = queries_of(two.row),
                          .next_keys = keys_from(two.key),
                          .value_weights = values.weights,
                          .values = values.values,
                          .out = values.out};
          if (key < task.all_begin || key + kSliceKeys > task.all_end) {
            all_scores(one.row, one.key, step.target);
            const Masked m = masked_weights(task.row, key, step, {seen, watch});
            seen = m.seen;
            watch = m.watch;
            loaded = false;
          } else if (values.n_strips == kBlockStrips && values.n_columns >= kStepColumns) {
            if (!loaded) run_first_loads<kScoresAndValues>(step);
            run_steps<kScoresAndValues, true>(step, seen);
            values.advance(kStepColumns);
            // The step behind it scores `two`, where that is a slice at all.
            loaded = key + 2 * kSliceKeys < task.end || next.end - next.begin > kSliceKeys;
          } else {
            run_first_loads<kScoresOnly>(step);
            run_steps<kScoresOnly, true>(step, seen);
            loaded = false;
          }
        }
        if (values.n_columns > 0) {
          finish_columns(values);
          loaded = false;
        }
        if (!in_range(seen)) {
          watch = repair(task, block, watch);
          loaded = false;
        }
        values = {.weights = weights_of(block, block.first),
                  .values = static_cast<const uint16_t*>(a_.values) + int64_t{block.first} * kDim,
                  .out = a_.out + int64_t{task.row} * kDim,
                  .n_strips = (block.end - block.first) / kStripKeys,
                  .n_columns = kColumns};
        block_parity ^= 1;
      }
      if (leave_task(task, b_.sums[block_parity ^ 1], watch)) loaded = false;
      task = next;
    }
    finish_columns(values);
    tiles_.release();
  }

 private:
  using Sums = float[kRows][16];

  static constexpr int kDim = 32 * kHalves;
  static constexpr int kColumns = 2 * kHalves;     // of O, 16 channels each
  static constexpr int kGroups = kSliceKeys / 16;  // of keys, a tile of scores each
  static constexpr int kStrips = kSliceKeys / kStripKeys;
  static constexpr int kBlockStrips = kBlockKeys / kStripKeys;
  static constexpr int kStepColumns = kColumns * kSliceKeys / kBlockKeys;
  static constexpr int kRowBytes = kDim * 4;  // of O
  static_assert(kColumns * kSliceKeys % kBlockKeys == 0 && kSliceKeys <= kMostSliceKeys);
  static constexpr auto kScoresOnly = step_schedule<kHalves, kGroups, kBlockStrips, 0>();
  static constexpr auto kScoresAndValues =
      step_schedule<kHalves, kGroups, kBlockStrips, kStepColumns>();

  // Rows row .. row + kRows. Some of them see the keys begin .. end, whole slices; all of them see
  // those from all_begin to all_end.
  struct Task {
    int row = -1;
    int begin = 0, end = 0;
    int all_begin = 0, all_end = 0;
  };
  // Keys first .. end of a task, whole slices. Blocks begin at multiples of their size, so that a
  // key's place in one does not depend on the task.
  struct Block {
    int first, end;
    uint16_t* weights;
    Sums& sums;         // once it is done
    Sums& sums_before;  // at its start
  };
  // What is left to do of P x V of a block: n_columns columns, of which `values` and `out` are the
  // first.
  struct Values {
    const uint16_t* weights = nullptr;
    const uint16_t* values = nullptr;
    float* out = nullptr;
    int n_strips = 0;
    int n_columns = 0;

    void advance(int n) {
      values += n * kTileWords;
      out += n * 16;
      n_columns -= n;
    }
  };
  // What the straight run of code of a step keeps in registers.
  struct Step {
    float* target;        // of the scores
    const float* scores;  // of this slice
    uint16_t* weights;
    const float* sums_from;  // [kRows][16]
    float* sums;
    const float* prepared;
    const uint16_t* q;
    const uint16_t* keys;
    const uint16_t* next_q;  // of the step after this one
    const uint16_t* next_keys;
    const uint16_t* value_weights;
    const uint16_t* values;  // from the step's first column on, as out
    float* out;
  };

  // The slice that a step scores: of this task or, where that has none left, of the next one. After
  // the last slice of all, some scores that nobody reads.
  struct Scored {
    int row, key;
  };
  static Scored scored(const Task& task, const Task& next, int key) {
    if (key < task.end) return {task.row, key};
    const int over = key - task.end;
    if (next.row >= 0 && next.begin + over < next.end) return {next.row, next.begin + over};
    return {task.row, task.begin};
  }
  const uint16_t* queries_of(int row) const {
    return static_cast<const uint16_t*>(a_.q) + int64_t{row} * kDim;
  }
  const uint16_t* keys_from(int key) const {
    return static_cast<const uint16_t*>(a_.keys) + int64_t{key} * kDim;
  }
  static uint16_t* weights_of(const Block& block, int key) {
    return block.weights + (key - block.first) / kStripKeys * kRowTiles * kTileWords;
  }
  Block block_from(const Task& task, int key, int parity) {
    const int aligned = key / kBlockKeys * kBlockKeys + kBlockKeys;
    return {key, aligned < task.end ? aligned : task.end, &b_.weights[parity][0][0][0],
            b_.sums[parity], b_.sums[parity ^ 1]};
  }

  // The first task from `row` on that sees anything.
  Task task_from(int row) const {
    for (; row < a_.n_rows; row += kRows) {
      __m512i begin = _mm512_set1_epi32(a_.n_keys), end = _mm512_setzero_si512();
      __m512i all_begin = end, all_end = begin;
      for (int r = row; r < row + kRows; r += 16) {
        const __m512i from = _mm512_loadu_si512(a_.begin + r), to = _mm512_loadu_si512(a_.end + r);
        const __mmask16 sees = _mm512_cmplt_epi32_mask(from, to);
        begin = _mm512_mask_min_epi32(begin, sees, begin, from);
        end = _mm512_mask_max_epi32(end, sees, end, to);
        all_begin = _mm512_max_epi32(all_begin, from);
        all_end = _mm512_min_epi32(all_end, to);
      }
      Task task;
      task.begin = _mm512_reduce_min_epi32(begin) / kSliceKeys * kSliceKeys;
      task.end = (_mm512_reduce_max_epi32(end) + kSliceKeys - 1) / kSliceKeys * kSliceKeys;
      if (task.begin >= task.end) continue;
      task.row = row;
      task.all_begin = _mm512_reduce_max_epi32(all_begin);
      task.all_end = a_.bias != nullptr || !a_.finite_scores ? 0 : _mm512_reduce_min_epi32(all_end);
      return task;
    }
    return {};
  }

  // ---- weights: rows of a slice ----

  static TIERCEL_INLINE __m512 store_weights(__m512i p, uint16_t* weights, __m512 sum) {
    _mm512_store_si512(weights, p);
    return dot(sum, p, _mm512_set1_epi16(0x3f80));
  }
  // The first 16 keys of row r; the others are kTileFloats on.
  static TIERCEL_INLINE const float* row_of(const float* scores, int r) {
    return scores + r / kTileRows * kGroups * kTileFloats + r % kTileRows * 16;
  }
  // The weights of row r of the first strip; those of the next one are kRowTiles tiles on.
  static TIERCEL_INLINE uint16_t* row_of(uint16_t* weights, int r) {
    return weights + r * kStripKeys;
  }
  // A row that sees all of the slice.
  static TIERCEL_INLINE void row_weights(const Step& s, int r, __m512i& seen) {
    if constexpr (Exp::kNone) return;
    const float* scores = row_of(s.scores, r);
    uint16_t* weights = row_of(s.weights, r);
    const Exp exp(s.prepared[r]);
    __m512 sum = _mm512_load_ps(s.sums_from + r * 16);
#pragma GCC unroll 2
    for (int strip = 0; strip < kStrips; ++strip) {
      const float* keys = scores + strip * 2 * kTileFloats;
      const __m512i p = exp(_mm512_load_ps(keys), _mm512_load_ps(keys + kTileFloats));
      seen = _mm512_or_si512(seen, p);
      asm("" : "+v"(seen));  // now: g++ would gather these operations, and spill their operands
      sum = store_weights(p, weights + strip * kRowTiles * kTileWords, sum);
    }
    _mm512_store_ps(s.sums + r * 16, sum);
  }

  struct Masked {
    __m512i seen;
    __m512 watch;
  };
  // All rows of a slice of which some rows do not see all (few slices are), or whose keys have a
  // bias.
  __attribute__((noinline)) Masked masked_weights(int row, int key, Step s, Masked m) {
    if constexpr (Exp::kNone) return m;
    for (int r = 0; r < kRows; ++r) {
      uint16_t* weights = row_of(s.weights, r);
      const Exp exp(s.prepared[r]);
      __m512 sum = _mm512_load_ps(s.sums_from + r * 16);
      for (int strip = 0; strip < kStrips; ++strip) {
        const Visible v = visible(s.scores, row, r, key, strip);
        m.watch = _mm512_add_ps(m.watch, _mm512_add_ps(v.a, v.b));
        // Too high a score for a word: then +inf.
        const __m512i p = _mm512_min_epu16(exp(v.a, v.b), _mm512_set1_epi16(0x7f80));
        m.seen = _mm512_or_si512(m.seen, p);
        sum = store_weights(p, weights + strip * kRowTiles * kTileWords, sum);
      }
      _mm512_store_ps(s.sums + r * 16, sum);
    }
    return m;
  }

  struct Visible {
    __m512 a, b;
  };
  // Row row + r of the scores of a strip of the slice from `key` on, with their bias, -inf where it
  // does not see.
  Visible visible(const float* scores, int row, int r, int key, int strip) const {
    const int first_key = key + strip * kStripKeys;
    const int begin = a_.begin[row + r] - first_key;
    const int end = a_.end[row + r] - first_key;
    const float* s = row_of(scores, r) + strip * 2 * kTileFloats;
    Visible v{load_scores(s, 0, begin, end, true),
              load_scores(s + kTileFloats - 16, 16, begin, end, true)};
    if (a_.bias != nullptr) {
      v.a = _mm512_add_ps(v.a, _mm512_loadu_ps(a_.bias + first_key));
      v.b = _mm512_add_ps(v.b, _mm512_loadu_ps(a_.bias + first_key + 16));
    }
    return v;
  }

  // ---- tiles: the interleaved step, and its parts alone ----

  // Follows a schedule; with weights, a share of the rows after each product.
  template <const auto& kSchedule, bool kWeights, int i = 0, int n_products = 0>
  TIERCEL_INLINE void run_steps(const Step& s, __m512i& seen) {
    if constexpr (i < kSchedule.n_steps) {
      constexpr TileStep kStep = kSchedule.steps[i];
      tile_step<kStep.action, kStep.tile, kStep.a, kStep.b, kStep.place.of, kStep.place.tile,
                kStep.of_next_run>(s);
      constexpr bool kProduct = kStep.action == TileAction::kMultiply;
      if constexpr (kWeights && kProduct) {
        constexpr int n = kSchedule.kProducts;
#pragma GCC unroll 32
        for (int r = kRows * n_products / n; r < kRows * (n_products + 1) / n; ++r) {
          row_weights(s, r, seen);
        }
      }
      run_steps<kSchedule, kWeights, i + 1, n_products + kProduct>(s, seen);
    }
  }
  template <const auto& kSchedule, int i = 0>
  TIERCEL_INLINE void run_first_loads(const Step& s) {
    if constexpr (i < kSchedule.n_first_loads) {
      constexpr TileStep kStep = kSchedule.first_loads[i];
      tile_step<kStep.action, kStep.tile, kStep.a, kStep.b, kStep.place.of, kStep.place.tile,
                false>(s);
      run_first_loads<kSchedule, i + 1>(s);
    }
  }
  template <TileAction kAction, int kTile, int kA, int kB, int kOf, int i, bool kNext>
  TIERCEL_INLINE void tile_step(const Step& s) {
    if constexpr (kAction == TileAction::kZero) {
      tiles_.template zero<kTile>();
    } else if constexpr (kAction == TileAction::kMultiply) {
      tiles_.template multiply<kTile, kA, kB>();
    } else if constexpr (kOf == kOfQueries) {
      constexpr int kPlace = i / kHalves * kTileRows * kDim + i % kHalves * 32;
      tiles_.template load<kTile, kPlace * 2>(kNext ? s.next_q : s.q, kDim * 2);
    } else if constexpr (kOf == kOfKeys) {
      tiles_.template load_streaming<kTile, i * kTileBytes>(kNext ? s.next_keys : s.keys, 64);
    } else if constexpr (kOf == kOfScores) {
      tiles_.template store<kTile, i * kTileBytes>(s.target, 64);
    } else if constexpr (kOf == kOfWeights) {
      tiles_.template load<kTile, i * kTileBytes>(s.value_weights, 64);
    } else if constexpr (kOf == kOfValues) {
      tiles_.template load_streaming<kTile, i * kTileBytes>(s.values, 64);
    } else if constexpr (kOf == kOfOut) {
      constexpr int kPlace = (i / kColumns * kTileRows * kDim + i % kColumns * 16) * 4;
      if constexpr (kAction == TileAction::kLoadSum) {
        tiles_.template load<kTile, kPlace>(s.out, kRowBytes);
      } else {
        tiles_.template store<kTile, kPlace>(s.out, kRowBytes);
      }
    }
  }

  __attribute__((noinline)) void all_scores(int row, int key, float* target) {
    Step s{};
    s.target = target;
    s.q = queries_of(row);
    s.keys = keys_from(key);
    s.next_q = s.q;
    s.next_keys = s.keys;
    __m512i seen = _mm512_setzero_si512();
    run_first_loads<kScoresOnly>(s);
    run_steps<kScoresOnly, false>(s, seen);
  }
  // The columns that no step has taken: all of them where the block is not a whole one.
  __attribute__((noinline)) void finish_columns(Values values) {
    for (; values.n_columns > 0; values.advance(1)) {
      const uint16_t* weights = values.weights;
      const uint16_t* tiles = values.values;
      tiles_.template load<0>(values.out, kRowBytes);
      tiles_.template load<1, kTileRows * kRowBytes>(values.out, kRowBytes);
      for (int strip = 0; strip < values.n_strips; ++strip) {
        tiles_.template load_streaming<6>(tiles, 64);
        tiles_.template load<4>(weights, 64);
        tiles_.template multiply<0, 4, 6>();
        tiles_.template load<5, kTileBytes>(weights, 64);
        tiles_.template multiply<1, 5, 6>();
        tiles += kStripKeys * kDim;
        weights += kRowTiles * kTileWords;
      }
      tiles_.template store<0>(values.out, kRowBytes);
      tiles_.template store<1, kTileRows * kRowBytes>(values.out, kRowBytes);
    }
  }

  // ---- references ----

  void prepare(int row, int r) {
    const float reference = a_.reference[row + r];
    b_.prepared[r] = Exp::prepared(reference == kNothing ? 0.0f : reference);
  }

  // max[r] over what row r of a task sees of a slice, whose scores are in `spare`.
  void slice_max(int row, int key, float* max) {
    for (int r = 0; r < kRows; ++r) {
      for (int strip = 0; strip < kStrips; ++strip) {
        const Visible v = visible(b_.spare, row, r, key, strip);
        const float highest = _mm512_reduce_max_ps(_mm512_max_ps(v.a, v.b));
        if (highest > max[r]) max[r] = highest;
      }
    }
  }

  // Sums as the superblock before left them, and a reference for every row. True if tiles were
  // used.
  bool enter_task(const Task& task, Sums& sums) {
    for (int r = 0; r < kRows; ++r) {
      _mm512_store_ps(sums[r], _mm512_zextps128_ps512(_mm_load_ss(a_.sum + task.row + r)));
    }
    const bool find = !referenced(task.row);
    if (find) find_references(task);
    for (int r = 0; r < kRows; ++r) prepare(task.row, r);
    return find;
  }
  // Every row that sees a key has a reference.
  bool referenced(int row) const {
    __mmask16 without = 0;
    for (int r = row; r < row + kRows; r += 16) {
      const __mmask16 sees =
          _mm512_cmplt_epi32_mask(_mm512_loadu_si512(a_.begin + r), _mm512_loadu_si512(a_.end + r));
      without |= _mm512_mask_cmp_ps_mask(sees, _mm512_loadu_ps(a_.reference + r),
                                         _mm512_set1_ps(kNothing), _CMP_EQ_OQ);
    }
    return without == 0;
  }
  // Rows of a window may begin in any slice. One left without would be summed against a reference
  // of 0 that the next superblock knows nothing of. A masked key never sets one: too high a
  // reference is the one way to underflow.
  __attribute__((noinline)) void find_references(Task task) {
    for (int key = task.begin; key < task.end && !referenced(task.row); key += kSliceKeys) {
      float max[kRows];
      for (float& m : max) m = kNothing;
      all_scores(task.row, key, b_.spare);
      slice_max(task.row, key, max);
      for (int r = 0; r < kRows; ++r) {
        float& reference = a_.reference[task.row + r];
        if (reference == kNothing && max[r] > kNothing)
          reference = octave_above(max[r]) + kHeadroom;
      }
    }
  }

  // True if tiles were used.
  bool leave_task(const Task& task, const Sums& sums, __m512 watch) {
    for (int r = 0; r < kRows; ++r) {
      a_.sum[task.row + r] = _mm512_reduce_add_ps(_mm512_load_ps(sums[r]));
    }
    const float all = _mm512_reduce_add_ps(watch);
    if (all != all) mark_nan_rows(task);
    return all != all;
  }
  // Perhaps some score of the task is NaN: the sums of rows with such a score become NaN.
  __attribute__((noinline)) void mark_nan_rows(Task task) {
    for (int key = task.begin; key < task.end; key += kSliceKeys) {
      all_scores(task.row, key, b_.spare);
      for (int r = 0; r < kRows; ++r) {
        for (int strip = 0; strip < kStrips; ++strip) {
          const Visible v = visible(b_.spare, task.row, r, key, strip);
          const float watch = _mm512_reduce_add_ps(_mm512_add_ps(v.a, v.b));
          if (watch != watch) a_.sum[task.row + r] = watch;
        }
      }
    }
  }

  // No weight is 2 or more, an infinity, a NaN, or a word that stands for too high a score.
  static bool in_range(__m512i seen) {
    return _mm512_test_epi16_mask(seen, _mm512_set1_epi16(static_cast<short>(0xc000))) == 0;
  }
  // Raises references out of the block's reach, moves what was summed before the block, and makes
  // the block's weights again. Done once: what is still not finite comes from the input.
  __attribute__((noinline)) __m512 repair(Task task, Block block, __m512 watch) {
    float max[kRows];
    for (float& m : max) m = kNothing;
    for (int key = block.first; key < block.end; key += kSliceKeys) {
      all_scores(task.row, key, b_.spare);
      slice_max(task.row, key, max);
    }
    for (int r = 0; r < kRows; ++r) {
      float& reference = a_.reference[task.row + r];
      const float raised = octave_above(max[r]) + kHeadroom;
      if (!(raised > reference)) continue;
      if (reference != kNothing) {
        rescale(block.sums_before[r], 16, reference, raised);
        rescale(a_.out + int64_t{task.row + r} * kDim, kDim, reference, raised);
      }
      reference = raised;
      prepare(task.row, r);
    }
    for (int key = block.first; key < block.end; key += kSliceKeys) {
      all_scores(task.row, key, b_.spare);
      Step s{};
      s.scores = b_.spare;
      s.weights = weights_of(block, key);
      s.sums_from = key == block.first ? block.sums_before[0] : block.sums[0];
      s.sums = block.sums[0];
      s.prepared = b_.prepared;
      watch = masked_weights(task.row, key, s, {_mm512_setzero_si512(), watch}).watch;
    }
    return watch;
  }

  const AttendRows& a_;
  Buffers& b_;
  Tiles tiles_;
};

#undef TIERCEL_INLINE

template <int kBlockKeys>
constexpr Kernel amx_kernel(void (*attend)(const AttendRows&)) {
  Kernel kernel;
  kernel.row_tile = kRows;
  kernel.head_tile = kTileRows;
  kernel.element_bytes = 2;
  kernel.item_rows = 2048;
  // Whatever has AMX has 2 MiB of L2.
  kernel.item_bytes = 768 << 10;
  kernel.staged_bytes = 768 << 10;
  kernel.buffer_bytes = sizeof(Buffers<kBlockKeys>);
  kernel.units_per_octave = kUnitsPerOctave;
  kernel.pack = pack_tiles;
  kernel.stage = stage_tiles;
  kernel.attend = attend;
  kernel.store = store_tiles;
  return kernel;
}

}  // namespace
}  // namespace tiercel::cpu::prefill
