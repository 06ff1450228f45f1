#include "engine/saved_session.h"

#include <cstring>
#include <limits>

#include "engine/base/check.h"
#include "engine/json.h"
#include "engine/presets.h"
#include "engine/session_plan.h"

namespace tiercel {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMost = int64_t{1} << 48;  // tokens, chunks, bytes: far beyond what there will be

// Every option that composes a selection, in one list for both directions.
template <typename Options, typename Visit>
void visit_selection(Options& s, Visit&& visit) {
  visit("index", s.index, IndexKind::kMinMax);
  visit("chunk_size", s.chunk_size);
  visit("coarse_chunk", s.coarse_chunk);
  visit("coarse_share", s.coarse_share);
  visit("group", s.group, GroupScore::kSum);
  visit("scope", s.scope, SelectScope::kLayer);
  visit("budget", s.budget);
  visit("top_p", s.top_p);
  visit("reuse", s.reuse);
  visit("reuse_steps", s.reuse_steps);
  visit("share_layers", s.share_layers);
  visit("miss_cap", s.miss_cap);
  visit("estimate", s.estimate);
  visit("sinks", s.sinks);
  visit("recent", s.recent);
  visit("outliers", s.outliers);
  visit("static_budget", s.static_budget);
  visit("drop_share", s.drop_share);
  visit("slots", s.slots);
  visit("key_codec", s.key_codec, KeyCodec::kInt4);
  visit("rank", s.rank);
  visit("rank_codec", s.rank_codec, RowCodec::kInt4);
  visit("landmark_codec", s.landmark_codec, RowCodec::kInt4);
  visit("value_codec", s.value_codec, RowCodec::kInt4);
}

struct ToJson {
  Json& json;
  void operator()(const char* name, int64_t value) { json[name] = value; }
  void operator()(const char* name, double value) { json[name] = value; }
  void operator()(const char* name, bool value) { json[name] = value; }
  template <typename E>
  void operator()(const char* name, E value, E) {
    json[name] = static_cast<int>(value);
  }
};

struct FromJson {
  const JsonNode& node;
  void operator()(const char* name, int64_t& value) { value = node.at(name).integer(-1, kMost); }
  void operator()(const char* name, double& value) { value = node.at(name).number(0, 1e9); }
  void operator()(const char* name, bool& value) { value = node.at(name).boolean(); }
  template <typename E>
  void operator()(const char* name, E& value, E last) {
    value = static_cast<E>(node.at(name).integer(0, static_cast<int64_t>(last)));
  }
};

template <typename State, typename Visit>
void visit_layer(State& s, Visit&& visit) {
  visit("base", s.base);
  visit("first", s.first);
  visit("n_sinks", s.n_sinks);
  visit("first_chunk", s.first_chunk);
  visit("end_chunk", s.end_chunk);
  visit("n_exact", s.n_exact);
  visit("n_blocks", s.n_blocks);
  visit("excludes", s.excludes);
  visit("list_chunks", s.list_chunks);
  visit("prompt_base", s.prompt_base);
  visit("prompt_first", s.prompt_first);
  visit("prompt_end_chunk", s.prompt_end_chunk);
  visit("prompt_blocks", s.prompt_blocks);
}

int64_t resident_layers(const KvLayout& layout) {
  int64_t n = 0;
  for (int64_t layer = 0; layer < layout.shape.n_layers; ++layer) n += layout.resident(layer);
  return n;
}

// One complaint about two values that should be equal; empty when they are.
template <typename T>
std::string differs(const char* flag, const T& saved, const T& found) {
  return saved == found ? "" : fmt::format("{} {}, here {}", flag, saved, found);
}

// The first option that the saved bytes depend on and that is another one here.
std::string what_differs(const SessionOptions& saved, const SessionOptions& here) {
  const SelectionOptions &a = saved.selection, &b = here.selection;
  const bool dense = saved.attention == AttentionMode::kDense;
  if (dense != (here.attention == AttentionMode::kDense)) {
    return differs<std::string>("--attention", name_of(saved.attention), name_of(here.attention));
  }
  if (dense) return "";
  const auto keeps_keys = [](const SelectionOptions& s) {
    return s.key_codec == KeyCodec::kLowRank;
  };
  const std::string all[] = {
      differs<std::string>("--index", name_of(a.index), name_of(b.index)),
      differs("--chunk-size", a.chunk_size, b.chunk_size),
      differs("--coarse-chunk", a.coarse_chunk, b.coarse_chunk),
      differs("--share-layers", a.share_layers, b.share_layers),
      differs("--estimate", a.estimate, b.estimate),
      differs("--sinks", a.sinks, b.sinks),
      differs("--recent", a.recent, b.recent),
      differs("--outliers", a.outliers, b.outliers),
      differs("--static-budget", a.static_budget, b.static_budget),
      differs("--drop-share", a.drop_share, b.drop_share),
      differs<std::string>("--key-codec", name_of(a.key_codec), name_of(b.key_codec)),
      keeps_keys(a) ? differs("--rank", a.rank, b.rank) : "",
      keeps_keys(a)
          ? differs<std::string>("--rank-codec", name_of(a.rank_codec), name_of(b.rank_codec))
          : "",
      differs<std::string>("--landmark-codec", name_of(a.landmark_codec),
                           name_of(b.landmark_codec)),
      differs<std::string>("--value-codec", name_of(a.value_codec), name_of(b.value_codec))};
  for (const std::string& one : all) {
    if (!one.empty()) return one;
  }
  if (here.audit > 0 && saved.audit == 0 && a.key_codec != KeyCodec::kExact) {
    return "no --audit, here it is on: the exact keys that it needs were not saved";
  }
  return "";
}

// A start of the window behind which there is room for it; what has retired is then left out, so
// that no rewind will take it back.
void shorten_window(const KvLayout& layout, int64_t layer, KvState& state) {
  LayerState& s = state.layers[static_cast<size_t>(layer)];
  if (!has_room(layout, layer, state)) s.base = s.first;
}

}  // namespace

