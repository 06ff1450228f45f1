#include "tools/serve/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <ctime>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "engine/base/check.h"
#include "engine/json.h"
#include "tools/batch/choice.h"
#include "tools/batch/openai.h"

namespace tiercel {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char *kPlace = "request", *kStopping = "the server is being stopped";
constexpr const char *kTokenize = "/tokenize", *kDetokenize = "/detokenize";

// As OpenAI's clients expect it.
std::string error_body(int status, std::string_view what, const char* code) {
  const char* type = status == 401                   ? "authentication_error"
                     : status >= 500                 ? "server_error"
                                                     : "invalid_request_error";
  return dump({{"error",
                {{"message", what},
                 {"type", type},
                 {"param", nullptr},
                 {"code", code == nullptr ? Json() : Json(code)}}}});
}

// code: a word for programs, or null.
HttpAnswer refusal(int status, std::string_view why, const char* code = nullptr) {
  return {.status = status, .body = error_body(status, why, code)};
}

void send(const HttpAnswer& answer, HttpReply& reply) { reply.respond(answer.status, answer.body, answer.type); }

int status_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUsage: return 400;
    case ErrorKind::kDoesNotFit: return 400;  // with nothing else running: to try again is of no use
    default: return 500;
  }
}
const char* code_of(ErrorKind kind) { return kind == ErrorKind::kDoesNotFit ? "does_not_fit" : nullptr; }

// Each is looked for behind every token, in the thread that computes.
void check_stops(const std::vector<std::string>& stops) {
  constexpr size_t kMostStops = 32, kMostBytes = 1024;
  if (stops.size() > kMostStops) {
    fail("{}: stop: expected {} texts at most, found {}", kPlace, kMostStops, stops.size());
  }
  for (const std::string& stop : stops) {
    if (stop.size() > kMostBytes) {
      fail("{}: stop: expected {} bytes at most, found {}", kPlace, kMostBytes, stop.size());
    }
  }
}

nlohmann::json body_of(const HttpRequest& http) {
  return parse_json(http.body, kPlace, {.max_bytes = http.body.size(), .max_depth = kMostJsonDepth + 6});
}

// Takes from a body what says so.
Delivery take_delivery(nlohmann::json& body) {
  Delivery delivery;
  const std::string file = kPlace;
  const JsonNode root(body, file);
  root.expect_object();
  delivery.streams = root.boolean_or("stream", false);
  if (const auto options = root.find("stream_options")) {
    options->expect_object();
    delivery.with_usage = options->boolean_or("include_usage", false);
  }
  // llama.cpp's
  delivery.with_progress = root.boolean_or("return_progress", false) && delivery.streams;
  body.erase("return_progress");
  body.erase("stream");
  body.erase("stream_options");
  return delivery;
}

std::string in_small_letters(std::string_view text) {
  std::string small(text);
  std::ranges::transform(small, small.begin(), [](unsigned char c) { return std::tolower(c); });
  return small;
}

// Without its port, in small letters.
std::string host_name(std::string_view host) {
  return in_small_letters(host.substr(0, host.starts_with('[') ? host.find(']') + 1 : host.find(':')));
}
bool is_address(std::string_view name) { return name.find_first_not_of("0123456789.") == name.npos; }
// A name and, perhaps, a port: an address, which nobody else can make lead here, or this machine's own name.
bool is_of_this_machine(std::string_view host) {
  const std::string name = host_name(host);
  return name.starts_with('[') || name == "localhost" || is_address(name);
}
// Where a page of this machine comes from: anybody may have one at an address of theirs.
bool is_local_origin(std::string_view origin, std::string_view host) {
  const size_t scheme = origin.find("://");
  if (scheme == origin.npos) return false;
  const std::string_view from = origin.substr(scheme + 3);
  const std::string name = host_name(from);
  const bool is_loopback = name.starts_with("127.") && is_address(name);  // and not 127.example
  return name == "localhost" || name == "[::1]" || is_loopback || (!from.empty() && from == host);
}

// Whether both are the same, in a time that does not depend on where they differ.
bool is_same_key(std::string_view a, std::string_view b) {
  unsigned differs = a.size() != b.size();
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) differs |= static_cast<unsigned>(a[i] ^ b[i]);
  return differs == 0;
}

}  // namespace

