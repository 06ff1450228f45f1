#include "tools/batch/requests.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <utility>

#include "engine/base/check.h"
#include "engine/json.h"
#include "engine/option_rows.h"
#include "engine/sampler.h"
#include "engine/text/chat_json.h"
#include "engine/text/thoughts.h"
#include "tools/batch/openai.h"
#include "tools/batch/prefixes.h"
#include "tools/batch/structured_output.h"
#include "tools/flags.h"

namespace tiercel {
namespace {

// A line with ids of a prompt of many millions of tokens.
constexpr JsonLimits kLineLimits{.max_bytes = size_t{1} << 30, .max_depth = kMostJsonDepth + 6};  // with what is around tools

// The options of a request, by the names that members of a line have: those of the flags, with _
// for -.
class Members : public OptionSink {
 public:
  explicit Members(BatchRequest& request, SamplingRequest& sampling) {
    tokens("-n,--n-predict,--max-tokens,--max-new-tokens", request.n_new, 1, INT32_MAX, "");
    flag("--ignore-eos", request.ignore_eos, "");
    add_sampling_options(*this, sampling);
    add_logprobs_option(*this, request.n_logprobs);
  }

  void section(const char*) {}
  void flag(const char* names, bool& target, const char*) override {
    add(names, [&target](const JsonNode& node) { target = node.boolean(); });
  }
  void value(const char* names, const char*, const std::string&, const char*,
             std::function<void(const std::string&)> set) override {
    add(names, [set = std::move(set)](const JsonNode& node) {
      if (!node.raw().is_number()) node.unexpected("a number");
      const double number = node.raw().get<double>();
      const bool is_whole = std::abs(number) < 1e15 && number == std::floor(number);
      at_place(node.place(), [&] { set(is_whole ? fmt::format("{:.0f}", number) : node.raw().dump()); });
    });
  }

  // {"15043": 1, "13": -100}
  void biases(const char* names, std::vector<LogitBias>& target, const char*) override {
    add(names, [&target](const JsonNode& node) {
      node.expect_object();
      std::string text;
      for (const auto& [token, bias] : node.raw().items()) {
        const bool is_id = token.find_first_not_of("0123456789") == std::string::npos &&
                           !token.empty() && (token.size() == 1 || token[0] != '0');
        if (!is_id) node.unexpected(fmt::format("ids of tokens, found \"{}\"", printable(token, 40)));
        if (!bias.is_number()) node.at(token.c_str()).unexpected("a number");
        text += fmt::format("{}{}{:+}", text.empty() ? "" : ",", token, bias.get<double>());
      }
      target.clear();
      if (text.empty()) return;
      target = at_place(node.place(), [&] { return parse_biases(text); });
    });
  }

  // False: no option has this name. written: the name that the line has for it.
  bool set(const std::string& name, const std::string& written, const JsonNode& node) {
    const auto found = setters_.find(name);
    if (found == setters_.end()) return false;
    const auto [option, setter] = found->second;
    if (const auto [other, is_new] = given_.emplace(option, written); !is_new) {
      fail(ErrorKind::kUsage, "expected one of {} and {}, found both", other->second, written);
    }
    setter(node);
    return true;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, setter] : setters_) names.push_back(name);
    return names;
  }

 private:
  using Setter = std::function<void(const JsonNode&)>;

  void add(std::string_view names, const Setter& setter) {
    for (size_t begin = 0; begin < names.size();) {
      const size_t end = std::min(names.find(',', begin), names.size());
      std::string name(names.substr(begin, end - begin));
      begin = end + 1;
      if (!name.starts_with("--")) continue;
      name.erase(0, 2);
      std::replace(name.begin(), name.end(), '-', '_');
      setters_[name] = {names, setter};
    }
  }

  std::map<std::string, std::pair<std::string_view, Setter>>
      setters_;  // and all names of the option
  std::map<std::string_view, std::string> given_;
};

