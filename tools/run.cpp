// tiercel run: continue one prompt.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "cpu/topology.h"
#include "engine/base/check.h"
#include "engine/config.h"
#include "engine/saved_session.h"
#include "engine/tokenizer.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/output_file.h"
#include "tools/prompt.h"
#include "tools/report.h"
#include "tools/session_flags.h"
#include "tools/signals.h"
#include "tools/stopwatch.h"
#include "tools/units.h"

namespace tiercel {
namespace {

constexpr const char* kDetails =
    "stdout carries the generated text only. Sizes take KiB, MiB, GiB, TiB or plain bytes.\n"
    "Ctrl-C stops at the next token, keeps what was generated and writes the report; a second one "
    "kills.\n"
    "exit codes: 0 done, 1 run-time error, 2 usage, 3 does not fit into memory, 130 interrupted\n";

struct RunFlags {
  ModelFlags model;
  PromptFlags prompt;
  SessionOptions session;
  SamplingFlags sampling;
  int64_t n_predict = 128;
  bool ignore_eos = false, no_bos = false, special = false, quiet = false;
  std::optional<std::string> report, save_session;
  std::shared_ptr<const SavedSession> saved;  // --session

  bool parse(int argc, char** argv) {
    Flags flags("run", "Continue a prompt, however long.", kDetails);
    model.add_to(flags);
    prompt.add_to(flags, true);
    flags.flag("--no-bos", no_bos, "Do not put the begin-of-text token in front");
    flags.flag("--special", special, "Read <|special|> tokens in the prompt as such");
    flags.section("Generation");
    flags.integer("-n,--n-predict,--max-tokens,--max-new-tokens", n_predict, -1, INT32_MAX,
                  "Tokens to generate; -1: until end of text or context");
    flags.flag("--ignore-eos", ignore_eos, "Go on after an end-of-text token");
    sampling.add_to(flags);
    flags.section("Saved sessions");
    flags.value(
        "--session", "FILE", "",
        "Restore this session instead of a prefill; a prompt given beside it follows its tokens",
        [this](const std::string& file) { open_saved(file); });
    flags.text(
        "--save-session", save_session,
        "Save the session to this file before generating: a prefill that need not be repeated");
    // Behind --session: its options are the defaults of these.
    add_session_flags(flags, session);
    flags.section("Output");
    flags.text("--report", report, "Write a JSON report to this file");
    flags.flag("-q,--quiet", quiet, "Only warnings and errors on stderr");
    return flags.parse(argc, argv);
  }

  void open_saved(const std::string& file) {
    saved = SavedSession::open(file);
    session = saved->options();
  }
};

// With a saved session the prompt is what follows it.
SessionPlan plan_session(const Model& model, const RunFlags& flags, int64_t n_prompt) {
  if (flags.saved == nullptr) {
    return Session::plan(model, flags.session, n_prompt, flags.n_predict);
  }
  const int64_t n_new = flags.n_predict < 0 ? -1 : n_prompt + flags.n_predict;
  return Session::plan(model, flags.session, *flags.saved, n_new);
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
}

// How many tokens may be generated: what -n asks for, as far as the context has room.
int64_t room_for_new_tokens(int64_t n_predict, const SessionPlan& plan, int64_t n_prompt,
                            const Console& console) {
  const int64_t room = std::max<int64_t>(plan.context - n_prompt, 0);
  if (n_predict < 0) return room;
  if (n_predict > room) {
    console.warn("--n-predict: the context of {} tokens leaves room for {} of the {} asked for",
                 plan.context, room, n_predict);
  }
  return std::min(n_predict, room);
}

void warn_of_second_bos(const std::vector<int32_t>& ids, const ModelConfig& config,
                        const Console& console) {
  if (ids.size() > 1 && config.bos_token_id && ids[0] == *config.bos_token_id && ids[1] == ids[0]) {
    console.warn("the prompt begins with two begin-of-text tokens; --no-bos adds none");
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

}  // namespace

int command_run(int argc, char** argv) {
  RunFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  const Console console(flags.quiet);
  flags.model.check();
  // Everything that can be refused cheaply comes before the weights.
  const OutputFile report_file =
      flags.report ? OutputFile(*flags.report, "--report") : OutputFile();
  const ModelConfig config = load_config(flags.model.directory);
  const int64_t n_saved = flags.saved != nullptr ? flags.saved->n_tokens() : 0;
  const std::string prompt =
      flags.prompt.read(console, flags.session.strict, /*required=*/n_saved == 0);
  if (flags.save_session) SessionFileWriter::check_path(*flags.save_session, 0);

  RunReport report;
  report.model = flags.model.directory;
  flags.session.n_threads = static_cast<int>(flags.model.n_threads);
  Stopwatch watch;
  const Tokenizer tokenizer = Tokenizer::load(flags.model.directory);
  GenerationRequest request{
      .prompt = tokenizer.encode(
          prompt, {.add_special = !flags.no_bos && n_saved == 0, .parse_special = flags.special}),
      .saved = flags.saved,
      .save_path = flags.save_session.value_or(""),
      .eos_token_ids = config.eos_token_ids,
      .ignore_eos = flags.ignore_eos};
  report.tokenize_seconds = watch.seconds();
  const auto n_prompt = static_cast<int64_t>(request.prompt.size());
  report.prompt_tokens = n_saved + n_prompt;
  if (report.prompt_tokens == 0) fail(ErrorKind::kUsage, "the prompt has no tokens");
  warn_of_second_bos(request.prompt, config, console);
  stop_if_requested();

  watch = {};
  const auto model = flags.model.open();
  stop_if_requested();
  report.plan = plan_session(*model, flags, n_prompt);
  request.max_new_tokens =
      room_for_new_tokens(flags.n_predict, report.plan, report.prompt_tokens, console);
  print_plan(report.plan, report.prompt_tokens, console);
  announce_file(*model, flags, report.plan, report.prompt_tokens, console);
  report.sampling = flags.sampling.resolve(config, console);
  Sampler sampler(report.sampling, config.vocab_size);
  const auto session = Session::open(model, report.plan);
  report.load_seconds = watch.seconds();
  report.backend = session->backend_description();
  report.device_bytes_in_use = session->device_bytes_in_use();
  console.info("backend: {}", report.backend);

  report.generation = generate(*session, sampler, tokenizer, std::move(request), console);
  report.selection = session->selection();
  report.audit = session->audit();
  report.residual_energy = session->residual_energy();
  report.peak_rss_bytes = cpu::peak_rss_bytes();
  print_summary(report, console);
  const int code = exit_code(report.generation, console);
  if (report_file.wanted()) report_file.write(to_json(report));
  return code;
}

}  // namespace tiercel
