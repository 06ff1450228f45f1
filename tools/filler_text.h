// Endless, varied, harmless prose: the hay of a haystack.
//
// A template grammar over some twenty topics writes headings, paragraphs and lists. Deterministic:
// the same seed gives the same text on every machine. Promises that nothing looks like a planted
// fact: no colon, no run of three digits, none of a fact's words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tiercel {

// splitmix64
class RandomBits {
 public:
  explicit RandomBits(uint64_t seed) : state_(seed) {}
  uint64_t next();
  // Uniform in [0, n); n > 0.
  size_t below(size_t n);

 private:
  uint64_t state_;
};

class FillerText {
 public:
  explicit FillerText(uint64_t seed);

  // The next block: a heading, a paragraph or a list, ending with an empty line.
  std::string next_block();

 private:
  struct Topic {
    std::string_view title;
    std::vector<std::string_view> agents, things, tasks, places, states, effects;
  };
  const Topic& current() const { return topics_[topic_]; }
  std::string paragraph();
  std::string list();
  std::string fill(std::string_view pattern);  // "The <T> is <S>." with every slot chosen
  std::string_view slot(char name);

  RandomBits random_;
  std::vector<Topic> topics_;
  std::vector<std::string_view> times_, manners_, names_, towns_, reasons_, quantities_;
  size_t topic_ = 0;
  int blocks_left_ = 0;  // before the topic changes
};

}  // namespace tiercel
