#include "tools/serve/http_server.h"

#include <fmt/format.h>
#include <poll.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/version.hpp>
#include <chrono>
#include <deque>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "engine/base/check.h"

namespace tiercel {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using Tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr int kHandlerThreads = 2;
constexpr uint32_t kMostHeaderBytes = 64 << 10;
constexpr size_t kBufferBytes = 256 << 10;  // of what is not understood yet: a header, or what is around a chunk

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

std::string chunk_of(std::string_view data) { return fmt::format("{:x}\r\n{}\r\n", data.size(), data); }

// What was sent is wrong, rather than cut off.
bool is_malformed(ErrorCode error) {
  return error && error.category() == http::make_error_code(http::error::bad_method).category() &&
         error != http::error::end_of_stream && error != http::error::partial_message;
}

class Connection;

// What the connections of a server share. Replies, which may outlive it, keep it.
struct Shared : std::enable_shared_from_this<Shared> {
  Shared(const HttpLimits& its_limits, HttpServer::Gate its_gate, HttpServer::Handler its_handler)
      : limits(its_limits), gate(std::move(its_gate)), handler(std::move(its_handler)) {}

  const HttpLimits limits;
  const HttpServer::Gate gate;
  const HttpServer::Handler handler;
  asio::io_context io{1};
  std::optional<asio::thread_pool> handlers{std::in_place, kHandlerThreads};
  // Of the io thread.
  std::set<std::shared_ptr<Connection>> connections;
  uint64_t body_bytes = 0;  // that are being read, or are with a handler
  bool stopping = false;
};

// All of it runs in the io thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Shared& shared, Tcp::socket socket)
      : shared_(shared), stream_(std::move(socket)), silence_(shared.io), watch_(shared.io), deadline_(shared.io) {
    ErrorCode ignored;
    stream_.socket().set_option(Tcp::no_delay(true), ignored);
  }

  void read_request();
  // Says why there is no answer, and closes.
  void refuse(int status, std::string_view why);
  // Once what is being said has been: now, where nothing is.
  void close_soon() {
    keep_alive_ = false;
    if (!answering_ && out_.empty()) close();
  }
  void close();

  // Of the answer that is due; another one's comes too late, and is dropped.
  void respond(int64_t answer, int status, const std::string& body, const std::string& type);
  void begin_events(int64_t answer);
  void event(int64_t answer, const std::string& data);
  void end_events(int64_t answer);
  void when_gone(int64_t answer, std::function<void()> call);
  bool is_answering(int64_t answer) const { return answering_ && answer == n_requests_; }

 private:
  void take_header();
  void read_body();
  void take_request();
  void restart_deadline();
  void end_deadline();
  void give_body_back();
  void watch();
  void linger();
  void discard();
  void send(std::string text);
  void send_whole(int status, const std::string& body, std::string_view type);
  void write_next();
  void end_answer();
  void restart_silence();
  std::string header(int status, std::string_view type, std::string_view length) const;

  Shared& shared_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_{kBufferBytes};
  std::optional<http::request_parser<http::string_body>> parser_;
  asio::steady_timer silence_, watch_, deadline_;
  HttpRequest request_;
  std::string origin_;  // of a page that may read the answer
  std::string wanted_headers_;  // that it wants to send
  std::deque<std::string> out_;  // the first one is being written
  size_t sent_ = 0;              // of it, in bytes
  std::function<void()> when_gone_;
  int64_t n_requests_ = 0;
  uint64_t body_bytes_ = 0;  // of Shared::body_bytes
  bool answering_ = false, streaming_ = false, keep_alive_ = true, chunked_ = true, closed_ = false;
  bool head_only_ = false;  // nobody wants the body
  bool unread_ = true;      // there may be more of the request, which nobody reads
};

