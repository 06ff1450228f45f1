// Tiercel as a library: continue one prompt, however long, with what memory there is.
//
//   tiercel::Engine engine("path/to/model");               // a Hugging Face directory, or a GGUF file
//   tiercel::Session session = engine.open_session({{"budget", "2048"}});
//   session.prefill("The capital of France is");
//   auto print = [](const tiercel::Piece& piece) { return bool(std::cout << piece.text); };
//   session.generate(16, print);
//
// An Engine is a model in memory, a Session one sequence of tokens with its cache, a Batch many
// requests decoded together. Options are pairs of strings with the names and values of the
// command's flags ("tiercel run --help" explains them).
//
// Errors: a call that cannot do what it says throws Error and leaves everything as it was. The one
// exception: a kRuntime error in the middle of computing (a device fault, say) leaves a session
// empty. Anything that a callback throws passes through. No call prints.
//
// Threads: Engine's calls are safe from any thread at any time. A Session serves one call at a
// time: a call that meets another one on the same session (from a second thread, or from that
// call's own callback) throws Error(kBusy). Sessions and batches of one engine may be used from
// different threads; their computing is serialised, first come, first served, a step or a prefill
// at a time, so answers are those of one thread. Whatever touches a sequence waits for its turn too: plan,
// stats, reset, close and the end of a session may take as long as another one's prefill. Calls of Batch
// and Request are safe from any thread at any time. Destroying, moving or assigning an object while
// another thread uses it is a mistake that nothing catches; a session may be destroyed, or assigned to, in
// a callback of its own call, which ends with it. Each class says what differs.
//
// Signals: the threads that an engine starts take none, so handlers run in threads of the application.
// Processes: an engine's threads do not follow a fork(); the child may not use what the parent opened.
//
// This header needs C++20's library and nothing else. Its ABI belongs to one compiler family and
// one minor version; engine/tiercel_c.h has the one that lasts.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__GNUC__)
#define TIERCEL_API __attribute__((visibility("default")))
#else
#define TIERCEL_API
#endif

namespace tiercel {

namespace detail {
struct EngineState;
struct SessionState;
class BatchWorker;
class HeldPrefix;
class SharedRequest;
struct RequestResult;
}  // namespace detail

// Inside the library, classes of the same names exist; there these are v0::Session and so on.
#ifdef TIERCEL_BUILDING_LIBRARY
namespace v0 {
#else
inline namespace v0 {
#endif

TIERCEL_API const char* version();  // "0.1.0", semantic versioning
TIERCEL_API const char* commit();   // of the sources, 12 digits, or "unknown"

enum class ErrorKind : int {
  kRuntime = 1,     // a bad file, a failed read, no memory
  kUsage = 2,       // a bad argument or option
  kDoesNotFit = 3,  // the memory plan exceeds a limit; nothing was allocated
  kState = 4,       // not now: a step before a prompt, a full context, a closed session or batch
  kBusy = 5         // another call on this session is running, or a callback called back
};

// what() is one or two sentences: place, what was expected, what was found, what would help.
class TIERCEL_API Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& what);
  ~Error() override;
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

// What an option is, for help texts.
struct OptionInfo {
  std::string name;     // "budget"
  std::string type;     // "TOKENS|X%|all"; TOKENS: 4096, 16K or 1M
  std::string initial;  // value when it is not set; empty: none, or the model says
  std::string help;     // one sentence
};

// Names and values, checked when they are set. An option that is set beats what a preset
// ("attention") says, in whatever order they come. Threads: a plain value, as std::string is.
class TIERCEL_API Options {
 public:
  Options() = default;
  // Options{{"attention", "quest"}, {"budget", "4096"}}
  Options(std::initializer_list<std::pair<std::string, std::string>> values);
  // Throws Error(kUsage) for an unknown name, listing those that exist, and for an illegal value,
  // saying what is legal.
  Options& set(const std::string& name, const std::string& value);

  const std::vector<std::pair<std::string, std::string>>& values() const { return values_; }
  static std::vector<OptionInfo> list();

