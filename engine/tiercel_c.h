/* Tiercel's C interface: the one that stays compatible.
 *
 *   tiercel_engine* engine = NULL;
 *   tiercel_session* session = NULL;
 *   tiercel_error* error = NULL;
 *   if (tiercel_engine_open("path/to/model", NULL, &engine, &error) == TIERCEL_OK &&
 *       tiercel_session_open(engine, NULL, &session, &error) == TIERCEL_OK &&
 *       tiercel_session_prefill(session, text, strlen(text), NULL, NULL, &error) == TIERCEL_OK) ...
 *
 * Every function that can fail returns a status and fills *error, where `error` is not NULL, with
 * an object to be freed; a NULL where an object is needed is such a failure (TIERCEL_USAGE), no
 * crash. Outputs are written on TIERCEL_OK only. What a function hands out belongs to the caller:
 * objects have their _free or _close, memory goes to tiercel_free. All of these take NULL and do
 * nothing.
 *
 * Options, numbers and texts go by name, so nothing here needs to change when there are more of
 * them. Numbers also come all at once, from functions called ..._numbers: values[i], of n_values,
 * is that of name i; what lies beyond the names is left as it was. Structs are only ever passed by
 * the library, by pointer, and only grow at their end.
 *
 * Meaning, errors and threads are those of engine/tiercel.h: an engine's functions are safe from
 * any thread, as are those of batches and requests; a session serves one call at a time, a second
 * one gets TIERCEL_BUSY; sessions and batches of one engine may be used from different threads and
 * take turns. Options and errors are plain values. Callbacks come in the calling thread, those of a
 * batch in its own, and must return (no longjmp, no exception).
 */
#ifndef TIERCEL_C_H_
#define TIERCEL_C_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define TIERCEL_C_API __attribute__((visibility("default")))
#else
#define TIERCEL_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header; tiercel_version() is that of the library. Semantic versioning. */
#define TIERCEL_VERSION_MAJOR 0
#define TIERCEL_VERSION_MINOR 1
#define TIERCEL_VERSION_PATCH 0

TIERCEL_C_API const char* tiercel_version(void); /* "0.1.0" */
TIERCEL_C_API const char* tiercel_commit(void);  /* of the sources, or "unknown" */

typedef int32_t tiercel_status;
enum {
  TIERCEL_OK = 0,
  TIERCEL_RUNTIME = 1,      /* a bad file, a failed read, no memory */
  TIERCEL_USAGE = 2,        /* a bad argument or option */
  TIERCEL_DOES_NOT_FIT = 3, /* the memory plan exceeds a limit; nothing was allocated */
  TIERCEL_STATE = 4,        /* not now: a step before a prompt, a full context */
  TIERCEL_BUSY = 5,         /* another call on this session is running, or a callback called back */
  TIERCEL_STOPPED = 6 /* a progress callback asked to stop; a session that took a prompt is empty
                         again. No error object comes with it */
};

typedef struct tiercel_error tiercel_error;
typedef struct tiercel_options tiercel_options;
typedef struct tiercel_engine tiercel_engine;
typedef struct tiercel_session tiercel_session;
typedef struct tiercel_batch tiercel_batch;
typedef struct tiercel_prefix tiercel_prefix;
typedef struct tiercel_request tiercel_request;

TIERCEL_C_API tiercel_status
tiercel_error_status(const tiercel_error* error);                            /* NULL: TIERCEL_OK */
TIERCEL_C_API const char* tiercel_error_message(const tiercel_error* error); /* NULL: "" */
TIERCEL_C_API void tiercel_error_free(tiercel_error* error);
TIERCEL_C_API void tiercel_free(void* memory);

/* ---- options ---- names and values of the command's flags; flags that take no value: "true",
 * "false" */

/* NULL when there is no memory. */
TIERCEL_C_API tiercel_options* tiercel_options_new(void);
TIERCEL_C_API void tiercel_options_free(tiercel_options* options);
TIERCEL_C_API tiercel_status tiercel_options_set(tiercel_options* options, const char* name,
                                                 const char* value, tiercel_error** error);
