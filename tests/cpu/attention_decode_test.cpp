// Decode attention and merging at every level that this machine runs, against fp64.
#include "cpu/attention_decode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cpu/query.h"
#include "engine/base/partial.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/decode_case.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using cpu::Isa;
using cpu::Queue;
using test::plane;
template <typename T>
using Memory = std::vector<T>;
using Case = test::DecodeCase<Memory>;
using Partial = test::DecodePartial<Memory>;

std::vector<bf16> random_rows(std::mt19937_64& rng, int64_t n, float spread = 1.0f) {
  return test::random_rows<Memory>(rng, n, spread);
}

void attend_on(Queue& queue, DecodeAttendParams p) {
  std::vector<float> workspace(static_cast<size_t>(decode_workspace_floats(p.n_heads, p.head_dim)));
  p.workspace = workspace.data();
  cpu::attend_decode(queue, p);
}

class DecodeTest : public testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  std::mt19937_64 rng_{test::seed()};
  const test::DecodeUnderTest<Memory> op_ = {
      [this](const DecodeAttendParams& p) { attend_on(queue_, p); },
      [this](const MergeParams& p) { cpu::merge_partials(queue_, p); },
      [](int32_t) { return false; }};

  Partial attend(Case& c) { return op_.run(c); }
  void expect_near_oracle(Case& c, Partial& result) { op_.expect_near_oracle(c, result); }
  int64_t up_to(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }
};

TEST_P(DecodeTest, PlaneOfAnyShapeMatchesOracle) {
  for (const int32_t d : {64, 80, 96, 128, 256, 2, 34}) {
    for (const int32_t group : {1, 2, 4, 7, 8, 11}) {
      for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{64}, 65 + up_to(600)}) {
        SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " tokens " << n);
        Case c(rng_, 2, group, d);
        const auto keys = random_rows(rng_, 2 * (n + 3) * d),
                   values = random_rows(rng_, 2 * (n + 3) * d);
        c.sources = {plane(keys, values, 2, d, n)};
        Partial result = attend(c);
        expect_near_oracle(c, result);
      }
    }
  }
}

TEST_P(DecodeTest, SourcesOfEveryKindTogether) {
  for (const int32_t chunk : {5, 8, 16}) {
    for (const int32_t d : {64, 80, 128}) {
      const int32_t n_kv = 3;
      Case c(rng_, n_kv, 2, d, 2.0f);
      const auto keys = random_rows(rng_, n_kv * 400 * d),
                 values = random_rows(rng_, n_kv * 400 * d);
      // Slots: records of K and V; ids out of order and repeated; each head its own count.
      const int64_t n_slots = 30, record = 2 * chunk * d, stride = 90;
      const auto slots = random_rows(rng_, n_kv * n_slots * record);
      std::vector<int32_t> ids(n_kv * stride), counts = {static_cast<int32_t>(stride), 0, 17};
      for (int32_t& id : ids) id = static_cast<int32_t>(up_to(n_slots));
      KvSource gathered;
      gathered.keys = slots.data();
      gathered.values = slots.data() + chunk * d;
      gathered.head_stride = n_slots * record;
      gathered.chunk_stride = record;
      gathered.token_stride = d;
      gathered.chunk_tokens = chunk;
      gathered.ids = ids.data();
      gathered.counts = counts.data();
      gathered.ids_stride = stride;
      // Records without ids: chunk after chunk, the last one cut.
      KvSource records = gathered;
      records.ids = records.counts = nullptr;
      records.n_tokens = 3 * chunk - 2;
      KvSource aliased = plane(keys, keys, n_kv, d, 100);
      c.sources = {plane(keys, values, n_kv, d, 0), gathered, plane(keys, values, n_kv, d, 333),
                   records, aliased};
      Partial result = attend(c);
      SCOPED_TRACE(testing::Message() << "d " << d << " chunk " << chunk);
      expect_near_oracle(c, result);
    }
  }
}

TEST_P(DecodeTest, BiasIsAddedToEveryScore) {
  for (const int32_t d : {64, 80, 128, 256}) {
    op_.expect_biases_of_sources(d, 3);
    op_.expect_biases_of_keys(d);
    op_.expect_a_row_stands_for_four(d);
  }
  op_.expect_a_bias_of_minus_infinity_is_nothing();
}