Service::Service(const Model& model, const BatchRequestReader& reader, const Tokenizer& tokenizer,
                 Scheduler& scheduler, const Console& console, ServiceOptions options)
    : model_(model),
      reader_(reader),
      tokenizer_(tokenizer),
      scheduler_(scheduler),
      console_(console),
      options_(std::move(options)),
      context_(scheduler.batch().plan().largest.context),
      instance_(fmt::format("{:08x}", std::random_device()())) {}

Service::~Service() = default;

HttpAnswer Service::answer_while_loading() { return refusal(503, "the model is being loaded"); }

std::optional<HttpAnswer> Service::answer_at_once(const HttpRequest& request) const {
  if (options_.api_key.empty()) {
    if (const std::string why = why_strange(request); !why.empty()) return refusal(403, why);
  }
  const bool is_model = request.path == "/v1/models/" + options_.model;
  const bool takes_body = form_of_endpoint(request.path) || request.path == kTokenize || request.path == kDetokenize;
  constexpr const char* kPages[] = {"/health", "/metrics", "/v1/models"};
  if (!takes_body && !is_model && std::ranges::find(kPages, request.path) == std::end(kPages)) {
    return refusal(404, fmt::format("there is no {}", printable(request.path, 80)));
  }
  // A browser that asks whether a page may ask, which its origin decides: it sends no key yet.
  if (request.method == "OPTIONS") return HttpAnswer{};
  const bool reads = request.method == "GET" || request.method == "HEAD";
  if (takes_body ? request.method != "POST" : !reads) {
    return refusal(405, fmt::format("{}: expected {}, found {}", request.path, takes_body ? "POST" : "GET",
                                    printable(request.method, 20)));
  }
  if (request.path == "/health") return HttpAnswer{.body = dump({{"status", "ok"}})};
  if (!options_.api_key.empty() && !has_key(request.authorization)) {
    return refusal(401, "expected a header \"Authorization: Bearer KEY\" with the server's key", "invalid_api_key");
  }
  if (takes_body) return std::nullopt;
  if (request.path == "/metrics") return HttpAnswer{.body = metrics(), .type = "text/plain; version=0.0.4"};
  const Json model = {{"id", options_.model},
                      {"object", "model"},
                      {"created", 0},
                      {"owned_by", "tiercel"},
                      {"max_model_len", context_}};
  if (is_model) return HttpAnswer{.body = dump(model)};
  return HttpAnswer{.body = dump({{"object", "list"}, {"data", Json::array({model})}})};
}

bool Service::has_key(std::string_view authorization) const {
  constexpr std::string_view kScheme = "bearer ";
  return in_small_letters(authorization.substr(0, kScheme.size())) == kScheme &&
         is_same_key(authorization.substr(kScheme.size()), options_.api_key);
}

// Whether it may be a page of somewhere else that makes a browser of this machine ask: by a name of its own that leads
// here (DNS rebinding), or across sites. Where no key is asked for, whoever runs a browser would lend it.
std::string Service::why_strange(const HttpRequest& request) const {
  if (!options_.loopback) return {};
  if (!is_of_this_machine(request.host)) {
    return fmt::format("this server is called localhost, not {}; --host or --api-key lets others in",
                       printable(request.host, 80));
  }
  if (!request.origin.empty() && !is_local_origin(request.origin, request.host)) {
    return fmt::format("a page of {} asks; --api-key lets it in", printable(request.origin, 80));
  }
  return {};
}

void Service::handle(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  try {
    if (const std::optional<RequestForm> form = form_of_endpoint(request.path)) {
      complete(request, *form, reply);
    } else {
      send(request.path == kTokenize ? tokenize(request) : detokenize(request), *reply);
    }
  } catch (const Error& error) {
    send(refusal(status_of(error.kind()), error.what(), code_of(error.kind())), *reply);
  } catch (const std::exception& error) {
    send(refusal(500, error.what()), *reply);
  }
}