// A member of a request, or of its body: templates show tools in the order in which they are declared.
std::string member_of(std::string_view text, std::string_view name) {
  const std::string member = ordered_member(text, std::array{name});
  return !member.empty() ? member : ordered_member(text, std::array{std::string_view("body"), name});
}

std::vector<std::string> stops_of(const JsonNode& node) {
  std::vector<std::string> stops;
  const auto add = [&](const JsonNode& stop) {
    if (stop.text().empty()) stop.unexpected("a text that is not empty");
    stops.push_back(stop.text());
  };
  if (!node.raw().is_array()) {
    add(node);
    return stops;
  }
  for (size_t i = 0; i < node.size(); ++i) add(node[i]);
  return stops;
}

std::vector<int32_t> ids_of(const JsonNode& node, int64_t vocab_size) {
  std::vector<int32_t> ids(node.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(node[i].integer(0, vocab_size - 1));
  }
  return ids;
}

uint64_t hash_of(const BatchRequest& request, bool has_seed, const AnswerForm& form) {
  const SamplingOptions& s = request.sampling;
  std::string text = fmt::format("{} {} {} {} {} {} {} {} {} {}", request.id, request.n_new,
                                 request.ignore_eos, s.temperature, s.top_k, s.top_p, s.min_p,
                                 s.repeat_penalty, s.repeat_last_n, has_seed ? s.seed : 0);
  if (s.presence_penalty != 0 || s.frequency_penalty != 0) {
    text += fmt::format(" penalties {} {}", s.presence_penalty, s.frequency_penalty);
  }
  if (request.n_logprobs >= 0) text += fmt::format(" logprobs {}", request.n_logprobs);
  if (request.n_answers > 1) text += fmt::format(" answers {}", request.n_answers);
  for (const LogitBias& bias : s.logit_bias) text += fmt::format(" {}{:+}", bias.token, bias.bias);
  if (request.tools != nullptr) text += fmt::format(" tools {} {}", request.tools->several, request.tools->tools.json());
  if (form.kind != AnswerForm::Kind::kFree) text += fmt::format(" form {} {}", static_cast<int>(form.kind), form.text);
  if (request.form == RequestForm::kChatCompletion && !request.has_thoughts) text += " thoughts within";
  for (const std::string& stop : request.stops) text += fmt::format(" {}:{}", stop.size(), stop);
  const uint64_t of_prompt =
      XXH64(request.prompt.data(), request.prompt.size() * sizeof(int32_t), 0);
  return XXH64(text.data(), text.size(), of_prompt);
}

}  // namespace

BatchRequestReader::BatchRequestReader(const ModelConfig& config, const Tokenizer& tokenizer,
                                       const ChatTemplate* chat, std::string no_chat,
                                       BatchRequestDefaults defaults)
    : config_(config),
      tokenizer_(tokenizer),
      chat_(chat),
      no_chat_(std::move(no_chat)),
      forms_(std::make_unique<AnswerForms>(tokenizer, config.vocab_size, end_tokens(config, tokenizer, chat))),
      defaults_(std::move(defaults)) {
  forms_->constraint(defaults_.sampling.form, defaults_.ignore_eos);  // what is wrong with it is said at once
  if (chat_ == nullptr) return;
  try {
    tool_format_ = std::make_shared<const ToolFormat>(chat_->program());
    tool_tokens_ = tool_format_->special_tokens(tokenizer_);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    no_tools_ = error.what();
  }
}

std::vector<int32_t> BatchRequestReader::encode_text(const std::string& prompt) const {
  const EncodeOptions options{.add_special = defaults_.bos, .parse_special = defaults_.special};
  return tokenizer_.encode(defaults_.prefix.empty() ? prompt : defaults_.prefix + prompt, options);
}

