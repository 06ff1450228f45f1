// The KV cache of one sequence, across two tiers.
//
// KvStore<Device, Host> decides where every chunk of every layer lives, moves bytes between the
// tiers, and answers "attend" by merging partial results: exact regions and resident chunks first,
// fetched chunks when they have arrived. It is written once; Device and Host are queue types
// (engine/backend.h), and with cpu::Queue on both sides all of it runs and is tested without a GPU.
//
// Order of calls, per layer:
//   prefill   for each layer: append_prompt / attend_prompt for consecutive
//             runs of tokens, finish_layer; at the end end_prefill
//   more      begin_runs; for each layer append_run, attend_run, finish_run for consecutive runs, then
//             count_runs; at the end end_runs
//   decode    append, attend for every layer; then advance
//
// It knows nothing of weights, tokens or sampling.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/ops.h"
#include "engine/base/partial.h"
#include "offload/arena.h"
#include "offload/host_worker.h"
#include "offload/kv_state.h"
#include "offload/kv_workspace.h"
#include "offload/layout.h"
#include "offload/mass_histogram.h"

namespace tiercel {

// One decode or prefill step's projections of a layer, before RoPE.
struct Projections {
  bf16* q = nullptr;             // [n_tokens][n_heads][head_dim]; turned in place
  const bf16* k = nullptr;       // [n_tokens][n_kv_heads][head_dim]
  const bf16* v = nullptr;       // [n_tokens][n_kv_heads][head_dim]
  const bf16* q_norm = nullptr;  // [head_dim] or null
  const bf16* k_norm = nullptr;
  float norm_eps = 0;
  int64_t n_tokens = 0;
  // The eviction head, where the model has one (KeyBiasParams).
  const bf16* delta = nullptr;
  const bf16* a = nullptr;
  // Where queries may have several views, room for those of a step, [views][n_heads][head_dim], or for
  // one view of a run.
  bf16* views = nullptr;
};

// Steps after which a layer is tried both ways (HostUse::kMeasured): its hit rate is known by then. And
// how often each way, the best of which counts.
inline constexpr int64_t kStepsBeforeTrial = 32;
inline constexpr int kTrials = 3;

// What selection did so far. Counts are summed over layers and KV heads.
struct SelectionCounters {
  int64_t steps = 0;  // (layer, step) pairs that attended a selection
  // Of layers that have a selection cache; resident ones fetch nothing.
  int64_t selected_chunks = 0, hit_chunks = 0, fetched_bytes = 0;
  int64_t decisions = 0, reused = 0;  // whether a list may stay; how often it did
  int64_t host_layers = 0;  // whose selection the host attends now
  // Of layers that were tried both ways, at their hit rates: seconds of one step's attention.
  double tried_fetch_seconds = 0, tried_host_seconds = 0;
};

template <typename Device, typename Host>
class KvStore {
 public:
  // The queues may be one and the same where nothing overlaps. side codes the keys of a layer while the
  // device computes the next one.
  struct Queues {
    Device& device;
    Device& copy;
    Device& side;
    Host& host;
    HostWorker* worker = nullptr;  // where the layout has one
  };
  // Takes its memory from the two arenas, but for the workspace, which covers the layout and outlives
  // the store. scale multiplies q . k before softmax. With a prefix, a store on the same queues that
  // was prefilled with all it has room for and outlives this one, it stands at the end of that.
  KvStore(Queues queues, Arena<Device>& device_arena, Arena<Host>& host_arena,
          KvWorkspace<Device>& workspace, const KvLayout& layout, RopeView rope, float scale,
          bool exact_exp, const KvStore* prefix = nullptr);

  // ---- prefill ----
  void append_prompt(int64_t layer, const Projections& p, int64_t first_token);
  // Of the run that was appended last, of a prompt of n_prompt tokens. out: [n_tokens][n_heads][head_dim].
  // dense overrides selection (the tail of the prompt).
  void attend_prompt(int64_t layer, const Projections& p, int64_t first_token, int64_t n_prompt,
                     bool dense, bf16* out);
  void finish_layer(int64_t layer, int64_t n_tokens);
  void end_prefill(int64_t n_tokens);

