// Selection at every level that this machine runs, against fp64.
#include "cpu/select.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/select_kernel.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/selection_case.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using cpu::Isa;
using cpu::Queue;

template <typename T>
using Memory = std::vector<T>;
using Selection = test::Selection<Memory>;
using PrefillSelection = test::PrefillSelection<Memory>;

class SelectTest : public testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  test::RandomRows<Memory> rows_;
  const test::SelectUnderTest<Memory> op_ = {
      [this](const SelectParams& p) { cpu::select_chunks(queue_, p); },
      [this](const PrefillSelectParams& p) { cpu::select_prefill_chunks(queue_, p); }};
};

TEST_P(SelectTest, MatchesOracleWhereScoresAreApart) {
  for (const int32_t d : {64, 80, 96, 128, 256}) {
    for (const int32_t group : {1, 2, 4, 7, 8}) op_.expect_oracle(d, group, 900, rows_);
  }
}

TEST_P(SelectTest, TiesGoToTheLowerChunk) {
  const int32_t d = 64;
  for (const int32_t group : {1, 4, 7}) {
    for (const int64_t n : {int64_t{200}, int64_t{5000}, int64_t{40000}}) {
      for (const int64_t k : {int64_t{1}, int64_t{100}, int64_t{2000}}) {
        SCOPED_TRACE(testing::Message() << "group " << group << " n " << n << " k " << k);
        Selection c({2, group, d, 3, 3 + n, k}, rows_.shared_queries(2, group, d),
                    rows_.integer(2 * (3 + n) * d, 1));
        c.exclude(rows_.rng, 7);
        op_.expect_ties_to_the_lower(c);
      }
    }
  }
}

TEST_P(SelectTest, RisingAndEqualScores) {
  const int64_t n = 40000, k = 300;
  for (const int kind : {0, 1}) {
    std::vector<bf16> rows(n * 64);
    for (int64_t c = 0; c < n; ++c)
      rows[c * 64] = bf16(kind == 0 ? static_cast<float>(c / 512) : 1.0f);
    std::vector<bf16> q(64, bf16(1.0f));
    Selection c({1, 1, 64, 0, n, k}, q, rows);
    op_.run(c);
    // Rising: the last step of 512 begins at 39936 and holds 64; the step before it gives the rest.
    const int32_t before = kind == 0 ? 39424 : 0;
    for (int32_t i = 0; i < k; ++i) {
      const int32_t expected =
          kind == 0 && i >= k - 64 ? 39936 + i - (static_cast<int32_t>(k) - 64) : before + i;
      ASSERT_EQ(c.ids[i], expected);
    }
  }
}

TEST_P(SelectTest, NothingToChooseFrom) { op_.expect_nothing_to_choose_from(); }
TEST_P(SelectTest, NanScoresComeLast) { op_.expect_nan_scores_last(); }
TEST_P(SelectTest, OffsetsBeyondTwoToThe31) { op_.expect_offsets_beyond_two_to_the_31(); }

TEST_P(SelectTest, BitsDoNotDependOnThreads) {
  const test::SelectShape s{2, 4, 64, 11, 50000, 400};
  Selection a(s, rows_.normal(8 * 64), rows_.normal(2 * s.end * 64));
  op_.run(a);
  for (const int threads : {1, 3}) {
    Selection b(s, a.q, a.landmarks);
    Queue queue({.n_threads = threads, .isa = GetParam()});
    cpu::select_chunks(queue, b.p);
    EXPECT_EQ(a.ids, b.ids);
    EXPECT_EQ(a.counts, b.counts);
  }
}

// ---- prefill ------------------------------------------------------------------------------------

TEST_P(SelectTest, PrefillMatchesOracle) {
  for (const int32_t d : {64, 80, 128}) {
    for (const int32_t group : {1, 2, 4, 7}) {
      op_.expect_prompt_oracle({d, group, /*block=*/64, 400, 40, 50, 4}, rows_);
    }
  }
}

TEST_P(SelectTest, PrefillFromTheStartAndWithoutBudget) {
  op_.expect_prompt_from_the_start_and_without_budget();
}
TEST_P(SelectTest, PrefillTiesAndNan) { op_.expect_prompt_ties_and_nan(4000, 256); }
TEST_P(SelectTest, ViewsOfQueries) {
  for (const int32_t d : {64, 128}) {
    for (const int32_t group : {1, 4, 7}) {
      op_.expect_views(d, group);
      op_.expect_prompt_views(d, group);
    }
  }
}
TEST_P(SelectTest, MeanQueries) {
  test::expect_mean_queries<Memory>(
      [this](const MeanQueriesParams& p) { cpu::mean_queries(queue_, p); });
}
TEST_P(SelectTest, PrefillAgreesWithDecode) { op_.expect_prompt_agrees_with_decode(2000); }

