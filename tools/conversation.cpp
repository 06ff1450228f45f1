#include "tools/conversation.h"

#include <algorithm>
#include <string_view>

#include "engine/base/check.h"
#include "tools/signals.h"
#include "tools/stopwatch.h"

namespace tiercel {
namespace {

class Conversation {
 public:
  Conversation(Session& session, Sampler& sampler, const Tokenizer& tokenizer, const Turns& turns,
               UserInput& input, ConversationRequest request, const Console& console)
      : session_(session),
        sampler_(sampler),
        tokenizer_(tokenizer),
        turns_(turns),
        input_(input),
        request_(std::move(request)),
        said_(request_.first.prompt),
        context_(session.plan().context),
        console_(console) {}

  Generation run() {
    said_.reserve(static_cast<size_t>(context_) + 1);
    try {
      total_.prefilled = take_prompt(session_, request_.first, console_, total_);
      total_.finish_reason = total_.prefilled ? "stop" : "interrupted";
      bool goes_on = total_.prefilled;
      while (goes_on) goes_on = answer() && listen();
      if (total_.prefilled) save();
      if (full_) {
        total_.finish_reason = "length";
        total_.error = fmt::format(
            "the context of {} tokens is full: the conversation ends here; start it with a larger "
            "--ctx-size (-c)",
            context_);
      }
    } catch (const Error& error) {
      total_.finish_reason = error.kind() == ErrorKind::kInterrupted ? "interrupted" : "error";
      if (!total_.interrupted()) total_.error = error.what();
    }
    return total_;
  }

 private:
  // Tokens that have no room behind `n` more: an answer's last one is appended only with what
  // follows it, as is the one that ends it.
  int64_t room_behind(int64_t n) const {
    const int64_t reserve = turns_.end() ? 2 : 1;
    return context_ - static_cast<int64_t>(said_.size()) - n - reserve;
  }

  // False: the conversation ends here.
  bool answer() {
    const int64_t room = room_behind(0);
    if (room <= 0) return full();
    const bool limited = request_.n_predict >= 0 && request_.n_predict <= room;
    request_.first.max_new_tokens = limited ? request_.n_predict : room;
    Generation answer;
    sampler_.begin_answer();
    try {
      answer.finish_reason =
          decode(session_, sampler_, tokenizer_, request_.first, Stopwatch(), console_, answer);
    } catch (const Error&) {
      add(answer);
      throw;
    }
    const std::string_view reason = answer.finish_reason;
    add(answer);
    if (reason == "output_closed") return false;
    // What ended it is written, where a template does that, by what follows.
    if (reason == "stop" && !answer.stopped_by_text) said_.pop_back();
    total_.output += '\n';
    total_.output_errno = write_result("\n");
    if (reason == "interrupted") return goes_on_behind_stop();
    if (reason == "length" && limited) {
      console_.info("the answer is cut at {} tokens (--n-predict)", request_.n_predict);
    } else if (reason == "length") {
      return full();
    }
    return total_.output_errno == 0;
  }

  // Takes what the user says next into the session. False: nothing more.
  bool listen() {
    while (true) {
      const std::optional<std::string> words = input_.next();
      if (!words) {
        if (!stop_requested()) {
          if (total_.interrupted()) total_.finish_reason = "stop";  // only an answer was
          return false;
        }
        total_.finish_reason = "interrupted";
        save_before_stop();
        return false;
      }
      if (words->empty() && turns_.end()) continue;
      const std::vector<int32_t> ids = turns_.next(*words, said_);
      const auto n = static_cast<int64_t>(ids.size());
      if (room_behind(n) <= 0) {
        if (room_behind(static_cast<int64_t>(turns_.next("", said_).size())) <= 0) return full();
        console_.warn(
            "this message has {} tokens, and the context of {} has room for {} with an answer: it "
            "was not taken; a shorter one may fit, a larger --ctx-size (-c) would",
            n, context_, std::max<int64_t>(room_behind(0), 0));
        continue;
      }
      said_.insert(said_.end(), ids.begin(), ids.end());
      if (append_tokens(session_, said_, console_, total_)) return true;
      total_.finish_reason = "interrupted";
      if (!goes_on_behind_stop()) return false;
      console_.warn("stopped within the message; the rest of it is read before the next one");
    }
  }

  // Ctrl-C ends an answer or the reading of a message; another signal, the conversation, which is still saved.
  bool goes_on_behind_stop() {
    if (forgive_interrupt()) return true;
    save_before_stop();
    return false;
  }

  bool full() {
    full_ = true;
    return false;
  }

  void save() {
    if (request_.first.save_path.empty()) return;
    if (turns_.end()) said_.push_back(*turns_.end());
    if (append_tokens(session_, said_, console_, total_)) {
      save_session(session_, request_.first, console_, total_);
    } else {
      console_.warn("{}: interrupted, not written", request_.first.save_path);
    }
  }

  void add(const Generation& answer) {
    if (total_.output_tokens.empty()) {
      total_.time_to_first_token_seconds =
          total_.prefill_seconds + total_.restore_seconds + answer.time_to_first_token_seconds;
    }
    total_.output += answer.output;
    total_.output_tokens.insert(total_.output_tokens.end(), answer.output_tokens.begin(),
                                answer.output_tokens.end());
    total_.output_errno = answer.output_errno;
    total_.finish_reason = answer.finish_reason;
    total_.decode_seconds += answer.decode_seconds;
    total_.n_steps += answer.n_steps;
  }

  Session& session_;
  Sampler& sampler_;
  const Tokenizer& tokenizer_;
  const Turns& turns_;
  UserInput& input_;
  ConversationRequest request_;
  // All of it. The session's tokens are its first ones; the rest is yet to be appended.
  std::vector<int32_t>& said_;
  int64_t context_;
  const Console& console_;
  Generation total_;
  bool full_ = false;
};

}  // namespace

Generation converse(Session& session, Sampler& sampler, const Tokenizer& tokenizer,
                    const Turns& turns, UserInput& input, ConversationRequest request,
                    const Console& console) {
  return Conversation(session, sampler, tokenizer, turns, input, std::move(request), console).run();
}

}  // namespace tiercel
