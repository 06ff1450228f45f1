#include <algorithm>

#include "kernels/elementwise.h"
#include "kernels/launch.cuh"
#include "kernels/linear.h"
#include "kernels/linear_any.cuh"
#include "kernels/linear_rows.cuh"
#include "kernels/matmul.h"

namespace tiercel::cuda {
namespace {

constexpr int64_t kResidentBlocks = 3;  // of a multiprocessor

// Whether weights can be streamed into matrix instructions.
bool can_stream(int64_t k) { return k % kPiece == 0 && k <= (int64_t{1} << 24); }
bool can_stream(const LinearParams& p) {
  return can_stream(p.k) && aligned(p.x) && aligned(p.weight.values);
}

template <int kOctets, bool kNorm, bool kGated, int kPieces = kShortAhead, WeightCode kCode = WeightCode::kBf16>
void launch_skinny(Stream& stream, const SkinnyParams& p) {
  constexpr int kColumns = 8 * SkinnyWeights<kOctets, kGated, kCode>::kColumns;
  launch_dependent<skinny_kernel<kOctets, kNorm, kGated, kPieces, kCode>>(
      stream, blocks_for(p.n, kColumns), 32 * kSkinnyWarps,
      skinny_shared_bytes(p.m, p.panel, kOctets, kCode == WeightCode::kBf16 ? 0 : p.n_groups()), p);
}

// One octet a block while all blocks are resident at once: 32 KiB of weights in flight in each.
// Beyond that more, as every block reads x once more: four where x has many rows.
template <bool kNorm>
void run_skinny_bf16(Stream& stream, SkinnyParams p) {
  p.panel = panel_of(p.m, p.k);
  if (p.up != nullptr) {
    launch_skinny<2, kNorm, true>(stream, p);
    return;
  }
  const int64_t octets = (p.n + 7) / 8, resident = kResidentBlocks * stream.n_processors();
  if (octets <= resident) {
    launch_skinny<1, kNorm, false>(stream, p);
  } else if (p.m <= 2 || octets <= 4 * resident) {
    launch_skinny<2, kNorm, false>(stream, p);
  } else {
    launch_skinny<4, kNorm, false>(stream, p);
  }
}

// Sixteen rows of codes a block, whose params lie in shared memory too.
template <bool kNorm, WeightCode kCode>
void run_skinny_coded(Stream& stream, SkinnyParams p) {
  constexpr int kOctets = 2;
  p.panel = panel_beside_params(p.m, p.k, kOctets, p.n_groups(), stream.shared_memory());
  if (p.up != nullptr) {
    launch_skinny<kOctets, kNorm, true, kShortAhead, kCode>(stream, p);
  } else {
    launch_skinny<kOctets, kNorm, false, kShortAhead, kCode>(stream, p);
  }
}

template <bool kNorm>
void run_skinny(Stream& stream, const SkinnyParams& p) {
  with_code(p.codes.code, [&]<WeightCode kCode>() {
    if constexpr (kCode == WeightCode::kBf16) {
      run_skinny_bf16<kNorm>(stream, p);
    } else {
      run_skinny_coded<kNorm, kCode>(stream, p);
    }
  });
}

SkinnyParams skinny_params(const LinearParams& p) {
  return {.x = p.x,
          .weight = p.weight.values,
          .bias = p.bias,
          .out = p.out,
          .n = p.n,
          .m = static_cast<int32_t>(p.m),
          .k = static_cast<int32_t>(p.k),
          .out_f32 = p.out_type == DType::kF32,
          .accumulate = p.accumulate,
          .codes = code_layout(p.weight.codec, p.k)};
}

void linear_any(Stream& stream, const LinearParams& p) {
  constexpr int64_t kMaxGridY = 65535;
  const int64_t row_blocks = std::min((p.m + kAnyRows - 1) / kAnyRows, kMaxGridY);
  launch<linear_any_kernel>(stream, dim3(blocks_for(p.n, 8), static_cast<unsigned>(row_blocks)),
                            256, 0, p);
}

// Octets of a block, at most.
template <int kBits>
inline constexpr int kRowOctets = kBits == 16 ? 8 : 4;

template <int kOctets, bool kGated, WeightCode kCode>
void launch_rows(Stream& stream, const SkinnyParams& p) {
  constexpr int kColumns = 8 * SkinnyWeights<kOctets, kGated, kCode>::kColumns;
  launch_dependent<linear_rows_kernel<kOctets, kGated, kCode>>(
      stream, blocks_for(p.n, kColumns), 32 * kSkinnyWarps,
      linear_rows_shared_bytes<kBitsOf<kCode>>(padded_rows(p.m), kOctets), p);
}

// Eight octets a block read x half as often as four, but must be enough blocks to fill the device, and registers that
// decode are too few for them.
void run_rows(Stream& stream, const SkinnyParams& p) {
  with_code(p.codes.code, [&]<WeightCode kCode>() {
    constexpr int kMostOctets = kRowOctets<kBitsOf<kCode>>;
    if (p.up != nullptr) {
      launch_rows<kMostOctets, true, kCode>(stream, p);
    } else if (p.n >= int64_t{8 * kMostOctets} * stream.n_processors()) {
      launch_rows<kMostOctets, false, kCode>(stream, p);
    } else {
      launch_rows<4, false, kCode>(stream, p);
    }
  });
}

// Rows of one launch: two panels of 64 take 128 KiB of shared memory, which not every device has. Those beside weights
// of four bits are twice as long.
int64_t rows_at_once(const Stream& stream, WeightCode code) {
  return with_code(code, [&]<WeightCode kCode>() {
    constexpr int kBits = kBitsOf<kCode>;
    const int most = kBits == 4 ? kMostRows / 2 : kMostRows;
    const size_t bytes = linear_rows_shared_bytes<kBits>(most, kRowOctets<kBits>);
    return stream.shared_memory() >= static_cast<int64_t>(bytes) ? most : most / 2;
  });
}

// Rows that have the bits of m = 1, some at a time. norm_weight is null: it has been done.
void run_streamed(Stream& stream, const SkinnyParams& all) {
  const int64_t most = rows_at_once(stream, all.codes.code);
  const int64_t out_bytes = all.out_f32 ? sizeof(float) : sizeof(bf16);
  for (int64_t row = 0; row < all.m; row += most) {
    SkinnyParams p = all;
    p.m = static_cast<int32_t>(std::min(all.m - row, most));
    p.x += row * p.k;
    p.out = static_cast<std::byte*>(p.out) + row * p.n * out_bytes;
    if (p.m > kMaxSkinnyRows) {
      run_rows(stream, p);
    } else {
      run_skinny<false>(stream, p);
    }
  }
}

// A norm by itself. folded: with the bits that it has where it is folded into the product.
void normalise(Stream& stream, const NormParams& p, bool folded) {
  CHECK(p.out != nullptr, "m {} k {}", p.n_rows, p.width);
  if (!folded) return rms_norm(stream, p);
  const NormRowsParams rows{p.x, p.weight, p.out, static_cast<int32_t>(p.width), p.eps};
  launch_dependent<norm_rows_kernel>(stream, blocks_for(p.n_rows, 1), 32 * kSkinnyWarps,
                                     kSkinnyWarps * sizeof(float), rows);
}

}  // namespace

CodeLayout code_layout(const WeightCodec& codec, int64_t k) {
  const auto [code, group] = codec;
  CHECK(codec.is_for(k), "{} in groups of {}, k is {}", name_of(code), group, k);
  if (!codec.is_coded()) return {};
  return {code, codec.row_bytes(k), static_cast<int32_t>(codec.code_bytes(k)), group == 32 ? 5 : group == 64 ? 6 : 7};
}

namespace {

void decode_weights(Stream& stream, const LinearParams& p, bf16* out) {
  const DecodeWeightsParams rows{p.weight.values, code_layout(p.weight.codec, p.k), out, p.n, p.k};
  constexpr int kThreads = 256;
  const int64_t pieces = p.n * p.weight.codec.code_bytes(p.k) / 16;
  with_code(p.weight.codec.code, [&]<WeightCode kCode>() {
    if constexpr (kCode != WeightCode::kBf16) {
      launch_dependent<decode_weights_kernel<kCode>>(stream, blocks_for(pieces, kThreads), kThreads, 0, rows);
    }
  });
}

// Some columns of the result at a time. False: the library refuses them, and nothing is done.
bool multiply_decoded(Stream& stream, const LinearParams& p) {
  auto* const scratch = static_cast<std::byte*>(stream.scratch(linear_scratch_bytes(/*coded=*/true)));
  auto* const decoded = reinterpret_cast<bf16*>(scratch + matmul_scratch_bytes());
  const int64_t most = decoded_scratch_bytes() / (2 * p.k) / 128 * 128;
  if (most == 0) return false;
  for (int64_t column = 0; column < p.n; column += most) {
    LinearParams part = p;
    part.n = std::min(most, p.n - column);
    part.weight = p.weight.from_row(column, p.k);
    decode_weights(stream, part, decoded);
    part.weight = decoded;
    if (p.bias != nullptr) part.bias = p.bias + column;
    part.out = static_cast<std::byte*>(p.out) + static_cast<size_t>(column) * size_of(p.out_type);
    if (!matmul(stream, part, p.n)) {
      CHECK(column == 0, "columns {} to {} of {}", column, column + part.n, p.n);
      return false;
    }
  }
  return true;
}

}  // namespace

void linear(Stream& stream, const LinearParams& p) {
  CHECK(p.out_type == DType::kBf16 || p.out_type == DType::kF32, "{}", name_of(p.out_type));
  if (p.m == 0 || p.n == 0) return;
  CHECK(p.k > 0, "k is {}", p.k);
  const bool few = p.m <= kMaxSkinnyRows, coded = p.weight.codec.is_coded();
  if (coded) CHECK(can_stream(p), "coded weights, or rows beside them, at other addresses than multiples of 16");
  if (few || p.alone) {
    if (can_stream(p)) return run_streamed(stream, skinny_params(p));
  } else if (coded ? multiply_decoded(stream, p) : matmul(stream, p, p.n)) {
    return;
  }
  if (coded) return run_streamed(stream, skinny_params(p));
  linear_any(stream, p);
}

void linear_reading_ahead(Stream& stream, const LinearParams& p, ReadAhead ahead) {
  CHECK(p.m > 0 && p.m <= kMaxSkinnyRows && can_stream(p), "m {} k {}", p.m, p.k);
  SkinnyParams params = skinny_params(p);
  params.panel = panel_of(params.m, params.k);
  if (ahead == ReadAhead::kLong) {
    launch_skinny<2, false, false, kLongAhead>(stream, params);
  } else {
    launch_skinny<2, false, false>(stream, params);
  }
}

namespace {

// Whether the norm of a few rows is folded in; more rows, if they are to have the same bits, are
// normalised in the same way before.
bool folds_norm(const NormLinearParams& p) {
  return can_stream(p.linear) && aligned(p.norm_weight);
}
bool folds_gate(const GatedLinearParams& p) {
  return p.gate_bias == nullptr && p.up_bias == nullptr && p.gate.codec == p.up.codec && can_stream(p.k) &&
         aligned(p.x) &&
         aligned(p.gate.values) && aligned(p.up.values) && aligned(p.norm_weight);
}

}  // namespace

bool can_fuse(const NormLinearParams& p) {
  return p.linear.m <= kMaxSkinnyRows && folds_norm(p);
}

void norm_linear(Stream& stream, const NormLinearParams& p) {
  const LinearParams& l = p.linear;
  if (l.m == 0 || l.n == 0) return;
  if (can_fuse(p)) {
    SkinnyParams params = skinny_params(l);
    params.norm_weight = p.norm_weight;
    params.eps = p.eps;
    run_skinny<true>(stream, params);
    return;
  }
  normalise(stream, {l.x, p.norm_weight, p.normed, l.m, l.k, p.eps}, l.alone && folds_norm(p));
  LinearParams product = l;
  product.x = p.normed;
  linear(stream, product);
}

bool can_fuse(const GatedLinearParams& p) { return p.m <= kMaxSkinnyRows && folds_gate(p); }

void gated_linear(Stream& stream, const GatedLinearParams& p) {
  if (p.m == 0 || p.n == 0) return;
  LinearParams product{p.x, p.gate, p.gate_bias, p.out, p.m, p.k, p.n};
  product.alone = p.alone;
  const bool fuse = can_fuse(p), folds = fuse || (p.alone && folds_gate(p));
  if (!fuse && p.norm_weight != nullptr) {
    normalise(stream, {p.x, p.norm_weight, p.normed, p.m, p.k, p.eps}, folds);
    product.x = p.normed;
  }
  if (folds) {
    SkinnyParams params = skinny_params(product);
    params.up = p.up.values;
    if (!fuse || p.norm_weight == nullptr) return run_streamed(stream, params);
    params.norm_weight = p.norm_weight;
    params.eps = p.eps;
    return run_skinny<true>(stream, params);
  }
  linear(stream, product);
  product.weight = p.up;
  product.bias = p.up_bias;
  product.out = p.up_result;
  linear(stream, product);
  swiglu(stream, {p.out, p.up_result, p.out, p.m * p.n});
}

}  // namespace tiercel::cuda
