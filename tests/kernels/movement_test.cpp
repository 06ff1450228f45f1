// Copies and fetches of the CUDA half: every byte where it belongs, and nothing besides.
#include "kernels/movement.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <list>
#include <random>
#include <vector>

#include "engine/base/check.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/codec.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using cuda::FetchPlan;
using test::DeviceVector;

// Vectors of the device, back as ordinary ones that gtest compares.
template <typename T>
std::vector<T> host(const DeviceVector<T>& x) {
  return {x.begin(), x.end()};
}

TEST(CudaCopy, RowsOfAnyStrideAndNothingBesides) {
  std::mt19937_64 rng(test::seed());
  for (int round = 0; round < 60; ++round) {
    const int64_t n_rows = static_cast<int64_t>(rng() % 300);
    const int64_t row_bytes = static_cast<int64_t>(rng() % (round % 6 == 0 ? 20000 : 500));
    const int64_t source_stride =
        row_bytes + (round % 3 == 0 ? 0 : static_cast<int64_t>(rng() % 50));
    const int64_t target_stride =
        row_bytes + (round % 2 == 0 ? 0 : static_cast<int64_t>(rng() % 50));
    DeviceVector<unsigned char> source(static_cast<size_t>(n_rows * source_stride + 1)),
        target(static_cast<size_t>(n_rows * target_stride + 1));
    for (auto& x : source) x = static_cast<unsigned char>(rng());
    for (auto& x : target) x = static_cast<unsigned char>(rng());
    std::vector<unsigned char> expected = host(target);
    for (int64_t r = 0; r < n_rows; ++r) {
      std::copy_n(source.begin() + r * source_stride, row_bytes,
                  expected.begin() + r * target_stride);
    }
    cuda::copy(test::stream(),
               {source.data(), target.data(), n_rows, row_bytes, source_stride, target_stride});
    test::stream().finish();
    ASSERT_EQ(host(target), expected) << n_rows << " rows of " << row_bytes;
  }
}

struct FetchCase {
  int32_t n_kv_heads, chunk, d;
  int64_t n_chunks, n_slots, stride;
};

// Random planes, lists and slots, and what the slots must hold afterwards. The rows of a list
// beyond its count name no chunk: whoever reads them leaves the planes.
struct Fetched {
  Fetched(const FetchCase& f, bool with_keys, std::mt19937_64& rng)
      : values(static_cast<size_t>(f.n_kv_heads * f.n_chunks * f.chunk * f.d)),
        keys(values.size()),
        slots(static_cast<size_t>(f.n_kv_heads * f.n_slots * 2 * f.chunk * f.d)),
        chunks(static_cast<size_t>(f.n_kv_heads * f.stride), 1 << 30),
        targets(chunks.size(), 1 << 30) {
    const int64_t size = int64_t{f.chunk} * f.d;
    for (bf16& x : values) x.bits = static_cast<uint16_t>(rng());
    for (bf16& x : keys) x.bits = static_cast<uint16_t>(rng());
    for (bf16& x : slots) x.bits = 0x7fc1;
    expected = host(slots);
    for (int64_t j = 0; j < f.n_kv_heads; ++j) {
      std::vector<int32_t> free(static_cast<size_t>(f.n_slots));
      for (size_t s = 0; s < free.size(); ++s) free[s] = static_cast<int32_t>(s);
      std::shuffle(free.begin(), free.end(), rng);
      counts.push_back(j == 1 ? 0 : static_cast<int32_t>(rng() % uint64_t(f.stride + 1)));
      for (int64_t i = 0; i < counts.back(); ++i) {
        const size_t at = static_cast<size_t>(j * f.stride + i);
        chunks[at] = static_cast<int32_t>(rng() % uint64_t(f.n_chunks));
        targets[at] = free[static_cast<size_t>(i)];
        const int64_t from = (j * f.n_chunks + chunks[at]) * size;
        const int64_t to = (j * f.n_slots + targets[at]) * 2 * size;
        if (with_keys) std::copy_n(keys.begin() + from, size, expected.begin() + to);
        std::copy_n(values.begin() + from, size, expected.begin() + to + size);
      }
    }
    params.values = values.data();
    params.keys = with_keys ? keys.data() : nullptr;
    params.value_head_stride = params.key_head_stride = f.n_chunks * size;
    params.miss_chunks = chunks.data();
    params.miss_slots = targets.data();
    params.miss_counts = counts.data();
    params.stride = f.stride;
    params.slots = slots.data();
    params.slot_head_stride = f.n_slots * 2 * size;
    params.chunk_tokens = f.chunk;
    params.n_kv_heads = f.n_kv_heads;
    params.head_dim = f.d;
  }
  DeviceVector<bf16> values, keys, slots;
  DeviceVector<int32_t> chunks, targets, counts;
  std::vector<bf16> expected;
  FetchParams params;
};

