// What runs when, in a batch: continuous batching of requests of any length and arrival.
//
// Requests queue until there is room for them, are prefilled one at a time, a run of tokens through a
// layer at a time, and decoded together, one token each per turn. Prefill work is put between decode
// steps under a latency target. A request that ends, fails or is cancelled gives its memory back and
// disturbs no other one; tokens do not depend on what shares the batch (engine/batch.h), so order
// and timing decide when a token comes, never which.
//
//   order      smallest (work done before it arrived + its own work) first: short requests overtake
//              long ones, but none for ever
//   room       by the memory plan. One that finds none with its full selection cache is taken with a
//              cache for the working set: what those that run were seen to use in recent steps. One
//              without room may be overtaken kMaxOvertaken times; then it is waited for. Not with a cap on
//              misses, where the cache decides what is attended; else it moves nothing but the rounding of
//              partial results, which are merged in another order
//   prefixes   what several prompts begin with is prefilled once, and read by all of them. It stays
//              while anybody holds it; where nothing waits for it, until its room is wanted: those used longest ago
//              go first, and none where that would not make room
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/batch.h"
#include "engine/draft.h"
#include "engine/logprobs.h"
#include "engine/sampler.h"

namespace tiercel {

inline constexpr int64_t kMaxOvertaken = 16;
// Steps whose selected chunks are one working set.
inline constexpr int64_t kWorkingSetSteps = 16;

enum class RequestState : uint8_t {
  kQueued,
  kPrefilling,
  kDecoding,
  kFinished,   // as many tokens as wanted, or an end token
  kFailed,     // see error
  kCancelled   // tokens until then are valid
};
const char* name_of(RequestState state);
inline bool has_ended(RequestState state) { return state >= RequestState::kFinished; }

struct RequestReport {
  RequestState state = RequestState::kQueued;
  ErrorKind error_kind = ErrorKind::kRuntime;
  std::string error;  // of a failed one
  int64_t prompt_tokens = 0;  // with those of its prefix
  int64_t prefix_tokens = 0;
  int64_t cached_tokens = 0;  // of these, prefilled before it came
  std::vector<int32_t> tokens;
  std::vector<TokenLogprobs> logprobs = {};  // of these, where they were asked for
  double queued_seconds = 0;       // until it was admitted
  double first_token_seconds = 0;  // from its arrival; 0: there is none
  double decode_seconds = 0;       // from the first token to the last
  double slots = 0;                // of its selection cache, in budgets
  SelectionReport selection;       // of one that has ended
};

// Tokens that the prompts of several requests begin with, the same for those that hold the same one.
// Tokens behind it attend what they select of it, as those that are generated do, where without it the
// last ones of a prompt attend all of it: with --attention dense the same, else an approximation.
using SharedPrefix = std::shared_ptr<const std::vector<int32_t>>;

struct Request {
  SharedPrefix prefix = nullptr;  // or none
  std::vector<int32_t> prompt;    // behind the prefix; not empty
  int64_t n_new = 128;  // tokens at most
  SamplingOptions sampling = {};
  int64_t n_logprobs = -1;  // log probabilities of so many of the most likely tokens too; -1: of none
  bool keeps_logprobs = true;  // for the report; not where on_token is all that wants them
  std::vector<int32_t> end_tokens = {};  // each ends the generation, as its last token
  // Called by turn() for every token; false cancels the request. What it throws fails the request. logprobs: null
  // unless they were asked for.
  std::function<bool(int32_t token, const TokenLogprobs* logprobs)> on_token = {};
  // Called by turn() when it has ended. May not throw.
  std::function<void(const RequestReport&)> on_end = {};
};

struct SchedulerOptions {
  // Seconds that prefill may take between two decode steps (at least one run of tokens through a layer
  // is done). 0: prompts first, for most throughput.
  double max_gap = 0;
  // Asked between runs of a prompt, of which turn() may take many; false: it takes no more.
  std::function<bool()> go_on = {};
};

struct SchedulerReport {
  int64_t queued = 0, prefilling = 0, decoding = 0, ended = 0;
  int64_t steps = 0;           // decode steps of all together
  int64_t step_tokens = 0;     // tokens that they made
  int64_t prompt_tokens = 0;   // prefilled
  double partial_prompt_tokens = 0;  // of the prompt that is being prefilled, by work
  int64_t most_decoding = 0;   // sequences in one step
  double step_seconds = 0, prefill_seconds = 0;
  double longest_gap = 0;      // seconds of prefill between two decode steps
  DraftReport drafts;          // of requests that were answered alone
};

class Scheduler {
 public:
  using RequestId = int64_t;

