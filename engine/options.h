// What a session can be asked to do. Plain values with the defaults of the command.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace tiercel {

enum class BackendKind : uint8_t { kAuto, kCpu, kCuda };
enum class AttentionMode : uint8_t { kDense, kShadow };
enum class PrefillMode : uint8_t { kAuto, kDense, kSelect };
enum class KeyCodec : uint8_t { kAuto, kExact, kLowRank };

inline constexpr int64_t kBudgetAll = -1;

// Where and with what a model computes.
struct ModelOptions {
  BackendKind backend = BackendKind::kAuto;  // auto: a CUDA device where there is one
  int n_threads = 0;                         // of the CPU; 0: all cores
  int device = 0;                            // CUDA device
};

struct SessionOptions {
  AttentionMode attention = AttentionMode::kShadow;
  PrefillMode prefill = PrefillMode::kAuto;  // auto: dense where it is affordable
  int64_t budget = 2048;                     // selected tokens per KV head, or kBudgetAll
  int64_t prefill_budget = 2048;             // the same for prefill blocks, or kBudgetAll
  int64_t chunk_size = 8;                    // tokens per chunk
  int64_t sinks = 16;                        // tokens; rounded up to whole chunks
  int64_t recent = 256;                      // tokens
  int64_t outliers = 48;                     // chunks per KV head
  int64_t rank = 160;                        // of the low-rank keys; capped by the key width
  KeyCodec key_codec = KeyCodec::kAuto;      // auto: exact when budget is all, else low-rank
  double slots = 3.0;                        // selection cache, in budgets
  int64_t audit = 0;                         // every N steps; 0: off
  int64_t context = 0;                       // tokens per sequence; 0: prompt plus generation
  int64_t device_memory = 0;                 // bytes; 0: no limit of its own
  int64_t host_memory = 0;                   // bytes; 0: no limit of its own
  int n_threads = 0;                         // 0: all cores
  bool exact_exp = false;                    // fp32 exp2 in prefill instead of the 16-bit lookup
  bool no_graphs = false;                    // decode steps are not recorded and replayed (CUDA)
  bool strict = false;                       // refuse what is otherwise a warning
  double imposed_hit_rate = -1;              // 0..1: selections are made up (synthetic models); -1: real
};

struct SamplingOptions {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;       // 0: off
  double top_p = 1;        // 1: off
  double min_p = 0;        // 0: off
  double repeat_penalty = 1;
  int64_t repeat_last_n = 64;  // tokens that the penalty looks back on
  uint64_t seed = 0;
};

// Bytes per tier and purpose. The plan announces them before anything is allocated.
struct MemoryReport {
  struct Device {
    int64_t weights = 0, keys = 0, landmarks = 0, slots = 0, exact = 0, activations = 0;
    int64_t total() const { return weights + keys + landmarks + slots + exact + activations; }
  } device;
  struct Host {
    int64_t values = 0, keys = 0;
    int64_t staging = 0;  // ids and logits on their way to and from a device
    int64_t total() const { return values + keys + staging; }
  } host;
  bool one_memory = true;  // the device tier is main memory too
  int64_t process = 0;     // the program itself: code, tokenizer, prompt text, thread scratch
  int64_t total() const { return device.total() + host.total() + process; }
  // Main memory.
  int64_t resident() const { return one_memory ? total() : host.total() + process; }
};

// Work is counted in FLOPs, so done / total is honest when layers and chunks differ in cost.
struct Progress {
  const char* phase = "";   // "prefill" or "decode"
  double fraction = 0;      // 0..1 of the phase's work
  int64_t tokens_done = 0;  // fraction of the prompt, in tokens; or tokens generated
  int64_t tokens_total = 0;
  double seconds = 0;  // since the phase began
};
// Return false to stop. What has been generated stays valid.
using ProgressCallback = std::function<bool(const Progress&)>;

struct SelectionReport {
  int64_t steps = 0;  // layer steps that selected
  int64_t selected_chunks = 0, hit_chunks = 0;
  int64_t fetched_bytes = 0;
  int64_t decisions = 0, reused = 0;  // whether an earlier selection may stay, and how often it did
  double reuse_rate() const {
    return decisions > 0 ? static_cast<double>(reused) / static_cast<double>(decisions) : 0;
  }
  double hit_rate() const {
    return selected_chunks > 0 ? static_cast<double>(hit_chunks) / selected_chunks : 0;
  }
};

// Share of the exact attention mass that the selection covered, over audited (layer, head, step)s.
struct AuditReport {
  int64_t steps = 0;
  double mass_mean = 0;
  double mass_p05 = 0;             // 5th percentile
  std::vector<double> layer_mass;  // mean per layer; NaN where nothing was selected
};

}  // namespace tiercel
