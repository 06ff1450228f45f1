// How a model's answers call tools. No list of models says it: its chat template is made to write such answers, with
// names and values that nobody uses, and where those are in what it writes is the form that answers are read by.
//
//   kObject      <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>    Hermes, Qwen 2.5 and 3
//                [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]            Mistral
//                {"name": "f", "parameters": {"a": 1}}                          Llama 3: the answer is nothing else
//   kArguments   [TOOL_CALLS]f[ARGS]{"a": 1}                                    Mistral since 2025, DeepSeek, GLM-4
//   kParameters  <function=f><parameter=a>1</parameter></function>              Qwen3-Coder, GLM-4.5
//
// White space around these parts is not looked at. What is thought (<think> .. </think>) calls nothing.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/chat_message.h"
#include "engine/text/chat_program.h"
#include "engine/text/grammar/expression.h"
#include "engine/text/tokenizer.h"
#include "engine/text/tool_calls/tools.h"

namespace tiercel {

class ToolFormat {
 public:
  // Throws Error(kUsage): the template writes no calls, or in a form that is none of these.
  explicit ToolFormat(const ChatProgram& program);

  // What is said before calls and behind them, and the calls, of tools that there are; or all of an answer, and none.
  struct Answer {
    std::string content;
    std::vector<ToolCall> calls;  // without ids; arguments as the model wrote them, without white space
  };
  // thinks: the prompt has begun thoughts and not ended them (engine/text/thoughts.h).
  Answer read(std::string_view answer, const Tools& tools, bool thinks) const;

  // How much of an answer that goes on is known to come before calls.
  struct Progress {
    std::optional<size_t> thoughts_end;  // once that is known; 0: there are none
    size_t n_before = 0;                 // bytes
    size_t n_searched = 0, n_solid = 0;  // without what follows; up to the last that is no white space
    bool calls = false;                  // what follows may be a call, or is one
  };
  void follow(std::string_view answer, const Tools& tools, bool thinks, Progress& progress) const;

  // What an answer that must call begins with: up to the name, or with a name up to what it is given. Empty: this form
  // has no such beginning. The name is somebody's word.
  jinja::Text beginning(const std::string& name) const;

  // Answers that call as the template writes it, in a grammar: its root is what they are. None: this form has no such
  // grammar. Throws as add_json_schema, and Error(kUsage) for a tool that asks for more than this form can hold.
  enum class From { kAnswer, kName, kArguments };  // where they begin: with beginning(""), or with beginning(name)
  struct Calls {
    From from = From::kAnswer;
    std::string name;     // kArguments: of the tool
    bool several = true;  // calls in one answer
    // kAnswer: what an answer is that calls nothing, as a grammar; none: anything.
    std::optional<grammar::Grammar> otherwise;
  };
  bool has_grammar() const { return writing_.has_value(); }
  grammar::Grammar grammar(const Tools& tools, const Calls& calls, const Tokenizer& tokenizer) const;

  // Special tokens that it is written with, which a reader must see.
  std::vector<int32_t> special_tokens(const Tokenizer& tokenizer) const;

 private:
  enum class Shape { kObject, kArguments, kParameters };
  bool find_object(std::string_view one, std::string_view two);
  bool find_arguments(std::string_view one, std::string_view two);
  bool find_parameters(std::string_view one, std::string_view two);
  bool is_sound(std::string_view two) const;
  void set_call(std::string_view one, size_t arguments);
  void set_beginning(std::string_view before, std::string_view between);
  bool read_calls(std::string_view& text, const Tools& tools, Answer& answer) const;
  bool read_call(std::string_view& text, const Tools& tools, ToolCall& call) const;
  bool read_object(std::string_view& text, const Tools& tools, ToolCall& call) const;
  bool read_arguments(std::string_view& text, const Tools& tools, ToolCall& call) const;
  bool read_parameters(std::string_view& text, const Tools& tools, ToolCall& call) const;
  std::string_view without_openings(std::string_view text) const;
  std::string spelled(const std::string& name) const;
  void find_writing(std::string_view one, std::string_view two);
  bool may_begin_with_call(std::string_view text, const Tools& tools) const;

  Shape shape_ = Shape::kObject;
  std::vector<std::string> openings_;       // what may stand before the first marker, in this order
  std::string marker_;                      // before each call; empty: they are at the beginning of an answer
  std::string closing_;                     // behind the last one
  bool is_list_ = false;                    // between calls there is a comma
  std::string name_path_, arguments_path_;  // kObject: JSON pointers
  std::string middle_, behind_id_;  // kArguments: between the name and what it is given, where there may be an id
  std::string behind_name_, before_key_, behind_key_, behind_value_;  // kParameters
  std::string before_name_,
      from_name_;        // as it is written: up to a name, and from there to what is given; of a call alone
  std::string written_;  // what was looked at
  // Calls to the letter, beside the above.
  struct Writing {
    std::string behind;                 // the last call's arguments
    std::optional<std::string> between;  // two calls: from the arguments of one to the name of the next
    std::string first_key, key, value, next_key;  // kParameters: before a key, behind one, and behind a value
  };
  std::optional<Writing> writing_;
};

}  // namespace tiercel
