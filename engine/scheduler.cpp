#include "engine/scheduler.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <optional>
#include <utility>

namespace tiercel {
namespace {

double seconds_of_clock() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

// A sequence of the batch, or what is to become one.
struct Scheduler::Placed {
  SessionPlan plan;
  SequenceBytes bytes;
  SequenceWork work;
  Prefix* prefix = nullptr;  // that it is behind
  int64_t sequence = -1;     // in the batch
  Batch::PrefillProgress progress;
};

struct Scheduler::Prefix : Placed {
  SharedPrefix tokens;
  int64_t n_requests = 0;  // that have not ended
  int64_t n_behind = 0;    // of them, in the batch
  int64_t last_use = 0;    // of prefixes, by their number
  bool is_ready() const { return sequence >= 0 && progress.finished; }
};

struct Scheduler::Entry : Placed {
  Entry(RequestId its_id, Request its_request, int64_t vocab_size)
      : id(its_id),
        request(std::move(its_request)),
        sampler(request.sampling, vocab_size) {
    // As much as a sampler looks back on.
    if (request.prefix != nullptr) {
      const std::vector<int32_t>& tokens = *request.prefix;
      const auto n = std::min(std::ssize(tokens), request.sampling.repeat_last_n);
      history.assign(tokens.end() - n, tokens.end());
    }
    history.insert(history.end(), request.prompt.begin(), request.prompt.end());
  }

  // Where it stands among those that wait: what its prefix still takes counts too.
  double place() const {
    return order + (prefix != nullptr && !prefix->is_ready() ? prefix->work.prompt : 0);
  }

