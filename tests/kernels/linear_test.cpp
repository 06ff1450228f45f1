// The GPU's linear layers against fp64, and against themselves: rows alone and together, fused and
// in steps.
#include "kernels/linear.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>

#include "kernels/elementwise.h"
#include "kernels/synthetic.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/coded_matrix.h"
#include "tests/oracle/elementwise.h"
#include "tests/oracle/linear_case.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::DeviceVector;
using test::Expected;
using test::value_of;

using Case = test::LinearShape;

DeviceVector<bf16> random_bf16(int64_t n, std::mt19937& random, float mean = 0, float sigma = 1) {
  return test::random_rows<DeviceVector>(random, n, sigma, mean);
}

struct Problem : test::LinearProblem<DeviceVector> {
  using LinearProblem::LinearProblem;

  std::vector<Expected> expected() {
    const std::vector<double> old = held();
    std::vector<Expected> all = LinearProblem::expected();
    if (shape.m <= cuda::kMaxSkinnyRows || shape.f32) return all;
    // The matrix library rounds the product, and the product with one addend, before it adds the
    // (next) one: half an ulp of bf16 each, at most 2^-8 of the value.
    LinearParams p = params();
    const auto sums = [&](bool with_bias, bool with_old) {
      p.bias = with_bias ? bias.data() : nullptr;
      p.accumulate = with_old;
      return test::linear_oracle(p, old);
    };
    if (!shape.bias && !shape.accumulate) return all;
    const std::vector<Expected> product = sums(false, false);
    const bool both = shape.bias && shape.accumulate;
    const std::vector<Expected> with_bias = both ? sums(true, false) : product;
    const std::vector<Expected> with_old = both ? sums(false, true) : product;
    for (size_t i = 0; i < all.size(); ++i) {
      const auto size = [](const Expected& e) { return std::abs(e.value) + e.tolerance; };
      all[i].tolerance += 0x1p-8 * size(product[i]);
      if (both) all[i].tolerance += 0x1p-8 * std::max(size(with_bias[i]), size(with_old[i]));
    }
    return all;
  }
};

const Case kCases[] = {
    {1, 256, 1024},
    {2, 256, 96, true},
    {3, 40, 65, true, true},
    {7, 130, 33},
    {8, 256, 131, true},
    {8, 512, 64, false, true, true},
    {1, 64, 2048, false, false, true},
    {5, 34, 17, true, true, true},
    {4, 2, 3},
    {1, 33, 5, true},
    {8, 1, 9},
    {1, 4104, 9},
    {2, 4096, 24, true, true},
    {8, 6152, 17, true, false, true},
    {3, 2048, 200},
    {17, 256, 96, true, true},
    {17, 30, 61},
    {33, 130, 131, true, false, true},
    {33, 256, 64, false, true, true},
    {513, 66, 33, true, true},
    {9, 2050, 70, true, true},
    // The layers of the models in tests/golden.
    {1, 64, 256, true},
    {1, 256, 64, false, true},
    {1, 64, 48},
    {1, 48, 64, false, true},
    {6, 64, 32},
    {6, 32, 64, false, true},
    {1, 128, 64},
    {5, 192, 64, false, true},
    {1, 64, 256, false, false, true},
    {20, 64, 48},
    {20, 48, 64, false, true},
#if defined(TIERCEL_ON_DEVICE)
    {1, 4096, 1024},
    {1, 4096, 4096, true},
    {3, 2048, 32064, false, false, true},
    {1, 14336, 4096, false, true},
    {8, 14336, 1024, false, true},
    {4, 4096, 14336},
    {1000, 64, 65, true},
    {300, 4096, 1024, true},
    {19, 4096, 4097, false, false, true},
    {257, 1024, 1000, false, true},
#endif
};

TEST(KernelLinear, MatchesOracle) {
  for (const Case& c : kCases) {
    Problem problem(c);
    const std::vector<Expected> expected = problem.expected();
    for (cuda::Stream* stream : {&test::stream(), &test::older_stream()}) {
      problem.reset();
      cuda::linear(*stream, problem.params());
      stream->finish();
      problem.expect_close(expected);
    }
  }
}

