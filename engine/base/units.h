// Numbers with units, for people: 8.6 MiB, 1,048,576 tokens, 1:23:45.
#pragma once

#include <cstdint>
#include <string>

namespace tiercel {

std::string format_bytes(int64_t bytes);      // "512 B", "8.60 MiB"
std::string format_count(int64_t count);      // "1,048,576"
std::string format_rate(double per_second);   // "12.3", "45,678"
std::string format_duration(double seconds);  // "4.2 s", "3:07", "1:23:45"

}  // namespace tiercel
