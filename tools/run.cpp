// tiercel run: continue one prompt, or hold a conversation.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "cpu/topology.h"
#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/config.h"
#include "engine/option_rows.h"
#include "engine/saved_session.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "tools/chat_flags.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/conversation.h"
#include "tools/output_file.h"
#include "tools/prompt.h"
#include "tools/report.h"
#include "tools/session_flags.h"
#include "tools/signals.h"
#include "tools/stopwatch.h"
#include "tools/user_input.h"

namespace tiercel {
namespace {

constexpr int64_t kDefaultTokens = 128;
constexpr int64_t kDefaultTalk = 8192;  // room of a conversation behind its first message

constexpr const char* kRunDetails =
    "stdout carries the generated text only. Sizes take KiB, MiB, GiB, TiB or plain bytes.\n"
    "Ctrl-C stops at the next token, keeps what was generated and writes the report; a second one\n"
    "ends at once. With --interactive it stops the answer; at the prompt it leaves.\n"
    "exit codes: 0 done, 1 run-time error, 2 usage, 3 does not fit into memory, 130 interrupted\n"
    "\n"
    "Examples:\n"
    "  tiercel run -m MODEL -f book.txt -n 200 --report report.json\n"
    "  tiercel run -m MODEL -f book.txt --device-memory 8GiB --budget 4096 --audit 16\n"
    "  tiercel run -m MODEL -f book.txt -n 0 --save-session book.session    # once, slow\n"
    "  tiercel run -m MODEL --session book.session -p \"Who did it?\"         # many times, fast\n"
    "  tiercel run -m MODEL -i --system \"Be brief.\"\n";

struct RunFlags {
  ModelFlags model;
  PromptFlags prompt;
  SessionOptions session;
  SamplingFlags sampling;
  ChatFlags chat;
  std::optional<int64_t> n_predict;
  int64_t n_logprobs = -1;
  std::vector<std::string> stops;
  bool ignore_eos = false, no_bos = false, special = false, quiet = false;
  std::optional<std::string> report, save_session;
  std::shared_ptr<const SavedSession> saved;  // --session

  bool parse(int argc, char** argv) {
    Flags flags("run", "Continue a prompt, however long.", kRunDetails);
    model.add_to(flags);
    prompt.add_to(flags, true);
    flags.flag("--no-bos", no_bos, "Do not put the begin-of-text token in front");
    flags.flag("--special", special, "Read <|special|> tokens in the prompt as such");
    chat.add_to(flags);
    flags.section("Generation");
    flags.tokens("-n,--n-predict,--max-tokens,--max-new-tokens", n_predict, -1, INT32_MAX,
                 "Tokens to generate, or of each answer; -1: until end of text or context "
                 "(default: 128; with --interactive -1)");
    flags.flag("--ignore-eos", ignore_eos, "Go on after an end-of-text token");
    flags.texts("-r,--stop,--reverse-prompt", stops,
                "Stop where the answer says this, which is left out; may be given several times");
    sampling.add_to(flags);
    add_logprobs_option(flags, n_logprobs);
    flags.section("Saved sessions");
    flags.value(
        "--session", "FILE", "",
        "Restore this session instead of a prefill; a prompt given beside it follows its tokens",
        [this](const std::string& file) { open_saved(file); });
    flags.uses("--session", Flags::FileUse::kReplaced,
               [this] { return saved != nullptr ? saved->path() : ""; });
    flags.file("--save-session", save_session, Flags::FileUse::kReplaced,
               "Save the session to this file before generating: a prefill that need not be "
               "repeated. With --interactive: at the end, all that was said");
    // Behind --session: its options are the defaults of these.
    add_session_flags(flags, session);
    flags.section("Output");
    flags.file("--report", report, Flags::FileUse::kWritten, "Write a JSON report to this file");
    flags.flag("-q,--quiet", quiet, "Only warnings and errors on stderr");
    return flags.parse(argc, argv);
  }

