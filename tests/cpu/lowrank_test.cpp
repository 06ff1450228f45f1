// Low-rank keys on every level of this machine: fit, project and rebuild against fp64.
#include "cpu/lowrank.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "cpu/codec.h"
#include "cpu/eigen.h"
#include "engine/base/rope.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/codec.h"
#include "tests/oracle/linear.h"
#include "tests/oracle/lowrank.h"
#include "tests/seed.h"

namespace tiercel::cpu {
namespace {

using test::kBf16Unit;
using test::Matrix;
using test::value_of;

// Keys with a given spectrum: mean + coefficients (sigma_i) times fixed random directions, turned
// and rounded into a plane. From token 4096 on the mean moves by drift: the mean of the first
// tokens is then not the mean of all.
struct Keys {
  Keys(int64_t n, int32_t heads, int32_t d, const std::vector<double>& sigmas, double mean_size,
       double drift = 0)
      : n_tokens(n),
        n_kv_heads(heads),
        head_dim(d),
        w(heads * d),
        inv_freq(test::rope_frequencies(d / 2, 1e4)),
        table(inv_freq, n + 64),
        plane(static_cast<size_t>(n * w)) {
    std::mt19937 random(static_cast<std::mt19937::result_type>(test::seed()));
    std::normal_distribution<double> normal;
    const size_t width = static_cast<size_t>(w);
    Matrix directions(sigmas.size(), std::vector<double>(width));
    for (auto& direction : directions) {
      for (double& value : direction) value = normal(random) / std::sqrt(static_cast<double>(w));
    }
    std::vector<double> mean(width), key(width);
    for (double& value : mean) value = mean_size * normal(random);
    for (int64_t t = 0; t < n; ++t) {
      key = mean;
      if (t >= 4096) {
        for (size_t i = 0; i < width; ++i) key[i] += i % 2 == 0 ? drift : -drift;
      }
      for (size_t r = 0; r < sigmas.size(); ++r) {
        const double coefficient = sigmas[r] * normal(random);
        for (size_t i = 0; i < width; ++i) key[i] += coefficient * directions[r][i];
      }
      for (int64_t i = 0; i < d / 2; ++i) {
        const auto [cl, sl] = test::turn_oracle(t, inv_freq[static_cast<size_t>(i)]);
        const double c = static_cast<double>(cl), s = static_cast<double>(sl);
        for (int64_t j = 0; j < heads; ++j) {
          const double low = key[static_cast<size_t>(j * d + i)];
          const double high = key[static_cast<size_t>(j * d + d / 2 + i)];
          bf16* head = plane.data() + (j * n + t) * d;
          head[i] = bf16(static_cast<float>(low * c - high * s));
          head[d / 2 + i] = bf16(static_cast<float>(high * c + low * s));
        }
      }
    }
  }
  Matrix unrotated() const {
    Matrix rows;
    for (int64_t t = 0; t < n_tokens; ++t) {
      rows.push_back(test::unrotate_oracle(plane.data(), n_tokens * head_dim, n_kv_heads, head_dim,
                                           t, t, inv_freq));
    }
    return rows;
  }

