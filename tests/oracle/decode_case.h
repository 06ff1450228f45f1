// Decode attention and merging against fp64: one body for every backend, whose ops are `attend` and
// `merge` below.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <random>
#include <vector>

#include "engine/base/partial.h"
#include "tests/oracle/decode.h"
#include "tests/oracle/random_rows.h"
#include "tests/seed.h"

namespace tiercel::test {

// Memory<T>: a vector that the backend reads and writes.
template <template <typename> typename Memory>
struct DecodePartial {
  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  Memory<float> max, sum, out;

  DecodePartial(int64_t n_heads, int64_t d)
      : max(static_cast<size_t>(n_heads), kNan),
        sum(static_cast<size_t>(n_heads), kNan),
        out(static_cast<size_t>(n_heads * d), kNan) {}
  PartialView view() { return {max.data(), sum.data(), out.data()}; }
};

template <typename Rows>
KvSource plane(const Rows& keys, const Rows& values, int32_t n_kv_heads, int32_t d,
               int64_t n_tokens) {
  KvSource s;
  s.keys = keys.data();
  s.values = values.data();
  s.head_stride = static_cast<int64_t>(keys.size()) / n_kv_heads;
  s.chunk_stride = d;
  s.token_stride = d;
  s.n_tokens = n_tokens;
  return s;
}

// A shape, its queries and sources. The workspace is the op's.
template <template <typename> typename Memory>
struct DecodeCase {
  int32_t n_kv_heads, group, d;
  Memory<bf16> q;
  QueryViews views = {};
  std::vector<KvSource> sources;

  DecodeCase(std::mt19937_64& rng, int32_t kv_heads, int32_t g, int32_t head_dim,
             float spread = 1.0f)
      : n_kv_heads(kv_heads),
        group(g),
        d(head_dim),
        q(random_rows<Memory>(rng, int64_t{kv_heads} * g * head_dim, spread)) {}
  int32_t n_heads() const { return n_kv_heads * group; }
  DecodeAttendParams params(const PartialView& out) {
    DecodeAttendParams p;
    p.q = q.data();
    p.views = views;
    p.sources = sources.data();
    p.n_sources = static_cast<int32_t>(sources.size());
    p.n_heads = n_heads();
    p.n_kv_heads = n_kv_heads;
    p.head_dim = d;
    p.scale = 1.0f / std::sqrt(static_cast<float>(d));
    p.out = out;
    return p;
  }
};

// Planes of keys and values for some KV heads, and a list of chunks of them; of the second head
// none.
template <template <typename> typename Memory>
struct DecodePlanes {
  static constexpr int32_t kChunk = 8, kListed = 7;
  int32_t n_kv_heads, d;
  Memory<bf16> keys, values;
  Memory<int32_t> ids, counts;

  DecodePlanes(std::mt19937_64& rng, int32_t kv_heads, int32_t head_dim, int64_t n_tokens)
      : n_kv_heads(kv_heads),
        d(head_dim),
        keys(random_rows<Memory>(rng, kv_heads * n_tokens * d)),
        values(random_rows<Memory>(rng, kv_heads * n_tokens * d)) {
    for (int64_t i = 0; i < n_kv_heads * kListed; ++i) {
      ids.push_back(static_cast<int32_t>(rng() % static_cast<uint64_t>(n_tokens / kChunk)));
    }
    for (int32_t j = 0; j < n_kv_heads; ++j) counts.push_back(j == 1 ? 0 : kListed - j);
  }
  KvSource first(int64_t n, float bias) const {
    KvSource s = plane(keys, values, n_kv_heads, d, n);
    s.bias = bias;
    return s;
  }
  KvSource listed(float bias) const {
    KvSource s = first(0, bias);
    s.chunk_tokens = kChunk;
    s.chunk_stride = kChunk * d;
    s.ids = ids.data();
    s.counts = counts.data();
    s.ids_stride = kListed;
    return s;
  }
};

template <template <typename> typename Memory>
struct DecodeUnderTest {
  using Case = DecodeCase<Memory>;
  using Partial = DecodePartial<Memory>;
  using Planes = DecodePlanes<Memory>;

