#include "tests/run/run_fixture.hpp"
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <regex>
#include <sys/wait.h>
#include <unistd.h>

namespace troupe {
namespace {

/// The real program on a terminal of its own.
class on_terminal {
public:
  /// out: a file that takes stdout; empty: the terminal does.
  on_terminal(std::vector<std::string> arguments, unsigned short columns, const std::string& out = "") {
    arguments.insert(arguments.begin(), TROUPE_PROGRAM);
    std::vector<char*> argv;
    for (auto& a : arguments)
      argv.push_back(a.data());
    argv.push_back(nullptr);
    const winsize size{24, columns, 0, 0};
    const pid_t pid = forkpty(&master_, nullptr, nullptr, &size);
    if (pid != 0) {
      pid_ = std::max<pid_t>(pid, 0);
      return;
    }
    if (!out.empty())
      dup2(open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), 1);
    execv(argv[0], argv.data());
    _exit(127);
  }
  ~on_terminal() {
    if (!there())
      return;
    if (!ended_) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(master_);
  }
  on_terminal(const on_terminal&) = delete;
  on_terminal& operator=(const on_terminal&) = delete;
  /// False where the system has no terminals to give.
  bool there() const { return pid_ > 0; }
  /// Everything that it was sent so far.
  const std::string& bytes() const { return bytes_; }
  void type(char c) const { EXPECT_EQ(write(master_, &c, 1), 1); }
  /// Takes what comes until `done`.
  template <class F>
  bool reads(F done) {
    return until([&] { return done() || !read_some(); }) && done();
  }
  int wait() {
    int status = 0;
    EXPECT_TRUE(until([&] { return !read_some(); }, whole_run));
    EXPECT_TRUE(until([&] { return ended_ = waitpid(pid_, &status, WNOHANG) == pid_; }, whole_run));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

private:
  /// False at the end.
  bool read_some() {
    pollfd p{master_, POLLIN, 0};
    if (poll(&p, 1, 20) == 0)
      return true;
    char buffer[4096];
    const ssize_t n = read(master_, buffer, sizeof buffer);
    bytes_.append(buffer, std::size_t(std::max<ssize_t>(n, 0)));
    return n > 0;
  }
  pid_t pid_ = 0;
  int master_ = -1;
  bool ended_ = false;
  std::string bytes_;
};

constexpr const char* erase = "\r\033[K";

/// What stands between an erased line and the next return or end of a line: the bar's states.
std::vector<std::string> bars(const std::string& bytes) {
  std::vector<std::string> out;
  for (auto at = bytes.find(erase); at != std::string::npos; at = bytes.find(erase, at + 1)) {
    const auto begin = at + 4, end = std::min(bytes.find_first_of("\r\n", begin), bytes.size());
    if (bytes.compare(begin, end - begin, "") != 0 && bytes.find('[', begin) < end)
      out.push_back(bytes.substr(begin, end - begin));
  }
  return out;
}

/// The lines that a terminal shows in the end.
std::string shown(const std::string& bytes) {
  std::string lines, line;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes.compare(i, 4, erase) == 0) {
      line.clear();
      i += 3;
    } else if (bytes[i] == '\n') {
      lines += line + '\n';
      line.clear();
    } else if (bytes[i] != '\r') {
      line += bytes[i];
    }
  }
  return lines + line;
}

TEST_F(run_files, TerminalShowsABarWithTheTimeLeft) {
  on_terminal t(arguments("bar", {"run.total_steps=9"}), 80);
  if (!t.there())
    GTEST_SKIP() << "no terminal can be had";
  ASSERT_EQ(t.wait(), 0) << t.bytes();
  const auto all = bars(t.bytes());
  const std::regex first(R"(step 1/9 \[#*\.*\] [1-8]/8)"), later(R"(step [2-9]/9 \[#*\.*\] [1-8]/8  left \d+s)");
  const std::regex validating(R"(validating after step [089]/9 \[#*\.*\] [1-6]/6(  left \d+s)?)");
  std::set<std::string> steps;
  for (const auto& bar : all) {
    EXPECT_TRUE(std::regex_match(bar, first) || std::regex_match(bar, later) || std::regex_match(bar, validating)) << bar;
    EXPECT_LT(bar.size(), 80u) << bar;
    steps.insert(bar.substr(0, bar.find(" [")));
  }
  EXPECT_EQ(steps.size(), 9u + 3u);
  EXPECT_NE(
      std::find_if(all.begin(), all.end(), [](const auto& b) { return b.find("[########################] 8/8") != std::string::npos; }),
      all.end());
  const std::string screen = shown(t.bytes());
  EXPECT_EQ(screen.find('['), std::string::npos) << "a bar stays: " << screen;
  EXPECT_NE(screen.find("step 9/9  reward"), std::string::npos) << screen;
  EXPECT_NE(screen.find("left 0s"), std::string::npos) << screen;
  EXPECT_NE(screen.find("validation after step 9: accuracy"), std::string::npos) << screen;
}

