// Decode attention and merging on the device (or its emulator), against fp64.
#include "kernels/attention_decode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "engine/base/partial.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/decode_case.h"
#include "tests/seed.h"
#if !defined(TIERCEL_ON_DEVICE)
#include <sys/mman.h>

#include "tests/simt/simt.h"
#endif

namespace tiercel {
namespace {

using test::DeviceVector;
using test::plane;
using test::stream;
using Case = test::DecodeCase<DeviceVector>;
using Partial = test::DecodePartial<DeviceVector>;

constexpr float kNan = Partial::kNan;

bool same_bits(const DeviceVector<float>& a, const DeviceVector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

DeviceVector<bf16> random_rows(std::mt19937_64& rng, int64_t n, float spread = 1.0f) {
  return test::random_rows<DeviceVector>(rng, n, spread);
}

// One workspace for all shapes, as its counters must survive that.
DeviceVector<float>& workspace(int64_t floats) {
  static DeviceVector<float> memory(decode_workspace_floats(64, 256));
  EXPECT_LE(floats, static_cast<int64_t>(memory.size()));
  return memory;
}

// Head dims that are no multiple of a tile take the plain kernel, whose weights are fp32.
bool is_plain(int32_t d) { return d != 64 && d != 96 && d != 128 && d != 256; }

class DecodeKernelTest : public testing::Test {
 protected:
  std::mt19937_64 rng_{test::seed()};

  int64_t up_to(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }

  Partial attend(Case& c) { return op_.run(c); }
  Partial attend(Case& c, const cuda::DecodePlan& plan) {
    Partial result(c.n_heads(), c.d);
    attend(params(c, result), plan);
    return result;
  }
  void attend(const DecodeAttendParams& p, const cuda::DecodePlan& plan, cuda::Stream& on = stream()) {
    // No partial of an earlier call may be read; the counters before them belong to the op.
    float* memory = workspace(0).data();
    constexpr int64_t kCounters = 512;
    std::fill_n(memory + kCounters, int64_t{p.n_heads} * plan.n_splits * (p.head_dim + 2), kNan);
    cuda::attend_decode(on, p, plan);
    on.finish();
    for (int64_t i = 0; i < kCounters; ++i) {
      EXPECT_EQ(std::bit_cast<uint32_t>(memory[i]), 0u) << "counter " << i;
    }
  }
  static DecodeAttendParams with_workspace(DecodeAttendParams p) {
    p.workspace = workspace(decode_workspace_floats(p.n_heads, p.head_dim)).data();
    return p;
  }
  static DecodeAttendParams params(Case& c, Partial& result) {
    return with_workspace(c.params(result.view()));
  }
  static cuda::DecodePlan plan_of(Case& c) { return cuda::plan_decode(stream(), c.params({})); }
  // The plan of the op, and others that the shape allows.
  std::vector<cuda::DecodePlan> plans(Case& c) {
    std::vector<cuda::DecodePlan> all = {plan_of(c)};
    if (all[0].few) all.push_back({all[0].n_splits, true, false});
    if (c.d != 64 && c.d != 96 && c.d != 128) return all;
    int64_t n_tiles = 0;
    for (const KvSource& s : c.sources) {
      n_tiles += ((s.ids != nullptr ? s.ids_stride * s.chunk_tokens : s.n_tokens) + 15) / 16;
    }
    for (const int64_t tiles_per_split : {16, 11, 8, 3}) {
      const int64_t n_splits =
          std::max<int64_t>(1, (n_tiles + tiles_per_split - 1) / tiles_per_split);
      if (n_splits <= 32) all.push_back({static_cast<int32_t>(n_splits), true, true});
    }
    return all;
  }

  void expect_near_oracle(Case& c, Partial& result) { op_.expect_near_oracle(c, result); }

  void check_plane(int32_t n_kv_heads, int32_t group, int32_t d, int64_t n) {
    SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " tokens " << n);
    Case c(rng_, n_kv_heads, group, d);
    const auto keys = random_rows(rng_, n_kv_heads * (n + 3) * d),
               values = random_rows(rng_, n_kv_heads * (n + 3) * d);
    c.sources = {plane(keys, values, n_kv_heads, d, n)};
    check_plans(c);
  }
  void check_plans(Case& c) {
    for (const cuda::DecodePlan& plan : plans(c)) {
      SCOPED_TRACE(testing::Message() << plan.n_splits << " splits, few " << plan.few);
      Partial result = attend(c, plan);
      expect_near_oracle(c, result);
    }
  }

  const test::DecodeUnderTest<DeviceVector> op_ = {
      [this](const DecodeAttendParams& p) {
        attend(with_workspace(p), cuda::plan_decode(stream(), p));
      },
      test::waiting([](cuda::Stream& s, const MergeParams& p) { cuda::merge_partials(s, p); }),
      [](int32_t d) { return !is_plain(d); }};
};

TEST_F(DecodeKernelTest, PlaneOfAnyShapeMatchesOracle) {
  for (const int32_t d : {64, 96, 128, 256}) {
    for (const int32_t group : {1, 4, 7, 16, 19}) {
      for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{17}, 33 + up_to(200)}) {
        check_plane(2, group, d, n);
      }
    }
    check_plane(1, 8, d, 600 + up_to(200));
  }
}

