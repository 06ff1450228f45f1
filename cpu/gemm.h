// Matrix products on packed panels: the kernels under linear layers and low-rank keys, one set per
// ISA level (gemm_*.cpp for many rows, gemv_*.cpp for few).
//
// A *pair* is two neighbouring elements of the summed dimension, four bytes: what vdpbf16ps and AMX
// multiply at once. A *panel* holds 64 columns of the right-hand matrix, zeros in columns beyond it:
//
//     panel [n_pairs][64 columns][2] bf16
//
// or, as AMX packs it, tiles (gemm_amx.cpp). Other levels' panels are plain.
//
// The left-hand matrix is read where it is, one pair at a time. Every output element is one chain
// of additions over the pairs in ascending order, so its bits depend neither on the block that it
// is computed in nor on the number of rows. The fp32 levels multiply and add (FMA on AVX2 and
// AVX-512); vdpbf16ps adds the odd product, then the even one, and flushes denormals; AMX tiles add
// 16 pairs at a time (cpu/tile.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/base/weight_code.h"

namespace tiercel::cpu {

inline constexpr int64_t kPanelColumns = 64;
inline constexpr int64_t kMostDepth = 1024;  // of any level's panels in linear()

// Of a packed panel, whatever its level.
constexpr int64_t panel_elements(int64_t k) { return (k + 31) / 32 * 32 * kPanelColumns; }

// Memory to ask for into L2 meanwhile: what the next panel is packed from.
struct Ahead {
  const std::byte* rows = nullptr;  // n_rows of row_bytes each, stride bytes apart
  int64_t n_rows = 0, row_bytes = 0, stride = 0;
};

// out = a panel (+ start) (+ bias) (+ out), rounded once when out is bf16. Where a level can write it transposed,
// rows of weights may be a, and x the panel.
struct PanelProduct {
  const uint16_t* a = nullptr;  // pair p of row i at a + i*row_stride + p*pair_stride
  int64_t row_stride = 0;       // in elements
  int64_t pair_stride = 2;      // in elements; 2: rows are contiguous; else the panel is a plain one
  const uint16_t* panel = nullptr;
  int64_t n_rows = 0, n_pairs = 0;
  int64_t n_columns = 0;         // 1..64
  const float* start = nullptr;  // [n_rows][start_stride], or null: an earlier part of the sum
  int64_t start_stride = 0;
  const float* bias = nullptr;  // [n_columns] or null; transposed: [n_rows]
  void* out = nullptr;          // [n_rows][out_stride] bf16 or fp32; may be start
  int64_t out_stride = 0;       // in elements
  bool out_f32 = false;
  bool accumulate = false;
  bool transposed = false;  // out is [n_columns][out_stride]
  Ahead ahead = {};  // levels may leave it unread
};

// Few rows: out[i][n] for rows i of x and n in [first, end) of the weight rows. Each element is the
// sum of its lanes, each lane one chain over k, added by a fixed tree: its bits depend on neither
// n_rows nor the range.
struct SkinnyProduct {
  const uint16_t* x = nullptr;       // [n_rows][k]
  const uint16_t* weight = nullptr;  // [n][k]; or coded rows (engine/base/weight_matrix.h), where a level takes them
  const uint16_t* bias = nullptr;    // [n] or null
  void* out = nullptr;               // [n_rows][n]
  int64_t n_rows = 0, k = 0, n = 0;
  int64_t first = 0, end = 0;
  bool out_f32 = false;
  bool accumulate = false;
  float* scratch = nullptr;  // skinny_scratch_floats(n_rows, k), 64-byte aligned
  int64_t row_bytes = 0;     // of coded rows; these have params from byte code_bytes on
  int64_t code_bytes = 0;
  WeightCode code = WeightCode::kBf16;
  int32_t group = 0;
};
inline constexpr int64_t kMaxSkinnyRows = 16;
inline constexpr int64_t kSkinnyRange = 512;  // at most this many weight rows per call

// Sums of a range, and x: in fp32, or in AMX order (16 rows of bf16, whatever n_rows is).
constexpr int64_t skinny_scratch_floats(int64_t n_rows, int64_t k) {
  return n_rows * kSkinnyRange + (n_rows > 8 ? n_rows : 8) * ((k + 31) / 32 * 32);
}

// Rows of coded weights (engine/base/weight_matrix.h) to bf16, as they lie.
struct DecodeWeights {
  const uint8_t* codes = nullptr;    // of the first row, from the first column that is wanted on
  const uint32_t* params = nullptr;  // likewise
  int64_t row_bytes = 0;             // from a row to the next
  WeightCode code = WeightCode::kBf16;
  int32_t group = 0;
  int64_t n_rows = 0, n_columns = 0;  // columns: a multiple of 128
  uint16_t* out = nullptr;            // [n_rows][out_stride]
  int64_t out_stride = 0;
};

struct GemmLevel {
  // panel columns = rows of a matrix [n_columns][k], row_stride apart (weights as HF stores them).
  void (*pack_rows)(const uint16_t* rows, int64_t row_stride, int64_t n_columns, int64_t k,
                    uint16_t* panel);
  // panel columns = columns of a matrix [k][row_stride].
  void (*pack_columns)(const uint16_t* matrix, int64_t row_stride, int64_t n_columns, int64_t k,
                       uint16_t* panel);
  void (*multiply)(const PanelProduct& p);
  void (*multiply_skinny)(const SkinnyProduct& p);
  void (*decode_weights)(const DecodeWeights& p);
  bool skinny_takes_codes = false;
  // Where an item begins anew (x in order, weights that nobody has asked for): items of multiply_skinny are as large as
  // leave each thread so many. 0: as small as pays.
  int64_t skinny_items = 0;
  int64_t most_panels = 1;  // that are multiplied with the same rows, one after the other
  int64_t depth = kMostDepth;  // of a panel; a longer sum is taken in parts
  int64_t few_rows = 0;        // more than kMaxSkinnyRows, up to so many: x is the panel, the result transposed
  bool rows_alike = false;     // a row's bits are the same with whatever it is multiplied
};

// ---- the pieces that levels are made of ----

void pack_rows_portable(const uint16_t*, int64_t, int64_t, int64_t, uint16_t*);
void pack_columns_portable(const uint16_t*, int64_t, int64_t, int64_t, uint16_t*);
void multiply_portable(const PanelProduct& p);
void multiply_skinny_portable(const SkinnyProduct& p);
void decode_weights_portable(const DecodeWeights& p);
#if defined(__x86_64__)
void pack_rows_avx2(const uint16_t*, int64_t, int64_t, int64_t, uint16_t*);
void multiply_avx2(const PanelProduct& p);
void multiply_skinny_avx2(const SkinnyProduct& p);
void decode_weights_avx2(const DecodeWeights& p);
void pack_rows_avx512(const uint16_t*, int64_t, int64_t, int64_t, uint16_t*);
void pack_columns_avx512(const uint16_t*, int64_t, int64_t, int64_t, uint16_t*);
void multiply_avx512(const PanelProduct& p);
void multiply_skinny_avx512(const SkinnyProduct& p);
void decode_weights_avx512(const DecodeWeights& p);
void multiply_avx512bf16(const PanelProduct& p);
void multiply_skinny_avx512bf16(const SkinnyProduct& p);
void decode_weights_avx512bf16(const DecodeWeights& p);
void pack_rows_amx(const uint16_t*, int64_t, int64_t, int64_t, uint16_t*);
void pack_columns_amx(const uint16_t*, int64_t, int64_t, int64_t, uint16_t*);
void multiply_amx(const PanelProduct& p);
void multiply_skinny_amx(const SkinnyProduct& p);
// The same on emulated tiles: for tests on machines with AVX-512 but without AMX.
void multiply_amx_emulated(const PanelProduct& p);
void multiply_skinny_amx_emulated(const SkinnyProduct& p);
#endif

}  // namespace tiercel::cpu
