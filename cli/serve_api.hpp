#pragma once
#include "cli/http_server.hpp"
#include "cli/serve_answers.hpp"
#include "cli/serve_requests.hpp"
#include "rollout/request_desk.hpp"
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace troupe {

struct serve_options {
  std::string model_name = {};  // as requests call it
  std::string fingerprint = {}; // of the answers
  bool of_a_run = false;        // the weights change: answers say their version
  std::string api_key = {};     // "": none is asked for, and only names of this machine's loopback are answered to
  std::int64_t max_queue = 256;
  std::chrono::seconds request_limit{600};
  http_options http = {};
};

/// OpenAI's endpoints over a desk: /v1/completions, /v1/chat/completions, /v1/models, and /health and /metrics.
/// Handlers run in the server's threads; what they share is the desk and the counts.
class serve_api {
public:
  /// desk and what reader points to must outlive it; tok: reader's.
  serve_api(serve_options options, request_desk& desk, completion_reader reader, std::shared_ptr<const tokenizer> tok);
  int bind(const std::string& host, int port) { return server_.bind(host, port); }
  void run() { server_.run(); }
  void stop_accepting() { server_.stop_accepting(); }

private:
  struct under_way;
  using request = httplib::Request;
  using response = httplib::Response;
  void add_routes();
  bool admit(const request& req, response& res) const;
  void complete(const request& req, response& res, const httplib::ContentReader& content, bool chat);
  bool read_body(const request& req, response& res, const httplib::ContentReader& content, std::string& body) const;
  void answer(std::unique_ptr<under_way> work, response& res) const;
  bool send_chunks(under_way& work, std::optional<generation_event> event, httplib::DataSink& sink) const;
  void models(const request& req, response& res) const;
  void health(response& res) const;
  std::string metrics() const;
  answer_head new_head(bool chat);
  void count(const std::string& path, int status);

  serve_options options_;
  request_desk& desk_;
  completion_reader reader_;
  std::shared_ptr<const tokenizer> tok_;
  const std::int64_t created_;
  std::atomic<std::uint64_t> next_id_;
  mutable std::mutex mutex_;                                          // of answers_
  std::map<std::pair<std::string, int>, std::uint64_t> answers_ = {}; // by path and status
  http_server server_;
};

} // namespace troupe
