#include "engine/text/normalizer.h"

#include <algorithm>
#include <cstdint>

#include "engine/base/check.h"
#include "engine/text/nfc.h"

namespace tiercel {
namespace {

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 128; });
}

}  // namespace

std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  size_t done = 0;
  for (size_t at = text.find(pattern); at != std::string_view::npos;
       at = text.find(pattern, done)) {
    out.append(text.substr(done, at - done)).append(content);
    done = at + pattern.size();
  }
  out.append(text.substr(done));
  return out;
}

std::string normalize(std::span<const NormalizerStep> steps, std::string_view text,
                      bool continues) {
  const size_t most = 64 * text.size() + (size_t{1} << 20);
  std::string now(text);
  for (const NormalizerStep& step : steps) {
    if (now.size() > most) {
      fail("tokenizer: the normalizer makes {} bytes of a text of {}", now.size(), text.size());
    }
    switch (step.kind) {
      case NormalizerStep::Kind::kNfc: {
        std::string composed;
        composed.reserve(now.size());
        append_nfc(now, &composed);
        now = std::move(composed);
        break;
      }
      case NormalizerStep::Kind::kPrepend:
        if (!continues && !now.empty()) now.insert(0, step.content);
        break;
      case NormalizerStep::Kind::kReplace:
        now = replace_all(now, step.pattern, step.content);
        break;
    }
  }
  return now;
}

bool is_normalized(std::span<const NormalizerStep> steps, std::string_view text) {
  return std::all_of(
             steps.begin(), steps.end(),
             [](const NormalizerStep& step) { return step.kind == NormalizerStep::Kind::kNfc; }) &&
         (steps.empty() || is_ascii(text));
}

}  // namespace tiercel
