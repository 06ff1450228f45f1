#include "engine/presets.h"

#include <fmt/format.h>

#include <array>

namespace tiercel {
namespace {

constexpr std::array kModes = {AttentionMode::kDense,       AttentionMode::kShadow,
                               AttentionMode::kTokenSelect, AttentionMode::kNosa,
                               AttentionMode::kQuest,       AttentionMode::kDelta,
                               AttentionMode::kMpcache};

// Exact tokens, every head votes, one list per layer (arXiv 2411.02886: n_init 128, n_local 512, k
// 2048, reuse at a cosine of 0.9).
void token_select(SelectionOptions& s) {
  s.chunk_size = 1;
  s.group = GroupScore::kSum;
  s.scope = SelectScope::kLayer;
  s.sinks = 128;
  s.recent = 512;
  s.outliers = 0;
  s.reuse = 0.9;
  s.key_codec = KeyCodec::kExact;
}

// Two thirds of the tokens beside the window do not change while a prompt is attended, so that at
// most a third is fetched in a step (arXiv 2510.13602: 31 of 64 blocks static, 16 by the query, the
// rest sinks and window). Without a trained eviction head, attention mass says which. Blocks are
// smaller than NOSA's 64 tokens: nobody trained the model to be read in blocks.
void nosa(SelectionOptions& s) {
  s.chunk_size = 16;
  s.group = GroupScore::kSum;
  s.budget = 1024;
  s.static_budget = 2048;
  s.recent = 512;
  s.outliers = 0;
  s.key_codec = KeyCodec::kExact;
}

// Pages of 16 tokens, bounded by their extremes (arXiv 2406.10774).
void quest(SelectionOptions& s) {
  s.index = IndexKind::kMinMax;
  s.chunk_size = 16;
  s.outliers = 0;
  s.key_codec = KeyCodec::kExact;
}

// Few layers select, exactly; those behind them attend the same tokens (arXiv 2510.09883).
void delta(SelectionOptions& s) {
  s.chunk_size = 1;
  s.group = GroupScore::kSum;
  s.outliers = 0;
  s.share_layers = 2;
  s.key_codec = KeyCodec::kExact;
}

// What the prompt's end attended least never competes; the rest is found in two levels, for two
// layers at a time.
void mpcache(SelectionOptions& s) {
  s.index = IndexKind::kMinMax;
  s.chunk_size = 16;
  s.coarse_chunk = 128;
  s.coarse_share = 0.25;
  s.drop_share = 0.25;
  s.share_layers = 2;
  s.outliers = 0;
  s.key_codec = KeyCodec::kExact;
}

std::string budget_text(const SelectionOptions& s) {
  std::string text = s.budget_share > 0
                         ? fmt::format("budget {} % of the prompt", 100 * s.budget_share)
                     : s.budget == kBudgetAll ? std::string("budget all")
                                              : fmt::format("budget {}", s.budget);
  if (s.top_p > 0) text += fmt::format(" up to {} of the weight", s.top_p);
  text += fmt::format(" + {} always attended ({} sinks, {} recent", protected_tokens(s), s.sinks,
                      s.recent);
  if (s.outliers > 0) text += fmt::format(", {} outliers", s.outliers * s.chunk_size);
  if (s.static_budget > 0) text += fmt::format(", {} static", s.static_budget);
  return text + ")";
}

std::string reuse_text(const SelectionOptions& s) {
  std::string text;
  if (s.reuses()) {
    text += "; reuse";
    if (s.reuse > 0) text += fmt::format(" at cosine {}", s.reuse);
    if (s.reuse_steps > 1) text += fmt::format(" for {} steps", s.reuse_steps);
  }
  if (s.share_layers > 1) text += fmt::format("; {} layers share a list", s.share_layers);
  if (s.miss_cap >= 0) {
    text += fmt::format("; at most {} chunks fetched{}", s.miss_cap,
                        s.estimate ? ", the rest estimated" : "");
  }
  return text;
}

}  // namespace

std::span<const AttentionMode> attention_modes() { return kModes; }

SessionOptions preset(AttentionMode mode) {
  SessionOptions options;
  apply_preset(mode, options);
  return options;
}

void apply_preset(AttentionMode mode, SessionOptions& options) {
  options.attention = mode;
  options.selection = {};
  switch (mode) {
    case AttentionMode::kDense:
    case AttentionMode::kShadow: return;  // the defaults
    case AttentionMode::kTokenSelect: return token_select(options.selection);
    case AttentionMode::kNosa: return nosa(options.selection);
    case AttentionMode::kQuest: return quest(options.selection);
    case AttentionMode::kDelta: return delta(options.selection);
    case AttentionMode::kMpcache: return mpcache(options.selection);
  }
}

const char* name_of(AttentionMode mode) {
  switch (mode) {
    case AttentionMode::kDense: return "dense";
    case AttentionMode::kShadow: return "shadow";
    case AttentionMode::kTokenSelect: return "tokenselect";
    case AttentionMode::kNosa: return "nosa";
    case AttentionMode::kQuest: return "quest";
    case AttentionMode::kDelta: return "delta";
    case AttentionMode::kMpcache: return "mpcache";
  }
  return "?";
}

const char* name_of(PrefillMode mode) {
  switch (mode) {
    case PrefillMode::kAuto: return "auto";
    case PrefillMode::kDense: return "dense";
    case PrefillMode::kSelect: return "select";
  }
  return "?";
}

const char* name_of(KeyCodec codec) {
  switch (codec) {
    case KeyCodec::kAuto: return "auto";
    case KeyCodec::kExact: return "exact";
    case KeyCodec::kLowRank: return "lowrank";
    case KeyCodec::kInt8: return "int8";
    case KeyCodec::kInt4: return "int4";
  }
  return "?";
}

const char* name_of(RowCodec codec) {
  switch (codec) {
    case RowCodec::kBf16: return "bf16";
    case RowCodec::kInt8: return "int8";
    case RowCodec::kInt4: return "int4";
  }
  return "?";
}

const char* name_of(IndexKind index) { return index == IndexKind::kMean ? "mean" : "minmax"; }

const char* name_of(GroupScore group) {
  switch (group) {
    case GroupScore::kMax: return "max";
    case GroupScore::kMean: return "mean";
    case GroupScore::kSum: return "sum";
  }
  return "?";
}

const char* name_of(SelectScope scope) { return scope == SelectScope::kKvHead ? "head" : "layer"; }

const char* name_of(DraftMode mode) {
  switch (mode) {
    case DraftMode::kOff: return "off";
    case DraftMode::kAuto: return "auto";
    case DraftMode::kAlways: return "always";
  }
  return "?";
}

const char* name_of(HostAttention use) {
  switch (use) {
    case HostAttention::kOff: return "off";
    case HostAttention::kOn: return "on";
    case HostAttention::kAuto: return "auto";
  }
  return "";
}

const char* name_of(ValueHome home) {
  switch (home) {
    case ValueHome::kAuto: return "auto";
    case ValueHome::kHost: return "host";
    case ValueHome::kDevice: return "device";
  }
  return "?";
}

int64_t protected_tokens(const SelectionOptions& s) {
  return s.sinks + s.recent + s.outliers * s.chunk_size + s.static_budget;
}

std::string composition(const SessionOptions& options) {
  if (options.attention == AttentionMode::kDense) return "dense: everything is attended";
  const SelectionOptions& s = options.selection;
  std::string text = s.chunk_size == 1 && s.index == IndexKind::kMean
                         ? fmt::format("index: every token, {}", name_of(s.landmark_codec))
                         : fmt::format("index: {} of {} tokens, {}", name_of(s.index), s.chunk_size,
                                       name_of(s.landmark_codec));
  if (s.coarse_chunk > 0) {
    text += fmt::format(", in the best {} % of blocks of {}", 100 * s.coarse_share, s.coarse_chunk);
  }
  if (s.drop_share > 0) text += fmt::format(", {} % of chunks cut", 100 * s.drop_share);
  text += fmt::format("; group {}, list per {}; {}{}; keys {}", name_of(s.group),
                      s.scope == SelectScope::kKvHead ? "KV head" : "layer", budget_text(s),
                      reuse_text(s), name_of(s.key_codec));
  if (s.key_codec == KeyCodec::kLowRank) {
    text += fmt::format(" {} {}", s.rank, name_of(s.rank_codec));
  }
  return text + fmt::format("; values {}; cache {}x", name_of(s.value_codec), s.slots);
}

}  // namespace tiercel
