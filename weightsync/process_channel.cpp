#include "core/error.hpp"
#include "weightsync/channel.hpp"
#include "weightsync/device.hpp"
#include "weightsync/nccl_protocol.hpp"
#include <algorithm>

namespace troupe {
namespace {

bool on_gpu(causal_lm& model) {
  const auto all = model.parameters();
  return !all.empty() && std::all_of(all.begin(), all.end(), [](const parameter& p) { return p.device_value != nullptr; });
}

[[noreturn]] void refuse(const std::string& reason) {
  throw error(errc::unsupported, "weightsync.channel = \"nccl\": " + reason + "; use \"auto\" or \"zmq\"");
}

} // namespace

std::unique_ptr<weights_source> make_process_source(const std::string& channel, std::shared_ptr<causal_lm> model, const std::string& host,
                                                    const std::string& secret) {
  if (channel == "zmq")
    return make_zmq_source(std::move(model), host, secret);
  if (on_gpu(*model))
    return make_nccl_source(std::move(model), host, secret);
  if (channel == "nccl")
    refuse("the learner's model is not on a GPU");
  return make_zmq_source(std::move(model), host, secret);
}

std::unique_ptr<weights_sink> make_process_sink(const std::string& channel, const std::string& endpoint, std::shared_ptr<causal_lm> model,
                                                const std::string& secret) {
  const auto offered = nccl_endpoint::parse(endpoint);
  const bool here = on_gpu(*model);
  if (offered && here && (channel == "nccl" || nccl_reaches(offered->gpu, model->parameters()[0].device_value)))
    return make_nccl_sink(endpoint, std::move(model), secret);
  if (channel == "nccl")
    refuse(here ? "the learner offers its weights at " + endpoint + " alone" : "the rollout's model is not on a GPU");
  return make_zmq_sink(offered ? offered->zmq : endpoint, std::move(model), secret);
}

} // namespace troupe