/* The options that exist: index 0 .. count - 1. NULL beyond. Valid for ever. */
TIERCEL_C_API size_t tiercel_option_count(void);
TIERCEL_C_API const char* tiercel_option_name(size_t index);
TIERCEL_C_API const char* tiercel_option_type(size_t index);    /* "TOKENS|X%|all" */
TIERCEL_C_API const char* tiercel_option_initial(size_t index); /* "": none, or the model says */
TIERCEL_C_API const char* tiercel_option_help(size_t index);

/* ---- engine ---- a model, its tokenizer, and the threads or the device that compute */

/* model: a Hugging Face directory, or a GGUF file. options: NULL for none. "backend", "device" and "threads" count here only, the others are the
 * defaults of sessions. */
TIERCEL_C_API tiercel_status tiercel_engine_open(const char* model,
                                                 const tiercel_options* options,
                                                 tiercel_engine** engine, tiercel_error** error);
/* Sessions and batches live on. */
TIERCEL_C_API void tiercel_engine_close(tiercel_engine* engine);
typedef int32_t tiercel_log_level;
enum { TIERCEL_LOG_INFO = 0, TIERCEL_LOG_WARNING = 1, TIERCEL_LOG_ERROR = 2 };
/* One line: `length` bytes, no zero behind them, valid during the call. It comes in whatever thread
 * has something to say, one line at a time, and may not call this engine or what it opened. */
typedef void (*tiercel_log_callback)(void* user, tiercel_log_level level, const char* line,
                                     size_t length);
/* What the library would say if it printed, from this level up. callback: NULL for silence, as from
 * the start. */
TIERCEL_C_API tiercel_status tiercel_engine_set_log(tiercel_engine* engine,
                                                    tiercel_log_callback callback, void* user,
                                                    tiercel_log_level from, tiercel_error** error);
/* "layers", "vocab-size", "max-positions", "parameters", "weight-bytes", "bos-token" (-1: none).
 * Names: index 0 .. until NULL. */
TIERCEL_C_API tiercel_status tiercel_engine_number(const tiercel_engine* engine, const char* name,
                                                   double* value, tiercel_error** error);
TIERCEL_C_API const char* tiercel_engine_number_name(size_t index);
TIERCEL_C_API tiercel_status tiercel_engine_numbers(const tiercel_engine* engine, double* values,
                                                    size_t n_values, tiercel_error** error);
/* Generation stops at any of these. *tokens: to be freed. */
TIERCEL_C_API tiercel_status tiercel_engine_end_tokens(const tiercel_engine* engine,
                                                       int32_t** tokens, size_t* n_tokens,
                                                       tiercel_error** error);
/* *tokens: to be freed; n_tokens of them. options: "no-bos" and "special" count. */
TIERCEL_C_API tiercel_status tiercel_tokenize(const tiercel_engine* engine, const char* text,
                                              size_t length, const tiercel_options* options,
                                              int32_t** tokens, size_t* n_tokens,
                                              tiercel_error** error);
/* A conversation of n messages as the model's chat template writes it, up to where the next answer
 * begins. roles: "system", "user" or "assistant"; texts are zero-terminated. date: "YYYY-MM-DD" for
 * templates that write one; NULL: today's. */
TIERCEL_C_API tiercel_status tiercel_tokenize_chat(const tiercel_engine* engine,
                                                   const char* const* roles,
                                                   const char* const* contents, size_t n,
                                                   const char* date, int32_t** tokens,
                                                   size_t* n_tokens, tiercel_error** error);
/* The same of a conversation in the JSON of OpenAI's endpoint, `length` bytes: {"messages": [..]} and, where
 * wanted, "tools", "chat_template_kwargs" and "date". */
TIERCEL_C_API tiercel_status tiercel_tokenize_chat_json(const tiercel_engine* engine,
                                                        const char* conversation, size_t length,
                                                        int32_t** tokens, size_t* n_tokens,
                                                        tiercel_error** error);