// Addresses that are multiples of 2 bytes only.
TEST(KernelLinear, RowsAtAnyAddress) {
  for (int64_t m : {3, 19}) {
    for (bool move_x : {false, true}) {
      Problem problem({.m = m, .k = 64, .n = 48, .bias = true});
      const std::vector<Expected> expected = problem.expected();
      DeviceVector<bf16>& moved = move_x ? problem.x : problem.weight;
      moved.insert(moved.begin(), bf16(std::numeric_limits<float>::quiet_NaN()));
      LinearParams p = problem.params();
      (move_x ? p.x : p.weight.values) += 1;
      cuda::linear(test::stream(), p);
      test::stream().finish();
      problem.expect_close(expected);
    }
  }
}

// Up to eight rows; also where x passes through shared memory in panels, and for every number of
// octets a block.
TEST(KernelLinear, BitsDependNotOnOtherRows) {
#if defined(TIERCEL_ON_DEVICE)
  const std::vector<int64_t> widths = {90, 4000, 20000};
#else
  const std::vector<int64_t> widths = {90, 200, 1000};
#endif
  for (int64_t n : widths) {
    const int64_t k = n == 90 ? 4360 : 552;
    Problem all({.m = 8, .k = k, .n = n, .bias = true, .f32 = true});
    cuda::linear(test::stream(), all.params());
    test::stream().finish();
    const DeviceVector<float> together = all.out_f32;
    for (int64_t row = 0; row < 8; ++row) {
      all.reset();
      LinearParams part = all.params();
      part.x += row * k;
      part.m = std::min<int64_t>(1 + row % 3, 8 - row);
      cuda::linear(test::stream(), part);
      test::stream().finish();
      const auto bytes = static_cast<size_t>(part.m * n) * sizeof(float);
      ASSERT_EQ(std::memcmp(together.data() + row * n, all.out_f32.data(), bytes), 0) << row;
    }
  }
}

TEST(KernelLinear, WeightsInFlightChangeNoBits) {
  for (const Case& c : {Case{1, 4360, 90, true}, Case{8, 552, 200, false, true, true}, Case{3, 14344, 24}}) {
    Problem all(c);
    cuda::linear(test::stream(), all.params());
    test::stream().finish();
    const auto size = static_cast<size_t>(c.m * c.n) * size_of(all.params().out_type);
    const std::vector<std::byte> expected(static_cast<std::byte*>(all.params().out),
                                          static_cast<std::byte*>(all.params().out) + size);
    for (const cuda::ReadAhead ahead : {cuda::ReadAhead::kShort, cuda::ReadAhead::kLong}) {
      all.reset();
      cuda::linear_reading_ahead(test::stream(), all.params(), ahead);
      test::stream().finish();
      EXPECT_EQ(std::memcmp(expected.data(), all.params().out, size), 0) << c.k << " " << c.n;
    }
  }
}

