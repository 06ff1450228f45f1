// The options of a session and of sampling by name: once, for the command's flags and for the
// library's settings.
//
// A sink `Rows` takes one call per option: section(), integer(), tokens(), number(), size(), flag(),
// choice() and value(), as tools/flags.h has them. Options act in the order in which they are added,
// so the preset, which comes first, is what the others change. Names carry the command's dashes.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/queue.h"
#include "engine/answer_form.h"
#include "engine/base/check.h"
#include "engine/json.h"
#include "engine/logprobs.h"
#include "engine/option_values.h"
#include "engine/options.h"
#include "engine/presets.h"
#include "engine/sampling_request.h"

namespace tiercel {

template <typename Rows>
void add_model_options(Rows& rows, BackendKind& backend, int64_t& device, int64_t& n_threads,
                       ReachOptions& reach, int64_t& host_layers, WeightForm& weight_form) {
  rows.choice(
      "--backend", backend,
      {{"auto", BackendKind::kAuto}, {"cpu", BackendKind::kCpu}, {"cuda", BackendKind::kCuda}},
      "Where to compute; auto: a CUDA device where there is one");
  rows.integer("--device", device, 0, 1 << 16, "Which CUDA device");
  rows.integer("-t,--threads", n_threads, 0, cpu::kMaxThreads, "Threads; 0: all cores");
  rows.tokens("--dual-chunk", reach.dual_chunk, 0, kMaxOptionTokens,
              "No query looks further back than so many tokens (dual chunk attention), for prompts longer than "
              "the model was trained for; 0: off; default: as config.json has it");
  rows.tokens("--dual-chunk-local", reach.dual_chunk_local, 0, kMaxOptionTokens,
              "Of those, tokens that are always seen at their true distance; default: a 32nd");
  rows.tokens("--scale-from", reach.scale_from, 0, kMaxOptionTokens,
              "Sharpen attention in contexts of more than so many tokens, by (0.1 ln(n / TOKENS) + 1)^2; "
              "0: off; default: as config.json has it");
  rows.value("--host-layers", "N|all|auto",
             host_layers == kAllLayers    ? "all"
             : host_layers == kAutoLayers ? "auto"
                                          : std::to_string(host_layers),
             "Feed-forward weights of so many layers stay in host memory beside a GPU, and steps read them over the "
             "link; auto: as many as must",
             [&host_layers](const std::string& text) { host_layers = parse_layers(text); });
  rows.choice("--weight-codec", weight_form,
              {{"stored", WeightForm::kStored},
               {"bf16", WeightForm::kBf16},
               {"int8", WeightForm::kInt8},
               {"int4", WeightForm::kInt4}},
              "How matrices are kept: as the checkpoint has them; decoded to bf16; or rounded to codes of so many bits");
}

template <typename Rows>
void add_budget(Rows& rows, const char* name, int64_t& target, const char* help) {
  rows.value(name, "TOKENS|all", target == kBudgetAll ? "all" : std::to_string(target), help,
             [&target](const std::string& text) {
               if (text == "all") {
                 target = kBudgetAll;
                 return;
               }
               try {
                 target = parse_tokens(text);
               } catch (const Error&) {
                 fail(ErrorKind::kUsage, "expected a number of tokens or all, found '{}'", text);
               }
             });
}

// The preset comes first: a flag that is given beats it (flags act in the order in which they are
// added).
template <typename Rows>
void add_preset_option(Rows& rows, SessionOptions& options) {
  std::string legal;
  for (const AttentionMode mode : attention_modes()) {
    if (!legal.empty()) legal += '|';
    legal += name_of(mode);
  }
  rows.value(
      "--attention", legal.c_str(), name_of(options.attention),
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

template <typename Rows>
void add_selection_budget(Rows& rows, SelectionOptions& s) {
  const std::string now = s.budget_share > 0        ? fmt::format("{}%", 100 * s.budget_share)
                          : s.budget == kBudgetAll ? "all"
                                                   : std::to_string(s.budget);
  rows.value("--budget", "TOKENS|X%|all", now,
             "Tokens selected per KV head and decode step, or a share of the prompt",
             [&s](const std::string& text) {
               s.budget_share = 0;
               if (text == "all") {
                 s.budget = kBudgetAll;
               } else if (text.ends_with('%')) {
                 s.budget_share = parse_number(text.substr(0, text.size() - 1), 0, 100) / 100;
                 if (s.budget_share == 0) {
                   fail(ErrorKind::kUsage, "expected a share of more than 0 %, found '{}'",
                        printable(text, 40));
                 }
               } else {
                 try {
                   s.budget = parse_tokens(text);
                 } catch (const Error&) {
                   fail(ErrorKind::kUsage,
                        "expected a number of tokens, a share such as 2% or all, found '{}'",
                        printable(text, 40));
                 }
               }
             });
}

template <typename Rows>
void add_selection_options(Rows& rows, SelectionOptions& s) {
  rows.section("Selection");
  add_selection_budget(rows, s);
  rows.number("--top-p-mass", s.top_p, 0, 1,
              "Stop below the budget where this share of the weight is selected; 0: off");
  rows.choice("--index", s.index, {{"mean", IndexKind::kMean}, {"minmax", IndexKind::kMinMax}},
              "What stands for a chunk: the mean of its keys or their extremes per channel");
  rows.tokens("--chunk-size", s.chunk_size, 1, 128, "Tokens per chunk; 1: exact tokens");
  rows.tokens("--coarse-chunk", s.coarse_chunk, 0, 1 << 20,
              "Tokens per block of a first level; 0: one level");
  rows.number("--coarse-share", s.coarse_share, 0, 1,
              "Share of the blocks whose chunks are looked at");
  rows.choice("--group", s.group,
              {{"max", GroupScore::kMax}, {"mean", GroupScore::kMean}, {"sum", GroupScore::kSum}},
              "What the query heads of a group make of their weights");
  rows.choice("--scope", s.scope, {{"head", SelectScope::kKvHead}, {"layer", SelectScope::kLayer}},
              "A list per KV head or one per layer");
  rows.number("--reuse", s.reuse, 0, 1,
              "Keep a list while the query's cosine with its own is this; 0: off");
  rows.integer("--reuse-steps", s.reuse_steps, 0, INT32_MAX,
               "Steps that a list serves at most; 0: no limit of its own");
  rows.integer("--share-layers", s.share_layers, 1, 1 << 20,
               "Layers that attend what the first of them selected");
  rows.integer("--miss-cap", s.miss_cap, -1, INT32_MAX,
               "Chunks fetched per KV head and step, at most; -1: no limit");
  rows.flag("--estimate", s.estimate, "Chunks beyond --miss-cap count as their means");
  rows.tokens("--sinks", s.sinks, 0, kMaxOptionTokens, "First tokens, always attended exactly");
  rows.tokens("--recent", s.recent, 0, kMaxOptionTokens, "Last tokens, always attended exactly");
  rows.integer("--outliers", s.outliers, 0, kMaxOptionTokens,
               "Chunks per KV head that stay exact: those of the prompt whose mean describes them worst, "
               "and again so many of what follows");
  rows.tokens("--static-budget", s.static_budget, 0, kMaxOptionTokens,
              "Tokens per KV head that stay exact: those that the prompt's end attended most");
  rows.number("--drop-share", s.drop_share, 0, 1,
              "Share of the chunks that never compete: those that the prompt's end attended least");
  rows.number("--slots", s.slots, 0, 1e9, "Selection cache, in budgets");
  rows.section("Codecs");
  rows.choice("--key-codec", s.key_codec,
              {{"auto", KeyCodec::kAuto},
               {"exact", KeyCodec::kExact},
               {"lowrank", KeyCodec::kLowRank},
               {"int8", KeyCodec::kInt8},
               {"int4", KeyCodec::kInt4}},
              "Keys: exact beside the values, or coded on the device");
  rows.integer("--rank", s.rank, 1, 1 << 20, "Rank of the low-rank keys");
  rows.choice("--rank-codec", s.rank_codec, {{"bf16", RowCodec::kBf16}, {"int8", RowCodec::kInt8}},
              "Coefficients of the low-rank keys");
  rows.choice("--landmark-codec", s.landmark_codec,
              {{"bf16", RowCodec::kBf16}, {"int8", RowCodec::kInt8}}, "The index");
  rows.choice("--value-codec", s.value_codec,
              {{"bf16", RowCodec::kBf16}, {"int8", RowCodec::kInt8}, {"int4", RowCodec::kInt4}},
              "Values");
}

template <typename Rows>
void add_session_options(Rows& rows, SessionOptions& options) {
  rows.section("Attention");
  add_preset_option(rows, options);
  rows.choice("--prefill", options.prefill,
              {{"auto", PrefillMode::kAuto},
               {"dense", PrefillMode::kDense},
               {"select", PrefillMode::kSelect}},
              "Prompt: dense, or selected chunks; auto: dense where it is affordable");
  add_budget(rows, "--prefill-budget", options.prefill_budget,
             "Tokens selected for a block of prefill");
  rows.integer("--audit", options.audit, 0, kMaxOptionTokens,
               "Every N steps measure the attention mass that the selection covered; 0: off");
  rows.flag("--exact-exp", options.exact_exp, "Prefill with fp32 exponentials (slower)");
  rows.flag("--no-graphs", options.no_graphs, "Enqueue every decode step anew (CUDA; slower)");
  add_selection_options(rows, options.selection);

  rows.section("Drafts");
  rows.choice("--draft", options.draft,
              {{"off", DraftMode::kOff}, {"auto", DraftMode::kAuto}, {"always", DraftMode::kAlways}},
              "Guess the next tokens by what followed the newest ones earlier, and check them in one step; auto: where "
              "that gains time");
  rows.integer("--draft-max", options.draft_max, 1, kMaxDraft, "Tokens guessed at once");

  rows.section("Memory");
  rows.tokens("-c,--ctx-size", options.context, 0, kMaxOptionTokens,
              "Tokens that the sequence can hold; 0: prompt plus -n");
  rows.size("--device-memory", options.device_memory, "Limit of the device tier; default: none");
  rows.size("--host-memory", options.host_memory, "Limit of the host tier; default: none");
  rows.choice(
      "--value-home", options.value_home,
      {{"auto", ValueHome::kAuto}, {"host", ValueHome::kHost}, {"device", ValueHome::kDevice}},
      "Where values live; auto: on the device while they fit its memory (a CPU's: in place)");
  rows.choice("--hidden-home", options.hidden_home,
              {{"auto", HiddenHome::kAuto}, {"host", HiddenHome::kHost}, {"device", HiddenHome::kDevice}},
              "Where a prompt's hidden states lie beside a GPU; auto: on it, unless something else gains by the place");
  rows.choice("--host-attention", options.host_attention,
              {{"off", HostAttention::kOff}, {"on", HostAttention::kOn}, {"auto", HostAttention::kAuto}},
              "The host attends what it holds instead of sending it; auto: layers where a trial was faster");
  rows.flag("--strict", options.strict, "Refuse what is otherwise a warning");
}

template <typename Rows>
void add_micro_batches_option(Rows& rows, MicroBatches& micro_batches) {
  rows.choice("--micro-batches", micro_batches,
              {{"auto", MicroBatches::kAuto}, {"1", MicroBatches::kOne}, {"2", MicroBatches::kTwo}},
              "Batches: parts of a step, of which one is computed while the other fetches; auto: 2 "
              "where that gains (CUDA)");
}

template <typename Rows>
void add_logprobs_option(Rows& rows, int64_t& n_logprobs) {
  rows.integer("--logprobs", n_logprobs, -1, kMaxTopLogprobs,
               "Log probabilities of what is generated, and of so many of the most likely; -1: none");
}

template <typename Rows>
void add_form_option(Rows& rows, const char* name, const char* type, AnswerForm& form, AnswerForm::Kind kind,
                     const char* help, bool (*is_itself)(const std::string&)) {
  rows.value(name, type, "", help, [&form, kind, is_itself](const std::string& text) {
    if (form.kind != AnswerForm::Kind::kFree && form.kind != kind) {
      fail(ErrorKind::kUsage, "expected one of json-schema, regex and grammar, found a second one");
    }
    constexpr size_t kMostBytes = size_t{1} << 20;
    try {
      form = {.kind = kind, .text = is_itself(text) ? text : read_text_file(text, kMostBytes)};
    } catch (const Error& error) {
      fail(ErrorKind::kUsage, "{}", error.what());
    }
  });
}

// What holds answers to a form: given itself, or a file that has it.
template <typename Rows>
void add_form_options(Rows& rows, AnswerForm& form) {
  rows.section("Structured output");
  add_form_option(rows, "-j,--json-schema", "FILE|JSON", form, AnswerForm::Kind::kJsonSchema,
                  "Hold answers to JSON that satisfies this schema; {}: any JSON",
                  [](const std::string& text) { return text.find_first_of('{') == text.find_first_not_of(" \n\t"); });
  add_form_option(rows, "--regex", "TEXT", form, AnswerForm::Kind::kRegex,
                  "Hold answers to what this pattern matches from end to end", [](const std::string&) { return true; });
  add_form_option(rows, "--grammar", "FILE|GBNF", form, AnswerForm::Kind::kGrammar,
                  "Hold answers to a grammar, in llama.cpp's notation",
                  [](const std::string& text) { return text.find("::=") != std::string::npos; });
}

template <typename Rows>
void add_sampling_options(Rows& rows, SamplingRequest& wish) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  rows.section("Sampling (default: generation_config.json, else greedy)");
  rows.number("--temp,--temperature", wish.temperature, 0, kInfinity, "Temperature; 0: greedy");
  rows.integer("--top-k", wish.top_k, 0, INT32_MAX, "Keep the K most likely; 0: off");
  rows.number("--top-p", wish.top_p, 0, 1, "Keep the most likely up to this probability; 1: off");
  rows.number("--min-p", wish.min_p, 0, 1, "Drop what is below this share of the best; 0: off");
  rows.integer("-s,--seed", wish.seed, -1, INT64_MAX, "Seed; -1: random, and printed");
  rows.number("--repeat-penalty", wish.repeat_penalty, 0.01, 1000,
              "Penalty of repeated tokens; 1: off");
  rows.tokens("--repeat-last-n", wish.repeat_last_n, -1, INT64_MAX,
              "Tokens that the penalty looks back on; -1: all [64]");
  rows.number("--presence-penalty", wish.presence_penalty, -100, 100,
              "Subtracted from the logit of what was generated; 0: off");
  rows.number("--frequency-penalty", wish.frequency_penalty, -100, 100,
              "Subtracted for each time that it was generated; 0: off");
  rows.biases("--logit-bias", wish.logit_bias,
              "Add to the logits of tokens: 15043+1,29871-2.5; 13-inf: never that one");
}

}  // namespace tiercel
