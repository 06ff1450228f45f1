// One HTTP connection of a test, which decides what bytes are sent when.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace tiercel::test {

struct HttpResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  // Of a stream of events: what each says.
  std::vector<std::string> events() const {
    std::vector<std::string> found;
    for (size_t begin = 0; (begin = body.find("data: ", begin)) != std::string::npos;) {
      const size_t end = body.find("\n\n", begin);
      if (end == std::string::npos) break;
      found.push_back(body.substr(begin + 6, end - begin - 6));
      begin = end + 2;
    }
    return found;
  }
};

class HttpConnection {
 public:
  explicit HttpConnection(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval patience{.tv_sec = 120, .tv_usec = 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      throw std::runtime_error("nobody listens");
    }
  }
  ~HttpConnection() { close(); }
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return;  // the other side has closed: what it said is to be read
      bytes.remove_prefix(static_cast<size_t>(n));
    }
  }
  void send_request(std::string_view method, std::string_view path, std::string_view body = {},
                    std::string_view more_headers = {}) {
    std::string text(method);
    text.append(" ").append(path).append(" HTTP/1.1\r\nHost: localhost\r\n").append(more_headers);
    if (!body.empty()) text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
    send(text.append("\r\n").append(body));
  }

  // Throws where the connection ends before a whole response has come.
  HttpResponse read_response() {
    HttpResponse response;
    const std::string status = line();
    if (!status.starts_with("HTTP/1.1 ")) throw std::runtime_error("no HTTP: " + status);
    response.status = std::atoi(status.c_str() + 9);
    for (std::string header = line(); !header.empty(); header = line()) {
      const size_t colon = header.find(": ");
      std::string name = header.substr(0, colon);
      std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
      response.headers[name] = header.substr(colon + 2);
    }
    if (response.status == 100) return response;
    if (response.headers.contains("content-length")) {
      response.body = bytes(static_cast<size_t>(std::atoll(response.headers["content-length"].c_str())));
    } else if (response.headers["transfer-encoding"] == "chunked") {
      for (std::string chunk = next_chunk(); !chunk.empty(); chunk = next_chunk()) response.body += chunk;
    } else {
      while (fill()) {
      }
      response.body = std::exchange(held_, {});
    }
    return response;
  }
  // A piece of a response whose body comes in chunks; empty: the last one.
  std::string next_chunk() {
    const auto size = static_cast<size_t>(std::strtoull(line().c_str(), nullptr, 16));
    std::string data = bytes(size);
    if (!line().empty()) throw std::runtime_error("no chunk");
    return data;
  }
  std::string line() {
    size_t end = 0;
    while ((end = held_.find("\r\n")) == std::string::npos) need_more();
    std::string text = held_.substr(0, end);
    held_.erase(0, end + 2);
    return text;
  }
  // Whether the other side has closed, and had nothing more to say.
  bool at_end() { return held_.empty() && !fill(); }

 private:
  std::string bytes(size_t n) {
    while (held_.size() < n) need_more();
    std::string text = held_.substr(0, n);
    held_.erase(0, n);
    return text;
  }
  void need_more() {
    if (!fill()) throw std::runtime_error("the connection has ended");
  }
  bool fill() {
    char buffer[4096];
    const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
    if (n <= 0) return false;
    held_.append(buffer, static_cast<size_t>(n));
    return true;
  }

  int fd_;
  std::string held_;
};

// A connection for one request.
inline HttpResponse ask(int port, std::string_view method, std::string_view path, std::string_view body = {},
                        std::string_view more_headers = {}) {
  HttpConnection connection(port);
  connection.send_request(method, path, body, more_headers);
  return connection.read_response();
}

}  // namespace tiercel::test
