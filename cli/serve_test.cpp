#include "cli/serve_api.hpp"
#include "core/error.hpp"
#include "model/tokenizer/chat_template.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "rollout/engine.hpp"
#include "rollout/fake_lm.hpp"
#include "rollout/small_tokenizer.hpp"
#include <arpa/inet.h>
#include <atomic>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <optional>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
namespace troupe {
namespace {

using nlohmann::json;
using namespace std::chrono_literals;

constexpr const char* small_template =
    "{% for m in messages %}a{{ m.content }}{% for call in m.tool_calls %}{{ call.function.arguments.x }}"
    "{% endfor %}{% endfor %}{% if tools %}cc{% endif %}{{ more }}{% if add_generation_prompt %}b{% endif %}";

// A server on a model that is a hash; what it answers is compared with a generator of its own.
class served : public testing::Test {
protected:
  static constexpr std::int64_t room = 300;
  static generator_options limits() { return {.max_num_seqs = 24, .max_batch_tokens = 50, .cache_blocks = 200, .max_sequence = room}; }
  void start(serve_options o = {}) {
    auto options = limits();
    options.parallel_for = [this](std::int64_t n, const std::function<void(std::int64_t)>& f) {
      while (passes_ <= 0)
        std::this_thread::yield();
      --passes_;
      for (std::int64_t i = 0; i < n; ++i)
        f(i);
    };
    engine_ = std::make_unique<engine>(std::make_unique<generator>(std::make_shared<fake_lm>(6, room), tok_, options), o.max_queue);
    o.model_name = "small";
    o.fingerprint = "print";
    api_ = std::make_unique<serve_api>(
        o, *engine_, completion_reader{tok_.get(), chat_.get(), {6, room}, o.max_queue, [this] { return 100 + seeds_++; }}, tok_);
    port_ = api_->bind("127.0.0.1", 0);
    thread_ = std::thread([this] { api_->run(); });
  }
  void TearDown() override { stop(); }
  void stop() {
    passes_ = all;
    if (!thread_.joinable())
      return;
    api_->stop_accepting();
    engine_->cancel();
    thread_.join();
  }
  httplib::Client client() const { return httplib::Client("127.0.0.1", port_); }

  // The answer's JSON; its status must be as said.
  json post(const std::string& path, const json& body, int status = 200) const {
    const auto res = client().Post(path, body.dump(), "application/json");
    if (!res)
      throw error{errc::failed, "no answer"};
    EXPECT_EQ(res->status, status) << res->body;
    return json::parse(res->body);
  }
  // The chunks of a stream, [DONE] left out.
  static std::vector<json> events(const std::string& text) {
    std::vector<json> out;
    bool done = false;
    for (std::size_t at = 0; at < text.size();) {
      const auto end = text.find("\n\n", at);
      const auto line = text.substr(at, end - at);
      EXPECT_TRUE(end != text.npos && line.starts_with("data: ") && !done) << line;
      done = line == "data: [DONE]";
      if (!done)
        out.push_back(json::parse(line.substr(6)));
      at = end + 2;
    }
    EXPECT_TRUE(done) << text;
    return out;
  }
  std::vector<json> stream(const std::string& path, json body) const {
    body["stream"] = true;
    const auto res = client().Post(path, body.dump(), "application/json");
    if (!res || res->status != 200)
      throw error{errc::failed, "no stream: " + (res ? res->body : "")};
    EXPECT_EQ(res->get_header_value("Content-Type"), "text/event-stream");
    return events(res->body);
  }
  std::vector<generation_output> alone(const std::vector<std::int32_t>& ids, std::int64_t n, std::uint64_t seed, sampling_params params,
                                       std::uint32_t index = 0) const {
    generator g(std::make_shared<fake_lm>(6, room), tok_, limits());
    generation_request r;
    r.prompt_ids = ids;
    r.n = n;
    r.params = std::move(params);
    r.key = {.seed = seed, .domain = draw::generate_seeded, .index = index};
    g.add(r);
    std::vector<generation_output> out(static_cast<std::size_t>(n));
    while (!g.idle())
      for (auto& o : g.step())
        out[std::size_t(o.sample_index)] = std::move(o);
    return out;
  }