  int64_t n_tokens;
  int32_t n_kv_heads, head_dim;
  int64_t w;
  std::vector<double> inv_freq;
  RopeTable table;
  std::vector<bf16> plane;
};

struct Basis {
  Basis(int64_t w, int64_t rank)
      : basis(static_cast<size_t>(w * rank)), mean(static_cast<size_t>(w)), rank(rank) {}
  LowRankView view() { return {basis.data(), mean.data(), rank}; }
  std::vector<bf16> basis;
  std::vector<float> mean;
  int64_t rank;
  double residual = -1;
};

Basis fit(Queue& queue, const Keys& keys, int64_t rank) {
  Basis result(keys.w, rank);
  fit_basis(queue, {.keys = keys.plane.data(),
                    .head_stride = keys.n_tokens * keys.head_dim,
                    .n_tokens = keys.n_tokens,
                    .n_kv_heads = keys.n_kv_heads,
                    .head_dim = keys.head_dim,
                    .rope = keys.table.view(),
                    .lowrank = result.view(),
                    .residual_energy = &result.residual});
  return result;
}

std::vector<bf16> project(Queue& queue, const Keys& keys, Basis& basis, int64_t piece) {
  std::vector<bf16> result(static_cast<size_t>(keys.n_tokens * basis.rank));
  for (int64_t first = 0; first < keys.n_tokens; first += piece) {
    project_keys(queue, {.keys = keys.plane.data() + first * keys.head_dim,
                         .head_stride = keys.n_tokens * keys.head_dim,
                         .first_row = first,
                         .first_token = first,
                         .n_tokens = std::min(piece, keys.n_tokens - first),
                         .n_kv_heads = keys.n_kv_heads,
                         .head_dim = keys.head_dim,
                         .rope = keys.table.view(),
                         .lowrank = basis.view(),
                         .coefficients = result.data()});
  }
  return result;
}

// Coded coefficients; none: bf16.
struct Coded {
  RowCodec codec = RowCodec::kBf16;
  const std::byte* rows = nullptr;
};

// Rebuilds every chunk, in a scrambled order and into scrambled slots.
struct Rebuilt {
  Rebuilt(Queue& queue, const Keys& keys, Basis& basis, const std::vector<bf16>& coefficients,
          int32_t chunk_tokens, const Coded& coded = {})
      : tokens(chunk_tokens), n_chunks(keys.n_tokens / chunk_tokens), d(keys.head_dim) {
    const size_t total = static_cast<size_t>(n_chunks * keys.n_kv_heads);
    std::vector<int32_t> counts(static_cast<size_t>(keys.n_kv_heads));
    chunks.resize(total);
    slots.resize(total);
    std::mt19937 random(7);
    for (int64_t j = 0; j < keys.n_kv_heads; ++j) {
      const auto begin = static_cast<std::ptrdiff_t>(j * n_chunks);
      const auto end = begin + static_cast<std::ptrdiff_t>(n_chunks);
      std::iota(chunks.begin() + begin, chunks.begin() + end, 0);
      std::iota(slots.begin() + begin, slots.begin() + end, 0);
      std::shuffle(chunks.begin() + begin, chunks.begin() + end, random);
      std::shuffle(slots.begin() + begin, slots.begin() + end, random);
      // The last chunk of the list is left out: its slot must stay as it is.
      counts[static_cast<size_t>(j)] = static_cast<int32_t>(n_chunks - 1);
    }
    head_stride = n_chunks * 2 * tokens * d;
    memory.assign(static_cast<size_t>(head_stride * keys.n_kv_heads), bf16(55.0f));
    rebuild_keys(queue, {.coefficients = coded.rows ? nullptr : coefficients.data(),
                         .coded = coded.rows,
                         .codec = coded.codec,
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
  }
  // The key of token t of the index-th missed chunk of head j.
  const bf16* key(int64_t j, int64_t index, int64_t t) const {
    const int64_t slot = slots[static_cast<size_t>(j * n_chunks + index)];
    return memory.data() + j * head_stride + (slot * 2 * tokens + t) * d;
  }
  int64_t chunk(int64_t j, int64_t index) const {
    return chunks[static_cast<size_t>(j * n_chunks + index)];
  }

  int32_t tokens;
  int64_t n_chunks, d, head_stride;
  std::vector<int32_t> chunks, slots;
  std::vector<bf16> memory;
};

class LowRank : public ::testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
};
INSTANTIATE_TEST_SUITE_P(Levels, LowRank, ::testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

std::vector<double> spectrum(int64_t n, double decades) {
  std::vector<double> result;
  for (int64_t i = 0; i < n; ++i) {
    result.push_back(std::pow(10.0, -decades * static_cast<double>(i) / static_cast<double>(n)));
  }
  return result;
}

struct FitCase {
  int64_t n_tokens;
  int32_t n_kv_heads, head_dim;
  int64_t rank;
  double mean_size, drift;
};

// Rounding shifted keys to bf16 adds at most (2^-8)^2 / 3 of their energy to the Gram matrix, and
// rounding the basis loses at most four times that in a round trip.
TEST_P(LowRank, BasisIsAsGoodAsTheBestOne) {
  for (const FitCase& c : {FitCase{4500, 2, 64, 40, 0, 0}, FitCase{6000, 2, 64, 40, 7, 0.2},
                           FitCase{600, 1, 80, 33, 1, 0}, FitCase{37, 1, 32, 32, 2, 0}}) {
    const Keys keys(c.n_tokens, c.n_kv_heads, c.head_dim, spectrum(c.n_kv_heads * c.head_dim, 2),
                    c.mean_size, c.drift);
    Basis basis = fit(queue_, keys, c.rank);
    const Matrix rows = keys.unrotated();
    const std::vector<double> mean = test::mean_oracle(rows);
    const std::vector<double> covariance = test::covariance_oracle(rows, mean);
    const Eigenvectors best = leading_eigenvectors(covariance, keys.w, c.rank);
    double trace = 0, kept = 0;
    for (size_t i = 0; i < best.values.size(); ++i) {
      trace += best.values[i];
      kept += static_cast<int64_t>(i) < c.rank ? best.values[i] : 0;
    }
    const double optimum = std::max(0.0, 1 - kept / trace);
    std::vector<double> got;
    for (bf16 value : basis.basis) got.push_back(value_of(value));
    const double lost = test::lost_energy(covariance, got, static_cast<size_t>(keys.w),
                                          static_cast<size_t>(c.rank));
    const double unit = kBf16Unit * kBf16Unit / 3;
    EXPECT_LE(lost, optimum * 1.01 + 4 * unit) << "mean " << c.mean_size;
    EXPECT_NEAR(basis.residual, optimum, optimum * 0.01 + unit) << "mean " << c.mean_size;
    for (size_t i = 0; i < mean.size(); ++i) {
      EXPECT_NEAR(static_cast<double>(basis.mean[i]), mean[i], 1e-5 + 1e-6 * std::abs(mean[i]));
    }
    // Sign: the largest component of every vector is positive (rounding may make it a tie).
    for (int64_t r = 0; r < c.rank; ++r) {
      double highest = 0, lowest = 0;
      for (int64_t i = 0; i < keys.w; ++i) {
        highest = std::max(highest, got[static_cast<size_t>(i * c.rank + r)]);
        lowest = std::min(lowest, got[static_cast<size_t>(i * c.rank + r)]);
      }
      EXPECT_GE(highest, -lowest);
    }
  }
}

// A mean of 50 deviations, rounded to bf16, has noise of its own (2^-8 of 50); the basis must still
// find the planted directions under it, and the mean must come out exact.
TEST_P(LowRank, BiasedKeys) {
  const Keys biased(4500, 2, 64, std::vector<double>(8, 10.0), 50);
  Basis basis = fit(queue_, biased, 8);
  const Matrix rows = biased.unrotated();
  const std::vector<double> mean = test::mean_oracle(rows);
  const std::vector<double> covariance = test::covariance_oracle(rows, mean);
  const Eigenvectors best = leading_eigenvectors(covariance, biased.w, 8);
  const double trace = std::accumulate(best.values.begin(), best.values.end(), 0.0);
  const double kept = std::accumulate(best.values.begin(), best.values.begin() + 8, 0.0);
  EXPECT_NEAR(basis.residual, 1 - kept / trace, 1e-4);
  EXPECT_LT(basis.residual, 0.02);
  for (size_t i = 0; i < mean.size(); ++i) {
    EXPECT_NEAR(static_cast<double>(basis.mean[i]), mean[i], 3e-6 * (std::abs(mean[i]) + 10));
  }
}

TEST_P(LowRank, PlantedRankIsFound) {
  const Keys keys(4200, 2, 64, std::vector<double>(20, 1.0), 0.1);
  Basis basis = fit(queue_, keys, 20);
  // What remains is the rounding of the keys themselves.
  EXPECT_LT(basis.residual, kBf16Unit * kBf16Unit);
}

// Project and rebuild: each step against fp64 of its own inputs.
TEST_P(LowRank, ProjectAndRebuildMatchTheirEquations) {
  struct Shape {
    int32_t n_kv_heads, head_dim, chunk_tokens;
    int64_t rank;
  };
  for (const Shape& c : {Shape{2, 64, 8, 40}, Shape{1, 128, 5, 37}, Shape{3, 80, 64, 100}}) {
    const Keys keys(1100, c.n_kv_heads, c.head_dim, spectrum(c.n_kv_heads * c.head_dim, 2), 3);
    Basis basis = fit(queue_, keys, c.rank);
    const std::vector<bf16> coefficients = project(queue_, keys, basis, keys.n_tokens);
    const Matrix rows = keys.unrotated();
    for (int64_t t = 0; t < keys.n_tokens; t += 13) {
      for (int64_t r = 0; r < c.rank; ++r) {
        double sum = 0, squares = 0;
        for (int64_t i = 0; i < keys.w; ++i) {
          const size_t at = static_cast<size_t>(i);
          const double x = rows[static_cast<size_t>(t)][at] - static_cast<double>(basis.mean[at]);
          const double term = x * value_of(basis.basis[static_cast<size_t>(i * c.rank + r)]);
          sum += term;
          squares += term * term;
        }
        // x is rounded to bf16: independent errors of 2^-8 at most, four of their sigmas at least.
        const double tolerance = 4 * kBf16Unit * std::sqrt(squares) + kBf16Unit * std::abs(sum);
        ASSERT_NEAR(value_of(coefficients[static_cast<size_t>(t * c.rank + r)]), sum, tolerance)
            << "token " << t << " direction " << r;
      }
    }

    const Rebuilt rebuilt(queue_, keys, basis, coefficients, c.chunk_tokens);
    const int64_t half = c.head_dim / 2;
    for (int64_t j = 0; j < c.n_kv_heads; ++j) {
      for (int64_t index = 0; index + 1 < rebuilt.n_chunks; ++index) {
        const int64_t t = index % c.chunk_tokens;
        const int64_t position = rebuilt.chunk(j, index) * c.chunk_tokens + t;
        std::vector<double> key(static_cast<size_t>(c.head_dim)), size(key);
        for (int64_t i = 0; i < c.head_dim; ++i) {
          const int64_t channel = j * c.head_dim + i;
          double sum = static_cast<double>(basis.mean[static_cast<size_t>(channel)]);
          double magnitude = std::abs(sum);
          for (int64_t r = 0; r < c.rank; ++r) {
            const double term = value_of(coefficients[static_cast<size_t>(position * c.rank + r)]) *
                                value_of(basis.basis[static_cast<size_t>(channel * c.rank + r)]);
            sum += term;
            magnitude += std::abs(term);
          }
          key[static_cast<size_t>(i)] = sum;
          size[static_cast<size_t>(i)] = test::dot_tolerance(c.rank, magnitude) + 4e-7 * magnitude;
        }
        const bf16* got = rebuilt.key(j, index, t);
        for (int64_t i = 0; i < half; ++i) {
          const auto [cl, sl] = test::turn_oracle(position, keys.inv_freq[static_cast<size_t>(i)]);
          const double co = static_cast<double>(cl), si = static_cast<double>(sl);
          const double low = key[static_cast<size_t>(i)], high = key[static_cast<size_t>(half + i)];
          const double error = size[static_cast<size_t>(i)] + size[static_cast<size_t>(half + i)];
          const double first = low * co - high * si, second = high * co + low * si;
          ASSERT_NEAR(value_of(got[i]), first, kBf16Unit * std::abs(first) + error);
          ASSERT_NEAR(value_of(got[half + i]), second, kBf16Unit * std::abs(second) + error);
        }
        for (int64_t i = 0; i < c.chunk_tokens * c.head_dim; ++i) {  // the values of the slot
          ASSERT_EQ(rebuilt.key(j, index, c.chunk_tokens)[i], bf16(55.0f));
        }
      }
      for (int64_t i = 0; i < c.chunk_tokens * c.head_dim; ++i) {  // the chunk left out
        ASSERT_EQ(rebuilt.key(j, rebuilt.n_chunks - 1, 0)[i], bf16(55.0f));
      }
    }
  }
}

// Coded coefficients give the bits of those that they decode to.
TEST_P(LowRank, CodedCoefficientsAreDecodedFirst) {
  struct Shape {
    int32_t n_kv_heads, head_dim, chunk_tokens;
    int64_t rank;
  };
  for (const Shape& c : {Shape{2, 64, 8, 96}, Shape{1, 128, 5, 64}, Shape{3, 80, 1, 160}}) {
    const Keys keys(600, c.n_kv_heads, c.head_dim, spectrum(c.n_kv_heads * c.head_dim, 2), 3);
    Basis basis = fit(queue_, keys, c.rank);
    const std::vector<bf16> coefficients = project(queue_, keys, basis, keys.n_tokens);
    for (const RowCodec codec : {RowCodec::kInt8, RowCodec::kInt4}) {
      const int64_t size = row_bytes(codec, c.rank);
      std::vector<std::max_align_t> memory(
          static_cast<size_t>(keys.n_tokens * size) / sizeof(std::max_align_t) + 1);
      auto* rows = reinterpret_cast<std::byte*>(memory.data());
      EncodeParams p;
      p.rows = coefficients.data();
      p.n_tokens = keys.n_tokens;
      p.n_kv_heads = 1;
      p.width = c.rank;
      p.codec = codec;
      p.codes = rows;
      encode_rows(queue_, p);
      std::vector<bf16> decoded;
      for (int64_t t = 0; t < keys.n_tokens; ++t) {
        for (const float x : test::decoded_row(rows + t * size, codec, c.rank)) {
          decoded.push_back(bf16(x));
        }
      }
      const Rebuilt expected(queue_, keys, basis, decoded, c.chunk_tokens);
      const Rebuilt got(queue_, keys, basis, {}, c.chunk_tokens, {codec, rows});
      ASSERT_EQ(expected.memory, got.memory);
    }
  }
}

// Full rank: nothing is lost but roundings. Per token, with x = key - mean: 2^-8 |x| each for the
// roundings of x, of the coefficients, and of the basis (twice), and 2^-8 |key| for the result.
TEST_P(LowRank, FullRankGivesTheKeysBack) {
  const Keys keys(1000, 2, 64, spectrum(128, 1), 3);
  Basis basis = fit(queue_, keys, 128);
  EXPECT_NEAR(basis.residual, 0, 1e-9);
  const std::vector<bf16> coefficients = project(queue_, keys, basis, keys.n_tokens);
  const Rebuilt rebuilt(queue_, keys, basis, coefficients, 8);
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
              value_of(keys.plane[static_cast<size_t>((j * 1000 + position) * 64 + i)]);
          error += std::pow(value_of(rebuilt.key(j, index, t)[i]) - want, 2);
        }
        ASSERT_LE(std::sqrt(error), kBf16Unit * (4 * std::sqrt(x_size) + std::sqrt(key_size)));
      }
    }
  }
}

