// The chat templates that are supported.
#pragma once

#include <span>
#include <string_view>

#include "engine/text/chat_format.h"

namespace tiercel {

struct KnownTemplate {
  const char* name;
  // The template without what chat_template_core leaves out. One @ stands for the default system
  // message: text within a literal, or a whole expression.
  const char* jinja;
  ChatStyle style;
};

std::span<const KnownTemplate> known_templates();

// Their names, for messages.
inline constexpr std::string_view kSupportedTemplates =
    "ChatML (Qwen 2, 2.5, 3, QwQ), GLM-4, GLM-Z1, Llama 2, Llama 3 to 3.3, Mistral v1, v3 and v7, Phi-3 "
    "to 4";

}  // namespace tiercel
