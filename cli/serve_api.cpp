#include "cli/serve_api.hpp"
#include "cli/serve_metrics.hpp"
#include "core/error.hpp"
#include <array>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string_view>
#include <utility>

namespace troupe {
namespace {

using json = nlohmann::ordered_json;
using timer = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr const char* text_path = "/v1/completions";
constexpr const char* chat_path = "/v1/chat/completions";

std::string dumped(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

void refuse(httplib::Response& res, int status, const std::string& message, const std::string& type, const std::string& param = "",
            const std::string& code = "") {
  res.status = status;
  res.set_content(dumped(error_object(message, type, param, code)), "application/json");
}

// What an error of the libraries is in HTTP.
int status_of(errc code) {
  if (exit_code(code) == 2)
    return 400;
  return code == errc::cancelled ? 503 : code == errc::timeout ? 504 : 500;
}

const char* type_of(int status) { return status < 500 ? "invalid_request_error" : "server_error"; }

// Takes the same time wherever they differ.
bool same_secret(std::string_view a, std::string_view b) {
  unsigned char differs = a.size() != b.size() ? 1 : 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    differs |= static_cast<unsigned char>(a[i] ^ (i < b.size() ? b[i] : '\0'));
  return differs == 0;
}

// A page of another site that has its name resolved to this machine sends that name.
bool names_this_machine(std::string host) {
  if (const auto end = host.rfind(':'); end != host.npos && host.find(']', end) == host.npos)
    host.erase(end);
  return host.empty() || host == "localhost" || host.starts_with("127.") || host == "[::1]";
}

} // namespace

struct serve_api::under_way {
  completion_request asked;
  generation_stream stream;
  completion_answer answer;
  timer::time_point until;
  std::chrono::seconds limit;

  under_way(completion_request r, generation_stream s, answer_head head, std::shared_ptr<const tokenizer> tok, std::chrono::seconds limit)
      : asked(std::move(r)), stream(std::move(s)), answer(asked, std::move(head), std::move(tok)), until(timer::now() + limit),
        limit(limit) {}