  static constexpr std::int64_t all = std::int64_t(1) << 40;
  std::atomic<std::int64_t> passes_ = all; // of the model that may end; the next waits
  std::atomic<std::uint64_t> seeds_ = 0;
  std::shared_ptr<const tokenizer> tok_ = small_tokenizer();
  std::shared_ptr<const chat_template> chat_ = chat_template::parse(small_template, nlohmann::ordered_json::object(), "small");
  std::unique_ptr<engine> engine_;
  std::unique_ptr<serve_api> api_;
  std::thread thread_;
  int port_ = 0;
};

constexpr const char* text_path = "/v1/completions";
constexpr const char* chat_path = "/v1/chat/completions";

// ---- answers ----

TEST_F(served, completions_whole_and_in_chunks_are_what_a_generator_makes) {
  start();
  const json body = {{"model", "small"},  {"prompt", {"abc", "cb", {0, 3}}},       {"n", 5},        {"max_tokens", 40},
                     {"seed", 9},         {"stop", {"cab", "\u00e9\u00e9", "bb"}}, {"logprobs", 2}, {"return_token_ids", true},
                     {"temperature", 0.8}};
  sampling_params params;
  params.max_tokens = 40;
  params.temperature = 0.8;
  params.stop_strings = {"cab", "\u00e9\u00e9", "bb"};
  params.top_logprobs = 2;
  const std::vector<std::vector<std::int32_t>> prompts = {{0, 1, 2}, {2, 1}, {0, 3}};
  const auto whole = post(text_path, body);
  ASSERT_EQ(whole["choices"].size(), 15u);
  std::map<std::size_t, json> streamed;
  for (const auto& chunk : stream(text_path, body)) {
    EXPECT_EQ(chunk["object"], "text_completion");
    const auto& c = chunk["choices"].at(0);
    auto& all = streamed[c["index"]];
    if (all.is_null())
      all = {{"text", ""},
             {"ids", json::array()},
             {"logprobs", json::array()},
             {"offsets", json::array()},
             {"prompt", c.at("prompt_token_ids")}};
    all["text"] = all["text"].get<std::string>() + c["text"].get<std::string>();
    for (const auto& id : c.value("token_ids", json::array()))
      all["ids"].push_back(id);
    if (!c["logprobs"].is_null()) {
      all["logprobs"].push_back(c["logprobs"]["token_logprobs"][0]);
      all["offsets"].push_back(c["logprobs"]["text_offset"][0]);
    }
    all["finish"] = c["finish_reason"];
  }
  std::size_t stopped = 0, tokens = 0;
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    const auto want = alone(prompts[p], 5, 9, params, std::uint32_t(p));
    for (std::size_t i = 0; i < 5; ++i) {
      SCOPED_TRACE(std::to_string(p) + " " + std::to_string(i));
      const auto& o = want[i];
      const auto& c = whole["choices"][p * 5 + i];
      const auto text = tok_->decode(o.result.output_ids, true).substr(0, o.text_stop);
      EXPECT_EQ(c["index"], p * 5 + i);
      EXPECT_EQ(c["token_ids"], o.result.output_ids);
      EXPECT_EQ(c["prompt_token_ids"], prompts[p]);
      EXPECT_EQ(c["text"], text);
      EXPECT_EQ(c["finish_reason"], name_of(o.result.finish));
      EXPECT_EQ(c["logprobs"]["token_logprobs"].get<std::vector<float>>(), o.result.logprobs); // to the bit
      EXPECT_EQ(c["logprobs"]["tokens"].size(), o.result.output_ids.size());
      EXPECT_GE(c["logprobs"]["top_logprobs"][0].size(), 1u);
      const auto& s = streamed.at(p * 5 + i);
      EXPECT_EQ(s["text"], text);
      EXPECT_EQ(s["ids"], c["token_ids"]);
      EXPECT_EQ(s["logprobs"], c["logprobs"]["token_logprobs"]);
      EXPECT_EQ(s["offsets"], c["logprobs"]["text_offset"]);
      EXPECT_EQ(s["prompt"], prompts[p]);
      EXPECT_EQ(s["finish"], c["finish_reason"]);
      stopped += o.text_stop != std::string::npos ? 1 : 0;
      tokens += o.result.output_ids.size();
    }
  }
  EXPECT_GT(stopped, 5u);
  EXPECT_EQ(whole["usage"], (json{{"prompt_tokens", 7}, {"completion_tokens", tokens}, {"total_tokens", 7 + tokens}}));
  EXPECT_EQ(whole["seed"], 9);
  EXPECT_EQ(whole["system_fingerprint"], "print");
}

TEST_F(served, chats_whole_and_in_chunks) {
  start();
  const json call = {{"type", "function"}, {"function", {{"name", "f"}, {"arguments", "{\"x\": \"ab\"}"}}}};
  const json body = {{"messages",
                      {{{"role", "user"}, {"content", {{{"type", "text"}, {"text", "b"}}}}},
                       {{"role", "assistant"}, {"content", nullptr}, {"tool_calls", {call}}},
                       {{"role", "user"}, {"content", "c"}}}},
                     {"tools", {{{"type", "function"}, {"function", {{"name", "f"}}}}}},
                     {"chat_template_kwargs", {{"more", "bb"}}},
                     {"max_completion_tokens", 12},
                     {"seed", 4},
                     {"logprobs", true},
                     {"top_logprobs", 3},
                     {"return_token_ids", true}};
  sampling_params params;
  params.max_tokens = 12;
  params.top_logprobs = 3;
  const std::vector<std::int32_t> prompt = {0, 1, 0, 0, 1, 0, 2, 2, 2, 1, 1, 1}; // ab a ab ac cc bb b
  const auto want = alone(prompt, 1, 4, params).front();
  const auto whole = post(chat_path, body);
  const auto& c = whole["choices"].at(0);
  EXPECT_EQ(whole["object"], "chat.completion");
  EXPECT_EQ(whole["prompt_token_ids"], prompt);
  EXPECT_EQ(c["token_ids"], want.result.output_ids);
  EXPECT_EQ(c["message"]["content"], tok_->decode(want.result.output_ids, true));
  EXPECT_EQ(c["message"]["role"], "assistant");
  for (std::size_t i = 0; i < want.result.output_ids.size(); ++i) {
    const auto& entry = c["logprobs"]["content"].at(i);
    EXPECT_EQ(entry["logprob"].get<float>(), want.result.logprobs[i]);
    ASSERT_EQ(entry["top_logprobs"].size(), 3u);
    EXPECT_EQ(entry["top_logprobs"][2]["logprob"].get<float>(), want.top[3 * i + 2].logprob);
    EXPECT_EQ(entry["token"], tok_->decode(std::array{want.result.output_ids[i]}, false));
  }
  auto asked = body;
  asked["stream_options"] = {{"include_usage", true}};
  const auto chunks = stream(chat_path, asked);
  EXPECT_EQ(chunks.front()["choices"][0]["delta"], (json{{"role", "assistant"}, {"content", ""}}));
  EXPECT_EQ(chunks.front()["prompt_token_ids"], prompt);
  EXPECT_EQ(chunks.back()["choices"], json::array());
  EXPECT_EQ(chunks.back()["usage"], whole["usage"]);
  std::string text;
  json entries = json::array();
  for (const auto& chunk : chunks) {
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    EXPECT_EQ(chunk["usage"].is_null(), &chunk != &chunks.back());
    if (chunk["choices"].empty())
      continue;
    text += chunk["choices"][0]["delta"].value("content", "");
    if (!chunk["choices"][0]["logprobs"].is_null())
      entries.push_back(chunk["choices"][0]["logprobs"]["content"][0]);
  }
  EXPECT_EQ(text, c["message"]["content"]);
  EXPECT_EQ(entries, c["logprobs"]["content"]);
  EXPECT_EQ(chunks[chunks.size() - 2]["choices"][0]["finish_reason"], "length");
}

TEST_F(served, company_changes_nothing) {
  start();
  const json body = {{"prompt", "abcab"}, {"n", 2}, {"max_tokens", 100}, {"seed", 77}, {"logprobs", 1}, {"return_token_ids", true}};
  const auto lonely = post(text_path, body);
  std::vector<json> answers(21);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < answers.size(); ++t)
    threads.emplace_back([&, t] {
      auto mine = body;
      if (t > 0)
        mine["seed"] = t;
      answers[t] = t % 2 == 1 ? json(stream(text_path, mine).size()) : post(text_path, mine);
    });
  for (auto& t : threads)
    t.join();
  EXPECT_EQ(answers[0]["choices"], lonely["choices"]);
}

