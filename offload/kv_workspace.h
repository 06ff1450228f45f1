// Device memory that a store's ops use only while they run. Stores whose ops run on the same queues
// can share one, made for a layout whose context and prompt are at least theirs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/base/ops.h"
#include "offload/arena.h"
#include "offload/layout.h"

namespace tiercel {

// Stores whose misses are one fetch: enough to fill the link, few enough for it to begin early. As many
// as attend at once on a GPU.
inline constexpr size_t kFetchedTogether = 8;

template <typename Device>
struct KvWorkspace {
  // Takes layout.workspace_bytes() from the arena.
  KvWorkspace(Arena<Device>& arena, const KvLayout& layout)
      : capacity(layout.settings.capacity),
        prompt(layout.settings.prompt),
        together(layout.settings.together),
        attend_places(layout.settings.attend_places),
        attend_floats(layout.attend_floats()),
        select_floats(layout.select_floats) {
    const KvSettings& o = layout.settings;
    const int64_t n_kv = layout.shape.n_kv_heads;
    const auto take_bf16 = [&](int64_t n) {
      return arena.template take<bf16>(Purpose::kActivations, n);
    };
    const auto take_ints = [&](int64_t n) {
      return arena.template take<int32_t>(Purpose::kActivations, n);
    };
    fetches.reserve(kFetchedTogether);
    selections.reserve(kFetchedTogether);
    attend_ = arena.template take<float>(Purpose::kActivations, attend_places * attend_floats);
    n_heads_ = layout.shape.n_heads;
    partial_at_ = attend_floats - layout.partial_floats();
    if (o.select_prefill) {
      const int64_t blocks = layout.prefill_blocks();
      block_ids = take_ints(blocks * n_kv * layout.prefill_ids);
      block_counts = take_ints(blocks * n_kv);
      block_local = arena.template take<int64_t>(Purpose::kActivations, blocks);
    }
    part_state = arena.template take<float>(Purpose::kActivations, layout.part_floats());
    view_means = take_bf16(layout.view_means());
    if (!layout.any_tiered) return;
    select_ = arena.template take<float>(Purpose::kLandmarks, together * select_floats);
    if (o.weighs_chunks()) {
      chunk_mass = arena.template take<float>(Purpose::kActivations, n_kv * layout.chunks);
    }
    if (layout.any_low_rank() && o.key_codec != RowCodec::kBf16) {
      coefficients = take_bf16(kPrefillChunk * o.rank);
    }
    if (o.landmark_codec != RowCodec::kBf16) {
      const int64_t one = n_kv * layout.landmark_elements();
      landmarks = take_bf16(layout.index_plane_chunks() * one);
      retired_landmarks = take_bf16(layout.retire_chunks() * one);
    }
    values = arena.template take<std::byte>(Purpose::kActivations, layout.value_staging_bytes());
    records = arena.template take<bf16>(Purpose::kSlots, layout.weighed_records());
    if (records != nullptr) {
      record_of = arena.template take<int32_t>(Purpose::kSlots, n_kv * layout.select);
    }
  }

  bool covers(const KvLayout& layout) const {
    return layout.settings.capacity <= capacity && layout.settings.prompt <= prompt;
  }

  // Of attend_decode, and of scoring, at this place among what runs at once.
  float* attend(int64_t place) const { return attend_ + place % attend_places * attend_floats; }
  float* select(int64_t place) const { return select_ + place % together * select_floats; }
  // A partial result that nobody reads.
  PartialView partial(int64_t place) const {
    float* block = attend(place) + partial_at_;
    return {block, block + n_heads_, block + 2 * n_heads_};
  }

  int64_t capacity = 0, prompt = 0;  // tokens of the longest sequence and prompt
  int64_t together = 1, attend_places = 1;
  int64_t attend_floats = 0, select_floats = 0;
  float* chunk_mass = nullptr;       // [kv][chunks]
  // Landmarks before they are coded: of the prompt in hand, between whose runs other sequences may take
  // steps, [kv][index_plane_chunks][width]; of what leaves a window, [kv][retire_chunks][width].
  bf16 *landmarks = nullptr, *retired_landmarks = nullptr;
  bf16* coefficients = nullptr;      // [kPrefillChunk][rank], before they are coded
  std::byte* values = nullptr;       // coded values of kPrefillChunk tokens on their way home
  bf16* records = nullptr;           // [kv * select][record]: keys of a selection that the host attends
  int32_t* record_of = nullptr;      // [kv * select]: 0, 1, 2, ..
  // Of one prefill run: chunks that each block of queries attends.
  int32_t *block_ids = nullptr, *block_counts = nullptr;
  int64_t* block_local = nullptr;
  // And where its queries have several views: what parts leave, and mean queries, [view][block].
  float* part_state = nullptr;
  bf16* view_means = nullptr;
  std::vector<FetchParams> fetches;  // of stores that fetch together
  std::vector<SelectParams> selections;  // of stores that one op selects for

 private:
  float *attend_ = nullptr, *select_ = nullptr;  // [places][floats]
  int64_t n_heads_ = 0, partial_at_ = 0;
};

}  // namespace tiercel
