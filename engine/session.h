// A session: one model, one sequence, one memory plan.
//
//   auto model = Model::open(directory, {});
//   const SessionPlan plan = Session::plan(*model, options, n_prompt, n_new);  // throws: does not
//   fit auto session = Session::open(model, plan); session->prefill(ids, progress); while (...)
//   session->step(session->sample(sampler, history));
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/options.h"
#include "engine/sampler.h"

namespace tiercel {

class SavedSession;  // engine/saved_session.h

class Model {
 public:
  // Maps the checkpoint of a Hugging Face directory, or a GGUF file, and checks it whole: every tensor's presence,
  // type, shape and finiteness. Throws Error naming file and tensor, or the backend that this build
  // or this machine lacks.
  static std::shared_ptr<Model> open(const std::string& directory, const ModelOptions& options);
  // A model of a known shape (engine/known_models.h) with random weights, made where they are used:
  // for measurements of speed. Its text is noise. Throws Error(kUsage) for an unknown name.
  static std::shared_ptr<Model> synthetic(const std::string& name, const ModelOptions& options);
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual int64_t parameter_count() const = 0;
  virtual int64_t weight_bytes() const = 0;
  // Of configuration and weights (engine/fingerprint.h).
  virtual const std::string& fingerprint() const = 0;
  // A thread other than the one that opened the model calls this before it plans or uses a session:
  // CUDA chooses its device per thread.
  virtual void use_in_this_thread() const {}
};

// Bytes that a session would take; allocates nothing. Options are resolved first (rank capped, auto
// modes decided). Throws Error(kDoesNotFit) naming the flag that would help when it exceeds
// --device-memory, --host-memory or what the machine has left.
struct SessionPlan {
  SessionOptions options;  // with every auto decided
  MemoryReport memory;
  int64_t n_prompt = 0;   // tokens that prefill may be given
  int64_t context = 0;    // tokens that the sequence can hold
  DualChunk dual_chunk;    // the model's, as it is open
  std::string weights;     // how its matrices are kept, where that is not bf16 as they are stored; for people
  bool long_rope = false;  // LongRoPE: turned as in a context of more tokens than the original one
  bool logprobs = false;  // prefill_logprobs may be called
  bool prefills = true;   // else its tokens come from a saved or a forked session; n_prompt is 1 then
  bool maps_file = false;  // of a saved session: its planes lie as the file's pages do
  int64_t draft = 0;       // tokens that are guessed at once, at most
  int64_t continued = 0;   // tokens of an appended text that are prefilled at once; 0: none are (KvLayout::continues)
  int64_t device_layers = 0;  // layers whose values (and exact keys) live on the device
  bool states_on_host = false;  // the prompt's hidden states are in host memory (HiddenHome)
  BackendKind backend = BackendKind::kCpu;
  // Of a sequence of a batch: whether others share it as their prefix, and tokens of the one that it
  // shares; n_prompt come behind it.
  bool is_prefix = false;
  int64_t n_prefix = 0;
  int64_t together = 1;  // sequences of a batch that select at once
  int64_t attend_places = 1;  // attentions that run at once, of sequences or of appended tokens
  std::vector<std::string> notes;  // what was adjusted or is worth a warning; whole sentences
};

class Session {
 public:
  // n_prompt tokens will be prefilled and at most n_new generated.
  // n_new = -1: as many as --ctx-size, or the model's positions, allow. logprobs: prefill_logprobs
  // will be called.
  static SessionPlan plan(const Model& model, const SessionOptions& options, int64_t n_prompt,
                          int64_t n_new, bool logprobs = false);
  // A session that will restore a saved one and hold at most n_new tokens more (-1: as above). What
  // was decided when it was saved stays decided: start from saved.options(). Throws Error(kUsage)
  // with the reason when it was saved with another model, or with options that its bytes depend on.
  static SessionPlan plan(const Model& model, const SessionOptions& options,
                          const SavedSession& saved, int64_t n_new);
  static std::unique_ptr<Session> open(std::shared_ptr<Model> model, const SessionPlan& plan);
  // Bytes of the file that save() writes right after a prompt of n_prompt tokens, by this plan.
  static int64_t saved_bytes(const Model& model, const SessionPlan& plan, int64_t n_prompt);
  virtual ~Session() = default;

