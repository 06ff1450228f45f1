// In the place of http_server.cpp where a build has no Boost.
#include "engine/base/check.h"
#include "tools/serve/http_server.h"

namespace tiercel {

std::string http_library() { return {}; }

class HttpServer::Implementation {};

HttpServer::HttpServer(const std::string&, uint16_t, const HttpLimits&, Gate, Handler) {
  fail(ErrorKind::kUsage,
       "this build has no server, as there was no Boost when it was configured; apt-get install libboost-dev, then "
       "cmake and build again");
}
HttpServer::~HttpServer() = default;
uint16_t HttpServer::port() const { return 0; }
bool HttpServer::is_loopback() const { return true; }
void HttpServer::stop() {}

}  // namespace tiercel