  // ---- a long text behind what is held, prefilled as prompts are; where layout().continues ----
  // A run attends all of itself, the window, and of the middle what prefill would: everything, or for each block
  // of queries what was selected by the means of chunks.
  void begin_runs();  // takes layout().run_buffers()
  void append_run(int64_t layer, const Projections& p, int64_t first_token);
  // The run that was appended last; n_context: tokens that scores are scaled by. dense overrides selection, in a
  // dense store.
  void attend_run(int64_t layer, const Projections& p, int64_t first_token, int64_t n_context, bool dense,
                  bf16* out);
  void finish_run(int64_t layer, int64_t end_token);
  void count_runs(int64_t n_tokens) { n_tokens_ += n_tokens; }  // that passed all layers
  void end_runs();

  // ---- decode, one token at position n_tokens() ----
  // Several tokens may pass through a layer, one append and attend after the other, before the next
  // layer has its turn: `ahead` of them did already. Not where layers share a list, nor in an audited
  // step.
  void append(int64_t layer, const Projections& p, int64_t ahead = 0, bool follows = false);
  // What append made of the queries: q, here and below.
  const bf16* queries(const Projections& p, int64_t ahead = 0) const {
    return layout_.shape.spans.views_of(n_tokens_ + ahead) > 1 ? p.views : p.q;
  }
  void attend(int64_t layer, const bf16* q, bf16* out);
  // A token that follows attends what the last one that did not has selected. It may where no chunk has
  // to leave the window for it, and is attended when all that follow have been appended; not where
  // layers share a list.
  bool may_follow(int64_t layer, int64_t ahead) const;
  struct Follower {
    int64_t ahead = 0;
    const bf16* q = nullptr;
    bf16* out = nullptr;
  };
  void attend_followers(int64_t layer, std::span<const Follower> followers);
  // attend of several stores on the same queues, in two halves: what some of them fetch together
  // arrives while others attend. The same stores in both.
  struct Attention {
    KvStore* store = nullptr;
    const bf16* q = nullptr;
    bf16* out = nullptr;
  };
  static void begin_attend(int64_t layer, std::span<const Attention> all);
  static void end_attend(int64_t layer, std::span<const Attention> all);
  void advance(int64_t n = 1);

  // Tokens that may be appended from here on so that all but the first of them can be taken back: nothing retires
  // meanwhile, no room is made. 0: not even the next step is of that kind.
  int64_t most_to_take_back() const;
  // The newest n of such tokens never were. What they selected stays in the selection cache.
  void take_back(int64_t n);

  // ---- recorded steps (ClockParams in engine/base/ops/position.h) ----
  // How many steps from the next one on enqueue the same ops, but for what a clock says: nothing retires,
  // no room is made, nothing is audited, no window moves, attention is cut alike. 0: not even the next one.
  int64_t steps_alike() const;
  // While recording, what depends on the step points at the clock: steps since the recording. Null: not
  // recording.
  void record_by(const int64_t* clock) { clock_ = clock; }
  // The host's side of a step that was replayed: append, attend and advance of every layer.
  void count_replayed_step();

  // Back to the end of the prompt, with an empty selection cache and no statistics. False, and nothing
  // done, where rows of the prompt's window have been moved. Not behind a prefix.
  bool rewind();
  // Chunks selected per KV head from now on, at most layout().select.
  void set_selected(int64_t chunks);
  int64_t selected() const { return selected_; }

  // ---- saved and restored between steps (kv_state.h); not behind a prefix ----
  KvState state() const;
  // Instead of prefill: the counts; state_blocks(layout(), state) are then the caller's to fill.
  void adopt(const KvState& state);
  // Waits until every block is in memory as the steps so far left it.
  void settle();
  // Of a block of this store's layout; on the host tier or on the device.
  void* address_of(const StateBlock& block);
  bool on_host_tier(const StateBlock& block) const;