SessionImage session_image(const ModelConfig& config, const std::string& fingerprint,
                           const SessionPlan& plan, const KvState& state) {
  const KvLayout layout = kv_layout(plan, config);
  Json options = {{"attention", static_cast<int>(plan.options.attention)},
                  {"prefill", static_cast<int>(plan.options.prefill)},
                  {"prefill_budget", plan.options.prefill_budget},
                  {"value_home", static_cast<int>(plan.options.value_home)},
                  {"audit", plan.options.audit}};
  SelectionOptions selection = plan.options.selection;
  selection.budget_share = 0;  // of a prompt whose share is known now
  visit_selection(selection, ToJson{options});
  Json layers = Json::array();
  for (const LayerState& layer : state.layers) {
    Json one = Json::object();
    visit_layer(layer, ToJson{one});
    layers.push_back(std::move(one));
  }
  const Json meta = {
      {"model", {{"architecture", name_of(config.architecture)},
                 {"fingerprint", fingerprint},
                 {"long_rope", plan.long_rope},
                 {"dual_chunk", {{"span", config.dual_chunk.spans.tokens},
                                 {"local", config.dual_chunk.spans.local},
                                 {"scaled_from", config.dual_chunk.scaled_from}}}}},
      {"backend", static_cast<int>(plan.backend)},
      {"composition", composition(plan.options)},
      {"options", std::move(options)},
      {"tokens", state.n_tokens},
      {"prompt", state.n_prompt},
      {"cache",
       {{"saved", state.cache},
        {"slots", layout.n_slots},
        {"resident_layers", resident_layers(layout)}}},
      {"layers", std::move(layers)}};
  SessionImage image;
  image.meta = meta.dump();
  const auto add = [&](std::string name, int64_t n_rows, int64_t row_bytes) {
    FileBlock block;
    block.name = std::move(name);
    block.n_rows = n_rows;
    block.row_bytes = row_bytes;
    image.blocks.push_back(std::move(block));
  };
  add(kIdsBlock, 1, state.n_tokens * static_cast<int64_t>(sizeof(int32_t)));
  add(kLogitsBlock, 1, config.vocab_size * static_cast<int64_t>(sizeof(float)));
  add(kPromptEndBlock, 1, config.hidden * static_cast<int64_t>(sizeof(bf16)));
  image.state_blocks = state_blocks(layout, state);
  for (const StateBlock& block : image.state_blocks) {
    add(block.name(), block.n_rows, block.row_bytes);
  }
  image.file_bytes = lay_out_file(image.meta, image.blocks);
  return image;
}

