// The vocabulary of the filler text: what is talked about. Lists are separated by '|'.
//
// Rules: no colon, no digit and none of the words of a planted fact (key, code, magic, number), so
// that nothing in the filler can pass for one.
#pragma once

namespace tiercel {

struct FillerTopic {
  const char* title;    // of headings, after "Notes on"
  const char* agents;   // plural, no article: "growers"
  const char* things;   // singular, no article: "pruning knife"
  const char* tasks;    // what one does, base form: "prune the lower branches"
  const char* places;   // with preposition: "in the orchard"
  const char* states;   // what a thing can be: "ripe"
  const char* effects;  // a whole clause: "the fruit keeps longer"
};

extern const FillerTopic kFillerTopics[];
extern const int kNumFillerTopics;

}  // namespace tiercel
