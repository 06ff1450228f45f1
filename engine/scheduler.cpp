#include "engine/scheduler.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/scheduler_entry.h"

namespace tiercel {
namespace {

double seconds_of_clock() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

const char* name_of(RequestState state) {
  switch (state) {
    case RequestState::kQueued: return "queued";
    case RequestState::kPrefilling: return "prefilling";
    case RequestState::kDecoding: return "decoding";
    case RequestState::kFinished: return "finished";
    case RequestState::kFailed: return "failed";
    case RequestState::kCancelled: return "cancelled";
  }
  return "?";
}

Scheduler::Scheduler(std::unique_ptr<Batch> batch, const SchedulerOptions& options)
    : batch_(std::move(batch)),
      options_(options),
      vocab_size_(batch_->config().vocab_size),
      start_(seconds_of_clock()) {
  if (!(options.max_gap >= 0)) {
    fail(ErrorKind::kUsage, "max_gap: expected 0 or more seconds, found {}", options.max_gap);
  }
  steps_.reserve(static_cast<size_t>(batch_->plan().n_sequences));
  samplings_.reserve(steps_.capacity());
}

Scheduler::~Scheduler() = default;

double Scheduler::now() const { return seconds_of_clock() - start_; }

Scheduler::RequestId Scheduler::submit(Request request) {
  const auto n_prompt = static_cast<int64_t>(request.prompt.size());
  if (n_prompt == 0) fail(ErrorKind::kUsage, "the prompt is empty");
  if (request.n_new < 1) {
    fail(ErrorKind::kUsage, "expected 1 or more tokens to generate, found {}", request.n_new);
  }
  const auto n_prefix = static_cast<int64_t>(request.prefix ? request.prefix->size() : 0);
  if (request.prefix && n_prefix == 0) fail(ErrorKind::kUsage, "the prefix is empty");
  SessionPlan plan = request.prefix ? batch_->plan_behind(batch_->plan_prefix(n_prefix), n_prompt,
                                                          request.n_new)
                                    : batch_->plan_sequence(n_prompt, request.n_new);
  check_sampling(request.sampling, vocab_size_);
  auto entry = std::make_unique<Entry>(0, std::move(request));
  entry->plan = std::move(plan);
  entry->bytes = batch_->bytes_of(entry->plan);
  entry->work = batch_->work_of(entry->plan);
  entry->report.prompt_tokens = n_prefix + n_prompt;
  entry->report.prefix_tokens = n_prefix;
  entry->arrived = now();
  const std::lock_guard lock(mutex_);
  entry->id = next_id_++;
  inbox_.push_back(entry->id);
  ++totals_.queued;
  const RequestId id = entry->id;
  entries_.emplace(id, std::move(entry));
  return id;
}

void Scheduler::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  if (entries_.contains(id)) cancelled_.push_back(id);
}

RequestReport Scheduler::report(RequestId id) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) fail(ErrorKind::kUsage, "there is no request {}", id);
  return found->second->report;
}

void Scheduler::forget(RequestId id) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  if (!has_ended(found->second->report.state)) {
    fail(ErrorKind::kUsage, "request {} has not ended: cancel it first", id);
  }
  entries_.erase(found);
}

SchedulerReport Scheduler::report() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

double Scheduler::prefilled_tokens(RequestId id) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return 0;
  const auto done = [](const Placed& placed) {
    const Batch::PrefillProgress& p = placed.progress;
    const double share = p.finished ? 1 : p.total > 0 ? p.done / p.total : 0;
    return share * static_cast<double>(placed.plan.n_prompt);
  };
  const Entry& entry = *found->second;
  return done(entry) + (entry.prefix != nullptr ? done(*entry.prefix) : 0);
}

void Scheduler::take_inbox() {
  const std::lock_guard lock(mutex_);
  for (const RequestId id : inbox_) {
    const auto found = entries_.find(id);  // none: cancelled and forgotten before it was seen here
    if (found == entries_.end() || has_ended(found->second->report.state)) continue;
    Entry& entry = *found->second;
    entry.order = work_done_ + entry.work.prompt +
                  static_cast<double>(entry.request.n_new) * entry.work.step;
    if (entry.request.prefix) {
      entry.prefix = find_prefix(entry.request.prefix);
      ++entry.prefix->n_requests;
      entry.prefix->last_use = ++n_prefix_uses_;
      if (entry.prefix->is_ready()) entry.report.cached_tokens = entry.report.prefix_tokens;
    }
    queued_.push_back(&entry);
  }
  inbox_.clear();
}

