#include "cpu/movement.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <random>
#include <vector>

#include "cpu/codec.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/codec.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using cpu::Queue;

TEST(Copy, RowsOfAnyStrideAndNothingBesides) {
  std::mt19937_64 rng(test::seed());
  Queue queue({.n_threads = 2});
  for (int round = 0; round < 60; ++round) {
    const int64_t n_rows = static_cast<int64_t>(rng() % 300);
    const int64_t row_bytes = static_cast<int64_t>(rng() % (round % 6 == 0 ? 20000 : 500));
    const int64_t source_stride =
        row_bytes + (round % 3 == 0 ? 0 : static_cast<int64_t>(rng() % 50));
    const int64_t target_stride =
        row_bytes + (round % 2 == 0 ? 0 : static_cast<int64_t>(rng() % 50));
    std::vector<unsigned char> source(n_rows * source_stride + 1),
        target(n_rows * target_stride + 1);
    for (auto& x : source) x = static_cast<unsigned char>(rng());
    for (auto& x : target) x = static_cast<unsigned char>(rng());
    auto expected = target;
    for (int64_t r = 0; r < n_rows; ++r) {
      std::copy_n(source.begin() + r * source_stride, row_bytes,
                  expected.begin() + r * target_stride);
    }
    cpu::copy(queue,
              {source.data(), target.data(), n_rows, row_bytes, source_stride, target_stride});
    ASSERT_EQ(target, expected) << n_rows << " rows of " << row_bytes;
  }
}

TEST(Copy, OneLongRow) {
  Queue queue({.n_threads = 2});
  std::vector<int32_t> source(1'300'001), target(source.size());
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<int32_t>(i);
  cpu::copy(queue,
            {source.data(), target.data(), 1, static_cast<int64_t>(source.size()) * 4, 0, 0});
  EXPECT_EQ(source, target);
}

TEST(Copy, RowsBeyondTwoToThe32Bytes) {
  const int64_t stride = int64_t{5} << 30;
  const size_t bytes = static_cast<size_t>(2 * stride + 4096);
  void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(map, MAP_FAILED);
  char* base = static_cast<char*>(map);
  for (int64_t r = 0; r < 3; ++r) std::memset(base + r * stride, static_cast<int>(r) + 1, 100);
  Queue queue({.n_threads = 2});
  std::vector<char> target(300);
  cpu::copy(queue, {base, target.data(), 3, 100, stride, 100});
  for (int i = 0; i < 300; ++i) ASSERT_EQ(target[i], i / 100 + 1);
  munmap(map, bytes);
}

struct FetchCase {
  int32_t n_kv_heads, chunk, d;
  int64_t n_chunks, n_slots, stride;
};

// Codes of a plane of values, and what they decode to, in place.
struct CodedValues {
  CodedValues() = default;
  CodedValues(Queue& queue, RowCodec codec, const FetchCase& f, std::vector<bf16>& values) {
    const int64_t n_tokens = f.n_chunks * f.chunk, size = row_bytes(codec, f.d);
    head_stride = (n_tokens * size + 15) / 16 * 16;
    memory.resize(static_cast<size_t>(f.n_kv_heads * head_stride / 16));
    EncodeParams p;
    p.rows = values.data();
    p.head_stride = n_tokens * f.d;
    p.n_tokens = n_tokens;
    p.n_kv_heads = f.n_kv_heads;
    p.width = f.d;
    p.codec = codec;
    p.codes = reinterpret_cast<std::byte*>(memory.data());
    p.code_head_stride = head_stride;
    cpu::encode_rows(queue, p);
    for (int64_t row = 0; row < f.n_kv_heads * n_tokens; ++row) {
      const std::byte* codes = p.codes + row / n_tokens * head_stride + row % n_tokens * size;
      const std::vector<float> x = test::decoded_row(codes, codec, f.d);
      for (int64_t i = 0; i < f.d; ++i) values[row * f.d + i] = bf16(x[i]);
    }
  }
  struct alignas(16) Unit {
    std::byte bytes[16];
  };
  std::vector<Unit> memory;
  int64_t head_stride = 0;
};