// More rows than a warp's matrix product has, up to several launches; k in one panel and in many,
// and not a whole number of steps; few columns and many; at addresses and widths that nothing fast
// reads.
TEST(KernelLinear, RowsAloneHaveTheBitsOfOneRow) {
  for (const Case& s : {
           Case{19, 264, 90},
           Case{9, 1032, 40, true},
           Case{16, 512, 258, false, true},
           Case{33, 1544, 66, true, true, true},
           Case{64, 520, 270, false, false, true},
           Case{70, 328, 257, true},
           Case{12, 98, 30, true},
       }) {
    Problem all(s);
    const DeviceVector<bf16> norm = random_bf16(s.k, all.random, 1, 0.1f);
    DeviceVector<bf16> normed(static_cast<size_t>(s.m * s.k));
    DeviceVector<bf16> gated(static_cast<size_t>(s.m * s.n)), one = gated, up_result = gated;
    const auto of = [&](int64_t row, int64_t m) {
      LinearParams p = all.params();
      const auto size = static_cast<int64_t>(size_of(p.out_type));
      p.x += row * s.k;
      p.out = static_cast<std::byte*>(p.out) + row * s.n * size;
      p.m = m;
      p.alone = true;
      return p;
    };
    const auto mlp_of = [&](int64_t row, int64_t m, DeviceVector<bf16>& out) {
      return GatedLinearParams{.x = all.x.data() + row * s.k,
                               .norm_weight = norm.data(),
                               .gate = all.weight.data(),
                               .up = all.weight.data(),
                               .gate_bias = s.bias ? all.bias.data() : nullptr,
                               .out = out.data() + row * s.n,
                               .m = m,
                               .k = s.k,
                               .n = s.n,
                               .eps = 1e-5f,
                               .alone = true,
                               .normed = normed.data(),
                               .up_result = up_result.data()};
    };
    std::set<int64_t> rows = {0, 7, 8, s.m - 1};
    for (int i = 0; i < 4; ++i) rows.insert(static_cast<int64_t>(all.random() % s.m));
    // Every op once with all rows and then some of them by themselves.
    const auto expect_alike = [&](const char* what, auto op) {
      for (cuda::Stream* stream : {&test::stream(), &test::older_stream()}) {
        all.reset();
        op(*stream, 0, s.m, gated);
        stream->finish();
        const DeviceVector<bf16> out = all.out;
        const DeviceVector<float> out_f32 = all.out_f32;
        all.reset();
        for (const int64_t row : rows) {
          op(*stream, row, 1, one);
          stream->finish();
          const std::string where =
              fmt::format("{}, row {} of {} x {} x {}", what, row, s.m, s.k, s.n);
          const auto is_alike = [&](const auto& a, const auto& b) {
            const auto bytes = static_cast<size_t>(s.n) * sizeof(a[0]);
            return std::memcmp(a.data() + row * s.n, b.data() + row * s.n, bytes) == 0;
          };
          EXPECT_TRUE(is_alike(out, all.out)) << where;
          EXPECT_TRUE(is_alike(out_f32, all.out_f32)) << where;
          EXPECT_TRUE(is_alike(gated, one)) << where;
        }
      }
    };
    expect_alike("linear", [&](cuda::Stream& stream, int64_t row, int64_t m, auto&) {
      cuda::linear(stream, of(row, m));
    });
    expect_alike("norm_linear", [&](cuda::Stream& stream, int64_t row, int64_t m, auto&) {
      cuda::norm_linear(stream, {.linear = of(row, m),
                                 .norm_weight = norm.data(),
                                 .eps = 1e-5f,
                                 .normed = normed.data()});
    });
    expect_alike("gated_linear", [&](cuda::Stream& stream, int64_t row, int64_t m, auto& out) {
      cuda::gated_linear(stream, mlp_of(row, m, out));
    });
  }
}

using Coded = test::CodedMatrix<DeviceVector>;

// Few rows, rows alone and many, through one panel of k and several; those of eight bits have the bits that
// decoded weights give.
TEST(KernelLinear, CodedWeightsAreTheDecodedOnes) {
  constexpr int64_t kBesideParams = 26624;  // more params than an older device has room for beside a panel
  const std::pair<Case, bool> cases[] = {
      {{8, kBesideParams, 9}, false},
      {{1, 256, 70, true}, false},        {{3, 384, 64, false, true}, false},     {{8, 4224, 33, true}, false},
      {{2, 128, 9, true, true, true}, false}, {{1, 6144, 17}, false},             {{9, 1280, 40, true}, true},
      {{40, 384, 66, false, true}, true}, {{70, 2176, 19, true, false, true}, true}, {{20, 256, 130, true, true}, false},
      {{33, 640, 48, false, false, true}, false}};
  for (const WeightCodec codec : test::kCodecs) {
    for (const auto& [c, alone] : cases) {
      if (c.k == kBesideParams && codec != WeightCodec{WeightCode::kInt4, 32}) continue;
      Problem problem(c);
      Coded coded(problem.random, c.n, c.k, codec);
      problem.weight = coded.decoded;
      const std::vector<Expected> expected = problem.expected();
      for (cuda::Stream* stream : {&test::stream(), &test::older_stream()}) {
        const auto run = [&](const WeightMatrix& weight) {
          problem.reset();
          LinearParams p = problem.params();
          p.weight = weight;
          p.alone = alone;
          cuda::linear(*stream, p);
          stream->finish();
        };
        run(coded.matrix());
        problem.expect_close(expected);
        if (::testing::Test::HasFatalFailure()) return;
        if (codec.bits() == 4 && (alone || c.m <= cuda::kMaxSkinnyRows)) continue;
        const DeviceVector<bf16> out = problem.out;
        const DeviceVector<float> out_f32 = problem.out_f32;
        run(problem.weight.data());
        const auto n = static_cast<size_t>(c.m * c.n);
        EXPECT_EQ(std::memcmp(out.data(), problem.out.data(), c.f32 ? 0 : n * sizeof(bf16)), 0)
            << name_of(codec.code) << ", m " << c.m << " k " << c.k;
        EXPECT_EQ(std::memcmp(out_f32.data(), problem.out_f32.data(), c.f32 ? n * sizeof(float) : 0), 0)
            << name_of(codec.code) << ", m " << c.m << " k " << c.k;
      }
    }
  }
}

