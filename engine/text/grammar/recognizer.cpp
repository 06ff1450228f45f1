#include "engine/text/grammar/recognizer.h"

#include <algorithm>
#include <limits>

#include "engine/base/check.h"

namespace tiercel::grammar {
namespace {

uint64_t pair_of(int32_t a, int32_t b) { return uint64_t{static_cast<uint32_t>(a)} << 32 | static_cast<uint32_t>(b); }

uint64_t mixed(uint64_t hash, uint64_t value) {  // splitmix64's finish
  uint64_t z = hash * 0x9E3779B97F4A7C15u + value;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace

Recognizer::Recognizer(const Grammar& grammar, int64_t lookahead)
    : program_(compile(grammar, lookahead)), n_classes_(static_cast<size_t>(program_.n_classes)), calls_(1) {
  add({program_.start, 0});
  start_ = intern();
}

Recognizer::State Recognizer::step(State state, std::string_view bytes) {
  for (size_t i = 0; i < bytes.size() && state != kDead; ++i) state = step(state, static_cast<uint8_t>(bytes[i]));
  return state;
}

Recognizer::State Recognizer::find_step(State state, uint8_t byte) {
  const Found from = states_[static_cast<size_t>(state)];
  for (int64_t i = from.first; i < from.first + from.n_places; ++i) {
    const Place place = places_[static_cast<size_t>(i)];
    for (const ByteEdge& edge : program_.nodes[static_cast<size_t>(place.node)].bytes) {
      if (edge.first <= byte && byte <= edge.last) add({edge.target, place.calls});
    }
  }
  const State to = intern();
  steps_[static_cast<size_t>(state) * n_classes_ + program_.class_of[byte]] = to;
  return to;
}

int32_t Recognizer::push(Calls calls) {
  if (calls.behind == Program::kEnd) return calls.around;  // nothing is left to do there
  const auto [it, is_new] = call_ids_.try_emplace(pair_of(calls.behind, calls.around), std::ssize(calls_));
  if (is_new) calls_.push_back(calls);
  return it->second;
}

void Recognizer::add(Place place) {
  if (!is_reached_.try_emplace(pair_of(place.node, place.calls), true).second) return;
  reached_.push_back(place);
  if (reached_.size() > kMostPlaces) {
    give_up(fmt::format("there are more than {} ways to read this answer", kMostPlaces));
  }
}

// Leaves all that was found.
void Recognizer::give_up(const std::string& why) {
  reached_.clear();
  is_reached_.clear();
  const bool has_begun = start_ != kDead;
  fail(has_begun ? ErrorKind::kRuntime : ErrorKind::kUsage, "the form asked for: {}; make it simpler", why);
}

// All that is reached from there without reading.
void Recognizer::reach_all() {
  is_match_ = false;
  for (size_t i = 0; i < reached_.size(); ++i) {
    const Place place = reached_[i];
    if (place.node == Program::kEnd) {
      if (place.calls == 0) {
        is_match_ = true;
      } else {
        const Calls calls = calls_[static_cast<size_t>(place.calls)];
        add({calls.behind, calls.around});
      }
      continue;
    }
    const Program::Node& node = program_.nodes[static_cast<size_t>(place.node)];
    for (const int32_t to : node.free) add({to, place.calls});
    for (const RuleCall& call : node.calls) add({call.start, push({call.behind, place.calls})});
  }
  n_visited_ += std::ssize(reached_);
  std::erase_if(reached_, [&](Place place) { return program_.nodes[static_cast<size_t>(place.node)].bytes.empty(); });
  std::ranges::sort(reached_);
}

// The state of what was added.
Recognizer::State Recognizer::intern() {
  if (reached_.empty()) return kDead;
  reach_all();
  uint64_t hash = is_match_;
  for (const Place& place : reached_) hash = mixed(hash, pair_of(place.node, place.calls));
  State found = kDead;
  const auto [first, last] = by_hash_.equal_range(hash);
  for (auto it = first; it != last && found == kDead; ++it) {
    const Found& other = states_[static_cast<size_t>(it->second)];
    const auto its = places_.begin() + other.first;
    if (other.is_match == is_match_ && std::equal(its, its + other.n_places, reached_.begin(), reached_.end())) {
      found = it->second;
    }
  }
  if (found == kDead) {
    if (bytes() > kMostBytes) {
      give_up(fmt::format("its answers came to more places than {} MiB have room for", kMostBytes >> 20));
    }
    found = static_cast<State>(states_.size());
    states_.push_back({std::ssize(places_), static_cast<int32_t>(reached_.size()), is_match_, kUnknown});
    places_.insert(places_.end(), reached_.begin(), reached_.end());
    steps_.resize(steps_.size() + n_classes_, kUnknown);
    by_hash_.emplace(hash, found);
  }
  reached_.clear();
  is_reached_.clear();
  return found;
}

Recognizer::State Recognizer::twin(State state) {
  if (states_[static_cast<size_t>(state)].twin != kUnknown) return states_[static_cast<size_t>(state)].twin;
  const Found from = states_[static_cast<size_t>(state)];
  for (int64_t i = from.first; i < from.first + from.n_places; ++i) {
    const Place place = places_[static_cast<size_t>(i)];
    add({program_.twins[static_cast<size_t>(place.node)], twin_of_calls(place.calls)});
  }
  if (from.is_match) add({Program::kEnd, 0});
  const State found = intern();
  states_[static_cast<size_t>(state)].twin = found;
  states_[static_cast<size_t>(found)].twin = found;
  return found;
}

int32_t Recognizer::twin_of_calls(int32_t calls) {
  std::vector<int32_t> way;  // innermost first: those whose twins are not known
  int32_t at = calls;
  const auto is_known = [&](int32_t i) {
    return static_cast<size_t>(i) < twins_of_calls_.size() && twins_of_calls_[static_cast<size_t>(i)] != kUnknown;
  };
  for (; at != 0 && !is_known(at); at = calls_[static_cast<size_t>(at)].around) way.push_back(at);
  int32_t made = at == 0 ? 0 : twins_of_calls_[static_cast<size_t>(at)];
  for (; !way.empty(); way.pop_back()) {
    const auto i = static_cast<size_t>(way.back());
    made = push({program_.twins[static_cast<size_t>(calls_[i].behind)], made});
    if (twins_of_calls_.size() <= i) twins_of_calls_.resize(calls_.size(), kUnknown);
    twins_of_calls_[i] = made;
  }
  return made;
}

std::string Recognizer::forced(State state, size_t most) {
  std::string text;
  while (text.size() < most && !is_match(state)) {
    State next = kDead;
    uint8_t only = 0;
    int n_ways = 0;
    for (int byte = 0; byte < 256 && n_ways < 2; ++byte) {
      const State to = step(state, static_cast<uint8_t>(byte));
      if (to == kDead) continue;
      ++n_ways;
      next = to;
      only = static_cast<uint8_t>(byte);
    }
    if (n_ways != 1) break;
    text += static_cast<char>(only);
    state = next;
  }
  return text;
}

int64_t Recognizer::bytes() const {
  const auto size = [](const auto& vector) { return static_cast<int64_t>(vector.size() * sizeof(vector.front())); };
  constexpr int64_t kHashed = 48;                                            // of an entry of a hash table, about
  constexpr int64_t kOfNode = sizeof(Program::Node) + 3 * sizeof(RuleCall);  // about
  return std::ssize(program_.nodes) * kOfNode + size(states_) + size(places_) + size(steps_) + size(calls_) +
         size(twins_of_calls_) + kHashed * std::ssize(by_hash_) + kHashed * std::ssize(call_ids_);
}

}  // namespace tiercel::grammar
