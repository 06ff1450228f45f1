// Low-rank keys on the GPU: fit, project and rebuild against fp64.
#include "kernels/lowrank.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/eigen.h"
#include "kernels/codec.h"
#include "tests/kernels/device_rope.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/codec.h"
#include "tests/oracle/linear.h"
#include "tests/oracle/lowrank.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::DeviceRope;
using test::DeviceVector;
using test::kBf16Unit;
using test::Matrix;
using test::value_of;

// Keys with a given spectrum: mean + coefficients (sigma_i) times fixed random directions, turned
// and rounded into a plane whose row 0 is token `first`. From token 4096 on the mean moves by
// drift: the mean of the first tokens is then not the mean of all.
struct Keys {
  struct Shape {
    int64_t n_tokens;
    int32_t n_kv_heads, head_dim;
    int64_t first = 0;
  };
  Keys(const Shape& shape, const std::vector<double>& sigmas, double mean_size, double drift = 0)
      : n_tokens(shape.n_tokens),
        first(shape.first),
        n_kv_heads(shape.n_kv_heads),
        head_dim(shape.head_dim),
        w(shape.n_kv_heads * shape.head_dim),
        inv_freq(test::rope_frequencies(shape.head_dim / 2, 1e4)),
        table(inv_freq, first + n_tokens),
        plane(static_cast<size_t>(n_tokens * w)) {
    std::mt19937 random(static_cast<std::mt19937::result_type>(test::seed()));
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
      const auto [cl, sl] = test::turn_oracle(first + t, inv_freq[static_cast<size_t>(i)]);
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
    return test::unrotate_oracle(plane.data(), n_tokens * head_dim, n_kv_heads, head_dim, t,
                                 first + t, inv_freq);
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
  DeviceRope table;
  DeviceVector<bf16> plane;
};

// Everything starts as NaN: what an op leaves out shows.
struct Basis {
  Basis(int64_t w, int64_t rank)
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
  DeviceVector<bf16> basis;
  DeviceVector<float> mean;
  DeviceVector<double> residual;
  int64_t rank;
};

Basis fit(const Keys& keys, int64_t rank, cuda::EigenMethod method = cuda::EigenMethod::kAuto) {
  Basis result(keys.w, rank);
  cuda::fit_basis_with(test::stream(),
                       {.keys = keys.plane.data(),
                        .head_stride = keys.n_tokens * keys.head_dim,
                        .n_tokens = keys.n_tokens,
                        .n_kv_heads = keys.n_kv_heads,
                        .head_dim = keys.head_dim,
                        .rope = keys.table.rope,
                        .lowrank = result.view(),
                        .residual_energy = result.residual.data()},
                       method);
  test::stream().finish();
  return result;
}

// A basis of random directions, not orthonormal: projecting and rebuilding must not care.
Basis random_basis(const Keys& keys, int64_t rank, double mean_size) {
  std::mt19937 random(static_cast<std::mt19937::result_type>(test::seed() + 1));
  std::normal_distribution<float> normal;
  Basis result(keys.w, rank);
  const float scale = 1 / std::sqrt(static_cast<float>(keys.w));
  for (bf16& value : result.basis) value = bf16(scale * normal(random));
  for (float& value : result.mean) value = static_cast<float>(mean_size) * normal(random);
  return result;
}

DeviceVector<bf16> project(const Keys& keys, Basis& basis, int64_t piece) {
  DeviceVector<bf16> result(static_cast<size_t>((keys.first + keys.n_tokens) * basis.rank),
                            bf16::from_bits(0x7fc1));
  for (int64_t row = 0; row < keys.n_tokens; row += piece) {
    cuda::project_keys(test::stream(), {.keys = keys.plane.data() + row * keys.head_dim,
                                        .head_stride = keys.n_tokens * keys.head_dim,
                                        .first_row = keys.first + row,
                                        .first_token = keys.first + row,
                                        .n_tokens = std::min(piece, keys.n_tokens - row),
                                        .n_kv_heads = keys.n_kv_heads,
                                        .head_dim = keys.head_dim,
                                        .rope = keys.table.rope,
                                        .lowrank = basis.view(),
                                        .coefficients = result.data()});
  }
  test::stream().finish();
  return result;
}

// Rebuilds every whole chunk of the keys, in a scrambled order and into scrambled slots. The last
// of each list is left out.
struct Rebuilt {
  Rebuilt(const Keys& keys, Basis& basis, const DeviceVector<bf16>& coefficients,
          int32_t chunk_tokens, RowCodec codec = RowCodec::kBf16,
          const DeviceVector<std::byte>& coded = {})
      : tokens(chunk_tokens),
        n_chunks((keys.first + keys.n_tokens) / chunk_tokens -
                 (keys.first + chunk_tokens - 1) / chunk_tokens),
        d(keys.head_dim) {
    const size_t total = static_cast<size_t>(n_chunks * keys.n_kv_heads);
    DeviceVector<int32_t> counts(static_cast<size_t>(keys.n_kv_heads),
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
    cuda::rebuild_keys(test::stream(), {.coefficients = coefficients.data(),
                                        .coded = coded.data(),
                                        .codec = codec,
                                        .lowrank = basis.view(),
                                        .rope = keys.table.rope,
                                        .miss_chunks = chunks.data(),
                                        .miss_slots = slots.data(),
                                        .miss_counts = counts.data(),
                                        .stride = n_chunks,
                                        .slots = memory.data(),
                                        .slot_head_stride = head_stride,
                                        .chunk_tokens = tokens,
                                        .n_kv_heads = keys.n_kv_heads,
                                        .head_dim = keys.head_dim});
    test::stream().finish();
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
  DeviceVector<int32_t> chunks, slots;
  std::vector<int64_t> n_rebuilt;
  DeviceVector<bf16> memory;
};

std::vector<double> spectrum(int64_t n, double decades) {
  std::vector<double> result;
  for (int64_t i = 0; i < n; ++i) {
    result.push_back(std::pow(10.0, -decades * static_cast<double>(i) / static_cast<double>(n)));
  }
  return result;
}

// ---- project and rebuild: each step against fp64 of its own inputs ----

void expect_projected(const Keys& keys, const Basis& basis, const DeviceVector<bf16>& coefficients,
                      int64_t every) {
  for (int64_t t = 0; t < keys.n_tokens; t += every) {
    const std::vector<double> row = keys.unrotated(t);
    for (int64_t r = 0; r < basis.rank; ++r) {
      double sum = 0, squares = 0;
      for (size_t i = 0; i < row.size(); ++i) {
        const double x = row[i] - static_cast<double>(basis.mean[i]);
        const double term =
            x * value_of(basis.basis[i * static_cast<size_t>(basis.rank) + static_cast<size_t>(r)]);
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

void expect_rebuilt(const Keys& keys, const Basis& basis, const DeviceVector<bf16>& coefficients,
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
    size[static_cast<size_t>(i)] = test::dot_tolerance(rank, magnitude) + 4e-7 * magnitude;
  }
  const bf16* got = rebuilt.key(j, index, t);
  for (int64_t i = 0; i < half; ++i) {
    const auto [cl, sl] = test::turn_oracle(position, keys.inv_freq[static_cast<size_t>(i)]);
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
void expect_untouched(const Rebuilt& rebuilt, int64_t j) {
  for (int64_t index = 0; index < rebuilt.n_chunks; ++index) {
    const bool whole = index >= rebuilt.n_rebuilt[static_cast<size_t>(j)];
    const bf16* from = rebuilt.key(j, index, whole ? 0 : rebuilt.tokens);
    const int64_t n = rebuilt.tokens * rebuilt.d * (whole ? 2 : 1);
    ASSERT_TRUE(std::all_of(from, from + n, [](bf16 x) { return x == bf16(55.0f); }));
  }
}

struct StepCase {
  Keys::Shape keys;
  int32_t chunk_tokens;
  int64_t rank;
};

TEST(CudaLowRank, ProjectAndRebuildMatchTheirEquations) {
  const std::vector<StepCase> cases = {
    {{330, 2, 64, 900}, 8, 40},   // across a row of the coarse table
    {{201, 1, 128}, 5, 37},       // rows of the basis not aligned; chunks across tiles
    {{200, 3, 80}, 64, 100},      // a head that is no power of two; a head without misses
    {{100, 1, 96}, 8, 96},        // full rank
    {{130, 2, 128}, 8, 160},      // the default rank
    {{70, 2, 256}, 8, 168},       // two ranges of pairs; two panels of the basis
    {{70, 2, 256}, 16, 330},      // three tiles of columns
    {{100, 5, 16}, 3, 33},        // a small head
    {{60, 3, 2}, 1, 3},           // the smallest head
    {{90, 2, 10}, 4, 7},          // an odd half
    {{66, 1, 192, 3000}, 8, 24},  // three quarters of the tiles
    {{40, 1, 320}, 8, 17},        // several ranges of channels
#if defined(TIERCEL_ON_DEVICE)
    {{20000, 8, 128, 70000}, 8, 160},
    {{5000, 4, 256}, 8, 256},
    {{3000, 8, 64}, 16, 512},
#endif
  };
  for (const StepCase& c : cases) {
    SCOPED_TRACE(testing::Message()
                 << c.keys.n_kv_heads << " x " << c.keys.head_dim << " rank " << c.rank);
    const Keys keys(c.keys, spectrum(std::min<int64_t>(40, c.keys.n_kv_heads * c.keys.head_dim), 2),
                    1);
    Basis basis = random_basis(keys, c.rank, 1);
    const DeviceVector<bf16> coefficients = project(keys, basis, keys.n_tokens);
    const int64_t every = std::max<int64_t>(1, keys.n_tokens / 40);
    ASSERT_NO_FATAL_FAILURE(expect_projected(keys, basis, coefficients, every));
    const Rebuilt rebuilt(keys, basis, coefficients, c.chunk_tokens);
    const int64_t step = std::max<int64_t>(1, rebuilt.n_chunks / 40);
    for (int64_t j = 0; j < keys.n_kv_heads; ++j) {
      for (int64_t i = 0; i < rebuilt.n_rebuilt[static_cast<size_t>(j)]; i += step) {
        ASSERT_NO_FATAL_FAILURE(
            expect_rebuilt(keys, basis, coefficients, rebuilt, j, i, i % c.chunk_tokens));
      }
      ASSERT_NO_FATAL_FAILURE(expect_untouched(rebuilt, j));
    }
  }
}

// Tokens that come later, eight at a time, get the coefficients of the one-shot projection.
TEST(CudaLowRank, PiecesGiveTheSameBits) {
  const Keys keys({150, 2, 64, 1000}, spectrum(128, 2), 2);
  Basis basis = random_basis(keys, 24, 1);
  const DeviceVector<bf16> whole = project(keys, basis, keys.n_tokens);
  EXPECT_TRUE(whole == project(keys, basis, 8));
  EXPECT_TRUE(whole == project(keys, basis, 100));
  const Rebuilt first(keys, basis, whole, 8), second(keys, basis, whole, 8);
  EXPECT_TRUE(first.memory == second.memory);
}

// Coded coefficients rebuild what the same rows do in bf16.
TEST(CudaLowRank, CodedCoefficients) {
  const std::vector<StepCase> cases = {
      {{130, 2, 64, 900}, 8, 32},
      {{90, 1, 128}, 5, 96},
      {{70, 2, 128}, 8, 160},
      {{70, 3, 256}, 8, 352},  // panels of the basis
  };
  for (const StepCase& c : cases) {
    const Keys keys(c.keys, spectrum(32, 2), 1);
    Basis basis = random_basis(keys, c.rank, 1);
    const DeviceVector<bf16> exact = project(keys, basis, keys.n_tokens);
    for (const RowCodec codec : {RowCodec::kInt8, RowCodec::kInt4}) {
      SCOPED_TRACE(testing::Message() << "rank " << c.rank << ", " << code_bits(codec) << " bits");
      const int64_t n = keys.first + keys.n_tokens, bytes = row_bytes(codec, c.rank);
      DeviceVector<std::byte> coded(static_cast<size_t>(n * bytes));
      EncodeParams p;
      p.rows = exact.data() + keys.first * c.rank;
      p.first_row = p.first_token = keys.first;
      p.n_tokens = keys.n_tokens;
      p.n_kv_heads = 1;
      p.width = c.rank;
      p.codec = codec;
      p.codes = coded.data();
      cuda::encode_rows(test::stream(), p);
      test::stream().finish();
      DeviceVector<bf16> decoded(exact);
      for (int64_t t = keys.first; t < n; ++t) {
        const std::vector<float> row = test::decoded_row(coded.data() + t * bytes, codec, c.rank);
        std::transform(row.begin(), row.end(), decoded.begin() + t * c.rank,
                       [](float x) { return bf16(x); });
      }
      const Rebuilt want(keys, basis, decoded, c.chunk_tokens);
      const Rebuilt got(keys, basis, {}, c.chunk_tokens, codec, coded);
      ASSERT_TRUE(got.memory == want.memory);
      ASSERT_FALSE(std::all_of(got.memory.begin(), got.memory.end(),
                               [](bf16 x) { return x == bf16(55.0f); }));
    }
  }
}

// Full rank: nothing is lost but roundings. Per token, with x = key - mean: 2^-8 |x| each for the
// roundings of x, of the coefficients, and of the basis (twice), and 2^-8 |key| for the result.
TEST(CudaLowRank, FullRankGivesTheKeysBack) {
  const Keys keys({400, 2, 64}, spectrum(128, 1), 3);
  Basis basis = fit(keys, 128);
  EXPECT_NEAR(basis.residual[0], 0, 1e-9);
  const DeviceVector<bf16> coefficients = project(keys, basis, keys.n_tokens);
  const Rebuilt rebuilt(keys, basis, coefficients, 8);
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
              value_of(keys.plane[static_cast<size_t>((j * 400 + position) * 64 + i)]);
          error += std::pow(value_of(rebuilt.key(j, index, t)[i]) - want, 2);
        }
        ASSERT_LE(std::sqrt(error), kBf16Unit * (4 * std::sqrt(x_size) + std::sqrt(key_size)));
      }
    }
  }
}

// ---- fit ----

struct FitCase {
  Keys::Shape keys;
  int64_t rank;
  double mean_size, drift;
  cuda::EigenMethod method = cuda::EigenMethod::kAuto;
};

// Rounding shifted keys to bf16 adds at most (2^-8)^2 / 3 of their energy to the Gram matrix, and
// rounding the basis loses at most four times that in a round trip.
TEST(CudaLowRank, BasisIsAsGoodAsTheBestOne) {
  const std::vector<FitCase> cases = {
    {{4500, 2, 64}, 40, 0, 0},
    {{9000, 2, 64}, 40, 7, 0.2},  // two panels, and a mean that is not the shift
    {{600, 1, 80}, 33, 1, 0},
    {{300, 3, 66}, 50, 1, 0},  // two tiles of channels, odd halves
    {{37, 1, 32}, 32, 2, 0},
    {{200, 3, 2}, 5, 1, 0},
#if defined(TIERCEL_ON_DEVICE)
    {{20000, 4, 128}, 160, 1, 0.1, cuda::EigenMethod::kDense},
    {{20000, 4, 128}, 160, 1, 0.1, cuda::EigenMethod::kSubspace},
    {{10000, 8, 128}, 160, 3, 0.1, cuda::EigenMethod::kAuto},
    {{10000, 4, 64}, 64, 3, 0.1, cuda::EigenMethod::kAuto},
#endif
  };
  for (const FitCase& c : cases) {
    const int64_t channels = int64_t{c.keys.n_kv_heads} * c.keys.head_dim;
    SCOPED_TRACE(testing::Message() << c.keys.n_tokens << " tokens, " << channels << " channels");
    const Keys keys(c.keys, spectrum(channels, 2), c.mean_size, c.drift);
    const Basis basis = fit(keys, c.rank, c.method);
    const Matrix rows = keys.unrotated();
    const std::vector<double> mean = test::mean_oracle(rows);
    const std::vector<double> covariance = test::covariance_oracle(rows, mean);
    const cpu::Eigenvectors best = cpu::leading_eigenvectors(covariance, keys.w, c.rank);
    double trace = 0, kept = 0;
    for (size_t i = 0; i < best.values.size(); ++i) {
      trace += best.values[i];
      kept += static_cast<int64_t>(i) < c.rank ? best.values[i] : 0;
    }
    const double optimum = std::max(0.0, 1 - kept / trace);
    const std::vector<double> got = basis.values();
    const double lost = test::lost_energy(covariance, got, static_cast<size_t>(keys.w),
                                          static_cast<size_t>(c.rank));
    const double unit = kBf16Unit * kBf16Unit / 3;
    EXPECT_LE(lost, optimum * 1.01 + 4 * unit);
    EXPECT_NEAR(basis.residual[0], optimum, optimum * 0.01 + unit);
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
TEST(CudaLowRank, BiasedKeys) {
  const Keys biased({4500, 2, 64}, std::vector<double>(8, 10.0), 50);
  const Basis basis = fit(biased, 8);
  const Matrix rows = biased.unrotated();
  const std::vector<double> mean = test::mean_oracle(rows);
  const std::vector<double> covariance = test::covariance_oracle(rows, mean);
  const cpu::Eigenvectors best = cpu::leading_eigenvectors(covariance, biased.w, 8);
  const double trace = std::accumulate(best.values.begin(), best.values.end(), 0.0);
  const double kept = std::accumulate(best.values.begin(), best.values.begin() + 8, 0.0);
  EXPECT_NEAR(basis.residual[0], 1 - kept / trace, 1e-4);
  EXPECT_LT(basis.residual[0], 0.02);
  for (size_t i = 0; i < mean.size(); ++i) {
    EXPECT_NEAR(static_cast<double>(basis.mean[i]), mean[i], 3e-6 * (std::abs(mean[i]) + 10));
  }
}

TEST(CudaLowRank, PlantedRankIsFound) {
  const Keys keys({4200, 2, 64}, std::vector<double>(20, 1.0), 0.1);
  const Basis basis = fit(keys, 20);
  // What remains is the rounding of the keys themselves.
  EXPECT_LT(basis.residual[0], kBf16Unit * kBf16Unit);
}

TEST(CudaLowRank, SameKeysSameBits) {
  const Keys keys({700, 2, 32}, spectrum(64, 2), 2);
  const Basis first = fit(keys, 24), second = fit(keys, 24);
  EXPECT_TRUE(first.basis == second.basis);
  EXPECT_TRUE(first.mean == second.mean);
  EXPECT_TRUE(first.residual == second.residual);
}

// Every column of a basis has length 1 and stands upright on the others, whatever the keys are.
void expect_orthonormal(const Basis& basis, int64_t w) {
  const std::vector<double> values = basis.values();
  const size_t rank = static_cast<size_t>(basis.rank);
  for (size_t a = 0; a < rank; ++a) {
    for (size_t b = 0; b <= a; ++b) {
      double sum = 0;
      for (size_t i = 0; i < static_cast<size_t>(w); ++i) {
        sum += values[i * rank + a] * values[i * rank + b];
      }
      // Each vector is rounded: 2^-8 of its length at most, and twice that for their product.
      ASSERT_NEAR(sum, a == b ? 1 : 0, 2.1 * kBf16Unit) << a << " and " << b;
    }
  }
}

TEST(CudaLowRank, DegenerateKeys) {
  std::vector<std::pair<Keys::Shape, int64_t>> shapes = {{{100, 2, 32}, 20}, {{7, 2, 32}, 20}};
#if defined(TIERCEL_ON_DEVICE)
  shapes.push_back({{5000, 8, 128}, 160});
  shapes.push_back({{40, 8, 128}, 160});
#endif
  for (const auto& [shape, rank] : shapes) {
    const std::vector<double> few(3, 1.0);
    for (const double size : {0.0, 1.0}) {  // all keys equal; fewer directions than the rank
      std::vector<double> sigmas(few);
      for (double& sigma : sigmas) sigma *= size;
      const Keys keys(shape, sigmas, 1);
      const Basis basis = fit(keys, rank);
      ASSERT_GE(basis.residual[0], 0);
      ASSERT_LE(basis.residual[0], 1);
      ASSERT_NO_FATAL_FAILURE(expect_orthonormal(basis, keys.w));
    }
    Keys zeros(shape, few, 1);
    std::fill(zeros.plane.begin(), zeros.plane.end(), bf16(0.0f));
    const Basis basis = fit(zeros, rank);
    EXPECT_EQ(basis.residual[0], 0);
    ASSERT_NO_FATAL_FAILURE(expect_orthonormal(basis, zeros.w));
    for (float value : basis.mean) ASSERT_EQ(value, 0);
  }
}

TEST(CudaLowRank, KeysThatAreNotFiniteShowInTheResidual) {
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    Keys keys({90, 2, 32}, spectrum(64, 1), 1);
    keys.plane[90 * 32 + 50 * 32 + 7] = bf16(bad);
    const Basis basis = fit(keys, 10);
    EXPECT_TRUE(std::isnan(basis.residual[0]));
  }
}

TEST(CudaLowRank, ScratchIsEnoughForOneLayer) {
  // 8 heads of 128, rank 160: what a layer of an 8B model takes.
  EXPECT_LT(cuda::fit_basis_scratch_bytes(1024, 160), int64_t{128} << 20);
}

}  // namespace
}  // namespace tiercel
