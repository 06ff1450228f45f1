// tiercel batch: answer many prompts of a file together.
#include <algorithm>
#include <exception>
#include <set>

#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/batch_plan.h"
#include "engine/option_rows.h"
#include "engine/scheduler.h"
#include "tools/batch/answers.h"
#include "tools/batch/choice.h"
#include "tools/batch/report.h"
#include "tools/batch/requests.h"
#include "tools/chat_flags.h"
#include "tools/commands.h"
#include "tools/output_file.h"
#include "tools/progress.h"
#include "tools/prompt.h"
#include "tools/report.h"
#include "tools/session_flags.h"
#include "tools/signals.h"
#include "tools/stopwatch.h"

namespace tiercel {
namespace {

// clang-format off
constexpr const char* kBatchDetails =
    "A line of the file is a JSON object: {\"prompt\": TEXT or token ids} or, for a model with a chat\n"
    "template, {\"messages\": [{\"role\": \"user\", \"content\": TEXT}, ...]}. \"id\" is given back with\n"
    "the answer; \"max_tokens\", \"stop\", \"temperature\", \"top_k\", \"top_p\", \"min_p\", \"seed\",\n"
    "\"repeat_penalty\", \"repeat_last_n\", \"presence_penalty\", \"frequency_penalty\", \"logit_bias\"\n"
    "({\"15043\": 1, \"13\": -100}), \"logprobs\", \"ignore_eos\", and the form of the answer (\"response_format\",\n"
    "\"json_schema\", \"regex\", \"grammar\") hold for that line alone. A line may also be a\n"
    "request of OpenAI's batch format (\"custom_id\", \"url\", \"body\"), and is answered in it; a body may\n"
    "ask for \"n\" answers.\n"
    "Lines are answered together, as many as memory has room for. What a line is answered depends on\n"
    "the line and on the settings that are shown, not on what shares its batch; where --key-codec is\n"
    "chosen by what fits, those depend on memory, --parallel and the longest line. With --seed S, line\n"
    "n of the file draws with S + n - 1.\n"
    "With --share-prefix, lines that follow each other and begin alike (256 tokens or more, and half of\n"
    "each of them), and the answers to one line, share that beginning: it is prefilled once, and what is\n"
    "behind it selects from it as new tokens do. A line that --ctx-size has no room for is answered with an error.\n"
    "Answers are JSON lines too, in the order in which they end; \"line\" says which line of the file\n"
    "they are for. Each is written at once. Ctrl-C stops at the next token; --resume goes on with what\n"
    "is missing.\n"
    "exit codes: 0 all answered, 1 some were not (where all failed alike, their code) or an error,\n"
    "2 usage, 3 does not fit, 130 interrupted\n"
    "\n"
    "Examples:\n"
    "  tiercel batch -m MODEL -f questions.jsonl -o answers.jsonl -n 200\n"
    "  tiercel batch -m MODEL -f questions.jsonl -o answers.jsonl -n 200 --resume\n"
    "  tiercel batch -m MODEL -f questions.jsonl --prefix book.txt --share-prefix\n"
    "  jq -c '{prompt: .}' texts.json | tiercel batch -m MODEL -f - --chat | jq -r .text\n";
// clang-format on

struct BatchFlags {
  ModelFlags model;
  SessionOptions session;
  SamplingFlags sampling;
  std::string requests, answers = "-";
  std::optional<std::string> date, report, prefix, variables;
  std::vector<std::string> stops;
  int64_t n_predict = 128, parallel = 64, n_logprobs = -1;
  double max_gap = 0;
  MicroBatches micro_batches = MicroBatches::kAuto;
  bool resume = false, chat = false, no_bos = false, special = false, ignore_eos = false;
  bool share_prefix = false, has_thoughts = true;
  bool quiet = false;

