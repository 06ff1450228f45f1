#include "cpu/linear.h"

#include <algorithm>

#include "cpu/elementwise.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

// A panel of 64 columns x 1024 elements is 128 KiB: beside the rows in use it stays in L2.
constexpr int64_t kDepth = 1024;
constexpr int64_t kBlockRows = 512;
constexpr int64_t kMostPanels = 4;  // of an item
// Weights of one skinny item; below it, splitting costs more than the second core brings. With more
// rows than kMaxSkinnyRows each item also puts them in order, and goes through its weights again.
constexpr int64_t kSkinnyItemBytes = 256 << 10;
constexpr int64_t kManyRowsItemBytes = 1 << 20;

const uint16_t* bits(const bf16* values) { return reinterpret_cast<const uint16_t*>(values); }

#if defined(__x86_64__)
constexpr GemmLevel kAvx2 = {pack_rows_avx2, pack_columns_portable, multiply_avx2,
                             multiply_skinny_avx2, decode_weights_avx2};
constexpr GemmLevel kAvx512 = {pack_rows_avx512, pack_columns_avx512, multiply_avx512,
                               multiply_skinny_avx512, decode_weights_avx512, true};
constexpr GemmLevel kAvx512Bf16 = {pack_rows_avx512, pack_columns_avx512, multiply_avx512bf16,
                                   multiply_skinny_avx512bf16, decode_weights_avx512bf16, true};
constexpr GemmLevel kAmx = {.pack_rows = pack_rows_avx512,
                            .pack_columns = pack_columns_avx512,
                            .multiply = multiply_amx,
                            .multiply_skinny = multiply_skinny_amx,
                            .decode_weights = decode_weights_avx512bf16,
                            .most_panels = kMostPanels,
                            .skinny_rows = kMostSkinnyRows,
                            .few_rows = 128};
#endif
constexpr GemmLevel kPortable = {pack_rows_portable, pack_columns_portable, multiply_portable,
                                 multiply_skinny_portable, decode_weights_portable};

void check_depth(int64_t k, const WeightCodec& codec) {
  CHECK(k > 0 && k % 2 == 0 && codec.is_for(k), "k is {}, {} in groups of {}", k, name_of(codec.code), codec.group);
}

// How a level goes through a matrix [n][k] with few rows of x, m of them.
struct SkinnyCut {
  int64_t rows;   // of x, at once
  int64_t range;  // weight rows of an item
  int64_t items;
  // Floats of the sums and the copy of x. Behind them there is room for coded weights that are decoded, some rows of
  // an item at a time: `decoded` of them.
  int64_t floats, decoded;

  SkinnyCut(const GemmLevel& level, int64_t m, int64_t k, int64_t n) {
    constexpr auto kFloats = static_cast<int64_t>(kScratchBytes / sizeof(float));
    const bool many = m > kMaxSkinnyRows && level.skinny_rows > kMaxSkinnyRows;
    rows = many && skinny_scratch_floats(level.skinny_rows, k) <= kFloats / 2 ? level.skinny_rows : kMaxSkinnyRows;
    rows = std::min(rows, m);
    const int64_t item_bytes = many ? kManyRowsItemBytes : kSkinnyItemBytes;
    range = std::min(kSkinnyRange, std::max<int64_t>(16, item_bytes / (2 * k) / 16 * 16));
    items = (n + range - 1) / range;
    floats = (skinny_scratch_floats(rows, k) + 15) / 16 * 16;
    decoded = std::min(range, (kFloats - floats) * 2 / k);
  }
  void check(int64_t k, const WeightCodec& codec, const GemmLevel& level) const {
    const bool decodes = codec.is_coded() && !level.skinny_takes_codes;
    CHECK(decodes ? decoded > 0 : floats * 4 <= static_cast<int64_t>(kScratchBytes),
          "{} rows of {} channels do not fit the scratch memory", rows, k);
  }
};

// All rows of x, some at a time; the weights stay in the cache from these to the next. out: of the product's columns.
void multiply_rows(const LinearParams& p, const GemmLevel& level, int64_t at_once, SkinnyProduct& product,
                   std::byte* out) {
  for (int64_t row = 0; row < p.m; row += at_once) {
    product.x = bits(p.x) + row * p.k;
    product.out = out + static_cast<size_t>(row * p.n) * size_of(p.out_type);
    product.n_rows = std::min(p.m - row, at_once);
    product.again = row > 0;
    level.multiply_skinny(product);
  }
}

