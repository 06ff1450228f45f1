// Selection beyond means in bf16 and the group's maximum: other indexes, int8 landmarks, a list per
// layer, two levels, top_p, capped misses; at every level that this machine runs, against fp64.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cpu/levels.h"
#include "cpu/select.h"
#include "cpu/select_scan.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/refined_selection.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using cpu::Isa;
using cpu::Queue;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Owns what the params point at.
struct Case {
  std::vector<bf16> q, landmarks;
  std::vector<int8_t> codes;
  std::vector<float> scales, workspace;
  std::vector<uint64_t> excluded;
  std::vector<int32_t> blocks, block_counts, slots, ids, counts, dropped, dropped_counts;
  SelectParams p;

  Case(std::mt19937_64& rng, int32_t n_kv_heads, int32_t group, int32_t d, IndexKind index,
       bool int8, int64_t first, int64_t n, int64_t k)
      : q(n_kv_heads * group * d) {
    std::normal_distribution<float> normal;
    p.index = index;
    p.n_kv_heads = n_kv_heads;
    p.n_heads = n_kv_heads * group;
    p.head_dim = d;
    p.first_chunk = first;
    p.end_chunk = first + n;
    p.k = k;
    p.scale = 1.0f / std::sqrt(static_cast<float>(d));
    const int64_t width = landmark_width(index, d);
    const int64_t capacity = first + n + static_cast<int64_t>(rng() % 5);
    p.landmark_head_stride = capacity * width;
    for (bf16& x : q) x = bf16(2 * normal(rng));
    if (int8) {
      codes.resize(n_kv_heads * p.landmark_head_stride);
      scales.resize(n_kv_heads * capacity);
      for (int8_t& x : codes) x = static_cast<int8_t>(static_cast<int>(rng() % 255) - 127);
      for (float& x : scales) x = (0.5f + std::abs(normal(rng))) / 100;
      for (int64_t i = 0; i < static_cast<int64_t>(scales.size()); i += 37) scales[i] = 0;
    } else {
      landmarks.resize(n_kv_heads * p.landmark_head_stride);
      for (bf16& x : landmarks) x = bf16(normal(rng));
    }
  }

  int64_t width() const { return landmark_width(p.index, p.head_dim); }

  // Landmarks repeat: many ties.
  void repeat(int64_t period) {
    const int64_t w = width(), capacity = p.landmark_head_stride / w;
    for (int64_t j = 0; j < p.n_kv_heads; ++j) {
      for (int64_t c = period; c < capacity; ++c) {
        const int64_t to = j * p.landmark_head_stride + c * w, from = to - period * w;
        if (!codes.empty()) {
          std::copy(codes.begin() + from, codes.begin() + from + w, codes.begin() + to);
          scales[j * capacity + c] = scales[j * capacity + c - period];
        } else {
          std::copy(landmarks.begin() + from, landmarks.begin() + from + w, landmarks.begin() + to);
        }
      }
    }
  }
  void exclude(std::mt19937_64& rng, int one_in) {
    p.excluded_stride = (p.end_chunk + 63) / 64;
    excluded.assign(p.n_kv_heads * p.excluded_stride, 0);
    for (int64_t i = 0; i < static_cast<int64_t>(excluded.size()) * 64; ++i) {
      if (rng() % one_in == 0) excluded[i / 64] |= uint64_t{1} << (i % 64);
    }
  }
  // Some of the blocks, also of those before first_chunk and behind first_loose_chunk. In scope
  // kLayer every KV head has the same.
  void add_blocks(std::mt19937_64& rng, int32_t chunks, int64_t first_loose, int one_in) {
    p.block_chunks = chunks;
    p.first_loose_chunk = first_loose;
    p.block_stride = p.end_chunk / chunks + 2;
    blocks.assign(p.n_kv_heads * p.block_stride, -7);
    block_counts.assign(p.n_kv_heads, 0);
    for (int64_t j = 0; j < p.n_kv_heads; ++j) {
      if (j > 0 && p.scope == SelectScope::kLayer) {
        std::copy(blocks.begin(), blocks.begin() + p.block_stride,
                  blocks.begin() + j * p.block_stride);
        block_counts[j] = block_counts[0];
        continue;
      }
      for (int32_t b = 0; b < p.block_stride - 1; ++b) {
        if (rng() % one_in == 0) blocks[j * p.block_stride + block_counts[j]++] = b;
      }
    }
  }
  // Of spans of so many chunks of 2 tokens.
  void view(std::mt19937_64& rng, int32_t n_views, int64_t span_chunks) {
    std::normal_distribution<float> normal;
    p.chunk_tokens = 2;
    p.views = {.span_tokens = 2 * span_chunks, .n = n_views, .stride = static_cast<int64_t>(q.size())};
    while (std::ssize(q) < n_views * p.views.stride) q.push_back(bf16(2 * normal(rng)));
  }
  void cap_misses(std::mt19937_64& rng, int64_t most, int resident_one_in) {
    p.max_misses = most;
    p.chunk_capacity = p.end_chunk;
    slots.assign(p.n_kv_heads * p.chunk_capacity, -1);
    for (int64_t i = 0; i < static_cast<int64_t>(slots.size()); ++i) {
      if (rng() % resident_one_in == 0) slots[i] = static_cast<int32_t>(rng() % 1000);
    }
    if (p.scope != SelectScope::kLayer) return;
    for (int64_t i = p.chunk_capacity; i < static_cast<int64_t>(slots.size()); ++i) {
      slots[i] = slots[i - p.chunk_capacity];
    }
  }

