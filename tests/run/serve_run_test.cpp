// rollout.serve: others ask the policy of a run that is under way.
#include "core/files.hpp"
#include "tests/run/run_fixture.hpp"
#include <atomic>
#include <csignal>
#include <fstream>
#include <httplib.h>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

namespace troupe {
namespace {

using nlohmann::json;

struct exchange {
  json asked, answer;
};

std::optional<json> ask(int port, const json& body) {
  httplib::Client client("127.0.0.1", port);
  client.set_read_timeout(60);
  const auto res = client.Post(body.contains("prompt") ? "/v1/completions" : "/v1/chat/completions", body.dump(), "application/json");
  if (res && res->status == 200)
    return json::parse(res->body);
  if (res) {
    EXPECT_EQ(res->status, 503) << res->body;
  }
  return std::nullopt;
}

json question(int i) {
  json body = {{"seed", i}, {"n", 2}, {"max_tokens", 1 + i % 30}, {"return_token_ids", true}, {"ignore_eos", i % 2 == 0}};
  if (i % 3 == 0)
    body.update({{"messages", {{{"role", "user"}, {"content", "say " + std::to_string(i)}}}}, {"logprobs", true}});
  else
    body.update({{"prompt", "say " + std::to_string(i)}, {"logprobs", 0}});
  return body;
}

struct serve_run : run_files {
  /// The world's model with a chat template, which the data do not use.
  static std::string model() {
    static const std::string dir = [] {
      const auto copy = world().dir() / "chat-model";
      std::filesystem::copy(world().dir() / "model", copy);
      write_file(copy / "chat_template.jinja", "{% for m in messages %}<{{ m.content }}>{% endfor %}");
      return copy.string();
    }();
    return dir;
  }
  static std::vector<std::string> serving(std::vector<std::string> more = {}) {
    more.insert(more.end(), {"rollout.serve=127.0.0.1:0", "run.save_freq=1", "model.path=" + model()});
    return more;
  }
  static std::filesystem::path log(const std::string& name) { return world().run_dir(name) / "log.txt"; }
  /// Of the last server that the log names; 0: there is none yet.
  static int port(const std::string& name) {
    const std::string text = file_bytes(log(name)), words = "serving tiny on http://127.0.0.1:";
    const auto at = text.rfind(words);
    return at == text.npos || text.find('\n', at) == text.npos ? 0 : std::stoi(text.substr(at + words.size()));
  }
  /// A whole run, with questions all the time.
  static std::vector<exchange> questioned(const std::string& name, const std::vector<std::string>& settings) {
    auto p = start(name, settings);
    std::atomic<bool> over = false;
    std::vector<std::vector<exchange>> parts(3);
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < parts.size(); ++t)
      threads.emplace_back([&, t] {
        for (int i = int(t); !over; i += int(parts.size())) {
          const int at = port(name);
          const json body = question(i);
          if (const auto answer = at ? ask(at, body) : std::nullopt)
            parts[t].push_back({body, *answer});
          else
            pause_briefly();
        }
      });
    EXPECT_EQ(p.wait(whole_run), 0) << p.err() << file_bytes(log(name));
    EXPECT_EQ(p.err(), "");
    over = true;
    std::vector<exchange> all;
    for (std::size_t t = 0; t < parts.size(); ++t) {
      threads[t].join();
      all.insert(all.end(), parts[t].begin(), parts[t].end());
    }
    return all;
  }
  /// What `generate` makes of a version's checkpoint of the same questions must be what was answered.
  static std::size_t expect_those_of_generate(const std::string& name, const std::vector<exchange>& all, int version) {
    const auto of_version = [&](const json& choice) { return choice["weights_version"] == version; };
    std::vector<const exchange*> some;
    for (const auto& e : all)
      if (std::all_of(e.answer["choices"].begin(), e.answer["choices"].end(), of_version))
        some.push_back(&e);
    const auto file = world().dir() / "questions.jsonl";
    std::ofstream out(file);
    for (const auto* e : some) {
      const auto& a = e->answer;
      const auto& ids = a["object"] == "chat.completion" ? a["prompt_token_ids"] : a["choices"][0]["prompt_token_ids"];
      json line = {{"input_ids", ids}};
      for (const char* key : {"seed", "n", "max_tokens", "ignore_eos"})
        line[key] = e->asked[key];
      out << line << '\n';
    }
    out.close();
    if (some.empty())
      return 0;
    char step[40];
    std::snprintf(step, sizeof step, "checkpoints/step-%06d", version);
    program p({"generate", "--threads", "1", "--dtype", "bfloat16", "--model", (world().run_dir(name) / step).string(), "--input",
               file.string(), "--output", file.string() + ".made"},
              world().run_dir("generate-output"));
    EXPECT_EQ(p.wait(whole_run), 0) << p.err();
    std::ifstream in(file.string() + ".made");
    for (std::string line; std::getline(in, line);) {
      const auto row = json::parse(line);
      const auto& answer = some.at(row["index"])->answer;
      const auto& choice = answer["choices"].at(row["sample"].get<std::size_t>());
      EXPECT_EQ(choice["token_ids"], row["output_ids"]);
      EXPECT_EQ(answer["system_fingerprint"], "troupe-0.1.0-bfloat16-step-" + std::to_string(version));
      const bool chat = choice.contains("message");
      EXPECT_EQ(chat ? choice["message"]["content"] : choice["text"], row["text"]);
      std::vector<float> logprobs;
      if (chat)
        for (const auto& token : choice["logprobs"]["content"])
          logprobs.push_back(token["logprob"].get<float>());
      else
        logprobs = choice["logprobs"]["token_logprobs"].get<std::vector<float>>();
      EXPECT_EQ(logprobs, row["logprobs"].get<std::vector<float>>()); // to the bit
    }
    return some.size();
  }
  static void expect_questions_change_nothing(const std::string& name, const std::vector<std::string>& settings) {
    const auto all = questioned(name, serving(settings));
    expect_whole(name);
    std::map<int, int> by_version;
    for (const auto& e : all)
      for (const auto& c : e.answer["choices"])
        ++by_version[c["weights_version"].is_array() ? -1 : c["weights_version"].get<int>()];
    EXPECT_GT(by_version.size(), 3u) << "versions " << json(by_version);
    EXPECT_GT(expect_those_of_generate(name, all, tiny_steps), 0u) << "the last version answers until the end";
    for (const int version : {1, 7, 16})
      expect_those_of_generate(name, all, version);
    std::ifstream in(world().run_dir(name) / "metrics.jsonl");
    for (std::string line; std::getline(in, line);) {
      EXPECT_EQ(json::parse(line).value("exact/logprob_diff_max", 0.0), 0.0) << line;
    }
  }
};

TEST_F(serve_run, QuestionsChangeNothingInOneProcess) { expect_questions_change_nothing("asked", {}); }
TEST_F(serve_run, NorDoTheyWithSeveralRolloutsAndOldCaches) {
  expect_questions_change_nothing("asked-keep", {"rollout.actors=2", "rollout.inflight_cache=keep"});
}
TEST_F(serve_run, NorInProcesses) { expect_questions_change_nothing("asked-processes", processes(2)); }

TEST_F(serve_run, AnswersComeAgainAfterTheRolloutDied) {
  const std::string name = "asked-killed";
  auto p = start(name, serving(processes(1)));
  const auto asked = [&] { return port(name) != 0 && ask(port(name), question(1)); };
  ASSERT_TRUE(until(asked)) << file_bytes(log(name));
  const int before = port(name);
  ASSERT_EQ(kill(joined(world().run_dir(name), "rollout").back(), SIGKILL), 0);
  EXPECT_TRUE(until([&] { return port(name) != before && asked(); })) << file_bytes(log(name));
  ASSERT_EQ(p.wait(whole_run), 0) << p.err() << file_bytes(log(name));
  expect_whole(name);
}

TEST_F(serve_run, TheEndOfTheRunLetsAStreamEnd) {
  const std::string name = "drained";
  auto p = start(name, serving({"run.total_steps=3", "data.max_response_length=240", "run.test_freq=0", "run.val_before_train=false"}));
  ASSERT_TRUE(until([&] { return port(name) != 0; }));
  const json body = {{"prompt", "say 1"}, {"n", 8}, {"max_tokens", 230}, {"ignore_eos", true}, {"stream", true}};
  std::size_t whole = 0;
  std::string last;
  // One after the other: the last is under way when the run is over.
  while (p.running()) {
    httplib::Request req;
    req.method = "POST";
    req.path = "/v1/completions";
    req.headers = {{"Content-Type", "application/json"}};
    req.body = body.dump();
    std::string text;
    req.content_receiver = [&](const char* data, std::size_t n, std::uint64_t, std::uint64_t) {
      text.append(data, n);
      return true;
    };
    httplib::Client client("127.0.0.1", port(name));
    client.set_read_timeout(60);
    (void)client.send(req);
    if (text.empty() || !text.starts_with("data: "))
      continue; // it had stopped taking requests
    EXPECT_TRUE(text.ends_with("data: [DONE]\n\n")) << text.substr(text.size() - std::min<std::size_t>(text.size(), 300));
    EXPECT_EQ(text.find("\"error\""), text.npos);
    ++whole;
    last = text;
  }
  EXPECT_EQ(p.wait(whole_run), 0) << p.err();
  EXPECT_GT(whole, 0u);
  EXPECT_NE(last.find("\"weights_version\":3"), last.npos);
}

TEST_F(serve_run, AnAddressThatCannotBeIsRefused) {
  httplib::Server other;
  const std::string taken = "127.0.0.1:" + std::to_string(other.bind_to_any_port("127.0.0.1"));
  const std::pair<std::vector<std::string>, std::vector<std::string>> cases[] = {
      {{"rollout.serve=" + taken}, {"rollout.serve: port", "cannot be listened on", "name another"}},
      {{"rollout.serve=" + taken, "placement.processes=true"}, {"rollout.serve: port", "cannot be listened on", "name another"}},
      {{"rollout.serve=0.0.0.0:0"}, {"rollout.serve = \"0.0.0.0:0\"", "TROUPE_API_KEY", "127.0.0.1"}},
      {{"rollout.serve=0.0.0.0:0", "placement.processes=true"}, {"rollout.serve = \"0.0.0.0:0\"", "TROUPE_API_KEY"}},
      {{"rollout.serve=here"}, {"HOST:PORT"}},
      {{"rollout.inflight_cache=keep"}, {"rollout.inflight_cache", "rollout.serve"}},
  };
  for (const auto& [settings, words] : cases) {
    auto p = start("refused-serve", settings);
    EXPECT_EQ(p.wait(whole_run), 2) << settings[0];
    for (const auto& word : words)
      EXPECT_NE(p.err().find(word), std::string::npos) << p.err();
    EXPECT_EQ(n_lines(p.err()), 1u) << p.err();
    EXPECT_FALSE(std::filesystem::exists(world().run_dir("refused-serve")));
  }
}

TEST_F(serve_run, TheKeyIsAskedFor) {
  surroundings around;
  around.environment = {"TROUPE_API_KEY=k"};
  auto p = start("keyed", serving(processes(1)), around);
  ASSERT_TRUE(until([] { return port("keyed") != 0; }));
  httplib::Client client("127.0.0.1", port("keyed"));
  const auto refused = client.Get("/v1/models");
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->status, 401);
  const auto taken = client.Get("/v1/models", httplib::Headers{{"Authorization", "Bearer k"}});
  ASSERT_TRUE(taken);
  EXPECT_EQ(json::parse(taken->body)["data"][0]["id"], "tiny");
  p.signal(SIGTERM);
  EXPECT_EQ(p.wait(whole_run), 1) << "stopped after a step, or before one began";
}

} // namespace
} // namespace troupe
