// Selection against fp64: one body for every backend, whose ops are `select` and `select_prefill`
// below.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/oracle/random_rows.h"
#include "tests/oracle/selection.h"
#include "tests/seed.h"

namespace tiercel::test {

struct SelectShape {
  int32_t n_kv_heads, group, d;
  int64_t first, end, k;
};

// Rows for Memory<T>, a vector that the backend reads and writes.
template <template <typename> typename Memory>
struct RandomRows {
  std::mt19937_64 rng{seed()};

  int64_t up_to(int64_t n) { return static_cast<int64_t>(rng() % static_cast<uint64_t>(n)); }
  Memory<bf16> normal(int64_t n, float spread = 1.0f) {
    return random_rows<Memory>(rng, n, spread);
  }
  // Small integers: every product and sum is exact in fp32, and there are many ties.
  Memory<bf16> integer(int64_t n, int64_t most) {
    Memory<bf16> rows(static_cast<size_t>(n));
    for (bf16& x : rows) x = bf16(static_cast<float>(up_to(2 * most + 1) - most));
    return rows;
  }
  // The same integer query for all heads of a group.
  Memory<bf16> shared_queries(int32_t n_kv_heads, int32_t group, int32_t d) {
    const Memory<bf16> q = integer(int64_t{n_kv_heads} * d, 2);
    Memory<bf16> all;
    for (int32_t h = 0; h < n_kv_heads * group; ++h) {
      all.insert(all.end(), q.begin() + h / group * d, q.begin() + (h / group + 1) * d);
    }
    return all;
  }
};

// A selection, its memory and what it must be.
template <template <typename> typename Memory>
struct Selection {
  static constexpr int kSpare = 16;  // behind the workspace
  Memory<bf16> q, landmarks;
  Memory<uint64_t> excluded;
  Memory<int32_t> ids, counts;
  Memory<float> workspace;
  SelectParams p;

  Selection(const SelectShape& s, Memory<bf16> queries, Memory<bf16> rows)
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
    workspace.resize(select_workspace_floats(p.n_heads, s.n_kv_heads, s.end - s.first) + kSpare);
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
  Ranked ranked(int32_t j) const {
    const int32_t group = p.n_heads / p.n_kv_heads;
    return rank_chunks(p.q + j * group * p.head_dim, group,
                       p.landmarks + j * p.landmark_head_stride, p.head_dim, p.scale, p.first_chunk,
                       p.end_chunk, excluded.empty() ? nullptr : &excluded[j * p.excluded_stride],
                       p.group == GroupScore::kMean, p.views, p.chunk_tokens);
  }
  // Random queries for every view, of spans of so many chunks of 8 tokens.
  void view(RandomRows<Memory>& rows, int32_t n_views, int64_t span_chunks) {
    p.chunk_tokens = 8;
    p.views = {.span_tokens = 8 * span_chunks,
               .n = n_views,
               .stride = int64_t{p.n_heads} * p.head_dim + 8};
    q = rows.normal(n_views * p.views.stride, 2.0f);
    p.q = q.data();
  }
  std::vector<int32_t> chosen(int32_t j) const {
    return {ids.begin() + j * p.k, ids.begin() + j * p.k + counts[j]};
  }
  bool wrote_behind_workspace() const {
    return !std::all_of(workspace.end() - kSpare, workspace.end(),
                        [](float x) { return std::isnan(x); });
  }
};

// The same of a prompt's blocks.
template <template <typename> typename Memory>
struct PrefillSelection {
  Memory<bf16> q, landmarks;
  Memory<int32_t> ids, counts;
  Memory<int64_t> local_begin;
  Memory<bf16> view_means;
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
  // Random means for every view instead of queries.
  void view(RandomRows<Memory>& rows, int32_t n_views, int64_t span_chunks) {
    const int64_t width = n_blocks() * p.n_heads * p.head_dim;
    p.views = {.span_tokens = p.chunk_tokens * span_chunks, .n = n_views, .stride = width + 8};
    view_means = rows.normal(n_views * p.views.stride, 2.0f);
    p.means = view_means.data();
    p.q = nullptr;
  }
  // Of heads of a block, one after the other; with views as they are apart in PrefillSelectParams.
  std::vector<bf16> means(int64_t b, int32_t j) const {
    if (!view_means.empty()) {
      const int64_t at = (b * p.n_heads + j * (p.n_heads / p.n_kv_heads)) * p.head_dim;
      return {view_means.begin() + at, view_means.end()};
    }
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
      const int64_t n = p.end_chunk >= 0 ? p.end_chunk : std::max<int64_t>(position, 0) / p.chunk_tokens;
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
        const auto r = rank_chunks(means(b, j).data(), static_cast<int32_t>(group),
                                   p.landmarks + j * p.landmark_head_stride, p.head_dim, p.scale,
                                   sinks, n, nullptr, false, p.views, p.chunk_tokens);
        const auto wrong = wrong_choice(r, sinks, p.k, list + sinks, count - sinks);
        if (!wrong.empty()) return wrong + " in block " + std::to_string(b);
      }
    }
    return "";
  }
};