  void run(Queue& queue) {
    place();
    cpu::select_chunks(queue, p);
  }
  // Points at what it owns; results are not there yet.
  void place() {
    p.q = q.data();
    p.landmarks = landmarks.empty() ? nullptr : landmarks.data();
    p.codes = codes.empty() ? nullptr : codes.data();
    p.scales = scales.empty() ? nullptr : scales.data();
    p.excluded = excluded.empty() ? nullptr : excluded.data();
    p.blocks = blocks.empty() ? nullptr : blocks.data();
    p.block_counts = block_counts.data();
    p.slot_of_chunk = slots.data();
    ids.assign(p.n_kv_heads * p.k, -7);
    counts.assign(p.n_kv_heads, -7);
    dropped.assign(p.n_kv_heads * p.k, -7);
    dropped_counts.assign(p.n_kv_heads, -7);
    workspace.assign(select_workspace_floats(p.n_heads, p.n_kv_heads, p.end_chunk - p.first_chunk),
                     kNan);
    p.ids = ids.data();
    p.counts = counts.data();
    p.dropped_ids = dropped.data();
    p.dropped_counts = dropped_counts.data();
    p.workspace = workspace.data();
  }

  std::vector<int32_t> chosen(int64_t j) const {
    return {ids.begin() + j * p.k, ids.begin() + j * p.k + counts[j]};
  }
  std::vector<int32_t> left_out(int64_t j) const {
    return {dropped.begin() + j * p.k, dropped.begin() + j * p.k + dropped_counts[j]};
  }

  // Against fp64; in scope kLayer all KV heads have the same.
  std::string check() const {
    for (int64_t j = 0; j < p.n_kv_heads; ++j) {
      if (j > 0 && p.scope == SelectScope::kLayer) {
        if (chosen(j) != chosen(0)) return "lists of a layer differ";
        if (p.max_misses >= 0 && left_out(j) != left_out(0)) return "dropped lists differ";
        continue;
      }
      const std::string wrong = test::wrong_refined(p, j);
      if (!wrong.empty()) return wrong + ", list " + std::to_string(j);
    }
    return "";
  }