  bool parse(int argc, char** argv) {
    Flags flags("batch", "Answer many prompts of a file together.", kBatchDetails);
    model.add_to(flags);
    flags.section("Requests and answers");
    flags.file("-f,--file", requests, Flags::FileUse::kRead,
               "File with a JSON object on each line; -: stdin");
    flags.file("-o,--output", answers, Flags::FileUse::kWritten, "File for the answers; -: stdout");
    flags.flag("--resume", resume, "Go on where the answers in that file end");
    flags.file("--prefix", prefix, Flags::FileUse::kRead,
               "File with text to put in front of every prompt, or of the first user's message");
    flags.flag("--share-prefix", share_prefix,
               "Prefill once what lines that follow each other begin with");
    flags.flag("--chat", chat,
               "A prompt is a user's message: put the model's chat template around it");
    flags.text(
        "--date", date,
        "YYYY-MM-DD, for templates that write a date (default: today's, if they ask for it)");
    add_template_variables_flag(flags, variables);
    add_thoughts_option(flags, has_thoughts);
    flags.flag("--no-bos", no_bos, "Do not put the begin-of-text token in front of a prompt");
    flags.flag("--special", special, "Read <|special|> tokens in prompts as such");
    flags.section("Generation");
    flags.tokens("-n,--n-predict,--max-tokens,--max-new-tokens", n_predict, 1, INT32_MAX,
                 "Tokens to generate for each line, at most");
    flags.flag("--ignore-eos", ignore_eos, "Go on after an end-of-text token");
    flags.texts("-r,--stop,--reverse-prompt", stops,
                "Stop where an answer says this, which is left out; may be given several times");
    sampling.add_to(flags);
    add_logprobs_option(flags, n_logprobs);
    flags.section("Batch");
    flags.integer("--parallel", parallel, 1, kMaxSequences, "Sequences decoded together, at most");
    flags.number("--max-gap", max_gap, 0, 1e9,
                 "Seconds of prefill between two decode steps; 0: prompts first");
    add_micro_batches_option(flags, micro_batches);
    add_session_flags(flags, session);
    flags.section("Output");
    flags.file("--report", report, Flags::FileUse::kWritten, "Write a JSON report to this file");
    flags.flag("-q,--quiet", quiet, "Only warnings and errors on stderr");
    return flags.parse(argc, argv);
  }
};

// Answers of one file, from its requests to the last of them.
class BatchJob {
 public:
  explicit BatchJob(BatchFlags& flags)
      : flags_(flags),
        console_(flags.quiet),
        report_file_(flags.report ? OutputFile(*flags.report, "--report") : OutputFile()),
        config_(load_config(flags.model.directory)),
        tokenizer_(Tokenizer::load(flags.model.directory)),
        line_(console_) {
    flags.session.n_threads = static_cast<int>(flags.model.n_threads);
  }

  int run() {
    const std::string text = read_input(flags_.requests, "-f");
    check_utf8(text, flags_.requests, console_, flags_.session.strict);
    std::string no_chat;
    const std::optional<ChatTemplate> chat = find_chat_template(flags_.model.directory, flags_.variables, no_chat);
    int64_t n_saved = 0;
    const BatchRequestReader reader = reader_of(chat, no_chat);  // what holds answers is its
    requests_ = reader.read(text, requests_name(), &n_saved);
    limit_to_context();
    unshare_across_rope();
    measure_requests();
    say_what_is_shared(n_saved);
    answers_.emplace(flags_.answers, flags_.resume);
    const size_t n_all = requests_.size();
    requests_ = answers_->unanswered(std::move(requests_));
    report_.model = flags_.model.directory;
    report_.n_requests = std::ssize(requests_);
    if (requests_.size() < n_all) {
      console_.info("resumed: {} of {} lines are answered", n_all - requests_.size(), n_all);
    }
    if (requests_.empty()) {
      if (report_file_.wanted()) report_file_.write(to_json(report_));
      return 0;
    }
    const auto can_answer = [](const BatchRequest& request) { return request.refused.empty(); };
    if (std::ranges::none_of(requests_, can_answer)) {
      answers_->drop_errors();
      for (BatchRequest& request : requests_) submit(request);
      answers_->sync();
      return finish();
    }
    ends_ = end_ids(config_, tokenizer_, chat ? &*chat : nullptr);
    stop_if_requested();
    const auto model =
        flags_.model.open({.session = flags_.session,
                           .n_prompt = max_prompt_,
                           .n_new = max_new_,
                           .n_sequences = n_parallel_,
                           .n_behind = max_behind_});
    stop_if_requested();
    open(model);
    answer_all();
    return finish();
  }

