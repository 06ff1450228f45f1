#include <algorithm>

#include "kernels/joint_launch.cuh"
#include "kernels/lowrank.cuh"
#include "kernels/lowrank.h"
#include "kernels/lowrank_fit.cuh"
#include "kernels/lowrank_project.cuh"

namespace tiercel::cuda {
namespace {

using namespace lowrank;

template <typename... Pointers>
bool aligned16(const Pointers*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}
bool aligned16(const RopeView& r) {
  return aligned16(r.coarse_cos, r.coarse_sin, r.fine_cos, r.fine_sin);
}
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

void check_shape(int32_t head_dim, const RopeView& rope, const LowRankView& lowrank, int64_t w) {
  CHECK(head_dim > 0 && head_dim == 2 * rope.half, "head dimension {}, table {}", head_dim,
        2 * rope.half);
  CHECK(lowrank.rank > 0 && lowrank.rank <= w, "rank {} of {}", lowrank.rank, w);
}

// Keys and their tables can be read by units of eight channels.
bool in_key_units(const auto& p) {
  return p.rope.half % 8 == 0 && p.head_stride % 8 == 0 && aligned16(p.keys) && aligned16(p.rope);
}

// ---- rebuild ----

// Shared memory of a block, so that two fit on a processor where it has 227 or 164 KiB, and one
// where it has 99.
int64_t rebuild_budget(const Stream& stream) {
  const bool large = stream.shared_memory() >= int64_t{110} << 10;
  return int64_t{large ? 110 : 96} << 10;
}

template <int kPairs, bool kCoded>
void launch_rebuild(Stream& stream, const RebuildParams& p) {
  RebuildKernelParams k;
  k.op = p;
  if (kCoded) k.format = row_format(p.codec, p.lowrank.rank);
  const int64_t rank = divide_up(p.lowrank.rank, 16) * 16;
  int64_t most = 16;
  while (rebuild_shared_bytes(kPairs, most + 16) <= rebuild_budget(stream)) most += 16;
  k.n_panels = static_cast<int32_t>(divide_up(rank, most));
  k.panel = static_cast<int32_t>(divide_up(divide_up(rank, k.n_panels), 16) * 16);
  k.units = p.lowrank.rank % 8 == 0 && aligned16(p.lowrank.basis, p.coefficients);

  // A block per tile, but no more than fill the device: then they loop, and keep their basis.
  const int64_t tiles = divide_up(p.stride * p.chunk_tokens, kTileTokens);
  const int64_t parallel = std::max<int64_t>(1, 2 * stream.n_processors() / p.n_kv_heads);
  const dim3 grid(blocks_for(std::min(tiles, parallel), 1), static_cast<unsigned>(p.n_kv_heads),
                  blocks_for(p.rope.half, 32 * kPairs));
  launch_joint<Rebuild<kPairs, kCoded>>(
      stream, grid, static_cast<size_t>(rebuild_shared_bytes(kPairs, k.panel)), k);
}

template <bool kCoded>
void rebuild_from(Stream& stream, const RebuildParams& p) {
  if (p.rope.half <= 32) return launch_rebuild<1, kCoded>(stream, p);
  if (p.rope.half <= 64) return launch_rebuild<2, kCoded>(stream, p);
  launch_rebuild<4, kCoded>(stream, p);
}

// ---- project ----

template <int kTiles>
void launch_project(Stream& stream, const ProjectKernelParams& k) {
  const dim3 grid(blocks_for(k.op.n_tokens, kTileTokens),
                  blocks_for(k.op.lowrank.rank, 32 * kTiles));
  launch_dependent<project_kernel<kTiles>>(
      stream, grid, kThreads, static_cast<size_t>(project_shared_bytes(kTiles, k.range_pairs)), k);
}

// ---- fit ----

// Enough blocks to fill a device, of 1024 to 4096 tokens each; a function of w alone, so that the
// order of sums is too.
int64_t gram_splits(int64_t n_tiles) { return n_tiles >= 100 ? 2 : n_tiles >= 60 ? 4 : 8; }

struct FitScratch {
  FitState* state = nullptr;
  float* shift = nullptr;  // [w]
  double* sums = nullptr;  // [w]
  double* gram = nullptr;  // [tiles][128][128]
  // while keys are read
  float* strip_sums = nullptr;  // [kPanelTokens / kStripTokens][w]
  bf16* shifted = nullptr;      // [kPanelTokens][pitch]
  float* partials = nullptr;    // [splits][tiles][128][128]
  // afterwards, in the same place
  double* matrix = nullptr;   // [w][w]
  double* vectors = nullptr;  // [rank][w]
  double* values = nullptr;   // [rank]
  int32_t* status = nullptr;  // [kEigenStatus]
  std::byte* workspace = nullptr;

