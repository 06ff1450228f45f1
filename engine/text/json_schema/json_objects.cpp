#include "engine/text/json_schema/json_objects.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/grammar/json_text.h"
#include "engine/text/utf8.h"

namespace tiercel::grammar {
namespace {

struct NameTree {
  std::map<char32_t, std::unique_ptr<NameTree>> next;
  bool is_name = false;
};

// Strings that are no name. As long as one may become a name its characters are written in one way, behind that in any.
class OtherNames {
 public:
  OtherNames(Grammar& grammar, const JsonValues& json, const std::string& label)
      : anything_(as_rule(grammar, label + " (the end of a name)", repeat(json.character(), 0, kUnlimited))),
        rare_(as_rule(grammar, label + " (the end of a rare name)",
                      sequence({json_characters({{0, 0x1F}, {0x7F, kLastCharacter}}), anything_}))) {}

  // What goes on from here and becomes none.
  Expr from(const NameTree& tree) const {
    std::vector<Expr> parts;
    if (!tree.is_name) parts.push_back(text(""));
    const bool is_plain =
        std::ranges::all_of(tree.next, [](const auto& n) { return n.first >= 0x20 && n.first < 0x7F; });
    std::vector<CodeRange> others;
    char32_t next = is_plain ? 0x20 : 0;
    const char32_t last = is_plain ? 0x7E : kLastCharacter;
    for (const auto& [character, behind] : tree.next) {
      if (next < character) others.push_back({next, character - 1});
      next = character + 1;
      parts.push_back(sequence({json_characters({{character, character}}), from(*behind)}));
    }
    if (next <= last) others.push_back({next, last});
    parts.push_back(sequence({json_characters(std::move(others)), anything_}));
    if (is_plain) parts.push_back(rare_);
    return choice(std::move(parts));
  }

 private:
  Expr anything_, rare_;
};

// Members one behind the other, the first of which has others before it; then what is none of them.
struct Chain {
  const JsonValues& json;
  const std::vector<Expr>& members;
  const JsonObjectForm& form;
  Expr other;

  Expr behind_comma(size_t i) const {
    const Expr next = json.next(members[i]);
    return form.members[i].is_required ? next : optional(next);
  }
  Expr others() const {
    if (other == nullptr) return form.n_least == 0 ? text("") : nothing();
    return repeat(json.next(other), form.n_least, form.n_most);
  }
  Expr from(size_t first) const {
    std::vector<Expr> parts;
    for (size_t i = first; i < members.size(); ++i) parts.push_back(behind_comma(i));
    parts.push_back(others());
    return sequence(std::move(parts));
  }
};

}  // namespace

Expr json_string_text_except(Grammar& grammar, const JsonValues& json, const std::vector<std::string>& names,
                             const std::string& label) {
  constexpr size_t kMostCharacters = 250;
  NameTree root;
  for (const std::string& name : names) {
    NameTree* at = &root;
    size_t n_characters = 0;
    for (size_t i = 0; i < name.size();) {
      auto& next = at->next[read_code_point(name, &i)];
      if (next == nullptr) next = std::make_unique<NameTree>();
      at = next.get();
      if (++n_characters > kMostCharacters) {
        fail(ErrorKind::kUsage, "{}: expected names of at most {} characters beside others, found \"{}...\"", label,
             kMostCharacters, name.substr(0, valid_utf8_prefix(name.substr(0, 60))));
      }
    }
    at->is_name = true;
  }
  return OtherNames(grammar, json, label).from(root);
}

Expr json_object_of(Grammar& grammar, const JsonValues& json, const JsonObjectForm& form, const std::string& label) {
  const size_t n = form.members.size();
  std::vector<std::string> names;
  for (const JsonMember& member : form.members) names.push_back(member.name);
  Expr other;
  if (form.other_value != nullptr && form.n_most != 0) {
    const Expr key = n == 0 ? json.string() : json.string_of(json_string_text_except(grammar, json, names, label));
    other = as_rule(grammar, label + " (another member)", json.member(key, form.other_value));
  }

  // The first of what is there is one of members 0 .. n_first: the others of those may be missing. A rule of what is
  // behind each lets all of them share it.
  const auto required = std::ranges::find_if(form.members, &JsonMember::is_required);
  const auto n_first = static_cast<size_t>(required - form.members.begin());
  std::vector<Expr> members;
  for (size_t i = 0; i < n; ++i) {
    const JsonMember& member = form.members[i];
    const Expr written = json.member(json.string_of(json_string_text(member.name)), member.value);
    const bool is_used_twice = i > 0 && i <= n_first;
    members.push_back(is_used_twice ? as_rule(grammar, label + " (member)", written) : written);
  }
  const Chain chain{json, members, form, other};
  if (n_first == 0 && n > 0) {
    return json.in_brackets('{', '}', sequence({members[0], chain.from(1)}), false);
  }
  std::vector<Expr> starts;
  if (n > 0) {
    Expr behind = chain.from(std::min(n_first + 1, n));
    for (size_t i = std::min(n_first + 1, n); i-- > 0;) {
      behind = as_rule(grammar, label + " (members behind)", behind);
      starts.push_back(sequence({members[i], behind}));
      if (i > 0) behind = sequence({chain.behind_comma(i), behind});
    }
  }
  if (n_first == n && other != nullptr)
    starts.push_back(json.list(other, std::max<int64_t>(form.n_least, 1), form.n_most));
  const bool may_be_empty = n_first == n && form.n_least == 0;
  return json.in_brackets('{', '}', choice(std::move(starts)), may_be_empty);
}

}  // namespace tiercel::grammar
