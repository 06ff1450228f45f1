#include "cpu/linear.h"

#include <algorithm>

#include "cpu/elementwise.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

// A panel of 64 columns x 1024 elements is 128 KiB: beside the rows in use it stays in L2. On AMX half
// a panel of 512 stays in L1.
constexpr int64_t kAmxDepth = 512;
constexpr int64_t kBlockRows = 512;
constexpr int64_t kMostPanels = 8;  // of an item
// Weights of one skinny item; below it, splitting costs more than the second core brings.
constexpr int64_t kSkinnyItemBytes = 256 << 10;
// Weight rows that are multiplied together, as they lie: 128 KiB of a depth of 512, in L2 although they may be a
// power of two apart.
constexpr int64_t kWeightRows = 128;
// Weights of an item, which packs all of x for itself.
constexpr int64_t kFewRowsItemBytes = 4 << 20;

int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
const uint16_t* bits(const bf16* values) { return reinterpret_cast<const uint16_t*>(values); }

#if defined(__x86_64__)
constexpr GemmLevel kAvx2 = {pack_rows_avx2, pack_columns_portable, multiply_avx2,
                             multiply_skinny_avx2, decode_weights_avx2};
constexpr GemmLevel kAvx512 = {pack_rows_avx512, pack_columns_avx512, multiply_avx512,
                               multiply_skinny_avx512, decode_weights_avx512, true};
constexpr GemmLevel kAvx512Bf16 = {pack_rows_avx512, pack_columns_avx512, multiply_avx512bf16,
                                   multiply_skinny_avx512bf16, decode_weights_avx512bf16, true};
constexpr GemmLevel kAmx = {.pack_rows = pack_rows_amx,
                            .pack_columns = pack_columns_amx,
                            .multiply = multiply_amx,
                            .multiply_skinny = multiply_skinny_amx,
                            .decode_weights = decode_weights_avx512bf16,
                            .skinny_takes_codes = true,
                            .skinny_items = 8,
                            .most_panels = kMostPanels,
                            .depth = kAmxDepth,
                            .few_rows = 128,
                            .rows_alike = true};
#endif
constexpr GemmLevel kPortable = {pack_rows_portable, pack_columns_portable, multiply_portable,
                                 multiply_skinny_portable, decode_weights_portable};

void check_depth(int64_t k, const WeightCodec& codec) {
  CHECK(k > 0 && k % 2 == 0 && codec.is_for(k), "k is {}, {} in groups of {}", k, name_of(codec.code), codec.group);
}

// How a matrix [n][k] is gone through with m rows of x, at most kMaxSkinnyRows at a time.
struct SkinnyCut {
  int64_t rows;   // of x, at once
  int64_t range;  // weight rows of an item
  // Floats of the sums and the copy of x. Behind them there is room for coded weights that are decoded, some rows of
  // an item at a time: `decoded` of them.
  int64_t floats, decoded;

  SkinnyCut(const Queue& queue, const GemmLevel& level, int64_t m, int64_t k, int64_t n) {
    constexpr auto kFloats = static_cast<int64_t>(kScratchBytes / sizeof(float));
    rows = std::min(kMaxSkinnyRows, m);
    const int64_t least = kSkinnyItemBytes / (2 * k);
    const int64_t share = level.skinny_items > 0 ? n / (level.skinny_items * queue.n_workers()) : 0;
    range = std::min(kSkinnyRange, std::max<int64_t>(16, std::max(least, share) / 16 * 16));
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
  const SkinnyCut cut(queue, level, p.m, p.k, p.n);
  cut.check(p.k, p.weight.codec, level);
  queue.for_each(ceil_div(p.n, cut.range),
                 [&](int64_t item, const Worker& worker) { skinny_item(p, level, cut, item, worker); });
}

// ---- what panels of x and panels of weights have in common ----

// To ask for: channels from `first` on, up to `depth`, of n_rows rows of weights.
Ahead weights_ahead(const LinearParams& p, int64_t row, int64_t n_rows, int64_t first, int64_t depth) {
  const WeightCodec& codec = p.weight.codec;
  const int64_t row_bytes = codec.row_bytes(p.k);
  return {reinterpret_cast<const std::byte*>(p.weight.values) + row * row_bytes + codec.code_bytes(first), n_rows,
          codec.code_bytes(std::min(depth, p.k - first)), row_bytes};
}

// The last part of a sum goes to the result, from `row` and `column` on. bias: of the product.
void write_result(const LinearParams& p, int64_t row, int64_t column, const float* bias, PanelProduct& product) {
  product.bias = p.bias != nullptr ? bias : nullptr;
  product.out = static_cast<std::byte*>(p.out) + static_cast<size_t>(row * p.n + column) * size_of(p.out_type);
  product.out_stride = p.n;
  product.out_f32 = p.out_type == DType::kF32;
  product.accumulate = p.accumulate;
}

void widen_bias(const LinearParams& p, int64_t column, int64_t n, float* out) {
  for (int64_t i = 0; p.bias != nullptr && i < n; ++i) out[i] = static_cast<float>(p.bias[column + i]);
}

// ---- few rows: x is the panel, and rows of weights are multiplied as they lie ----

// The scratch memory of an item: x as panels, [panels][slices of depth]; coded weights of a slice, decoded; sums.
struct FewRowsScratch {
  uint16_t *x, *decoded;
  float* partial;

