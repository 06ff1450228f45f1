// A long prompt with planted facts, and the questions that only a reader of all of it can answer.
//
//   filler ... fact 0 ... filler ... fact 1 ... filler ... fact K-1 | question (elsewhere, or
//   --ask)
//
// Facts stand on lines of their own at even depths from 0 to 1. Keys and values are unique, and
// neither they nor anything of a fact's form occurs in the filler. Deterministic from the seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/hay.h"

namespace tiercel {

// The forms that tools/demo/recall-4m knows; mixed takes them in turn.
enum class FactForm : uint8_t { kMagic, kSpecial, kPassKey, kLine, kMixed };
const char* name_of(FactForm form);

struct Fact {
  FactForm form = FactForm::kMagic;
  std::string key, value;     // value: 3 to 9 digits
  double depth = 0;           // 0: the first line, 1: the last one
  int64_t tokens_before = 0;  // where it really stands
  std::string sentence() const;
  std::string question() const;  // to be put on a new line; the model continues with answer()
  std::string answer() const;    // " V"
};

struct HaystackRequest : HayRequest {
  int64_t n_facts = 1;
  FactForm form = FactForm::kMagic;
};

struct Haystack {
  std::string prompt;              // ends with a newline; no question
  int64_t n_tokens = 0;            // as counted by encoding all of it
  std::vector<Fact> facts;         // by depth
  std::vector<std::string> notes;  // what the user should know; whole sentences
};

// n_tokens is met to 0.5 %. Throws Error(kUsage) when the facts alone are longer.
Haystack make_haystack(const HaystackRequest& request);

}  // namespace tiercel
