// Prefill attention against the fp64 oracle: one body for every backend, whose op is `run` below.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/base/ops.h"
#include "tests/oracle/attention.h"
#include "tests/oracle/random_rows.h"
#include "tests/seed.h"

namespace tiercel::test {

// A prompt's worth of random q, K and V, and the params that point at them. Memory<T>: a vector
// that the backend reads and writes.
template <template <typename> typename Memory>
struct PrefillProblem {
  PrefillAttendParams params;
  Memory<bf16> q, keys, values, out;
  Memory<int32_t> ids, counts;
  Memory<int64_t> local_begin;
  Memory<float> bias;
  std::mt19937_64 random;

  struct Shape {
    int n_tokens = 1, head_dim = 64, group = 2, n_kv_heads = 2;
    int64_t first_position = 0;
    double key_scale = 1;  // 1: scores of a few octaves
  };

  explicit PrefillProblem(const Shape& s) : random(seed()) {
    params.n_tokens = s.n_tokens;
    params.first_position = s.first_position;
    params.head_dim = s.head_dim;
    params.n_kv_heads = s.n_kv_heads;
    params.n_heads = s.n_kv_heads * s.group;
    params.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    const int64_t rows = s.first_position + s.n_tokens;
    params.head_stride = (rows + 3) * s.head_dim;  // rows past the last position are NaN
    fill(q, params.n_tokens * params.n_heads * params.head_dim, 1);
    fill(keys, params.head_stride * params.n_kv_heads, s.key_scale);
    fill(values, params.head_stride * params.n_kv_heads, 1);
    for (int64_t j = 0; j < params.n_kv_heads; ++j) {
      for (int64_t i = rows * s.head_dim; i < params.head_stride; ++i) {
        keys[at(j, 0, i)] = values[at(j, 0, i)] = bf16::from_bits(0xffc0);
      }
    }
    out.resize(q.size());
    poison();
    point();
  }

  void poison() { std::fill(out.begin(), out.end(), bf16::from_bits(0x7fc1)); }

  size_t at(int64_t kv_head, int64_t row, int64_t channel) const {
    return static_cast<size_t>(kv_head * params.head_stride + row * params.head_dim + channel);
  }

  void fill(Memory<bf16>& to, int64_t n, double scale) {
    to = random_rows<Memory>(random, n, static_cast<float>(scale));
  }

  // Blocks of queries, each with up to max_chunks random chunks per KV head and a local range.
  void select(int64_t block_tokens, int chunk_tokens, int64_t max_chunks, int64_t local_tokens) {
    params.block_tokens = block_tokens;
    params.chunk_tokens = chunk_tokens;
    params.max_chunks = max_chunks;
    const int64_t n_blocks = (params.n_tokens + block_tokens - 1) / block_tokens;
    for (int64_t b = 0; b < n_blocks; ++b) {
      const int64_t first = params.first_position + b * block_tokens;
      local_begin.push_back(std::max<int64_t>(0, first - local_tokens) / chunk_tokens *
                            chunk_tokens);
      const int64_t n_chunks = local_begin.back() / chunk_tokens;
      for (int j = 0; j < params.n_kv_heads; ++j) {
        std::vector<int32_t> chosen;
        for (int32_t c = 0; c < n_chunks; ++c) chosen.push_back(c);
        std::shuffle(chosen.begin(), chosen.end(), random);
        // Every fourth list is empty.
        const size_t most = random() % 4 == 0 ? 0 : static_cast<size_t>(max_chunks);
        chosen.resize(std::min(chosen.size(), most));
        std::sort(chosen.begin(), chosen.end());
        counts.push_back(static_cast<int32_t>(chosen.size()));
        chosen.resize(static_cast<size_t>(max_chunks), -1);
        ids.insert(ids.end(), chosen.begin(), chosen.end());
      }
    }
    point();
  }

  // Biases of a few octaves, all of one sign as an eviction head's are; rows past the last are NaN.
  void bias_keys(float octaves) {
    params.bias_head_stride = params.head_stride / params.head_dim;
    std::uniform_real_distribution<float> uniform(0, octaves);
    bias.assign(static_cast<size_t>(params.n_kv_heads * params.bias_head_stride),
                std::numeric_limits<float>::quiet_NaN());
    for (int64_t j = 0; j < params.n_kv_heads; ++j) {
      for (int64_t row = 0; row < params.first_position + params.n_tokens; ++row) {
        bias[static_cast<size_t>(j * params.bias_head_stride + row)] = uniform(random);
      }
    }
    params.bias = bias.data();
  }

