// tiercel serve: answers HTTP requests as OpenAI's endpoints do, many at a time.
#include <algorithm>
#include <atomic>
#include <exception>
#include <filesystem>

#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/batch_plan.h"
#include "engine/option_rows.h"
#include "engine/scheduler.h"
#include "engine/text/chat_template.h"
#include "tools/batch/requests.h"
#include "tools/chat_flags.h"
#include "tools/commands.h"
#include "tools/report.h"
#include "tools/serve/http_server.h"
#include "tools/serve/service.h"
#include "tools/session_flags.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

// clang-format off
constexpr const char* kServeDetails =
    "Answers POST /v1/chat/completions and /v1/completions as OpenAI's endpoints do, whole or with\n"
    "\"stream\": true, so that clients which know these need a base URL only; POST /tokenize and\n"
    "/detokenize as vLLM does; GET /v1/models, /health and /metrics (as Prometheus reads it). With \"return_progress\": true a stream says how far the prompt\n"
    "is, as llama.cpp's does. Requests are decoded together, as are the answers to one (\"n\"). What a body\n"
    "asks for and is not done here is refused, saying so.\n"
    "The beginning of a prompt of 1,024 tokens or more is kept until its room is wanted: the next turns\n"
    "of a conversation, or another question on the same text, prefill only what is behind it. That\n"
    "selects from it as new tokens do (--no-share-prefix: every prompt by itself).\n"
    "-c is the most that a prompt and its answer may have together; without it, what the model was\n"
    "trained for, or as much of it as fits.\n"
    "Anybody who reaches the port can ask, but for pages of other sites where that is this machine's own;\n"
    "--api-key (or TIERCEL_ARG_API_KEY, which no list of processes shows) asks for a key. Nothing is\n"
    "encrypted: put a proxy in front of it on a network that is not yours.\n"
    "Ctrl-C or SIGTERM stops.\n"
    "exit codes: 0 stopped, 1 an error, 2 usage, 3 does not fit\n"
    "\n"
    "Examples:\n"
    "  tiercel serve -m MODEL -c 128K\n"
    "  curl http://127.0.0.1:8080/v1/chat/completions -d \\\n"
    "    '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], \"stream\": true}'\n";
// clang-format on

constexpr int64_t kLeastContext = 4096;  // that is tried where nobody says how much

struct ServeFlags {
  ModelFlags model;
  SessionOptions session;
  SamplingFlags sampling;
  std::string host = "127.0.0.1", name;
  std::optional<std::string> api_key, date, variables;
  int64_t port = 8080, n_predict = 2048, parallel = 4;
  double max_gap = 0.2;
  MicroBatches micro_batches = MicroBatches::kAuto;
  bool has_thoughts = true, no_share_prefix = false, no_bos = false, special = false, ignore_eos = false, quiet = false;

  bool parse(int argc, char** argv) {
    Flags flags("serve", "Answer HTTP requests, as OpenAI's endpoints do.", kServeDetails);
    model.add_to(flags);
    flags.section("Server");
    flags.text("--host", host, "Address to listen at; 0.0.0.0: all of this machine's");
    flags.integer("--port", port, 0, 65535, "Port to listen at; 0: any that is free");
    flags.text("--api-key", api_key, "Answer only who sends \"Authorization: Bearer TEXT\"");
    flags.text("-a,--alias,--served-model-name", name, "What the model is called (default: its folder's name)");
    flags.integer("--parallel", parallel, 1, kMaxSequences, "Requests answered together, at most");
    flags.number("--max-gap", max_gap, 0, 1e9, "Seconds of prefill between two decode steps; 0: prompts first");
    flags.flag("--no-share-prefix", no_share_prefix, "Keep no prompts: prefill each from its beginning");
    add_micro_batches_option(flags, micro_batches);
    flags.section("Where a request says nothing else");
    flags.tokens("-n,--n-predict,--max-tokens,--max-new-tokens", n_predict, 1, INT32_MAX,
                 "Tokens to generate, at most");
    flags.flag("--ignore-eos", ignore_eos, "Go on after an end-of-text token");
    flags.text("--date", date, "YYYY-MM-DD, for templates that write a date (default: today's, if they ask for it)");
    add_template_variables_flag(flags, variables);
    add_thoughts_option(flags, has_thoughts);
    flags.flag("--no-bos", no_bos, "Do not put the begin-of-text token in front of a text to complete");
    flags.flag("--special", special, "Read <|special|> tokens in texts to complete as such");
    sampling.add_to(flags);
    add_session_flags(flags, session);
    flags.section("Output");
    flags.flag("-q,--quiet", quiet, "Only warnings and errors on stderr");
    return flags.parse(argc, argv);
  }
};

std::string name_of_folder(const std::string& directory) {
  std::error_code ignored;
  const std::filesystem::path path = std::filesystem::weakly_canonical(directory, ignored);
  return path.empty() ? directory : path.filename().string();
}

