// Landmarks of every kind on their way to the fragments of a product: means and bounds, bf16 and
// int8, all chunks or those of some blocks. What score_tile.cuh does for the plain case.
//
// Bounds (Quest): sum_i max(q_i least_i, q_i greatest_i) is [min(q, 0) | max(q, 0)] . [least |
// greatest], so the query is expanded when it is packed and the rest is a product.
// int8: codes are exact in bf16; they become that in registers, right before a product whose result
// is multiplied by the landmark's scale.
#pragma once

#include "kernels/gpu.cuh"
#include "kernels/score_tile.cuh"

namespace tiercel::cuda {

GPU bool is_kept(const int32_t* keep) { return keep != nullptr && *keep != 0; }

// ---- queries ------------------------------------------------------------------------------------

// One of two halves of a query's element: what is negative counts in the first, the rest in the
// second, a NaN in both.
GPU uint32_t half_of(uint32_t element, bool is_second) {
  const bool is_negative = (element >> 15) != 0, is_nan = (element & 0x7fff) > 0x7f80;
  return is_nan || is_negative != is_second ? element : 0;
}

// Two neighbouring columns of a query's row.
GPU uint32_t query_columns(const ScoreParams& p, const bf16* row, int column) {
  const bool is_second = column >= p.query_dim;
  const uint32_t pair =
      *reinterpret_cast<const uint32_t*>(row + column - (is_second ? p.query_dim : 0));
  if (!p.is_min_max) return pair;
  return half_of(pair & 0xffff, is_second) | half_of(pair >> 16, is_second) << 16;
}

// As pack_queries.
template <LandmarkForm kForm, typename Rows>
GPU void pack_any_queries(const ScoreParams& p, const Rows& rows, int n_tiles, int n_steps,
                          uint4* fragments) {
  constexpr int kSteps = steps_of(kForm), kColumns = columns_of(kForm);
  for (int i = static_cast<int>(threadIdx.x); i < n_tiles * n_steps * 32; i += kScoreThreads) {
    const int lane = i % 32, g = lane / 4, t = lane % 4;
    const int step = i / 32 % n_steps, tile = i / 32 / n_steps;
    uint32_t words[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const bf16* row = rows.at(tile * 16 + g + 8 * (r & 1));
      const int column =
          step / kSteps * kColumns + t * (kColumns / 4) + step % kSteps * 4 + (r >> 1) * 2;
      words[r] = row != nullptr && column < p.head_dim ? query_columns(p, row, column) : 0u;
    }
    fragments[i] = uint4{words[0], words[1], words[2], words[3]};
  }
}

// ---- landmarks ----------------------------------------------------------------------------------

// The landmark of a chunk of this block's KV head.
template <LandmarkForm kForm>
GPU const uint8_t* landmark_bytes(const ScoreParams& p, int64_t chunk) {
  const int64_t element = int64_t{blockIdx.y} * p.landmark_head_stride + chunk * p.head_dim;
  if constexpr (kForm == LandmarkForm::kCodes) {
    return reinterpret_cast<const uint8_t*>(p.codes + element);
  } else {
    return reinterpret_cast<const uint8_t*>(p.landmarks + element);
  }
}

// -1: there is nothing to read.
GPU int32_t chunk_to_read(const ScoreParams& p, int32_t position) {
  return position < p.n ? p.map.chunk_at(blockIdx.y, position) : -1;
}

// The 16 bytes of a load of a row, zeros behind its end.
template <LandmarkForm kForm>
GPU uint4 load_any_columns(const uint8_t* row, int load, int t, const ScoreParams& p) {
  const int column = load * columns_of(kForm) + t * (columns_of(kForm) / 4);
  if constexpr (kForm == LandmarkForm::kCodes) {
    if (p.is_wide && column < p.head_dim) return gpu::load_once(row + column);
    uint32_t words[4] = {};
    if (!p.is_wide) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (column + 2 * i >= p.head_dim) continue;
        const uint32_t pair = *reinterpret_cast<const uint16_t*>(row + column + 2 * i);
        words[i / 2] |= pair << i % 2 * 16;
      }
    }
    return uint4{words[0], words[1], words[2], words[3]};
  } else {
    return load_columns<false>(reinterpret_cast<const bf16*>(row), column, p.head_dim, p.is_wide);
  }
}

// What a warp knows of its octets beside their landmarks.
template <int kOctets, LandmarkForm kForm>
struct OctetFacts {
  uint32_t dead;  // as LandmarkTile's
  OctetScales<kOctets, kForm == LandmarkForm::kCodes> scales;