TEST_F(DecodeKernelTest, OtherHeadDimsMatchOracle) {
  for (const int32_t d : {2, 16, 34, 80, 254}) {
    for (const int32_t group : {1, 3}) {
      for (const int64_t n : {int64_t{0}, int64_t{1}, 17 + up_to(300)}) {
        check_plane(2, group, d, n);
      }
    }
  }
}

// Rows at odd addresses take the plain kernel whatever the head dimension.
TEST_F(DecodeKernelTest, RowsAtAnyAddress) {
  test::DecodeUnderTest<DeviceVector> plain = op_;
  plain.rounds_weights = [](int32_t) { return false; };
  const int32_t d = 64, n_kv = 2;
  const int64_t n = 45;
  Case c(rng_, n_kv, 2, d);
  const auto keys = random_rows(rng_, n_kv * (n + 3) * (d + 1)),
             values = random_rows(rng_, n_kv * (n + 3) * (d + 1));
  KvSource shifted = plane(keys, values, n_kv, d, n);
  shifted.keys += 1;
  c.sources = {shifted};
  Partial result = attend(c);
  plain.expect_near_oracle(c, result);
  KvSource odd = plane(keys, values, n_kv, d, n);
  odd.chunk_stride = odd.token_stride = d + 1;
  c.sources = {odd};
  result = attend(c);
  plain.expect_near_oracle(c, result);
}

TEST_F(DecodeKernelTest, SourcesOfEveryKindTogether) {
  for (const int32_t chunk : {1, 5, 8, 16, 128}) {
    for (const int32_t d : {64, 80, 96, 128}) {
      if (chunk % 8 != 0 && d > 80) continue;
      const int32_t n_kv = 3;
      Case c(rng_, n_kv, 2, d, 2.0f);
      const auto keys = random_rows(rng_, n_kv * 400 * d),
                 values = random_rows(rng_, n_kv * 400 * d);
      // Slots: records of K and V; ids out of order and repeated; each head its own count.
      const int64_t n_slots = 30, record = 2 * chunk * d, stride = 300 / chunk + 2;
      const auto slots = random_rows(rng_, n_kv * n_slots * record);
      DeviceVector<int32_t> ids(n_kv * stride), counts(n_kv);
      counts[0] = static_cast<int32_t>(stride);
      counts[2] = 1 + 100 / chunk;
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
      records.n_tokens = std::max(1, 3 * chunk - 2);
      KvSource aliased = plane(keys, keys, n_kv, d, 30);
      DeviceVector<int32_t> none(n_kv);
      KvSource absent = gathered;
      absent.counts = none.data();
      c.sources = {absent,   plane(keys, values, n_kv, d, 0),
                   gathered, plane(keys, values, n_kv, d, 73),
                   records,  aliased,
                   absent,   gathered};
      SCOPED_TRACE(testing::Message() << "d " << d << " chunk " << chunk);
      check_plans(c);
    }
  }
}