// More columns than are decoded at once.
TEST(KernelLinear, CodedWeightsAreDecodedSomeAtATime) {
  const Case c{9, 128, cuda::decoded_scratch_bytes() / 256 + 70, true};
  Problem problem(c);
  Coded coded(problem.random, c.n, c.k, {WeightCode::kInt4, 64});
  LinearParams p = problem.params();
  p.weight = coded.plain();
  cuda::linear(test::stream(), p);
  test::stream().finish();
  const DeviceVector<bf16> out = problem.out;
  problem.reset();
  p.weight = coded.matrix();
  cuda::linear(test::stream(), p);
  test::stream().finish();
#if defined(TIERCEL_ON_DEVICE)
  // A product of other columns is another one to the library, which may add in another order.
  for (size_t i = 0; i < out.size(); ++i) {
    const float a = static_cast<float>(out.data()[i]), b = static_cast<float>(problem.out.data()[i]);
    ASSERT_NEAR(a, b, 0.01f + 0.01f * std::abs(a)) << i;
  }
#else
  EXPECT_TRUE(out == problem.out);
#endif
}

// Alone or together, with norm and gate folded in or in steps.
TEST(KernelLinear, CodedRowsAloneHaveTheBitsOfOneRow) {
  for (const WeightCodec codec : {WeightCodec{WeightCode::kInt4, 32}, WeightCodec{WeightCode::kInt4, 128}, WeightCodec{WeightCode::kInt8, 64},
                                  WeightCodec{WeightCode::kE4M3, 128}, WeightCodec{WeightCode::kInt4Min, 32},
                                  WeightCodec{WeightCode::kInt8x16, 32}}) {
    for (const Case& s : {Case{70, 1280, 90}, Case{12, 384, 258}, Case{5, 2176, 40}}) {
      Problem all(s);
      Coded gate(all.random, s.n, s.k, codec), up(all.random, s.n, s.k, codec);
      const DeviceVector<bf16> norm = random_bf16(s.k, all.random, 1, 0.1f);
      DeviceVector<bf16> normed(static_cast<size_t>(s.m * s.k)), up_result(static_cast<size_t>(s.m * s.n));
      DeviceVector<bf16> together(static_cast<size_t>(s.m * s.n)), one = together, steps = together;
      const auto mlp = [&](cuda::Stream& stream, int64_t row, int64_t m, DeviceVector<bf16>& out) {
        cuda::gated_linear(stream, {.x = all.x.data() + row * s.k,
                                    .norm_weight = norm.data(),
                                    .gate = gate.matrix(),
                                    .up = up.matrix(),
                                    .out = out.data() + row * s.n,
                                    .m = m,
                                    .k = s.k,
                                    .n = s.n,
                                    .eps = 1e-5f,
                                    .alone = true,
                                    .normed = normed.data(),
                                    .up_result = up_result.data()});
        stream.finish();
      };
      const auto product = [&](const WeightMatrix& weight, int64_t row, bf16* out) {
        cuda::norm_linear(test::stream(), {.linear = {.x = all.x.data() + row * s.k,
                                                      .weight = weight,
                                                      .out = out,
                                                      .m = 1,
                                                      .k = s.k,
                                                      .n = s.n,
                                                      .alone = true},
                                           .norm_weight = norm.data(),
                                           .eps = 1e-5f,
                                           .normed = normed.data()});
      };
      for (cuda::Stream* stream : {&test::stream(), &test::older_stream()}) {
        mlp(*stream, 0, s.m, together);
        for (const int64_t row : {int64_t{0}, int64_t{3}, s.m - 1}) {
          mlp(*stream, row, 1, one);
          product(gate.matrix(), row, steps.data());
          product(up.matrix(), row, up_result.data());
          cuda::swiglu(test::stream(), {steps.data(), up_result.data(), steps.data(), s.n});
          test::stream().finish();
          const auto bytes = static_cast<size_t>(s.n) * sizeof(bf16);
          EXPECT_EQ(std::memcmp(together.data() + row * s.n, one.data() + row * s.n, bytes), 0)
              << name_of(codec.code) << ", row " << row << " of " << s.m;
          EXPECT_EQ(std::memcmp(steps.data(), one.data() + row * s.n, bytes), 0)
              << name_of(codec.code) << ", row " << row << " of " << s.m;
        }
      }
    }
  }
}

