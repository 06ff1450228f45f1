// Runs a template's tree once. Statements and expressions are in interpreter.cpp, what `|` and `is` name in
// filters.cpp, what a value's attributes and global functions do in functions.cpp.
//
// Throws Problem; line() is where.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/strings.h"
#include "engine/text/jinja/value.h"

namespace tiercel::jinja {

using Clock = std::function<std::string(const std::string& format)>;

struct Arguments {
  List positional;
  std::vector<std::pair<std::string_view, Value>> named;
};

// Arguments by the names of a function's parameters.
class Parameters {
 public:
  // Throws Problem for too few, too many, and unknown names.
  Parameters(std::string_view function, const Arguments& arguments, std::initializer_list<std::string_view> names,
             size_t n_required = 0);
  const Value* operator[](size_t i) const { return values_[i]; }  // null: not given
  const Value& at(size_t i) const { return *values_[i]; }         // a required one
  const Text& text(size_t i) const;                               // throws Problem: it is none
  const Text* optional_text(size_t i) const;                      // null: not given, or None
  int64_t integer(size_t i, int64_t otherwise) const;
  bool flag(size_t i, bool otherwise = false) const;

 private:
  std::string_view function_;
  std::vector<std::string_view> names_;
  std::vector<const Value*> values_;
};

// Variables of a block. A macro keeps those that it was defined in.
struct Scope {
  std::shared_ptr<Scope> outer;
  std::vector<std::pair<int, Value>> variables;
};

class Interpreter {
 public:
  Interpreter(const Program& program, const Clock& clock, Budget& budget)
      : program_(program), clock_(clock), budget_(budget), kept_(budget.held()) {}
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  Text run(const Dict& variables);
  int line() const { return line_; }

 private:
  enum class Flow { kNext, kBreak, kContinue };
  using ScopePtr = std::shared_ptr<Scope>;
  using Filter = Value (Interpreter::*)(const Arguments&);

  // One more of what is in each other: the stack is finite.
  class Deeper {
   public:
    explicit Deeper(Interpreter& of);
    ~Deeper() { --of_.depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    Interpreter& of_;
  };

  // interpreter.cpp
  Flow run(const Block& block, const ScopePtr& scope, TextWriter& out);
  Flow run(const Statement& s, const ScopePtr& scope, TextWriter& out);
  void run_for(const Statement& s, const ScopePtr& scope, TextWriter& out);
  Value filtered(const Statement& s, const Value& items, const ScopePtr& scope);
  Value body_of(const Statement& s, const ScopePtr& scope);
  void define_macro(const Statement& s, const ScopePtr& scope);
  Value call_macro(const Function& macro, const Arguments& arguments);
  void assign(const Statement& s, Value value, Scope& scope);
  void bind(const std::vector<Target>& targets, Value value, Scope& scope);
  Value value_of(const Expression& e, const ScopePtr& scope);
  Value operand(const Expression& e, size_t i, const ScopePtr& scope);
  Value slice(const Expression& e, const ScopePtr& scope);
  Value call(const Expression& e, const ScopePtr& scope);
  Value compared(const Expression& e, const ScopePtr& scope);
  Arguments arguments_of(const Expression& e, size_t first, const ScopePtr& scope);
  ScopePtr inner(const ScopePtr& scope, const Unset& unset);
  const Value* find(const Scope& scope, int id);  // null: it is not there
  void set(Scope& scope, int id, Value value);

  // functions.cpp
  void define_globals(Scope& scope);
  Value attribute(const Value& value, std::string_view name, const std::string* kept_name);
  Value item(const Value& value, const Value& key);
  Value method_value(const Value& object, std::string_view method);
  Value call(const Value& function, const Arguments& arguments);
  Value call_method(const Value& object, std::string_view name, const Arguments& arguments);
  Value method_of_text(const Text& text, std::string_view name, const Arguments& arguments);
  Value method_of_dict(const Value& object, std::string_view name, const Arguments& arguments);
  Value method_of_sequence(const Value& object, std::string_view name, const Arguments& arguments);
  Value formatted(const Text& format, const Arguments& arguments);
  Value name_space(const Arguments& arguments);
  Dict dict(const Arguments& arguments);
  Value range(const Arguments& arguments);
  Value clock(const Arguments& arguments);
  Value pairs_of(const Value& value, Sequence::Kind kind);

  // filters.cpp
  Value filter(std::string_view name, const Arguments& arguments);
  bool test(std::string_view name, const Arguments& arguments);
  Value by_path(const Value& value, const Value& path, const Value* otherwise = nullptr);
  Value selected(const Arguments& arguments, bool by_attribute, bool wanted);
  Value extreme(const Arguments& arguments, std::string_view name, std::string_view op);
  Value sort_key(const Value& value, const Value* path, bool case_sensitive);
  Value sorted_by(ListMaker items, bool reverse, const std::function<Value(const Value&)>& key);
  template <Case kCase>
  Value filter_case(const Arguments& a);
  Value filter_abs(const Arguments& a);
  Value filter_attr(const Arguments& a);
  Value filter_default(const Arguments& a);
  Value filter_dictsort(const Arguments& a);
  Value filter_escape(const Arguments& a);
  Value filter_first(const Arguments& a);
  Value filter_float(const Arguments& a);
  Value filter_format(const Arguments& a);
  Value filter_indent(const Arguments& a);
  Value filter_int(const Arguments& a);
  Value filter_forceescape(const Arguments& a);
  Value filter_items(const Arguments& a);
  Value filter_join(const Arguments& a);
  Value filter_last(const Arguments& a);
  Value filter_length(const Arguments& a);
  Value filter_list(const Arguments& a);
  Value filter_map(const Arguments& a);
  Value filter_max(const Arguments& a) { return extreme(a, "max", ">"); }
  Value filter_min(const Arguments& a) { return extreme(a, "min", "<"); }
  Value filter_reject(const Arguments& a) { return selected(a, false, false); }
  Value filter_rejectattr(const Arguments& a) { return selected(a, true, false); }
  Value filter_replace(const Arguments& a);
  Value filter_reverse(const Arguments& a);
  Value filter_safe(const Arguments& a);
  Value filter_select(const Arguments& a) { return selected(a, false, true); }
  Value filter_selectattr(const Arguments& a) { return selected(a, true, true); }
  Value filter_sort(const Arguments& a);
  Value filter_string(const Arguments& a);
  Value filter_sum(const Arguments& a);
  Value filter_tojson(const Arguments& a);
  Value filter_trim(const Arguments& a);
  Value filter_unique(const Arguments& a);
  Value filter_wordcount(const Arguments& a);

  const Program& program_;
  const Clock& clock_;
  Budget& budget_;
  Held kept_;                                       // of the following
  std::vector<std::shared_ptr<Namespace>> spaces_;  // which may hold each other: emptied at the end
  std::vector<ScopePtr> kept_scopes_;               // of macros, likewise
  int depth_ = 0, line_ = 1;
};

}  // namespace tiercel::jinja