TEST_F(DecodeKernelTest, NothingToAttendIsTheNeutralElement) {
  for (const int32_t d : {64, 80, 128, 256}) {
    Case c(rng_, 2, 4, d);
    Partial result = attend(c);
    expect_near_oracle(c, result);
    // Lists that could be long, and are empty.
    const auto keys = random_rows(rng_, 2 * 16 * d);
    DeviceVector<int32_t> ids(2 * 100, 7), counts(2);
    KvSource s = plane(keys, keys, 2, d, 0);
    s.chunk_tokens = 8;
    s.chunk_stride = 8 * d;
    s.ids = ids.data();
    s.counts = counts.data();
    s.ids_stride = 100;
    c.sources = {s, s};
    check_plans(c);
  }
}

// However many blocks share the keys, and whoever merges.
TEST_F(DecodeKernelTest, AnyPlanGivesTheSameAnswer) {
  for (const int32_t d : {64, 128, 80}) {
    const int32_t n_kv = 2, group = 3;
    const int64_t n = 1700;
    Case c(rng_, n_kv, group, d, 2.0f);
    const auto keys = random_rows(rng_, n_kv * n * d), values = random_rows(rng_, n_kv * n * d);
    c.sources = {plane(keys, values, n_kv, d, n)};
    for (const cuda::DecodePlan& plan :
         {cuda::DecodePlan{1, true}, cuda::DecodePlan{1, false}, cuda::DecodePlan{2, true},
          cuda::DecodePlan{300, true}, cuda::DecodePlan{9, false}}) {
      SCOPED_TRACE(testing::Message() << "d " << d << " splits " << plan.n_splits);
      Partial result = attend(c, plan);
      expect_near_oracle(c, result);
      if (plan.n_splits == 9) {
        // Either way of merging has the same bits.
        const Partial other = attend(c, {9, true});
        EXPECT_TRUE(same_bits(result.max, other.max) && same_bits(result.sum, other.sum) &&
                    same_bits(result.out, other.out));
      }
    }
  }
}

// Chunks in another order, or a list of all chunks instead of a plane: the same keys.
TEST_F(DecodeKernelTest, OrderOfChunksDoesNotMatter) {
  const int32_t d = 128, n_kv = 2, chunk = 8;
  const int64_t n_chunks = 40;
  Case c(rng_, n_kv, 4, d);
  const auto keys = random_rows(rng_, n_kv * n_chunks * chunk * d),
             values = random_rows(rng_, n_kv * n_chunks * chunk * d);
  c.sources = {plane(keys, values, n_kv, d, n_chunks * chunk)};
  Partial whole = attend(c);
  expect_near_oracle(c, whole);
  DeviceVector<int32_t> ids(n_kv * n_chunks), counts(n_kv, static_cast<int32_t>(n_chunks));
  for (int64_t i = 0; i < n_kv * n_chunks; ++i) ids[i] = static_cast<int32_t>(i % n_chunks);
  KvSource listed = c.sources[0];
  listed.chunk_tokens = chunk;
  listed.chunk_stride = chunk * d;
  listed.ids = ids.data();
  listed.counts = counts.data();
  listed.ids_stride = n_chunks;
  listed.n_tokens = 0;
  c.sources = {listed};
  Partial identity = attend(c);
  EXPECT_TRUE(same_bits(whole.out, identity.out) && same_bits(whole.sum, identity.sum));
  std::shuffle(ids.begin(), ids.begin() + n_chunks, rng_);
  std::shuffle(ids.begin() + n_chunks, ids.end(), rng_);
  Partial shuffled = attend(c);
  expect_near_oracle(c, shuffled);
}

TEST_F(DecodeKernelTest, AnyPartitionGivesTheSameAnswer) { op_.expect_any_partition(1500, 150); }
TEST_F(DecodeKernelTest, MergeOfNothingIsZero) { op_.expect_merge_of_nothing_is_zero(); }
TEST_F(DecodeKernelTest, HugeScoreRanges) { op_.expect_huge_score_ranges(); }
TEST_F(DecodeKernelTest, OneKeyIsExact) { op_.expect_one_key_is_exact({64, 80, 96, 128, 256}); }
TEST_F(DecodeKernelTest, NanAndInfinityStayWithTheirHead) {
  op_.expect_nan_and_infinity_stay_with_their_head({64, 80});
}