 private:
  std::vector<std::pair<std::string, std::string>> values_;  // by canonical name, each once
};

struct Progress {
  int64_t total = 0;   // tokens of the sequence, once the call is through
  int64_t cached = 0;  // of these, taken over from earlier work: before an append, or from a file
  int64_t processed =
      0;               // done, cached ones included; layers come in turn, so by share of the work
  double elapsed = 0;  // seconds
};
// Return false to stop.
using ProgressCallback = std::function<bool(const Progress&)>;

// A token and the characters that it completes: whole UTF-8 characters, often none.
struct Piece {
  int32_t token = -1;
  std::string_view text;  // valid during the call
};
// Return false to stop; the token stays in the sequence.
using PieceCallback = std::function<bool(const Piece&)>;

enum class FinishReason : int {
  kLength = 0,      // as many tokens as asked for
  kEndOfText = 1,   // a token that ends texts; it is the last one in `tokens`
  kStopped = 2,     // the callback said so, or the request was cancelled
  kContextFull = 3  // no room for another token
};

struct TokenLogprob {
  int32_t token = 0;
  double logprob = 0;  // natural logarithm
};
// Of a token that was picked, and of the most likely ones in its place, most likely first: the model's
// own distribution, before penalties, biases and temperature.
struct TokenLogprobs {
  double logprob = 0;
  std::vector<TokenLogprob> top;
};

struct Generation {
  std::vector<int32_t> tokens;
  std::vector<TokenLogprobs> logprobs;  // of a request with option "logprobs": one for each token
  std::string text;  // valid UTF-8; a character that is not complete yet comes with the next call
  FinishReason reason = FinishReason::kLength;
};

// Bytes that a session takes, weights included.
struct MemoryPlan {
  int64_t weights = 0, keys = 0, values = 0, landmarks = 0, slots = 0, exact = 0, activations = 0;
  int64_t device_total = 0;  // the sum of the above
  int64_t host_weights = 0, host_keys = 0, host_values = 0, host_staging = 0;
  int64_t host_total = 0;
  int64_t process = 0;             // the program itself
  int64_t resident = 0;            // of main memory
  int64_t context = 0;             // tokens that the session can hold
  // Bytes of the file that Session::save writes right behind the prompt. Of a session: that it would write
  // now, but for the last token of an answer, which has not been computed with yet. 0 for a batch.
  int64_t session_file = 0;
  std::string composition;         // what selection will do, in one line
  std::vector<std::string> notes;  // what was adjusted or is worth a warning; whole sentences
};

// Of the sequence since its prefill or its last rewind; zeros in an empty session.
struct Stats {
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;  // behind the prompt: generated, stepped or scored
  int64_t decode_steps = 0;
  double open_seconds = 0;     // planning and allocating
  double prefill_seconds = 0;  // or of restoring
  double decode_seconds = 0;   // of these and of picking tokens, without waiting for turns
  uint64_t seed = 0;           // of sampling, drawn or given; 0: greedy
  int64_t selections = 0;      // layer steps that selected
  int64_t selected_chunks = 0, hit_chunks = 0;  // hits needed no fetch
  int64_t fetched_bytes = 0;
  int64_t decisions = 0, reused = 0;  // whether an earlier selection may stay, and how often it did
  int64_t audited_steps = 0;          // with option "audit"
  double audit_mass_mean = 0, audit_mass_p05 = 0;  // share of the attention mass that was selected
  int64_t guessed_tokens = 0, right_guesses = 0;   // computed ahead (option "draft"), and those that were right
};

struct ChatMessage {
  std::string role;     // "system", "user" or "assistant"
  std::string content;  // text: what spells a special token is none
};

// A call of a tool in an answer.
struct ToolCall {
  std::string id;         // what the tool gives is said to be for
  std::string name;
  std::string arguments;  // a JSON object, as the model wrote it: check it as you would check anybody's
};

// What an answer says.
struct ChatAnswer {
  std::string content;
  std::string reasoning;        // what was thought before it (<think>); or empty
  std::vector<ToolCall> calls;
  // A message for the conversation to go on with: {"role": "assistant", "content": .., ..}.
  std::string message_json;
};

enum class LogLevel : int { kInfo = 0, kWarning = 1, kError = 2 };
// One line without an end of line; valid during the call.
using LogCallback = std::function<void(LogLevel, std::string_view)>;

struct ModelInfo {
  int64_t n_layers = 0, vocab_size = 0, max_positions = 0;
  int64_t parameters = 0, weight_bytes = 0;
  int64_t bos_token = -1;           // -1: none
  // Generation stops at any of them: the configuration's, and the end of a turn of a chat template
  // that can be run.
  std::vector<int64_t> end_tokens;
};

// One sequence. It begins empty, takes a prompt once (prefill or score), and grows behind it.
// Threads: one call at a time, see the head of this file.
class TIERCEL_API Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // Plans memory for the prompt and "n-predict" tokens (512, unless given) behind it, or for
  // "ctx-size" tokens in all where that is given; allocates, and runs the prompt.
  // False: the callback asked to stop; the session is empty again, as when it throws. The callback
  // comes every few hundred milliseconds to seconds and may not call sessions of the same engine
  // (kBusy). Throws kState when the session is not empty, kUsage for an empty prompt or an id
  // outside the vocabulary, kDoesNotFit naming the option that would help.
  bool prefill(std::span<const int32_t> tokens, const ProgressCallback& progress = {});
  // The same of Engine::tokenize(text).
  bool prefill(std::string_view text, const ProgressCallback& progress = {});