std::vector<int32_t> BatchRequestReader::encode_prompt(const JsonNode& prompt) const {
  // Several prompts would be several answers.
  const bool is_list = prompt.raw().is_array() && !prompt.raw().empty() && !prompt.raw()[0].is_number();
  if (is_list) {
    if (prompt.size() != 1) prompt.unexpected("one prompt", "several are several lines");
    return encode_prompt(prompt[0]);
  }
  if (prompt.raw().is_array()) {
    if (!defaults_.prefix.empty()) prompt.unexpected("text", "as --prefix is text");
    return ids_of(prompt, config_.vocab_size);
  }
  if (!defaults_.chat) return encode_text(prompt.text());
  if (chat_ == nullptr) fail(ErrorKind::kUsage, "{}: {}", prompt.place(), no_chat_);
  return encode_chat(*chat_, {{ChatRole::kUser, prompt.text()}});
}

std::vector<int32_t> BatchRequestReader::encode_chat(const ChatTemplate& chat, std::vector<ChatMessage> messages,
                                                     const ToolUse* tools) const {
  if (!defaults_.prefix.empty()) {
    const auto user = std::ranges::find(messages, ChatRole::kUser, &ChatMessage::role);
    if (user == messages.end()) {
      fail(ErrorKind::kUsage, "--prefix: expected a user's message to put it in front of, found none");
    }
    user->content.insert(0, defaults_.prefix);
  }
  return chat.encode(tokenizer_, messages,
                     {.add_generation_prompt = true,
                      .date = defaults_.is_dated ? chat_date_today() : defaults_.date,
                      .tools = tools != nullptr ? tools->tools.json() : ""},
                     tools != nullptr ? tools->begun : jinja::Text());
}

// What may be called, and must be. Null: nothing.
std::shared_ptr<const ToolUse> BatchRequestReader::read_tools(const JsonNode& asked, std::string_view text) const {
  const auto tools = asked.find("tools"), choice = asked.find("tool_choice");
  const bool is_word = choice && choice->raw().is_string();
  const std::string word = is_word ? choice->text() : choice ? "" : "auto";
  if (is_word && word != "auto" && word != "none" && word != "required") {
    choice->unexpected(R"("auto", "none", "required", or a function to call)");
  }
  const auto several = asked.find("parallel_tool_calls");
  const bool may_call_several = !several || several->boolean();
  const bool declares = tools && !(tools->raw().is_array() && tools->raw().empty());
  if (!declares && word != "auto" && word != "none") choice->unexpected("\"tools\" beside it", "there is none to call");
  if (!declares || word == "none") return nullptr;
  if (tool_format_ == nullptr) tools->unexpected("none", no_tools_);
  auto use = std::make_shared<ToolUse>(ToolUse{.format = tool_format_,
                                               .tools = Tools(member_of(text, "tools")),
                                               .several = may_call_several,
                                               .begun = {},
                                               .from = ToolFormat::From::kAnswer,
                                               .name = {},
                                               .visible = tool_tokens_});
  if (word == "auto") return use;
  std::string& name = use->name;
  use->from = is_word ? ToolFormat::From::kName : ToolFormat::From::kArguments;
  if (!is_word) {
    if (choice->at("type").text() != "function") choice->at("type").unexpected("\"function\"");
    const JsonNode function = choice->at("function").at("name");
    name = function.text();
    if (!use->tools.has(name)) function.unexpected("one of \"tools\"");
  }
  use->begun = tool_format_->beginning(name);
  if (use->begun.empty()) choice->unexpected("\"auto\" or \"none\"", "calls of this model have no beginning of their own");
  return use;
}

// The messages of a conversation, and what is said beside them: tools, and variables of the template.
std::vector<int32_t> BatchRequestReader::read_chat(const JsonNode& asked, std::string_view text,
                                                   BatchRequest& request) const {
  const JsonNode messages = asked.at("messages");
  if (chat_ == nullptr) fail(ErrorKind::kUsage, "{}: {}", messages.place(), no_chat_);
  const bool is_openai = request.form == RequestForm::kChatCompletion;
  if (is_openai) request.tools = read_tools(asked, text);
  const bool has_variables = is_openai && asked.find("chat_template_kwargs");
  return encode_chat(has_variables ? chat_->with_variables(member_of(text, "chat_template_kwargs")) : *chat_,
                     read_messages(messages), request.tools.get());
}

