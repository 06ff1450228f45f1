// The low-rank basis, projection and rebuilt keys against fp64: one body for every backend.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/eigen.h"
#include "engine/base/ops.h"
#include "tests/oracle/codec.h"
#include "tests/oracle/linear.h"
#include "tests/oracle/lowrank.h"
#include "tests/seed.h"

namespace tiercel::test {

struct KeyShape {
  int64_t n_tokens;
  int32_t n_kv_heads, head_dim;
  int64_t first = 0;
};

// Keys with a given spectrum: mean + coefficients (sigma_i) times fixed random directions, turned
// and rounded into a plane whose row 0 is token `first`. From token 4096 on the mean moves by
// drift: the mean of the first tokens is then not the mean of all.
// Memory<T>: a vector that the backend reads and writes; Rope: its rotary table, view() of which it
// reads.
template <template <typename> typename Memory, typename Rope>
struct SpectralKeys {
  SpectralKeys(const KeyShape& shape, const std::vector<double>& sigmas, double mean_size,
               double drift = 0)
      : n_tokens(shape.n_tokens),
        first(shape.first),
        n_kv_heads(shape.n_kv_heads),
        head_dim(shape.head_dim),
        w(shape.n_kv_heads * shape.head_dim),
        inv_freq(rope_frequencies(shape.head_dim / 2, 1e4)),
        table(inv_freq, first + n_tokens),
        plane(static_cast<size_t>(n_tokens * w)) {
    std::mt19937 random(static_cast<std::mt19937::result_type>(seed()));
    std::normal_distribution<double> normal;
    const size_t width = static_cast<size_t>(w);
    Matrix directions(sigmas.size(), std::vector<double>(width));
    for (auto& direction : directions) {
      for (double& value : direction) value = normal(random) / std::sqrt(static_cast<double>(w));
    }
    std::vector<double> mean(width), key(width);
    for (double& value : mean) value = mean_size * normal(random);
    for (int64_t t = 0; t < n_tokens; ++t) {
      key = mean;
      if (t >= 4096) {
        for (size_t i = 0; i < width; ++i) key[i] += i % 2 == 0 ? drift : -drift;
      }
      for (size_t r = 0; r < sigmas.size(); ++r) {
        const double coefficient = sigmas[r] * normal(random);
        for (size_t i = 0; i < width; ++i) key[i] += coefficient * directions[r][i];
      }
      append(t, key);
    }
  }
  void append(int64_t t, const std::vector<double>& key) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
      const auto [cl, sl] = turn_oracle(first + t, inv_freq[static_cast<size_t>(i)]);
      const double c = static_cast<double>(cl), s = static_cast<double>(sl);
      for (int64_t j = 0; j < n_kv_heads; ++j) {
        const double low = key[static_cast<size_t>(j * head_dim + i)];
        const double high = key[static_cast<size_t>(j * head_dim + half + i)];
        bf16* head = plane.data() + (j * n_tokens + t) * head_dim;
        head[i] = bf16(static_cast<float>(low * c - high * s));
        head[half + i] = bf16(static_cast<float>(high * c + low * s));
      }
    }
  }
  std::vector<double> unrotated(int64_t t) const {
    return unrotate_oracle(plane.data(), n_tokens * head_dim, n_kv_heads, head_dim, t, first + t,
                           inv_freq);
  }
  Matrix unrotated() const {
    Matrix rows;
    for (int64_t t = 0; t < n_tokens; ++t) rows.push_back(unrotated(t));
    return rows;
  }

  int64_t n_tokens, first;
  int32_t n_kv_heads, head_dim;
  int64_t w;
  std::vector<double> inv_freq;
  Rope table;
  Memory<bf16> plane;
};

// Everything starts as NaN: what an op leaves out shows.
template <template <typename> typename Memory>
struct LowRankBasis {
  LowRankBasis(int64_t w, int64_t rank)
      : basis(static_cast<size_t>(w * rank), bf16::from_bits(0x7fc1)),
        mean(static_cast<size_t>(w), std::nanf("")),
        residual(1, std::nan("")),
        rank(rank) {}
  LowRankView view() { return {basis.data(), mean.data(), rank}; }
  std::vector<double> values() const {
    std::vector<double> result;
    for (bf16 value : basis) result.push_back(value_of(value));
    return result;
  }
  Memory<bf16> basis;
  Memory<float> mean;
  Memory<double> residual;
  int64_t rank;
};

inline std::vector<double> spectrum(int64_t n, double decades) {
  std::vector<double> result;
  for (int64_t i = 0; i < n; ++i) {
    result.push_back(std::pow(10.0, -decades * static_cast<double>(i) / static_cast<double>(n)));
  }
  return result;
}