  // Of chunks with the same landmark the lower ones are chosen first. With capped misses that holds
  // for what is chosen or dropped, and chosen misses are below dropped ones.
  std::string check_ties(int64_t period) const {
    for (int64_t j = 0; j < p.n_kv_heads; ++j) {
      std::vector<int> state(p.end_chunk, 0);
      for (const int32_t id : chosen(j)) state[id] = 1;
      if (p.max_misses >= 0) {
        for (const int32_t id : left_out(j)) state[id] = 2;
      }
      std::map<int64_t, int> last;  // of a class: 0 once a candidate was not chosen
      std::map<int64_t, bool> dropped_one;
      for (int64_t c = p.first_chunk; c < p.end_chunk; ++c) {
        if (!test::competes(p, p.scope == SelectScope::kLayer ? 0 : j, c)) continue;
        const int64_t of = c % period;
        if (state[c] != 0 && last.count(of) != 0) return "a higher chunk of equal ones";
        if (state[c] == 0) last[of] = 0;
        if (state[c] == 2) dropped_one[of] = true;
        if (state[c] == 1 && dropped_one[of] && slots[j * p.chunk_capacity + c] < 0) {
          return "kept a miss above an equal one that was dropped";
        }
      }
    }
    return "";
  }
};

class SelectRefinementsTest : public testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  std::mt19937_64 rng_{test::seed()};

  int64_t up_to(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }
  bool one_in(int n) { return rng_() % static_cast<uint64_t>(n) == 0; }

  // Any combination that the contract allows.
  Case random_case() {
    constexpr int32_t kWidths[] = {16, 18, 34, 64, 80, 96, 128, 250, 256};
    constexpr int32_t kGroups[] = {1, 2, 3, 4, 5, 7, 8, 9};
    const int64_t first = up_to(90), n = 1 + up_to(one_in(4) ? 40 : 700);
    Case c(rng_, static_cast<int32_t>(1 + up_to(3)), kGroups[up_to(8)], kWidths[up_to(9)],
           one_in(2) ? IndexKind::kMinMax : IndexKind::kMean, one_in(2), first, n,
           1 + up_to(one_in(2) ? n + 20 : 60));
    c.p.scope = one_in(2) ? SelectScope::kLayer : SelectScope::kKvHead;
    c.p.group = static_cast<GroupScore>(up_to(3));
    if (c.p.scope == SelectScope::kKvHead && one_in(3)) c.exclude(rng_, 5);
    if (one_in(2)) {
      const int64_t first_loose = first + up_to(n + 30) - 15;
      c.add_blocks(rng_, static_cast<int32_t>(1 + up_to(40)), std::max<int64_t>(first_loose, 0),
                   one_in(2) ? 2 : 4);
    } else if (one_in(2)) {
      c.view(rng_, static_cast<int32_t>(1 + up_to(12)), 8 * (1 + up_to(20)));
    }
    if (c.p.group != GroupScore::kMax && one_in(2)) {
      c.p.top_p = static_cast<float>(1 + up_to(20)) / 20;
    }
    if (one_in(2)) c.cap_misses(rng_, up_to(12), 2 + static_cast<int>(up_to(3)));
    return c;
  }
  static std::string name(const Case& c) {
    const SelectParams& p = c.p;
    testing::Message m;
    m << "d " << p.head_dim << " heads " << p.n_heads << "/" << p.n_kv_heads << " index "
      << static_cast<int>(p.index) << " int8 " << !c.codes.empty() << " chunks " << p.first_chunk
      << ".." << p.end_chunk << " k " << p.k << " group " << static_cast<int>(p.group) << " scope "
      << static_cast<int>(p.scope) << " excluded " << !c.excluded.empty() << " blocks of "
      << p.block_chunks << " loose " << p.first_loose_chunk << " views " << p.views.n << " top_p " << p.top_p << " misses "
      << p.max_misses;
    return m.GetString();
  }
};

