// Selection against fp64 and, where scores are exact, against cpu::.
#include "kernels/select.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/select.h"
#include "kernels/slots.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/selection_case.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

template <typename T>
using Memory = test::DeviceVector<T>;

using Selection = test::Selection<Memory>;
using PrefillSelection = test::PrefillSelection<Memory>;
using Shape = test::SelectShape;

class CudaSelect : public testing::Test {
 protected:
  test::RandomRows<Memory> rows_;
  const test::SelectUnderTest<Memory> op_ = {
      test::waiting([](cuda::Stream& s, const SelectParams& p) { cuda::select_chunks(s, p); }),
      test::waiting([](cuda::Stream& s, const PrefillSelectParams& p) {
        cuda::select_prefill_chunks(s, p);
      })};
  cpu::Queue cpu_{{.n_threads = 1, .isa = cpu::Isa::kPortable}};
  const test::SelectUnderTest<Memory> cpu_op_ = {
      [this](const SelectParams& p) { cpu::select_chunks(cpu_, p); },
      [this](const PrefillSelectParams& p) { cpu::select_prefill_chunks(cpu_, p); }};

  // Where scores are exact both backends choose the same.
  void expect_as_on_the_cpu(Selection& c) {
    op_.run(c);
    const auto ids = c.ids, counts = c.counts;
    cpu_op_.run(c);
    ASSERT_EQ(c.ids, ids);
    ASSERT_EQ(c.counts, counts);
  }
};

TEST_F(CudaSelect, MatchesOracleWhereScoresAreApart) {
  for (const int32_t d : {16, 32, 34, 64, 80, 96, 128, 160, 256}) {
    for (const int32_t group : {1, 4, 7, 8, 17}) op_.expect_oracle(d, group, 400, rows_);
  }
}

// The largest n takes the path of many blocks.
TEST_F(CudaSelect, TiesGoToTheLowerChunk) {
  const int32_t d = 32;
  for (const int32_t group : {1, 7}) {
    for (const int64_t n : {int64_t{200}, int64_t{5000}, int64_t{18000}}) {
      for (const int64_t k : {int64_t{1}, int64_t{100}, int64_t{2000}}) {
        SCOPED_TRACE(testing::Message() << "group " << group << " n " << n << " k " << k);
        Selection c({2, group, d, 3, 3 + n, k}, rows_.shared_queries(2, group, d),
                    rows_.integer(2 * (3 + n) * d, 1));
        c.exclude(rows_.rng, 7);
        op_.expect_ties_to_the_lower(c);
        ASSERT_NO_FATAL_FAILURE(expect_as_on_the_cpu(c));
      }
    }
  }
}

// More maxima than a block holds in registers, longer lists of pieces than its shared memory has
// room for, and a batch that ends within a piece.
TEST_F(CudaSelect, MoreThanABlockHolds) {
  const int32_t d = 8;
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{132'000, 10}, {36'001, 34'000}}) {
    const Shape s{1, 1, d, 5, 5 + n, k};
    Selection c(s, rows_.integer(d, 3), rows_.integer(s.end * d, 3));
    c.exclude(rows_.rng, 40);
    SCOPED_TRACE(n);
    expect_as_on_the_cpu(c);
  }
}

// Rising: every one beats those before it. Equal: one bin holds all, more than are ranked in pairs.
// Far: all scores but the best are behind the last bin.
TEST_F(CudaSelect, RisingEqualAndFarScores) {
  for (const int64_t n : {int64_t{6000}, int64_t{20000}}) {
    for (const int kind : {0, 1, 2}) {
      const int64_t k = 300;
      const int32_t d = 32;
      Memory<bf16> rows(n * d);
      for (int64_t c = 0; c < n; ++c) {
        const float far = c == n / 2 ? 0.0f : -600.0f - static_cast<float>(c * 37 % 64);
        rows[c * d] = bf16(kind == 0 ? static_cast<float>(c / 512) : kind == 1 ? 1.0f : far);
      }
      Selection c({1, 1, d, 0, n, k}, Memory<bf16>(d, bf16(1.0f)), rows);
      for (const GroupScore score : {GroupScore::kMax, GroupScore::kMean}) {
        if (kind == 2 && score == GroupScore::kMean) continue;  // weights of 0 tie
        c.p.group = score;
        op_.run(c);
        const auto exact =
            test::rank_chunks(c.p.q, 1, c.p.landmarks, d, c.p.scale, 0, n, nullptr, false);
        ASSERT_EQ(c.chosen(0), test::best_chunks(exact, 0, k)) << n << " kind " << kind;
      }
    }
  }
}

