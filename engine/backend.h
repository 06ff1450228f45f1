// The seam: what a queue type must be able to do to be a backend.
//
// A backend is a queue type (cpu::Queue, cuda::Stream) together with one free function per op of
// engine/base/ops.h, found by argument-dependent lookup on the queue. The concept lists them, so a
// missing or ill-typed op is a compile error that names it. Every op is asynchronous on its queue;
// order between queues is expressed by tickets only: b.wait(a.record()).
#pragma once

#include <concepts>
#include <span>

#include "engine/base/ops.h"

namespace tiercel {

template <typename Q>
concept Orders = requires(Q& queue) {
  {queue.record()};
  queue.wait(queue.record());
};

template <typename Q>
concept Allocates = requires(Q& queue, void* address, int64_t bytes) {
  { allocate(queue, bytes) } -> std::same_as<void*>;
  release(queue, address, bytes);
};

template <typename Q>
concept Moves = requires(Q& queue) {
  copy(queue, CopyParams{});
  fetch(queue, FetchParams{});
  fetch(queue, std::span<const FetchParams>());
  call_host(queue, HostCallParams{});
};

// One block of bytes.
template <Moves Q>
void copy_block(Q& queue, const void* source, void* target, int64_t bytes) {
  copy(queue, CopyParams{.source = source, .target = target, .row_bytes = bytes});
}

template <typename Q>
concept Transforms = requires(Q& queue) {
  embed(queue, EmbedParams{});
  rms_norm(queue, NormParams{});
  linear(queue, LinearParams{});
  swiglu(queue, SwigluParams{});
  norm_linear(queue, NormLinearParams{});
  gated_linear(queue, GatedLinearParams{});
  route_experts(queue, RouteParams{});
  mix_experts(queue, MixExpertsParams{});
  rope_append(queue, RopeAppendParams{});
  token_logprobs(queue, LogprobParams{});
};

template <typename Q>
concept Attends = requires(Q& queue) {
  attend_prefill(queue, PrefillAttendParams{});
  attend_decode(queue, DecodeAttendParams{});
  key_weights(queue, KeyWeightsParams{});
  make_key_bias(queue, KeyBiasParams{});
  merge_partials(queue, MergeParams{});
};

template <typename Q>
concept Selects = requires(Q& queue) {
  build_landmarks(queue, LandmarkParams{});
  find_outliers(queue, OutlierParams{});
  keep_late_outliers(queue, LateOutlierParams{});
  select_chunks(queue, SelectParams{});
  select_prefill_chunks(queue, PrefillSelectParams{});
  mean_queries(queue, MeanQueriesParams{});
  reset_slots(queue, SlotState{}, int32_t{});
  map_slots(queue, MapSlotsParams{});
  select_and_map(queue, SelectParams{}, MapSlotsParams{});
  gather_chunks(queue, GatherParams{});
  fit_basis(queue, FitBasisParams{});
  project_keys(queue, ProjectParams{});
  rebuild_keys(queue, RebuildParams{});
  encode_landmarks(queue, EncodeLandmarksParams{});
  accumulate_mass(queue, MassParams{});
  pick_chunks(queue, PickParams{});
  pool_key_bias(queue, PoolBiasParams{});
  decide_reuse(queue, ReuseParams{});
};

template <typename Q>
concept Codes = requires(Q& queue) {
  encode_rows(queue, EncodeParams{});
  mean_keys(queue, MeanKeysParams{});
  decode_keys(queue, DecodeKeysParams{});
};

template <typename Q>
concept Synthesises = requires(Q& queue) {
  fill_random(queue, RandomParams{});
  impose_selection(queue, ImposeParams{});
};

// A tier that only stores: host memory beside a GPU.
template <typename Q>
concept HostTier = Orders<Q> && Allocates<Q>;

// The host can wait for everything enqueued so far, and knows whether it may look at the results.
template <typename Q>
concept Finishes = requires(Q& queue) {
  queue.finish();
  { Q::kHostReadable } -> std::convertible_to<bool>;
  { Q::kRunFlops } -> std::convertible_to<double>;
};

// Picks the next token without bringing the logits to the host; the host does so itself where it can read
// them.
template <typename Q>
concept Picks = Q::kHostReadable || requires(Q& queue, const float* logits, int32_t* token) {
  argmax(queue, logits, int64_t{}, token, static_cast<void*>(nullptr));
  sample(queue, SampleParams{});
};

// Says how long what was enqueued between two marks took.
template <typename Q>
concept Times = requires(Q& queue) {
  { queue.seconds_between(queue.mark_time(), queue.mark_time()) } -> std::same_as<double>;
};

// Records what is enqueued and replays it. What a queue that runs ops when they are called has no use for.
template <typename Q>
concept Replays = requires(Q& queue, typename Q::Graph& graph) {
  begin_capture(queue);
  end_capture(queue, graph);
  abandon_capture(queue);
  replay(queue, graph);
  move_clock(queue, ClockParams{});
};

// Memory whose pages can be replaced by those of a file: [offset, offset + bytes) of it appear at
// target, private to this process once they are written. Whole pages.
template <typename Q>
concept Maps = requires(Q& queue, void* target, int64_t bytes, int descriptor, int64_t offset) {
  map_file(queue, target, bytes, descriptor, offset);
};

// Sequences that take a step together: what each(i) enqueues for different i may run in any order, or
// at once, up to kTogether of them, which then need workspaces of their own.
template <typename Q>
concept Groups = requires(Q& queue) {
  together(queue, int64_t{}, [](int64_t) {});
  { Q::kTogether } -> std::convertible_to<int64_t>;
};

// A tier that computes.
template <typename Q>
concept Backend =
    HostTier<Q> && Finishes<Q> && Moves<Q> && Transforms<Q> && Attends<Q> && Selects<Q> &&
    Codes<Q> && Synthesises<Q> && Picks<Q> && Groups<Q> && Times<Q>;

}  // namespace tiercel