// A reply is used by others' threads: it only posts what is to be done.
class Reply : public HttpReply {
 public:
  Reply(std::shared_ptr<Shared> shared, std::shared_ptr<Connection> connection, int64_t answer)
      : shared_(std::move(shared)), connection_(std::move(connection)), answer_(answer) {}
  ~Reply() override {
    post([](Connection& c, int64_t answer) {
      if (c.is_answering(answer)) c.refuse(500, "the request was given up");
    });
  }
  void respond(int status, std::string body, std::string_view type) override {
    post([status, body = std::move(body), type = std::string(type)](Connection& c, int64_t answer) {
      c.respond(answer, status, body, type);
    });
  }
  void begin_events() override {
    post([](Connection& c, int64_t answer) { c.begin_events(answer); });
  }
  void event(std::string_view data) override {
    post([data = std::string(data)](Connection& c, int64_t answer) { c.event(answer, data); });
  }
  void end_events() override {
    post([](Connection& c, int64_t answer) { c.end_events(answer); });
  }
  void when_gone(std::function<void()> call) override {
    post([call = std::move(call)](Connection& c, int64_t answer) { c.when_gone(answer, call); });
  }

 private:
  template <typename F>
  void post(F f) {
    asio::post(shared_->io, [connection = connection_, answer = answer_, f = std::move(f)] { f(*connection, answer); });
  }
  const std::shared_ptr<Shared> shared_;
  const std::shared_ptr<Connection> connection_;
  const int64_t answer_;
};

void Connection::read_request() {
  if (shared_.stopping) return close();
  unread_ = true;
  streaming_ = head_only_ = false;
  origin_.clear();
  parser_.emplace();
  parser_->header_limit(kMostHeaderBytes);
  parser_->body_limit(shared_.limits.body_bytes);
  restart_deadline();
  http::async_read_header(stream_, buffer_, *parser_, [self = shared_from_this()](ErrorCode error, size_t) {
    if (self->closed_) return;
    if (error == http::error::body_limit) return self->refuse(413, "the request's body is too long");
    if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      return self->refuse(431, "the request's header is too long");
    }
    if (is_malformed(error)) {
      return self->refuse(400, "this is no HTTP request: " + error.message());
    }
    if (error) return self->close();  // the client has gone, or said nothing for too long
    self->take_header();
  });
}

void Connection::take_header() {
  give_body_back();  // of the request before, whose handler may not have ended yet
  auto& message = parser_->get();
  keep_alive_ = message.keep_alive() && !shared_.stopping;
  chunked_ = message.version() >= 11;
  ++n_requests_;
  const std::string_view target(message.target().data(), message.target().size());
  const auto text = [](auto view) { return std::string(view.data(), view.size()); };
  request_ = {.method = text(message.method_string()),
              .path = std::string(target.substr(0, target.find('?'))),
              .authorization = text(message[http::field::authorization]),
              .host = text(message[http::field::host]),
              .origin = text(message[http::field::origin]),
              .body = {}};
  head_only_ = message.method() == http::verb::head;
  wanted_headers_ = text(message[http::field::access_control_request_headers]);
  unread_ = !parser_->is_done();
  // Whoever is between us and the client may take it for another length than we do.
  if (message.count(http::field::transfer_encoding) > 0 && !parser_->chunked()) {
    return refuse(501, "of transfer encodings only \"chunked\" is supported");
  }
  if (const std::optional<HttpAnswer> answer = shared_.gate(request_)) {
    answering_ = true;
    keep_alive_ &= !unread_;
    if (answer->status != 403 && answer->status != 503) origin_ = request_.origin;
    return respond(n_requests_, answer->status, answer->body, answer->type);
  }
  const auto expects = message.find(http::field::expect);
  if (expects == message.end() || !beast::iequals(expects->value(), "100-continue")) return read_body();
  // A client that asks whether it may send its body.
  static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
  asio::async_write(stream_, asio::buffer(kContinue), [self = shared_from_this()](ErrorCode error, size_t) {
    if (self->closed_) return;
    if (error) return self->close();
    self->read_body();
  });
}

