// Selection against fp64 and, where scores are exact, against cpu::.
#include "kernels/select.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/select.h"
#include "kernels/slots.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/selection.h"
#include "tests/seed.h"

#if !defined(TIERCEL_ON_DEVICE)
#include <sys/mman.h>
#endif

namespace tiercel {
namespace {

template <typename T>
using Memory = test::DeviceVector<T>;

struct Shape {
  int32_t n_kv_heads, group, d;
  int64_t first, end, k;
};

class CudaSelect : public testing::Test {
 protected:
  std::mt19937_64 rng_{test::seed()};
  cpu::Queue cpu_{{.n_threads = 1, .isa = cpu::Isa::kPortable}};

  int64_t up_to(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }
  Memory<bf16> normal_rows(int64_t n, float spread = 1.0f) {
    std::normal_distribution<float> normal(0.0f, spread);
    Memory<bf16> rows(n);
    for (bf16& x : rows) x = bf16(normal(rng_));
    return rows;
  }
  // Small integers: every product and sum is exact in fp32, and there are many ties.
  Memory<bf16> integer_rows(int64_t n, int64_t most) {
    Memory<bf16> rows(n);
    for (bf16& x : rows) x = bf16(static_cast<float>(up_to(2 * most + 1) - most));
    return rows;
  }
  // The same integer query for all heads of a group.
  Memory<bf16> shared_queries(int32_t n_kv_heads, int32_t group, int32_t d) {
    const Memory<bf16> q = integer_rows(int64_t{n_kv_heads} * d, 2);
    Memory<bf16> all;
    for (int32_t h = 0; h < n_kv_heads * group; ++h) {
      all.insert(all.end(), q.begin() + h / group * d, q.begin() + (h / group + 1) * d);
    }
    return all;
  }
};

struct Selection {
  Memory<bf16> q, landmarks;
  Memory<uint64_t> excluded;
  Memory<int32_t> ids, counts;
  Memory<float> workspace;
  SelectParams p;