  // Runs the prompt (not empty, at most the planned length). False: the callback asked to stop.
  // Throws Error(kUsage) for an id outside the vocabulary, naming its index.
  virtual bool prefill(std::span<const int32_t> ids, const ProgressCallback& progress) = 0;

  // As prefill, and writes log p(ids[i+1] | ids[0..i]) for i = 0 .. n-2 (natural log).
  virtual bool prefill_logprobs(std::span<const int32_t> ids, std::span<double> logprobs,
                                const ProgressCallback& progress) = 0;

  // Appends one token and computes the logits after it. Throws Error(kRuntime) when the planned
  // context is full. With drafts (DraftMode) some more tokens may be computed with it; then steps with those take
  // no time. The logits are those of steps without drafts, bit by bit, but where a selection cache fetches: what
  // guesses have brought into it changes rounding, and how many there were is a matter of time.
  virtual void step(int32_t token) = 0;

  // Appends tokens behind what is there, a further turn of a conversation, say: as steps with each of
  // them, and faster, as weights are read once for many. Where the prompt was prefilled with selection,
  // 16 tokens attend what the first of them selects, but for the last 64 tokens; not where layers
  // share lists. Longer texts (least_segments) are prefilled as the prompt was, densely or with selection,
  // but for these last tokens, where the session can (KvLayout::continues). The logits are then those after the
  // last one. False: the callback (phase "append")
  // asked to stop; n_tokens() says how many are in. Throws as step, before anything is appended.
  virtual bool append(std::span<const int32_t> ids, const ProgressCallback& progress) = 0;

  // Back to the end of the prompt: what was stepped since is forgotten, as are the selection cache
  // and the statistics; logits are those after the prompt again. Throws Error(kRuntime) where so
  // much was generated that the prompt's window moved on.
  virtual void rewind() = 0;

  // Selected tokens per KV head from the next step on, at most what was planned; kBudgetAll: as
  // planned. Throws Error(kUsage) outside of that.
  virtual void set_budget(int64_t tokens) = 0;

  // Writes everything that the next step depends on to a file (engine/session_file.h), complete or
  // not at all; ids are the tokens in the session, [n_tokens()]. The session goes on as if nothing
  // had happened. Throws Error(kRuntime) where it cannot be written, Error(kInterrupted) when the
  // callback asks to stop; what stood under that name then still does.
  virtual void save(const std::string& path, std::span<const int32_t> ids,
                    const ProgressCallback& progress) = 0;
  // Bytes of the file that save would write now.
  virtual int64_t file_bytes() = 0;

  // Instead of prefill: the logits, and every step from here on, are those of the session that was
  // saved, bit by bit where backend, cache size and homes are the same (else the selection cache
  // starts empty). Every byte of the file is checked first; where that fails, Error says why and nothing
  // has changed.
  virtual void restore(const SavedSession& saved, const ProgressCallback& progress) = 0;

  // A session that stands where this one does and goes on by itself, in memory of its own: what was
  // prefilled is copied, not computed. Throws Error(kUsage) where there are no tokens,
  // Error(kDoesNotFit) where there is no memory for another one.
  virtual std::unique_ptr<Session> fork() = 0;

  // fp32 logits [vocab_size] after the last token. Valid until the next call.
  virtual std::span<const float> logits() = 0;

  // sampler.sample(logits(), history), which need not bring the logits to the host.
  virtual int32_t sample(Sampler& sampler, std::span<const int32_t> history) = 0;

  virtual int64_t n_tokens() const = 0;  // in the cache
  virtual const SessionPlan& plan() const = 0;
  virtual SelectionReport selection() const = 0;
  virtual DraftReport drafts() const = 0;
  virtual AuditReport audit() const = 0;
  // Device memory that this model and session were seen to take, when the session had taken all of
  // its own or now, whichever is more (with what others take meanwhile); 0 where both tiers are main memory. To compare with plan().memory.device.
  virtual int64_t device_bytes_in_use() const { return 0; }
  virtual std::vector<double> residual_energy()
      const = 0;                                        // per layer; empty without low-rank keys
  // What coding the prompt's keys took of the prefill, or took beside it where the device does two things
  // at once; 0 where they are exact or were restored.
  virtual double key_coding_seconds() const = 0;
  virtual std::string backend_description() const = 0;  // e.g. "cpu: amx, 2 threads"
};

}  // namespace tiercel
