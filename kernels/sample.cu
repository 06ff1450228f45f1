#include <algorithm>

#include "kernels/joint_launch.cuh"
#include "kernels/sample.cuh"
#include "kernels/sample.h"

namespace tiercel::cuda {
namespace {

constexpr int kThreads = kSampleThreads;

SampleKernelParams kernel_params(const SampleParams& p) {
  auto* bytes = static_cast<uint8_t*>(p.workspace);
  auto* keys = reinterpret_cast<uint64_t*>(bytes + argmax_workspace_bytes());
  return {.op = p,
          .logits = p.logits,
          .state = reinterpret_cast<SampleState*>(bytes),
          .saved = reinterpret_cast<float*>(keys + 4 * p.vocab),
          .lists = {{keys, keys + p.vocab}, {keys + 2 * p.vocab, keys + 3 * p.vocab}}};
}

void find_best(Stream& stream, SampleKernelParams params, bool is_last) {
  constexpr int64_t kMaxBlocks = 64;
  const int64_t blocks = (params.op.vocab + kThreads - 1) / kThreads;
  params.is_last = is_last;
  launch_joint<FindBest>(stream, blocks_for(std::min(blocks, kMaxBlocks), 1),
                         kThreads * sizeof(uint64_t), params);
}

void adjust_logits(Stream& stream, SampleKernelParams params, bool undo) {
  if (params.op.n_adjustments == 0) return;
  params.undo = undo;
  launch_joint<AdjustLogits>(stream, blocks_for(params.op.n_adjustments, kThreads), 0, params);
}

}  // namespace

void argmax(Stream& stream, const float* logits, int64_t n, int32_t* token, void* workspace) {
  CHECK(n > 0 && n < (int64_t{1} << 31), "{} logits", n);
  SampleKernelParams params;
  params.logits = logits;
  params.op.vocab = n;
  params.op.token = token;
  params.state = static_cast<SampleState*>(workspace);
  find_best(stream, params, true);
}

void sample(Stream& stream, const SampleParams& p) {
  constexpr int64_t kMaxVocabulary = int64_t{1} << 23;  // of 2^40 each: sums fit 63 bits
  CHECK(p.vocab > 0 && p.vocab < kMaxVocabulary, "vocabulary {}", p.vocab);
  CHECK(p.n_adjustments >= 0 && p.n_adjustments <= std::min(p.vocab, kMaxLogitAdjustments), "{} adjustments",
        p.n_adjustments);
  const SampleKernelParams params = kernel_params(p);
  adjust_logits(stream, params, false);
  find_best(stream, params, p.temperature == 0);
  if (p.temperature != 0) {
    launch_joint<CollectCandidates>(stream, blocks_for(p.vocab, kThreads), 0, params);
    launch_joint<DrawToken>(stream, 1, sizeof(DrawShared), params);
  }
  adjust_logits(stream, params, true);
}

}  // namespace tiercel::cuda
