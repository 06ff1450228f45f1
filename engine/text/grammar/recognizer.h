// Reads texts by a grammar, byte by byte: which ones it matches, and what may come next.
//
// Where a text is, is a number, the same for all texts that can go on in the same ways: sets of nodes of the
// program, each with the calls that led there. They are found as texts lead there, and stay.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/text/grammar/program.h"

namespace tiercel::grammar {

// Threads: one at a time.
class Recognizer {
 public:
  using State = int32_t;
  static constexpr State kDead = -1;  // no text that is matched begins so

  // lookahead: what twin() looks ahead. Throws as compile().
  explicit Recognizer(const Grammar& grammar, int64_t lookahead = 0);

  State start() const { return start_; }
  // Throws Error(kRuntime) where states would take more than kMostBytes, or one of them more than kMostPlaces.
  State step(State state, uint8_t byte) {
    const size_t at = static_cast<size_t>(state) * n_classes_ + program_.class_of[byte];
    return steps_[at] != kUnknown ? steps_[at] : find_step(state, byte);
  }
  State step(State state, std::string_view bytes);
  // Whether a text that is here is matched.
  bool is_match(State state) const { return states_[static_cast<size_t>(state)].is_match; }
  // The bytes that all texts which are here go on with, at most so many.
  std::string forced(State state, size_t most);
  // One state for all whose next bytes, as many as `lookahead`, are the same; it may be this one.
  State twin(State state);

  int64_t bytes() const;
  // Places that were looked at so far: what the time that it took goes by.
  int64_t n_visited() const { return n_visited_; }
  static constexpr int64_t kMostBytes = int64_t{256} << 20;
  static constexpr size_t kMostPlaces = 30'000;  // of one state: ways to read what was read

 private:
  static constexpr State kUnknown = -2;
  // A node, and the calls that it is in.
  struct Place {
    int32_t node = 0, calls = 0;
    friend bool operator==(const Place&, const Place&) = default;
    friend auto operator<=>(const Place&, const Place&) = default;
  };
  // The newest call that is not done: where it goes on, and the calls around it. 0: none.
  struct Calls {
    int32_t behind = 0, around = 0;
  };
  struct Found {
    int64_t first = 0;  // of its places
    int32_t n_places = 0;
    bool is_match = false;
    State twin = kUnknown;
  };

  State find_step(State state, uint8_t byte);
  int32_t push(Calls calls);
  int32_t twin_of_calls(int32_t calls);
  void add(Place place);
  void reach_all();
  State intern();
  [[noreturn]] void give_up(const std::string& why);

  Program program_;
  size_t n_classes_;
  State start_ = kDead;
  std::vector<Found> states_;
  std::vector<Place> places_;  // of all states; only those that read
  std::vector<State> steps_;   // [states][classes]
  std::unordered_multimap<uint64_t, State> by_hash_;
  std::vector<Calls> calls_;
  std::vector<int32_t> twins_of_calls_;  // of the first of them, where they are known
  std::unordered_map<uint64_t, int32_t> call_ids_;
  // Of the state that is being found.
  std::vector<Place> reached_;  // in the order in which they were
  std::unordered_map<uint64_t, bool> is_reached_;
  bool is_match_ = false;
  int64_t n_visited_ = 0;
};

}  // namespace tiercel::grammar
