// Selection at every level that this machine runs, against fp64.
#include "cpu/select.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/select_kernel.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/selection.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using cpu::Isa;
using cpu::Queue;

struct Shape {
  int32_t n_kv_heads, group, d;
  int64_t first, end, k;
};

class SelectTest : public testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  std::mt19937_64 rng_{test::seed()};

  int64_t up_to(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }
  std::vector<bf16> normal_rows(int64_t n, float spread = 1.0f) {
    std::normal_distribution<float> normal(0.0f, spread);
    std::vector<bf16> rows(n);
    for (bf16& x : rows) x = bf16(normal(rng_));
    return rows;
  }
  // Small integers: every product and sum is exact in fp32, and there are many ties.
  std::vector<bf16> integer_rows(int64_t n, int64_t most) {
    std::vector<bf16> rows(n);
    for (bf16& x : rows) x = bf16(static_cast<float>(up_to(2 * most + 1) - most));
    return rows;
  }
};

struct Selection {
  std::vector<bf16> q, landmarks;
  std::vector<uint64_t> excluded;
  std::vector<int32_t> ids, counts;
  std::vector<float> workspace;
  SelectParams p;

  Selection(const Shape& s, std::vector<bf16> queries, std::vector<bf16> rows)
      : q(std::move(queries)), landmarks(std::move(rows)) {
    p.q = q.data();
    p.landmarks = landmarks.data();
    p.landmark_head_stride = static_cast<int64_t>(landmarks.size()) / s.n_kv_heads;
    p.first_chunk = s.first;
    p.end_chunk = s.end;
    p.k = s.k;
    p.n_heads = s.n_kv_heads * s.group;
    p.n_kv_heads = s.n_kv_heads;
    p.head_dim = s.d;
    p.scale = 1.0f / std::sqrt(static_cast<float>(s.d));
    ids.assign(s.n_kv_heads * s.k, -7);
    counts.assign(s.n_kv_heads, -7);
    workspace.resize(select_workspace_floats(p.n_heads, s.n_kv_heads, s.end - s.first));
    p.ids = ids.data();
    p.counts = counts.data();
    p.workspace = workspace.data();
  }
  void exclude(std::mt19937_64& rng, int one_in) {
    p.excluded_stride = (p.end_chunk + 63) / 64;
    excluded.assign(p.n_kv_heads * p.excluded_stride, 0);
    for (int64_t j = 0; j < p.n_kv_heads; ++j) {
      for (int64_t c = 0; c < p.end_chunk; ++c) {
        if (rng() % one_in == 0)
          excluded[j * p.excluded_stride + c / 64] |= uint64_t{1} << (c % 64);
      }
    }
    p.excluded = excluded.data();
  }
  test::Ranked ranked(int32_t j) const {
    return test::rank_chunks(p.q + j * (p.n_heads / p.n_kv_heads) * p.head_dim,
                             p.n_heads / p.n_kv_heads, p.landmarks + j * p.landmark_head_stride,
                             p.head_dim, p.scale, p.first_chunk, p.end_chunk,
                             excluded.empty() ? nullptr : &excluded[j * p.excluded_stride],
                             p.group == GroupScore::kMean);
  }
  std::vector<int32_t> chosen(int32_t j) const {
    return {ids.begin() + j * p.k, ids.begin() + j * p.k + counts[j]};
  }
};

TEST_P(SelectTest, MatchesOracleWhereScoresAreApart) {
  for (const int32_t d : {64, 80, 96, 128, 256}) {
    for (const int32_t group : {1, 2, 4, 7, 8}) {
      for (const GroupScore score : {GroupScore::kMax, GroupScore::kMean}) {
        const int64_t first = up_to(70), n = 1 + up_to(900);
        const Shape s{2, group, d, first, first + n, 1 + up_to(n + 20)};
        SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " first " << first
                                        << " n " << n << " k " << s.k);
        Selection c(s, normal_rows(2 * group * d, 2.0f), normal_rows(2 * (s.end + 3) * d));
        c.p.group = score;
        if (rng_() % 2 == 0) c.exclude(rng_, 5);
        cpu::select_chunks(queue_, c.p);
        for (int32_t j = 0; j < 2; ++j) {
          ASSERT_EQ(
              test::wrong_choice(c.ranked(j), first, s.k, c.ids.data() + j * s.k, c.counts[j]), "");
        }
      }
    }
  }
}

