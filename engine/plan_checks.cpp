#include "engine/plan_checks.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "cpu/select.h"
#include "engine/base/check.h"
#include "engine/option_rows.h"

namespace tiercel {
namespace {

void require(bool ok, const char* flag, const char* expected, int64_t found) {
  if (!ok) fail(ErrorKind::kUsage, "{}: expected {}, found {}", flag, expected, found);
}

void require_share(double share, const char* flag) {
  if (!(share >= 0 && share <= 1)) {
    fail(ErrorKind::kUsage, "{}: expected a share from 0 to 1, found {}", flag, share);
  }
}

// The options of a selection by name, each with its value as text.
class OptionTexts {
 public:
  explicit OptionTexts(SelectionOptions s) { add_selection_options(*this, s); }
  const std::vector<std::pair<std::string, std::string>>& texts() const { return texts_; }

  // A sink of option_rows.h.
  void section(const char*) {}
  void integer(const char* name, int64_t value, int64_t, int64_t, const char*) { add(name, value); }
  void tokens(const char* name, int64_t value, int64_t, int64_t, const char*) { add(name, value); }
  void number(const char* name, double value, double, double, const char*) { add(name, value); }
  void flag(const char* name, bool value, const char*) { add(name, value); }
  template <typename E>
  void choice(const char* name, E value, std::vector<std::pair<const char*, E>>, const char*) {
    add(name, static_cast<int>(value));
  }
  template <typename Parse>
  void value(const char* name, const char*, const std::string& text, const char*, Parse&&) {
    add(name, text);
  }

 private:
  template <typename T>
  void add(const char* name, const T& value) {
    texts_.emplace_back(name, fmt::format("{}", value));
  }
  std::vector<std::pair<std::string, std::string>> texts_;
};

}  // namespace

void check_ranges(const SessionOptions& o) {
  const SelectionOptions& s = o.selection;
  require(s.chunk_size >= 1 && s.chunk_size <= 128, "--chunk-size", "1 to 128 tokens", s.chunk_size);
  require(s.budget == kBudgetAll || s.budget >= s.chunk_size, "--budget",
          "'all' or at least one chunk of tokens", s.budget);
  require(o.prefill_budget == kBudgetAll || o.prefill_budget >= s.chunk_size, "--prefill-budget",
          "'all' or at least one chunk of tokens", o.prefill_budget);
  require(s.sinks >= 0, "--sinks", "0 or more tokens", s.sinks);
  require(s.recent >= 1, "--recent", "1 or more tokens", s.recent);
  require(s.outliers >= 0, "--outliers", "0 or more chunks", s.outliers);
  require(s.static_budget >= 0, "--static-budget", "0 or more tokens", s.static_budget);
  require(s.rank >= 1, "--rank", "1 or more", s.rank);
  require(s.share_layers >= 1, "--share-layers", "1 or more layers", s.share_layers);
  require(s.reuse_steps >= 0, "--reuse-steps", "0 or more steps", s.reuse_steps);
  require(s.miss_cap >= -1, "--miss-cap", "-1 (no limit) or chunks", s.miss_cap);
  require(s.coarse_chunk >= 0, "--coarse-chunk", "0 or more tokens", s.coarse_chunk);
  require(o.audit >= 0, "--audit", "0 or more steps", o.audit);
  require(o.draft_max >= 1 && o.draft_max <= kMaxDraft, "--draft-max", "1 to 31 tokens", o.draft_max);
  static_assert(kMaxDraft == 31);
  require(o.context >= 0, "--ctx-size", "0 or more tokens", o.context);
  require(o.device_memory >= 0, "--device-memory", "0 or more bytes", o.device_memory);
  require(o.host_memory >= 0, "--host-memory", "0 or more bytes", o.host_memory);
  require_share(s.budget_share, "--budget");
  require_share(s.top_p, "--top-p-mass");
  require_share(s.reuse, "--reuse");
  require_share(s.drop_share, "--drop-share");
  require_share(s.coarse_share, "--coarse-share");
  if (!(s.slots >= 1 && s.slots <= 1e6)) {
    fail(ErrorKind::kUsage, "--slots: expected 1 or more budgets, found {}", s.slots);
  }
}

// Dense attention selects nothing: chunks and sinks count, where they are what its prompt selects, and
// nothing else of a selection. What was asked for besides is not judged, but said.
void drop_selection(SessionOptions& o, std::vector<std::string>& notes) {
  const SelectionOptions s = o.selection, unasked;
  std::string names;
  const auto mention = [&names](std::string_view name) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  };
  const auto asked = OptionTexts(s).texts(), defaults = OptionTexts(unasked).texts();
  for (size_t i = 0; i < asked.size(); ++i) {
    const auto& [name, text] = asked[i];
    const bool of_use = name == "--chunk-size" || name == "--sinks" ||
                        (name == "--key-codec" && s.key_codec == KeyCodec::kExact);
    if (!of_use && text != defaults[i].second) mention(name);
  }
  if (o.value_home == ValueHome::kHost) mention("--value-home");
  if (o.host_attention != HostAttention::kOff) mention("--host-attention");
  if (o.audit > 0) mention("--audit");
  if (!names.empty()) {
    notes.push_back(names + ": of no use, as --attention dense attends everything, exactly and on "
                            "the device.");
  }
  o.selection = unasked;
  o.selection.chunk_size = s.chunk_size;
  o.selection.sinks = s.sinks;
  o.selection.key_codec = KeyCodec::kExact;
  o.host_attention = HostAttention::kOff;
  o.audit = 0;
}