TEST_F(served, a_request_without_a_seed_gets_one_that_repeats_it) {
  start();
  json body = {{"prompt", "abcab"}, {"max_tokens", 50}, {"return_token_ids", true}};
  const auto first = post(text_path, body), second = post(text_path, body);
  EXPECT_NE(first["choices"][0]["token_ids"], second["choices"][0]["token_ids"]);
  body["seed"] = second["seed"];
  EXPECT_EQ(post(text_path, body)["choices"], second["choices"]);
}

TEST_F(served, tokens_may_be_spelled_as_ids) {
  start();
  const auto answer = post(
      text_path, {{"prompt", "a"}, {"max_tokens", 3}, {"logprobs", 0}, {"return_tokens_as_token_ids", true}, {"return_token_ids", true}});
  const auto& c = answer["choices"][0];
  for (std::size_t i = 0; i < 3; ++i) {
    const auto name = "token_id:" + c["token_ids"][i].dump();
    EXPECT_EQ(c["logprobs"]["tokens"][i], name);
    EXPECT_EQ(c["logprobs"]["top_logprobs"][i].size(), 1u);
    EXPECT_TRUE(c["logprobs"]["top_logprobs"][i].contains(name));
  }
}

TEST_F(served, models_health_and_metrics) {
  start();
  post(text_path, {{"prompt", "abc"}, {"max_tokens", 7}, {"n", 2}});
  post(text_path, {{"prompt", "abc"}, {"max_tokens", "7"}}, 400);
  const auto models = json::parse(client().Get("/v1/models")->body);
  EXPECT_EQ(models["data"].at(0)["id"], "small");
  EXPECT_EQ(models["data"][0]["max_model_len"], room);
  EXPECT_EQ(json::parse(client().Get("/v1/models/small")->body), models["data"][0]);
  EXPECT_EQ(client().Get("/v1/models/large")->status, 404);
  EXPECT_EQ(client().Get("/health")->status, 200);
  const auto metrics = client().Get("/metrics")->body;
  for (const auto* line : {"\ntroupe_answers_total{path=\"/v1/completions\",status=\"200\"} 1\n",
                           "\ntroupe_answers_total{path=\"/v1/completions\",status=\"400\"} 1\n", "\ntroupe_output_tokens_total 14\n",
                           "\ntroupe_prompt_tokens_total 3\n", "\ntroupe_samples_total{finish_reason=\"length\"} 2\n",
                           "\ntroupe_first_token_seconds_bucket{le=\"+Inf\"} 1\n", "\ntroupe_request_seconds_count 1\n",
                           "\ntroupe_cache_blocks 200\n", "\n# TYPE troupe_request_seconds histogram\n"})
    EXPECT_NE(metrics.find(line), std::string::npos) << line << metrics;
}