/* Takes an answer apart: *message is {"role": "assistant", "content": ..} with what was thought
 * ("reasoning_content") and what is called ("tool_calls"), a message for the conversation to go on with;
 * zero-terminated, to be freed. prompt: what it answers. tools: the JSON array that the conversation had;
 * NULL: nothing is called. */
TIERCEL_C_API tiercel_status tiercel_read_answer(const tiercel_engine* engine, const int32_t* prompt,
                                                 size_t n_prompt, const int32_t* answer,
                                                 size_t n_answer, const char* tools, char** message,
                                                 tiercel_error** error);
/* What to append behind an answer for the user's next message. sequence: the session's tokens. */
TIERCEL_C_API tiercel_status tiercel_tokenize_next_turn(const tiercel_engine* engine,
                                                        const int32_t* sequence, size_t n_sequence,
                                                        const char* user, int32_t** tokens,
                                                        size_t* n_tokens, tiercel_error** error);
/* *text: valid UTF-8, zero-terminated, to be freed; length without the zero, may be NULL. */
TIERCEL_C_API tiercel_status tiercel_detokenize(const tiercel_engine* engine, const int32_t* tokens,
                                                size_t n_tokens, int skip_special, char** text,
                                                size_t* length, tiercel_error** error);
/* The memory that a prompt of so many tokens would take, by names such as "device-total": bytes,
 * but "context" in tokens. Allocates nothing. Names: index 0 .. until NULL; tiercel_session_number
 * and tiercel_batch_number have them too. */
TIERCEL_C_API tiercel_status tiercel_engine_plan(const tiercel_engine* engine, int64_t n_prompt,
                                                 const tiercel_options* options, const char* name,
                                                 double* value, tiercel_error** error);
TIERCEL_C_API const char* tiercel_engine_plan_name(size_t index);
TIERCEL_C_API tiercel_status tiercel_engine_plan_numbers(const tiercel_engine* engine,
                                                         int64_t n_prompt,
                                                         const tiercel_options* options,
                                                         double* values, size_t n_values,
                                                         tiercel_error** error);
/* The same plan's words: "composition" (what selection would do, in one line) or "notes" (what was
 * adjusted or is worth a warning, one per line). *text: zero-terminated, to be freed. */
TIERCEL_C_API tiercel_status tiercel_engine_plan_text(const tiercel_engine* engine,
                                                      int64_t n_prompt,
                                                      const tiercel_options* options,
                                                      const char* name, char** text,
                                                      tiercel_error** error);

/* ---- session ---- one sequence */

typedef struct tiercel_progress {
  int64_t total, cached, processed; /* tokens of the sequence; taken over; done */
  double elapsed;                   /* seconds */
} tiercel_progress;
/* Return 0 to stop. */
typedef int (*tiercel_progress_callback)(void* user, const tiercel_progress* progress);
/* A token and the characters that it completes: `length` bytes, whole UTF-8 characters, no zero
 * behind them; valid during the call. Return 0 to stop. */
typedef int (*tiercel_piece_callback)(void* user, int32_t token, const char* text, size_t length);

typedef int32_t tiercel_finish;
enum {
  TIERCEL_FINISH_LENGTH = 0,      /* as many tokens as asked for */
  TIERCEL_FINISH_END_OF_TEXT = 1, /* a token that ends texts */
  TIERCEL_FINISH_STOPPED = 2,     /* the callback said so, or the request was cancelled */
  TIERCEL_FINISH_CONTEXT_FULL = 3 /* no room for another token */
};

TIERCEL_C_API tiercel_status tiercel_session_open(const tiercel_engine* engine,
                                                  const tiercel_options* options,
                                                  tiercel_session** session, tiercel_error** error);
TIERCEL_C_API void tiercel_session_close(tiercel_session* session);
/* TIERCEL_OK, TIERCEL_STOPPED, or an error. progress: NULL for none. */
TIERCEL_C_API tiercel_status tiercel_session_prefill(tiercel_session* session, const char* text,
                                                     size_t length,
                                                     tiercel_progress_callback progress, void* user,
                                                     tiercel_error** error);