void note_unused(const SessionOptions& asked, const SessionOptions& used, std::vector<std::string>& notes) {
  if (used.attention == AttentionMode::kDense) return;  // drop_selection
  const SessionOptions usual;
  const SelectionOptions &a = asked.selection, &s = used.selection;
  if (a.coarse_share != usual.selection.coarse_share && s.coarse_chunk == 0) {
    notes.push_back("--coarse-share: of no use without --coarse-chunk.");
  }
  const bool ranks = a.rank != usual.selection.rank || a.rank_codec != usual.selection.rank_codec;
  if (ranks && s.key_codec != KeyCodec::kLowRank) {
    notes.push_back(fmt::format("--rank, --rank-codec: of no use, as keys are kept {}; --key-codec lowrank has them.",
                                name_of(s.key_codec)));
  }
  if (asked.prefill_budget != usual.prefill_budget && used.prefill == PrefillMode::kDense) {
    notes.push_back("--prefill-budget: of no use, as the prompt is prefilled densely; --prefill select has it.");
  }
}

// Settings that are fine by themselves, but not together.
void check_composition(const SelectionOptions& s) {
  const auto refuse_if = [](bool wrong, const char* what) {
    if (wrong) fail(ErrorKind::kUsage, "{}", what);
  };
  const bool exact_tokens = s.chunk_size == 1 && s.index == IndexKind::kMean;
  refuse_if(s.top_p > 0 && s.group == GroupScore::kMax,
            "--top-p-mass: the weights of --group max have no sum; use --group mean or sum");
  refuse_if(s.outliers > 0 && s.index != IndexKind::kMean,
            "--outliers: extremes describe every chunk; use --index mean or --outliers 0");
  refuse_if(s.outliers > 0 && s.static_budget > 0,
            "--outliers and --static-budget: the chunks that stay exact are chosen by one of them");
  refuse_if(s.scope == SelectScope::kLayer && (s.outliers > 0 || s.static_budget > 0 || s.drop_share > 0),
            "--scope layer: --outliers, --static-budget and --drop-share choose per KV head; use "
            "--scope head, or --outliers 0 without them");
  refuse_if(s.coarse_chunk > 0 && (s.coarse_chunk % s.chunk_size != 0 || s.coarse_chunk == s.chunk_size),
            "--coarse-chunk: expected a multiple of --chunk-size");
  refuse_if(s.coarse_chunk > 0 && s.coarse_share == 0, "--coarse-share: expected more than 0");
  refuse_if(s.landmark_codec == RowCodec::kInt4 || s.rank_codec == RowCodec::kInt4,
            "landmarks and coefficients are bf16 or int8");
  refuse_if((s.static_budget > 0 || s.drop_share > 0) && s.index != IndexKind::kMean && s.chunk_size < 8,
            "--static-budget, --drop-share: with --index minmax expected --chunk-size 8 or more");
  refuse_if(s.estimate && s.miss_cap < 0, "--estimate: nothing is left out without --miss-cap");
  refuse_if(s.estimate && (s.index != IndexKind::kMean || s.landmark_codec != RowCodec::kBf16 || exact_tokens),
            "--estimate: chunks are estimated by their means; expected --index mean, "
            "--landmark-codec bf16 and --chunk-size 2 or more");
  refuse_if(s.miss_cap >= 0 && s.share_layers > 1,
            "--miss-cap: layers that share a list have caches of their own; use --share-layers 1");
}

// In place, or with keys and values, the host attends them as they are: bf16. Where the device has the
// keys, values may be coded.
void check_host_attention(const PlanRequest& r, const SessionPlan& plan) {
  const SelectionOptions& s = plan.options.selection;
  if (plan.options.host_attention == HostAttention::kOff) return;
  if (s.miss_cap >= 0) {
    fail(ErrorKind::kUsage, "--host-attention: nothing is fetched; --miss-cap has no meaning beside it");
  }
  if (r.backend == BackendKind::kCpu) {
    if (s.key_codec == KeyCodec::kExact && s.value_codec == RowCodec::kBf16) return;
    fail(ErrorKind::kUsage, "--host-attention: expected --key-codec exact and --value-codec bf16 on a CPU");
  }
  const KvLayout layout = kv_layout(plan, r.config);
  bool keys_on_device = true;
  for (int64_t layer = 0; layer < r.config.n_layers; ++layer) {
    keys_on_device &= !layout.tiered(layer) || layout.weighed_on_device(layer);
  }
  if (keys_on_device) return;
  if (s.value_codec != RowCodec::kBf16) {
    fail(ErrorKind::kUsage, "--host-attention: with --key-codec exact expected --value-codec bf16; or use "
                            "--key-codec int8, then the host only multiplies values");
  }
  if (r.config.eviction_head) {
    fail(ErrorKind::kUsage, "--host-attention: what this model's eviction head says of keys is on the "
                            "device; use --key-codec int8, then the host only multiplies values");
  }
}

