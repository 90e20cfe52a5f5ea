// `troupe serve` as a process, on the tiny model.
#include "tests/run/command_fixture.hpp"
#include <csignal>
#include <httplib.h>
#include <thread>

namespace troupe {
namespace {

struct serving : command_files {
  // The server, listening at port_.
  std::unique_ptr<program> serve(const words& more = {}, const surroundings& around = {}) {
    words all;
    for (const auto& a : words{"serve", "--threads", "1", "--model", "DIR/model", "--listen", "127.0.0.1:0"} + more)
      all.push_back(placed(a));
    auto p = std::make_unique<program>(all, dir() / ("server" + std::to_string(servers_++)), around);
    EXPECT_TRUE(until([&] { return p->out().ends_with('\n') || !p->running(); }, deadline)) << p->err();
    const auto out = p->out();
    EXPECT_TRUE(out.starts_with("serving ")) << out << p->err();
    port_ = std::stoi("0" + out.substr(out.rfind(':') + 1));
    return p;
  }
  httplib::Client client() const { return httplib::Client("127.0.0.1", port_); }
  json complete(const json& body) const {
    const auto res = client().Post("/v1/completions", body.dump(), "application/json");
    EXPECT_TRUE(res && res->status == 200) << (res ? res->body : "no answer");
    return res ? json::parse(res->body) : json();
  }
  int port_ = 0;
  static inline int servers_ = 0; // so that no output is another's
};

TEST_F(serving, AnswersAreWhatGenerateWritesWhateverTheCompany) {
  auto server = serve({"--served-model-name", "tiny"});
  std::vector<json> asked;
  for (int i = 0; i < 21; ++i)
    asked.push_back({{"prompt", "say " + std::to_string(i * 37)},
                     {"seed", i},
                     {"n", 2},
                     {"max_tokens", 60},
                     {"ignore_eos", i % 2 == 0},
                     {"temperature", i % 3 == 0 ? 1.0 : 0.7}});
  put("asked.jsonl", jsonl(asked));
  const auto want =
      rows_of(result({"generate", "--threads", "1", "--model", "DIR/model", "--input", "DIR/asked.jsonl", "--output", "/dev/stdout"}));
  ASSERT_EQ(want.size(), 42u);
  const auto expect_same = [&](std::size_t i, const json& answer) {
    for (std::size_t n = 0; n < 2; ++n) {
      const auto& c = answer["choices"].at(n);
      const auto& row = want[2 * i + n];
      EXPECT_EQ(c["token_ids"], row["output_ids"]);
      EXPECT_EQ(c["prompt_token_ids"], row["input_ids"]);
      EXPECT_EQ(c["text"], row["text"]);
      EXPECT_EQ(c["finish_reason"], row["finish_reason"]);
      EXPECT_EQ(c["logprobs"]["token_logprobs"].get<std::vector<float>>(), row["logprobs"].get<std::vector<float>>()); // to the bit
    }
  };
  for (auto& body : asked) {
    body["logprobs"] = 0;
    body["return_token_ids"] = true;
    body["model"] = "tiny";
  }
  expect_same(0, complete(asked[0])); // alone
  std::vector<json> answers(asked.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < asked.size(); ++i)
    threads.emplace_back([&, i] { answers[i] = complete(asked[i]); });
  for (auto& t : threads)
    t.join();
  for (std::size_t i = 0; i < asked.size(); ++i)
    expect_same(i, answers[i]);
  server->signal(SIGINT);
  EXPECT_EQ(server->wait(deadline), 0) << server->err();
  EXPECT_EQ(json::parse(server->err())["samples"], 44);
}

TEST_F(serving, ASignalLetsTheStreamEnd) {
  auto server = serve({"--seed", "4"});
  const json body = {{"prompt", "say 1"}, {"n", 8}, {"max_tokens", 240}, {"ignore_eos", true}, {"stream", true}};
  httplib::Request req;
  req.method = "POST";
  req.path = "/v1/completions";
  req.headers = {{"Content-Type", "application/json"}};
  req.body = body.dump();
  std::string text;
  req.content_receiver = [&](const char* data, std::size_t n, std::uint64_t, std::uint64_t) {
    if (text.empty()) {
      server->signal(SIGTERM);
      EXPECT_TRUE(until([&] { return !client().Get("/health"); }, deadline));
    }
    text.append(data, n);
    return true;
  };
  auto http = client();
  EXPECT_TRUE(http.send(req));
  EXPECT_TRUE(text.ends_with("data: [DONE]\n\n")) << text.substr(text.size() - std::min<std::size_t>(text.size(), 300));
  EXPECT_EQ(server->wait(deadline), 0) << server->err();
  EXPECT_EQ(json::parse(server->err())["output_tokens"], 8 * 240);
}

TEST_F(serving, TheKeyAndTheSeed) {
  put("key", "k\nnot the key\n");
  const json body = {{"prompt", "say 1"}, {"max_tokens", 20}, {"return_token_ids", true}};
  const auto first = [&](const words& options, const surroundings& around = {}) {
    auto server = serve(options, around);
    const auto refused = client().Post("/v1/completions", body.dump(), "application/json");
    const auto res = client().Post("/v1/completions", httplib::Headers{{"Authorization", "Bearer k"}}, body.dump(), "application/json");
    if (!refused || !res)
      throw std::runtime_error("no answer");
    EXPECT_EQ(refused->status, 401);
    EXPECT_EQ(res->status, 200) << res->body;
    server->signal(SIGTERM);
    EXPECT_EQ(server->wait(deadline), 0) << server->err();
    return json::parse(res->body);
  };
  surroundings around;
  around.environment = {"TROUPE_API_KEY=k"};
  const auto seeded = first({"--api-key-file", "DIR/key", "--seed", "4"});
  const auto again = first({"--seed", "4"}, around);
  const auto drawn = first({"--api-key", "k"});
  EXPECT_EQ(seeded["choices"], again["choices"]);
  EXPECT_EQ(seeded["seed"], again["seed"]);
  EXPECT_NE(seeded["seed"], drawn["seed"]);
  EXPECT_EQ(seeded["model"], "model");
}

TEST_F(serving, WrongUsageIsNamed) {
  put("empty", "\n");
  const words good = {"serve", "--model", "DIR/model", "--listen"};
  const std::pair<words, const char*> cases[] = {
      {{"serve", "--model", "DIR/model"}, "--listen"},
      {good + words{"here"}, "HOST:PORT"},
      {good + words{"127.0.0.1:70000"}, "HOST:PORT"},
      {good + words{"0.0.0.0:0"}, "--api-key-file"},
      {good + words{"127.0.0.1:0", "--api-key-file", "DIR/empty"}, "first line"},
      {good + words{"127.0.0.1:0", "--api-key-file", "DIR/empty", "--api-key", "k"}, "give one"},
      {good + words{"127.0.0.1:0", "--max-queue", "0"}, "--max-queue"},
      {{"serve", "--listen", "127.0.0.1:0", "--model", "DIR/nothing"}, "nothing"},
  };
  for (const auto& [arguments, says] : cases) {
    auto p = start(arguments);
    EXPECT_EQ(p.wait(deadline), 2) << says;
    EXPECT_NE(p.err().find(says), std::string::npos) << p.err();
    EXPECT_EQ(n_lines(p.err()), 1u);
    EXPECT_EQ(p.out(), "");
  }
  auto server = serve();
  auto second = start(good + words{"127.0.0.1:" + std::to_string(port_)});
  EXPECT_EQ(second.wait(deadline), 1);
  EXPECT_NE(second.err().find("in use"), std::string::npos) << second.err();
}

} // namespace
} // namespace troupe