  int64_t n_side = 0, n_tiles = 0, n_splits = 0, pitch = 0;
  int64_t bytes = 0;
};

FitScratch fit_scratch(void* memory, int64_t w, int64_t rank) {
  FitScratch s;
  int64_t used = 0;
  const auto take = [&]<typename T>(T*& piece, int64_t n) {
    piece =
        reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(used));
    used += divide_up(n * static_cast<int64_t>(sizeof(T)), 256) * 256;
  };
  s.n_side = divide_up(w, kGramTile);
  s.n_tiles = s.n_side * (s.n_side + 1) / 2;
  s.n_splits = gram_splits(s.n_tiles);
  s.pitch = divide_up(w, 8) * 8;
  take(s.state, 1);
  take(s.shift, w);
  take(s.sums, w);
  take(s.gram, s.n_tiles * kGramTileSize);
  const int64_t common = used;
  take(s.strip_sums, kPanelTokens / kStripTokens * w);
  take(s.shifted, kPanelTokens * s.pitch);
  take(s.partials, s.n_splits * s.n_tiles * kGramTileSize);
  s.bytes = used;
  used = common;
  take(s.matrix, w * w);
  take(s.vectors, rank * w);
  take(s.values, rank);
  take(s.status, kEigenStatus);
  take(s.workspace, eigen_workspace_bytes(w, rank));
  s.bytes = std::max(s.bytes, used);
  return s;
}

// Column sums of a panel, and its shifted keys if s.shift is ready.
void shift_panel(Stream& stream, const FitBasisParams& p, const FitScratch& s, int64_t first,
                 int64_t n, bool is_first_mean) {
  const int64_t w = int64_t{p.n_kv_heads} * p.head_dim;
  ShiftKernelParams k;
  k.op = p;
  k.first_token = first;
  k.n_tokens = n;
  k.shift = is_first_mean ? nullptr : s.shift;
  k.shifted = is_first_mean ? nullptr : s.shifted;
  k.pitch = s.pitch;
  k.strip_sums = s.strip_sums;
  k.units = in_key_units(p);
  const int64_t units = divide_up(p.rope.half, 8) * p.n_kv_heads,
                strips = divide_up(n, kStripTokens);
  launch<shift_kernel>(stream, dim3(blocks_for(strips, 1), blocks_for(units, kStripThreads)),
                       kStripThreads, 0, k);
  FoldSumsParams fold{s.strip_sums, strips, w, n, s.sums, is_first_mean ? s.shift : nullptr};
  launch<fold_sums_kernel>(stream, blocks_for(w, 32), 256, 256 * sizeof(double), fold);
}

void add_gram(Stream& stream, const FitScratch& s, int64_t n) {
  GramKernelParams k;
  k.shifted = s.shifted;
  k.pitch = s.pitch;
  k.n_tokens = n;
  k.split_tokens = kPanelTokens / s.n_splits;
  k.n_side = static_cast<int32_t>(s.n_side);
  k.partials = s.partials;
  const int64_t splits = divide_up(n, k.split_tokens);
  launch<gram_kernel>(stream, dim3(blocks_for(s.n_tiles, 1), blocks_for(splits, 1)), kThreads,
                      kGramSharedBytes, k);
  const FoldGramParams fold{s.partials, s.gram, s.n_tiles * kGramTileSize,
                            static_cast<int32_t>(splits)};
  launch<fold_gram_kernel>(stream, blocks_for(fold.size, 1024), 256, 0, fold);
}

}  // namespace

