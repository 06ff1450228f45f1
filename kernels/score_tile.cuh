// Landmarks on their way to the fragments of a product: what scoring knows of them, and how a warp
// reads them.
//
// They go from global memory straight into fragments: a product does not change when the same
// permutation of the head dimension is applied to both sides, so a lane's 16 bytes (elements 8t ..
// 8t + 7 of 32) serve as two steps of 16, and queries are permuted alike when they are packed.
//
//   step s, register pair r of lane (g, t)    elements 32 (s / 2) + 8 t + 4 (s % 2) + 2 r, + 1
//
// At decode, where nothing else is to be waited for, whole rows come by a ring in shared memory,
// so that a warp has up to 16 KB on their way.
//
// Octets of 8 landmarks are dealt out in turn: every warp takes kOctets, and then the next ones
// that nobody has. Positions count chunks from a multiple of 8 on.
//
//   chunk      origin .. first | first .. end - 1 | ..
//   position   0 .. lead - 1   | lead .. n - 1    |
//
// Where only some blocks of chunks compete, positions are theirs: chunk_map.cuh.
#pragma once

#include "engine/base/ops.h"
#include "kernels/chunk_map.cuh"
#include "kernels/gpu.cuh"

namespace tiercel::cuda {

inline constexpr int kScoreThreads = 128;
inline constexpr int kScoreWarps = kScoreThreads / 32;
inline constexpr int kMaxTiles = 4;
inline constexpr int kScoreResidency = 3;  // blocks that a processor holds
inline constexpr float kScoreLimit = 0x1p126f;

// What becomes of scores: kept, with their sums (decode); sums only, then the best of each group
// of heads (prefill, which scores twice rather than keep 4 bytes per head and chunk).
enum class ScoreMode : uint8_t { kKeep, kSum, kGroup };

// What landmarks are, and which of them are scored.
//   kMeans   bf16, multiplied by the query as it is, all of first .. end - 1: the plain case
//   kAny     bf16 of either index, all of them or those of some blocks
//   kCodes   likewise, in int8 with a scale each: 16 bytes of a lane, elements 16 t .. 16 t + 15 of
//            64, serve as four steps
enum class LandmarkForm : uint8_t { kMeans, kAny, kCodes };
GPU_AND_HOST constexpr int columns_of(LandmarkForm form) {
  return form == LandmarkForm::kCodes ? 64 : 32;
}
GPU_AND_HOST constexpr int steps_of(LandmarkForm form) {
  return form == LandmarkForm::kCodes ? 4 : 2;
}

// (maximum, sum of exp2(score - maximum)) of some scores. No score: (-inf, 0).
struct ScoreSum {
  float max, sum;
};

// Blocks of prefill queries; see PrefillSelectParams.
struct PrefillBlocks {
  int64_t first_position, block_tokens, local_tokens;
  int64_t end_chunk;  // the same of all blocks, if it is not negative
  int64_t sink_chunks, k;
  int32_t chunk_tokens;

