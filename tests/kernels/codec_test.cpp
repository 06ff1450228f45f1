// Coded rows on the device (or its emulator): by their definition, and the bits of cpu::.
#include "kernels/codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/codec.h"
#include "tests/kernels/device_rope.h"
#include "tests/oracle/codec.h"
#include "tests/oracle/linear.h"
#include "tests/oracle/lowrank.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::DeviceRope;
using test::DeviceVector;
using test::kBf16Unit;
using test::kF32Unit;
using test::value_of;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::byte kPoison{0xcd};

// Rows with everything that is special: each group of a row is of one kind.
DeviceVector<bf16> any_rows(std::mt19937_64& rng, int64_t n_rows, int64_t width) {
  std::normal_distribution<float> normal;
  DeviceVector<bf16> rows(static_cast<size_t>(n_rows * width));
  const int64_t group = code_group(width);
  for (size_t first = 0; first < rows.size(); first += static_cast<size_t>(group)) {
    bf16* x = rows.data() + first;
    const float scale = std::exp2(static_cast<float>(rng() % 40) - 20.0f);
    for (int64_t i = 0; i < group; ++i) x[i] = bf16(scale * (normal(rng) + 0.5f));
    const size_t at = rng() % static_cast<size_t>(group);
    switch (rng() % 12) {
      case 0: std::fill_n(x, group, x[0]); break;
      case 1: std::fill_n(x, group, bf16(-0.0f)); break;
      case 2: x[at] = bf16(kNan); break;
      case 3: x[at] = bf16(kInf); break;
      case 4: x[at] = bf16(-kInf); break;
      case 5:  // a range that is not finite
        x[0] = bf16(3e38f);
        x[1] = bf16(-3e38f);
        break;
      case 6:  // a step that underflows
        for (int64_t i = 0; i < group; ++i) x[i].bits = static_cast<uint16_t>(rng() % 3);
        break;
      case 7: x[at] = bf16(1e30f); break;
      default: break;
    }
  }
  return rows;
}

struct Coded {
  Coded(RowCodec row_codec, int64_t row_width, int64_t heads, int64_t n_capacity)
      : codec(row_codec), width(row_width), capacity(n_capacity) {
    head_stride = (capacity * row_bytes(codec, width) + 31) / 16 * 16;
    codes.assign(static_cast<size_t>(heads * head_stride), kPoison);
  }
  const std::byte* row(int64_t head, int64_t token) const {
    return codes.data() + head * head_stride + token * row_bytes(codec, width);
  }
  // That only the rows of these tokens have been written.
  void expect_poison_around(int64_t heads, int64_t first, int64_t n) const {
    for (int64_t j = 0; j < heads; ++j) {
      const std::byte* begin = row(j, 0);
      ASSERT_TRUE(std::all_of(begin, row(j, first), [](std::byte b) { return b == kPoison; }));
      ASSERT_TRUE(std::all_of(row(j, first + n), begin + head_stride,
                              [](std::byte b) { return b == kPoison; }));
    }
  }
  RowCodec codec;
  int64_t width, capacity, head_stride = 0;
  DeviceVector<std::byte> codes;
};

EncodeParams encode_params(const DeviceVector<bf16>& rows, int64_t heads, int64_t first_row,
                           int64_t first_token, int64_t n_tokens, Coded& coded) {
  EncodeParams p;
  p.rows = rows.data();
  p.head_stride = static_cast<int64_t>(rows.size()) / heads;
  p.first_row = first_row;
  p.first_token = first_token;
  p.n_tokens = n_tokens;
  p.n_kv_heads = static_cast<int32_t>(heads);
  p.width = coded.width;
  p.codec = coded.codec;
  // Token t at row t, seen from a later row on.
  p.first_code = std::min<int64_t>(first_token, 4);
  p.codes = coded.codes.data() + p.first_code * row_bytes(coded.codec, coded.width);
  p.code_head_stride = coded.head_stride;
  return p;
}