TIERCEL_C_API tiercel_status tiercel_session_prefill_tokens(tiercel_session* session,
                                                            const int32_t* tokens, size_t n_tokens,
                                                            tiercel_progress_callback progress,
                                                            void* user, tiercel_error** error);
/* Appends up to n tokens. callback: NULL for none, then tiercel_session_tokens says what came.
 * finish: may be NULL. */
TIERCEL_C_API tiercel_status tiercel_session_generate(tiercel_session* session, int64_t n,
                                                      tiercel_piece_callback callback, void* user,
                                                      tiercel_finish* finish,
                                                      tiercel_error** error);
TIERCEL_C_API tiercel_status tiercel_session_step(tiercel_session* session, int32_t token,
                                                  tiercel_error** error);
/* Behind the prompt: as a step with each token, but faster; long texts are prefilled as the prompt was
 * (Session::append in tiercel.h). Text gets no begin-of-text token.
 * TIERCEL_STOPPED: tiercel_session_n_tokens says how many are in. */
TIERCEL_C_API tiercel_status tiercel_session_append(tiercel_session* session, const char* text,
                                                    size_t length,
                                                    tiercel_progress_callback progress, void* user,
                                                    tiercel_error** error);
TIERCEL_C_API tiercel_status tiercel_session_append_tokens(tiercel_session* session,
                                                           const int32_t* tokens, size_t n_tokens,
                                                           tiercel_progress_callback progress,
                                                           void* user, tiercel_error** error);
/* *logits: [*n] = [vocab_size], valid until the next call on this session; not to be freed. */
TIERCEL_C_API tiercel_status tiercel_session_logits(tiercel_session* session, const float** logits,
                                                    size_t* n, tiercel_error** error);
/* The same into the caller's logits [n], n = vocab_size: whole whatever another thread calls meanwhile. */
TIERCEL_C_API tiercel_status tiercel_session_copy_logits(tiercel_session* session, float* logits,
                                                         size_t n, tiercel_error** error);
/* logprobs: [n_tokens], the caller's. The first of an empty session is NaN. TIERCEL_STOPPED: behind
 * a prompt, those of the tokens that tiercel_session_n_tokens says are in have been written. */
TIERCEL_C_API tiercel_status tiercel_session_score(tiercel_session* session, const int32_t* tokens,
                                                   size_t n_tokens, double* logprobs,
                                                   tiercel_progress_callback progress, void* user,
                                                   tiercel_error** error);
/* Selected tokens per KV head from the next token on, at most what was planned; -1: as planned. */
TIERCEL_C_API tiercel_status tiercel_session_set_budget(tiercel_session* session, int64_t tokens,
                                                        tiercel_error** error);
/* A session that stands where this one does and goes on by itself, in memory of its own. */
TIERCEL_C_API tiercel_status tiercel_session_fork(tiercel_session* session, tiercel_session** fork,
                                                  tiercel_error** error);
/* To a file that is complete or not there. TIERCEL_STOPPED: what stood there before still does. The
 * session goes on in either case. */
TIERCEL_C_API tiercel_status tiercel_session_save(tiercel_session* session, const char* path,
                                                  tiercel_progress_callback progress, void* user,
                                                  tiercel_error** error);
/* What was saved, instead of a prefill; sampling begins anew. options: those not given are as saved
 * where the cache depends on them, else the engine's. TIERCEL_STOPPED: there is no session. */
TIERCEL_C_API tiercel_status tiercel_session_restore(const tiercel_engine* engine, const char* path,
                                                     const tiercel_options* options,
                                                     tiercel_progress_callback progress, void* user,
                                                     tiercel_session** session,
                                                     tiercel_error** error);
TIERCEL_C_API tiercel_status tiercel_session_rewind(tiercel_session* session,
                                                    tiercel_error** error);
TIERCEL_C_API tiercel_status tiercel_session_reset(tiercel_session* session, tiercel_error** error);
/* *tokens: to be freed. */
TIERCEL_C_API tiercel_status tiercel_session_tokens(const tiercel_session* session,
                                                    int32_t** tokens, size_t* n_tokens,
                                                    tiercel_error** error);
