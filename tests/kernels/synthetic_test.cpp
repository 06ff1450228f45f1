// Random weights and imposed selections: the same bits as on the CPU, and what they promise.
#include "kernels/synthetic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "cpu/synthetic.h"
#include "tests/kernels/device_vector.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::DeviceVector;
using test::stream;

TEST(Synthetic, RandomValuesHaveTheMomentsAskedFor) {
  const int64_t n = 20000;
  DeviceVector<bf16> values(n + 1);
  RandomParams p{.out = values.data(), .n = n, .seed = test::seed(), .scale = 0.5f, .offset = 3};
  cuda::fill_random(stream(), p);
  stream().finish();
  double sum = 0, square = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = static_cast<float>(values[i]);
    sum += x, square += (x - 3) * (x - 3);
  }
  // Standard errors of mean and variance of a uniform distribution, times five; bf16 adds 2^-8
  // of 3.
  EXPECT_NEAR(sum / n, 3, 5 * 0.5 / std::sqrt(n) + 0.012);
  EXPECT_NEAR(square / n, 0.25, 5 * 0.25 * std::sqrt(0.8 / n) + 0.001);
  EXPECT_EQ(values[n].bits, 0) << "nothing is written behind the end";

  std::vector<bf16> host(n);
  cpu::Queue queue({.n_threads = 1});
  p.out = host.data();
  cpu::fill_random(queue, p);
  for (int64_t i = 0; i < n; ++i) ASSERT_EQ(values[i].bits, host[i].bits) << i;
}

TEST(Synthetic, ImposedSelectionsKeepTheShareAskedFor) {
  const int64_t k = 128, kv = 2;
  for (const float rate : {0.0f, 0.6f, 0.9f}) {
    DeviceVector<int32_t> ids(kv * k), counts(kv);
    std::vector<int32_t> host_ids(kv * k), host_counts(kv);
    cpu::Queue queue({.n_threads = 1});
    std::vector<std::set<int32_t>> before(kv);
    int64_t kept = 0, n = 0;
    for (int64_t step = 0; step < 40; ++step) {
      ImposeParams p{.ids = ids.data(),
                     .counts = counts.data(),
                     .k = k,
                     .first_chunk = 7,
                     .end_chunk = 7 + 100 * k,
                     .step = step,
                     .n_kv_heads = kv,
                     .hit_rate = rate};
      cuda::impose_selection(stream(), p);
      stream().finish();
      p.ids = host_ids.data();
      p.counts = host_counts.data();
      cpu::impose_selection(queue, p);
      for (int64_t j = 0; j < kv; ++j) {
        ASSERT_EQ(counts[j], k);
        std::set<int32_t> now;
        for (int64_t i = 0; i < k; ++i) {
          const int32_t id = ids[j * k + i];
          ASSERT_EQ(id, host_ids[j * k + i]);
          ASSERT_GE(id, 7);
          ASSERT_LT(id, 7 + 100 * k);
          ASSERT_TRUE(i == 0 || id > ids[j * k + i - 1]);
          kept += step > 0 && before[j].contains(id);
          n += step > 0;
          now.insert(id);
        }
        before[j] = now;
      }
    }
    // A changed stratum draws its old chunk again once in a hundred.
    EXPECT_NEAR(static_cast<double>(kept) / n, rate + (1 - rate) * 0.01, 0.02) << rate;
  }
}

}  // namespace
}  // namespace tiercel