// The longest lists that a worker's scratch memory is promised to hold.
TEST_P(SelectTest, PrefillWithTheLargestBudget) {
  const int64_t n = 9000, k = cpu::max_prefill_chunks(8);
  ASSERT_LT(k, n);
  PrefillSelection c(1, 8, 64, 128, 64, k, rows_.normal(128 * 8 * 64), rows_.normal(n * 64));
  c.p.first_position = (n - 16) * 8;
  c.p.chunk_tokens = 8;
  op_.run(c);
  ASSERT_EQ(c.check(), "");
}

TEST_P(SelectTest, PrefillBitsDoNotDependOnThreads) {
  const int64_t n_chunks = 3000, n_tokens = 4096;
  PrefillSelection a(2, 2, 64, n_tokens, 64, 64, rows_.normal(n_tokens * 4 * 64, 4.0f),
                     rows_.normal(2 * n_chunks * 64));
  a.p.first_position = n_chunks * 8 - n_tokens;
  a.p.chunk_tokens = 8;
  a.p.local_tokens = 64;
  a.p.sink_chunks = 2;
  op_.run(a);
  ASSERT_EQ(a.check(), "");
  const auto ids = a.ids;
  for (const int threads : {1, 3}) {
    Queue queue({.n_threads = threads, .isa = GetParam()});
    a.poison();
    cpu::select_prefill_chunks(queue, a.p);
    EXPECT_EQ(a.ids, ids);
  }
}

// Tiles in plain memory: the AMX kernel on a machine that has its vector instructions only.
TEST(SelectTiles, EmulatedScoresAreWithinTheDotProductsBound) {
  if (cpu::detected_isa() < Isa::kAvx512Bf16) GTEST_SKIP() << "needs AVX-512 BF16";
  std::mt19937_64 rng(test::seed());
  std::normal_distribution<float> normal;
  for (const int32_t d : {64, 80, 96, 128, 256}) {
    for (const int32_t n_rows : {cpu::kPrefillRows, 37}) {
      const int32_t n_queries = 48;
      std::vector<bf16> rows(n_rows * d), queries(d * n_queries);
      for (bf16& x : rows) x = bf16(normal(rng));
      for (bf16& x : queries) x = bf16(normal(rng));
      rows[3 * d + 5] = bf16(std::numeric_limits<float>::quiet_NaN());
      std::vector<float> scores(n_rows * n_queries);
      cpu::kSelectAmxEmulated.score_blocks({reinterpret_cast<const uint16_t*>(rows.data()), n_rows,
                                            d, n_queries, queries.data(), 0.5f, scores.data()});
      for (int32_t r = 0; r < n_rows; ++r) {
        for (int32_t q = 0; q < n_queries; ++q) {
          if (r == 3) {
            ASSERT_EQ(scores[r * n_queries + q], -cpu::kScoreLimit);
            continue;
          }
          double dot = 0, magnitude = 0;
          for (int32_t i = 0; i < d; ++i) {
            const double x = double{static_cast<float>(rows[r * d + i])} *
                             static_cast<float>(queries[(i / 2 * n_queries + q) * 2 + i % 2]);
            dot += x;
            magnitude += std::abs(x);
          }
          ASSERT_NEAR(scores[r * n_queries + q], dot / 2, (d + 4) * test::kUnit * magnitude / 2);
        }
      }
    }
  }
}

// Landmarks and queries of one KV head, with one landmark that is not a number.
struct TileScores {
  TileScores(int32_t width, int64_t n, int32_t n_heads, std::mt19937_64& rng)
      : width(width), n(n), n_heads(n_heads), rows(n * width), queries(n_heads * width) {
    std::normal_distribution<float> normal;
    for (bf16& x : rows) x = bf16(normal(rng));
    for (bf16& x : queries) x = bf16(normal(rng));
    rows[n / 2 * width + 5] = bf16(std::numeric_limits<float>::quiet_NaN());
  }
  std::vector<float> scores_of(const cpu::SelectKernel& kernel) const {
    std::vector<float> scores(n_heads * stride());
    kernel.score_landmarks({.landmarks = rows.data(),
                            .n = n,
                            .width = width,
                            .queries = queries.data(),
                            .n_heads = n_heads,
                            .scale = 0.5f,
                            .scales = nullptr,
                            .scores = scores.data(),
                            .score_stride = stride()});
    return scores;
  }
  int64_t stride() const { return (n + 15) / 16 * 16; }

  int32_t width;
  int64_t n;
  int32_t n_heads;
  std::vector<bf16> rows, queries;
};

