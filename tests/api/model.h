// The demo model and prompts for the tests of the public interface.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/tiercel.h"

namespace tiercel::test {

inline const char* demo_directory() { return TIERCEL_SOURCE_DIR "/tools/demo/recall-4m"; }

inline Engine open_demo(const std::string& threads = "2") {
  return Engine(demo_directory(), {{"backend", "cpu"}, {"threads", threads}});
}

// A fact among filler and the question for it, about 17 tokens per sentence.
inline std::string prompt_text(int n_sentences, int variant = 0) {
  std::string text;
  for (int i = 0; i < n_sentences; ++i) {
    text += "Step " + std::to_string(i + variant) + " of the guide explains how part " +
            std::to_string(i * 37 % 101) + " of the machine is cleaned. ";
    if (i == n_sentences / 3) {
      text += "\nThe magic number for silver-harbor is " + std::to_string(48213 + variant) + ".\n";
    }
  }
  return text +
         "\nWhat is the magic number for silver-harbor? The magic number for silver-harbor is";
}

// The kind of the Error that f throws; 0: it throws none.
template <typename F>
int kind_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return static_cast<int>(error.kind());
  }
  return 0;
}

#define EXPECT_KIND(expression, expected) \
  EXPECT_EQ(::tiercel::test::kind_of([&] { expression; }), static_cast<int>(expected))

}  // namespace tiercel::test