  int64_t n_tokens() const { return n_tokens_; }
  const KvLayout& layout() const { return layout_; }
  // These two wait for the device.
  SelectionCounters selection() const;
  // Per layer: the share of key energy that the low-rank basis leaves out; empty without one.
  std::vector<double> residual_energy() const;
  // What the side queue spent on the prompt's keys: a basis and coefficients, or codes; beside the rest of
  // the prefill where queues overlap. 0 where keys are exact or were restored.
  double key_coding_seconds() const;
  // Of all layers; and of one.
  MassHistogram audit() const;
  const MassHistogram& audit(int64_t layer) const { return mass_[static_cast<size_t>(layer)]; }
  // Measures the selection against the exact keys in this step. Needs settings.audit.
  void set_audit(bool on) { auditing_ = on; }

 private:
  // Exact rows of one layer: positions first .. n_tokens-1 live at rows first-base .. of two
  // planes.
  struct Recent {
    bf16* keys = nullptr;
    bf16* values = nullptr;
    int64_t capacity = 0;
    int64_t base = 0;   // position of row 0
    int64_t first = 0;  // oldest position still attended
  };
  // The same, or a plane that holds them while a run is in hand: row r is position base + r.
  struct ExactRows {
    bf16 *keys = nullptr, *values = nullptr;
    int64_t head_stride = 0, base = 0;
  };
  ExactRows rows_of(const Recent& recent) const {
    return {recent.keys, recent.values, recent.capacity * d(), recent.base};
  }
  // Where a layer stood at the end of the prompt.
  struct PromptEnd {
    int64_t base = 0, first = 0, end_chunk = 0, n_blocks = 0;
  };
  // The chunks that a selection names. [kv][select] and [kv].
  struct Lists {
    int32_t *ids = nullptr, *counts = nullptr;
    int32_t *dropped_ids = nullptr, *dropped_counts = nullptr;  // with a cap on misses
  };
  struct Index {
    bf16* landmarks = nullptr;       // [kv][chunks][width], or
    int8_t* codes = nullptr;         // the same in int8
    float* scales = nullptr;         // [kv][chunks]
    bf16* coarse = nullptr;          // [kv][blocks][width]
    bf16* value_means = nullptr;     // [kv][chunks][d], where what is dropped is estimated
    uint64_t* excluded = nullptr;    // [kv][mask_words]
    int32_t* exact_ids = nullptr;    // [kv][exact chunks]: outliers, or the static part
    int32_t* late_ids = nullptr;     // [kv][late chunks]: outliers of what left the window
    float* late_cosines = nullptr;   // [kv][late chunks]
    bf16* previous_q = nullptr;      // [n_heads][d]
    int32_t* reuse_state = nullptr;  // [2]
    Lists lists;
    int64_t list_chunks = -1;  // of the lists that reuse may keep; -1: there are none
    int64_t n_exact = 0;       // chunks in use
    int64_t n_blocks = 0;      // of the first level; chunks behind them always compete
    bool excludes = false;
  };
  // Seconds of attending what a step chose.
  struct Trial {
    double fetched = 0, on_host = 0;
  };
  struct Layer {
    Recent recent;
    Recent prefix;  // what the window of a shared prefix still has to say
    bf16 *sink_keys = nullptr, *sink_values = nullptr;    // [kv][sinks][d]
    bf16 *exact_keys = nullptr, *exact_values = nullptr;  // [kv][outlier_rows][d]
    bf16 *late_keys = nullptr, *late_values = nullptr;    // [kv][late chunks * chunk][d]
    Index index;                                          // of leaders; see index_of
    bf16* coefficients = nullptr;                         // [capacity][rank], or
    std::byte* key_codes = nullptr;                       // coded coefficients or coded keys
    LowRankView lowrank;                                  // the mean also of coded keys
    // At home: planes of capacity rows, or rows of codes.
    bf16 *home_keys = nullptr, *home_values = nullptr;
    std::byte* value_codes = nullptr;
    // With an eviction head: [kv][capacity], row r of position r; and [kv][behind].
    float *key_bias = nullptr, *key_bias_behind = nullptr;
    bf16* audit_keys = nullptr;  // a plane of exact keys, only where nothing else has them
    bf16* slots = nullptr;       // [kv][n_slots][record]
    SlotState slot_state;
    bool host_attends = false;  // what is selected of this layer, where the host has it
    std::optional<Trial> trial;  // whether it should
    int64_t n_sinks = 0;                     // tokens in use
    int64_t first_chunk = 0, end_chunk = 0;  // the middle
  };
  // What the worker reads and writes, in memory of the host that the device reaches.
  struct HostStaging {
    bf16* q = nullptr;  // [n_heads][d]
    Lists lists;        // ids: [kv][select]
    PartialView partial;
    bf16* weights = nullptr;  // [n_heads][staged_weights]
    float* maxima = nullptr;  // [n_heads][staged_maxima]
  };
  // What it is called with, one for each layer.
  struct HostCall {
    HostWorker* worker = nullptr;
    bool weighed = false;
    KvSource source;
    DecodeAttendParams attend;
    WeightedValuesParams values;
  };
  // Chunks, and the records that they go to.
  struct MissList {
    const int32_t *chunks = nullptr, *slots = nullptr, *counts = nullptr;
    int64_t stride = 0;
    bf16* records = nullptr;
    int64_t head_stride = 0;
  };
  // Lists of one step, shared by all layers. [kv][select] each.
  struct StepLists {
    Lists shared;  // where no list outlives its step
    int32_t *hit_slots = nullptr, *hit_counts = nullptr;
    int32_t *miss_chunks = nullptr, *miss_slots = nullptr, *miss_counts = nullptr;
    int32_t* scratch = nullptr;
    int32_t *blocks = nullptr, *block_counts = nullptr;  // [kv][coarse_select]
    // [layers][kv][3]: chunks selected, hit and missed so far; then decisions on reuse, and those that
    // kept
    int64_t* totals = nullptr;
  };

