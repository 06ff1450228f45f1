// The bias of a source in decode attention, on every plan.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/attention_decode.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/decode.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::DeviceVector;
using test::stream;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

DeviceVector<bf16> random_rows(std::mt19937_64& rng, int64_t n) {
  std::normal_distribution<float> normal;
  DeviceVector<bf16> rows(static_cast<size_t>(n));
  for (bf16& x : rows) x = bf16(normal(rng));
  return rows;
}

// Planes of keys and values for some KV heads, and a list of chunks of them.
struct Memory {
  Memory(std::mt19937_64& rng, int32_t kv_heads, int32_t head_dim, int64_t tokens)
      : n_kv_heads(kv_heads),
        d(head_dim),
        n_tokens(tokens),
        keys(random_rows(rng, kv_heads * tokens * d)),
        values(random_rows(rng, kv_heads * tokens * d)) {
    for (int64_t i = 0; i < n_kv_heads * kListed; ++i) {
      ids.push_back(static_cast<int32_t>(rng() % static_cast<uint64_t>(tokens / kChunk)));
    }
    for (int32_t j = 0; j < n_kv_heads; ++j) counts.push_back(j == 1 ? 0 : kListed - j);
  }
  KvSource plane(int64_t n, float bias) const {
    KvSource s;
    s.keys = keys.data();
    s.values = values.data();
    s.head_stride = n_tokens * d;
    s.chunk_stride = s.token_stride = d;
    s.n_tokens = n;
    s.bias = bias;
    return s;
  }
  KvSource listed(float bias) const {
    KvSource s = plane(0, bias);
    s.chunk_tokens = kChunk;
    s.chunk_stride = kChunk * d;
    s.ids = ids.data();
    s.counts = counts.data();
    s.ids_stride = kListed;
    return s;
  }
  static constexpr int32_t kChunk = 8, kListed = 7;
  int32_t n_kv_heads, d;
  int64_t n_tokens;
  DeviceVector<bf16> keys, values;
  DeviceVector<int32_t> ids, counts;
};

struct Result {
  Result(int64_t n_heads, int64_t d)
      : max(static_cast<size_t>(n_heads), kNan), sum(max), out(static_cast<size_t>(n_heads * d)) {
    std::fill(out.begin(), out.end(), kNan);
  }
  PartialView view() { return {max.data(), sum.data(), out.data()}; }
  DeviceVector<float> max, sum, out;
};

struct Attended {
  Attended(std::mt19937_64& rng, int32_t kv_heads, int32_t heads_of_group, int32_t d)
      : n_heads(kv_heads * heads_of_group), q(random_rows(rng, n_heads * d)) {
    p.q = q.data();
    p.n_heads = n_heads;
    p.n_kv_heads = kv_heads;
    p.head_dim = d;
    p.scale = 1.0f / std::sqrt(static_cast<float>(d));
    workspace.assign(static_cast<size_t>(decode_workspace_floats(n_heads, d)), 0.0f);
    p.workspace = workspace.data();
  }
  Result run(const std::vector<KvSource>& sources, const cuda::DecodePlan* plan = nullptr) {
    Result result(n_heads, p.head_dim);
    p.sources = sources.data();
    p.n_sources = static_cast<int32_t>(sources.size());
    p.out = result.view();
    if (plan == nullptr) {
      cuda::attend_decode(stream(), p);
    } else {
      cuda::attend_decode(stream(), p, *plan);
    }
    stream().finish();
    return result;
  }
  // rounded: weights are rounded to bf16, 2^-8 of each.
  void expect_near_oracle(const Result& result, bool rounded) {
    const int64_t d = p.head_dim;
    for (int32_t h = 0; h < n_heads; ++h) {
      const test::DecodeExpected e = test::expected_decode(p, h);
      const size_t head = static_cast<size_t>(h);
      ASSERT_NEAR(result.max[head] + std::log2(double{result.sum[head]}), e.log_sum,
                  e.log_sum_tolerance);
      for (int64_t i = 0; i < d; ++i) {
        ASSERT_NEAR(double{result.out[static_cast<size_t>(h * d + i)]} / result.sum[head],
                    e.out[static_cast<size_t>(i)],
                    e.tolerance[static_cast<size_t>(i)] * 1.01 +
                        (rounded ? 0x1p-8 * e.size[static_cast<size_t>(i)] : 0))
            << "head " << h << " element " << i;
      }
    }
  }
  int32_t n_heads;
  DeviceVector<bf16> q;
  DeviceVector<float> workspace;
  DecodeAttendParams p;
};

std::vector<cuda::DecodePlan> plans(int32_t d) {
  std::vector<cuda::DecodePlan> all = {{1, true, false}, {4, true, false}, {4, false, false}};
  if (d == 64 || d == 96 || d == 128) all.push_back({8, true, true});
  return all;
}