void skinny_item(const LinearParams& p, const GemmLevel& level, const SkinnyCut& cut, int64_t item,
                 const Worker& worker) {
  const int64_t first = item * cut.range, end = std::min(p.n, first + cut.range);
  const WeightCodec& codec = p.weight.codec;
  SkinnyProduct product{.weight = bits(p.weight.values),
                        .bias = bits(p.bias),
                        .k = p.k,
                        .n = p.n,
                        .first = first,
                        .end = end,
                        .out_f32 = p.out_type == DType::kF32,
                        .accumulate = p.accumulate,
                        .scratch = reinterpret_cast<float*>(worker.scratch)};
  auto* const out = static_cast<std::byte*>(p.out);
  if (!codec.is_coded()) return multiply_rows(p, level, cut.rows, product, out);
  if (level.skinny_takes_codes) {
    product.row_bytes = codec.row_bytes(p.k);
    product.code_bytes = codec.code_bytes(p.k);
    product.code = codec.code;
    product.group = codec.group;
    return multiply_rows(p, level, cut.rows, product, out);
  }
  // Products of their own: with rows, bias and results of these columns alone.
  auto* const decoded = reinterpret_cast<uint16_t*>(product.scratch + cut.floats);
  product.weight = decoded;
  product.first = 0;
  for (int64_t column = first; column < end; column += cut.decoded) {
    product.end = std::min(cut.decoded, end - column);
    decode_rows(level, p.weight, p.k, column, product.end, 0, p.k, decoded);
    if (p.bias != nullptr) product.bias = bits(p.bias) + column;
    multiply_rows(p, level, cut.rows, product, out + static_cast<size_t>(column) * size_of(p.out_type));
  }
}

void linear_skinny(Queue& queue, const LinearParams& p, const GemmLevel& level) {
  const SkinnyCut cut(level, p.m, p.k, p.n);
  cut.check(p.k, p.weight.codec, level);
  queue.for_each(cut.items, [&](int64_t item, const Worker& worker) { skinny_item(p, level, cut, item, worker); });
}

// The scratch memory of an item of many rows, cut up.
struct BlockScratch {
  uint16_t *panel, *decoded, *rows;
  float* partial;

  explicit BlockScratch(std::byte* scratch)
      : panel(reinterpret_cast<uint16_t*>(scratch)),
        decoded(panel + kDepth * kPanelColumns),
        rows(decoded + kDepth * kPanelColumns),
        partial(reinterpret_cast<float*>(rows + kBlockRows * row_stride(kDepth))) {}

  // A line more than a row has: rows a power of two apart would fall on few of a cache's sets.
  static constexpr int64_t row_stride(int64_t depth) { return depth + 32; }
  static constexpr int64_t bytes() {
    return 2 * (2 * kDepth * kPanelColumns + kBlockRows * row_stride(kDepth)) +
           4 * kBlockRows * kMostPanels * kPanelColumns;
  }
};
static_assert(BlockScratch::bytes() <= kScratchBytes);

void copy_rows(const uint16_t* from, int64_t stride, int64_t n_rows, int64_t depth, uint16_t* to) {
  for (int64_t r = 0; r < n_rows; ++r) {
    std::copy_n(from + r * stride, depth, to + r * BlockScratch::row_stride(depth));
  }
}

// Rows [row, row + n_rows) x n_columns columns from `column` on, panel by panel, in slices of kDepth
// along k: all but the last leave their fp32 sums in the scratch memory.
void multiply_block(const LinearParams& p, const GemmLevel& level, int64_t row, int64_t n_rows, int64_t column,
                    int64_t n_columns, std::byte* scratch) {
  const BlockScratch s(scratch);
  alignas(64) float bias[kPanelColumns * kMostPanels];
  if (p.bias != nullptr) {
    for (int64_t c = 0; c < n_columns; ++c) bias[c] = static_cast<float>(p.bias[column + c]);
  }
  for (int64_t first = 0; first < p.k; first += kDepth) {
    const int64_t depth = std::min(kDepth, p.k - first);
    const bool last = first + depth == p.k;
    const uint16_t* rows = bits(p.x) + row * p.k + first;
    int64_t row_stride = p.k;
    if (n_columns > kPanelColumns && depth < p.k) {  // for several panels
      copy_rows(rows, p.k, n_rows, depth, s.rows);
      rows = s.rows;
      row_stride = BlockScratch::row_stride(depth);
    }
    for (int64_t c = 0; c < n_columns; c += kPanelColumns) {
      const int64_t width = std::min(kPanelColumns, n_columns - c);
      if (p.weight.codec.is_coded()) {
        decode_rows(level, p.weight, p.k, column + c, width, first, depth, s.decoded);
        level.pack_rows(s.decoded, depth, width, depth, s.panel);
      } else {
        level.pack_rows(bits(p.weight.values) + (column + c) * p.k + first, p.k, width, depth, s.panel);
      }
      float* const partial = s.partial + c * kBlockRows;
      PanelProduct product{.a = rows,
                           .row_stride = row_stride,
                           .panel = s.panel,
                           .n_rows = n_rows,
                           .n_pairs = depth / 2,
                           .n_columns = width,
                           .start = first > 0 ? partial : nullptr,
                           .start_stride = kPanelColumns,
                           .out = partial,
                           .out_stride = kPanelColumns,
                           .out_f32 = true};
      if (last) {
        const int64_t place = row * p.n + column + c;
        product.bias = p.bias != nullptr ? bias + c : nullptr;
        product.out = static_cast<std::byte*>(p.out) + static_cast<size_t>(place) * size_of(p.out_type);
        product.out_stride = p.n;
        product.out_f32 = p.out_type == DType::kF32;
        product.accumulate = p.accumulate;
      }
      level.multiply(product);
    }
  }
}