void Connection::read_body() {
  const uint64_t more = parser_->get().body().size() - body_bytes_;
  shared_.body_bytes += more;
  body_bytes_ += more;
  if (shared_.body_bytes > shared_.limits.all_body_bytes) return refuse(503, "too much is being sent at once");
  if (parser_->is_done()) return take_request();
  restart_deadline();
  http::async_read_some(stream_, buffer_, *parser_, [self = shared_from_this()](ErrorCode error, size_t) {
    if (self->closed_) return;
    if (!error) return self->read_body();
    if (error == http::error::body_limit) return self->refuse(413, "the request's body is too long");
    if (is_malformed(error)) {
      return self->refuse(400, "this is no body of an HTTP request: " + error.message());
    }
    self->close();
  });
}

void Connection::take_request() {
  answering_ = true;
  unread_ = false;
  request_.body = std::move(parser_->get().body());
  origin_ = request_.origin;
  parser_.reset();
  end_deadline();
  watch();
  auto reply = std::make_shared<Reply>(shared_.shared_from_this(), shared_from_this(), n_requests_);
  asio::post(*shared_.handlers, [self = shared_from_this(), answer = n_requests_, request = std::move(request_),
                                reply = std::move(reply)]() mutable {
    self->shared_.handler(request, std::move(reply));
    request = {};
    asio::post(self->shared_.io, [self, answer] {
      if (answer == self->n_requests_) self->give_body_back();
    });
  });
}

// Of reading. Its own timer: it closes even what an exception has left without anybody.
void Connection::restart_deadline() {
  deadline_.expires_after(milliseconds(shared_.limits.idle_seconds));
  deadline_.async_wait([self = shared_from_this()](ErrorCode error) {
    if (!error && self->deadline_.expiry() <= asio::steady_timer::clock_type::now()) self->close();
  });
}
void Connection::end_deadline() { deadline_.expires_at(asio::steady_timer::time_point::max()); }

void Connection::give_body_back() { shared_.body_bytes -= std::exchange(body_bytes_, 0); }

// Whether the client goes while it is answered. What it sends meanwhile is a next request, and waits.
void Connection::watch() {
  watch_.expires_after(std::chrono::milliseconds(200));
  watch_.async_wait([self = shared_from_this(), answer = n_requests_](ErrorCode error) {
    if (error || self->closed_ || !self->is_answering(answer)) return;
    pollfd socket{.fd = self->stream_.socket().native_handle(), .events = POLLRDHUP, .revents = 0};
    if (::poll(&socket, 1, 0) > 0) return self->close();
    self->watch();
  });
}

std::string Connection::header(int status, std::string_view type, std::string_view length) const {
  const auto reason = http::obsolete_reason(http::int_to_status(static_cast<unsigned>(status)));
  std::string text =
      fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\n{}Connection: {}\r\n", status,
                  std::string_view(reason.data(), reason.size()), type, length, keep_alive_ ? "keep-alive" : "close");
  if (status == 401) text += "WWW-Authenticate: Bearer\r\n";
  // A page of a site that is answered at all may read it.
  if (!origin_.empty()) {
    text += fmt::format(
        "Access-Control-Allow-Origin: {}\r\nVary: Origin\r\nAccess-Control-Allow-Methods: GET, POST\r\n"
        "Access-Control-Allow-Headers: {}\r\nAccess-Control-Max-Age: 600\r\n",
        origin_, wanted_headers_.empty() ? "Authorization, Content-Type" : wanted_headers_);
  }
  return text + "\r\n";
}

void Connection::refuse(int status, std::string_view why) {
  keep_alive_ = false;
  answering_ = true;
  give_body_back();
  if (!streaming_) send_whole(status, std::string(why) + "\n", "text/plain");
  end_answer();
}

void Connection::respond(int64_t answer, int status, const std::string& body, const std::string& type) {
  if (!is_answering(answer) || streaming_) return;
  send_whole(status, body, type);
  end_answer();
}

void Connection::send_whole(int status, const std::string& body, std::string_view type) {
  send(header(status, type, fmt::format("Content-Length: {}\r\n", body.size())) + (head_only_ ? "" : body));
}

