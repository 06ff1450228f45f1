// The extents of everything that the KV cache of one sequence consists of: the one place where the
// sizes come from, for the memory plan (which allocates nothing) and for the store (which does).
//
//   position   0 .. sinks | ........... middle, in chunks ........... | recent window | next
//              exact      |  outlier chunks: exact                     |  exact K, V   |
//              K, V       |  ordinary: landmark + coded keys on device |               |
//                         |  values (and exact-coded keys) on host     |               |
#pragma once

#include <cstdint>
#include <vector>

#include "offload/arena.h"

namespace tiercel {

// What the store must know of a model.
struct KvShape {
  int64_t n_layers = 0;
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  std::vector<int64_t> window;  // per layer; 0: attends everything

  int64_t key_width() const { return int64_t{n_kv_heads} * head_dim; }
};

enum class StoreKind : uint8_t {
  kDense,    // exact K and V of every token on the device
  kTiered    // sinks, outliers, recent window exact; the rest indexed on the device, values on host
};

// Options with every "auto" decided.
struct KvSettings {
  StoreKind kind = StoreKind::kTiered;
  bool exact_keys = false;      // coded keys are exact, and live on the host beside the values
  bool select_prefill = false;  // prefill attends selected chunks
  bool audit = false;           // exact keys are kept on the host to measure the selection by
  int64_t capacity = 0;         // tokens that the sequence may reach
  int64_t prompt = 0;           // tokens of the prompt
  int64_t budget = 0;           // selected tokens per KV head; kBudgetAll has become capacity
  int64_t prefill_budget = 0;
  int32_t chunk_tokens = 8;
  int64_t sinks = 0;   // a multiple of chunk_tokens
  int64_t recent = 0;  // tokens
  int64_t outliers = 0;
  int64_t rank = 0;
  double slots = 1;  // in budgets
  bool overlap = false;  // the queues run beside each other
  bool replay = false;   // decode steps are recorded and replayed
  double imposed_hit_rate = -1;  // 0..1: selections are made up, for measurements; -1: they are real
};

// Queries per selection block of prefill, and how many tokens before a block it sees anyway.
inline constexpr int64_t kPrefillBlock = 256;
inline constexpr int64_t kPrefillLocal = 256;
// The last tokens of a prompt always attend densely, so that the question sees everything.
inline constexpr int64_t kDenseTail = 256;
// Tokens that leave the recent window together where decode steps may be replayed.
inline constexpr int64_t kRetireTokens = 64;
// Tokens that run through a layer together during prefill.
inline constexpr int64_t kPrefillChunk = 4096;

// Everything in elements or counts, for one layer unless said.
struct KvLayout {
  KvLayout(const KvShape& shape, const KvSettings& settings);

  bool tiered(int64_t layer) const {
    return settings.kind == StoreKind::kTiered && shape.window[layer] == 0;
  }
  bool any_low_rank() const { return any_tiered && !settings.exact_keys; }
  // Tokens that a layer keeps exactly on the device, besides sinks and outliers.
  int64_t exact_capacity(int64_t layer) const;
  // Exact tokens that stay behind the newest one.
  int64_t recent_tokens(int64_t layer) const;

  // Bytes of both tiers at their peak (the end of prefill), by purpose; weights and the decoder's own
  // activations are not in it.
  PurposeBytes device_bytes() const;
  PurposeBytes host_bytes() const;

  KvShape shape;
  KvSettings settings;
  int64_t chunks = 0;        // chunk slots of the index: capacity / chunk_tokens
  int64_t retire_tokens = 0;  // that leave the recent window together: whole chunks
  int64_t select = 0;        // chunks selected per KV head and step, at most
  int64_t n_slots = 0;       // per KV head
  int64_t outlier_rows = 0;  // tokens in outlier chunks
  int64_t mask_words = 0;    // of the bit map over chunks
  int64_t record = 0;        // elements of a slot: K and V of one chunk
  int64_t prefill_ids = 0;   // chunk ids of one block and KV head: sinks and selection
  int64_t select_floats = 0; // workspace of scoring
  bool spare_key_plane = false;  // a second key plane, so that low-rank keys are made beside prefill
  bool layer_planes = false; // prefill needs its own planes (freed at its end)
  bool any_tiered = false;
};

}  // namespace tiercel