void check_dual_chunk(const PlanRequest& r, const SessionPlan& plan) {
  const DualChunk& dual = r.config.dual_chunk;
  if (plan.context <= dual.plain_tokens()) return;
  const SelectionOptions& s = plan.options.selection;
  int64_t allowed = dual.plain_tokens();  // whatever the other options
  const auto refuse_if = [&](bool wrong, std::string_view what) {
    if (!wrong) return;
    fail(ErrorKind::kUsage, "{}; or give a --ctx-size of {} tokens or fewer", what, allowed);
  };
  const bool selects = plan.options.attention != AttentionMode::kDense;
  const bool selects_prompt = plan.options.prefill == PrefillMode::kSelect;
  refuse_if(selects && plan.options.host_attention != HostAttention::kOff && r.backend == BackendKind::kCuda,
            "--host-attention: the host does not know of dual chunk attention (--dual-chunk, --scale-from); leave "
            "it out");
  allowed = dual.tokens_of_one_view();
  if (plan.context <= allowed) return;
  const int64_t most = kMaxSpans * dual.spans.tokens;
  if (plan.context > most) {
    fail(ErrorKind::kUsage, "--ctx-size: dual chunk attention reaches {} tokens here, found {}", most,
         plan.context);
  }
  const auto refuse_odd = [&](int64_t chunk) {
    refuse_if(dual.spans.tokens % (8 * chunk) != 0,
              fmt::format("--dual-chunk less --dual-chunk-local: expected a multiple of 8 chunks of {} tokens, found "
                          "{}; give another --dual-chunk-local or --chunk-size",
                          chunk, dual.spans.tokens));
  };
  if (selects) refuse_odd(s.chunk_size);
  if (selects_prompt) refuse_odd(kv_settings(plan, r.config).prefill_chunk());
  if (!selects) return;
  refuse_if(s.coarse_chunk > 0, "--coarse-chunk: a block of chunks has one score, whose queries differ by the "
                                "span in dual chunk attention; leave it out");
  refuse_if((s.static_budget > 0 || s.drop_share > 0) && !r.config.eviction_head,
            "--static-budget, --drop-share: chunks are not weighed where queries differ by the span (dual "
            "chunk attention); leave them out");
}

void check_codecs(const SelectionOptions& s, const ModelConfig& config) {
  const auto require_groups = [](int64_t width, const char* flag, const char* what) {
    if (!can_code(width)) {
      fail(ErrorKind::kUsage, "{}: codes come in groups of 32, this {} is {}", flag, what, width);
    }
  };
  if (config.eviction_head && s.estimate) {
    fail(ErrorKind::kUsage, "--estimate: a chunk's mean does not know what this model's eviction head "
                            "says of its tokens; leave it out");
  }
  const int64_t d = config.head_dim;
  if (s.value_codec != RowCodec::kBf16) require_groups(d, "--value-codec", "model's head_dim");
  if (s.key_codec == KeyCodec::kInt8 || s.key_codec == KeyCodec::kInt4) {
    require_groups(d, "--key-codec", "model's head_dim");
  }
  if (s.key_codec == KeyCodec::kLowRank && s.rank_codec != RowCodec::kBf16) {
    require_groups(std::min(s.rank, config.kv_width()), "--rank-codec", "rank");
  }
}

// The scoring of prefill keeps its lists in a worker's scratch memory.
int64_t most_prefill_budget(const ModelConfig& config, const SelectionOptions& selection) {
  KvSettings settings;
  settings.chunk_tokens = static_cast<int32_t>(selection.chunk_size);
  return cpu::max_prefill_chunks(config.n_heads / config.n_kv_heads) * settings.prefill_chunk();
}

void check_prefill_budget(const PlanRequest& r, const SessionPlan& plan) {
  if (plan.options.prefill != PrefillMode::kSelect || r.restored) return;
  const int64_t most = most_prefill_budget(r.config, plan.options.selection);
  const int64_t wanted =
      std::min(r.options.prefill_budget == kBudgetAll ? r.n_prompt : r.options.prefill_budget,
               r.n_prompt);
  if (wanted > most) {
    fail(ErrorKind::kUsage, "--prefill-budget: expected at most {} tokens here, found {}; "
         "--prefill dense sees everything", most, wanted);
  }
}

}  // namespace tiercel