TEST(KernelLinear, NanAndInfReachExactlyTheirOutputs) {
  test::expect_nan_and_infinity_reach_their_outputs<DeviceVector>(
      {1, 8, 40},
      test::waiting([](cuda::Stream& stream, const LinearParams& p) { cuda::linear(stream, p); }));
}

TEST(KernelLinear, NothingToDo) {
  Problem problem({.m = 1, .k = 8, .n = 8});
  LinearParams p = problem.params();
  p.m = 0;
  cuda::linear(test::stream(), p);
  test::stream().finish();
  EXPECT_TRUE(std::isnan(problem.got(0)));
}

// Sums of squares of small integers are exact in any order; so the norms agree, and all bits with
// them.
TEST(KernelLinear, NormFoldedInIsNormThenLinear) {
  for (const Case& c : {Case{1, 256, 72, true}, Case{3, 2056, 40, false, true},
                        Case{8, 4360, 250, false, false, true}, Case{1, 64, 1000}}) {
    Problem problem(c);
    const DeviceVector<bf16> norm = random_bf16(c.k, problem.random, 1, 0.1f);
    for (bf16& x : problem.x) x = bf16(std::rint(4 * static_cast<float>(x)));
    const DeviceVector<bf16> x = problem.x;
    const NormLinearParams fused{
        .linear = problem.params(), .norm_weight = norm.data(), .eps = 1e-5f};
    ASSERT_TRUE(cuda::can_fuse(fused));
    cuda::norm_linear(test::stream(), fused);
    test::stream().finish();
    const DeviceVector<bf16> out = problem.out;
    const DeviceVector<float> out_f32 = problem.out_f32;
    problem.reset();
    cuda::rms_norm(test::stream(), {.x = x.data(),
                                    .weight = norm.data(),
                                    .out = problem.x.data(),
                                    .n_rows = c.m,
                                    .width = c.k,
                                    .eps = 1e-5f});
    cuda::linear(test::stream(), problem.params());
    test::stream().finish();
    problem.expect_close(problem.expected());
    EXPECT_EQ(std::memcmp(out.data(), problem.out.data(), out.size() * sizeof(bf16)), 0) << c.k;
    EXPECT_EQ(std::memcmp(out_f32.data(), problem.out_f32.data(), out_f32.size() * sizeof(float)),
              0)
        << c.k;
  }
}

TEST(KernelLinear, GateFoldedInIsLinearThenSwiglu) {
  for (const Case& c : {Case{1, 256, 72}, Case{4, 2056, 41}, Case{8, 4360, 48}, Case{2, 64, 3}}) {
    Problem gate(c), up(c);
    up.weight = random_bf16(c.n * c.k, gate.random, 0, 0.1f);
    up.x = gate.x;
    DeviceVector<bf16> want = gate.out, got = gate.out;
    const GatedLinearParams fused{.x = gate.x.data(),
                                  .gate = gate.weight.data(),
                                  .up = up.weight.data(),
                                  .out = got.data(),
                                  .m = c.m,
                                  .k = c.k,
                                  .n = c.n};
    ASSERT_TRUE(cuda::can_fuse(fused));
    cuda::gated_linear(test::stream(), fused);
    cuda::linear(test::stream(), gate.params());
    cuda::linear(test::stream(), up.params());
    cuda::swiglu(
        test::stream(),
        {.gate = gate.out.data(), .up = up.out.data(), .out = want.data(), .n = c.m * c.n});
    test::stream().finish();
    EXPECT_EQ(got, want) << c.k;

    // With the norm: as gated_linear of what norm_linear's rows are.
    const DeviceVector<bf16> norm = random_bf16(c.k, gate.random, 1, 0.1f);
    GatedLinearParams normed = fused;
    normed.norm_weight = norm.data();
    normed.eps = 1e-5f;
    cuda::gated_linear(test::stream(), normed);
    for (Problem* problem : {&gate, &up}) {
      cuda::norm_linear(test::stream(),
                        {.linear = problem->params(), .norm_weight = norm.data(), .eps = 1e-5f});
    }
    cuda::swiglu(
        test::stream(),
        {.gate = gate.out.data(), .up = up.out.data(), .out = want.data(), .n = c.m * c.n});
    test::stream().finish();
    EXPECT_EQ(got, want) << c.k;
  }
}

