// How tokenizer.json spells the tokens of its vocabulary, and the bytes that they stand for.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tiercel {

// ---- byte-level: every byte is a character of GPT-2's alphabet ----------------------------------

// The bytes of a token. A token with any character outside the alphabet stands for itself, as a
// whole (an added token with a space in it, for example).
std::string byte_level_bytes(const std::string& token);
// The token of these bytes.
std::string byte_level_token(std::string_view bytes);

// ---- SentencePiece: a token is its text, but for bytes that no token has ------------------------

// "<0xE2>", the token of a byte.
std::string byte_token(uint8_t byte);
// The byte that a token spells so, in digits of either case.
std::optional<uint8_t> byte_of_token(std::string_view token);

}  // namespace tiercel