TEST_P(SelectRefinementsTest, AnyCombinationMatchesOracle) {
  for (int i = 0; i < 120; ++i) {
    Case c = random_case();
    c.run(queue_);
    ASSERT_EQ(c.check(), "") << i << ": " << name(c);
  }
}

// Behind a shared prefix: landmarks are read once for all, and no sequence gets another list for it.
TEST_P(SelectRefinementsTest, SeveralAtOnceAreThoseOneByOne) {
  constexpr int32_t kYes = 1;
  std::normal_distribution<float> normal;
  for (int i = 0; i < (test::kSanitized ? 11 : 40); ++i) {
    const Case base = i % 10 == 0 ? Case(rng_, 2, 3, 64, IndexKind::kMean, one_in(2), 5, 20000, 150)
                                  : random_case();
    std::vector<Case> cases(static_cast<size_t>(2 + up_to(10)), base);
    std::vector<SelectParams> all;
    for (Case& c : cases) {
      for (bf16& x : c.q) x = bf16(2 * normal(rng_));
      if (c.p.scope == SelectScope::kKvHead && one_in(4)) c.exclude(rng_, 3);
      c.place();
      if (one_in(9)) c.p.keep = &kYes;
      if (one_in(4)) c.p.scale *= 1.3f;
      if (!one_in(9)) {  // else it has landmarks of its own
        c.p.landmarks = cases[0].p.landmarks;
        c.p.codes = cases[0].p.codes;
        c.p.scales = cases[0].p.scales;
      }
      all.push_back(c.p);
    }
    cpu::select_chunks(queue_, all);
    for (size_t at = 0; at < cases.size(); ++at) {
      Case& c = cases[at];
      const Case together = c;
      c.run(queue_);
      ASSERT_EQ(together.ids, c.ids) << i << ", " << at << ": " << name(base);
      // Lists could hide a bit that differs; scores of a head that nothing was added to cannot.
      if (c.p.keep == nullptr && c.p.group == GroupScore::kMax && c.p.scope == SelectScope::kKvHead) {
        const size_t last = static_cast<size_t>(c.p.n_heads - 1) * (c.p.end_chunk - c.p.first_chunk + 64);
        const size_t n = static_cast<size_t>(c.p.end_chunk - c.p.first_chunk);
        ASSERT_EQ(std::memcmp(&together.workspace[last], &c.workspace[last], n * sizeof(float)), 0)
            << i << ", " << at << ": " << name(base);
      }
      ASSERT_EQ(together.counts, c.counts) << i << ", " << at << ": " << name(base);
      ASSERT_EQ(together.dropped, c.dropped) << i << ", " << at << ": " << name(base);
      ASSERT_EQ(together.dropped_counts, c.dropped_counts) << i << ", " << at << ": " << name(base);
    }
  }
}

TEST_P(SelectRefinementsTest, TiesGoToTheLowerChunk) {
  for (int i = 0; i < 80; ++i) {
    Case c = random_case();
    c.p.views = {};  // equal landmarks have equal scores
    const int64_t period = 1 + up_to(7);
    c.repeat(period);
    c.run(queue_);
    ASSERT_EQ(c.check(), "") << i << ": " << name(c);
    ASSERT_EQ(c.check_ties(period), "") << i << ": " << name(c);
  }
}

// Several ranges, columns that bound the k-th score, and k beyond them.
TEST_P(SelectRefinementsTest, ManyChunks) {
  for (const bool int8 : {false, true}) {
    for (const SelectScope scope : {SelectScope::kKvHead, SelectScope::kLayer}) {
      for (const GroupScore group : {GroupScore::kMax, GroupScore::kSum}) {
        for (const int64_t k : {int64_t{150}, int64_t{2500}}) {
          for (const bool two_levels : {false, true}) {
            Case c(rng_, 2, 2, 16, IndexKind::kMean, int8, 5, 40000, k);
            c.p.scope = scope;
            c.p.group = group;
            if (two_levels) c.add_blocks(rng_, 48, 39000, 2);
            if (group == GroupScore::kSum) c.p.top_p = 0.3f;
            c.cap_misses(rng_, 60, 2);
            c.run(queue_);
            ASSERT_EQ(c.check(), "") << name(c);
          }
        }
      }
    }
  }
}