// As vLLM has it: how many tokens a prompt, or a conversation, is, and which.
HttpAnswer Service::tokenize(const HttpRequest& http) const {
  try {
    const nlohmann::json body = body_of(http);
    const bool is_chat = body.is_object() && body.contains("messages");
    const BatchRequest request = reader_.read_body(
        body, http.body, is_chat ? RequestForm::kChatCompletion : RequestForm::kCompletion, 1, kPlace);
    return {.body = dump({{"count", request.prompt.size()}, {"max_model_len", context_}, {"tokens", request.prompt}})};
  } catch (const Error& error) {
    return refusal(400, error.what());
  }
}

HttpAnswer Service::detokenize(const HttpRequest& http) const {
  try {
    const nlohmann::json body = body_of(http);
    const std::string place = kPlace;
    const JsonNode tokens = JsonNode(body, place).at("tokens");
    tokens.expect_array();
    std::vector<int32_t> ids(tokens.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<int32_t>(tokens[i].integer(0, tokenizer_.vocab_size() - 1));
    }
    return {.body = dump({{"prompt", tokenizer_.decode(ids, /*skip_special=*/false)}})};
  } catch (const Error& error) {
    return refusal(400, error.what());
  }
}

void Service::complete(const HttpRequest& http, RequestForm form, const std::shared_ptr<HttpReply>& reply) {
  const auto is_overloaded = [&](int64_t n_choices) {
    const int64_t n_waiting = scheduler_.report().queued;
    if (n_waiting + n_choices <= options_.most_waiting) return false;
    send(refusal(503, fmt::format("{} requests are waiting", n_waiting), "overloaded"), *reply);
    return true;
  };
  if (is_overloaded(1)) return;
  const int64_t number = ++n_requests_;
  Delivery delivery;
  std::vector<BatchRequest> prompts;
  try {
    nlohmann::json body = body_of(http);
    delivery = take_delivery(body);
    prompts = read_prompts(body, http.body, form, number);
  } catch (const Error& error) {  // of whatever kind it would be of a file
    return send(refusal(400, error.what()), *reply);
  }
  if (prompts.empty()) return send(refusal(503, kStopping), *reply);
  if (is_overloaded(std::ssize(prompts) * prompts.front().n_answers)) return;
  for (BatchRequest& prompt : prompts) {
    if (prompt.model.empty()) prompt.model = options_.model;
    const int64_t n_prompt = prompt.n_prompt(), room = context_ - n_prompt;
    if (room < 1) {
      const std::string why = fmt::format("the prompt has {} tokens; a context has {} (--ctx-size), with its answer",
                                          n_prompt, context_);
      return send(refusal(400, why, "context_length_exceeded"), *reply);
    }
    prompt.n_new = std::min(prompt.n_new, room);
  }
  const auto live = std::make_shared<LiveRequest>(std::move(prompts), delivery, reply,
                                                  fmt::format("{}-{}", instance_, number), tokenizer_, options_.ends);
  model_.use_in_this_thread();  // planning may ask the device
  const std::lock_guard lock(submitting_);
  submit(live);
}

// One, or each of a list as if it came by itself; none if this is being stopped meanwhile.
std::vector<BatchRequest> Service::read_prompts(nlohmann::json& body, std::string_view text, RequestForm form,
                                                int64_t number) const {
  std::vector<BatchRequest> prompts;
  // What is wrong with one is wrong with all: nothing else is read then.
  const auto read_first = [&](std::string_view place, int64_t n_prompts) {
    prompts.push_back(reader_.read_body(body, text, form, number, std::string(place)));
    check_stops(prompts.front().stops);
    const int64_t n_choices = n_prompts * prompts.front().n_answers;
    if (n_choices > options_.most_waiting) {
      fail("{}: prompt: expected {} answers in one request at most, found {}", kPlace, options_.most_waiting, n_choices);
    }
  };
  const auto found = form == RequestForm::kCompletion && body.is_object() ? body.find("prompt") : body.end();
  const bool are_several = found != body.end() && found->is_array() && found->size() > 1 && !found->front().is_number();
  if (!are_several) {
    read_first(kPlace, 1);
    return prompts;
  }
  nlohmann::json list = std::move(*found);
  const auto place_of = [](size_t i) { return fmt::format("{}: prompt[{}]", kPlace, i); };
  *found = std::move(list[0]);
  read_first(place_of(0), std::ssize(list));
  // Without the prompts, which each would look through for what stands beside them.
  std::string rest;
  for (const auto& [name, value] : body.items()) {
    if (name == "prompt") continue;
    rest += fmt::format("{}{}:{}", rest.empty() ? "" : ",", nlohmann::json(name).dump(),
                        ordered_member(text, std::array{std::string_view(name)}));
  }
  rest = "{" + rest + "}";
  for (size_t i = 1; i < list.size(); ++i) {
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return {};
    }
    *found = std::move(list[i]);
    prompts.push_back(reader_.read_body(body, rest, form, number, place_of(i)));
  }
  return prompts;
}