/* How many they are. */
TIERCEL_C_API tiercel_status tiercel_session_n_tokens(const tiercel_session* session,
                                                      size_t* n_tokens, tiercel_error** error);
/* One statistic by name, such as "prefill-seconds". Counts are exact up to 2^53. */
TIERCEL_C_API tiercel_status tiercel_session_number(const tiercel_session* session,
                                                    const char* name, double* value,
                                                    tiercel_error** error);
/* The statistics that exist: index 0 .. count - 1. NULL beyond. */
TIERCEL_C_API size_t tiercel_number_count(void);
TIERCEL_C_API const char* tiercel_number_name(size_t index);
TIERCEL_C_API tiercel_status tiercel_session_numbers(const tiercel_session* session, double* values,
                                                     size_t n_values, tiercel_error** error);
/* "backend", "composition" or "notes", the latter two as of tiercel_engine_plan_text. *text:
 * zero-terminated, to be freed. */
TIERCEL_C_API tiercel_status tiercel_session_text(const tiercel_session* session, const char* name,
                                                  char** text, tiercel_error** error);

/* ---- batch ---- requests decoded together by a thread of its own; safe from any thread */

/* options: those of a session (but "audit"), "parallel", "max-prompt", "max-gap" and
 * "micro-batches". */
TIERCEL_C_API tiercel_status tiercel_batch_open(const tiercel_engine* engine,
                                                const tiercel_options* options,
                                                tiercel_batch** batch, tiercel_error** error);
/* Cancels what is left and waits for it; from a callback, without waiting. Requests live on. */
TIERCEL_C_API void tiercel_batch_close(tiercel_batch* batch);
/* Up to n tokens behind a prompt; n = -1: as many as option "n-predict" says. options: sampling,
 * "n-predict", "logprobs", "ignore-eos", "no-bos" and "special". The callback, NULL for none, comes in the
 * batch's thread until the request is done. It may use batches and requests, but not wait; that,
 * and what computes on the engine, is TIERCEL_BUSY in it. */
TIERCEL_C_API tiercel_status tiercel_batch_submit(tiercel_batch* batch, const char* text,
                                                  size_t length, int64_t n,
                                                  const tiercel_options* options,
                                                  tiercel_piece_callback callback, void* user,
                                                  tiercel_request** request, tiercel_error** error);
TIERCEL_C_API tiercel_status tiercel_batch_submit_tokens(tiercel_batch* batch,
                                                         const int32_t* tokens, size_t n_tokens,
                                                         int64_t n, const tiercel_options* options,
                                                         tiercel_piece_callback callback,
                                                         void* user, tiercel_request** request,
                                                         tiercel_error** error);
/* What many prompts of this batch begin with, a document, say: prefilled once, when the first request
 * behind it comes, and kept while the handle or a request has it (while no request does, until its
 * room is wanted). options: "no-bos" and "special". To be freed, before or after the batch. */
TIERCEL_C_API tiercel_status tiercel_batch_share(tiercel_batch* batch, const char* text,
                                                 size_t length, const tiercel_options* options,
                                                 tiercel_prefix** prefix, tiercel_error** error);
TIERCEL_C_API tiercel_status tiercel_batch_share_tokens(tiercel_batch* batch,
                                                        const int32_t* tokens, size_t n_tokens,
                                                        tiercel_prefix** prefix,
                                                        tiercel_error** error);
/* Requests whose prompts begin with it; text goes on where it ends. Tokens behind it attend what they
 * select of it, as generated ones do or, if they are many, as appended ones (tiercel_session_append). */
TIERCEL_C_API tiercel_status tiercel_batch_submit_behind(
    tiercel_batch* batch, const tiercel_prefix* prefix, const char* text, size_t length, int64_t n,
    const tiercel_options* options, tiercel_piece_callback callback, void* user,
    tiercel_request** request, tiercel_error** error);
TIERCEL_C_API tiercel_status tiercel_batch_submit_tokens_behind(
    tiercel_batch* batch, const tiercel_prefix* prefix, const int32_t* tokens, size_t n_tokens,
    int64_t n, const tiercel_options* options, tiercel_piece_callback callback, void* user,
    tiercel_request** request, tiercel_error** error);