TEST_P(SelectRefinementsTest, BitsDoNotDependOnThreads) {
  for (const SelectScope scope : {SelectScope::kKvHead, SelectScope::kLayer}) {
    for (const bool int8 : {false, true}) {
      Case c(rng_, 3, 2, 32, IndexKind::kMinMax, int8, 7, 36000, 300);
      c.p.scope = scope;
      c.p.group = GroupScore::kSum;
      c.p.top_p = 0.2f;
      c.add_blocks(rng_, 32, 33000, 2);
      c.cap_misses(rng_, 20, 2);
      c.run(queue_);
      const auto ids = c.ids, counts = c.counts, dropped = c.dropped;
      const auto dropped_counts = c.dropped_counts;
      for (const int threads : {1, 2, 3, 5}) {
        Queue queue({.n_threads = threads, .isa = GetParam()});
        c.run(queue);
        EXPECT_EQ(c.ids, ids);
        EXPECT_EQ(c.counts, counts);
        EXPECT_EQ(c.dropped, dropped);
        EXPECT_EQ(c.dropped_counts, dropped_counts);
      }
    }
  }
}

// Every block chosen, or none and everything loose, is no selection of blocks at all.
TEST_P(SelectRefinementsTest, EveryBlockIsNoBlocks) {
  for (const int64_t first_loose : {int64_t{0}, int64_t{13}, int64_t{1000}, int64_t{5000}}) {
    Case c(rng_, 2, 4, 64, IndexKind::kMean, false, 13, 2000, 100);
    c.run(queue_);
    const auto ids = c.ids;
    c.add_blocks(rng_, 20, first_loose, 1);
    if (first_loose <= 13) c.block_counts.assign(2, 0);
    c.run(queue_);
    EXPECT_EQ(c.ids, ids) << first_loose;
  }
}

TEST_P(SelectRefinementsTest, NothingCompetes) {
  for (const GroupScore group : {GroupScore::kMax, GroupScore::kSum}) {
    Case none(rng_, 2, 2, 64, IndexKind::kMean, true, 30, 500, 10);
    none.p.group = group;
    none.add_blocks(rng_, 16, 530, 1);
    none.block_counts.assign(2, 0);
    none.cap_misses(rng_, 3, 2);
    none.run(queue_);
    EXPECT_EQ(none.counts, std::vector<int32_t>({0, 0}));
    EXPECT_EQ(none.dropped_counts, std::vector<int32_t>({0, 0}));
  }
  Case empty(rng_, 2, 2, 64, IndexKind::kMean, false, 30, 0, 10);
  empty.cap_misses(rng_, 0, 2);
  empty.run(queue_);
  EXPECT_EQ(empty.counts, std::vector<int32_t>({0, 0}));
  EXPECT_EQ(empty.dropped_counts, std::vector<int32_t>({0, 0}));
}

TEST_P(SelectRefinementsTest, KeepLeavesEverything) {
  Case c(rng_, 2, 2, 64, IndexKind::kMean, false, 0, 300, 10);
  c.cap_misses(rng_, 3, 2);
  int32_t keep = 1;
  c.p.keep = &keep;
  c.run(queue_);
  EXPECT_EQ(c.ids, std::vector<int32_t>(20, -7));
  EXPECT_EQ(c.counts, std::vector<int32_t>(2, -7));
  EXPECT_EQ(c.dropped, std::vector<int32_t>(20, -7));
  EXPECT_EQ(c.dropped_counts, std::vector<int32_t>(2, -7));
  keep = 0;
  c.run(queue_);
  EXPECT_EQ(c.check(), "");
}

