#include "cli/http_server.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <poll.h>
#include <thread>
#include <utility>
#include <vector>

namespace troupe {
namespace {

using timer = std::chrono::steady_clock;
using namespace std::chrono_literals;

// 0: not by then.
short poll_until(int fd, short what, timer::time_point until) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - timer::now()).count();
    pollfd p{fd, what, 0};
    const int n = ::poll(&p, 1, int(std::clamp<std::int64_t>(left, 0, 1 << 30)));
    if (n > 0)
      return p.revents;
    if (n == 0 || errno != EINTR)
      return 0;
  }
}

void address_of(int (*get)(int, sockaddr*, socklen_t*), int fd, std::string& ip, int& port) {
  sockaddr_storage at{};
  socklen_t size = sizeof at;
  char host[NI_MAXHOST] = "", service[NI_MAXSERV] = "";
  if (get(fd, reinterpret_cast<sockaddr*>(&at), &size) != 0 || getnameinfo(reinterpret_cast<const sockaddr*>(&at), size, host, sizeof host,
                                                                           service, sizeof service, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return;
  ip = host;
  port = std::atoi(service);
}

thread_local http_connection* current = nullptr;

} // namespace

// ---- a connection ----

void http_connection::begin_request() {
  until_ = timer::now() + options_.read_limit;
  budget_ = options_.max_request_bytes + (std::size_t{256} << 10); // the headers'
}

bool http_connection::peer_gone() const { return (poll_until(fd_, POLLRDHUP, {}) & (POLLRDHUP | POLLHUP | POLLERR)) != 0; }

bool http_connection::sent_something(std::chrono::milliseconds within) const {
  return taken_ < buffer_.size() || poll_until(fd_, POLLIN, timer::now() + within) != 0;
}

void http_connection::linger() const {
  ::shutdown(fd_, SHUT_WR);
  char rest[4096];
  const auto until = timer::now() + 2s;
  while (poll_until(fd_, POLLIN, until) != 0 && ::recv(fd_, rest, sizeof rest, 0) > 0)
    ;
}

ssize_t http_connection::read(char* to, std::size_t size) {
  if (taken_ == buffer_.size()) {
    buffer_.resize(std::size_t{16} << 10);
    taken_ = 0;
    timed_out_ = poll_until(fd_, POLLIN, until_) == 0;
    const auto n = timed_out_ ? -1 : ::recv(fd_, buffer_.data(), buffer_.size(), 0);
    buffer_.resize(std::size_t(std::max<ssize_t>(n, 0)));
    if (n <= 0)
      return n;
  }
  const auto n = std::min({size, buffer_.size() - taken_, budget_});
  if (n == 0)
    return -1; // longer than a request may be
  std::memcpy(to, buffer_.data() + taken_, n);
  taken_ += n;
  budget_ -= n;
  return ssize_t(n);
}

ssize_t http_connection::write(const char* from, std::size_t size) {
  const auto until = timer::now() + options_.write_limit;
  for (std::size_t done = 0; done < size;) {
    const auto n = ::send(fd_, from + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0)
      done += std::size_t(n);
    else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (poll_until(fd_, POLLOUT, until) == 0)
        return -1;
    } else if (errno != EINTR)
      return -1;
  }
  return ssize_t(size);
}

void http_connection::get_remote_ip_and_port(std::string& ip, int& port) const { address_of(::getpeername, fd_, ip, port); }

void http_connection::get_local_ip_and_port(std::string& ip, int& port) const { address_of(::getsockname, fd_, ip, port); }

// ---- threads ----

// Started when a connection finds none idle, up to a limit.
class http_server::threads : public httplib::TaskQueue {
public:
  threads(std::size_t most, std::atomic<std::int64_t>& unserved) : most_(most), unserved_(unserved) {}
  void enqueue(std::function<void()> task) override {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    ++unserved_;
    if (idle_ < tasks_.size() && threads_.size() < most_)
      threads_.emplace_back([this] { work(); });
    filled_.notify_one();
  }
  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
      filled_.notify_all();
    }
    for (auto& t : threads_)
      t.join();
  }

private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      filled_.wait(lock, [&] { return ends_ || !tasks_.empty(); });
      --idle_;
      if (tasks_.empty())
        return;
      const auto task = std::move(tasks_.front());
      tasks_.pop_front();
      --unserved_;
      lock.unlock();
      task();
      lock.lock();
    }
  }

  const std::size_t most_;
  std::atomic<std::int64_t>& unserved_;
  std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool ends_ = false;
};

// ---- the server ----

http_server::http_server(http_options options) : options_(options) {
  new_task_queue = [this] { return new threads(options_.max_connections, unserved_); };
  set_tcp_nodelay(true);
  // Not the library's SO_REUSEPORT, with which two servers share a port.
  set_socket_options([](socket_t fd) {
    const int yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
}

int http_server::bind(const std::string& host, int port) {
  const bool bound = port == 0 ? (port = bind_to_any_port(host)) > 0 : bind_to_port(host, port);
  if (!bound)
    throw error{errc::io, "cannot listen on " + host + ":" + std::to_string(port) + ": " + std::strerror(errno) +
                              "; choose another address or port, or port 0 for any free one"};
  ::listen(svr_sock_, 1024); // the library asks for a queue of 5
  return port;
}

void http_server::run() { listen_after_bind(); }

// Not httplib's stop, which also cuts answers short.
void http_server::stop_accepting() {
  stopping_ = true;
  ::shutdown(svr_sock_, SHUT_RDWR);
}

http_connection& http_server::connection() { return *current; }

bool http_server::process_and_close_socket(socket_t fd) {
  http_connection connection(fd, options_);
  current = &connection;
  // Who only keeps a connection makes room for those that wait for one.
  const auto asked = [&](bool again) {
    const auto until = timer::now() + options_.read_limit;
    while (!stopping_ && timer::now() < until && !(again && unserved_ > 0))
      if (connection.sent_something(100ms))
        return true;
    return connection.sent_something(0ms);
  };
  bool good = true, last = false;
  for (bool again = false; good && !last && !connection.closes() && asked(again); again = true) {
    connection.begin_request();
    last = stopping_;
    try {
      good = process_request(connection, last, last, [](httplib::Request& r) {
        r.headers.erase("Accept-Encoding"); // answers are small and their time counts
        r.ranges.clear();
      });
    } catch (const std::exception&) { // a thread's edge: this connection ends
      good = false;
    }
  }
  if (connection.closes())
    connection.linger();
  ::close(fd);
  current = nullptr;
  return good;
}

} // namespace troupe
