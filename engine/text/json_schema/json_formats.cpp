#include "engine/text/json_schema/json_formats.h"

#include <string>
#include <unordered_map>

namespace tiercel::grammar {
namespace {

std::string date() {
  const std::string leap_year = R"((?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00))";
  return R"((?:\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30))"
         R"(|02-(?:0[1-9]|1\d|2[0-8]))|)" +
         leap_year + "-02-29)";
}

std::string time() { return R"((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d))"; }

std::string duration() {
  const std::string hours = R"((?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S))";
  const std::string days = R"((?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D))";
  return "P(?:" + days + "(?:T" + hours + ")?|T" + hours + R"(|\d+W))";
}

std::string hostname() {
  const std::string label = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
  return label + R"((?:\.)" + label + ")*";
}

std::string email() {
  const std::string atom = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+";
  return atom + R"((?:\.)" + atom + ")*@" + hostname();
}

std::string ipv4() {
  const std::string byte = R"((?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d))";
  return byte + R"((?:\.)" + byte + "){3}";
}

std::string ipv6() {
  const std::string h = "[0-9A-Fa-f]{1,4}";
  const std::string last = "(?:" + h + ":" + h + "|" + ipv4() + ")";
  std::string all = "(?:" + h + ":){6}" + last;
  // "::" with so many groups before it, at most.
  const auto before = [&](int most) {
    return most == 0 ? "" : "(?:(?:" + h + ":){0," + std::to_string(most - 1) + "}" + h + ")?";
  };
  for (int behind = 5; behind >= 1; --behind) {
    all += "|" + before(5 - behind) + "::(?:" + h + ":){" + std::to_string(behind) + "}" + last;
  }
  return "(?:" + all + "|" + before(5) + "::" + last + "|" + before(6) + "::" + h + "|" + before(7) + "::)";
}

std::string uri() {
  const std::string one = R"((?:[A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2}))";
  return R"([A-Za-z][A-Za-z0-9+.-]*:(?://\[[0-9A-Fa-f:.]+\])" + one + "*|" + one + "+)(?:#" + one + "*)?";
}

}  // namespace

std::string_view format_pattern(std::string_view format) {
  static const std::unordered_map<std::string_view, std::string> kPatterns = {
      {"date", date()},
      {"time", time()},
      {"date-time", date() + "T" + time()},
      {"duration", duration()},
      {"email", email()},
      {"hostname", hostname()},
      {"ipv4", ipv4()},
      {"ipv6", ipv6()},
      {"uri", uri()},
      {"uuid", "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"}};
  const auto found = kPatterns.find(format);
  return found == kPatterns.end() ? std::string_view() : found->second;
}

}  // namespace tiercel::grammar
