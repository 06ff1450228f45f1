// Whole texts against a grammar.
#pragma once

#include <string_view>

#include "engine/text/grammar/recognizer.h"

namespace tiercel::grammar {

// Whether the grammar matches this text from end to end. Throws as Recognizer.
inline bool matches(const Grammar& grammar, std::string_view text) {
  Recognizer recognizer(grammar);
  const Recognizer::State end = recognizer.step(recognizer.start(), text);
  return end != Recognizer::kDead && recognizer.is_match(end);
}

}  // namespace tiercel::grammar