TEST_F(CudaSelect, NothingToChooseFrom) { op_.expect_nothing_to_choose_from(); }
TEST_F(CudaSelect, NanScoresComeLast) { op_.expect_nan_scores_last(); }

TEST_F(CudaSelect, BudgetOfEverything) {
  for (int run = 0; run < 12; ++run) {
    const int64_t first = rows_.up_to(200), n = 1 + rows_.up_to(run < 6 ? 100 : 5000);
    Selection c({2, 1, 16, first, first + n, n + rows_.up_to(3)}, rows_.normal(2 * 16),
                rows_.normal(2 * (first + n) * 16));
    if (run % 3 != 0) c.exclude(rows_.rng, run % 3 == 1 ? 2 : 40);
    op_.run(c);
    for (int32_t j = 0; j < 2; ++j) {
      std::vector<int32_t> expected;
      for (int64_t i = first; i < first + n; ++i) {
        if (c.excluded.empty() ||
            (c.excluded[j * c.p.excluded_stride + i / 64] >> (i % 64) & 1) == 0) {
          expected.push_back(static_cast<int32_t>(i));
        }
      }
      ASSERT_EQ(c.chosen(j), expected);
    }
  }
}

TEST_F(CudaSelect, SameInputsSameBits) {
  for (const int64_t end : {int64_t{3000}, int64_t{17000}}) {
    const Shape s{2, 4, 32, 11, end, 400};
    Selection a(s, rows_.normal(8 * 32), rows_.normal(2 * s.end * 32));
    op_.run(a);
    for (int32_t j = 0; j < 2; ++j) {
      ASSERT_EQ(test::wrong_choice(a.ranked(j), s.first, s.k, a.ids.data() + j * s.k, a.counts[j]),
                "");
    }
    const auto ids = a.ids, counts = a.counts;
    const auto workspace = a.workspace;
    for (int run = 0; run < 2; ++run) {
      op_.run(a);
      EXPECT_EQ(a.ids, ids);
      EXPECT_EQ(a.counts, counts);
      EXPECT_EQ(0, std::memcmp(a.workspace.data(), workspace.data(), workspace.size() * 4));
    }
  }
}