  void point() {
    params.q = q.data();
    params.keys = keys.data();
    params.values = values.data();
    params.out = out.data();
    params.chunk_ids = ids.data();
    params.chunk_counts = counts.data();
    params.local_begin = local_begin.data();
  }
};

// Channel 0 gives key r the score octave(r) on top of its random one: q = 4 there.
template <template <typename> typename Memory, typename Octave>
void add_octaves(PrefillProblem<Memory>& p, Octave octave) {
  for (int j = 0; j < p.params.n_kv_heads; ++j) {
    for (int64_t r = 0; r < p.params.first_position + p.params.n_tokens; ++r) {
      const double score = octave(r) * 0.6931471805599453 / p.params.scale;
      p.keys[p.at(j, r, 0)] = bf16(static_cast<float>(score / 4));
    }
  }
  for (size_t i = 0; i < p.q.size(); i += static_cast<size_t>(p.params.head_dim)) {
    p.q[i] = bf16(4.0f);
  }
}

// The op under test: a kernel at one of its levels, or one of its schedules.
template <template <typename> typename Memory>
struct PrefillUnderTest {
  using Problem = PrefillProblem<Memory>;

  // Attends and waits. Finite input must not need the row-by-row rescue, which would hide what a
  // kernel gets wrong.
  std::function<void(Problem&, bool finite)> run;
  std::function<AttendRounding(bool exact_exp)> rounding;

  // Runs p and compares: non-finite patterns first; then each row, whose error is at most 4 times
  // the predicted rms (a row's few large weights may all be rounded badly); then the rms over all
  // rows.
  void expect_right(Problem& p, int64_t row_step = 1, bool finite = true) const {
    run(p, finite);
    const PrefillAttendParams& a = p.params;
    double squares = 0;
    int64_t n = 0;
    for (int64_t t = 0; t < a.n_tokens; t += row_step) {
      for (int64_t h = 0; h < a.n_heads; ++h) {
        const AttendRow row = attend_row(a, t, h, rounding(a.exact_exp));
        const bf16* out = a.out + (t * a.n_heads + h) * a.head_dim;
        double square = 0, norm = 0;
        bool row_finite = true;
        for (int64_t c = 0; c < a.head_dim; ++c) {
          const double expected = row.out[static_cast<size_t>(c)];
          ASSERT_EQ(std::isnan(value(out[c])), std::isnan(expected))
              << "token " << t << " head " << h << " channel " << c;
          ASSERT_EQ(std::isinf(value(out[c])), std::isinf(expected))
              << "token " << t << " head " << h << " channel " << c;
          if (!std::isfinite(expected)) {
            row_finite = false;
            continue;
          }
          square += (value(out[c]) - expected) * (value(out[c]) - expected);
          norm += expected * expected;
        }
        if (!row_finite) continue;
        const double error = std::sqrt(square / a.head_dim);
        // fp32 sums of scores and weights: far below, but not nothing where the rest is zero.
        const double floor = 3e-6 * std::sqrt(norm / a.head_dim) + 1e-30;
        ASSERT_LE(error, 4 * row.error_rms + floor) << "token " << t << " head " << h;
        squares += std::pow(error / (row.error_rms + floor), 2);
        ++n;
      }
    }
    if (n >= 200) {
      EXPECT_LE(std::sqrt(squares / static_cast<double>(n)), 1.2) << "rms over " << n << " rows";
    }
  }

