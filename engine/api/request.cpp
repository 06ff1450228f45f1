// tiercel::Request: what the batch's thread puts in and what any thread reads.
#include <algorithm>
#include <chrono>

#include "engine/api/batch_worker.h"

namespace tiercel {
namespace detail {

static_assert(static_cast<int>(v0::RequestState::kDecoding) ==
              static_cast<int>(tiercel::RequestState::kDecoding));
static_assert(static_cast<int>(v0::RequestState::kCancelled) ==
              static_cast<int>(tiercel::RequestState::kCancelled));

SharedRequest::SharedRequest(std::shared_ptr<BatchWorker> batch, Wish wish)
    : wish_(std::move(wish)),
      decoder_(batch->engine().tokenizer, /*skip_special=*/true),
      batch_(std::move(batch)) {}

// As Session::generate has it: a token that ends texts has no text, and nobody can stop behind it.
bool SharedRequest::take(int32_t token) {
  if (cancelled_) return false;
  const std::vector<int64_t>& ends = batch_->engine().end_tokens;
  ended_by_token_ = !wish_.ignores_ends && std::find(ends.begin(), ends.end(), token) != ends.end();
  const std::string piece = ended_by_token_ ? decoder_.finish() : decoder_.push(token);
  tokens_.push_back(token);
  text_ += piece;
  if (!wish_.callback) return true;
  try {
    return wish_.callback({token, piece}) || ended_by_token_;
  } catch (...) {
    raised_ = std::current_exception();
    return false;
  }
}

v0::RequestStats SharedRequest::to_public(const RequestReport& report) const {
  v0::RequestStats s;
  s.state = static_cast<v0::RequestState>(report.state);
  s.prompt_tokens = wish_.n_prompt;
  s.prefix_tokens = wish_.n_prefix;
  s.generated_tokens = static_cast<int64_t>(report.tokens.size());
  s.queued_seconds = report.queued_seconds;
  s.first_token_seconds = report.first_token_seconds;
  s.decode_seconds = report.decode_seconds;
  s.seed = wish_.seed;
  s.selections = report.selection.steps;
  s.selected_chunks = report.selection.selected_chunks;
  s.hit_chunks = report.selection.hit_chunks;
  s.fetched_bytes = report.selection.fetched_bytes;
  s.decisions = report.selection.decisions;
  s.reused = report.selection.reused;
  return s;
}

void SharedRequest::finish_result(const RequestReport& report) {
  stats_ = to_public(report);
  stats_.generated_tokens = static_cast<int64_t>(tokens_.size());
  if (raised_ != nullptr) stats_.state = v0::RequestState::kFailed;
  const bool known = report.error_kind == tiercel::ErrorKind::kUsage ||
                     report.error_kind == tiercel::ErrorKind::kDoesNotFit;
  if (known) error_kind_ = static_cast<v0::ErrorKind>(report.error_kind);
  error_ = report.error;
  result_.tokens = std::move(tokens_);
  result_.text = std::move(text_);
  for (const auto& [logprob, top] : report.logprobs) {
    if (result_.logprobs.size() == result_.tokens.size()) break;  // cancelled: a token was not taken
    v0::TokenLogprobs& its = result_.logprobs.emplace_back();
    its.logprob = logprob;
    for (const auto& [token, its_logprob] : top) its.top.push_back({token, its_logprob});
  }
  if (stats_.state == v0::RequestState::kCancelled) {
    result_.reason = v0::FinishReason::kStopped;
  } else if (ended_by_token_) {
    result_.reason = v0::FinishReason::kEndOfText;
  } else if (wish_.fills_context) {
    result_.reason = v0::FinishReason::kContextFull;
  }
}

void SharedRequest::finish(const RequestReport& report) {
  // What it holds may be this very request, or need what waits for the result.
  wish_.callback = nullptr;
  std::shared_ptr<BatchWorker> batch;
  const std::lock_guard lock(mutex_);
  finish_result(report);
  batch.swap(batch_);
  done_ = true;
  changed_.notify_all();
}

std::shared_ptr<BatchWorker> SharedRequest::batch() const {
  const std::lock_guard lock(mutex_);
  return batch_;
}

void SharedRequest::require_patience() const {
  const std::shared_ptr<BatchWorker> worker = batch();
  if (worker == nullptr || !worker->would_wait_for_ever()) return;
  refuse(v0::ErrorKind::kBusy,
         "a callback waits for a request that waits for it to return; wait behind it");
}

const v0::Generation& SharedRequest::wait() const {
  require_patience();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_; });
  if (stats_.state != v0::RequestState::kFailed) return result_;
  if (raised_ != nullptr) std::rethrow_exception(raised_);
  throw v0::Error(error_kind_, error_);
}

bool SharedRequest::wait_for(double seconds) const {
  if (!(seconds > 0)) return done();
  require_patience();
  std::unique_lock lock(mutex_);
  // A year is for ever: what a clock cannot hold would be no time at all.
  const std::chrono::duration<double> time(std::min(seconds, 3e7));
  return changed_.wait_for(lock, time, [&] { return done_; });
}

bool SharedRequest::done() const {
  const std::lock_guard lock(mutex_);
  return done_;
}

void SharedRequest::cancel() {
  if (const std::shared_ptr<BatchWorker> worker = batch()) worker->cancel(*this);
}

v0::RequestStats SharedRequest::stats() const {
  if (const std::shared_ptr<BatchWorker> worker = batch()) return worker->stats(*this);
  const std::lock_guard lock(mutex_);
  return stats_;
}

namespace {

SharedRequest& shared_by(const std::shared_ptr<SharedRequest>& shared) {
  if (shared == nullptr) refuse(v0::ErrorKind::kState, "this request was moved away");
  return *shared;
}

}  // namespace

const v0::Generation& RequestResult::wait(const v0::Request& request) {
  return shared_by(request.shared_).wait();
}

}  // namespace detail

namespace v0 {

Request::Request(std::shared_ptr<detail::SharedRequest> shared) : shared_(std::move(shared)) {}
Request::Request(const Request&) = default;
Request& Request::operator=(const Request&) = default;
Request::Request(Request&&) noexcept = default;
Request& Request::operator=(Request&&) noexcept = default;
Request::~Request() = default;

Generation Request::wait() const { return detail::shared_by(shared_).wait(); }
bool Request::wait_for(double seconds) const {
  return detail::shared_by(shared_).wait_for(seconds);
}
bool Request::done() const { return detail::shared_by(shared_).done(); }
void Request::cancel() { detail::shared_by(shared_).cancel(); }
RequestStats Request::stats() const { return detail::shared_by(shared_).stats(); }

}  // namespace v0
}  // namespace tiercel