  Selection(const Shape& s, Memory<bf16> queries, Memory<bf16> rows)
      : q(std::move(queries)), landmarks(std::move(rows)) {
    p.q = q.data();
    p.landmarks = landmarks.data();
    p.landmark_head_stride = static_cast<int64_t>(landmarks.size()) / s.n_kv_heads;
    p.first_chunk = s.first;
    p.end_chunk = s.end;
    p.k = s.k;
    p.n_heads = s.n_kv_heads * s.group;
    p.n_kv_heads = s.n_kv_heads;
    p.head_dim = s.d;
    p.scale = 1.0f / std::sqrt(static_cast<float>(s.d));
    workspace.resize(select_workspace_floats(p.n_heads, s.n_kv_heads, s.end - s.first) + 16);
    p.workspace = workspace.data();
    poison();
  }
  void poison() {
    ids.assign(p.n_kv_heads * p.k, -7);
    counts.assign(p.n_kv_heads, -7);
    p.ids = ids.data();
    p.counts = counts.data();
    std::fill(workspace.begin(), workspace.end(), std::numeric_limits<float>::quiet_NaN());
  }
  void exclude(std::mt19937_64& rng, int one_in) {
    p.excluded_stride = (p.end_chunk + 63) / 64;
    excluded.assign(p.n_kv_heads * p.excluded_stride, 0);
    for (int64_t j = 0; j < p.n_kv_heads; ++j) {
      for (int64_t c = 0; c < p.end_chunk; ++c) {
        if (rng() % one_in == 0)
          excluded[j * p.excluded_stride + c / 64] |= uint64_t{1} << (c % 64);
      }
    }
    p.excluded = excluded.data();
  }
  void run() {
    poison();
    cuda::select_chunks(test::stream(), p);
    test::stream().finish();
    for (size_t i = workspace.size() - 16; i < workspace.size(); ++i) {
      ASSERT_TRUE(std::isnan(workspace[i])) << "written behind the workspace";
    }
  }
  test::Ranked ranked(int32_t j) const {
    return test::rank_chunks(p.q + j * (p.n_heads / p.n_kv_heads) * p.head_dim,
                             p.n_heads / p.n_kv_heads, p.landmarks + j * p.landmark_head_stride,
                             p.head_dim, p.scale, p.first_chunk, p.end_chunk,
                             excluded.empty() ? nullptr : &excluded[j * p.excluded_stride],
                             p.group == GroupScore::kMean);
  }
  std::vector<int32_t> chosen(int32_t j) const {
    return {ids.begin() + j * p.k, ids.begin() + j * p.k + counts[j]};
  }
};

TEST_F(CudaSelect, MatchesOracleWhereScoresAreApart) {
  for (const int32_t d : {16, 32, 34, 64, 80, 96, 128, 160, 256}) {
    for (const int32_t group : {1, 4, 7, 8, 17}) {
      for (const GroupScore score : {GroupScore::kMax, GroupScore::kMean}) {
        const int64_t first = up_to(70), n = 1 + up_to(400);
        const Shape s{2, group, d, first, first + n, 1 + up_to(n + 20)};
        SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " first " << first
                                        << " n " << n << " k " << s.k);
        Selection c(s, normal_rows(2 * group * d, 2.0f), normal_rows(2 * (s.end + 3) * d));
        c.p.group = score;
        if (rng_() % 2 == 0) c.exclude(rng_, 5);
        c.run();
        for (int32_t j = 0; j < 2; ++j) {
          ASSERT_EQ(
              test::wrong_choice(c.ranked(j), first, s.k, c.ids.data() + j * s.k, c.counts[j]), "");
        }
      }
    }
  }
}

// Whole numbers: equality is exact and ties are everywhere. Heads of a group share their query. The
// largest n takes the path of many blocks.
TEST_F(CudaSelect, TiesGoToTheLowerChunk) {
  for (const int32_t group : {1, 7}) {
    for (const int64_t n : {int64_t{200}, int64_t{5000}, int64_t{18000}}) {
      for (const int64_t k : {int64_t{1}, int64_t{100}, int64_t{2000}}) {
        const int32_t d = 32;
        const Shape s{2, group, d, 3, 3 + n, k};
        Selection c(s, shared_queries(2, group, d), integer_rows(2 * s.end * d, 1));
        c.exclude(rng_, 7);
        c.run();
        for (int32_t j = 0; j < 2; ++j) {
          // One head of the group gives the same order without softmax's rounding.
          auto exact =
              test::rank_chunks(c.p.q + j * group * d, 1, c.p.landmarks + j * s.end * d, d, 1.0f,
                                s.first, s.end, &c.excluded[j * c.p.excluded_stride], false);
          ASSERT_EQ(c.chosen(j), test::best_chunks(exact, s.first, k)) << n << " " << k;
        }
        const auto ids = c.ids, counts = c.counts;
        c.poison();
        cpu::select_chunks(cpu_, c.p);
        ASSERT_EQ(c.ids, ids);
        ASSERT_EQ(c.counts, counts);
      }
    }
  }
}

// More maxima than a block holds in registers, longer lists of pieces than its shared memory has
// room for, and a batch that ends within a piece.
TEST_F(CudaSelect, MoreThanABlockHolds) {
  const int32_t d = 8;
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{132'000, 10}, {36'001, 34'000}}) {
    const Shape s{1, 1, d, 5, 5 + n, k};
    Selection c(s, integer_rows(d, 3), integer_rows(s.end * d, 3));
    c.exclude(rng_, 40);
    c.run();
    const auto ids = c.ids, counts = c.counts;
    c.poison();
    cpu::select_chunks(cpu_, c.p);
    ASSERT_EQ(c.counts, counts);
    ASSERT_EQ(c.ids, ids) << n;
  }
}

// Rising: every one beats those before it. Equal: one bin holds all, more than are ranked in pairs.
// Far: all scores but the best are behind the last bin.
TEST_F(CudaSelect, RisingEqualAndFarScores) {
  for (const int64_t n : {int64_t{6000}, int64_t{20000}}) {
    for (const int kind : {0, 1, 2}) {
      const int64_t k = 300;
      const int32_t d = 32;
      Memory<bf16> rows(n * d);
      for (int64_t c = 0; c < n; ++c) {
        const float far = c == n / 2 ? 0.0f : -600.0f - static_cast<float>(c * 37 % 64);
        rows[c * d] = bf16(kind == 0 ? static_cast<float>(c / 512) : kind == 1 ? 1.0f : far);
      }
      Selection c({1, 1, d, 0, n, k}, Memory<bf16>(d, bf16(1.0f)), rows);
      for (const GroupScore score : {GroupScore::kMax, GroupScore::kMean}) {
        if (kind == 2 && score == GroupScore::kMean) continue;  // weights of 0 tie
        c.p.group = score;
        c.run();
        const auto exact =
            test::rank_chunks(c.p.q, 1, c.p.landmarks, d, c.p.scale, 0, n, nullptr, false);
        ASSERT_EQ(c.chosen(0), test::best_chunks(exact, 0, k)) << n << " kind " << kind;
      }
    }
  }
}

TEST_F(CudaSelect, NothingToChooseFrom) {
  for (const int64_t k : {0, 5}) {
    Selection none({2, 2, 64, 9, 9, k}, normal_rows(4 * 64), normal_rows(2 * 9 * 64));
    none.run();
    EXPECT_EQ(none.counts, Memory<int32_t>({0, 0}));
    Selection all({2, 2, 64, 0, 100, k}, normal_rows(4 * 64), normal_rows(2 * 100 * 64));
    all.exclude(rng_, 1);
    all.run();
    EXPECT_EQ(all.counts, Memory<int32_t>({0, 0}));
  }
}

TEST_F(CudaSelect, BudgetOfEverything) {
  for (int run = 0; run < 12; ++run) {
    const int64_t first = up_to(200), n = 1 + up_to(run < 6 ? 100 : 5000);
    Selection c({2, 1, 16, first, first + n, n + up_to(3)}, normal_rows(2 * 16),
                normal_rows(2 * (first + n) * 16));
    if (run % 3 != 0) c.exclude(rng_, run % 3 == 1 ? 2 : 40);
    c.run();
    for (int32_t j = 0; j < 2; ++j) {
      std::vector<int32_t> expected;
      for (int64_t i = first; i < first + n; ++i) {
        if (c.excluded.empty() ||
            (c.excluded[j * c.p.excluded_stride + i / 64] >> (i % 64) & 1) == 0) {
          expected.push_back(static_cast<int32_t>(i));
        }
      }
      ASSERT_EQ(c.chosen(j), expected);
    }
  }
}

// NaN scores lose against everything, but still fill up a list that nothing else fills.
TEST_F(CudaSelect, NanScoresComeLast) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const int32_t group : {1, 2}) {
    auto rows = normal_rows(300 * 64);
    for (int64_t c = 0; c < 300; c += 3)
      rows[c * 64 + 7] = bf16(std::numeric_limits<float>::quiet_NaN());
    rows[100 * 64] = bf16(inf);
    auto q = normal_rows(group * 64);
    for (bf16& x : q) x = bf16(std::abs(static_cast<float>(x)));
    Selection c({1, group, 64, 0, 300, 200}, q, rows);
    c.run();
    ASSERT_EQ(c.counts[0], 200);
    for (int32_t i = 0; i < 200; ++i) ASSERT_EQ(c.ids[i], i / 2 * 3 + 1 + i % 2);
    Selection more({1, group, 64, 0, 300, 201}, q, rows);
    more.run();
    ASSERT_EQ(more.counts[0], 201);
    ASSERT_EQ(more.ids[0], 0);
    Selection one({1, group, 64, 0, 300, 1}, q, rows);
    one.run();
    ASSERT_EQ(one.ids[0], 100) << "the infinite score";
  }
}