std::vector<FetchCase> fetch_cases() {
  return {
    {2, 8, 64, 100, 20, 12},      // the chunks of small models
        {3, 5, 80, 50, 10, 10},   // not a power of two
        {3, 8, 128, 40, 30, 25},  // a stage of the default ring
        {2, 64, 128, 9, 6, 5},    // longer than a stage
        {2, 3, 104, 20, 9, 8},    // 624 bytes: a line and a rest
        {3, 1, 2, 300, 40, 40},   // no multiple of 16 bytes
        {2, 3, 10, 30, 12, 11}, {1, 8, 16, 5, 3, 3},
#if defined(TIERCEL_ON_DEVICE)
        {8, 8, 128, 20000, 3000, 2500}, {4, 8, 256, 5000, 900, 900},
#endif
  };
}

TEST(CudaFetch, MissedChunksAndNothingBesides) {
  std::mt19937_64 rng(test::seed());
  for (const FetchCase& f : fetch_cases()) {
    for (const bool with_keys : {false, true}) {
      for (cuda::Stream* stream : {&test::stream(), &test::older_stream()}) {
        Fetched fetched(f, with_keys, rng);
        cuda::fetch(*stream, fetched.params);
        stream->finish();
        ASSERT_EQ(host(fetched.slots), fetched.expected)
            << f.chunk << " x " << f.d << (with_keys ? " with keys" : "");
      }
    }
  }
}

TEST(CudaFetch, EveryPlanMovesTheSame) {
  std::mt19937_64 rng(test::seed());
  std::vector<FetchPlan> plans;
  for (const int32_t depth : {4, 8, 16}) {
    plans.push_back({.kind = FetchPlan::Kind::kDirect, .blocks = depth / 4, .depth = depth});
  }
  if (test::stream().architecture() == 90) {
    for (const int32_t depth : {2, 3, 8}) {
      for (const int32_t bytes : {512, 1536, 2048, 6144}) {
        plans.push_back({.kind = FetchPlan::Kind::kBulk,
                         .blocks = depth,
                         .depth = depth,
                         .stage_bytes = bytes});
      }
    }
  }
  for (const FetchPlan& plan : plans) {
    for (const FetchCase& f : {FetchCase{3, 8, 128, 40, 30, 25}, FetchCase{2, 3, 104, 20, 9, 8}}) {
      Fetched fetched(f, true, rng);
      cuda::fetch_with(test::stream(), {&fetched.params, 1}, plan);
      test::stream().finish();
      ASSERT_EQ(host(fetched.slots), fetched.expected)
          << "depth " << plan.depth << ", " << plan.stage_bytes << " bytes";
    }
  }
}

// Values in few bits: any bytes are codes, any finite bf16 a step. Decoding is fmaf and one
// rounding, so that there is one right answer.
struct FetchCoded : Fetched {
  FetchCoded(const FetchCase& f, RowCodec codec, bool with_keys, int64_t offset,
             std::mt19937_64& rng)
      : Fetched(f, with_keys, rng) {
    const int64_t bytes = row_bytes(codec, f.d), n_tokens = f.n_chunks * f.chunk;
    const int64_t head_stride = (n_tokens * bytes + 31) / 16 * 16;
    codes.resize(static_cast<size_t>(f.n_kv_heads * head_stride + offset));
    for (std::byte& b : codes) b = static_cast<std::byte>(rng());
    expected_of_planes = expected;
    planes = params;
    params.values = nullptr;
    params.value_head_stride = 0;
    params.value_codec = codec;
    params.value_codes = codes.data() + offset;
    params.value_code_head_stride = head_stride;
    for (int64_t j = 0; j < f.n_kv_heads; ++j) {
      for (int64_t t = 0; t < n_tokens; ++t) {
        std::byte* row = codes.data() + offset + j * head_stride + t * bytes;
        for (std::byte* scale = row + f.d * code_bits(codec) / 8; scale != row + bytes;
             scale += 2) {
          scale[1] &= std::byte{0xbf};  // the exponent's highest bit: below 2
        }
      }
    }
    const int64_t size = int64_t{f.chunk} * f.d;
    for (int64_t j = 0; j < f.n_kv_heads; ++j) {
      for (int64_t i = 0; i < counts[static_cast<size_t>(j)]; ++i) {
        const size_t at = static_cast<size_t>(j * f.stride + i);
        bf16* target = expected.data() + (j * f.n_slots + targets[at]) * 2 * size + size;
        for (int64_t t = 0; t < f.chunk; ++t) {
          const std::byte* row =
              codes.data() + offset + j * head_stride + (int64_t{chunks[at]} * f.chunk + t) * bytes;
          for (const float x : test::decoded_row(row, codec, f.d)) *target++ = bf16(x);
        }
      }
    }
  }
  DeviceVector<std::byte> codes;
  FetchParams planes;  // the same fetch of values as they are
  std::vector<bf16> expected_of_planes;
};

