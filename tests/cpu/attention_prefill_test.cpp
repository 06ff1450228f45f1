// Prefill attention against the fp64 oracle, one body for every level that this machine runs, and
// for the AMX kernel on emulated tiles.
#include "cpu/attention_prefill.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/queue.h"
#include "engine/base/ops.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/attention.h"
#include "tests/seed.h"

namespace tiercel::test {
namespace {

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

// A prompt's worth of random q, K and V, and the params that point at them.
struct Problem {
  PrefillAttendParams params;
  std::vector<bf16> q, keys, values, out;
  std::vector<int32_t> ids, counts;
  std::vector<int64_t> local_begin;
  std::vector<float> bias;
  std::mt19937_64 random;

  struct Shape {
    int n_tokens = 1, head_dim = 64, group = 2, n_kv_heads = 2;
    int64_t first_position = 0;
    double key_scale = 1;  // 1: scores of a few octaves
  };

  explicit Problem(const Shape& s) : random(seed()) {
    params.n_tokens = s.n_tokens;
    params.first_position = s.first_position;
    params.head_dim = s.head_dim;
    params.n_kv_heads = s.n_kv_heads;
    params.n_heads = s.n_kv_heads * s.group;
    params.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    const int64_t rows = s.first_position + s.n_tokens;
    params.head_stride = (rows + 3) * s.head_dim;  // rows past the last position are NaN
    fill(q, params.n_tokens * params.n_heads * params.head_dim, 1);
    fill(keys, params.head_stride * params.n_kv_heads, s.key_scale);
    fill(values, params.head_stride * params.n_kv_heads, 1);
    for (int64_t j = 0; j < params.n_kv_heads; ++j) {
      for (int64_t i = rows * s.head_dim; i < params.head_stride; ++i) {
        keys[at(j, 0, i)] = values[at(j, 0, i)] = bf16::from_bits(0xffc0);
      }
    }
    out.assign(q.size(), bf16::from_bits(0x7fc0));
    point();
  }

  size_t at(int64_t kv_head, int64_t row, int64_t channel) const {
    return static_cast<size_t>(kv_head * params.head_stride + row * params.head_dim + channel);
  }

  void fill(std::vector<bf16>& to, int64_t n, double scale) {
    std::normal_distribution<float> normal(0, static_cast<float>(scale));
    to.resize(static_cast<size_t>(n));
    for (bf16& x : to) x = bf16(normal(random));
  }

  // Blocks of queries, each with up to max_chunks random chunks per KV head and a local range.
  void select(int64_t block_tokens, int chunk_tokens, int64_t max_chunks, int64_t local_tokens) {
    params.block_tokens = block_tokens;
    params.chunk_tokens = chunk_tokens;
    params.max_chunks = max_chunks;
    const int64_t n_blocks = (params.n_tokens + block_tokens - 1) / block_tokens;
    for (int64_t b = 0; b < n_blocks; ++b) {
      const int64_t first = params.first_position + b * block_tokens;
      local_begin.push_back(std::max<int64_t>(0, first - local_tokens) / chunk_tokens *
                            chunk_tokens);
      const int64_t n_chunks = local_begin.back() / chunk_tokens;
      for (int j = 0; j < params.n_kv_heads; ++j) {
        std::vector<int32_t> chosen;
        for (int32_t c = 0; c < n_chunks; ++c) chosen.push_back(c);
        std::shuffle(chosen.begin(), chosen.end(), random);
        // Every fourth list is empty.
        const size_t most = random() % 4 == 0 ? 0 : static_cast<size_t>(max_chunks);
        chosen.resize(std::min(chosen.size(), most));
        std::sort(chosen.begin(), chosen.end());
        counts.push_back(static_cast<int32_t>(chosen.size()));
        chosen.resize(static_cast<size_t>(max_chunks), -1);
        ids.insert(ids.end(), chosen.begin(), chosen.end());
      }
    }
    point();
  }

  // Biases of a few octaves, all of one sign as an eviction head's are; rows past the last are NaN.
  void bias_keys(float octaves) {
    params.bias_head_stride = params.head_stride / params.head_dim;
    std::uniform_real_distribution<float> uniform(0, octaves);
    bias.assign(static_cast<size_t>(params.n_kv_heads * params.bias_head_stride),
                std::numeric_limits<float>::quiet_NaN());
    for (int64_t j = 0; j < params.n_kv_heads; ++j) {
      for (int64_t row = 0; row < params.first_position + params.n_tokens; ++row) {
        bias[static_cast<size_t>(j * params.bias_head_stride + row)] = uniform(random);
      }
    }
    params.bias = bias.data();
  }