TEST_F(CudaSelect, SameInputsSameBits) {
  for (const int64_t end : {int64_t{3000}, int64_t{17000}}) {
    const Shape s{2, 4, 32, 11, end, 400};
    Selection a(s, normal_rows(8 * 32), normal_rows(2 * s.end * 32));
    a.run();
    for (int32_t j = 0; j < 2; ++j) {
      ASSERT_EQ(test::wrong_choice(a.ranked(j), s.first, s.k, a.ids.data() + j * s.k, a.counts[j]),
                "");
    }
    const auto ids = a.ids, counts = a.counts;
    const auto workspace = a.workspace;
    for (int run = 0; run < 2; ++run) {
      a.run();
      EXPECT_EQ(a.ids, ids);
      EXPECT_EQ(a.counts, counts);
      EXPECT_EQ(0, std::memcmp(a.workspace.data(), workspace.data(), workspace.size() * 4));
    }
  }
}

// What the fused launch does is what the two ops do.
TEST_F(CudaSelect, SelectAndMapIsBothOps) {
  struct Case {
    int64_t first, end, k, n_slots;
  };
  for (const Case& t : {Case{5, 700, 60, 100}, Case{5, 60, 90, 130}, Case{3, 17000, 200, 300},
                        Case{3, 17000, 2500, 3000}, Case{9, 9, 4, 8}}) {
    const Shape s{2, 2, 32, t.first, t.end, t.k};
    Selection c(s, normal_rows(4 * 32), normal_rows(2 * (t.end + 1) * 32));
    c.exclude(rng_, 9);
    struct Slots {
      Memory<int32_t> slot_of_chunk, chunk_of_slot, order, hit_slots, hit_counts, miss_chunks,
          miss_slots, miss_counts, scratch;
      Memory<int64_t> totals;
    };
    Slots fused;
    fused.slot_of_chunk.assign(2 * t.end, -1);
    fused.chunk_of_slot.assign(2 * t.n_slots, -1);
    fused.order.resize(2 * t.n_slots);
    for (int64_t i = 0; i < 2 * t.n_slots; ++i) {
      fused.order[i] = static_cast<int32_t>(i % t.n_slots);
    }
    fused.hit_slots.assign(2 * t.k, -9);
    fused.miss_chunks = fused.miss_slots = fused.hit_slots;
    fused.hit_counts.assign(2, -9);
    fused.miss_counts = fused.hit_counts;
    fused.scratch.assign(2 * t.n_slots, -9);
    fused.totals.assign(6, 0);
    Slots apart = fused;
    const auto params = [&](Slots& x) {
      MapSlotsParams p;
      p.state = {x.slot_of_chunk.data(), x.chunk_of_slot.data(), x.order.data(), t.end, t.n_slots};
      p.n_kv_heads = 2;
      p.ids = c.ids.data();
      p.counts = c.counts.data();
      p.stride = t.k;
      p.hit_slots = x.hit_slots.data();
      p.hit_counts = x.hit_counts.data();
      p.miss_chunks = x.miss_chunks.data();
      p.miss_slots = x.miss_slots.data();
      p.miss_counts = x.miss_counts.data();
      p.scratch = x.scratch.data();
      p.totals = x.totals.data();
      return p;
    };
    for (int step = 0; step < 2; ++step) {
      c.q = normal_rows(4 * 32);
      c.p.q = c.q.data();
      c.run();
      cuda::map_slots(test::stream(), params(apart));
      test::stream().finish();
      const auto ids = c.ids, counts = c.counts;
      c.poison();
      cuda::select_and_map(test::stream(), c.p, params(fused));
      test::stream().finish();
      ASSERT_EQ(c.ids, ids);
      ASSERT_EQ(c.counts, counts);
      for (Slots* x : {&fused, &apart}) {  // what is behind the misses is anything
        for (int64_t j = 0; j < 2; ++j) {
          std::fill(x->miss_slots.begin() + j * t.k + x->miss_counts[j],
                    x->miss_slots.begin() + (j + 1) * t.k, -9);
        }
      }
      for (const auto list :
           {&Slots::slot_of_chunk, &Slots::chunk_of_slot, &Slots::order, &Slots::hit_slots,
            &Slots::hit_counts, &Slots::miss_chunks, &Slots::miss_slots, &Slots::miss_counts}) {
        ASSERT_EQ(fused.*list, apart.*list);
      }
      ASSERT_EQ(fused.totals, apart.totals);
    }
  }
}