TEST(CudaFetch, CodedValues) {
  std::mt19937_64 rng(test::seed());
  const std::vector<FetchCase> cases = {
    {2, 8, 64, 100, 20, 12},
    {3, 5, 96, 50, 10, 10},   // 540 or 300 bytes a chunk: no multiple of 16
    {3, 8, 128, 40, 30, 25},  // three chunks, or seven, at a time
    {2, 64, 128, 9, 6, 5},    // a chunk in parts
    {2, 50, 32, 9, 6, 5},     // likewise, in parts of 4 bytes
    {2, 16, 256, 12, 9, 8},
    {3, 1, 32, 300, 40, 40},
    {1, 2, 64, 30, 12, 11},
#if defined(TIERCEL_ON_DEVICE)
    {8, 8, 128, 20000, 3000, 2500},
#endif
  };
  for (const FetchCase& f : cases) {
    for (const RowCodec codec : {RowCodec::kInt8, RowCodec::kInt4}) {
      for (const bool with_keys : {false, true}) {
        for (const int64_t offset : {0, 4}) {
          FetchCoded fetched(f, codec, with_keys, offset, rng);
          cuda::fetch(test::stream(), fetched.params);
          test::stream().finish();
          ASSERT_EQ(host(fetched.slots), fetched.expected)
              << f.chunk << " x " << f.d << ", " << code_bits(codec) << " bits"
              << (with_keys ? ", with keys" : "");
        }
      }
    }
  }
}

// Stores whose contexts have other lengths: one launch, or several.
TEST(CudaFetch, SeveralStoresAtOnce) {
  std::mt19937_64 rng(test::seed());
  for (const RowCodec codec : {RowCodec::kBf16, RowCodec::kInt8}) {
    for (const int64_t n : {2, 16, 35}) {
      std::list<FetchCoded> all;
      std::vector<FetchParams> params;
      for (int64_t i = 0; i < n; ++i) {
        const FetchCase f = {2, 8, 64, 20 + i, 6 + i % 5, 1 + i % 5};
        all.emplace_back(f, RowCodec::kInt8, /*with_keys=*/true, /*offset=*/0, rng);
        params.push_back(codec == RowCodec::kBf16 ? all.back().planes : all.back().params);
      }
      cuda::fetch(test::stream(), params);
      test::stream().finish();
      for (FetchCoded& one : all) {
        ASSERT_EQ(host(one.slots), codec == RowCodec::kBf16 ? one.expected_of_planes : one.expected);
      }
    }
  }
}

// Planes and slots whose heads lie more than 2^31 elements apart. Memory that nobody touches is not
// there in the emulator; a device would pin all of it.
#if !defined(TIERCEL_ON_DEVICE)
TEST(CudaFetch, OffsetsBeyond32Bits) {
  std::mt19937_64 rng(test::seed());
  Fetched fetched({2, 8, 64, 10, 6, 6}, false, rng);
  fetched.counts[1] = 1;
  fetched.chunks[6] = (1 << 22) + 3;  // element 2^31 and more of head 1
  fetched.targets[6] = (1 << 21) + 1;
  const int64_t stride = int64_t{5} << 30;
  FetchParams& p = fetched.params;
  p.value_head_stride = p.key_head_stride = p.slot_head_stride = stride;
  const size_t bytes = static_cast<size_t>(2 * stride) * sizeof(bf16);
  const auto map = [&] {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED, "{} bytes", bytes);
    return static_cast<bf16*>(memory);
  };
  bf16 *plane = map(), *slots = map();
  p.values = plane;
  p.slots = slots;
  p.miss_counts = fetched.counts.data();
  fetched.counts[0] = 0;
  bf16* source = plane + stride + int64_t{fetched.chunks[6]} * 512;
  for (int i = 0; i < 512; ++i) source[i].bits = static_cast<uint16_t>(rng());
  cuda::fetch(test::stream(), p);
  cuda::fetch(test::older_stream(), p);
  for (cuda::Stream* stream : {&test::stream(), &test::older_stream()}) stream->finish();
  const bf16* target = slots + stride + (2 * int64_t{fetched.targets[6]} + 1) * 512;
  EXPECT_TRUE(std::equal(source, source + 512, target));
  munmap(plane, bytes);
  munmap(slots, bytes);
}
#endif

}  // namespace
}  // namespace tiercel