// ---- refusals ----

TEST_F(served, bad_requests_are_named) {
  start({.max_queue = 4});
  struct bad {
    const char* path;
    const char* body;
    const char* param; // "": null
    const char* says;
    int status = 400;
  };
  const bad cases[] = {
      {text_path, "{", "", "not JSON"},
      {text_path, "[]", "", "JSON object"},
      {text_path, "{}", "", "prompt"},
      {text_path, R"({"prompt": "a", "temprature": 1})", "temprature", "nearest: temperature"},
      {text_path, R"({"prompt": "a", "top_logprobs": 1})", "top_logprobs", "nearest"},
      {text_path, R"({"prompt": "a", "model": "large"})", "model", "small", 404},
      {text_path, R"({"prompt": "a", "model": 3})", "model", "a text"},
      {text_path, R"({"prompt": ""})", "prompt", "no token"},
      {text_path, R"({"prompt": []})", "prompt", "no token"},
      {text_path, R"({"prompt": 7})", "prompt", "found 7"},
      {text_path, R"({"prompt": [1, 6]})", "prompt", "0 to 5"},
      {text_path, R"({"prompt": [1, "a"]})", "prompt", "\"a\""},
      {text_path, R"({"prompt": ["a", "a", "a", "a", "a"]})", "prompt", "up to 4"},
      {text_path, R"({"prompt": "a", "temperature": -1})", "temperature", "-1"},
      {text_path, R"({"prompt": "a", "temperature": "1"})", "temperature", "a number"},
      {text_path, R"({"prompt": "a", "top_p": 0})", "top_p", "top_p"},
      {text_path, R"({"prompt": "a", "n": 129})", "n", "128"},
      {text_path, R"({"prompt": "a", "n": 0})", "n", "from 1"},
      {text_path, R"({"prompt": "a", "seed": -1})", "seed", "integer"},
      {text_path, R"({"prompt": "a", "max_tokens": 0})", "max_tokens", "at least 1"},
      {text_path, R"({"prompt": "a", "min_tokens": 5, "max_tokens": 4})", "min_tokens", "max_tokens"},
      {text_path, R"({"prompt": "a", "stop": [""]})", "stop", "empty"},
      {text_path, R"({"prompt": "a", "stop_token_ids": [6]})", "stop_token_ids", "0 to 5"},
      {text_path, R"({"prompt": "a", "logit_bias": {"6": 1}})", "logit_bias", "0 to 5"},
      {text_path, R"({"prompt": "a", "logprobs": true})", "logprobs", "number"},
      {text_path, R"({"prompt": "a", "logprobs": 1001})", "logprobs", "1000"},
      {text_path, R"({"prompt": "a", "echo": true})", "echo", "cannot do"},
      {text_path, R"({"prompt": "a", "best_of": 3})", "best_of", "cannot do"},
      {text_path, R"({"prompt": "a", "suffix": "x"})", "suffix", "cannot do"},
      {text_path, R"({"prompt": "a", "stream": 1})", "stream", "true or false"},
      {text_path, R"({"prompt": "a", "stream_options": {"include_usage": true}})", "stream_options", "\"stream\": true"},
      {text_path, R"({"prompt": "a", "min_tokens": 1, "stop_token_ids": [0, 1, 2, 3, 4, 5]})", "min_tokens", "every token"},
      {chat_path, "{}", "", "messages"},
      {chat_path, R"({"messages": []})", "messages", "at least one"},
      {chat_path, R"({"messages": [{"role": "user"}]})", "messages", "content"},
      {chat_path, R"({"messages": [{"content": "a"}]})", "messages", "role"},
      {chat_path, R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", "messages", "text alone"},
      {chat_path, R"({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2})", "top_logprobs", "logprobs"},
      {chat_path, R"({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "max_completion_tokens": 2})", "max_tokens", "one"},
      {chat_path, R"({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}})", "response_format",
       "cannot"},
      {chat_path, R"({"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"})", "tool_choice", "cannot"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.body);
    for (const bool keep : {false, true}) {
      auto http = client();
      http.set_keep_alive(keep);
      const auto res = http.Post(c.path, c.body, "application/json");
      ASSERT_TRUE(res);
      EXPECT_EQ(res->status, c.status);
      const auto e = json::parse(res->body)["error"];
      EXPECT_NE(e["message"].get<std::string>().find(c.says), std::string::npos) << e;
      EXPECT_EQ(e["param"], *c.param ? json(c.param) : json()) << e;
      EXPECT_EQ(e["type"], "invalid_request_error");
    }
  }
  std::string deep(200000, '[');
  EXPECT_EQ(client().Post(text_path, "{\"prompt\": " + deep, "application/json")->status, 400);
  const std::string longest = "{\"prompt\": \"" + std::string(300, 'a') + "\"}";
  EXPECT_EQ(client().Post(text_path, longest, "application/json")->status, 400);
  post(text_path, {{"prompt", "a"}, {"user", "u"}, {"metadata", {{"a", "b"}}}, {"stop", nullptr}, {"suffix", nullptr}, {"best_of", 1}});
}

TEST_F(served, what_is_no_request_is_refused) {
  start({.http = {.max_request_bytes = 2000, .read_limit = 1s}});
  const auto post_status = [&](const std::string& body, const char* type) {
    const auto res = client().Post(text_path, body, type);
    return res ? res->status : -1;
  };
  EXPECT_EQ(post_status("{\"prompt\": \"a\"}", "text/plain"), 415);
  EXPECT_EQ(post_status(std::string(2001, ' '), "application/json"), 413);
  EXPECT_EQ(post_status(std::string(1 << 20, ' '), "application/json"), 413);
  EXPECT_EQ(post_status(std::string(2000, ' '), "application/json"), 400);
  EXPECT_EQ(client().Get("/v1/nothing")->status, 404);
  EXPECT_EQ(client().Get(text_path)->status, 404);
  EXPECT_EQ(json::parse(client().Get("/")->body)["error"]["type"], "invalid_request_error");
  auto http = client();
  const auto chunked = http.Post(
      text_path, [](std::size_t offset, httplib::DataSink& sink) { return offset < 5000 ? sink.write("    ", 4) : (sink.done(), true); },
      "application/json");
  EXPECT_TRUE(!chunked || chunked->status == 413); // it may stop reading what is too long

  const auto raw = [&](const std::string& text) {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(std::uint16_t(port_));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&at), sizeof at), 0);
    EXPECT_EQ(::send(fd, text.data(), text.size(), MSG_NOSIGNAL), ssize_t(text.size()));
    std::string out;
    char buffer[4096];
    for (ssize_t n = 0; (n = ::recv(fd, buffer, sizeof buffer, 0)) > 0;)
      out.append(buffer, std::size_t(n));
    ::close(fd);
    return out;
  };
  const std::string head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
  EXPECT_TRUE(raw(head + "Content-Length: 50\r\n\r\n{").starts_with("HTTP/1.1 408"));
  EXPECT_TRUE(raw(head + "\r\n").starts_with("HTTP/1.1 411"));
  EXPECT_TRUE(raw("POST /v1/completions HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\n{}").starts_with("HTTP/1.1 403"));
  EXPECT_EQ(raw("GET /heal"), "");                        // no request in time
  EXPECT_EQ(raw("GET /" + std::string(400000, 'a')), ""); // nor one of that length
  EXPECT_EQ(client().Get("/health")->status, 200);
}