  void point() {
    params.q = q.data();
    params.keys = keys.data();
    params.values = values.data();
    params.out = out.data();
    params.chunk_ids = ids.data();
    params.chunk_counts = counts.data();
    params.local_begin = local_begin.data();
  }
};

class AttendPrefill : public ::testing::TestWithParam<Level> {
 protected:
  // Finite input must not need the row-by-row rescue, which would hide what a kernel gets wrong.
  void run(Problem& p, int n_threads = 1, bool finite = true) {
    cpu::Queue queue({.n_threads = n_threads});
    int64_t n_rescued = 0;
    cpu::prefill::attend(queue, p.params, *GetParam().kernel, &n_rescued);
    if (finite) {
      EXPECT_EQ(n_rescued, 0);
    }
  }

  AttendRounding rounding(bool exact) const {
    if (!GetParam().bf16_products) return {};
    return {exact ? kBf16Rms : 0.0024, kBf16Rms};
  }

  // Runs p and compares: non-finite patterns first; then each row, whose error is at most 4 times
  // the predicted rms (a row's few large weights may all be rounded badly); then the rms over all
  // rows.
  void expect_right(Problem& p, int64_t row_step = 1, bool finite = true) {
    run(p, 1, finite);
    const PrefillAttendParams& a = p.params;
    double squares = 0;
    int64_t n = 0;
    for (int64_t t = 0; t < a.n_tokens; t += row_step) {
      for (int64_t h = 0; h < a.n_heads; ++h) {
        const AttendRow row = attend_row(a, t, h, rounding(a.exact_exp));
        const bf16* out = a.out + (t * a.n_heads + h) * a.head_dim;
        double square = 0, norm = 0;
        bool finite = true;
        for (int64_t c = 0; c < a.head_dim; ++c) {
          const double expected = row.out[static_cast<size_t>(c)];
          ASSERT_EQ(std::isnan(value(out[c])), std::isnan(expected))
              << "token " << t << " head " << h << " channel " << c;
          ASSERT_EQ(std::isinf(value(out[c])), std::isinf(expected))
              << "token " << t << " head " << h << " channel " << c;
          if (!std::isfinite(expected)) {
            finite = false;
            continue;
          }
          square += (value(out[c]) - expected) * (value(out[c]) - expected);
          norm += expected * expected;
        }
        if (!finite) continue;
        const double error = std::sqrt(square / a.head_dim);
        // fp32 sums of scores and weights: far below, but not nothing where the rest is zero.
        const double floor = 3e-6 * std::sqrt(norm / a.head_dim) + 1e-30;
        ASSERT_LE(error, 4 * row.error_rms + floor) << "token " << t << " head " << h;
        squares += std::pow(error / (row.error_rms + floor), 2);
        ++n;
      }
    }
    if (n >= 200) {
      EXPECT_LE(std::sqrt(squares / static_cast<double>(n)), 1.2) << "rms over " << n << " rows";
    }
  }
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

// Sharp scores: one key takes nearly all the weight.
TEST_P(AttendPrefill, BiasOfKeys) {
  for (const int head_dim : {64, 80, 128, 256}) {
    for (const float octaves : {6.0f, -6.0f, 300.0f}) {
      SCOPED_TRACE("d " + std::to_string(head_dim) + ", " + std::to_string(octaves) + " octaves");
      Problem dense({.n_tokens = 53, .head_dim = head_dim, .group = 3, .first_position = 90});
      dense.bias_keys(octaves);
      expect_right(dense);
      if (octaves != 6.0f) continue;
      Problem window({.n_tokens = 70, .head_dim = head_dim, .first_position = 100});
      window.params.window = 37;
      window.bias_keys(octaves);
      expect_right(window);
      Problem blocks({.n_tokens = 150, .head_dim = head_dim, .first_position = 320});
      blocks.select(64, 16, 7, 32);
      blocks.bias_keys(octaves);
      expect_right(blocks, 3);
    }
  }
}

// A key that is not finite takes its row to the fp64 path, which must know the bias too.
TEST_P(AttendPrefill, BiasOfRowsThatAreDoneAgain) {
  Problem p({.n_tokens = 40, .first_position = 20});
  p.bias_keys(6);
  p.values[p.at(1, 30, 5)] = bf16::from_bits(0x7f80);
  expect_right(p, 1, false);
}

TEST_P(AttendPrefill, SharpScores) {
  Problem p({.n_tokens = 100, .first_position = 700, .key_scale = 8});
  expect_right(p);
}

// Channel 0 gives key r the score octave(r) on top of its random one: q = 4 there.
template <typename Octave>
void add_octaves(Problem& p, Octave octave) {
  for (int j = 0; j < p.params.n_kv_heads; ++j) {
    for (int64_t r = 0; r < p.params.first_position + p.params.n_tokens; ++r) {
      const double score = octave(r) * 0.6931471805599453 / p.params.scale;
      p.keys[p.at(j, r, 0)] = bf16(static_cast<float>(score / 4));
    }
  }
  for (size_t i = 0; i < p.q.size(); i += static_cast<size_t>(p.params.head_dim)) {
    p.q[i] = bf16(4.0f);
  }
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
// 32 keys set it 30 octaves too low, and sums pass 2^40 some blocks later.
TEST_P(AttendPrefill, ReferenceGrowsSlowly) {
  for (int head_dim : {64, 128}) {
    SCOPED_TRACE(head_dim);
    Problem p({.n_tokens = 40, .head_dim = head_dim, .first_position = 1900, .key_scale = 0.1});
    add_octaves(p, [](int64_t r) { return r < 32 ? 0.0 : 30 + static_cast<double>(r) / 256; });
    expect_right(p, 3);
  }
}

// Scores that are all far from zero: every row needs a reference, also where a window makes rows of
// one tile begin at different slices.
TEST_P(AttendPrefill, ScoresFarFromZero) {
  for (double octaves : {-400.0, 400.0}) {
    for (int64_t window : {0, 20}) {
      SCOPED_TRACE(octaves);
      Problem p({.n_tokens = 90, .n_kv_heads = 1, .first_position = 40, .key_scale = 0.1});
      p.params.window = window;
      add_octaves(p, [&](int64_t) { return octaves; });
      expect_right(p);
    }
  }
}

TEST_P(AttendPrefill, NonFiniteKeysAndValues) {
  const float inf = std::numeric_limits<float>::infinity();
  struct Case {
    bool in_keys;
    uint16_t bits;
    int64_t row;
  };
  const uint16_t plus = bf16(inf).bits, minus = bf16(-inf).bits;
  for (const Case& c : {Case{true, 0x7fc0, 70}, Case{true, 0xffc0, 70}, Case{true, 0xffc1, 200},
                        Case{true, plus, 100}, Case{true, minus, 33}, Case{true, 0xffc0, 0},
                        Case{false, 0x7fc0, 70}, Case{false, 0xffc0, 163}, Case{false, plus, 200},
                        Case{false, minus, 5}}) {
    SCOPED_TRACE("bits " + std::to_string(c.bits) + " row " + std::to_string(c.row));
    Problem p({.n_tokens = 210});
    (c.in_keys ? p.keys : p.values)[p.at(1, c.row, 9)] = bf16::from_bits(c.bits);
    expect_right(p, 1, false);
  }
}

// Scores of millions of octaves, where 16-bit arithmetic wraps: the rescue has to notice.
TEST_P(AttendPrefill, HugeScores) {
  Problem p({.n_tokens = 50, .n_kv_heads = 1, .key_scale = 1});
  for (size_t i = 0; i < p.keys.size(); ++i) {
    p.keys[i] = bf16(static_cast<float>(p.keys[i]) * 1e6f);
  }
  run(p, 1, false);
  for (bf16 x : p.out) ASSERT_TRUE(std::isfinite(value(x)));
}

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

// The queries of a prompt in two calls: each row's inner blocks begin at the same keys, so even the
// bits agree, with and without a window.
TEST_P(AttendPrefill, ChunkedEqualsOneShot) {
  for (int64_t window : {0, 700}) {
    Problem p({.n_tokens = 1400, .n_kv_heads = 1});
    p.params.window = window;
    run(p);
    const std::vector<bf16> whole = p.out;
    for (int64_t cut : {512, 1024, 700}) {
      std::fill(p.out.begin(), p.out.end(), bf16(0.0f));
      const PrefillAttendParams all = p.params;
      p.params.n_tokens = cut;
      run(p);
      const int64_t elements = cut * all.n_heads * all.head_dim;
      p.params = all;
      p.params.n_tokens -= cut;
      p.params.first_position += cut;
      p.params.q += elements;
      p.params.out += elements;
      run(p);
      p.params = all;
      EXPECT_EQ(std::memcmp(whole.data(), p.out.data(), whole.size() * 2), 0)
          << "cut " << cut << " window " << window;
    }
  }
}

// Everything selected is dense attention.
TEST_P(AttendPrefill, AllChunksEqualDense) {
  Problem p({.n_tokens = 128, .first_position = 640});
  run(p);
  const std::vector<bf16> dense = p.out;
  p.select(128, 8, 80, 0);
  for (int j = 0; j < 2; ++j) {
    p.counts[static_cast<size_t>(j)] = 80;
    for (int c = 0; c < 80; ++c) p.ids[static_cast<size_t>(j * 80 + c)] = c;
  }
  p.point();
  run(p);
  EXPECT_EQ(std::memcmp(dense.data(), p.out.data(), dense.size() * 2), 0);
}

// Element offsets past 2^31: sparse pages of address space, of which few are touched.
TEST_P(AttendPrefill, OffsetsPastTwoToThe31) {
  constexpr int64_t kRows = (int64_t{1} << 31) / 64 + 4096;
  const size_t bytes = static_cast<size_t>(kRows) * 64 * 2;
  struct Free {
    void operator()(bf16* p) const { std::free(p); }
  };
  std::unique_ptr<bf16, Free> keys(static_cast<bf16*>(std::calloc(bytes, 1)));
  std::unique_ptr<bf16, Free> values(static_cast<bf16*>(std::calloc(bytes, 1)));
  ASSERT_TRUE(keys != nullptr && values != nullptr);
  Problem p({.n_tokens = 16, .n_kv_heads = 1});
  p.params.first_position = kRows - 16;
  p.params.head_stride = kRows * 64;
  p.params.keys = keys.get();
  p.params.values = values.get();
  for (int64_t i = (kRows - 600) * 64; i < kRows * 64; ++i) {
    const auto from = static_cast<size_t>(i % 997);
    keys.get()[i] = p.q[from];
    values.get()[i] = p.q[from + 1];
  }
  p.params.window = 500;
  expect_right(p);
  p.params.window = 0;
  const int32_t ids[] = {3, static_cast<int32_t>((kRows - 600) / 8)}, counts[] = {2};
  const int64_t local_begin[] = {kRows - 200};
  p.params.block_tokens = 16;
  p.params.chunk_tokens = 8;
  p.params.max_chunks = 2;
  p.params.chunk_ids = ids;
  p.params.chunk_counts = counts;
  p.params.local_begin = local_begin;
  expect_right(p);
}

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
// How many rows share a tile of K or V changes no bit.
TEST(AttendPrefillAmx, OneRowTileSameBitsAsTwo) {
  if (cpu::detected_isa() < cpu::Isa::kAvx512Bf16) GTEST_SKIP() << "needs AVX-512 BF16";
  cpu::Queue queue({.n_threads = 1});
  for (int head_dim : {64, 128}) {
    for (int group : {1, 3}) {
      for (int64_t window : {0, 300}) {
        Problem p({.n_tokens = 180, .head_dim = head_dim, .group = group, .first_position = 900});
        p.params.window = window;
        if (group == 3) add_octaves(p, [](int64_t r) { return 0.3 * static_cast<double>(r); });
        cpu::prefill::attend(queue, p.params, cpu::prefill::kAmxEmulatedKernel);
        const std::vector<bf16> two = p.out;
        cpu::prefill::attend(queue, p.params, cpu::prefill::kAmxOneRowTileEmulatedKernel);
        EXPECT_EQ(std::memcmp(two.data(), p.out.data(), two.size() * 2), 0)
            << "d " << head_dim << " G " << group << " window " << window;
      }
    }
  }
}

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
