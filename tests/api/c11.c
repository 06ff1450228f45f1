/* The C interface from C11, linked: legal calls, and illegal ones that must give errors. Arguments:
 * a model, and a file that may be written and is removed. The line of the first expectation that
 * failed is printed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tiercel_c.h"

#define EXPECT(condition)             \
  do {                                \
    if (!(condition)) fail(__LINE__); \
  } while (0)

static void fail(int line) {
  printf("tests/api/c11.c:%d\n", line);
  fflush(stdout);
  _Exit(1);
}

/* The call must fail with this status and a message that holds this text. */
#define EXPECT_ERROR(call, status, text)                        \
  do {                                                          \
    EXPECT((call) == (status));                                 \
    EXPECT(tiercel_error_status(error) == (status));            \
    EXPECT(strstr(tiercel_error_message(error), text) != NULL); \
    tiercel_error_free(error);                                  \
    error = NULL;                                               \
  } while (0)

struct heard {
  int calls;
  size_t bytes;
  int stop_after;
};

static int on_piece(void* user, int32_t token, const char* text, size_t length) {
  struct heard* heard = user;
  (void)text;
  EXPECT(token >= 0);
  heard->bytes += length;
  return ++heard->calls != heard->stop_after;
}

static int on_progress(void* user, const tiercel_progress* p) {
  struct heard* heard = user;
  EXPECT(p->total > 0 && p->cached == 0 && p->processed <= p->total && p->elapsed >= 0);
  return ++heard->calls != heard->stop_after;
}

/* Of what is not done from the start: a file, what comes behind a prompt. */
static int on_part(void* user, const tiercel_progress* p) {
  struct heard* heard = user;
  EXPECT(p->total > 0 && p->cached <= p->processed && p->processed <= p->total);
  return ++heard->calls != heard->stop_after;
}

