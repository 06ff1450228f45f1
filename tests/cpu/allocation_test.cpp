// Nothing is allocated by an op that decode runs, once its shape has been seen. Counts every
// operator new of the test program.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/codec.h"
#include "cpu/elementwise.h"
#include "cpu/key_weights.h"
#include "cpu/linear.h"
#include "cpu/lowrank.h"
#include "cpu/mass.h"
#include "cpu/movement.h"
#include "cpu/pick.h"
#include "cpu/reuse.h"
#include "cpu/select.h"
#include "cpu/weighted_values.h"
#include "engine/base/rope.h"
#include "tests/count_allocations.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/elementwise.h"

namespace tiercel::cpu {
namespace {

class Allocation : public ::testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
};
INSTANTIATE_TEST_SUITE_P(Levels, Allocation, ::testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(Allocation, LinearAndElementwise) {
  if (test::kOpsMakeThreads) GTEST_SKIP() << "threads are made per op here";
  const int64_t m = 40, k = 128, n = 300;
  std::vector<bf16> x(m * k, bf16(0.5f)), weight(n * k, bf16(0.25f)), out(m * n);
  std::vector<float> logits(m * n);
  std::vector<double> logprobs(m);
  const std::vector<int32_t> ids(m, 3);
  const auto step = [&] {
    for (int64_t rows : {int64_t{1}, int64_t{9}, m}) {
      linear(
          queue_,
          {.x = x.data(), .weight = weight.data(), .out = out.data(), .m = rows, .k = k, .n = n});
      linear(queue_, {.x = x.data(),
                      .weight = weight.data(),
                      .out = logits.data(),
                      .m = rows,
                      .k = k,
                      .n = n,
                      .out_type = DType::kF32});
    }
    embed(queue_, {.ids = ids.data(),
                   .table = weight.data(),
                   .out = x.data(),
                   .n_tokens = m,
                   .vocab = n,
                   .width = k});
    rms_norm(queue_, {.x = x.data(),
                      .weight = weight.data(),
                      .out = x.data(),
                      .n_rows = m,
                      .width = k,
                      .eps = 1e-5f});
    swiglu(queue_, {.gate = x.data(), .up = x.data(), .out = x.data(), .n = m * k});
    token_logprobs(queue_, {.logits = logits.data(),
                            .targets = ids.data(),
                            .logprobs = logprobs.data(),
                            .n_rows = m,
                            .vocab = n});
  };
  step();
  const int64_t before = test::n_allocations;
  for (int i = 0; i < 20; ++i) step();
  EXPECT_EQ(test::n_allocations - before, 0);
}

TEST_P(Allocation, RopeProjectRebuild) {
  if (test::kOpsMakeThreads) GTEST_SKIP() << "threads are made per op here";
  const int64_t n = 64, rank = 20;
  const int32_t d = 32, heads = 2;
  const RopeTable table(test::rope_frequencies(d / 2, 1e4), n);
  std::vector<bf16> q(n * heads * d, bf16(1.0f)), keys(q), values(q), slots(2 * q.size());
  std::vector<bf16> basis(heads * d * rank, bf16(0.1f)), coefficients(n * rank);
  std::vector<float> mean(heads * d);
  const LowRankView lowrank{basis.data(), mean.data(), rank};
  std::vector<int32_t> chunks(2 * 8), counts(2, 8);
  std::iota(chunks.begin(), chunks.begin() + 8, 0);
  std::iota(chunks.begin() + 8, chunks.end(), 0);
  const auto step = [&] {
    rope_append(queue_, {.q = q.data(),
                         .k = q.data(),
                         .v = q.data(),
                         .keys = keys.data(),
                         .values = values.data(),
                         .head_stride = n * d,
                         .n_tokens = n / 2,
                         .n_heads = heads,
                         .n_kv_heads = heads,
                         .head_dim = d,
                         .rope = table.view()});
    project_keys(queue_, {.keys = keys.data(),
                          .head_stride = n * d,
                          .n_tokens = n,
                          .n_kv_heads = heads,
                          .head_dim = d,
                          .rope = table.view(),
                          .lowrank = lowrank,
                          .coefficients = coefficients.data()});
    rebuild_keys(queue_, {.coefficients = coefficients.data(),
                          .lowrank = lowrank,
                          .rope = table.view(),
                          .miss_chunks = chunks.data(),
                          .miss_slots = chunks.data(),
                          .miss_counts = counts.data(),
                          .stride = 8,
                          .slots = slots.data(),
                          .slot_head_stride = 2 * n * d,
                          .chunk_tokens = 8,
                          .n_kv_heads = heads,
                          .head_dim = d});
  };
  step();
  const int64_t before = test::n_allocations;
  for (int i = 0; i < 20; ++i) step();
  EXPECT_EQ(test::n_allocations - before, 0);
}

TEST_P(Allocation, CodedRowsMassAndPick) {
  if (test::kOpsMakeThreads) GTEST_SKIP() << "threads are made per op here";
  const int64_t n = 64;
  const int32_t d = 32, heads = 2;
  const RopeTable table(test::rope_frequencies(d / 2, 1e4), n);
  const int64_t size = row_bytes(RowCodec::kInt8, d);
  struct alignas(16) Unit {
    std::byte bytes[16];
  };
  std::vector<Unit> memory(heads * n * size / 16);
  auto* codes = reinterpret_cast<std::byte*>(memory.data());
  std::vector<bf16> keys(heads * n * d, bf16(1.0f)), slots(2 * keys.size()), basis(heads * d * d);
  std::vector<float> mean(heads * d), mass(heads * n), workspace(mass_workspace_floats(heads, n));
  std::vector<uint64_t> excluded(heads);
  std::vector<int32_t> chunks(2 * 8), counts(2, 8);
  const auto fill = [&](auto p) {
    p.miss_chunks = p.miss_slots = chunks.data();
    p.miss_counts = counts.data();
    p.stride = 8;
    p.slots = slots.data();
    p.slot_head_stride = 2 * n * d;
    p.chunk_tokens = 8;
    p.n_kv_heads = heads;
    p.head_dim = d;
    return p;
  };
  const auto step = [&] {
    encode_rows(queue_, {.rows = keys.data(),
                         .head_stride = n * d,
                         .n_tokens = n,
                         .n_kv_heads = heads,
                         .width = d,
                         .mean = mean.data(),
                         .rope = table.view(),
                         .codes = codes,
                         .code_head_stride = n * size});
    fetch(queue_, fill(FetchParams{.value_codec = RowCodec::kInt8,
                                   .value_codes = codes,
                                   .value_code_head_stride = n * size}));
    decode_keys(queue_, fill(DecodeKeysParams{.codes = codes,
                                              .code_head_stride = n * size,
                                              .mean = mean.data(),
                                              .rope = table.view()}));
    rebuild_keys(queue_, fill(RebuildParams{.coded = codes,
                                            .codec = RowCodec::kInt8,
                                            .lowrank = {basis.data(), mean.data(), d},
                                            .rope = table.view()}));
    accumulate_mass(queue_, {.q = keys.data(),
                             .landmarks = keys.data(),
                             .landmark_head_stride = n * d,
                             .n_tokens = 20,
                             .end_chunk = n,
                             .n_heads = heads,
                             .n_kv_heads = heads,
                             .head_dim = d,
                             .scale = 0.1f,
                             .mass = mass.data(),
                             .mass_stride = n,
                             .workspace = workspace.data()});
    pick_chunks(queue_, {.mass = mass.data(),
                         .mass_stride = n,
                         .end_chunk = n,
                         .n = 10,
                         .n_kv_heads = heads,
                         .excluded = excluded.data(),
                         .excluded_stride = 1});
  };
  step();
  const int64_t before = test::n_allocations;
  for (int i = 0; i < 20; ++i) step();
  EXPECT_EQ(test::n_allocations - before, 0);
}

TEST_P(Allocation, WeightsAndValuesApart) {
  if (test::kOpsMakeThreads) GTEST_SKIP() << "threads are made per op here";
  const int64_t n = 4096;
  const int32_t d = 64, chunk = 8;
  std::vector<bf16> q(4 * d, bf16(0.5f)), rows(2 * n * d, bf16(0.25f)), weights(4 * n);
  std::vector<std::byte> codes(2 * n * row_bytes(RowCodec::kInt4, d));
  std::vector<float> maxima(4 * n / kWeightRange), max(4), sum(4), out(4 * d);
  std::vector<float> workspace(weighted_values_workspace_floats(4, d));
  std::vector<int32_t> ids(2 * n / chunk), counts(2, n / chunk);
  KeyWeightsParams keys;
  keys.q = q.data();
  keys.keys.keys = rows.data();
  keys.keys.head_stride = n * d;
  keys.keys.chunk_stride = chunk * d;
  keys.keys.token_stride = d;
  keys.keys.chunk_tokens = chunk;
  keys.keys.ids = ids.data();
  keys.keys.counts = counts.data();
  keys.keys.ids_stride = n / chunk;
  keys.n_heads = 4;
  keys.n_kv_heads = 2;
  keys.head_dim = d;
  keys.scale = 0.1f;
  keys.weights = weights.data();
  keys.weight_stride = n;
  keys.maxima = maxima.data();
  keys.maximum_stride = n / kWeightRange;
  WeightedValuesParams values;
  values.weights = weights.data();
  values.weight_stride = n;
  values.maxima = maxima.data();
  values.maximum_stride = n / kWeightRange;
  values.ids = ids.data();
  values.counts = counts.data();
  values.ids_stride = n / chunk;
  values.chunk_tokens = chunk;
  values.values = rows.data();
  values.value_head_stride = n * d;
  values.codes = codes.data();
  values.code_head_stride = n * row_bytes(RowCodec::kInt4, d);
  values.n_heads = 4;
  values.n_kv_heads = 2;
  values.head_dim = d;
  values.out = {max.data(), sum.data(), out.data()};
  values.workspace = workspace.data();
  const auto step = [&] {
    key_weights(queue_, keys);
    for (const RowCodec codec : {RowCodec::kBf16, RowCodec::kInt4}) {
      values.codec = codec;
      weighted_values(queue_, values);
    }
  };
  step();
  const int64_t before = test::n_allocations;
  for (int i = 0; i < 20; ++i) step();
  EXPECT_EQ(test::n_allocations - before, 0);
}

TEST_P(Allocation, SelectionWithEveryRefinement) {
  if (test::kOpsMakeThreads) GTEST_SKIP() << "threads are made per op here";
  const int64_t n = 20000, k = 50;
  std::vector<bf16> q(4 * 64, bf16(0.5f)), previous(4 * 64);
  std::vector<int8_t> codes(2 * n * 128, 3);
  std::vector<float> scales(2 * n, 0.01f), workspace(select_workspace_floats(4, 2, n));
  const std::vector<int32_t> blocks{3, 4, 9, 700, 3, 4, 9, 700}, block_counts{4, 4};
  const std::vector<int32_t> slots(2 * n, -1);
  std::vector<int32_t> ids(2 * k), counts(2), dropped(2 * k), dropped_counts(2), state(2);
  SelectParams p{.q = q.data(),
                 .index = IndexKind::kMinMax,
                 .codes = codes.data(),
                 .scales = scales.data(),
                 .landmark_head_stride = n * 128,
                 .end_chunk = n,
                 .k = k,
                 .n_heads = 4,
                 .n_kv_heads = 2,
                 .head_dim = 64,
                 .scale = 0.125f,
                 .group = GroupScore::kSum,
                 .blocks = blocks.data(),
                 .block_counts = block_counts.data(),
                 .block_stride = 4,
                 .block_chunks = 16,
                 .first_loose_chunk = 15000,
                 .top_p = 0.9f,
                 .max_misses = 10,
                 .slot_of_chunk = slots.data(),
                 .chunk_capacity = n,
                 .dropped_ids = dropped.data(),
                 .dropped_counts = dropped_counts.data(),
                 .keep = state.data(),
                 .ids = ids.data(),
                 .counts = counts.data(),
                 .workspace = workspace.data()};
  const auto step = [&] {
    for (const SelectScope scope : {SelectScope::kKvHead, SelectScope::kLayer}) {
      decide_reuse(queue_, {.q = q.data(),
                            .previous = previous.data(),
                            .n = 4 * 64,
                            .every = 1,
                            .state = state.data()});
      p.scope = scope;
      select_chunks(queue_, p);
    }
  };
  step();
  const int64_t before = test::n_allocations;
  step();
  EXPECT_EQ(test::n_allocations, before);
  EXPECT_EQ(counts[1], 10);
}

}  // namespace
}  // namespace tiercel::cpu