TEST_P(DecodeTest, ViewsOfQueries) {
  for (const int32_t d : {64, 80, 128, 256}) op_.expect_views_of_queries(d);
}

TEST_P(DecodeTest, NoSourcesIsTheNeutralElement) {
  Case c(rng_, 2, 4, 64);
  Partial result = attend(c);
  expect_near_oracle(c, result);
}

// final_out is merge_partials of the others and of out, to the bit.
TEST_P(DecodeTest, FinalOutIsTheMerge) {
  const int32_t d = 80, n_kv = 2, group = 3;
  for (const int64_t n : {int64_t{0}, int64_t{9}, int64_t{1400}}) {
    Case c(rng_, n_kv, group, d);
    const auto keys = random_rows(rng_, n_kv * (n + 50) * d),
               values = random_rows(rng_, n_kv * (n + 50) * d);
    std::vector<Partial> others;
    std::vector<PartialView> views;
    for (const int64_t tokens : {30, 0}) {
      c.sources = {plane(keys, values, n_kv, d, tokens)};
      others.push_back(attend(c));
    }
    for (Partial& p : others) views.push_back(p.view());
    c.sources = {plane(keys, values, n_kv, d, n)};
    const Partial alone = attend(c);
    for (int32_t n_merge = 0; n_merge <= kMaxMergeWith; ++n_merge) {
      Partial result(c.n_heads(), d);
      std::vector<bf16> out(c.n_heads() * d, bf16(3.0f)), expected(out);
      DecodeAttendParams p = c.params(result.view());
      p.merge_with = views.data();
      p.n_merge = n_merge;
      p.final_out = out.data();
      op_.attend(p);
      EXPECT_EQ(result.max, alone.max);
      EXPECT_EQ(result.sum, alone.sum);
      EXPECT_EQ(result.out, alone.out);
      std::vector<PartialView> all(views.begin(), views.begin() + n_merge);
      all.push_back(result.view());
      cpu::merge_partials(queue_, {all.data(), n_merge + 1, c.n_heads(), d, expected.data()});
      for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i].bits, expected[i].bits) << i;
    }
  }
}

TEST_P(DecodeTest, AnyPartitionGivesTheSameAnswer) { op_.expect_any_partition(3000, 200); }
TEST_P(DecodeTest, MergeOfNothingIsZero) { op_.expect_merge_of_nothing_is_zero(); }
TEST_P(DecodeTest, HugeScoreRanges) { op_.expect_huge_score_ranges(); }
TEST_P(DecodeTest, OneKeyIsExact) { op_.expect_one_key_is_exact({64, 80, 128}); }
TEST_P(DecodeTest, NanAndInfinityStayWithTheirHead) {
  op_.expect_nan_and_infinity_stay_with_their_head({64});
}
TEST_P(DecodeTest, OffsetsBeyondTwoToThe31) { op_.expect_offsets_beyond_two_to_the_31({128}); }

TEST_P(DecodeTest, BitsDoNotDependOnThreads) {
  const int32_t d = 96, n_kv = 3;
  const int64_t n = 40000;
  Case c(rng_, n_kv, 7, d);
  const auto keys = random_rows(rng_, n_kv * n * d), values = random_rows(rng_, n_kv * n * d);
  c.sources = {plane(keys, values, n_kv, d, n), plane(keys, values, n_kv, d, 700)};
  Partial first = attend(c);
  for (const int threads : {1, 3}) {
    Queue queue({.n_threads = threads, .isa = GetParam()});
    Partial other(c.n_heads(), d);
    attend_on(queue, c.params(other.view()));
    EXPECT_EQ(first.max, other.max);
    EXPECT_EQ(first.sum, other.sum);
    EXPECT_EQ(first.out, other.out);
  }
}

// A plane of one KV head, rows `stride` apart, and the queries of its group, as a kernel sees them.
struct PlaneCase {
  PlaneCase(std::mt19937_64& rng, int32_t d, int32_t n_heads, int32_t n)
      : d(d), n_heads(n_heads), n(n), stride(d + 32) {
    q = random_rows(rng, int64_t{n_heads} * d, 2.0f);
    keys = random_rows(rng, (n - 1) * stride + d);
    values = random_rows(rng, (n - 1) * stride + d);
  }

