// Prefill attention with mma.sync: any architecture from sm_80, any head dim up to 256, chunks of
// any size.
//
// 8 warps of 16 queries. Keys and values have one buffer each and are loaded crosswise: the values
// of a tile while its scores are computed, the next keys while its values are multiplied, two block
// barriers per tile. Rows of a chunk list are gathered 16 bytes at a time, so their order is free.
#pragma once

#include "kernels/attention_prefill.cuh"

namespace tiercel::cuda::prefill {

// kExact: the head dim is kDim. Otherwise it is smaller, and the rest of a row in shared memory is
// zeros.
template <int kDim_, int kKeys_, bool kExact_>
struct MmaShape {
  static constexpr int kDim = kDim_, kKeys = kKeys_;
  static constexpr bool kExact = kExact_;
  static constexpr int kQueries = 128, kThreads = 256;
  static constexpr int kUnits = kDim / 8;  // of 16 bytes, per row
  static constexpr bool kQueriesInRegisters = kDim <= 64;
  static constexpr int kKeysAt = kQueries * kDim * 2;
  static constexpr int kValuesAt = kKeysAt + kKeys * kDim * 2;
  static constexpr int kBytes = kValuesAt + kKeys * kDim * 2;
  static_assert(kKeys * kUnits % kThreads == 0 && kQueries * kUnits % kThreads == 0);

  // Units are permuted within a row so that 8 consecutive rows lie in 8 bank groups.
  GPU static int place(int row, int unit) {
    const int turn = kDim % 64 == 0 ? row & 7 : row >> 1 & 3;  // a row of 96: 12 units
    return (row * kUnits + (unit ^ turn)) * 16;
  }
};

// Copies rows to shared memory: one 16-byte unit per thread and step.
template <class Shape>
struct MmaLoader {
  const Job& job;
  const Tile& tile;

  GPU void unit(uint8_t* target, const bf16* row, int unit, bool valid) const {
    using namespace gpu;
    if constexpr (Shape::kExact) {
      copy_async16(target, row + unit * 8, valid);
      return;
    }
    if (job.aligned) {
      const bool inside = unit * 8 < job.op.head_dim;
      copy_async16(target, inside ? row + unit * 8 : row, valid && inside);
      return;
    }
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = unit * 8 + i * 2;
      if (valid && channel < job.op.head_dim) {
        words[i] = *reinterpret_cast<const uint32_t*>(row + channel);
      }
    }
    *reinterpret_cast<uint4*>(target) = {words[0], words[1], words[2], words[3]};
  }

  GPU int head_dim() const { return Shape::kExact ? Shape::kDim : job.op.head_dim; }

  GPU void queries(uint8_t* smem) const {
    const int64_t stride = int64_t{job.op.n_heads} * head_dim();
    const bf16* q = job.op.q + tile.first_token * stride + int64_t{tile.head} * head_dim();
#pragma unroll
    for (int step = 0; step < Shape::kQueries * Shape::kUnits / Shape::kThreads; ++step) {
      const int i = step * Shape::kThreads + static_cast<int>(threadIdx.x);
      const int row = i / Shape::kUnits, u = i % Shape::kUnits;
      const bool valid = row < tile.n_rows;
      unit(smem + Shape::place(row, u), valid ? q + row * stride : q, u, valid);
    }
  }

  // Keys first .. of the list; zeros past its end, where a plane may hold anything.
  GPU void rows(uint8_t* target, const bf16* plane, int first) const {
    const bool local = first >= tile.list.n_chunk_keys;
    plane += tile.kv_head * job.op.head_stride;
#pragma unroll
    for (int step = 0; step < Shape::kKeys * Shape::kUnits / Shape::kThreads; ++step) {
      const int i = step * Shape::kThreads + static_cast<int>(threadIdx.x);
      const int row = i / Shape::kUnits, u = i % Shape::kUnits, key = first + row;
      const bool valid = key < tile.n_keys;
      int64_t at = 0;
      if (valid) at = local ? tile.list.local_row(key) : tile.list.row(key);
      unit(target + Shape::place(row, u), plane + at * head_dim(), u, valid);
    }
    gpu::copy_commit();
  }
};

// A warp's products. Fragments of 8 columns are read four at a time (ldmatrix.x4).
template <class Shape>
struct MmaWarp {
  static constexpr int kDim = Shape::kDim, kSteps = kDim / 16;
  uint32_t queries[Shape::kQueriesInRegisters ? kSteps : 1][4];
  float scores[Shape::kKeys / 2];
  float out[Shape::kDim / 2] = {};
  RowState rows;