static void null_is_refused(void) {
  tiercel_error* error = NULL;
  int32_t* tokens = NULL;
  const float* logits = NULL;
  size_t n = 0;
  double number = 0;
  char* text = NULL;
  EXPECT_ERROR(tiercel_options_set(NULL, "budget", "1", &error), TIERCEL_USAGE, "options");
  EXPECT_ERROR(tiercel_engine_open(NULL, NULL, NULL, &error), TIERCEL_USAGE, "engine");
  EXPECT_ERROR(tiercel_engine_number(NULL, "layers", &number, &error), TIERCEL_USAGE, "engine");
  EXPECT_ERROR(tiercel_tokenize(NULL, "x", 1, NULL, &tokens, &n, &error), TIERCEL_USAGE, "engine");
  EXPECT_ERROR(tiercel_detokenize(NULL, NULL, 0, 0, &text, NULL, &error), TIERCEL_USAGE, "engine");
  EXPECT_ERROR(tiercel_engine_plan(NULL, 5, NULL, "resident", &number, &error), TIERCEL_USAGE,
               "engine");
  EXPECT_ERROR(tiercel_engine_numbers(NULL, &number, 1, &error), TIERCEL_USAGE, "engine");
  EXPECT_ERROR(tiercel_engine_plan_numbers(NULL, 5, NULL, &number, 1, &error), TIERCEL_USAGE,
               "engine");
  EXPECT_ERROR(tiercel_session_open(NULL, NULL, NULL, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_prefill(NULL, "x", 1, NULL, NULL, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_prefill_tokens(NULL, NULL, 0, NULL, NULL, &error), TIERCEL_USAGE,
               "session");
  EXPECT_ERROR(tiercel_session_generate(NULL, 1, NULL, NULL, NULL, &error), TIERCEL_USAGE,
               "session");
  EXPECT_ERROR(tiercel_session_step(NULL, 1, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_logits(NULL, &logits, &n, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_score(NULL, NULL, 0, NULL, NULL, NULL, &error), TIERCEL_USAGE,
               "session");
  EXPECT_ERROR(tiercel_session_rewind(NULL, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_reset(NULL, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_tokens(NULL, &tokens, &n, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_number(NULL, "seed", &number, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_numbers(NULL, &number, 1, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_text(NULL, "notes", &text, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_save(NULL, "x", NULL, NULL, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_set_budget(NULL, 1, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_restore(NULL, "x", NULL, NULL, NULL, NULL, &error), TIERCEL_USAGE,
               "session");
  /* Nobody has to listen, and nothing need be there. */
  EXPECT(tiercel_session_rewind(NULL, NULL) == TIERCEL_USAGE);
  EXPECT(tiercel_error_status(NULL) == TIERCEL_OK && *tiercel_error_message(NULL) == '\0');
  tiercel_error_free(NULL);
  tiercel_options_free(NULL);
  tiercel_session_close(NULL);
  tiercel_engine_close(NULL);
  tiercel_free(NULL);
}

static void null_is_refused_of_batches(void) {
  tiercel_error* error = NULL;
  tiercel_batch* batch = NULL;
  tiercel_request* request = NULL;
  int32_t* tokens = NULL;
  int done = 0;
  size_t n = 0;
  double number = 0;
  char* text = NULL;
  EXPECT_ERROR(tiercel_batch_open(NULL, NULL, &batch, &error), TIERCEL_USAGE, "engine");
  EXPECT_ERROR(tiercel_batch_open(NULL, NULL, NULL, &error), TIERCEL_USAGE, "batch");
  EXPECT_ERROR(tiercel_batch_submit(NULL, "x", 1, 1, NULL, NULL, NULL, &request, &error),
               TIERCEL_USAGE, "batch");
  EXPECT_ERROR(tiercel_batch_submit_tokens(NULL, NULL, 0, 1, NULL, NULL, NULL, NULL, &error),
               TIERCEL_USAGE, "request");
  EXPECT_ERROR(tiercel_batch_number(NULL, "steps", &number, &error), TIERCEL_USAGE, "batch");
  EXPECT_ERROR(tiercel_batch_numbers(NULL, &number, 1, &error), TIERCEL_USAGE, "batch");
  EXPECT_ERROR(tiercel_request_wait(NULL, NULL, &error), TIERCEL_USAGE, "request");
  EXPECT_ERROR(tiercel_request_wait_for(NULL, 1, &done, &error), TIERCEL_USAGE, "request");
  EXPECT_ERROR(tiercel_request_tokens(NULL, &tokens, &n, &error), TIERCEL_USAGE, "request");
  EXPECT_ERROR(tiercel_request_text(NULL, &text, NULL, &error), TIERCEL_USAGE, "request");
  EXPECT_ERROR(tiercel_request_number(NULL, "seed", &number, &error), TIERCEL_USAGE, "request");
  EXPECT_ERROR(tiercel_request_numbers(NULL, &number, 1, &error), TIERCEL_USAGE, "request");
  EXPECT_ERROR(tiercel_request_cancel(NULL, &error), TIERCEL_USAGE, "request");
  tiercel_request_free(NULL);
  tiercel_batch_close(NULL);
}

static void options_are_listed(void) {
  tiercel_error* error = NULL;
  tiercel_options* options = tiercel_options_new();
  size_t i = 0, n = tiercel_option_count();
  EXPECT(n > 40 && tiercel_option_name(n) == NULL && tiercel_option_help(n) == NULL);
  for (i = 0; i < n; ++i) {
    EXPECT(*tiercel_option_name(i) && *tiercel_option_type(i) && *tiercel_option_help(i));
    /* What an option starts with is a legal value of it. */
    if (*tiercel_option_initial(i)) {
      EXPECT(tiercel_options_set(options, tiercel_option_name(i), tiercel_option_initial(i),
                                 &error) == TIERCEL_OK);
    }
  }
  EXPECT_ERROR(tiercel_options_set(options, "bugdet", "1", &error), TIERCEL_USAGE, "budget");
  EXPECT_ERROR(tiercel_options_set(options, "budget", NULL, &error), TIERCEL_USAGE, "value");
  EXPECT_ERROR(tiercel_options_set(options, "budget", "many", &error), TIERCEL_USAGE, "'many'");
  tiercel_options_free(options);
}

static void texts_and_tokens(tiercel_engine* engine) {
  static const char text[] =
      "Gr\xC3\xBC\xC3\x9F"
      "e, two words\n";
  tiercel_error* error = NULL;
  int32_t* tokens = NULL;
  size_t n = 0, length = 0;
  char* back = NULL;
  const int32_t bad = 1 << 20;
  double value = 0;
  EXPECT(tiercel_tokenize(engine, text, strlen(text), NULL, &tokens, &n, &error) == TIERCEL_OK);
  EXPECT(n > 3);
  EXPECT(tiercel_detokenize(engine, tokens, n, 1, &back, &length, &error) == TIERCEL_OK);
  EXPECT(length == strlen(text) && strcmp(back, text) == 0);
  tiercel_free(back);
  tiercel_free(tokens);
  EXPECT(tiercel_tokenize(engine, NULL, 0, NULL, &tokens, &n, NULL) == TIERCEL_OK && n <= 1);
  tiercel_free(tokens);
  EXPECT_ERROR(tiercel_tokenize(engine, NULL, 3, NULL, &tokens, &n, &error), TIERCEL_USAGE, "text");
  EXPECT_ERROR(tiercel_detokenize(engine, &bad, 1, 0, &back, NULL, &error), TIERCEL_USAGE,
               "1048576");
  EXPECT(tiercel_engine_number(engine, "vocab-size", &value, &error) == TIERCEL_OK &&
         value == 2048);
  EXPECT_ERROR(tiercel_engine_number(engine, "x", &value, &error), TIERCEL_USAGE, "vocab-size");
  EXPECT(tiercel_engine_plan(engine, 5000, NULL, "device-total", &value, &error) == TIERCEL_OK);
  EXPECT(value > 1e6);
  EXPECT_ERROR(tiercel_engine_plan(engine, 5000, NULL, "seed", &value, &error), TIERCEL_USAGE,
               "resident");
}

static void one_sequence(tiercel_engine* engine) {
  static const char text[] = "The magic number for silver-harbor is 48213. The magic number is";
  tiercel_error* error = NULL;
  tiercel_options* options = tiercel_options_new();
  tiercel_session* session = NULL;
  struct heard heard = {0, 0, 1};
  tiercel_finish finish = -1;
  int32_t first[3], *tokens = NULL;
  double logprobs[3] = {0}, value = 0;
  size_t i = 0, n = 0, n_prompt = 0;
  const float* logits = NULL;
  char* words = NULL;
  EXPECT(tiercel_options_set(options, "n-predict", "8", &error) == TIERCEL_OK);
  EXPECT(tiercel_session_open(engine, options, &session, &error) == TIERCEL_OK);
  tiercel_options_free(options);
  EXPECT_ERROR(tiercel_session_step(session, 1, &error), TIERCEL_STATE, "prefill");
  EXPECT(tiercel_session_prefill(session, text, strlen(text), on_progress, &heard, &error) ==
         TIERCEL_STOPPED);
  EXPECT(error == NULL && heard.calls == 1);
  heard.stop_after = 0;
  EXPECT(tiercel_session_prefill(session, text, strlen(text), on_progress, &heard, &error) ==
         TIERCEL_OK);
  EXPECT(tiercel_session_tokens(session, &tokens, &n_prompt, &error) == TIERCEL_OK);
  tiercel_free(tokens);
  heard = (struct heard){0, 0, 0};
  EXPECT(tiercel_session_generate(session, 3, on_piece, &heard, &finish, &error) == TIERCEL_OK);
  EXPECT(heard.calls == 3 && heard.bytes > 0 && finish == TIERCEL_FINISH_LENGTH);
  EXPECT(tiercel_session_tokens(session, &tokens, &n, &error) == TIERCEL_OK && n == n_prompt + 3);
  memcpy(first, tokens + n_prompt, sizeof(first));
  tiercel_free(tokens);
  EXPECT(tiercel_session_rewind(session, &error) == TIERCEL_OK);
  EXPECT(tiercel_session_logits(session, &logits, &n, &error) == TIERCEL_OK && n == 2048);
  for (i = 0; i < n; ++i) EXPECT(logits[i] <= logits[first[0]]);
  EXPECT(tiercel_session_score(session, first, 3, logprobs, NULL, NULL, &error) == TIERCEL_OK);
  for (i = 0; i < 3; ++i) EXPECT(logprobs[i] < 0 && logprobs[i] > -12);
  EXPECT_ERROR(tiercel_session_score(session, first, 3, NULL, NULL, NULL, &error), TIERCEL_USAGE,
               "logprobs");
  heard = (struct heard){0, 0, 2};
  for (i = 0; i < 3; ++i) logprobs[i] = 1;
  EXPECT(tiercel_session_score(session, first, 3, logprobs, on_part, &heard, &error) ==
         TIERCEL_STOPPED);
  EXPECT(heard.calls == 2 && logprobs[0] < 0 && logprobs[1] < 0 && logprobs[2] == 1);
  EXPECT(tiercel_session_n_tokens(session, &n, &error) == TIERCEL_OK && n == n_prompt + 5);
  EXPECT(tiercel_session_generate(session, 100, NULL, NULL, &finish, &error) == TIERCEL_OK);
  EXPECT(finish == TIERCEL_FINISH_CONTEXT_FULL || finish == TIERCEL_FINISH_END_OF_TEXT);
  EXPECT_ERROR(tiercel_session_prefill(session, "x", 1, NULL, NULL, &error), TIERCEL_STATE,
               "reset");
  for (i = 0; i < tiercel_number_count(); ++i) {
    EXPECT(tiercel_session_number(session, tiercel_number_name(i), &value, &error) == TIERCEL_OK);
  }
  EXPECT(tiercel_number_name(i) == NULL);
  EXPECT_ERROR(tiercel_session_number(session, "speed", &value, &error), TIERCEL_USAGE, "seed");
  EXPECT(tiercel_session_text(session, "backend", &words, &error) == TIERCEL_OK);
  EXPECT(strncmp(words, "cpu: ", 5) == 0);
  tiercel_free(words);
  EXPECT_ERROR(tiercel_session_text(session, "song", &words, &error), TIERCEL_USAGE, "composition");
  EXPECT(tiercel_session_reset(session, &error) == TIERCEL_OK);
  EXPECT(tiercel_session_prefill_tokens(session, first, 3, NULL, NULL, &error) == TIERCEL_OK);
  tiercel_session_close(session);
}

static void on_log(void* user, tiercel_log_level level, const char* line, size_t length) {
  (void)level;
  if (length > 0 && line[length - 1] != '\n') ++*(int*)user;
}

static void logged(tiercel_engine* engine) {
  tiercel_error* error = NULL;
  tiercel_session* session = NULL;
  int n_lines = 0;
  EXPECT_ERROR(tiercel_engine_set_log(NULL, on_log, &n_lines, 0, &error), TIERCEL_USAGE, "engine");
  EXPECT_ERROR(tiercel_engine_set_log(engine, on_log, &n_lines, 3, &error), TIERCEL_USAGE, "level");
  EXPECT(tiercel_engine_set_log(engine, on_log, &n_lines, TIERCEL_LOG_INFO, &error) == TIERCEL_OK);
  EXPECT(tiercel_session_open(engine, NULL, &session, &error) == TIERCEL_OK);
  EXPECT(tiercel_session_prefill(session, "a", 1, NULL, NULL, &error) == TIERCEL_OK);
  EXPECT(n_lines == 1);
  EXPECT(tiercel_engine_set_log(engine, NULL, NULL, TIERCEL_LOG_INFO, &error) == TIERCEL_OK);
  tiercel_session_close(session);
}

static void chat(tiercel_engine* engine) {
  const char* roles[] = {"user"};
  const char* contents[] = {"hi"};
  const char* none[] = {NULL};
  tiercel_error* error = NULL;
  int32_t* tokens = NULL;
  size_t n = 0;
  EXPECT_ERROR(tiercel_tokenize_chat(engine, roles, contents, 1, NULL, &tokens, &n, &error),
               TIERCEL_USAGE, "chat template");
  EXPECT_ERROR(tiercel_tokenize_chat(engine, roles, none, 1, NULL, &tokens, &n, &error),
               TIERCEL_USAGE, "contents");
  EXPECT_ERROR(tiercel_tokenize_chat(engine, NULL, contents, 1, NULL, &tokens, &n, &error),
               TIERCEL_USAGE, "roles");
  EXPECT_ERROR(tiercel_tokenize_next_turn(engine, NULL, 0, NULL, &tokens, &n, &error),
               TIERCEL_USAGE, "user");
  EXPECT_ERROR(tiercel_tokenize_chat_json(engine, "{}", 2, &tokens, &n, &error), TIERCEL_USAGE, "messages");
  EXPECT_ERROR(tiercel_tokenize_chat_json(engine, NULL, 0, &tokens, &n, &error), TIERCEL_USAGE, "conversation");
  char* message = NULL;
  EXPECT(tiercel_tokenize(engine, "Yes.", 4, NULL, &tokens, &n, &error) == TIERCEL_OK);
  EXPECT(tiercel_read_answer(engine, NULL, 0, tokens, n, NULL, &message, &error) == TIERCEL_OK);
  EXPECT(strcmp(message, "{\"role\":\"assistant\",\"content\":\"Yes.\"}") == 0);
  tiercel_free(message);
  EXPECT_ERROR(tiercel_read_answer(engine, NULL, 0, tokens, n, "[3]", &message, &error), TIERCEL_USAGE, "tools");
  EXPECT_ERROR(tiercel_read_answer(engine, NULL, 0, NULL, 1, NULL, &message, &error), TIERCEL_USAGE, "answer");
  tiercel_free(tokens);
}

static void saved_and_restored(tiercel_engine* engine, const char* path) {
  static const char text[] = "The magic number for silver-harbor is 48213. The magic number is";
  tiercel_error* error = NULL;
  tiercel_session *session = NULL, *copy = NULL, *fork = NULL;
  struct heard heard = {0, 0, 1};
  int32_t *tokens = NULL, *same = NULL;
  size_t n = 0, m = 0;
  EXPECT(tiercel_session_open(engine, NULL, &session, &error) == TIERCEL_OK);
  EXPECT_ERROR(tiercel_session_save(session, path, NULL, NULL, &error), TIERCEL_STATE, "prefill");
  EXPECT(tiercel_session_prefill(session, text, strlen(text), NULL, NULL, &error) == TIERCEL_OK);
  EXPECT_ERROR(tiercel_session_save(session, NULL, NULL, NULL, &error), TIERCEL_USAGE, "path");
  EXPECT(tiercel_session_save(session, path, on_part, &heard, &error) == TIERCEL_STOPPED);
  EXPECT(tiercel_session_save(session, path, NULL, NULL, &error) == TIERCEL_OK);
  heard = (struct heard){0, 0, 1};
  EXPECT(tiercel_session_restore(engine, path, NULL, on_part, &heard, &copy, &error) ==
         TIERCEL_STOPPED);
  EXPECT(copy == NULL && error == NULL);
  EXPECT_ERROR(tiercel_session_restore(engine, "/nowhere", NULL, NULL, NULL, &copy, &error),
               TIERCEL_RUNTIME, "/nowhere");
  EXPECT(tiercel_session_restore(engine, path, NULL, NULL, NULL, &copy, &error) == TIERCEL_OK);
  EXPECT(remove(path) == 0);
  EXPECT(tiercel_session_set_budget(copy, -1, &error) == TIERCEL_OK);
  EXPECT_ERROR(tiercel_session_set_budget(copy, 0, &error), TIERCEL_USAGE, "budget");
  EXPECT_ERROR(tiercel_session_fork(session, NULL, &error), TIERCEL_USAGE, "fork");
  EXPECT_ERROR(tiercel_session_fork(NULL, &fork, &error), TIERCEL_USAGE, "session");
  EXPECT_ERROR(tiercel_session_append(session, NULL, 3, NULL, NULL, &error), TIERCEL_USAGE, "text");
  EXPECT(tiercel_session_fork(session, &fork, &error) == TIERCEL_OK);
  EXPECT(tiercel_session_append(fork, text, strlen(text), NULL, NULL, &error) == TIERCEL_OK);
  EXPECT(tiercel_session_tokens(fork, &tokens, &n, &error) == TIERCEL_OK);
  EXPECT(tiercel_session_append_tokens(fork, tokens, 2, NULL, NULL, &error) == TIERCEL_OK);
  tiercel_free(tokens);
  tiercel_session_close(fork);
  EXPECT(tiercel_session_generate(session, 4, NULL, NULL, NULL, &error) == TIERCEL_OK);
  EXPECT(tiercel_session_generate(copy, 4, NULL, NULL, NULL, &error) == TIERCEL_OK);
  EXPECT(tiercel_session_tokens(session, &tokens, &n, &error) == TIERCEL_OK);
  EXPECT(tiercel_session_tokens(copy, &same, &m, &error) == TIERCEL_OK);
  EXPECT(n == m && memcmp(tokens, same, n * sizeof(*tokens)) == 0);
  tiercel_free(tokens);
  tiercel_free(same);
  tiercel_session_close(session);
  tiercel_session_close(copy);
}

static void one_batch(tiercel_engine* engine) {
  static const char text[] = "The magic number for silver-harbor is 48213. The magic number is";
  tiercel_error* error = NULL;
  tiercel_options* options = tiercel_options_new();
  tiercel_batch* batch = NULL;
  tiercel_request* requests[4] = {NULL};
  tiercel_finish finish = -1;
  struct heard heard[4] = {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 0, 2}};
  int32_t *tokens = NULL, *same = NULL;
  size_t i = 0, n = 0, m = 0, length = 0;
  double value = 0;
  int done = 0;
  char* words = NULL;
  double* logprobs = NULL;
  EXPECT_ERROR(tiercel_batch_open(engine, options, &batch, &error), TIERCEL_USAGE, "max-prompt");
  EXPECT(tiercel_options_set(options, "max-prompt", "100", &error) == TIERCEL_OK);
  EXPECT(tiercel_options_set(options, "parallel", "3", &error) == TIERCEL_OK);
  EXPECT(tiercel_batch_open(engine, options, &batch, &error) == TIERCEL_OK);
  EXPECT_ERROR(tiercel_batch_submit(batch, text, 9, 1, options, NULL, NULL, &requests[0], &error),
               TIERCEL_USAGE, "max-prompt");
  EXPECT_ERROR(tiercel_batch_submit(batch, text, 0, 0, NULL, NULL, NULL, &requests[0], &error),
               TIERCEL_USAGE, "expected");
  EXPECT(requests[0] == NULL);
  tiercel_options_free(options);
  EXPECT(tiercel_tokenize(engine, text, strlen(text), NULL, &tokens, &n, &error) == TIERCEL_OK);
  for (i = 0; i < 4; ++i) {
    EXPECT((i % 2 == 0 ? tiercel_batch_submit(batch, text, strlen(text), 4, NULL, on_piece,
                                              &heard[i], &requests[i], &error)
                       : tiercel_batch_submit_tokens(batch, tokens, n, 4, NULL, on_piece, &heard[i],
                                                     &requests[i], &error)) == TIERCEL_OK);
  }
  tiercel_free(tokens);
  for (i = 0; i < 4; ++i) {
    EXPECT(tiercel_request_wait(requests[i], &finish, &error) == TIERCEL_OK);
    EXPECT(finish == (i < 3 ? TIERCEL_FINISH_LENGTH : TIERCEL_FINISH_STOPPED));
    EXPECT(tiercel_request_wait_for(requests[i], 0, &done, &error) == TIERCEL_OK && done == 1);
    EXPECT(heard[i].calls == (i < 3 ? 4 : 2));
    EXPECT(tiercel_request_text(requests[i], &words, &length, &error) == TIERCEL_OK);
    EXPECT(length == heard[i].bytes && strlen(words) == length);
    tiercel_free(words);
    EXPECT(tiercel_request_number(requests[i], "state", &value, &error) == TIERCEL_OK);
    EXPECT(value == (i < 3 ? TIERCEL_REQUEST_FINISHED : TIERCEL_REQUEST_CANCELLED));
    EXPECT(tiercel_request_tokens(requests[0], &tokens, &n, &error) == TIERCEL_OK);
    EXPECT(tiercel_request_tokens(requests[i], &same, &m, &error) == TIERCEL_OK);
    EXPECT(m == (i < 3 ? 4 : 2) && memcmp(tokens, same, m * sizeof(*tokens)) == 0);
    tiercel_free(tokens);
    tiercel_free(same);
    EXPECT(tiercel_request_logprobs(requests[i], &logprobs, &m, &error) == TIERCEL_OK && m == 0);
    tiercel_free(logprobs);
    EXPECT_ERROR(tiercel_request_top_logprobs(requests[i], 0, &same, &logprobs, &m, &error),
                 TIERCEL_USAGE, "index");
    EXPECT(tiercel_request_cancel(requests[i], &error) == TIERCEL_OK);
  }
  for (i = 0; tiercel_batch_number_name(i) != NULL; ++i) {
    EXPECT(tiercel_batch_number(batch, tiercel_batch_number_name(i), &value, &error) == TIERCEL_OK);
  }
  EXPECT(i > 20);
  for (i = 0; tiercel_request_number_name(i) != NULL; ++i) {
    EXPECT(tiercel_request_number(requests[0], tiercel_request_number_name(i), &value, &error) ==
           TIERCEL_OK);
  }
  EXPECT(i > 10);
  EXPECT_ERROR(tiercel_batch_number(batch, "x", &value, &error), TIERCEL_USAGE, "most-decoding");
  EXPECT_ERROR(tiercel_request_number(requests[0], "x", &value, &error), TIERCEL_USAGE, "state");
  tiercel_request_free(requests[0]);
  EXPECT(tiercel_batch_submit(batch, text, strlen(text), -1, NULL, on_piece, &heard[0],
                              &requests[0], &error) == TIERCEL_OK);
  tiercel_batch_close(batch);
  EXPECT(tiercel_request_wait(requests[0], &finish, &error) == TIERCEL_OK);
  for (i = 0; i < 4; ++i) tiercel_request_free(requests[i]);
}

int main(int argc, char** argv) {
  tiercel_error* error = NULL;
  tiercel_engine* engine = NULL;
  tiercel_options* options = tiercel_options_new();
  EXPECT(argc == 3);
  null_is_refused();
  null_is_refused_of_batches();
  options_are_listed();
  EXPECT_ERROR(tiercel_engine_open("/nowhere", NULL, &engine, &error), TIERCEL_RUNTIME, "/nowhere");
  EXPECT(tiercel_options_set(options, "backend", "cpu", NULL) == TIERCEL_OK);
  EXPECT(tiercel_options_set(options, "threads", "2", NULL) == TIERCEL_OK);
  EXPECT(tiercel_engine_open(argv[1], options, &engine, &error) == TIERCEL_OK);
  tiercel_options_free(options);
  texts_and_tokens(engine);
  one_sequence(engine);
  logged(engine);
  chat(engine);
  saved_and_restored(engine, argv[2]);
  one_batch(engine);
  tiercel_engine_close(engine);
  return 0;
}