TEST(CudaDecodeBias, EveryPlanAddsItToTheScores) {
  std::mt19937_64 rng(test::seed());
  for (const int32_t d : {64, 96, 128, 256, 80}) {
    for (const int32_t group : {1, 5}) {
      const Memory memory(rng, 2, d, 400);
      Attended a(rng, 2, group, d);
      const std::vector<KvSource> sources = {memory.plane(100, 0.0f), memory.listed(3.0f),
                                             memory.plane(37, -2.5f), memory.plane(0, 9.0f),
                                             memory.plane(300, 0.75f)};
      SCOPED_TRACE(testing::Message() << "head_dim " << d << " group " << group);
      const Result result = a.run(sources);
      ASSERT_NO_FATAL_FAILURE(a.expect_near_oracle(result, d != 80));
      for (const cuda::DecodePlan& plan : plans(d)) {
        SCOPED_TRACE(testing::Message() << plan.n_splits << " splits, few " << plan.few);
        const Result other = a.run(sources, &plan);
        ASSERT_NO_FATAL_FAILURE(a.expect_near_oracle(other, d != 80));
      }
    }
  }
}

// Every key has one of its own: of a plane, of chunks by ids, and of slots whose chunks another list names.
TEST(CudaDecodeBias, OfEveryKey) {
  std::mt19937_64 rng(test::seed());
  for (const int32_t d : {64, 96, 128, 256, 80}) {
    const int32_t n_tokens = 400, n_chunks = n_tokens / Memory::kChunk;
    const Memory memory(rng, 2, d, n_tokens);
    DeviceVector<float> bias(static_cast<size_t>(2 * n_tokens));
    for (float& x : bias) x = static_cast<float>(rng() % 8000) * 1e-3f - 2;
    DeviceVector<int32_t> chunk_of_slot(static_cast<size_t>(2 * n_chunks));
    for (int32_t& id : chunk_of_slot) id = static_cast<int32_t>(rng() % n_chunks);
    const auto biased = [&](KvSource source, int64_t first) {
      source.key_bias = bias.data() + first;
      source.key_bias_head_stride = n_tokens;
      return source;
    };
    KvSource slots = biased(memory.listed(0.5f), 0);
    slots.bias_chunks = chunk_of_slot.data();
    slots.bias_chunks_stride = n_chunks;
    KvSource exact = slots;  // chunk after chunk
    exact.ids = exact.counts = nullptr;
    exact.n_tokens = 5 * Memory::kChunk;
    const std::vector<KvSource> sources = {biased(memory.plane(300, 0.0f), 77),
                                           biased(memory.listed(0.0f), 0), slots, exact,
                                           memory.plane(37, -1.0f)};
    Attended a(rng, 2, 3, d);
    SCOPED_TRACE(testing::Message() << "head_dim " << d);
    const Result result = a.run(sources);
    ASSERT_NO_FATAL_FAILURE(a.expect_near_oracle(result, d != 80));
    for (const cuda::DecodePlan& plan : plans(d)) {
      if (plan.few) continue;
      SCOPED_TRACE(testing::Message() << plan.n_splits << " splits");
      const Result other = a.run(sources, &plan);
      ASSERT_NO_FATAL_FAILURE(a.expect_near_oracle(other, d != 80));
    }
  }
}

// A bias of log2(n) makes a row stand for n: four times the weight of one row, as four sources.
TEST(CudaDecodeBias, ARowThatStandsForFour) {
  std::mt19937_64 rng(test::seed());
  for (const int32_t d : {64, 128, 256, 34}) {
    const Memory memory(rng, 1, d, 64);
    Attended a(rng, 1, 2, d);
    const Result once = a.run({memory.plane(20, 2.0f)});
    const Result four = a.run({memory.plane(20, 0.0f), memory.plane(20, 0.0f),
                               memory.plane(20, 0.0f), memory.plane(20, 0.0f)});
    for (size_t h = 0; h < 2; ++h) {
      EXPECT_NEAR(once.max[h], four.max[h] + 2.0f, 4 * test::kUnit * (std::abs(once.max[h]) + 2));
      // Sums of 20 and of 80 terms, of scores that are rounded after the bias and before.
      EXPECT_NEAR(4 * once.sum[h], four.sum[h], four.sum[h] * 200 * test::kUnit);
    }
  }
}

// A source of bias -inf weighs nothing, and no bias leaves every bit as it was.
TEST(CudaDecodeBias, NothingAndEverything) {
  std::mt19937_64 rng(test::seed());
  const Memory memory(rng, 2, 64, 100);
  Attended a(rng, 2, 3, 64);
  const float none = -std::numeric_limits<float>::infinity();
  const Result with = a.run({memory.plane(50, 0.0f), memory.plane(90, none)});
  const Result without = a.run({memory.plane(50, 0.0f)});
  for (size_t h = 0; h < with.max.size(); ++h) {
    EXPECT_EQ(with.max[h], without.max[h]);
    EXPECT_NEAR(with.sum[h], without.sum[h], without.sum[h] * 100 * test::kUnit);
  }
}

}  // namespace
}  // namespace tiercel