int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

// Columns of an item: many share the reading of their rows, but every core wants some items.
int64_t block_columns(const Queue& queue, const LinearParams& p, const GemmLevel& level) {
  constexpr int64_t kItemsPerThread = 4;
  int64_t panels = level.most_panels;
  const int64_t row_blocks = ceil_div(p.m, kBlockRows);
  while (panels > 1 && row_blocks * ceil_div(p.n, panels * kPanelColumns) < kItemsPerThread * queue.n_workers()) {
    panels /= 2;
  }
  return panels * kPanelColumns;
}

void linear_blocks(Queue& queue, const LinearParams& p, const GemmLevel& level) {
  const int64_t columns = block_columns(queue, p, level), n_items = ceil_div(p.n, columns);
  queue.for_each(ceil_div(p.m, kBlockRows) * n_items, [&](int64_t item, const Worker& worker) {
    const int64_t row = item / n_items * kBlockRows, column = item % n_items * columns;
    multiply_block(p, level, row, std::min(kBlockRows, p.m - row), column, std::min(columns, p.n - column),
                   worker.scratch);
  });
}

}  // namespace

const GemmLevel& gemm_level(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAmx) return kAmx;
  if (isa >= Isa::kAvx512Bf16) return kAvx512Bf16;
  if (isa >= Isa::kAvx512) return kAvx512;
  if (isa >= Isa::kAvx2) return kAvx2;
#endif
  static_cast<void>(isa);
  return kPortable;
}

void decode_rows(const GemmLevel& level, const WeightMatrix& w, int64_t k, int64_t first_row, int64_t n_rows,
                 int64_t first_column, int64_t n_columns, uint16_t* out) {
  const int64_t row_bytes = w.codec.row_bytes(k);
  const auto* row = reinterpret_cast<const uint8_t*>(w.values) + first_row * row_bytes;
  const auto* params = reinterpret_cast<const uint32_t*>(row + w.codec.code_bytes(k));
  level.decode_weights({.codes = row + w.codec.code_bytes(first_column),
                        .params = params + first_column / w.codec.group,
                        .row_bytes = row_bytes,
                        .code = w.codec.code,
                        .group = w.codec.group,
                        .n_rows = n_rows,
                        .n_columns = n_columns,
                        .out = out,
                        .out_stride = n_columns});
}

void linear(Queue& queue, const LinearParams& p) {
  if (p.m == 0) return;
  check_depth(p.k, p.weight.codec);
  CHECK(p.out_type == DType::kBf16 || p.out_type == DType::kF32, "{}", name_of(p.out_type));
  const GemmLevel& level = gemm_level(queue.isa());
  if (p.m <= level.few_rows || p.alone) {
    linear_skinny(queue, p, level);
  } else {
    linear_blocks(queue, p, level);
  }
}

void linear_grouped(Queue& queue, const GroupedLinearParams& p) {
  check_depth(p.k, p.codec);
  const GemmLevel& level = gemm_level(queue.isa());
  // Few rows, or each of them alone: then some groups may have more.
  const SkinnyCut cut(level, kMaxSkinnyRows, p.k, p.n);
  if (p.few) cut.check(p.k, p.codec, level);
  const int64_t items = p.few ? cut.items : ceil_div(p.n, kPanelColumns);  // of a group
  queue.for_each(p.n_groups * items, [&](int64_t i, const Worker& worker) {
    const int32_t group = p.groups[i / items];
    const int64_t first = p.starts[group], item = i % items;
    const LinearParams rows{.x = p.x + first * p.k,
                            .weight = {p.weights[group], p.codec},
                            .out = p.out + first * p.n,
                            .m = p.starts[group + 1] - first,
                            .k = p.k,
                            .n = p.n};
    if (p.few) return skinny_item(rows, level, cut, item, worker);
    for (int64_t row = 0; row < rows.m; row += kBlockRows) {
      multiply_block(rows, level, row, std::min(kBlockRows, rows.m - row), item * kPanelColumns,
                     std::min(kPanelColumns, p.n - item * kPanelColumns), worker.scratch);
    }
  });
}

void norm_linear(Queue& queue, const NormLinearParams& p) {
  rms_norm(queue, {p.linear.x, p.norm_weight, p.normed, p.linear.m, p.linear.k, p.eps});
  LinearParams product = p.linear;
  product.x = p.normed;
  linear(queue, product);
}

void gated_linear(Queue& queue, const GatedLinearParams& p) {
  const bf16* x = p.x;
  if (p.norm_weight != nullptr) {
    rms_norm(queue, {p.x, p.norm_weight, p.normed, p.m, p.k, p.eps});
    x = p.normed;
  }
  LinearParams product{x, p.gate, p.gate_bias, p.out, p.m, p.k, p.n};
  product.alone = p.alone;
  linear(queue, product);
  product.weight = p.up;
  product.bias = p.up_bias;
  product.out = p.up_result;
  linear(queue, product);
  swiglu(queue, {p.out, p.up_result, p.out, p.m * p.n});
}

}  // namespace tiercel::cpu
