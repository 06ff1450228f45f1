// tiercel::Batch: a thread that takes a scheduler's turns, and who may ask what of it.
#include <algorithm>
#include <system_error>
#include <utility>

#include "engine/api/batch_worker.h"
#include "engine/base/threads.h"

namespace tiercel {
namespace detail {

BatchWorker::BatchWorker(std::shared_ptr<EngineState> engine, v0::Options options,
                         std::unique_ptr<tiercel::Batch> batch, double max_gap)
    : engine_(std::move(engine)),
      options_(std::move(options)),
      max_prompt_(batch->plan().largest.n_prompt),
      context_(batch->plan().largest.context),
      memory_(to_public(batch->plan().largest)),
      scheduler_(std::make_unique<Scheduler>(std::move(batch), SchedulerOptions{max_gap})) {}

void BatchWorker::start() {
  try {
    const SignalsBlocked blocked;
    // The thread keeps what it uses alive, even when nobody waits for it any more.
    thread_ = std::thread([self = shared_from_this()] { self->run(); });
  } catch (const std::system_error& error) {
    refuse(v0::ErrorKind::kRuntime, "no thread for a batch: {}", error.what());
  }
}

HeldPrefix::~HeldPrefix() {
  tokens_.reset();
  if (const std::shared_ptr<BatchWorker> batch = batch_.lock()) batch->wake();
}

std::vector<int32_t> BatchWorker::tokenize(const HeldPrefix* prefix, std::string_view text,
                                           const v0::Options& options) const {
  require_request_options(options);
  return translated([&] {
    const Settings s = resolve({&options, &options_, &engine_->options});
    EncodeOptions encode{.add_special = !s.no_bos, .parse_special = s.special};
    if (prefix != nullptr) {
      encode.add_special = false;
      encode.follows = engine_->tokenizer.behind(*prefix->tokens());
    }
    return engine_->tokenizer.encode(text, encode);
  });
}

std::shared_ptr<HeldPrefix> BatchWorker::share(std::vector<int32_t> tokens) {
  check_tokens(*engine_, tokens);
  if (tokens.empty()) refuse(v0::ErrorKind::kUsage, "the prefix is empty");
  room_behind(std::ssize(tokens) + 1);
  const std::lock_guard lock(mutex_);
  if (closing_) refuse(v0::ErrorKind::kState, "this batch is closed");
  return std::make_shared<HeldPrefix>(std::move(tokens), weak_from_this());
}

void BatchWorker::wake() {
  const std::lock_guard lock(mutex_);
  has_work_ = true;
  changed_.notify_all();
}

// Tokens that can follow such a prompt.
int64_t BatchWorker::room_behind(int64_t n_prompt) const {
  if (n_prompt > max_prompt_) {
    refuse(v0::ErrorKind::kUsage,
           "the prompt has {} tokens, the batch was planned for {}; raise option max-prompt",
           n_prompt, max_prompt_);
  }
  if (n_prompt == context_) {
    refuse(v0::ErrorKind::kUsage,
           "the prompt has {} tokens and fills the batch's context; raise option ctx-size or "
           "n-predict of the batch",
           n_prompt);
  }
  return context_ - n_prompt;
}

std::shared_ptr<SharedRequest> BatchWorker::submit(const HeldPrefix* prefix,
                                                   std::vector<int32_t> prompt, int64_t n,
                                                   const v0::Options& options,
                                                   v0::PieceCallback callback) {
  require_request_options(options);
  if (n == 0 || n < -1) {
    refuse(v0::ErrorKind::kUsage, "submit: expected 1 or more tokens, or -1, found {}", n);
  }
  check_tokens(*engine_, prompt);
  if (prompt.empty()) refuse(v0::ErrorKind::kUsage, "the prompt is empty");
  if (prefix != nullptr && !prefix->is_of(*this)) {
    refuse(v0::ErrorKind::kUsage, "submit: the prefix is of another batch; share it with this one");
  }
  const int64_t n_prefix = prefix != nullptr ? std::ssize(*prefix->tokens()) : 0;
  const int64_t n_prompt = n_prefix + std::ssize(prompt);
  const int64_t room = room_behind(n_prompt);
  return translated([&] {
    const Settings s = resolve({&options, &options_, &engine_->options});
    if (n == -1) n = s.n_predict == -1 ? room + 1 : s.n_predict;
    if (n == 0) refuse(v0::ErrorKind::kUsage, "submit: option n-predict says 0");
    tiercel::Request request{.prefix = prefix != nullptr ? prefix->tokens() : nullptr,
                             .prompt = std::move(prompt),
                             .n_new = std::min(n, room),
                             .n_logprobs = s.n_logprobs};
    const ModelConfig& config = engine_->model->config();
    check_biases(s.sampling.logit_bias, config.vocab_size);
    request.sampling = resolve_sampling(s.sampling, config.sampling, engine_->forms, s.ignore_eos);
    if (!s.ignore_eos) {
      for (const int64_t id : engine_->end_tokens) {
        request.end_tokens.push_back(static_cast<int32_t>(id));
      }
    }
    const auto shared = std::make_shared<SharedRequest>(
        shared_from_this(), SharedRequest::Wish{.n_prompt = n_prompt,
                                                .n_prefix = n_prefix,
                                                .fills_context = n > room,
                                                .ignores_ends = s.ignore_eos,
                                                .seed = request.sampling.seed,
                                                .callback = std::move(callback)});
    request.on_token = [shared](int32_t token, const TokenLogprobs*) { return shared->take(token); };
    request.on_end = [this, shared](const RequestReport& report) {
      shared->finish(report);
      const std::lock_guard lock(mutex_);
      live_.erase(shared);
      ended_.push_back(shared->id_);
    };
    engine_->model->use_in_this_thread();  // planning may ask the device
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) refuse(v0::ErrorKind::kRuntime, "the batch has ended: {}", failure_);
    if (closing_) refuse(v0::ErrorKind::kState, "this batch is closed");
    ended_.reserve(ended_.size() + live_.size() + 1);  // the end of a request must not fail
    const auto listed = live_.insert(shared).first;
    try {
      shared->id_ = scheduler_->submit(std::move(request));
    } catch (...) {
      live_.erase(listed);
      throw;
    }
    has_work_ = true;
    changed_.notify_all();
    return shared;
  });
}

void BatchWorker::cancel(SharedRequest& request) {
  const std::lock_guard lock(mutex_);
  request.cancelled_ = true;
  if (scheduler_ == nullptr) return;
  scheduler_->cancel(request.id_);
  has_work_ = true;
  changed_.notify_all();
}

v0::RequestStats BatchWorker::stats(const SharedRequest& request) const {
  const std::lock_guard lock(mutex_);
  {
    const std::lock_guard its_lock(request.mutex_);
    if (request.done_) return request.stats_;
  }
  // Not done, so the scheduler is there and has not forgotten it: that takes this lock.
  RequestReport report = scheduler_->report(request.id_);
  if (has_ended(report.state)) {  // but its result is not out yet
    report.state =
        report.tokens.empty() ? tiercel::RequestState::kQueued : tiercel::RequestState::kDecoding;
  }
  return request.to_public(report);
}

v0::BatchStats BatchWorker::stats() const {
  const std::lock_guard lock(mutex_);
  const SchedulerReport report = scheduler_ == nullptr ? last_report_ : scheduler_->report();
  v0::BatchStats s;
  s.queued = report.queued;
  s.prefilling = report.prefilling;
  s.decoding = report.decoding;
  s.ended = report.ended;
  s.steps = report.steps;
  s.step_tokens = report.step_tokens;
  s.prompt_tokens = report.prompt_tokens;
  s.most_decoding = report.most_decoding;
  s.step_seconds = report.step_seconds;
  s.prefill_seconds = report.prefill_seconds;
  s.longest_gap = report.longest_gap;
  s.guessed_tokens = report.drafts.guessed;
  s.right_guesses = report.drafts.right;
  return s;
}

void BatchWorker::begin_close() {
  const std::lock_guard lock(mutex_);
  closing_ = true;
  for (const auto& request : live_) {
    request->cancelled_ = true;
    scheduler_->cancel(request->id_);
  }
  changed_.notify_all();
}

void BatchWorker::join() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stopped_; });
  std::thread thread = std::move(thread_);  // one of those that close joins
  lock.unlock();
  if (thread.joinable()) thread.join();
}

