// tiercel eval: how much a composition of selection loses, by tasks and against dense attention.
#include <filesystem>
#include <fstream>
#include <numeric>

#include "engine/base/check.h"
#include "engine/presets.h"
#include "engine/text/tokenizer.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/eval/evaluate.h"
#include "tools/eval/tune.h"
#include "tools/output_file.h"
#include "tools/prompt.h"
#include "tools/session_flags.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

constexpr const char* kEvalDetails =
    "tasks (RULER, arXiv 2404.06654, and records):\n"
    "  single          one needle in prose\n"
    "  multikey-1      needles with different keys in prose: four, or one per depth\n"
    "  multikey-2, -3  nothing but needles; -3 with long keys and values\n"
    "  multivalue      four values of one key\n"
    "  multiquery      four keys at once\n"
    "  variables       a chain of five variables\n"
    "  common-words    the ten most common words of a list\n"
    "  frequent-words  the three most frequent coded words\n"
    "  records         key-value retrieval from a prompt of nothing but records\n"
    "\n"
    "A composition is a preset and flags that change it: --presets \"shadow,quest --chunk-size "
    "32\".\n"
    "Without --presets it is what the attention flags say. --budgets are tokens selected per KV "
    "head;\n"
    "--totals count what is always attended too; --bytes are what a sequence keeps on the device.\n"
    "\n"
    "--compare steps every composition over the greedy tokens of the reference: KL divergence of "
    "the\n"
    "next token (nats), agreement of the most likely one, attention mass covered per layer.\n"
    "--tune takes a prompt (-p, -f) instead of tasks and looks for the composition that loses "
    "least\n"
    "within --device-memory and --host-memory: of those that lose at most 10 % or 0.0001 nats more\n"
    "than the least, the fastest (or, within 5 % of its time, the one that loses least).\n"
    "The reference prefills densely, unless --prefill select is given: then both do not.\n"
    "Scores are shares of the expected strings that occur in the answer, or of answers whose "
    "first\n"
    "line is exact (recall style). Tables go to stdout.\n"
    "Ctrl-C gives the results of the prompts that every composition has answered; exit code 130.\n"
    "\n"
    "Examples:\n"
    "  tiercel eval -m MODEL --lengths 4K,16K --presets shadow,quest --budgets 512,2048\n"
    "  tiercel eval -m MODEL --tasks single --lengths 16K --depths 0,25,50,75,100 --compare dense \\\n"
    "    --svg grid.svg --json grid.json\n"
    "  tiercel eval -m MODEL --tune -f my-prompt.txt --device-memory 8GiB\n";

struct EvalFlags {
  ModelFlags model;
  PromptFlags prompt;
  SessionOptions session;
  std::string tasks = "all", lengths = "4K", depths;
  std::optional<std::string> text, presets, sweep, budgets, totals, bytes, json, svg;
  std::optional<EvalStyle> style;
  int64_t samples = 1, seed = 0, steps = 32;
  ReferenceKind compare = ReferenceKind::kNone;
  std::optional<double> max_loss;
  bool separate = false, tune = false, quiet = false;
  std::vector<std::vector<std::string>> given;  // of the session's flags, for compositions