TEST_P(SelectRefinementsTest, NoMissesAllowed) {
  Case c(rng_, 2, 2, 64, IndexKind::kMean, false, 0, 300, 40);
  c.cap_misses(rng_, 0, 2);
  c.run(queue_);
  EXPECT_EQ(c.check(), "");
  EXPECT_GT(c.counts[0], 0);
  EXPECT_EQ(c.counts[0] + c.dropped_counts[0], 40);
}

// NaN scores lose against everything, but still fill up a list that nothing else fills.
TEST_P(SelectRefinementsTest, NanScoresComeLast) {
  for (const IndexKind index : {IndexKind::kMean, IndexKind::kMinMax}) {
    for (const bool int8 : {false, true}) {
      for (const int32_t group : {1, 3}) {
        Case c(rng_, 1, group, 64, index, int8, 0, 300, 201);
        for (int64_t chunk = 0; chunk < 300; chunk += 3) {
          if (int8) {
            c.scales[chunk] = kNan;
          } else {
            c.landmarks[chunk * c.width() + c.width() - 3] = bf16(kNan);
          }
        }
        c.run(queue_);
        ASSERT_EQ(c.counts[0], 201);
        ASSERT_EQ(c.ids[0], 0);
        for (int32_t i = 1; i < 201; ++i) ASSERT_EQ(c.ids[i], (i - 1) / 2 * 3 + 1 + (i - 1) % 2);
      }
    }
  }
}

// A query that is not finite scores NaN everywhere: the lowest chunks are taken, the other KV head
// is not touched.
TEST_P(SelectRefinementsTest, QueriesThatAreNotFinite) {
  for (const float bad : {kNan, std::numeric_limits<float>::infinity()}) {
    Case c(rng_, 2, 1, 64, IndexKind::kMean, true, 0, 300, 10);
    c.q[5] = bf16(bad);
    c.run(queue_);
    for (int32_t i = 0; i < 10; ++i) ASSERT_EQ(c.ids[i], i);
    ASSERT_EQ(test::wrong_refined(c.p, 1), "");
    Case zero(rng_, 1, 2, 64, IndexKind::kMinMax, true, 4, 300, 10);
    std::fill(zero.q.begin(), zero.q.end(), bf16(0.0f));
    zero.run(queue_);
    for (int32_t i = 0; i < 10; ++i) ASSERT_EQ(zero.ids[i], 4 + i);
  }
}

// The whole range of bf16 in queries and scales: nothing overflows into a wrong order.
TEST_P(SelectRefinementsTest, LargeAndSmallQueriesOfInt8) {
  for (const float size : {0x1p-120f, 0x1p-60f, 0x1p60f}) {
    Case c(rng_, 1, 1, 64, IndexKind::kMean, true, 0, 400, 30);
    for (bf16& x : c.q) x = bf16(static_cast<float>(x) * size);
    for (float& x : c.scales) x /= size;
    c.run(queue_);
    ASSERT_EQ(c.check(), "") << size;
  }
}

// select_and_map maps what was selected, also where the selection was kept.
TEST_P(SelectRefinementsTest, SelectAndMap) {
  Case c(rng_, 2, 2, 64, IndexKind::kMean, false, 0, 300, 10);
  c.cap_misses(rng_, 4, 1000);
  c.run(queue_);
  std::vector<int32_t> slot_of_chunk(2 * 300, -1), chunk_of_slot(2 * 16, -1), order(2 * 16);
  for (int32_t i = 0; i < 32; ++i) order[i] = i % 16;
  std::vector<int32_t> hit_slots(20), hits(2), miss_chunks(20), miss_slots(20), misses(2),
      scratch(32);
  MapSlotsParams m;
  m.state = {slot_of_chunk.data(), chunk_of_slot.data(), order.data(), 300, 16};
  m.n_kv_heads = 2;
  m.ids = c.p.ids;
  m.counts = c.p.counts;
  m.stride = 10;
  m.hit_slots = hit_slots.data();
  m.hit_counts = hits.data();
  m.miss_chunks = miss_chunks.data();
  m.miss_slots = miss_slots.data();
  m.miss_counts = misses.data();
  m.scratch = scratch.data();
  c.p.slot_of_chunk = slot_of_chunk.data();
  c.p.chunk_capacity = 300;
  int32_t keep = 0;
  c.p.keep = &keep;
  for (const int32_t kept : {0, 1, 0}) {
    keep = kept;
    cpu::select_and_map(queue_, c.p, m);
    for (int32_t j = 0; j < 2; ++j) {
      EXPECT_LE(misses[j], kept == 1 ? 0 : 4);
      EXPECT_EQ(hits[j] + misses[j], c.counts[j]);
    }
  }
  EXPECT_EQ(hits[0], 4) << "the misses of the first step, and none of the second's";
}

