// Unicode normalisation form C, identical to that of Hugging Face tokenizers.
//
// Tables come from utf8proc; the algorithm around them is ours for two reasons: text that is
// already normalised (nearly all) is copied without being decomposed, and canonical ordering is a
// sort, so that a long run of combining marks costs O(n log n), where utf8proc takes O(n^2).
#pragma once

#include <string>
#include <string_view>

namespace tiercel {

// Appends the NFC of `text`, which must be valid UTF-8. Characters newer than Unicode 9 are left
// alone: Hugging Face tokenizers 0.23 normalises with the tables of Unicode 9.
void append_nfc(std::string_view text, std::string* output);

}  // namespace tiercel