  void open_saved(const std::string& file) {
    saved = SavedSession::open(file);
    session = saved->options();
  }
};

// How much may be generated: a conversation gets what --ctx-size gives it, or room for a while.
int64_t n_planned(const RunFlags& flags, const ModelConfig& config, int64_t n_prompt) {
  if (!flags.chat.interactive) return flags.n_predict.value_or(kDefaultTokens);
  if (flags.session.context > 0) return -1;
  const int64_t left = config.max_position_embeddings - n_prompt;
  return std::clamp<int64_t>(left, 1, kDefaultTalk);
}

// What is prefilled, or restored, and what may follow: with a saved session the prompt does. Where it is still to
// be typed, there may be more of it.
ExpectedLoad expected_load(const RunFlags& flags, const ModelConfig& config, int64_t n_prompt) {
  const int64_t n_new = n_planned(flags, config, n_prompt);
  ExpectedLoad load{.session = flags.session, .n_prompt = n_prompt, .n_new = n_new, .is_certain = true};
  if (flags.saved == nullptr) return load;
  load.restored = true;
  load.n_prompt = flags.saved->n_tokens();
  if (n_new >= 0) load.n_new = n_prompt + n_new;
  return load;
}

SessionPlan plan_session(const Model& model, const RunFlags& flags, int64_t n_prompt) {
  const ExpectedLoad load = expected_load(flags, model.config(), n_prompt);
  if (load.restored) return Session::plan(model, flags.session, *flags.saved, load.n_new);
  return Session::plan(model, flags.session, load.n_prompt, load.n_new);
}

// What the file will take, before anything is computed for it.
void announce_file(const Model& model, const RunFlags& flags, const SessionPlan& plan,
                   int64_t n_tokens, const Console& console) {
  if (!flags.save_session) return;
  const int64_t bytes = Session::saved_bytes(model, plan, n_tokens);
  SessionFileWriter::check_path(*flags.save_session, bytes);
  // Behind a restored session its window and cache may be a little longer.
  console.info("session file: {}{} for {} tokens", flags.saved != nullptr ? "about " : "",
               format_bytes(bytes), format_count(n_tokens));
  if (flags.chat.interactive) {
    console.info("session file: about {} once all {} tokens are used",
                 format_bytes(Session::saved_bytes(model, plan, plan.context)),
                 format_count(plan.context));
  }
}

// How many tokens may be generated: what -n asks for, as far as the context has room.
int64_t room_for_new_tokens(int64_t n_predict, const SessionPlan& plan, int64_t n_prompt,
                            const Console& console) {
  if (n_prompt > plan.context) {
    fail(ErrorKind::kUsage, "the prompt has {} tokens, --ctx-size allows {}", n_prompt,
         plan.context);
  }
  const int64_t room = plan.context - n_prompt;
  if (n_predict < 0) return room;
  if (n_predict > room) {
    console.warn_or_refuse(
        plan.options.strict,
        fmt::format("--n-predict: the context of {} tokens leaves room for {} of the {} asked for",
                    plan.context, room, n_predict));
  }
  return std::min(n_predict, room);
}

void warn_of_second_bos(const std::vector<int32_t>& ids, const ModelConfig& config, bool strict,
                        const Console& console) {
  if (ids.size() > 1 && config.bos_token_id && ids[0] == *config.bos_token_id && ids[1] == ids[0]) {
    console.warn_or_refuse(strict,
                           "the prompt begins with two begin-of-text tokens; --no-bos adds none");
  }
}

int exit_code(const Generation& generation, const Console& console) {
  if (generation.interrupted()) return static_cast<int>(ErrorKind::kInterrupted);
  if (generation.output_errno != 0) {
    // A reader that went away is no news to the user; a full disk is.
    if (generation.output_errno != EPIPE) {
      console.error(
          fmt::format("stdout: cannot write: {}", std::strerror(generation.output_errno)));
    }
    return static_cast<int>(ErrorKind::kRuntime);
  }
  if (!generation.error.empty()) {
    console.error(generation.error);
    return static_cast<int>(ErrorKind::kRuntime);
  }
  return 0;
}

// Everything that can be refused cheaply comes before the weights.
class Run {
 public:
  explicit Run(RunFlags& flags)
      : flags_(flags),
        console_(flags.quiet),
        report_file_(flags.report ? OutputFile(*flags.report, "--report") : OutputFile()),
        config_(load_config(flags.model.directory)),
        n_saved_(flags.saved != nullptr ? flags.saved->n_tokens() : 0),
        input_(console_, flags.session.strict) {
    if (flags.chat.interactive && flags.prompt.reads_stdin()) {
      fail(ErrorKind::kUsage, "--interactive: reads from stdin, as -f - does; give it a file");
    }
    report_.model = flags.model.directory;
    flags.session.n_threads = static_cast<int>(flags.model.n_threads);
  }

