// Picked chunks on the device (or its emulator): a stable sort's.
#include "kernels/pick.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "tests/kernels/device_vector.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

template <typename T>
using Memory = test::DeviceVector<T>;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Pick {
  int32_t n_kv_heads;
  int64_t first_chunk, n_chunks;
  Memory<float> mass;

  int64_t stride() const { return static_cast<int64_t>(mass.size()) / n_kv_heads; }

  // Ascending, of one KV head.
  std::vector<int32_t> expected(int64_t head, int64_t n, bool greatest) const {
    const float* of_head = mass.data() + head * stride();
    std::vector<int32_t> order(static_cast<size_t>(n_chunks));
    std::iota(order.begin(), order.end(), 0);
    const auto above = [](float a, float b) {  // NaN is above everything
      return std::isnan(a) ? !std::isnan(b) : a > b;
    };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return greatest ? above(of_head[a], of_head[b]) : above(of_head[b], of_head[a]);
    });
    order.resize(static_cast<size_t>(n));
    std::sort(order.begin(), order.end());
    for (int32_t& id : order) id += static_cast<int32_t>(first_chunk);
    return order;
  }

  void check(int64_t n, bool greatest) const {
    SCOPED_TRACE(testing::Message() << n << " of " << n_chunks << " from " << first_chunk
                                    << (greatest ? ", greatest" : ", lowest"));
    const int64_t words = (first_chunk + n_chunks + 63) / 64 + 1;
    for (const bool with_ids : {true, false}) {
      if (!with_ids && n_chunks > 100) continue;
      Memory<int32_t> ids(static_cast<size_t>(n_kv_heads * n + 1), -7);
      Memory<uint64_t> excluded(static_cast<size_t>(n_kv_heads * words), 0);
      for (int64_t j = 0; j < n_kv_heads; ++j) {
        excluded[static_cast<size_t>(j * words)] = 5;  // bits that are there stay
      }
      Memory<uint64_t> want = excluded;
      PickParams p;
      p.mass = mass.data();
      p.mass_stride = stride();
      p.first_chunk = first_chunk;
      p.end_chunk = first_chunk + n_chunks;
      p.n = n;
      p.greatest = greatest;
      p.n_kv_heads = n_kv_heads;
      p.ids = with_ids ? ids.data() : nullptr;
      p.excluded = excluded.data();
      p.excluded_stride = words;
      cuda::pick_chunks(test::stream(), p);
      test::stream().finish();
      for (int64_t j = 0; j < n_kv_heads; ++j) {
        const std::vector<int32_t> right = expected(j, n, greatest);
        for (const int32_t id : right) {
          want[static_cast<size_t>(j * words + id / 64)] |= uint64_t{1} << (id % 64);
        }
        if (!with_ids) continue;
        ASSERT_TRUE(std::equal(right.begin(), right.end(), ids.begin() + j * n));
      }
      ASSERT_TRUE(excluded == want);
      ASSERT_EQ(ids.back(), -7);
    }
  }
  void check_all() const {
    for (const int64_t n : {int64_t{0}, int64_t{1}, n_chunks / 3, n_chunks - 1, n_chunks}) {
      if (n < 0 || n > n_chunks) continue;
      for (const bool greatest : {true, false}) ASSERT_NO_FATAL_FAILURE(check(n, greatest));
    }
  }
};

Pick make_pick(std::mt19937_64& rng, int32_t heads, int64_t first, int64_t n) {
  Pick pick{heads, first, n, {}};
  pick.mass.resize(static_cast<size_t>(heads * (n + 3)));
  std::exponential_distribution<float> mass;
  for (float& x : pick.mass) x = std::exp2(-20 * mass(rng));
  return pick;
}

TEST(CudaPick, AnyNumberOfAnyMasses) {
  std::mt19937_64 rng(test::seed());
  for (const int64_t n : {0, 1, 33, 700, 9000}) {  // 9000: a warp has two segments
    for (const int64_t first : {0, 37}) {
      if (n >= 700 && first == 0) continue;
      make_pick(rng, n == 9000 ? 1 : 2, first, n).check_all();
    }
  }
}

TEST(CudaPick, TiesGoToTheLowerChunk) {
  std::mt19937_64 rng(test::seed());
  Pick pick = make_pick(rng, 2, 11, 3000);
  for (float& x : pick.mass) x = static_cast<float>(rng() % 3);
  pick.check_all();
  std::fill(pick.mass.begin(), pick.mass.end(), 0.25f);
  pick.check_all();
  for (float& x : pick.mass) x = rng() % 2 == 0 ? 0.0f : -0.0f;
  pick.check_all();
}

TEST(CudaPick, NanIsTheGreatest) {
  std::mt19937_64 rng(test::seed());
  Pick pick = make_pick(rng, 2, 100, 600);
  for (size_t i = 0; i < 60; ++i) pick.mass[rng() % pick.mass.size()] = i % 2 == 0 ? kNan : -kNan;
  for (size_t i = 0; i < 60; ++i) pick.mass[rng() % pick.mass.size()] = i % 2 == 0 ? kInf : -kInf;
  for (size_t i = 0; i < 60; ++i) pick.mass[rng() % pick.mass.size()] *= -1;
  pick.check_all();
  pick.check(50, true);
  pick.check(570, false);
}

#if defined(TIERCEL_ON_DEVICE)
TEST(CudaPick, AMillionChunks) {
  std::mt19937_64 rng(test::seed());
  const Pick pick = make_pick(rng, 8, 64, 1 << 20);
  pick.check(1000, true);
  pick.check(600000, true);
}
#endif

}  // namespace
}  // namespace tiercel