  void expect_biases_of_keys(std::initializer_list<int> head_dims) const {
    for (const int head_dim : head_dims) {
      for (const float octaves : {6.0f, -6.0f, 300.0f}) {
        SCOPED_TRACE("d " + std::to_string(head_dim) + ", " + std::to_string(octaves) + " octaves");
        Problem dense({.n_tokens = 53, .head_dim = head_dim, .group = 3, .first_position = 90});
        dense.bias_keys(octaves);
        expect_right(dense);
        if (octaves != 6.0f) continue;
        Problem window({.n_tokens = 70, .head_dim = head_dim, .first_position = 100});
        window.params.window = 37;
        window.bias_keys(octaves);
        expect_right(window);
        Problem blocks({.n_tokens = 150, .head_dim = head_dim, .first_position = 320});
        blocks.select(64, 16, 7, 32);
        blocks.bias_keys(octaves);
        expect_right(blocks, 3);
      }
    }
    // A key that is not finite takes its row to the fp64 path, which must know the bias too.
    Problem p({.n_tokens = 40, .first_position = 20});
    p.bias_keys(6);
    p.values[p.at(1, 30, 5)] = bf16::from_bits(0x7f80);
    expect_right(p, 1, false);
  }

  // Scores that are all far from zero: every row needs a reference, also where a window makes rows
  // of one tile begin at different slices.
  void expect_scores_far_from_zero() const {
    for (double octaves : {-400.0, 400.0}) {
      for (int64_t window : {0, 20}) {
        SCOPED_TRACE(octaves);
        Problem p({.n_tokens = 90, .n_kv_heads = 1, .first_position = 90, .key_scale = 0.1});
        p.params.window = window;
        add_octaves(p, [&](int64_t) { return octaves; });
        expect_right(p, 3);
      }
    }
  }

  // A NaN or an infinity reaches the queries that see it and no others, not even through 0 * NaN of
  // a value in the same tile that is masked.
  void expect_non_finite_rows_stay(int64_t row_step) const {
    const float inf = std::numeric_limits<float>::infinity();
    struct Case {
      bool in_keys;
      uint16_t bits;
      int64_t row;
    };
    const uint16_t plus = bf16(inf).bits, minus = bf16(-inf).bits;
    for (const Case& c : {Case{true, 0x7fc0, 70}, Case{true, 0xffc1, 130}, Case{true, plus, 100},
                          Case{true, minus, 33}, Case{true, 0xffc0, 0}, Case{false, 0x7fc0, 70},
                          Case{false, 0xffc0, 99}, Case{false, plus, 120}, Case{false, minus, 5}}) {
      SCOPED_TRACE("bits " + std::to_string(c.bits) + " row " + std::to_string(c.row));
      Problem p({.n_tokens = 140, .group = 1});
      (c.in_keys ? p.keys : p.values)[p.at(1, c.row, 9)] = bf16::from_bits(c.bits);
      expect_right(p, row_step, false);
    }
    Problem windowed({.n_tokens = 100, .n_kv_heads = 1});
    windowed.params.window = 9;
    windowed.values[windowed.at(0, 70, 3)] = bf16::from_bits(0x7fc0);
    expect_right(windowed, 1, false);
    Problem blocks({.n_tokens = 60, .first_position = 300});
    blocks.select(32, 8, 99, 0);
    blocks.values[blocks.at(0, 313, 3)] = bf16::from_bits(0x7fc0);
    blocks.values[blocks.at(1, 50, 4)] = bf16(inf);
    expect_right(blocks, 1, false);
  }

  // Scores of millions of octaves, where a product of fp32 is off by more than an octave and 16-bit
  // arithmetic wraps: the rescue has to notice.
  void expect_huge_scores() const {
    for (float factor : {1e6f, 1e12f, 1e30f}) {
      Problem p({.n_tokens = 50, .n_kv_heads = 1});
      for (bf16& k : p.keys) k = bf16(static_cast<float>(k) * factor);
      run(p, false);
      for (bf16 x : p.out) ASSERT_TRUE(std::isfinite(value(x)));
    }
  }