// The more of it is behind one, the more room it takes.
SharedPrefix Service::prefix_for(const BatchRequest& request) const {
  SharedPrefix prefix = prefixes_.find(request.prompt);
  if (prefix == nullptr || has_room_behind(*prefix, request)) return prefix;
  prefix = PrefixCache::all_but_its_end(request.prompt);
  return has_room_behind(*prefix, request) ? prefix : nullptr;
}

// Whether a prompt may be behind a prefix of its own. What is behind one is kept in another way than the rest.
bool Service::has_room_behind(const std::vector<int32_t>& prefix, const BatchRequest& request) const {
  const int64_t n_prefix = std::ssize(prefix), n_behind = request.n_prompt() - n_prefix;
  try {
    return Batch::largest(model_, scheduler_.batch().plan(), n_behind, request.n_new, n_prefix) > 0;
  } catch (const Error&) {
    return false;
  }
}

void Service::submit(const std::shared_ptr<LiveRequest>& live) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return send(refusal(503, kStopping), live->reply());
    live_.emplace(live.get(), live);
  }
  std::vector<Scheduler::RequestId> ids;
  try {
    // What is said to it waits until the stream has begun.
    const std::lock_guard lock(live->mutex());
    try {
      for (BatchRequest& prompt : live->prompts()) take_prefix(prompt);
      for (size_t c = 0; c < live->n_choices(); ++c) ids.push_back(live->choice(c).id = submit(live, c));
    } catch (...) {
      live->give_up();
      throw;
    }
    live->begin();
  } catch (...) {
    for (const Scheduler::RequestId id : ids) scheduler_.cancel(id);
    const std::lock_guard lock(mutex_);
    live_.erase(live.get());
    throw;
  }
  live->reply().when_gone([this, ids = std::move(ids)] {
    for (const Scheduler::RequestId id : ids) scheduler_.cancel(id);
  });
  const std::lock_guard lock(mutex_);
  has_work_ = true;
  work_.notify_one();
}

// What of a prompt is kept is its prefix.
void Service::take_prefix(BatchRequest& prompt) {
  if (!options_.shares_prefixes) return;
  const SharedPrefix prefix = prefix_for(prompt);
  if (prefix == nullptr) return;
  prompt.prompt.erase(prompt.prompt.begin(), prompt.prompt.begin() + std::ssize(*prefix));
  prompt.prefix = prefix;
  prefixes_.keep(prefix);
}

Scheduler::RequestId Service::submit(const std::shared_ptr<LiveRequest>& live, size_t c) {
  Request wish = wish_of(live->prompt_of(c), live->index_in_prompt(c), options_.ends);
  wish.keeps_logprobs = !live->streams();  // what is streamed is not looked at again
  wish.on_token = [live, c](int32_t token, const TokenLogprobs* logprobs) {
    const std::lock_guard lock(live->mutex());
    return live->push(c, token, logprobs);
  };
  // May not throw.
  wish.on_end = [this, live, c](const RequestReport& report) {
    const std::lock_guard lock(live->mutex());
    try {
      end(*live, c, report);
    } catch (const std::exception& error) {
      console_.warn("request {}: {}", live->number(), error.what());
      live->refuse(refusal(500, error.what()));
    }
    if (!live->is_over()) return;
    const std::lock_guard lock_all(mutex_);
    live_.erase(live.get());
  };
  return scheduler_.submit(std::move(wish));
}