void BatchWorker::detach() {
  const std::lock_guard lock(mutex_);
  if (thread_.joinable()) thread_.detach();
}

// False: nothing will come any more.
bool BatchWorker::wait_for_work() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return has_work_ || closing_; });
  if (closing_ && live_.empty()) return false;
  has_work_ = false;
  return true;
}

// False: there is nothing to do.
bool BatchWorker::take_turn() {
  const Turn turn(*engine_);
  return scheduler_->turn();
}

void BatchWorker::forget_ended() {
  const std::lock_guard lock(mutex_);
  for (const Scheduler::RequestId id : ended_) scheduler_->forget(id);
  ended_.clear();
}

// A fault outside of any request: nobody knows what it left behind, so there are no more turns.
void BatchWorker::end_all(const std::string& why) {
  RequestReport report;
  report.state = tiercel::RequestState::kFailed;
  report.error = why;
  std::set<std::shared_ptr<SharedRequest>> left;
  {
    const std::lock_guard lock(mutex_);
    failure_ = why;
    left.swap(live_);
  }
  for (const auto& request : left) request->finish(report);
}

void BatchWorker::give_back() {
  std::unique_ptr<Scheduler> scheduler;
  {
    const std::lock_guard lock(mutex_);
    SchedulerReport& last = last_report_ = scheduler_->report();
    last.ended += last.queued + last.prefilling + last.decoding;  // by a fault: end_all
    last.queued = last.prefilling = last.decoding = 0;
    scheduler = std::move(scheduler_);
  }
  try {
    const Turn turn(*engine_);
    scheduler.reset();
  } catch (const v0::Error&) {
    scheduler.reset();  // a device that is gone
  }
}