TEST_P(LowRank, SameBitsForAnyThreadsAndPieces) {
  const Keys keys(9000, 2, 32, spectrum(64, 2), 2);
  Queue one({.n_threads = 1, .isa = GetParam()});
  Queue three({.n_threads = 3, .isa = GetParam()});
  Basis basis = fit(one, keys, 24);
  for (Queue* queue : {&queue_, &three}) {
    const Basis other = fit(*queue, keys, 24);
    EXPECT_EQ(basis.basis, other.basis);
    EXPECT_EQ(basis.mean, other.mean);
    EXPECT_EQ(basis.residual, other.residual);
  }
  // Tokens that come later, eight at a time, get the coefficients of the one-shot projection.
  const std::vector<bf16> coefficients = project(one, keys, basis, keys.n_tokens);
  EXPECT_EQ(coefficients, project(three, keys, basis, keys.n_tokens));
  EXPECT_EQ(coefficients, project(queue_, keys, basis, 8));
  const Rebuilt first(one, keys, basis, coefficients, 8);
  const Rebuilt second(three, keys, basis, coefficients, 8);
  EXPECT_EQ(first.memory, second.memory);
}

TEST(Eigen, VectorsSatisfyTheirEquation) {
  const int64_t n = 30;
  std::mt19937 random(static_cast<std::mt19937::result_type>(test::seed()));
  std::normal_distribution<double> normal;
  std::vector<double> matrix(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const double value = normal(random);
      matrix[static_cast<size_t>(i * n + j)] = matrix[static_cast<size_t>(j * n + i)] = value;
    }
  }
  const Eigenvectors result = leading_eigenvectors(matrix, n, 5);
  for (int64_t r = 0; r < 5; ++r) {
    const double* v = result.vectors.data() + r * n;
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += matrix[static_cast<size_t>(i * n + j)] * v[j];
      EXPECT_NEAR(sum, result.values[static_cast<size_t>(r)] * v[i], 1e-12);
    }
    EXPECT_GE(result.values[static_cast<size_t>(r)], result.values[static_cast<size_t>(r + 1)]);
  }
  matrix[3] = std::nan("");
  EXPECT_ANY_THROW(leading_eigenvectors(matrix, n, 5));
}

}  // namespace
}  // namespace tiercel::cpu