  // Chunks before the local window of a block.
  GPU_AND_HOST int64_t chunks_before(int64_t block) const {
    if (end_chunk >= 0) return end_chunk;
    const int64_t position = first_position + block * block_tokens - local_tokens;
    return position > 0 ? position / chunk_tokens : 0;
  }
  GPU_AND_HOST bool takes_all(int64_t block) const {
    return k == 0 || chunks_before(block) <= sink_chunks + k;
  }
};

struct ScoreParams {
  const bf16* queries;    // [n_kv_heads][n_rows][head_dim]
  const bf16* landmarks;  // [n_kv_heads][capacity][head_dim]
  int64_t landmark_head_stride;
  int64_t origin;    // chunk of position 0, a multiple of 8
  int32_t lead, n;   // candidates: positions lead .. n - 1
  int32_t n_rows;    // per KV head
  int32_t n_groups;  // of 16 * kTiles rows
  int32_t n_splits;  // blocks per group of rows
  int32_t n_sums;    // records of a row, of all parts (score_parts.h)
  int32_t head_dim;
  float scale;     // log2 units
  bool is_wide;    // landmark rows are multiples of 16 bytes
  ScoreSum* sums;  // [n_kv_heads][n_rows] records, sum_stride apart: one of each split
  int64_t sum_stride;
  float* scores;         // kKeep: [n_kv_heads][n_rows], score_stride apart;
  int64_t score_stride;  // kGroup: [n_blocks][n_kv_heads]
  // kKeep
  const uint8_t* excluded;  // bit maps over chunks, or null
  int64_t excluded_stride;  // in bytes
  uint32_t* arrivals;       // [n_kv_heads], arrival_stride apart: zeroed for a later kernel
  int64_t arrival_stride;
  // kSum, kGroup: row r is head r % padded_group of block first_block + r / padded_group
  PrefillBlocks blocks;
  int64_t first_block;
  int32_t n_kv_heads;
  int32_t padded_group;  // 1, 2, 4, 8 or 16
  int32_t group;         // heads that count, at most padded_group
  bool is_first;         // else scores already holds the best of other heads
  // kAny, kCodes: head_dim is the width of a landmark
  const int8_t* codes;  // kCodes, for landmarks
  const float* scales;  // [n_kv_heads][scale_stride]
  int64_t scale_stride;
  int32_t query_dim;
  bool is_min_max;      // the query counts as [min(q, 0) | max(q, 0)]
  const int32_t* keep;  // [1] or null: nothing is done where it is not 0
  ChunkMap map;
};

// Scales of the rows g of some octets.
template <int kOctets, bool kHasScales>
struct OctetScales {};
template <int kOctets>
struct OctetScales<kOctets, true> {
  float of_row[kOctets];
};

// Octets that a warp takes at a time from a ring: 8 pieces of 16 bytes of each lane, at least one.
GPU_AND_HOST constexpr int ring_octets(int loads) {
  return loads == 1 ? 4 : loads <= 8 ? 8 / loads : 1;
}
GPU_AND_HOST constexpr int ring_stages(int loads) { return loads == 1 ? 8 : loads <= 8 ? 4 : 2; }

// One lane's fragments of kOctets octets: 64 registers, fewer where addresses need them, and half
// as many where a ring in shared memory is ahead of them.
template <int kLoads, bool kWhole, bool kRing, LandmarkForm kLandmarkForm = LandmarkForm::kMeans>
struct LandmarkTile {
  static constexpr LandmarkForm kForm = kLandmarkForm;
  static constexpr int kSteps = steps_of(kForm) * kLoads;
  static constexpr int kOctets = kRing         ? ring_octets(kLoads)
                                 : kLoads == 1 ? 4
                                               : (kLoads <= 4 ? 4 : 2) / (kWhole ? 1 : 2);
  uint4 words[kOctets][kLoads];
  uint32_t dead;  // bit 2u + e: position 2t + e of octet u is no candidate
  OctetScales<kOctets, kForm == LandmarkForm::kCodes> scales;
};

// 8 elements at a column, zeros behind the row.
template <bool kWhole>
GPU uint4 load_columns(const bf16* row, int column, int32_t head_dim, bool is_wide) {
  if (kWhole || (is_wide && column < head_dim)) return gpu::load_once(row + column);
  uint4 v{0, 0, 0, 0};
  if (is_wide) return v;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(row + column);
  if (column < head_dim) v.x = words[0];
  if (column + 2 < head_dim) v.y = words[1];
  if (column + 4 < head_dim) v.z = words[2];
  if (column + 6 < head_dim) v.w = words[3];
  return v;
}

// A bit for each position of an octet that the bit map excludes.
GPU uint32_t excluded_octet(const ScoreParams& p, int32_t octet) {
  if (p.excluded == nullptr || octet * 8 >= p.n) return 0;
  return p.excluded[int64_t{blockIdx.y} * p.excluded_stride + p.origin / 8 + octet];
}

// Bits of a position and of the next one that are no candidates. excluded: the bit map's two bits.
GPU uint32_t dead_pair(const ScoreParams& p, int32_t position, uint32_t excluded) {
  uint32_t dead = excluded & 3;
  if (position < p.lead || position >= p.n) dead |= 1;
  if (position + 1 < p.lead || position + 1 >= p.n) dead |= 2;
  return dead;
}

template <int kLoads, bool kWhole>
GPU void load_octets(const ScoreParams& p, int32_t octet,
                     LandmarkTile<kLoads, kWhole, false>& tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t kv_head = blockIdx.y;
  const bf16* base = p.landmarks + kv_head * p.landmark_head_stride;
  tile.dead = 0;
#pragma unroll
  for (int u = 0; u < LandmarkTile<kLoads, kWhole, false>::kOctets; ++u) {
    const int32_t position = (octet + u) * 8;
    const bf16* row = base + (p.origin + position + g) * p.head_dim;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      tile.words[u][i] = position + g < p.n
                             ? load_columns<kWhole>(row, 32 * i + 8 * t, p.head_dim, p.is_wide)
                             : uint4{0, 0, 0, 0};
    }
    tile.dead |= dead_pair(p, position + 2 * t, excluded_octet(p, octet + u) >> 2 * t) << 2 * u;
  }
}

