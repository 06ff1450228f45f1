#include "engine/option_sink.h"

#include <fmt/format.h>

namespace tiercel {

void OptionSink::integer(const char* names, int64_t& target, int64_t low, int64_t high,
                         const char* help) {
  value(names, "N", std::to_string(target), help,
        [&target, low, high](const std::string& text) { target = parse_integer(text, low, high); });
}

void OptionSink::integer(const char* names, std::optional<int64_t>& target, int64_t low,
                         int64_t high, const char* help) {
  value(names, "N", "", help,
        [&target, low, high](const std::string& text) { target = parse_integer(text, low, high); });
}

void OptionSink::tokens(const char* names, int64_t& target, int64_t low, int64_t high,
                        const char* help) {
  value(names, kTokens, std::to_string(target), help,
        [&target, low, high](const std::string& text) { target = parse_tokens(text, low, high); });
}

void OptionSink::tokens(const char* names, std::optional<int64_t>& target, int64_t low,
                        int64_t high, const char* help) {
  value(names, kTokens, "", help,
        [&target, low, high](const std::string& text) { target = parse_tokens(text, low, high); });
}

void OptionSink::number(const char* names, double& target, double low, double high,
                        const char* help) {
  value(names, "X", fmt::format("{}", target), help,
        [&target, low, high](const std::string& text) { target = parse_number(text, low, high); });
}

void OptionSink::number(const char* names, std::optional<double>& target, double low, double high,
                        const char* help) {
  value(names, "X", "", help,
        [&target, low, high](const std::string& text) { target = parse_number(text, low, high); });
}

void OptionSink::biases(const char* names, std::vector<LogitBias>& target, const char* help) {
  value(names, "ID+X,..", "", help,
        [&target](const std::string& text) { target = parse_biases(text); });
}

void OptionSink::size(const char* names, int64_t& target, const char* help) {
  value(names, "SIZE", "", help, [&target](const std::string& text) { target = parse_size(text); });
}

}  // namespace tiercel