// A shape of keys to project, and of what is rebuilt of them.
struct StepShape {
  KeyShape keys;
  int32_t chunk_tokens;
  int64_t rank;
};

template <template <typename> typename Memory, typename Rope>
struct LowRankUnderTest {
  using Keys = SpectralKeys<Memory, Rope>;
  using Basis = LowRankBasis<Memory>;

  // All wait.
  std::function<void(const FitBasisParams&)> fit_basis;
  std::function<void(const ProjectParams&)> project_keys;
  std::function<void(const RebuildParams&)> rebuild_keys;
  std::function<void(const EncodeParams&)> encode_rows;

  Basis fit(const Keys& keys, int64_t rank) const {
    Basis result(keys.w, rank);
    fit_basis({.keys = keys.plane.data(),
               .head_stride = keys.n_tokens * keys.head_dim,
               .n_tokens = keys.n_tokens,
               .n_kv_heads = keys.n_kv_heads,
               .head_dim = keys.head_dim,
               .rope = keys.table.view(),
               .lowrank = result.view(),
               .residual_energy = result.residual.data()});
    return result;
  }

  // A basis of random directions, not orthonormal: projecting and rebuilding must not care.
  static Basis random_basis(const Keys& keys, int64_t rank, double mean_size) {
    std::mt19937 random(static_cast<std::mt19937::result_type>(seed() + 1));
    std::normal_distribution<float> normal;
    Basis result(keys.w, rank);
    const float scale = 1 / std::sqrt(static_cast<float>(keys.w));
    for (bf16& value : result.basis) value = bf16(scale * normal(random));
    for (float& value : result.mean) value = static_cast<float>(mean_size) * normal(random);
    return result;
  }

  Memory<bf16> project(const Keys& keys, Basis& basis, int64_t piece) const {
    Memory<bf16> result(static_cast<size_t>((keys.first + keys.n_tokens) * basis.rank),
                        bf16::from_bits(0x7fc1));
    for (int64_t row = 0; row < keys.n_tokens; row += piece) {
      project_keys({.keys = keys.plane.data() + row * keys.head_dim,
                    .head_stride = keys.n_tokens * keys.head_dim,
                    .first_row = keys.first + row,
                    .first_token = keys.first + row,
                    .n_tokens = std::min(piece, keys.n_tokens - row),
                    .n_kv_heads = keys.n_kv_heads,
                    .head_dim = keys.head_dim,
                    .rope = keys.table.view(),
                    .lowrank = basis.view(),
                    .coefficients = result.data()});
    }
    return result;
  }

  // Rebuilds every whole chunk of the keys, in a scrambled order and into scrambled slots. The last
  // of each list is left out.
  struct Rebuilt {
    Rebuilt(const LowRankUnderTest& op, const Keys& keys, Basis& basis,
            const Memory<bf16>& coefficients, int32_t chunk_tokens,
            RowCodec codec = RowCodec::kBf16, const Memory<std::byte>& coded = {})
        : tokens(chunk_tokens),
          n_chunks((keys.first + keys.n_tokens) / chunk_tokens -
                   (keys.first + chunk_tokens - 1) / chunk_tokens),
          d(keys.head_dim) {
      const size_t total = static_cast<size_t>(n_chunks * keys.n_kv_heads);
      Memory<int32_t> counts(static_cast<size_t>(keys.n_kv_heads),
                             static_cast<int32_t>(n_chunks - 1));
      chunks.resize(total);
      slots.resize(total);
      std::mt19937 random(7);
      for (int64_t j = 0; j < keys.n_kv_heads; ++j) {
        const auto begin = static_cast<std::ptrdiff_t>(j * n_chunks);
        const auto end = begin + static_cast<std::ptrdiff_t>(n_chunks);
        std::iota(chunks.begin() + begin, chunks.begin() + end,
                  static_cast<int32_t>((keys.first + tokens - 1) / tokens));
        std::iota(slots.begin() + begin, slots.begin() + end, 0);
        std::shuffle(chunks.begin() + begin, chunks.begin() + end, random);
        std::shuffle(slots.begin() + begin, slots.begin() + end, random);
      }
      if (keys.n_kv_heads > 2) counts[1] = 0;
      head_stride = n_chunks * 2 * tokens * d;
      memory.assign(static_cast<size_t>(head_stride * keys.n_kv_heads), bf16(55.0f));
      op.rebuild_keys({.coefficients = coded.empty() ? coefficients.data() : nullptr,
                       .coded = coded.empty() ? nullptr : coded.data(),
                       .codec = codec,
                       .lowrank = basis.view(),
                       .rope = keys.table.view(),
                       .miss_chunks = chunks.data(),
                       .miss_slots = slots.data(),
                       .miss_counts = counts.data(),
                       .stride = n_chunks,
                       .slots = memory.data(),
                       .slot_head_stride = head_stride,
                       .chunk_tokens = tokens,
                       .n_kv_heads = keys.n_kv_heads,
                       .head_dim = keys.head_dim});
      n_rebuilt.assign(counts.begin(), counts.end());
    }
    // The key of token t of the index-th chunk of the list of head j.
    const bf16* key(int64_t j, int64_t index, int64_t t) const {
      const int64_t slot = slots[static_cast<size_t>(j * n_chunks + index)];
      return memory.data() + j * head_stride + (slot * 2 * tokens + t) * d;
    }
    int64_t chunk(int64_t j, int64_t index) const {
      return chunks[static_cast<size_t>(j * n_chunks + index)];
    }