// What the fused launch does is what the two ops do.
TEST_F(CudaSelect, SelectAndMapIsBothOps) {
  struct Case {
    int64_t first, end, k, n_slots;
  };
  for (const Case& t : {Case{5, 700, 60, 100}, Case{5, 60, 90, 130}, Case{3, 17000, 200, 300},
                        Case{3, 17000, 2500, 3000}, Case{9, 9, 4, 8}}) {
    const Shape s{2, 2, 32, t.first, t.end, t.k};
    Selection c(s, rows_.normal(4 * 32), rows_.normal(2 * (t.end + 1) * 32));
    c.exclude(rows_.rng, 9);
    struct Slots {
      Memory<int32_t> slot_of_chunk, chunk_of_slot, order, hit_slots, hit_counts, miss_chunks,
          miss_slots, miss_counts, scratch;
      Memory<int64_t> totals;
    };
    Slots fused;
    fused.slot_of_chunk.assign(2 * t.end, -1);
    fused.chunk_of_slot.assign(2 * t.n_slots, -1);
    fused.order.resize(2 * t.n_slots);
    for (int64_t i = 0; i < 2 * t.n_slots; ++i) {
      fused.order[i] = static_cast<int32_t>(i % t.n_slots);
    }
    fused.hit_slots.assign(2 * t.k, -9);
    fused.miss_chunks = fused.miss_slots = fused.hit_slots;
    fused.hit_counts.assign(2, -9);
    fused.miss_counts = fused.hit_counts;
    fused.scratch.assign(2 * t.n_slots, -9);
    fused.totals.assign(6, 0);
    Slots apart = fused;
    const auto params = [&](Slots& x) {
      MapSlotsParams p;
      p.state = {x.slot_of_chunk.data(), x.chunk_of_slot.data(), x.order.data(), t.end, t.n_slots};
      p.n_kv_heads = 2;
      p.ids = c.ids.data();
      p.counts = c.counts.data();
      p.stride = t.k;
      p.hit_slots = x.hit_slots.data();
      p.hit_counts = x.hit_counts.data();
      p.miss_chunks = x.miss_chunks.data();
      p.miss_slots = x.miss_slots.data();
      p.miss_counts = x.miss_counts.data();
      p.scratch = x.scratch.data();
      p.totals = x.totals.data();
      return p;
    };
    for (int step = 0; step < 2; ++step) {
      c.q = rows_.normal(4 * 32);
      c.p.q = c.q.data();
      op_.run(c);
      cuda::map_slots(test::stream(), params(apart));
      test::stream().finish();
      const auto ids = c.ids, counts = c.counts;
      c.poison();
      cuda::select_and_map(test::stream(), c.p, params(fused));
      test::stream().finish();
      ASSERT_EQ(c.ids, ids);
      ASSERT_EQ(c.counts, counts);
      for (Slots* x : {&fused, &apart}) {  // what is behind the misses is anything
        for (int64_t j = 0; j < 2; ++j) {
          std::fill(x->miss_slots.begin() + j * t.k + x->miss_counts[j],
                    x->miss_slots.begin() + (j + 1) * t.k, -9);
        }
      }
      for (const auto list :
           {&Slots::slot_of_chunk, &Slots::chunk_of_slot, &Slots::order, &Slots::hit_slots,
            &Slots::hit_counts, &Slots::miss_chunks, &Slots::miss_slots, &Slots::miss_counts}) {
        ASSERT_EQ(fused.*list, apart.*list);
      }
      ASSERT_EQ(fused.totals, apart.totals);
    }
  }
}

#if !defined(TIERCEL_ON_DEVICE)
TEST_F(CudaSelect, OffsetsBeyondTwoToThe31) { op_.expect_offsets_beyond_two_to_the_31(); }
#else
// A million tokens in chunks of 8, and more: sizes that the emulator has no time for.
TEST_F(CudaSelect, ManyCandidates) {
  for (const int64_t n : {int64_t{16384}, int64_t{131072}, int64_t{1'000'003}}) {
    for (const int64_t k : {int64_t{256}, n / 2}) {
      const int32_t d = 128;
      const Shape s{2, 4, d, 2, 2 + n, k};
      Selection c(s, rows_.shared_queries(2, 4, d), rows_.integer(2 * s.end * d, 1));
      c.exclude(rows_.rng, 50);
      op_.run(c);
      for (int32_t j = 0; j < 2; ++j) {
        const auto exact =
            test::rank_chunks(c.p.q + j * 4 * d, 1, c.p.landmarks + j * s.end * d, d, 1.0f, s.first,
                              s.end, &c.excluded[j * c.p.excluded_stride], false);
        ASSERT_EQ(c.chosen(j), test::best_chunks(exact, s.first, k)) << n << " " << k;
      }
    }
  }
}
#endif

// ---- prefill ------------------------------------------------------------------------------------

TEST_F(CudaSelect, PrefillMatchesOracle) {
  for (const int32_t d : {16, 34, 64, 80, 96, 128, 256}) {
    for (const int32_t group : {1, 2, 3, 4, 7, 8, 16, 17, 33}) {
      if (group > 8 && d != 34) continue;
      if (group == 2 && d != 64) continue;
      op_.expect_prompt_oracle({d, group, /*block=*/16, 150, 7, 30, 14}, rows_);
    }
  }
}