void Scheduler::take_cancelled() {
  std::vector<RequestId> ids;
  {
    const std::lock_guard lock(mutex_);
    ids.swap(cancelled_);
  }
  for (const RequestId id : ids) {
    Entry* entry = nullptr;
    {
      // Anew for each: one that is named twice may be gone by now.
      const std::lock_guard lock(mutex_);
      const auto found = entries_.find(id);
      if (found == entries_.end() || has_ended(found->second->report.state)) continue;
      entry = found->second.get();
    }
    end(*entry, RequestState::kCancelled);
  }
}

// Until the gap is used up, or there is nothing left to prefill.
void Scheduler::prefill() {
  const double begin = now();
  for (;;) {
    admit();
    if (!is_prefilling()) {
      if (queued_.empty() || !decoding_.empty()) break;
      continue;  // one that failed to be added made way for the next
    }
    if (prefilling_ != nullptr) {
      advance(*prefilling_);
    } else {
      advance(*prefilling_prefix_);
    }
    take_inbox();
    take_cancelled();
    const double spent = now() - begin;
    if (options_.max_gap > 0 && !decoding_.empty() && spent >= options_.max_gap) break;
    if (options_.go_on && !options_.go_on()) break;
  }
  gap_ += now() - begin;
}

// Whether its prompt is done.
bool Scheduler::advance(Placed& placed) {
  const double begin = now(), before = placed.progress.done;
  placed.progress = batch_->advance_prefill(placed.sequence);
  work_done_ += placed.progress.done - before;
  const auto n_prompt = static_cast<double>(placed.plan.n_prompt);
  const std::lock_guard lock(mutex_);
  totals_.prefill_seconds += now() - begin;
  totals_.partial_prompt_tokens =
      n_prompt * placed.progress.done / std::max(placed.progress.total, 1.0);
  if (!placed.progress.finished) return false;
  totals_.partial_prompt_tokens = 0;
  totals_.prompt_tokens += placed.plan.n_prompt;
  return true;
}

void Scheduler::advance(Entry& entry) {
  bool finished = false;
  if (!guarded(entry, [&] { finished = advance(static_cast<Placed&>(entry)); }) || !finished) return;
  prefilling_ = nullptr;
  decoding_.push_back(&entry);
  {
    const std::lock_guard lock(mutex_);
    --totals_.prefilling;
    ++totals_.decoding;
    entry.report.state = RequestState::kDecoding;
  }
  accept(entry, -1);
}

void Scheduler::advance(Prefix& prefix) {
  bool finished = false;
  if (!guarded(prefix, [&] { finished = advance(static_cast<Placed&>(prefix)); })) return;
  if (finished) prefilling_prefix_ = nullptr;
}

// The token behind what the sequence holds, or -1 where it is still to be sampled. The entry may be gone
// afterwards.
void Scheduler::accept(Entry& entry, int32_t token) {
  const Request& request = entry.request;
  bool go_on = false;
  TokenLogprobs logprobs;
  const bool sampled = guarded(entry, [&] {
    if (token < 0) token = batch_->sample(entry.sequence, *entry.sampler, entry.history);
    if (request.n_logprobs >= 0) {
      logprobs = logprobs_of(batch_->logits(entry.sequence), token, request.n_logprobs);
    }
  });
  if (!sampled) return;
  {
    const std::lock_guard lock(mutex_);
    RequestReport& report = entry.report;
    const double time = now();
    if (report.tokens.empty()) {
      entry.first_token = time;
      report.first_token_seconds = time - entry.arrived;
    }
    report.decode_seconds = time - entry.first_token;
    report.tokens.push_back(token);
    if (request.n_logprobs >= 0 && request.keeps_logprobs) report.logprobs.push_back(logprobs);
    entry.history.push_back(token);
  }
  const TokenLogprobs* told = request.n_logprobs >= 0 ? &logprobs : nullptr;
  const bool heard =
      guarded(entry, [&] { go_on = !request.on_token || request.on_token(token, told); });
  if (!heard) return;
  if (!go_on) {
    end(entry, RequestState::kCancelled);
  } else if (static_cast<int64_t>(entry.report.tokens.size()) == request.n_new ||
             std::ranges::find(request.end_tokens, token) != request.end_tokens.end()) {
    end(entry, RequestState::kFinished);
  }
}

