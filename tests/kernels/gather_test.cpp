// Copies of chunks, and empty slots.
#include "kernels/gather.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/kernels/device_vector.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

TEST(CudaGather, ChunksInTheOrderOfIds) {
  std::mt19937_64 rng(test::seed());
  struct Shape {
    int32_t chunk, d;
    int64_t padding;  // of a head: odd ones forbid wide copies
  };
  for (const Shape& s : {Shape{8, 64, 0}, Shape{8, 128, 8}, Shape{5, 34, 2}, Shape{1, 80, 3}}) {
    const int64_t n_chunks = 20, n_ids = 7, rows = n_chunks * s.chunk;
    const int64_t stride = rows * s.d + s.padding, out_stride = (n_ids * s.chunk + 2) * s.d;
    test::DeviceVector<bf16> keys(3 * stride), values(3 * stride);
    for (bf16& x : keys) x.bits = static_cast<uint16_t>(rng());
    for (bf16& x : values) x.bits = static_cast<uint16_t>(rng());
    test::DeviceVector<int32_t> ids(3 * n_ids);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % n_chunks);
    const bf16 poison = bf16::from_bits(0x7fc1);
    test::DeviceVector<bf16> out_keys(3 * out_stride, poison), out_values(3 * out_stride, poison);
    GatherParams p;
    p.keys = keys.data();
    p.values = values.data();
    p.head_stride = stride;
    p.ids = ids.data();
    p.n_ids = n_ids;
    p.out_keys = out_keys.data();
    p.out_values = out_values.data();
    p.out_head_stride = out_stride;
    p.chunk_tokens = s.chunk;
    p.n_kv_heads = 3;
    p.head_dim = s.d;
    cuda::gather_chunks(test::stream(), p);
    test::stream().finish();
    const int64_t chunk = int64_t{s.chunk} * s.d;
    for (int64_t j = 0; j < 3; ++j) {
      for (int64_t i = 0; i < out_stride; ++i) {
        const int64_t at = i / chunk;
        const int64_t source =
            at < n_ids ? j * stride + ids[j * n_ids + at] * chunk + i % chunk : 0;
        ASSERT_EQ(out_keys[j * out_stride + i], at < n_ids ? keys[source] : poison);
        ASSERT_EQ(out_values[j * out_stride + i], at < n_ids ? values[source] : poison);
      }
    }
  }
}

TEST(CudaGather, NoIds) {
  GatherParams p;
  p.chunk_tokens = 8;
  p.n_kv_heads = 2;
  p.head_dim = 64;
  cuda::gather_chunks(test::stream(), p);
  test::stream().finish();
}

TEST(CudaGather, ResetEmptiesEverySlot) {
  test::DeviceVector<int32_t> slot_of_chunk(2 * 100, 5), chunk_of_slot(2 * 300, 5),
      order(2 * 300, 5);
  const SlotState state{slot_of_chunk.data(), chunk_of_slot.data(), order.data(), 100, 300};
  cuda::reset_slots(test::stream(), state, 2);
  test::stream().finish();
  for (const int32_t x : slot_of_chunk) ASSERT_EQ(x, -1);
  for (const int32_t x : chunk_of_slot) ASSERT_EQ(x, -1);
  for (int32_t i = 0; i < 600; ++i) ASSERT_EQ(order[i], i % 300);
}

}  // namespace
}  // namespace tiercel
