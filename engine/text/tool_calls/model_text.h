// Parts of what a model writes: white space, tags and JSON objects in a text that may be anything.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace tiercel {

inline constexpr std::string_view kBlanks = " \t\r\n";
std::string_view without_blanks_before(std::string_view text);
std::string_view without_blanks_behind(std::string_view text);
std::string_view trimmed(std::string_view text);

size_t common_prefix(std::string_view a, std::string_view b);
size_t common_suffix(std::string_view a, std::string_view b);

// A tag like <a> ends before white space does, and begins behind it: how much of a text a part takes that may have
// other white space around its tags; npos: it is not there.
size_t match(std::string_view text, std::string_view part);
// The same, taken from the text. False: it is not there, and nothing is taken.
bool take(std::string_view& text, std::string_view part);

// The length of the JSON object that a text begins with; 0: it does not end, or there is none, or too much is in
// itself.
size_t object_size(std::string_view text);
// That object as JSON without white space, in its order and with its digits. Empty: there is none.
std::string object_in(std::string_view text);
// A member of an object by its path, "/a/b", as JSON; empty: it is not there.
std::string member_at(const std::string& object, std::string_view path);
// The arguments of a call, an object: an object, a text that is one, or nothing. None: something else.
std::optional<std::string> arguments_of(const std::string& json);
// An object, in which of a name that is there twice the last one counts, as in Python.
std::string once_each(std::string object);
// What a value that is written without quotes means, as JSON; is_text: it can be text only.
std::string json_of(std::string_view value, bool is_text);
std::string dump(const nlohmann::json& json);

}  // namespace tiercel
