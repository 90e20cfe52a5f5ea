#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <httplib.h>
#include <memory>
#include <string>

namespace troupe {

struct http_options {
  std::size_t max_request_bytes = std::size_t{8} << 20;
  std::size_t max_connections = 600;    // a thread each; further ones wait
  std::chrono::seconds read_limit{30};  // for a whole request; also how long one may keep a connection without asking
  std::chrono::seconds write_limit{30}; // for each piece of an answer that the client does not take
};

/// The connection that a handler's request came over; the handler's thread alone.
class http_connection : public httplib::Stream {
public:
  http_connection(int fd, const http_options& options) : fd_(fd), options_(options) {}
  void begin_request();
  /// What is left of the request stays unread: nothing more is read as one.
  void close_after_answer(bool closes = true) { closes_ = closes; }
  bool closes() const { return closes_; }
  bool timed_out() const { return timed_out_; } // while the request was read
  /// Whether the client went away, for good or for writing.
  bool peer_gone() const;
  /// Whether it sent something (the end included) within this time.
  bool sent_something(std::chrono::milliseconds within) const;
  /// Says that nothing more comes, and takes what the client still sends, so that it can read the answer.
  void linger() const;

  bool is_readable() const override { return true; }
  bool is_writable() const override { return true; }
  ssize_t read(char* to, std::size_t size) override;
  ssize_t write(const char* from, std::size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return fd_; }

private:
  const int fd_;
  const http_options& options_;
  std::string buffer_; // read and not taken, from taken_
  std::size_t taken_ = 0, budget_ = 0;
  std::chrono::steady_clock::time_point until_{};
  bool closes_ = false, timed_out_ = false;
};

/// cpp-httplib's server with a limit on everything a client can make it wait for or hold, and an end that lets answers finish.
/// Routes are added before run().
class http_server : private httplib::Server {
public:
  explicit http_server(http_options options);
  using httplib::Server::Get;
  using httplib::Server::Post;
  using httplib::Server::set_error_handler;
  using httplib::Server::set_exception_handler;
  using httplib::Server::set_pre_routing_handler;
  /// port 0: any free one. Returns the port. Throws errc::io when it cannot be had.
  int bind(const std::string& host, int port);
  /// Answers until stop_accepting was called and every answer under way has ended.
  void run();
  /// New connections are refused, answers under way end, connections close behind them. Any thread, once, after bind.
  void stop_accepting();
  bool stopping() const { return stopping_; }
  const http_options& limits() const { return options_; }
  /// Of the handler that calls.
  static http_connection& connection();

private:
  class threads;
  bool process_and_close_socket(socket_t fd) override;
  http_options options_;
  std::atomic<bool> stopping_ = false;
  std::atomic<std::int64_t> unserved_ = 0; // connections that wait for a thread
};

} // namespace troupe
