// Prefill attention on Hopper: the tensor copy engine feeds wgmma, and warpgroups have roles.
//
//   producer   queries; then, tile by tile from the last down:  wait for room -> keys,
//              wait for room -> values
//   consumer   64 queries each.  S = Q K^T | softmax | out = alpha out + P V
//
// A tile of keys arrives as one box per swizzled column block where its rows are consecutive, and
// otherwise as boxes of box_rows rows (a divisor of the chunk, at least one 8-row swizzle atom),
// each found through the chunk list by its own lane. Consumers see no difference.
//
// Rows past the last position arrive as zeros. Columns past the head dim do too, so an instance
// also serves smaller head dims.
#pragma once

#include "kernels/attention_prefill.cuh"
#include "kernels/attention_prefill.h"

namespace tiercel::cuda::prefill {

template <int kDim_, int kQueries_, int kKeys_, int kStages_>
struct HopperShape {
  static constexpr int kDim = kDim_, kQueries = kQueries_, kKeys = kKeys_, kStages = kStages_;
  static constexpr int kConsumers = kQueries / 64, kThreads = (kConsumers + 1) * 128;
  // A column block is one span of the swizzle.
  static constexpr int kSpan = kDim % 64 == 0 ? 128 : 64;  // bytes
  static constexpr int kColumns = kSpan / 2, kColumnBlocks = kDim / kColumns;
  static constexpr int kTileBytes = kColumnBlocks * kKeys * kSpan;
  static constexpr int kQueryBytes = kColumnBlocks * kQueries * kSpan;
  static constexpr int kKeysAt = kQueryBytes;
  static constexpr int kValuesAt = kKeysAt + kStages * kTileBytes;
  static constexpr int kBarriersAt = kValuesAt + kStages * kTileBytes;
  static constexpr int kBytes = kBarriersAt + 8 * (1 + 4 * kStages);
  // The launch gets 65536 / threads registers per thread, rounded down to 8; the roles share them.
  static constexpr int kProducerRegisters = kConsumers == 2 ? 24 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 240 : 160;
  static_assert(kQueries % 64 == 0 && (kConsumers == 2 || kConsumers == 3));
  static_assert((kProducerRegisters + kConsumers * kConsumerRegisters) * 128 <=
                65536 / kThreads / 8 * 8 * kThreads);
  static_assert(kTileBytes % 1024 == 0 && kQueryBytes % 1024 == 0 && kBytes <= 232448);
};

struct HopperJob {
  gpu::TensorMap queries;               // boxes of kQueries tokens of one head
  gpu::TensorMap keys, values;          // boxes of kKeys rows
  gpu::TensorMap key_rows, value_rows;  // boxes of box_rows rows, where there are chunks
  Job job;
  int32_t box_rows = 0;
};

#if TIERCEL_HOPPER_BODY

// Barriers of the ring: full when a copy has landed, empty when every consumer warp has read it.
template <class Shape>
struct Ring {
  uint64_t *queries_full, *keys_full, *values_full, *keys_empty, *values_empty;

  GPU explicit Ring(uint8_t* smem) {
    queries_full = reinterpret_cast<uint64_t*>(smem + Shape::kBarriersAt);
    keys_full = queries_full + 1;
    values_full = keys_full + Shape::kStages;
    keys_empty = values_full + Shape::kStages;
    values_empty = keys_empty + Shape::kStages;
  }

  GPU void init() const {
    gpu::mbar_init(queries_full, 1);
    for (int s = 0; s < Shape::kStages; ++s) {
      gpu::mbar_init(keys_full + s, 1);
      gpu::mbar_init(values_full + s, 1);
      gpu::mbar_init(keys_empty + s, Shape::kConsumers * 4);
      gpu::mbar_init(values_empty + s, Shape::kConsumers * 4);
    }
    gpu::mbar_fence_init();
  }
};

// One warp issues every copy.
template <class Shape>
struct Producer {
  static constexpr int kBlockBytes = Shape::kKeys * Shape::kSpan;
  const HopperJob& p;
  const Tile& tile;
  int lane = static_cast<int>(threadIdx.x % 32);
  bool whole = true;  // the tile's rows are consecutive
  int row = 0;        // where the tile, or else this lane's box, begins

  GPU void queries(uint8_t* smem, uint64_t* full) const {
    if (lane != 0) return;
    gpu::mbar_expect_bytes(full, Shape::kQueryBytes);
    for (int c = 0; c < Shape::kColumnBlocks; ++c) {
      gpu::copy_box_3d(smem + c * Shape::kQueries * Shape::kSpan, &p.queries, c * Shape::kColumns,
                       tile.head, static_cast<int>(tile.first_token), full);
    }
  }

