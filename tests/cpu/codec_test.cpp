// Coded rows at every level that this machine runs: the bytes against their definition, keys
// against fp64.
#include "cpu/codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/levels.h"
#include "engine/base/rope.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/codec.h"
#include "tests/oracle/linear.h"
#include "tests/oracle/lowrank.h"
#include "tests/seed.h"

namespace tiercel::cpu {
namespace {

using test::kBf16Unit;
using test::value_of;

constexpr RowCodec kCodecs[] = {RowCodec::kInt8, RowCodec::kInt4};
constexpr double kUnit = 0x1p-24;
// RopeTable promises angles within 2e-7; turning adds two products and a sum.
constexpr double kTurnError = 2e-7 + 3 * kUnit;

// Bytes at a multiple of 16.
class Bytes {
 public:
  explicit Bytes(int64_t n, int fill = 0xcd) : n_(static_cast<size_t>(n)), memory_(n_ + 16) {
    void* address = memory_.data();
    size_t space = memory_.size();
    data_ = static_cast<std::byte*>(std::align(16, n_, address, space));
    std::memset(memory_.data(), fill, memory_.size());
  }
  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  bool operator==(const Bytes& other) const {
    return n_ == other.n_ && std::memcmp(data_, other.data_, n_) == 0;
  }

 private:
  size_t n_;
  std::vector<std::byte> memory_;
  std::byte* data_;
};

const uint16_t* bits(const std::vector<bf16>& x) {
  return reinterpret_cast<const uint16_t*>(x.data());
}
uint16_t* bits(std::vector<bf16>& x) { return reinterpret_cast<uint16_t*>(x.data()); }
uint8_t* bytes(Bytes& x) { return reinterpret_cast<uint8_t*>(x.data()); }

bool same_or_both_nan(bf16 a, bf16 b) {
  return a == b || (std::isnan(static_cast<float>(a)) && std::isnan(static_cast<float>(b)));
}

class CodecTest : public testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  const RowCodecKernel& kernel_ = row_codec_kernel(GetParam());
  std::mt19937_64 rng_{test::seed()};

  float normal() { return std::normal_distribution<float>()(rng_); }
  float any_finite() {
    for (;;) {
      const float x = std::bit_cast<float>(static_cast<uint32_t>(rng_()));
      if (std::isfinite(x)) return x;
    }
  }
  std::vector<bf16> normal_rows(int64_t n, float spread = 1) {
    std::vector<bf16> rows(static_cast<size_t>(n));
    for (bf16& x : rows) x = bf16(spread * normal());
    return rows;
  }