TEST_F(served, the_key_is_asked_for) {
  start({.api_key = "secret"});
  EXPECT_EQ(client().Get("/health")->status, 200);
  for (const auto* key : {"", "Bearer secre", "Bearer secrets", "secret", "Bearer  secret"}) {
    const auto res = client().Post(text_path, httplib::Headers{{"Authorization", key}}, "{\"prompt\": \"a\"}", "application/json");
    ASSERT_TRUE(res);
    EXPECT_EQ(res->status, 401) << key;
    EXPECT_EQ(json::parse(res->body)["error"]["code"], "invalid_api_key");
    EXPECT_EQ(client().Get("/metrics", httplib::Headers{{"Authorization", key}})->status, 401);
  }
  EXPECT_EQ(client().Get("/metrics", httplib::Headers{{"Authorization", "Bearer secret"}, {"Host", "serving.example"}})->status, 200);
  EXPECT_EQ(
      client().Post(text_path, httplib::Headers{{"Authorization", "Bearer secret"}}, "{\"prompt\": \"a\"}", "application/json")->status,
      200);
}

// ---- limits, and ends ----

TEST_F(served, a_full_queue_asks_to_come_later) {
  start({.max_queue = 2});
  passes_ = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i)
    threads.emplace_back([&] { post(text_path, {{"prompt", "a"}, {"max_tokens", 2}}); });
  while (engine_->counts().waiting < 2)
    std::this_thread::yield();
  const auto res = client().Post(text_path, "{\"prompt\": \"a\"}", "application/json");
  ASSERT_TRUE(res);
  EXPECT_EQ(res->status, 429);
  EXPECT_EQ(res->get_header_value("Retry-After"), "1");
  EXPECT_EQ(client().Get("/health")->status, 200);
  passes_ = all;
  for (auto& t : threads)
    t.join();
  post(text_path, {{"prompt", "a"}, {"max_tokens", 2}});
}