  // Appends up to n tokens, picked by the sampling options. Splitting n over several calls changes
  // nothing. The callback may call any other session, and the engine. Throws kState without a
  // prompt.
  Generation generate(int64_t n, const PieceCallback& callback = {});

  // Appends one token. Throws kState without a prompt or when the context is full, kUsage for an id
  // outside the vocabulary. An answer that is held to a form goes on with it where it may, else ends.
  void step(int32_t token);
  // Appends tokens behind the prompt, a further turn of a conversation, say: as step with each of
  // them, but faster. 256 tokens and more (64 with dense attention) are prefilled as the prompt was, all of them, or
  // with selection all but the last 64; where that cannot be (README, "Use"), 16 tokens share a list behind a
  // selected prompt, but for the last 64. False: the callback asked to stop; n_tokens() says how many are in. Throws
  // as step, before anything is appended. Text is tokenized as what the prompt goes on with: without a
  // begin-of-text token, and behind text without the space that some tokenizers put before one.
  bool append(std::span<const int32_t> tokens, const ProgressCallback& progress = {});
  bool append(std::string_view text, const ProgressCallback& progress = {});
  // fp32 [vocab_size] behind the last token. Valid until the next call on this session.
  std::span<const float> logits();
  // The same into `out` [vocab_size], whole whatever another thread calls meanwhile. Throws kUsage for
  // another size.
  void copy_logits(std::span<float> out);

  // Appends tokens and returns log p(token | all before it), natural logarithm, one per token. In
  // an empty session they become the prompt, as by prefill, and the first value is NaN: nothing
  // precedes it. Fewer: the callback asked to stop; of a prompt nothing is kept then, behind one
  // what was scored is in. Throws kState when they do not fit into the context behind a prompt.
  std::vector<double> score(std::span<const int32_t> tokens, const ProgressCallback& progress = {});

  // Selected tokens per KV head from the next token on, at most what option "budget" planned; -1:
  // as planned. A new prompt, and a restored session, start as planned. Throws kState without a prompt,
  // kUsage outside of that, or where attention is dense.
  void set_budget(int64_t tokens);

  // Writes the sequence and its cache to a file that Engine::restore reads: complete and on the
  // disk, or not at all. The session goes on as if nothing had happened, whatever comes of it.
  // False: the callback asked to stop. Throws kState without a prompt, kRuntime where the file
  // cannot be written, kUsage where it has no name; what stood under that name then still does.
  bool save(const std::string& path, const ProgressCallback& progress = {});

  // A session that stands where this one does, sampling included, and goes on by itself in memory of
  // its own: what was prefilled is copied, not computed. Throws kState without a prompt, kDoesNotFit
  // where there is no memory for another one.
  Session fork();

