// The selection cache: slots, and what fills them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/base/dtype.h"
#include "engine/base/ops/codes.h"
#include "engine/base/ops/low_rank.h"
#include "engine/base/ops/position.h"

namespace tiercel {

// State of the slots of one layer, per KV head. A slot is a record [K: chunk_tokens x head_dim |
// V: the same] of bf16. order lists the slots from least to most recently used.
struct SlotState {
  int32_t* slot_of_chunk = nullptr;  // [n_kv_heads][chunk_capacity], -1: not resident
  int32_t* chunk_of_slot = nullptr;  // [n_kv_heads][n_slots], -1: empty
  int32_t* order = nullptr;          // [n_kv_heads][n_slots]
  int64_t chunk_capacity = 0;
  int64_t n_slots = 0;
};

// Finds a slot for every selected chunk: hits keep theirs, misses take the least recently used
// slots that no selected chunk holds. Nothing is moved. n_slots >= counts[j] for every KV head j.
// New order: untouched slots in their old order, hits in their old order, misses in the order of
// ids.
struct MapSlotsParams {
  SlotState state;
  int32_t n_kv_heads = 0;
  const int32_t* ids = nullptr;  // [n_kv_heads][stride] selected chunks
  const int32_t* counts = nullptr;
  int64_t stride = 0;               // of ids and of the three lists below
  int32_t* hit_slots = nullptr;     // [n_kv_heads][stride]
  int32_t* hit_counts = nullptr;    // [n_kv_heads]
  int32_t* miss_chunks = nullptr;   // [n_kv_heads][stride]
  int32_t* miss_slots = nullptr;    // [n_kv_heads][stride]
  int32_t* miss_counts = nullptr;   // [n_kv_heads]
  int32_t* scratch = nullptr;       // [n_kv_heads][n_slots]
  // Running sums: selected, hit and missed chunks are added to them; or null.
  int64_t* totals = nullptr;        // [n_kv_heads][3]
};

// Copies the values (and, with keys, the keys) of the missed chunks from planes on either tier into
// their slots; coded values are decoded on the way. Runs on the copy queue. One op takes those of several
// stores, as far as they are alike.
struct FetchParams {
  const bf16* values = nullptr;  // plane, row r = token r; null where they are coded
  int64_t value_head_stride = 0;
  RowCodec value_codec = RowCodec::kBf16;
  const std::byte* value_codes = nullptr;  // [n_kv_heads][capacity][row_bytes(value_codec, head_dim)]
  int64_t value_code_head_stride = 0;      // in bytes
  const bf16* keys = nullptr;  // plane after RoPE, or null
  int64_t key_head_stride = 0;
  const int32_t* miss_chunks = nullptr;
  const int32_t* miss_slots = nullptr;
  const int32_t* miss_counts = nullptr;
  int64_t stride = 0;
  bf16* slots = nullptr;  // [n_kv_heads][n_slots][2][chunk_tokens][head_dim]
  int64_t slot_head_stride = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
};

// Whether one fetch may serve both: they differ in memory, lengths and strides only.
inline bool are_alike(const FetchParams& a, const FetchParams& b) {
  return a.chunk_tokens == b.chunk_tokens && a.n_kv_heads == b.n_kv_heads && a.head_dim == b.head_dim &&
         a.value_codec == b.value_codec && (a.keys == nullptr) == (b.keys == nullptr) &&
         (a.values == nullptr) == (b.values == nullptr);
}

// Copies whole chunks of two planes, per KV head in the order of ids, to consecutive rows.
struct GatherParams {
  const bf16* keys = nullptr;  // plane; row r is position r
  const bf16* values = nullptr;
  int64_t head_stride = 0;
  const int32_t* ids = nullptr;  // [n_kv_heads][n_ids]
  int64_t n_ids = 0;
  bf16* out_keys = nullptr;  // [n_kv_heads][..][head_dim], chunk i at rows i*chunk_tokens ..
  bf16* out_values = nullptr;
  int64_t out_head_stride = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
};

// Rebuilds the keys of the missed chunks into their slots: mean + U basis^T, then RoPE. U is bf16,
// or coded rows that are decoded to bf16 first.
struct RebuildParams {
  const bf16* coefficients = nullptr;      // [capacity][rank], or
  const std::byte* coded = nullptr;        // [capacity][row_bytes(codec, rank)]
  RowCodec codec = RowCodec::kBf16;
  LowRankView lowrank;
  RopeView rope;
  const int32_t* miss_chunks = nullptr;
  const int32_t* miss_slots = nullptr;
  const int32_t* miss_counts = nullptr;
  int64_t stride = 0;
  bf16* slots = nullptr;
  int64_t slot_head_stride = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
};

// Decodes the keys of the missed chunks into their slots: mean + x with x as coded (fp32, before
// any rounding to bf16), then RoPE, one rounding.
struct DecodeKeysParams {
  const std::byte* codes = nullptr;  // [n_kv_heads][capacity][row_bytes(codec, head_dim)]
  int64_t code_head_stride = 0;      // in bytes
  RowCodec codec = RowCodec::kInt8;
  const float* mean = nullptr;  // [n_kv_heads][head_dim]
  RopeView rope;
  const int32_t* miss_chunks = nullptr;
  const int32_t* miss_slots = nullptr;
  const int32_t* miss_counts = nullptr;
  int64_t stride = 0;
  bf16* slots = nullptr;
  int64_t slot_head_stride = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
};

}  // namespace tiercel