  // Both wait. attend brings its workspace.
  std::function<void(DecodeAttendParams)> attend;
  std::function<void(const MergeParams&)> merge;
  // Whether weights are rounded to bf16 (8 bits): each moves by at most 2^-8 of it (their sum is
  // taken before), and out by at most 2^-8 sum p |v| / sum p.
  std::function<bool(int32_t head_dim)> rounds_weights;

  Partial run(Case& c) const {
    Partial result(c.n_heads(), c.d);
    attend(c.params(result.view()));
    return result;
  }

  void expect_near_oracle(Case& c, Partial& result) const {
    const DecodeAttendParams p = c.params(result.view());
    const double weight = rounds_weights(c.d) ? 0x1p-8 : 0;
    for (int32_t h = 0; h < c.n_heads(); ++h) {
      const DecodeExpected e = expected_decode(p, h);
      const size_t head = static_cast<size_t>(h);
      const float* out = result.out.data() + int64_t{h} * c.d;
      if (std::isinf(e.log_sum)) {
        EXPECT_EQ(result.max[head], kEmptyMax);
        EXPECT_EQ(result.sum[head], 0.0f);
        for (int32_t i = 0; i < c.d; ++i) ASSERT_EQ(out[i], 0.0f);
        continue;
      }
      EXPECT_NEAR(result.max[head] + std::log2(double{result.sum[head]}), e.log_sum,
                  e.log_sum_tolerance);
      for (int32_t i = 0; i < c.d; ++i) {
        const auto element = static_cast<size_t>(i);
        ASSERT_NEAR(double{out[i]} / result.sum[head], e.out[element],
                    e.tolerance[element] * 1.01 + weight * e.size[element])
            << "head " << h << " element " << i;
      }
    }
  }

  // Sources with biases beside others without, empty ones among them.
  void expect_biases_of_sources(int32_t d, int32_t group) const {
    std::mt19937_64 rng(seed());
    const Planes planes(rng, 2, d, 400);
    Case c(rng, 2, group, d);
    c.sources = {planes.first(100, 0.0f), planes.listed(3.0f), planes.first(37, -2.5f),
                 planes.first(0, 9.0f), planes.first(300, 0.75f)};
    SCOPED_TRACE(testing::Message() << "d " << d << " group " << group);
    Partial result = run(c);
    expect_near_oracle(c, result);
  }

  // Every key has one of its own: of a plane, of chunks by ids, and of slots whose chunks another
  // list names.
  void expect_biases_of_keys(int32_t d) const {
    std::mt19937_64 rng(seed());
    const int32_t n_tokens = 400, n_chunks = n_tokens / Planes::kChunk;
    const Planes planes(rng, 2, d, n_tokens);
    Memory<float> bias(2 * n_tokens);
    for (float& x : bias) x = static_cast<float>(rng() % 8000) * 1e-3f - 2;
    Memory<int32_t> chunk_of_slot(2 * n_chunks);
    for (int32_t& id : chunk_of_slot) id = static_cast<int32_t>(rng() % n_chunks);
    const auto biased = [&](KvSource source, int64_t first) {
      source.key_bias = bias.data() + first;
      source.key_bias_head_stride = n_tokens;
      return source;
    };
    KvSource slots = biased(planes.listed(0.5f), 0);
    slots.bias_chunks = chunk_of_slot.data();
    slots.bias_chunks_stride = n_chunks;
    KvSource exact = slots;  // chunk after chunk
    exact.ids = exact.counts = nullptr;
    exact.n_tokens = 5 * Planes::kChunk;
    Case c(rng, 2, 3, d);
    c.sources = {biased(planes.first(300, 0.0f), 77), biased(planes.listed(0.0f), 0), slots, exact,
                 planes.first(37, -1.0f)};
    SCOPED_TRACE(testing::Message() << "d " << d);
    Partial result = run(c);
    expect_near_oracle(c, result);
  }