void Connection::begin_events(int64_t answer) {
  if (!is_answering(answer) || streaming_) return;
  streaming_ = true;
  if (!chunked_) keep_alive_ = false;  // HTTP/1.0: it ends with the connection
  send(header(200, "text/event-stream",
              chunked_ ? "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n" : "Cache-Control: no-cache\r\n"));
  restart_silence();
}

void Connection::event(int64_t answer, const std::string& data) {
  if (!is_answering(answer) || !streaming_) return;
  const std::string text = "data: " + data + "\n\n";
  send(chunked_ ? chunk_of(text) : text);
  restart_silence();
}

void Connection::end_events(int64_t answer) {
  if (!is_answering(answer) || !streaming_) return;
  if (chunked_) send("0\r\n\r\n");
  end_answer();
}

// Clients, and what is between them and us, give up streams that say nothing while a long prompt is read.
void Connection::restart_silence() {
  silence_.expires_after(milliseconds(shared_.limits.silence_seconds));
  silence_.async_wait([self = shared_from_this(), answer = n_requests_](ErrorCode error) {
    if (error || self->closed_ || !self->is_answering(answer)) return;
    const std::string comment = ": still there\n\n";
    if (self->out_.empty()) self->send(self->chunked_ ? chunk_of(comment) : comment);
    self->restart_silence();
  });
}

void Connection::when_gone(int64_t answer, std::function<void()> call) {
  if (is_answering(answer) && !closed_) {
    when_gone_ = std::move(call);
  } else if (closed_) {
    call();
  }
}

void Connection::send(std::string text) {
  if (closed_) return;
  out_.push_back(std::move(text));
  if (out_.size() == 1) write_next();
}

void Connection::write_next() {
  // A piece at a time, each of which has its time: a slow client may take long for all of a large answer.
  constexpr size_t kPieceBytes = 256 << 10;
  const size_t n = std::min(out_.front().size() - sent_, kPieceBytes);
  stream_.expires_after(milliseconds(shared_.limits.idle_seconds));
  asio::async_write(stream_, asio::buffer(out_.front().data() + sent_, n),
                    [self = shared_from_this()](ErrorCode error, size_t n_sent) {
    if (self->closed_) return;
    if (error) return self->close();
    self->sent_ += n_sent;
    if (self->sent_ < self->out_.front().size()) return self->write_next();
    self->sent_ = 0;
    self->out_.pop_front();
    if (!self->out_.empty()) return self->write_next();
    self->stream_.expires_never();
    if (self->answering_) return;
    if (self->keep_alive_) {
      self->read_request();
    } else if (self->unread_) {
      self->linger();
    } else {
      self->close();
    }
  });
}

// All of it has been said, if not sent.
void Connection::end_answer() {
  answering_ = false;
  silence_.cancel();
  watch_.cancel();
  end_deadline();
  when_gone_ = nullptr;
  if (out_.empty()) close();
}

// A client that still sends would lose the answer with the connection: it is given a second to read it.
void Connection::linger() {
  ErrorCode ignored;
  stream_.socket().shutdown(Tcp::socket::shutdown_send, ignored);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  stream_.expires_at(deadline);
  discard();
}
void Connection::discard() {
  buffer_.clear();
  stream_.async_read_some(buffer_.prepare(16 << 10), [self = shared_from_this()](ErrorCode error, size_t) {
    if (self->closed_) return;
    if (error) return self->close();
    self->discard();
  });
}

void Connection::close() {
  if (std::exchange(closed_, true)) return;
  silence_.cancel();
  watch_.cancel();
  deadline_.cancel();
  give_body_back();
  ErrorCode ignored;
  stream_.socket().shutdown(Tcp::socket::shutdown_both, ignored);
  stream_.close();
  const auto call = std::exchange(when_gone_, nullptr);
  if (answering_ && call) call();
  shared_.connections.erase(shared_from_this());
}

}  // namespace

