/* The C interface from C11, without linking it: dlopen the library (argv[1]), run a model
 * (argv[2]), and close it, three times, as a plugin's host does. The exit code says how far it came. */
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

static int once(const char* path, const char* model) {
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
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
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
  if (engine_open(model, NULL, &engine, NULL) != TIERCEL_OK) return 6;
  if (session_open(engine, NULL, &session, NULL) != TIERCEL_OK) return 7;
  if (session_prefill(session, "Once upon", 9, NULL, NULL, NULL) != TIERCEL_OK) return 8;
  if (session_generate(session, 4, count, &n_pieces, NULL, NULL) != TIERCEL_OK) return 9;
  session_close(session);
  engine_close(engine);
  if (n_pieces == 0) return 10;
  /* Threads of the library may still be on their way home. */
  return dlclose(library) == 0 ? 0 : 11;
}

int main(int argc, char** argv) {
  int round, code = argc == 3 ? 0 : 1;
  for (round = 0; code == 0 && round < 3; ++round) code = once(argv[1], argv[2]);
  return code;
}