  GPU static float (&four(float* x))[4] { return *reinterpret_cast<float(*)[4]>(x); }
  GPU static int first_row() { return static_cast<int>(threadIdx.x / 32 * 16); }

  GPU static void read_queries(uint32_t (&a)[4], const uint8_t* smem, int step) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    gpu::load_matrix(a, smem + Shape::place(first_row() + lane % 16, step * 2 + lane / 16));
  }

  GPU void keep_queries(const uint8_t* smem) {
    if constexpr (Shape::kQueriesInRegisters) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) read_queries(queries[step], smem, step);
    }
  }

  // scores = Q K^T
  GPU void score(const uint8_t* smem) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (float& s : scores) s = 0.0f;
      // Fully unrolled, 16 addresses are kept and the registers of a wide head do not suffice.
#pragma unroll(kDim > 128 ? 4 : kSteps)
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[4];
      if constexpr (Shape::kQueriesInRegisters) {
#pragma unroll
        for (int r = 0; r < 4; ++r) a[r] = queries[step][r];
      } else {
        read_queries(a, smem, step);
      }
#pragma unroll
      for (int j = 0; j < Shape::kKeys / 16; ++j) {
        uint32_t b[4];
        const int key = j * 16 + lane % 8 + lane / 16 * 8;
        gpu::load_matrix(b, smem + Shape::kKeysAt + Shape::place(key, step * 2 + lane / 8 % 2));
        gpu::mma_16x8x16(four(scores + j * 8), a, b[0], b[1]);
        gpu::mma_16x8x16(four(scores + j * 8 + 4), a, b[2], b[3]);
      }
    }
  }

  // out += P V
  GPU void accumulate(const uint8_t* smem) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      uint32_t a[4];
      pack_weights(a, scores, step);
#pragma unroll
      for (int j = 0; j < Shape::kDim / 16; ++j) {
        uint32_t b[4];
        const int key = step * 16 + lane % 16;
        gpu::load_matrix_transposed(b,
                                    smem + Shape::kValuesAt + Shape::place(key, j * 2 + lane / 16));
        gpu::mma_16x8x16(four(out + j * 8), a, b[0], b[1]);
        gpu::mma_16x8x16(four(out + j * 8 + 4), a, b[2], b[3]);
      }
    }
  }
};

template <class Shape, bool kKeyBias>
KERNEL(Shape::kThreads, 1)
attend_prefill_mma(const GRID_CONST Job job) {
  using namespace gpu;
  constexpr int kKeys = Shape::kKeys;
  SHARED(smem);
  const Tile tile = make_tile<Shape::kQueries, kKeys>(job);
  if (tile.n_rows <= 0) return;
  const MmaLoader<Shape> load{job, tile};
  const int last = tile.n_keys > 0 ? (tile.n_keys - 1) / kKeys : 0;
  load.queries(smem);
  load.rows(smem + Shape::kKeysAt, job.op.keys, last * kKeys);

  MmaWarp<Shape> warp;
  const int row = MmaWarp<Shape>::first_row() + lane_row();
  // Of the warp's first row.
  int first_end = tile.first_end + MmaWarp<Shape>::first_row();
  if (first_end > tile.n_keys) first_end = tile.n_keys;
  for (int it = last; it >= 0; --it) {
    const int first = it * kKeys;
    copy_wait<0>();
    sync_threads();  // the keys are here, and everybody is done with the values before
    load.rows(smem + Shape::kValuesAt, job.op.values, first);
    if (it == last) warp.keep_queries(smem);
    warp.score(smem);

    copy_wait<0>();
    sync_threads();  // the values are here, and everybody is done with the keys
    if (it > 0) load.rows(smem + Shape::kKeysAt, job.op.keys, first - kKeys);
    if constexpr (kKeyBias) add_key_bias(warp.scores, job, tile, first);
    // In 64 bits: an unlimited window reaches far below zero.
    if (first + kKeys > first_end || first + int64_t{job.window} < first_end + 15) {
      mask_scores(warp.scores, first, tile.first_end + row, tile.n_keys, job.window);
    }
    float alpha[2];
    online_softmax(warp.scores, job.unit, warp.rows, alpha);
    rescale(warp.out, alpha);
    warp.accumulate(smem);
  }
  store_rows<Shape::kDim>(job.op, tile, row, warp.out, warp.rows);
}

}  // namespace tiercel::cuda::prefill
