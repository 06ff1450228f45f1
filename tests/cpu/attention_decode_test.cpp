// Decode attention and merging at every level that this machine runs, against fp64.
#include "cpu/attention_decode.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/base/partial.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/decode.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using cpu::Isa;
using cpu::Queue;
using test::expected_decode;

struct Partial {
  std::vector<float> max, sum, out;
  Partial(int64_t n_heads, int64_t d) : max(n_heads), sum(n_heads), out(n_heads * d) {}
  PartialView view() { return {max.data(), sum.data(), out.data()}; }
};

std::vector<bf16> random_rows(std::mt19937_64& rng, int64_t n, float spread = 1.0f) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<bf16> rows(n);
  for (bf16& x : rows) x = bf16(normal(rng));
  return rows;
}

// A shape, its queries, and memory for results.
struct Case {
  int32_t n_kv_heads, group, d;
  std::vector<bf16> q;
  std::vector<KvSource> sources;
  std::vector<float> workspace;

  Case(std::mt19937_64& rng, int32_t kv_heads, int32_t g, int32_t head_dim, float spread = 1.0f)
      : n_kv_heads(kv_heads), group(g), d(head_dim), q(random_rows(rng, kv_heads * g * d, spread)) {
    workspace.resize(decode_workspace_floats(n_heads(), d));
  }
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
    p.workspace = workspace.data();
    return p;
  }
};

