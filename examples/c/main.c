/* Continues a text, in C.
 *
 *   cc main.c $(pkg-config --cflags --libs tiercel) -o continue && ./continue MODEL_DIR "some text"
 */
#include <stdio.h>
#include <string.h>
#include <tiercel/tiercel_c.h>

static int print_piece(void* user, int32_t token, const char* text, size_t length) {
  (void)user, (void)token;
  fwrite(text, 1, length, stdout);
  fflush(stdout);
  return 1; /* 0 would stop */
}

static int show_progress(void* user, const tiercel_progress* p) {
  (void)user;
  fprintf(stderr, "\rprefill: %lld of %lld tokens", (long long)p->processed, (long long)p->total);
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: continue MODEL_DIR TEXT\n");
    return 2;
  }
  tiercel_options* options = tiercel_options_new();
  tiercel_engine* engine = NULL;
  tiercel_session* session = NULL;
  tiercel_error* error = NULL;
  double seconds = 0;

  /* The first failure ends the chain. */
  int ok = tiercel_options_set(options, "budget", "1024", &error) == TIERCEL_OK &&
           tiercel_engine_open(argv[1], NULL, &engine, &error) == TIERCEL_OK &&
           tiercel_session_open(engine, options, &session, &error) == TIERCEL_OK &&
           tiercel_session_prefill(session, argv[2], strlen(argv[2]), show_progress, NULL,
                                   &error) == TIERCEL_OK &&
           tiercel_session_generate(session, 32, print_piece, NULL, NULL, &error) == TIERCEL_OK &&
           tiercel_session_number(session, "prefill-seconds", &seconds, &error) == TIERCEL_OK;
  if (ok) {
    fprintf(stderr, "\n%.2f s until the first token\n", seconds);
  } else {
    fprintf(stderr, "continue: %s\n", tiercel_error_message(error));
  }
  tiercel_error_free(error);
  tiercel_session_close(session);
  tiercel_engine_close(engine);
  tiercel_options_free(options);
  return ok ? 0 : 1;
}
