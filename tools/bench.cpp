// tiercel bench: how long prefill and decode take at given lengths, one sequence at a time.
#include <random>

#include "engine/base/check.h"
#include "engine/tokenizer.h"
#include "tools/bench_report.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/progress.h"
#include "tools/prompt.h"
#include "tools/session_flags.h"
#include "tools/signals.h"
#include "tools/stopwatch.h"

namespace tiercel {
namespace {

constexpr const char* kDetails =
    "The table goes to stdout. Prompts are random tokens unless -f gives a text; selection finds "
    "no\n"
    "locality in random tokens, so its hit rate means nothing then.\n"
    "--imposed-hit-rate makes the selections up, with a given share of chunks kept from step to "
    "step:\n"
    "for --synthetic only, and marked as imposed in the output.\n";

struct BenchFlags {
  ModelFlags model;
  SessionOptions session;
  std::string prompts = "512", steps = "128";
  std::optional<std::string> file;
  int64_t repetitions = 3;
  BenchFormat format = BenchFormat::kMarkdown;

  bool parse(int argc, char** argv) {
    Flags flags("bench", "Time of prefill and decode at given lengths.", kDetails);
    model.add_to(flags, /*with_synthetic=*/true);
    flags.section("Measurement");
    flags.text("-p,--n-prompt", prompts, "Prompt lengths in tokens, separated by commas");
    flags.text("-n,--n-gen", steps, "Tokens to generate behind each prompt; 0: prefill only");
    flags.text("-f,--file", file, "Take the prompts from the beginning of this text");
    flags.integer("-r,--repetitions", repetitions, 1, 1000, "Repetitions of each test");
    flags.choice("-o,--output", format,
                 {{"md", BenchFormat::kMarkdown},
                  {"csv", BenchFormat::kCsv},
                  {"json", BenchFormat::kJson},
                  {"jsonl", BenchFormat::kJsonLines}},
                 "Format of the table");
    flags.number("--imposed-hit-rate", session.imposed_hit_rate, -1, 1,
                 "Make selections up, keeping this share of them from step to step");
    add_session_flags(flags, session);
    return flags.parse(argc, argv);
  }
};

// The first n tokens of a text, or random ones.
class TokenSource {
 public:
  TokenSource(const BenchFlags& flags, const ModelConfig& config, const Console& console)
      : vocab_(config.vocab_size) {
    if (!flags.file) return;
    if (flags.model.directory.empty()) {
      fail(ErrorKind::kUsage, "-f: a synthetic model has no tokenizer; leave -f out or add -m DIR");
    }
    const std::string text = read_input(*flags.file, "-f");
    check_utf8(text, *flags.file, console, flags.session.strict);
    ids_ = Tokenizer::load(flags.model.directory).encode(text, {.add_special = true});
  }

  bool random() const { return ids_.empty(); }

  std::vector<int32_t> take(int64_t n) const {
    std::vector<int32_t> ids(static_cast<size_t>(n));
    if (random()) {
      std::mt19937_64 generator(1);
      std::uniform_int_distribution<int32_t> token(0, static_cast<int32_t>(vocab_ - 1));
      for (int32_t& id : ids) id = token(generator);
      return ids;
    }
    if (static_cast<size_t>(n) > ids_.size()) {
      fail(ErrorKind::kUsage, "-p: expected at most the {} tokens of the text, found {}",
           ids_.size(), n);
    }
    return {ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(n)};
  }

 private:
  int64_t vocab_;
  std::vector<int32_t> ids_;
};

// One prompt and its continuation; adds to both rows. Returns what computed it.
std::string measure(const std::shared_ptr<Model>& model, const std::vector<int32_t>& ids,
                    const Console& console, BenchRow& prefill, BenchRow& decode) {
  const auto session = Session::open(model, prefill.plan);
  Stopwatch watch;
  {
    ProgressLine line(console);
    if (!session->prefill(ids, [&](const Progress& p) { return line.update(p); })) {
      stop_if_requested();
    }
  }
  Sampler greedy({}, model->config().vocab_size);
  const auto best = [&] { return session->sample(greedy, {}); };
  int32_t token = best();
  const double first = watch.seconds();
  prefill.seconds.push_back(first);
  double total = 0;
  for (int64_t i = 0; i < decode.n_gen; ++i) {
    watch = {};
    session->step(token);
    token = best();
    decode.token_seconds.push_back(watch.seconds());
    total += decode.token_seconds.back();
    stop_if_requested();
  }
  if (decode.n_gen > 0) decode.seconds.push_back(total);
  decode.selection = session->selection();
  decode.step_fetch_seconds = total;
  prefill.device_bytes_in_use = decode.device_bytes_in_use = session->device_bytes_in_use();
  return session->backend_description();
}

}  // namespace

int command_bench(int argc, char** argv) {
  BenchFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  flags.model.check();
  const auto at_least = [](int64_t low) {
    return [low](std::string_view text) { return parse_integer(text, low, int64_t{1} << 40); };
  };
  const std::vector<int64_t> prompts = parse_list<int64_t>("-p", flags.prompts, at_least(1));
  const std::vector<int64_t> steps = parse_list<int64_t>("-n", flags.steps, at_least(0));
  if (flags.session.imposed_hit_rate >= 0 && flags.model.synthetic.empty()) {
    fail(ErrorKind::kUsage,
         "--imposed-hit-rate: expected --synthetic, found a model; its own "
         "selections can be measured");
  }
  const Console console(false);
  flags.session.n_threads = static_cast<int>(flags.model.n_threads);
  const ModelConfig config = flags.model.config();
  const TokenSource source(flags, config, console);
  const auto model = flags.model.open();
  stop_if_requested();

  BenchSetup setup{.model = flags.model.name(), .backend = {}};
  setup.n_parameters = model->parameter_count();
  setup.weight_bytes = model->weight_bytes();
  setup.synthetic = !flags.model.synthetic.empty();
  setup.random_tokens = source.random();
  std::vector<BenchRow> rows;
  for (const int64_t n_prompt : prompts) {
    for (const int64_t n_gen : steps) {
      BenchRow prefill, decode;
      prefill.n_prompt = decode.n_depth = n_prompt;
      decode.n_gen = n_gen;
      prefill.plan = Session::plan(*model, flags.session, n_prompt, n_gen);
      decode.plan = prefill.plan;
      const std::vector<int32_t> ids = source.take(n_prompt);
      for (int64_t i = 0; i < flags.repetitions; ++i) {
        console.info("bench: pp{} tg{}, {} of {}", n_prompt, n_gen, i + 1, flags.repetitions);
        setup.backend = measure(model, ids, console, prefill, decode);
      }
      prefill.time_to_first_token = decode.time_to_first_token = spread_of(prefill.seconds).mean;
      rows.push_back(prefill);
      if (n_gen > 0) rows.push_back(decode);
    }
  }
  if (setup.synthetic) {
    console.warning(
        "synthetic: random weights, so the text is noise; only the times mean something");
  }
  print_result(bench_text(setup, rows, flags.format));
  return 0;
}

}  // namespace tiercel