  bool parse(int argc, char** argv) {
    Flags flags("eval", "What a composition loses: tasks, and distance from dense attention.",
                kEvalDetails);
    model.add_to(flags);
    flags.section("Tasks");
    flags.text("--tasks", tasks, "Families, separated by commas; all: those that the style knows");
    flags.text("--lengths", lengths, "Prompt lengths in TOKENS, separated by commas");
    flags.text("--depths", depths,
               "Depths of what is asked for in percent: 0,50,100 or 0,10,..,100; default: drawn");
    flags.integer("--samples", samples, 1, 100000, "Samples per task and length");
    flags.integer("-s,--seed", seed, 0, Flags::kNoLimit, "The same seed gives the same prompts");
    flags.value("--style", "auto|plain|recall", "auto",
                "Wording; recall: as tools/demo/recall-4m was trained; auto: by the model",
                [this](const std::string& text) { set_style(text); });
    flags.file("--text", text, Flags::FileUse::kRead,
               "Prose to hide needles in: this file (-: stdin)");
    flags.section("Compositions and budgets");
    flags.text("--presets", presets, "Compositions, separated by commas");
    flags.text("--sweep", sweep,
               "Each of them with these values of a flag: slots=1,2,4,8; reuse=0.5,0.9");
    flags.text("--budgets", budgets, "Selected TOKENS, separated by commas; all: everything");
    flags.text("--totals", totals, "Selected and protected TOKENS together");
    flags.text("--bytes", bytes, "Device bytes of the sequence");
    flags.choice("--compare", compare,
                 {{"none", ReferenceKind::kNone},
                  {"dense", ReferenceKind::kDense},
                  {"exact", ReferenceKind::kExact}},
                 "Reference; exact: all tokens selected, with exact keys");
    flags.tokens("-n,--compare-steps", steps, 1, 1 << 20, "Steps of an answer that are compared");
    flags.flag("--separate", separate,
               "Prefill anew for every budget, with a selection cache of its own size");
    flags.section("Tuning");
    flags.flag("--tune", tune, "Find the best composition for a prompt within the memory limits");
    flags.number("--max-loss", max_loss, 0, 1e9,
                 "The fastest whose KL divergence is at most this; default: the least loss");
    prompt.add_to(flags, false);
    add_session_flags(flags, session);
    flags.section("Output");
    flags.file("--json", json, Flags::FileUse::kWritten,
               "Everything as one JSON object, to this file; -: stdout, no tables");
    flags.file("--svg", svg, Flags::FileUse::kWritten,
               "A picture of the grid, and of lines over the budget, to this file");
    flags.flag("-q,--quiet", quiet, "Only warnings and errors on stderr");
    if (!flags.parse(argc, argv)) return false;
    given = given_for_compositions(flags);
    return true;
  }
  CompositionBase base() const { return {session, given}; }

 private:
  void set_style(const std::string& text) {
    style.reset();
    if (text == "plain") style = EvalStyle::kPlain;
    if (text == "recall") style = EvalStyle::kRecall;
    if (!style && text != "auto") refuse_choice(text, {"auto", "plain", "recall"});
  }
};

// The demo model says in its README's first line who it is.
EvalStyle style_of(const std::string& directory) {
  std::ifstream file(std::filesystem::path(directory) / "README.md");
  std::string line;
  return std::getline(file, line) && line.starts_with("# recall-") ? EvalStyle::kRecall
                                                                   : EvalStyle::kPlain;
}

std::vector<EvalTask> tasks_of(const EvalFlags& flags, EvalStyle style, const Console& console) {
  std::vector<EvalTask> tasks;
  if (flags.tasks == "all") {
    for (int i = 0; i < kNumEvalTasks; ++i) {
      if (has_form(style, static_cast<EvalTask>(i))) tasks.push_back(static_cast<EvalTask>(i));
    }
    if (tasks.size() < kNumEvalTasks) {
      console.info("the {} style knows {} of {} tasks; name others in --tasks", name_of(style),
                   tasks.size(), kNumEvalTasks);
    }
    return tasks;
  }
  tasks = parse_list<EvalTask>("--tasks", flags.tasks, parse_task);
  for (const EvalTask task : tasks) {
    if (!has_form(style, task)) {
      console.warn("{}: the {} style has no form of it; it is asked plainly", name_of(task),
                   name_of(style));
    }
  }
  return tasks;
}

