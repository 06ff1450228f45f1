// tiercel bench: how long prefill and decode take at given lengths, for one sequence or for many.
#include <random>

#include "engine/base/check.h"
#include "engine/batch_plan.h"
#include "engine/option_rows.h"
#include "engine/text/tokenizer.h"
#include "tools/bench_batch.h"
#include "tools/bench_report.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/output_file.h"
#include "tools/progress.h"
#include "tools/prompt.h"
#include "tools/session_flags.h"
#include "tools/signals.h"
#include "tools/stopwatch.h"

namespace tiercel {
namespace {

constexpr const char* kBenchDetails =
    "Lists are separated by commas; 4K..64K*2 is 4K,8K,16K,32K,64K, and 8..32+8 is 8,16,24,32.\n"
    "With -b, so many sequences are prefilled and then decoded together; 'max' is as many as fit\n"
    "--device-memory and --host-memory. --compare dense,device measures the same for dense attention\n"
    "and for the same selection with everything on the device, each with as many sequences as fit.\n"
    "With -b and --behind, it is questions on one text that are measured: its prompt is prefilled once.\n"
    "With --behind alone, a text that is appended to a prompt, as a further turn is.\n"
    "The table goes to stdout. Prompts are random tokens unless -f gives a text; selection finds "
    "no\n"
    "locality in random tokens, so its hit rate means nothing then.\n"
    "--imposed-hit-rate makes the selections up, with a given share of chunks kept from step to "
    "step:\n"
    "for --synthetic only, and marked as imposed in the output.\n"
    "\n"
    "Examples:\n"
    "  tiercel bench -m MODEL -p 4K..64K*2 -n 64 -f book.txt\n"
    "  tiercel bench -m MODEL -p 32K -n 64 -b max --compare dense,device --device-memory 24GiB \\\n"
    "    -f book.txt -o json > batch.json\n"
    "  tiercel bench --from batch.json --picture batch.svg\n";

struct BenchFlags {
  ModelFlags model;
  SessionOptions session;
  std::string prompts = "512", steps = "128", depths, batches, compare;
  std::optional<std::string> file;
  std::string picture, from;
  int64_t repetitions = 3, n_behind = 0;
  MicroBatches micro_batches = MicroBatches::kAuto;
  BenchFormat format = BenchFormat::kMarkdown;

