// The bias of a source and of keys in decode attention, on every plan.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/attention_decode.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/decode_case.h"

namespace tiercel {
namespace {

using test::DeviceVector;
using test::stream;
using Op = test::DecodeUnderTest<DeviceVector>;

// By the plan of the op, where none is given.
Op op(const cuda::DecodePlan* plan = nullptr) {
  return {[plan](DecodeAttendParams p) {
            DeviceVector<float> workspace(
                static_cast<size_t>(decode_workspace_floats(p.n_heads, p.head_dim)), 0.0f);
            p.workspace = workspace.data();
            if (plan == nullptr) {
              cuda::attend_decode(stream(), p);
            } else {
              cuda::attend_decode(stream(), p, *plan);
            }
            stream().finish();
          },
          test::waiting([](cuda::Stream& s, const MergeParams& p) { cuda::merge_partials(s, p); }),
          [](int32_t d) { return d != 34 && d != 80; }};
}

// few: those for few tokens too, which are not for biases of keys.
template <typename Expect>
void for_every_plan(int32_t d, bool few, Expect expect) {
  std::vector<cuda::DecodePlan> plans = {{1, true, false}, {4, true, false}, {4, false, false}};
  if (few && (d == 64 || d == 96 || d == 128)) plans.push_back({8, true, true});
  expect(op());
  for (const cuda::DecodePlan& plan : plans) {
    SCOPED_TRACE(testing::Message() << plan.n_splits << " splits, few " << plan.few);
    expect(op(&plan));
  }
}

TEST(CudaDecodeBias, EveryPlanAddsItToTheScores) {
  for (const int32_t d : {64, 96, 128, 256, 80}) {
    for (const int32_t group : {1, 5}) {
      for_every_plan(d, true, [&](const Op& op) { op.expect_biases_of_sources(d, group); });
    }
  }
}

TEST(CudaDecodeBias, OfEveryKey) {
  for (const int32_t d : {64, 96, 128, 256, 80}) {
    for_every_plan(d, false, [&](const Op& op) { op.expect_biases_of_keys(d); });
  }
}

TEST(CudaDecodeBias, ViewsOfQueries) {
  for (const int32_t d : {64, 96, 128, 256, 80}) {
    for_every_plan(d, false, [&](const Op& op) { op.expect_views_of_queries(d); });
  }
}

TEST(CudaDecodeBias, ARowThatStandsForFour) {
  for (const int32_t d : {64, 128, 256, 34}) op().expect_a_row_stands_for_four(d);
}

TEST(CudaDecodeBias, NothingAndEverything) { op().expect_a_bias_of_minus_infinity_is_nothing(); }

}  // namespace
}  // namespace tiercel