// Integer sums are exact at every level, up to the last bit of int32; nothing behind a row is read.
TEST_P(SelectRefinementsTest, CodeScoresAreExact) {
  const cpu::SelectKernel& kernel = cpu::select_kernel(GetParam());
  const size_t page = 4096, n_bytes = 64 * 512;
  char* map = static_cast<char*>(
      mmap(nullptr, n_bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_EQ(mprotect(map + n_bytes, page, PROT_NONE), 0);
  for (int i = 0; i < 200; ++i) {
    const int32_t width = static_cast<int32_t>(i == 0 ? 512 : 2 * (1 + up_to(256)));
    const int32_t n_rows = static_cast<int32_t>(1 + up_to(64));
    constexpr int32_t kHeads[] = {1, 2, 4, 8, 16, 12};
    const int32_t n_heads = kHeads[up_to(6)];
    int8_t* codes = reinterpret_cast<int8_t*>(map + n_bytes) - n_rows * width;
    const int64_t bytes = (width + 15) / 16 * 32;
    std::vector<int16_t> q(n_heads * width);
    std::vector<char> packed(n_heads * bytes, 0);
    std::vector<int32_t> excess(n_heads);
    std::vector<int64_t> offsets(128);
    std::vector<float> factors(n_heads), scores(n_heads * 64, kNan);
    for (int32_t c = 0; c < n_rows * width; ++c) {
      codes[c] = static_cast<int8_t>(i == 0 ? -128 : up_to(256) - 128);
    }
    for (int32_t h = 0; h < n_heads; ++h) {
      factors[h] = static_cast<float>(h + 1) * 0.37f;
      for (int32_t c = 0; c < width; ++c) {
        q[h * width + c] = static_cast<int16_t>(
            i == 0 ? cpu::kMaxCode : up_to(2 * cpu::kMaxCode + 1) - cpu::kMaxCode);
      }
      excess[h] = cpu::pack_code_query(kernel, &q[h * width], width, &packed[h * bytes]);
    }
    for (int32_t r = 0; r < 128; ++r) offsets[r] = std::min(r, n_rows - 1) * int64_t{width};
    kernel.score_codes({codes, offsets.data(), n_rows, 64, width, n_heads, packed.data(), bytes,
                        excess.data(), factors.data(), scores.data(), 64});
    for (int32_t h = 0; h < n_heads; ++h) {
      for (int32_t r = 0; r < n_rows; ++r) {
        int64_t sum = 0;
        for (int32_t c = 0; c < width; ++c) {
          sum += int64_t{codes[r * width + c]} * q[h * width + c];
        }
        ASSERT_EQ(scores[h * 64 + r], static_cast<float>(sum) * factors[h])
            << "width " << width << " head " << h << " row " << r;
      }
    }
  }
  munmap(map, n_bytes + page);
}

INSTANTIATE_TEST_SUITE_P(EveryLevel, SelectRefinementsTest, testing::ValuesIn(test::selection_isas()),
                         [](const auto& info) { return std::string(cpu::name_of(info.param)); });

}  // namespace
}  // namespace tiercel