TEST(CudaCodec, RowsByTheirDefinition) {
  std::mt19937_64 rng(test::seed());
  for (const RowCodec codec : {RowCodec::kInt8, RowCodec::kInt4}) {
    for (const int64_t width : {32, 64, 96, 128, 160, 256, 544}) {
      for (const int64_t n : {0, 1, 37}) {
        SCOPED_TRACE(testing::Message() << code_bits(codec) << " bits, " << width << " x " << n);
        const int64_t heads = width > 256 ? 1 : 3, first_row = 5, first = 9;
        const auto rows = any_rows(rng, heads * (n + 6), width);
        Coded coded(codec, width, heads, first + n + 2), same(codec, width, heads, first + n + 2);
        cuda::encode_rows(test::stream(), encode_params(rows, heads, first_row, first, n, coded));
        test::stream().finish();
        for (int64_t j = 0; j < heads; ++j) {
          for (int64_t t = first; t < first + n; ++t) {
            const bf16* row = rows.data() + (j * (n + 6) + t - first_row) * width;
            std::vector<float> x(static_cast<size_t>(width));
            std::transform(row, row + width, x.begin(), [](bf16 v) { return float(v); });
            ASSERT_EQ(test::wrong_code(x.data(), coded.row(j, t), codec, width), "");
          }
        }
        coded.expect_poison_around(heads, first, n);
        cpu::Queue queue({.n_threads = 1});
        cpu::encode_rows(queue, encode_params(rows, heads, first_row, first, n, same));
        ASSERT_TRUE(coded.codes == same.codes);
      }
    }
  }
}

// Rows that begin anywhere.
TEST(CudaCodec, RowsAtAnyAddress) {
  std::mt19937_64 rng(test::seed());
  const auto rows = any_rows(rng, 21, 64);
  Coded coded(RowCodec::kInt8, 64, 2, 12), same(RowCodec::kInt8, 64, 2, 12);
  for (Coded* c : {&coded, &same}) {
    EncodeParams p = encode_params(rows, 2, 0, 0, 10, *c);
    p.rows += 3;
    p.head_stride = 10 * 64 + 7;
    if (c == &coded) {
      cuda::encode_rows(test::stream(), p);
      test::stream().finish();
    } else {
      cpu::Queue queue({.n_threads = 1});
      cpu::encode_rows(queue, p);
    }
  }
  EXPECT_TRUE(coded.codes == same.codes);
}

// ---- keys ---------------------------------------------------------------------------------------

// Keys of two or more heads, and the mean that they have before RoPE.
struct Keys {
  Keys(std::mt19937_64& rng, int32_t n_heads, int32_t head_dim, int64_t first_token,
       int64_t n_tokens)
      : heads(n_heads),
        d(head_dim),
        first(first_token),
        n(n_tokens),
        inv_freq(test::rope_frequencies(d / 2, 1e4)),
        rope(inv_freq, first + n),
        plane(static_cast<size_t>(heads * n * d)),
        mean(static_cast<size_t>(heads * d)) {
    std::normal_distribution<float> normal;
    for (bf16& x : plane) x = bf16(normal(rng));
    for (float& x : mean) x = normal(rng);
  }
  std::vector<double> unrotated(int64_t row) const {
    return test::unrotate_oracle(plane.data(), n * d, heads, d, row, first + row, inv_freq);
  }
  // Of a key's channel before RoPE in fp32, i and its pair: the angle's cos and sin are off by 4u
  // (engine/base/rope.h), and each of two products and the sum is rounded.
  double turn_error(int64_t head, int64_t row, int64_t i) const {
    const bf16* key = plane.data() + (head * n + row) * d;
    return 8 * kF32Unit * (std::abs(value_of(key[i])) + std::abs(value_of(key[(i + d / 2) % d])));
  }
  EncodeParams params(Coded& coded) const {
    EncodeParams p = encode_params(plane, heads, first, first, n, coded);
    p.mean = mean.data();
    p.rope = rope.rope;
    return p;
  }
  int32_t heads, d;
  int64_t first, n;
  std::vector<double> inv_freq;
  DeviceRope rope;
  DeviceVector<bf16> plane;
  DeviceVector<float> mean;
};

bool has_fused_products(const cpu::Queue& queue) { return queue.isa() >= cpu::Isa::kAvx2; }