TEST_F(run_files, BarFitsANarrowTerminal) {
  on_terminal t(arguments("narrow", {"run.total_steps=3"}), 30);
  if (!t.there())
    GTEST_SKIP() << "no terminal can be had";
  ASSERT_EQ(t.wait(), 0) << t.bytes();
  const auto all = bars(t.bytes());
  EXPECT_FALSE(all.empty());
  for (const auto& bar : all)
    EXPECT_LT(bar.size(), 30u) << bar;
}

TEST_F(run_files, BarAndLinesGoTheirOwnWays) {
  const std::string file = world().run_dir("lines.out").string();
  on_terminal t(arguments("lines", {"run.total_steps=3"}), 80, file);
  if (!t.there())
    GTEST_SKIP() << "no terminal can be had";
  ASSERT_EQ(t.wait(), 0) << t.bytes();
  EXPECT_FALSE(bars(t.bytes()).empty());
  EXPECT_EQ(shown(t.bytes()), "");
  const std::string lines = file_bytes(file);
  EXPECT_NE(lines.find("step 3/3  reward"), std::string::npos) << lines;
  EXPECT_EQ(lines.find_first_of("\r\033"), std::string::npos) << lines;
}

TEST_F(run_files, NoTerminalMeansQuietLines) {
  auto p = start("quiet", {"run.total_steps=3"});
  ASSERT_EQ(p.wait(whole_run), 0) << p.err();
  EXPECT_EQ(p.err(), "");
  const std::string lines = p.out();
  EXPECT_EQ(lines.find_first_of("\r\033"), std::string::npos) << lines;
  const std::regex step(R"(step [123]/3  reward \d\.\d{3}  length \d+\.\d  \d+\.\d s  left \d+s)");
  const std::regex validation(R"(validation after step [03]: accuracy \d\.\d{3})");
  std::istringstream in(lines);
  int n = 0;
  for (std::string line; std::getline(in, line); ++n)
    EXPECT_TRUE(std::regex_match(line, step) || std::regex_match(line, validation)) << line;
  EXPECT_EQ(n, 3 + 2);
}

/// The terminal sends its signal to every process in front: the workers must not die of it.
TEST_F(run_files, ControlCStopsARunInProcessesAfterItsStep) {
  const std::string name = "control-c";
  const auto dir = world().run_dir(name);
  on_terminal t(arguments(name, processes(2)), 80);
  if (!t.there())
    GTEST_SKIP() << "no terminal can be had";
  ASSERT_TRUE(t.reads([&] { return t.bytes().find("step 3/24  reward") != std::string::npos; })) << t.bytes();
  t.type('\003');
  EXPECT_EQ(t.wait(), 1);
  const std::string screen = shown(t.bytes());
  EXPECT_NE(screen.find("troupe: stopped after step"), std::string::npos) << screen;
  const std::string log = file_bytes(dir / "log.txt");
  for (const char* death : {"is gone", "was killed", "exited with"})
    EXPECT_EQ(log.find(death), std::string::npos) << log;
  char checkpoint[64];
  std::snprintf(checkpoint, sizeof checkpoint, "checkpoints/step-%06d", recorded_steps(dir).back());
  EXPECT_TRUE(std::filesystem::exists(dir / checkpoint));
  auto again = start(name, processes(2));
  ASSERT_EQ(again.wait(whole_run), 0) << again.err();
  expect_whole(name);
}

} // namespace
} // namespace troupe
