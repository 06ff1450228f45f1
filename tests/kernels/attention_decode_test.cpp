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
#include "tests/oracle/decode.h"
#include "tests/seed.h"
#if !defined(TIERCEL_ON_DEVICE)
#include <sys/mman.h>

#include "tests/simt/simt.h"
#endif

namespace tiercel {
namespace {

using test::DeviceVector;
using test::expected_decode;
using test::stream;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Partial {
  DeviceVector<float> max, sum, out;
  Partial(int64_t n_heads, int64_t d)
      : max(n_heads, kNan), sum(n_heads, kNan), out(n_heads * d, kNan) {}
  PartialView view() { return {max.data(), sum.data(), out.data()}; }
};

bool same_bits(const DeviceVector<float>& a, const DeviceVector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

DeviceVector<bf16> random_rows(std::mt19937_64& rng, int64_t n, float spread = 1.0f) {
  std::normal_distribution<float> normal(0.0f, spread);
  DeviceVector<bf16> rows(n);
  for (bf16& x : rows) x = bf16(normal(rng));
  return rows;
}

// One workspace for all shapes, as its counters must survive that.
DeviceVector<float>& workspace(int64_t floats) {
  static DeviceVector<float> memory(decode_workspace_floats(64, 256));
  EXPECT_LE(floats, static_cast<int64_t>(memory.size()));
  return memory;
}

// A shape, its queries and sources.
struct Case {
  int32_t n_kv_heads, group, d;
  DeviceVector<bf16> q;
  std::vector<KvSource> sources;

  Case(std::mt19937_64& rng, int32_t kv_heads, int32_t g, int32_t head_dim, float spread = 1.0f)
      : n_kv_heads(kv_heads),
        group(g),
        d(head_dim),
        q(random_rows(rng, kv_heads * g * d, spread)) {}
  int32_t n_heads() const { return n_kv_heads * group; }
  DecodeAttendParams params(const PartialView& out) {
    DecodeAttendParams p;
    p.q = q.data();
    p.sources = sources.data();
    p.n_sources = static_cast<int32_t>(sources.size());
    p.n_heads = n_heads();
    p.n_kv_heads = n_kv_heads;
    p.head_dim = d;
    p.scale = 1.0f / std::sqrt(static_cast<float>(d));
    p.out = out;
    p.workspace = workspace(decode_workspace_floats(n_heads(), d)).data();
    return p;
  }
};

KvSource plane(const DeviceVector<bf16>& keys, const DeviceVector<bf16>& values, int32_t n_kv_heads,
               int32_t d, int64_t n_tokens) {
  KvSource s;
  s.keys = keys.data();
  s.values = values.data();
  s.head_stride = static_cast<int64_t>(keys.size()) / n_kv_heads;
  s.chunk_stride = d;
  s.token_stride = d;
  s.n_tokens = n_tokens;
  return s;
}

// How far weights rounded to bf16 may move a normalised output: bf16 has 8 bits, so each weight p
// moves by at most 2^-8 p (their sum is taken before the rounding), and out by at most
// 2^-8 sum p |v| / sum p.
std::vector<double> weight_rounding(const DecodeAttendParams& p, int32_t head) {
  const int32_t d = p.head_dim, kv_head = head / (p.n_heads / p.n_kv_heads);
  std::vector<double> scores, moved(static_cast<size_t>(d), 0.0);
  std::vector<const bf16*> values;
  for (int32_t s = 0; s < p.n_sources; ++s) {
    const KvSource& source = p.sources[s];
    for (const int64_t row : test::rows_of(source, kv_head)) {
      const bf16* key = source.keys + kv_head * source.head_stride + row;
      double dot = 0;
      for (int32_t i = 0; i < d; ++i) {
        dot += double{static_cast<float>(p.q[int64_t{head} * d + i])} * static_cast<float>(key[i]);
      }
      scores.push_back(dot * p.scale);
      values.push_back(source.values + kv_head * source.head_stride + row);
    }
  }
  if (scores.empty()) return moved;
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (size_t t = 0; t < scores.size(); ++t) {
    const double weight = std::exp(scores[t] - max);
    sum += weight;
    for (int32_t i = 0; i < d; ++i) moved[i] += weight * std::abs(static_cast<float>(values[t][i]));
  }
  for (double& x : moved) x *= 0x1p-8 / sum;
  return moved;
}

class DecodeKernelTest : public testing::Test {
 protected:
  std::mt19937_64 rng_{test::seed()};

  int64_t up_to(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }

  Partial attend(Case& c) {
    Partial result(c.n_heads(), c.d);
    return attend(c, cuda::plan_decode(stream(), c.params(result.view())));
  }
  Partial attend(Case& c, const cuda::DecodePlan& plan) {
    Partial result(c.n_heads(), c.d);
    attend(c.params(result.view()), plan);
    return result;
  }
  void attend(const DecodeAttendParams& p, const cuda::DecodePlan& plan) {
    // No partial of an earlier call may be read; the counters before them belong to the op.
    float* memory = workspace(0).data();
    constexpr int64_t kCounters = 512;
    std::fill_n(memory + kCounters, int64_t{p.n_heads} * plan.n_splits * (p.head_dim + 2), kNan);
    cuda::attend_decode(stream(), p, plan);
    stream().finish();
    for (int64_t i = 0; i < kCounters; ++i) {
      EXPECT_EQ(std::bit_cast<uint32_t>(memory[i]), 0u) << "counter " << i;
    }
  }
  // The plan of the op, and others that the shape allows.
  std::vector<cuda::DecodePlan> plans(Case& c) {
    std::vector<cuda::DecodePlan> all = {
        cuda::plan_decode(stream(), c.params(Partial(1, 1).view()))};
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

  void expect_near_oracle(Case& c, Partial& result, bool plain = false) {
    const DecodeAttendParams p = c.params(result.view());
    for (int32_t h = 0; h < c.n_heads(); ++h) {
      const auto e = expected_decode(p, h);
      if (std::isinf(e.log_sum)) {
        EXPECT_EQ(result.max[h], kEmptyMax);
        EXPECT_EQ(result.sum[h], 0.0f);
        for (int32_t i = 0; i < c.d; ++i) ASSERT_EQ(result.out[h * c.d + i], 0.0f);
        continue;
      }
      std::vector<double> rounding(static_cast<size_t>(c.d), 0.0);
      if (!plain) rounding = weight_rounding(p, h);
      EXPECT_NEAR(result.max[h] + std::log2(double{result.sum[h]}), e.log_sum, e.log_sum_tolerance);
      for (int32_t i = 0; i < c.d; ++i) {
        ASSERT_NEAR(double{result.out[h * c.d + i]} / result.sum[h], e.out[i],
                    e.tolerance[i] * 1.01 + rounding[i])
            << "head " << h << " element " << i;
      }
    }
  }

  void check_plane(int32_t n_kv_heads, int32_t group, int32_t d, int64_t n, bool plain) {
    SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " tokens " << n);
    Case c(rng_, n_kv_heads, group, d);
    const auto keys = random_rows(rng_, n_kv_heads * (n + 3) * d),
               values = random_rows(rng_, n_kv_heads * (n + 3) * d);
    c.sources = {plane(keys, values, n_kv_heads, d, n)};
    check_plans(c, plain);
  }
  void check_plans(Case& c, bool plain) {
    for (const cuda::DecodePlan& plan : plans(c)) {
      SCOPED_TRACE(testing::Message() << plan.n_splits << " splits, few " << plan.few);
      Partial result = attend(c, plan);
      expect_near_oracle(c, result, plain);
    }
  }
};

TEST_F(DecodeKernelTest, PlaneOfAnyShapeMatchesOracle) {
  for (const int32_t d : {64, 96, 128, 256}) {
    for (const int32_t group : {1, 4, 7, 16, 19}) {
      for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{17}, 33 + up_to(200)}) {
        check_plane(2, group, d, n, false);
      }
    }
    check_plane(1, 8, d, 600 + up_to(200), false);
  }
}

TEST_F(DecodeKernelTest, OtherHeadDimsMatchOracle) {
  for (const int32_t d : {2, 16, 34, 80, 254}) {
    for (const int32_t group : {1, 3}) {
      for (const int64_t n : {int64_t{0}, int64_t{1}, 17 + up_to(300)}) {
        check_plane(2, group, d, n, true);
      }
    }
  }
}

// Rows at odd addresses take the plain kernel whatever the head dimension.
TEST_F(DecodeKernelTest, RowsAtAnyAddress) {
  const int32_t d = 64, n_kv = 2;
  const int64_t n = 45;
  Case c(rng_, n_kv, 2, d);
  const auto keys = random_rows(rng_, n_kv * (n + 3) * (d + 1)),
             values = random_rows(rng_, n_kv * (n + 3) * (d + 1));
  KvSource shifted = plane(keys, values, n_kv, d, n);
  shifted.keys += 1;
  c.sources = {shifted};
  Partial result = attend(c);
  expect_near_oracle(c, result, true);
  KvSource odd = plane(keys, values, n_kv, d, n);
  odd.chunk_stride = odd.token_stride = d + 1;
  c.sources = {odd};
  result = attend(c);
  expect_near_oracle(c, result, true);
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
      check_plans(c, d == 80);
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
    check_plans(c, d == 80);
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
      expect_near_oracle(c, result, d == 80);
      if (plan.n_splits == 9) {
        // Either way of merging has the same bits.
        const Partial other = attend(c, {9, true});
        EXPECT_TRUE(same_bits(result.max, other.max) && same_bits(result.sum, other.sum) &&
                    same_bits(result.out, other.out));
      }
    }
  }
}