void BatchWorker::run() noexcept {
  std::string failure;
  try {
    while (wait_for_work()) {
      const bool more = take_turn();
      forget_ended();
      if (!more) continue;
      const std::lock_guard lock(mutex_);
      has_work_ = true;
    }
  } catch (const std::bad_alloc&) {
    failure = "out of memory";
  } catch (const std::exception& error) {
    failure = error.what();
  } catch (...) {
    failure = "an unknown exception";
  }
  if (!failure.empty()) {
    engine_->log(v0::LogLevel::kError, "batch: ended by a fault: " + failure);
    end_all(failure);
  }
  give_back();
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

namespace {

BatchWorker& opened(const std::shared_ptr<BatchWorker>& worker) {
  if (worker == nullptr) refuse(v0::ErrorKind::kState, "this batch was moved away");
  return *worker;
}

const HeldPrefix& opened(const std::shared_ptr<HeldPrefix>& held) {
  if (held == nullptr) refuse(v0::ErrorKind::kState, "this prefix was moved away");
  return *held;
}

}  // namespace
}  // namespace detail

namespace v0 {

Batch::Batch(std::shared_ptr<detail::BatchWorker> worker) : worker_(std::move(worker)) {}
Batch::Batch(Batch&&) noexcept = default;

Batch& Batch::operator=(Batch&& other) noexcept {
  Batch old(std::move(*this));
  worker_ = std::move(other.worker_);
  return *this;
}

Batch::~Batch() {
  if (worker_ == nullptr) return;
  worker_->begin_close();
  if (worker_->would_wait_for_ever()) {
    worker_->detach();
  } else {
    worker_->join();
  }
}

Request Batch::submit(std::span<const int32_t> tokens, int64_t n, const Options& options,
                      PieceCallback callback) {
  detail::BatchWorker& worker = detail::opened(worker_);
  return Request(
      worker.submit(nullptr, {tokens.begin(), tokens.end()}, n, options, std::move(callback)));
}

Request Batch::submit(std::string_view text, int64_t n, const Options& options,
                      PieceCallback callback) {
  detail::BatchWorker& worker = detail::opened(worker_);
  return Request(worker.submit(nullptr, worker.tokenize(nullptr, text, options), n, options,
                               std::move(callback)));
}

Prefix Batch::share(std::span<const int32_t> tokens) {
  return Prefix(detail::opened(worker_).share({tokens.begin(), tokens.end()}));
}

Prefix Batch::share(std::string_view text, const Options& options) {
  detail::BatchWorker& worker = detail::opened(worker_);
  return Prefix(worker.share(worker.tokenize(nullptr, text, options)));
}

Request Batch::submit(const Prefix& prefix, std::span<const int32_t> tokens, int64_t n,
                      const Options& options, PieceCallback callback) {
  detail::BatchWorker& worker = detail::opened(worker_);
  const detail::HeldPrefix& held = detail::opened(prefix.held_);
  return Request(
      worker.submit(&held, {tokens.begin(), tokens.end()}, n, options, std::move(callback)));
}

Request Batch::submit(const Prefix& prefix, std::string_view text, int64_t n,
                      const Options& options, PieceCallback callback) {
  detail::BatchWorker& worker = detail::opened(worker_);
  const detail::HeldPrefix& held = detail::opened(prefix.held_);
  return Request(worker.submit(&held, worker.tokenize(&held, text, options), n, options,
                               std::move(callback)));
}

Prefix::Prefix(std::shared_ptr<detail::HeldPrefix> held) : held_(std::move(held)) {}
Prefix::Prefix(const Prefix&) = default;
Prefix& Prefix::operator=(const Prefix&) = default;
Prefix::Prefix(Prefix&&) noexcept = default;
Prefix& Prefix::operator=(Prefix&&) noexcept = default;
Prefix::~Prefix() = default;
int64_t Prefix::n_tokens() const { return std::ssize(*detail::opened(held_).tokens()); }

BatchStats Batch::stats() const { return detail::opened(worker_).stats(); }
MemoryPlan Batch::memory() const { return detail::opened(worker_).memory(); }

void Batch::close() {
  detail::BatchWorker& worker = detail::opened(worker_);
  if (worker.would_wait_for_ever()) {
    detail::refuse(ErrorKind::kBusy,
                   "a callback closes a batch that waits for it to return; close behind it");
  }
  worker.begin_close();
  worker.join();
}

namespace {

struct BatchSizes {
  int64_t max_prompt = 0, max_new = 0;
};

// Takes the context out of the settings: the plan of each request has one of its own.
BatchSizes batch_sizes(detail::Settings& s) {
  const int64_t context = std::exchange(s.session.context, 0);
  if (context == 0 && s.max_prompt == 0) {
    detail::refuse(ErrorKind::kUsage,
                   "a batch needs option max-prompt (tokens of the longest prompt) or ctx-size");
  }
  if (context == 0) return {s.max_prompt, s.n_predict};
  const int64_t max_prompt = s.max_prompt > 0 ? s.max_prompt : std::max<int64_t>(1, context - 1);
  if (max_prompt >= context) {
    detail::refuse(ErrorKind::kUsage,
                   "option ctx-size: expected more than the {} tokens of max-prompt, found {}",
                   max_prompt, context);
  }
  return {max_prompt, context - max_prompt};
}

}  // namespace

Batch Engine::open_batch(const Options& options) const {
  return detail::translated([&] {
    detail::EngineState& engine = detail::opened_engine(state_);
    detail::require_batch_options(options);
    const detail::Turn turn(engine);
    detail::Settings s = detail::resolve({&options, &engine.options});
    const BatchSizes sizes = batch_sizes(s);
    BatchPlan plan = tiercel::Batch::plan(*engine.model, s.session, s.parallel, sizes.max_prompt,
                                          sizes.max_new);
    plan.micro_batches = s.micro_batches;
    engine.log_plan("batch", plan.largest);
    const auto worker = std::make_shared<detail::BatchWorker>(
        state_, options, tiercel::Batch::open(engine.model, plan), s.max_gap);
    worker->start();
    return Batch(worker);
  });
}

}  // namespace v0
}  // namespace tiercel