// merge_into of partial.h, in fp64, for every head dimension.
TEST_F(DecodeKernelTest, MergeOfPartialsMatchesTheAlgebra) {
  std::normal_distribution<float> normal;
  for (const int32_t d : {1, 80, 128, 300}) {
    for (const int32_t n : {1, 2, 5, 128}) {
      const int32_t n_heads = 3;
      std::vector<Partial> partials;
      std::vector<PartialView> views;
      for (int32_t i = 0; i < n; ++i) {
        Partial& p = partials.emplace_back(n_heads, d);
        for (float& x : p.max) x = 20 * normal(rng_);
        for (float& x : p.sum) x = 1 + std::abs(normal(rng_));
        for (float& x : p.out) x = normal(rng_);
      }
      if (n == 5) partials[2].max[1] = kEmptyMax;
      for (Partial& p : partials) views.push_back(p.view());
      DeviceVector<bf16> out(n_heads * d, bf16(kNan));
      cuda::merge_partials(stream(), {views.data(), n, n_heads, d, out.data()});
      stream().finish();
      for (int32_t h = 0; h < n_heads; ++h) {
        double max = -INFINITY, sum = 0;
        for (Partial& p : partials) max = std::max(max, double{p.max[h]});
        std::vector<double> weights;
        for (Partial& p : partials) weights.push_back(std::exp2(p.max[h] - max));
        for (int32_t i = 0; i < n; ++i) sum += weights[i] * partials[i].sum[h];
        for (int32_t i = 0; i < d; ++i) {
          double value = 0, magnitude = 0;
          for (int32_t j = 0; j < n; ++j) {
            value += weights[j] * partials[j].out[h * d + i];
            magnitude += weights[j] * std::abs(partials[j].out[h * d + i]);
          }
          // Each weight is off by 4u and by ln2 times the rounding of the difference of maxima
          // (below 2^7 octaves); sums of n terms; a reciprocal and a product; then bf16.
          const double unit = 0x1p-24, weight_error = (4 + 128) * unit;
          const double error =
              (weight_error + (n + 2) * unit) * (magnitude + std::abs(value)) / sum;
          ASSERT_NEAR(static_cast<float>(out[h * d + i]), value / sum,
                      error + 0x1p-8 * std::abs(value / sum));
        }
      }
    }
  }
}

// Rows past the end, heads past the group, and slots that nobody lists may hold anything.
TEST_F(DecodeKernelTest, RowsNobodySeesDoNotMatter) {
  for (const int32_t d : {64, 80, 96, 128, 256}) {
    const int64_t n = 27, capacity = 64;
    Case c(rng_, 2, 3, d);
    auto keys = random_rows(rng_, 2 * capacity * d), values = random_rows(rng_, 2 * capacity * d);
    for (int64_t i = 0; i < 2 * capacity * d; ++i) {
      if (i / d % capacity >= n) keys[i] = values[i] = bf16(kNan);
    }
    c.sources = {plane(keys, values, 2, d, n)};
    check_plans(c);
    Partial result = attend(c);
    // A NaN value poisons its own column only.
    values[11 * d + 9] = bf16(kNan);
    result = attend(c);
    for (int32_t i = 0; i < 6 * d; ++i) {
      ASSERT_EQ(std::isnan(result.out[i]), i < 3 * d && i % d == 9) << i;
    }
    // So does an infinite one, as long as no weight is 0.
    values[11 * d + 9] = bf16(std::numeric_limits<float>::infinity());
    result = attend(c);
    for (int32_t i = 0; i < 6 * d; ++i) {
      ASSERT_EQ(std::isinf(result.out[i]), i < 3 * d && i % d == 9) << i;
      ASSERT_FALSE(std::isnan(result.out[i])) << i;
    }
    // All scores of a head at -inf: as if it had no keys.
    values[11 * d + 9] = bf16(1.0f);
    for (bf16& x : c.q) x = bf16(1.0f);
    for (int64_t t = 0; t < n; ++t) keys[t * d] = bf16(-std::numeric_limits<float>::infinity());
    result = attend(c);
    for (int32_t h = 0; h < 6; ++h) {
      ASSERT_EQ(result.max[h] == kEmptyMax, h < 3);
      ASSERT_EQ(result.sum[h] == 0.0f, h < 3);
      for (int32_t i = 0; i < d; ++i) ASSERT_EQ(result.out[h * d + i] == 0.0f, h < 3);
    }
  }
}