  GPU void find_rows(int first) {
    whole = first >= tile.list.n_chunk_keys;
    if (whole) {
      row = static_cast<int>(tile.list.local_row(first));
    } else if (lane * p.box_rows < Shape::kKeys) {
      row = static_cast<int>(tile.list.row(first + lane * p.box_rows));
    }
  }

  GPU void rows(uint8_t* target, const gpu::TensorMap& map, const gpu::TensorMap& row_map,
                uint64_t* full) const {
    if (lane == 0) gpu::mbar_expect_bytes(full, Shape::kTileBytes);
    gpu::sync_warp();  // bytes are announced before they arrive
    if (whole) {
      if (lane < Shape::kColumnBlocks) {
        gpu::copy_box_3d(target + lane * kBlockBytes, &map, lane * Shape::kColumns, row,
                         tile.kv_head, full);
      }
    } else if (lane * p.box_rows < Shape::kKeys) {
#pragma unroll
      for (int c = 0; c < Shape::kColumnBlocks; ++c) {
        gpu::copy_box_3d(target + c * kBlockBytes + lane * p.box_rows * Shape::kSpan, &row_map,
                         c * Shape::kColumns, row, tile.kv_head, full);
      }
    }
  }

  GPU void run(uint8_t* smem, const Ring<Shape>& ring, int n_tiles) {
    queries(smem, ring.queries_full);
    for (int it = 0; it < n_tiles; ++it) {
      const int s = it % Shape::kStages;
      const uint32_t parity = static_cast<uint32_t>(it / Shape::kStages & 1);
      find_rows((n_tiles - 1 - it) * Shape::kKeys);
      gpu::mbar_wait(ring.keys_empty + s, parity ^ 1);
      rows(smem + Shape::kKeysAt + s * Shape::kTileBytes, p.keys, p.key_rows, ring.keys_full + s);
      gpu::mbar_wait(ring.values_empty + s, parity ^ 1);
      rows(smem + Shape::kValuesAt + s * Shape::kTileBytes, p.values, p.value_rows,
           ring.values_full + s);
    }
  }
};

// One warpgroup's 64 queries. Descriptors advance by bytes / 16.
template <class Shape>
struct Consumer {
  static constexpr int kKeys = Shape::kKeys, kSpan = Shape::kSpan;
  static constexpr int kStepsPerBlock = Shape::kColumns / 16;
  const Ring<Shape>& ring;
  uint64_t queries, keys, values;  // descriptors
  int group_end, end, n_keys;      // of the warpgroup's first row, of this lane's, of the list
  uint32_t window;
  float unit;
  int n_tiles;
  float scores[kKeys / 2];
  uint32_t weights[kKeys / 16][4];
  float out[Shape::kDim / 2] = {};
  float alpha[2];
  RowState rows;

  GPU Consumer(const Job& job, const Tile& tile, const uint8_t* smem, const Ring<Shape>& ring_,
               int group, int row, int n_tiles_)
      : ring(ring_), n_tiles(n_tiles_) {
    using gpu::wgmma_descriptor;
    const uint32_t base = gpu::shared_address(smem);
    queries = wgmma_descriptor<kSpan>(base + group * 64 * kSpan, 16, 8 * kSpan);
    keys = wgmma_descriptor<kSpan>(base + Shape::kKeysAt, 16, 8 * kSpan);
    values = wgmma_descriptor<kSpan>(base + Shape::kValuesAt, kKeys * kSpan, 8 * kSpan);
    n_keys = tile.n_keys;
    group_end = tile.first_end + group * 64;
    if (group_end > n_keys) group_end = n_keys;
    end = tile.first_end + row;
    window = job.window;
    unit = job.unit;
  }

  // scores = Q K^T, issued
  GPU void issue_scores(int stage) {
    gpu::pin(scores);
    gpu::wgmma_fence();
#pragma unroll
    for (int k = 0; k < Shape::kDim / 16; ++k) {
      const int block = k / kStepsPerBlock, within = k % kStepsPerBlock * 32;
      gpu::Wgmma<kKeys>::template ss<0>(
          scores, queries + (block * Shape::kQueries * kSpan + within) / 16,
          keys + (stage * Shape::kTileBytes + block * kKeys * kSpan + within) / 16, k > 0);
    }
    gpu::wgmma_commit();
  }