  // While runs go on behind what is held (RunBuffers).
  struct Runs {
    bf16 *keys = nullptr, *values = nullptr;  // [kv][rows][d], of the layer in hand: its window, then the run
    int64_t rows = 0, base = 0;               // row r is position base + r
    int64_t first = 0;                        // token of the run
    float* state = nullptr;
    bf16* view_means = nullptr;  // [views][blocks][n_heads][d]
    bf16* means = nullptr;       // [kv][run_means][d], of the layer in hand
    int64_t means_layer = -1, n_means = 0;
    bf16* records = nullptr;        // [kv][blocks][list][record]
    int64_t fetched_list = -1;    // what is in them of the run in hand: a list's number; -1: nothing
    int32_t* numbers = nullptr;     // [lists][kv][list]: of chunks, or of records, one list after the other
    int32_t* record_ids = nullptr;  // [blocks][kv][list], in chunks of a plane that begins with the records
    int32_t* counts = nullptr;      // [list + 1][kv]: n times n
    int64_t* begins = nullptr;      // [blocks]: the end of the records
  };

  int64_t d() const { return layout_.shape.head_dim; }
  int64_t kv() const { return layout_.shape.n_kv_heads; }
  int32_t chunk() const { return layout_.settings.chunk_tokens; }

  // Landmarks in bf16, chunk after chunk: the index, or what a coded one is made from.
  struct LandmarkPlane {
    bf16* rows = nullptr;
    int64_t head_stride = 0;
    int64_t first_chunk = 0;  // of the first row
  };
  LandmarkPlane landmark_plane(const Index& index) const;
  LandmarkPlane retired_plane(const Index& index, int64_t first_chunk) const;
  // Whose index and selection this layer uses.
  Index& index_of(int64_t layer) { return layers_[layout_.leader(layer)].index; }
  const Index& index_of(int64_t layer) const { return layers_[layout_.leader(layer)].index; }

  void take_layer(int64_t layer, Arena<Device>& device_arena, Arena<Host>& host_arena);
  Recent take_recent(int64_t layer, Arena<Device>& device_arena);
  void share_layer(int64_t layer, const KvStore& prefix, Arena<Device>& device_arena);
  void take_reuse(Index& index, Arena<Device>& device_arena);
  void take_index(int64_t layer, Arena<Device>& device_arena);
  void take_coded_keys(Layer& layer, Arena<Device>& device_arena);
  template <typename Tier>
  void take_home(int64_t layer, Arena<Tier>& arena);
  void take_slots(Layer& layer, Arena<Device>& device_arena);
  Lists take_lists(Arena<Device>& device_arena);
  void take_host_staging(Arena<Host>& host_arena);
  void take_shared(Arena<Device>& device_arena);
  void take_step_lists(Arena<Device>& device_arena);
  void take_prefill_buffers(Arena<Device>& device_arena);
  PartialView take_partial(Arena<Device>& device_arena);

