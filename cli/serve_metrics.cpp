#include "cli/serve_metrics.hpp"
#include <array>
#include <cstdio>
#include <string_view>

namespace troupe {
namespace {

std::string number(double value) {
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), "%.17g", value);
  return text.data();
}

class writer {
public:
  void head(std::string_view name, std::string_view type, std::string_view help) {
    text_ += "# HELP troupe_" + std::string(name) + " " + std::string(help) + "\n# TYPE troupe_" + std::string(name) + " " +
             std::string(type) + "\n";
  }
  void value(const std::string& name, const std::string& value) { text_ += "troupe_" + name + " " + value + "\n"; }
  void counter(const std::string& name, std::uint64_t v, std::string_view help) {
    head(name, "counter", help);
    value(name, std::to_string(v));
  }
  void gauge(const std::string& name, std::int64_t v, std::string_view help) {
    head(name, "gauge", help);
    value(name, std::to_string(v));
  }
  void histogram(const std::string& name, const latency_histogram& h, std::string_view help) {
    head(name, "histogram", help);
    std::uint64_t below = 0;
    for (std::size_t i = 0; i < h.counts.size(); ++i) {
      below += h.counts[i];
      std::array<char, 24> bound{"+Inf"};
      if (i < latency_histogram::bounds.size())
        std::snprintf(bound.data(), bound.size(), "%g", latency_histogram::bounds[i]);
      value(name + "_bucket{le=\"" + bound.data() + "\"}", std::to_string(below));
    }
    value(name + "_sum", number(h.sum));
    value(name + "_count", std::to_string(below));
  }
  std::string take() { return std::move(text_); }

private:
  std::string text_;
};

} // namespace

std::string metrics_text(const engine_counts& c, const std::map<std::pair<std::string, int>, std::uint64_t>& answers) {
  writer out;
  out.head("answers_total", "counter", "HTTP answers, by path and status; of streams, those that began.");
  for (const auto& [key, n] : answers)
    out.value("answers_total{path=\"" + key.first + "\",status=\"" + std::to_string(key.second) + "\"}", std::to_string(n));
  out.gauge("requests_waiting", c.waiting, "Prompts without a first token.");
  out.gauge("requests_running", c.running, "Prompts with a first token, under way.");
  out.counter("requests_refused_total", c.refused, "Prompts refused because the queue was full.");
  out.counter("requests_given_up_total", c.given_up, "Requests whose client went away, or whose time was over.");
  out.counter("prompt_tokens_total", c.prompt_tokens, "Tokens of the prompts taken.");
  out.counter("output_tokens_total", c.output_tokens, "Tokens drawn.");
  out.counter("reused_prompt_tokens_total", std::uint64_t(c.generator.reused_prompt_tokens), "Prompt tokens that the cache still held.");
  out.head("samples_total", "counter", "Samples that ended, by how.");
  out.value("samples_total{finish_reason=\"stop\"}", std::to_string(c.stopped));
  out.value("samples_total{finish_reason=\"length\"}", std::to_string(c.at_length));
  out.value("samples_total{finish_reason=\"abort\"}", std::to_string(c.aborted));
  out.counter("passes_total", std::uint64_t(c.generator.passes), "Passes of the model.");
  out.counter("rows_total", std::uint64_t(c.generator.rows), "Tokens that went through the model.");
  out.counter("preemptions_total", std::uint64_t(c.generator.preemptions), "Sequences that gave their cache back and were computed again.");
  out.gauge("cache_blocks", c.generator.blocks, "Blocks of the cache.");
  out.gauge("cache_blocks_free", c.generator.free_blocks, "Of those, free or only kept for reuse.");
  if (c.version)
    out.gauge("weights_version", c.version->step, "Step of the run whose weights answer.");
  out.histogram("first_token_seconds", c.first_token, "From a prompt's arrival to its first token.");
  out.histogram("request_seconds", c.whole, "From a prompt's arrival to its last sample's end.");
  return out.take();
}

} // namespace troupe