class HttpServer::Implementation {
 public:
  Implementation(const std::string& host, uint16_t port, const HttpLimits& limits, Gate gate, Handler handler)
      : shared_(std::make_shared<Shared>(limits, std::move(gate), std::move(handler))) {
    const std::string place = fmt::format("{}:{}", host, port);
    ErrorCode error;
    const auto found = Tcp::resolver(shared_->io).resolve(host, std::to_string(port), Tcp::resolver::passive, error);
    if (error || found.empty()) fail("{}: there is no such address: {}", place, error.message());
    const Tcp::endpoint endpoint = *found.begin();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(Tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(Tcp::acceptor::max_listen_connections, error);
    if (error) {
      fail("{}: cannot listen: {}{}", place, error.message(),
           error == asio::error::address_in_use ? "; another --port will do" : "");
    }
    const auto address = acceptor_.local_endpoint().address();
    port_ = acceptor_.local_endpoint().port();
    is_loopback_ = address.is_v6() && address.to_v6().is_v4_mapped()
                       ? asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6()).is_loopback()
                       : address.is_loopback();
    accept();
    thread_ = std::thread([this] { run(); });
  }
  ~Implementation() { stop(); }

  uint16_t port() const { return port_; }
  bool is_loopback() const { return is_loopback_; }

  void stop() {
    if (!thread_.joinable()) return;
    asio::post(shared_->io, [this] {
      shared_->stopping = true;
      ErrorCode ignored;
      acceptor_.close(ignored);
      const auto connections = shared_->connections;  // which closing changes
      for (const auto& connection : connections) connection->close_soon();
      close_when_idle();
      deadline_.expires_after(std::chrono::seconds(1));
      deadline_.async_wait([this](ErrorCode error) {
        if (error) return;
        const auto left = shared_->connections;
        for (const auto& connection : left) connection->close();
        shared_->io.stop();
      });
    });
    thread_.join();
    shared_->handlers->stop();
    shared_->handlers->join();
    shared_->handlers.reset();  // with what nobody has begun, which would hold what holds it
  }

 private:
  void accept() {
    acceptor_.async_accept([this](ErrorCode error, Tcp::socket socket) {
      if (!acceptor_.is_open()) return;
      if (error) {  // no file descriptors, say: some may be free soon
        retry_.expires_after(std::chrono::milliseconds(100));
        retry_.async_wait([this](ErrorCode failed) {
          if (!failed && acceptor_.is_open()) accept();
        });
        return;
      }
      accept();
      const auto connection = std::make_shared<Connection>(*shared_, std::move(socket));
      const bool full = std::ssize(shared_->connections) >= shared_->limits.connections;
      shared_->connections.insert(connection);
      if (full) {
        connection->refuse(503, "there are too many connections");
      } else {
        connection->read_request();
      }
    });
  }

  // What throws (there is no memory, say) ends what it was about, and nothing else.
  void run() {
    for (;;) {
      try {
        shared_->io.run();
        return;
      } catch (const std::exception&) {
      }
    }
  }

  // The io thread ends where there is nothing left to do: the deadline must not keep it.
  void close_when_idle() {
    retry_.expires_after(std::chrono::milliseconds(5));
    retry_.async_wait([this](ErrorCode) {
      if (!shared_->connections.empty()) return close_when_idle();
      deadline_.cancel();
    });
  }

  const std::shared_ptr<Shared> shared_;
  Tcp::acceptor acceptor_{shared_->io};
  asio::steady_timer deadline_{shared_->io}, retry_{shared_->io};
  uint16_t port_ = 0;
  bool is_loopback_ = false;
  std::thread thread_;
};

std::string http_library() {
  return fmt::format("Boost {}.{}", BOOST_VERSION / 100000, BOOST_VERSION / 100 % 1000);
}

HttpServer::HttpServer(const std::string& host, uint16_t port, const HttpLimits& limits, Gate gate, Handler handler)
    : implementation_(std::make_unique<Implementation>(host, port, limits, std::move(gate), std::move(handler))) {}
HttpServer::~HttpServer() = default;
uint16_t HttpServer::port() const { return implementation_->port(); }
bool HttpServer::is_loopback() const { return implementation_->is_loopback(); }
void HttpServer::stop() { implementation_->stop(); }

}  // namespace tiercel
