// Prefill attention against the fp64 oracle, one body for every level that this machine runs, and
// for the AMX kernel on emulated tiles.
#include "cpu/attention_prefill.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/queue.h"
#include "engine/base/ops.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/prefill.h"

namespace tiercel::test {
namespace {

template <typename T>
using Memory = std::vector<T>;
using Problem = PrefillProblem<Memory>;

struct Level {
  std::string name;
  const cpu::prefill::Kernel* kernel;
  bool bf16_products;
};

std::vector<Level> levels() {
  std::vector<Level> found;
  for (cpu::Isa isa : tested_isas()) {
    found.push_back({std::string(cpu::name_of(isa)), &cpu::prefill::kernel_of(isa),
                     isa >= cpu::Isa::kAvx512Bf16});
  }
#if defined(__x86_64__)
  if (!kThreadSanitized && cpu::detected_isa() >= cpu::Isa::kAvx512Bf16) {
    found.push_back({"amx_emulated", &cpu::prefill::kAmxEmulatedKernel, true});
  }
#endif
  return found;
}

class AttendPrefill : public ::testing::TestWithParam<Level> {
 protected:
  void run(Problem& p, int n_threads = 1, bool finite = true) {
    cpu::Queue queue({.n_threads = n_threads});
    int64_t n_rescued = 0;
    cpu::prefill::attend(queue, p.params, *GetParam().kernel, &n_rescued);
    if (finite) {
      EXPECT_EQ(n_rescued, 0);
    }
  }
  void expect_right(Problem& p, int64_t row_step = 1) { op_.expect_right(p, row_step); }

