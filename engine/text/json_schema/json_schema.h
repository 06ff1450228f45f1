// JSON Schema -> a grammar of the JSON texts that satisfy it: what holds a model's answer to a schema.
//
// Promises: a text that the grammar matches satisfies the schema, and what is not understood is refused with its
// place, never left out. Narrower than the specification, as answers are written by a model:
//   - members come in the order of `properties`, then what else is required, then others; names are written as
//     nlohmann::json writes them; between tokens white space is that of json_values.h;
//   - an object with `properties` has no others unless additionalProperties says so; without `type`, a value is of
//     the types that the schema's keywords are about;
//   - integers have neither fraction nor exponent, numbers with bounds no exponent, and none more digits than 20 beyond
//   what bounds ask for.
// Wider: oneOf is read as anyOf; unknown keywords are annotations, unknown formats are passed over, and so is any
// format beside a pattern, lengths that it does not keep by itself, or given values; a name among "others" may come
// twice. Not supported: not, if, contains, uniqueItems, patternProperties, propertyNames (but of strings), dependent..,
// $dynamicRef, $ref to anchors or other documents, multipleOf other than powers of ten, lengths beside a pattern that
// neither keeps them nor repeats one set of characters.
#pragma once

#include <string>
#include <string_view>

#include "engine/text/grammar/expression.h"

namespace tiercel::grammar {

// `schema`: the schema as JSON. name: for messages. Throws Error(kUsage) "NAME: #/properties/a/minimum: expected ..,
// found ..". Of a schema that no finite text satisfies, compile() of the grammar says so.
Grammar parse_json_schema(std::string_view schema, const std::string& name);

// Adds the rules of a schema to a grammar; what it matches is the result.
Expr add_json_schema(Grammar& grammar, std::string_view schema, const std::string& name);

}  // namespace tiercel::grammar
