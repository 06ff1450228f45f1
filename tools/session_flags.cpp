#include "tools/session_flags.h"

#include <fmt/ranges.h>

#include <limits>
#include <random>
#include <string_view>
#include <vector>

#include "cpu/queue.h"
#include "engine/base/check.h"
#include "engine/known_models.h"
#include "engine/model.h"

namespace tiercel {
namespace {

constexpr int64_t kWholeContext = std::numeric_limits<int64_t>::max();
constexpr int64_t kMaxTokens = int64_t{1} << 40;

void add_budget(Flags& flags, const char* name, int64_t& target, const char* help) {
  flags.value(name, "N|all", target == kBudgetAll ? "all" : std::to_string(target), help,
              [&target](const std::string& text) {
                if (text == "all") {
                  target = kBudgetAll;
                  return;
                }
                try {
                  target = parse_integer(text, 1, kMaxTokens);
                } catch (const Error&) {
                  fail(ErrorKind::kUsage, "expected a number of tokens or all, found '{}'", text);
                }
              });
}

}  // namespace

void ModelFlags::add_to(Flags& flags, bool with_synthetic) {
  flags.section("Model");
  if (with_synthetic) {
    static const std::string help = fmt::format(
        "A known shape with random weights, instead of a model: {}", fmt::join(known_models(), ", "));
    flags.text("--synthetic", synthetic, help.c_str());
  }
  flags.text("-m,--model", directory,
             "Hugging Face directory: config.json, tokenizer.json, model.safetensors[.index.json]");
  flags.choice("--backend", backend_,
               {{"auto", BackendKind::kAuto},
                {"cpu", BackendKind::kCpu},
                {"cuda", BackendKind::kCuda}},
               "Where to compute; auto: a CUDA device where there is one");
  flags.integer("--device", device_, 0, 1 << 16, "Which CUDA device");
  flags.integer("-t,--threads", n_threads, 0, cpu::kMaxThreads, "Threads; 0: all cores");
}

BackendKind ModelFlags::backend() const {
  if (backend_ != BackendKind::kAuto) return backend_;
  return why_no_cuda().empty() ? BackendKind::kCuda : BackendKind::kCpu;
}

void ModelFlags::check(bool needs_backend) const {
  if (needs_backend && backend_ == BackendKind::kCuda) {
    const std::string reason = why_no_cuda();
    if (!reason.empty()) {
      fail(ErrorKind::kUsage, "--backend: expected auto or cpu, found cuda; {}", reason);
    }
  }
  if (directory.empty() && synthetic.empty()) {
    fail(ErrorKind::kUsage, "--model: expected the directory of a model, found none; add -m DIR");
  }
  if (!directory.empty() && !synthetic.empty()) {
    fail(ErrorKind::kUsage, "--synthetic: expected either a model or a known shape, found both");
  }
}

std::shared_ptr<Model> ModelFlags::open() const {
  return synthetic.empty() ? Model::open(directory, options())
                           : Model::synthetic(synthetic, options());
}

ModelConfig ModelFlags::config() const {
  return synthetic.empty() ? load_config(directory) : known_model(synthetic);
}

ModelOptions ModelFlags::options() const {
  return {.backend = backend_,
          .n_threads = static_cast<int>(n_threads),
          .device = static_cast<int>(device_)};
}

namespace {

// The preset comes first: a flag that is given beats it (flags act in the order in which they are added).
void add_preset_flag(Flags& flags, SessionOptions& options) {
  std::string legal;
  for (const AttentionMode mode : attention_modes()) {
    legal += (legal.empty() ? "" : "|") + std::string(name_of(mode));
  }
  flags.value("--attention", legal.c_str(), name_of(options.attention),
              "Decode: every token, or what a preset selects; the flags below change a preset, their "
              "defaults are those of shadow",
              [&options](const std::string& text) {
                std::vector<std::string_view> all;
                for (const AttentionMode mode : attention_modes()) {
                  all.emplace_back(name_of(mode));
                  if (text == name_of(mode)) return apply_preset(mode, options);
                }
                refuse_choice(text, all);
              });
}

void add_budget_flag(Flags& flags, SelectionOptions& s) {
  flags.value("--budget", "N|X%|all", std::to_string(s.budget),
              "Tokens selected per KV head and decode step, or a share of the prompt",
              [&s](const std::string& text) {
                s.budget_share = 0;
                if (text == "all") {
                  s.budget = kBudgetAll;
                } else if (text.ends_with('%')) {
                  s.budget_share = parse_number(text.substr(0, text.size() - 1), 0, 100) / 100;
                } else {
                  try {
                    s.budget = parse_integer(text, 1, kMaxTokens);
                  } catch (const Error&) {
                    fail(ErrorKind::kUsage,
                         "expected a number of tokens, a share such as 2% or all, found '{}'", text);
                  }
                }
              });
}

void add_selection_flags(Flags& flags, SelectionOptions& s) {
  flags.section("Selection");
  add_budget_flag(flags, s);
  flags.number("--top-p-mass", s.top_p, 0, 1,
               "Stop below the budget where this share of the weight is selected; 0: off");
  flags.choice("--index", s.index, {{"mean", IndexKind::kMean}, {"minmax", IndexKind::kMinMax}},
               "What stands for a chunk: the mean of its keys or their extremes per channel");
  flags.integer("--chunk-size", s.chunk_size, 1, 4096, "Tokens per chunk; 1: exact tokens");
  flags.integer("--coarse-chunk", s.coarse_chunk, 0, 1 << 20,
                "Tokens per block of a first level; 0: one level");
  flags.number("--coarse-share", s.coarse_share, 0, 1,
               "Share of the blocks whose chunks are looked at");
  flags.choice("--group", s.group,
               {{"max", GroupScore::kMax}, {"mean", GroupScore::kMean}, {"sum", GroupScore::kSum}},
               "What the query heads of a group make of their weights");
  flags.choice("--scope", s.scope,
               {{"head", SelectScope::kKvHead}, {"layer", SelectScope::kLayer}},
               "A list per KV head or one per layer");
  flags.number("--reuse", s.reuse, 0, 1,
               "Keep a list while the query's cosine with its own is this; 0: off");
  flags.integer("--reuse-steps", s.reuse_steps, 0, INT32_MAX,
                "Steps that a list serves at most; 0: no limit of its own");
  flags.integer("--share-layers", s.share_layers, 1, 1 << 20,
                "Layers that attend what the first of them selected");
  flags.integer("--miss-cap", s.miss_cap, -1, INT32_MAX,
                "Chunks fetched per KV head and step, at most; -1: no limit");
  flags.flag("--estimate", s.estimate, "Chunks beyond --miss-cap count as their means");
  flags.integer("--sinks", s.sinks, 0, kMaxTokens, "First tokens, always attended exactly");
  flags.integer("--recent", s.recent, 0, kMaxTokens, "Last tokens, always attended exactly");
  flags.integer("--outliers", s.outliers, 0, kMaxTokens,
                "Chunks per KV head that stay exact: those whose mean describes them worst");
  flags.integer("--static-budget", s.static_budget, 0, kMaxTokens,
                "Tokens per KV head that stay exact: those that the prompt's end attended most");
  flags.number("--drop-share", s.drop_share, 0, 1,
               "Share of the chunks that never compete: those that the prompt's end attended least");
  flags.number("--slots", s.slots, 0, 1e9, "Selection cache, in budgets");
  flags.section("Codecs");
  flags.choice("--key-codec", s.key_codec,
               {{"auto", KeyCodec::kAuto},
                {"exact", KeyCodec::kExact},
                {"lowrank", KeyCodec::kLowRank},
                {"int8", KeyCodec::kInt8},
                {"int4", KeyCodec::kInt4}},
               "Keys: exact beside the values, or coded on the device");
  flags.integer("--rank", s.rank, 1, 1 << 20, "Rank of the low-rank keys");
  flags.choice("--rank-codec", s.rank_codec,
               {{"bf16", RowCodec::kBf16}, {"int8", RowCodec::kInt8}},
               "Coefficients of the low-rank keys");
  flags.choice("--landmark-codec", s.landmark_codec,
               {{"bf16", RowCodec::kBf16}, {"int8", RowCodec::kInt8}}, "The index");
  flags.choice("--value-codec", s.value_codec,
               {{"bf16", RowCodec::kBf16}, {"int8", RowCodec::kInt8}, {"int4", RowCodec::kInt4}},
               "Values");
}

}  // namespace

void add_session_flags(Flags& flags, SessionOptions& options) {
  flags.section("Attention");
  add_preset_flag(flags, options);
  flags.choice("--prefill", options.prefill,
               {{"auto", PrefillMode::kAuto},
                {"dense", PrefillMode::kDense},
                {"select", PrefillMode::kSelect}},
               "Prompt: dense, or selected chunks; auto: dense where it is affordable");
  add_budget(flags, "--prefill-budget", options.prefill_budget,
             "Tokens selected for a block of prefill");
  flags.integer("--audit", options.audit, 0, kMaxTokens,
                "Every N steps measure the attention mass that the selection covered; 0: off");
  flags.flag("--exact-exp", options.exact_exp, "Prefill with fp32 exponentials (slower)");
  flags.flag("--no-graphs", options.no_graphs, "Enqueue every decode step anew (CUDA; slower)");
  add_selection_flags(flags, options.selection);

  flags.section("Memory");
  flags.integer("-c,--ctx-size", options.context, 0, kMaxTokens,
                "Tokens that the sequence can hold; 0: prompt plus -n");
  flags.size("--device-memory", options.device_memory, "Limit of the device tier; default: none");
  flags.size("--host-memory", options.host_memory, "Limit of the host tier; default: none");
  flags.choice("--value-home", options.value_home,
               {{"auto", ValueHome::kAuto}, {"host", ValueHome::kHost}, {"device", ValueHome::kDevice}},
               "Where values live; auto: on the device while they fit its memory");
  flags.flag("--strict", options.strict, "Refuse what is otherwise a warning");
}

void SamplingFlags::add_to(Flags& flags) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  flags.section("Sampling (default: generation_config.json, else greedy)");
  flags.number("--temp,--temperature", temperature_, 0, kInfinity, "Temperature; 0: greedy");
  flags.integer("--top-k", top_k_, 0, INT32_MAX, "Keep the K most likely; 0: off");
  flags.number("--top-p", top_p_, 0, 1, "Keep the most likely up to this probability; 1: off");
  flags.number("--min-p", min_p_, 0, 1, "Drop what is below this share of the best; 0: off");
  flags.integer("-s,--seed", seed_, -1, Flags::kNoLimit, "Seed; -1: random, and printed");
  flags.number("--repeat-penalty", repeat_penalty_, 0.01, 1000,
               "Penalty of repeated tokens; 1: off");
  flags.integer("--repeat-last-n", repeat_last_n_, -1, Flags::kNoLimit,
                "Tokens that the penalty looks back on; -1: all [64]");
}