  bool parse(int argc, char** argv) {
    Flags flags("bench", "Time of prefill and decode at given lengths.", kBenchDetails);
    model.add_to(flags, /*with_synthetic=*/true);
    flags.section("Measurement");
    flags.text("-p,--n-prompt", prompts, "Prompt lengths in TOKENS: a list");
    flags.text("-n,--n-gen", steps, "Tokens to generate behind each prompt: a list; 0: prefill only");
    flags.text("-d,--n-depth", depths,
               "Lengths behind which to generate: a list; -p then is prefilled only");
    flags.text("-b,--batch", batches, "Sequences decoded together: a list; max: as many as fit");
    flags.tokens("--behind", n_behind, 0, kMaxOptionTokens,
                 "Append so many tokens to each prompt, before what is generated. With -b, all sequences "
                 "share the prompt, and each has so many of its own behind it; 0: they share nothing");
    add_micro_batches_option(flags, micro_batches);
    flags.text("--compare", compare, "With -b, measure beside it: dense, device");
    flags.file("--picture", picture, Flags::FileUse::kWritten,
               "With -b, write throughput as SVG to this file");
    flags.file("--from", from, Flags::FileUse::kRead,
               "Make the picture from this JSON of an earlier bench -b");
    flags.file("-f,--prompt-file,--file", file, Flags::FileUse::kRead,
               "Take the prompts from this text");
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

  // Those of several sequences differ: each begins somewhere else in the text.
  std::vector<int32_t> take(int64_t n, int64_t sequence = 0) const {
    std::vector<int32_t> ids(static_cast<size_t>(n));
    if (random()) {
      std::mt19937_64 generator(static_cast<uint64_t>(1 + sequence));
      std::uniform_int_distribution<int32_t> token(0, static_cast<int32_t>(vocab_ - 1));
      for (int32_t& id : ids) id = token(generator);
      return ids;
    }
    if (static_cast<size_t>(n) > ids_.size()) {
      fail(ErrorKind::kUsage, "-p: expected at most the {} tokens of the text, found {}",
           ids_.size(), n);
    }
    const int64_t places = static_cast<int64_t>(ids_.size()) - n + 1;
    const auto begin = ids_.begin() + static_cast<std::ptrdiff_t>(sequence * n % places);
    return {begin, begin + static_cast<std::ptrdiff_t>(n)};
  }

 private:
  int64_t vocab_;
  std::vector<int32_t> ids_;
};

// One prompt, a text behind it if there is one, and its continuation; adds to the rows. ids: of prompt and text.
// Returns what computed it.
std::string measure(const std::shared_ptr<Model>& model, const std::vector<int32_t>& ids,
                    const Console& console, BenchRow& prefill, BenchRow& text, BenchRow& decode) {
  const auto session = Session::open(model, prefill.plan);
  Stopwatch watch;
  const auto prompt = std::span(ids).first(static_cast<size_t>(prefill.n_prompt));
  {
    ProgressLine line(console);
    if (!session->prefill(prompt, [&](const Progress& p) { return line.update(p); })) {
      stop_if_requested();
    }
  }
  Sampler greedy({}, model->config().vocab_size);
  const auto best = [&] { return session->sample(greedy, {}); };
  int32_t token = best();
  const double first = watch.seconds();
  prefill.seconds.push_back(first);
  if (text.n_prompt > 0) {
    watch = {};
    ProgressLine line(console);
    if (!session->append(std::span(ids).subspan(prompt.size()), [&](const Progress& p) { return line.update(p); })) {
      stop_if_requested();
    }
    token = best();
    text.seconds.push_back(watch.seconds());
  }
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
  for (BenchRow* row : {&prefill, &text, &decode}) row->device_bytes_in_use = session->device_bytes_in_use();
  prefill.key_coding_seconds = session->key_coding_seconds();
  return session->backend_description();
}

// More than anyone measures in one call.
constexpr size_t kMaxCounts = 1000;

// A list of counts with ranges: "512", "4K,8K", "4K..64K*2", "8..32+8". zero: a word for 0, or empty.
std::vector<int64_t> parse_counts(const char* flag, const std::string& text, int64_t low, int64_t high = INT64_MAX,
                                  std::string_view zero = {}) {
  std::vector<int64_t> counts;
  const auto count_of = [&](std::string_view item) {
    const int64_t n = item == "0" ? 0 : parse_tokens(item);
    if (n < low) fail(ErrorKind::kUsage, "expected {} or more, found {}", low, item);
    if (n > high) fail(ErrorKind::kUsage, "expected at most {}, found {}", high, item);
    return n;
  };
  const auto add = [&](std::string_view item) {
    const size_t dots = item.find("..");
    if (dots == std::string_view::npos) {
      counts.push_back(!zero.empty() && item == zero ? 0 : count_of(item));
      return 0;
    }
    const int64_t first = count_of(item.substr(0, dots));
    const std::string_view rest = item.substr(dots + 2);
    const size_t sign = rest.find_first_of("*+");
    const int64_t last = count_of(rest.substr(0, sign));
    const bool times = sign == std::string_view::npos || rest[sign] == '*';
    const int64_t by = sign == std::string_view::npos
                           ? 2
                           : parse_integer(rest.substr(sign + 1), times ? 2 : 1, int64_t{1} << 40);
    if (first < 1 || last < first) {
      fail(ErrorKind::kUsage, "expected FIRST..LAST*FACTOR or FIRST..LAST+STEP, found '{}'", item);
    }
    for (int64_t n = first;; n = times ? n * by : n + by) {
      counts.push_back(n);
      if (counts.size() > kMaxCounts) fail(ErrorKind::kUsage, "expected at most {} counts, found {}", kMaxCounts, item);
      if (times ? n > last / by : n > last - by) break;  // the next one is beyond the last
    }
    return 0;
  };
  parse_list<int>(flag, text, add);
  return counts;
}

// Sequences; 0: as many as fit.
std::vector<int64_t> parse_batches(const std::string& text) {
  return parse_counts("-b", text, 1, kMaxSequences, /*zero=*/"max");
}

std::vector<BenchRival> parse_rivals(const std::string& text) {
  std::vector<BenchRival> rivals = {BenchRival::kNone};
  if (text.empty()) return rivals;
  parse_list<int>("--compare", text, [&](std::string_view item) {
    for (const BenchRival rival : {BenchRival::kDense, BenchRival::kDevice}) {
      if (item != name_of(rival)) continue;
      rivals.push_back(rival);
      return 0;
    }
    refuse_choice(item, {"dense", "device"});
  });
  return rivals;
}

void measure_batches(const BenchFlags& flags, const std::shared_ptr<Model>& model,
                     const TokenSource& source, const Console& console,
                     std::vector<BatchRow>& rows) {
  const bool shares = flags.n_behind > 0;
  for (const int64_t n_prompt : parse_counts("-p", flags.prompts, 1)) {
    const SharedPrefix prefix =
        shares ? std::make_shared<const std::vector<int32_t>>(source.take(n_prompt)) : nullptr;
    for (const int64_t n_gen : parse_counts("-n", flags.steps, 1)) {
      for (const BenchRival rival : parse_rivals(flags.compare)) {
        // A rival that fits fewer sequences than another batch of the list is measured once.
        int64_t measured = 0;
        for (const int64_t n : parse_batches(flags.batches)) {
          const BatchTest test{rival, n_prompt, flags.n_behind, n_gen};
          console.info("bench: pp{}{} tg{}, {} sequences{}", n_prompt,
                       shares ? fmt::format(" (shared) + {}", flags.n_behind) : "", n_gen,
                       n > 0 ? std::to_string(n) : "as many as fit",
                       rival == BenchRival::kNone ? "" : fmt::format(", {}", name_of(rival)));
          std::string refusal;
          const int64_t fits = largest_batch(*model, flags.session, test,
                                             n > 0 ? n : kMaxSequences, &refusal);
          if (fits == 0) console.warning(refusal);
          if (fits > 0 && fits < n) {
            console.warn_or_refuse(flags.session.strict,
                                   fmt::format("-b {}: {} fit and are measured; raise --device-memory or "
                                               "--host-memory, or try --value-codec int8",
                                               n, fits));
          }
          if (fits > 0 && fits == measured) continue;
          measured = fits;
          rows.push_back(measure_batch(
              model, flags.session, flags.micro_batches, test, fits, prefix,
              [&](int64_t i) { return source.take(test.n_own(), shares ? 1 + i : i); },
              console));
          rows.back().n_wanted = n;
          rows.back().refusal = refusal;
        }
      }
    }
  }
}

using SequenceTest = std::pair<int64_t, int64_t>;  // prompt, tokens behind it

// The longest sequence that is measured.
ExpectedLoad longest_of(const BenchFlags& flags) {
  ExpectedLoad load{.session = flags.session};
  for (const std::string* list : {&flags.prompts, &flags.depths}) {
    if (list->empty()) continue;
    load.n_prompt = std::max(load.n_prompt, std::ranges::max(parse_counts(list == &flags.prompts ? "-p" : "-d", *list, 1)));
  }
  load.n_new = std::ranges::max(parse_counts("-n", flags.steps, 0));
  if (flags.batches.empty()) {
    load.n_new += flags.n_behind;
    return load;
  }
  load.n_sequences = std::max<int64_t>(std::ranges::max(parse_batches(flags.batches)), 1);
  if (flags.n_behind > 0) {
    load.n_prompt += flags.n_behind;
    load.n_behind = flags.n_behind + load.n_new;
  }
  return load;
}

// Of one sequence each.
std::vector<SequenceTest> parse_tests(const BenchFlags& flags) {
  std::vector<SequenceTest> tests;
  const std::vector<int64_t> prompts = parse_counts("-p", flags.prompts, 1);
  const std::vector<int64_t> steps = parse_counts("-n", flags.steps, 0);
  const std::vector<int64_t> depths =
      flags.depths.empty() ? prompts : parse_counts("-d", flags.depths, 1);
  if (!flags.depths.empty()) {
    for (const int64_t n_prompt : prompts) tests.emplace_back(n_prompt, 0);
  }
  for (const int64_t depth : depths) {
    for (const int64_t n_gen : steps) tests.emplace_back(depth, n_gen);
  }
  return tests;
}

// What computed it goes into `backend`.
void measure_tests(const BenchFlags& flags, const std::vector<SequenceTest>& tests,
                   const std::shared_ptr<Model>& model, const TokenSource& source,
                   const Console& console, std::string& backend, std::vector<BenchRow>& rows) {
  for (const auto& [n_prompt, n_gen] : tests) {
    BenchRow prefill, text, decode;
    prefill.n_prompt = text.n_depth = n_prompt;
    text.n_prompt = flags.n_behind;
    decode.n_depth = n_prompt + flags.n_behind;
    decode.n_gen = n_gen;
    prefill.plan = Session::plan(*model, flags.session, n_prompt, flags.n_behind + n_gen);
    text.plan = decode.plan = prefill.plan;
    const std::vector<int32_t> ids = source.take(n_prompt + flags.n_behind);
    for (int64_t i = 0; i < flags.repetitions; ++i) {
      console.info("bench: pp{}{} tg{}, {} of {}", n_prompt,
                   flags.n_behind > 0 ? fmt::format(" + {}", flags.n_behind) : "", n_gen, i + 1, flags.repetitions);
      backend = measure(model, ids, console, prefill, text, decode);
    }
    prefill.time_to_first_token = spread_of(prefill.seconds).mean;
    text.time_to_first_token = spread_of(text.seconds).mean;
    decode.time_to_first_token = flags.n_behind > 0 ? text.time_to_first_token : prefill.time_to_first_token;
    rows.push_back(prefill);
    if (flags.n_behind > 0) rows.push_back(text);
    if (n_gen > 0) rows.push_back(decode);
  }
}

// What was measured is printed also where what follows is interrupted or fails.
template <typename Measure, typename Print>
void print_behind(Measure measure, Print print) {
  try {
    measure();
  } catch (const Error&) {
    print();
    throw;
  }
  print();
}

}  // namespace

int command_bench(int argc, char** argv) {
  BenchFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  refuse_drafts(flags.session, "bench");
  const OutputFile picture =
      flags.picture.empty() ? OutputFile() : OutputFile(flags.picture, "--picture");
  if (!flags.from.empty()) {
    if (!picture.wanted()) fail(ErrorKind::kUsage, "--from: expected --picture FILE beside it");
    picture.write(batch_picture(read_input(flags.from, "--from"), flags.from));
    return 0;
  }
  flags.model.check();
  const std::vector<SequenceTest> tests = parse_tests(flags);
  if (flags.batches.empty() && (!flags.compare.empty() || picture.wanted())) {
    fail(ErrorKind::kUsage, "--compare and --picture: expected -b beside them");
  }
  if (!flags.batches.empty() && !flags.depths.empty()) {
    fail(ErrorKind::kUsage, "-d: with -b every sequence decodes behind its -p tokens; leave it out");
  }
  if (!flags.batches.empty() && flags.session.audit > 0) {
    fail(ErrorKind::kUsage, "--audit: not of a batch; leave -b or it out");
  }
  if (flags.session.imposed_hit_rate >= 0 && flags.model.synthetic.empty()) {
    fail(ErrorKind::kUsage,
         "--imposed-hit-rate: expected --synthetic, found a model; its own "
         "selections can be measured");
  }
  const Console console(false);
  flags.session.n_threads = static_cast<int>(flags.model.n_threads);
  const ModelConfig config = flags.model.config();
  const TokenSource source(flags, config, console);
  const auto model = flags.model.open(longest_of(flags));
  if (model->config().host_layers > 0) {
    console.info("bench: the feed-forward weights of {} layers are in host memory", model->config().host_layers);
  }
  stop_if_requested();

  BenchSetup setup{.model = flags.model.name(), .backend = {}};
  setup.n_parameters = model->parameter_count();
  setup.weight_bytes = model->weight_bytes();
  setup.synthetic = !flags.model.synthetic.empty();
  setup.random_tokens = source.random();
  const auto warn = [&] {
    if (!setup.synthetic) return;
    console.warning(
        "synthetic: random weights, so the text is noise; only the times mean something");
  };
  if (!flags.batches.empty()) {
    std::vector<BatchRow> rows;
    print_behind([&] { measure_batches(flags, model, source, console, rows); },
                 [&] {
                   if (rows.empty()) return;
                   for (const BatchRow& row : rows) {
                     if (!row.backend.empty()) setup.backend = row.backend;
                   }
                   warn();
                   const auto draw = [&] {
                     if (!picture.wanted()) return;
                     picture.write(batch_picture(batch_text(setup, rows, BenchFormat::kJson), "--picture"));
                   };
                   take_all([&] { print_result(batch_text(setup, rows, flags.format)); }, draw);
                 });
    const bool any = std::any_of(rows.begin(), rows.end(),
                                 [](const BatchRow& row) { return row.n_sequences > 0; });
    return any ? 0 : static_cast<int>(ErrorKind::kDoesNotFit);  // the warnings say why
  }
  std::vector<BenchRow> rows;
  print_behind([&] { measure_tests(flags, tests, model, source, console, setup.backend, rows); },
               [&] {
                 if (rows.empty()) return;
                 warn();
                 print_result(bench_text(setup, rows, flags.format));
               });
  return 0;
}

}  // namespace tiercel
