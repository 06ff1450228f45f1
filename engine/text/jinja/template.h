// Chat templates: the part of Jinja 2 that they are written in, run as transformers runs it (trim_blocks,
// lstrip_blocks, loop controls, {% generation %}; tojson as json.dumps).
//
// Promises: what a template writes is what jinja2 3.1 writes, or an Error that names the template's line; a template
// may not loop or grow without end. Strings know what is foreign (text.h). Knows nothing of models or tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/interpreter.h"

namespace tiercel::jinja {

// Some seconds, of a long conversation: five thousand messages take a million steps, in templates that look at all
// earlier ones a hundred million. A short one may take a tenth of a second.
inline constexpr int64_t kMostSteps = 200'000'000;

class Template {
 public:
  // Errors: Error(kUsage) "NAME: line N: expected ..., found ...".
  static Template parse(std::string_view source, const std::string& name);

  bool mentions(const std::string& variable) const { return program_->names.find(variable) >= 0; }

  // clock: strftime_now of a template's format; empty: templates find no such function. Errors: Error(kUsage), what the
  // template raises, and what it does wrong.
  Text render(const Dict& variables, const Clock& clock, int64_t most_steps = kMostSteps) const;

 private:
  std::shared_ptr<const Program> program_;
  std::string name_;
};

// For what is made before a template runs, and is no more than somebody has sent.
Budget budget_of_input();

}  // namespace tiercel::jinja