  // Each key meets the view of its span: rows of a plane, chunks by ids, slots whose chunks another list
  // names, and means of chunks; some of them with biases.
  void expect_views_of_queries(int32_t d) const {
    std::mt19937_64 rng(seed());
    const int32_t n_tokens = 400, n_chunks = n_tokens / Planes::kChunk, n_views = 5;
    const Planes planes(rng, 2, d, n_tokens);
    Case c(rng, 2, 3, d);
    c.views = {.span_tokens = 80, .n = n_views, .stride = int64_t{c.n_heads()} * d + 8};
    c.q = random_rows<Memory>(rng, n_views * c.views.stride);
    Memory<int32_t> chunk_of_slot(2 * n_chunks);
    for (int32_t& id : chunk_of_slot) id = static_cast<int32_t>(rng() % n_chunks);
    Memory<float> bias(2 * n_tokens);
    for (float& x : bias) x = static_cast<float>(rng() % 8000) * 1e-3f - 2;
    KvSource window = planes.first(300, 0.0f);
    window.first_position = 77;
    window.key_bias = bias.data();
    window.key_bias_head_stride = n_tokens;
    KvSource listed = planes.listed(0.0f);
    listed.position_step = Planes::kChunk;
    KvSource slots = listed;
    slots.position_chunks = chunk_of_slot.data();
    slots.position_chunks_stride = n_chunks;
    KvSource exact = slots;  // chunk after chunk
    exact.ids = exact.counts = nullptr;
    exact.n_tokens = 5 * Planes::kChunk;
    KvSource means = listed;
    means.chunk_tokens = 1;
    means.chunk_stride = d;
    c.sources = {window, listed, slots, exact, means, planes.first(0, 0.0f)};
    SCOPED_TRACE(testing::Message() << "d " << d);
    Partial result = run(c);
    expect_near_oracle(c, result);
  }

  // A bias of log2(n) makes a row stand for n: four times the weight of one row, as four sources.
  void expect_a_row_stands_for_four(int32_t d) const {
    std::mt19937_64 rng(seed());
    const Planes planes(rng, 1, d, 64);
    Case c(rng, 1, 2, d);
    c.sources = {planes.first(20, 2.0f)};
    const Partial once = run(c);
    c.sources.assign(4, planes.first(20, 0.0f));
    const Partial four = run(c);
    for (size_t h = 0; h < 2; ++h) {
      EXPECT_NEAR(once.max[h], four.max[h] + 2.0f, 4 * kUnit * (std::abs(once.max[h]) + 2));
      // Sums of 20 and of 80 terms, of scores that are rounded after the bias and before.
      EXPECT_NEAR(4 * once.sum[h], four.sum[h], four.sum[h] * 200 * kUnit);
    }
  }

  // A source of bias -inf weighs nothing.
  void expect_a_bias_of_minus_infinity_is_nothing() const {
    std::mt19937_64 rng(seed());
    const Planes planes(rng, 2, 64, 100);
    Case c(rng, 2, 3, 64);
    const float none = -std::numeric_limits<float>::infinity();
    c.sources = {planes.first(50, 0.0f), planes.first(90, none)};
    const Partial with = run(c);
    c.sources.pop_back();
    const Partial without = run(c);
    for (size_t h = 0; h < with.max.size(); ++h) {
      EXPECT_EQ(with.max[h], without.max[h]);
      EXPECT_NEAR(with.sum[h], without.sum[h], without.sum[h] * 100 * kUnit);
    }
  }