// Whole numbers: equality is exact and ties are everywhere. Heads of a group share their query.
TEST_P(SelectTest, TiesGoToTheLowerChunk) {
  for (const int32_t group : {1, 4, 7}) {
    for (const int64_t n : {int64_t{200}, int64_t{5000}, int64_t{40000}}) {
      for (const int64_t k : {int64_t{1}, int64_t{100}, int64_t{2000}}) {
        const int32_t d = 64;
        const Shape s{2, group, d, 3, 3 + n, k};
        std::vector<bf16> q = integer_rows(2 * d, 2), shared;
        for (int32_t h = 0; h < 2 * group; ++h) {
          shared.insert(shared.end(), q.begin() + h / group * d, q.begin() + (h / group + 1) * d);
        }
        Selection c(s, shared, integer_rows(2 * s.end * d, 1));
        c.exclude(rng_, 7);
        cpu::select_chunks(queue_, c.p);
        for (int32_t j = 0; j < 2; ++j) {
          // One head of the group gives the same order without softmax's rounding.
          auto exact =
              test::rank_chunks(c.p.q + j * group * d, 1, c.p.landmarks + j * s.end * d, d, 1.0f,
                                s.first, s.end, &c.excluded[j * c.p.excluded_stride], false);
          ASSERT_EQ(c.chosen(j), test::best_chunks(exact, s.first, k)) << n << " " << k;
        }
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
    cpu::select_chunks(queue_, c.p);
    // Rising: the last step of 512 begins at 39936 and holds 64; the step before it gives the rest.
    const int32_t before = kind == 0 ? 39424 : 0;
    for (int32_t i = 0; i < k; ++i) {
      const int32_t expected =
          kind == 0 && i >= k - 64 ? 39936 + i - (static_cast<int32_t>(k) - 64) : before + i;
      ASSERT_EQ(c.ids[i], expected);
    }
  }
}

TEST_P(SelectTest, NothingToChooseFrom) {
  for (const int64_t k : {0, 5}) {
    Selection none({2, 2, 64, 9, 9, k}, normal_rows(4 * 64), normal_rows(2 * 9 * 64));
    cpu::select_chunks(queue_, none.p);
    EXPECT_EQ(none.counts, std::vector<int32_t>({0, 0}));
    Selection all({2, 2, 64, 0, 100, k}, normal_rows(4 * 64), normal_rows(2 * 100 * 64));
    all.exclude(rng_, 1);
    cpu::select_chunks(queue_, all.p);
    EXPECT_EQ(all.counts, std::vector<int32_t>({0, 0}));
  }
}

// NaN scores lose against everything, but still fill up a list that nothing else fills.
TEST_P(SelectTest, NanScoresComeLast) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const int32_t group : {1, 2}) {
    auto rows = normal_rows(300 * 64);
    for (int64_t c = 0; c < 300; c += 3)
      rows[c * 64 + 7] = bf16(std::numeric_limits<float>::quiet_NaN());
    rows[100 * 64] = bf16(inf);
    auto q = normal_rows(group * 64);
    for (bf16& x : q) x = bf16(std::abs(static_cast<float>(x)));
    Selection c({1, group, 64, 0, 300, 200}, q, rows);
    cpu::select_chunks(queue_, c.p);
    ASSERT_EQ(c.counts[0], 200);
    for (int32_t i = 0; i < 200; ++i) ASSERT_EQ(c.ids[i], i / 2 * 3 + 1 + i % 2);
    Selection more({1, group, 64, 0, 300, 201}, q, rows);
    cpu::select_chunks(queue_, more.p);
    ASSERT_EQ(more.counts[0], 201);
    ASSERT_EQ(more.ids[0], 0);
    Selection one({1, group, 64, 0, 300, 1}, q, rows);
    cpu::select_chunks(queue_, one.p);
    ASSERT_EQ(one.ids[0], 100) << "the infinite score";
  }
}

TEST_P(SelectTest, BitsDoNotDependOnThreads) {
  const Shape s{2, 4, 64, 11, 50000, 400};
  Selection a(s, normal_rows(8 * 64), normal_rows(2 * s.end * 64));
  cpu::select_chunks(queue_, a.p);
  for (const int threads : {1, 3}) {
    Selection b(s, a.q, a.landmarks);
    Queue queue({.n_threads = threads, .isa = GetParam()});
    cpu::select_chunks(queue, b.p);
    EXPECT_EQ(a.ids, b.ids);
    EXPECT_EQ(a.counts, b.counts);
  }
}

// Landmarks beyond 2^31 elements, in address space without memory.
TEST_P(SelectTest, OffsetsBeyondTwoToThe31) {
  const int32_t d = 128;
  const int64_t first = 20'000'000, n = 500, head_stride = (first + n) * d;
  const size_t bytes = 2 * head_stride * sizeof(bf16);
  void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(map, MAP_FAILED);
  bf16* base = static_cast<bf16*>(map);
  const auto rows = normal_rows(n * d);
  std::copy(rows.begin(), rows.end(), base + head_stride + first * d);
  Selection c({2, 1, d, first, first + n, 20}, normal_rows(2 * d), {});
  c.p.landmarks = base;
  c.p.landmark_head_stride = head_stride;
  cpu::select_chunks(queue_, c.p);
  ASSERT_EQ(test::wrong_choice(c.ranked(1), first, 20, c.ids.data() + 20, c.counts[1]), "");
  munmap(map, bytes);
}

