#pragma once
#include "actors/policy_server.hpp"
#include <string>

namespace troupe {

/// The endpoints of `troupe serve` over the policy of a run. api_key: TROUPE_API_KEY, needed off the loopback.
policy_server_maker make_run_server(const std::string& api_key);

/// Throws errc::bad_config where rollout.serve can be reached from other machines and there is no key.
void check_run_server(const config& cfg, const std::string& api_key);

} // namespace troupe
