#include "core/error.hpp"
#include "model/config.hpp"
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto cfg = troupe::parse_model_config({reinterpret_cast<const char*>(data), size}, "config.json");
    troupe::parse_model_config(troupe::to_config_json(cfg, troupe::dtype::f32), "written");
  } catch (const troupe::error&) {
    return 0; // refused by name: what a damaged file should get
  }
  return 0;
}
