#include "engine/text/jinja/template.h"

#include <cstdint>
#include <limits>
#include <new>

#include "engine/base/check.h"

namespace tiercel::jinja {
namespace {

// A conversation of five thousand messages takes a million steps, of 100 ns or so; a million tokens are 5 MB, which
// templates copy some ten times.
constexpr int64_t kMostSteps = 20'000'000;
constexpr int64_t kMostBytes = int64_t{256} << 20, kMostCopies = 64;  // of what comes in

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

Text Template::render(const Dict& variables, const Clock& clock) const {
  int64_t input = 0;
  for (const auto& [key, value] : variables.items()) input += bytes_of(value);
  Budget budget(kMostSteps, kMostBytes + kMostCopies * input);
  Interpreter interpreter(*program_, clock, budget);
  try {
    return interpreter.run(variables);
  } catch (const Problem& problem) {
    fail(ErrorKind::kUsage, "{}: line {}: {}", name_, interpreter.line(), problem.what());
  } catch (const std::bad_alloc&) {
    fail(ErrorKind::kUsage, "{}: line {}: there is no memory for what the template writes", name_, interpreter.line());
  }
}

}  // namespace tiercel::jinja