  // Keys cut into random parts, attended apart, merged in random order: the same answer.
  void expect_any_partition(int64_t n, int64_t most_of_a_part) const {
    std::mt19937_64 rng(seed());
    const auto up_to = [&](int64_t end) {
      return static_cast<int64_t>(rng() % static_cast<uint64_t>(end));
    };
    const int32_t d = 64, n_kv = 2, group = 4;
    const auto keys = random_rows<Memory>(rng, n_kv * n * d, 2.0f),
               values = random_rows<Memory>(rng, n_kv * n * d);
    Case whole(rng, n_kv, group, d);
    whole.sources = {plane(keys, values, n_kv, d, n)};
    Partial reference = run(whole);
    expect_near_oracle(whole, reference);

    std::vector<KvSource> parts;
    for (int64_t at = 0; at < n;) {
      const int64_t size = std::min(n - at, 1 + up_to(most_of_a_part));
      KvSource part = whole.sources[0];
      part.keys += at * d;
      part.values += at * d;
      part.n_tokens = size;
      parts.push_back(part);
      at += size;
    }
    std::shuffle(parts.begin(), parts.end(), rng);
    std::vector<Partial> partials;
    for (int64_t i = 0; i < static_cast<int64_t>(parts.size());) {
      const int64_t count =
          std::min(static_cast<int64_t>(parts.size()) - i, up_to(kMaxDecodeSources + 1));
      whole.sources.assign(parts.begin() + i, parts.begin() + i + count);  // 0: an empty partial
      partials.push_back(run(whole));
      i += count;
    }
    std::shuffle(partials.begin(), partials.end(), rng);
    std::vector<PartialView> views;
    for (Partial& p : partials) views.push_back(p.view());
    Memory<bf16> out(static_cast<size_t>(whole.n_heads() * d), bf16(Partial::kNan));
    merge({views.data(), static_cast<int32_t>(views.size()), whole.n_heads(), d, out.data()});

    whole.sources = {plane(keys, values, n_kv, d, n)};
    const DecodeAttendParams p = whole.params(reference.view());
    const double weight = rounds_weights(d) ? 0x1p-8 : 0;
    for (int32_t h = 0; h < whole.n_heads(); ++h) {
      const DecodeExpected e = expected_decode(p, h);
      for (int32_t i = 0; i < d; ++i) {
        const auto element = static_cast<size_t>(i);
        // One more rounding, to bf16: at most 2^-8.
        ASSERT_NEAR(static_cast<float>(out[static_cast<size_t>(h * d + i)]), e.out[element],
                    (e.tolerance[element] * 1.01 + weight * e.size[element]) * 1.01 +
                        0x1p-8 * std::abs(e.out[element]));
      }
    }
  }

  void expect_merge_of_nothing_is_zero() const {
    Memory<bf16> out(2 * 64);
    Partial empty(2, 64);
    std::fill(empty.max.begin(), empty.max.end(), kEmptyMax);
    std::fill(empty.sum.begin(), empty.sum.end(), 0.0f);
    std::fill(empty.out.begin(), empty.out.end(), 0.0f);
    const PartialView views[] = {empty.view(), empty.view()};
    for (const int32_t n : {0, 2}) {
      std::fill(out.begin(), out.end(), bf16(3.0f));
      merge({views, n, 2, 64, out.data()});
      for (const bf16 x : out) ASSERT_EQ(static_cast<float>(x), 0.0f);
    }
  }

  // Scores rise (or fall) by 130 octaves over the row: the running maximum must follow.
  void expect_huge_score_ranges() const {
    std::mt19937_64 rng(seed());
    for (const float direction : {1.0f, -1.0f}) {
      const int32_t d = 64;
      const int64_t n = 700;
      Case c(rng, 1, 2, d);
      Memory<bf16> keys(static_cast<size_t>(n * d));
      const auto values = random_rows<Memory>(rng, n * d);
      std::fill(c.q.begin(), c.q.end(), bf16(1.0f));
      for (int64_t t = 0; t < n; ++t) {
        const float octaves = direction * (static_cast<float>(t) * 2 * 130.0f / n - 130.0f);
        keys[static_cast<size_t>(t * d + t % d)] = bf16(octaves * 8 * 0.693f);
      }
      c.sources = {plane(keys, values, 1, d, n)};
      Partial result = run(c);
      expect_near_oracle(c, result);
    }
  }

  // One key weighs exactly 1: its value comes out unchanged.
  void expect_one_key_is_exact(std::initializer_list<int32_t> head_dims) const {
    std::mt19937_64 rng(seed());
    for (const int32_t d : head_dims) {
      Case c(rng, 2, 4, d, 3.0f);
      const auto keys = random_rows<Memory>(rng, 2 * d), values = random_rows<Memory>(rng, 2 * d);
      c.sources = {plane(keys, values, 2, d, 1)};
      const Partial result = run(c);
      for (int32_t h = 0; h < 8; ++h) {
        ASSERT_EQ(result.sum[static_cast<size_t>(h)], 1.0f);
        for (int32_t i = 0; i < d; ++i) {
          ASSERT_EQ(result.out[static_cast<size_t>(h * d + i)],
                    static_cast<float>(values[static_cast<size_t>(h / 4 * d + i)]));
        }
      }
    }
  }