TEST_F(DecodeKernelTest, SlotsNobodyListsDoNotMatter) {
  for (const int32_t d : {64, 80, 128}) {
    const int32_t chunk = 5;
    const int64_t n_slots = 7;
    Case c(rng_, 1, 3, d);
    auto keys = random_rows(rng_, n_slots * chunk * d),
         values = random_rows(rng_, n_slots * chunk * d);
    for (int64_t i = 0; i < n_slots * chunk * d; ++i) {
      if (i / d / chunk != 3 && i / d / chunk != 5) keys[i] = values[i] = bf16(kNan);
    }
    DeviceVector<int32_t> ids(4), counts(1, 2);
    ids[0] = 5, ids[1] = 3, ids[2] = ids[3] = -1;  // ids past the count may be anything
    KvSource s = plane(keys, values, 1, d, 0);
    s.chunk_tokens = chunk;
    s.chunk_stride = chunk * d;
    s.ids = ids.data();
    s.counts = counts.data();
    s.ids_stride = 4;
    c.sources = {s};
    check_plans(c);
  }
}

// What the bounds promise and the counts withhold, anywhere among the sources.
TEST_F(DecodeKernelTest, FewTokensWhereManyCouldBe) {
  const int32_t d = 64, n_kv = 3, chunk = 8;
  const int64_t n_slots = 9, stride = 40, record = 2 * chunk * d;
  const auto slots = random_rows(rng_, n_kv * n_slots * record);
  const auto keys = random_rows(rng_, n_kv * 20 * d);
  DeviceVector<int32_t> ids(n_kv * stride, 1 << 30);
  Case c(rng_, n_kv, 4, d);
  for (int repeat = 0; repeat < 6; ++repeat) {
    std::vector<DeviceVector<int32_t>> counts;
    c.sources.clear();
    for (int i = 0; i < 3; ++i) {
      DeviceVector<int32_t>& count = counts.emplace_back(n_kv);
      for (int32_t& n : count) n = up_to(2) == 0 ? 0 : static_cast<int32_t>(up_to(20));
      for (int32_t j = 0; j < n_kv; ++j) {
        for (int32_t k = 0; k < count[j]; ++k) {
          ids[j * stride + k] = static_cast<int32_t>(up_to(n_slots));
        }
      }
      KvSource s;
      s.keys = slots.data();
      s.values = slots.data() + chunk * d;
      s.head_stride = n_slots * record;
      s.chunk_stride = record;
      s.token_stride = d;
      s.chunk_tokens = chunk;
      s.ids = ids.data();
      s.counts = count.data();
      s.ids_stride = stride;
      c.sources.push_back(s);
      if (up_to(2) == 0) c.sources.push_back(plane(keys, keys, n_kv, d, up_to(21)));
    }
    check_plans(c);
  }
}

// A recorded step sees what the clock has added since, with the bits of one that is enqueued then.
TEST_F(DecodeKernelTest, TokensThatCameLater) {
  for (const int32_t d : {64, 80}) {
    const int32_t n_kv = 2;
    const int64_t n = 21, capacity = 280;
    Case c(rng_, n_kv, 3, d);
    const auto keys = random_rows(rng_, n_kv * capacity * d),
               values = random_rows(rng_, n_kv * capacity * d);
    DeviceVector<int64_t> clock(1);
    for (const int64_t steps : {int64_t{0}, int64_t{1}, int64_t{40}, capacity - n}) {
      const auto sources = [&](int64_t n_tokens, const int64_t* later) {
        KvSource growing = plane(keys, values, n_kv, d, n_tokens);
        growing.later = later;
        growing.most_tokens = capacity;
        return std::vector{growing, plane(values, keys, n_kv, d, 35)};
      };
      clock[0] = steps;
      c.sources = sources(n, clock.data());
      for (const cuda::DecodePlan& plan : {plan_of(c), cuda::DecodePlan{5, true, d == 64}}) {
        SCOPED_TRACE(testing::Message() << "d " << d << " steps " << steps << " few " << plan.few);
        c.sources = sources(n, clock.data());
        Partial result = attend(c, plan);
        c.sources = sources(n + steps, nullptr);
        expect_near_oracle(c, result);
        const Partial anew = attend(c, plan);
        EXPECT_EQ(result.out, anew.out);
        EXPECT_EQ(result.sum, anew.sum);
      }
    }
  }
}

