// Where an answer is to end because of what it says: "\n\n", "User:".
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tiercel {

// Lets text through up to the first of some texts, and holds back what may be the beginning of one.
class StopText {
 public:
  // None: everything goes through at once. None of them may be empty.
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Appends to `*output` what certainly comes before any of them. True: one has appeared (the first
  // that is complete), and is not in the output; nothing that follows it belongs to the text.
  bool push(std::string_view text, std::string* output);
  // The text has ended, with `last`: appends all of the rest that comes before any of them. Ready
  // for reuse.
  void finish(std::string_view last, std::string* output);

 private:
  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace tiercel
