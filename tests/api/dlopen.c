/* The C interface from C11, without linking it: dlopen the library (argv[1]), run a model
 * (argv[2]), unload nothing that still runs. The exit code says how far it came. */
#include <dlfcn.h>
#include <string.h>

#include "engine/tiercel_c.h"

/* POSIX promises that a function pointer fits into what dlsym returns; ISO C has no cast for it. */
#define LOAD(function)                                  \
  do {                                                  \
    void* found = dlsym(library, "tiercel_" #function); \
    if (found == NULL) return 3;                        \
    memcpy(&function, &found, sizeof(found));           \
  } while (0)

static int count(void* user, int32_t token, const char* text, size_t length) {
  (void)token, (void)text, (void)length;
  ++*(int*)user;
  return 1;
}

int main(int argc, char** argv) {
  const char* (*version)(void);
  tiercel_status (*engine_open)(const char*, const tiercel_options*, tiercel_engine**,
                                tiercel_error**);
  tiercel_status (*session_open)(const tiercel_engine*, const tiercel_options*, tiercel_session**,
                                 tiercel_error**);
  tiercel_status (*session_prefill)(tiercel_session*, const char*, size_t,
                                    tiercel_progress_callback, void*, tiercel_error**);
  tiercel_status (*session_generate)(tiercel_session*, int64_t, tiercel_piece_callback, void*,
                                     tiercel_finish*, tiercel_error**);
  void (*session_close)(tiercel_session*);
  void (*engine_close)(tiercel_engine*);
  tiercel_engine* engine = NULL;
  tiercel_session* session = NULL;
  int n_pieces = 0;
  void* library = argc == 3 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  if (library == NULL) return 2;
  LOAD(version);
  LOAD(engine_open);
  LOAD(session_open);
  LOAD(session_prefill);
  LOAD(session_generate);
  LOAD(session_close);
  LOAD(engine_close);
  if (dlsym(library,
            "_ZN7tiercel5Model4openERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEERKNS_"
            "12ModelOptionsE") != NULL) {
    return 4; /* the inside shows */
  }
  if (strncmp(version(), "0.", 2) != 0) return 5;
  if (engine_open(argv[2], NULL, &engine, NULL) != TIERCEL_OK) return 6;
  if (session_open(engine, NULL, &session, NULL) != TIERCEL_OK) return 7;
  if (session_prefill(session, "Once upon", 9, NULL, NULL, NULL) != TIERCEL_OK) return 8;
  if (session_generate(session, 4, count, &n_pieces, NULL, NULL) != TIERCEL_OK) return 9;
  session_close(session);
  engine_close(engine);
  return n_pieces > 0 ? 0 : 10;
}
