// Nothing is allocated by an op that decode runs, once its shape has been seen. Counts every
// operator new of the test program.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/elementwise.h"
#include "cpu/linear.h"
#include "cpu/lowrank.h"
#include "engine/base/rope.h"
#include "tests/count_allocations.h"
#include "tests/oracle/elementwise.h"

namespace tiercel::cpu {
namespace {

class Allocation : public ::testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
};
INSTANTIATE_TEST_SUITE_P(Levels, Allocation, ::testing::ValuesIn(runnable_isas()),
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
      // oneDNN makes its argument lists on every call; decode has at most 16 rows and avoids it.
      if (rows > kMaxSkinnyRows && queue_.isa() == Isa::kAmx) continue;
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

}  // namespace
}  // namespace tiercel::cpu
