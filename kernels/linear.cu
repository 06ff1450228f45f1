#include <algorithm>

#include "kernels/elementwise.h"
#include "kernels/launch.cuh"
#include "kernels/linear.cuh"
#include "kernels/linear.h"
#include "kernels/matmul.h"

namespace tiercel::cuda {
namespace {

// Three blocks of at most 75 KiB share the 228 KiB of a Hopper multiprocessor.
constexpr int64_t kPanelBytes = 64 << 10;
constexpr int64_t kResidentBlocks = 3;

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool is_skinny(int64_t m, int64_t k) {
  return m <= kMaxSkinnyRows && k % kPiece == 0 && k <= (int64_t{1} << 24);
}

template <int kOctets, bool kNorm, bool kGated>
void launch_skinny(Stream& stream, const SkinnyParams& p) {
  constexpr int kColumns = 8 * (kGated ? kOctets / 2 : kOctets);
  launch_dependent<skinny_kernel<kOctets, kNorm, kGated>>(
      stream, blocks_for(p.n, kColumns), 32 * kSkinnyWarps,
      skinny_shared_bytes(p.m, p.panel, kOctets), p);
}

// One octet a block while all blocks are resident at once: 32 KiB of weights in flight in each.
// Beyond that more, as every block reads x once more: four where x has many rows.
template <bool kNorm>
void run_skinny(Stream& stream, SkinnyParams p) {
  const int64_t whole = (p.k + kPanelUnit - 1) / kPanelUnit * kPanelUnit;
  const int64_t fits = kPanelBytes / (2 * p.m) / kPanelUnit * kPanelUnit;
  p.panel = static_cast<int32_t>(std::min(whole, std::max<int64_t>(fits, kPanelUnit)));
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

SkinnyParams skinny_params(const LinearParams& p) {
  return {.x = p.x,
          .weight = p.weight,
          .bias = p.bias,
          .out = p.out,
          .n = p.n,
          .m = static_cast<int32_t>(p.m),
          .k = static_cast<int32_t>(p.k),
          .out_f32 = p.out_type == DType::kF32,
          .accumulate = p.accumulate};
}

void linear_any(Stream& stream, const LinearParams& p) {
  constexpr int64_t kMaxGridY = 65535;
  const int64_t row_blocks = std::min((p.m + kAnyRows - 1) / kAnyRows, kMaxGridY);
  launch<linear_any_kernel>(stream, dim3(blocks_for(p.n, 8), static_cast<unsigned>(row_blocks)),
                            256, 0, p);
}

// Calls op for group after group of as many rows as a row's bits do not depend on.
template <typename Op>
void for_row_groups(int64_t m, Op op) {
  for (int64_t row = 0; row < m; row += kMaxSkinnyRows) op(row, std::min(m - row, kMaxSkinnyRows));
}

LinearParams rows_of(LinearParams p, int64_t first, int64_t n) {
  p.x += first * p.k;
  p.out = static_cast<std::byte*>(p.out) + first * p.n * static_cast<int64_t>(size_of(p.out_type));
  p.m = n;
  return p;
}

}  // namespace

void linear(Stream& stream, const LinearParams& p) {
  CHECK(p.out_type == DType::kBf16 || p.out_type == DType::kF32, "{}", name_of(p.out_type));
  if (p.m == 0 || p.n == 0) return;
  CHECK(p.k > 0, "k is {}", p.k);
  if (p.alone && p.m > kMaxSkinnyRows) {
    for_row_groups(p.m, [&](int64_t row, int64_t n) { linear(stream, rows_of(p, row, n)); });
  } else if (p.m > kMaxSkinnyRows) {
    if (!matmul(stream, p)) linear_any(stream, p);
  } else if (is_skinny(p.m, p.k) && aligned(p.x) && aligned(p.weight)) {
    run_skinny<false>(stream, skinny_params(p));
  } else {
    linear_any(stream, p);
  }
}

bool can_fuse(const NormLinearParams& p) {
  const LinearParams& l = p.linear;
  return is_skinny(l.m, l.k) && aligned(l.x) && aligned(l.weight) && aligned(p.norm_weight);
}

void norm_linear(Stream& stream, const NormLinearParams& p) {
  if (p.linear.m == 0 || p.linear.n == 0) return;
  if (p.linear.alone && p.linear.m > kMaxSkinnyRows) {
    for_row_groups(p.linear.m, [&](int64_t row, int64_t n) {
      NormLinearParams group = p;
      group.linear = rows_of(p.linear, row, n);
      if (p.normed != nullptr) group.normed += row * p.linear.k;
      norm_linear(stream, group);
    });
    return;
  }
  if (!can_fuse(p)) {
    CHECK(p.normed != nullptr, "m {} k {}", p.linear.m, p.linear.k);
    rms_norm(stream, {p.linear.x, p.norm_weight, p.normed, p.linear.m, p.linear.k, p.eps});
    LinearParams product = p.linear;
    product.x = p.normed;
    linear(stream, product);
    return;
  }
  SkinnyParams params = skinny_params(p.linear);
  params.norm_weight = p.norm_weight;
  params.eps = p.eps;
  run_skinny<true>(stream, params);
}

bool can_fuse(const GatedLinearParams& p) {
  return p.gate_bias == nullptr && p.up_bias == nullptr && is_skinny(p.m, p.k) && aligned(p.x) &&
         aligned(p.gate) && aligned(p.up) && aligned(p.norm_weight);
}

void gated_linear(Stream& stream, const GatedLinearParams& p) {
  if (p.m == 0 || p.n == 0) return;
  if (p.alone && p.m > kMaxSkinnyRows) {
    for_row_groups(p.m, [&](int64_t row, int64_t n) {
      GatedLinearParams group = p;
      group.m = n;
      group.x += row * p.k;
      group.out += row * p.n;
      if (p.normed != nullptr) group.normed += row * p.k;
      if (p.up_result != nullptr) group.up_result += row * p.n;
      gated_linear(stream, group);
    });
    return;
  }
  if (!can_fuse(p)) {
    const bf16* x = p.x;
    if (p.norm_weight != nullptr) {
      rms_norm(stream, {p.x, p.norm_weight, p.normed, p.m, p.k, p.eps});
      x = p.normed;
    }
    linear(stream, {x, p.gate, p.gate_bias, p.out, p.m, p.k, p.n});
    linear(stream, {x, p.up, p.up_bias, p.up_result, p.m, p.k, p.n});
    swiglu(stream, {p.out, p.up_result, p.out, p.m * p.n});
    return;
  }
  const SkinnyParams params{.x = p.x,
                            .weight = p.gate,
                            .up = p.up,
                            .norm_weight = p.norm_weight,
                            .out = p.out,
                            .n = p.n,
                            .m = static_cast<int32_t>(p.m),
                            .k = static_cast<int32_t>(p.k),
                            .eps = p.eps};
  if (p.norm_weight != nullptr) {
    run_skinny<true>(stream, params);
  } else {
    run_skinny<false>(stream, params);
  }
}

}  // namespace tiercel::cuda
