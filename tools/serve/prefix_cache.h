// Which beginnings of prompts are kept, so that what begins alike later is not prefilled again: the next turn of a
// conversation, another question on the same text.
//
//   a prompt begins with a kept one that is half of it at least      it is behind that
//   else it begins as a kept one does, for half of it at least       what they share is kept, and it is behind that:
//                                                                     the text ends there, and the questions differ
//   else                                                             all but its end is kept
//
// Prompts are kept as shared prefixes (engine/scheduler.h) are: until their room is wanted.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "engine/scheduler.h"

namespace tiercel {

class PrefixCache {
 public:
  // Shorter prompts are not worth a sequence of their own.
  static constexpr int64_t kLeastPrompt = 1024;
  static constexpr size_t kMostKept = 32;

  // What a prompt is to be behind; null: it stands by itself. Safe from any thread, as is keep.
  SharedPrefix find(const std::vector<int32_t>& prompt) const;
  // All of a prompt but its end; null: it stands by itself.
  static SharedPrefix all_but_its_end(const std::vector<int32_t>& prompt);
  // One that these have given is in use.
  void keep(const SharedPrefix& prefix);

 private:
  mutable std::mutex mutex_;
  std::deque<SharedPrefix> kept_;  // used last: first
};

}  // namespace tiercel