KvSource plane(const std::vector<bf16>& keys, const std::vector<bf16>& values, int32_t n_kv_heads,
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

class DecodeTest : public testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  std::mt19937_64 rng_{test::seed()};

  Partial attend(Case& c) {
    Partial result(c.n_heads(), c.d);
    cpu::attend_decode(queue_, c.params(result.view()));
    return result;
  }

  void expect_near_oracle(Case& c, Partial& result) {
    const DecodeAttendParams p = c.params(result.view());
    for (int32_t h = 0; h < c.n_heads(); ++h) {
      const auto e = expected_decode(p, h);
      if (std::isinf(e.log_sum)) {
        EXPECT_EQ(result.max[h], kEmptyMax);
        EXPECT_EQ(result.sum[h], 0.0f);
        for (int32_t i = 0; i < c.d; ++i) ASSERT_EQ(result.out[h * c.d + i], 0.0f);
        continue;
      }
      EXPECT_NEAR(result.max[h] + std::log2(double{result.sum[h]}), e.log_sum, e.log_sum_tolerance);
      for (int32_t i = 0; i < c.d; ++i) {
        ASSERT_NEAR(double{result.out[h * c.d + i]} / result.sum[h], e.out[i], e.tolerance[i])
            << "head " << h << " element " << i;
      }
    }
  }

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

// A row with bias log2(n) weighs as much as n of it; a source without one stays what it was.
TEST_P(DecodeTest, BiasIsAddedToEveryScore) {
  for (const int32_t d : {64, 80, 128}) {
    const int32_t n_kv = 2;
    Case c(rng_, n_kv, 3, d);
    const auto keys = random_rows(rng_, n_kv * 900 * d), values = random_rows(rng_, n_kv * 900 * d);
    c.sources = {plane(keys, values, n_kv, d, 700), plane(values, keys, n_kv, d, 0),
                 plane(values, keys, n_kv, d, 90)};
    const Partial without = attend(c);
    for (const float bias : {3.0f, -40.0f, 40.0f, std::log2(1000.0f)}) {
      c.sources[1].bias = bias;  // an empty source stays empty
      EXPECT_EQ(attend(c).out, without.out);
      c.sources[2].bias = bias;
      Partial result = attend(c);
      expect_near_oracle(c, result);
      c.sources[2].bias = 0;
    }
  }
  Case c(rng_, 1, 2, 64);
  const auto row = random_rows(rng_, 64), value = random_rows(rng_, 64);
  c.sources = {plane(row, value, 1, 64, 1)};
  c.sources[0].bias = 5;  // 32 tokens
  const Partial one = attend(c);
  c.sources.assign(8, plane(row, value, 1, 64, 1));
  for (KvSource& source : c.sources) source.bias = 2;  // 8 times 4
  const Partial eight = attend(c);
  for (int32_t h = 0; h < 2; ++h) {
    EXPECT_EQ(one.sum[h], 1.0f);
    EXPECT_EQ(eight.sum[h], 8.0f);
    EXPECT_NEAR(one.max[h], eight.max[h] + 3, 1e-6f * std::abs(one.max[h]));
  }
}

// Every kind of source: a plane, chunks by ids, and slots whose chunks another list names.
TEST_P(DecodeTest, EveryKeyHasABiasOfItsOwn) {
  for (const int32_t d : {64, 80, 128}) {
    const int32_t n_kv = 2, chunk = 8, n_chunks = 90, n_slots = 20;
    Case c(rng_, n_kv, 3, d);
    const auto keys = random_rows(rng_, n_kv * n_chunks * chunk * d),
               values = random_rows(rng_, n_kv * n_chunks * chunk * d);
    std::vector<float> bias(n_kv * n_chunks * chunk);
    for (float& x : bias) x = static_cast<float>(up_to(8000)) * 1e-3f - 2;
    std::vector<int32_t> ids(n_kv * n_slots), counts = {n_slots, 11}, chunk_of_slot(n_kv * n_slots);
    for (int32_t& id : ids) id = static_cast<int32_t>(up_to(n_slots));
    for (int32_t& id : chunk_of_slot) id = static_cast<int32_t>(up_to(n_chunks));
    const auto biased = [&](KvSource source, int64_t first) {
      source.key_bias = bias.data() + first;
      source.key_bias_head_stride = n_chunks * chunk;
      return source;
    };
    KvSource listed = biased(plane(keys, values, n_kv, d, 0), 0);
    listed.chunk_tokens = chunk;
    listed.chunk_stride = chunk * d;
    listed.ids = ids.data();
    listed.counts = counts.data();
    listed.ids_stride = n_slots;
    KvSource slots = listed;
    slots.bias_chunks = chunk_of_slot.data();
    slots.bias_chunks_stride = n_slots;
    KvSource exact = slots;  // chunk after chunk
    exact.ids = exact.counts = nullptr;
    exact.n_tokens = 5 * chunk;
    c.sources = {biased(plane(keys, values, n_kv, d, 600), 77), listed, slots, exact,
                 plane(values, keys, n_kv, d, 90)};
    Partial result = attend(c);
    expect_near_oracle(c, result);
  }
}

TEST_P(DecodeTest, NoSourcesIsTheNeutralElement) {
  Case c(rng_, 2, 4, 64);
  Partial result = attend(c);
  expect_near_oracle(c, result);
}

// Keys cut into random parts, attended apart, merged in random order: the same answer.
TEST_P(DecodeTest, AnyPartitionGivesTheSameAnswer) {
  const int32_t d = 64, n_kv = 2, group = 4;
  const int64_t n = 3000;
  const auto keys = random_rows(rng_, n_kv * n * d, 2.0f), values = random_rows(rng_, n_kv * n * d);
  Case whole(rng_, n_kv, group, d);
  whole.sources = {plane(keys, values, n_kv, d, n)};
  Partial reference = attend(whole);
  expect_near_oracle(whole, reference);

  std::vector<KvSource> parts;
  for (int64_t at = 0; at < n;) {
    const int64_t size = std::min(n - at, 1 + up_to(200));
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
  std::vector<bf16> out(whole.n_heads() * d);
  MergeParams merge;
  merge.partials = views.data();
  merge.n_partials = static_cast<int32_t>(views.size());
  merge.n_heads = whole.n_heads();
  merge.head_dim = d;
  merge.out = out.data();
  cpu::merge_partials(queue_, merge);

  whole.sources = {plane(keys, values, n_kv, d, n)};
  const DecodeAttendParams p = whole.params(reference.view());
  for (int32_t h = 0; h < whole.n_heads(); ++h) {
    const auto e = expected_decode(p, h);
    for (int32_t i = 0; i < d; ++i) {
      // One more rounding, to bf16 (8 bits): at most 2^-8.
      ASSERT_NEAR(static_cast<float>(out[h * d + i]), e.out[i],
                  e.tolerance[i] * 1.01 + 0x1p-8 * std::abs(e.out[i]));
    }
  }
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
      cpu::attend_decode(queue_, p);
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

TEST_P(DecodeTest, MergeOfNothingIsZero) {
  std::vector<bf16> out(2 * 64, bf16(3.0f));
  Partial empty(2, 64);
  empty.max.assign(2, kEmptyMax);
  PartialView views[] = {empty.view(), empty.view()};
  MergeParams merge;
  merge.n_heads = 2;
  merge.head_dim = 64;
  merge.out = out.data();
  cpu::merge_partials(queue_, merge);
  for (const bf16 x : out) ASSERT_EQ(static_cast<float>(x), 0.0f);
  out.assign(2 * 64, bf16(3.0f));
  merge.partials = views;
  merge.n_partials = 2;
  cpu::merge_partials(queue_, merge);
  for (const bf16 x : out) ASSERT_EQ(static_cast<float>(x), 0.0f);
}

// Scores rise (or fall) by 130 octaves over the row: the running maximum must follow.
TEST_P(DecodeTest, HugeScoreRanges) {
  for (const float direction : {1.0f, -1.0f}) {
    const int32_t d = 64;
    const int64_t n = 700;
    Case c(rng_, 1, 2, d);
    std::vector<bf16> keys(n * d), values = random_rows(rng_, n * d);
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
TEST_P(DecodeTest, OneKeyIsExact) {
  Case c(rng_, 2, 4, 128, 3.0f);
  const auto keys = random_rows(rng_, 2 * 128), values = random_rows(rng_, 2 * 128);
  c.sources = {plane(keys, values, 2, 128, 1)};
  const Partial result = attend(c);
  for (int32_t h = 0; h < 8; ++h) {
    ASSERT_EQ(result.sum[h], 1.0f);
    for (int32_t i = 0; i < 128; ++i) {
      ASSERT_EQ(result.out[h * 128 + i], static_cast<float>(values[h / 4 * 128 + i]));
    }
  }
}

TEST_P(DecodeTest, NanAndInfinityStayWithTheirHead) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const int64_t at : {0, 40, 699}) {
    for (const float poison : {std::numeric_limits<float>::quiet_NaN(), inf, -inf}) {
      const int32_t d = 64;
      const int64_t n = 700;
      Case c(rng_, 2, 2, d);
      for (bf16& x : c.q) x = bf16(std::abs(static_cast<float>(x)) + 0.1f);
      auto keys = random_rows(rng_, 2 * n * d);
      const auto values = random_rows(rng_, 2 * n * d);
      keys[(n + at) * d + 5] = bf16(poison);
      c.sources = {plane(keys, values, 2, d, n)};
      const Partial result = attend(c);
      std::vector<bf16> out(4 * d);
      Partial copy = result;
      const PartialView view = copy.view();
      cpu::merge_partials(queue_, {&view, 1, 4, d, out.data()});
      const bool nan = !(poison == -inf);  // a -inf score weighs nothing
      for (int32_t i = 0; i < 4 * d; ++i) {
        ASSERT_EQ(std::isnan(static_cast<float>(out[i])), nan && i >= 2 * d) << i;
      }
    }
  }
  // A NaN value poisons its own column only.
  Case c(rng_, 1, 2, 64);
  const auto keys = random_rows(rng_, 100 * 64);
  auto values = keys;
  values[70 * 64 + 9] = bf16(std::numeric_limits<float>::quiet_NaN());
  c.sources = {plane(keys, values, 1, 64, 100)};
  const Partial result = attend(c);
  for (int32_t i = 0; i < 128; ++i) ASSERT_EQ(std::isnan(result.out[i]), i % 64 == 9) << i;
}

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
    cpu::attend_decode(queue, c.params(other.view()));
    EXPECT_EQ(first.max, other.max);
    EXPECT_EQ(first.sum, other.sum);
    EXPECT_EQ(first.out, other.out);
  }
}

// Address space without memory: rows beyond 2^31 elements.
TEST_P(DecodeTest, OffsetsBeyondTwoToThe31) {
  const int32_t d = 128, chunk = 8;
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
  const int32_t ids[] = {static_cast<int32_t>(far_chunk), 0, 0, static_cast<int32_t>(far_chunk)};
  const int32_t counts[] = {2, 2};
  KvSource s;
  s.keys = s.values = base;
  s.head_stride = head_stride;
  s.chunk_stride = chunk * d;
  s.token_stride = d;
  s.chunk_tokens = chunk;
  s.ids = ids;
  s.counts = counts;
  s.ids_stride = 2;
  c.sources = {s};
  Partial result = attend(c);
  expect_near_oracle(c, result);
  munmap(map, bytes);
}

INSTANTIATE_TEST_SUITE_P(EveryLevel, DecodeTest, testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(cpu::name_of(info.param)); });

}  // namespace
}  // namespace tiercel