  // The next event; none when all samples have ended, or nobody wants them any more. Throws what next does, and errc::timeout.
  std::optional<generation_event> next() {
    while (!stream.ended()) {
      if (auto event = stream.next(std::min(until, timer::now() + 200ms)))
        return event;
      if (stream.ended() || http_server::connection().peer_gone())
        break;
      if (timer::now() >= until)
        throw error{errc::timeout, "the request took longer than " + std::to_string(limit.count()) +
                                       " seconds, this server's limit; ask for fewer tokens"};
    }
    return {};
  }
};

serve_api::serve_api(serve_options options, request_desk& desk, completion_reader reader, std::shared_ptr<const tokenizer> tok)
    : options_(std::move(options)), desk_(desk), reader_(std::move(reader)), tok_(std::move(tok)), created_(std::time(nullptr)),
      next_id_((std::uint64_t{std::random_device{}()} << 32) | std::random_device{}()), server_(options_.http) {
  add_routes();
}

void serve_api::add_routes() {
  using content = httplib::ContentReader;
  for (const bool chat : {false, true})
    server_.Post(chat ? chat_path : text_path, [this, chat](const request& req, response& res, const content& read) {
      complete(req, res, read, chat);
      count(req.path, res.status == -1 ? 200 : res.status);
    });
  server_.Get("/v1/models(/.*)?", [this](const request& req, response& res) { models(req, res); });
  server_.Get("/health", [this](const request&, response& res) { health(res); });
  server_.Get("/metrics", [this](const request&, response& res) { res.set_content(metrics(), "text/plain; version=0.0.4"); });
  server_.set_pre_routing_handler([this](const request& req, response& res) {
    if (admit(req, res))
      return httplib::Server::HandlerResponse::Unhandled;
    count("refused", res.status);
    http_server::connection().close_after_answer(); // what it sent was not read
    return httplib::Server::HandlerResponse::Handled;
  });
  server_.set_error_handler([](const request& req, response& res) {
    if (res.body.empty())
      refuse(res, res.status, req.method + " " + req.path + ": there is no such endpoint, or its request is no HTTP", type_of(res.status));
    http_server::connection().close_after_answer();
  });
  server_.set_exception_handler([](const request&, response& res, const std::exception_ptr&) { // a thread's edge
    refuse(res, 500, "the server could not handle the request", "server_error");
  });
}

bool serve_api::admit(const request& req, response& res) const {
  if (options_.api_key.empty()) {
    if (names_this_machine(req.get_header_value("Host")))
      return true;
    refuse(res, 403, "Host is not a name of this machine's loopback; a server without an API key answers to no other",
           "invalid_request_error");
    return false;
  }
  if (req.path == "/health" || same_secret("Bearer " + options_.api_key, req.get_header_value("Authorization")))
    return true;
  refuse(res, 401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", "invalid_request_error", "", "invalid_api_key");
  return false;
}

bool serve_api::read_body(const request& req, response& res, const httplib::ContentReader& content, std::string& body) const {
  const auto most = options_.http.max_request_bytes;
  const auto too_long = [&] {
    refuse(res, 413, "the request is longer than " + std::to_string(most) + " bytes, this server's limit", "invalid_request_error");
    return false;
  };
  http_server::connection().close_after_answer(); // unless all of it is read
  if (!req.get_header_value("Content-Type").starts_with("application/json")) {
    refuse(res, 415, "Content-Type must be application/json", "invalid_request_error");
    return false;
  }
  if (!req.has_header("Content-Length") && req.get_header_value("Transfer-Encoding") != "chunked") {
    refuse(res, 411, "the request says neither its Content-Length nor that it is chunked", "invalid_request_error");
    return false;
  }
  if (req.get_header_value<std::uint64_t>("Content-Length") > most)
    return too_long();
  bool fits = true;
  const bool read = content([&](const char* data, std::size_t n) {
    fits = body.size() + n <= most;
    if (fits)
      body.append(data, n);
    return fits;
  });
  if (!fits)
    return too_long();
  if (!read) {
    const bool late = http_server::connection().timed_out();
    refuse(res, late ? 408 : 400,
           late ? "the request did not arrive in time" : "the request ended early, or is encoded in a way that is not known",
           "invalid_request_error");
  } else {
    http_server::connection().close_after_answer(false);
  }
  return read;
}

void serve_api::complete(const request& req, response& res, const httplib::ContentReader& content, bool chat) {
  std::string body;
  const auto busy = [&] {
    refuse(res, 429, std::to_string(options_.max_queue) + " requests wait at most for their first token here; ask again later",
           "rate_limit_error", "", "queue_full");
    res.set_header("Retry-After", "1");
  };
  if (server_.stopping()) {
    refuse(res, 503, "the server is stopping; ask again elsewhere", "server_error");
    return http_server::connection().close_after_answer();
  }
  if (desk_.full(1)) {
    busy();
    return http_server::connection().close_after_answer();
  }
  if (!read_body(req, res, content, body))
    return;
  try {
    auto asked = read_completion(body, chat, reader_);
    if (!asked.model.empty() && asked.model != options_.model_name)
      return refuse(res, 404, "there is no model \"" + asked.model + "\" here; it is \"" + options_.model_name + "\"",
                    "invalid_request_error", "model", "model_not_found");
    auto stream = desk_.submit(asked.prompts, asked.stream);
    if (!stream)
      return busy();
    answer(std::make_unique<under_way>(std::move(asked), std::move(*stream), new_head(chat), tok_, options_.request_limit), res);
  } catch (const error& e) {
    const int status = status_of(e.code());
    refuse(res, status, e.what(), type_of(status), status == 400 ? named_field(e.what(), body) : "");
  }
}

void serve_api::answer(std::unique_ptr<under_way> work, response& res) const {
  if (!work->asked.stream) {
    while (auto event = work->next())
      work->answer.add(std::move(std::get<generation_output>(*event)));
    if (!work->stream.ended()) {
      res.status = 499; // nobody reads it
      return;
    }
    return res.set_content(dumped(work->answer.whole()), "application/json");
  }
  // A refusal is a status while nothing is sent.
  auto first = std::make_shared<std::optional<generation_event>>(work->next());
  res.set_header("Cache-Control", "no-cache");
  const std::shared_ptr<under_way> shared = std::move(work);
  res.set_chunked_content_provider("text/event-stream", [this, shared, first](std::size_t, httplib::DataSink& sink) {
    return send_chunks(*shared, std::exchange(*first, std::nullopt), sink);
  });
}

bool serve_api::send_chunks(under_way& work, std::optional<generation_event> event, httplib::DataSink& sink) const {
  std::string text;
  const auto put = [&](const json& value) { text += "data: " + dumped(value) + "\n\n"; };
  try {
    if (!event)
      event = work.next();
    if (!event && !work.stream.ended())
      return false;                             // nobody reads it
    for (; event; event = work.stream.next({})) // with all that has come meanwhile
      for (const auto& chunk : work.answer.chunks(*event))
        put(chunk);
    if (!work.stream.ended())
      return text.empty() || sink.write(text.data(), text.size()); // writing nothing would end the answer
    if (work.asked.include_usage)
      put(work.answer.usage_chunk());
    text += "data: [DONE]\n\n";
  } catch (const error& e) {
    put(error_object(e.what(), type_of(status_of(e.code()))));
  }
  const bool sent = sink.write(text.data(), text.size());
  sink.done();
  return sent;
}

void serve_api::models(const request& req, response& res) const {
  json model = {{"id", options_.model_name},
                {"object", "model"},
                {"created", created_},
                {"owned_by", "troupe"},
                {"max_model_len", reader_.limits.max_position_embeddings}};
  if (const auto version = desk_.counts().version)
    model["weights_version"] = version->step;
  if (req.path == "/v1/models")
    return res.set_content(dumped({{"object", "list"}, {"data", {model}}}), "application/json");
  if (req.path == "/v1/models/" + options_.model_name)
    return res.set_content(dumped(model), "application/json");
  refuse(res, 404, "there is no such model here; it is \"" + options_.model_name + "\"", "invalid_request_error", "model",
         "model_not_found");
}

void serve_api::health(response& res) const {
  const bool failed = desk_.failed();
  res.status = failed || server_.stopping() ? 503 : 200;
  res.set_content(failed               ? R"({"status": "failed"})"
                  : server_.stopping() ? R"({"status": "stopping"})"
                                       : R"({"status": "ok"})",
                  "application/json");
}

std::string serve_api::metrics() const {
  const std::lock_guard lock(mutex_);
  return metrics_text(desk_.counts(), answers_);
}

answer_head serve_api::new_head(bool chat) {
  std::array<char, 40> id{};
  std::snprintf(id.data(), id.size(), "%s-%016llx", chat ? "chatcmpl" : "cmpl", static_cast<unsigned long long>(next_id_++));
  return {id.data(), options_.model_name, options_.fingerprint, std::time(nullptr), options_.of_a_run};
}

void serve_api::count(const std::string& path, int status) {
  const std::lock_guard lock(mutex_);
  ++answers_[{path, status}];
}

} // namespace troupe