  // A row of one of the kinds that are hard.
  static constexpr int kKinds = 14;
  std::vector<float> hard_row(int kind, int64_t width) {
    const float inf = std::numeric_limits<float>::infinity();
    std::vector<float> x(static_cast<size_t>(width));
    for (float& v : x) v = normal();
    float& some = x[rng_() % x.size()];
    switch (kind) {
      case 0: break;
      case 1: std::fill(x.begin(), x.end(), x[0]); break;  // one value
      case 2: std::fill(x.begin(), x.end(), -0.0f); break;
      case 3:
        for (float& v : x) v = rng_() % 2 == 0 ? 0.0f : -0.0f;
        break;
      case 4:
        for (float& v : x) v *= 0x1p-146f;
        break;  // denormals
      case 5:
        for (float& v : x) v *= 0x1p-134f;
        break;
      case 6:
        for (float& v : x) v = any_finite();
        break;  // mostly ranges that overflow
      case 7:
        for (float& v : x) v *= 0x1p125f;
        break;
      case 8: some = inf; break;
      case 9: some = -inf; break;
      case 10: some = std::numeric_limits<float>::quiet_NaN(); break;
      case 11: some = std::copysign(std::numeric_limits<float>::quiet_NaN(), -1.0f); break;
      case 12:  // on the boundaries of codes: least + step * (k + 1/2)
        for (float& v : x) v = -3.0f + 0.125f * (static_cast<float>(rng_() % 255) + 0.5f);
        x[0] = -3.0f;
        x[1] = -3.0f + 0.125f * 255;
        break;
      default:
        for (float& v : x) v = 1e30f + v;
        some = -1e30f;
        break;  // outlier
    }
    return x;
  }
};

TEST_P(CodecTest, RowsAreCodedByTheirDefinition) {
  for (const RowCodec codec : kCodecs) {
    for (const int64_t width : {32, 64, 96, 128, 160, 256}) {
      for (int round = 0; round < 10 * kKinds; ++round) {
        const std::vector<float> x = hard_row(round % kKinds, width);
        std::vector<bf16> rounded;
        std::vector<float> widened;
        for (const float v : x) {
          rounded.push_back(bf16(v));
          widened.push_back(static_cast<float>(rounded.back()));
        }
        const int64_t size = row_bytes(codec, width);
        const CodedRows shape = coded_rows(codec, width, 1);
        Bytes a(size), b(size), c(size, 0xab);
        kernel_.encode_rows_f32(x.data(), shape, bytes(a));
        kernel_.encode_rows(bits(rounded), shape, bytes(b));
        kernel_.encode_rows_f32(widened.data(), shape, bytes(c));
        ASSERT_EQ(test::wrong_code(x.data(), a.data(), codec, width), "") << round % kKinds;
        ASSERT_EQ(test::wrong_code(widened.data(), b.data(), codec, width), "") << round % kKinds;
        ASSERT_TRUE(b == c) << "bf16 and fp32 of the same row";
        row_codec_kernel(Isa::kPortable).encode_rows_f32(x.data(), shape, bytes(b));
        ASSERT_TRUE(a == b) << "every level makes the same bytes";
      }
    }
  }
}

// Any codes with any step and least: huge steps, whose products overflow where the sum does not,
// denormals, NaN.
TEST_P(CodecTest, DecodingIsOneFusedMultiplyAdd) {
  for (const RowCodec codec : kCodecs) {
    for (const int64_t width : {32, 64, 96, 128, 160, 256}) {
      const int64_t size = row_bytes(codec, width), n = 7;
      for (int round = 0; round < 60; ++round) {
        Bytes codes(n * size);
        for (int64_t i = 0; i < n * size; ++i) codes.data()[i] = static_cast<std::byte>(rng_());
        for (int64_t r = 0; r < n; ++r) {
          for (int64_t g = 0; g < width / code_group(width); ++g) {
            uint16_t header[2] = {bf16(std::abs(any_finite())).bits, bf16(any_finite()).bits};
            if (round % 3 == 1) header[0] = bf16(std::abs(normal())).bits;
            if (round % 3 == 2) {  // the range is finite, the last product may not be
              header[0] = bf16(std::ldexp(1 + static_cast<float>(rng_() % 128) / 128, 120)).bits;
              header[1] = bf16(-0x1p127f).bits;
            }
            if (header[0] >= 0x7f80 || rng_() % 50 == 0) header[0] = header[1] = 0x7fc0;
            std::memcpy(codes.data() + r * size + width * code_bits(codec) / 8 + g * 4, header, 4);
          }
        }
        std::vector<float> shift(static_cast<size_t>(width)), wide(static_cast<size_t>(n * width));
        for (float& s : shift) s = normal();
        std::vector<bf16> rows(wide.size(), bf16(7.0f));
        kernel_.decode_rows(bytes(codes), coded_rows(codec, width, n), bits(rows));
        kernel_.decode_rows_f32(bytes(codes), coded_rows(codec, width, n), shift.data(),
                                wide.data());
        for (int64_t r = 0; r < n; ++r) {
          const auto x = test::decoded_row(codes.data() + r * size, codec, width);
          for (int64_t i = 0; i < width; ++i) {
            const size_t at = static_cast<size_t>(i), out = static_cast<size_t>(r * width + i);
            ASSERT_TRUE(same_or_both_nan(rows[out], bf16(x[at])))
                << static_cast<float>(rows[out]) << " for " << x[at];
            const float expected = x[at] + shift[at];
            ASSERT_TRUE(wide[out] == expected || (std::isnan(wide[out]) && std::isnan(expected)));
          }
        }
      }
    }
  }
}

// A plane whose first rows are cut off, codes in a larger buffer, some tokens only.
TEST_P(CodecTest, EncodeWritesItsTokensAndNothingBesides) {
  for (const RowCodec codec : kCodecs) {
    for (const int64_t width : {32, 64, 96, 128, 256}) {
      const int64_t heads = 3, first_row = 40, capacity = 3000, first = 50, n = 2500;
      const int64_t first_code = 37;
      const auto rows = normal_rows(heads * capacity * width);
      const int64_t size = row_bytes(codec, width);
      const int64_t stride = ((first + n + 9) * size + 15) / 16 * 16;
      Bytes expected(heads * stride), got(heads * stride);
      EncodeParams p;
      p.rows = rows.data();
      p.head_stride = capacity * width;
      p.first_row = first_row;
      p.first_token = first;
      p.n_tokens = n;
      p.first_code = first_code;
      p.n_kv_heads = static_cast<int32_t>(heads);
      p.width = width;
      p.codec = codec;
      p.code_head_stride = stride;
      for (int64_t j = 0; j < heads; ++j) {
        for (int64_t t = first; t < first + n; ++t) {
          kernel_.encode_rows(bits(rows) + j * p.head_stride + (t - first_row) * width,
                              coded_rows(codec, width, 1),
                              bytes(expected) + j * stride + (t - first_code) * size);
        }
      }
      for (const int threads : {1, 2, 3, 5}) {
        Queue queue({.n_threads = threads, .isa = GetParam()});
        Bytes fresh(heads * stride);
        p.codes = fresh.data();
        encode_rows(queue, p);
        ASSERT_TRUE(fresh == expected) << threads;
      }
      p.codes = got.data();  // token by token
      p.n_tokens = 1;
      for (int64_t t = 0; t < n; ++t) {
        encode_rows(queue_, p);
        ++p.first_token;
      }
      ASSERT_TRUE(got == expected);
      p.n_tokens = 0;
      encode_rows(queue_, p);
      ASSERT_TRUE(got == expected);
    }
  }
}

struct Rope {
  Rope(int32_t d, int64_t n_positions)
      : inv_freq(test::rope_frequencies(d / 2, 1e4)), table(inv_freq, n_positions) {}
  std::vector<double> inv_freq;
  RopeTable table;
};

TEST_P(CodecTest, KeysAreTurnedBackAndCentredFirst) {
  for (const RowCodec codec : kCodecs) {
    for (const int32_t d : {32, 64, 96, 128, 256}) {
      for (const int64_t first : {int64_t{0}, int64_t{5003}}) {
        const int32_t heads = 2;
        const int64_t n = 300, size = row_bytes(codec, d);
        const Rope rope(d, first + n);
        const auto rows = normal_rows(heads * n * d, 3);
        std::vector<float> mean(static_cast<size_t>(heads * d));
        for (float& m : mean) m = 2 * normal();
        const int64_t first_code = first / 2, end_code = first + n - first_code;
        const int64_t stride = (end_code * size + 15) / 16 * 16;
        Bytes codes(heads * stride);
        EncodeParams p;
        p.rows = rows.data();
        p.head_stride = n * d;
        p.first_row = first;
        p.first_token = first;
        p.n_tokens = n;
        p.first_code = first_code;
        p.n_kv_heads = heads;
        p.width = d;
        p.codec = codec;
        p.mean = mean.data();
        p.rope = rope.table.view();
        p.codes = codes.data();
        p.code_head_stride = stride;
        encode_rows(queue_, p);
        for (int64_t t = first; t < first + n; t += 3) {
          const auto back = test::unrotate_oracle(rows.data(), p.head_stride, heads, d, t - first,
                                                  t, rope.inv_freq);
          for (int64_t j = 0; j < heads; ++j) {
            const std::byte* row = codes.data() + j * stride + (t - first_code) * size;
            const auto x = test::decoded_row(row, codec, d);
            for (int64_t i = 0; i < d; ++i) {
              const size_t at = static_cast<size_t>(j * d + i);
              const double m = static_cast<double>(mean[at]), want = back[at] - m;
              const bf16* key = rows.data() + j * p.head_stride + (t - first) * d;
              const double turned =
                  std::abs(value_of(key[i])) + std::abs(value_of(key[(i + d / 2) % d]));
              const double turn_error =
                  kTurnError * turned + kUnit * (std::abs(back[at]) + std::abs(want));
              const auto group = test::read_group(row, codec, d, i / code_group(d));
              const double decoded = static_cast<double>(x[static_cast<size_t>(i)]);
              ASSERT_NEAR(decoded, want,
                          turn_error + test::coding_error(group, want + turn_error, decoded));
            }
          }
        }
      }
    }
  }
}

TEST_P(CodecTest, MeanOfKeysBeforeTheirPositions) {
  for (const int64_t n : {1, 5, 4096, 9001}) {
    const int32_t heads = 3, d = n == 5 ? 256 : 64;
    const Rope rope(d, n);
    auto rows = normal_rows(heads * (n + 3) * d, 2);
    for (bf16& x : rows) x = bf16(static_cast<float>(x) + 1.0f);
    MeanKeysParams p;
    p.keys = rows.data();
    p.head_stride = (n + 3) * d;
    p.n_tokens = n;
    p.n_kv_heads = heads;
    p.head_dim = d;
    p.rope = rope.table.view();
    std::vector<float> mean(static_cast<size_t>(heads * d), 77.0f);
    p.mean = mean.data();
    mean_keys(queue_, p);
    std::vector<double> want(mean.size()), size(mean.size());
    for (int64_t t = 0; t < n; ++t) {
      const auto back =
          test::unrotate_oracle(rows.data(), p.head_stride, heads, d, t, t, rope.inv_freq);
      for (int64_t j = 0; j < heads; ++j) {
        for (int64_t i = 0; i < d; ++i) {
          const size_t at = static_cast<size_t>(j * d + i);
          const bf16* key = rows.data() + j * p.head_stride + t * d;
          want[at] += back[at] / static_cast<double>(n);
          size[at] += (std::abs(value_of(key[i])) + std::abs(value_of(key[(i + d / 2) % d]))) /
                      static_cast<double>(n);
        }
      }
    }
    for (size_t i = 0; i < mean.size(); ++i) {
      ASSERT_NEAR(static_cast<double>(mean[i]), want[i],
                  kTurnError * size[i] + kUnit * std::abs(want[i]));
    }
    for (const int threads : {1, 3, 5}) {
      Queue queue({.n_threads = threads, .isa = GetParam()});
      std::vector<float> other(mean.size());
      p.mean = other.data();
      mean_keys(queue, p);
      ASSERT_EQ(mean, other) << threads;
    }
  }
}

// Some chunks of a prompt, missed, in any order, into any slots.
struct Misses {
  Misses(std::mt19937_64& rng, int32_t heads, int32_t n_chunks, int64_t stride)
      : stride(stride), chunks(static_cast<size_t>(heads * stride)), slots(chunks.size()) {
    for (int32_t j = 0; j < heads; ++j) {
      std::vector<int32_t> all(static_cast<size_t>(n_chunks));
      for (auto* list : {&chunks, &slots}) {
        std::iota(all.begin(), all.end(), 0);
        std::shuffle(all.begin(), all.end(), rng);
        std::copy_n(all.begin(), stride, list->begin() + j * stride);
      }
      counts.push_back(j == 1 ? 0 : static_cast<int32_t>(stride - j));
    }
  }
  int64_t stride;
  std::vector<int32_t> chunks, slots, counts;
};

TEST_P(CodecTest, DecodedKeysAreTurnedToTheirPositions) {
  for (const RowCodec codec : kCodecs) {
    for (const int32_t d : {32, 64, 96, 128, 256}) {
      for (const int32_t tokens : {1, 5, 8, 16, 37}) {
        const int32_t heads = 3, n_chunks = 40;
        const int64_t n = int64_t{n_chunks} * tokens, size = row_bytes(codec, d);
        const Rope rope(d, n);
        const auto rows = normal_rows(heads * n * d);
        std::vector<float> mean(static_cast<size_t>(heads * d));
        for (float& m : mean) m = 2 * normal();
        const int64_t code_stride = (n * size + 15) / 16 * 16;
        Bytes codes(heads * code_stride);
        for (int64_t j = 0; j < heads; ++j) {
          kernel_.encode_rows(bits(rows) + j * n * d, coded_rows(codec, d, n),
                              bytes(codes) + j * code_stride);
        }
        const Misses misses(rng_, heads, n_chunks, 12);
        const int64_t record = 2 * tokens * d, slot_stride = n_chunks * record;
        std::vector<bf16> slots(static_cast<size_t>(heads * slot_stride), bf16(55.0f));
        DecodeKeysParams p;
        p.codes = codes.data();
        p.code_head_stride = code_stride;
        p.codec = codec;
        p.mean = mean.data();
        p.rope = rope.table.view();
        p.miss_chunks = misses.chunks.data();
        p.miss_slots = misses.slots.data();
        p.miss_counts = misses.counts.data();
        p.stride = misses.stride;
        p.slots = slots.data();
        p.slot_head_stride = slot_stride;
        p.chunk_tokens = tokens;
        p.n_kv_heads = heads;
        p.head_dim = d;
        decode_keys(queue_, p);

        for (int64_t j = 0; j < heads; ++j) {
          for (int64_t m = 0; m < misses.counts[static_cast<size_t>(j)]; ++m) {
            const size_t at = static_cast<size_t>(j * misses.stride + m);
            bf16* out = slots.data() + j * slot_stride + misses.slots[at] * record;
            for (int64_t t = 0; t < tokens; ++t) {
              const int64_t token = misses.chunks[at] * int64_t{tokens} + t;
              const auto x =
                  test::decoded_row(codes.data() + j * code_stride + token * size, codec, d);
              for (int64_t i = 0; i < d / 2; ++i) {
                const auto [cl, sl] =
                    test::turn_oracle(token, rope.inv_freq[static_cast<size_t>(i)]);
                const double co = static_cast<double>(cl), si = static_cast<double>(sl);
                double half[2], magnitude = 0;
                for (int64_t h : {0, 1}) {
                  const int64_t c = i + h * d / 2;
                  half[h] = static_cast<double>(x[static_cast<size_t>(c)]) +
                            static_cast<double>(mean[static_cast<size_t>(j * d + c)]);
                  magnitude += std::abs(half[h]);
                }
                const double first = half[0] * co - half[1] * si;
                const double second = half[1] * co + half[0] * si;
                const double error = (kTurnError + kUnit) * magnitude;
                ASSERT_NEAR(value_of(out[t * d + i]), first, kBf16Unit * std::abs(first) + error);
                ASSERT_NEAR(value_of(out[t * d + d / 2 + i]), second,
                            kBf16Unit * std::abs(second) + error);
              }
            }
            std::fill_n(out, tokens * d, bf16(55.0f));
          }
        }
        for (const bf16 x : slots) ASSERT_EQ(x, bf16(55.0f)) << "nothing besides";
      }
    }
  }
}

// What is coded comes back: half a step per channel before the turn, one rounding after it.
TEST_P(CodecTest, KeysComeBackWithinHalfAStep) {
  for (const RowCodec codec : kCodecs) {
    const int32_t heads = 2, d = 128, tokens = 8, n_chunks = 64;
    const int64_t n = n_chunks * tokens, size = row_bytes(codec, d);
    const Rope rope(d, n);
    const auto rows = normal_rows(heads * n * d, 4);
    std::vector<float> mean(heads * d);
    mean_keys(queue_, {rows.data(), n * d, n, heads, d, rope.table.view(), mean.data()});
    Bytes codes(heads * n * size);
    EncodeParams e;
    e.rows = rows.data();
    e.head_stride = n * d;
    e.n_tokens = n;
    e.n_kv_heads = heads;
    e.width = d;
    e.codec = codec;
    e.mean = mean.data();
    e.rope = rope.table.view();
    e.codes = codes.data();
    e.code_head_stride = n * size;
    encode_rows(queue_, e);

    std::vector<int32_t> all(static_cast<size_t>(heads * n_chunks)), counts(heads, n_chunks);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i % n_chunks);
    const int64_t record = 2 * tokens * d;
    std::vector<bf16> slots(static_cast<size_t>(heads * n_chunks * record)), again(slots);
    DecodeKeysParams p;
    p.codes = codes.data();
    p.code_head_stride = n * size;
    p.codec = codec;
    p.mean = mean.data();
    p.rope = rope.table.view();
    p.miss_chunks = p.miss_slots = all.data();
    p.miss_counts = counts.data();
    p.stride = n_chunks;
    p.slots = slots.data();
    p.slot_head_stride = n_chunks * record;
    p.chunk_tokens = tokens;
    p.n_kv_heads = heads;
    p.head_dim = d;
    decode_keys(queue_, p);
    for (int64_t j = 0; j < heads; ++j) {
      for (int64_t t = 0; t < n; ++t) {
        const std::byte* row = codes.data() + j * n * size + t * size;
        const double steps =
            static_cast<double>(test::read_group(row, codec, d, 0).step) +
            static_cast<double>(test::read_group(row, codec, d, 1).step);  // the halves' groups
        for (int64_t i = 0; i < d; ++i) {
          const double want = value_of(rows[static_cast<size_t>((j * n + t) * d + i)]);
          const double got = value_of(slots[static_cast<size_t>(
              j * p.slot_head_stride + t / tokens * record + t % tokens * d + i)]);
          ASSERT_NEAR(got, want, steps / 2 + kBf16Unit * (std::abs(want) + steps) + 1e-5);
        }
      }
    }
    for (const int threads : {1, 3, 5}) {
      Queue queue({.n_threads = threads, .isa = GetParam()});
      p.slots = again.data();
      std::fill(again.begin(), again.end(), bf16(0.0f));
      decode_keys(queue, p);
      ASSERT_EQ(slots, again);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryLevel, CodecTest, testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace tiercel::cpu