#if !defined(TIERCEL_ON_DEVICE)
// Landmarks beyond 2^31 elements, in address space without memory.
TEST_F(CudaSelect, OffsetsBeyondTwoToThe31) {
  const int32_t d = 128;
  const int64_t first = 20'000'000, n = 500, head_stride = (first + n) * d;
  const size_t bytes = 2 * head_stride * sizeof(bf16);
  void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(map, MAP_FAILED);
  bf16* base = static_cast<bf16*>(map);
  const auto rows = normal_rows(n * d);
  std::copy(rows.begin(), rows.end(), base + head_stride + first * d);
  Selection c({2, 1, d, first, first + n, 20}, normal_rows(2 * d), {});
  c.p.landmarks = base;
  c.p.landmark_head_stride = head_stride;
  c.run();
  ASSERT_EQ(test::wrong_choice(c.ranked(1), first, 20, c.ids.data() + 20, c.counts[1]), "");
  munmap(map, bytes);
}
#else
// A million tokens in chunks of 8, and more: sizes that the emulator has no time for.
TEST_F(CudaSelect, ManyCandidates) {
  for (const int64_t n : {int64_t{16384}, int64_t{131072}, int64_t{1'000'003}}) {
    for (const int64_t k : {int64_t{256}, n / 2}) {
      const int32_t d = 128;
      const Shape s{2, 4, d, 2, 2 + n, k};
      Selection c(s, shared_queries(2, 4, d), integer_rows(2 * s.end * d, 1));
      c.exclude(rng_, 50);
      c.run();
      for (int32_t j = 0; j < 2; ++j) {
        const auto exact =
            test::rank_chunks(c.p.q + j * 4 * d, 1, c.p.landmarks + j * s.end * d, d, 1.0f, s.first,
                              s.end, &c.excluded[j * c.p.excluded_stride], false);
        ASSERT_EQ(c.chosen(j), test::best_chunks(exact, s.first, k)) << n << " " << k;
      }
    }
  }
}
#endif