// n elements of device memory, which a chain of kernels is fast enough in for its links to overlap.
struct Memory {
  Memory(cuda::Stream& s, int64_t n)
      : stream(s), bytes(n * 2), data(static_cast<bf16*>(cuda::allocate(s, bytes))) {}
  ~Memory() { cuda::release(stream, data, bytes); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  cuda::Stream& stream;
  int64_t bytes;
  bf16* data;
};

// Layers as a decode step has them, and what is left in the residual stream.
std::vector<bf16> run_layers(cuda::Stream& stream, int64_t m) {
#if defined(TIERCEL_ON_DEVICE)
  constexpr int64_t kWidth = 2048, kInner = 5632, kLayers = 64;
#else
  constexpr int64_t kWidth = 64, kInner = 160, kLayers = 2;
#endif
  constexpr int64_t kProducts = kWidth * kWidth, kGates = kWidth * kInner;
  Memory x(stream, m * kWidth), y(stream, m * kWidth), h(stream, m * kInner), norm(stream, kWidth);
  Memory weights(stream, 2 * kProducts + 3 * kGates);
  cuda::fill_random(stream, {.out = x.data, .n = m * kWidth, .seed = 1});
  cuda::fill_random(stream, {.out = norm.data, .n = kWidth, .seed = 2, .scale = 0.1f, .offset = 1});
  cuda::fill_random(stream, {.out = weights.data,
                             .n = 2 * kProducts + 3 * kGates,
                             .seed = 3,
                             .scale = 1 / std::sqrt(static_cast<float>(kWidth))});
  const bf16* products = weights.data;
  const bf16* gates = products + 2 * kProducts;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const auto product = [&](const bf16* from, const bf16* weight, const Memory& to, int64_t k,
                             bool accumulate) {
      return LinearParams{.x = from,
                          .weight = weight,
                          .out = to.data,
                          .m = m,
                          .k = k,
                          .n = kWidth,
                          .accumulate = accumulate};
    };
    cuda::norm_linear(stream, {.linear = product(x.data, products, y, kWidth, false),
                               .norm_weight = norm.data,
                               .eps = 1e-5f});
    cuda::rms_norm(stream, {y.data, norm.data, y.data, m, kWidth, 1e-5f});
    cuda::linear(stream, product(y.data, products + kProducts, x, kWidth, true));
    cuda::gated_linear(stream, {.x = x.data,
                                .norm_weight = norm.data,
                                .gate = gates,
                                .up = gates + kGates,
                                .out = h.data,
                                .m = m,
                                .k = kWidth,
                                .n = kInner,
                                .eps = 1e-5f});
    cuda::linear(stream, product(h.data, gates + 2 * kGates, x, kInner, true));
  }
  std::vector<bf16> result(static_cast<size_t>(m * kWidth));
  stream.copy_bytes(result.data(), x.bytes, x.data, x.bytes, x.bytes, 1);
  stream.finish();
  return result;
}

// Kernels that begin before their predecessors have ended read nothing too early.
TEST(KernelLinear, OverlapOfKernelsChangesNoBits) {
  cuda::Stream overlapped({.programmatic = true}), ordered({.programmatic = false});
  for (const int64_t m : {1, 3}) {
    const std::vector<bf16> want = run_layers(ordered, m);
    for (const bf16 value : want) ASSERT_TRUE(std::isfinite(static_cast<float>(value)));
    for (int repeat = 0; repeat < 3; ++repeat) EXPECT_EQ(run_layers(overlapped, m), want) << m;
  }
}

}  // namespace
}  // namespace tiercel
