// linear against fp64 on every level of this machine, and against itself: rows alone and together,
// one thread and several.
#include "cpu/linear.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <random>

#include "tests/cpu/tested_isas.h"
#include "tests/oracle/coded_matrix.h"
#include "tests/oracle/linear_case.h"
#include "tests/seed.h"

namespace tiercel::cpu {
namespace {

using test::Expected;

using Case = test::LinearShape;
template <typename T>
using Memory = std::vector<T>;
using Problem = test::LinearProblem<Memory>;

const Case kCases[] = {
    {1, 256, 1024},
    {2, 256, 96, true},
    {3, 40, 65, true, true},
    {7, 130, 33},
    {16, 256, 131, true},
    {16, 512, 64, false, true, true},
    {1, 64, 2048, false, false, true},
    {5, 34, 17, true, true, true},
    {4, 2, 3},
    {17, 256, 96, true, true},
    {17, 30, 61},
    {33, 130, 131, true, false, true},
    {33, 256, 64, false, true, true},
    {512, 64, 80},
    {513, 66, 33, true, true},
    {1000, 64, 65, true},
    {19, 2050, 70, true, true},
    {23, 3000, 20, false, false, true},
    {1, 4100, 9},
    {29, 2, 5},
    {2, 32, 1},
    {18, 32, 7, true},
    {18, 32, 127},
    {100, 256, 48, true, true, true},
    {128, 64, 600},
    {40, 16400, 9},
    {200, 64, 128, true, true},
    {77, 1096, 300, true, true},
    {128, 544, 161, true, false, true},
};

class Linear : public ::testing::TestWithParam<Isa> {};
INSTANTIATE_TEST_SUITE_P(Levels, Linear, ::testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(Linear, MatchesOracle) {
  Queue queue({.n_threads = 2, .isa = GetParam()});
  for (const Case& c : kCases) {
    Problem problem(c);
    const std::vector<Expected> expected = problem.expected();
    linear(queue, problem.params());
    problem.expect_close(expected);
  }
}

TEST_P(Linear, BitsDependNeitherOnThreadsNorOnOtherRows) {
  for (const auto& [few, many] : {std::pair<int64_t, int64_t>{1, 16}, {17, 600}}) {
    for (bool f32 : {false, true}) {
      Problem all({.m = many, .k = 1096, .n = 200, .bias = true, .f32 = f32});
      Queue one({.n_threads = 1, .isa = GetParam()});
      linear(one, all.params());
      const std::vector<bf16> out = all.out;
      const std::vector<float> out_f32 = all.out_f32;
      for (int n_threads : {2, 3}) {
        all.reset();
        Queue several({.n_threads = n_threads, .isa = GetParam()});
        linear(several, all.params());
        EXPECT_EQ(std::memcmp(out.data(), all.out.data(), out.size() * sizeof(bf16)), 0);
        EXPECT_EQ(std::memcmp(out_f32.data(), all.out_f32.data(), out_f32.size() * 4), 0);
      }
      for (int64_t row = 0; row + few <= many; row += few) {
        LinearParams part = all.params();
        part.x += row * part.k;
        part.m = few;
        linear(one, part);
        const size_t begin = static_cast<size_t>(row * part.n);
        const size_t count = static_cast<size_t>(few * part.n);
        ASSERT_EQ(std::memcmp(out_f32.data() + begin, all.out_f32.data(), f32 ? count * 4 : 0), 0);
        ASSERT_EQ(std::memcmp(out.data() + begin, all.out.data(), f32 ? 0 : count * 2), 0)
            << "row " << row;
      }
    }
  }
}

// One thread takes more columns at a time than many do, and may have copies of its rows for them.
TEST_P(Linear, ColumnsOfAnItemChangeNoBit) {
  for (const Case& c : {Case{37, 1096, 1100, true}, {530, 1056, 520, false, true, true}}) {
    Problem problem(c);
    const std::vector<Expected> expected = problem.expected();
    Queue one({.n_threads = 1, .isa = GetParam()}), many({.n_threads = 7, .isa = GetParam()});
    linear(one, problem.params());
    problem.expect_close(expected);
    const std::vector<bf16> out = problem.out;
    const std::vector<float> out_f32 = problem.out_f32;
    problem.reset();
    linear(many, problem.params());
    EXPECT_EQ(std::memcmp(out.data(), problem.out.data(), out.size() * sizeof(bf16)), 0);
    EXPECT_EQ(std::memcmp(out_f32.data(), problem.out_f32.data(), out_f32.size() * sizeof(float)), 0);
  }
}

TEST_P(Linear, RowsAloneHaveTheBitsOfOneRow) {
  Queue queue({.n_threads = 2, .isa = GetParam()});
  for (bool f32 : {false, true}) {
    Problem all({.m = 53, .k = 1096, .n = 700, .bias = true, .f32 = f32});
    LinearParams together = all.params();
    together.alone = true;
    linear(queue, together);
    const std::vector<bf16> out = all.out;
    const std::vector<float> out_f32 = all.out_f32;
    for (int64_t row = 0; row < together.m; ++row) {
      LinearParams one = all.params();
      one.x += row * one.k;
      one.m = 1;
      all.reset();
      linear(queue, one);
      const auto begin = static_cast<size_t>(row * one.n), n = static_cast<size_t>(one.n);
      ASSERT_EQ(std::memcmp(out_f32.data() + begin, all.out_f32.data(), f32 ? n * 4 : 0), 0) << row;
      ASSERT_EQ(std::memcmp(out.data() + begin, all.out.data(), f32 ? 0 : n * 2), 0) << row;
    }
  }
}

// Where rows are alike, down to what only a bias can leave: results too small for a normal number.
TEST_P(Linear, RowsAloneMayBeDenormal) {
  Queue queue({.n_threads = 1, .isa = GetParam()});
  constexpr int64_t kRows = 17, kDepth = 2;
  const std::vector<bf16> x(kRows * kDepth, bf16(0x1p-63f)), bias(1, bf16(-0x1p-126f));
  const std::vector<bf16> weight = {bf16(0x1.8p-63f), bf16(0.0f)};
  std::vector<bf16> together(kRows, bf16(1.0f)), one(1, bf16(1.0f));
  LinearParams p{.x = x.data(), .weight = weight.data(), .bias = bias.data(), .out = together.data(),
                 .m = kRows, .k = kDepth, .n = 1};
  p.alone = true;
  linear(queue, p);
  p.out = one.data();
  p.m = 1;
  linear(queue, p);
  for (const bf16 result : together) ASSERT_EQ(std::memcmp(&result, one.data(), sizeof(bf16)), 0);
}

TEST_P(Linear, NanAndInfReachExactlyTheirOutputs) {
  Queue queue({.n_threads = 2, .isa = GetParam()});
  test::expect_nan_and_infinity_reach_their_outputs<Memory>(
      {1, 16, 40}, [&](const LinearParams& p) { linear(queue, p); });
}

TEST_P(Linear, CodedWeightsGiveTheBitsOfDecodedOnes) {
  Queue queue({.n_threads = 2, .isa = GetParam()});
  for (const WeightCodec codec : test::kCodecs) {
    for (const Case& c : {Case{1, 256, 70, true}, {3, 384, 64, false, true}, {16, 128, 33, true, false, true},
                          {1, 4224, 40}, {29, 1280, 130, true, true}, {600, 128, 65, true}}) {
      for (const bool alone : {false, true}) {
        if (alone && c.m > 100) continue;
        Problem problem(c);
        test::CodedMatrix<Memory> coded(problem.random, c.n, c.k, codec);
        LinearParams p = problem.params();
        p.alone = alone;
        p.weight = coded.plain();
        linear(queue, p);
        const std::vector<bf16> out = problem.out;
        const std::vector<float> out_f32 = problem.out_f32;
        problem.reset();
        p.weight = coded.matrix();
        linear(queue, p);
        ASSERT_EQ(std::memcmp(out.data(), problem.out.data(), out.size() * sizeof(bf16)), 0)
            << name_of(codec.code) << ", groups of " << codec.group << ", m " << c.m << " k " << c.k;
        ASSERT_EQ(std::memcmp(out_f32.data(), problem.out_f32.data(), out_f32.size() * sizeof(float)), 0);
      }
    }
  }
}

// Panels on emulated tiles, one by one as linear() would run them, with k in two parts. Transposed: of x, multiplied
// with weights.
void multiply_emulated(Problem& problem, bool transposed) {
  const LinearParams p = problem.params();
  const auto bits = [](const bf16* values) { return reinterpret_cast<const uint16_t*>(values); };
  const auto* rows = bits(transposed ? p.weight.values : p.x);
  const auto* columns = bits(transposed ? p.x : p.weight.values);
  const int64_t n_rows = transposed ? p.n : p.m, n_columns = transposed ? p.m : p.n;
  std::vector<float> bias(static_cast<size_t>(p.n));
  for (int64_t i = 0; p.bias != nullptr && i < p.n; ++i) bias[static_cast<size_t>(i)] = static_cast<float>(p.bias[i]);
  std::vector<uint16_t> panel(static_cast<size_t>(panel_elements(p.k)), 0x7fff);
  std::vector<float> partial(static_cast<size_t>(n_rows * kPanelColumns));
  for (int64_t column = 0; column < n_columns; column += kPanelColumns) {
    const int64_t width = std::min(kPanelColumns, n_columns - column), half = p.k / 4 * 2;
    for (const auto& [first, end] : {std::pair{int64_t{0}, half}, std::pair{half, p.k}}) {
      const int64_t depth = end - first;
      if (depth == 0) continue;
      pack_rows_amx(columns + column * p.k + first, p.k, width, depth, panel.data());
      PanelProduct product{.a = rows + first,
                           .row_stride = p.k,
                           .panel = panel.data(),
                           .n_rows = n_rows,
                           .n_pairs = depth / 2,
                           .n_columns = width,
                           .start = first > 0 ? partial.data() : nullptr,
                           .start_stride = kPanelColumns,
                           .out = partial.data(),
                           .out_stride = kPanelColumns,
                           .out_f32 = true};
      if (end == p.k) {
        if (p.bias != nullptr) product.bias = bias.data() + (transposed ? 0 : column);
        product.out_f32 = p.out_type == DType::kF32;
        const int64_t place = transposed ? column * p.n : column;
        product.out = static_cast<std::byte*>(p.out) + place * (product.out_f32 ? 4 : 2);
        product.out_stride = p.n;
        product.accumulate = p.accumulate;
        product.transposed = transposed;
      }
      multiply_amx_emulated(product);
    }
  }
}

TEST(LinearAmx, EmulatedPanelsMatchOracle) {
  if (detected_isa() < Isa::kAvx512Bf16) GTEST_SKIP() << "needs AVX-512 BF16 around the tiles";
  for (const Case& c : kCases) {
    Problem problem(c);
    const std::vector<Expected> expected = problem.expected();
    for (const bool transposed : {false, true}) {
      problem.reset();
      multiply_emulated(problem, transposed);
      problem.expect_close(expected);
    }
  }
}

// All of a problem with few rows, as one item. scratch: its memory.
SkinnyProduct skinny_product(const LinearParams& p, std::vector<float>& scratch) {
  scratch.resize(static_cast<size_t>(skinny_scratch_floats(p.m, p.k)) + 16);
  const size_t misaligned = reinterpret_cast<uintptr_t>(scratch.data()) / 4 % 16;
  return {.x = reinterpret_cast<const uint16_t*>(p.x),
          .weight = reinterpret_cast<const uint16_t*>(p.weight.values),
          .bias = reinterpret_cast<const uint16_t*>(p.bias),
          .out = p.out,
          .n_rows = p.m,
          .k = p.k,
          .n = p.n,
          .end = p.n,
          .out_f32 = p.out_type == DType::kF32,
          .accumulate = p.accumulate,
          .scratch = scratch.data() + (16 - misaligned) % 16};
}

// The AMX kernel on emulated tiles, item by item as linear() would run it.
TEST(LinearAmx, EmulatedTilesMatchOracle) {
  if (detected_isa() < Isa::kAvx512Bf16) GTEST_SKIP() << "needs AVX-512 BF16 around the tiles";
  std::vector<float> scratch;
  for (const Case& c : kCases) {
    if (c.m > kMaxSkinnyRows) continue;
    Problem problem(c);
    const std::vector<Expected> expected = problem.expected();
    SkinnyProduct product = skinny_product(problem.params(), scratch);
    for (; product.first < c.n; product.first = product.end) {
      product.end = std::min(c.n, product.first + 48);
      multiply_skinny_amx_emulated(product);
    }
    problem.expect_close(expected);
  }
}

// Coded weights are decoded between the products: the bits of those that were decoded before.
TEST(LinearAmx, EmulatedTilesTakeCodes) {
  if (detected_isa() < Isa::kAvx512Bf16) GTEST_SKIP() << "needs AVX-512 BF16 around the tiles";
  std::vector<float> scratch;
  for (const WeightCodec codec : test::kCodecs) {
    for (const Case& c : {Case{1, 128, 16}, {3, 640, 37, true}, {16, 1152, 48, false, false, true}}) {
      Problem problem(c);
      test::CodedMatrix<Memory> coded(problem.random, c.n, c.k, codec);
      SkinnyProduct product = skinny_product(problem.params(), scratch);
      product.weight = reinterpret_cast<const uint16_t*>(coded.plain().values);
      multiply_skinny_amx_emulated(product);
      const std::vector<bf16> out = problem.out;
      const std::vector<float> out_f32 = problem.out_f32;
      problem.reset();
      product.weight = reinterpret_cast<const uint16_t*>(coded.matrix().values);
      product.row_bytes = codec.row_bytes(c.k);
      product.code_bytes = codec.code_bytes(c.k);
      product.code = codec.code;
      product.group = codec.group;
      multiply_skinny_amx_emulated(product);
      ASSERT_EQ(std::memcmp(out.data(), problem.out.data(), out.size() * sizeof(bf16)), 0)
          << name_of(codec.code) << ", groups of " << codec.group << ", k " << c.k;
      ASSERT_EQ(std::memcmp(out_f32.data(), problem.out_f32.data(), out_f32.size() * sizeof(float)), 0);
    }
  }
}

TEST(LinearOneDnn, MatchesOracle) {
  if (detected_isa() < Isa::kAvx512) GTEST_SKIP() << "oneDNN multiplies bf16 from AVX-512 on";
  Queue queue({.n_threads = 2});
  for (const Case& c : kCases) {
    Problem problem(c);
    const std::vector<Expected> expected = problem.expected();
    linear_onednn(queue, problem.params());
    problem.expect_close(expected);
  }
}

// A host application may use OpenMP, and its threads are among those that call us.
TEST(LinearOneDnn, LeavesTheCallersOpenMpAlone) {
  if (detected_isa() < Isa::kAvx512) GTEST_SKIP() << "oneDNN multiplies bf16 from AVX-512 on";
  Queue queue({.n_threads = 1});
  omp_set_num_threads(3);
  Problem problem(kCases[0]);
  linear_onednn(queue, problem.params());
  EXPECT_EQ(omp_get_max_threads(), 3);
}

// A panel read along the other dimension, as the Gram matrix does: pairs of rows.
TEST_P(Linear, PanelsOfColumnsAndStrides) {
  const GemmLevel& level = gemm_level(GetParam());
  std::mt19937 random(static_cast<std::mt19937::result_type>(test::seed()));
  const int64_t k = 38, n = 50;
  const std::vector<bf16> matrix = test::random_rows<Memory>(random, k * n);
  const auto* bits = reinterpret_cast<const uint16_t*>(matrix.data());
  std::vector<uint16_t> panel(static_cast<size_t>(k * kPanelColumns), 0x7fff);
  pack_columns_portable(bits, n, n, k, panel.data());
  std::vector<float> gram(static_cast<size_t>(n * n), 1.0f);
  const PanelProduct product{.a = panel.data(),
                             .row_stride = 2,
                             .pair_stride = 2 * kPanelColumns,
                             .panel = panel.data(),
                             .n_rows = n,
                             .n_pairs = k / 2,
                             .n_columns = n,
                             .start = gram.data(),
                             .start_stride = n,
                             .out = gram.data(),
                             .out_stride = n,
                             .out_f32 = true};
  level.multiply(product);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 1, magnitude = 1;
      for (int64_t t = 0; t < k; ++t) {
        const double term =
            static_cast<double>(static_cast<float>(matrix[static_cast<size_t>(t * n + i)])) *
            static_cast<double>(static_cast<float>(matrix[static_cast<size_t>(t * n + j)]));
        sum += term;
        magnitude += std::abs(term);
      }
      ASSERT_NEAR(static_cast<double>(gram[static_cast<size_t>(i * n + j)]), sum,
                  test::dot_tolerance(k, magnitude));
    }
  }
}

}  // namespace
}  // namespace tiercel::cpu