// ---- prefill ------------------------------------------------------------------------------------

struct PrefillSelection {
  Memory<bf16> q, landmarks;
  Memory<int32_t> ids, counts;
  Memory<int64_t> local_begin;
  PrefillSelectParams p;

  PrefillSelection(int32_t n_kv_heads, int32_t group, int32_t d, int64_t n_tokens, int64_t block,
                   int64_t k, Memory<bf16> queries, Memory<bf16> rows)
      : q(std::move(queries)), landmarks(std::move(rows)) {
    p.q = q.data();
    p.landmarks = landmarks.data();
    p.landmark_head_stride = static_cast<int64_t>(landmarks.size()) / n_kv_heads;
    p.n_tokens = n_tokens;
    p.block_tokens = block;
    p.k = k;
    p.n_heads = n_kv_heads * group;
    p.n_kv_heads = n_kv_heads;
    p.head_dim = d;
    p.scale = 1.0f / std::sqrt(static_cast<float>(d));
  }
  int64_t n_blocks() const { return (p.n_tokens + p.block_tokens - 1) / p.block_tokens; }
  void poison() {
    ids.assign(n_blocks() * p.n_kv_heads * (p.sink_chunks + p.k), -7);
    counts.assign(n_blocks() * p.n_kv_heads, -7);
    local_begin.assign(n_blocks(), -7);
    p.chunk_ids = ids.data();
    p.chunk_counts = counts.data();
    p.local_begin = local_begin.data();
  }
  void run() {
    poison();
    cuda::select_prefill_chunks(test::stream(), p);
    test::stream().finish();
  }
  void run(cpu::Queue& queue) {
    poison();
    cpu::select_prefill_chunks(queue, p);
  }
  std::vector<bf16> means(int64_t b, int32_t j) const {
    const int64_t group = p.n_heads / p.n_kv_heads;
    const int64_t begin = b * p.block_tokens, end = std::min(begin + p.block_tokens, p.n_tokens);
    std::vector<bf16> out;
    for (int64_t i = 0; i < group * p.head_dim; ++i) {
      float sum = 0;  // the op's definition: an fp32 sum in token order, rounded to bf16
      for (int64_t t = begin; t < end; ++t) {
        sum += static_cast<float>(q[(t * p.n_heads + j * group) * p.head_dim + i]);
      }
      out.push_back(bf16(sum / static_cast<float>(end - begin)));
    }
    return out;
  }
  // Sinks first, then a correct choice of k.
  std::string check() const {
    const int64_t group = p.n_heads / p.n_kv_heads, width = p.sink_chunks + p.k;
    for (int64_t b = 0; b < n_blocks(); ++b) {
      const int64_t position = p.first_position + b * p.block_tokens - p.local_tokens;
      const int64_t n = std::max<int64_t>(position, 0) / p.chunk_tokens;
      if (local_begin[b] != n * p.chunk_tokens) return "local_begin";
      for (int32_t j = 0; j < p.n_kv_heads; ++j) {
        const int32_t* list = ids.data() + (b * p.n_kv_heads + j) * width;
        const int64_t count = counts[b * p.n_kv_heads + j], sinks = std::min(n, p.sink_chunks);
        if (count < sinks) return "too few";
        for (int64_t i = 0; i < sinks; ++i) {
          if (list[i] != i) return "sinks";
        }
        for (int64_t i = count; i < width; ++i) {
          if (list[i] != -7) return "written behind the list";
        }
        const auto r = test::rank_chunks(means(b, j).data(), static_cast<int32_t>(group),
                                         p.landmarks + j * p.landmark_head_stride, p.head_dim,
                                         p.scale, sinks, n, nullptr, false);
        const auto wrong = test::wrong_choice(r, sinks, p.k, list + sinks, count - sinks);
        if (!wrong.empty()) return wrong + " in block " + std::to_string(b);
      }
    }
    return "";
  }
};