    int32_t tokens;
    int64_t n_chunks, d, head_stride;
    Memory<int32_t> chunks, slots;
    std::vector<int64_t> n_rebuilt;
    Memory<bf16> memory;
  };

  // Each step against fp64 of its own inputs.
  static void expect_projected(const Keys& keys, const Basis& basis,
                               const Memory<bf16>& coefficients, int64_t every) {
    for (int64_t t = 0; t < keys.n_tokens; t += every) {
      const std::vector<double> row = keys.unrotated(t);
      for (int64_t r = 0; r < basis.rank; ++r) {
        double sum = 0, squares = 0;
        for (size_t i = 0; i < row.size(); ++i) {
          const double x = row[i] - static_cast<double>(basis.mean[i]);
          const double term =
              x *
              value_of(basis.basis[i * static_cast<size_t>(basis.rank) + static_cast<size_t>(r)]);
          sum += term;
          squares += term * term;
        }
        // x is rounded to bf16: independent errors of 2^-8 at most, four of their sigmas at least.
        const double tolerance = 4 * kBf16Unit * std::sqrt(squares) + kBf16Unit * std::abs(sum);
        ASSERT_NEAR(value_of(coefficients[static_cast<size_t>((keys.first + t) * basis.rank + r)]),
                    sum, tolerance)
            << "token " << t << " direction " << r;
      }
    }
    for (int64_t i = 0; i < keys.first * basis.rank; ++i) {  // rows of tokens not asked for
      ASSERT_EQ(coefficients[static_cast<size_t>(i)].bits, 0x7fc1);
    }
  }

  static void expect_rebuilt(const Keys& keys, const Basis& basis, const Memory<bf16>& coefficients,
                             const Rebuilt& rebuilt, int64_t j, int64_t index, int64_t t) {
    const int64_t d = keys.head_dim, half = d / 2, rank = basis.rank;
    const int64_t position = rebuilt.chunk(j, index) * rebuilt.tokens + t;
    std::vector<double> key(static_cast<size_t>(d)), size(key);
    for (int64_t i = 0; i < d; ++i) {
      const int64_t channel = j * d + i;
      double sum = static_cast<double>(basis.mean[static_cast<size_t>(channel)]);
      double magnitude = std::abs(sum);
      for (int64_t r = 0; r < rank; ++r) {
        const double term = value_of(coefficients[static_cast<size_t>(position * rank + r)]) *
                            value_of(basis.basis[static_cast<size_t>(channel * rank + r)]);
        sum += term;
        magnitude += std::abs(term);
      }
      key[static_cast<size_t>(i)] = sum;
      size[static_cast<size_t>(i)] = dot_tolerance(rank, magnitude) + 4e-7 * magnitude;
    }
    const bf16* got = rebuilt.key(j, index, t);
    for (int64_t i = 0; i < half; ++i) {
      const auto [cl, sl] = turn_oracle(position, keys.inv_freq[static_cast<size_t>(i)]);
      const double co = static_cast<double>(cl), si = static_cast<double>(sl);
      const double low = key[static_cast<size_t>(i)], high = key[static_cast<size_t>(half + i)];
      const double error = size[static_cast<size_t>(i)] + size[static_cast<size_t>(half + i)];
      const double first = low * co - high * si, second = high * co + low * si;
      ASSERT_NEAR(value_of(got[i]), first, kBf16Unit * std::abs(first) + error)
          << "head " << j << " position " << position << " channel " << i;
      ASSERT_NEAR(value_of(got[half + i]), second, kBf16Unit * std::abs(second) + error)
          << "head " << j << " position " << position << " channel " << half + i;
    }
  }