  RopeAppendParams rope_append_params(const Projections& p) const;
  void append_key_bias(const Layer& layer, const Projections& p, int64_t first_token);
  LandmarkParams landmark_params(const bf16* rows, int64_t head_stride, int64_t first_row,
                                 int64_t first_chunk, int64_t end_chunk) const;
  void copy_rows(const bf16* source, int64_t source_stride, bf16* target, int64_t target_stride,
                 int64_t n_rows) {
    copy_rows_on(copy_, source, source_stride, target, target_stride, n_rows);
  }
  void copy_rows_on(Device& queue, const bf16* source, int64_t source_stride, bf16* target,
                    int64_t target_stride, int64_t n_rows);

  // prefill
  void build_index(const Index& index, const LandmarkPlane& plane, const LandmarkParams& keys,
                   const bf16* values);
  void append_landmarks(int64_t layer, const RopeAppendParams& append, int64_t first_token,
                        int64_t n_tokens);
  const bf16* prefill_landmarks(int64_t layer, int64_t* head_stride) const;
  void index_layer(int64_t layer, int64_t n_tokens);
  void encode_index(Index& index, const LandmarkPlane& plane, int64_t first_chunk, int64_t end_chunk);
  void build_blocks(Index& index, const LandmarkPlane& plane, int64_t end_chunk);
  void choose_exact_chunks(int64_t layer, int64_t n_tokens);
  void weigh_chunks(int64_t layer, int64_t n_tokens);
  void gather_exact_chunks(int64_t layer);
  void code_keys(int64_t layer, int64_t n_tokens);
  void project_rows(Layer& layer, const bf16* keys, int64_t head_stride, int64_t first_row,
                    int64_t first_token, int64_t end_token);
  void encode_key_rows(Layer& layer, const bf16* keys, int64_t head_stride, int64_t first_row,
                       int64_t first_token, int64_t n_tokens);
  void change_key_plane();
  void offload_planes(const Layer& layer, int64_t n_tokens);
  void send_home(const Layer& layer, const bf16* keys, const bf16* values, int64_t head_stride,
                 int64_t first_token, int64_t n_tokens);
  void await_offload(int64_t end_token);
  void give_back_prefill_planes();

  PrefillAttendParams prompt_attend_params(const Projections& p, int64_t n_context, bf16* out) const;
  PrefillSelectParams prompt_select_params(const Projections& p, int64_t first_token, float scale) const;
  void mean_views(const Projections& p, int64_t first_token, int64_t n_blocks, bf16* means,
                  PrefillSelectParams& select);
  void attend_listed(PrefillAttendParams& attend) const;

  // runs behind the prompt
  void take_runs(const RunBuffers& n);
  void give_back_runs();
  // Part of what the run's queries see: positions begin .. end - 1, in rows, or in what must be fetched.
  struct RunPlace {
    ExactRows rows;
    int64_t begin = 0, end = 0;
    bool is_fetched = false;
    bool is_listed = false;  // where prefill selects, its queries attend listed chunks of it
    const float* bias = nullptr;  // of row 0, if there are any
    int64_t bias_head_stride = 0;
  };
  ExactRows run_rows(int64_t layer) const {
    if (!layout_.runs_in_plane(layer)) return rows_of(layers_[layer].recent);
    return {runs_->keys, runs_->values, runs_->rows * d(), runs_->base};
  }
  void bring_window(int64_t layer, int64_t first_token);
  std::vector<RunPlace> run_places(int64_t layer) const;
  void make_run_means(int64_t layer, const ExactRows& rows, int64_t end_chunk);
  void select_for_run(int64_t layer, const Projections& p, int64_t first_token, const RunPlace& place, int64_t end,
                      float scale);
  void attend_place(const RunPlace& place, int64_t begin, int64_t end, PrefillAttendParams attend);
  void attend_fetched_place(int64_t layer, const Projections& p, int64_t begin, int64_t end,
                            PrefillAttendParams attend);
  void attend_fetched(int64_t layer, int64_t number, std::span<const MissList> lists, PrefillAttendParams attend);
  void fetch_for_run(const Layer& layer, std::span<const MissList> lists);
  MissList run_list(const int32_t* chunks, const int32_t* counts, int64_t block) const;