 private:
  BatchRequestReader reader_of(const std::optional<ChatTemplate>& chat, const std::string& no_chat) {
    const BatchRequestDefaults defaults{
        .n_new = flags_.n_predict,
        .ignore_eos = flags_.ignore_eos,
        .stops = flags_.stops,
        .sampling = flags_.sampling.wish(),
        .n_logprobs = flags_.n_logprobs,
        .bos = !flags_.no_bos,
        .special = flags_.special,
        .chat = flags_.chat,
        .prefix = read_prefix(),
        .share_prefixes = flags_.share_prefix,
        .date = chat_date_of(flags_.date, chat && chat->asks_for_date()),
        .has_thoughts = flags_.has_thoughts};
    return BatchRequestReader(config_, tokenizer_, chat ? &*chat : nullptr, no_chat, defaults);
  }

  std::string requests_name() const { return flags_.requests == "-" ? "stdin" : flags_.requests; }

  std::string read_prefix() const {
    if (!flags_.prefix) return {};
    if (*flags_.prefix == "-" && flags_.requests == "-") {
      fail(ErrorKind::kUsage, "--prefix and --file: only one of them can be stdin");
    }
    std::string text = read_input(*flags_.prefix, "--prefix");
    if (text.empty()) fail(ErrorKind::kUsage, "--prefix: {} is empty", *flags_.prefix);
    check_utf8(text, *flags_.prefix, console_, flags_.session.strict);
    return text;
  }

  // --ctx-size is the most that a prompt and its answer may have together.
  void limit_to_context() {
    if (flags_.session.context == 0) return;
    int64_t n_shortened = 0;
    for (BatchRequest& request : requests_) {
      const int64_t room = flags_.session.context - request.n_prompt();
      if (room < 1) {
        request.refused = fmt::format("the prompt has {} tokens, --ctx-size {} has room for {} and an answer",
                                      request.n_prompt(), flags_.session.context, flags_.session.context - 1);
        if (flags_.session.strict) {
          fail(ErrorKind::kUsage, "{}:{}: {}", requests_name(), request.line, request.refused);
        }
        continue;
      }
      n_shortened += request.n_new > room ? 1 : 0;
      request.n_new = std::min(request.n_new, room);
    }
    if (n_shortened == 0) return;
    console_.warn_or_refuse(
        flags_.session.strict,
        fmt::format("--ctx-size: {} of {} lines have room for fewer tokens than asked for",
                    n_shortened, requests_.size()));
  }

  // Behind a shared text all keys are turned as its are: where a line's answer makes its context one in which this
  // model turns them otherwise, it shares nothing.
  void unshare_across_rope() {
    for (BatchRequest& request : requests_) {
      if (request.prefix == nullptr) continue;
      const bool is_long = config_.rope.is_long(request.n_prompt() + request.n_new);
      if (is_long == config_.rope.is_long(request.n_prefix())) continue;
      request.prompt.insert(request.prompt.begin(), request.prefix->begin(), request.prefix->end());
      request.prefix.reset();
    }
  }

  // Of all lines, whether they are answered already or not: the plan, and with it the codecs that
  // are chosen by what fits, must be the same for those that are left.
  void measure_requests() {
    int64_t context = 0, n_answers = 0;
    bool all_share = true;
    for (const BatchRequest& request : requests_) {
      if (!request.refused.empty()) continue;
      const int64_t n_prompt = request.n_prompt();
      max_prompt_ = std::max(max_prompt_, n_prompt);
      max_new_ = std::max(max_new_, request.n_new);
      max_behind_ = std::max(max_behind_, std::ssize(request.prompt) + request.n_new);
      context = std::max(context, n_prompt + request.n_new);
      n_answers += request.n_answers;
      all_share &= request.prefix != nullptr;
    }
    if (!all_share) max_behind_ = 0;
    // The longest prompt need not be the one with the longest answer.
    if (flags_.session.context == 0) flags_.session.context = context;
    n_parallel_ = std::clamp<int64_t>(n_answers, 1, flags_.parallel);
  }

  void say_what_is_shared(int64_t n_saved) const {
    int64_t n_tokens = 0;
    for (const BatchRequest& request : requests_) n_tokens += request.n_prompt();
    if (flags_.share_prefix) {
      console_.info("shared: {} of {} tokens of prompts need not be prefilled again",
                    format_count(n_saved), format_count(n_tokens));
    } else if (2 * n_saved > n_tokens) {
      console_.info("lines begin alike: with --share-prefix {} of {} tokens of prompts would not be "
                    "prefilled again",
                    format_count(n_saved), format_count(n_tokens));
    }
  }

