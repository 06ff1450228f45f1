// HTTP/1.1 for tiercel serve: connections, requests, answers whole or as a stream of events. Knows nothing of what is
// asked.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace tiercel {

struct HttpRequest {
  std::string method;                       // "GET"
  std::string path;                         // of the target, without a query: "/v1/models"
  std::string authorization, host, origin;  // these headers, or empty
  std::string body;
};

struct HttpAnswer {
  int status = 200;
  std::string body;
  std::string type = "application/json";
};

// The answer to one request. Calls are safe from any thread, return at once, and do nothing once the client has gone.
// Either respond once, or begin_events, any number of event and comment, end_events. One that is given up unanswered is
// answered with status 500.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual void respond(int status, std::string body, std::string_view type = "application/json") = 0;
  // Server-sent events (status 200): data is a line.
  virtual void begin_events() = 0;
  virtual void event(std::string_view data) = 0;
  virtual void end_events() = 0;
  // Called once, in a thread of the server's, where the client goes, or says that it sends nothing more, before it has
  // all of its answer; at once where it has gone already.
  virtual void when_gone(std::function<void()> call) = 0;
};

struct HttpLimits {
  uint64_t body_bytes = uint64_t{256} << 20;
  uint64_t all_body_bytes = uint64_t{1} << 30;  // of all that are being read
  int64_t connections = 1024;
  double idle_seconds = 75;    // until the next request's header has come, or more of its body
  double silence_seconds = 5;  // of a stream of events, until a comment shows that it is alive
};

// What this build serves with ("Boost 1.74"), or an empty text: it has no server.
std::string http_library();

class HttpServer {
 public:
  // What needs no body and no time: called in the server's own thread before the body is read. None: it does need them.
  // A page of another site (the origin) may read any answer whose status is not 403 or 503.
  using Gate = std::function<std::optional<HttpAnswer>(const HttpRequest&)>;
  // Of the others: called in one of a few threads, where it may take its time.
  using Handler = std::function<void(const HttpRequest&, std::shared_ptr<HttpReply>)>;

  // Listens at once: host is a name or an address, port 0 any that is free. Throws Error(kRuntime) where it cannot,
  // kUsage where this build has no server.
  HttpServer(const std::string& host, uint16_t port, const HttpLimits& limits, Gate gate, Handler handler);
  // As stop.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  uint16_t port() const;
  // Whether only this machine reaches it.
  bool is_loopback() const;
  // Takes no more requests, sends what has been said to those that are being answered, for a second at most, and
  // closes all connections.
  void stop();

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace tiercel