// With as much context as fits, where nobody says how much.
BatchPlan plan_batch(const Model& model, const ServeFlags& flags) {
  SessionOptions options = flags.session;
  if (options.context == 0) options.context = std::max(model.config().max_position_embeddings, kLeastContext);
  for (;;) {
    try {
      BatchPlan plan = Batch::plan(model, options, flags.parallel, options.context - 1, 1);
      plan.micro_batches = flags.micro_batches;
      return plan;
    } catch (const Error& error) {
      const bool may_be_less = flags.session.context == 0 && options.context >= 2 * kLeastContext;
      if (error.kind() != ErrorKind::kDoesNotFit || !may_be_less) throw;
      options.context /= 2;
    }
  }
}

// What requests are answered with, from when the model is in memory on.
class Answering {
 public:
  Answering(const ServeFlags& flags, const Console& console)
      : console_(console),
        config_(load_config(flags.model.directory)),
        tokenizer_(Tokenizer::load(flags.model.directory)),
        chat_(find_chat_template(flags.model.directory, flags.variables, no_chat_)),
        reader_(config_, tokenizer_, chat_ ? &*chat_ : nullptr, no_chat_,
                {.n_new = flags.n_predict,
                 .ignore_eos = flags.ignore_eos,
                 .stops = {},
                 .sampling = flags.sampling.wish(),
                 .bos = !flags.no_bos,
                 .special = flags.special,
                 .prefix = {},
                 .date = chat_date_of(flags.date, false),
                 .is_dated = !flags.date && chat_ && chat_->asks_for_date(),
                 .has_thoughts = flags.has_thoughts}) {}

  Service& open(const ServeFlags& flags, bool is_loopback) {
    const int64_t expected = flags.session.context > 0 ? flags.session.context : kLeastContext;
    const auto model = flags.model.open(
        {.session = flags.session, .n_prompt = expected - 1, .n_new = 1, .n_sequences = flags.parallel});
    stop_if_requested();
    const BatchPlan plan = plan_batch(*model, flags);
    print_plan(plan.largest, plan.largest.n_prompt, console_);
    model_ = model;
    scheduler_ = std::make_unique<Scheduler>(
        Batch::open(model, plan),
        SchedulerOptions{.max_gap = flags.max_gap, .go_on = [this] {
                           service_->tell_progress();
                           return !stop_requested();
                         }});
    console_.info("backend: {}", scheduler_->batch().backend_description());
    ServiceOptions options{.model = flags.name.empty() ? name_of_folder(flags.model.directory) : flags.name,
                           .api_key = flags.api_key.value_or(""),
                           .loopback = is_loopback,
                           .ends = end_ids(config_, tokenizer_, chat_ ? &*chat_ : nullptr),
                           .shares_prefixes = !flags.no_share_prefix};
    service_ = std::make_unique<Service>(*model_, reader_, tokenizer_, *scheduler_, console_, options);
    console_.info("contexts of {} tokens: as many together as have room, {} at most", format_count(plan.largest.context),
                  flags.parallel);
    if (!chat_) console_.info("no chat completions: {}", no_chat_);
    return *service_;
  }

  // Until somebody stops it.
  void run() {
    while (!stop_requested()) {
      if (!scheduler_->turn()) service_->wait_for_work(0.1);
    }
  }

 private:
  const Console& console_;
  const ModelConfig config_;
  const Tokenizer tokenizer_;
  std::string no_chat_;
  const std::optional<ChatTemplate> chat_;
  const BatchRequestReader reader_;
  std::shared_ptr<Model> model_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<Service> service_;
};

void serve(const ServeFlags& flags) {
  const Console console(flags.quiet);
  Answering answering(flags, console);
  std::atomic<Service*> service = nullptr;
  // Listens before the model is there: that a port is taken is said at once.
  HttpServer server(
      flags.host, static_cast<uint16_t>(flags.port), {},
      [&service](const HttpRequest& request) {
        const Service* ready = service;
        return ready != nullptr ? ready->answer_at_once(request) : Service::answer_while_loading();
      },
      [&service](const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
        service.load()->handle(request, reply);
      });
  service = &answering.open(flags, server.is_loopback());
  const std::string host = flags.host.find(':') == std::string::npos ? flags.host : "[" + flags.host + "]";
  console.info("listening: http://{}:{}/v1{}", host, server.port(),
               flags.api_key ? "" : ", for whoever reaches it (--api-key)");
  std::exception_ptr failure;
  try {
    answering.run();
  } catch (...) {
    failure = std::current_exception();
  }
  service.load()->shut_down();
  server.stop();
  if (failure) std::rethrow_exception(failure);
  console.info("stopped");
}

}  // namespace

int command_serve(int argc, char** argv) {
  ServeFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  flags.model.check();
  refuse_audit(flags.session);
  flags.session.n_threads = static_cast<int>(flags.model.n_threads);
  if (flags.api_key && flags.api_key->empty()) {
    fail(ErrorKind::kUsage, "--api-key: expected a key, found an empty text");
  }
  if (flags.host.empty()) fail(ErrorKind::kUsage, "--host: expected an address, found an empty text");
  if (flags.session.context == 1) {
    fail(ErrorKind::kUsage, "--ctx-size: expected room for a prompt and an answer, found 1");
  }
  serve(flags);
  return 0;
}

}  // namespace tiercel