  FewRowsScratch(std::byte* scratch, int64_t n_panels, int64_t k)
      : x(reinterpret_cast<uint16_t*>(scratch)),
        decoded(x + n_panels * panel_elements(k)),
        partial(reinterpret_cast<float*>(decoded + kWeightRows * kAmxDepth)) {}

  static constexpr int64_t bytes(int64_t n_panels, int64_t k) {
    return 2 * (n_panels * panel_elements(k) + kWeightRows * kAmxDepth) + 4 * n_panels * kWeightRows * kPanelColumns;
  }
  float* sums(int64_t panel) const { return partial + panel * kWeightRows * kPanelColumns; }
};

// Panels of x that fit the scratch memory; 0: none.
int64_t panels_at_once(int64_t m, int64_t k) {
  int64_t n_panels = ceil_div(m, kPanelColumns);
  while (n_panels > 0 && FewRowsScratch::bytes(n_panels, k) > static_cast<int64_t>(kScratchBytes)) --n_panels;
  return n_panels;
}

// Rows [row, row + n_rows) of x, which are packed, times weight rows [first, first + n), n up to kWeightRows.
void few_rows_block(const LinearParams& p, const GemmLevel& level, int64_t row, int64_t n_rows, int64_t first,
                    int64_t n, int64_t end, const FewRowsScratch& s) {
  alignas(64) float bias[kWeightRows];
  widen_bias(p, first, n, bias);
  for (int64_t begin = 0; begin < p.k; begin += level.depth) {
    const int64_t depth = std::min(level.depth, p.k - begin);
    const bool last = begin + depth == p.k;
    const uint16_t* weights = bits(p.weight.values) + first * p.k + begin;
    int64_t stride = p.k;
    if (p.weight.codec.is_coded()) {
      decode_rows(level, p.weight, p.k, first, n, begin, depth, s.decoded);
      weights = s.decoded;
      stride = depth;
    }
    // The next slice of these rows, or the first of the next.
    Ahead ahead = last ? weights_ahead(p, first + n, std::min(n, end - first - n), 0, level.depth)
                       : weights_ahead(p, first, n, begin + depth, level.depth);
    for (int64_t panel = 0; panel * kPanelColumns < n_rows; ++panel) {
      const int64_t x_row = row + panel * kPanelColumns;
      PanelProduct product{.a = weights,
                           .row_stride = stride,
                           .panel = s.x + panel * panel_elements(p.k) + begin * kPanelColumns,
                           .n_rows = n,
                           .n_pairs = depth / 2,
                           .n_columns = std::min(kPanelColumns, row + n_rows - x_row),
                           .start = begin > 0 ? s.sums(panel) : nullptr,
                           .start_stride = kPanelColumns,
                           .out = s.sums(panel),
                           .out_stride = kPanelColumns,
                           .out_f32 = true,
                           .ahead = ahead};
      if (last) {
        write_result(p, x_row, first, bias, product);
        product.transposed = true;
      }
      level.multiply(product);
      ahead = {};
    }
  }
}

void linear_few_rows(Queue& queue, const LinearParams& p, const GemmLevel& level, int64_t n_panels) {
  const int64_t least_items = queue.n_workers() > 1 ? 2 * queue.n_workers() : 1;
  int64_t range = std::clamp(kFewRowsItemBytes / (2 * p.k) / kWeightRows, int64_t{1}, int64_t{8}) * kWeightRows;
  while (range > kWeightRows && ceil_div(p.n, range) < least_items) range -= kWeightRows;
  queue.for_each(ceil_div(p.n, range), [&](int64_t item, const Worker& worker) {
    const FewRowsScratch s(worker.scratch, n_panels, p.k);
    const int64_t end = std::min(p.n, (item + 1) * range);
    for (int64_t row = 0; row < p.m; row += n_panels * kPanelColumns) {
      const int64_t n_rows = std::min(n_panels * kPanelColumns, p.m - row);
      for (int64_t r = 0; r < n_rows; r += kPanelColumns) {
        for (int64_t begin = 0; begin < p.k; begin += level.depth) {
          level.pack_rows(bits(p.x) + (row + r) * p.k + begin, p.k, std::min(kPanelColumns, n_rows - r),
                          std::min(level.depth, p.k - begin),
                          s.x + r / kPanelColumns * panel_elements(p.k) + begin * kPanelColumns);
        }
      }
      for (int64_t first = item * range; first < end; first += kWeightRows) {
        few_rows_block(p, level, row, n_rows, first, std::min(kWeightRows, end - first), end, s);
      }
    }
  });
}

// ---- many rows: weights are packed as panels ----

// The scratch memory of an item of many rows, cut up.
struct BlockScratch {
  uint16_t *panel, *decoded, *rows;
  float* partial;