  RequestId id;
  Request request;
  Sampler sampler;
  std::vector<int32_t> history;  // prompt and tokens
  double order = 0;  // work done when it arrived, and its own
  int64_t overtaken = 0;
  double arrived = 0, first_token = 0;
  RequestReport report;
  std::optional<Drafts> drafts;  // while nobody else is decoded
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
  const auto n_prefix = static_cast<int64_t>(request.prefix ? request.prefix->size() : 0);
  if (request.prefix && n_prefix == 0) fail(ErrorKind::kUsage, "the prefix is empty");
  SessionPlan plan = request.prefix ? batch_->plan_behind(batch_->plan_prefix(n_prefix), n_prompt,
                                                          request.n_new)
                                    : batch_->plan_sequence(n_prompt, request.n_new);
  auto entry = std::make_unique<Entry>(0, std::move(request), vocab_size_);
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

Scheduler::Prefix* Scheduler::find_prefix(const SharedPrefix& tokens) {
  std::unique_ptr<Prefix>& prefix = prefixes_[tokens.get()];
  if (prefix == nullptr) {
    prefix = std::make_unique<Prefix>();
    prefix->tokens = tokens;
    prefix->plan = batch_->plan_prefix(std::ssize(*tokens));
    prefix->bytes = batch_->bytes_of(prefix->plan);
    prefix->work = batch_->work_of(prefix->plan);
  }
  return prefix.get();
}

// Those that nobody will ask for again, and one in the middle of its prefill that nobody waits for.
void Scheduler::drop_unused_prefixes() {
  for (auto next = prefixes_.begin(); next != prefixes_.end();) {
    const Prefix& prefix = *(next++)->second;
    if (prefix.n_requests > 0) continue;
    if (&prefix == prefilling_prefix_ || prefix.tokens.use_count() == 1) remove_prefix(prefix);
  }
}

void Scheduler::remove_prefix(const Prefix& prefix) {
  CHECK(prefix.n_behind == 0, "{} sequences are behind it", prefix.n_behind);
  if (&prefix == prefilling_prefix_) {
    prefilling_prefix_ = nullptr;
    const std::lock_guard lock(mutex_);
    totals_.partial_prompt_tokens = 0;
  }
  if (prefix.sequence >= 0) {
    try {
      batch_->remove(prefix.sequence);
    } catch (const std::exception&) {
      // As in end().
    }
    out_of_memory_ = false;
  }
  prefixes_.erase(prefix.tokens.get());
}

// Whoever is first in order, unless it waits for room and others may still pass. What comes in may be
// its prefix.
void Scheduler::admit() {
  drop_unused_prefixes();
  if (is_prefilling() || out_of_memory_) return;
  std::stable_sort(queued_.begin(), queued_.end(),
                   [](const Entry* a, const Entry* b) { return a->place() < b->place(); });
  for (size_t i = 0; i < queued_.size(); ++i) {
    Entry& entry = *queued_[i];
    const bool prefix_first = entry.prefix != nullptr && !entry.prefix->is_ready();
    const Added added = prefix_first ? try_to_add(*entry.prefix) : try_to_add(entry);
    if (added == Added::kFailed) return;  // and is gone
    if (added == Added::kYes) {
      for (size_t passed = 0; passed < i; ++passed) ++queued_[passed]->overtaken;
      if (!prefix_first) std::erase(queued_, &entry);
      return;
    }
    if (out_of_memory_ || entry.overtaken >= kMaxOvertaken) return;
  }
}

// One that nobody waits for makes way; where nothing runs, so does any that is not its own: it is first in
// order.
bool Scheduler::may_drop(const Prefix& prefix, const Placed& placed) const {
  return prefix.is_ready() && &prefix != placed.prefix && (decoding_.empty() || prefix.n_requests == 0);
}

// False: there is none.
bool Scheduler::drop_prefix_for(const Placed& placed) {
  Prefix* oldest = nullptr;
  for (const auto& [tokens, prefix] : prefixes_) {
    if (may_drop(*prefix, placed) && (oldest == nullptr || prefix->last_use < oldest->last_use)) oldest = prefix.get();
  }
  if (oldest == nullptr) return false;
  if (oldest->n_requests == 0) {
    remove_prefix(*oldest);
    return true;
  }
  // Made again for those that wait.
  batch_->remove(oldest->sequence);
  oldest->sequence = -1;
  oldest->progress = {};
  for (Entry* entry : queued_) {
    if (entry->prefix != oldest) continue;
    const std::lock_guard lock(mutex_);
    entry->report.cached_tokens = 0;
  }
  return true;
}

// For one of so many bytes.
bool Scheduler::make_room(const Placed& placed, const SequenceBytes& bytes) {
  if (batch_->has_room(bytes)) return true;
  SequenceBytes left = bytes;  // once all that may go has gone
  for (const auto& [tokens, prefix] : prefixes_) {
    if (!may_drop(*prefix, placed)) continue;
    left.device -= prefix->bytes.device;
    left.host -= prefix->bytes.host;
  }
  // Alone it is tried whatever the sum says: nothing else will make room.
  if (!decoding_.empty() && !batch_->has_room(left)) return false;
  while (!batch_->has_room(bytes)) {
    if (!drop_prefix_for(placed)) return false;
  }
  return true;
}

Scheduler::Added Scheduler::try_to_add(Placed& placed, std::span<const int32_t> tokens,
                                       Failure& failure) {
  const bool alone = decoding_.empty();
  const auto without_memory = [&](const char* what) {
    if (!alone) {
      out_of_memory_ = true;
      return Added::kNoRoom;
    }
    if (drop_prefix_for(placed)) return Added::kNoRoom;  // and tries again
    failure = {ErrorKind::kDoesNotFit, what};
    return Added::kFailed;
  };
  SessionPlan plan = placed.plan;
  try {
    if (!make_room(placed, placed.bytes)) {
      bool fits = false;
      // With a cap on misses the cache decides what is attended, so nobody's depends on others.
      const bool may_shrink = plan.options.selection.miss_cap < 0 && !plan.is_prefix;
      const double slots = may_shrink ? working_set_slots() : 0;
      if (slots > 0 && slots < plan.options.selection.slots) {
        const int64_t n_new = plan.context - plan.n_prefix - plan.n_prompt;
        plan = placed.prefix ? batch_->plan_behind(placed.prefix->plan, plan.n_prompt, n_new, slots)
                             : batch_->plan_sequence(plan.n_prompt, n_new, slots);
        fits = make_room(placed, batch_->bytes_of(plan));
      }
      if (!fits) {
        if (!alone) return Added::kNoRoom;
        fail(ErrorKind::kDoesNotFit,
             "{} tokens do not fit the memory that is left, with nothing else running; raise "
             "--device-memory or --host-memory, or shorten the context",
             plan.context);
      }
    }
    placed.sequence =
        batch_->add(plan, tokens, placed.prefix != nullptr ? placed.prefix->sequence : -1);
    placed.plan = plan;
    return Added::kYes;
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kDoesNotFit) return without_memory(error.what());
    failure = {error.kind(), error.what()};
    return Added::kFailed;
  } catch (const std::bad_alloc&) {
    return without_memory("this machine has no memory left for the request");
  }
}

Scheduler::Added Scheduler::try_to_add(Entry& entry) {
  Failure failure;
  const Added added = try_to_add(entry, entry.request.prompt, failure);
  if (added == Added::kFailed) give_up(entry, failure);
  if (added != Added::kYes) return added;
  if (entry.prefix != nullptr) ++entry.prefix->n_behind;
  prefilling_ = &entry;
  const std::lock_guard lock(mutex_);
  entry.report.state = RequestState::kPrefilling;
  entry.report.queued_seconds = now() - entry.arrived;
  entry.report.slots = entry.plan.options.selection.slots;
  --totals_.queued;
  ++totals_.prefilling;
  return Added::kYes;
}

Scheduler::Added Scheduler::try_to_add(Prefix& prefix) {
  Failure failure;
  const Added added = try_to_add(prefix, *prefix.tokens, failure);
  if (added == Added::kFailed) give_up(prefix, failure);
  if (added == Added::kYes) prefilling_prefix_ = &prefix;
  return added;
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

// Whether it was done; where it throws, a request, or all requests behind a prefix, have failed.
template <typename Some, typename Work>
bool Scheduler::guarded(Some& some, Work work) {
  try {
    work();
    return true;
  } catch (const Error& error) {
    give_up(some, {error.kind(), error.what()});
  } catch (const std::exception& error) {
    give_up(some, {ErrorKind::kRuntime, error.what()});
  }
  return false;
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
    if (token < 0) token = batch_->sample(entry.sequence, entry.sampler, entry.history);
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
    if (request.n_logprobs >= 0) report.logprobs.push_back(std::move(logprobs));
    entry.history.push_back(token);
  }
  const TokenLogprobs* told = request.n_logprobs >= 0 ? &entry.report.logprobs.back() : nullptr;
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

// What stands before the newest token of an answer: guesses come from there.
Drafts Scheduler::drafts_of(const Entry& entry) const {
  const SessionPlan& plan = batch_->plan().largest;
  const Request& request = entry.request;
  const std::span<const int32_t> prefix = request.prefix != nullptr ? *request.prefix : std::span<const int32_t>();
  Drafts drafts(plan.options.draft, plan.draft, std::ssize(prefix) + std::ssize(request.prompt) + request.n_new);
  drafts.append(prefix);
  drafts.append(request.prompt);
  drafts.append(std::span(entry.report.tokens).first(entry.report.tokens.size() - 1));
  drafts.begin_with(draft_length_);
  return drafts;
}

// With guessed tokens, for which the weights are not read once more, as they are not for other sequences.
void Scheduler::step_alone(Entry& entry) {
  if (!guarded(entry, [&] {
        if (!entry.drafts) entry.drafts.emplace(drafts_of(entry));
      })) {
    return;
  }
  Drafts& drafts = *entry.drafts;
  const DraftReport before = drafts.report();
  const int64_t sequence = entry.sequence;
  const int64_t n_left = entry.request.n_new - std::ssize(entry.report.tokens);
  const double begin = now();
  const bool stepped = guarded(entry, [&] {
    drafts.expect(entry.history.back(), entry.sampler.expected());
    const int64_t most = std::min(batch_->most_drafted(sequence), n_left);
    const std::span<const int32_t> tokens = drafts.begin_step(entry.history.back(), std::max<int64_t>(most - 1, 0));
    if (tokens.size() > 1) {
      batch_->step_drafted(sequence, tokens);
    } else {
      const Batch::Step step{sequence, tokens.front()};
      batch_->step({&step, 1});
    }
  });
  if (!stepped) return;
  int64_t n_tokens = 0;
  const auto is_answered_on = [&] { return std::ranges::find(decoding_, &entry) != decoding_.end(); };
  DraftReport after = drafts.report();
  do {
    Batch::Sampling sampling{sequence, &entry.sampler, entry.history};
    const bool picked = guarded(entry, [&] {
      batch_->show(sequence, drafts.row());
      batch_->sample_ahead({&sampling, 1});
    });
    if (!picked) break;
    if (n_tokens == 0) {
      drafts.took(now() - begin);
      draft_length_ = drafts.length();
    }
    ++n_tokens;
    after = drafts.report();
    work_done_ += entry.work.step;
    accept(entry, sampling.token);
  } while (is_answered_on() && drafts.is_next(entry.history.back()));
  if (is_answered_on()) {
    guarded(entry, [&] { batch_->take_back(sequence, drafts.ahead()); });
    drafts.drop();
  }
  count_step(n_tokens, 1);
  const std::lock_guard lock(mutex_);
  totals_.drafts.steps += after.steps - before.steps;
  totals_.drafts.guessed += after.guessed - before.guessed;
  totals_.drafts.right += after.right - before.right;
  totals_.step_seconds += now() - begin;
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
  for (Entry* entry : running) samplings_.push_back({entry->sequence, &entry->sampler, entry->history});
  try {
    batch_->step(steps_);
    batch_->sample_ahead(samplings_);
  } catch (const Error& error) {
    for (Entry* entry : running) give_up(*entry, {error.kind(), error.what()});
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