// final_out is merge_partials of the others and of out, to the bit, whoever writes it.
TEST_F(DecodeKernelTest, FinalOutIsTheMerge) {
  std::normal_distribution<float> normal;
  for (const int32_t d : {64, 128, 256, 80}) {
    for (const int64_t n : {int64_t{0}, int64_t{9}, int64_t{470}}) {
      const int32_t n_kv = 2, group = 3;
      Case c(rng_, n_kv, group, d);
      const auto keys = random_rows(rng_, n_kv * (n + 1) * d),
                 values = random_rows(rng_, n_kv * (n + 1) * d);
      c.sources = {plane(keys, values, n_kv, d, n)};
      std::vector<Partial> others;
      std::vector<PartialView> views;
      for (int i = 0; i < kMaxMergeWith; ++i) {
        Partial& p = others.emplace_back(c.n_heads(), d);
        for (float& x : p.max) x = 3 * normal(rng_);
        for (float& x : p.sum) x = 1 + std::abs(normal(rng_));
        for (float& x : p.out) x = normal(rng_);
        p.max[i + 1] = kEmptyMax;
        p.sum[i + 1] = 0;
        std::fill_n(p.out.begin() + (i + 1) * d, d, 0.0f);
      }
      for (Partial& p : others) views.push_back(p.view());
      views.emplace_back();
      std::vector<cuda::DecodePlan> ways = plans(c);
      ways.insert(ways.end(), {{1, true}, {3, true}, {3, false}});
      for (const cuda::DecodePlan& plan : ways) {
        for (int32_t n_merge = 0; n_merge <= kMaxMergeWith; ++n_merge) {
          SCOPED_TRACE(testing::Message()
                       << "d " << d << " tokens " << n << " splits " << plan.n_splits << " at once "
                       << plan.merge_at_once << " few " << plan.few << " merge " << n_merge);
          const size_t size = static_cast<size_t>(c.n_heads() * d);
          DeviceVector<bf16> out(size, bf16(kNan)), expected(size, bf16(kNan));
          Partial result(c.n_heads(), d);
          DecodeAttendParams p = params(c, result);
          p.merge_with = views.data();
          p.n_merge = n_merge;
          p.final_out = out.data();
          attend(p, plan);
          if (n_merge == 0) expect_near_oracle(c, result);
          std::vector<PartialView> all(views.begin(), views.begin() + n_merge);
          all.push_back(result.view());
          cuda::merge_partials(stream(),
                               {all.data(), n_merge + 1, c.n_heads(), d, expected.data()});
          stream().finish();
          EXPECT_EQ(std::memcmp(out.data(), expected.data(), size * sizeof(bf16)), 0);
        }
      }
    }
  }
}

TEST_F(DecodeKernelTest, SameInputsSameBits) {
  for (const int32_t d : {96, 80}) {
    const int32_t n_kv = 3;
    const int64_t n = 900;
    Case c(rng_, n_kv, 5, d);
    const auto keys = random_rows(rng_, n_kv * n * d), values = random_rows(rng_, n_kv * n * d);
    c.sources = {plane(keys, values, n_kv, d, n), plane(keys, values, n_kv, d, 70)};
    const Partial first = attend(c);
    for (int i = 0; i < 3; ++i) {
      const Partial other = attend(c);
      EXPECT_TRUE(same_bits(first.max, other.max));
      EXPECT_TRUE(same_bits(first.sum, other.sum));
      EXPECT_TRUE(same_bits(first.out, other.out));
    }
  }
}