// Calls that must come are of a tool that there is, and of a strict one by its schema.
void BatchRequestReader::hold_calls(const JsonNode& asked, const AnswerForm& form, BatchRequest& request) const {
  const ToolUse& use = *request.tools;
  const bool must_call = use.from != ToolFormat::From::kAnswer, has_form = form.kind != AnswerForm::Kind::kFree;
  if (!must_call && !has_form && !use.tools.any_strict()) return;
  if (!use.format->has_grammar()) {
    constexpr const char* kWhy = "answers are not held to the form in which this model calls";
    if (use.tools.any_strict()) asked.at("tools").unexpected("none that is \"strict\"", kWhy);
    if (has_form) asked.at("tools").unexpected("none beside a form of the answer", kWhy);
    return;
  }
  const std::string name = fmt::format("calls {} {} {} {} {} {} {}", static_cast<int>(use.from), use.name, use.several,
                                       static_cast<int>(form.kind), static_cast<int>(form.thoughts), form.text,
                                       use.tools.json());
  const auto make = [tokenizer = &tokenizer_, form, tools = request.tools] {
    ToolFormat::Calls calls{.from = tools->from, .name = tools->name, .several = tools->several, .otherwise = {}};
    if (form.kind != AnswerForm::Kind::kFree) calls.otherwise = grammar_of(form);
    grammar::Grammar grammar = tools->format->grammar(tools->tools, calls, *tokenizer);
    const bool begins = tools->from == ToolFormat::From::kAnswer;
    return begins ? behind_thoughts(std::move(grammar), form.thoughts, *tokenizer) : grammar;
  };
  request.sampling.constraint = forms_->constraint(name, request.ignore_eos, make);
}

// What of an answer are thoughts, and whether a form comes behind them.
void BatchRequestReader::set_thoughts(const JsonNode& asked, BatchRequest& request, AnswerForm& form) const {
  form.thoughts = begun_thoughts(tokenizer_, request.prompt);
  if (request.form != RequestForm::kChatCompletion) return;
  request.has_thoughts = defaults_.has_thoughts;
  if (const auto format = asked.find("reasoning_format")) {  // llama.cpp's
    const std::string& name = format->text();
    if (name != "none" && name != "auto" && name != "deepseek") format->unexpected(R"("none", "auto" or "deepseek")");
    request.has_thoughts = name != "none";
  }
  request.thinks_at_once = form.thoughts == AnswerForm::Thoughts::kBegun;
  if (!request.has_thoughts) return;
  if (!request.thinks_at_once && chat_->program().writes_thoughts() &&
      thoughts_at_end(tokenizer_, request.prompt) == PromptThoughts::kNone) {
    form.thoughts = AnswerForm::Thoughts::kMayBegin;
  }
}

BatchRequest BatchRequestReader::read_line(std::string_view line, int64_t number,
                                           const std::string& place) const {
  const nlohmann::json json = parse_json(line, place, kLineLimits);
  const JsonNode root(json, place);
  root.expect_object();
  BatchRequest request;
  request.line = number;
  read_members(is_openai_request(json) ? read_openai_envelope(root, request) : root, line, request, place);
  return request;
}

BatchRequest BatchRequestReader::read_body(const nlohmann::json& body, std::string_view text,
                                           RequestForm form, int64_t number, const std::string& place) const {
  const JsonNode root(body, place);
  root.expect_object();
  BatchRequest request;
  request.line = number;
  request.form = form;
  check_openai_body(root, request);
  read_members(root, text, request, place);
  // Made here, and not by the thread that takes turns.
  if (const ConstraintSource& source = request.sampling.constraint) {
    request.sampling.constraint = [made = source()] { return made; };
  }
  return request;
}