// ---- prefill ------------------------------------------------------------------------------------

struct PrefillSelection {
  std::vector<bf16> q, landmarks;
  std::vector<int32_t> ids, counts;
  std::vector<int64_t> local_begin;
  PrefillSelectParams p;

  PrefillSelection(int32_t n_kv_heads, int32_t group, int32_t d, int64_t n_tokens, int64_t block,
                   int64_t k, std::vector<bf16> queries, std::vector<bf16> rows)
      : q(std::move(queries)), landmarks(std::move(rows)) {
    p.q = q.data();
    p.landmarks = landmarks.data();
    p.landmark_head_stride = static_cast<int64_t>(landmarks.size()) / n_kv_heads;
    p.n_tokens = n_tokens;
    p.block_tokens = block;
    p.k = k;
    p.n_heads = n_kv_heads * group;
    p.n_kv_heads = n_kv_heads;
    p.head_dim = d;
    p.scale = 1.0f / std::sqrt(static_cast<float>(d));
  }
  void run(Queue& queue) {
    const int64_t n_blocks = (p.n_tokens + p.block_tokens - 1) / p.block_tokens;
    ids.assign(n_blocks * p.n_kv_heads * (p.sink_chunks + p.k), -7);
    counts.assign(n_blocks * p.n_kv_heads, -7);
    local_begin.assign(n_blocks, -7);
    p.chunk_ids = ids.data();
    p.chunk_counts = counts.data();
    p.local_begin = local_begin.data();
    cpu::select_prefill_chunks(queue, p);
  }
  std::vector<bf16> means(int64_t b, int32_t j) const {
    const int64_t group = p.n_heads / p.n_kv_heads;
    const int64_t begin = b * p.block_tokens, end = std::min(begin + p.block_tokens, p.n_tokens);
    std::vector<bf16> out;
    for (int64_t i = 0; i < group * p.head_dim; ++i) {
      float sum = 0;  // the op's definition: an fp32 sum in token order, rounded to bf16
      for (int64_t t = begin; t < end; ++t) {
        sum += static_cast<float>(q[(t * p.n_heads + j * group) * p.head_dim + i]);
      }
      out.push_back(bf16(sum / static_cast<float>(end - begin)));
    }
    return out;
  }
  // Sinks first, then a correct choice of k.
  std::string check() const {
    const int64_t group = p.n_heads / p.n_kv_heads, width = p.sink_chunks + p.k;
    for (int64_t b = 0; b < static_cast<int64_t>(local_begin.size()); ++b) {
      const int64_t position = p.first_position + b * p.block_tokens - p.local_tokens;
      const int64_t n = std::max<int64_t>(position, 0) / p.chunk_tokens;
      if (local_begin[b] != n * p.chunk_tokens) return "local_begin";
      for (int32_t j = 0; j < p.n_kv_heads; ++j) {
        const int32_t* list = &ids[(b * p.n_kv_heads + j) * width];
        const int64_t count = counts[b * p.n_kv_heads + j], sinks = std::min(n, p.sink_chunks);
        if (count < sinks) return "too few";
        for (int64_t i = 0; i < sinks; ++i) {
          if (list[i] != i) return "sinks";
        }
        const auto r = test::rank_chunks(means(b, j).data(), static_cast<int32_t>(group),
                                         p.landmarks + j * p.landmark_head_stride, p.head_dim,
                                         p.scale, sinks, n, nullptr, false);
        const auto wrong = test::wrong_choice(r, sinks, p.k, list + sinks, count - sinks);
        if (!wrong.empty()) return wrong + " in block " + std::to_string(b);
      }
    }
    return "";
  }
};

TEST_P(SelectTest, PrefillMatchesOracle) {
  for (const int32_t d : {64, 80, 128}) {
    for (const int32_t group : {1, 2, 4, 7}) {
      const int64_t chunk = 8, first = chunk * up_to(400),
                    n_tokens = 64 * (1 + up_to(40)) - up_to(60);
      const int64_t n_chunks = (first + n_tokens) / chunk + 1;
      PrefillSelection c(2, group, d, n_tokens, 64, 1 + up_to(50),
                         normal_rows(n_tokens * 2 * group * d, 4.0f),
                         normal_rows(2 * n_chunks * d, 3.0f));
      c.p.first_position = first;
      c.p.chunk_tokens = static_cast<int32_t>(chunk);
      c.p.local_tokens = up_to(300);
      c.p.sink_chunks = up_to(4);
      SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " first " << first
                                      << " tokens " << n_tokens << " k " << c.p.k);
      c.run(queue_);
      ASSERT_EQ(c.check(), "");
    }
  }
}