TEST(CudaCodec, KeysAreTurnedBackAndCentred) {
  std::mt19937_64 rng(test::seed());
  for (const RowCodec codec : {RowCodec::kInt8, RowCodec::kInt4}) {
    for (const int32_t d : {32, 64, 96, 128, 256}) {
      SCOPED_TRACE(testing::Message() << code_bits(codec) << " bits, head_dim " << d);
      Keys keys(rng, 2, d, 1015, 21);  // across a row of the coarse table
      Coded coded(codec, d, 2, 1015 + 21), same(codec, d, 2, 1015 + 21);
      cuda::encode_rows(test::stream(), keys.params(coded));
      test::stream().finish();
      for (int64_t t = 0; t < keys.n; ++t) {
        const std::vector<double> before = keys.unrotated(t);
        for (int64_t j = 0; j < 2; ++j) {
          const std::vector<float> decoded =
              test::decoded_row(coded.row(j, keys.first + t), codec, d);
          for (int64_t i = 0; i < d; ++i) {
            const test::CodedGroup group =
                test::read_group(coded.row(j, keys.first + t), codec, d, i / code_group(d));
            const double x = before[static_cast<size_t>(j * d + i)] -
                             static_cast<double>(keys.mean[static_cast<size_t>(j * d + i)]);
            const double got = static_cast<double>(decoded[static_cast<size_t>(i)]);
            ASSERT_NEAR(
                got, x,
                test::coding_error(group, std::max(x, static_cast<double>(group.least)), got) +
                    keys.turn_error(j, t, i) + kF32Unit * std::abs(x));
          }
        }
      }
      coded.expect_poison_around(2, keys.first, keys.n);
      cpu::Queue queue({.n_threads = 1});
      if (!has_fused_products(queue)) continue;
      cpu::encode_rows(queue, keys.params(same));
      ASSERT_TRUE(coded.codes == same.codes);
    }
  }
}

TEST(CudaCodec, MeanOfKeysBeforeRope) {
  std::mt19937_64 rng(test::seed());
  for (const int32_t d : {2, 10, 32, 80, 128}) {
    for (const int64_t n : {1, 7, 1300}) {
      SCOPED_TRACE(testing::Message() << "head_dim " << d << ", " << n << " tokens");
      const Keys keys(rng, 2, d, 0, n);
      DeviceVector<float> mean(static_cast<size_t>(2 * d + 1), kNan);
      cuda::mean_keys(test::stream(), {.keys = keys.plane.data(),
                                       .head_stride = n * d,
                                       .n_tokens = n,
                                       .n_kv_heads = 2,
                                       .head_dim = d,
                                       .rope = keys.rope.rope,
                                       .mean = mean.data()});
      test::stream().finish();
      ASSERT_TRUE(std::isnan(mean[static_cast<size_t>(2 * d)]));
      std::vector<double> want(static_cast<size_t>(2 * d)), error(want);
      for (int64_t t = 0; t < n; ++t) {
        const std::vector<double> key = keys.unrotated(t);
        for (int64_t i = 0; i < 2 * d; ++i) {
          const size_t at = static_cast<size_t>(i);
          want[at] += key[at] / static_cast<double>(n);
          error[at] += keys.turn_error(i / d, t, i % d) / static_cast<double>(n);
        }
      }
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(static_cast<double>(mean[i]), want[i], error[i] + kF32Unit * std::abs(want[i]));
      }
    }
  }
}

// ---- decode -------------------------------------------------------------------------------------

// Chunks of a coded plane, missed in any order; chunk c of the list goes to a slot of its own.
struct Missed {
  Missed(std::mt19937_64& rng, const Keys& keys, int32_t chunk_tokens)
      : tokens(chunk_tokens), n_chunks(keys.n / tokens), n_slots(n_chunks + 2), d(keys.d) {
    for (int32_t j = 0; j < keys.heads; ++j) {
      std::vector<int32_t> all(static_cast<size_t>(n_chunks)), free(static_cast<size_t>(n_slots));
      std::iota(all.begin(), all.end(), 0);
      std::iota(free.begin(), free.end(), 0);
      std::shuffle(all.begin(), all.end(), rng);
      std::shuffle(free.begin(), free.end(), rng);
      chunks.insert(chunks.end(), all.begin(), all.end());
      slots.insert(slots.end(), free.begin(), free.begin() + n_chunks);
      counts.push_back(j == 1 ? 0 : static_cast<int32_t>(n_chunks - 1));
    }
    memory.assign(static_cast<size_t>(keys.heads * n_slots * 2 * tokens * d), bf16(55.0f));
  }
  DecodeKeysParams params(const Keys& keys, const Coded& coded) {
    DecodeKeysParams p;
    p.codes = coded.codes.data();
    p.code_head_stride = coded.head_stride;
    p.codec = coded.codec;
    p.mean = keys.mean.data();
    p.rope = keys.rope.rope;
    p.miss_chunks = chunks.data();
    p.miss_slots = slots.data();
    p.miss_counts = counts.data();
    p.stride = n_chunks;
    p.slots = memory.data();
    p.slot_head_stride = n_slots * 2 * tokens * d;
    p.chunk_tokens = tokens;
    p.n_kv_heads = keys.heads;
    p.head_dim = keys.d;
    return p;
  }
  int32_t tokens;
  int64_t n_chunks, n_slots, d;
  DeviceVector<int32_t> chunks, slots, counts;
  DeviceVector<bf16> memory;
};