  // decode
  // What end_attend waits for.
  struct Pending {
    bool misses = false;
    std::optional<typename Device::Ticket> fetched, rebuilt, host;
  };
  void move_windows(int64_t layer, int64_t position);
  bool retire_chunks(int64_t layer);
  // Rows that the window may have before room is made for more, or chunks retire.
  int64_t most_rows(int64_t layer) const {
    const Recent& recent = layers_[layer].recent;
    const int64_t rows = recent.base + recent.capacity - recent.first;
    if (!layout_.tiered(layer) || layout_.shares_prefix()) return rows;
    return std::min(rows, layout_.settings.recent + layout_.retire_tokens - 1);
  }
  void retire(int64_t layer, const ExactRows& rows, int64_t n_tokens);
  void keep_late_chunks(int64_t layer, const ExactRows& rows, int64_t first_chunk, int64_t end_chunk);
  int64_t n_late(int64_t layer) const {
    return layout_.late_in_use(layers_[layer].end_chunk - prompt_end_[layer].end_chunk);
  }
  void make_room(Layer& layer);
  int64_t selected_per_head(const Layer& layer) const;
  SelectParams select_params(int64_t layer, const bf16* q, int64_t k) const;
  MapSlotsParams map_params(int64_t layer, int64_t k) const;
  void choose_chunks(int64_t layer, const bf16* q, int64_t k, bool map);
  SelectParams choice_params(int64_t layer, const bf16* q, int64_t k);
  bool maps_choice(int64_t layer) const { return fetches(layer) && !is_to_be_tried(layer); }
  const int32_t* decide_reuse_of(int64_t layer, const bf16* q);
  void choose_blocks(SelectParams& fine, const Index& index);
  void impose(int64_t layer, int64_t k);
  bool in_place(int64_t layer) const {
    return layout_.resident(layer) || (layers_[layer].host_attends && layout_.settings.one_memory);
  }
  bool by_worker(int64_t layer) const {
    return layers_[layer].host_attends && !layout_.settings.one_memory;
  }
  bool fetches(int64_t layer) const { return !layout_.resident(layer) && !layers_[layer].host_attends; }
  MissList misses_of(const Layer& layer) const;
  template <typename Params>
  Params params_of(const MissList& list) const;
  FetchParams fetch_params(const Layer& layer, const MissList& list) const;
  static void fetch_misses(int64_t layer, std::span<const Attention> some);
  void attend_hits(int64_t layer, const bf16* q);
  void rebuild_keys_of(const Layer& layer, const MissList& list);
  bool is_to_be_tried(int64_t layer) const;
  double hit_rate(int64_t layer) const;
  void try_both_ways(int64_t layer, const bf16* q, bf16* out);
  void begin_chosen(int64_t layer, const bf16* q, bf16* out);
  void end_chosen(int64_t layer, const bf16* q, bf16* out);
  template <typename Each>
  static void for_each_store(std::span<const Attention> some, Each&& each);
  void begin_choice(int64_t layer);
  void choose(int64_t layer, const bf16* q);
  static void choose_all(int64_t layer, std::span<const Attention> some);
  void attend_at_home(int64_t layer, const bf16* q, bf16* out);
  static void await_chosen(std::span<const Attention> some);
  void audit_if_wanted(int64_t layer, const bf16* q);
  HostCall host_call(int64_t layer);
  static void run_host_call(void* data);
  void weigh_chosen(int64_t layer, const bf16* q);
  void begin_host_attend(int64_t layer, const bf16* q);
  void end_host_attend(bf16* out);
  int exact_sources(int64_t layer, int64_t n_rows, KvSource* sources) const;
  // Also what merge_with, if any, and out make together, where final_out is given.
  void attend_sources(int64_t position, const bf16* q, const KvSource* sources, int n_sources,
                      PartialView out, const PartialView* merge_with = nullptr,
                      bf16* final_out = nullptr);
  QueryViews views_at(int64_t position) const;
  float scale_at(int64_t n_tokens) const {
    return static_cast<float>(scale_ * layout_.length_scale(n_tokens));
  }
  void turn_view(const Projections& p, int64_t first_token, int64_t view);
  void select_for_prompt(int64_t layer, const Projections& p, int64_t first_token,
                         PrefillAttendParams& attend);
  void attend_as_before(int64_t layer, const Follower& follower);
  void add_key_bias(const Layer& layer, int64_t first_position, KvSource& source,
                    const int32_t* chunks = nullptr, int64_t chunks_stride = 0) const;
  KvSource slot_source(const Layer& layer, const int32_t* slots, const int32_t* counts) const;
  KvSource home_source(int64_t layer) const;
  KvSource estimate_source(int64_t layer) const;
  void audit_layer(int64_t layer, const bf16* q, int64_t n_rows);
  void forget_late_chunks(int64_t layer);
  const int64_t* later() const { return clock_; }
  static int64_t cut_tokens(int64_t n) { return (n + kCutTokens - 1) / kCutTokens * kCutTokens; }
  int64_t chunk_bytes(int64_t layer) const;
  void read_back(const void* source, void* target, int64_t bytes) const;

