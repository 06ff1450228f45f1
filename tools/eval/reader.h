// A session that has read one prompt and can be asked from its end again and again.
#pragma once

#include <memory>
#include <vector>

#include "engine/session.h"
#include "tools/console.h"

namespace tiercel {

class PromptReader {
 public:
  // Opens a session and prefills it. Throws Error(kInterrupted) when the user asked to stop.
  PromptReader(std::shared_ptr<Model> model, const SessionPlan& plan, std::vector<int32_t> prompt,
               const Console& console);

  // Back to the prompt's end, with this many selected tokens (at most the planned ones; kBudgetAll:
  // as planned). Reads the prompt anew where so much was generated that the session cannot go back.
  void restart(int64_t budget);

  Session& session() { return *session_; }
  double prefill_seconds() const { return prefill_seconds_; }  // of the last prefill

 private:
  void read();

  std::shared_ptr<Model> model_;
  SessionPlan plan_;
  std::vector<int32_t> prompt_;
  const Console& console_;
  std::unique_ptr<Session> session_;
  double prefill_seconds_ = 0;
};

}  // namespace tiercel