// The keys of the missed chunks as they should be; returns how many elements lie elsewhere.
void expect_decoded(const Keys& keys, const Coded& coded, const Missed& m) {
  std::vector<bool> written(m.memory.size());
  const int64_t d = m.d, half = d / 2;
  for (int64_t j = 0; j < keys.heads; ++j) {
    for (int64_t i = 0; i < m.counts[static_cast<size_t>(j)]; ++i) {
      const size_t at = static_cast<size_t>(j * m.n_chunks + i);
      for (int64_t t = 0; t < m.tokens; ++t) {
        const int64_t token = m.chunks[at] * m.tokens + t;
        const std::vector<float> x = test::decoded_row(coded.row(j, token), coded.codec, d);
        const int64_t begin = (j * m.n_slots + m.slots[at]) * 2 * m.tokens * d + t * d;
        for (int64_t c = 0; c < half; ++c) {
          const auto [co, si] = test::turn_oracle(token, keys.inv_freq[static_cast<size_t>(c)]);
          const double cosine = static_cast<double>(co), sine = static_cast<double>(si);
          const auto key = [&](int64_t e) {
            return static_cast<double>(x[static_cast<size_t>(e)]) +
                   static_cast<double>(keys.mean[static_cast<size_t>(j * d + e)]);
          };
          const double low = key(c), high = key(c + half);
          const double error = 10 * kF32Unit * (std::abs(low) + std::abs(high)) +
                               2 * kF32Unit * (std::abs(x[c]) + std::abs(x[c + half]));
          const double want[2] = {low * cosine - high * sine, high * cosine + low * sine};
          for (int64_t e = 0; e < 2; ++e) {
            const size_t place = static_cast<size_t>(begin + c + e * half);
            written[place] = true;
            ASSERT_NEAR(value_of(m.memory[place]), want[e], kBf16Unit * std::abs(want[e]) + error)
                << "token " << token << " channel " << c + e * half;
          }
        }
      }
    }
  }
  for (size_t i = 0; i < m.memory.size(); ++i) {
    ASSERT_TRUE(written[i] || m.memory[i] == bf16(55.0f)) << i;
  }
}

TEST(CudaCodec, DecodedKeysIntoTheirSlots) {
  std::mt19937_64 rng(test::seed());
  for (const RowCodec codec : {RowCodec::kInt8, RowCodec::kInt4}) {
    for (const int32_t d : {32, 96, 128, 256}) {
      for (const int32_t chunk : {1, 5, 8}) {
        SCOPED_TRACE(testing::Message() << code_bits(codec) << " bits, " << chunk << " x " << d);
        Keys keys(rng, 3, d, 0, d == 96 ? 1100 : 90);
        Coded coded(codec, d, 3, keys.n);
        cuda::encode_rows(test::stream(), keys.params(coded));
        Missed missed(rng, keys, chunk);
        Missed same = missed;
        cuda::decode_keys(test::stream(), missed.params(keys, coded));
        test::stream().finish();
        ASSERT_NO_FATAL_FAILURE(expect_decoded(keys, coded, missed));
        cpu::Queue queue({.n_threads = 1});
        if (!has_fused_products(queue)) continue;
        cpu::decode_keys(queue, same.params(keys, coded));
        ASSERT_TRUE(missed.memory == same.memory);
      }
    }
  }
}

TEST(CudaCodec, KeysThatAreNotFiniteDecodeToNan) {
  std::mt19937_64 rng(test::seed());
  Keys keys(rng, 1, 64, 0, 16);
  keys.plane[3 * 64 + 5] = bf16(kInf);
  Coded coded(RowCodec::kInt8, 64, 1, 16);
  cuda::encode_rows(test::stream(), keys.params(coded));
  Missed missed(rng, keys, 8);
  missed.counts[0] = 2;
  cuda::decode_keys(test::stream(), missed.params(keys, coded));
  test::stream().finish();
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t t = 0; t < 8; ++t) {
      const int64_t token = missed.chunks[static_cast<size_t>(i)] * 8 + t;
      for (int64_t c = 0; c < 64; ++c) {
        const int64_t slot = missed.slots[static_cast<size_t>(i)];
        const bf16 x = missed.memory[static_cast<size_t>((slot * 16 + t) * 64 + c)];
        ASSERT_EQ(std::isnan(value_of(x)), token == 3);
      }
    }
  }
}

}  // namespace
}  // namespace tiercel
