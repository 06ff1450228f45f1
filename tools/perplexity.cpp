// tiercel perplexity: how well the model predicts a text.
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/option_rows.h"
#include "engine/session.h"
#include "engine/text/tokenizer.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/progress.h"
#include "tools/prompt.h"
#include "tools/report.h"
#include "tools/session_flags.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

constexpr const char* kPerplexityDetails =
    "With -c N the text is cut into windows of N tokens that know nothing of each other; each "
    "begins "
    "with the begin-of-text token where the tokenizer adds one. Without it the text is one "
    "sequence.\n"
    "--json prints {tokens, logprobs (natural log; null for the first of a window), perplexity, "
    "standard_error}.\n"
    "\n"
    "Example:\n"
    "  tiercel perplexity -m MODEL -f book.txt -c 4096\n";

struct Score {
  std::vector<int32_t> tokens;
  std::vector<double> logprobs;  // per token; NaN for the first of a window
  int64_t n_scored = 0;
  double sum = 0, sum_of_squares = 0;

  void add(std::span<const int32_t> window, std::span<const double> window_logprobs) {
    tokens.insert(tokens.end(), window.begin(), window.end());
    logprobs.push_back(std::nan(""));
    for (const double logprob : window_logprobs) {
      logprobs.push_back(logprob);
      sum -= logprob;
      sum_of_squares += logprob * logprob;
      ++n_scored;
    }
  }
  double mean() const { return sum / static_cast<double>(n_scored); }
  double perplexity() const { return std::exp(mean()); }
  // Of the perplexity: its derivative times the standard error of the mean.
  double standard_error() const {
    if (n_scored < 2) return std::nan("");
    const auto n = static_cast<double>(n_scored);
    const double variance = std::max(0.0, sum_of_squares / n - mean() * mean()) * n / (n - 1);
    return perplexity() * std::sqrt(variance / n);
  }
};

// Windows of `ids`, each led by `lead` (empty, or the begin-of-text token). A last window without
// anything to predict is left out.
std::vector<std::vector<int32_t>> cut(const std::vector<int32_t>& ids,
                                      const std::vector<int32_t>& lead, int64_t window) {
  const size_t body = window > 0 ? static_cast<size_t>(window) - lead.size() : ids.size();
  std::vector<std::vector<int32_t>> windows;
  for (size_t i = 0; i < ids.size(); i += body) {
    std::vector<int32_t> one = lead;
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(i);
    one.insert(one.end(), first,
               first + static_cast<std::ptrdiff_t>(std::min(body, ids.size() - i)));
    if (one.size() >= 2) windows.push_back(std::move(one));
  }
  return windows;
}

void score_window(const std::shared_ptr<Model>& model, const SessionPlan& plan,
                  const std::vector<int32_t>& ids, const Console& console, Score& score) {
  const auto session = Session::open(model, plan);
  std::vector<double> logprobs(ids.size() - 1);
  ProgressLine line(console);
  if (!session->prefill_logprobs(ids, logprobs,
                                 [&](const Progress& p) { return line.update(p); })) {
    fail(ErrorKind::kInterrupted, "interrupted");
  }
  score.add(ids, logprobs);
}

// Every token is scored by the prefill: nothing that concerns a decode step, or how its memory is
// kept, changes the result.
void warn_of_unused(const Flags& flags, const SessionOptions& options, const Console& console) {
  SessionOptions ignored;
  Flags of_steps("perplexity", "What a step selects.");
  of_steps.without_twin([&] {
    add_preset_option(of_steps, ignored);
    add_selection_options(of_steps, ignored.selection);
  });
  // A selecting prefill cuts the prompt and protects its ends as steps would.
  static const std::set<std::string> kOfPrefill = {"--sinks", "--recent", "--chunk-size",
                                                   "--index"};
  std::string names;
  for (const std::vector<std::string>& flag : flags.given_of(of_steps)) {
    if (flag[0] == "--attention" && options.attention == AttentionMode::kDense) continue;
    if (options.prefill == PrefillMode::kSelect && kOfPrefill.contains(flag[0])) continue;
    names += (names.empty() ? "" : ", ") + flag[0];
  }
  if (names.empty()) return;
  console.warn_or_refuse(
      options.strict,
      fmt::format(
          "{}: of no use to perplexity, which scores what the prefill computes; --prefill select "
          "and --prefill-budget matter, and tiercel eval measures what selection loses",
          names));
}

void print(const Score& score, bool json) {
  if (!json) {
    print_result(fmt::format("perplexity {:.4f} +/- {:.4f} over {} tokens\n", score.perplexity(),
                             score.standard_error(), score.n_scored));
    return;
  }
  // nlohmann writes NaN as null.
  const nlohmann::ordered_json result = {{"tokens", score.tokens},
                                         {"logprobs", score.logprobs},
                                         {"perplexity", score.perplexity()},
                                         {"standard_error", score.standard_error()}};
  print_result(result.dump() + "\n");
}

}  // namespace

int command_perplexity(int argc, char** argv) {
  ModelFlags model_flags;
  PromptFlags prompt;
  SessionOptions options;
  bool json = false, no_bos = false, quiet = false;
  Flags flags("perplexity", "How well the model predicts a text.", kPerplexityDetails);
  model_flags.add_to(flags);
  prompt.add_to(flags, false);
  flags.flag("--no-bos", no_bos, "Do not put the begin-of-text token in front");
  flags.section("Output");
  flags.flag("--json", json, "Print one JSON object with every token's log probability");
  flags.flag("-q,--quiet", quiet, "Only warnings and errors on stderr");
  add_session_flags(flags, options);
  if (!flags.parse(argc, argv)) return 0;
  refuse_drafts(options, "perplexity");
  const Console console(quiet);
  model_flags.check();
  warn_of_unused(flags, options, console);
  const std::string text = prompt.read(console, options.strict);
  options.n_threads = static_cast<int>(model_flags.n_threads);

  const Tokenizer tokenizer = Tokenizer::load(model_flags.directory);
  const EncodeOptions plain{.add_special = false, .parse_special = false};
  std::vector<int32_t> lead;
  if (!no_bos) lead = tokenizer.encode("", {.add_special = true, .parse_special = false});
  const std::vector<int32_t> ids = tokenizer.encode(text, plain);
  const int64_t window = options.context;
  if (window > 0 && window < static_cast<int64_t>(lead.size()) + 2) {
    fail(ErrorKind::kUsage, "--ctx-size: expected at least {} tokens per window, found {}",
         lead.size() + 2, window);
  }
  const auto windows = cut(ids, lead, window);
  if (windows.empty()) fail(ErrorKind::kUsage, "the text has no token to predict");
  stop_if_requested();

  const auto longest = std::ranges::max(windows, {}, [](const auto& one) { return std::ssize(one); }).size();
  const auto model =
      model_flags.open({.session = options, .n_prompt = static_cast<int64_t>(longest), .logprobs = true, .is_certain = true});
  Score score;
  for (size_t i = 0; i < windows.size(); ++i) {
    stop_if_requested();
    const auto n = static_cast<int64_t>(windows[i].size());
    options.context = n;
    const SessionPlan plan = Session::plan(*model, options, n, 0, /*logprobs=*/true);
    if (i == 0) print_plan(plan, n, console);
    score_window(model, plan, windows[i], console, score);
    if (windows.size() > 1) {
      console.info("window {} of {}: perplexity so far {:.4f}", i + 1, windows.size(),
                   score.perplexity());
    }
  }
  print(score, json);
  return 0;
}

}  // namespace tiercel