template <template <typename> typename Memory>
struct SelectUnderTest {
  using One = Selection<Memory>;
  using Prompt = PrefillSelection<Memory>;
  using Rows = RandomRows<Memory>;

  // Both wait.
  std::function<void(const SelectParams&)> select;
  std::function<void(const PrefillSelectParams&)> select_prefill;

  void run(One& c) const {
    c.poison();
    select(c.p);
    EXPECT_FALSE(c.wrote_behind_workspace());
  }
  void run(Prompt& c) const {
    c.poison();
    select_prefill(c.p);
  }

  void expect_oracle(int32_t d, int32_t group, int64_t most, Rows& rows) const {
    for (const GroupScore score : {GroupScore::kMax, GroupScore::kMean}) {
      const int64_t first = rows.up_to(70), n = 1 + rows.up_to(most);
      const SelectShape s{2, group, d, first, first + n, 1 + rows.up_to(n + 20)};
      SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " first " << first
                                      << " n " << n << " k " << s.k);
      One c(s, rows.normal(2 * group * d, 2.0f), rows.normal(2 * (s.end + 3) * d));
      c.p.group = score;
      if (rows.up_to(2) == 0) c.exclude(rows.rng, 5);
      run(c);
      for (int32_t j = 0; j < 2; ++j) {
        ASSERT_EQ(wrong_choice(c.ranked(j), first, s.k, c.ids.data() + j * s.k,
                               c.counts[static_cast<size_t>(j)]),
                  "");
      }
    }
  }

  // Each chunk is scored by the view of its span; spans begin anywhere among the candidates.
  void expect_views(int32_t d, int32_t group) const {
    Rows rows;
    for (const GroupScore score : {GroupScore::kMax, GroupScore::kMean}) {
      for (const int64_t span : {8, 72, 560}) {
        const int64_t first = rows.up_to(30), n = 1000 + rows.up_to(500);
        One c({2, group, d, first, first + n, 40}, {}, rows.normal(2 * (first + n) * d));
        c.p.group = score;
        c.view(rows, span == 8 ? 50 : 1 + rows.up_to(1 + n / span), span);
        if (rows.up_to(2) == 0) c.exclude(rows.rng, 5);
        SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " span " << span
                                        << " views " << c.p.views.n);
        run(c);
        for (int32_t j = 0; j < 2; ++j) {
          ASSERT_EQ(wrong_choice(c.ranked(j), first, 40, c.ids.data() + j * 40,
                                 c.counts[static_cast<size_t>(j)]),
                    "");
        }
      }
    }
  }
  void expect_prompt_views(int32_t d, int32_t group) const {
    Rows rows;
    for (const int64_t span : {8, 72, 200}) {
      Prompt c(2, group, d, 300, 64, 20, {}, rows.normal(2 * 500 * d));
      c.p.first_position = 8 * (300 + rows.up_to(100));
      c.p.chunk_tokens = 8;
      c.p.local_tokens = 100;
      c.p.sink_chunks = rows.up_to(12);
      c.view(rows, span == 8 ? 40 : 1 + rows.up_to(6), span);
      SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " span " << span
                                      << " views " << c.p.views.n);
      run(c);
      ASSERT_EQ(c.check(), "");
    }
  }

  // Whole numbers: equality is exact and ties are everywhere. Heads of a group share their query.
  void expect_ties_to_the_lower(One& c) const {
    run(c);
    const int64_t heads = c.p.n_heads / c.p.n_kv_heads;
    for (int32_t j = 0; j < c.p.n_kv_heads; ++j) {
      // One head of the group gives the same order without softmax's rounding.
      const Ranked exact = rank_chunks(c.p.q + j * heads * c.p.head_dim, 1,
                                       c.p.landmarks + j * c.p.landmark_head_stride, c.p.head_dim,
                                       1.0f, c.p.first_chunk, c.p.end_chunk,
                                       c.excluded.data() + j * c.p.excluded_stride, false);
      ASSERT_EQ(c.chosen(j), best_chunks(exact, c.p.first_chunk, c.p.k));
    }
  }

  void expect_nothing_to_choose_from() const {
    Rows rows;
    for (const int64_t k : {0, 5}) {
      One none({2, 2, 64, 9, 9, k}, rows.normal(4 * 64), rows.normal(2 * 9 * 64));
      run(none);
      EXPECT_EQ(none.counts, Memory<int32_t>({0, 0}));
      One all({2, 2, 64, 0, 100, k}, rows.normal(4 * 64), rows.normal(2 * 100 * 64));
      all.exclude(rows.rng, 1);
      run(all);
      EXPECT_EQ(all.counts, Memory<int32_t>({0, 0}));
    }
  }

  // NaN scores lose against everything, but still fill up a list that nothing else fills.
  void expect_nan_scores_last() const {
    Rows random;
    for (const int32_t group : {1, 2}) {
      auto rows = random.normal(300 * 64);
      for (size_t c = 0; c < 300; c += 3) {
        rows[c * 64 + 7] = bf16(std::numeric_limits<float>::quiet_NaN());
      }
      rows[100 * 64] = bf16(std::numeric_limits<float>::infinity());
      auto q = random.normal(group * 64);
      for (bf16& x : q) x = bf16(std::abs(static_cast<float>(x)));
      One c({1, group, 64, 0, 300, 200}, q, rows);
      run(c);
      ASSERT_EQ(c.counts[0], 200);
      for (int32_t i = 0; i < 200; ++i) {
        ASSERT_EQ(c.ids[static_cast<size_t>(i)], i / 2 * 3 + 1 + i % 2);
      }
      One more({1, group, 64, 0, 300, 201}, q, rows);
      run(more);
      ASSERT_EQ(more.counts[0], 201);
      ASSERT_EQ(more.ids[0], 0);
      One one({1, group, 64, 0, 300, 1}, q, rows);
      run(one);
      ASSERT_EQ(one.ids[0], 100) << "the infinite score";
    }
  }

  // Landmarks beyond 2^31 elements, in address space without memory.
  void expect_offsets_beyond_two_to_the_31() const {
    Rows random;
    const int32_t d = 128;
    const int64_t first = 20'000'000, n = 500, head_stride = (first + n) * d;
    const size_t bytes = static_cast<size_t>(2 * head_stride) * sizeof(bf16);
    void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_NE(map, MAP_FAILED);
    bf16* base = static_cast<bf16*>(map);
    const auto rows = random.normal(n * d);
    std::copy(rows.begin(), rows.end(), base + head_stride + first * d);
    One c({2, 1, d, first, first + n, 20}, random.normal(2 * d), {});
    c.p.landmarks = base;
    c.p.landmark_head_stride = head_stride;
    run(c);
    ASSERT_EQ(wrong_choice(c.ranked(1), first, 20, c.ids.data() + 20, c.counts[1]), "");
    munmap(map, bytes);
  }

  // Blocks of a prompt: most_first bounds its position in chunks, most_blocks its length.
  struct PromptShape {
    int32_t d, group;
    int64_t block, most_first, most_blocks, most_k, most_sinks;
  };
  void expect_prompt_oracle(const PromptShape& s, Rows& rows) const {
    const int64_t chunk = 8, first = chunk * rows.up_to(s.most_first),
                  n_tokens = s.block * (1 + rows.up_to(s.most_blocks)) - rows.up_to(s.block - 4);
    const int64_t n_chunks = (first + n_tokens) / chunk + 1;
    Prompt c(2, s.group, s.d, n_tokens, s.block, 1 + rows.up_to(s.most_k),
             rows.normal(n_tokens * 2 * s.group * s.d, 4.0f),
             rows.normal(2 * n_chunks * s.d, 3.0f));
    c.p.first_position = first;
    c.p.chunk_tokens = static_cast<int32_t>(chunk);
    c.p.local_tokens = rows.up_to(300);
    c.p.sink_chunks = rows.up_to(s.most_sinks);
    SCOPED_TRACE(testing::Message() << "d " << s.d << " group " << s.group << " first " << first
                                    << " tokens " << n_tokens << " k " << c.p.k);
    run(c);
    ASSERT_EQ(c.check(), "");
    // All blocks choose among the same chunks, wherever the first query is.
    c.p.end_chunk = rows.up_to(first / chunk + 1);
    c.p.first_position += rows.up_to(chunk);
    run(c);
    ASSERT_EQ(c.check(), "") << "before chunk " << c.p.end_chunk;
  }

  void expect_prompt_from_the_start_and_without_budget() const {
    Rows rows;
    for (const int64_t k : {0, 3, 1000}) {
      for (const int64_t first : {0, 2000}) {
        Prompt c(2, 2, 64, 400, 100, k, rows.normal(400 * 4 * 64), rows.normal(2 * 480 * 64));
        c.p.first_position = first;
        c.p.chunk_tokens = 5;
        c.p.local_tokens = 33;
        c.p.sink_chunks = 2;
        run(c);
        ASSERT_EQ(c.check(), "") << k << " " << first;
      }
    }
  }

  // Equal landmarks and landmarks in rising order (every one beats a threshold); NaN comes last.
  void expect_prompt_ties_and_nan(int64_t n, int64_t n_tokens) const {
    for (const int kind : {0, 1, 2}) {
      Memory<bf16> rows(static_cast<size_t>((n + 100) * 64)),
          q(static_cast<size_t>(n_tokens * 2 * 64), bf16(1.0f));
      for (int64_t c = 0; c < n; ++c) {
        bf16* row = rows.data() + c * 64;
        row[0] = bf16(kind == 1 ? static_cast<float>(c / 16) : 1.0f);
        if (kind == 2 && c >= 5) row[1] = bf16(std::numeric_limits<float>::quiet_NaN());
      }
      Prompt c(1, 2, 64, n_tokens, n_tokens, 40, q, rows);
      c.p.first_position = n * 8;
      c.p.chunk_tokens = 8;
      run(c);
      ASSERT_EQ(c.counts[0], 40);
      const int32_t begin = kind == 1 ? static_cast<int32_t>(n) - 48 : 0;
      for (int32_t i = 0; i < 40; ++i) {
        const int32_t expected = kind != 1 ? i : i < 8 ? begin + i : begin + 8 + i;
        ASSERT_EQ(c.ids[static_cast<size_t>(i)], expected) << kind << " " << i;
      }
    }
  }

  // The same chunks for a block that prefill and decode would choose from the same queries.
  void expect_prompt_agrees_with_decode(int64_t n) const {
    Rows random;
    const int64_t k = 100;
    const auto q = random.integer(2 * 64, 3), rows = random.integer(n * 64, 1);
    One decode({1, 2, 64, 2, n, k}, q, rows);
    run(decode);
    Prompt prefill(1, 2, 64, 1, 1, k, q, rows);
    prefill.p.first_position = n * 8;
    prefill.p.chunk_tokens = 8;
    prefill.p.sink_chunks = 2;
    run(prefill);
    const std::vector<int32_t> others(prefill.ids.begin() + 2, prefill.ids.end());
    EXPECT_EQ(wrong_choice(decode.ranked(0), 2, k, others.data(), k), "");
  }
};

// By the definition of the op, to the bit.
template <template <typename> typename Memory, typename Op>
void expect_mean_queries(Op op) {
  RandomRows<Memory> rows;
  for (const int32_t d : {16, 80, 128}) {
    const int64_t n_tokens = 70, block = 32, n_blocks = 3, width = 3 * d;
    const Memory<bf16> q = rows.normal(n_tokens * width);
    Memory<bf16> means(static_cast<size_t>(n_blocks * width), bf16(77.0f));
    op(MeanQueriesParams{.q = q.data(),
                         .n_tokens = n_tokens,
                         .block_tokens = block,
                         .n_heads = 3,
                         .head_dim = d,
                         .means = means.data()});
    for (int64_t b = 0; b < n_blocks; ++b) {
      const int64_t end = std::min(n_tokens, (b + 1) * block);
      for (int64_t i = 0; i < width; ++i) {
        float sum = 0;
        for (int64_t t = b * block; t < end; ++t) sum += static_cast<float>(q[t * width + i]);
        ASSERT_EQ(means[b * width + i], bf16(sum / static_cast<float>(end - b * block)));
      }
    }
  }
}

}  // namespace tiercel::test