  // out += P V, issued
  GPU void issue_values(int stage) {
    gpu::pin(out);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) gpu::pin(weights[k]);
    gpu::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      gpu::Wgmma<Shape::kDim>::template rs<1>(
          out, weights[k], values + (stage * Shape::kTileBytes + k * 16 * kSpan) / 16, 1);
    }
    gpu::wgmma_commit();
  }

  template <int kPending, int kN>
  GPU void wait_for(float (&product)[kN], uint64_t* empty) {
    gpu::wgmma_wait<kPending>();
    gpu::pin(product);
    if (threadIdx.x % 32 == 0) gpu::mbar_arrive(empty);
  }

  GPU void softmax(int it) {
    const int first = (n_tiles - 1 - it) * kKeys;
    // In 64 bits: an unlimited window reaches far below zero.
    if (first + kKeys > group_end || first + int64_t{window} < group_end + 63) {
      mask_scores(scores, first, end, n_keys, window);
    }
    online_softmax(scores, unit, rows, alpha);
  }

  GPU void rescale_and_pack() {
    rescale(out, alpha);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) pack_weights(weights[k], scores, k);
  }

  GPU static int stage_of(int it) { return it % Shape::kStages; }
  GPU static uint32_t parity_of(int it) { return static_cast<uint32_t>(it / Shape::kStages & 1); }

  GPU void run_plain() {
    for (int it = 0; it < n_tiles; ++it) {
      const int s = stage_of(it);
      gpu::mbar_wait(ring.keys_full + s, parity_of(it));
      issue_scores(s);
      wait_for<0>(scores, ring.keys_empty + s);
      softmax(it);
      rescale_and_pack();
      gpu::mbar_wait(ring.values_full + s, parity_of(it));
      issue_values(s);
      wait_for<0>(out, ring.values_empty + s);
    }
  }

  // kTurns: warpgroup g issues products only in its turn, so that its softmax falls under the other
  // one's products. A turn begins at named barrier 1 + g; every block of 2 takes equally many.
  template <bool kTurns>
  GPU void run_overlapped(int group) {
    if (kTurns && group == 0) gpu::bar_arrive(2, 256);  // as if warpgroup 0 had just had its turn
    gpu::mbar_wait(ring.keys_full, 0);
    issue_scores(0);
    wait_for<0>(scores, ring.keys_empty);
    softmax(0);
    rescale_and_pack();
    for (int it = 1; it < n_tiles; ++it) {
      const int s = stage_of(it), before = stage_of(it - 1);
      gpu::mbar_wait(ring.keys_full + s, parity_of(it));
      gpu::mbar_wait(ring.values_full + before, parity_of(it - 1));
      if constexpr (kTurns) gpu::bar_sync(1 + group, 256);
      issue_scores(s);
      issue_values(before);
      if constexpr (kTurns) gpu::bar_arrive(2 - group, 256);
      wait_for<1>(scores, ring.keys_empty + s);  // the values are still being multiplied
      softmax(it);
      wait_for<0>(out, ring.values_empty + before);
      rescale_and_pack();
    }
    if (kTurns && group == 1) gpu::bar_sync(2, 256);  // takes the arrival that is left over
    const int s = stage_of(n_tiles - 1);
    gpu::mbar_wait(ring.values_full + s, parity_of(n_tiles - 1));
    issue_values(s);
    wait_for<0>(out, ring.values_empty + s);
  }
};

#endif

template <class Shape, PrefillVariant kVariant>
KERNEL(Shape::kThreads, 1)
attend_prefill_hopper(const GRID_CONST HopperJob p) {
#if TIERCEL_HOPPER_BODY
  using namespace gpu;
  SHARED(smem);
  const Tile tile = make_tile<Shape::kQueries, Shape::kKeys>(p.job);
  if (tile.n_rows <= 0) return;
  const Ring<Shape> ring(smem);
  // A part may have nothing to see: one tile of it, of zeros.
  const int n_tiles = tile.n_keys > 0 ? (tile.n_keys + Shape::kKeys - 1) / Shape::kKeys : 1;
  if (threadIdx.x == 0) ring.init();
  sync_threads();

  if (threadIdx.x < 128) {
    shrink_registers<Shape::kProducerRegisters>();
    if (threadIdx.x < 32) Producer<Shape>{p, tile}.run(smem, ring, n_tiles);
    return;
  }
  grow_registers<Shape::kConsumerRegisters>();
  const int group = static_cast<int>(threadIdx.x / 128) - 1;
  const int row = group * 64 + static_cast<int>(threadIdx.x / 32 % 4 * 16) + lane_row();
  Consumer<Shape> consumer(p.job, tile, smem, ring, group, row, n_tiles);
  mbar_wait(ring.queries_full, 0);
  if constexpr (kVariant == PrefillVariant::kPlain) {
    consumer.run_plain();
  } else {
    consumer.template run_overlapped<kVariant == PrefillVariant::kPingPong>(group);
  }
  store_rows<Shape::kDim>(p.job.op, tile, row, consumer.out, consumer.rows);
#endif
}

}  // namespace tiercel::cuda::prefill
