// What a Jinja chat template does with plain messages, as one line of text to compare.
//
// Published templates differ in quotes, blanks, comments, line breaks and, above all, in what they
// do with tools, reasoning fields and lists of content parts, none of which is ever passed to them
// here. The core is what remains: white space as Jinja would drop it is gone, spellings of the same
// thing ('x' and "x", m['role'] and m.role, {{a}}{{b}} and {{a + b}}) are one, and branches whose
// conditions are known (see the lists in the .cpp) are taken or left out. Two templates with equal
// cores write the same text. It is no interpreter: what it does not know stays in the core, and
// equals nothing.
#pragma once

#include <string>
#include <string_view>

namespace tiercel {

// Never fails: a template that is not well-formed has a core that equals nothing either.
std::string chat_template_core(std::string_view jinja);

}  // namespace tiercel