// Random planes, lists and slots, and what the slots must hold afterwards.
struct Fetched {
  Fetched(Queue& queue, const FetchCase& f, bool with_keys, RowCodec codec, std::mt19937_64& rng) {
    const int64_t chunk_elements = int64_t{f.chunk} * f.d;
    values.resize(static_cast<size_t>(f.n_kv_heads * f.n_chunks * chunk_elements));
    keys.resize(values.size());
    for (bf16& x : values) {
      x.bits = static_cast<uint16_t>(rng());
      if (codec != RowCodec::kBf16) x.bits &= 0xbfff;  // finite ranges; NaNs compare by their bits
    }
    for (bf16& x : keys) x.bits = static_cast<uint16_t>(rng());
    slots.assign(static_cast<size_t>(f.n_kv_heads * f.n_slots * 2 * chunk_elements), bf16(7.0f));
    chunks.resize(static_cast<size_t>(f.n_kv_heads * f.stride));
    targets.resize(chunks.size());
    for (int64_t j = 0; j < f.n_kv_heads; ++j) {
      std::vector<int32_t> free(f.n_slots);
      for (int32_t s = 0; s < f.n_slots; ++s) free[s] = s;
      std::shuffle(free.begin(), free.end(), rng);
      counts.push_back(static_cast<int32_t>(rng() % (f.stride + 1)));
      for (int64_t i = 0; i < f.stride; ++i) {
        chunks[j * f.stride + i] = static_cast<int32_t>(rng() % f.n_chunks);
        targets[j * f.stride + i] = free[i];
      }
    }
    params.values = values.data();
    params.value_head_stride = f.n_chunks * chunk_elements;
    if (codec != RowCodec::kBf16) {
      coded = CodedValues(queue, codec, f, values);
      params.values = nullptr;
      params.value_codec = codec;
      params.value_codes = reinterpret_cast<const std::byte*>(coded.memory.data());
      params.value_code_head_stride = coded.head_stride;
    }
    expected = slots;
    for (int64_t j = 0; j < f.n_kv_heads; ++j) {
      for (int64_t i = 0; i < counts[j]; ++i) {
        const int64_t from = (j * f.n_chunks + chunks[j * f.stride + i]) * chunk_elements;
        const int64_t to = (j * f.n_slots + targets[j * f.stride + i]) * 2 * chunk_elements;
        if (with_keys) std::copy_n(keys.begin() + from, chunk_elements, expected.begin() + to);
        std::copy_n(values.begin() + from, chunk_elements, expected.begin() + to + chunk_elements);
      }
    }
    params.keys = with_keys ? keys.data() : nullptr;
    params.key_head_stride = f.n_chunks * chunk_elements;
    params.miss_chunks = chunks.data();
    params.miss_slots = targets.data();
    params.miss_counts = counts.data();
    params.stride = f.stride;
    params.slots = slots.data();
    params.slot_head_stride = f.n_slots * 2 * chunk_elements;
    params.chunk_tokens = f.chunk;
    params.n_kv_heads = f.n_kv_heads;
    params.head_dim = f.d;
  }

  std::vector<bf16> values, keys, slots, expected;
  std::vector<int32_t> chunks, targets, counts;
  CodedValues coded;
  FetchParams params;
};

void expect_fetched(const FetchCase& f, bool with_keys, RowCodec codec, std::mt19937_64& rng,
                    const cpu::QueueOptions& options = {.n_threads = 2}) {
  Queue queue(options);
  const Fetched fetched(queue, f, with_keys, codec, rng);
  cpu::fetch(queue, fetched.params);
  ASSERT_EQ(fetched.slots, fetched.expected);
}

TEST(Fetch, SeveralStoresAtOnce) {
  std::mt19937_64 rng(test::seed());
  Queue queue({.n_threads = 2});
  for (const RowCodec codec : {RowCodec::kBf16, RowCodec::kInt4}) {
    for (const int64_t n : {2, 40}) {  // by one thread, and by several
      std::vector<Fetched> all;
      std::vector<FetchParams> params;
      for (int64_t i = 0; i < n; ++i) {
        const FetchCase f = {2, 8, 64, 30 + i, 8 + i, 2 + i};
        all.emplace_back(queue, f, codec == RowCodec::kBf16, codec, rng);
      }
      for (const Fetched& one : all) params.push_back(one.params);
      cpu::fetch(queue, params);
      for (const Fetched& one : all) ASSERT_EQ(one.slots, one.expected);
    }
  }
}

TEST(Fetch, MissedChunksAndNothingBesides) {
  std::mt19937_64 rng(test::seed());
  for (const bool with_keys : {false, true}) {
    for (int round = 0; round < 5; ++round) {
      expect_fetched({2, 8, 64, 100, 20, 12}, with_keys, RowCodec::kBf16, rng);
      expect_fetched({3, 5, 80, 50, 10, 10}, with_keys, RowCodec::kBf16, rng);
      expect_fetched({2, 8, 128, 600, 400, 300}, with_keys, RowCodec::kBf16, rng);
    }
  }
}

TEST(Fetch, CodedValuesAreDecodedOnTheWay) {
  std::mt19937_64 rng(test::seed());
  for (const cpu::Isa isa : test::tested_isas()) {
    for (const RowCodec codec : {RowCodec::kInt8, RowCodec::kInt4}) {
      for (const bool with_keys : {false, true}) {
        for (const int threads : {1, 3}) {
          const cpu::QueueOptions options{.n_threads = threads, .isa = isa};
          expect_fetched({2, 8, 64, 100, 20, 12}, with_keys, codec, rng, options);
          expect_fetched({3, 5, 96, 50, 10, 10}, with_keys, codec, rng, options);
          expect_fetched({3, 1, 32, 50, 10, 10}, with_keys, codec, rng, options);
          expect_fetched({2, 16, 256, 40, 30, 25}, with_keys, codec, rng, options);
          expect_fetched({2, 8, 128, 300, 250, 200}, with_keys, codec, rng, options);
        }
      }
    }
  }
}

}  // namespace
}  // namespace tiercel
