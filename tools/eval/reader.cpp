#include "tools/eval/reader.h"

#include <utility>

#include "engine/base/check.h"
#include "tools/progress.h"
#include "tools/stopwatch.h"

namespace tiercel {

PromptReader::PromptReader(std::shared_ptr<Model> model, const SessionPlan& plan,
                           std::vector<int32_t> prompt, const Console& console)
    : model_(std::move(model)), plan_(plan), prompt_(std::move(prompt)), console_(console) {
  read();
}

void PromptReader::read() {
  session_.reset();  // two would not fit
  session_ = Session::open(model_, plan_);
  const Stopwatch watch;
  ProgressLine line(console_);
  if (!session_->prefill(prompt_, [&](const Progress& p) { return line.update(p); })) {
    fail(ErrorKind::kInterrupted, "interrupted");
  }
  prefill_seconds_ = watch.seconds();
}

void PromptReader::restart(int64_t budget) {
  const bool selects = plan_.options.attention != AttentionMode::kDense;
  if (selects) session_->set_budget(budget);
  if (session_->n_tokens() == static_cast<int64_t>(prompt_.size())) return;
  try {
    session_->rewind();
  } catch (const Error&) {
    console_.info("more was generated than --recent can take back: the prompt is read again");
    read();
    if (selects) session_->set_budget(budget);
  }
}

}  // namespace tiercel
