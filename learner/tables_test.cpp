// What the configuration's reader lets through is what the tables here have.
#include "core/config.hpp"
#include "core/error.hpp"
#include "learner/advantage.hpp"
#include "learner/loss.hpp"
#include <gtest/gtest.h>
#include <set>

namespace troupe {
namespace {

constexpr const char* minimal = R"([model]
path = "m"
[data]
train_files = ["t.jsonl"]
max_prompt_length = 8
max_response_length = 8
train_batch_size = 4
[reward]
function = "last_number"
)";

bool accepted(const std::string& key, const std::string& name) {
  try {
    parse_config(minimal, "test.toml", {key + "=\"" + name + "\""});
    return true;
  } catch (const error& e) {
    EXPECT_EQ(exit_code(e.code()), 2);
    return false;
  }
}

TEST(tables, are_the_readers_choices) {
  ASSERT_NO_THROW(parse_config(minimal, "test.toml"));
  struct row {
    std::string key;
    std::vector<std::string> have, lack;
  };
  const row table[] = {
      {"algorithm.adv_estimator",
       group_estimators(),
       {"gae", "remax", "gpg", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "grpoo"}},
      {"learner.policy_loss", policy_losses(), {"sapo", "clip_cov", "kl_cov", "ppo"}},
      {"learner.loss_agg_mode", loss_aggregations(), {"mean"}},
      {"learner.kl_loss_type", kl_loss_types(), {"k4"}},
  };
  for (const auto& r : table) {
    for (const auto& name : r.have)
      EXPECT_TRUE(accepted(r.key, name)) << r.key << " " << name;
    for (const auto& name : r.lack)
      EXPECT_FALSE(accepted(r.key, name)) << r.key << " " << name;
  }
}

} // namespace
} // namespace troupe