void Scheduler::count_step(int64_t n_tokens, int64_t n_sequences) {
  {
    const std::lock_guard lock(mutex_);
    ++totals_.steps;
    totals_.step_tokens += n_tokens;
    totals_.most_decoding = std::max(totals_.most_decoding, n_sequences);
    totals_.longest_gap = std::max(totals_.longest_gap, gap_);
  }
  gap_ = 0;
  ++n_steps_;
}

void Scheduler::step() {
  if (decoding_.empty()) return;
  if (batch_->plan().largest.draft > 0) {
    if (decoding_.size() == 1) return step_alone(*decoding_.front());
    for (Entry* entry : decoding_) entry->drafts.reset();  // several share each reading of the weights as it is
  }
  const double begin = now();
  steps_.clear();
  for (const Entry* entry : decoding_) {
    steps_.push_back({entry->sequence, entry->history.back()});
  }
  // What fails here fails for all: nobody knows whose memory it left in what state.
  const std::vector<Entry*> running = decoding_;
  samplings_.clear();
  for (Entry* entry : running) samplings_.push_back({entry->sequence, &*entry->sampler, entry->history});
  try {
    batch_->step(steps_);
    batch_->sample_ahead(samplings_);
  } catch (const Error& error) {
    for (Entry* entry : running) give_up(*entry, {error.kind(), error.what()});
    return;
  } catch (const std::exception& error) {  // no memory
    for (Entry* entry : running) give_up(*entry, {ErrorKind::kRuntime, error.what()});
    return;
  }
  count_step(std::ssize(running), std::ssize(running));
  for (size_t i = 0; i < running.size(); ++i) {
    work_done_ += running[i]->work.step;
    accept(*running[i], samplings_[i].token);
  }
  const std::lock_guard lock(mutex_);
  totals_.step_seconds += now() - begin;
}

bool Scheduler::turn() {
  take_inbox();
  take_cancelled();
  prefill();
  step();
  drop_unused_prefixes();
  const std::lock_guard lock(mutex_);
  return !inbox_.empty() || !queued_.empty() || is_prefilling() || !decoding_.empty();
}

void Scheduler::give_up(Entry& entry, const Failure& failure) {
  {
    const std::lock_guard lock(mutex_);
    entry.report.error_kind = failure.kind;
    entry.report.error = failure.what;
  }
  end(entry, RequestState::kFailed);
}

// Nobody is behind it yet.
void Scheduler::give_up(Prefix& prefix, const Failure& failure) {
  std::vector<Entry*> waiting;
  for (Entry* entry : queued_) {
    if (entry->prefix == &prefix) waiting.push_back(entry);
  }
  for (Entry* entry : waiting) give_up(*entry, failure);
  remove_prefix(prefix);
}

void Scheduler::end(Entry& entry, RequestState state) {
  if (entry.sequence >= 0) {
    try {
      const SelectionReport selection = batch_->selection(entry.sequence);
      {
        const std::lock_guard lock(mutex_);
        entry.report.selection = selection;
      }
      batch_->remove(entry.sequence);
    } catch (const std::exception&) {
      // A device that is lost has no counters, and nothing that could be given back. Everyone fails with
      // what was said first.
    }
    entry.sequence = -1;
    out_of_memory_ = false;
    if (entry.prefix != nullptr) --entry.prefix->n_behind;
  }
  if (entry.prefix != nullptr) --entry.prefix->n_requests;
  entry.prefix = nullptr;
  entry.request.prefix.reset();
  std::erase(queued_, &entry);
  std::erase(decoding_, &entry);
  if (prefilling_ == &entry) prefilling_ = nullptr;
  const auto on_end = std::move(entry.request.on_end);
  RequestReport report;
  {
    const std::lock_guard lock(mutex_);
    switch (entry.report.state) {
      case RequestState::kQueued: --totals_.queued; break;
      case RequestState::kPrefilling:
        --totals_.prefilling;
        totals_.partial_prompt_tokens = 0;
        break;
      case RequestState::kDecoding: --totals_.decoding; break;
      default: break;
    }
    ++totals_.ended;
    entry.report.state = state;
    report = entry.report;
  }
  // Another thread, or on_end itself, may have it forgotten from now on.
  if (on_end) on_end(report);
}

}  // namespace tiercel