SamplingOptions SamplingFlags::resolve(const ModelConfig& config, const Console& console) const {
  const ModelConfig::Sampling& advised = config.sampling;
  const bool sample = advised.do_sample.value_or(false);
  SamplingOptions options;
  options.temperature = temperature_.value_or(sample ? advised.temperature.value_or(1.0) : 0.0);
  // transformers' own defaults where the file turns sampling on and says no more.
  options.top_k = top_k_.value_or(advised.top_k.value_or(sample ? 50 : 0));
  options.top_p = top_p_.value_or(advised.top_p.value_or(1.0));
  options.min_p = min_p_.value_or(advised.min_p.value_or(0.0));
  options.repeat_penalty = repeat_penalty_.value_or(advised.repetition_penalty.value_or(1.0));
  // transformers penalises the whole context, llama.cpp the last 64 tokens.
  const bool penalty_advised = !repeat_penalty_ && advised.repetition_penalty;
  options.repeat_last_n = repeat_last_n_.value_or(penalty_advised ? -1 : 64);
  if (options.repeat_last_n < 0) options.repeat_last_n = kWholeContext;
  if (options.temperature == 0) {
    if (top_k_ || top_p_ || min_p_) {
      console.warn("--top-k, --top-p and --min-p change nothing at temperature 0; add --temp 1");
    }
    return options;
  }
  options.seed = seed_ >= 0 ? static_cast<uint64_t>(seed_) : std::random_device{}();
  console.info("sampling: temperature {}, top-k {}, top-p {}, min-p {}, seed {}",
               options.temperature, options.top_k, options.top_p, options.min_p, options.seed);
  return options;
}

}  // namespace tiercel