  // Back to the end of the prompt: what came behind it is forgotten, and sampling begins anew.
  // Throws kState without a prompt, or where so much was generated that the prompt's last tokens
  // left the recent window (option "recent").
  void rewind();
  // Empty again, memory given back. The options stay.
  void reset();
  // As reset, for good: every later call throws kState, except close.
  void close();

  int64_t n_tokens() const;  // of the sequence
  std::vector<int32_t> tokens() const;
  Stats stats() const;
  // "cpu: avx512bf16, 8 threads"; empty in an empty session.
  std::string backend() const;
  // The plan of the present sequence; zeros in an empty session.
  MemoryPlan memory() const;

 private:
  friend class Engine;
  explicit Session(std::shared_ptr<detail::SessionState> state);
  std::shared_ptr<detail::SessionState> state_;  // a call that runs has it too
};

enum class RequestState : int {
  kQueued = 0,
  kPrefilling = 1,
  kDecoding = 2,
  kFinished = 3,  // with all its tokens
  kFailed = 4,    // wait() throws the reason
  kCancelled = 5  // or stopped by its callback
};

struct RequestStats {
  RequestState state = RequestState::kQueued;
  int64_t prompt_tokens = 0, generated_tokens = 0;
  double queued_seconds = 0;       // until there was room for it
  double first_token_seconds = 0;  // from submit to the first token; 0: there is none
  double decode_seconds = 0;       // from the first token to the last
  uint64_t seed = 0;               // of sampling, drawn or given; 0: greedy
  // As in Stats, once it has ended.
  int64_t selections = 0, selected_chunks = 0, hit_chunks = 0, fetched_bytes = 0;
  int64_t decisions = 0, reused = 0;
  int64_t prefix_tokens = 0;  // of the prompt's, in a Prefix
};

// Since the batch was opened.
struct BatchStats {
  int64_t queued = 0, prefilling = 0, decoding = 0, ended = 0;  // requests, now
  int64_t steps = 0, step_tokens = 0;  // decode steps of all together, and tokens that they made
  int64_t prompt_tokens = 0;           // prefilled
  int64_t most_decoding = 0;           // sequences in one step
  double step_seconds = 0, prefill_seconds = 0;
  double longest_gap = 0;  // seconds of prefill between two decode steps
  int64_t guessed_tokens = 0, right_guesses = 0;  // as in Stats, of requests that were answered alone
};

// A request of a batch, as copies of it are. Giving up the object cancels nothing; it outlives the
// batch. Threads: every call is safe from any thread at any time.
class TIERCEL_API Request {
 public:
  Request(const Request&);
  Request& operator=(const Request&);
  Request(Request&&) noexcept;
  Request& operator=(Request&&) noexcept;
  ~Request();

  // Waits for the end; the same result every time. A cancelled one has the tokens that its callback
  // was given. A character that is not complete at the end is not in the text. Throws the request's
  // own error: kDoesNotFit where it finds no room with nothing else running, kRuntime for what
  // failed in computing, or what its callback threw. Throws kBusy instead of waiting for ever: in a
  // callback that the engine waits for (of a batch, or a progress callback).
  Generation wait() const;
  // True: it has ended. False: not within so many seconds. Throws kBusy as wait, but for 0 seconds.
  bool wait_for(double seconds) const;
  bool done() const;
  // Returns at once. The callback is not called again, but for a call that is running.
  void cancel();
  RequestStats stats() const;

 private:
  friend class Batch;
  friend struct detail::RequestResult;
  explicit Request(std::shared_ptr<detail::SharedRequest> shared);
  std::shared_ptr<detail::SharedRequest> shared_;
};

// What many prompts of one batch begin with: a document and questions about it, say. It is prefilled
// once, when the first request behind it comes, and read by all of them; copies are the same one. It
// stays as long as an object or a request has it; while no request does, until its room is wanted, and
// is prefilled again then. Tokens behind it attend what they select of it, as generated ones or, if they
// are many, as those that Session::append appends, and are kept exactly on the device: with "attention" and
// "prefill" dense an answer is what it is to the whole prompt but for the rounding of its logits, which
// other runs of tokens sum up in another order; else nearly so.
// Threads: every call is safe from any thread at any time.
class TIERCEL_API Prefix {
 public:
  Prefix(const Prefix&);
  Prefix& operator=(const Prefix&);
  Prefix(Prefix&&) noexcept;
  Prefix& operator=(Prefix&&) noexcept;
  ~Prefix();
  int64_t n_tokens() const;

