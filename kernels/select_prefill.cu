// Selection for blocks of prefill queries. Mean queries of all blocks and heads are rows of one
// product with the landmarks, made twice: first for the sums of softmax, then for the best of each
// group of heads, so that one float per chunk and group is kept instead of one per head. Heads
// beyond 16 of a group are scored 16 at a time.
#include <algorithm>
#include <limits>

#include "kernels/launch.cuh"
#include "kernels/score_launch.cuh"
#include "kernels/score_parts.h"
#include "kernels/select.h"
#include "kernels/select_prefill.cuh"

namespace tiercel::cuda {
namespace {

constexpr int32_t kMaxSplits = 512;
// Scores of so many bytes are kept at a time: all blocks of a call below a million chunks or so.
constexpr int64_t kScoreBytes = int64_t{512} << 20;

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Shapes of a call, and where things are in scratch memory.
struct Plan {
  PrefillBlocks blocks;
  int64_t n_blocks, most_blocks;  // of the call, of one batch
  int64_t origin, stride;
  int32_t padded_group;                          // heads scored at a time, up to a power of two
  int64_t sums_at, scores_at, maxima_at, bytes;  // mean queries are first

  explicit Plan(const PrefillSelectParams& p)
      : blocks{p.first_position, p.block_tokens, p.local_tokens, p.end_chunk,
               p.sink_chunks,    p.k,            p.chunk_tokens} {
    n_blocks = (p.n_tokens + p.block_tokens - 1) / p.block_tokens;
    origin = p.sink_chunks / 8 * 8;
    const int64_t last = blocks.chunks_before(std::max<int64_t>(n_blocks - 1, 0));
    stride = round_up(std::max<int64_t>(last - origin, 0), 8);
    const int64_t block_bytes = std::max<int64_t>(p.n_kv_heads * stride * 4, 1);
    most_blocks = std::clamp<int64_t>(kScoreBytes / block_bytes, 1, std::max<int64_t>(n_blocks, 1));
    const int64_t group = std::min(p.n_heads / p.n_kv_heads, 16);
    padded_group = 1;
    while (padded_group < group) padded_group *= 2;
    // The space for scores does not shrink when chunks become more and batches shorter.
    const int64_t score_bytes =
        std::min(n_blocks * block_bytes, std::max(block_bytes, kScoreBytes));
    const int64_t rows = p.n_kv_heads * n_blocks * padded_group;
    sums_at = round_up(rows * p.head_dim * 2, 256);
    scores_at = sums_at + round_up(rows * kMaxSplits * static_cast<int64_t>(sizeof(ScoreSum)), 256);
    maxima_at = scores_at + round_up(score_bytes, 256);
    bytes = maxima_at + round_up(n_blocks * p.n_kv_heads * maximum_stride() * 4, 256);
  }
  // Maxima of pieces, then a list of as many.
  int64_t maximum_stride() const { return 2 * round_up(stride / kPiece + 1, 4); }
};

// Mean queries of some heads of each KV head, from queries or, of one view, from means.
void pack_means(Stream& stream, const PrefillSelectParams& p, const Plan& plan, int32_t view,
                int32_t first_head, const ScoreParams& s, int64_t n_blocks) {
  BlockMeanParams mean{};
  mean.q = p.q;
  mean.n_tokens = p.n_tokens;
  mean.block_tokens = p.block_tokens;
  if (p.means != nullptr) {  // of one each
    mean.q = p.means + view * p.views.stride;
    mean.n_tokens = plan.n_blocks;
    mean.block_tokens = 1;
  }
  mean.means = const_cast<bf16*>(s.queries);
  mean.first_block = s.first_block;
  mean.n_blocks = n_blocks;
  mean.n_heads = p.n_heads;
  mean.n_kv_heads = p.n_kv_heads;
  mean.head_dim = p.head_dim;
  mean.first_head = first_head;
  mean.group = s.group;
  mean.padded_group = plan.padded_group;
  const dim3 grid(static_cast<unsigned>(s.n_rows), static_cast<unsigned>(p.n_kv_heads));
  launch<mean_of_blocks>(stream, grid, kQueryThreads, 0, mean);
}

// Group scores of blocks first_block .. + n_blocks - 1.
void score_blocks(Stream& stream, const PrefillSelectParams& p, const Plan& plan,
                  std::byte* scratch, int64_t first_block, int64_t n_blocks) {
  const int32_t group = p.n_heads / p.n_kv_heads;
  ScoreParams s{};
  s.queries = reinterpret_cast<bf16*>(scratch);
  s.landmarks = p.landmarks;
  s.landmark_head_stride = p.landmark_head_stride;
  s.origin = plan.origin;
  s.lead = static_cast<int32_t>(p.sink_chunks - plan.origin);
  s.n = static_cast<int32_t>(plan.blocks.chunks_before(first_block + n_blocks - 1) - plan.origin);
  s.n_rows = static_cast<int32_t>(n_blocks * plan.padded_group);
  s.head_dim = p.head_dim;
  s.scale = p.scale * gpu::kLog2e;
  const ScoreParts parts = cut_by_view(
      p.views, p.chunk_tokens, s.origin, s.n, kMaxSplits, [&](int64_t n, int32_t most) {
        return score_splits(n, p.head_dim, p.n_kv_heads, s.n_rows, kMaxTiles, most);
      });
  s.sums = reinterpret_cast<ScoreSum*>(scratch + plan.sums_at);
  s.sum_stride = kMaxSplits;
  s.scores = reinterpret_cast<float*>(scratch + plan.scores_at);
  s.score_stride = plan.stride;
  s.blocks = plan.blocks;
  s.first_block = first_block;
  s.n_kv_heads = p.n_kv_heads;
  s.padded_group = plan.padded_group;
  for (int32_t head = 0; head < group; head += 16) {
    s.group = std::min(group - head, 16);
    s.is_first = head == 0;
    int32_t packed = -1;  // the view
    const auto for_each_part = [&](auto&& launch_part) {
      for (const ScorePart& part : parts) {
        if (part.view != packed) pack_means(stream, p, plan, part.view, head, s, n_blocks);
        packed = part.view;
        launch_part(params_of_part(s, part, parts.n_splits));
      }
    };
    for_each_part([&](const ScoreParams& part) {
      launch_scores<ScoreMode::kSum, kMaxTiles>(stream, part);
    });
    for_each_part([&](ScoreParams part) {
      part.sums = s.sums;
      launch_scores<ScoreMode::kGroup, kMaxTiles>(stream, part);
    });
  }
}

}  // namespace

void mean_queries(Stream& stream, const MeanQueriesParams& p) {
  CHECK(p.block_tokens > 0 && p.n_tokens >= 0, "{} queries in blocks of {}", p.n_tokens, p.block_tokens);
  BlockMeanParams mean{};
  mean.q = p.q;
  mean.means = p.means;
  mean.n_tokens = p.n_tokens;
  mean.block_tokens = p.block_tokens;
  mean.n_blocks = (p.n_tokens + p.block_tokens - 1) / p.block_tokens;
  mean.n_heads = mean.group = mean.padded_group = p.n_heads;
  mean.n_kv_heads = 1;
  mean.head_dim = p.head_dim;
  if (mean.n_blocks == 0) return;
  launch<mean_of_blocks>(stream, dim3(static_cast<unsigned>(mean.n_blocks * p.n_heads)), kQueryThreads,
                         0, mean);
}

int64_t select_prefill_scratch_bytes(const PrefillSelectParams& shape) { return Plan(shape).bytes; }

void select_prefill_chunks(Stream& stream, const PrefillSelectParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.block_tokens > 0 && p.chunk_tokens > 0 &&
            (p.end_chunk >= 0 || p.first_position % p.chunk_tokens == 0),
        "blocks of {}, chunks of {}, first position {}", p.block_tokens, p.chunk_tokens,
        p.first_position);
  CHECK(p.end_chunk * p.chunk_tokens <= p.first_position, "{} chunks of {}, first position {}", p.end_chunk,
        p.chunk_tokens, p.first_position);
  CHECK(p.means != nullptr || p.views.n == 1, "{} views of queries", p.views.n);
  CHECK(p.k >= 0 && p.sink_chunks >= 0 && p.local_tokens >= 0, "k {}, {} sinks, {} local tokens",
        p.k, p.sink_chunks, p.local_tokens);
  const Plan plan(p);
  CHECK(plan.origin + plan.stride <= std::numeric_limits<int32_t>::max() - 4 * kPiece &&
            p.sink_chunks + p.k <= std::numeric_limits<int32_t>::max(),
        "{} chunks, k {}", plan.origin + plan.stride, p.k);
  auto* scratch = static_cast<std::byte*>(stream.scratch(plan.bytes));
  PrefillRankParams rank{};
  rank.scores = reinterpret_cast<const float*>(scratch + plan.scores_at);
  rank.maxima = reinterpret_cast<float*>(scratch + plan.maxima_at);
  rank.stride = plan.stride;
  rank.maximum_stride = plan.maximum_stride();
  rank.origin = plan.origin;
  rank.blocks = plan.blocks;
  rank.n_kv_heads = p.n_kv_heads;
  rank.chunk_ids = p.chunk_ids;
  rank.chunk_counts = p.chunk_counts;
  rank.local_begin = p.local_begin;
  for (int64_t first = 0; first < plan.n_blocks; first += plan.most_blocks) {
    const int64_t n = std::min(plan.most_blocks, plan.n_blocks - first);
    if (!plan.blocks.takes_all(first + n - 1)) score_blocks(stream, p, plan, scratch, first, n);
    rank.first_block = first;
    launch<rank_prefill>(stream, dim3(static_cast<unsigned>(n * p.n_kv_heads)), kPieceThreads,
                         sizeof(PieceShared), rank);
  }
}

}  // namespace tiercel::cuda