  const PrefillUnderTest<Memory> op_ = {[this](Problem& p, bool finite) { run(p, 1, finite); },
                                        [](bool exact) -> AttendRounding {
                                          if (!GetParam().bf16_products) return {};
                                          return {exact ? kBf16Rms : 0.0024, kBf16Rms};
                                        }};
};

TEST_P(AttendPrefill, EveryHeadDimAndGroup) {
  for (int head_dim : {64, 96, 128, 192, 256, 80, 16, 34, 130, 200}) {
    for (int group : {1, 2, 4, 7, 8}) {
      if (group > 2 && head_dim != 64 && head_dim != 128) continue;
      SCOPED_TRACE("d " + std::to_string(head_dim) + " G " + std::to_string(group));
      Problem p({.n_tokens = 53, .head_dim = head_dim, .group = group, .first_position = 90});
      expect_right(p);
    }
  }
}

TEST_P(AttendPrefill, EveryLength) {
  for (int n : {1, 2, 5, 15, 16, 17, 31, 33, 63, 64, 65, 130, 259}) {
    SCOPED_TRACE(n);
    Problem p({.n_tokens = n});
    expect_right(p);
  }
}

TEST_P(AttendPrefill, ManySuperblocks) {
  for (int head_dim : {64, 128, 256}) {
    SCOPED_TRACE(head_dim);
    Problem p({.n_tokens = 37, .head_dim = head_dim, .n_kv_heads = 1, .first_position = 5003});
    expect_right(p, 3);
  }
}

TEST_P(AttendPrefill, ManyItems) {
  Problem p({.n_tokens = 1100, .n_kv_heads = 1});
  expect_right(p, 29);
}

TEST_P(AttendPrefill, Window) {
  for (int64_t window : {1, 7, 64, 300, 1 << 20}) {
    SCOPED_TRACE(window);
    Problem p({.n_tokens = 90, .n_kv_heads = 1, .first_position = 400});
    p.params.window = window;
    expect_right(p);
  }
  Problem p({.n_tokens = 700, .n_kv_heads = 1, .first_position = 0});
  p.params.window = 33;
  expect_right(p, 7);
}

// Rows that share a tile begin in different inner blocks, and go on in the next superblock.
TEST_P(AttendPrefill, WindowAcrossSuperblocks) {
  for (int64_t window : {200, 300, 700}) {
    SCOPED_TRACE(window);
    Problem p({.n_tokens = 260, .head_dim = 256, .n_kv_heads = 1, .first_position = 900});
    p.params.window = window;
    for (int64_t i = 0; i < p.params.head_stride; ++i) {  // scores far from 0
      if (i % 256 == 0) p.keys[static_cast<size_t>(i)] = bf16(100.0f);
    }
    for (size_t i = 0; i < p.q.size(); i += 256) p.q[i] = bf16(3.0f);
    expect_right(p);
  }
}

TEST_P(AttendPrefill, Blocks) {
  struct Case {
    int64_t first_position;
    int n_tokens;
    int64_t block_tokens;
    int chunk_tokens;
    int64_t max_chunks, local_tokens;
  };
  for (const Case& c : {Case{0, 300, 64, 8, 12, 32}, Case{800, 130, 32, 16, 9, 0},
                        Case{1000, 77, 40, 5, 30, 21}, Case{4096, 70, 64, 8, 400, 64},
                        Case{512, 1300, 1200, 32, 7, 100}, Case{7, 9, 1, 8, 2, 0}}) {
    SCOPED_TRACE("block " + std::to_string(c.block_tokens) + " chunk " +
                 std::to_string(c.chunk_tokens));
    Problem p({.n_tokens = c.n_tokens, .first_position = c.first_position});
    p.select(c.block_tokens, c.chunk_tokens, c.max_chunks, c.local_tokens);
    expect_right(p, c.n_tokens > 400 ? 17 : 1);
  }
}

TEST_P(AttendPrefill, ExactExp) {
  for (int head_dim : {64, 128}) {
    Problem p({.n_tokens = 120, .head_dim = head_dim, .first_position = 500});
    p.params.exact_exp = true;
    expect_right(p);
  }
}

TEST_P(AttendPrefill, PartsAreTheWhole) { op_.expect_parts_are_whole({64, 80, 128, 256}); }
TEST_P(AttendPrefill, BiasOfKeys) { op_.expect_biases_of_keys({64, 80, 128, 256}); }

// One key takes nearly all the weight.
TEST_P(AttendPrefill, SharpScores) {
  Problem p({.n_tokens = 100, .first_position = 700, .key_scale = 8});
  expect_right(p);
}

// Scores that rise by so many octaves along the keys that whatever was summed before is negligible,
// or overflows if the reference stays behind.
TEST_P(AttendPrefill, ReferenceGrows) {
  for (bool exact : {false, true}) {
    for (double octaves : {50.0, 130.0, 1000.0, -50.0, -1000.0}) {
      SCOPED_TRACE(octaves);
      Problem p({.n_tokens = 40, .first_position = 3000, .key_scale = 0.1});
      p.params.exact_exp = exact;
      add_octaves(p, [&](int64_t r) { return octaves * static_cast<double>(r) / 3040; });
      expect_right(p, 3);
    }
  }
}

// The same so slowly that earlier keys still matter when a reference is raised at last: the first
// 32 keys set it so many octaves too low, and sums or weights become too large some blocks later.
TEST_P(AttendPrefill, ReferenceGrowsSlowly) {
  for (int head_dim : {64, 128}) {
    for (double octaves : {30.0, 36.0, 41.0}) {
      SCOPED_TRACE("head dim " + std::to_string(head_dim) + ", octaves " + std::to_string(octaves));
      Problem p({.n_tokens = 40, .head_dim = head_dim, .first_position = 1900, .key_scale = 0.1});
      add_octaves(p, [&](int64_t r) { return r < 32 ? 0.0 : octaves + static_cast<double>(r) / 256; });
      expect_right(p, 3);
    }
  }
}

// Weights times values come nowhere near the smallest numbers of fp32.
TEST_P(AttendPrefill, TinyValues) {
  Problem p({.n_tokens = 100, .first_position = 700});
  for (bf16& v : p.values) v = bf16(std::ldexp(static_cast<float>(v), -70));
  expect_right(p);
}

TEST_P(AttendPrefill, ScoresFarFromZero) { op_.expect_scores_far_from_zero(); }
TEST_P(AttendPrefill, NonFiniteKeysAndValues) { op_.expect_non_finite_rows_stay(1); }
TEST_P(AttendPrefill, HugeScores) { op_.expect_huge_scores(); }

TEST_P(AttendPrefill, SameBitsForAnyNumberOfThreads) {
  Problem p({.n_tokens = 1500, .n_kv_heads = 2});
  run(p, 1);
  const std::vector<bf16> one = p.out;
  for (int n_threads : {2, 5}) {
    std::fill(p.out.begin(), p.out.end(), bf16(0.0f));
    run(p, n_threads);
    EXPECT_EQ(std::memcmp(one.data(), p.out.data(), one.size() * 2), 0) << n_threads;
  }
}

TEST_P(AttendPrefill, ChunkedEqualsOneShot) {
  op_.expect_chunked_is_one_shot({.n_tokens = 1400, .n_kv_heads = 1}, 700, {512, 1024, 700});
}
TEST_P(AttendPrefill, AllChunksEqualDense) { op_.expect_all_chunks_is_dense(); }
TEST_P(AttendPrefill, OffsetsPastTwoToThe31) { op_.expect_offsets_past_two_to_the_31(); }

INSTANTIATE_TEST_SUITE_P(Levels, AttendPrefill, ::testing::ValuesIn(levels()),
                         [](const auto& info) { return info.param.name; });

TEST(AttendPrefillDispatch, EveryLevelOfTheQueue) {
  for (cpu::Isa isa : cpu::runnable_isas()) {
    Problem p({.n_tokens = 40});
    cpu::Queue queue({.n_threads = 2, .isa = isa});
    cpu::attend_prefill(queue, p.params);
    const std::vector<bf16> dispatched = p.out;
    cpu::prefill::attend(queue, p.params, cpu::prefill::kernel_of(isa));
    EXPECT_EQ(std::memcmp(dispatched.data(), p.out.data(), p.out.size() * 2), 0)
        << cpu::name_of(isa);
  }
  if (cpu::detected_isa() < cpu::Isa::kAmx) {
    std::printf("SKIPPED: no AMX here; its kernel ran on emulated tiles only\n");
  }
}

#if defined(__x86_64__)
TEST(AttendPrefillAmx, SameBitsAsEmulated) {
  if (cpu::detected_isa() < cpu::Isa::kAmx) GTEST_SKIP() << "no AMX on this machine";
  cpu::Queue queue({.n_threads = 1});
  for (int head_dim : {64, 96, 128, 192, 256}) {
    for (bool exact : {false, true}) {
      Problem p({.n_tokens = 180, .head_dim = head_dim, .group = 3, .first_position = 900});
      p.params.exact_exp = exact;
      cpu::prefill::attend(queue, p.params, cpu::prefill::kAmxEmulatedKernel);
      const std::vector<bf16> emulated = p.out;
      cpu::prefill::attend(queue, p.params, cpu::prefill::kAmxKernel);
      EXPECT_EQ(std::memcmp(emulated.data(), p.out.data(), emulated.size() * 2), 0)
          << "d " << head_dim << " exact " << exact;
    }
  }
}
#endif

}  // namespace
}  // namespace tiercel::test