TEST_F(DecodeKernelTest, PlansFollowShapesAndBounds) {
  bool is_few = false;
  const auto splits = [&](std::vector<KvSource> sources, int32_t n_kv_heads, int32_t n_heads) {
    DecodeAttendParams p;
    p.sources = sources.data();
    p.n_sources = static_cast<int32_t>(sources.size());
    p.n_heads = n_heads;
    p.n_kv_heads = n_kv_heads;
    p.head_dim = 128;
    const cuda::DecodePlan plan = cuda::plan_decode(stream(), p);
    is_few = plan.few;
    return plan.n_splits;
  };
  KvSource long_plane;
  long_plane.n_tokens = 1 << 22;
  const int32_t resident = 2 * stream().n_processors();
  EXPECT_EQ(splits({}, 2, 8), 1);
  EXPECT_EQ(splits({long_plane}, 1, 1), resident);
  EXPECT_EQ(splits({long_plane}, 2, 8), resident / 2);
  EXPECT_EQ(splits({long_plane}, 1, 17), resident / 2);
  EXPECT_EQ(splits({long_plane}, 512, 512), std::max(1, resident / 512));
  EXPECT_FALSE(is_few);
  KvSource short_list;
  DeviceVector<int32_t> ids(1);
  short_list.ids = short_list.counts = ids.data();
  short_list.ids_stride = 30;
  short_list.chunk_tokens = 8;
  EXPECT_EQ(splits({short_list}, 1, 1), 2);  // 240 tokens at most: 15 tiles
  EXPECT_TRUE(is_few);
  // Where heads fill the processors, a block has two tiles per warp, and no more.
  short_list.ids_stride = 32;
  const int32_t n_heads = stream().n_processors();
  EXPECT_EQ(splits({short_list}, n_heads, n_heads), 1);
  EXPECT_TRUE(is_few);
  short_list.ids_stride = 33;
  splits({short_list}, n_heads, n_heads);
  EXPECT_FALSE(is_few);
}

// Blocks of 99 KiB: fewer tiles at once, or the plain kernel.
TEST_F(DecodeKernelTest, DevicesWithLittleSharedMemory) {
  cuda::Stream& small = test::older_stream();
  ASSERT_LT(small.shared_memory(), int64_t{100} << 10);
  for (const int32_t d : {64, 96, 128, 256}) {
    for (const int64_t n : {50, 120, 250, 700}) {
      SCOPED_TRACE(testing::Message() << "d " << d << " tokens " << n);
      const int32_t n_kv_heads = n < 300 ? std::min(small.n_processors(), 32) : 1;  // a block has many tiles
      Case c(rng_, n_kv_heads, 2, d);
      const auto keys = random_rows(rng_, n_kv_heads * n * d), values = random_rows(rng_, n_kv_heads * n * d);
      c.sources = {plane(keys, values, n_kv_heads, d, n)};
      Partial result(c.n_heads(), c.d);
      const DecodeAttendParams p = params(c, result);
      attend(p, cuda::plan_decode(small, p), small);
      expect_near_oracle(c, result);
    }
  }
}

#if !defined(TIERCEL_ON_DEVICE)

TEST_F(DecodeKernelTest, NoBankConflicts) {
  simt::g.ldmatrix_conflicts = simt::g.ldmatrix_count = 0;
  for (const int32_t d : {64, 96, 128, 256}) check_plane(1, 4, d, 40);
  EXPECT_GT(simt::g.ldmatrix_count, 0u);
  EXPECT_EQ(simt::g.ldmatrix_conflicts, 0u);
}

TEST_F(DecodeKernelTest, OffsetsBeyondTwoToThe31) {
  op_.expect_offsets_beyond_two_to_the_31({128, 80});
}

#else

// Sizes that fill the device.
TEST_F(DecodeKernelTest, LongPlanes) {
  for (const int32_t d : {64, 80, 96, 128, 256}) {
    for (const int32_t group : {1, 4, 16}) {
      if (d == 80 && group > 1) continue;
      check_plane(2, group, d, 20000 + up_to(20000));
    }
  }
  check_plane(8, 4, 128, 20000);
}

#endif

}  // namespace
}  // namespace tiercel
