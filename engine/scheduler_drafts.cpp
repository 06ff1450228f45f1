// A step of one sequence that is decoded alone, with guessed tokens.
#include <algorithm>

#include "engine/scheduler.h"
#include "engine/scheduler_entry.h"

namespace tiercel {

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
    drafts.expect(entry.history.back(), entry.sampler->expected());
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
    Batch::Sampling sampling{sequence, &*entry.sampler, entry.history};
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

}  // namespace tiercel