 private:
  friend class Batch;
  explicit Prefix(std::shared_ptr<detail::HeldPrefix> held);
  std::shared_ptr<detail::HeldPrefix> held_;
};

// Requests decoded together, many for little more than the time of one: they come when they like,
// are prefilled one at a time, and share every decode step. What a request answers depends on its
// prompt, options and seed, not on what runs beside it (but for rounding where memory is so short that
// it is given a smaller selection cache than the others).
//
// A thread of its own takes turns on the engine, among its sessions: a turn is a decode step and
// prefill for "max-gap" seconds, or a prompt where nothing decodes. It sleeps when there is nothing
// to do. Threads: every call is safe from any thread at any time.
class TIERCEL_API Batch {
 public:
  Batch(Batch&&) noexcept;
  Batch& operator=(Batch&&) noexcept;
  // As close, which it cannot refuse: in a callback, it returns before the thread has ended.
  ~Batch();

  // Continues a prompt by up to n tokens; -1: by "n-predict". Options: those of sampling,
  // "n-predict", "logprobs", "ignore-eos", "no-bos" and "special"; others are the batch's, or else the
  // engine's. The callback comes in the batch's thread, and is destroyed there before the request
  // is done. It may call everything of batches and requests but wait and close; those, and what
  // computes on the same engine, throw kBusy in it. All requests, and the engine, wait for it. What
  // it throws ends its request. Throws kUsage for another option, an empty prompt, one that is too
  // long for the batch, an id outside the vocabulary, an n that is neither -1 nor positive; kState
  // when closed; kRuntime when a fault has ended the batch.
  Request submit(std::span<const int32_t> tokens, int64_t n = -1, const Options& options = {},
                 PieceCallback callback = {});
  // The same of Engine::tokenize(text, options).
  Request submit(std::string_view text, int64_t n = -1, const Options& options = {},
                 PieceCallback callback = {});

  // Computes nothing yet. Throws as submit; kUsage also where nothing more fits behind it.
  Prefix share(std::span<const int32_t> tokens);
  Prefix share(std::string_view text, const Options& options = {});
  // As submit of a prompt that begins with the prefix; what is behind it must not be empty. A text goes
  // on where the prefix ends: no begin-of-text token, no space of its own. Throws kUsage for the prefix
  // of another batch.
  Request submit(const Prefix& prefix, std::span<const int32_t> tokens, int64_t n = -1,
                 const Options& options = {}, PieceCallback callback = {});
  Request submit(const Prefix& prefix, std::string_view text, int64_t n = -1,
                 const Options& options = {}, PieceCallback callback = {});

  BatchStats stats() const;
  // Of "parallel" sequences of the largest size; where that is more than there is, fewer run at a
  // time.
  MemoryPlan memory() const;

  // Cancels what is left, waits for it, and gives the memory back. Later calls of submit throw
  // kState. Throws kBusy where wait would.
  void close();

 private:
  friend class Engine;
  explicit Batch(std::shared_ptr<detail::BatchWorker> worker);
  std::shared_ptr<detail::BatchWorker> worker_;
};

// A model, its tokenizer, and the threads or the device that compute. Lives on in its sessions and
// batches.
// Threads: every call is safe from any thread; what computes waits for its turn.
class TIERCEL_API Engine {
 public:
  // `model`: a directory with config.json, tokenizer.json, model.safetensors[.index.json] as Hugging Face
  // publishes them, or a GGUF file. Options: "backend", "device" and "threads" count here only, the others become
  // the defaults of sessions and batches. Throws Error naming the file and the place in it.
  explicit Engine(const std::string& model, const Options& options = {});
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

