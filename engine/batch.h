// Many sequences of one model, decoded together: one matrix product for all of them in every layer,
// a cache of its own for each. This is the mechanism; what runs when is the scheduler's business
// (engine/scheduler.h).
//
// A sequence's tokens depend on its own prompt, options and seed only, never on what shares the batch:
// every option is decided when the batch is planned (with the memory that there is then), prompts are cut
// by their own shape, and a row of a product has the bits of that row alone.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "engine/session.h"

namespace tiercel {

struct BatchPlan {
  SessionPlan largest;         // of one sequence of the largest size; its options hold for all of them
  KeyCodec key_codec = KeyCodec::kAuto;  // as asked for
  PrefillMode prefill = PrefillMode::kAuto;
  MicroBatches micro_batches = MicroBatches::kAuto;  // no memory depends on it: set it until it opens
  int64_t n_sequences = 0;     // decoded together, at most
  int64_t shared_device = 0;   // bytes that do not depend on how many sequences there are: weights,
  int64_t shared_host = 0;     // activations, workspace
  int64_t device_limit = 0;    // bytes that all of it may take; 0: unknown
  int64_t host_limit = 0;
  int64_t memory_limit = 0;    // of both tiers, where they are one memory; 0: they are not
};

// Bytes of one sequence beside what all share.
struct SequenceBytes {
  int64_t device = 0;   // as long as it lives
  int64_t prefill = 0;  // of the device, until its prompt is done
  int64_t host = 0;
  int64_t host_prefill = 0;  // likewise
};

// FLOPs of one sequence: of its prompt, and of a step behind it.
struct SequenceWork {
  double prompt = 0, step = 0;
};

class Batch {
 public:
  struct Step {
    int64_t sequence = 0;
    int32_t token = 0;
  };
  // How far a prompt is, in FLOPs.
  struct PrefillProgress {
    double done = 0, total = 0;
    bool finished = false;
  };

  // n_sequences: decoded together, at most; codecs are chosen so that so many of the largest size fit,
  // where that can be had. max_prompt, max_new: tokens of the largest sequence. max_behind: where all
  // share prefixes, tokens that one has behind it, new ones included; 0: they do not, or not all. Throws
  // as Session::plan does, where not even one fits.
  static BatchPlan plan(const Model& model, const SessionOptions& options, int64_t n_sequences,
                        int64_t max_prompt, int64_t max_new, int64_t max_behind = 0);
  // How many sequences of this size fit together, at most plan.n_sequences. n_prefix: tokens of a prefix
  // that all of them are behind; 0: they share nothing.
  static int64_t largest(const Model& model, const BatchPlan& plan, int64_t n_prompt,
                         int64_t n_new, int64_t n_prefix = 0);
  static std::unique_ptr<Batch> open(std::shared_ptr<Model> model, const BatchPlan& plan);
  virtual ~Batch() = default;

  // Of a sequence of this size. slots: its selection cache in budgets, less than planned; 0: as
  // planned. It changes what is fetched and the rounding of what is merged. Throws Error(kUsage) where
  // it exceeds the largest one.
  virtual SessionPlan plan_sequence(int64_t n_prompt, int64_t n_new, double slots = 0) const = 0;
  // Of a prefix that sequences share: prefilled and never decoded, it is read by all of them. And of a
  // sequence that has n_prompt tokens behind it. They are appended, many of them as a prompt is prefilled
  // where there is memory for that, and stay exact and on the device, as do new ones.
  virtual SessionPlan plan_prefix(int64_t n_tokens) const = 0;
  virtual SessionPlan plan_behind(const SessionPlan& prefix, int64_t n_prompt, int64_t n_new,
                                  double slots = 0) const = 0;
  virtual SequenceBytes bytes_of(const SessionPlan& sequence) const = 0;
  virtual SequenceWork work_of(const SessionPlan& sequence) const = 0;
  // Whether a sequence of so many bytes fits beside those that are there, by its bytes and by their number.
  virtual bool has_room(const SequenceBytes& bytes) const = 0;

  // Takes its memory, also for the prompt. prefix: where the plan is of a sequence behind one, its
  // name; it is prefilled, and removed after all that are behind it. Returns a name that is never used
  // again. Throws Error(kUsage) for an id outside the vocabulary, Error(kDoesNotFit) or std::bad_alloc
  // where there is no room; then nothing has changed.
  virtual int64_t add(const SessionPlan& sequence, std::span<const int32_t> prompt,
                      int64_t prefix = -1) = 0;
  // One run of the prompt through one layer; behind a prefix, a segment through one layer, or few tokens
  // through all of them. When finished, sample() has the first token; of a prefix there is none.
  virtual PrefillProgress advance_prefill(int64_t sequence) = 0;
  // Appends one token to each of these sequences, whose prompts are done, each named once.
  virtual void step(std::span<const Step> steps) = 0;
  // A step of one sequence with tokens behind its own that are guessed (engine/draft.h); of so many tokens at most, of
  // which the first is certain. Below 2: nothing may be guessed now.
  virtual int64_t most_drafted(int64_t sequence) const = 0;
  // sample() and logits() are those behind the first of them, until another one is shown. Before the next call for
  // this sequence the wrong ones are taken back; they leave no trace but in the selection cache.
  virtual void step_drafted(int64_t sequence, std::span<const int32_t> tokens) = 0;
  virtual void show(int64_t sequence, int64_t row) = 0;
  virtual void take_back(int64_t sequence, int64_t n) = 0;
  // In how many parts it takes a step of so many sequences: 1 or 2. No bit depends on it.
  virtual int64_t micro_batches(int64_t n_sequences) const = 0;
  // Kernels of the newest step that is not a replay; 0 where nothing is launched.
  virtual int64_t step_launches() const = 0;
  // Whether the newest step was a replay of a recorded one.
  virtual bool replayed() const { return false; }
  // The next token behind the last one of this sequence; once after each advance_prefill that finished
  // and each step, before the next call of either. Throws Error(kRuntime) where no token can be named.
  virtual int32_t sample(int64_t sequence, Sampler& sampler, std::span<const int32_t> history) = 0;
  // sample() of several sequences at once, where the device picks tokens; elsewhere, and where none can be
  // named, they stay -1: sample() picks one, or says why not.
  struct Sampling {
    int64_t sequence = 0;
    Sampler* sampler = nullptr;
    std::span<const int32_t> history;
    int32_t token = -1;
  };
  virtual void sample_ahead(std::span<Sampling>) {}
  // fp32 [vocab_size], at the same time. Valid until the next call.
  virtual std::span<const float> logits(int64_t sequence) = 0;
  // Gives its memory back, at whatever stage it is.
  virtual void remove(int64_t sequence) = 0;

  virtual SelectionReport selection(int64_t sequence) const = 0;
  virtual int64_t n_tokens(int64_t sequence) const = 0;
  virtual const BatchPlan& plan() const = 0;
  virtual const ModelConfig& config() const = 0;
  // Taken now, by what all share and by the sequences.
  virtual int64_t device_bytes() const = 0;
  virtual int64_t host_bytes() const = 0;
  virtual std::string backend_description() const = 0;
};

}  // namespace tiercel