  void open(const std::shared_ptr<Model>& model) {
    int64_t n_tokens = 0;
    std::set<const void*> prefixes;
    for (const BatchRequest& request : requests_) {
      if (!request.refused.empty()) continue;
      n_tokens += request.n_prompt();
      n_wanted_ += request.n_answers * (std::ssize(request.prompt) + request.n_new);
      if (prefixes.insert(request.prefix.get()).second) n_wanted_ += request.n_prefix();
    }
    BatchPlan plan =
        Batch::plan(*model, flags_.session, n_parallel_, max_prompt_, max_new_, max_behind_);
    plan.micro_batches = flags_.micro_batches;
    const SessionOptions& o = plan.largest.options;
    // As asked for: auto decides prompt by prompt.
    std::string prefill = name_of(flags_.session.prefill);
    if (flags_.session.prefill != PrefillMode::kDense && o.prefill_budget != SessionOptions().prefill_budget) {
      prefill += fmt::format(", budget {}", o.prefill_budget == kBudgetAll ? "all" : std::to_string(o.prefill_budget));
    }
    if (o.exact_exp) prefill += ", fp32 exponentials";
    settings_ = fmt::format("{}; {}; prefill {}; model {}", name_of(o.attention), composition(o), prefill,
                            model->fingerprint());
    if (!(plan.largest.dual_chunk == DualChunk())) settings_ += "; " + flags_of(plan.largest.dual_chunk);
    answers_->check_settings(settings_);
    answers_->drop_errors();
    console_.info("batch: {} prompts of {} tokens, the longest of {}; up to {} together",
                  format_count(std::ssize(requests_)), format_count(n_tokens),
                  format_count(max_prompt_), n_parallel_);
    print_plan(plan.largest, max_prompt_, console_);
    report_.largest = plan.largest;
    scheduler_ = std::make_unique<Scheduler>(
        Batch::open(model, plan), SchedulerOptions{.max_gap = flags_.max_gap, .go_on = [this] {
                                                     show_progress();
                                                     return !failure_ && !stop_requested();
                                                   }});
    report_.backend = scheduler_->batch().backend_description();
    console_.info("backend: {}", report_.backend);
  }

  void answer_all() {
    watch_ = {};
    size_t next = 0;
    bool more = true;
    while ((more || next < requests_.size()) && !failure_ && !stop_requested()) {
      // A few wait at a time: they take memory, and are looked through for the shortest.
      while (next < requests_.size() && n_live_ < 4 * n_parallel_) submit(requests_[next++]);
      more = scheduler_->turn();
      const Batch& batch = scheduler_->batch();
      report_.device_bytes = std::max(report_.device_bytes, batch.device_bytes());
      report_.host_bytes = std::max(report_.host_bytes, batch.host_bytes());
      show_progress();
    }
    line_.clear();
    report_.seconds = watch_.seconds();
    report_.totals = scheduler_->report();
    report_.interrupted = stop_requested();
    if (failure_) std::rethrow_exception(failure_);
    answers_->sync();
  }

  // A request that is being answered.
  struct Live {
    std::vector<Choice> choices;
    int64_t n_left = 0;  // choices that have not ended
    const BatchAnswer* failed = nullptr;
    bool is_cut = false;  // one was cancelled before it said all
  };

  void submit(BatchRequest& request) {
    if (!request.refused.empty()) {
      const BatchAnswer refused{.report = {.state = RequestState::kFailed,
                                           .error_kind = ErrorKind::kUsage,
                                           .error = request.refused,
                                           .prompt_tokens = request.n_prompt(),
                                           .tokens = {},
                                           .selection = {}}};
      write(request, {&refused, 1});
      return;
    }
    const auto live = std::make_shared<Live>();
    live->choices = choices_of(tokenizer_, request, ends_);
    live->n_left = request.n_answers;
    n_live_ += request.n_answers;
    for (Choice& choice : live->choices) {
      Request wish = wish_of(request, &choice - live->choices.data(), ends_);
      // False: to the scheduler, it is cancelled.
      wish.on_token = [live, &choice](int32_t token, const TokenLogprobs*) {
        return choice.text.push(token) && (choice.text.ended() || !stop_requested());
      };
      // A Scheduler wants no exception of this.
      wish.on_end = [this, live, &choice, &request](const RequestReport& report) {
        try {
          if (!failure_) end(request, *live, choice, report);
        } catch (...) {
          failure_ = std::current_exception();
        }
        --n_live_;
        scheduler_->forget(choice.id);
      };
      choice.id = scheduler_->submit(std::move(wish));
    }
  }

