#include "engine/text/split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <optional>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

constexpr size_t kJitStackMin = 32 << 10;
constexpr size_t kJitStackMax = 8 << 20;
constexpr uint32_t kHeapLimitKiB = 1
                                   << 20;  // of the interpreter, when the JIT's stack is too small
// Backtracking allowed: this many steps, and this many more per byte of text.
constexpr uint64_t kMatchLimit = 10'000'000;
constexpr uint64_t kMatchLimitPerByte = 16;

std::string pcre2_message(int code) {
  char buffer[256] = {};
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(buffer), sizeof(buffer));
  return buffer;
}

PCRE2_SPTR units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

struct Splitter::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  ~Code() { pcre2_code_free(code); }
};

struct Splitter::Scratch::Handles {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);  // only the whole match is wanted
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kJitStackMin, kJitStackMax, nullptr);
  ~Handles() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

Splitter::Scratch::Scratch() : handles_(std::make_unique<Handles>()) {
  // A null stack (no memory, or PCRE2 without JIT) leaves the JIT its 32 KiB of machine stack.
  if (handles_->data == nullptr || handles_->context == nullptr) {
    fail("tokenizer: out of memory for PCRE2's match data");
  }
  pcre2_jit_stack_assign(handles_->context, nullptr, handles_->stack);
  pcre2_set_heap_limit(handles_->context, kHeapLimitKiB);
}
Splitter::Scratch::~Scratch() = default;

Splitter::Splitter(const SplitRule& rule, const std::string& where)
    : code_(std::make_unique<Code>()),
      behavior_(rule.behavior),
      invert_(rule.invert),
      where_(where) {
  const std::string pattern = rule.literal ? rule.pattern : translate_pattern(rule.pattern, where);
  const uint32_t options =
      PCRE2_UTF | (rule.literal ? uint32_t{PCRE2_LITERAL} : PCRE2_UCP | PCRE2_MULTILINE);
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  if (context == nullptr) fail("{}: out of memory for PCRE2", where);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->code = pcre2_compile(units(pattern), pattern.size(), options, &error, &offset, context);
  pcre2_compile_context_free(context);
  if (code_->code == nullptr) {
    fail("{}: expected a regular expression, found `{}`, which PCRE2 refuses: {} (near `{}`)",
         where, rule.pattern, pcre2_message(error),
         pattern.substr(std::min(offset, pattern.size()), 20));
  }
  // Without JIT (not built in, or a hardened kernel) the interpreter gives the same splits, slower.
  code_->jit = pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE) == 0;
}
Splitter::~Splitter() = default;
Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;

bool Splitter::next_match(std::string_view text, size_t from, Scratch* scratch,
                          Match* match) const {
  const Scratch::Handles& handles = *scratch->handles_;
  const uint64_t limit = kMatchLimit + kMatchLimitPerByte * text.size();
  pcre2_set_match_limit(handles.context,
                        static_cast<uint32_t>(std::min<uint64_t>(limit, UINT32_MAX)));
  int found = PCRE2_ERROR_JIT_STACKLIMIT;
  if (code_->jit) {
    found = pcre2_jit_match(code_->code, units(text), text.size(), from, PCRE2_NO_UTF_CHECK,
                            handles.data, handles.context);
  }
  if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
    found = pcre2_match(code_->code, units(text), text.size(), from,
                        PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, handles.data, handles.context);
  }
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found < 0) {
    fail("{}: the pattern gave up at byte {} of a text of {} bytes: {}", where_, from, text.size(),
         pcre2_message(found));
  }
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(handles.data);
  *match = {ends[0], ends[1], true};
  // With \K, which is not accepted, a match could end before it starts.
  DCHECK(match->begin >= from && match->end >= match->begin, "{} {}", match->begin, match->end);
  return true;
}

// Calls visit(Match) for matches and for the text between them, in order. An empty match directly
// after the previous match does not count; the search moves on by one character.
template <typename Visit>
void Splitter::for_each_match(std::string_view text, Scratch* scratch, Visit visit) const {
  size_t from = 0;
  size_t last_end = 0;
  bool any = false;
  Match match;
  while (from <= text.size() && next_match(text, from, scratch, &match)) {
    if (match.begin == match.end && any && match.end == last_end) {
      if (from == text.size()) break;
      read_code_point(text, &from);
      continue;
    }
    if (last_end != match.begin) visit(Match{last_end, match.begin, invert_});
    visit(Match{match.begin, match.end, !invert_});
    last_end = from = match.end;
    any = true;
  }
  if (last_end != text.size()) visit(Match{last_end, text.size(), invert_});
}

void Splitter::split(std::string_view text, Scratch* scratch, const Emit& emit) const {
  if (text.empty()) return;
  if (behavior_ != SplitBehavior::kIsolated && behavior_ != SplitBehavior::kRemoved) {
    split_merging(text, scratch, emit);
    return;
  }
  const bool keep_matches = behavior_ == SplitBehavior::kIsolated;
  for_each_match(text, scratch, [&](const Match& match) {
    if (match.begin == match.end || (match.matched && !keep_matches)) return;
    emit(text.substr(match.begin, match.end - match.begin));
  });
}

void Splitter::split_merging(std::string_view text, Scratch* scratch, const Emit& emit) const {
  // Whether the second of two neighbours joins the piece of the first. Of several matches in a row
  // only the one next to the text between merges.
  const auto joins = [this](const Match& first, const Match& second) {
    switch (behavior_) {
      case SplitBehavior::kContiguous: return first.matched == second.matched;
      case SplitBehavior::kMergedWithPrevious: return second.matched && !first.matched;
      case SplitBehavior::kMergedWithNext: return first.matched && !second.matched;
      default: return false;
    }
  };
  size_t begin = 0;  // of the piece under construction
  std::optional<Match> last;
  const auto flush = [&](size_t end) {
    if (begin != end) emit(text.substr(begin, end - begin));
    begin = end;
  };
  for_each_match(text, scratch, [&](const Match& match) {
    if (last && !joins(*last, match)) flush(match.begin);
    last = match;
  });
  flush(text.size());
}

}  // namespace tiercel