// Keys cut into random parts, attended apart, merged in random order: the same answer.
TEST_F(DecodeKernelTest, AnyPartitionGivesTheSameAnswer) {
  const int32_t d = 64, n_kv = 2, group = 4;
  const int64_t n = 1500;
  const auto keys = random_rows(rng_, n_kv * n * d, 2.0f), values = random_rows(rng_, n_kv * n * d);
  Case whole(rng_, n_kv, group, d);
  whole.sources = {plane(keys, values, n_kv, d, n)};
  Partial reference = attend(whole);
  expect_near_oracle(whole, reference);

  std::vector<KvSource> parts;
  for (int64_t at = 0; at < n;) {
    const int64_t size = std::min(n - at, 1 + up_to(150));
    KvSource part = whole.sources[0];
    part.keys += at * d;
    part.values += at * d;
    part.n_tokens = size;
    parts.push_back(part);
    at += size;
  }
  std::shuffle(parts.begin(), parts.end(), rng_);
  std::vector<Partial> partials;
  for (size_t i = 0; i < parts.size();) {
    const size_t count = std::min<size_t>(parts.size() - i, up_to(kMaxDecodeSources + 1));
    whole.sources.assign(parts.begin() + i,
                         parts.begin() + i + count);  // count 0: an empty partial
    partials.push_back(attend(whole));
    i += count;
  }
  std::shuffle(partials.begin(), partials.end(), rng_);
  std::vector<PartialView> views;
  for (Partial& p : partials) views.push_back(p.view());
  DeviceVector<bf16> out(whole.n_heads() * d, bf16(kNan));
  MergeParams merge;
  merge.partials = views.data();
  merge.n_partials = static_cast<int32_t>(views.size());
  merge.n_heads = whole.n_heads();
  merge.head_dim = d;
  merge.out = out.data();
  cuda::merge_partials(stream(), merge);
  stream().finish();

  whole.sources = {plane(keys, values, n_kv, d, n)};
  const DecodeAttendParams p = whole.params(reference.view());
  for (int32_t h = 0; h < whole.n_heads(); ++h) {
    const auto e = expected_decode(p, h);
    const auto rounding = weight_rounding(p, h);
    for (int32_t i = 0; i < d; ++i) {
      // One more rounding, to bf16 (8 bits): at most 2^-8.
      ASSERT_NEAR(static_cast<float>(out[h * d + i]), e.out[i],
                  (e.tolerance[i] * 1.01 + rounding[i]) * 1.01 + 0x1p-8 * std::abs(e.out[i]));
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

TEST_F(DecodeKernelTest, MergeOfNothingIsZero) {
  DeviceVector<bf16> out(2 * 64, bf16(3.0f));
  Partial empty(2, 64);
  std::fill(empty.max.begin(), empty.max.end(), kEmptyMax);
  std::fill(empty.sum.begin(), empty.sum.end(), 0.0f);
  std::fill(empty.out.begin(), empty.out.end(), 0.0f);
  PartialView views[] = {empty.view(), empty.view()};
  MergeParams merge;
  merge.n_heads = 2;
  merge.head_dim = 64;
  merge.out = out.data();
  for (const int32_t n : {0, 2}) {
    std::fill(out.begin(), out.end(), bf16(3.0f));
    merge.partials = views;
    merge.n_partials = n;
    cuda::merge_partials(stream(), merge);
    stream().finish();
    for (const bf16 x : out) ASSERT_EQ(static_cast<float>(x), 0.0f);
  }
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

// Scores rise (or fall) by 130 octaves over the row: the running maximum must follow.
TEST_F(DecodeKernelTest, HugeScoreRanges) {
  for (const float direction : {1.0f, -1.0f}) {
    const int32_t d = 64;
    const int64_t n = 700;
    Case c(rng_, 1, 2, d);
    DeviceVector<bf16> keys(n * d), values = random_rows(rng_, n * d);
    for (int32_t i = 0; i < 2 * d; ++i) c.q[i] = bf16(1.0f);
    for (int64_t t = 0; t < n; ++t) {
      const float octaves = direction * (static_cast<float>(t) * 2 * 130.0f / n - 130.0f);
      keys[t * d + t % d] = bf16(octaves * 8 * 0.693f);
    }
    c.sources = {plane(keys, values, 1, d, n)};
    Partial result = attend(c);
    expect_near_oracle(c, result);
  }
}

// One key weighs exactly 1: its value comes out unchanged.
TEST_F(DecodeKernelTest, OneKeyIsExact) {
  for (const int32_t d : {64, 80, 96, 128, 256}) {
    Case c(rng_, 2, 4, d, 3.0f);
    const auto keys = random_rows(rng_, 2 * d), values = random_rows(rng_, 2 * d);
    c.sources = {plane(keys, values, 2, d, 1)};
    const Partial result = attend(c);
    for (int32_t h = 0; h < 8; ++h) {
      ASSERT_EQ(result.sum[h], 1.0f);
      for (int32_t i = 0; i < d; ++i) {
        ASSERT_EQ(result.out[h * d + i], static_cast<float>(values[h / 4 * d + i]));
      }
    }
  }
}

TEST_F(DecodeKernelTest, NanAndInfinityStayWithTheirHead) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const int32_t d : {64, 80}) {
    for (const int64_t at : {0, 40, 699}) {
      for (const float poison : {kNan, inf, -inf}) {
        const int64_t n = 700;
        Case c(rng_, 2, 2, d);
        for (bf16& x : c.q) x = bf16(std::abs(static_cast<float>(x)) + 0.1f);
        auto keys = random_rows(rng_, 2 * n * d);
        const auto values = random_rows(rng_, 2 * n * d);
        keys[(n + at) * d + 5] = bf16(poison);
        c.sources = {plane(keys, values, 2, d, n)};
        Partial result = attend(c);
        DeviceVector<bf16> out(4 * d);
        const PartialView view = result.view();
        cuda::merge_partials(stream(), {&view, 1, 4, d, out.data()});
        stream().finish();
        const bool nan = !(poison == -inf);  // a -inf score weighs nothing
        for (int32_t i = 0; i < 4 * d; ++i) {
          ASSERT_EQ(std::isnan(static_cast<float>(out[i])), nan && i >= 2 * d) << i;
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
    check_plans(c, d == 80);
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
    check_plans(c, d == 80);
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
    check_plans(c, false);
  }
}

// A recorded step sees what the clock has added since.
TEST_F(DecodeKernelTest, TokensThatCameLater) {
  for (const int32_t d : {64, 80}) {
    const int32_t n_kv = 2;
    const int64_t n = 21, capacity = n + kMaxLater;
    Case c(rng_, n_kv, 3, d);
    const auto keys = random_rows(rng_, n_kv * capacity * d),
               values = random_rows(rng_, n_kv * capacity * d);
    DeviceVector<int64_t> clock(1);
    for (const int64_t steps : {int64_t{0}, int64_t{1}, int64_t{40}, kMaxLater}) {
      const auto sources = [&](int64_t n_tokens, const int64_t* later) {
        KvSource growing = plane(keys, values, n_kv, d, n_tokens);
        growing.later = later;
        return std::vector{growing, plane(values, keys, n_kv, d, 35)};
      };
      clock[0] = steps;
      c.sources = sources(n, clock.data());
      for (const cuda::DecodePlan& plan :
           {cuda::plan_decode(stream(), c.params({})), cuda::DecodePlan{5, true, d == 64}}) {
        SCOPED_TRACE(testing::Message() << "d " << d << " steps " << steps << " few " << plan.few);
        c.sources = sources(n, clock.data());
        Partial result = attend(c, plan);
        c.sources = sources(n + steps, nullptr);
        expect_near_oracle(c, result, d == 80);
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
          DecodeAttendParams p = c.params(result.view());
          p.merge_with = views.data();
          p.n_merge = n_merge;
          p.final_out = out.data();
          attend(p, plan);
          if (n_merge == 0) expect_near_oracle(c, result, d == 80);
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

#if !defined(TIERCEL_ON_DEVICE)

TEST_F(DecodeKernelTest, NoBankConflicts) {
  simt::g.ldmatrix_conflicts = simt::g.ldmatrix_count = 0;
  for (const int32_t d : {64, 96, 128, 256}) check_plane(1, 4, d, 40, false);
  EXPECT_GT(simt::g.ldmatrix_count, 0u);
  EXPECT_EQ(simt::g.ldmatrix_conflicts, 0u);
}

// Address space without memory: rows beyond 2^31 elements.
TEST_F(DecodeKernelTest, OffsetsBeyondTwoToThe31) {
  for (const int32_t d : {128, 80}) {
    const int32_t chunk = 8;
    const int64_t far_chunk = 5'000'000, head_stride = far_chunk * chunk * d + chunk * d;
    const size_t bytes = 2 * head_stride * sizeof(bf16);
    void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_NE(map, MAP_FAILED);
    bf16* base = static_cast<bf16*>(map);
    std::normal_distribution<float> normal;
    for (int64_t j = 0; j < 2; ++j) {
      for (int64_t i = 0; i < chunk * d; ++i) {
        base[j * head_stride + far_chunk * chunk * d + i] = bf16(normal(rng_));
      }
    }
    Case c(rng_, 2, 2, d);
    DeviceVector<int32_t> ids(4, 0), counts(2, 2);
    ids[0] = ids[3] = static_cast<int32_t>(far_chunk);
    KvSource s;
    s.keys = s.values = base;
    s.head_stride = head_stride;
    s.chunk_stride = chunk * d;
    s.token_stride = d;
    s.chunk_tokens = chunk;
    s.ids = ids.data();
    s.counts = counts.data();
    s.ids_stride = 2;
    // The same rows as a plane whose tokens lie far apart.
    KvSource wide = s;
    wide.ids = wide.counts = nullptr;
    wide.chunk_tokens = 1;
    wide.chunk_stride = wide.token_stride = far_chunk * chunk * d;
    wide.n_tokens = 2;
    c.sources = {s, wide};
    Partial result = attend(c);
    expect_near_oracle(c, result, d == 80);
    munmap(map, bytes);
  }
}

#else

// Sizes that fill the device.
TEST_F(DecodeKernelTest, LongPlanes) {
  for (const int32_t d : {64, 80, 96, 128, 256}) {
    for (const int32_t group : {1, 4, 16}) {
      if (d == 80 && group > 1) continue;
      check_plane(2, group, d, 20000 + up_to(20000), d == 80);
    }
  }
  check_plane(8, 4, 128, 20000, false);
}

#endif

}  // namespace
}  // namespace tiercel