  // By whole warps.
  GPU void load(const ScoreParams& p, int64_t octet) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    dead = 0;
#pragma unroll
    for (int u = 0; u < kOctets; ++u) {
      if constexpr (kForm == LandmarkForm::kCodes) scales.of_row[u] = 0.0f;
      if ((octet + u) * 8 >= p.n) {
        dead |= 3u << 2 * u;
        continue;
      }
      const int32_t position = static_cast<int32_t>(octet + u) * 8;
      const int32_t chunk = chunk_to_read(p, position + g);
      if constexpr (kForm == LandmarkForm::kCodes) {
        if (chunk >= 0) scales.of_row[u] = p.scales[int64_t{blockIdx.y} * p.scale_stride + chunk];
      }
      if (p.map.blocks == nullptr) {
        dead |= dead_pair(p, position + 2 * t,
                          excluded_octet(p, static_cast<int32_t>(octet) + u) >> 2 * t)
                << 2 * u;
      } else {
        bool is_dead = chunk < 0;
        if (!is_dead && p.excluded != nullptr) {
          const uint8_t bits = p.excluded[int64_t{blockIdx.y} * p.excluded_stride + chunk / 8];
          is_dead = (bits >> chunk % 8 & 1) != 0;
        }
        // Positions 2t and 2t + 1 are the rows of lanes 8t and 8t + 4.
        const uint32_t rows = gpu::ballot(is_dead) >> 8 * t;
        dead |= ((rows & 1) | (rows >> 4 & 1) << 1) << 2 * u;
      }
    }
  }
};

template <int kLoads, LandmarkForm kForm>
GPU void load_any_octets(const ScoreParams& p, int32_t octet,
                         LandmarkTile<kLoads, false, false, kForm>& tile) {
  constexpr int kOctets = LandmarkTile<kLoads, false, false, kForm>::kOctets;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  OctetFacts<kOctets, kForm> facts;
  facts.load(p, octet);
  tile.dead = facts.dead;
  tile.scales = facts.scales;
#pragma unroll
  for (int u = 0; u < kOctets; ++u) {
    const int32_t chunk = chunk_to_read(p, (octet + u) * 8 + g);
    const uint8_t* row = landmark_bytes<kForm>(p, chunk < 0 ? 0 : chunk);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      tile.words[u][i] = chunk >= 0 ? load_any_columns<kForm>(row, i, t, p) : uint4{0, 0, 0, 0};
    }
  }
}

// As RingReader; the facts of a turn are on their way for one turn.
template <int kLoads, LandmarkForm kForm>
struct AnyRingReader {
  using Ring = LandmarkRing<kLoads>;
  static constexpr int kOctets = Ring::kOctets, kStages = Ring::kStages;
  const ScoreParams& p;
  Ring& ring;
  int32_t first, stride;
  OctetFacts<kOctets, kForm> next;

  GPU int64_t octet_of(int32_t turn) const { return first + int64_t{turn} * stride; }
  GPU void copy(int32_t turn) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int64_t octet = octet_of(turn);
#pragma unroll
    for (int u = 0; u < kOctets; ++u) {
      if ((octet + u) * 8 >= p.n) break;
      const int32_t chunk = chunk_to_read(p, static_cast<int32_t>(octet + u) * 8 + lane / 4);
      const uint8_t* source = landmark_bytes<kForm>(p, chunk < 0 ? 0 : chunk) + lane % 4 * 16;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        gpu::copy_async16(&ring.words[warp][turn % kStages][u][i][lane], source + 64 * i,
                          chunk >= 0);
      }
    }
    gpu::copy_commit();
  }
  GPU void start() {
    for (int turn = 0; turn < kStages; ++turn) copy(turn);
    next.load(p, octet_of(0));
  }
  GPU void read(int32_t turn, LandmarkTile<kLoads, true, true, kForm>& tile) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    tile.dead = next.dead;
    tile.scales = next.scales;
    gpu::copy_wait<kStages - 1>();
#pragma unroll
    for (int u = 0; u < kOctets; ++u) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        tile.words[u][i] = ring.words[warp][turn % kStages][u][i][lane];
      }
    }
    copy(turn + kStages);
    next.load(p, octet_of(turn + 1));
  }
};

// As prefetch_landmarks, where it is known before other kernels end what will be read.
template <int kLoads, LandmarkForm kForm>
GPU void prefetch_any_landmarks(const ScoreParams& p, int32_t split) {
  using Ring = LandmarkRing<kLoads>;
  if (threadIdx.x >= Ring::kStages || p.keep != nullptr || p.map.blocks != nullptr) return;
  const int64_t rows = kScoreWarps * Ring::kOctets * 8;
  const int64_t first = (int64_t{threadIdx.x} * p.n_splits + split) * rows, left = p.n - first;
  if (left <= 0) return;
  constexpr int kBytes = kForm == LandmarkForm::kCodes ? 1 : 2;
  gpu::prefetch_l2(landmark_bytes<kForm>(p, p.origin + first),
                   static_cast<uint32_t>((left < rows ? left : rows) * p.head_dim) * kBytes);
}

}  // namespace tiercel::cuda