  // Empty and cheap: memory is planned and taken by prefill. Throws kUsage for an option of the
  // engine or of a batch.
  Session open_session(const Options& options = {}) const;
  // The memory that a prompt of so many tokens would take. Allocates nothing. Throws as prefill.
  MemoryPlan plan(int64_t n_prompt, const Options& options = {}) const;

  // The session that Session::save saved, instead of a prefill: what follows its last token is what
  // would have followed there (up to rounding, where backend, "slots", homes or the room differ; with
  // "reuse", "reuse-steps" or "miss-cap" lists may then be chosen anew), with room
  // for "n-predict" tokens more. Options that are not given are as saved where its cache depends on
  // them, else the engine's; sampling begins anew. Stopped by the callback, the session is empty.
  // Throws kRuntime for a file that is missing, damaged or something else, kUsage for one of
  // another model, or an option that its bytes contradict, kDoesNotFit as prefill. The file may be
  // replaced afterwards (as save does), but not written into: parts of it may stay mapped.
  Session restore(const std::string& path, const Options& options = {},
                  const ProgressCallback& progress = {}) const;

  // Plans memory, and allocates what all requests share. Options beside those of a session:
  // "parallel", "max-prompt", "max-gap" and "micro-batches"; the context of a request is limited by
  // "ctx-size", or else by "max-prompt" plus "n-predict". "audit" is refused, and of the engine's
  // left out. Throws kUsage for such options and when neither "max-prompt" nor "ctx-size" is given,
  // kDoesNotFit when not even one sequence of the largest size fits, kRuntime when no thread can be
  // had.
  Batch open_batch(const Options& options = {}) const;

  // Ids of arbitrary bytes; invalid UTF-8 becomes U+FFFD. Begin-of-text is added unless option
  // "no-bos" is on; "<|special|>" is text unless option "special" is.
  std::vector<int32_t> tokenize(std::string_view text, const Options& options = {}) const;
  // Valid UTF-8. Throws kUsage for an id outside the vocabulary.
  std::string detokenize(std::span<const int32_t> tokens, bool skip_special = false) const;
  // A conversation as the model's chat template writes it, up to where the next answer begins. date:
  // "YYYY-MM-DD" for templates that write one; empty: today's. Throws kUsage for a model without a
  // template, or with one that cannot be run, saying why; for roles in an order that the
  // template refuses.
  std::vector<int32_t> tokenize_chat(std::span<const ChatMessage> messages,
                                     const std::string& date = {}) const;
  // The same of a conversation in the JSON of OpenAI's endpoint: {"messages": [..]} and, where wanted, "tools" that an
  // answer may call, variables of the template ("chat_template_kwargs") and "date". Messages may be calls of an answer
  // ("tool_calls") and what came of them (role "tool"). Throws kUsage naming the place.
  std::vector<int32_t> tokenize_chat_json(std::string_view conversation) const;
  // Takes an answer apart: what was thought, what is called, and what is said. prompt: what it answers; its end says
  // whether thoughts have begun. tools: the JSON array that the conversation had; empty: nothing is called. Throws kUsage
  // for a model whose template writes no calls, and for an id outside the vocabulary.
  ChatAnswer read_answer(std::span<const int32_t> prompt, std::span<const int32_t> answer,
                         std::string_view tools = {}) const;
  // What to append behind an answer for the user's next message: ends the answer, unless the
  // sequence's last token does.
  std::vector<int32_t> tokenize_next_turn(std::span<const int32_t> sequence,
                                          std::string_view user) const;
  ModelInfo info() const;

  // What the library would say if it printed: plans, what they adjusted, faults of batches; from this
  // level up; also by sessions and batches that outlive the engine: take it back before. Lines come one
  // at a time, in the thread that has something to say, which waits: the callback may not call this
  // engine or what it opened, and what it throws is lost. Empty: silence, as from the start.
  void set_log(LogCallback callback, LogLevel from = LogLevel::kInfo);

 private:
  std::shared_ptr<detail::EngineState> state_;
};

}  // namespace v0
}  // namespace tiercel
