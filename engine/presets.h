// Named compositions of selection, and a composition as one line of text.
#pragma once

#include <span>
#include <string>

#include "engine/options.h"

namespace tiercel {

// All modes, in the order of their names in help texts.
std::span<const AttentionMode> attention_modes();

// Default options with the preset's selection.
SessionOptions preset(AttentionMode mode);
// Sets attention and all of selection; the rest of the options stays.
void apply_preset(AttentionMode mode, SessionOptions& options);

const char* name_of(AttentionMode mode);
const char* name_of(PrefillMode mode);
const char* name_of(KeyCodec codec);
const char* name_of(RowCodec codec);
const char* name_of(IndexKind index);
const char* name_of(GroupScore group);
const char* name_of(SelectScope scope);
const char* name_of(ValueHome home);
const char* name_of(HostAttention use);
const char* name_of(DraftMode mode);

// Tokens that are attended beside the budget: sinks, window, outliers and the static part.
int64_t protected_tokens(const SelectionOptions& selection);

// The whole composition, e.g. "index mean of 8 bf16; group max, list per KV head; budget 2048 + 656
// always attended (16 sinks, 256 recent, 384 outliers); keys lowrank 160 bf16; values bf16; cache
// 3x".
std::string composition(const SessionOptions& options);

}  // namespace tiercel
