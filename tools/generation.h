// Prefill one prompt, or restore it, then decode token by token onto stdout.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/logprobs.h"
#include "engine/sampler.h"
#include "engine/saved_session.h"
#include "engine/session.h"
#include "engine/text/tokenizer.h"
#include "tools/console.h"
#include "tools/stopwatch.h"

namespace tiercel {

struct GenerationRequest {
  std::vector<int32_t>
      prompt;  // behind a saved session: what follows its tokens; may be empty then
  std::shared_ptr<const SavedSession> saved;  // restored instead of a prefill, or null
  std::string save_path;               // the session is saved there before it generates; or empty
  std::vector<int64_t> eos_token_ids;  // generation stops at any of them
  std::vector<std::string> stops;      // and where any of these texts appears
  int64_t max_new_tokens = 0;
  bool ignore_eos = false;
  int64_t n_logprobs = -1;  // log probabilities of so many of the most likely tokens too; -1: of none
};

struct Generation {
  std::string output;                  // valid UTF-8
  std::vector<int32_t> output_tokens;  // an end-of-text token included
  std::vector<TokenLogprobs> logprobs;  // of these, where they were asked for
  // "stop": end of text, or a text to stop at; "length": -n or the context is used up; "interrupted";
  // "output_closed": stdout can no longer be written; "error": `error` says which.
  const char* finish_reason = "error";
  bool stopped_by_text = false;  // "stop" for one of GenerationRequest::stops
  std::string error;
  int output_errno = 0;
  bool prefilled = false;  // the whole prompt
  double prefill_seconds = 0;  // a restored session: the steps through what follows it
  int64_t n_restored = 0;      // tokens
  double restore_seconds = 0, save_seconds = 0;
  int64_t saved_bytes = 0;  // of the file that was written
  double decode_seconds = 0;               // of n_steps decode steps with their sampling
  double time_to_first_token_seconds = 0;  // from the start of the prefill, or of restoring
  int64_t n_steps = 0;                     // one less than the tokens, as the prefill yields one
  std::string logits_hash;                 // xxh64 of the last logits' bytes; empty without any
  bool interrupted() const;
};

// The prompt into the session, behind a saved one's tokens if there is one. False: the user asked to
// stop. Throws what the session throws, as do those below.
bool take_prompt(Session& session, GenerationRequest& request, const Console& console,
                 Generation& result);

// Appends those of `tokens` that the session does not hold yet: it holds the first ones. False: the
// user asked to stop.
bool append_tokens(Session& session, std::span<const int32_t> tokens, const Console& console,
                   Generation& result);

// Decodes until something ends it; returns what (finish_reason). request.prompt, the tokens so far,
// grows by the new ones, the last of which is not in the session. since: the start of the prefill.
const char* decode(Session& session, Sampler& sampler, const Tokenizer& tokenizer,
                   GenerationRequest& request, const Stopwatch& since, const Console& console,
                   Generation& result);

// Saves the session to request.save_path, unless that is empty. request.prompt is all it holds.
void save_session(Session& session, const GenerationRequest& request, const Console& console,
                  Generation& result);

// Never throws for what happens after the prefill has begun: a run-time Error ends the generation,
// and what was generated before stays valid.
Generation generate(Session& session, Sampler& sampler, const Tokenizer& tokenizer,
                    GenerationRequest request, const Console& console);

}  // namespace tiercel
