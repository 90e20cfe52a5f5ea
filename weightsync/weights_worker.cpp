// A process of the tests of weights over NCCL: weights_worker GPU TASK ...; answers every line that it reads with one.
//   source WINDOW-MS TRANSFER-MS    "publish STEP", "retract", "change TENSOR" -> "ok"; first its endpoint; "digest"
//   sink ENDPOINT [renamed]         "fetch STEP DEADLINE-MS" -> "BYTES DIGEST", or "error CODE TEXT"
//   silent ENDPOINT STEP            joins a transfer and never takes part in it: "joined", then "invited"
#include "core/error.hpp"
#include "core/zmq_util.hpp"
#include "weightsync/connection.hpp"
#include "weightsync/device_test_support.hpp"
#include "weightsync/nccl_protocol.hpp"
#include <array>
#include <iostream>
#include <sstream>

namespace troupe {
namespace {

using std::chrono::milliseconds;

int source(const std::vector<std::string>& arguments) {
  device_model model(1);
  const nccl_limits limits{milliseconds(std::stoi(arguments[2])), milliseconds(std::stoi(arguments[1]))};
  const auto source = make_nccl_source(model.host, "127.0.0.1", "secret", limits);
  std::cout << source->endpoint() << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    std::uint32_t number = 0;
    words >> command >> number;
    if (command == "publish")
      source->publish({0, number});
    else if (command == "retract")
      source->retract();
    else if (command == "change")
      model.change(number);
    std::cout << (command == "digest" ? std::to_string(model.digest()) : "ok") << std::endl;
  }
  return 0;
}

int sink(const std::vector<std::string>& arguments) {
  auto tensors = specs;
  if (arguments.size() > 2)
    tensors[4].name = "larger";
  device_model model(0, tensors);
  const auto sink = make_nccl_sink(arguments[1], model.host, "secret");
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    std::uint32_t step = 0;
    int deadline = 0;
    words >> command >> step >> deadline;
    try {
      const sync_result result = sink->fetch({0, step}, milliseconds(deadline));
      std::cout << result.bytes << " " << model.digest() << std::endl;
    } catch (const error& e) {
      std::cout << "error " << int(e.code()) << " " << e.what() << std::endl;
    }
  }
  return 0;
}

int silent(const std::vector<std::string>& arguments) {
  const weights_version version{0, std::uint32_t(std::stoi(arguments[2]))};
  source_connection link(nccl_endpoint::parse(arguments[1])->control, version, milliseconds(60000));
  std::array<zmq::message_t, 1> frames;
  const auto join = [&](weights_version v) {
    send_frame(link.socket(), std::string_view("secret"), true);
    send_frame(link.socket(), pack(nccl_join{1, v, 0, true}), false);
  };
  const auto answer = [&] {
    link.wait("an answer");
    receive_frames(link.socket(), frames);
    return nccl_message(view(frames[0])[0]);
  };
  join({99, 0}); // by the time it is refused the connection is there
  answer();
  join(version);
  std::cout << "joined" << std::endl;
  std::cout << (answer() == nccl_message::invitation ? "invited" : "refused") << std::endl;
  std::string line;
  std::getline(std::cin, line);
  return 0;
}

} // namespace
} // namespace troupe

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 2, argv + argc);
  try {
    troupe::cuda::set_device(std::stoi(argv[1]));
    return arguments[0] == "source" ? troupe::source(arguments)
           : arguments[0] == "sink" ? troupe::sink(arguments)
                                    : troupe::silent(arguments);
  } catch (const troupe::error& e) {
    std::cout << "error " << int(e.code()) << " " << e.what() << std::endl;
    return 3;
  }
}
