// Prefill attention: what the entry (attention_prefill.cpp) and the kernels (one file per ISA
// level) agree on. The entry knows positions, chunks and threads; a kernel knows rows, staged keys
// and instructions. Only plain types here: ISA-suffixed files include this header.
//
// One item of work is a block of consecutive queries x one KV head:
//
//   rows      all query heads of the group, head after head:  row = g * rows_per_head + token
//   key list  [ keys of the chosen chunks | local_begin .. position of the last query ]
//             cut into superblocks that fit the L2 cache once staged
//
//   pack(q)                                    scale, pad, once
//   for superblock: stage(K, V); attend(rows)  accumulates (reference, sum, out) per row
//   store(out)                                 divide, round, and tell which rows are not finite
//
// A row sees the staged keys begin[row] .. end[row]-1: causality, the window and padding are
// nothing else. Rows that come out non-finite (a NaN or an infinity in K or V reached them, also
// through 0 * NaN of a key that they do not see) are computed again, one by one in fp64, by the
// entry.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tiercel {
struct PrefillAttendParams;
}

namespace tiercel::cpu {

class Queue;
enum class Isa : uint8_t;

void attend_prefill(Queue& queue, const PrefillAttendParams& params);

namespace prefill {

// Staged keys come in multiples of this; the entry repeats the last key to fill up.
inline constexpr int32_t kKeyMultiple = 64;
// Superblocks begin at multiples of this, so a key's place in a kernel's inner blocks depends on
// its index in the key list only.
inline constexpr int32_t kKeyBlock = 256;
inline constexpr int32_t kMaxHeadDim = 256;

struct PackRows {
  const uint16_t* source = nullptr;  // [n_rows][head_dim] bf16, source_stride apart
  int64_t source_stride = 0;
  void* target = nullptr;  // [n_rows][padded_dim], the kernel's element type
  int32_t n_rows = 0, head_dim = 0, padded_dim = 0;
  float scale = 0;  // of scores in log2 units
  // Raised to the largest |target|, a bf16 word, by kernels that want to know of finite_scores.
  uint16_t* largest = nullptr;
};

struct StageRows {
  const uint16_t* keys = nullptr;  // planes of one KV head, bf16
  const uint16_t* values = nullptr;
  const int64_t* rows = nullptr;  // [n_keys] where each row starts, in elements
  int32_t n_keys = 0;             // a multiple of kKeyMultiple
  int32_t head_dim = 0, padded_dim = 0;
  void* staged_keys = nullptr;
  void* staged_values = nullptr;
  uint16_t* largest = nullptr;  // likewise, |keys|
};

struct AttendRows {
  const void* q = nullptr;  // [n_rows][padded_dim]
  const void* keys = nullptr;
  const void* values = nullptr;
  float* out = nullptr;            // [n_rows][padded_dim], the kernel's own order within a row
  float* sum = nullptr;            // [n_rows]
  float* reference = nullptr;      // [n_rows], kernel units; -inf: nothing seen yet
  const int32_t* begin = nullptr;  // [n_rows]
  const int32_t* end = nullptr;    // [n_rows], begin >= end: nothing to see
  int32_t n_rows = 0;              // a multiple of row_tile
  int32_t n_keys = 0, padded_dim = 0;
  bool exact_exp = false;
  bool finite_scores = true;  // false: a product of such q and keys may be infinite or NaN
  const float* bias = nullptr;  // [n_keys], kernel units, added to every row's scores; or null
  void* buffer = nullptr;  // buffer_bytes, 64-byte aligned
};

struct StoreRows {
  const float* out = nullptr;
  const float* sum = nullptr;
  uint16_t* target = nullptr;  // [n_rows][head_dim] bf16, target_stride apart
  int64_t target_stride = 0;
  int32_t n_rows = 0, head_dim = 0, padded_dim = 0;
  uint8_t* failed = nullptr;  // [n_rows] set to 1 where sum or out is not finite
};

struct Kernel {
  int32_t row_tile = 1;       // n_rows is padded to a multiple of this
  int32_t head_tile = 1;      // rows_per_head is padded to a multiple of this
  int32_t element_bytes = 2;  // of packed q and staged keys and values
  // Rows of an item, which share every staged superblock, at most, and bytes of their q and out. With
  // fewer than 512 staging would show; too many would push q and out from L2.
  int32_t item_rows = 1024;
  int32_t item_bytes = INT32_MAX;
  // Staged keys and values of one superblock, which each row tile reads once from L2.
  int32_t staged_bytes = 576 << 10;
  int32_t buffer_bytes = 0;
  float units_per_octave = 1;  // of scores
  void (*pack)(const PackRows&) = nullptr;
  void (*stage)(const StageRows&) = nullptr;
  void (*attend)(const AttendRows&) = nullptr;
  void (*store)(const StoreRows&) = nullptr;
};

extern const Kernel kPortableKernel;
#if defined(__x86_64__)
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512Kernel;
extern const Kernel kAvx512Bf16Kernel;
extern const Kernel kAmxKernel;
extern const Kernel kAmxEmulatedKernel;  // the same code on tiles in plain memory, bit for bit
#endif

const Kernel& kernel_of(Isa isa);

// attend_prefill with a kernel of the caller's choice, for tests and benchmarks. Adds to *n_rescued
// the number of rows that the kernel could not finish and that were computed again in fp64.
void attend(Queue& queue, const PrefillAttendParams& params, const Kernel& kernel,
            int64_t* n_rescued = nullptr);

}  // namespace prefill
}  // namespace tiercel::cpu