// "0,10,..,100": two dots stand for what continues the two before them up to the one behind.
std::vector<double> parse_depths(const std::string& text) {
  if (text.empty()) return {};
  std::vector<double> depths;
  bool dots = false;
  const auto add = [&](std::string_view item) {
    if (item == "..") {
      if (depths.size() < 2 || dots) {
        fail(ErrorKind::kUsage, "expected two depths in front of '..', found '{}'", text);
      }
      dots = true;
      return 0;
    }
    const double depth = parse_number(item, 0, 100) / 100;
    const size_t n = depths.size();
    if (dots) {
      const double step = depths[n - 1] - depths[n - 2];
      if (!(step > 0.0005)) fail(ErrorKind::kUsage, "expected ascending depths, found '{}'", text);
      // Integer steps: sums of rounded ones would drift away from the depths they are named after.
      for (int i = 1; depths[n - 1] + i * step < depth - step / 2; ++i) {
        depths.push_back(std::round(1e4 * (depths[n - 1] + i * step)) / 1e4);
      }
      dots = false;
    }
    if (!depths.empty() && depth <= depths.back()) {
      fail(ErrorKind::kUsage, "expected ascending depths, found '{}'", text);
    }
    depths.push_back(depth);
    return 0;
  };
  parse_list<int>("--depths", text, add);
  if (dots) fail(ErrorKind::kUsage, "--depths: expected a depth behind '..', found none");
  return depths;
}

std::vector<BudgetWish> wishes_of(const EvalFlags& flags) {
  if (static_cast<int>(flags.budgets.has_value()) + static_cast<int>(flags.totals.has_value()) +
          static_cast<int>(flags.bytes.has_value()) >
      1) {
    fail(ErrorKind::kUsage, "--budgets, --totals and --bytes: expected one of them, found several");
  }
  using Kind = BudgetWish::Kind;
  if (flags.budgets) {
    return parse_list<BudgetWish>("--budgets", *flags.budgets, [](std::string_view text) {
      return BudgetWish{Kind::kSelected, text == "all" ? kBudgetAll : parse_tokens(text)};
    });
  }
  if (flags.totals) {
    return parse_list<BudgetWish>("--totals", *flags.totals, [](std::string_view text) {
      return BudgetWish{Kind::kTotal, parse_tokens(text)};
    });
  }
  if (flags.bytes) {
    return parse_list<BudgetWish>("--bytes", *flags.bytes, [](std::string_view text) {
      return BudgetWish{Kind::kBytes, parse_size(text)};
    });
  }
  if (!flags.tune) return {BudgetWish{}};
  return {{Kind::kSelected, 512},
          {Kind::kSelected, 1024},
          {Kind::kSelected, 2048},
          {Kind::kSelected, 4096}};
}

// Where the results go; checked before the work.
struct Outputs {
  OutputFile json, svg;
  bool json_to_stdout = false;

  explicit Outputs(const EvalFlags& flags) {
    json_to_stdout = flags.json && *flags.json == "-";
    if (flags.json && !json_to_stdout) json = OutputFile(*flags.json, "--json");
    if (flags.svg) svg = OutputFile(*flags.svg, "--svg");
  }
  void write(const std::string& tables, const std::string& json_text, const std::string& picture = {}) const {
    take_all([&] { print_result(json_to_stdout ? json_text : tables); },
             [&] {
               if (json.wanted()) json.write(json_text);
             },
             [&] {
               if (svg.wanted()) svg.write(picture);
             });
  }
};

int run_tune(const EvalFlags& flags, const Tokenizer& tokenizer, const Console& console) {
  if (flags.svg) fail(ErrorKind::kUsage, "--svg: expected tasks to draw, found --tune");
  const Outputs outputs(flags);
  TuneRequest request{.model = {}, .tokenizer = tokenizer, .prompt = {}};
  request.wishes = wishes_of(flags);
  request.base = flags.base();
  request.base.options.audit = 0;
  request.steps = flags.steps;
  request.max_loss = flags.max_loss;
  if (flags.presets) {
    request.compositions = parse_list<std::string>(
        "--presets", *flags.presets,
        [&](std::string_view s) { return parse_composition(s, request.base).name; });
  }
  request.prompt = tokenizer.encode(flags.prompt.read(console, flags.session.strict),
                                    {.add_special = true, .parse_special = false});
  if (request.prompt.size() < 2) {
    fail(ErrorKind::kUsage, "expected a prompt of at least 2 tokens, found {}",
         request.prompt.size());
  }
  request.model = flags.model.open({.session = flags.session, .n_prompt = std::ssize(request.prompt)});
  const TuneResult result = tune(request, console);
  outputs.write(tune_table(result, flags.model.directory),
                tune_json(result, flags.model.directory));
  return 0;
}