TEST_P(SelectTest, PrefillFromTheStartAndWithoutBudget) {
  for (const int64_t k : {0, 3, 1000}) {
    for (const int64_t first : {0, 2000}) {
      PrefillSelection c(2, 2, 64, 1000, 100, k, normal_rows(1000 * 4 * 64),
                         normal_rows(2 * 600 * 64));
      c.p.first_position = first;
      c.p.chunk_tokens = 5;
      c.p.local_tokens = 33;
      c.p.sink_chunks = 2;
      c.run(queue_);
      ASSERT_EQ(c.check(), "") << k << " " << first;
    }
  }
}

// The longest lists that a worker's scratch memory is promised to hold.
TEST_P(SelectTest, PrefillWithTheLargestBudget) {
  const int64_t n = 9000, k = cpu::max_prefill_chunks(8);
  ASSERT_LT(k, n);
  PrefillSelection c(1, 8, 64, 128, 64, k, normal_rows(128 * 8 * 64), normal_rows(n * 64));
  c.p.first_position = (n - 16) * 8;
  c.p.chunk_tokens = 8;
  c.run(queue_);
  ASSERT_EQ(c.check(), "");
}

// Equal landmarks and landmarks in rising order (every one beats the threshold); NaN comes last.
TEST_P(SelectTest, PrefillTiesAndNan) {
  const int64_t n = 4000;
  for (const int kind : {0, 1, 2}) {
    std::vector<bf16> rows((n + 100) * 64), q(256 * 2 * 64, bf16(1.0f));
    for (int64_t c = 0; c < n; ++c) {
      rows[c * 64] = bf16(kind == 1 ? static_cast<float>(c / 16) : 1.0f);
      if (kind == 2 && c >= 5) rows[c * 64 + 1] = bf16(std::numeric_limits<float>::quiet_NaN());
    }
    PrefillSelection c(1, 2, 64, 256, 256, 40, q, rows);
    c.p.first_position = n * 8;
    c.p.chunk_tokens = 8;
    c.run(queue_);
    ASSERT_EQ(c.counts[0], 40);
    const int32_t begin = kind == 1 ? static_cast<int32_t>(n) - 48 : 0;
    for (int32_t i = 0; i < 40; ++i) {
      const int32_t expected = kind != 1 ? i : i < 8 ? begin + i : begin + 8 + i;
      ASSERT_EQ(c.ids[i], expected) << kind << " " << i;
    }
  }
}

TEST_P(SelectTest, PrefillBitsDoNotDependOnThreads) {
  const int64_t n_chunks = 3000, n_tokens = 4096;
  PrefillSelection a(2, 2, 64, n_tokens, 64, 64, normal_rows(n_tokens * 4 * 64, 4.0f),
                     normal_rows(2 * n_chunks * 64));
  a.p.first_position = n_chunks * 8 - n_tokens;
  a.p.chunk_tokens = 8;
  a.p.local_tokens = 64;
  a.p.sink_chunks = 2;
  a.run(queue_);
  ASSERT_EQ(a.check(), "");
  const auto ids = a.ids;
  for (const int threads : {1, 3}) {
    Queue queue({.n_threads = threads, .isa = GetParam()});
    a.run(queue);
    EXPECT_EQ(a.ids, ids);
  }
}

// The same chunks for a block that prefill and decode would choose from the same queries.
TEST_P(SelectTest, PrefillAgreesWithDecode) {
  const int64_t n = 2000, k = 100;
  const auto q = integer_rows(2 * 64, 3);
  const auto rows = integer_rows(n * 64, 1);
  Selection decode({1, 2, 64, 2, n, k}, q, rows);
  cpu::select_chunks(queue_, decode.p);
  PrefillSelection prefill(1, 2, 64, 1, 1, k, q, rows);
  prefill.p.first_position = n * 8;
  prefill.p.chunk_tokens = 8;
  prefill.p.sink_chunks = 2;
  prefill.run(queue_);
  const std::vector<int32_t> others(prefill.ids.begin() + 2, prefill.ids.end());
  EXPECT_EQ(test::wrong_choice(decode.ranked(0), 2, k, others.data(), k), "");
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

INSTANTIATE_TEST_SUITE_P(EveryLevel, SelectTest, testing::ValuesIn(test::selection_isas()),
                         [](const auto& info) { return std::string(cpu::name_of(info.param)); });

}  // namespace
}  // namespace tiercel
