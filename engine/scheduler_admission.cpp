// Who is let into the batch, and behind which prefix.
#include <algorithm>
#include <new>

#include "engine/scheduler.h"
#include "engine/scheduler_entry.h"

namespace tiercel {

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
  {
    const std::lock_guard lock(mutex_);
    entry.report.state = RequestState::kPrefilling;
    entry.report.queued_seconds = now() - entry.arrived;
    entry.report.slots = entry.plan.options.selection.slots;
    --totals_.queued;
    ++totals_.prefilling;
  }
  return guarded(entry, [&] { entry.begin(vocab_size_); }) ? Added::kYes : Added::kFailed;
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

}  // namespace tiercel