  Scheduler(std::unique_ptr<Batch> batch, const SchedulerOptions& options);
  ~Scheduler();

  // Safe from any thread. Throws Error(kUsage) for an empty prompt, sampling options out of range, or a
  // request that exceeds what the batch was planned for; other failures are in its report.
  RequestId submit(Request request);
  void cancel(RequestId id);
  RequestReport report(RequestId id) const;
  // Of a request that has ended: its report is dropped.
  void forget(RequestId id);
  SchedulerReport report() const;

  // Tokens of its prompt, and of its prefix, that are prefilled, by share of the work; 0 where there is no such request.
  // From the thread that takes turns.
  double prefilled_tokens(RequestId id) const;

  // One decode step of all that decode, and prefill beside it. False: there is nothing to do. From one
  // thread at a time.
  bool turn();

  Batch& batch() { return *batch_; }

 private:
  struct Placed;
  struct Entry;
  struct Prefix;
  enum class Added : uint8_t { kYes, kNoRoom, kFailed };

  void take_inbox();
  void take_cancelled();
  Prefix* find_prefix(const SharedPrefix& tokens);
  void drop_unused_prefixes();
  void remove_prefix(const Prefix& prefix);
  void admit();
  struct Failure {
    ErrorKind kind = ErrorKind::kRuntime;
    std::string what;
  };
  Added try_to_add(Placed& placed, std::span<const int32_t> tokens, Failure& failure);
  Added try_to_add(Entry& entry);
  Added try_to_add(Prefix& prefix);
  bool may_drop(const Prefix& prefix, const Placed& placed) const;
  bool drop_prefix_for(const Placed& placed);
  bool make_room(const Placed& placed, const SequenceBytes& bytes);
  double working_set_slots();
  bool is_prefilling() const { return prefilling_ != nullptr || prefilling_prefix_ != nullptr; }
  void prefill();
  bool advance(Placed& placed);
  void advance(Entry& entry);
  void advance(Prefix& prefix);
  void step();
  Drafts drafts_of(const Entry& entry) const;
  void step_alone(Entry& entry);
  void count_step(int64_t n_tokens, int64_t n_sequences);
  void accept(Entry& entry, int32_t token);
  void end(Entry& entry, RequestState state);
  void give_up(Entry& entry, const Failure& failure);
  void give_up(Prefix& prefix, const Failure& failure);
  template <typename Some, typename Work>
  bool guarded(Some& some, Work work);
  double now() const;

  std::unique_ptr<Batch> batch_;
  SchedulerOptions options_;
  int64_t vocab_size_;
  double start_;

  mutable std::mutex mutex_;  // over everything below it, where a turn changes it
  std::map<RequestId, std::unique_ptr<Entry>> entries_;
  std::vector<RequestId> inbox_, cancelled_;
  RequestId next_id_ = 0;
  SchedulerReport totals_;

  // Of the thread that takes turns.
  std::vector<Entry*> queued_, decoding_;
  std::map<const void*, std::unique_ptr<Prefix>> prefixes_;  // by what requests hold
  Entry* prefilling_ = nullptr;            // one of these two at most
  Prefix* prefilling_prefix_ = nullptr;
  // There should have been room for the last one that was added, and was not: an attempt costs as much
  // as a success, so that there is none before another sequence has gone.
  bool out_of_memory_ = false;
  double work_done_ = 0;  // FLOPs
  int64_t n_prefix_uses_ = 0;
  double gap_ = 0;        // seconds of prefill since the last decode step
  DraftLength draft_length_;  // what steps of one sequence alone were measured to take
  int64_t n_steps_ = 0, measured_at_ = 0;
  double measured_slots_ = 0;  // of working_set_slots
  std::vector<Batch::Step> steps_;
  std::vector<Batch::Sampling> samplings_;
};

}  // namespace tiercel