int64_t fit_basis_scratch_bytes(int64_t w, int64_t rank) {
  return fit_scratch(nullptr, w, rank).bytes;
}

void fit_basis(Stream& stream, const FitBasisParams& p) {
  fit_basis_with(stream, p, EigenMethod::kAuto);
}

void fit_basis_with(Stream& stream, const FitBasisParams& p, EigenMethod method) {
  const int64_t w = int64_t{p.n_kv_heads} * p.head_dim, rank = p.lowrank.rank;
  CHECK(p.n_tokens > 0, "{} tokens", p.n_tokens);
  check_shape(p.head_dim, p.rope, p.lowrank, w);
  const FitScratch s = fit_scratch(stream.scratch(fit_basis_scratch_bytes(w, rank)), w, rank);

  shift_panel(stream, p, s, 0, std::min(p.n_tokens, kShiftTokens), true);
  stream.fill_bytes(s.sums, 0, w * static_cast<int64_t>(sizeof(double)));
  stream.fill_bytes(s.gram, 0, s.n_tiles * kGramTileSize * static_cast<int64_t>(sizeof(double)));
  for (int64_t first = 0; first < p.n_tokens; first += kPanelTokens) {
    const int64_t n = std::min(kPanelTokens, p.n_tokens - first);
    shift_panel(stream, p, s, first, n, false);
    add_gram(stream, s, n);
  }

  const CovarianceParams c{
      s.gram,         s.sums,   s.shift, w, p.n_tokens, static_cast<int32_t>(s.n_side),
      p.lowrank.mean, s.matrix, s.state};
  launch<trace_kernel>(stream, 1, 256, 256 * sizeof(double), c);
  launch<covariance_kernel>(stream, blocks_for(w * w, 256), 256, 0, c);
  stream.fill_bytes(s.status, 0, kEigenStatus * static_cast<int64_t>(sizeof(int32_t)));
  leading_eigenvectors(stream,
                       {s.matrix, w, rank, s.vectors, s.values, s.status, s.workspace, method});
  const FinishBasisParams finish{s.vectors, s.values, s.status,        s.state,
                                 w,         rank,     p.lowrank.basis, p.residual_energy};
  launch<finish_basis_kernel>(stream, blocks_for(rank, 1), 256, 256 * 2 * sizeof(double), finish);
}

void project_keys(Stream& stream, const ProjectParams& p) {
  if (p.n_tokens == 0) return;
  check_shape(p.head_dim, p.rope, p.lowrank, int64_t{p.n_kv_heads} * p.head_dim);
  ProjectKernelParams k;
  k.op = p;
  const int64_t half = p.rope.half;
  k.n_ranges = static_cast<int32_t>(divide_up(half, 64));
  k.range_pairs = static_cast<int32_t>(divide_up(divide_up(half, k.n_ranges), 8) * 8);
  k.key_units = in_key_units(p) && aligned16(p.lowrank.mean);
  k.basis_units = p.lowrank.rank % 8 == 0 && aligned16(p.lowrank.basis);
  // As few tiles of columns as shared memory allows, and no wider than they must be.
  const int64_t n_column_tiles = divide_up(p.lowrank.rank, 160);
  switch (divide_up(p.lowrank.rank, 32 * n_column_tiles)) {
    case 1:
    case 2: return launch_project<2>(stream, k);
    case 3: return launch_project<3>(stream, k);
    case 4: return launch_project<4>(stream, k);
    default: return launch_project<5>(stream, k);
  }
}

void rebuild_keys(Stream& stream, const RebuildParams& p) {
  if (p.n_kv_heads == 0 || p.stride == 0) return;
  check_shape(p.head_dim, p.rope, p.lowrank, int64_t{p.n_kv_heads} * p.head_dim);
  CHECK(p.chunk_tokens > 0, "chunks of {} tokens", p.chunk_tokens);
  if (p.codec != RowCodec::kBf16) {
    CHECK(can_code(p.lowrank.rank) && reinterpret_cast<uintptr_t>(p.coded) % 4 == 0,
          "coded rows of {} elements", p.lowrank.rank);
    rebuild_from<true>(stream, p);
  } else {
    rebuild_from<false>(stream, p);
  }
}

}  // namespace tiercel::cuda
