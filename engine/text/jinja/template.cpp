#include "engine/text/jinja/template.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>

#include "engine/base/check.h"

namespace tiercel::jinja {
namespace {

// What a template holds at a time. A million tokens are 5 MB.
constexpr int64_t kMostBytes = int64_t{256} << 20, kMostCopies = 8;  // of what comes in

constexpr int64_t kFewSteps = 5'000'000, kStepsPerByte = 40;
constexpr size_t kMostWords = 1000;  // of a message, which may be somebody's words

// Without what a terminal would take for its own.
std::string readable(std::string_view text) {
  size_t n = std::min(text.size(), kMostWords);
  while (n < text.size() && (static_cast<unsigned char>(text[n]) & 0xc0) == 0x80) --n;
  std::string result(text.substr(0, n));
  for (char& c : result) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return n < text.size() ? result + "..." : result;
}

int64_t bytes_of(const Value& value) {
  int64_t n = sizeof(Value);
  if (value.text() != nullptr) n += static_cast<int64_t>(2 * value.text()->size());
  if (value.sequence() != nullptr) {
    for (const Value& item : value.sequence()->items) n += bytes_of(item);
  }
  if (value.dict() != nullptr) {
    for (const auto& [key, member] : value.dict()->items()) n += bytes_of(key) + bytes_of(member);
  }
  return n;
}

}  // namespace

Budget budget_of_input() {
  constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  return {kAny, kAny};
}

Template Template::parse(std::string_view source, const std::string& name) {
  Template result;
  result.name_ = name;
  result.program_ = std::make_shared<const Program>(jinja::parse(source, name));
  return result;
}

Text Template::render(const Dict& variables, const Clock& clock, int64_t most_steps) const {
  int64_t input = 0;
  for (const auto& [key, value] : variables.items()) input += bytes_of(value);
  Budget budget(std::min(most_steps, kFewSteps + kStepsPerByte * input), kMostBytes + kMostCopies * input);
  Interpreter interpreter(*program_, clock, budget);
  try {
    return interpreter.run(variables);
  } catch (const Problem& problem) {
    fail(ErrorKind::kUsage, "{}: line {}: {}", name_, interpreter.line(), readable(problem.what()));
  } catch (const std::bad_alloc&) {
    fail(ErrorKind::kUsage, "{}: line {}: there is no memory for what the template writes", name_, interpreter.line());
  }
}

}  // namespace tiercel::jinja