  int run() {
    const bool optional = n_saved_ > 0 || flags_.chat.interactive;
    const std::string words =
        flags_.prompt.read(console_, flags_.session.strict, /*required=*/!optional);
    if (flags_.save_session) SessionFileWriter::check_path(*flags_.save_session, 0);
    const Tokenizer tokenizer = Tokenizer::load(flags_.model.directory);
    const Turns turns = flags_.chat.turns(flags_.model.directory, tokenizer,
                                          {.bos = !flags_.no_bos, .special = flags_.special},
                                          n_saved_ > 0, console_);
    const bool asks = flags_.chat.interactive && words.empty() &&
                      !(n_saved_ > 0 && turns.awaits_answer(flags_.saved->ids()));
    // A turn ends a generation also where no template is put around the prompt.
    const std::optional<ChatTemplate> found =
        turns.chat() != nullptr ? std::nullopt : ChatTemplate::find(flags_.model.directory);
    const ChatTemplate* chat = found ? &*found : turns.chat();
    GenerationRequest request{.prompt = {},
                              .saved = flags_.saved,
                              .save_path = flags_.save_session.value_or(""),
                              .eos_token_ids = end_tokens(config_, tokenizer, chat),
                              .stops = {},
                              .ignore_eos = flags_.ignore_eos,
                              .n_logprobs = flags_.n_logprobs};
    AnswerForms forms(tokenizer, config_.vocab_size, request.eos_token_ids);
    forms.constraint(flags_.sampling.wish().form, flags_.ignore_eos);  // what cannot be is said before anything is read
    for (const std::string& stop : flags_.stops) {
      request.stops.push_back(flags_.prompt.unescaped(stop));
    }
    if (!asks) request.prompt = encode(turns, words);
    stop_if_requested();

    Stopwatch watch;
    const int64_t n_prompt = std::max<int64_t>(std::ssize(request.prompt), 1);
    const auto model = flags_.model.open(expected_load(flags_, config_, n_prompt));
    stop_if_requested();
    report_.load_seconds = watch.seconds();
    if (asks) {
      plan_session(*model, flags_, 1);  // what does not fit is said before anything is typed
      std::optional<std::string> first;
      do {
        first = input_.next();
        stop_if_requested();
        if (!first) return 0;
      } while (first->empty());
      request.prompt = encode(turns, *first);
    }
    return generate_with(model, tokenizer, turns, forms, std::move(request));
  }

 private:
  std::vector<int32_t> encode(const Turns& turns, const std::string& words) {
    const Stopwatch watch;
    std::vector<int32_t> ids =
        n_saved_ == 0 ? turns.first(words)
                      : turns.behind(flags_.saved->ids(), words, flags_.saved->path(), console_);
    report_.tokenize_seconds = watch.seconds();
    report_.prompt_tokens = n_saved_ + static_cast<int64_t>(ids.size());
    if (report_.prompt_tokens == 0) fail(ErrorKind::kUsage, "the prompt has no tokens");
    if (turns.chat() == nullptr) warn_of_second_bos(ids, config_, flags_.session.strict, console_);
    return ids;
  }

  int generate_with(const std::shared_ptr<Model>& model, const Tokenizer& tokenizer,
                    const Turns& turns, AnswerForms& forms, GenerationRequest request) {
    Stopwatch watch;
    report_.plan = plan_session(*model, flags_, static_cast<int64_t>(request.prompt.size()));
    if (!flags_.chat.interactive) {
      request.max_new_tokens = room_for_new_tokens(flags_.n_predict.value_or(kDefaultTokens),
                                                   report_.plan, report_.prompt_tokens, console_);
    }
    print_plan(report_.plan, report_.prompt_tokens, console_);
    announce_file(*model, flags_, report_.plan, report_.prompt_tokens, console_);
    report_.form = flags_.sampling.wish().form;
    report_.sampling = flags_.sampling.resolve(config_, forms, tokenizer, request.prompt, flags_.ignore_eos,
                                                flags_.session.strict, console_);
    Sampler sampler(report_.sampling, config_.vocab_size);
    const auto session = Session::open(model, report_.plan);
    report_.load_seconds += watch.seconds();
    report_.backend = session->backend_description();
    report_.device_bytes_in_use = session->device_bytes_in_use();
    console_.info("backend: {}", report_.backend);

    report_.generation =
        flags_.chat.interactive
            ? converse(*session, sampler, tokenizer, turns, input_,
                       {.first = std::move(request), .n_predict = flags_.n_predict.value_or(-1)},
                       console_)
            : generate(*session, sampler, tokenizer, std::move(request), console_);
    report_.selection = session->selection();
    report_.audit = session->audit();
    report_.drafts = session->drafts();
    report_.residual_energy = session->residual_energy();
    report_.key_coding_seconds = session->key_coding_seconds();
    report_.peak_rss_bytes = cpu::peak_rss_bytes();
    print_summary(report_, console_);
    const int code = exit_code(report_.generation, console_);
    if (report_file_.wanted()) report_file_.write(to_json(report_));
    return code;
  }

  RunFlags& flags_;
  const Console console_;
  const OutputFile report_file_;
  const ModelConfig config_;
  const int64_t n_saved_;
  UserInput input_;
  RunReport report_;
};

}  // namespace

int command_run(int argc, char** argv) {
  RunFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  flags.model.check();
  if (flags.n_logprobs >= 0 && !flags.report) {
    fail(ErrorKind::kUsage, "--logprobs: expected --report FILE beside it, which they are written to");
  }
  return Run(flags).run();
}

}  // namespace tiercel
