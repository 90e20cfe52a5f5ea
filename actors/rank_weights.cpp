#include "actors/rank_weights.hpp"
#include <algorithm>
#include <array>
#include <cstring>

namespace troupe {
namespace {

constexpr std::size_t longest_endpoint = 64;

std::string pack(weights_version v) {
  byte_writer out;
  out.put(v.incarnation);
  out.put(v.step);
  return out.take();
}

weights_version unpack_version(byte_reader& in) {
  const auto incarnation = in.get<std::uint32_t>();
  return {incarnation, in.get<std::uint32_t>()};
}

class rank_source final : public weights_source {
public:
  rank_source(process_ranks& ranks, std::shared_ptr<causal_lm> own, const std::string& secret) : ranks_(ranks) {
    if (ranks.place().dp_rank == 0)
      own_ = make_zmq_source(std::move(own), "127.0.0.1", secret);
    gather_endpoints();
    ranks.on("weights.publish", [this](byte_reader& in) { publish(unpack_version(in)); });
    ranks.on("weights.retract", [this](byte_reader&) { retract(); });
  }
  std::string endpoint() const override { return endpoint_; }
  void publish(weights_version version) override {
    ranks_.run("weights.publish", pack(version), [&] {
      if (own_)
        own_->publish(version);
    });
  }
  void retract() override {
    ranks_.run("weights.retract", "", [&] {
      if (own_)
        own_->retract();
    });
  }

private:
  void gather_endpoints() {
    using text = std::array<char, longest_endpoint>;
    text mine = {};
    std::vector<text> all(std::size_t(ranks_.all().size()));
    if (own_)
      own_->endpoint().copy(mine.data(), mine.size() - 1);
    ranks_.all().all_gather(mine.data(), all.data(), sizeof mine, "where the ranks offer their weights");
    for (const text& t : all)
      if (t[0] != '\0')
        endpoint_ += (endpoint_.empty() ? "" : ",") + std::string(t.data());
  }

  process_ranks& ranks_;
  std::unique_ptr<weights_source> own_; // null: another rank has the same part and offers it
  std::string endpoint_;
};

class rank_sink final : public weights_sink {
public:
  rank_sink(std::shared_ptr<rank_fetcher> fetcher, std::string endpoint) : fetcher_(std::move(fetcher)), endpoint_(std::move(endpoint)) {}
  sync_result fetch(weights_version version, std::chrono::milliseconds deadline) override {
    return fetcher_->fetch(endpoint_, version, deadline);
  }

private:
  const std::shared_ptr<rank_fetcher> fetcher_;
  const std::string endpoint_;
};

} // namespace

std::unique_ptr<weights_source> make_rank_source(process_ranks& ranks, std::shared_ptr<causal_lm> own, const std::string& secret) {
  return std::make_unique<rank_source>(ranks, std::move(own), secret);
}

rank_fetcher::rank_fetcher(process_ranks& ranks, std::shared_ptr<causal_lm> own, std::string secret)
    : ranks_(ranks), own_(std::move(own)), secret_(std::move(secret)) {
  ranks.on("weights.fetch", [this](byte_reader& in) {
    const auto endpoint = in.get_string();
    const auto version = unpack_version(in);
    fetch(endpoint, version, std::chrono::milliseconds(in.get<std::int64_t>()));
  });
}

sync_result rank_fetcher::fetch(const std::string& endpoint, weights_version version, std::chrono::milliseconds deadline) {
  byte_writer out;
  out.put_string(endpoint);
  out.put(version.incarnation);
  out.put(version.step);
  out.put(std::int64_t{deadline.count()});
  sync_result result;
  ranks_.run("weights.fetch", out.take(), [&] {
    if (!sink_ || endpoint != endpoint_)
      sink_ = make_zmq_sink(endpoint, own_, secret_);
    endpoint_ = endpoint;
    result = sink_->fetch(version, deadline);
    struct share {
      std::uint64_t bytes;
      double seconds;
    };
    const share mine{result.bytes, result.seconds};
    std::vector<share> all(std::size_t(ranks_.all().size()));
    ranks_.all().all_gather(&mine, all.data(), sizeof mine, "what the ranks fetched");
    result.bytes = 0;
    for (const share& s : all) {
      result.bytes += s.bytes;
      result.seconds = std::max(result.seconds, s.seconds);
    }
  });
  return result;
}

std::unique_ptr<weights_sink> make_rank_sink(std::shared_ptr<rank_fetcher> fetcher, const std::string& endpoint) {
  return std::make_unique<rank_sink>(std::move(fetcher), endpoint);
}

} // namespace troupe
