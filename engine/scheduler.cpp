#include "engine/scheduler.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

namespace tiercel {
namespace {

double seconds_of_clock() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

struct Scheduler::Entry {
  Entry(RequestId its_id, Request its_request, int64_t vocab_size)
      : id(its_id),
        request(std::move(its_request)),
        sampler(request.sampling, vocab_size),
        history(request.prompt) {}

  RequestId id;
  Request request;
  Sampler sampler;
  std::vector<int32_t> history;  // prompt and tokens
  SessionPlan plan;
  SequenceBytes bytes;
  SequenceWork work;
  double order = 0;  // work done when it arrived, and its own
  int64_t overtaken = 0;
  int64_t sequence = -1;  // in the batch
  Batch::PrefillProgress progress;
  double arrived = 0, first_token = 0;
  RequestReport report;
};

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
  SessionPlan plan = batch_->plan_sequence(n_prompt, request.n_new);
  auto entry = std::make_unique<Entry>(0, std::move(request), vocab_size_);
  entry->plan = std::move(plan);
  entry->bytes = batch_->bytes_of(entry->plan);
  entry->work = batch_->work_of(entry->plan);
  entry->report.prompt_tokens = n_prompt;
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

void Scheduler::take_inbox() {
  const std::lock_guard lock(mutex_);
  for (const RequestId id : inbox_) {
    const auto found = entries_.find(id);  // none: cancelled and forgotten before it was seen here
    if (found == entries_.end() || has_ended(found->second->report.state)) continue;
    Entry& entry = *found->second;
    entry.order = work_done_ + entry.work.prompt +
                  static_cast<double>(entry.request.n_new) * entry.work.step;
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

// Whoever is first in order, unless it waits for room and others may still pass.
void Scheduler::admit() {
  if (prefilling_ != nullptr || out_of_memory_) return;
  std::stable_sort(queued_.begin(), queued_.end(),
                   [](const Entry* a, const Entry* b) { return a->order < b->order; });
  for (size_t i = 0; i < queued_.size(); ++i) {
    Entry& entry = *queued_[i];
    const Added added = try_to_add(entry);
    if (added == Added::kFailed) return;  // and is gone
    if (added == Added::kYes) {
      for (size_t passed = 0; passed < i; ++passed) ++queued_[passed]->overtaken;
      std::erase(queued_, &entry);
      prefilling_ = &entry;
      return;
    }
    if (out_of_memory_ || entry.overtaken >= kMaxOvertaken) return;
  }
}

Scheduler::Added Scheduler::try_to_add(Entry& entry) {
  const bool alone = decoding_.empty();
  const auto without_memory = [&](const char* what) {
    if (!alone) {
      out_of_memory_ = true;
      return Added::kNoRoom;
    }
    fail_entry(entry, ErrorKind::kDoesNotFit, what);
    return Added::kFailed;
  };
  SessionPlan plan = entry.plan;
  try {
    if (!batch_->has_room(entry.bytes)) {
      bool fits = false;
      const double slots = working_set_slots();
      if (slots > 0 && slots < plan.options.selection.slots) {
        plan = batch_->plan_sequence(plan.n_prompt, entry.request.n_new, slots);
        fits = batch_->has_room(batch_->bytes_of(plan));
      }
      if (!fits) {
        if (!alone) return Added::kNoRoom;
        fail(ErrorKind::kDoesNotFit,
             "{} tokens do not fit the memory that is left, with nothing else running; raise "
             "--device-memory or --host-memory, or shorten the context",
             plan.context);
      }
    }
    entry.sequence = batch_->add(plan, entry.request.prompt);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kDoesNotFit) return without_memory(error.what());
    fail_entry(entry, error.kind(), error.what());
    return Added::kFailed;
  } catch (const std::bad_alloc&) {
    return without_memory("this machine has no memory left for the request");
  }
  const std::lock_guard lock(mutex_);
  entry.report.state = RequestState::kPrefilling;
  entry.report.queued_seconds = now() - entry.arrived;
  entry.report.slots = plan.options.selection.slots;
  --totals_.queued;
  ++totals_.prefilling;
  return Added::kYes;
}

// What the sequences that decode used in recent steps: the chunks of one step, and those that each
// further step of the window fetched beside them. In budgets, at least one; 0: nobody knows yet. Counters
// may live on a device, which is waited for: they are asked once per window.
double Scheduler::working_set_slots() {
  if (n_steps_ < measured_at_ + kWorkingSetSteps && measured_slots_ > 0) return measured_slots_;
  int64_t selected = 0, missed = 0;
  for (const Entry* entry : decoding_) {
    const SelectionReport s = batch_->selection(entry->sequence);
    selected += s.selected_chunks;
    missed += s.selected_chunks - s.hit_chunks;
  }
  if (selected == 0) return 0;
  const double misses = static_cast<double>(missed) / static_cast<double>(selected);
  measured_at_ = n_steps_;
  measured_slots_ = 1 + misses * static_cast<double>(kWorkingSetSteps);
  return measured_slots_;
}

template <typename Work>
bool Scheduler::guarded(Entry& entry, Work work) {
  try {
    return work();
  } catch (const Error& error) {
    fail_entry(entry, error.kind(), error.what());
  } catch (const std::exception& error) {
    fail_entry(entry, ErrorKind::kRuntime, error.what());
  }
  return false;
}

// Until the gap is used up, or there is nothing left to prefill.
void Scheduler::prefill() {
  const double begin = now();
  for (;;) {
    admit();
    if (prefilling_ == nullptr) {
      if (queued_.empty() || !decoding_.empty()) break;
      continue;  // one that failed to be added made way for the next
    }
    advance(*prefilling_);
    take_inbox();
    take_cancelled();
    const double spent = now() - begin;
    if (options_.max_gap > 0 && !decoding_.empty() && spent >= options_.max_gap) break;
    if (options_.go_on && !options_.go_on()) break;
  }
  gap_ += now() - begin;
}

void Scheduler::advance(Entry& entry) {
  const double begin = now();
  const Batch::PrefillProgress before = entry.progress;
  if (!guarded(entry, [&] {
        entry.progress = batch_->advance_prefill(entry.sequence);
        return true;
      })) {
    return;
  }
  work_done_ += entry.progress.done - before.done;
  {
    const std::lock_guard lock(mutex_);
    totals_.prefill_seconds += now() - begin;
    totals_.partial_prompt_tokens = static_cast<double>(entry.plan.n_prompt) *
                                    entry.progress.done / std::max(entry.progress.total, 1.0);
    if (!entry.progress.finished) return;
    totals_.partial_prompt_tokens = 0;
    totals_.prompt_tokens += entry.plan.n_prompt;
    --totals_.prefilling;
    ++totals_.decoding;
    entry.report.state = RequestState::kDecoding;
  }
  prefilling_ = nullptr;
  decoding_.push_back(&entry);
  accept(entry, -1);
}

// The token behind what the sequence holds, or -1 where it is still to be sampled. The entry may be gone
// afterwards.
void Scheduler::accept(Entry& entry, int32_t token) {
  const Request& request = entry.request;
  bool go_on = false;
  const bool sampled = guarded(entry, [&] {
    if (token < 0) token = batch_->sample(entry.sequence, entry.sampler, entry.history);
    return true;
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
    entry.history.push_back(token);
  }
  const bool heard = guarded(entry, [&] {
    go_on = !request.on_token || request.on_token(token);
    return true;
  });
  if (!heard) return;
  if (!go_on) {
    end(entry, RequestState::kCancelled);
  } else if (static_cast<int64_t>(entry.report.tokens.size()) == request.n_new ||
             std::ranges::find(request.end_tokens, token) != request.end_tokens.end()) {
    end(entry, RequestState::kFinished);
  }
}

void Scheduler::step() {
  if (decoding_.empty()) return;
  const double begin = now();
  steps_.clear();
  for (const Entry* entry : decoding_) {
    steps_.push_back({entry->sequence, entry->history.back()});
  }
  // What fails here fails for all: nobody knows whose memory it left in what state.
  const std::vector<Entry*> running = decoding_;
  samplings_.clear();
  for (Entry* entry : running) samplings_.push_back({entry->sequence, &entry->sampler, entry->history});
  try {
    batch_->step(steps_);
    batch_->sample_ahead(samplings_);
  } catch (const Error& error) {
    for (Entry* entry : running) fail_entry(*entry, error.kind(), error.what());
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    ++totals_.steps;
    totals_.step_tokens += static_cast<int64_t>(running.size());
    totals_.most_decoding = std::max(totals_.most_decoding, static_cast<int64_t>(running.size()));
    totals_.longest_gap = std::max(totals_.longest_gap, gap_);
  }
  gap_ = 0;
  ++n_steps_;
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
  const std::lock_guard lock(mutex_);
  return !inbox_.empty() || !queued_.empty() || prefilling_ != nullptr || !decoding_.empty();
}

void Scheduler::fail_entry(Entry& entry, ErrorKind kind, const std::string& what) {
  {
    const std::lock_guard lock(mutex_);
    entry.report.error_kind = kind;
    entry.report.error = what;
  }
  end(entry, RequestState::kFailed);
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
  }
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
