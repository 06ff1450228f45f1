// The formats of JSON Schema that a grammar can hold an answer to, as regular expressions.
#pragma once

#include <string_view>

namespace tiercel::grammar {

// date, time, date-time, duration (RFC 3339), email, hostname, ipv4, ipv6, uri, uuid: all texts that match are of the
// format, and all but odd ones do (no leap seconds, no quoted mailboxes, labels of hosts without end).
// Empty: another format, which JSON Schema lets us pass over.
std::string_view format_pattern(std::string_view format);

}  // namespace tiercel::grammar