  explicit BlockScratch(std::byte* scratch)
      : panel(reinterpret_cast<uint16_t*>(scratch)),
        decoded(panel + kMostDepth * kPanelColumns),
        rows(decoded + kMostDepth * kPanelColumns),
        partial(reinterpret_cast<float*>(rows + kBlockRows * row_stride(kMostDepth))) {}

  // A line more than a row has: rows a power of two apart would fall on few of a cache's sets.
  static constexpr int64_t row_stride(int64_t depth) { return depth + 32; }
  static constexpr int64_t bytes() {
    return 2 * (2 * kMostDepth * kPanelColumns + kBlockRows * row_stride(kMostDepth)) +
           4 * kBlockRows * kMostPanels * kPanelColumns;
  }
};
static_assert(BlockScratch::bytes() <= kScratchBytes);

void copy_rows(const uint16_t* from, int64_t stride, int64_t n_rows, int64_t depth, uint16_t* to) {
  constexpr int64_t kRowsAhead = 8;  // rows are too short for the hardware's prefetcher
  for (int64_t r = 0; r < n_rows; ++r) {
    const uint16_t* row = from + r * stride;
    if (r + kRowsAhead < n_rows) {
      for (int64_t i = 0; i < depth; i += 32) __builtin_prefetch(row + kRowsAhead * stride + i);
    }
    std::copy_n(row, depth, to + r * BlockScratch::row_stride(depth));
  }
}

// What is packed after the panel of `column` and channels from `first` on: the panel beside it, or that of the
// range's first column, further along k.
Ahead next_panel(const LinearParams& p, int64_t depth, int64_t first, int64_t column, int64_t first_column,
                 int64_t end_column) {
  int64_t next = column + kPanelColumns;
  if (next >= end_column) {
    next = first_column;
    first += depth;
  }
  if (first >= p.k) return {};
  return weights_ahead(p, next, std::min(kPanelColumns, end_column - next), first, depth);
}

// Rows [row, row + n_rows) x n_columns columns from `column` on, panel by panel, in slices
// along k: all but the last leave their fp32 sums in the scratch memory.
void multiply_block(const LinearParams& p, const GemmLevel& level, int64_t row, int64_t n_rows, int64_t column,
                    int64_t n_columns, std::byte* scratch) {
  const BlockScratch s(scratch);
  alignas(64) float bias[kPanelColumns * kMostPanels];
  widen_bias(p, column, n_columns, bias);
  for (int64_t first = 0; first < p.k; first += level.depth) {
    const int64_t depth = std::min(level.depth, p.k - first);
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
                           .out_f32 = true,
                           .ahead = next_panel(p, level.depth, first, column + c, column, column + n_columns)};
      if (last) write_result(p, row, column + c, bias + c, product);
      level.multiply(product);
    }
  }
}

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
  if (p.m <= kMaxSkinnyRows || (p.alone && !level.rows_alike)) return linear_skinny(queue, p, level);
  const int64_t n_panels = p.m <= level.few_rows ? panels_at_once(p.m, p.k) : 0;
  if (n_panels > 0) return linear_few_rows(queue, p, level, n_panels);
  linear_blocks(queue, p, level);
}

void linear_grouped(Queue& queue, const GroupedLinearParams& p) {
  check_depth(p.k, p.codec);
  const GemmLevel& level = gemm_level(queue.isa());
  // Few rows, or each of them alone: then some groups may have more. Where rows are alike anyway, each group goes the
  // way that its own number asks for.
  SkinnyCut cut(queue, level, kMaxSkinnyRows, p.k, p.n);
  if (p.few || level.rows_alike) cut.check(p.k, p.codec, level);
  if (level.rows_alike) {
    cut.range = std::max(kPanelColumns, cut.range / kPanelColumns * kPanelColumns);
  } else if (!p.few) {
    cut.range = kPanelColumns;
  }
  const int64_t items = ceil_div(p.n, cut.range);  // of a group
  queue.for_each(p.n_groups * items, [&](int64_t i, const Worker& worker) {
    const int32_t group = p.groups[i / items];
    const int64_t first = p.starts[group], item = i % items;
    const LinearParams rows{.x = p.x + first * p.k,
                            .weight = {p.weights[group], p.codec},
                            .out = p.out + first * p.n,
                            .m = p.starts[group + 1] - first,
                            .k = p.k,
                            .n = p.n};
    if (level.rows_alike ? rows.m <= kMaxSkinnyRows : p.few) return skinny_item(rows, level, cut, item, worker);
    const int64_t column = item * cut.range, width = std::min(cut.range, p.n - column);
    for (int64_t row = 0; row < rows.m; row += kBlockRows) {
      multiply_block(rows, level, row, std::min(kBlockRows, rows.m - row), column, width, worker.scratch);
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