// In the thread that takes turns; the request is locked.
void Service::end(LiveRequest& live, size_t c, const RequestReport& ended) {
  scheduler_.forget(live.choice(c).id);
  if (live.is_over()) return;
  const bool failed = ended.state == RequestState::kFailed;
  const bool is_cut = ended.state == RequestState::kCancelled && !live.choice(c).text.ended();
  if (failed || is_cut) {
    for (size_t other = 0; other < live.n_choices(); ++other) {
      if (other != c && !live.choice(other).ended) scheduler_.cancel(live.choice(other).id);
    }
  }
  if (failed) {
    console_.warn("request {}: {}", live.number(), ended.error);
    live.refuse(refusal(status_of(ended.error_kind), ended.error, code_of(ended.error_kind)));
  } else if (is_cut) {
    console_.info("request {}: its client has gone", live.number());
    live.give_up();
  } else {
    live.end(c, ended);
    const std::string which = live.n_choices() > 1 ? fmt::format(", answer {}", c + 1) : "";
    console_.info("request {}{}: {} tokens ({} kept), {} generated; {:.2f} s to the first, then {:.1f} tokens/s",
                  live.number(), which, ended.prompt_tokens, ended.cached_tokens, ended.tokens.size(),
                  ended.first_token_seconds,
                  ended.decode_seconds > 0 ? static_cast<double>(ended.tokens.size() - 1) / ended.decode_seconds : 0);
  }
}

void Service::tell_progress() {
  const auto now = std::chrono::steady_clock::now();
  if (now - told_ < std::chrono::milliseconds(250)) return;
  told_ = now;
  std::vector<std::shared_ptr<LiveRequest>> live;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, one] : live_) {
      if (one->delivery().with_progress) live.push_back(one);
    }
  }
  for (const auto& one : live) {
    const std::lock_guard lock(one->mutex());
    if (!one->wants_progress()) continue;
    // Of each prompt, what is done for its first answer.
    double n_done = 0;
    int64_t n_cached = 0;
    for (size_t c = 0; c < one->n_choices(); ++c) {
      const Choice& choice = one->choice(c);
      if (one->index_in_prompt(c) != 0 || choice.id < 0 || choice.ended) continue;
      n_done += scheduler_.prefilled_tokens(choice.id);
      n_cached += scheduler_.report(choice.id).cached_tokens;
    }
    one->tell_progress(static_cast<int64_t>(n_done), n_cached);
  }
}

void Service::wait_for_work(double seconds) {
  std::unique_lock lock(mutex_);
  work_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return has_work_; });
  has_work_ = false;
}

void Service::shut_down() {
  std::map<const LiveRequest*, std::shared_ptr<LiveRequest>> live;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    live.swap(live_);
  }
  for (const auto& [key, one] : live) {
    const std::lock_guard lock(one->mutex());
    one->refuse(refusal(503, kStopping));
  }
}

std::string Service::metrics() const {
  const SchedulerReport r = scheduler_.report();
  std::string text;
  const auto add = [&text](const char* name, const char* type, const char* help, auto value) {
    text += fmt::format("# HELP tiercel_{0} {1}\n# TYPE tiercel_{0} {2}\ntiercel_{0} {3}\n", name, help, type, value);
  };
  add("requests_waiting", "gauge", "Requests that wait for room.", r.queued);
  add("requests_prefilling", "gauge", "Requests whose prompts are being prefilled.", r.prefilling);
  add("requests_decoding", "gauge", "Requests that are being answered.", r.decoding);
  add("requests_ended_total", "counter", "Requests that have ended.", r.ended);
  add("prompt_tokens_in_progress", "gauge", "Of the prompt that is being prefilled, what is done.",
      static_cast<int64_t>(r.partial_prompt_tokens));
  add("prompt_tokens_total", "counter", "Tokens of prompts that were prefilled.", r.prompt_tokens);
  add("generated_tokens_total", "counter", "Tokens that decode steps made.", r.step_tokens);
  add("decode_steps_total", "counter", "Decode steps of all requests together.", r.steps);
  add("decode_seconds_total", "counter", "Seconds of decode steps.", r.step_seconds);
  add("guessed_tokens_total", "counter", "Tokens that were guessed and computed ahead (--draft).", r.drafts.guessed);
  add("right_guesses_total", "counter", "Those of them that were right.", r.drafts.right);
  add("prefill_seconds_total", "counter", "Seconds of prefill.", r.prefill_seconds);
  return text;
}

}  // namespace tiercel
