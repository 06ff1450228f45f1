// Prefill attention on the GPU against the fp64 oracle: every schedule of the Hopper kernel, and
// the kernel of older architectures.
#include "kernels/attention_prefill.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/base/ops.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/prefill.h"
#include "tests/seed.h"

#if !defined(TIERCEL_ON_DEVICE)
#include "tests/simt/simt.h"
#endif

namespace tiercel::test {
namespace {

using cuda::PrefillVariant;
using Problem = PrefillProblem<DeviceVector>;

struct Path {
  std::string name;
  PrefillVariant variant = PrefillVariant::kDefault;
  bool older = false;
};

bool hopper() { return stream().architecture() == 90; }

class AttendPrefillKernel : public ::testing::TestWithParam<Path> {
 protected:
  void SetUp() override {
    const cuda::Devices devices = cuda::find_devices();
    if (devices.n_devices == 0) GTEST_SKIP() << "no GPU: " << devices.reason;
    if (!GetParam().older && !hopper()) GTEST_SKIP() << "no Hopper GPU";
  }

  void run(Problem& p, bool finite = true) {
    cuda::Stream& queue = GetParam().older ? older_stream() : stream();
    p.poison();
    cuda::attend_prefill_with(queue, p.params, GetParam().variant, !finite);
    queue.finish();
  }
  void expect_right(Problem& p, int64_t row_step = 1) { op_.expect_right(p, row_step); }

