#include "actors/rank_link.hpp"
#include <cstdio>
#include <cstdlib>

namespace troupe {
namespace {

[[noreturn]] void end_process(int code) {
  std::fflush(nullptr);
  std::_Exit(code); // a rank may be anywhere in its model
}

} // namespace

rank_actor::behavior_type rank_link(rank_actor::pointer self, const coordinator_actor& coordinator, const caf::strong_actor_ptr& waiting,
                                    const std::shared_ptr<std::atomic<bool>>& failing) {
  self->monitor(coordinator);
  self->set_down_handler([failing](const caf::down_msg&) {
    if (*failing)
      return;
    std::fprintf(stderr, "troupe: the run is gone: this worker ends\n");
    end_process(1);
  });
  self->set_exit_handler([self, failing](const caf::exit_msg& m) {
    if (*failing)
      return self->quit(m.reason);
    if (m.reason == caf::exit_reason::user_shutdown)
      end_process(0);
    std::fprintf(stderr, "troupe: another process that shares this worker's model is gone: this worker ends\n");
    end_process(1);
  });
  return {
      [waiting](const rank_peers& peers) { caf::anon_send(caf::actor_cast<caf::actor>(waiting), peers); },
  };
}

} // namespace troupe