TEST_F(served, a_request_past_its_time_ends) {
  start({.request_limit = 1s});
  passes_ = 0;
  const auto error = post(text_path, {{"prompt", "a"}}, 504)["error"];
  EXPECT_NE(error["message"].get<std::string>().find("1 seconds"), std::string::npos);
  passes_ = all;
  while (!engine_->idle())
    std::this_thread::yield();
  EXPECT_EQ(engine_->counts().aborted, 1u);
}

// Reads a stream's beginning, and lets `then` say what follows: false hangs up.
void read_stream(httplib::Client http, const json& body, const std::function<bool(const std::string& so_far)>& then) {
  httplib::Request req;
  req.method = "POST";
  req.path = text_path;
  req.headers = {{"Content-Type", "application/json"}};
  req.body = body.dump();
  std::string text;
  req.content_receiver = [&](const char* data, std::size_t n, std::uint64_t, std::uint64_t) {
    text.append(data, n);
    return then(text);
  };
  http.send(req);
}

const json long_stream = {{"prompt", "abc"}, {"max_tokens", 200}, {"n", 3}, {"stream", true}, {"seed", 1}};

TEST_F(served, a_client_that_hangs_up_gives_its_request_up) {
  start();
  passes_ = 4;
  read_stream(client(), long_stream, [](const std::string&) { return false; });
  auto waits = std::thread([&] { // of one that waits, the hanging up is seen too
    auto http = client();
    http.set_read_timeout(0, 300000);
    EXPECT_FALSE(http.Post(text_path, json{{"prompt", "a"}, {"max_tokens", 100}}.dump(), "application/json"));
  });
  waits.join();
  while (engine_->counts().given_up < 2) // while neither can end
    std::this_thread::yield();
  passes_ = all;
  while (!engine_->idle())
    std::this_thread::yield();
  EXPECT_EQ(engine_->counts().aborted, 4u);
  EXPECT_EQ(engine_->counts().generator.free_blocks, engine_->counts().generator.blocks);
}