// `asked`: what is asked of a request whose line and form are known.
void BatchRequestReader::read_members(const JsonNode& asked, std::string_view text, BatchRequest& request,
                                      const std::string& place) const {
  request.n_new = defaults_.n_new;
  request.ignore_eos = defaults_.ignore_eos;
  request.stops = defaults_.stops;
  request.n_logprobs = defaults_.n_logprobs;
  SamplingRequest sampling = defaults_.sampling;
  if (sampling.seed >= 0) {
    const auto seed = static_cast<uint64_t>(sampling.seed) + static_cast<uint64_t>(request.line - 1);
    sampling.seed = static_cast<int64_t>(seed & INT64_MAX);
  }
  const bool is_openai = request.form != RequestForm::kPlain;
  Members members(request, sampling);
  std::optional<bool> wants_logprobs;  // of a chat completion, which says apart how many
  for (const auto& [key, value] : asked.raw().items()) {
    if (key == "prompt" || key == "messages" || value.is_null() || is_answer_form(key)) continue;
    const JsonNode node = asked.at(key.c_str());
    if (key == "id" && !is_openai) {
      if (!value.is_string() && !value.is_number_integer()) node.unexpected("text or an integer");
      request.id = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    } else if (key == "stop") {
      request.stops = stops_of(node);
    } else if (request.form == RequestForm::kChatCompletion && key == "logprobs") {
      wants_logprobs = node.boolean();
    } else if (is_openai && key == "n") {
      request.n_answers = node.integer(1, kMostAnswers);
    } else if (!members.set(is_openai ? plain_name(key, request.form) : key, key, node) &&
               !(is_openai && accept_openai_member(key, request.form, node))) {
      std::vector<std::string> known = members.names();
      for (const char* name : {"prompt", "messages", "id", "stop", "response_format", "json_schema"}) known.emplace_back(name);
      fail(ErrorKind::kUsage, "{}: {}expected prompt or messages, {}options of sampling, found \"{}\"{}",
           place, is_openai ? "body: " : "", is_openai ? "" : "id, ", printable(key, 40),
           did_you_mean(key, known));
    }
  }
  if (wants_logprobs) {
    if (*wants_logprobs) {
      request.n_logprobs = std::max<int64_t>(request.n_logprobs, 0);
    } else if (const auto top = asked.find("top_logprobs"); top && request.n_logprobs > 0) {
      asked.at("logprobs").unexpected("true", "as there is \"top_logprobs\"");
    } else {
      request.n_logprobs = -1;
    }
  }
  const bool has_prompt = asked.has("prompt"), has_messages = asked.has("messages");
  if (has_prompt == has_messages) {
    fail(ErrorKind::kUsage, "{}: expected either a prompt or messages, found {}", place,
         has_prompt ? "both" : "neither");
  }
  if (has_prompt) {
    request.prompt = encode_prompt(asked.at("prompt"));
  } else {
    request.prompt = read_chat(asked, text, request);
  }
  if (request.prompt.empty()) fail(ErrorKind::kUsage, "{}: the prompt has no tokens", place);
  check_biases(sampling.logit_bias, config_.vocab_size);
  sampling.form = read_answer_form(asked, text, sampling.form);
  set_thoughts(asked, request, sampling.form);
  request.sampling = resolve_sampling(sampling, config_.sampling, *forms_, request.ignore_eos);
  if (request.tools != nullptr) hold_calls(asked, sampling.form, request);
  request.hash = hash_of(request, sampling.seed >= 0, sampling.form);
}

std::vector<BatchRequest> BatchRequestReader::read(std::string_view text, const std::string& name,
                                                   int64_t* n_saved) const {
  std::vector<BatchRequest> requests;
  PrefixFinder prefixes(requests, defaults_.share_prefixes);
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("{}:{}", name, number);
    try {
      requests.push_back(read_line(line, number, place));
      prefixes.add_last();
    } catch (const Error& error) {
      const std::string what = error.what();
      if (what.starts_with(place)) fail(ErrorKind::kUsage, "{}", what);
      fail(ErrorKind::kUsage, "{}: {}", place, what);
    }
  }
  if (requests.empty()) {
    fail(ErrorKind::kUsage, "{}: expected a JSON object on each line, found none", name);
  }
  prefixes.finish();
  if (n_saved != nullptr) *n_saved = prefixes.n_saved();
  return requests;
}

}  // namespace tiercel