TEST_F(CudaSelect, PrefillMatchesOracle) {
  for (const int32_t d : {16, 34, 64, 80, 96, 128, 256}) {
    for (const int32_t group : {1, 2, 3, 4, 7, 8, 16, 17, 33}) {
      if (group > 8 && d != 34) continue;
      if (group == 2 && d != 64) continue;
      const int64_t chunk = 8, first = chunk * up_to(150),
                    n_tokens = 16 * (1 + up_to(7)) - up_to(12);
      const int64_t n_chunks = (first + n_tokens) / chunk + 1;
      PrefillSelection c(2, group, d, n_tokens, 16, 1 + up_to(30),
                         normal_rows(n_tokens * 2 * group * d, 4.0f),
                         normal_rows(2 * n_chunks * d, 3.0f));
      c.p.first_position = first;
      c.p.chunk_tokens = static_cast<int32_t>(chunk);
      c.p.local_tokens = up_to(300);
      c.p.sink_chunks = up_to(14);
      SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " first " << first
                                      << " tokens " << n_tokens << " k " << c.p.k);
      c.run();
      ASSERT_EQ(c.check(), "");
    }
  }
}

// More rows than one group of tiles, and blocks whose candidates end at different places.
TEST_F(CudaSelect, PrefillOfManyBlocks) {
  const int32_t d = 64;
  const int64_t n_tokens = 24 * 16, first = 8 * 60;
  PrefillSelection c(1, 4, d, n_tokens, 16, 20, normal_rows(n_tokens * 4 * d, 4.0f),
                     normal_rows((first + n_tokens) / 8 * d, 3.0f));
  c.p.first_position = first;
  c.p.chunk_tokens = 8;
  c.p.local_tokens = 32;
  c.p.sink_chunks = 2;
  c.run();
  ASSERT_EQ(c.check(), "");
  const auto ids = c.ids, counts = c.counts;
  c.run();
  EXPECT_EQ(c.ids, ids);
  EXPECT_EQ(c.counts, counts);
}

TEST_F(CudaSelect, PrefillFromTheStartAndWithoutBudget) {
  for (const int64_t k : {0, 3, 1000}) {
    for (const int64_t first : {0, 2000}) {
      PrefillSelection c(2, 2, 64, 400, 100, k, normal_rows(400 * 4 * 64),
                         normal_rows(2 * 480 * 64));
      c.p.first_position = first;
      c.p.chunk_tokens = 5;
      c.p.local_tokens = 33;
      c.p.sink_chunks = 2;
      c.run();
      ASSERT_EQ(c.check(), "") << k << " " << first;
    }
  }
}

