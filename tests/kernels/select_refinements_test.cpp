// Selections that ask for more than the best means: against fp64.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/select.h"
#include "kernels/slots.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/refined_selection.h"
#include "tests/seed.h"

#if !defined(TIERCEL_ON_DEVICE)
#include <sys/mman.h>
#endif

namespace tiercel {
namespace {

template <typename T>
using Memory = test::DeviceVector<T>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  int32_t n_kv_heads, group, d;
  int64_t first, end, k;
  IndexKind index = IndexKind::kMean;
  bool coded = false;
};

// A selection with everything that it can point at.
struct Refined {
  Memory<bf16> q, landmarks;
  Memory<int8_t> codes;
  Memory<float> scales, workspace;
  Memory<uint64_t> excluded;
  Memory<int32_t> blocks, block_counts, slot_of_chunk, keep, ids, counts, dropped_ids,
      dropped_counts;
  SelectParams p;

  Refined(const Shape& s, std::mt19937_64& rng, float spread = 1.0f) {
    std::normal_distribution<float> normal(0.0f, spread);
    const int64_t capacity = s.end + static_cast<int64_t>(rng() % 4);
    const int32_t width = landmark_width(s.index, s.d);
    q.resize(s.n_kv_heads * s.group * s.d);
    for (bf16& x : q) x = bf16(normal(rng));
    if (s.coded) {
      codes.resize(s.n_kv_heads * capacity * width);
      for (int8_t& x : codes) x = static_cast<int8_t>(static_cast<int>(rng() % 255) - 127);
      scales.resize(s.n_kv_heads * capacity);
      for (float& x : scales) x = std::abs(normal(rng)) / 60;
    } else {
      landmarks.resize(s.n_kv_heads * capacity * width);
      for (bf16& x : landmarks) x = bf16(normal(rng));
    }
    if (s.index == IndexKind::kMinMax) sort_bounds(s.d);
    p.q = q.data();
    p.index = s.index;
    p.landmarks = s.coded ? nullptr : landmarks.data();
    p.codes = s.coded ? codes.data() : nullptr;
    p.scales = s.coded ? scales.data() : nullptr;
    p.landmark_head_stride = capacity * width;
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
  void sort_bounds(int32_t d) {
    const auto sort = [d](auto& rows) {
      for (size_t i = 0; i < rows.size(); ++i) {
        if (i % (2 * d) < static_cast<size_t>(d) && rows[i] > rows[i + d]) {
          std::swap(rows[i], rows[i + d]);
        }
      }
    };
    sort(codes);
    std::vector<float> values(landmarks.begin(), landmarks.end());
    sort(values);
    for (size_t i = 0; i < values.size(); ++i) landmarks[i] = bf16(values[i]);
  }
  void poison() {
    ids.assign(p.n_kv_heads * p.k, -7);
    counts.assign(p.n_kv_heads, -7);
    p.ids = ids.data();
    p.counts = counts.data();
    if (p.max_misses >= 0) {
      dropped_ids.assign(p.n_kv_heads * p.k, -7);
      dropped_counts.assign(p.n_kv_heads, -7);
      p.dropped_ids = dropped_ids.data();
      p.dropped_counts = dropped_counts.data();
    }
    std::fill(workspace.begin(), workspace.end(), kNan);
  }
  void exclude(std::mt19937_64& rng, uint64_t one_in) {
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
  // About one in so many of the blocks before first_loose, which may lie inside a block.
  void use_blocks(std::mt19937_64& rng, int32_t block_chunks, int64_t first_loose,
                  uint64_t one_in) {
    const int64_t n_blocks = (first_loose + block_chunks - 1) / block_chunks;
    p.block_chunks = block_chunks;
    p.first_loose_chunk = first_loose;
    p.block_stride = n_blocks + 2;
    blocks.assign(p.n_kv_heads * p.block_stride, 1'000'000);
    block_counts.assign(p.n_kv_heads, 0);
    for (int64_t j = 0; j < p.n_kv_heads; ++j) {
      if (p.scope == SelectScope::kLayer && j > 0) {
        block_counts[j] = block_counts[0];
        std::copy_n(blocks.begin(), p.block_stride, blocks.begin() + j * p.block_stride);
        continue;
      }
      for (int32_t b = 0; b < n_blocks; ++b) {
        if (rng() % one_in == 0) blocks[j * p.block_stride + block_counts[j]++] = b;
      }
    }
    p.blocks = blocks.data();
    p.block_counts = block_counts.data();
  }
  // Of spans of so many chunks of 2 tokens.
  void view(std::mt19937_64& rng, int32_t n_views, int64_t span_chunks) {
    std::normal_distribution<float> normal(0.0f, 1.5f);
    p.chunk_tokens = 2;
    p.views = {.span_tokens = 2 * span_chunks, .n = n_views, .stride = static_cast<int64_t>(q.size())};
    while (std::ssize(q) < n_views * p.views.stride) q.push_back(bf16(normal(rng)));
    p.q = q.data();
  }
  void use_slots(std::mt19937_64& rng, int64_t max_misses, uint64_t one_in) {
    p.max_misses = max_misses;
    p.chunk_capacity = p.end_chunk + 3;
    slot_of_chunk.assign(p.n_kv_heads * p.chunk_capacity, -1);
    for (int32_t& slot : slot_of_chunk) slot = rng() % one_in == 0 ? 5 : -1;
    for (size_t i = p.chunk_capacity; p.scope == SelectScope::kLayer && i < slot_of_chunk.size();
         ++i) {
      slot_of_chunk[i] = slot_of_chunk[i - p.chunk_capacity];
    }
    p.slot_of_chunk = slot_of_chunk.data();
  }
  void run() {
    poison();
    cuda::select_chunks(test::stream(), p);
    test::stream().finish();
  }
  // Runs and compares every list.
  std::string check() {
    run();
    for (size_t i = workspace.size() - 16; i < workspace.size(); ++i) {
      if (!std::isnan(workspace[i])) return "written behind the workspace";
    }
    for (int32_t j = 0; j < p.n_kv_heads; ++j) {
      if (counts[j] < 0 || counts[j] > p.k) return "count";
      const std::string wrong = test::wrong_refined(p, j);
      if (!wrong.empty()) return wrong + ", KV head " + std::to_string(j);
      if (p.scope == SelectScope::kLayer && chosen(j) != chosen(0))
        return "lists of a layer differ";
    }
    return "";
  }
  std::vector<int32_t> chosen(int32_t j) const {
    return {ids.begin() + j * p.k, ids.begin() + j * p.k + counts[j]};
  }
  std::vector<int32_t> dropped(int32_t j) const {
    return {dropped_ids.begin() + j * p.k, dropped_ids.begin() + j * p.k + dropped_counts[j]};
  }
};

class CudaSelectRefined : public testing::Test {
 protected:
  std::mt19937_64 rng_{test::seed()};
  int64_t up_to(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }
  bool coin() { return rng_() % 2 == 0; }

  // A random shape with random refinements.
  void try_one(int32_t d, int32_t group, IndexKind index, bool coded, GroupScore score,
               SelectScope scope) {
    const int64_t first = up_to(70), n = 1 + up_to(200);
    const Shape s{2, group, d, first, first + n, 1 + up_to(n + 20), index, coded};
    Refined c(s, rng_, 1.5f);
    c.p.group = score;
    c.p.scope = scope;
    if (scope == SelectScope::kKvHead && coin()) c.exclude(rng_, 5);
    if (coin()) {
      c.use_blocks(rng_, static_cast<int32_t>(1 + up_to(20)), up_to(first + n + 5), 1 + up_to(3));
    } else if (coin()) {
      c.view(rng_, static_cast<int32_t>(1 + up_to(12)), 8 * (1 + up_to(20)));
    }
    if (score != GroupScore::kMax && coin()) c.p.top_p = 0.05f + 0.01f * up_to(100);
    if (coin()) c.use_slots(rng_, up_to(s.k + 2), 1 + up_to(4));
    SCOPED_TRACE(testing::Message()
                 << "d " << d << " group " << group << " first " << first << " n " << n << " k "
                 << s.k << " index " << int(index) << " coded " << coded << " score " << int(score)
                 << " scope " << int(scope) << " blocks of " << c.p.block_chunks << " loose from "
                 << c.p.first_loose_chunk << " views " << c.p.views.n << " top_p " << c.p.top_p << " misses "
                 << c.p.max_misses);
    ASSERT_EQ(c.check(), "");
  }
};

TEST_F(CudaSelectRefined, EverythingAgainstTheOracle) {
  for (const int32_t d : {16, 34, 64, 80, 96, 128, 160, 256}) {
    for (const IndexKind index : {IndexKind::kMean, IndexKind::kMinMax}) {
      for (const bool coded : {false, true}) {
        for (const GroupScore score : {GroupScore::kMax, GroupScore::kMean, GroupScore::kSum}) {
          for (const SelectScope scope : {SelectScope::kKvHead, SelectScope::kLayer}) {
            const int32_t groups[] = {1, 3, 4, 8, 17};
            try_one(d, groups[up_to(5)], index, coded, score, scope);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// Their launches become one for as many as fill its rows, and each has the bits that it has alone.
TEST_F(CudaSelectRefined, SequencesBehindOnePrefixReadItsLandmarksOnce) {
  for (const bool coded : {false, true}) {
    for (const int32_t d : {64, 128}) {
      for (const int32_t group : {1, 4, 7, 16}) {
        const int64_t n_all = 2 + up_to(7), n_own = n_all > 3 ? up_to(2) : 0, n_shared = n_all - n_own;
        SCOPED_TRACE(testing::Message() << "coded " << coded << " d " << d << " group " << group << ", "
                                        << n_all << " sequences, apart " << n_own);
        const Shape shape{2, group, d, 5, 700 + up_to(2000), 40, IndexKind::kMean, coded};
        std::vector<std::unique_ptr<Refined>> all;
        for (int64_t i = 0; i < n_all; ++i) all.push_back(std::make_unique<Refined>(shape, rng_, 1.5f));
        all[0]->exclude(rng_, 6);
        for (int64_t i = 1; i < n_shared; ++i) {
          SelectParams& p = all[static_cast<size_t>(i)]->p;
          const SelectParams& first = all[0]->p;
          p.landmarks = first.landmarks;
          p.codes = first.codes;
          p.scales = first.scales;
          p.landmark_head_stride = first.landmark_head_stride;
          p.excluded = first.excluded;
          p.excluded_stride = first.excluded_stride;
        }
        std::vector<Memory<int32_t>> ids, counts;
        cuda::Stream& queue = test::stream();
        int64_t before = queue.n_launches();
        for (auto& one : all) {
          one->run();
          ids.push_back(one->ids);
          counts.push_back(one->counts);
          one->poison();
        }
        const int64_t of_one = (queue.n_launches() - before) / n_all;
        before = queue.n_launches();
        together(queue, n_all, [&](int64_t i) {
          cuda::select_chunks(queue, all[static_cast<size_t>(i)]->p);
        });
        queue.finish();
        const int64_t most = 32 / group, n_scores = (n_shared + most - 1) / most + n_own;
        EXPECT_EQ(queue.n_launches() - before, n_scores + of_one - 1);
        for (size_t i = 0; i < all.size(); ++i) {
          ASSERT_EQ(all[i]->ids, ids[i]) << i;
          ASSERT_EQ(all[i]->counts, counts[i]) << i;
        }
        ASSERT_EQ(all.back()->check(), "");
      }
    }
  }
}

// Rows that are not aligned to 16 bytes, and odd capacities.
TEST_F(CudaSelectRefined, UnalignedRows) {
  for (const IndexKind index : {IndexKind::kMean, IndexKind::kMinMax}) {
    for (const bool coded : {false, true}) {
      Refined c({2, 2, 64, 5, 200, 30, index, coded}, rng_);
      c.landmarks.insert(c.landmarks.begin(), 2, bf16(kNan));
      c.codes.insert(c.codes.begin(), 2, 77);
      if (coded) c.p.codes = c.codes.data() + 2;
      if (!coded) c.p.landmarks = c.landmarks.data() + 2;
      ASSERT_EQ(c.check(), "");
    }
  }
}

// More candidates than one block aggregates, longer lists than are kept in shared memory.
TEST_F(CudaSelectRefined, LongLists) {
  for (const SelectScope scope : {SelectScope::kKvHead, SelectScope::kLayer}) {
    for (const int64_t k : {int64_t{700}, int64_t{6000}}) {
      Refined c({2, 1, 16, 9, 12'000, k, IndexKind::kMinMax, true}, rng_, 0.2f);
      c.p.group = GroupScore::kSum;
      c.p.scope = scope;
      c.p.top_p = k == 700 ? 0.05f : 0.45f;
      c.use_slots(rng_, k / 5, 2);
      ASSERT_EQ(c.check(), "") << k;
      const int32_t n = c.counts[0] + c.dropped_counts[0];
      EXPECT_LT(n, k);  // both rules count, and for the longer lists more than kTrimCached
      EXPECT_GT(c.dropped_counts[0], 0);
      if (k == 6000) {
        EXPECT_GT(n, 4096);
      }
      c.p.top_p = 0;
      c.use_blocks(rng_, 16, 11'000, 3);
      ASSERT_EQ(c.check(), "") << k;
    }
  }
}

// Chunks of one token: exact scores of keys, a budget of thousands of them, nothing else asked for.
TEST_F(CudaSelectRefined, ExactTokensOfALayer) {
  Refined c({2, 2, 8, 16, 30'000, 3000}, rng_, 2.0f);
  c.p.scope = SelectScope::kLayer;
  c.p.group = GroupScore::kSum;
  ASSERT_EQ(c.check(), "");
}

// Equal scores go by their place: as chosen, by weight, and as misses.
TEST_F(CudaSelectRefined, TiesGoToTheLowerChunk) {
  for (const SelectScope scope : {SelectScope::kKvHead, SelectScope::kLayer}) {
    for (const bool coded : {false, true}) {
      if (coded && scope == SelectScope::kLayer) continue;
      const int64_t first = 3, n = 4096 + 512;
      Refined c({2, 2, 16, first, first + n, 3000, IndexKind::kMean, coded}, rng_);
      std::fill(c.landmarks.begin(), c.landmarks.end(), bf16(0.5f));
      std::fill(c.codes.begin(), c.codes.end(), int8_t{-3});
      std::fill(c.scales.begin(), c.scales.end(), 0.25f);
      c.p.group = GroupScore::kMean;
      c.p.scope = scope;
      std::vector<int32_t> expected(3000);
      std::iota(expected.begin(), expected.end(), first);
      c.run();
      ASSERT_EQ(c.chosen(1), expected);
      c.p.top_p = 999.5f / n;
      expected.resize(1000);
      c.run();
      ASSERT_EQ(c.chosen(1), expected);
      for (const int64_t max_misses : {0, 1, 100, 900}) {
        c.use_slots(rng_, max_misses, 4);
        std::copy_n(c.slot_of_chunk.begin(), c.p.chunk_capacity,
                    c.slot_of_chunk.begin() + c.p.chunk_capacity);
        c.run();
        std::vector<int32_t> kept, dropped;
        int64_t n_misses = 0;
        for (const int32_t id : expected) {
          const bool is_kept = c.slot_of_chunk[id] >= 0 || n_misses++ < max_misses;
          (is_kept ? kept : dropped).push_back(id);
        }
        ASSERT_EQ(c.chosen(1), kept) << max_misses;
        ASSERT_EQ(c.dropped(1), dropped) << max_misses;
      }
    }
  }
}

TEST_F(CudaSelectRefined, NothingToChooseFrom) {
  Refined none({2, 2, 64, 9, 9, 5, IndexKind::kMinMax}, rng_);
  none.use_slots(rng_, 2, 2);
  none.run();
  EXPECT_EQ(none.counts, Memory<int32_t>({0, 0}));
  EXPECT_EQ(none.dropped_counts, Memory<int32_t>({0, 0}));

  Refined excluded({2, 2, 64, 0, 100, 5, IndexKind::kMean, true}, rng_);
  excluded.exclude(rng_, 1);
  excluded.use_slots(rng_, 2, 2);
  excluded.p.group = GroupScore::kMean;
  excluded.p.top_p = 0.5f;
  excluded.run();
  EXPECT_EQ(excluded.counts, Memory<int32_t>({0, 0}));
  EXPECT_EQ(excluded.dropped_counts, Memory<int32_t>({0, 0}));

  // No block is listed, with and without loose chunks.
  for (const int64_t loose : {0, 7}) {
    Refined blocks({2, 2, 64, 8, 100, 20}, rng_);
    blocks.use_blocks(rng_, 8, 100 - loose, 1);
    blocks.block_counts.assign(2, 0);
    ASSERT_EQ(blocks.check(), "");
    EXPECT_EQ(blocks.counts[1], loose);
  }
  // NaN is all there is.
  Refined nans({1, 1, 16, 0, 64, 40, IndexKind::kMinMax}, rng_);
  std::fill(nans.landmarks.begin(), nans.landmarks.end(), bf16(kNan));
  nans.p.group = GroupScore::kMean;
  nans.p.top_p = 0.49f;
  nans.run();
  EXPECT_GE(nans.counts[0], 1);
  EXPECT_EQ(nans.ids[0], 0);
}

TEST_F(CudaSelectRefined, BudgetOfEverything) {
  for (const SelectScope scope : {SelectScope::kKvHead, SelectScope::kLayer}) {
    Refined c({2, 2, 16, 30, 1000, 970, IndexKind::kMinMax}, rng_);
    c.p.scope = scope;
    if (scope == SelectScope::kKvHead) c.exclude(rng_, 3);
    ASSERT_EQ(c.check(), "");
    c.use_blocks(rng_, 10, 950, 2);
    ASSERT_EQ(c.check(), "");
    c.use_slots(rng_, 30, 2);
    ASSERT_EQ(c.check(), "");
    c.p.group = GroupScore::kMean;
    c.p.top_p = 1.0f;
    ASSERT_EQ(c.check(), "");
  }
}

// A NaN is the lowest: in a landmark, in a scale, among bounds. It still fills up a list.
TEST_F(CudaSelectRefined, NanScoresComeLast) {
  for (const IndexKind index : {IndexKind::kMean, IndexKind::kMinMax}) {
    for (const bool coded : {false, true}) {
      Refined c({1, 2, 64, 0, 300, 200, index, coded}, rng_);
      const int32_t width = landmark_width(index, 64);
      for (int64_t chunk = 0; chunk < 300; chunk += 3) {
        if (coded) {
          c.scales[chunk] = kNan;
          std::fill_n(c.codes.begin() + chunk * width, width, int8_t{0});
        } else {
          c.landmarks[chunk * width + 7] = bf16(kNan);
          if (index == IndexKind::kMinMax) c.landmarks[chunk * width + 64 + 7] = bf16(kNan);
        }
      }
      c.run();
      ASSERT_EQ(c.counts[0], 200);
      for (int32_t i = 0; i < 200; ++i) ASSERT_EQ(c.ids[i], i / 2 * 3 + 1 + i % 2);
      c.p.k = 201;
      c.run();
      ASSERT_EQ(c.counts[0], 201);
      ASSERT_EQ(c.ids[0], 0);
      c.q[5] = bf16(kNan);  // a query's: all its scores are equal
      c.p.n_heads = 1;
      c.run();
      ASSERT_EQ(c.chosen(0).back(), 200);
    }
  }
}

// An infinite element of the query; one of a bound counts where the query uses that bound.
TEST_F(CudaSelectRefined, InfiniteBounds) {
  const float inf = std::numeric_limits<float>::infinity();
  Refined c({1, 1, 16, 0, 100, 1, IndexKind::kMinMax}, rng_);
  for (bf16& x : c.q) x = bf16(std::abs(static_cast<float>(x)) + 0.5f);
  c.landmarks[40 * 32 + 16 + 3] = bf16(inf);
  c.run();
  EXPECT_EQ(c.ids[0], 40);
}

TEST_F(CudaSelectRefined, SameInputsSameBits) {
  Refined c({2, 4, 32, 11, 6000, 900, IndexKind::kMinMax, true}, rng_, 2.0f);
  c.p.group = GroupScore::kMean;
  c.p.top_p = 0.6f;
  c.use_slots(rng_, 100, 3);
  ASSERT_EQ(c.check(), "");
  const auto ids = c.ids, dropped = c.dropped_ids, counts = c.counts;
  for (int run = 0; run < 2; ++run) {
    c.run();
    EXPECT_EQ(c.ids, ids);
    EXPECT_EQ(c.counts, counts);
    EXPECT_EQ(c.dropped_ids, dropped);
  }
}

// With *keep nothing is touched, whatever kernel would have done it; without it all is as ever.
TEST_F(CudaSelectRefined, KeptSelectionsStay) {
  struct Case {
    int64_t end, k;
    bool coded, is_layer, has_blocks, is_trimmed;
  };
  for (const Case& t :
       {Case{700, 60, false, false, false, false}, Case{700, 60, true, true, false, true},
        Case{700, 60, false, false, true, true}, Case{60, 90, false, false, false, false},
        Case{60, 90, false, true, false, true}, Case{5, 4, true, false, false, true}}) {
    Refined c({2, 2, 64, 5, t.end, t.k, IndexKind::kMean, t.coded}, rng_);
    c.keep.assign(1, 0);
    c.p.keep = c.keep.data();
    if (t.is_layer) c.p.scope = SelectScope::kLayer;
    if (t.has_blocks) c.use_blocks(rng_, 8, t.end - 9, 2);
    if (t.is_trimmed) c.use_slots(rng_, t.k / 4, 3);
    ASSERT_EQ(c.check(), "");
    c.keep[0] = 1;
    c.run();
    EXPECT_EQ(c.ids, Memory<int32_t>(2 * t.k, -7));
    EXPECT_EQ(c.counts, Memory<int32_t>(2, -7));
    if (t.is_trimmed) {
      EXPECT_EQ(c.dropped_ids, Memory<int32_t>(2 * t.k, -7));
      EXPECT_EQ(c.dropped_counts, Memory<int32_t>(2, -7));
    }
    for (const float x : c.workspace) ASSERT_TRUE(std::isnan(x));
  }
}

// The slot map of a refined selection: that of the lists that came out, and of those that stayed.
TEST_F(CudaSelectRefined, SelectAndMap) {
  const int64_t n_slots = 100, k = 60, end = 700;
  Refined c({2, 2, 32, 5, end, k, IndexKind::kMinMax}, rng_);
  Memory<int32_t> chunk_of_slot(2 * n_slots, -1), order(2 * n_slots), hit_slots(2 * k),
      miss_chunks(2 * k), miss_slots(2 * k), hit_counts(2), miss_counts(2), scratch(2 * n_slots);
  Memory<int64_t> totals(6, 0);
  for (int64_t i = 0; i < 2 * n_slots; ++i) order[i] = static_cast<int32_t>(i % n_slots);
  c.use_slots(rng_, 20, 1'000'000'000);
  c.slot_of_chunk.assign(c.slot_of_chunk.size(), -1);
  c.keep.assign(1, 0);
  c.p.keep = c.keep.data();
  c.poison();
  MapSlotsParams map;
  map.state = {c.slot_of_chunk.data(), chunk_of_slot.data(), order.data(), c.p.chunk_capacity,
               n_slots};
  map.n_kv_heads = 2;
  map.ids = c.ids.data();
  map.counts = c.counts.data();
  map.stride = k;
  map.hit_slots = hit_slots.data();
  map.hit_counts = hit_counts.data();
  map.miss_chunks = miss_chunks.data();
  map.miss_slots = miss_slots.data();
  map.miss_counts = miss_counts.data();
  map.scratch = scratch.data();
  map.totals = totals.data();
  for (int step = 0; step < 3; ++step) {  // of k best 20 come in at first, then 20 more, then all
    cuda::select_and_map(test::stream(), c.p, map);
    test::stream().finish();
    for (int32_t j = 0; j < 2; ++j) {
      EXPECT_EQ(hit_counts[j], 20 * step);
      EXPECT_EQ(miss_counts[j], 20);
      EXPECT_EQ(c.counts[j], 20 * step + 20);
      EXPECT_EQ(c.dropped_counts[j], 40 - 20 * step);
      for (int32_t i = 0; i < c.counts[j]; ++i) {
        ASSERT_GE(c.slot_of_chunk[j * c.p.chunk_capacity + c.ids[j * k + i]], 0);
      }
    }
  }
  c.keep[0] = 1;
  const auto ids = c.ids;
  std::fill(c.q.begin(), c.q.end(), bf16(1.0f));
  cuda::select_and_map(test::stream(), c.p, map);
  test::stream().finish();
  EXPECT_EQ(c.ids, ids);
  EXPECT_EQ(hit_counts, Memory<int32_t>(2, 60));
  EXPECT_EQ(miss_counts, Memory<int32_t>(2, 0));
  EXPECT_EQ(totals, Memory<int64_t>({180, 120, 60, 180, 120, 60}));
}

#if !defined(TIERCEL_ON_DEVICE)
// Codes beyond 2^31, in address space without memory.
TEST_F(CudaSelectRefined, OffsetsBeyondTwoToThe31) {
  const int32_t d = 128;
  const int64_t first = 20'000'000, n = 500, head_stride = (first + n) * d;
  const size_t bytes = 2 * head_stride, scale_bytes = 2 * (first + n) * sizeof(float);
  const auto reserve = [](size_t size) {
    void* map = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(map, MAP_FAILED);
    return map;
  };
  auto* codes = static_cast<int8_t*>(reserve(bytes));
  auto* scales = static_cast<float*>(reserve(scale_bytes));
  for (int64_t i = first * d; i < head_stride; ++i) {
    codes[head_stride + i] = static_cast<int8_t>(static_cast<int>(rng_() % 255) - 127);
  }
  for (int64_t i = first; i < first + n; ++i) scales[first + n + i] = 0.02f;
  Refined c({2, 1, d, 0, n, 20, IndexKind::kMean, true}, rng_);
  c.p.first_chunk = first;
  c.p.end_chunk = first + n;
  c.p.codes = codes;
  c.p.scales = scales;
  c.p.landmark_head_stride = head_stride;
  ASSERT_EQ(c.check(), "");
  munmap(codes, bytes);
  munmap(scales, scale_bytes);
}
#endif

}  // namespace
}  // namespace tiercel