  const PrefillUnderTest<DeviceVector> op_ = {
      [this](Problem& p, bool finite) { run(p, finite); },
      [](bool) { return AttendRounding{.weight = kBf16Rms, .query = 0}; }};
};

// What differs between the schedules of the Hopper kernel: few shapes, more tiles than stages.
class AttendPrefillSchedule : public AttendPrefillKernel {};

TEST_P(AttendPrefillSchedule, EveryBufferIsUsedAgain) {
  for (int head_dim : {64, 96, 128, 256}) {
    SCOPED_TRACE(head_dim);
    Problem p(
        {.n_tokens = 70, .head_dim = head_dim, .group = 1, .n_kv_heads = 1, .first_position = 870});
    expect_right(p, 5);
    p.params.window = 200;
    expect_right(p, 5);
  }
}

TEST_P(AttendPrefillSchedule, Blocks) {
  for (int head_dim : {64, 96, 128, 256}) {
    Problem p({.n_tokens = 70, .head_dim = head_dim, .group = 1, .first_position = 800});
    p.select(64, 8, 60, 32);
    expect_right(p, 3);
  }
}

TEST_P(AttendPrefillKernel, EveryHeadDimAndGroup) {
  for (int head_dim : {64, 96, 128, 192, 256, 80, 16, 34, 130, 200}) {
    for (int group : {1, 2, 7}) {
      if (group != 2 && head_dim != 64 && head_dim != 128) continue;
      SCOPED_TRACE("d " + std::to_string(head_dim) + " G " + std::to_string(group));
      Problem p({.n_tokens = 11,
                 .head_dim = head_dim,
                 .group = group,
                 .n_kv_heads = group == 7 ? 1 : 2,
                 .first_position = 125});
      expect_right(p);
    }
  }
}

TEST_P(AttendPrefillKernel, EveryLength) {
  for (int n : {1, 2, 63, 64, 65, 128, 193, 259}) {
    SCOPED_TRACE(n);
    Problem p({.n_tokens = n, .group = 1});
    expect_right(p, n > 100 ? 3 : 1);
  }
}

TEST_P(AttendPrefillKernel, Window) {
  for (int64_t window : {1, 7, 64, 300, 1 << 20}) {
    SCOPED_TRACE(window);
    Problem p({.n_tokens = 90, .n_kv_heads = 1, .first_position = 400});
    p.params.window = window;
    expect_right(p, 3);
  }
  for (int head_dim : {64, 128, 256}) {
    Problem p({.n_tokens = 300, .head_dim = head_dim, .n_kv_heads = 1, .first_position = 0});
    p.params.window = 33;
    expect_right(p, 7);
  }
}

TEST_P(AttendPrefillKernel, Blocks) {
  struct Case {
    int head_dim;
    int64_t first_position;
    int n_tokens;
    int64_t block_tokens;
    int chunk_tokens;
    int64_t max_chunks, local_tokens;
  };
  for (const Case& c : {Case{128, 512, 130, 256, 8, 40, 32}, Case{64, 600, 300, 256, 8, 12, 128},
                        Case{64, 400, 20, 16, 16, 9, 0}, Case{64, 500, 45, 40, 5, 30, 21},
                        Case{96, 256, 40, 32, 24, 5, 64}, Case{256, 320, 20, 16, 32, 5, 64},
                        Case{128, 384, 150, 144, 128, 2, 0}, Case{64, 7, 9, 1, 8, 2, 0},
                        Case{80, 300, 30, 200, 64, 4, 100}, Case{34, 200, 40, 32, 7, 9, 10},
                        Case{256, 160, 20, 16, 1, 99, 10}}) {
    SCOPED_TRACE("d " + std::to_string(c.head_dim) + " block " + std::to_string(c.block_tokens) +
                 " chunk " + std::to_string(c.chunk_tokens));
    Problem p({.n_tokens = c.n_tokens,
               .head_dim = c.head_dim,
               .group = c.n_tokens > 40 ? 1 : 2,
               .first_position = c.first_position});
    p.select(c.block_tokens, c.chunk_tokens, c.max_chunks, c.local_tokens);
    expect_right(p, c.n_tokens > 100 ? 7 : 1);
  }
}

TEST_P(AttendPrefillKernel, ExactExp) {
  Problem p({.n_tokens = 30, .head_dim = 128, .first_position = 100});
  p.params.exact_exp = true;
  expect_right(p);
}

TEST_P(AttendPrefillKernel, PartsAreTheWhole) { op_.expect_parts_are_whole({64, 80, 96, 128, 256}); }
TEST_P(AttendPrefillKernel, BiasOfKeys) { op_.expect_biases_of_keys({64, 80, 128}); }

// One key takes nearly all the weight.
TEST_P(AttendPrefillKernel, SharpScores) {
  Problem p({.n_tokens = 60, .first_position = 300, .key_scale = 8});
  expect_right(p);
}

// Scores that rise or fall by so many octaves along the keys that whatever was summed before is
// negligible, or overflows if the maximum stays behind.
TEST_P(AttendPrefillKernel, MaximumMoves) {
  for (double octaves : {50.0, 1000.0, -50.0, -1000.0}) {
    SCOPED_TRACE(octaves);
    Problem p({.n_tokens = 20, .n_kv_heads = 1, .first_position = 600, .key_scale = 0.1});
    add_octaves(p, [&](int64_t r) { return octaves * static_cast<double>(r) / 620; });
    expect_right(p, 3);
  }
}

TEST_P(AttendPrefillKernel, ScoresFarFromZero) { op_.expect_scores_far_from_zero(); }
TEST_P(AttendPrefillKernel, NonFiniteKeysAndValues) { op_.expect_non_finite_rows_stay(5); }
TEST_P(AttendPrefillKernel, HugeScores) { op_.expect_huge_scores(); }

// Two runs give the same bits; in the emulator their timing differs.
TEST_P(AttendPrefillKernel, SameBits) {
  Problem p({.n_tokens = 150, .group = 1, .first_position = 300});
  p.select(128, 8, 9, 32);
  run(p);
  const DeviceVector<bf16> once = p.out;
  run(p);
  EXPECT_EQ(std::memcmp(once.data(), p.out.data(), once.size() * 2), 0);
}

TEST_P(AttendPrefillKernel, ChunkedEqualsOneShot) {
  op_.expect_chunked_is_one_shot({.n_tokens = 330, .group = 1, .n_kv_heads = 1}, 150, {128, 200});
}
TEST_P(AttendPrefillKernel, AllChunksEqualDense) { op_.expect_all_chunks_is_dense(); }

#if defined(TIERCEL_ON_DEVICE)

// Many blocks at once, and key lists of hundreds of tiles.
TEST_P(AttendPrefillSchedule, Large) {
  for (int head_dim : {64, 96, 128, 256}) {
    SCOPED_TRACE(head_dim);
    Problem p({.n_tokens = 700, .head_dim = head_dim, .group = 4, .first_position = 6001});
    expect_right(p, 311);
    for (int repeat = 0; repeat < 5; ++repeat) {
      const DeviceVector<bf16> once = p.out;
      run(p);
      ASSERT_EQ(std::memcmp(once.data(), p.out.data(), once.size() * 2), 0);
    }
    p.params.window = 4096;
    expect_right(p, 311);
    p.params.window = 0;
    p.select(256, 8, 256, 256);
    expect_right(p, 97);
  }
}

#else

TEST_P(AttendPrefillKernel, NoBankConflicts) {
  simt::g.ldmatrix_conflicts = 0;
  for (int head_dim : {64, 96, 128, 256}) {
    Problem p({.n_tokens = 20, .head_dim = head_dim, .group = 1, .n_kv_heads = 1});
    run(p);
  }
  EXPECT_EQ(simt::g.ldmatrix_conflicts, 0u);
}

TEST_P(AttendPrefillKernel, OffsetsPastTwoToThe31) { op_.expect_offsets_past_two_to_the_31(); }

#endif

INSTANTIATE_TEST_SUITE_P(Paths, AttendPrefillKernel,
                         ::testing::Values(Path{.name = "default"},
                                           Path{.name = "older", .older = true}),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(
    Paths, AttendPrefillSchedule,
    ::testing::Values(Path{.name = "plain", .variant = PrefillVariant::kPlain},
                      Path{.name = "overlap", .variant = PrefillVariant::kOverlap},
                      Path{.name = "ping_pong", .variant = PrefillVariant::kPingPong},
                      Path{.name = "older", .older = true}),
    [](const auto& info) { return info.param.name; });

// One box and one product per swizzle, on integers small enough for every sum to be exact: a
// misread descriptor or layout shows here by itself.
TEST(PrefillProbe, BoxesAndProductsAreExact) {
  const cuda::Devices devices = cuda::find_devices();
  if (devices.n_devices == 0) GTEST_SKIP() << "no GPU: " << devices.reason;
  if (!hopper()) GTEST_SKIP() << "no Hopper GPU";
  std::mt19937_64 random(seed());
  for (int64_t n : {128, 64}) {
    SCOPED_TRACE("swizzle of " + std::to_string(n));
    DeviceVector<bf16> operands[3];
    for (DeviceVector<bf16>& x : operands) {
      x.resize(static_cast<size_t>(64 * n));
      for (bf16& e : x) e = bf16(static_cast<float>(random() % 3) - 1);
    }
    DeviceVector<float> scores(64 * 64, NAN), out(static_cast<size_t>(64 * n), NAN);
    cuda::probe_prefill(stream(), {.queries = operands[0].data(),
                                   .keys = operands[1].data(),
                                   .values = operands[2].data(),
                                   .scores = scores.data(),
                                   .out = out.data(),
                                   .swizzle = static_cast<int32_t>(n)});
    stream().finish();
    const auto element = [&](int which, int64_t row, int64_t column) {
      return value(operands[which][static_cast<size_t>(row * n + column)]);
    };
    for (int64_t i = 0; i < 64; ++i) {
      for (int64_t j = 0; j < 64; ++j) {
        double sum = 0;
        for (int64_t c = 0; c < n; ++c) sum += element(0, i, c) * element(1, j, c);
        ASSERT_EQ(scores[static_cast<size_t>(i * 64 + j)], sum) << "score " << i << " " << j;
      }
    }
    for (int64_t i = 0; i < 64; ++i) {
      for (int64_t c = 0; c < n; ++c) {
        double sum = 0;
        for (int64_t j = 0; j < 64; ++j) {
          sum += static_cast<double>(scores[static_cast<size_t>(i * 64 + j)]) * element(2, j, c);
        }
        ASSERT_EQ(out[static_cast<size_t>(i * n + c)], sum) << "out " << i << " " << c;
      }
    }
  }
}

}  // namespace
}  // namespace tiercel::test
