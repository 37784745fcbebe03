#include "http_listener.h"

#include <algorithm>
#include <arpa/inet.h>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <sys/socket.h>
#include <system_error>

#include "dydit/base/error.h"

namespace dydit {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr int kBacklog = 1024;
constexpr size_t kMaxRequests = 1000;                   // of a connection
constexpr size_t kRefusing = 32;                        // threads that tell others that there are too many
constexpr auto kLook = std::chrono::milliseconds(100);  // at the end of serving, while a connection idles

Clock::time_point after(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(seconds));
}

// Waits until the socket can be read or written; false: not by then.
bool wait_for(int socket, short events, Clock::time_point until) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    if (left <= 0) return false;
    pollfd entry{socket, events, 0};
    const int ready = ::poll(&entry, 1, static_cast<int>(std::min<long>(left, 60'000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

void address_of(const sockaddr_storage& storage, std::string& ip, int& port) {
  char host[NI_MAXHOST];
  const auto* address = reinterpret_cast<const sockaddr*>(&storage);
  const socklen_t size = storage.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  if (::getnameinfo(address, size, host, sizeof host, nullptr, 0, NI_NUMERICHOST) != 0) return;
  ip = host;
  port = ntohs(storage.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(address)->sin6_port
                                             : reinterpret_cast<const sockaddr_in*>(address)->sin_port);
}

// A connection as httplib reads and writes it.
class Connection : public httplib::Stream {
 public:
  Connection(int socket, const HttpLimits& limits) : socket_(socket), limits_(limits) {}

  /// From now on the next request is read. What was read ahead of it stays.
  void begin_request() {
    until_ = after(limits_.request_seconds);
    left_ = limits_.header_bytes + limits_.body_bytes;
  }
  bool has_more() const { return first_ < last_; }
  /// Whether a read failed: the deadline, too many bytes, or the end of what the client sends.
  bool broke_off() const { return broke_off_; }

  bool is_readable() const override { return has_more() || wait_for(socket_, POLLIN, until_); }
  bool is_writable() const override { return wait_for(socket_, POLLOUT, after(limits_.write_seconds)); }
  ssize_t read(char* to, size_t size) override {
    if (!has_more()) {
      const bool comes = left_ > 0 && wait_for(socket_, POLLIN, until_);
      const ssize_t got = comes ? ::recv(socket_, buffer_, std::min(sizeof buffer_, left_), 0) : -1;
      broke_off_ = got <= 0;
      if (broke_off_) return got;
      first_ = 0;
      last_ = static_cast<size_t>(got);
      left_ -= last_;
    }
    const size_t count = std::min(size, last_ - first_);
    std::memcpy(to, buffer_ + first_, count);
    first_ += count;
    return static_cast<ssize_t>(count);
  }
  ssize_t write(const char* from, size_t size) override {
    if (!is_writable()) return -1;
    return ::send(socket_, from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  void get_remote_ip_and_port(std::string& ip, int& port) const override {
    sockaddr_storage storage{};
    socklen_t size = sizeof storage;
    if (::getpeername(socket_, reinterpret_cast<sockaddr*>(&storage), &size) == 0)
      address_of(storage, ip, port);
  }
  void get_local_ip_and_port(std::string& ip, int& port) const override {
    sockaddr_storage storage{};
    socklen_t size = sizeof storage;
    if (::getsockname(socket_, reinterpret_cast<sockaddr*>(&storage), &size) == 0)
      address_of(storage, ip, port);
  }
  socket_t socket() const override { return socket_; }

 private:
  const int socket_;
  const HttpLimits& limits_;
  Clock::time_point until_;
  size_t left_ = 0;  // bytes that the request may still have
  bool broke_off_ = false;
  char buffer_[4096];
  size_t first_ = 0, last_ = 0;  // of the buffer: read and not taken
};

thread_local Connection* current = nullptr;

// Threads for connections, made as they are needed, kept until the end; what is more waits.
class ConnectionThreads : public httplib::TaskQueue {
 public:
  explicit ConnectionThreads(size_t most) : most_(most) {}

  void enqueue(std::function<void()> task) override {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    if (idle_ < tasks_.size() && threads_.size() < most_) {
      try {
        threads_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {
        // The others take it when they are free.
      }
    }
    changed_.notify_one();
  }
  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      ++idle_;
      changed_.wait(lock, [&] { return ending_ || !tasks_.empty(); });
      --idle_;
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  const size_t most_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool ending_ = false;
};

void refuse_connection(int socket) {
  constexpr std::string_view kBody =
      "{\"error\":{\"code\":\"too_many_connections\",\"message\":\"too many connections; try again later\","
      "\"param\":null,\"type\":\"server_error\"}}\n";
  const std::string answer = fmt::format(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n"
      "Retry-After: 1\r\nConnection: close\r\n\r\n{}",
      kBody.size(), kBody);
  [[maybe_unused]] const ssize_t sent =
      ::send(socket, answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

// Says that nothing more is sent, and reads for a moment what is still under way: closing over unread bytes
// would reset the connection and could take the answer with it.
void close_in_order(int socket) {
  ::shutdown(socket, SHUT_WR);
  const auto until = after(0.5);
  char rest[4096];
  for (size_t read = 0; read < (size_t{1} << 22) && wait_for(socket, POLLIN, until);) {
    const ssize_t got = ::recv(socket, rest, sizeof rest, 0);
    if (got <= 0) break;
    read += static_cast<size_t>(got);
  }
  ::close(socket);
}

}  // namespace

HttpListener::HttpListener(const HttpLimits& limits) : limits_(limits) {
  new_task_queue = [most = static_cast<size_t>(limits.connections) + kRefusing] {
    return new ConnectionThreads(most);
  };
  set_payload_max_length(limits.body_bytes);
  set_tcp_nodelay(true);
  // Not SO_REUSEPORT, httplib's own choice: two servers on one port would share its clients unasked.
  set_socket_options([](socket_t socket) {
    const int on = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  });
}

int HttpListener::bind(const std::string& host, int port) {
  errno = 0;
  const int bound = port == 0 ? bind_to_any_port(host) : bind_to_port(host, port) ? port : -1;
  const int reason = errno;
  DYDIT_CHECK(bound > 0, "cannot listen on {} port {}: {}; is another server there? --port takes another one",
              host, port, reason == 0 ? "no such address here" : std::generic_category().message(reason));
  ::listen(svr_sock_, kBacklog);  // httplib's own backlog is 5
  return bound;
}

void HttpListener::serve() {
  DYDIT_CHECK(listen_after_bind() || closing_, "the server's socket failed; it accepts nothing any more");
}

bool HttpListener::client_left() {
  if (current == nullptr || current->has_more()) return false;
  pollfd entry{current->socket(), POLLIN | POLLRDHUP, 0};
  if (::poll(&entry, 1, 0) <= 0) return false;
  if (entry.revents & (POLLRDHUP | POLLERR | POLLHUP)) return true;
  char byte;
  return ::recv(current->socket(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

bool HttpListener::process_and_close_socket(socket_t socket) {
  struct Count {
    explicit Count(std::atomic<int>& count) : count(count), now(++count) {}
    ~Count() { --count; }
    std::atomic<int>& count;
    const int now;
  } const count(connections_);
  if (count.now > limits_.connections) {
    refuse_connection(socket);
    close_in_order(socket);
    return false;
  }
  Connection connection(socket, limits_);
  current = &connection;
  bool good = true;
  for (size_t requests = 1; good && requests <= kMaxRequests; ++requests) {
    bool comes = connection.has_more();
    for (const auto until = after(limits_.idle_seconds); !comes;) {
      comes = wait_for(socket, POLLIN, std::min(until, Clock::now() + kLook));
      if (!comes && (closing_ || Clock::now() >= until)) break;
    }
    if (!comes) break;
    connection.begin_request();
    bool closed = false, understood = false;
    good = process_request(
        connection, closing_ || requests == kMaxRequests, closed, [&](httplib::Request& request) {
          understood = true;
          request.headers.erase("Accept-Encoding");
          // Without either there is no body (RFC 9112, 6.3); httplib would wait for one.
          if (!request.has_header("Content-Length") && !request.has_header("Transfer-Encoding"))
            request.set_header("Content-Length", "0");
        });
    // Of what was no request, or did not come in time, nobody knows where the next one begins.
    if (closed || !understood || connection.broke_off()) break;
  }
  current = nullptr;
  close_in_order(socket);
  return good;
}

}  // namespace dydit