  struct Result {
    std::vector<float> max, sum, out;
    bool operator==(const Result&) const = default;
  };
  Result attend(const cpu::DecodeKernel& kernel) const {
    Result r{std::vector<float>(n_heads, kEmptyMax), std::vector<float>(n_heads),
             std::vector<float>(n_heads * d)};
    std::vector<float> alpha(n_heads), scores(n_heads * cpu::kDecodeBlock);
    std::vector<char> queries(cpu::padded_heads(n_heads) * cpu::packed_width(kernel, d) * 4);
    cpu::DecodeBlock b{};
    b.score.row_base = cpu::bits(keys.data());
    b.score.n_rows = n;
    b.score.head_dim = d;
    b.score.n_heads = n_heads;
    b.score.query_bytes = cpu::pack_queries(kernel, q.data(), n_heads, d, queries.data());
    b.score.queries = queries.data();
    b.score.scale = 0.125f;
    b.score.scores = scores.data();
    b.score.score_stride = cpu::kDecodeBlock;
    b.value_base = cpu::bits(values.data());
    b.n_live_heads = n_heads;
    b.max = r.max.data();
    b.sum = r.sum.data();
    b.out = r.out.data();
    b.out_stride = d;
    b.alpha = alpha.data();
    kernel.attend_plane(b, stride);
    return r;
  }

  int32_t d, n_heads, n;
  int64_t stride;
  std::vector<bf16> q, keys, values;
};

template <typename Each>
void for_each_plane_case(Each&& each) {
  std::mt19937_64 rng(test::seed());
  for (const int32_t d : {64, 96, 128, 256}) {
    for (const int32_t n_heads : {5, 8, 16}) {
      ASSERT_TRUE(cpu::has_plane_tiles(n_heads, d));
      for (const int32_t n : {1, 16, 33, 64, 95, 200}) {
        SCOPED_TRACE(testing::Message()
                     << "d " << d << ", " << n_heads << " heads, " << n << " rows");
        each(PlaneCase(rng, d, n_heads, n));
      }
    }
  }
}

// Tiles in plain memory: the AMX kernel on a machine that has its vector instructions only.
TEST(DecodeTiles, EmulatedPlaneMatchesOracle) {
  if (cpu::detected_isa() < Isa::kAvx512Bf16) GTEST_SKIP() << "needs AVX-512 BF16";
  for_each_plane_case([](const PlaneCase& c) {
    const cpu::DecodeKernel& kernel = cpu::kDecodeAmxEmulated;
    const PlaneCase::Result r = c.attend(kernel);
    const auto product = [&](const bf16* a, const bf16* b) {
      double sum = 0;
      for (int32_t i = 0; i < c.d; ++i)
        sum += double{static_cast<float>(a[i])} * static_cast<float>(b[i]);
      return sum;
    };
    std::vector<float> out(c.d);
    for (int32_t h = 0; h < c.n_heads; ++h) {
      std::vector<double> scores, expected(c.d);
      for (int32_t i = 0; i < c.n; ++i) {
        scores.push_back(0.125 * product(c.q.data() + h * c.d, c.keys.data() + i * c.stride));
      }
      const double max = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (int32_t i = 0; i < c.n; ++i) {
        const double weight = std::exp2(scores[i] - max);
        sum += weight;
        for (int32_t j = 0; j < c.d; ++j) {
          expected[j] += weight * static_cast<float>(c.values[i * c.stride + j]);
        }
      }
      ASSERT_NEAR(r.max[h], max, 1e-4);
      ASSERT_NEAR(r.sum[h], sum, 1e-4 * sum);
      cpu::unpack_row(kernel, r.out.data() + h * c.d, c.d, out.data());
      for (int32_t j = 0; j < c.d; ++j) {
        ASSERT_NEAR(out[j], expected[j], 1e-4 * sum) << "head " << h << ", element " << j;
      }
    }
  });
}

TEST(DecodeTiles, SameBitsAsEmulated) {
  if (cpu::detected_isa() < Isa::kAmx) GTEST_SKIP() << "needs AMX";
  for_each_plane_case([](const PlaneCase& c) {
    ASSERT_TRUE(c.attend(cpu::kDecodeAmx) == c.attend(cpu::kDecodeAmxEmulated));
  });
}

INSTANTIATE_TEST_SUITE_P(EveryLevel, DecodeTest, testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(cpu::name_of(info.param)); });

}  // namespace
}  // namespace tiercel
