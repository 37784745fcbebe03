// Connections: cpp-httplib's server on sockets with deadlines. The library waits for every byte anew; here a
// whole request has a time in which it must have come, so that slow clients give their threads back.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <string>

// CPPHTTPLIB_*_SUPPORT as its packaged library was built: set by the build.
#include <httplib.h>

namespace dydit {

struct HttpLimits {
  int connections = 256;        // at a time; of more, each is told 503 and closed
  double request_seconds = 20;  // from the first byte of a request to its last one
  double idle_seconds = 15;     // between two requests of a connection
  double write_seconds = 30;    // without any progress
  size_t body_bytes = size_t{1} << 20;
  size_t header_bytes = size_t{64} << 10;  // request line and all headers
};

/// Handlers as httplib's. Their requests have no Accept-Encoding: compression is a reverse proxy's business.
class HttpListener : public httplib::Server {
 public:
  explicit HttpListener(const HttpLimits& limits);

  /// Binds to `host`; port 0: any. Returns the port. Throws Error with the system's reason.
  int bind(const std::string& host, int port);
  /// Serves until stop(), which waits for the requests that are being answered. Throws Error where accepting
  /// ended otherwise.
  void serve();
  /// From now on each connection is closed after the answer in progress.
  void close_idle() { closing_ = true; }
  int connections() const { return connections_; }

  /// Of a handler: whether its client has closed its side of the connection.
  static bool client_left();

 private:
  bool process_and_close_socket(socket_t socket) override;

  const HttpLimits limits_;
  std::atomic<bool> closing_ = false;
  std::atomic<int> connections_ = 0;
};

}  // namespace dydit