  void end(const BatchRequest& request, Live& live, Choice& choice, const RequestReport& report) {
    n_wanted_ -= request.n_new - std::ssize(report.tokens);
    choice.answer = answer_of(choice.text, report);
    choice.ended = true;
    live.is_cut |= report.state == RequestState::kCancelled && !choice.text.ended();
    if (report.state == RequestState::kFailed && live.failed == nullptr) {
      live.failed = &choice.answer;
      for (const Choice& other : live.choices) {
        if (!other.ended) scheduler_->cancel(other.id);
      }
    }
    if (--live.n_left > 0) return;
    if (live.failed != nullptr) return write(request, {live.failed, 1});
    std::vector<BatchAnswer> answers;
    for (Choice& one : live.choices) answers.push_back(std::move(one.answer));
    if (!live.is_cut) return write(request, answers);
    for (const BatchAnswer& answer : answers) report_.n_generated += std::ssize(answer.report.tokens);
  }

  void write(const BatchRequest& request, std::span<const BatchAnswer> answers) {
    const RequestReport& report = answers.front().report;
    if (report.state == RequestState::kFailed) console_.warn("line {}: {}", request.line, report.error);
    report_.count(answers);
    line_.clear();
    answers_->add(to_json_line(request, answers, settings_, tokenizer_));
  }

  // In tokens of prompts and answers; an answer that ends early leaves less to do.
  void show_progress() {
    const SchedulerReport now = scheduler_->report();
    const int64_t done =
        now.prompt_tokens + static_cast<int64_t>(now.partial_prompt_tokens) + now.step_tokens;
    const int64_t total = std::max(n_wanted_, done);
    const double share =
        static_cast<double>(done) / static_cast<double>(std::max<int64_t>(total, 1));
    line_.update({.phase = "batch",
                  .fraction = share,
                  .tokens_done = done,
                  .tokens_total = total,
                  .seconds = watch_.seconds()});
  }

  int finish() {
    print_summary(report_, console_);
    if (report_file_.wanted()) report_file_.write(to_json(report_));
    if (report_.interrupted) {
      console_.warn("interrupted: {} of {} lines are answered{}", report_.n_answered,
                    report_.n_requests,
                    flags_.answers == "-" ? "" : "; --resume goes on with the others");
    } else if (report_.n_failed > 0) {
      console_.error(
          fmt::format("{} of {} lines were not answered", report_.n_failed, report_.n_requests));
    }
    return report_.exit_code();
  }

  BatchFlags& flags_;
  const Console console_;
  const OutputFile report_file_;
  const ModelConfig config_;
  const Tokenizer tokenizer_;
  std::vector<BatchRequest> requests_;
  std::optional<AnswerFile> answers_;
  std::vector<int32_t> ends_;
  std::unique_ptr<Scheduler> scheduler_;
  BatchReport report_;
  std::string settings_;  // what answers depend on beside their lines
  int64_t max_prompt_ = 0, max_new_ = 0, n_parallel_ = 1;
  int64_t max_behind_ = 0;  // tokens behind a shared prefix, where all lines have one
  int64_t n_live_ = 0;  // submitted and not ended
  ProgressLine line_;
  Stopwatch watch_;
  std::exception_ptr failure_;  // the answers can no longer be written
  int64_t n_wanted_ =
      0;  // tokens of prompts, and of answers: at most, or all that an ended one has
};

}  // namespace

int command_batch(int argc, char** argv) {
  BatchFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  flags.model.check();
  refuse_audit(flags.session);
  if (flags.requests.empty()) {
    fail(ErrorKind::kUsage,
         "--file: expected a file of requests, found none; add -f FILE, or -f -");
  }
  return BatchJob(flags).run();
}

}  // namespace tiercel