// Landmarks of whole rows on their way, kStages turns of a warp ahead: a lane copies what it will
// read itself to places of its own, so nobody else need be waited for.
template <int kLoads>
struct LandmarkRing {
  static constexpr int kStages = ring_stages(kLoads), kOctets = ring_octets(kLoads);
  uint4 words[kScoreWarps][kStages][kOctets][kLoads][32];
};

// A warp's way through the landmarks with a ring.
template <int kLoads>
struct RingReader {
  using Ring = LandmarkRing<kLoads>;
  static constexpr int kOctets = Ring::kOctets, kStages = Ring::kStages;
  const ScoreParams& p;
  Ring& ring;
  int32_t first, stride;  // octets: of turn 0, from turn to turn
  uint32_t excluded;      // of the turn of 32 that is this lane's, a byte per octet

  GPU void copy(int32_t turn) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int64_t octet = first + int64_t{turn} * stride;
    const bf16* row = p.landmarks + int64_t{blockIdx.y} * p.landmark_head_stride +
                      (p.origin + octet * 8 + lane / 4) * p.head_dim + lane % 4 * 8;
#pragma unroll
    for (int u = 0; u < kOctets; ++u) {
      if ((octet + u) * 8 >= p.n) break;
      const bool is_inside = (octet + u) * 8 + lane / 4 < p.n;
      const bf16* source = row + u * 8 * p.head_dim;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        gpu::copy_async16(&ring.words[warp][turn % kStages][u][i][lane],
                          is_inside ? source + 32 * i : p.landmarks, is_inside);
      }
    }
    gpu::copy_commit();
  }
  // Everything until the first landmarks are needed.
  GPU void start() {
    for (int turn = 0; turn < kStages; ++turn) copy(turn);
  }
  // The tile of a turn, whose place goes to a later turn. Turns come in their order.
  GPU void read(int32_t turn, LandmarkTile<kLoads, true, true>& tile) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int32_t octet = first + turn * stride;
    if (turn % 32 == 0) {
      const int64_t mine = octet + int64_t{lane} * stride;
      excluded = 0;
#pragma unroll
      for (int u = 0; u < kOctets; ++u) {
        if ((mine + u) * 8 >= p.n) break;
        excluded |= excluded_octet(p, static_cast<int32_t>(mine) + u) << 8 * u;
      }
    }
    const uint32_t bits = gpu::shuffle(excluded, turn % 32);
    tile.dead = 0;
    gpu::copy_wait<kStages - 1>();
#pragma unroll
    for (int u = 0; u < kOctets; ++u) {
      const int32_t position = (octet + u) * 8 + lane % 4 * 2;
      tile.dead |= dead_pair(p, position, bits >> (8 * u + lane % 4 * 2)) << 2 * u;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        tile.words[u][i] = ring.words[warp][turn % kStages][u][i][lane];
      }
    }
    copy(turn + kStages);
  }
};

// The landmarks that this block reads in the first turns, on their way to L2.
template <int kLoads>
GPU void prefetch_landmarks(const ScoreParams& p, int32_t split) {
  using Ring = LandmarkRing<kLoads>;
  if (threadIdx.x >= Ring::kStages) return;
  const int64_t rows = kScoreWarps * Ring::kOctets * 8;
  const int64_t first = (int64_t{threadIdx.x} * p.n_splits + split) * rows, left = p.n - first;
  if (left <= 0) return;
  const bf16* base = p.landmarks + int64_t{blockIdx.y} * p.landmark_head_stride;
  gpu::prefetch_l2(base + (p.origin + first) * p.head_dim,
                   static_cast<uint32_t>((left < rows ? left : rows) * p.head_dim) * sizeof(bf16));
}

}  // namespace tiercel::cuda
