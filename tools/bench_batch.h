// What tiercel bench measures of many sequences at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/scheduler.h"
#include "tools/console.h"

namespace tiercel {

// What is measured beside what the flags ask for.
enum class BenchRival : uint8_t {
  kNone,    // what the flags ask for
  kDense,   // everything attended, everything on the device
  kDevice   // the same selection, with everything that it selects from on the device
};
const char* name_of(BenchRival rival);
SessionOptions options_of(BenchRival rival, SessionOptions options);

// What every sequence of a batch does.
struct BatchTest {
  BenchRival rival = BenchRival::kNone;
  int64_t n_prompt = 0;  // tokens, which all of them share if they have any behind it
  int64_t n_behind = 0;  // tokens of its own behind a shared prompt; 0: every prompt is its own
  int64_t n_gen = 0;     // steps, which append a token each

  // Tokens that a sequence is asked for: the first one comes from its prompt, without a step.
  int64_t n_new() const { return n_gen + 1; }

  // Of the prompt: tokens that all sequences share, and those that each has for itself.
  int64_t n_shared() const { return n_behind > 0 ? n_prompt : 0; }
  int64_t n_own() const { return n_behind > 0 ? n_behind : n_prompt; }
  // Tokens that n sequences prefill, and those that they end with.
  int64_t prompt_tokens(int64_t n) const { return n_shared() + n * n_own(); }
  int64_t context_tokens(int64_t n) const { return prompt_tokens(n) + n * n_gen; }
};

// One line: what it took.
struct BatchRow {
  BatchTest test;
  int64_t n_wanted = 0;     // sequences that were asked for; 0: as many as fit
  int64_t n_sequences = 0;  // that fit and were run; 0: not even one
  int64_t micro_batches = 1;  // of a step of all of them
  std::string refusal;      // why not
  SessionPlan plan;         // of one of them
  double prompt_seconds = 0;
  double step_seconds = 0;
  std::vector<double> token_seconds;  // of each step
  int64_t step_tokens = 0;
  int64_t step_launches = 0;  // kernels of one step, at most; 0: nothing is launched
  int64_t replayed_steps = 0;
  SelectionReport selection;
  int64_t device_bytes = 0, host_bytes = 0;  // taken when all decode
  std::string backend;
};

// The largest number of such sequences that fit together, up to `most`; 0 and why where not even one
// does.
int64_t largest_batch(const Model& model, const SessionOptions& options, const BatchTest& test,
                      int64_t most, std::string* why);

// Of n_sequences, which fit. prompts(i): the tokens that sequence i has for itself. prefix: those that
// all share, where they do. Throws Error(kInterrupted) when the user has asked to stop.
BatchRow measure_batch(const std::shared_ptr<Model>& model, const SessionOptions& options,
                       MicroBatches micro_batches, const BatchTest& test, int64_t n_sequences,
                       const SharedPrefix& prefix,
                       const std::function<std::vector<int32_t>(int64_t)>& prompts,
                       const Console& console);

}  // namespace tiercel