  // The values of slots, and the slots of chunks that are not in the lists, are as they were.
  static void expect_untouched(const Rebuilt& rebuilt, int64_t j) {
    for (int64_t index = 0; index < rebuilt.n_chunks; ++index) {
      const bool whole = index >= rebuilt.n_rebuilt[static_cast<size_t>(j)];
      const bf16* from = rebuilt.key(j, index, whole ? 0 : rebuilt.tokens);
      const int64_t n = rebuilt.tokens * rebuilt.d * (whole ? 2 : 1);
      ASSERT_TRUE(std::all_of(from, from + n, [](bf16 x) { return x == bf16(55.0f); }));
    }
  }

  void expect_equations(const Keys& keys, Basis& basis, int32_t chunk_tokens) const {
    const Memory<bf16> coefficients = project(keys, basis, keys.n_tokens);
    const int64_t every = std::max<int64_t>(1, keys.n_tokens / 40);
    ASSERT_NO_FATAL_FAILURE(expect_projected(keys, basis, coefficients, every));
    const Rebuilt rebuilt(*this, keys, basis, coefficients, chunk_tokens);
    const int64_t step = std::max<int64_t>(1, rebuilt.n_chunks / 40);
    for (int64_t j = 0; j < keys.n_kv_heads; ++j) {
      for (int64_t i = 0; i < rebuilt.n_rebuilt[static_cast<size_t>(j)]; i += step) {
        ASSERT_NO_FATAL_FAILURE(
            expect_rebuilt(keys, basis, coefficients, rebuilt, j, i, i % chunk_tokens));
      }
      ASSERT_NO_FATAL_FAILURE(expect_untouched(rebuilt, j));
    }
  }

  // Coded coefficients rebuild what the same rows do in bf16.
  void expect_coded_are_decoded_first(const StepShape& c) const {
    const Keys keys(c.keys, spectrum(32, 2), 1);
    Basis basis = random_basis(keys, c.rank, 1);
    const Memory<bf16> exact = project(keys, basis, keys.n_tokens);
    for (const RowCodec codec : {RowCodec::kInt8, RowCodec::kInt4}) {
      SCOPED_TRACE(testing::Message() << "rank " << c.rank << ", " << code_bits(codec) << " bits");
      const int64_t n = keys.first + keys.n_tokens, bytes = row_bytes(codec, c.rank);
      Memory<std::byte> coded(static_cast<size_t>(n * bytes));
      EncodeParams p;
      p.rows = exact.data() + keys.first * c.rank;
      p.first_row = p.first_token = keys.first;
      p.n_tokens = keys.n_tokens;
      p.n_kv_heads = 1;
      p.width = c.rank;
      p.codec = codec;
      p.codes = coded.data();
      encode_rows(p);
      Memory<bf16> decoded(exact);
      for (int64_t t = keys.first; t < n; ++t) {
        const std::vector<float> row = decoded_row(coded.data() + t * bytes, codec, c.rank);
        std::transform(row.begin(), row.end(), decoded.begin() + t * c.rank,
                       [](float x) { return bf16(x); });
      }
      const Rebuilt want(*this, keys, basis, decoded, c.chunk_tokens);
      const Rebuilt got(*this, keys, basis, {}, c.chunk_tokens, codec, coded);
      ASSERT_TRUE(got.memory == want.memory);
      ASSERT_FALSE(std::all_of(got.memory.begin(), got.memory.end(),
                               [](bf16 x) { return x == bf16(55.0f); }));
    }
  }

  // Full rank: nothing is lost but roundings. Per token, with x = key - mean: 2^-8 |x| each for the
  // roundings of x, of the coefficients, and of the basis (twice), and 2^-8 |key| for the result.
  void expect_full_rank_gives_the_keys_back(int64_t n) const {
    const Keys keys({n, 2, 64}, spectrum(128, 1), 3);
    Basis basis = fit(keys, 128);
    EXPECT_NEAR(basis.residual[0], 0, 1e-9);
    const Memory<bf16> coefficients = project(keys, basis, keys.n_tokens);
    const Rebuilt rebuilt(*this, keys, basis, coefficients, 8);
    const Matrix rows = keys.unrotated();
    for (int64_t index = 0; index + 1 < rebuilt.n_chunks; ++index) {
      for (int64_t t = 0; t < 8; ++t) {
        for (int64_t j = 0; j < 2; ++j) {
          const int64_t position = rebuilt.chunk(j, index) * 8 + t;
          double error = 0, key_size = 0, x_size = 0;
          for (int64_t i = 0; i < 128; ++i) {
            const size_t at = static_cast<size_t>(i);
            const double key = rows[static_cast<size_t>(position)][at];
            x_size += std::pow(key - static_cast<double>(basis.mean[at]), 2);
            if (i / 64 == j) key_size += key * key;
          }
          for (int64_t i = 0; i < 64; ++i) {
            const double want =
                value_of(keys.plane[static_cast<size_t>((j * n + position) * 64 + i)]);
            error += std::pow(value_of(rebuilt.key(j, index, t)[i]) - want, 2);
          }
          ASSERT_LE(std::sqrt(error), kBf16Unit * (4 * std::sqrt(x_size) + std::sqrt(key_size)));
        }
      }
    }
  }

