// What a KV cache consists of between two steps: the counts, and every block of bytes that they
// describe. The one place that enumerates it, for saving, for restoring and for the size of a file
// that is not written yet.
//
//   in memory   planes are as far apart as the sequence may become long
//   here        only the rows in use: n_rows runs of row_bytes, stride apart in memory
//
// Left out is what the prompt needed only (planes, masses; ids of the exact chunks, which were
// gathered, but where it matters which they are) and statistics. It knows no addresses: those are
// the store's (kv_store_state.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "offload/layout.h"

namespace tiercel {

struct LayerState {
  int64_t base = 0, first = 0;             // of the window: position of its row 0; oldest attended
  int64_t n_sinks = 0;                     // tokens
  int64_t first_chunk = 0, end_chunk = 0;  // the middle
  int64_t n_exact = 0, n_blocks = 0;       // of leaders: exact chunks, blocks of the first level
  int64_t excludes = 0;                    // 0 or 1
  int64_t list_chunks = -1;                // of the lists that reuse may keep; -1: none
  int64_t prompt_base = 0, prompt_first = 0;  // the same at the end of the prompt
  int64_t prompt_end_chunk = 0, prompt_blocks = 0;
  bool operator==(const LayerState&) const = default;
};

struct KvState {
  int64_t n_tokens = 0, n_prompt = 0;
  // The selection cache and the lists that reuse keeps are part of it. Without them a restored
  // session starts with an empty cache: other roundings, and more to fetch at first.
  bool cache = false;
  std::vector<LayerState> layers;
  bool operator==(const KvState&) const = default;
};

enum class StatePart : uint8_t {
  kRecentKeys,
  kRecentValues,
  kSinkKeys,
  kSinkValues,
  kExactKeys,
  kExactValues,
  kLandmarks,
  kLandmarkCodes,
  kLandmarkScales,
  kCoarse,
  kValueMeans,
  kExcluded,
  kKeyMean,
  kBasis,
  kCoefficients,
  kKeyCodes,
  kHomeValues,
  kValueCodes,
  kHomeKeys,
  kAuditKeys,
  kSlots,
  kSlotOfChunk,
  kChunkOfSlot,
  kSlotOrder,
  kPreviousQ,
  kReuseState,
  kListIds,
  kListCounts,
  kDroppedIds,
  kDroppedCounts,
  kResidualEnergy,
  kKeyBias,
  kExactIds,
  kLateKeys,
  kLateValues,
  kLateIds,
  kLateCosines
};
const char* name_of(StatePart part);

struct StateBlock {
  StatePart part = StatePart::kRecentKeys;
  int64_t layer = 0;
  int64_t n_rows = 0, row_bytes = 0;
  int64_t stride = 0;  // in memory, in bytes
  // Where high > low: the bytes are int32s in [low, high); anything else would be read out of
  // bounds.
  int32_t low = 0, high = 0;

  std::string name() const;  // "layer 3 values"
  int64_t bytes() const { return n_rows * row_bytes; }
};

// Every block of a store of this layout in this state, in a fixed order. None is empty.
std::vector<StateBlock> state_blocks(const KvLayout& layout, const KvState& state);

// Where a layer stands when a prompt of n_tokens has been prefilled. prompt_* are set too.
LayerState layer_after_prompt(const KvLayout& layout, int64_t layer, int64_t n_tokens);
KvState state_after_prompt(const KvLayout& layout, int64_t n_tokens);

// Whether the next token finds a row in this layer's window: a free one, or one that moving the
// window down makes.
bool has_room(const KvLayout& layout, int64_t layer, const KvState& state);

// Why a store of this layout cannot be in this state; empty when it can.
std::string why_impossible(const KvLayout& layout, const KvState& state);

}  // namespace tiercel