TEST_F(CudaSelect, PrefillFromTheStartAndWithoutBudget) {
  op_.expect_prompt_from_the_start_and_without_budget();
}
TEST_F(CudaSelect, PrefillTiesAndNan) { op_.expect_prompt_ties_and_nan(2000, 32); }
TEST_F(CudaSelect, ViewsOfQueries) {
  for (const int32_t d : {64, 80, 128}) {
    for (const int32_t group : {1, 7, 17}) {
      op_.expect_views(d, group);
      op_.expect_prompt_views(d, group);
    }
  }
}
TEST_F(CudaSelect, MeanQueries) {
  test::expect_mean_queries<test::DeviceVector>(
      test::waiting([](cuda::Stream& s, const MeanQueriesParams& p) { cuda::mean_queries(s, p); }));
}
TEST_F(CudaSelect, PrefillAgreesWithDecode) { op_.expect_prompt_agrees_with_decode(1000); }

// More rows than one group of tiles, and blocks whose candidates end at different places.
TEST_F(CudaSelect, PrefillOfManyBlocks) {
  const int32_t d = 64;
  const int64_t n_tokens = 24 * 16, first = 8 * 60;
  PrefillSelection c(1, 4, d, n_tokens, 16, 20, rows_.normal(n_tokens * 4 * d, 4.0f),
                     rows_.normal((first + n_tokens) / 8 * d, 3.0f));
  c.p.first_position = first;
  c.p.chunk_tokens = 8;
  c.p.local_tokens = 32;
  c.p.sink_chunks = 2;
  op_.run(c);
  ASSERT_EQ(c.check(), "");
  const auto ids = c.ids, counts = c.counts;
  op_.run(c);
  EXPECT_EQ(c.ids, ids);
  EXPECT_EQ(c.counts, counts);
}

// Whole numbers, whose means are whole: the same ids as the CPU, ties and all.
TEST_F(CudaSelect, PrefillAgreesWithTheCpu) {
  const int32_t d = 32, group = 4;
  const int64_t n_tokens = 64, n_chunks = 900;
  Memory<bf16> q;
  for (int64_t block = 0; block < 4; ++block) {
    const auto one = rows_.shared_queries(2, group, d);
    for (int64_t t = 0; t < 16; ++t) q.insert(q.end(), one.begin(), one.end());
  }
  PrefillSelection c(2, group, d, n_tokens, 16, 50, q, rows_.integer(2 * n_chunks * d, 1));
  c.p.first_position = (n_chunks - 10) * 8;
  c.p.chunk_tokens = 8;
  c.p.sink_chunks = 3;
  op_.run(c);
  ASSERT_EQ(c.check(), "");
  const auto ids = c.ids, counts = c.counts;
  const auto local_begin = c.local_begin;
  cpu_op_.run(c);
  EXPECT_EQ(c.ids, ids);
  EXPECT_EQ(c.counts, counts);
  EXPECT_EQ(c.local_begin, local_begin);
}

TEST_F(CudaSelect, PrefillScratchGrowsWithThePosition) {
  PrefillSelectParams p;
  p.n_tokens = 4096;
  p.block_tokens = 256;
  p.local_tokens = 1024;
  p.sink_chunks = 2;
  p.k = 256;
  p.chunk_tokens = 8;
  p.n_heads = 32;
  p.n_kv_heads = 8;
  p.head_dim = 128;
  int64_t before = 0;
  for (p.first_position = 0; p.first_position < 40'000'000; p.first_position += 4096) {
    const int64_t bytes = cuda::select_prefill_scratch_bytes(p);
    ASSERT_GE(bytes, before);
    before = bytes;
    if (p.first_position < 1'000'000) {
      ASSERT_LE(bytes, int64_t{80} << 20);
    }
  }
}

}  // namespace
}  // namespace tiercel