// Equal landmarks and landmarks in rising order; NaN comes last.
TEST_F(CudaSelect, PrefillTiesAndNan) {
  const int64_t n = 2000;
  for (const int kind : {0, 1, 2}) {
    Memory<bf16> rows((n + 100) * 64), q(32 * 2 * 64, bf16(1.0f));
    for (int64_t c = 0; c < n; ++c) {
      rows[c * 64] = bf16(kind == 1 ? static_cast<float>(c / 16) : 1.0f);
      if (kind == 2 && c >= 5) rows[c * 64 + 1] = bf16(std::numeric_limits<float>::quiet_NaN());
    }
    PrefillSelection c(1, 2, 64, 32, 32, 40, q, rows);
    c.p.first_position = n * 8;
    c.p.chunk_tokens = 8;
    c.run();
    ASSERT_EQ(c.counts[0], 40);
    const int32_t begin = kind == 1 ? static_cast<int32_t>(n) - 48 : 0;
    for (int32_t i = 0; i < 40; ++i) {
      const int32_t expected = kind != 1 ? i : i < 8 ? begin + i : begin + 8 + i;
      ASSERT_EQ(c.ids[i], expected) << kind << " " << i;
    }
  }
}

// Whole numbers, whose means are whole: the same ids as the CPU, ties and all.
TEST_F(CudaSelect, PrefillAgreesWithTheCpu) {
  const int32_t d = 32, group = 4;
  const int64_t n_tokens = 64, n_chunks = 900;
  Memory<bf16> q;
  for (int64_t block = 0; block < 4; ++block) {
    const auto one = shared_queries(2, group, d);
    for (int64_t t = 0; t < 16; ++t) q.insert(q.end(), one.begin(), one.end());
  }
  PrefillSelection c(2, group, d, n_tokens, 16, 50, q, integer_rows(2 * n_chunks * d, 1));
  c.p.first_position = (n_chunks - 10) * 8;
  c.p.chunk_tokens = 8;
  c.p.sink_chunks = 3;
  c.run();
  ASSERT_EQ(c.check(), "");
  const auto ids = c.ids, counts = c.counts;
  const auto local_begin = c.local_begin;
  c.run(cpu_);
  EXPECT_EQ(c.ids, ids);
  EXPECT_EQ(c.counts, counts);
  EXPECT_EQ(c.local_begin, local_begin);
}

// The same chunks for a block that prefill and decode would choose from the same queries.
TEST_F(CudaSelect, PrefillAgreesWithDecode) {
  const int64_t n = 1000, k = 100;
  const auto q = integer_rows(2 * 64, 3);
  const auto rows = integer_rows(n * 64, 1);
  Selection decode({1, 2, 64, 2, n, k}, q, rows);
  decode.run();
  PrefillSelection prefill(1, 2, 64, 1, 1, k, q, rows);
  prefill.p.first_position = n * 8;
  prefill.p.chunk_tokens = 8;
  prefill.p.sink_chunks = 2;
  prefill.run();
  const std::vector<int32_t> others(prefill.ids.begin() + 2, prefill.ids.end());
  EXPECT_EQ(others, decode.chosen(0));
}

TEST_F(CudaSelect, PrefillScratchGrowsWithThePosition) {
  PrefillSelectParams p;
  p.n_tokens = 4096;
  p.block_tokens = 256;
  p.local_tokens = 1024;
  p.sink_chunks = 2;
  p.k = 256;
  p.chunk_tokens = 8;
  p.n_heads = 32;
  p.n_kv_heads = 8;
  p.head_dim = 128;
  int64_t before = 0;
  for (p.first_position = 0; p.first_position < 40'000'000; p.first_position += 4096) {
    const int64_t bytes = cuda::select_prefill_scratch_bytes(p);
    ASSERT_GE(bytes, before);
    before = bytes;
    if (p.first_position < 1'000'000) {
      ASSERT_LE(bytes, int64_t{80} << 20);
    }
  }
}

}  // namespace
}  // namespace tiercel