  Device& device_;
  Device& copy_;
  Device& side_;
  Host& host_;
  Arena<Device>& device_arena_;
  KvWorkspace<Device>& workspace_;
  KvLayout layout_;
  RopeView rope_;
  float scale_;
  bool exact_exp_;

  std::vector<Layer> layers_;
  HostWorker* worker_ = nullptr;
  HostStaging staging_;
  std::vector<HostCall> host_calls_;  // per layer
  double* residual_energy_ = nullptr;  // [n_layers]
  std::vector<std::pair<typename Device::TimeMark, typename Device::TimeMark>> key_coding_;  // per layer
  StepLists lists_;
  bf16 *plane_keys_ = nullptr, *plane_values_ = nullptr;  // prefill planes, [kv][prompt][d]
  bf16* plane_means_ = nullptr;  // [kv][mean_plane_chunks][d], of prefill_chunk tokens each
  const bf16* last_q_ = nullptr;          // of the newest prompt tokens of the layer in hand
  int64_t n_last_q_ = 0;
  std::array<PartialView, 2> partials_;
  std::array<PartialView, 2> audit_partials_;
  std::vector<float> audit_statistics_;  // max and sum of both audit partials, read back
  // The planes' pieces of kPrefillChunk tokens on their way to the host; the next layer overwrites
  // a piece when its copy has ended. offloading_ tells how many there are.
  std::vector<typename Device::Ticket> offloads_;
  int64_t offloading_ = 0;
  // The key plane that the side queue may still read, and until when.
  bf16* other_keys_ = nullptr;
  std::optional<typename Device::Ticket> other_keys_read_;

  int64_t n_tokens_ = 0;
  int64_t position_ = 0;  // of the token in hand
  int64_t steps_ = 0;  // (layer, step) pairs that selected
  Pending pending_;
  int64_t place_ = 0;   // among stores whose ops run at once
  int64_t chosen_ = 0;  // chunks that the lists in hand have room for
  bool auditing_ = false;
  const int64_t* clock_ = nullptr;  // [1], while recording
  std::optional<Runs> runs_;
  std::vector<MassHistogram> mass_;     // per layer
  std::vector<PromptEnd> prompt_end_;  // per layer
  int64_t n_prompt_ = 0;  // of the prefix, where it is shared
  int64_t n_steps_ = 0;  // since the prompt was made or restored
  int64_t selected_ = 0;  // chunks per KV head and step, at most
};

}  // namespace tiercel

#include "offload/kv_store_audit.h"
#include "offload/kv_store_continue.h"
#include "offload/kv_store_decode.h"
#include "offload/kv_store_host.h"
#include "offload/kv_store_index.h"
#include "offload/kv_store_memory.h"
#include "offload/kv_store_prefill.h"
#include "offload/kv_store_select.h"
#include "offload/kv_store_state.h"
#include "offload/kv_store_take_back.h"
