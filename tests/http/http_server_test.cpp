// What clients do to a server: all at once, in pieces, wrongly, and going away in the middle.
#include "tools/serve/http_server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "tests/http_client.h"

namespace tiercel {
namespace {

using test::ask;
using test::HttpConnection;
using test::HttpResponse;

// Answers with what it was asked; /events says the body's words, /wait keeps its reply until it is told.
class HttpServerTest : public testing::Test {
 protected:
  void SetUp() override {
    if (http_library().empty()) GTEST_SKIP() << "this build has no server";
    start({});
  }
  void start(const HttpLimits& limits) {
    server_.reset();
    const auto gate = [](const HttpRequest& request) -> std::optional<HttpAnswer> {
      if (request.path == "/throw") throw std::bad_alloc();
      if (!request.path.starts_with("/at-once")) return std::nullopt;
      return HttpAnswer{.status = 403, .body = request.host + "," + request.origin, .type = "text/plain"};
    };
    const auto handle = [this](const HttpRequest& request, auto reply) {
      if (request.path == "/events") {
        reply->begin_events();
        for (size_t begin = 0; begin < request.body.size();) {
          const size_t end = std::min(request.body.find(' ', begin), request.body.size());
          reply->event(request.body.substr(begin, end - begin));
          begin = end + 1;
        }
        reply->end_events();
      } else if (request.path == "/wait") {
        reply->when_gone([this] { ++n_gone_; });
        const std::lock_guard lock(mutex_);
        waiting_.push_back(std::move(reply));
      } else if (request.path != "/forget") {
        reply->respond(200, request.method + " " + request.path + " " + request.authorization + " " + request.body,
                       "text/plain");
      }
    };
    server_ = std::make_unique<HttpServer>("127.0.0.1", 0, limits, gate, handle);
  }
  void TearDown() override {
    waiting_.clear();
    server_.reset();
  }
  int port() const { return server_->port(); }
  std::shared_ptr<HttpReply> wait_for_request() {
    for (;;) {
      {
        const std::lock_guard lock(mutex_);
        if (!waiting_.empty()) {
          auto reply = waiting_.back();
          waiting_.pop_back();
          return reply;
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  bool becomes(const std::atomic<int>& value, int wanted) {
    for (int i = 0; i < 20000 && value != wanted; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return value == wanted;
  }

  std::atomic<int> n_gone_ = 0;
  std::mutex mutex_;
  std::vector<std::shared_ptr<HttpReply>> waiting_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersWhatItIsAsked) {
  const HttpResponse response = ask(port(), "POST", "/some/path?query=1", "a body", "Authorization: Bearer x\r\n");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, "POST /some/path Bearer x a body");
  EXPECT_EQ(response.headers.at("content-type"), "text/plain");
}

// Before a body is read, if there is one.
TEST_F(HttpServerTest, WhatIsAnsweredAtOnce) {
  HttpConnection connection(port());
  for (int i = 0; i < 2; ++i) {
    connection.send_request("GET", "/at-once", {}, "Origin: http://here\r\n");
    const HttpResponse response = connection.read_response();
    EXPECT_EQ(response.status, 403);
    EXPECT_EQ(response.body, "localhost,http://here");
  }
  connection.send("POST /at-once HTTP/1.1\r\nContent-Length: 100000000\r\n\r\nabc");
  EXPECT_EQ(connection.read_response().headers.at("connection"), "close");
  EXPECT_TRUE(connection.at_end());
}

TEST_F(HttpServerTest, NobodyWantsTheBody) {
  HttpConnection connection(port());
  for (const char* path : {"/at-once", "/later"}) {
    connection.send_request("HEAD", path);
    EXPECT_NE(connection.line().find("HTTP/1.1"), std::string::npos);
    std::string length;
    for (std::string line = connection.line(); !line.empty(); line = connection.line()) {
      if (line.starts_with("Content-Length: ")) length = line;
    }
    EXPECT_NE(length, "");
  }
  connection.send_request("GET", "/next");
  EXPECT_EQ(connection.read_response().body, "GET /next  ");
}

TEST_F(HttpServerTest, OneConnectionForManyRequests) {
  HttpConnection connection(port());
  for (int i = 0; i < 3; ++i) {
    connection.send_request("GET", "/" + std::to_string(i));
    EXPECT_EQ(connection.read_response().body, "GET /" + std::to_string(i) + "  ");
    connection.send_request("POST", "/events", "one two");
    EXPECT_EQ(connection.read_response().events(), (std::vector<std::string>{"one", "two"}));
  }
  // Two before the first one is answered.
  connection.send_request("GET", "/a");
  connection.send_request("GET", "/b");
  EXPECT_EQ(connection.read_response().body, "GET /a  ");
  EXPECT_EQ(connection.read_response().body, "GET /b  ");
  connection.send_request("GET", "/last", {}, "Connection: close\r\n");
  EXPECT_EQ(connection.read_response().headers.at("connection"), "close");
  EXPECT_TRUE(connection.at_end());
}

TEST_F(HttpServerTest, BytesThatComeOneByOne) {
  HttpConnection connection(port());
  for (const char byte : std::string("POST /p HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")) {
    connection.send({&byte, 1});
  }
  EXPECT_EQ(connection.read_response().body, "POST /p  hello");
  connection.send("POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
  EXPECT_EQ(connection.read_response().body, "POST /c  abcde");
}

TEST_F(HttpServerTest, WhoAsksWhetherToSendABody) {
  HttpConnection connection(port());
  connection.send("POST /p HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
  EXPECT_EQ(connection.read_response().status, 100);
  connection.send("hello");
  EXPECT_EQ(connection.read_response().body, "POST /p  hello");
}

TEST_F(HttpServerTest, OldClientsAreSentNoChunks) {
  HttpConnection connection(port());
  connection.send("POST /events HTTP/1.0\r\nContent-Length: 7\r\n\r\none two");
  const HttpResponse response = connection.read_response();  // to the end of the connection
  EXPECT_EQ(response.events(), (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(response.headers.at("connection"), "close");
}

TEST_F(HttpServerTest, WhatIsNoRequestIsRefused) {
  for (const char* bad : {"hello\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET  HTTP/1.1\r\n\r\n",
                          "\x16\x03\x01\x02\r\n\r\n",
                          "POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n"}) {
    HttpConnection connection(port());
    connection.send(bad);
    EXPECT_EQ(connection.read_response().status, 400) << bad;
    EXPECT_TRUE(connection.at_end()) << bad;
  }
  {
    // Behind an answer that was a stream.
    HttpConnection connection(port());
    connection.send_request("POST", "/events", "one");
    EXPECT_EQ(connection.read_response().status, 200);
    connection.send("hello\r\n\r\n");
    EXPECT_EQ(connection.read_response().status, 400);
  }
  // Of which nobody knows where it ends.
  for (const char* encoding : {"gzip", "chunked, identity"}) {
    HttpConnection connection(port());
    connection.send(std::string("POST / HTTP/1.1\r\nTransfer-Encoding: ") + encoding +
                    "\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    EXPECT_EQ(connection.read_response().status, 501) << encoding;
    EXPECT_TRUE(connection.at_end()) << encoding;
  }
  {
    HttpConnection connection(port());
    connection.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n");
    EXPECT_EQ(connection.read_response().status, 400);
  }
  {
    // What is around a chunk is no way to fill the memory.
    HttpConnection connection(port());
    connection.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + std::string(1 << 20, 'a'));
    EXPECT_EQ(connection.read_response().status, 400);
  }
  HttpConnection connection(port());
  connection.send("GET / HTTP/1.1\r\nLong: " + std::string(100 << 10, 'x') + "\r\n\r\n");
  EXPECT_EQ(connection.read_response().status, 431);
}

TEST_F(HttpServerTest, BodiesAreLimited) {
  start({.body_bytes = 1000, .all_body_bytes = 1500});
  {
    HttpConnection connection(port());
    connection.send("POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n");
    EXPECT_EQ(connection.read_response().status, 413);
  }
  {
    // Not even said beforehand.
    HttpConnection connection(port());
    connection.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + std::string(1001, 'x') + "\r\n");
    EXPECT_EQ(connection.read_response().status, 413);
  }
  HttpConnection one(port()), two(port());
  one.send("POST / HTTP/1.1\r\nContent-Length: 801\r\n\r\n" + std::string(800, 'x'));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  two.send("POST / HTTP/1.1\r\nContent-Length: 800\r\n\r\n" + std::string(800, 'x'));
  const HttpResponse response = two.read_response();
  EXPECT_EQ(response.status, 503);
  EXPECT_NE(response.body.find("too much"), std::string::npos);
  one.send("x");
  EXPECT_EQ(one.read_response().status, 200);
  // What has come counts, not what may come.
  std::vector<std::unique_ptr<HttpConnection>> some;
  for (int i = 0; i < 8; ++i) {
    some.push_back(std::make_unique<HttpConnection>(port()));
    some.back()->send("POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
  }
  for (const auto& connection : some) {
    connection->send("0\r\n\r\n");
    EXPECT_EQ(connection->read_response().body, "POST /c  abc");
  }
}

TEST_F(HttpServerTest, WhoSaysNothingIsLeft) {
  start({.connections = 2, .idle_seconds = 1});
  {
    // Slowly, but on and on.
    HttpConnection connection(port());
    connection.send("POST / HTTP/1.1\r\nContent-Length: 15\r\n\r\n");
    for (int i = 0; i < 15; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      connection.send("x");
    }
    EXPECT_EQ(connection.read_response().status, 200);
  }
  HttpConnection idle(port()), half(port());
  half.send("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc");
  HttpConnection third(port());
  EXPECT_EQ(third.read_response().status, 503);
  EXPECT_TRUE(idle.at_end());
  EXPECT_TRUE(half.at_end());
  // Where an exception has ended the server's part.
  HttpConnection thrown(port());
  thrown.send_request("GET", "/throw");
  EXPECT_TRUE(thrown.at_end());
  EXPECT_EQ(ask(port(), "GET", "/again").status, 200);
}

TEST_F(HttpServerTest, ClientsThatGoAreNoticed) {
  std::vector<std::shared_ptr<HttpReply>> replies;
  for (const char* more : {"", "GET /next HTTP/1.1\r\n\r\n"}) {
    HttpConnection connection(port());
    connection.send_request("GET", "/wait");
    replies.push_back(wait_for_request());
    connection.send(more);  // a next request, which nobody has looked at
    std::this_thread::sleep_for(std::chrono::milliseconds(450));  // it is looked for every 200
    EXPECT_EQ(n_gone_, std::ssize(replies) - 1);
    connection.close();
    EXPECT_TRUE(becomes(n_gone_, static_cast<int>(replies.size())));
  }
  replies[0]->respond(200, "too late");
  // One that hears of it too late is told at once.
  std::atomic<int> told = 0;
  replies[0]->when_gone([&] { ++told; });
  EXPECT_TRUE(becomes(told, 1));
  EXPECT_EQ(ask(port(), "GET", "/others").status, 200);
}

TEST_F(HttpServerTest, AnswersThatAreDoneAreNobodysLoss) {
  HttpConnection connection(port());
  connection.send_request("GET", "/wait");
  const auto reply = wait_for_request();
  reply->respond(200, "done");
  EXPECT_EQ(connection.read_response().body, "done");
  reply->respond(200, "again");
  reply->event("again");
  connection.send_request("GET", "/next");
  EXPECT_EQ(connection.read_response().body, "GET /next  ");
  connection.close();
  EXPECT_EQ(ask(port(), "GET", "/others").status, 200);
  EXPECT_EQ(n_gone_, 0);
}

TEST_F(HttpServerTest, ARequestThatIsGivenUp) {
  const HttpResponse response = ask(port(), "GET", "/forget");
  EXPECT_EQ(response.status, 500);
  EXPECT_NE(response.body.find("given up"), std::string::npos);
}

TEST_F(HttpServerTest, SilentStreamsShowThatTheyAreAlive) {
  start({.silence_seconds = 0.02});
  HttpConnection connection(port());
  connection.send_request("GET", "/wait");
  const auto reply = wait_for_request();
  reply->begin_events();
  while (!connection.line().empty()) {
  }
  EXPECT_EQ(connection.next_chunk().substr(0, 1), ":");
  EXPECT_EQ(connection.next_chunk().substr(0, 1), ":");
  reply->event("x");
  reply->end_events();
  std::string rest;
  for (std::string chunk = connection.next_chunk(); !chunk.empty(); chunk = connection.next_chunk()) rest += chunk;
  EXPECT_NE(rest.find("data: x\n\n"), std::string::npos);
}

TEST_F(HttpServerTest, ManyAtOnce) {
  std::vector<std::future<int>> clients;
  for (int c = 0; c < 16; ++c) {
    clients.push_back(std::async(std::launch::async, [this, c] {
      int right = 0;
      HttpConnection connection(port());
      for (int i = 0; i < 30; ++i) {
        const std::string body =
            std::to_string(c) + "." + std::to_string(i) + std::string(static_cast<size_t>(i) * 997, 'y');
        connection.send_request("POST", i % 2 == 0 ? "/x" : "/events", body);
        const HttpResponse response = connection.read_response();
        right += i % 2 == 0 ? response.body == "POST /x  " + body : response.events() == std::vector{body};
      }
      return right;
    }));
  }
  for (auto& client : clients) EXPECT_EQ(client.get(), 30);
}

// What has been said to a client is sent, those that wait are let go, and nobody else gets in.
TEST_F(HttpServerTest, Stops) {
  HttpConnection idle(port()), told(port()), waits(port());
  told.send_request("GET", "/wait");
  const auto to_be_told = wait_for_request();
  waits.send_request("GET", "/wait");
  const auto waiting = wait_for_request();
  const int old_port = port();
  to_be_told->respond(503, "stopping");
  const auto begin = std::chrono::steady_clock::now();
  server_->stop();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));  // one, of a machine that is busy
  EXPECT_EQ(told.read_response().body, "stopping");
  EXPECT_TRUE(idle.at_end());
  EXPECT_TRUE(waits.at_end());
  waiting->respond(200, "too late");
  EXPECT_THROW(HttpConnection{old_port}, std::runtime_error);
  server_.reset();
  waiting->event("later still");
}

TEST_F(HttpServerTest, APlaceThatCannotBeHad) {
  const auto error_of = [](const std::string& host, int port) {
    try {
      HttpServer server(host, static_cast<uint16_t>(port), {}, [](const HttpRequest&) { return std::nullopt; },
                        [](const HttpRequest&, auto) {});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kRuntime);
      return std::string(error.what());
    }
    return std::string("none");
  };
  EXPECT_NE(error_of("127.0.0.1", port()).find("another --port"), std::string::npos);
  EXPECT_NE(error_of("no.such.host.invalid", 0).find("no such address"), std::string::npos);
  EXPECT_EQ(error_of("localhost", 0), "none");
}

}  // namespace
}  // namespace tiercel
