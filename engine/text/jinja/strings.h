// What Python's strings can do, for texts: characters are code points, every byte keeps its origin, and markup stays
// markup.
//
// Upper and lower case are Unicode's simple mappings, but for the German sharp s.
#pragma once

#include <cstdint>
#include <string_view>

#include "engine/text/jinja/value.h"

namespace tiercel::jinja {

// Bytes of white space as str.isspace has it, at the beginning and at the end.
size_t leading_space(std::string_view text);
size_t trailing_space(std::string_view text);

// Where a part is, the first one at `from` or behind, or the last one; npos: nowhere. In a time that both are counted
// in, whatever they are.
size_t place_of(std::string_view text, std::string_view part, size_t from, Budget& budget);
size_t last_place_of(std::string_view text, std::string_view part, Budget& budget);

size_t n_characters(std::string_view text);
// Where the character `index` begins; the size, behind the last one.
size_t offset_of(std::string_view text, size_t index);
// Length of the character at `at`.
size_t character_size(std::string_view text, size_t at);

// Of `characters`, or white space where that is null.
Text stripped(const Text& text, const Text* characters, bool left, bool right, Budget& budget);
// At `separator` (not empty), or white space where that is null; at most so many times, -1: everywhere.
Value split(const Text& text, const Text* separator, int64_t most, bool from_right, Budget& budget);
Value split_lines(const Text& text, bool keep_ends, Budget& budget);
Text replaced(const Text& text, const Text& from, const Text& to, int64_t most, Budget& budget);
Text reversed(const Text& text, Budget& budget);
Text repeated(const Text& text, int64_t n, Budget& budget);

enum class Case { kUpper, kLower, kSwapped, kCapital, kTitle, kTitleOfWords };  // the last: jinja2's filter
Text in_case(const Text& text, Case to, Budget& budget);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_letter(char32_t c);
bool is_printable(char32_t c);
bool is_decimal(char32_t c);  // str.isdecimal
bool is_numeral(char32_t c);  // another number that is no letter

}  // namespace tiercel::jinja