std::shared_ptr<const SavedSession> SavedSession::open(const std::string& path) {
  std::shared_ptr<SavedSession> saved(new SavedSession);
  saved->file_ = SessionFile::open(path);
  const nlohmann::json json = parse_json(saved->file_->meta(), path);
  const JsonNode meta(json, path, "meta");
  saved->fingerprint_ = meta.at("model").at("fingerprint").text();
  const auto long_rope = meta.at("model").find("long_rope");  // older files have none
  saved->long_rope_ = long_rope && long_rope->boolean();
  const auto dual_chunk = meta.at("model").find("dual_chunk");  // nor this
  if (dual_chunk) {
    saved->dual_chunk_ = {.spans = {.tokens = dual_chunk->at("span").integer(0, kMost),
                                    .local = dual_chunk->at("local").integer(0, kMost)},
                          .scaled_from = dual_chunk->at("scaled_from").integer(0, kMost)};
  }
  saved->backend_ = static_cast<BackendKind>(
      meta.at("backend").integer(0, static_cast<int64_t>(BackendKind::kCuda)));
  const JsonNode options = meta.at("options");
  FromJson read{options};
  read("attention", saved->options_.attention, AttentionMode::kMpcache);
  read("prefill", saved->options_.prefill, PrefillMode::kSelect);
  read("prefill_budget", saved->options_.prefill_budget);
  read("value_home", saved->options_.value_home, ValueHome::kDevice);
  read("audit", saved->options_.audit);
  visit_selection(saved->options_.selection, read);
  KvState& state = saved->state_;
  state.n_tokens = meta.at("tokens").integer(1, kMost);
  state.n_prompt = meta.at("prompt").integer(1, state.n_tokens);
  const JsonNode cache = meta.at("cache");
  state.cache = cache.at("saved").boolean();
  saved->n_slots_ = cache.at("slots").integer(0, kMost);
  saved->resident_layers_ = cache.at("resident_layers").integer(0, kMost);
  const JsonNode layers = meta.at("layers");
  for (size_t i = 0; i < layers.size(); ++i) {
    const JsonNode layer = layers[i];
    visit_layer(state.layers.emplace_back(), FromJson{layer});
  }
  const FileBlock* ids = saved->file_->find(kIdsBlock);
  if (ids == nullptr || ids->n_rows != 1 ||
      ids->row_bytes != state.n_tokens * static_cast<int64_t>(sizeof(int32_t))) {
    fail("{}: expected {} token ids; save the session again", path, state.n_tokens);
  }
  return saved;
}

std::vector<int32_t> SavedSession::ids() const {
  const std::span<const std::byte> bytes = file_->row(*file_->find(kIdsBlock), 0);
  std::vector<int32_t> ids(bytes.size() / sizeof(int32_t));
  std::memcpy(ids.data(), bytes.data(), bytes.size());
  return ids;
}

void SavedSession::check_fits(const ModelConfig& config, const std::string& fingerprint,
                              const SessionPlan& plan) const {
  if (fingerprint != fingerprint_) {
    fail(ErrorKind::kUsage,
         "{}: it was saved with another model: expected fingerprint {}, this model's is {}", path(),
         fingerprint_, fingerprint);
  }
  if (plan.long_rope != long_rope_) {
    fail(ErrorKind::kUsage,
         "{}: it was prefilled for a context of at most {} tokens, and {} are asked for: this model turns "
         "all of its keys otherwise then (LongRoPE); give a smaller --ctx-size, or prefill again with "
         "the larger one",
         path(), config.rope.original_max_position, plan.context);
  }
  if (!(dual_chunk_ == config.dual_chunk)) {
    fail(ErrorKind::kUsage, "{}: it was prefilled with {}, this model is open with {}; give the same, or prefill "
                            "again",
         path(), flags_of(dual_chunk_), flags_of(config.dual_chunk));
  }
  const std::string other = what_differs(options_, plan.options);
  if (!other.empty()) {
    fail(ErrorKind::kUsage, "{}: it was saved with {}; give the same, or leave the flag out",
         path(), other);
  }
  const KvLayout layout = kv_layout(plan, config);
  const std::string why = why_impossible(layout, state_for(layout, plan.backend));
  if (!why.empty()) {
    fail(ErrorKind::kUsage, "{}: a session of these options cannot hold it: {}", path(), why);
  }
}

std::vector<std::string> SavedSession::notes_on(const SessionOptions& here) const {
  std::vector<std::string> notes;
  constexpr std::string_view kLate = "here it only decides how a long text behind it is appended";
  const PrefillMode was = options_.prefill;
  if (here.prefill != PrefillMode::kAuto && here.prefill != was) {
    notes.push_back(fmt::format("--prefill {}: the saved prompt was prefilled {}; {}.", name_of(here.prefill),
                                name_of(was), kLate));
  }
  const bool other_budget = was == PrefillMode::kSelect && here.prefill_budget != options_.prefill_budget;
  if (other_budget || here.exact_exp) {
    notes.push_back(fmt::format("{}: the saved prompt has been prefilled; {}.",
                                other_budget ? "--prefill-budget" : "--exact-exp", kLate));
  }
  return notes;
}

KvState SavedSession::state_for(const KvLayout& layout, BackendKind backend) const {
  KvState state = state_;
  const auto n_layers = std::min(static_cast<int64_t>(state.layers.size()), layout.shape.n_layers);
  const SelectionOptions& s = options_.selection;
  // What the cache holds is only worth something where the same ops will use it in the same way.
  state.cache = state.cache && backend == backend_ && layout.n_slots == n_slots_ &&
                resident_layers(layout) == resident_layers_ &&
                layout.settings.reuses() == s.reuses() &&
                (layout.settings.miss_cap >= 0) == (s.miss_cap >= 0);
  for (int64_t i = 0; i < n_layers; ++i) {
    LayerState& layer = state.layers[static_cast<size_t>(i)];
    shorten_window(layout, i, state);
    // A list that is longer than what may be selected here is made anew.
    if (!state.cache || layer.list_chunks > layout.select) layer.list_chunks = -1;
  }
  return state;
}

}  // namespace tiercel