  // The queries of a prompt in two calls give the same bits, with and without a window: each row's
  // inner blocks begin at the same keys.
  void expect_chunked_is_one_shot(const typename Problem::Shape& shape, int64_t window,
                                  std::initializer_list<int64_t> cuts) const {
    for (const int64_t w : {int64_t{0}, window}) {
      Problem p(shape);
      p.params.window = w;
      run(p, true);
      const Memory<bf16> whole = p.out;
      for (const int64_t cut : cuts) {
        Memory<bf16> joined(whole.size(), bf16(0.0f));
        const PrefillAttendParams all = p.params;
        const int64_t elements = cut * all.n_heads * all.head_dim;
        p.params.n_tokens = cut;
        run(p, true);
        std::copy_n(p.out.begin(), elements, joined.begin());
        p.params = all;
        p.params.n_tokens -= cut;
        p.params.first_position += cut;
        p.params.q += elements;
        run(p, true);
        std::copy_n(p.out.begin(), p.out.size() - static_cast<size_t>(elements),
                    joined.begin() + elements);
        p.params = all;
        EXPECT_EQ(std::memcmp(whole.data(), joined.data(), whole.size() * 2), 0)
            << "cut " << cut << " window " << w;
      }
    }
  }

  // What queries see, cut into parts: with the same queries in each they are the whole.
  void expect_parts_are_whole(std::initializer_list<int> head_dims) const {
    for (const int head_dim : head_dims) {
      for (const bool blocks : {false, true}) {
        SCOPED_TRACE("d " + std::to_string(head_dim) + (blocks ? ", blocks" : ", dense"));
        Problem p({.n_tokens = 150, .head_dim = head_dim, .group = 3, .first_position = 400});
        if (blocks) p.select(64, 16, 9, 80);
        PrefillUnderTest parts = *this;
        parts.run = [&](Problem& whole, bool finite) { run_parts(whole, {112, 128, 336}, finite); };
        parts.expect_right(p, 3);
        parts.run = [&](Problem& whole, bool finite) { run_parts(whole, {400}, finite); };
        parts.expect_right(p, 3);
        if (!blocks) continue;
        parts.run = [&](Problem& whole, bool finite) { run_brought(whole, {4, 5, 13, 40}, finite); };
        parts.expect_right(p, 3);
      }
    }
  }
  // Listed chunks are attended where they have been brought to, up to each of these ends at a time; then the rest.
  void run_brought(Problem& p, const std::vector<int32_t>& ends, bool finite) const {
    const PrefillAttendParams whole = p.params;
    const int64_t d = whole.head_dim, lists = static_cast<int64_t>(p.counts.size());
    const int64_t n_places = lists / whole.n_kv_heads * whole.max_chunks, end = n_places * whole.chunk_tokens;
    Memory<float> state(static_cast<size_t>(prefill_state_floats(whole.n_tokens, whole.n_heads, d)),
                        std::numeric_limits<float>::quiet_NaN());
    Memory<int32_t> places(p.ids.size(), -1), none(p.counts.size(), 0);
    Memory<int64_t> begins(p.local_begin.size(), end);
    std::vector<int32_t> order(static_cast<size_t>(n_places));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), p.random);
    Memory<bf16> keys(static_cast<size_t>(whole.n_kv_heads * end * d), bf16::from_bits(0x7fc0)), values = keys;
    PrefillAttendParams& brought = p.params;
    brought.part.state = state.data();
    brought.part.chunks = p.ids.data();
    for (const int32_t end_chunk : ends) {
      std::fill(keys.begin(), keys.end(), bf16::from_bits(0x7fc0));  // what is not in the part may be anything
      std::fill(values.begin(), values.end(), bf16::from_bits(0x7fc0));
      brought.part.end_chunk = end_chunk;
      for (int64_t list = 0; list < lists; ++list) {
        const int64_t j = list % whole.n_kv_heads;
        for (int64_t i = 0; i < p.counts[static_cast<size_t>(list)]; ++i) {
          const auto at = static_cast<size_t>(list * whole.max_chunks + i);
          places[at] = order[static_cast<size_t>(list / whole.n_kv_heads * whole.max_chunks + i)];
          const int32_t chunk = p.ids[at];
          if (chunk < brought.part.first_chunk || chunk >= end_chunk) continue;
          const int64_t n = whole.chunk_tokens * d;
          const int64_t from = j * whole.head_stride + chunk * n, to = j * end * d + places[at] * n;
          std::copy_n(p.keys.begin() + from, n, keys.begin() + to);
          std::copy_n(p.values.begin() + from, n, values.begin() + to);
        }
      }
      brought.keys = keys.data();
      brought.values = values.data();
      brought.head_stride = end * d;
      brought.first_position = brought.part.end = end;
      brought.chunk_ids = places.data();
      brought.local_begin = begins.data();
      brought.part.is_last = false;
      run(p, finite);
      brought.part.is_first = false;
      brought.part.first_chunk = end_chunk;
    }
    const PrefillPart last = {.state = state.data(), .is_first = false};
    brought = whole;
    brought.part = last;
    brought.chunk_counts = none.data();
    run(p, finite);
    p.params = whole;
  }
  void run_parts(Problem& p, std::vector<int64_t> ends, bool finite) const {
    const PrefillAttendParams whole = p.params;
    Memory<float> state(static_cast<size_t>(prefill_state_floats(whole.n_tokens, whole.n_heads,
                                                                 whole.head_dim)),
                        std::numeric_limits<float>::quiet_NaN());
    ends.push_back(0);
    PrefillPart& part = p.params.part;
    part.state = state.data();
    const Memory<bf16> keys = p.keys, values = p.values;
    for (const int64_t end : ends) {
      part.is_first = part.begin == 0;
      part.is_last = end == 0;
      part.end = end;
      for (int64_t row = end; end > 0 && row < whole.first_position + whole.n_tokens; ++row) {
        for (int j = 0; j < whole.n_kv_heads; ++j) {  // may be anything: not even 0 * NaN is read
          const auto at = static_cast<size_t>(p.at(j, row, 0));
          std::fill_n(p.keys.begin() + at, whole.head_dim, bf16::from_bits(0x7fc0));
          std::fill_n(p.values.begin() + at, whole.head_dim, bf16::from_bits(0x7fc0));
        }
      }
      run(p, finite);
      std::copy(keys.begin(), keys.end(), p.keys.begin());
      std::copy(values.begin(), values.end(), p.values.begin());
      part.begin = end;
    }
    p.params = whole;
  }

  // Everything selected is dense attention, to the bit where the local keys begin at a tile.
  void expect_all_chunks_is_dense() const {
    Problem p({.n_tokens = 128, .first_position = 256});
    run(p, true);
    const Memory<bf16> dense = p.out;
    p.select(128, 8, 32, 0);
    for (int j = 0; j < 2; ++j) {
      p.counts[static_cast<size_t>(j)] = 32;
      for (int c = 0; c < 32; ++c) p.ids[static_cast<size_t>(j * 32 + c)] = c;
    }
    run(p, true);
    EXPECT_EQ(std::memcmp(dense.data(), p.out.data(), dense.size() * 2), 0);
  }

  // Element offsets past 2^31: sparse pages of address space, of which few are touched.
  void expect_offsets_past_two_to_the_31() const {
    constexpr int64_t kRows = (int64_t{1} << 31) / 64 + 4096;
    const size_t bytes = static_cast<size_t>(kRows) * 64 * 2;
    struct Free {
      void operator()(bf16* p) const { std::free(p); }
    };
    std::unique_ptr<bf16, Free> keys(static_cast<bf16*>(std::calloc(bytes, 1)));
    std::unique_ptr<bf16, Free> values(static_cast<bf16*>(std::calloc(bytes, 1)));
    ASSERT_TRUE(keys != nullptr && values != nullptr);
    Problem p({.n_tokens = 16, .n_kv_heads = 1});
    p.params.first_position = kRows - 16;
    p.params.head_stride = kRows * 64;
    p.params.keys = keys.get();
    p.params.values = values.get();
    for (int64_t i = (kRows - 600) * 64; i < kRows * 64; ++i) {
      const auto from = static_cast<size_t>(i % 997);
      keys.get()[i] = p.q[from];
      values.get()[i] = p.q[from + 1];
    }
    p.params.window = 500;
    expect_right(p);
    p.params.window = 0;
    Memory<int32_t> ids{3, static_cast<int32_t>((kRows - 600) / 8)}, counts{2};
    Memory<int64_t> local_begin{kRows - 200};
    p.params.block_tokens = 16;
    p.params.chunk_tokens = 8;
    p.params.max_chunks = 2;
    p.params.chunk_ids = ids.data();
    p.params.chunk_counts = counts.data();
    p.params.local_begin = local_begin.data();
    expect_right(p);
  }
};

}  // namespace tiercel::test
