#include "engine/text/chat_template_table.h"

namespace tiercel {
namespace {

constexpr const char* kAlternate =
    "Conversation roles must alternate user/assistant/user/assistant/...";
constexpr const char* kAlternateAfterSystem =
    "After the optional system message, conversation roles must alternate "
    "user/assistant/user/assistant/...";
constexpr const char* kTwoRoles = "Only user and assistant roles are supported!";
constexpr const char* kTwoRolesAndSystem =
    "Only user and assistant roles are supported, with the exception of an initial optional system "
    "message!";

#define CHATML_PROMPT "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
#define CHATML_MESSAGE \
  "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
#define CHATML_FIRST_SYSTEM               \
  "{% if messages[0].role == 'system' %}" \
  "{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
// Qwen 3 looks for the last question.
#define QWEN3_QUESTION                                                                       \
  "{% set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}"     \
  "{% for message in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}" \
  "{% if ns.multi_step_tool and message.role == 'user' and not("                             \
  "message.content.startswith('<tool_response>') and "                                       \
  "message.content.endswith('</tool_response>')) %}"                                         \
  "{% set ns.multi_step_tool = false %}{% set ns.last_query_index = index %}"                \
  "{% endif %}{% endfor %}"
#define QWEN3_ANSWER                                                                       \
  "{% if loop.index0 > ns.last_query_index %}"                                             \
  "{% if loop.last or (not loop.last and reasoning_content) %}"                            \
  "{{ '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + " \
  "'\\n</think>\\n\\n' + content.lstrip('\\n') }}"                                         \
  "{% else %}{{ '<|im_start|>' + message.role + '\\n' + content }}{% endif %}"             \
  "{% else %}{{ '<|im_start|>' + message.role + '\\n' + content }}{% endif %}"             \
  "{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
// As revised: the content is a variable.
#define QWEN3_REVISED                                                                     \
  CHATML_FIRST_SYSTEM                                                                     \
  "{% endif %}" QWEN3_QUESTION                                                            \
  "{% for message in messages %}{% set content = message.content %}"                      \
  "{% if (message.role == 'user') or (message.role == 'system' and not loop.first) %}"    \
  "{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"               \
  "{% elif message.role == 'assistant' %}{% set reasoning_content = '' %}"                \
  "{% if '</think>' in content %}{% set reasoning_content = content.split('</think>')[0]" \
  ".rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"                                  \
  "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}" QWEN3_ANSWER
#define QWEN3_2507_MESSAGES                                                            \
  "{% for message in messages %}{% set content = message.content %}"                   \
  "{% if (message.role == 'user') or (message.role == 'system' and not loop.first) %}" \
  "{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"            \
  "{% elif message.role == 'assistant' %}"                                             \
  "{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"

#define LLAMA3_PROMPT "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
#define LLAMA3_PROMPT_IF_ASKED "{% if add_generation_prompt %}" LLAMA3_PROMPT "{% endif %}"
#define LLAMA3_MESSAGES                                                                      \
  "{% set loop_messages = messages %}{% for message in loop_messages %}"                     \
  "{% set content = '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + "     \
  "message.content | trim + '<|eot_id|>' %}"                                                 \
  "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}" \
  "{% endfor %}"
#define LLAMA31_BODY                                                                             \
  "{% if messages[0].role == 'system' %}{% set system_message = messages[0].content|trim %}"     \
  "{% set messages = messages[1:] %}{% else %}{% set system_message = '' %}{% endif %}"          \
  "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n" \
  "Today Date: ' + date_string + '\\n\\n' + system_message + '<|eot_id|>' }}"                    \
  "{% for message in messages %}{{ '<|start_header_id|>' + message.role + "                      \
  "'<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}{% endfor "               \
  "%}" LLAMA3_PROMPT_IF_ASKED

#define SYSTEM_APART                                                                    \
  "{% if messages[0].role == 'system' %}{% set system_message = messages[0].content %}" \
  "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
#define LLAMA2_USER                                                                            \
  "{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}"                \
  "{% set system_message = messages[0].content %}{% else %}{% set loop_messages = messages %}" \
  "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"              \
  "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("             \
  "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"       \
  "{% if loop.index0 == 0 and system_message != false %}"                                      \
  "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message.content %}"  \
  "{% else %}{% set content = message.content %}{% endif %}"                                   \
  "{% if message.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
#define LLAMA2_ANSWER                                                                   \
  "{% elif message.role == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}" \
  "{% endif %}{% endfor %}"
// Mistral's first two releases; `answer` is what an answer ends with.
#define MISTRAL_OLD(answer)                                                              \
  "{{ bos_token }}{% for message in messages %}"                                         \
  "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("       \
  "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}" \
  "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"        \
  "{% elif message.role == 'assistant' %}{{ message.content + " answer                   \
  " }}"                                                                                  \
  "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"      \
  "{% endif %}{% endfor %}"
#define MISTRAL_ORDER                                                                         \
  "{{ raise_exception('After the optional system message, conversation roles must alternate " \
  "user/assistant/user/assistant/...') }}"
#define MISTRAL_ROLES                                                                    \
  "{% else %}{{ raise_exception('Only user and assistant roles are supported, with the " \
  "exception of an initial optional system message!') }}{% endif %}{% endfor %}"
#define MISTRAL_V3(open, answer)                                                     \
  SYSTEM_APART                                                                       \
  "{% set ns = namespace() %}{% set ns.index = 0 %}"                                 \
  "{% for message in loop_messages %}"                                               \
  "{% if (message.role == 'user') != (ns.index % 2 == 0) %}" MISTRAL_ORDER           \
  "{% endif %}{% set ns.index = ns.index + 1 %}{% endfor %}"                         \
  "{{ bos_token }}{% for message in loop_messages %}{% if message.role == 'user' %}" \
  "{% if loop.last and system_message is defined %}"                                 \
  "{{ '" open                                                                        \
  "' + system_message + '\\n\\n' + message.content + '[/INST]' }}"                   \
  "{% else %}{{ '" open                                                              \
  "' + message.content + '[/INST]' }}{% endif %}"                                    \
  "{% elif message.role == 'assistant' %}{{ " answer " + eos_token }}" MISTRAL_ROLES
#define MISTRAL_V7_TEKKEN                                                                          \
  "{% set default_system_message = @ %}{{ bos_token }}"                                            \
  "{% if messages[0].role == 'system' %}{% set system_message = messages[0].content %}"            \
  "{% set loop_messages = messages[1:] %}{% else %}"                                               \
  "{% set system_message = default_system_message %}{% set loop_messages = messages %}{% endif %}" \
  "{{ '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}"                                  \
  "{% for message in loop_messages %}"                                                             \
  "{% if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}"                    \
  "{% elif message.role == 'system' %}"                                                            \
  "{{ '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}"                                 \
  "{% elif message.role == 'assistant' %}{{ message.content + eos_token }}"                        \
  "{% else %}{{ raise_exception('Only user, system and assistant roles are supported!') }}"        \
  "{% endif %}{% endfor %}"

#define PHI_PROMPT(end, otherwise)                                                   \
  "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>" end "' }}" otherwise \
  "{% endif %}"
#define PHI_ELSE_EOS "{% else %}{{ eos_token }}"
#define PHI3_MESSAGES(and_content)                                                                \
  "{% for message in messages %}{% if message.role == 'system'" and_content                       \
  " %}{{ '<|system|>\n' + message.content + '<|end|>\n' }}{% elif message.role == 'user' %}"      \
  "{{ '<|user|>\n' + message.content + '<|end|>\n' }}{% elif message.role == 'assistant' %}"      \
  "{{ '<|assistant|>\n' + message.content + '<|end|>\n' }}{% endif %}"
#define PHI3_ANY_ROLE \
  "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}"
#define PHI3_NO_SYSTEM                                                                             \
  "{% for message in messages %}{% if (message.role == 'user') %}"                                 \
  "{{ '<|user|>\n' + message.content + '<|end|>\n<|assistant|>\n' }}"                              \
  "{% elif (message.role == 'assistant') %}{{ message.content + '<|end|>\n' }}{% endif %}{% endfor %}"
#define PHI4_TURN(role) "{{ '<|im_start|>" role "<|im_sep|>' + message.content + '<|im_end|>' }}"
#define GLM4_ITEMS                                                                               \
  "[gMASK]<sop>{% for item in messages %}{% if item.content %}<|{{ item.role }}|>"               \
  "{{ item.metadata }}\n{{ item.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}" \
  "<|assistant|>"
// GLM-4-0414 and GLM-Z1: what a turn consists of, and the generation prompt.
#define GLM4_0414(visible, words, prompt)                                                         \
  "[gMASK]<sop>{%- for msg in messages %}{%- if msg.role == 'system' %}\n<|system|>\n"            \
  "{{ msg.content }}{%- endif %}{%- endfor %}"                                                    \
  "{%- for message in messages if message.role != 'system' %}{%- set role = message.role %}"      \
  "{%- set content = message.content %}" visible                                                  \
  "{%- set meta = message.get('metadata', '') %}{%- if role == 'user' %}\n<|user|>\n{{ " words    \
  " }}{%- elif role == 'assistant' and not meta %}\n<|assistant|>\n{{ " words                     \
  " }}{%- elif role == 'assistant' and meta %}\n<|assistant|>{{ meta }}\n{{ " words               \
  " }}{%- elif role == 'observation' %}\n<|observation|>\n{{ " words                              \
  " }}{%- endif %}{%- endfor %}\n{% if add_generation_prompt %}<|assistant|>" prompt "{% endif %}"

// Messages are open ROLE tag_close WORDS close, and so is the generation prompt as far as it goes.
constexpr ChatStyle tagged(std::string_view open, std::string_view tag_close, std::string_view close,
                           std::string_view end_of_turn) {
  ChatStyle style{.family = ChatStyle::kTagged};
  style.close = close;
  style.tag_open = open;
  style.tag_close = style.prompt_close = tag_close;
  style.end_of_turn = end_of_turn;
  return style;
}
constexpr ChatStyle phi3(ChatStyle::Skip skips, bool writes_bos = false) {
  ChatStyle style = tagged("<|", "|>\n", "<|end|>\n", "<|end|>");
  style.skips = skips;
  style.prompts_after_user = skips == ChatStyle::kNoSystem;
  style.writes_eos = !style.prompts_after_user;
  style.writes_bos = writes_bos;
  return style;
}
constexpr ChatStyle phi4(bool prompts_after_user) {
  ChatStyle style = tagged("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|im_end|>");
  style.prompts_after_user = prompts_after_user;
  return style;
}
constexpr ChatStyle phi4_mini(bool writes_eos) {
  ChatStyle style = tagged("<|", "|>", "<|end|>", "<|end|>");
  style.writes_eos = writes_eos;
  return style;
}
constexpr ChatStyle glm(std::string_view start, std::string_view prompt_close) {
  ChatStyle style = tagged("<|", "|>\n", "", "<|user|>");
  style.start = start;
  style.prompt_close = prompt_close;
  return style;
}
constexpr std::string_view kGlmStart = "[gMASK]<sop>";
constexpr ChatStyle glm4(std::string_view prompt_close) {
  ChatStyle style = glm(kGlmStart, prompt_close);
  style.skips = ChatStyle::kEmpty;
  return style;
}
constexpr ChatStyle glm4_0414(ChatStyle::Reasoning reasoning, std::string_view answer_start) {
  ChatStyle style = glm(kGlmStart, "|>");
  style.reasoning = reasoning;
  style.answer_start = answer_start;
  style.systems_first = true;
  return style;
}
constexpr ChatStyle glm_edge() {
  ChatStyle style = glm("", "|>");
  style.always_prompts = true;
  return style;
}

constexpr ChatStyle kPlain{.family = ChatStyle::kChatMl};
constexpr ChatStyle kQwen3{.family = ChatStyle::kChatMl,
                           .reasoning = ChatStyle::kKeptAfterQuestion};
constexpr ChatStyle kLlama2{.family = ChatStyle::kInst,
                            .open = "[INST] ",
                            .close = " [/INST]",
                            .answer_open = " ",
                            .answer_close = " ",
                            .system = ChatStyle::kInFirst,
                            .system_open = "<<SYS>>\n",
                            .system_close = "\n<</SYS>>\n\n",
                            .bos_per_turn = true,
                            .strips_user = true,
                            .strips_answer = true,
                            .wrong_order = kAlternate,
                            .wrong_role = "Only the first message can be the system's",
                            .order_first = true};
constexpr ChatStyle mistral_old(std::string_view after_eos) {
  return {.family = ChatStyle::kInst,
          .open = "[INST] ",
          .close = " [/INST]",
          .after_eos = after_eos,
          .wrong_order = kAlternate,
          .wrong_role = kTwoRoles};
}
constexpr ChatStyle mistral_v3(std::string_view open, std::string_view answer_open, bool strips) {
  return {.family = ChatStyle::kInst,
          .open = open,
          .close = "[/INST]",
          .answer_open = answer_open,
          .system = ChatStyle::kInLast,
          .system_close = "\n\n",
          .strips_answer = strips,
          .wrong_order = kAlternateAfterSystem,
          .wrong_role = kTwoRolesAndSystem,
          .order_first = true};
}
constexpr ChatStyle kMistralV7Tekken{.family = ChatStyle::kInst,
                                     .open = "[INST]",
                                     .close = "[/INST]",
                                     .system = ChatStyle::kTurn,
                                     .system_open = "[SYSTEM_PROMPT]",
                                     .system_close = "[/SYSTEM_PROMPT]"};

constexpr KnownTemplate kKnown[] = {
    {"ChatML", "{% for message in messages %}" CHATML_MESSAGE "{% endfor %}" CHATML_PROMPT, kPlain},
    {"Qwen 2",
     "{% for message in messages %}{% if loop.first and messages[0].role != 'system' %}"
     "{{ '<|im_start|>system\\n@<|im_end|>\\n' }}{% endif %}" CHATML_MESSAGE
     "{% endfor %}" CHATML_PROMPT,
     kPlain},
    {"Qwen 2.5",
     CHATML_FIRST_SYSTEM "{% else %}{{ '<|im_start|>system\\n@<|im_end|>\\n' }}{% endif %}"
                         "{% for message in messages %}{% if (message.role == 'user') or "
                         "(message.role == 'system' and not loop.first) or (message.role == "
                         "'assistant') %}" CHATML_MESSAGE "{% endif %}{% endfor %}" CHATML_PROMPT,
     kPlain},
    {"QwQ",
     CHATML_FIRST_SYSTEM
     "{% endif %}{% for message in messages %}"
     "{% if (message.role == 'user') or (message.role == 'system' and not loop.first) "
     "%}" CHATML_MESSAGE "{% elif message.role == 'assistant' %}{% set content = message.content %}"
     "{% if not loop.last %}{% set content = message.content.split('</think>')[-1].lstrip('\\n') %}"
     "{% endif %}{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"
     "{% endif %}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
     {.family = ChatStyle::kChatMl,
      .reasoning = ChatStyle::kKeptInLast,
      .answer_start = "<think>\n"}},
    {"Qwen 3",
     CHATML_FIRST_SYSTEM
     "{% endif %}" QWEN3_QUESTION "{% for message in messages %}"
     "{% if (message.role == 'user') or (message.role == 'system' and not loop.first) "
     "%}" CHATML_MESSAGE "{% elif message.role == 'assistant' %}{% set content = message.content %}"
     "{% set reasoning_content = '' %}{% if '</think>' in message.content %}"
     "{% set content = message.content.split('</think>')[-1].lstrip('\\n') %}"
     "{% set reasoning_content = message.content.split('</think>')[0]"
     ".rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{% endif %}" QWEN3_ANSWER CHATML_PROMPT,
     kQwen3},
    {"Qwen 3", QWEN3_REVISED CHATML_PROMPT, kQwen3},
    {"Qwen 3 Thinking",
     QWEN3_REVISED
     "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
     {.family = ChatStyle::kChatMl,
      .reasoning = ChatStyle::kKeptAfterQuestion,
      .answer_start = "<think>\n"}},
    {"Qwen 3 Instruct", CHATML_FIRST_SYSTEM "{% endif %}" QWEN3_2507_MESSAGES CHATML_PROMPT,
     kPlain},

    {"Llama 3", LLAMA3_MESSAGES LLAMA3_PROMPT_IF_ASKED, {.family = ChatStyle::kLlama3}},
    {"Llama 3",
     LLAMA3_MESSAGES LLAMA3_PROMPT,
     {.family = ChatStyle::kLlama3, .always_prompts = true}},
    {"Llama 3.1",
     "{{ bos_token }}{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}"
     "{% endif %}" LLAMA31_BODY,
     {.family = ChatStyle::kLlama3, .date = ChatStyle::kFixedDate}},
    {"Llama 3.2",
     "{{ bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}"
     "{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
     "{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}" LLAMA31_BODY,
     {.family = ChatStyle::kLlama3, .date = ChatStyle::kToday}},

    {"Llama 2", LLAMA2_USER LLAMA2_ANSWER, kLlama2},
    {"Llama 2",
     LLAMA2_USER "{% elif message.role == 'system' %}"
                 "{{ '<<SYS>>\\n' + content.strip() + '\\n<</SYS>>\\n\\n' }}" LLAMA2_ANSWER,
     kLlama2},
    {"Mistral v1", MISTRAL_OLD("eos_token"), mistral_old("")},
    {"Mistral v1", MISTRAL_OLD("eos_token + ' '"), mistral_old(" ")},
    {"Mistral v1",
     SYSTEM_APART
     "{{ bos_token }}{% for message in loop_messages %}"
     "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}" MISTRAL_ORDER "{% endif %}"
     "{% if message.role == 'user' %}{% if loop.first and system_message is defined %}"
     "{{ ' [INST] ' + system_message + '\\n\\n' + message.content + ' [/INST]' }}"
     "{% else %}{{ ' [INST] ' + message.content + ' [/INST]' }}{% endif %}"
     "{% elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}" MISTRAL_ROLES,
     {.family = ChatStyle::kInst,
      .open = " [INST] ",
      .close = " [/INST]",
      .answer_open = " ",
      .system = ChatStyle::kInFirst,
      .system_close = "\n\n",
      .wrong_order = kAlternateAfterSystem,
      .wrong_role = kTwoRolesAndSystem}},
    {"Mistral v3", MISTRAL_V3("[INST] ", "' ' + message.content | trim"),
     mistral_v3("[INST] ", " ", true)},
    {"Mistral v3", MISTRAL_V3("[INST] ", "' ' + message.content"),
     mistral_v3("[INST] ", " ", false)},
    {"Mistral v3", MISTRAL_V3("[INST]", "message.content"), mistral_v3("[INST]", "", false)},
    {"Mistral v7",
     "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
     "{{ '[INST] ' + message.content + '[/INST]' }}{% elif message.role == 'system' %}"
     "{{ '[SYSTEM_PROMPT] ' + message.content + '[/SYSTEM_PROMPT]' }}"
     "{% elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}{% else %}"
     "{{ raise_exception('Only user, system and assistant roles are supported!') }}"
     "{% endif %}{% endfor %}",
     {.family = ChatStyle::kInst,
      .open = "[INST] ",
      .close = "[/INST]",
      .answer_open = " ",
      .system = ChatStyle::kTurn,
      .system_open = "[SYSTEM_PROMPT] ",
      .system_close = "[/SYSTEM_PROMPT]"}},
    {"Mistral v7", MISTRAL_V7_TEKKEN, kMistralV7Tekken},
    {"Mistral v7", "{% set today = strftime_now('%Y-%m-%d') %}" MISTRAL_V7_TEKKEN,
     kMistralV7Tekken},

    {"Phi-3", PHI3_MESSAGES("") PHI_PROMPT("\\n", PHI_ELSE_EOS), phi3(ChatStyle::kNothing)},
    {"Phi-3.5", PHI3_MESSAGES(" and message.content") PHI_PROMPT("\\n", PHI_ELSE_EOS),
     phi3(ChatStyle::kEmptySystem)},
    {"Phi-3", PHI3_ANY_ROLE PHI_PROMPT("\\n", PHI_ELSE_EOS), phi3(ChatStyle::kNothing)},
    {"Phi-3", "{{ bos_token }}" PHI3_ANY_ROLE PHI_PROMPT("\\n", PHI_ELSE_EOS),
     phi3(ChatStyle::kNothing, true)},
    {"Phi-3 without system", PHI3_NO_SYSTEM, phi3(ChatStyle::kNoSystem)},
    {"Phi-3 without system", "{{ bos_token }}" PHI3_NO_SYSTEM, phi3(ChatStyle::kNoSystem, true)},
    {"Phi-4",
     "{% for message in messages %}{% if (message.role == 'system') %}" PHI4_TURN("system")
     "{% elif (message.role == 'user') %}" PHI4_TURN("user")
     "{% elif (message.role == 'assistant') %}" PHI4_TURN("assistant") "{% endif %}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
     phi4(false)},
    {"Phi-4",
     "{% for message in messages %}{% if (message.role == 'system') %}" PHI4_TURN("system")
     "{% elif (message.role == 'user') %}" PHI4_TURN("user")
     "{{ '<|im_start|>assistant<|im_sep|>' }}{% elif (message.role == 'assistant') %}"
     "{{ message.content + '<|im_end|>' }}{% endif %}{% endfor %}",
     phi4(true)},
    {"Phi-4-mini",
     "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}"
     PHI_PROMPT("", PHI_ELSE_EOS),
     phi4_mini(true)},
    {"Phi-4-mini",
     "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}"
     PHI_PROMPT("", ""),
     phi4_mini(false)},

    {"GLM-4", GLM4_ITEMS "{% endif %}", glm4("|>")},
    {"GLM-4", GLM4_ITEMS "\n{% endif %}", glm4("|>\n")},
    {"GLM-4-0414", GLM4_0414("", "content", ""), glm4_0414(ChatStyle::kKept, "")},
    {"GLM-Z1",
     GLM4_0414("{%- set visible = content.split('</think>')[-1].strip() %}", "visible", "\n<think>"),
     glm4_0414(ChatStyle::kGone, "\n<think>")},
    {"GLM-Edge",
     "{% for item in messages %}{% if item.role == 'system' %}<|system|>\n{{ item.content }}"
     "{% elif item.role == 'user' %}<|user|>\n{{ item.content }}{% elif item.role == 'assistant' %}"
     "<|assistant|>\n{{ item.content }}{% endif %}{% endfor %}<|assistant|>",
     glm_edge()},
};

}  // namespace

std::span<const KnownTemplate> known_templates() { return kKnown; }

}  // namespace tiercel