TIERCEL_C_API size_t tiercel_prefix_n_tokens(const tiercel_prefix* prefix); /* 0 of NULL */
TIERCEL_C_API void tiercel_prefix_free(tiercel_prefix* prefix);
/* A statistic such as "decoding", or of the memory plan. Names: index 0 .. until NULL. */
TIERCEL_C_API tiercel_status tiercel_batch_number(const tiercel_batch* batch, const char* name,
                                                  double* value, tiercel_error** error);
TIERCEL_C_API const char* tiercel_batch_number_name(size_t index);
TIERCEL_C_API tiercel_status tiercel_batch_numbers(const tiercel_batch* batch, double* values,
                                                   size_t n_values, tiercel_error** error);
/* Of the memory plan: "composition" or "notes", as of tiercel_engine_plan_text. *text:
 * zero-terminated, to be freed. */
TIERCEL_C_API tiercel_status tiercel_batch_text(const tiercel_batch* batch, const char* name,
                                                char** text, tiercel_error** error);

typedef int32_t tiercel_request_state;
enum {
  TIERCEL_REQUEST_QUEUED = 0,
  TIERCEL_REQUEST_PREFILLING = 1,
  TIERCEL_REQUEST_DECODING = 2,
  TIERCEL_REQUEST_FINISHED = 3, /* with all its tokens */
  TIERCEL_REQUEST_FAILED = 4,   /* what waits gets its error */
  TIERCEL_REQUEST_CANCELLED = 5 /* or stopped by its callback */
};

/* Waits until it is done: TIERCEL_OK, or the request's own error. finish: may be NULL. */
TIERCEL_C_API tiercel_status tiercel_request_wait(const tiercel_request* request,
                                                  tiercel_finish* finish, tiercel_error** error);
/* Waits so many seconds at most, 0: not at all; *done: 1 or 0. */
TIERCEL_C_API tiercel_status tiercel_request_wait_for(const tiercel_request* request,
                                                      double seconds, int* done,
                                                      tiercel_error** error);
/* Wait too. *tokens, *text: to be freed; length: may be NULL. */
TIERCEL_C_API tiercel_status tiercel_request_tokens(const tiercel_request* request,
                                                    int32_t** tokens, size_t* n_tokens,
                                                    tiercel_error** error);
TIERCEL_C_API tiercel_status tiercel_request_text(const tiercel_request* request, char** text,
                                                  size_t* length, tiercel_error** error);
/* Of a request with option "logprobs", natural logarithms, before penalties, biases and temperature. They
 * wait too. logprobs: of each token, none without the option; and of the most likely ones in the place of
 * token `index`, most likely first. *tokens, *logprobs: to be freed. */
TIERCEL_C_API tiercel_status tiercel_request_logprobs(const tiercel_request* request,
                                                      double** logprobs, size_t* n_tokens,
                                                      tiercel_error** error);
TIERCEL_C_API tiercel_status tiercel_request_top_logprobs(const tiercel_request* request,
                                                          size_t index, int32_t** tokens,
                                                          double** logprobs, size_t* n,
                                                          tiercel_error** error);
/* A statistic such as "state" or "first-token-seconds". Names: index 0 .. until NULL. */
TIERCEL_C_API tiercel_status tiercel_request_number(const tiercel_request* request,
                                                    const char* name, double* value,
                                                    tiercel_error** error);
TIERCEL_C_API const char* tiercel_request_number_name(size_t index);
TIERCEL_C_API tiercel_status tiercel_request_numbers(const tiercel_request* request, double* values,
                                                     size_t n_values, tiercel_error** error);
/* Returns at once; the callback is not called again, but for a call that is running. */
TIERCEL_C_API tiercel_status tiercel_request_cancel(tiercel_request* request,
                                                    tiercel_error** error);
/* The object; what was asked for goes on. */
TIERCEL_C_API void tiercel_request_free(tiercel_request* request);

#ifdef __cplusplus
}
#endif

#endif /* TIERCEL_C_H_ */