template <typename Each>
void for_each_tile_case(Each&& each) {
  std::mt19937_64 rng(test::seed());
  for (const int32_t width : {64, 96, 128, 256}) {
    ASSERT_TRUE(cpu::has_landmark_tiles(width, false));
    for (const int64_t n : {1, 16, 17, 47, 160}) {
      for (const int32_t n_heads : {1, 2, 4, 7, 8, 16}) each(TileScores(width, n, n_heads, rng));
    }
  }
}

TEST(SelectTiles, EmulatedLandmarkScoresAreWithinTheDotProductsBound) {
  if (cpu::detected_isa() < Isa::kAvx512Bf16) GTEST_SKIP() << "needs AVX-512 BF16";
  for_each_tile_case([](const TileScores& c) {
    const std::vector<float> scores = c.scores_of(cpu::kSelectAmxEmulated);
    for (int32_t h = 0; h < c.n_heads; ++h) {
      for (int64_t r = 0; r < c.n; ++r) {
        const float score = scores[h * c.stride() + r];
        if (r == c.n / 2) {
          ASSERT_TRUE(std::isnan(score));
          continue;
        }
        double dot = 0, magnitude = 0;
        for (int32_t i = 0; i < c.width; ++i) {
          const double x = double{static_cast<float>(c.rows[r * c.width + i])} *
                           static_cast<float>(c.queries[h * c.width + i]);
          dot += x;
          magnitude += std::abs(x);
        }
        ASSERT_NEAR(score, dot / 2, (c.width + 4) * test::kUnit * magnitude / 2)
            << "width " << c.width << ", head " << h << " of " << c.n_heads << ", row " << r
            << " of " << c.n;
      }
    }
  });
}

TEST(SelectTiles, SameLandmarkScoresAsEmulated) {
  if (cpu::detected_isa() < Isa::kAmx) GTEST_SKIP() << "needs AMX";
  for_each_tile_case([](const TileScores& c) {
    const std::vector<float> scores = c.scores_of(cpu::kSelectAmx);
    const std::vector<float> emulated = c.scores_of(cpu::kSelectAmxEmulated);
    ASSERT_EQ(std::memcmp(scores.data(), emulated.data(), scores.size() * sizeof(float)), 0)
        << "width " << c.width << ", " << c.n_heads << " heads, " << c.n << " rows";
  });
}

// Integers all the way: the same scores to the bit.
TEST(SelectTiles, CodedLandmarkScoresAreExact) {
  if (cpu::detected_isa() < Isa::kAvx512Bf16) GTEST_SKIP() << "needs AVX-512 BF16";
  std::mt19937_64 rng(test::seed());
  const auto up_to = [&](int64_t n) {
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
  };
  for (const int32_t width : {64, 128, 256}) {
    ASSERT_TRUE(cpu::has_landmark_tiles(width, true));
    for (const int64_t n : {1, 16, 17, 47, 160}) {
      for (const int32_t n_heads : {1, 2, 4, 7, 8}) {
        std::vector<int8_t> codes(n * width), queries(n_heads * 2 * width);
        for (int8_t& code : codes) code = static_cast<int8_t>(up_to(255) - 127);
        for (int8_t& byte : queries) byte = static_cast<int8_t>(up_to(256) - 128);
        codes[0] = 127;
        queries[0] = 127;
        const int64_t stride = (n + 15) / 16 * 16;
        std::vector<float> scales(n_heads), scores(n_heads * stride);
        for (float& scale : scales) scale = 0x1p-20f * static_cast<float>(1 + up_to(1000));
        for (const auto* kernel : {&cpu::kSelectAmxEmulated, &cpu::kSelectAmx}) {
          if (kernel == &cpu::kSelectAmx && cpu::detected_isa() < Isa::kAmx) continue;
          kernel->score_coded_landmarks({.landmarks = codes.data(),
                                         .n = n,
                                         .width = width,
                                         .queries = queries.data(),
                                         .n_heads = n_heads,
                                         .scale = 0,
                                         .scales = scales.data(),
                                         .scores = scores.data(),
                                         .score_stride = stride});
          for (int32_t h = 0; h < n_heads; ++h) {
            for (int64_t r = 0; r < n; ++r) {
              int32_t dot = 0;
              for (int32_t i = 0; i < width; ++i) {
                const int32_t q =
                    queries[2 * h * width + i] * 256 + queries[(2 * h + 1) * width + i];
                dot += codes[r * width + i] * q;
              }
              ASSERT_EQ(scores[h * stride + r], static_cast<float>(dot) * scales[h])
                  << "width " << width << ", head " << h << " of " << n_heads << ", row " << r
                  << " of " << n;
            }
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryLevel, SelectTest, testing::ValuesIn(test::selection_isas()),
                         [](const auto& info) { return std::string(cpu::name_of(info.param)); });

}  // namespace
}  // namespace tiercel