  // Rounding shifted keys to bf16 adds at most (2^-8)^2 / 3 of their energy to the Gram matrix, and
  // rounding the basis loses at most four times that in a round trip.
  void expect_best_basis(const KeyShape& shape, int64_t rank, double mean_size,
                         double drift) const {
    const int64_t channels = int64_t{shape.n_kv_heads} * shape.head_dim;
    SCOPED_TRACE(testing::Message() << shape.n_tokens << " tokens, " << channels << " channels");
    const Keys keys(shape, spectrum(channels, 2), mean_size, drift);
    const Basis basis = fit(keys, rank);
    const Matrix rows = keys.unrotated();
    const std::vector<double> mean = mean_oracle(rows);
    const std::vector<double> covariance = covariance_oracle(rows, mean);
    const cpu::Eigenvectors best = cpu::leading_eigenvectors(covariance, keys.w, rank);
    double trace = 0, kept = 0;
    for (size_t i = 0; i < best.values.size(); ++i) {
      trace += best.values[i];
      kept += static_cast<int64_t>(i) < rank ? best.values[i] : 0;
    }
    const double optimum = std::max(0.0, 1 - kept / trace);
    const std::vector<double> got = basis.values();
    const double lost =
        lost_energy(covariance, got, static_cast<size_t>(keys.w), static_cast<size_t>(rank));
    const double unit = kBf16Unit * kBf16Unit / 3;
    EXPECT_LE(lost, optimum * 1.01 + 4 * unit);
    EXPECT_NEAR(basis.residual[0], optimum, optimum * 0.01 + unit);
    for (size_t i = 0; i < mean.size(); ++i) {
      EXPECT_NEAR(static_cast<double>(basis.mean[i]), mean[i], 1e-5 + 1e-6 * std::abs(mean[i]));
    }
    // Sign: the largest component of every vector is positive (rounding may make it a tie).
    for (int64_t r = 0; r < rank; ++r) {
      double highest = 0, lowest = 0;
      for (int64_t i = 0; i < keys.w; ++i) {
        highest = std::max(highest, got[static_cast<size_t>(i * rank + r)]);
        lowest = std::min(lowest, got[static_cast<size_t>(i * rank + r)]);
      }
      EXPECT_GE(highest, -lowest);
    }
  }

  // A mean of 50 deviations, rounded to bf16, has noise of its own (2^-8 of 50); the basis must
  // still find the planted directions under it, and the mean must come out exact.
  void expect_bias_is_no_direction() const {
    const Keys biased({4500, 2, 64}, std::vector<double>(8, 10.0), 50);
    const Basis basis = fit(biased, 8);
    const Matrix rows = biased.unrotated();
    const std::vector<double> mean = mean_oracle(rows);
    const std::vector<double> covariance = covariance_oracle(rows, mean);
    const cpu::Eigenvectors best = cpu::leading_eigenvectors(covariance, biased.w, 8);
    const double trace = std::accumulate(best.values.begin(), best.values.end(), 0.0);
    const double kept = std::accumulate(best.values.begin(), best.values.begin() + 8, 0.0);
    EXPECT_NEAR(basis.residual[0], 1 - kept / trace, 1e-4);
    EXPECT_LT(basis.residual[0], 0.02);
    for (size_t i = 0; i < mean.size(); ++i) {
      EXPECT_NEAR(static_cast<double>(basis.mean[i]), mean[i], 3e-6 * (std::abs(mean[i]) + 10));
    }
  }

  void expect_planted_rank_is_found() const {
    const Keys keys({4200, 2, 64}, std::vector<double>(20, 1.0), 0.1);
    const Basis basis = fit(keys, 20);
    // What remains is the rounding of the keys themselves.
    EXPECT_LT(basis.residual[0], kBf16Unit * kBf16Unit);
  }
};

}  // namespace tiercel::test