  void expect_nan_and_infinity_stay_with_their_head(
      std::initializer_list<int32_t> head_dims) const {
    std::mt19937_64 rng(seed());
    const float inf = std::numeric_limits<float>::infinity();
    for (const int32_t d : head_dims) {
      for (const int64_t at : {0, 40, 699}) {
        for (const float poison : {Partial::kNan, inf, -inf}) {
          const int64_t n = 700;
          Case c(rng, 2, 2, d);
          for (bf16& x : c.q) x = bf16(std::abs(static_cast<float>(x)) + 0.1f);
          auto keys = random_rows<Memory>(rng, 2 * n * d);
          const auto values = random_rows<Memory>(rng, 2 * n * d);
          keys[static_cast<size_t>((n + at) * d + 5)] = bf16(poison);
          c.sources = {plane(keys, values, 2, d, n)};
          Partial result = run(c);
          Memory<bf16> out(static_cast<size_t>(4 * d));
          const PartialView view = result.view();
          merge({&view, 1, 4, d, out.data()});
          const bool nan = !(poison == -inf);  // a -inf score weighs nothing
          for (int32_t i = 0; i < 4 * d; ++i) {
            ASSERT_EQ(std::isnan(static_cast<float>(out[static_cast<size_t>(i)])),
                      nan && i >= 2 * d)
                << i;
          }
        }
      }
    }
    // A NaN value poisons its own column only.
    Case c(rng, 1, 2, 64);
    const auto keys = random_rows<Memory>(rng, 100 * 64);
    auto values = keys;
    values[70 * 64 + 9] = bf16(Partial::kNan);
    c.sources = {plane(keys, values, 1, 64, 100)};
    const Partial result = run(c);
    for (size_t i = 0; i < 128; ++i) ASSERT_EQ(std::isnan(result.out[i]), i % 64 == 9) << i;
  }

  // Address space without memory: rows beyond 2^31 elements.
  void expect_offsets_beyond_two_to_the_31(std::initializer_list<int32_t> head_dims) const {
    std::mt19937_64 rng(seed());
    for (const int32_t d : head_dims) {
      const int32_t chunk = 8;
      const int64_t far_chunk = 5'000'000, head_stride = far_chunk * chunk * d + chunk * d;
      const size_t bytes = static_cast<size_t>(2 * head_stride) * sizeof(bf16);
      void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      ASSERT_NE(map, MAP_FAILED);
      bf16* base = static_cast<bf16*>(map);
      std::normal_distribution<float> normal;
      for (int64_t j = 0; j < 2; ++j) {
        for (int64_t i = 0; i < chunk * d; ++i) {
          base[j * head_stride + far_chunk * chunk * d + i] = bf16(normal(rng));
        }
      }
      Case c(rng, 2, 2, d);
      Memory<int32_t> ids(4, 0), counts(2, 2);
      ids[0] = ids[3] = static_cast<int32_t>(far_chunk);
      KvSource s;
      s.keys = s.values = base;
      s.head_stride = head_stride;
      s.chunk_stride = chunk * d;
      s.token_stride = d;
      s.chunk_tokens = chunk;
      s.ids = ids.data();
      s.counts = counts.data();
      s.ids_stride = 2;
      // The same rows as a plane whose tokens lie far apart.
      KvSource wide = s;
      wide.ids = wide.counts = nullptr;
      wide.chunk_tokens = 1;
      wide.chunk_stride = wide.token_stride = far_chunk * chunk * d;
      wide.n_tokens = 2;
      c.sources = {s, wide};
      Partial result = run(c);
      expect_near_oracle(c, result);
      munmap(map, bytes);
    }
  }
};

}  // namespace tiercel::test
