// A conversation in one session: answers, and what the user says between them.
//
// The session holds the whole conversation; a further turn is appended to it, so its cost is its
// own length. What is said is kept as it was said and generated, even where a template would write
// an earlier turn differently once it is past (ChatTemplate::rewrites).
#pragma once

#include "tools/chat_flags.h"
#include "tools/generation.h"
#include "tools/user_input.h"

namespace tiercel {

struct ConversationRequest {
  GenerationRequest first;  // up to the first answer; max_new_tokens is of no account, and the
                            // session is saved when the conversation ends
  int64_t n_predict = -1;   // tokens of an answer; -1: until its end
};

// Answers, reads, answers, until the user ends it, or the context is full, which is said. Ctrl-C
// ends an answer; the next one, and one while it reads, the conversation ("interrupted"). The
// result sums up all answers; like generate(), it never throws for what happens on the way.
Generation converse(Session& session, Sampler& sampler, const Tokenizer& tokenizer,
                    const Turns& turns, UserInput& input, ConversationRequest request,
                    const Console& console);

}  // namespace tiercel