TEST_F(served, stopping_lets_answers_end) {
  start();
  passes_ = 4;
  std::string seen;
  read_stream(client(), long_stream, [&](const std::string& text) {
    if (seen.empty()) {
      api_->stop_accepting();
      httplib::Client late("127.0.0.1", port_);
      EXPECT_FALSE(late.Get("/health"));
      passes_ = all;
    }
    seen = text;
    return true;
  });
  EXPECT_GT(events(seen).size(), 100u);
  thread_.join();
  EXPECT_EQ(engine_->counts().aborted, 0u);
}

TEST_F(served, an_engine_that_ends_says_so_in_the_stream) {
  start();
  passes_ = 4;
  std::string seen;
  read_stream(client(), long_stream, [&](const std::string& text) {
    if (seen.empty()) {
      engine_->cancel();
      passes_ = all;
    }
    seen = text;
    return true;
  });
  const auto last = json::parse(seen.substr(seen.rfind("data: ") + 6));
  EXPECT_EQ(last["error"]["type"], "server_error");
  post(text_path, {{"prompt", "a"}}, 503);
}

TEST_F(served, more_connections_than_threads_are_served_in_turn) {
  start({.http = {.max_connections = 2}});
  std::vector<httplib::Client> keepers;
  for (int i = 0; i < 6; ++i) {
    keepers.push_back(client());
    keepers.back().set_keep_alive(true);
  }
  for (int round = 0; round < 2; ++round)
    for (auto& k : keepers) { // those that keep a connection make room
      const auto res = k.Get("/health");
      ASSERT_TRUE(res);
      EXPECT_EQ(res->status, 200);
    }
}

} // namespace
} // namespace troupe