// A number, or tokens.
double parse_swept(std::string_view text) {
  if (text.ends_with('K') || text.ends_with('M')) return static_cast<double>(parse_tokens(text));
  return parse_number(text, -1e12, 1e12);
}

// "slots=1,2,4": every composition once with each value.
void sweep_compositions(const std::string& sweep, const CompositionBase& base,
                        EvalRequest& request) {
  const size_t equals = sweep.find('=');
  if (equals == 0 || equals == std::string::npos) {
    fail(ErrorKind::kUsage,
         "--sweep: expected a flag and its values, as in slots=1,2,4, found '{}'", sweep);
  }
  request.swept_flag = sweep.substr(0, equals);
  const std::vector<std::string> values =
      parse_list<std::string>("--sweep", sweep.substr(equals + 1), [](std::string_view value) {
        parse_swept(value);
        return std::string(value);
      });
  std::vector<EvalComposition> swept;
  for (const EvalComposition& from : request.compositions) {
    for (const std::string& value : values) {
      swept.push_back(
          parse_composition(fmt::format("{} --{} {}", from.name, request.swept_flag, value), base));
      swept.back().swept_from = from.name;
      swept.back().swept_to = parse_swept(value);
    }
  }
  request.compositions = swept;
}

int run_tasks(const EvalFlags& flags, const Tokenizer& tokenizer, const Console& console) {
  if (flags.prompt.given()) {
    fail(ErrorKind::kUsage,
         "--prompt and --file: expected --tune with them, found none; --text gives "
         "the tasks other prose");
  }
  const Outputs outputs(flags);
  EvalRequest request{.model = {}, .tokenizer = tokenizer};
  request.style = flags.style.value_or(style_of(flags.model.directory));
  request.tasks = tasks_of(flags, request.style, console);
  request.lengths = parse_list<int64_t>(
      "--lengths", flags.lengths, [](std::string_view text) { return parse_tokens(text); });
  request.depths = parse_depths(flags.depths);
  request.n_samples = flags.samples;
  request.seed = static_cast<uint64_t>(flags.seed);
  request.base = flags.session;
  request.wishes = wishes_of(flags);
  request.reference = flags.compare;
  request.compare_steps = flags.steps;
  request.separate = flags.separate;
  if (flags.presets) {
    request.compositions = parse_list<EvalComposition>(
        "--presets", *flags.presets,
        [&](std::string_view spec) { return parse_composition(spec, flags.base()); });
  } else {
    request.compositions = {{name_of(flags.session.attention), flags.session}};
  }
  if (flags.sweep) sweep_compositions(*flags.sweep, flags.base(), request);
  if (flags.text) {
    request.text = read_input(*flags.text, "--text");
    check_utf8(*request.text, *flags.text, console, flags.session.strict);
  }
  request.model = flags.model.open({.session = flags.session, .n_prompt = std::ranges::max(request.lengths)});
  stop_if_requested();
  EvalResults results = evaluate(request, console);
  results.model = flags.model.directory;
  if (results.interrupted) save_before_stop();
  outputs.write(eval_tables(results), eval_json(results), flags.svg ? eval_svg(results) : "");
  return results.interrupted ? static_cast<int>(ErrorKind::kInterrupted) : 0;
}

}  // namespace

int command_eval(int argc, char** argv) {
  EvalFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  refuse_drafts(flags.session, "eval");
  const Console console(flags.quiet);
  flags.model.check();
  flags.session.n_threads = static_cast<int>(flags.model.n_threads);
  // What is fetched is part of the results, so a CPU that nobody limits has two tiers all the same.
  if (!flags.tune && flags.model.backend() == BackendKind::kCpu && flags.session.device_memory == 0 &&
      flags.session.value_home == ValueHome::kAuto) {
    flags.session.value_home = ValueHome::kHost;
  }
  const Tokenizer tokenizer = Tokenizer::load(flags.model.directory);
  return flags.tune ? run_tune(flags, tokenizer, console) : run_tasks(flags, tokenizer, console);
}

}  // namespace tiercel
